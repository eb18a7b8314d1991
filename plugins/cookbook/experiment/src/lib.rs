//! A part of the users gets messages as cards, always the same users, on all their devices.
//!
//! It varies by `user`, so that it is called once for each reader of a message instead of once for all. Where clients can say which
//! variant they are (`?variant=b`), vary by that.

use serde::Deserialize;
use signalpost_plugin::bounds::MESSAGE_BYTES_MAX;
use signalpost_plugin::{Body, Formatting, Message, Object, Policy, RawValue, Reader, Refusal, export, serde_json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Experiment {
    /// Another name puts other users into the part.
    name: String,
    percent: u64,
}

impl Policy for Experiment {
    const EVENTS: &'static [&'static str] = &["notice.*"];

    fn check(&self) -> Result<(), String> {
        if self.percent > 100 { Err("`percent` is at most 100".to_owned()) } else { Ok(()) }
    }
}

impl Formatting for Experiment {
    const VARY: &'static [&'static str] = &["user"];

    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal> {
        let takes_part = bucket(&self.name, reader.get("user").unwrap_or_default()) < self.percent;
        let card = message.body.as_json().filter(|_| takes_part).and_then(card);
        Ok(Some(card.map_or(message.body, Body::Json)))
    }
}

/// 0 to 99, by FNV-1a: the same for a user each time, and evenly spread.
fn bucket(name: &str, user: &str) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().chain([b'/']).chain(user.bytes()).fold(0xcbf2_9ce4_8422_2325, hash) % 100
}

/// Returns the message in a card; `None` if there is no room for the card around it.
fn card(json: &str) -> Option<String> {
    let message: &RawValue = serde_json::from_str(json).ok()?;
    Some(Object::new("card").raw("of", message).into_json()).filter(|card| card.len() <= MESSAGE_BYTES_MAX)
}

export!(Experiment: formatting);
