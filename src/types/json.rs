//! JSON that keeps the order of members and the digits of numbers, and a printer for people.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::types::event::Body;

/// Values nested deeper are kept as text, so that no guest's answer can exhaust the stack.
const DEPTH_MAX: usize = 64;

/// A value that fits on a line of N characters is not broken.
const LINE_CHARS: usize = 120;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    String(String),
    /// A number, `true`, `false` or `null`.
    Word(String),
}

impl Json {
    /// Parses a text.
    ///
    /// # Errors
    /// The text is not valid JSON.
    pub fn parse(text: &str) -> serde_json::Result<Json> {
        Json::parse_within(text, DEPTH_MAX)
    }

    fn parse_within(text: &str, depth: usize) -> serde_json::Result<Json> {
        let Some(below) = depth.checked_sub(1) else { return Ok(Json::Word(text.to_owned())) };
        let text = text.trim_ascii();
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text)?;
                let parse = |(name, value): (String, &RawValue)| Ok((name, Json::parse_within(value.get(), below)?));
                Json::Object(members.into_iter().map(parse).collect::<serde_json::Result<_>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                Json::Array(items.into_iter().map(|item| Json::parse_within(item.get(), below)).collect::<serde_json::Result<_>>()?)
            }
            Some(b'"') => Json::String(serde_json::from_str(text)?),
            _ => Json::Word(serde_json::from_str::<&RawValue>(text)?.get().to_owned()),
        })
    }

    pub fn null() -> Json {
        Json::Word("null".into())
    }

    pub fn number(number: impl fmt::Display) -> Json {
        Json::Word(number.to_string())
    }

    pub fn string(text: impl Into<String>) -> Json {
        Json::String(text.into())
    }

    /// Returns an object of the members that are not `None`.
    pub fn object<'a>(members: impl IntoIterator<Item = (&'a str, Option<Json>)>) -> Json {
        Json::Object(members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    }

    /// Returns a body: JSON stays as it is; text and bytes become `{"$text": …}` and `{"$base64": …}`.
    pub fn of_body(body: &Body) -> Json {
        match body {
            // A JSON body was validated when it was made.
            Body::Json(text) => Json::parse(text).unwrap_or_else(|_| Json::Word(text.clone())),
            Body::Text(text) => Json::object([("$text", Some(Json::string(text)))]),
            Body::Binary(bytes) => Json::object([("$base64", Some(Json::String(BASE64_STANDARD.encode(bytes))))]),
        }
    }

    /// Returns the body that [`Json::of_body`] turns into this value.
    ///
    /// # Errors
    /// `$base64` is not valid base64.
    pub fn to_body(&self) -> anyhow::Result<Body> {
        if let Json::Object(members) = self
            && let [(name, Json::String(text))] = members.as_slice()
        {
            match name.as_str() {
                "$text" => return Ok(Body::Text(text.clone())),
                "$base64" => return Ok(Body::Binary(BASE64_STANDARD.decode(text)?)),
                _ => {}
            }
        }
        Ok(Body::json(self.to_string())?)
    }

    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(known, _)| known == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Replaces a member, or adds it at the end.
    pub fn set(&mut self, name: &str, value: Json) {
        let Json::Object(members) = self else { return };
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => members.push((name.to_owned(), value)),
        }
    }

    pub fn remove(&mut self, name: &str) {
        if let Json::Object(members) = self {
            members.retain(|(known, _)| known != name);
        }
    }

    /// Deserializes the value.
    ///
    /// # Errors
    /// The value does not fit the type.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.to_string())
    }

    /// Returns the value in indented lines.
    pub fn pretty(&self) -> String {
        let mut text = String::new();
        self.print(&mut text, 0, 0);
        text.push('\n');
        text
    }

    /// `used` is the number of other characters on the line, before and after the value.
    fn print(&self, out: &mut String, indent: usize, used: usize) {
        let flat = spaced(self);
        let (open, close, items): (_, _, Vec<(String, &Json)>) = match self {
            Json::Object(members) => ('{', '}', members.iter().map(|(name, value)| (format!("{}: ", quoted(name)), value)).collect()),
            Json::Array(items) => ('[', ']', items.iter().map(|item| (String::new(), item)).collect()),
            _ => return out.push_str(&flat),
        };
        if items.is_empty() || indent + used + flat.chars().count() <= LINE_CHARS && indent > 0 {
            return out.push_str(&flat);
        }
        out.push(open);
        let last = items.len() - 1;
        for (index, (name, item)) in items.into_iter().enumerate() {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent + 2));
            out.push_str(&name);
            item.print(out, indent + 2, name.chars().count() + 1);
            if index < last {
                out.push(',');
            }
        }
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent));
        out.push(close);
    }
}

