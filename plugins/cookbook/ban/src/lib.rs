//! A user who was banned can't connect until the ban is over, or lifted.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Policy, Refusal, Response, Routing, Session, Sessions, export, json, state, tell, to};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ban {}

#[derive(Deserialize)]
struct Banned {
    user_id: Id,
    /// How long; for good where it isn't said.
    for_ms: Option<u32>,
}

impl Policy for Ban {
    const EVENTS: &'static [&'static str] = &["user.banned", "user.pardoned"];
}

impl Routing for Ban {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let Banned { user_id, for_ms } = event.data()?;
        if event.type_ == "user.pardoned" {
            state::delete(&key(user_id.as_str()));
            return Ok(Decision::nothing());
        }
        state::set(&key(user_id.as_str()), &true, for_ms)?;
        // An operator ends the sessions that are open: DELETE /api/pool/users/{user_id}/sessions.
        Ok(tell(to::user(user_id), json!({ "type": "banned" })).keep_ms(0).into())
    }
}

impl Sessions for Ban {
    fn opened(&self, session: &Session) -> Result<Response, Refusal> {
        match state::get_bytes(&key(&session.user)) {
            Some(_) => Err(Refusal::new("banned", "you are banned: ask the support")),
            None => Ok(Response::nothing()),
        }
    }
}

fn key(user: &str) -> String {
    format!("banned:{user}")
}

export!(Ban: routing, sessions);
