//! Tells a rider and a driver that they share a ride, and makes them a group.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Object, Policy, Priority, Refusal, Routing, export, tell, to};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {}

impl Policy for Match {
    const EVENTS: &'static [&'static str] = &["pooling.match.found"];
}

impl Routing for Match {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let data = event.fields()?;
        data.id("request_id")?;
        let both = [data.id("rider_id")?, data.id("driver_id")?];
        let group = format!("pool:{}", data.id("pool_id")?);
        let message = Object::new("pooling_match")
            .raw("request_id", data.require("request_id", Id::EXPECTED)?)
            .text("status", "matched")
            .text("details", "You have been matched for a pooling request!")
            .rest(&data, &[]);
        let joined = both.iter().fold(Decision::nothing(), |decision, user| decision.join(&group, user));
        Ok(joined.deliver(tell(to::users(both), message).priority(Priority::High)))
    }
}

export!(Match: routing);
