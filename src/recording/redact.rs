//! Takes what nobody else should read out of a recorded call, so that it can still be played: a value is replaced by another one of the same
//! form, wherever it occurs in the call. What a policy has copied from the event, or made a key of, stays the same thing everywhere.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use thiserror::Error;

use crate::types::json::Json;

/// Paths of one recording. More would be a mistake.
const PATHS_MAX: usize = 32;

/// Members of a line whose values are never replaced: what they say is the server's or the form's.
const FIXED: [&str; 18] = [
    "about",
    "at",
    "code",
    "datacontenttype",
    "digest",
    "full",
    "keep_ms",
    "now",
    "policy",
    "priority",
    "settings",
    "size",
    "specversion",
    "subprotocol",
    "took_us",
    "ttl_ms",
    "vary",
    "version",
];

/// The same, of an event.
const FIXED_OF_EVENTS: [&str; 2] = ["time", "type"];

/// Members whose content is the users' or the policies': in them, names of members are replaced too.
const CONTENT: [&str; 11] = ["asked", "attributes", "data", "gives", "groups", "joins", "leaves", "message", "presence", "reader", "state"];

/// What is redacted in one recording.
#[derive(Debug)]
pub struct Redaction {
    paths: Vec<Vec<String>>,
    /// Makes the same value another one in each recording.
    salt: RandomState,
}

#[derive(Debug, PartialEq, Eq, Error)]
pub enum PathError {
    #[error(
        "{0:?} is not a path: names with dots between them, as in data.rider.phone, from the event, the message or the session of the call"
    )]
    Invalid(String),
    #[error("there are more than {PATHS_MAX} paths to redact")]
    TooMany,
}

impl Redaction {
    /// Reads paths, which begin at what the call is about: the event, the message, or the session.
    ///
    /// # Errors
    /// There are too many, or one is not a path.
    pub fn parse(paths: &[String]) -> Result<Redaction, PathError> {
        if paths.len() > PATHS_MAX {
            return Err(PathError::TooMany);
        }
        let parse = |path: &String| {
            let names: Vec<String> = path.split('.').map(str::to_owned).collect();
            if names.iter().any(String::is_empty) { Err(PathError::Invalid(path.clone())) } else { Ok(names) }
        };
        Ok(Redaction { paths: paths.iter().map(parse).collect::<Result<_, _>>()?, salt: RandomState::new() })
    }

    /// Returns a line with what the paths name replaced.
    pub fn apply(&self, line: Json) -> Json {
        let mut secrets = BTreeSet::new();
        if let Some(Json::Array(steps)) = line.get("steps") {
            for step in steps {
                // What the call is about comes first in a step.
                let Json::Object(members) = step else { continue };
                let Some((_, about)) = members.first() else { continue };
                self.paths.iter().for_each(|path| collect(about, path, &mut secrets));
            }
        }
        if secrets.is_empty() {
            return line;
        }
        let mut replaced: Vec<(String, String)> = secrets.into_iter().map(|secret| (self.another(&secret), secret)).map(swap).collect();
        // Of two that begin alike, the longer one first.
        replaced.sort_by_key(|(secret, _)| std::cmp::Reverse(secret.len()));
        Replaced(replaced).line(line)
    }

    /// Returns another text of the same form and length: digits for digits, letters for letters.
    fn another(&self, secret: &str) -> String {
        let mut random = fastrand::Rng::with_seed(self.salt.hash_one(secret));
        let mut other = secret.to_owned();
        // A short one may become itself by chance.
        for _ in 0..16 {
            other = secret.chars().map(|character| like(character, &mut random)).collect();
            if other != secret {
                break;
            }
        }
        other
    }
}

fn swap((other, secret): (String, String)) -> (String, String) {
    (secret, other)
}

