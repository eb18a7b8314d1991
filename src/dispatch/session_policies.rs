//! Calls the sessions policies when a session opens, sends a message or closes.
//!
//! Policies are called in the configured order, up to the first that refuses the session or handles the message. If a policy refuses a
//! session, those that had accepted it are called with `closed`. A policy's answer is handled like an event's decision: it is planned,
//! committed and posted, and the events that it publishes are part of the same request.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::apply::{self, Applied, Letter};
use super::observers::{Asked, Trace};
use super::plan::{self, Decided, Plan, Planned, PolicyRef};
use super::sinks::{Maker, POLICIES};
use super::{Dispatch, Story};
use crate::config::SessionsFault;
use crate::model::record::Changes;
use crate::model::world::World;
use crate::net::turns::aside_if;
use crate::policy::call::{Arguments, Output};
use crate::policy::{CallError, Policy, PolicySet};
use crate::registry::SessionHandle;
use crate::store::Ticket;
use crate::types::close::Close;
use crate::types::delivery::{Draft, Message, Recipients, Refusal, Response};
use crate::types::event::{self, Body, Event};
use crate::types::origin::Origin;

/// The event type that formatting policies see for a sessions policy's replies and deliveries.
const SESSION_EVENT: &str = "signalpost.session";

/// A call of a sessions policy.
#[derive(Clone, Debug)]
pub enum Question<'a> {
    Opened,
    Received(&'a Body),
    /// With the close code. Replies are discarded.
    Closed(u16),
}

/// A call, and the plans that its answer amounts to: first its own, then one for each event that it publishes.
struct Answered {
    took: Duration,
    answer: Result<Option<Response>, CallError>,
    plans: Vec<(Arc<Event>, Plan)>,
}

/// Asks the policies whether the session may stay; they may send it messages.
///
/// # Errors
/// A policy refused the session, or failed and its `on_fault` is to refuse.
pub fn opened(dispatch: &Dispatch, handle: &Arc<SessionHandle>) -> Result<(), Close> {
    let set = dispatch.policies.of_user(&handle.user);
    let mut admitted = Vec::new();
    for policy in set.sessions() {
        let close = match ask(dispatch, &set, policy, handle, &Question::Opened) {
            Ok(_) => {
                admitted.push(policy);
                continue;
            }
            Err(CallError::Refused(refusal)) => Close::RefusedByPolicy(refusal.detail),
            // A policy that admits sessions must not admit them by failing.
            Err(CallError::Fault(_) | CallError::CircuitOpen) if policy.on_fault().sessions == SessionsFault::Refuse => Close::PolicyFault,
            Err(CallError::Fault(_) | CallError::CircuitOpen) => continue,
        };
        for policy in admitted {
            // The session closes whatever the policy answers.
            let _ = ask(dispatch, &set, policy, handle, &Question::Closed(close.code()));
        }
        return Err(close);
    }
    Ok(())
}

/// Passes a client's message to the policies until one handles it, and returns the ticket of what that one changed.
///
/// # Errors
/// The answer to the client: a policy refused the message or failed, or no policy handles it.
pub fn received(dispatch: &Dispatch, handle: &Arc<SessionHandle>, body: &Body) -> Result<Ticket, Refusal> {
    let (outcome, answer) = hear(dispatch, handle, body);
    dispatch.metrics.client_messages.with_label_values(&[outcome]).inc();
    dispatch.observers.show(|| {
        let (session, body, refusal) = (handle.clone(), body.clone(), answer.as_ref().err().cloned());
        Trace::Received { session, body, outcome, refusal }
    });
    answer
}

