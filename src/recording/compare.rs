//! Compares what came of a call with what came of it when another component made it, or the same at another time.

use std::collections::BTreeSet;

use super::notation::Outcome;
use crate::model::world::Reads;
use crate::types::json::{Json, differences};

/// What a difference is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Another kind of outcome, another refusal, or an answer to a client that was left to others.
    Outcome,
    /// Who is told.
    Audience,
    /// What they are told.
    Message,
    /// For how long, and what it replaces.
    Terms,
    /// Who joins and leaves which groups.
    Groups,
    /// What a client is answered at once.
    Replies,
    /// The events that are published.
    Events,
    /// One of the two faults.
    Fault,
}

impl Kind {
    pub const ALL: [Kind; 8] =
        [Kind::Outcome, Kind::Audience, Kind::Message, Kind::Terms, Kind::Groups, Kind::Replies, Kind::Events, Kind::Fault];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Outcome => "outcome",
            Kind::Audience => "audience",
            Kind::Message => "message",
            Kind::Terms => "terms",
            Kind::Groups => "groups",
            Kind::Replies => "replies",
            Kind::Events => "events",
            Kind::Fault => "fault",
        }
    }
}

/// How two outcomes compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    Same,
    /// Each difference with its path, the expected value and the actual one, as `plugin test` writes it.
    Differs(Vec<(Kind, String)>),
    /// It can't be told: what was recorded does not say who is in this group.
    Unknown(String),
}

/// The members of a delivery by what they are about. A delivery's recipients are compared as sets of users.
const AUDIENCE: [&str; 2] = ["to", "except"];
const MESSAGE: [&str; 1] = ["message"];
const TERMS: [&str; 4] = ["ttl_ms", "keep_ms", "collapse_key", "priority"];
const GROUPS: [&str; 3] = ["joins", "leaves", "ends"];
const REPLIES: [&str; 2] = ["replies", "close"];
const EVENTS: [&str; 1] = ["publishes"];

/// Compares two outcomes of a call that read this. `path`: begins the paths of differences.
pub fn compare(path: &str, expected: &Outcome, actual: &Outcome, reads: &Reads) -> Comparison {
    let mut found = Found::default();
    let ((name, one), (other_name, other)) = (expected, actual);
    match *name {
        _ if name != other_name => {
            let kind = if [name, other_name].contains(&&"faults") { Kind::Fault } else { Kind::Outcome };
            found.lines.push((kind, format!("{path}{name} {one} ≠ {other_name} {other}")));
        }
        // Details of faults name places in the component.
        "faults" if one.get("kind") == other.get("kind") => {}
        "faults" => found.values(Kind::Fault, &format!("{path}{name}"), one, other),
        "gives" => found.values(Kind::Message, &format!("{path}{name}"), one, other),
        "decides" | "answers" if one != other => found.answers(&format!("{path}{name}"), one, other, reads),
        "decides" | "answers" => {}
        _ => found.values(Kind::Outcome, &format!("{path}{name}"), one, other),
    }
    match (found.lines.is_empty(), found.unknown) {
        (false, _) => Comparison::Differs(found.lines),
        (true, None) => Comparison::Same,
        (true, Some(group)) => Comparison::Unknown(group),
    }
}

#[derive(Default)]
struct Found {
    lines: Vec<(Kind, String)>,
    unknown: Option<String>,
}

impl Found {
    fn values(&mut self, kind: Kind, path: &str, one: &Json, other: &Json) {
        let mut lines = Vec::new();
        differences(path, one, other, &mut lines);
        self.lines.extend(lines.into_iter().map(|line| (kind, line)));
    }

