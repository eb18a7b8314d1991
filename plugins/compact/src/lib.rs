//! A formatting policy: short keys for readers who count bytes, and texts in the reader's language.
//!
//! A session with the attribute `format=compact` gets the keys of `KEYS` (`type` becomes `t`); one with `locale=de` or
//! `hi` gets `details` in that language. A reader with neither, and a message that neither concerns, gets the very bytes
//! that came in. Only the outermost members are touched, and a message with more than a thousand of them (`bounds::ITEMS_MAX`) is not.

mod keys;
mod texts;

use serde::Deserialize;
use signalpost_plugin::bounds::MESSAGE_BYTES_MAX;
use signalpost_plugin::{Body, Fields, Formatting, Message, Object, Policy, Reader, Refusal, export};

/// It has no settings: its readers choose by `format` and `locale`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compact {}

impl Policy for Compact {
    const EVENTS: &'static [&'static str] = &["*"];
}

impl Formatting for Compact {
    const VARY: &'static [&'static str] = &["format", "locale"];

    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal> {
        let shaped = message.body.as_json().and_then(|json| shape(json, reader.get("format"), reader.get("locale")));
        Ok(Some(shaped.map_or(message.body, Body::Json)))
    }
}

export!(Compact: formatting);

/// Returns the message in another shape; `None` if it stays as it is.
fn shape(json: &str, format: Option<&str>, locale: Option<&str>) -> Option<String> {
    let compact = format == Some("compact");
    let language = locale.and_then(texts::Language::of);
    if !compact && language.is_none() {
        return None;
    }
    // A list, a number or a string has no members to change.
    let fields = Fields::parse(json).ok()?;
    let details = language.and_then(|language| texts::details(language, &fields));
    if !compact && details.is_none() {
        return None;
    }
    let mut shaped = Object::default();
    for (name, value) in fields.iter() {
        let key = if compact { keys::short(name, &fields) } else { name };
        shaped = match details.filter(|_| name == "details") {
            Some(text) => shaped.text(key, text),
            None => shaped.raw(key, value),
        };
    }
    // A translation may be longer than the text: a message that is as large as any may be stays in English.
    Some(shaped.into_json()).filter(|json| json.len() <= MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATCH: &str = r#"{"type":"pooling_match","request_id":42,"status":"matched","details":"You have been matched for a pooling request!","pool_id":7}"#;

    #[test]
    fn a_reader_who_asks_for_nothing_gets_the_same_bytes() {
        let spaced = r#"{ "type" : "pooling_match", "fare": 12.50, "fare": 1e2 }"#;
        for (format, locale) in [(None, None), (Some("json"), None), (None, Some("en")), (None, Some("xx-YY")), (Some(""), Some(""))] {
            assert_eq!(shape(spaced, format, locale), None, "{format:?} {locale:?}");
        }
    }

    #[test]
    fn short_keys_keep_order_and_every_digit() {
        let message =
            r#"{"type":"driver_location","pool_id":7,"driver_id":"bob","lat":52.52000,"lon":13.40500000000000001,"speed":{"type":1}}"#;
        assert_eq!(
            shape(message, Some("compact"), None).unwrap(),
            r#"{"t":"driver_location","p":7,"dr":"bob","la":52.52000,"lo":13.40500000000000001,"speed":{"type":1}}"#
        );
    }

    #[test]
    fn a_key_is_not_shortened_into_one_that_is_there() {
        let message = r#"{"type":"x","t":1,"details":"y"}"#;
        assert_eq!(shape(message, Some("compact"), None).unwrap(), r#"{"type":"x","t":1,"d":"y"}"#);
    }

    #[test]
    fn a_match_is_told_in_the_readers_language() {
        for locale in ["de", "de-AT", "DE_at"] {
            assert_eq!(
                shape(MATCH, None, Some(locale)).unwrap(),
                MATCH.replace("You have been matched for a pooling request!", "Für deine Anfrage wurde eine Mitfahrt gefunden!")
            );
        }
        assert!(shape(MATCH, None, Some("hi-IN")).unwrap().contains("अनुरोध"));
        assert_eq!(shape(MATCH, None, Some("fr")), None);
    }

    #[test]
    fn short_and_translated_at_once() {
        assert_eq!(
            shape(MATCH, Some("compact"), Some("de")).unwrap(),
            r#"{"t":"pooling_match","r":42,"s":"matched","d":"Für deine Anfrage wurde eine Mitfahrt gefunden!","p":7}"#
        );
    }

    #[test]
    fn a_text_that_somebody_else_wrote_stays() {
        for message in [
            r#"{"type":"pooling_match","details":"Meet Ann at gate 3"}"#,
            r#"{"type":"notice","details":"You have been matched for a pooling request!"}"#,
            r#"{"type":"pooling_match","details":null}"#,
            r#"{"type":"pooling_cancelled","reason":"ill"}"#,
        ] {
            assert_eq!(shape(message, None, Some("de")), None, "{message}");
        }
    }

    #[test]
    fn a_message_is_not_shaped_into_one_that_is_too_large() {
        let message = |bytes: usize| MATCH.replace("matched\"", &format!("{}\"", "x".repeat(bytes + 7 - MATCH.len())));
        let growth = shape(MATCH, None, Some("de")).unwrap().len() - MATCH.len();
        assert_eq!(shape(&message(262_144 - growth), None, Some("de")).unwrap().len(), 262_144);
        assert_eq!(shape(&message(262_145 - growth), None, Some("de")), None);
        assert!(shape(&message(262_144), Some("compact"), Some("de")).unwrap().len() < 262_144);
    }

    #[test]
    fn a_message_with_too_many_members_stays() {
        let message = |members: usize| {
            let more: Vec<String> = (0..members - 1).map(|member| format!("\"{member}\":1")).collect();
            format!("{{\"type\":\"x\",{}}}", more.join(","))
        };
        assert!(shape(&message(1000), Some("compact"), None).unwrap().starts_with(r#"{"t":"x","0":1"#));
        assert_eq!(shape(&message(1001), Some("compact"), None), None);
    }

    #[test]
    fn a_message_that_is_not_an_object_stays() {
        for message in ["[1, 2]", "\"type\"", "12.50", "null"] {
            assert_eq!(shape(message, Some("compact"), Some("de")), None, "{message}");
        }
    }
}