/// Returns what happened to a client's message, as the metrics name it, and the answer to the client.
fn hear(dispatch: &Dispatch, handle: &Arc<SessionHandle>, body: &Body) -> (&'static str, Result<Ticket, Refusal>) {
    let set = dispatch.policies.of_user(&handle.user);
    if set.sessions().next().is_some()
        && let Err(why) = dispatch.store.admit()
    {
        return ("refused", Err(Refusal { code: "unavailable".into(), detail: why.to_string() }));
    }
    for policy in set.sessions() {
        match ask(dispatch, &set, policy, handle, &Question::Received(body)) {
            Ok((None, _)) => {}
            Ok((Some(_), ticket)) => return ("handled", Ok(ticket)),
            Err(CallError::Refused(refusal)) => return ("refused", Err(refusal)),
            // Other policies are not tried: this one might have handled the message.
            Err(CallError::Fault(_) | CallError::CircuitOpen) => {
                let detail = format!("the policy {} failed, so this message was not handled", policy.name);
                return ("faulted", Err(Refusal { code: "policy_fault".into(), detail }));
            }
        }
    }
    ("unhandled", Err(Refusal { code: "unhandled".into(), detail: "no policy of this server takes such a message".into() }))
}

/// Tells the policies that the session has closed.
pub fn closed(dispatch: &Dispatch, handle: &Arc<SessionHandle>, code: u16) {
    let set = dispatch.policies.of_user(&handle.user);
    for policy in set.sessions() {
        // There is no client to send a refusal to; a fault is counted and logged where it happens.
        let _ = ask(dispatch, &set, policy, handle, &Question::Closed(code));
    }
}

/// Calls one policy, and applies its answer. Returns it with the ticket of what it changed, for a client who wants to know when that is
/// stored.
///
/// # Errors
/// The policy refused, faulted, or was not called. Nothing has changed, except state that a refusing policy wrote.
pub fn ask(
    dispatch: &Dispatch,
    set: &PolicySet,
    policy: &Policy,
    handle: &Arc<SessionHandle>,
    question: &Question<'_>,
) -> Result<(Option<Response>, Ticket), CallError> {
    let plan = |world: &mut World| {
        let tapped = policy.tap(world);
        let started = Instant::now();
        let answer = match question {
            Question::Opened => policy.opened(handle, world).map(Some),
            Question::Received(body) => policy.received(handle, body, world),
            Question::Closed(code) => policy.closed(handle, *code, world).map(Some),
        };
        let took = started.elapsed();
        let origin = Origin { accepted: Some(started), trace: None };
        let response = answer.as_ref().ok().and_then(Option::as_ref);
        let mut plans: Vec<(Arc<Event>, Plan)> =
            response.map(|response| respond(set, policy, handle, &origin, response, world)).into_iter().collect();
        if let Some(tapped) = tapped {
            policy.record(tapped, world, question.arguments(handle), answer.clone().map(Output::Responded), took);
        }
        plans.extend(response.into_iter().flat_map(|response| &response.drafts).map(|draft| publish(set, policy, &origin, draft, world)));
        Answered { took, answer, plans }
    };
    let conclude = |answered: &Answered, mut changes: Changes| {
        aside_if(apply::take_long(answered.plans.iter().map(|(_, plan)| plan)), || {
            // The first is the answer itself, which is no event that anybody published.
            for (event, _) in answered.plans.iter().skip(1) {
                dispatch.sinks.post(&dispatch.model, event, Maker::Server, &mut changes);
            }
            let apply = |(event, plan): &(Arc<Event>, Plan)| {
                let applied = apply::post(&dispatch.model, &dispatch.metrics, plan, &mut changes);
                dispatch.keep_failures(set, event, Letter::FIRST, plan, applied, &mut changes)
            };
            let applied: Vec<Applied> = answered.plans.iter().map(apply).collect();
            (applied, dispatch.store.append(changes))
        })
    };
    let (Answered { took, answer, plans }, (applied, ticket)) = dispatch.model.transact(|| dispatch.store.changes(), plan, conclude);
    // The first is the answer itself, which does not count as a published event.
    plans.iter().skip(1).for_each(|(_, plan)| dispatch.metrics.event(plan.outcome()));
    if let Ok(Some(Response { close: Some(reason), .. })) = &answer {
        handle.end(Close::ClosedByPolicy(reason.clone()));
    }
    dispatch.observers.show(|| {
        let (session, function, what, policy) = (handle.clone(), question.function(), question.to_string(), PolicyRef::of(policy));
        Trace::Asked(Asked { session, function, what, policy, took, answer: answer.clone() })
    });
    if dispatch.observers.are_there() {
        for ((event, plan), applied) in plans.into_iter().zip(applied).filter(|((_, plan), _)| !plan.is_idle()) {
            let story = Story::of(event.id.clone(), event.source.clone(), plan, applied);
            dispatch.show(Some(&event), &story);
        }
    }
    answer.map(|response| (response, ticket))
}