fn like(character: char, random: &mut fastrand::Rng) -> String {
    match character {
        // A number does not begin with a zero.
        '1'..='9' => random.char('1'..='9').to_string(),
        '0' => random.digit(10).to_string(),
        'a'..='z' => random.lowercase().to_string(),
        'A'..='Z' => random.uppercase().to_string(),
        other if other.is_ascii() => other.to_string(),
        other => "x".repeat(other.len_utf8()),
    }
}

/// Collects the texts and numbers at a path, and below it. Lists are passed through.
fn collect(json: &Json, path: &[String], into: &mut BTreeSet<String>) {
    match (json, path) {
        (Json::Array(items), _) => items.iter().for_each(|item| collect(item, path, into)),
        (Json::Object(_), [name, rest @ ..]) => json.get(name).into_iter().for_each(|below| collect(below, rest, into)),
        (Json::Object(members), []) => members.iter().for_each(|(_, below)| collect(below, path, into)),
        (Json::String(text), []) if !text.is_empty() => drop(into.insert(text.clone())),
        (Json::Word(word), []) if !["true", "false", "null"].contains(&word.as_str()) => drop(into.insert(word.clone())),
        _ => {}
    }
}

/// Texts, and what stands in their place.
struct Replaced(Vec<(String, String)>);

impl Replaced {
    fn line(&self, json: Json) -> Json {
        self.part(json, false)
    }

    /// `is_content`: whether names of members are replaced too.
    fn part(&self, json: Json, is_content: bool) -> Json {
        match json {
            Json::Object(members) if is_content => {
                if let [(name, Json::String(text))] = members.as_slice()
                    && name == "$base64"
                {
                    return Json::object([("$base64", Some(Json::String(self.base64(text))))]);
                }
                Json::Object(members.into_iter().map(|(name, value)| (self.text(&name), self.part(value, true))).collect())
            }
            Json::Object(members) => {
                let is_event = members.iter().any(|(name, _)| name == "specversion");
                Json::Object(members.into_iter().map(|(name, value)| self.member(name, value, is_event)).collect())
            }
            Json::Array(items) => Json::Array(items.into_iter().map(|item| self.part(item, is_content)).collect()),
            Json::String(text) => Json::String(self.text(&text)),
            Json::Word(word) => Json::Word(self.0.iter().find(|(secret, _)| *secret == word).map_or(word, |(_, other)| other.clone())),
        }
    }

    fn member(&self, name: String, value: Json, is_event: bool) -> (String, Json) {
        let is_fixed = FIXED.contains(&name.as_str()) || (is_event && FIXED_OF_EVENTS.contains(&name.as_str()));
        let value = match value {
            value if is_fixed => value,
            Json::String(text) if name == "data_base64" => Json::String(self.base64(&text)),
            // The groups of which a part is known.
            Json::Object(groups) if name == "groups" && groups.iter().all(|(_, group)| group.get("size").is_some()) => {
                Json::Object(groups.into_iter().map(|(group, part)| (self.text(&group), self.part(part, false))).collect())
            }
            value => self.part(value, CONTENT.contains(&name.as_str()) || name == "replies"),
        };
        (name, value)
    }

