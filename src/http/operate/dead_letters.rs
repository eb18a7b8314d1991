//! Dead letters over HTTP: list, show, retry, delete.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::{Operate, json};
use crate::dispatch::{Outcome, RetryError};
use crate::model::dead_letters::{Content, DeadLetter, Recipient};
use crate::net::problem::Problem;
use crate::policy::Role;
use crate::types::event::{Body, Event};
use crate::types::fault::Fault;

#[derive(Serialize)]
struct List {
    letters: usize,
    bytes: usize,
    /// Oldest first.
    dead_letters: Vec<Summary>,
}

#[derive(Serialize)]
struct Summary {
    id: u64,
    #[serde(serialize_with = "crate::types::time::time")]
    at: std::time::SystemTime,
    /// The policy that failed on it, with its version and role; absent for a sink's, and for an event that no policy was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    /// The sink that has not taken it.
    #[serde(skip_serializing_if = "Option::is_none")]
    sink: Option<Arc<str>>,
    event_id: String,
    event_type: String,
    /// How often the policy faulted on the letter; 0 if its circuit was open and it was not called. How often a sink was given it.
    attempts: u32,
    /// Whether it is retried only by its id.
    poison: bool,
    /// `undelivered` for a sink's, `untaken` for an event that no policy was asked about.
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// A letter with its content.
#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    summary: Summary,
    fault: Option<&'a Fault>,
    /// CloudEvents' structured form. That of a sink's event is its message.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Event>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a Body>,
    /// Sessions that were going to read the message.
    #[serde(skip_serializing_if = "<[Recipient]>::is_empty")]
    readers: &'a [Recipient],
}

impl Summary {
    fn of(letter: &DeadLetter) -> Summary {
        let (role, event_id, event_type) = match &letter.content {
            Content::Event(event) => (Some(Role::Routing), &event.id, &event.event_type),
            Content::Untaken { event, .. } => (None, &event.id, &event.event_type),
            Content::Message { message, .. } => (Some(Role::Formatting), &message.event_id, &message.event_type),
            Content::Undelivered { message, .. } => (None, &message.event_id, &message.event_type),
        };
        let (outcome, detail) = match (&letter.content, &letter.fault) {
            (Content::Undelivered { reason, .. }, _) => (Outcome::Other("undelivered".to_owned()), Some(reason.to_string())),
            (Content::Untaken { reason, .. }, _) => (Outcome::Other("untaken".to_owned()), Some(reason.to_string())),
            (_, Some(fault)) => (Outcome::Faulted, Some(format!("{}: {}", fault.defect.kind.name(), fault.defect.detail))),
            (_, None) => (Outcome::CircuitOpen, None),
        };
        let of_policy = |text: &Arc<str>| (!letter.is_of_sink() && !text.is_empty()).then(|| text.clone());
        Summary {
            id: letter.id,
            at: letter.at,
            policy: of_policy(&letter.policy),
            version: of_policy(&letter.version),
            role,
            sink: letter.is_of_sink().then(|| letter.policy.clone()),
            event_id: event_id.clone(),
            event_type: event_type.clone(),
            attempts: letter.attempts,
            poison: letter.is_poison(),
            outcome,
            detail,
        }
    }
}

/// `GET {base}/dead-letters`: all letters, as `List`.
pub async fn list(State(operate): State<Arc<Operate>>) -> Response {
    let kept = &operate.node.model.dead_letters;
    let (letters, bytes) = kept.totals();
    json(&List { letters, bytes, dead_letters: kept.list().iter().map(|letter| Summary::of(letter)).collect() })
}

/// `GET {base}/dead-letters/{id}`: one letter, as `View`.
///
/// # Errors
/// There is no such letter.
pub async fn show(State(operate): State<Arc<Operate>>, id: Result<Path<u64>, PathRejection>) -> Result<Response, Problem> {
    let letter = operate.node.model.dead_letters.get(number(id)?).ok_or_else(unknown)?;
    let (event, message, readers) = match &letter.content {
        Content::Event(event) | Content::Untaken { event, .. } => (Some(&**event), None, &[][..]),
        Content::Message { message, recipients } => (None, Some(&*message.body), &recipients[..]),
        Content::Undelivered { message, .. } => (None, Some(&*message.body), &[][..]),
    };
    Ok(json(&View { summary: Summary::of(&letter), fault: letter.fault.as_deref(), event, message, readers }))
}