    fn answers(&mut self, path: &str, one: &Json, other: &Json, reads: &Reads) {
        let (Json::Object(_), Json::Object(_)) = (one, other) else {
            // A client's message that one of them left to others.
            return self.values(Kind::Outcome, path, one, other);
        };
        self.parts(Kind::Replies, path, one, other, &REPLIES);
        self.parts(Kind::Groups, path, one, other, &GROUPS);
        let (one_list, other_list) = (deliveries(one), deliveries(other));
        for index in 0..one_list.len().max(other_list.len()) {
            let path = format!("{path}.deliveries[{index}]");
            match (one_list.get(index), other_list.get(index)) {
                (Some(first), Some(second)) => {
                    match are_told_alike((one, first), (other, second), reads) {
                        Ok(true) => {}
                        Ok(false) => self.parts(Kind::Audience, &path, first, second, &AUDIENCE),
                        Err(group) => drop(self.unknown.get_or_insert(group)),
                    }
                    self.parts(Kind::Message, &path, first, second, &MESSAGE);
                    self.parts(Kind::Terms, &path, first, second, &TERMS);
                }
                (Some(first), None) => self.lines.push((Kind::Audience, format!("{path}: {first} ≠ nothing"))),
                (None, Some(second)) => self.lines.push((Kind::Audience, format!("{path}: nothing ≠ {second}"))),
                (None, None) => {}
            }
        }
        self.parts(Kind::Events, path, one, other, &EVENTS);
    }

    /// Compares some members of two objects.
    fn parts(&mut self, kind: Kind, path: &str, one: &Json, other: &Json, names: &[&str]) {
        let part = |json: &Json| Json::object(names.iter().map(|name| (*name, json.get(name).cloned())));
        self.values(kind, path, &part(one), &part(other));
    }
}

fn deliveries(answer: &Json) -> &[Json] {
    match answer.get("deliveries") {
        Some(Json::Array(deliveries)) => deliveries,
        _ => &[],
    }
}

/// Returns whether two deliveries, each with its answer, have the same recipients.
///
/// # Errors
/// The recording does not say who is in this group.
fn are_told_alike(one: (&Json, &Json), other: (&Json, &Json), reads: &Reads) -> Result<bool, String> {
    if AUDIENCE.iter().all(|name| one.1.get(name) == other.1.get(name)) && joins(one.0) == joins(other.0) {
        return Ok(true);
    }
    Ok(match (audience(one, reads)?, audience(other, reads)?) {
        (Audience::Users(one), Audience::Users(other)) => one == other,
        (Audience::Everyone(one), Audience::Everyone(other)) => one == other,
        (Audience::Session(one), Audience::Session(other)) => one == other,
        _ => false,
    })
}

/// The recipients of a delivery.
enum Audience<'a> {
    Users(BTreeSet<&'a str>),
    /// But these.
    Everyone(BTreeSet<&'a str>),
    Session(&'a Json),
}

fn audience<'a>((answer, delivery): (&'a Json, &'a Json), reads: &'a Reads) -> Result<Audience<'a>, String> {
    let except: BTreeSet<&str> = delivery.get("except").map(texts).into_iter().flatten().collect();
    let but = |users: BTreeSet<&'a str>| users.difference(&except).copied().collect();
    match delivery.get("to") {
        Some(to @ Json::Array(_)) => Ok(Audience::Users(but(texts(to).collect()))),
        Some(to @ Json::Object(_)) => {
            let Some(Json::String(group)) = to.get("group") else { return Ok(Audience::Session(to)) };
            let read = reads.groups.get(group).filter(|read| read.is_whole()).ok_or_else(|| group.clone())?;
            let mut members: BTreeSet<&str> = read.members.iter().map(|member| member.as_str()).collect();
            members.extend(joins(answer).and_then(|joins| joins.get(group)).map(texts).into_iter().flatten());
            Ok(Audience::Users(but(members)))
        }
        _ => Ok(Audience::Everyone(except)),
    }
}

fn joins(answer: &Json) -> Option<&Json> {
    answer.get("joins")
}

