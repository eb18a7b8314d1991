//! Tells a rider and a driver that they share a ride, and makes them a group.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Object, Policy, Priority, Refusal, Routing, export, tell, to};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {}

/// What has to be there. The rest of the data is passed on as it was written.
#[derive(Deserialize)]
struct Found {
    request_id: Id,
    rider_id: Id,
    driver_id: Id,
    pool_id: Id,
}

impl Policy for Match {
    const EVENTS: &'static [&'static str] = &["pooling.match.found"];
}

impl Routing for Match {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let Found { request_id, rider_id, driver_id, pool_id } = event.data()?;
        let group = pool_id.prefixed("pool:", "pool_id")?;
        let data = event.fields()?;
        let message = Object::new("pooling_match")
            .value("request_id", &request_id)
            .text("status", "matched")
            .text("details", "You have been matched for a pooling request!")
            .rest(&data, &[]);
        let joined = Decision::nothing().join(&group, &rider_id).join(&group, &driver_id);
        Ok(joined.deliver(tell(to::users([rider_id, driver_id]), message).priority(Priority::High)))
    }
}

export!(Match: routing);
