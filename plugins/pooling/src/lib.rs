//! The routing policy of shared rides: who is told about a pooling event, and what.
//!
//! `json` reads an event's data and writes messages, `decisions` has one function per event, `location` says
//! whether a car has moved. This file connects them to the host. What clients are told in which language, and in which
//! format, is the business of formatting policies.

mod decisions;
mod json;
mod location;

use std::cell::Cell;

use serde::Deserialize;

use exports::signalpost::policy::{plugin, routing};
use json::Fields;
use location::Position;
use signalpost::policy::state;
use signalpost::policy::types::{Body, Decision, Event, Refusal};

wit_bindgen::generate!({
    inline: "
        package signalpost:pooling;

        world pooling {
            include signalpost:policy/routing-policy@0.1.0;
            import signalpost:policy/diagnostics@0.1.0;
            import signalpost:policy/state@0.1.0;
        }
    ",
    path: "../../wit",
    world: "signalpost:pooling/pooling",
    generate_all,
    additional_derives: [PartialEq],
});

/// What an operator can set. Each has a default, so that no settings are needed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// An offer that no driver has read after this time is worthless: somebody else was asked.
    offer_ttl_ms: u32,
    /// A position older than this misleads more than it helps.
    location_ttl_ms: u32,
    /// A car that moved less than this since the position sent last stays where it is on the map. It is about the error of
    /// a phone's GPS. 0 sends every position.
    location_min_metres: f64,
    /// A car that stands still is sent again after this time, for riders who connected meanwhile. Nothing about a trip is
    /// remembered for longer.
    location_repeat_ms: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { offer_ttl_ms: 30_000, location_ttl_ms: 10_000, location_min_metres: 10.0, location_repeat_ms: 30_000 }
    }
}

impl Settings {
    fn parse(json: &str) -> Result<Settings, String> {
        let settings: Settings = serde_json::from_str(json).map_err(|error| format!("the settings of `pooling`: {error}"))?;
        for (name, value) in [
            ("offer_ttl_ms", settings.offer_ttl_ms),
            ("location_ttl_ms", settings.location_ttl_ms),
            ("location_repeat_ms", settings.location_repeat_ms),
        ] {
            if value == 0 {
                return Err(format!("`{name}` is 0, and nothing would ever be read in time: give at least 1 millisecond"));
            }
        }
        if settings.location_min_metres < 0.0 {
            return Err("`location_min_metres` is a distance: give 0 (every position is sent) or more".to_string());
        }
        Ok(settings)
    }
}

thread_local! {
    // The host configures each instance before its first call, and an instance has one thread.
    static SETTINGS: Cell<Settings> = Cell::new(Settings::default());
}

struct Pooling;

impl plugin::Guest for Pooling {
    fn describe() -> plugin::Description {
        plugin::Description {
            name: env!("CARGO_PKG_NAME").to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            events: decisions::EVENTS.iter().map(|name| name.to_string()).collect(),
        }
    }

    fn configure(settings: String) -> Result<(), String> {
        // A panic is reported by its message, not as a bare trap.
        std::panic::set_hook(Box::new(|panic| signalpost::policy::diagnostics::panicked(&panic.to_string())));
        SETTINGS.set(Settings::parse(&settings)?);
        Ok(())
    }
}

impl routing::Guest for Pooling {
    fn route(event: Event) -> Result<Decision, Refusal> {
        let settings = SETTINGS.get();
        let Some(Body::Json(data)) = &event.data else {
            return Err(json::not_an_object());
        };
        let data = Fields::parse(data)?;
        decisions::decide(&event.type_, &data, &settings, |key, position| has_moved(key, position, &settings))
    }
}

export!(Pooling);

/// Compares a car's position with the one sent last, and remembers it if it is to be sent.
///
/// Two positions of one car in the same instant may both pass, since reading and writing are two steps: one message too many,
/// and the collapse key lets the newer one win.
fn has_moved(key: &str, position: Position, settings: &Settings) -> bool {
    let last = state::get(key).and_then(|bytes| Position::from_bytes(&bytes));
    let moved = location::is_worth_sending(last, position, settings.location_min_metres);
    if moved {
        // A store without room must not hide the car: the position is sent, and so is the next one.
        let _ = state::set(key, &position.to_bytes(), Some(settings.location_repeat_ms));
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_settings_are_the_defaults() {
        assert_eq!(Settings::parse("{}"), Ok(Settings::default()));
    }

    #[test]
    fn a_setting_replaces_its_default_only() {
        let settings = Settings::parse(r#"{"offer_ttl_ms": 5000, "location_min_metres": 0}"#).unwrap();
        assert_eq!(settings, Settings { offer_ttl_ms: 5000, location_min_metres: 0.0, ..Settings::default() });
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        for (settings, named) in [
            (r#"{"offer_ttl": 1}"#, "offer_ttl"),
            (r#"{"offer_ttl_ms": 0}"#, "offer_ttl_ms"),
            (r#"{"location_ttl_ms": 0}"#, "location_ttl_ms"),
            (r#"{"location_repeat_ms": 0}"#, "location_repeat_ms"),
            (r#"{"location_min_metres": -1}"#, "location_min_metres"),
        ] {
            let error = Settings::parse(settings).unwrap_err();
            assert!(error.contains(&format!("`{named}`")), "{error}");
        }
    }
}
