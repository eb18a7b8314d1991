//! The spans of a plan: one for each policy that was asked. A view of a plan, for events that are sampled.

use super::plan::{Answer, Plan, PolicyRef, Step};
use crate::traces::{Attribute, Kind, Said, Traces};
use crate::types::event::Event;
use crate::types::origin::TraceContext;

/// Makes the spans of the policies' calls.
pub fn of_plan(traces: &Traces, context: &TraceContext, event: &Event, plan: &Plan) {
    for step in &plan.steps {
        if let (Some(policy), Some(began)) = (&step.policy, step.began) {
            let name = format!("route {}", policy.name);
            traces.child(context, Kind::Internal, name, (began, began + step.took), || said(event, policy, step));
        }
    }
}

fn said(event: &Event, policy: &PolicyRef, step: &Step) -> Said {
    let mut attributes = Vec::with_capacity(8);
    attributes.extend([
        Attribute::new("cloudevents.event_id", event.id.clone()),
        Attribute::new("signalpost.policy.name", policy.name.clone()),
        Attribute::new("signalpost.policy.version", policy.version.clone()),
        Attribute::new("signalpost.policy.digest", policy.digest.clone()),
    ]);
    let (outcome, error) = match &step.answer {
        Answer::Decided(decided) => {
            attributes.push(Attribute::new("signalpost.deliveries", count(decided.deliveries.len())));
            ("routed", None)
        }
        Answer::Refused(refusal) => {
            attributes.push(Attribute::new("signalpost.refusal", refusal.code.clone()));
            // A refusal is the policy's answer, and not an error.
            ("refused", None)
        }
        Answer::Faulted(fault) => {
            attributes.push(Attribute::new("error.type", fault.defect.kind.name()));
            ("faulted", Some(fault.defect.detail.clone().into()))
        }
        Answer::CircuitOpen => ("circuit_open", Some("the policy faulted too often in a row, and was not called".into())),
    };
    attributes.push(Attribute::new("signalpost.outcome", outcome));
    Said { attributes, error, ..Said::default() }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