/// Writes the value on one line, without spaces.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&flat(self, "", ":", ","))
    }
}

fn spaced(json: &Json) -> String {
    flat(json, " ", ": ", ", ")
}

fn flat(json: &Json, margin: &str, colon: &str, comma: &str) -> String {
    match json {
        Json::Object(members) if members.is_empty() => "{}".to_owned(),
        Json::Object(members) => {
            let member = |(name, value): &(String, Json)| format!("{}{colon}{}", quoted(name), flat(value, margin, colon, comma));
            format!("{{{margin}{}{margin}}}", members.iter().map(member).collect::<Vec<_>>().join(comma))
        }
        Json::Array(items) => {
            format!("[{}]", items.iter().map(|item| flat(item, margin, colon, comma)).collect::<Vec<_>>().join(comma))
        }
        Json::String(text) => quoted(text),
        Json::Word(text) => text.clone(),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Lists where two values differ: the path of each difference, the expected value and the actual one.
pub fn differences(path: &str, expected: &Json, actual: &Json, found: &mut Vec<String>) {
    match (expected, actual) {
        (Json::Object(one), Json::Object(_)) => {
            for (name, value) in one {
                match actual.get(name) {
                    Some(other) => differences(&format!("{path}.{name}"), value, other, found),
                    None => found.push(format!("{path}.{name}: {} ≠ nothing", spaced(value))),
                }
            }
            let Json::Object(other) = actual else { return };
            for (name, value) in other.iter().filter(|(name, _)| expected.get(name).is_none()) {
                found.push(format!("{path}.{name}: nothing ≠ {}", spaced(value)));
            }
        }
        (Json::Array(one), Json::Array(other)) => {
            for index in 0..one.len().max(other.len()) {
                let path = format!("{path}[{index}]");
                match (one.get(index), other.get(index)) {
                    (Some(value), Some(other)) => differences(&path, value, other, found),
                    (Some(value), None) => found.push(format!("{path}: {} ≠ nothing", spaced(value))),
                    (None, Some(other)) => found.push(format!("{path}: nothing ≠ {}", spaced(other))),
                    (None, None) => {}
                }
            }
        }
        _ if expected == actual => {}
        _ => found.push(format!("{path}: {} ≠ {}", spaced(expected), spaced(actual))),
    }
}

/// An object's members in their order, unparsed.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).unwrap()
    }

    #[test]
    fn numbers_keep_their_digits_and_members_their_order() {
        let text = r#"{"b":12.50,"a":[1e400,-0,true,null,"é\n"],"c":{}}"#;
        assert_eq!(json(text).to_string(), text);
        assert_eq!(json(&json(text).pretty()), json(text));
    }

    #[test]
    fn a_difference_names_its_path() {
        let differ = |one: &str, other: &str| {
            let mut found = Vec::new();
            differences("it", &json(one), &json(other), &mut found);
            found
        };
        assert!(differ(r#"{"a":1,"b":[2]}"#, r#"{"b":[2],"a":1}"#).is_empty(), "the order of members is nothing");
        assert_eq!(differ(r#"{"a":[{"eta":4}]}"#, r#"{"a":[{"eta":5}]}"#), ["it.a[0].eta: 4 ≠ 5"]);
        assert_eq!(differ("[1]", "[1,{\"a\":\"b\"}]"), ["it[1]: nothing ≠ { \"a\": \"b\" }"]);
        assert_eq!(differ(r#"{"a":12.50}"#, r#"{"a":12.5}"#), ["it.a: 12.50 ≠ 12.5"], "each digit counts");
        assert_eq!(differ(r#"{"a":1}"#, r#"{"b":1}"#), ["it.a: 1 ≠ nothing", "it.b: nothing ≠ 1"]);
        assert_eq!(differ("[[],{}]", "[{},[]]"), ["it[0]: [] ≠ {}", "it[1]: {} ≠ []"]);
    }

    #[test]
    fn bodies_of_every_kind_come_back_as_they_were() {
        for body in [Body::Json(r#"{"text":"x"}"#.into()), Body::Text("hi".into()), Body::Binary(vec![0, 255])] {
            assert_eq!(Json::of_body(&body).to_body().unwrap(), body);
        }
        assert!(json(r#"{"$base64":"?"}"#).to_body().is_err());
    }

    #[test]
    fn what_is_nested_too_deeply_stays_as_it_is() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(json(&deep).to_string(), deep);
    }

    #[test]
    fn short_things_stay_on_a_line() {
        let text = json(r#"{"about":"x","steps":[{"a":1}]}"#).pretty();
        assert_eq!(text, "{\n  \"about\": \"x\",\n  \"steps\": [{ \"a\": 1 }]\n}\n");
    }
}