impl Question<'_> {
    fn arguments(&self, handle: &Arc<SessionHandle>) -> Arguments {
        match self {
            Question::Opened => Arguments::Opened(handle.clone()),
            Question::Received(body) => Arguments::Received(handle.clone(), (*body).clone()),
            Question::Closed(code) => Arguments::Closed(handle.clone(), *code),
        }
    }

    /// Returns the name of the function that is called.
    fn function(&self) -> &'static str {
        match self {
            Question::Opened => "opened",
            Question::Received(_) => "received",
            Question::Closed(_) => "closed",
        }
    }
}

/// Plans what a policy answered: replies first, then its decision. The events that it publishes come after that.
fn respond(
    set: &PolicySet,
    policy: &Policy,
    handle: &SessionHandle,
    origin: &Origin,
    response: &Response,
    world: &mut World,
) -> (Arc<Event>, Plan) {
    let event = Arc::new(synthetic(policy, SESSION_EVENT.to_owned(), None, None, origin));
    let (replies, decision) = (response.replies.clone(), response.decision.clone());
    let reply = |body| {
        let to = Recipients::Session { user: handle.user.clone(), session: handle.id.to_string() };
        let message = Message::new(event.id.clone(), event.event_type.clone(), body, set.id).to(&to);
        let message = Arc::new(message.with_origin(origin.clone()));
        Planned::to_one(to, handle.user.clone(), message)
    };
    let replies: Vec<Planned> = replies.into_iter().map(reply).collect();
    let mut decided: Decided = plan::expand(set, policy, &event, decision, world);
    decided.deliveries.splice(0..0, replies);
    (event, Plan::of(set, Some(PolicyRef::of(policy)), decided))
}

/// Plans an event that a policy publishes.
fn publish(set: &PolicySet, policy: &Policy, origin: &Origin, draft: &Draft, world: &mut World) -> (Arc<Event>, Plan) {
    let Draft { event_type, subject, data } = draft.clone();
    let event = Arc::new(synthetic(policy, event_type, subject, Some(data), origin));
    let plan = plan::plan(set, &event, world);
    (event, plan)
}

fn synthetic(policy: &Policy, event_type: String, subject: Option<String>, data: Option<Body>, origin: &Origin) -> Event {
    Event {
        id: event::new_event_id(),
        source: format!("{POLICIES}{}", policy.name),
        event_type,
        subject,
        time: Some(crate::types::time::rfc3339(SystemTime::now())),
        content_type: match data {
            Some(Body::Text(_)) => "text/plain".into(),
            Some(Body::Binary(_)) => "application/octet-stream".into(),
            Some(Body::Json(_)) | None => "application/json".into(),
        },
        extensions: Vec::new(),
        data,
        origin: origin.clone(),
    }
}

impl std::fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Question::Opened => f.write_str("opened"),
            Question::Received(Body::Json(text)) => write!(f, "says {text}"),
            Question::Received(Body::Text(text)) => write!(f, "says {text:?}"),
            Question::Received(Body::Binary(bytes)) => write!(f, "says {} bytes", bytes.len()),
            Question::Closed(code) => write!(f, "closed ({code})"),
        }
    }
}
