//! Greets clients, and answers a `ping` with a `pong`.

use serde::Deserialize;
use signalpost_plugin::{Body, Fields, Policy, Refusal, Response, Session, Sessions, export, json};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Greeter {}

/// It speaks with clients and routes no event.
impl Policy for Greeter {}

impl Sessions for Greeter {
    fn opened(&self, session: &Session) -> Result<Response, Refusal> {
        Ok(Response::nothing().reply(json!({ "type": "welcome", "user": session.user })))
    }

    fn received(&self, _session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        let is_ping = message.as_json().is_some_and(is_ping);
        // What is no ping is left to other policies.
        Ok(is_ping.then(|| Response::nothing().reply(json!({ "type": "pong" }))))
    }
}

export!(Greeter: sessions);

fn is_ping(json: &str) -> bool {
    Fields::parse(json).and_then(|fields| fields.text("type")).is_ok_and(|kind| kind == "ping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_told_from_anything_else() {
        assert!(is_ping(r#"{"type":"ping"}"#));
        assert!(!is_ping(r#"{"type":"chat"}"#) && !is_ping("[]"));
    }
}
