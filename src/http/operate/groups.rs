//! Groups over HTTP: who is in one.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::query::{self, page};
use super::{Operate, json};
use crate::net::problem::Problem;
use crate::types::event::UserId;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupQuery {
    #[serde(default)]
    after: usize,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct GroupView {
    name: String,
    /// The policy that added the first member.
    policy: Arc<str>,
    /// The number of all members.
    size: usize,
    /// A page of them, in the order in which they joined.
    members: Vec<UserId>,
    /// The value of `after` for the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<usize>,
}

/// `GET {base}/groups/{name}`: a group's members, as `GroupView`.
///
/// # Errors
/// There is no such group, or the query is wrong.
pub async fn show(
    State(operate): State<Arc<Operate>>,
    name: Result<Path<String>, PathRejection>,
    asked: Result<Query<GroupQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let GroupQuery { after, limit } = query::read(asked, "a group takes after and limit, both numbers")?;
    let page = page(after, limit)?;
    let Path(name) = name.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "group", error.body_text()))?;
    let groups = operate.node.model.groups.read();
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "unknown_group", "there is no such group: nobody is in it");
    let group = groups.get(&name).ok_or_else(unknown)?;
    let members = group.members().skip(page.after).take(page.limit).cloned().collect();
    Ok(json(&GroupView { policy: group.opener().clone(), size: group.len(), members, next: page.next(group.len()), name }))
}
