//! Fields that only some roles may see. The role is an attribute of the session: take it from the user's token, not from the query.

use serde::Deserialize;
use signalpost_plugin::{Body, Fields, Formatting, Message, Object, Policy, Reader, Refusal, export};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Redact {
    fields: Vec<String>,
    /// Who sees everything.
    roles: Vec<String>,
}

impl Policy for Redact {
    const EVENTS: &'static [&'static str] = &["*"];
}

impl Formatting for Redact {
    const VARY: &'static [&'static str] = &["role"];

    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal> {
        let may_see_all = reader.get("role").is_some_and(|role| self.roles.iter().any(|known| known == role));
        let shown = message.body.as_json().filter(|_| !may_see_all).map(|json| self.redacted(json)).transpose()?.flatten();
        Ok(Some(shown.map_or(message.body, Body::Json)))
    }
}

impl Redact {
    /// Returns the message without the fields; `None` if it is not an object. One that has too many members to be looked through is
    /// refused, and so shown to nobody.
    fn redacted(&self, json: &str) -> Result<Option<String>, Refusal> {
        if !json.trim_start().starts_with('{') {
            return Ok(None);
        }
        let fields = Fields::parse(json)?;
        let shown = fields.iter().filter(|(name, _)| !self.fields.iter().any(|hidden| hidden == name));
        Ok(Some(shown.fold(Object::default(), |object, (name, value)| object.raw(name, value)).into_json()))
    }
}

export!(Redact: formatting);
