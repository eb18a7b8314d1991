//! Gives readers who ask for `format=text` the text of a message, without the JSON around it.

use serde::Deserialize;
use signalpost_plugin::{Body, Fields, Formatting, Message, Policy, Reader, Refusal, export};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {}

impl Policy for Plain {
    const EVENTS: &'static [&'static str] = &["*"];
}

impl Formatting for Plain {
    const VARY: &'static [&'static str] = &["format"];

    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal> {
        let text = message.body.as_json().filter(|_| reader.get("format") == Some("text")).and_then(text);
        Ok(Some(text.map_or(message.body, Body::Text)))
    }
}

export!(Plain: formatting);

/// The member `text` of a message, if it has one.
fn text(json: &str) -> Option<String> {
    Fields::parse(json).ok()?.text("text").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_with_a_text_has_one() {
        assert_eq!(text(r#"{"type":"note","text":"hi"}"#).as_deref(), Some("hi"));
        assert_eq!(text(r#"{"type":"note"}"#), None);
        assert_eq!(text("[1]"), None);
    }
}
