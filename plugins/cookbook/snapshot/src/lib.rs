//! Everyone is told when the score changes, and a client that connects is told how it stands.

use serde::Deserialize;
use signalpost_plugin::{
    Decision, Event, Object, Policy, RawValue, Refusal, Response, Routing, Session, Sessions, export, state, tell, to,
};

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
        // As it was written, so that 12.50 stays 12.50.
        let score: &RawValue = event.data()?;
        state::set_bytes(SCORE, score.get().as_bytes(), None)?;
        // Those who are away get the snapshot when they are back.
        Ok(tell(to::everyone(), message(score)).keep_ms(0).collapse(SCORE).into())
    }
}

impl Sessions for Snapshot {
    fn opened(&self, _session: &Session) -> Result<Response, Refusal> {
        let score: Option<Box<RawValue>> = state::get(SCORE);
        Ok(score.into_iter().fold(Response::nothing(), |response, score| response.reply(message(&score))))
    }
}

fn message(score: &RawValue) -> Object<'static> {
    Object::new("score").raw("score", score)
}

export!(Snapshot: routing, sessions);
