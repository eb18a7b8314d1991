//! Entries of the live feed in words. The server may be older or newer than this client: missing members are omitted.

use std::fmt::Write;

use serde_json::Value;

use crate::cli::explain::story;
use crate::cli::send::receipt;
use crate::cli::terminal::{count, highlight, plain, word};

/// How entries are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines {
    pub color: bool,
    /// Whether the whole story of an event is told.
    pub full: bool,
}

impl Lines {
    /// Returns the lines of one entry.
    pub(super) fn entry(self, kind: &str, data: &str) -> String {
        let Ok(entry) = serde_json::from_str::<Value>(data) else { return format!("{} {}\n", plain(kind), plain(data)) };
        let text = |name: &str| entry.get(name).map(word).unwrap_or_default();
        // The time of day, without its fraction.
        let at = text("at").get(11..19).map(|time| format!("{time}Z  ")).unwrap_or_default();
        let head = |words: &str| format!("{at}{}", highlight(words, self.color));
        match kind {
            "event" if self.full => format!("{}\n{}\n", head(&text("type")), story::for_people(data).trim_end()),
            "event" => format!("{}  {}", head(&text("type")), receipt::for_people(data)),
            "session" => {
                let subprotocol = entry.get("subprotocol").and_then(Value::as_str).map(plain).unwrap_or_default();
                row([
                    head(&format!("session {}", text("state"))),
                    text("user"),
                    text("code"),
                    text("reason"),
                    subprotocol,
                    attributes(&entry),
                ])
            }
            "message" => {
                let refusal = entry.get("refusal").map(refusal).unwrap_or_default();
                let body = entry.get("data").and_then(Value::as_object).and_then(|body| body.values().next()).map(word).unwrap_or_default();
                row([head("client's message"), text("user"), text("outcome") + &refusal, body])
            }
            "policy" => format!("{}  {}\n", head(&format!("{} {}", text("policy"), text("function"))), answer(&entry)),
            "fault" => fault(&head(&format!("fault of {} {}", text("policy"), text("version"))), &entry),
            "reload" => reload(&head(&format!("policies {}", text("outcome"))), &entry),
            "lost" => format!("({} more, which were too many to be sent)\n", text("count")),
            other => format!("{}  {}\n", head(&plain(other)), plain(data)),
        }
    }
}

/// Returns a line of all parts that are there.
fn row<const N: usize>(parts: [String; N]) -> String {
    let there: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    there.join("  ") + "\n"
}

fn member<'a>(entry: &'a Value, name: &str) -> &'a Value {
    entry.get(name).unwrap_or(&Value::Null)
}

fn refusal(refusal: &Value) -> String {
    format!(": {}: {}", word(member(refusal, "code")), word(member(refusal, "detail")))
}

fn attributes(entry: &Value) -> String {
    let attributes = member(entry, "attributes").as_object().into_iter().flatten();
    attributes.map(|(name, value)| format!("{}={}", plain(name), word(value))).collect::<Vec<String>>().join(" ")
}

/// Tells what a sessions policy answered.
fn answer(entry: &Value) -> String {
    let mut out = format!("{}  {}", word(member(entry, "user")), word(member(entry, "outcome")));
    // Writing to a string can't fail.
    if let Some(known) = entry.get("refusal") {
        let _ = write!(out, "{}", refusal(known));
    }
    for (name, one, many) in [("replies", "reply", "replies"), ("deliveries", "delivery", "deliveries")] {
        match member(entry, name).as_u64() {
            None | Some(0) => {}
            Some(number) => {
                let _ = write!(out, "  {}", count(number, one, many));
            }
        }
    }
    for event in member(entry, "events").as_array().into_iter().flatten() {
        let _ = write!(out, "  publishes {}", word(event));
    }
    if let Some(reason) = entry.get("closes") {
        let _ = write!(out, "  closes: {}", word(reason));
    }
    let _ = write!(out, "  ({} µs)", word(member(entry, "took_us")));
    out
}

fn fault(head: &str, fault: &Value) -> String {
    let mut out =
        format!("{head}  in {}: {}: {}\n", word(member(fault, "function")), word(member(fault, "kind")), word(member(fault, "detail")));
    for function in member(fault, "backtrace").as_array().into_iter().flatten() {
        let _ = writeln!(out, "    at {}", word(function));
    }
    out
}

fn reload(head: &str, entry: &Value) -> String {
    let changed = member(entry, "changed").as_array().into_iter().flatten().map(word).collect::<Vec<String>>().join(", ");
    let detail = entry.get("detail").map(word).unwrap_or_default();
    let mut out = row([head.to_owned(), changed, detail]);
    for rejected in member(entry, "rejected").as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {}: it {}", word(member(rejected, "name")), word(member(rejected, "reason")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: Lines = Lines { color: false, full: false };

    #[test]
    fn an_entry_is_one_line_or_few() {
        let event = r#"{"at":"2030-01-01T22:00:01.123Z","type":"pooling.match.found","id":"e1","recipients":2,"posted":2,
            "policies":[{"name":"pooling","version":"0.1.0","outcome":"routed","deliveries":1}],"explanation":{"policies":[]}}"#;
        assert_eq!(
            LINES.entry("event", event),
            "22:00:01Z  pooling.match.found  published e1 → 2 recipients, 2 posted\n  pooling 0.1.0  routed: 1 delivery\n"
        );
        let cases = [
            (
                "session",
                r#"{"user":"1001","state":"opened","subprotocol":null,"attributes":{"locale":"de"}}"#,
                "session opened  1001  locale=de\n",
            ),
            ("session", r#"{"user":"1001","state":"closed","code":4100,"reason":"slow"}"#, "session closed  1001  4100  slow\n"),
            (
                "message",
                r#"{"user":"1001","outcome":"refused","refusal":{"code":"c","detail":"d"},"data":{"json":{"a":1}}}"#,
                "client's message  1001  refused: c: d  {\"a\":1}\n",
            ),
            (
                "policy",
                r#"{"user":"1","policy":"chat","function":"received","outcome":"answered","replies":1,"deliveries":0,"events":["a.b"],"took_us":7}"#,
                "chat received  1  answered  1 reply  publishes a.b  (7 µs)\n",
            ),
            (
                "fault",
                r#"{"policy":"p","version":"1","function":"route","kind":"panic","detail":"no","backtrace":["a","b"]}"#,
                "fault of p 1  in route: panic: no\n    at a\n    at b\n",
            ),
            ("reload", r#"{"outcome":"swapped","revision":3,"changed":["a","b"]}"#, "policies swapped  a, b\n"),
            ("reload", r#"{"outcome":"refused","rejected":[{"name":"a","reason":"traps"}]}"#, "policies refused\n  a: it traps\n"),
            ("lost", r#"{"count":7}"#, "(7 more, which were too many to be sent)\n"),
            ("news", r#"{"a":"\u001b"}"#, "news  {\"a\":\"\\u001b\"}\n"),
        ];
        for (kind, data, line) in cases {
            assert_eq!(LINES.entry(kind, data), line, "{kind}");
        }
    }

    #[test]
    fn a_terminal_is_not_controlled_by_what_happens() {
        let line = LINES.entry("session", r#"{"user":"\u001b[2J","state":"opened"}"#);
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
}
