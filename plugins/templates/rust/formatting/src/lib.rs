//! Gives readers who ask for `format=text` the text of a message, without the JSON around it.

use serde::Deserialize;
use signalpost_plugin::{Body, Formatting, Message, Policy, Reader, Refusal, export};

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
        let note = if reader.get("format") == Some("text") { message.data::<Note>() } else { None };
        Ok(Some(note.map_or(message.body, |note| Body::Text(note.text))))
    }
}

export!(Plain: formatting);

/// A message with a text. Its other members are not looked at.
#[derive(Deserialize)]
struct Note {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::{format, policy};

    #[test]
    fn only_a_message_with_a_text_is_shown_as_text() {
        let plain: Plain = policy("{}").unwrap();
        let shown = |json: &str| format(&plain, "note", Body::Json(json.to_owned()), &[("format", "text")]).unwrap().unwrap();
        assert_eq!(shown(r#"{"type":"note","text":"hi"}"#), Body::Text("hi".to_owned()));
        for json in [r#"{"type":"note"}"#, r#"{"text":1}"#, r#"["hi"]"#, "1"] {
            assert_eq!(shown(json), Body::Json(json.to_owned()));
        }
    }
}