/// `POST {base}/dead-letters/{id}/retry`: returns a receipt, as for any event. An event that faults again is kept under the
/// same id, and so is a message for which no mailbox has room.
///
/// # Errors
/// There is no such letter, or its policy is not loaded, or its sink not configured.
pub async fn retry(State(operate): State<Arc<Operate>>, id: Result<Path<u64>, PathRejection>) -> Result<Response, Problem> {
    operate.node.store.admit()?;
    let (receipt, ticket) = operate.node.dispatch.retry(number(id)?).map_err(|error| match error {
        RetryError::Unknown => unknown(),
        RetryError::PolicyMissing(name) => {
            let detail = format!("its policy {name} is not loaded; load it, and try again");
            Problem::new(StatusCode::CONFLICT, "policy_missing", detail)
        }
        RetryError::Unwanted(event_type) => {
            let detail = format!("no policy wants events of the type {event_type:?}; load one, and try again, or delete the letter");
            Problem::new(StatusCode::CONFLICT, "policy_missing", detail)
        }
        RetryError::SinkMissing(name) => {
            let detail = format!("its sink {name} is not in the configuration; put it there, restart, and try again");
            Problem::new(StatusCode::CONFLICT, "sink_missing", detail)
        }
    })?;
    ticket.stored().await?;
    Ok(json(&receipt))
}

/// `POST {base}/dead-letters/retry`: retries all letters except poison, and returns how many.
///
/// # Errors
/// The store can't keep the outcome of one of them.
pub async fn retry_all(State(operate): State<Arc<Operate>>) -> Result<Response, Problem> {
    #[derive(Default, Serialize)]
    struct Retried {
        retried: usize,
        /// Retried letters whose policy failed again.
        failed: usize,
        /// Letters that were not retried: poison, or their policy is not loaded.
        left: usize,
    }
    let mut answer = Retried::default();
    for letter in operate.node.model.dead_letters.list() {
        if letter.is_poison() {
            answer.left += 1;
            continue;
        }
        match operate.node.dispatch.retry(letter.id) {
            Ok((receipt, ticket)) => {
                ticket.stored().await?;
                answer.retried += 1;
                answer.failed += usize::from(receipt.policies.iter().any(|consulted| consulted.outcome.is_failure()));
            }
            Err(_) => answer.left += 1,
        }
        // Each retry calls a policy: other tasks run in between.
        tokio::task::yield_now().await;
    }
    Ok(json(&answer))
}

#[derive(Serialize)]
struct Deleted {
    deleted: usize,
}

/// `DELETE {base}/dead-letters/{id}`: deletes one letter, and returns `{"deleted": 1}`.
///
/// # Errors
/// There is no such letter, or the store can't keep that it is deleted.
pub async fn delete(State(operate): State<Arc<Operate>>, id: Result<Path<u64>, PathRejection>) -> Result<Response, Problem> {
    let (deleted, ticket) = operate.node.dispatch.delete_letter(number(id)?);
    ticket.stored().await?;
    if deleted { Ok(json(&Deleted { deleted: 1 })) } else { Err(unknown()) }
}

/// `DELETE {base}/dead-letters`: deletes all letters, and returns `{"deleted": N}`.
///
/// # Errors
/// The store can't keep that they are deleted.
pub async fn delete_all(State(operate): State<Arc<Operate>>) -> Result<Response, Problem> {
    let (deleted, ticket) = operate.node.dispatch.delete_letters();
    ticket.stored().await?;
    Ok(json(&Deleted { deleted }))
}

fn number(id: Result<Path<u64>, PathRejection>) -> Result<u64, Problem> {
    let Ok(Path(id)) = id else { return Err(unknown()) };
    Ok(id)
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "dead_letter", "there is no such dead letter; it may have been retried, deleted or evicted")
}