    /// Replaces where a text stands alone: a number in another number is not the same one.
    fn text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (secret, other) in &self.0 {
            let mut from = 0;
            while let Some(found) = out.get(from..).and_then(|rest| rest.find(secret.as_str())) {
                let (start, end) = (from + found, from + found + secret.len());
                let before = out.get(..start).and_then(|text| text.chars().next_back());
                let after = out.get(end..).and_then(|text| text.chars().next());
                if ![before, after].into_iter().flatten().any(char::is_alphanumeric) {
                    out.replace_range(start..end, other);
                }
                from = start + secret.chars().next().map_or(1, char::len_utf8);
                // What stands there now may have other characters, of the same length in bytes.
                while !out.is_char_boundary(from) {
                    from += 1;
                }
            }
        }
        out
    }

    fn base64(&self, text: &str) -> String {
        let Ok(mut bytes) = BASE64_STANDARD.decode(text) else { return text.to_owned() };
        for (secret, other) in &self.0 {
            let size = secret.len();
            for start in 0..bytes.len().saturating_sub(size.saturating_sub(1)) {
                if let Some(place) = bytes.get_mut(start..start + size).filter(|place| **place == *secret.as_bytes()) {
                    place.copy_from_slice(other.as_bytes());
                }
            }
        }
        BASE64_STANDARD.encode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(paths: &[&str], line: &str) -> String {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        Redaction::parse(&paths).unwrap().apply(Json::parse(line).unwrap()).to_string()
    }

    #[test]
    fn a_value_is_another_one_of_its_form_wherever_it_occurs() {
        let state = BASE64_STANDARD.encode(b"\xff1001\xff");
        let line = format!(
            r#"{{"about":"a 1001","recorded":{{"took_us":1001,"presence":{{"1001":1}}}},"now":"1001-01-01","host":{{"state":{{"rider:1001":{{"$base64":"{state}"}},"x10012":"1001"}}}},"steps":[{{"event":{{"specversion":"1.0","type":"1001.a","source":"/riders/1001","data":{{"rider":{{"id":1001,"name":"Änn Lee"}},"n":10010,"1001":true}}}},"decides":{{"deliveries":[{{"to":["1001"],"message":{{"text":"Änn Lee joins"}},"ttl_ms":1001}}]}}}}]}}"#
        );
        let out = redacted(&["data.rider"], &line);
        assert!(!out.contains("Änn") && !out.contains("Lee"), "{out}");
        let json = Json::parse(&out).unwrap();
        let Some(Json::Array(steps)) = json.get("steps") else { panic!("{out}") };
        let data = steps[0].get("event").unwrap().get("data").unwrap();
        let rider = data.get("rider").unwrap();
        let (Some(Json::Word(id)), Some(Json::String(name))) = (rider.get("id"), rider.get("name")) else { panic!("{out}") };
        assert!(id.len() == 4 && id != "1001" && id.parse::<u32>().is_ok() && name.len() == "Änn Lee".len(), "{id} {name}");
        let state = BASE64_STANDARD.encode([b"\xff", id.as_bytes(), b"\xff"].concat());
        let expected = format!(
            r#"{{"about":"a 1001","recorded":{{"took_us":1001,"presence":{{"{id}":1}}}},"now":"1001-01-01","host":{{"state":{{"rider:{id}":{{"$base64":"{state}"}},"x10012":"{id}"}}}},"steps":[{{"event":{{"specversion":"1.0","type":"1001.a","source":"/riders/{id}","data":{{"rider":{{"id":{id},"name":"{name}"}},"n":10010,"{id}":true}}}},"decides":{{"deliveries":[{{"to":["{id}"],"message":{{"text":"{name} joins"}},"ttl_ms":1001}}]}}}}]}}"#
        );
        assert_eq!(out, expected);
    }

    #[test]
    fn lists_are_passed_through_and_what_is_not_there_is_not_missed() {
        let line = r#"{"steps":[{"event":{"specversion":"1.0","data":{"shares":[{"who":"ab"},{"who":"cd"}],"flag":true}}}]}"#;
        let out = redacted(&["data.shares.who", "data.flag", "data.none.at.all"], line);
        assert!(!out.contains("ab") && !out.contains("cd") && out.contains("true"), "{out}");
        assert_eq!(redacted(&["subject"], line), line);
    }

    #[test]
    fn paths_are_checked() {
        let parse = |path: &str| Redaction::parse(&[path.to_owned()]).map(|_| ());
        assert_eq!(parse("data..x"), Err(PathError::Invalid("data..x".into())));
        assert!(parse("").is_err() && parse("data.x").is_ok());
        assert_eq!(Redaction::parse(&vec!["a".to_owned(); PATHS_MAX + 1]).unwrap_err(), PathError::TooMany);
    }
}
