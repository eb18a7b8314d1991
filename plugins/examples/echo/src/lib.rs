//! Answers each message of a client with the same message: the smallest sessions policy, and what protocol tests ask of a server.

use serde::Deserialize;
use signalpost_plugin::{Body, Policy, Refusal, Response, Session, Sessions, export};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Echo {}

/// It speaks with clients and routes no event.
impl Policy for Echo {}

impl Sessions for Echo {
    fn received(&self, _session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        Ok(Some(Response::nothing().reply(message)))
    }
}

export!(Echo: sessions);
