//! Text for people: text from elsewhere can't control the terminal, and only terminals get colours.

use std::fmt::Write;
use std::io::IsTerminal;

use serde_json::Value;

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

/// Returns JSON on one line: an object as `key: value  key: value` without the member `without`, anything else as it is.
pub(super) fn compact(value: &Value, without: &str) -> String {
    let Value::Object(members) = value else { return word(value) };
    let mut out = String::new();
    for (key, value) in members.iter().filter(|(key, _)| *key != without) {
        let gap = if out.is_empty() { "" } else { "  " };
        // Writing to a string can't fail.
        let _ = write!(out, "{gap}{}: {}", plain(key), word(value));
    }
    out
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_cannot_repaint_the_terminal() {
        assert_eq!(compact(&json!({"text": "a\u{1b}[2Jb\nc"}), ""), r"text: a\u{1b}[2Jb\nc");
    }

    #[test]
    fn an_object_is_shown_on_one_line_in_its_own_order() {
        let message = json!({"type": "pooling_match", "request_id": 42, "status": "matched", "pool": {"id": 7}});
        assert_eq!(compact(&message, "type"), r#"request_id: 42  status: matched  pool: {"id":7}"#);
        assert_eq!(compact(&json!([1, "a"]), "type"), r#"[1,"a"]"#);
        assert_eq!(compact(&json!("hello"), "type"), "hello");
    }
}
