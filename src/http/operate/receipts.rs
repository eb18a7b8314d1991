//! Receipts afterwards, over HTTP.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;

use super::query::{self, page};
use super::{Operate, json};
use crate::dispatch::milestones::{Afterwards, NotTold};
use crate::http::ingress::cloudevents::SHORT_FORM_SOURCE;
use crate::net::problem::Problem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptQuery {
    source: Option<String>,
    #[serde(default)]
    after: usize,
    limit: Option<usize>,
}

/// `GET {base}/receipts/{event_id}`: how far the messages of an event got, as `Afterwards`.
///
/// # Errors
/// The event is not known, events of several sources have this id, or the query is wrong.
pub async fn show(
    State(operate): State<Arc<Operate>>,
    id: Result<Path<String>, PathRejection>,
    asked: Result<Query<ReceiptQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let ReceiptQuery { source, after, limit } = query::read(asked, "a receipt takes source, after and limit")?;
    let page = page(after, limit)?;
    let Path(id) = id.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "event_id", error.body_text()))?;
    let dispatch = &operate.node.dispatch;
    match dispatch.milestones.tell(&operate.node.model.mailboxes, &id, source.as_deref(), page).await {
        Ok(told) => Ok(json(&told)),
        Err(NotTold::Ambiguous) => {
            let detail = "events of several sources have this id: say which with ?source=";
            Err(Problem::new(StatusCode::CONFLICT, "several_events", detail))
        }
        Err(NotTold::NotKnown) => {
            let source = source.as_deref().unwrap_or(SHORT_FORM_SOURCE);
            if dispatch.was_published(&id, source) {
                return Ok(json(&Afterwards::unknown(&id, source)));
            }
            let detail = "no event with this id and source was published within events.dedup_window_ms, or it was forgotten for newer ones";
            Err(Problem::new(StatusCode::NOT_FOUND, "unknown_event", detail))
        }
    }
}
