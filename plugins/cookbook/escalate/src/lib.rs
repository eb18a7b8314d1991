//! An alert goes to whoever is on duty, and to their deputy too when none of their devices is connected.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Policy, Priority, Refusal, Routing, export, json, presence, tell, to};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Escalate {}

#[derive(Deserialize)]
struct Alert {
    on_duty: Id,
    deputy: Id,
    text: String,
}

impl Policy for Escalate {
    const EVENTS: &'static [&'static str] = &["alert.raised"];
}

impl Routing for Escalate {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let Alert { on_duty, deputy, text } = event.data()?;
        let alert = json!({ "type": "alert", "text": text });
        // Kept for the one on duty, who finds it on return.
        let mut deliveries = vec![tell(to::user(&on_duty), alert)];
        if presence::sessions(on_duty.as_str()) == 0 {
            deliveries.push(tell(to::user(&deputy), json!({ "type": "alert", "text": text, "instead_of": on_duty })));
        }
        Ok(deliveries.into_iter().map(|delivery| delivery.priority(Priority::High)).collect())
    }
}

export!(Escalate: routing);
