//! The spans of calls: one for each policy that was asked about an event or about a client's message. Views of what is sampled and over.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::plan::{Answer, Plan, PolicyRef, Step};
use crate::policy::CallError;
use crate::registry::SessionHandle;
use crate::traces::{Attribute, Kind, Said, Tie, Traces};
use crate::types::delivery::{Refusal, Response};
use crate::types::event::{Body, Event};
use crate::types::origin::TraceContext;

/// Makes the spans of the policies' calls.
pub fn of_plan(traces: &Traces, context: &TraceContext, event: &Event, plan: &Plan) {
    for step in &plan.steps {
        if let (Some(policy), Some(began)) = (&step.policy, step.began) {
            let name = format!("route {}", policy.name);
            traces.span(context, Tie::Child, Kind::Internal, name, (began, began + step.took), || said(event, policy, step));
        }
    }
}

/// Makes the span of a sessions policy's call about a client's message.
pub fn of_received(
    traces: &Traces,
    context: &TraceContext,
    policy: &PolicyRef,
    (began, took): (Instant, Duration),
    answer: &Result<Option<Response>, CallError>,
) {
    traces.span(context, Tie::Child, Kind::Internal, format!("received {}", policy.name), (began, began + took), || {
        let mut attributes = Vec::with_capacity(8);
        attributes.extend(who(policy));
        let (outcome, error) = match answer {
            Ok(Some(response)) => {
                attributes.extend([
                    Attribute::new("signalpost.replies", count(response.replies.len())),
                    Attribute::new("signalpost.deliveries", count(response.decision.deliveries.len())),
                    Attribute::new("signalpost.events", count(response.drafts.len())),
                ]);
                ("handled", None)
            }
            Ok(None) => ("passed", None),
            Err(error) => outcome(&error.clone().into(), &mut attributes),
        };
        attributes.push(Attribute::new("signalpost.outcome", outcome));
        Said { attributes, error, ..Said::default() }
    });
}

/// Returns what the span of a client's message says.
pub fn of_message(handle: &SessionHandle, body: &Body, outcome: &'static str, refusal: Option<&Refusal>) -> Said {
    let mut attributes = vec![
        Attribute::new("signalpost.session", handle.id.clone()),
        Attribute::new("messaging.message.body.size", count(body.size())),
        Attribute::new("signalpost.outcome", outcome),
    ];
    attributes.extend(refusal.map(|refusal| Attribute::new("signalpost.refusal", refusal.code.clone())));
    let error = refusal.filter(|_| outcome == "faulted").map(|refusal| refusal.detail.clone().into());
    Said { attributes, error, ..Said::default() }
}

fn said(event: &Event, policy: &PolicyRef, step: &Step) -> Said {
    let mut attributes = Vec::with_capacity(8);
    attributes.push(Attribute::new("cloudevents.event_id", event.id.clone()));
    attributes.extend(who(policy));
    let (outcome, error) = outcome(&step.answer, &mut attributes);
    attributes.push(Attribute::new("signalpost.outcome", outcome));
    Said { attributes, error, ..Said::default() }
}

fn who(policy: &PolicyRef) -> [Attribute; 3] {
    [
        Attribute::new("signalpost.policy.name", policy.name.clone()),
        Attribute::new("signalpost.policy.version", policy.version.clone()),
        Attribute::new("signalpost.policy.digest", policy.digest.clone()),
    ]
}

/// Returns the name of an outcome, and what went wrong. Adds its details.
fn outcome(answer: &Answer, attributes: &mut Vec<Attribute>) -> (&'static str, Option<Cow<'static, str>>) {
    match answer {
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
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
