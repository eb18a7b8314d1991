//! Dead letters over HTTP: listed, shown, tried again, deleted.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::{Operate, json};
use crate::dead_letters::{Content, DeadLetter, Reader};
use crate::dispatch::Outcome;
use crate::net::problem::Problem;
use crate::policy::{Fault, Role};
use crate::types::event::{Body, Event};

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
    policy: String,
    version: String,
    role: Role,
    event_id: String,
    event_type: String,
    /// How often the policy faulted on it; 0 where it was left out and not asked.
    attempts: u32,
    /// It is tried again only by its id.
    poison: bool,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// A letter in full.
#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    summary: Summary,
    fault: Option<&'a Fault>,
    /// CloudEvents' structured form.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Event>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a Body>,
    /// Who was to read the message.
    #[serde(skip_serializing_if = "<[Reader]>::is_empty")]
    readers: &'a [Reader],
}

impl Summary {
    fn of(letter: &DeadLetter) -> Summary {
        let (role, event_id, event_type) = match &letter.content {
            Content::Event(event) => (Role::Routing, &event.id, &event.event_type),
            Content::Message { message, .. } => (Role::Formatting, &message.event_id, &message.event_type),
        };
        let detail = letter.fault.as_ref().map(|fault| format!("{}: {}", fault.defect.kind.name(), fault.defect.detail));
        Summary {
            id: letter.id,
            at: letter.at,
            policy: letter.policy.clone(),
            version: letter.version.clone(),
            role,
            event_id: event_id.clone(),
            event_type: event_type.clone(),
            attempts: letter.attempts,
            poison: letter.is_poison(),
            outcome: if letter.fault.is_some() { Outcome::Faulted } else { Outcome::CircuitOpen },
            detail,
        }
    }
}

/// `GET {base}/dead-letters`
pub async fn list(State(operate): State<Arc<Operate>>) -> Response {
    let kept = &operate.dispatch.dead_letters;
    let (letters, bytes) = kept.totals();
    json(&List { letters, bytes, dead_letters: kept.list().iter().map(|letter| Summary::of(letter)).collect() })
}

/// `GET {base}/dead-letters/{id}`
///
/// # Errors
/// There is no such letter.
pub async fn show(State(operate): State<Arc<Operate>>, id: Result<Path<u64>, PathRejection>) -> Result<Response, Problem> {
    let letter = operate.dispatch.dead_letters.get(number(id)?).ok_or_else(unknown)?;
    let (event, message, readers) = match &letter.content {
        Content::Event(event) => (Some(&**event), None, &[][..]),
        Content::Message { message, readers } => (None, Some(&*message.body), &readers[..]),
    };
    Ok(json(&View { summary: Summary::of(&letter), fault: letter.fault.as_deref(), event, message, readers }))
}

/// `POST {base}/dead-letters/{id}/retry`: a receipt, as for any event. What faults again is kept again, under its id.
///
/// # Errors
/// There is no such letter, or its policy is not loaded.
pub async fn retry(State(operate): State<Arc<Operate>>, id: Result<Path<u64>, PathRejection>) -> Result<Response, Problem> {
    let retried = operate.dispatch.retry(number(id)?).ok_or_else(unknown)?;
    Ok(json(&retried.map_err(|detail| Problem::new(StatusCode::CONFLICT, "policy_missing", detail))?))
}

/// `POST {base}/dead-letters/retry`: all but the poison.
pub async fn retry_all(State(operate): State<Arc<Operate>>) -> Response {
    #[derive(Default, Serialize)]
    struct Retried {
        retried: usize,
        /// Of these, the policy faulted again.
        failed: usize,
        /// Left alone: poison, or its policy is not loaded.
        left: usize,
    }
    let mut answer = Retried::default();
    for letter in operate.dispatch.dead_letters.list() {
        let retried = if letter.is_poison() { None } else { operate.dispatch.retry(letter.id) };
        match retried {
            Some(Ok(receipt)) => {
                answer.retried += 1;
                answer.failed += usize::from(receipt.policies.iter().any(|consulted| consulted.outcome.is_failure()));
            }
            Some(Err(_)) | None => answer.left += 1,
        }
        // Each is a policy's call; others have theirs in between.
        tokio::task::yield_now().await;
    }
    json(&answer)
}

#[derive(Serialize)]
struct Deleted {
    deleted: usize,
}

/// `DELETE {base}/dead-letters/{id}`
///
/// # Errors
/// There is no such letter.
pub async fn delete(State(operate): State<Arc<Operate>>, id: Result<Path<u64>, PathRejection>) -> Result<Response, Problem> {
    if operate.dispatch.dead_letters.delete(number(id)?) { Ok(json(&Deleted { deleted: 1 })) } else { Err(unknown()) }
}

/// `DELETE {base}/dead-letters`
pub async fn delete_all(State(operate): State<Arc<Operate>>) -> Response {
    json(&Deleted { deleted: operate.dispatch.dead_letters.delete_all() })
}

fn number(id: Result<Path<u64>, PathRejection>) -> Result<u64, Problem> {
    let Ok(Path(id)) = id else { return Err(unknown()) };
    Ok(id)
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "dead_letter", "there is no such dead letter; it may have been retried, deleted or crowded out")
}
