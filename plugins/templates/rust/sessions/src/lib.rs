//! Greets clients, and answers a `ping` with a `pong`.

use serde::Deserialize;
use signalpost_plugin::{Body, Policy, Refusal, Response, Session, Sessions, export, json};

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
        // Any other message is left to other policies.
        Ok(is_ping(&message).then(|| Response::nothing().reply(json!({ "type": "pong" }))))
    }
}

export!(Greeter: sessions);

/// The members of a client's message that are looked at. Others are skipped, whatever a client adds.
#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
}

fn is_ping(message: &Body) -> bool {
    message.data::<Frame>().is_some_and(|frame| frame.kind == "ping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_told_from_anything_else() {
        let told = |json: &str| is_ping(&Body::Json(json.to_owned()));
        assert!(told(r#"{"type":"ping","n":1}"#));
        assert!(!told(r#"{"type":"chat"}"#) && !told(r#"["ping"]"#) && !is_ping(&Body::Text("ping".to_owned())));
    }
}
