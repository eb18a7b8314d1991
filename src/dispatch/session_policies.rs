//! Dialogue: what the sessions policies make of clients who come, speak and go.
//!
//! Policies are asked in the configured order. The first refusal of a socket, and the first policy that takes a message, end the
//! asking. Those that let a socket in which another one refused are told that it is gone. What a policy answers goes the same
//! way as any event: replies are posted to the session's mailbox.

use std::sync::Arc;
use std::time::Instant;

use crate::config::SessionsFault;
use crate::dispatch::{Dispatch, Origin, Spoken, Tally};
use crate::model::mailbox::SessionHandle;
use crate::policy::bindings::{Draft, Response, sessions};
use crate::policy::{CallError, Policy};
use crate::types::close::Close;
use crate::types::delivery::{Message, Refusal, Terms};
use crate::types::event::{self, Body, Event};

/// The event type that formatting policies see for what a sessions policy sends of its own accord.
const SESSION_EVENT: &str = "signalpost.session";

/// Asks whether the session may stay, and lets the policies greet it.
///
/// # Errors
/// Why it has to close.
pub fn opened(dispatch: &Dispatch, handle: &SessionHandle) -> Result<(), Close> {
    let policies = dispatch.policies.current();
    let mut admitted = Vec::new();
    for policy in policies.sessions() {
        let close = match ask(dispatch, policy, handle, || "opened".to_owned(), |session| policy.opened(session).map(Some)) {
            Ok(response) => {
                let response = response.unwrap_or_default();
                carry_out(dispatch, policy, policies.revision, handle, response);
                admitted.push(policy);
                continue;
            }
            Err(CallError::Refused(refusal)) => Close::RefusedByPolicy(refusal.detail),
            // A policy that guards the door must not open it by failing.
            Err(CallError::Fault(_) | CallError::CircuitOpen) if policy.on_fault().sessions == SessionsFault::Refuse => Close::PolicyFault,
            Err(CallError::Fault(_) | CallError::CircuitOpen) => continue,
        };
        for policy in admitted {
            tell_closed(dispatch, policy, policies.revision, handle, close.code());
        }
        return Err(close);
    }
    Ok(())
}

/// Hands a client's message to the policy that takes it.
///
/// # Errors
/// What the client is told: a policy's refusal, or that nobody takes such a message.
pub fn received(dispatch: &Dispatch, handle: &SessionHandle, body: &Body) -> Result<(), Refusal> {
    let policies = dispatch.policies.current();
    let count = |outcome| dispatch.services.metrics.client_messages.with_label_values(&[outcome]).inc();
    for policy in policies.sessions() {
        match ask(dispatch, policy, handle, || format!("says {}", shown(body)), |session| policy.received(session, body)) {
            Ok(None) => {}
            Ok(Some(response)) => {
                count("handled");
                carry_out(dispatch, policy, policies.revision, handle, response);
                return Ok(());
            }
            Err(CallError::Refused(refusal)) => {
                count("refused");
                return Err(refusal);
            }
            // A policy that is left out may be the one that would take it.
            Err(CallError::Fault(_) | CallError::CircuitOpen) => {
                count("faulted");
                let detail = format!("the policy {} failed, so this message was not handled", policy.name);
                return Err(Refusal { code: "policy_fault".into(), detail });
            }
        }
    }
    count("unhandled");
    Err(Refusal { code: "unhandled".into(), detail: "no policy of this server takes such a message".into() })
}

/// Tells the policies that the session is gone.
pub fn closed(dispatch: &Dispatch, handle: &SessionHandle, code: u16) {
    let policies = dispatch.policies.current();
    for policy in policies.sessions() {
        tell_closed(dispatch, policy, policies.revision, handle, code);
    }
}

fn tell_closed(dispatch: &Dispatch, policy: &Policy, revision: u64, handle: &SessionHandle, code: u16) {
    let answer = ask(dispatch, policy, handle, || format!("closed ({code})"), |session| policy.closed(session, code).map(Some));
    if let Ok(Some(response)) = answer {
        carry_out(dispatch, policy, revision, handle, Response { replies: Vec::new(), close: None, ..response });
    }
}

/// Asks a policy, for an onlooker to see.
fn ask(
    dispatch: &Dispatch,
    policy: &Policy,
    handle: &SessionHandle,
    what: impl FnOnce() -> String,
    call: impl FnOnce(sessions::Session<'_>) -> Result<Option<Response>, CallError>,
) -> Result<Option<Response>, CallError> {
    let started = Instant::now();
    let answer = with_session(handle, call);
    dispatch.spoken(|| Spoken {
        user: handle.user.clone(),
        what: what(),
        policy: policy.name.clone(),
        version: policy.version.clone(),
        took: started.elapsed(),
        answer: answer.clone(),
    });
    answer
}

fn shown(body: &Body) -> String {
    match body {
        Body::Json(text) => text.clone(),
        Body::Text(text) => format!("{text:?}"),
        Body::Binary(bytes) => format!("{} bytes", bytes.len()),
    }
}

/// What a policy answered: replies first, the socket's end last.
pub(crate) fn carry_out(dispatch: &Dispatch, policy: &Policy, revision: u64, handle: &SessionHandle, response: Response) {
    let mut tally = Tally::default();
    let event = synthetic(policy, SESSION_EVENT.to_owned(), None, None);
    for reply in response.replies {
        let message = Arc::new(Message::new(event.id.clone(), event.event_type.clone(), reply, revision));
        dispatch.post(&handle.user, Some(&handle.id), &message, &Terms::default(), &mut tally);
    }
    let origin = Origin { event: &event, revision, policy };
    dispatch.carry_out(response.decision, &origin, &mut tally);
    for Draft { event_type, subject, data } in response.drafts {
        dispatch.publish(synthetic(policy, event_type, subject, Some(data)), None);
    }
    if let Some(reason) = response.close {
        handle.end(Close::ClosedByPolicy(reason));
    }
}

fn synthetic(policy: &Policy, event_type: String, subject: Option<String>, data: Option<Body>) -> Event {
    Event {
        id: event::new_event_id(),
        source: format!("/policies/{}", policy.name),
        event_type,
        subject,
        time: Some(crate::types::time::rfc3339(std::time::SystemTime::now())),
        content_type: match data {
            Some(Body::Text(_)) => "text/plain".into(),
            Some(Body::Binary(_)) => "application/octet-stream".into(),
            Some(Body::Json(_)) | None => "application/json".into(),
        },
        extensions: Vec::new(),
        data,
    }
}

/// The session as the guest takes it. The strings are lent, not copied.
pub(crate) fn with_session<R>(handle: &SessionHandle, call: impl FnOnce(sessions::Session<'_>) -> R) -> R {
    let attributes: Vec<(&str, &str)> = handle.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    call(sessions::Session { id: &handle.id, user: handle.user.as_str(), subprotocol: handle.subprotocol, attributes: &attributes })
}
