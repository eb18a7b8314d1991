//! Text for people: text from elsewhere can't control the terminal, and only terminals get colours.

use std::fmt::Write;
use std::io::IsTerminal;

use serde_json::Value;

use crate::types::json::Json;

/// ANSI's "bold cyan"; one colour is enough to find the types.
const HIGHLIGHT: &str = "\x1b[1;36m";
const RESET: &str = "\x1b[0m";

/// Returns whether to use colours: on a terminal, unless `NO_COLOR` (<https://no-color.org>) is set.
pub(super) fn wants_color() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub(super) fn highlight(text: &str, color: bool) -> String {
    if color { format!("{HIGHLIGHT}{text}{RESET}") } else { text.to_owned() }
}

/// Escapes control characters: a message must not be able to repaint the reader's terminal.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Returns JSON on one line, with its digits as they were sent: an object as `key: value  key: value` without the member `without`,
/// anything else as it is.
pub(super) fn compact(json: &Json, without: &str) -> String {
    let Json::Object(members) = json else { return shown(json) };
    let mut out = String::new();
    for (key, value) in members.iter().filter(|(key, _)| *key != without) {
        let gap = if out.is_empty() { "" } else { "  " };
        // Writing to a string can't fail.
        let _ = write!(out, "{gap}{}: {}", plain(key), shown(value));
    }
    out
}

/// Returns a string without its quotes, anything else as JSON with its digits as they were sent.
pub(super) fn shown(json: &Json) -> String {
    match json {
        Json::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

/// Returns a string without its quotes, anything else as JSON.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

/// Returns "1 recipient", "2 recipients".
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).unwrap()
    }

    #[test]
    fn a_message_cannot_repaint_the_terminal() {
        assert_eq!(compact(&json(r#"{"text":"a\u001b[2Jb\nc"}"#), ""), r"text: a\u{1b}[2Jb\nc");
    }

    #[test]
    fn an_object_is_shown_on_one_line_in_its_own_order() {
        let message = json("{\"type\": \"pooling_match\", \"request_id\": 42,\n \"status\": \"matched\", \"pool\": {\"id\": 7}}");
        assert_eq!(compact(&message, "type"), r#"request_id: 42  status: matched  pool: {"id":7}"#);
        assert_eq!(compact(&json(r#"[1, "a"]"#), "type"), r#"[1,"a"]"#);
        assert_eq!(compact(&json(r#""hello""#), "type"), "hello");
    }

    #[test]
    fn numbers_are_shown_with_the_digits_that_were_sent() {
        let numbers = r#"{"a":9007199254740993,"b":12.50,"c":[1E400,-0.0],"d":{"e":0.1000000000000000055511151231257827}}"#;
        let shown = r#"a: 9007199254740993  b: 12.50  c: [1E400,-0.0]  d: {"e":0.1000000000000000055511151231257827}"#;
        assert_eq!(compact(&json(numbers), ""), shown);
        assert_eq!(compact(&json("12.50"), ""), "12.50");
    }
}