fn texts(list: &Json) -> impl Iterator<Item = &str> {
    let items: &[Json] = if let Json::Array(items) = list { items } else { &[] };
    items.iter().filter_map(|item| if let Json::String(text) = item { Some(text.as_str()) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::world::GroupRead;
    use crate::types::event::UserId;

    fn reads() -> Reads {
        let users = ["a", "b"].map(|user| UserId::new(user, 16).unwrap()).to_vec();
        let whole = GroupRead { size: 2, members: users.clone(), ..GroupRead::default() };
        let part = GroupRead { size: 5000, members: users, ..GroupRead::default() };
        Reads { groups: [("g".to_owned(), whole), ("large".to_owned(), part)].into(), ..Reads::default() }
    }

    fn differ(one: (&'static str, &str), other: (&'static str, &str)) -> Comparison {
        let outcome = |(name, text): (&'static str, &str)| (name, Json::parse(text).unwrap());
        compare("", &outcome(one), &outcome(other), &reads())
    }

    fn kinds(name: &'static str, one: &str, other: &str) -> Vec<Kind> {
        match differ((name, one), (name, other)) {
            Comparison::Differs(lines) => lines.into_iter().map(|(kind, _)| kind).collect(),
            Comparison::Same => Vec::new(),
            Comparison::Unknown(group) => panic!("{group} is unknown"),
        }
    }

    #[test]
    fn each_difference_has_its_kind_and_its_path() {
        let told = |rest: &str| format!(r#"{{"deliveries":[{{"to":["a"],"message":{{"n":1}}{rest}}}]}}"#);
        let other = r#"{"deliveries":[{"to":["b"],"message":{"n":2},"ttl_ms":5}]}"#;
        assert_eq!(kinds("decides", &told(""), &told("")), []);
        assert_eq!(kinds("decides", &told(""), other), [Kind::Audience, Kind::Message, Kind::Terms]);
        assert_eq!(kinds("decides", "{}", &told("")), [Kind::Audience]);
        assert_eq!(kinds("decides", r#"{"joins":{"g":["a"]},"ends":["x"]}"#, "{}"), [Kind::Groups, Kind::Groups]);
        let answer = r#"{"replies":[1],"publishes":[{"type":"t","data":1}],"close":"bye"}"#;
        assert_eq!(kinds("answers", answer, "{}"), [Kind::Replies, Kind::Replies, Kind::Events]);
        assert_eq!(kinds("answers", "null", "{}"), [Kind::Outcome]);
        assert_eq!(kinds("gives", r#"{"n":1}"#, "null"), [Kind::Message]);
        assert_eq!(kinds("refuses", r#"{"code":"a","detail":""}"#, r#"{"code":"b","detail":""}"#), [Kind::Outcome]);
        assert_eq!(kinds("faults", r#"{"kind":"trap","detail":"1"}"#, r#"{"kind":"trap","detail":"2"}"#), []);
        let lines = vec![(Kind::Fault, r#"decides {} ≠ faults {"kind":"trap"}"#.to_owned())];
        assert_eq!(differ(("decides", "{}"), ("faults", r#"{"kind":"trap"}"#)), Comparison::Differs(lines));
        let lines = vec![(Kind::Message, "decides.deliveries[0].message.n: 1 ≠ 2".to_owned())];
        let changed = told("").replace(":1}", ":2}");
        assert_eq!(differ(("decides", &told("")), ("decides", &changed)), Comparison::Differs(lines));
    }

    #[test]
    fn recipients_are_compared_as_the_users_whom_they_reach() {
        let told = |to: &str| format!(r#"{{"deliveries":[{{"to":{to},"message":1}}]}}"#);
        let same = |one: &str, other: &str| kinds("decides", &told(one), &told(other)).is_empty();
        assert!(same(r#"["a","b"]"#, r#"["b","a"]"#) && same(r#"{"group":"g"}"#, r#"["b","a"]"#));
        assert!(!same(r#"{"group":"g"}"#, r#"["a"]"#) && !same(r#"["a"]"#, r#""everyone""#));
        assert!(same(r#"{"group":"g"},"except":["a"]"#, r#"["b"]"#));
        assert!(!same(r#""everyone","except":["a"]"#, r#""everyone""#));
        // A member who joins by the same answer is reached too.
        let joining = r#"{"joins":{"g":["c"]},"deliveries":[{"to":{"group":"g"},"message":1}]}"#;
        assert_eq!(kinds("decides", joining, &told(r#"["a","b","c"]"#)), [Kind::Groups]);
    }

    #[test]
    fn a_group_that_was_not_read_whole_is_not_guessed() {
        let told = |to: &str| format!(r#"{{"deliveries":[{{"to":{to},"message":1}}]}}"#);
        let large = told(r#"{"group":"large"}"#);
        assert_eq!(differ(("decides", &large), ("decides", &large)), Comparison::Same);
        assert_eq!(differ(("decides", &large), ("decides", &told(r#"["a","b"]"#))), Comparison::Unknown("large".into()));
        assert_eq!(differ(("decides", &told(r#"["a"]"#)), ("decides", &told(r#"{"group":"x"}"#))), Comparison::Unknown("x".into()));
    }
}
