//! Everyone is told when the score changes, and a client that connects is told how it stands.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Policy, Refusal, Response, Routing, Session, Sessions, Value, export, json, state, tell, to};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {}

const SCORE: &str = "score";

impl Policy for Snapshot {
    const EVENTS: &'static [&'static str] = &["score.changed"];
}

impl Routing for Snapshot {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let score: Value = event.data()?;
        state::set(SCORE, &score, None)?;
        // Those who are away get the snapshot when they are back.
        Ok(tell(to::everyone(), message(score)).keep_ms(0).collapse(SCORE).into())
    }
}

impl Sessions for Snapshot {
    fn opened(&self, _session: &Session) -> Result<Response, Refusal> {
        let score: Option<Value> = state::get(SCORE);
        Ok(score.into_iter().fold(Response::nothing(), |response, score| response.reply(message(score))))
    }
}

fn message(score: Value) -> Value {
    json!({ "type": "score", "score": score })
}

export!(Snapshot: routing, sessions);
