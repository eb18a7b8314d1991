//! Adds a text to a message, in the reader's language. The texts are settings, so that a translator needs no compiler.

use std::collections::BTreeMap;

use serde::Deserialize;
use signalpost_plugin::bounds::MESSAGE_BYTES_MAX;
use signalpost_plugin::{Body, Fields, Formatting, Message, Object, Policy, Reader, Refusal, export, locale};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Locale {
    /// Type of a message → language tag → text.
    texts: BTreeMap<String, BTreeMap<String, String>>,
    /// For readers of other languages.
    default: String,
}

impl Policy for Locale {
    const EVENTS: &'static [&'static str] = &["*"];

    fn check(&self) -> Result<(), String> {
        match self.texts.iter().find(|(_, texts)| !texts.contains_key(&self.default)) {
            Some((name, _)) => Err(format!("`texts.{name}` has no text in `{}`, which is the default", self.default)),
            None => Ok(()),
        }
    }
}

impl Formatting for Locale {
    const VARY: &'static [&'static str] = &["locale"];

    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal> {
        let told = message.body.as_json().and_then(|json| self.told(json, reader.get("locale").unwrap_or_default()));
        Ok(Some(told.map_or(message.body, Body::Json)))
    }
}

impl Locale {
    /// Returns the message with its text; `None` if no text is known, or there is no room for it.
    fn told(&self, json: &str, wanted: &str) -> Option<String> {
        let fields = Fields::parse(json).ok()?;
        let texts = self.texts.get(&fields.text("type").ok()?)?;
        let tags: Vec<(&str, &String)> = texts.iter().map(|(tag, text)| (tag.as_str(), text)).collect();
        let text = locale::pick(&tags, wanted).copied().or_else(|| texts.get(&self.default))?;
        let object =
            fields.iter().filter(|(name, _)| *name != "text").fold(Object::default(), |object, (name, value)| object.raw(name, value));
        Some(object.text("text", text).into_json()).filter(|told| told.len() <= MESSAGE_BYTES_MAX)
    }
}

export!(Locale: formatting);

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::policy;

    #[test]
    fn every_text_is_there_in_the_default_language() {
        let error = policy::<Locale>(r#"{"default":"en","texts":{"arriving":{"de":"gleich da"}}}"#).err().unwrap();
        assert!(error.contains("`texts.arriving`"), "{error}");
    }
}
