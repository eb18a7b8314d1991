//! The routing policy of shared rides: who is told about a pooling event, and what.
//!
//! `decisions` has one function per event, `pool` knows who shares a ride, `location` says whether a car has moved. What clients are
//! told in which language, and in which format, is the business of formatting policies.

mod decisions;
mod location;
mod pool;

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Policy, Refusal, Routing, export};

/// What an operator can set. Each has a default, so that no settings are needed.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct Pooling {
    /// An offer that no driver has read after this time is worthless: somebody else was asked.
    offer_ttl_ms: u32,
    /// A position older than this misleads more than it helps.
    location_ttl_ms: u32,
    /// A car that moved less than this since the position sent last stays where it is on the map. It is about the error of
    /// a phone's GPS. 0 sends every position.
    location_min_metres: f64,
    /// A car that stands still is sent again after this time, for riders who connected meanwhile.
    location_repeat_ms: u32,
    /// A position is not sent after one with a later `time`, for this long after that one. Longer than a queue delays an event; and a car
    /// whose clock was ahead is not hidden for longer.
    location_order_ms: u32,
}

impl Default for Pooling {
    fn default() -> Pooling {
        Pooling {
            offer_ttl_ms: 30_000,
            location_ttl_ms: 10_000,
            location_min_metres: 10.0,
            location_repeat_ms: 30_000,
            location_order_ms: 600_000,
        }
    }
}

impl Policy for Pooling {
    const EVENTS: &'static [&'static str] = &decisions::EVENTS;

    fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("offer_ttl_ms", self.offer_ttl_ms),
            ("location_ttl_ms", self.location_ttl_ms),
            ("location_repeat_ms", self.location_repeat_ms),
            ("location_order_ms", self.location_order_ms),
        ] {
            if value == 0 {
                return Err(format!("`{name}` is 0, a time that is over at once: give at least 1 millisecond"));
            }
        }
        if self.location_min_metres < 0.0 {
            return Err("`location_min_metres` is a distance: give 0 (every position is sent) or more".to_string());
        }
        Ok(())
    }
}

impl Routing for Pooling {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        decisions::decide(event, &event.fields()?, self)
    }
}

export!(Pooling: routing);

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::policy;

    #[test]
    fn no_settings_are_the_defaults() {
        assert_eq!(policy("{}"), Ok(Pooling::default()));
    }

    #[test]
    fn a_setting_replaces_its_default_only() {
        let settings: Pooling = policy(r#"{"offer_ttl_ms": 5000, "location_min_metres": 0}"#).unwrap();
        assert_eq!(settings, Pooling { offer_ttl_ms: 5000, location_min_metres: 0.0, ..Pooling::default() });
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        for (settings, named) in [
            (r#"{"offer_ttl": 1}"#, "offer_ttl"),
            (r#"{"offer_ttl_ms": 0}"#, "offer_ttl_ms"),
            (r#"{"location_ttl_ms": 0}"#, "location_ttl_ms"),
            (r#"{"location_repeat_ms": 0}"#, "location_repeat_ms"),
            (r#"{"location_order_ms": 0}"#, "location_order_ms"),
            (r#"{"location_min_metres": -1}"#, "location_min_metres"),
        ] {
            let error = policy::<Pooling>(settings).unwrap_err();
            assert!(error.contains(&format!("`{named}`")), "{error}");
        }
    }
}
