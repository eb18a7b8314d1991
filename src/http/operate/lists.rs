//! What operators page through: users, the figures of the last minutes, and settings.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::{Operate, json, query};
use crate::config::Setting;
use crate::model::mailbox::{Listing, Mailboxes, UsersPage};
use crate::net::problem::Problem;
use crate::net::turns::Turns;
use crate::node::SAMPLES_MAX;
use crate::types::event::UserId;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsersQuery {
    online: Option<bool>,
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct UsersView {
    /// In the order of their bytes.
    users: Vec<UserView>,
    /// What `after` is for the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<UserId>,
}

#[derive(Serialize)]
struct UserView {
    user: UserId,
    online: bool,
    sessions: usize,
    /// Messages in the mailbox, and their bytes.
    messages: usize,
    bytes: usize,
    /// Seq of the newest message.
    seq: u64,
}

/// `GET {base}/users`: the users who have a session, something in their mailbox, or may resume, a page at a time. Each page looks at every
/// user once, and pages are made one after the other.
///
/// # Errors
/// The query is invalid.
pub async fn users(State(operate): State<Arc<Operate>>, asked: Result<Query<UsersQuery>, QueryRejection>) -> Result<Response, Problem> {
    let UsersQuery { online, prefix, after, limit } = query::read(asked, "the list of users takes online, prefix, after and limit")?;
    let limit = query::limit(limit)?;
    let mailboxes = &operate.node.model.mailboxes;
    let mut page = UsersPage::new(Listing { online, prefix: prefix.unwrap_or_default(), after, limit });
    let one_at_a_time = operate.listing.lock().await;
    let mut turns = Turns::default();
    for round in 0..Mailboxes::SWEEP_ROUNDS {
        mailboxes.list(round, &mut page);
        turns.take().await;
    }
    drop(one_at_a_time);
    let (users, has_more) = page.into_users();
    let next = users.last().filter(|_| has_more).cloned();
    let view = |user: UserId| {
        let presence = mailboxes.presence(&user);
        let sessions = presence.sessions.len();
        UserView { user, online: sessions > 0, sessions, messages: presence.messages, bytes: presence.bytes, seq: presence.last }
    };
    Ok(json(&UsersView { users: users.into_iter().map(view).collect(), next }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsQuery {
    last: Option<usize>,
}

/// `GET {base}/stats`: the figures of the last 15 minutes, or the `last` samples of them.
///
/// # Errors
/// The query is invalid.
pub async fn stats(State(operate): State<Arc<Operate>>, asked: Result<Query<StatsQuery>, QueryRejection>) -> Result<Response, Problem> {
    let StatsQuery { last } = query::read(asked, "the figures take last, a number of samples")?;
    Ok(json(&operate.node.stats.figures(&operate.node, last.unwrap_or(SAMPLES_MAX))))
}

#[derive(Serialize)]
struct SettingView {
    path: String,
    value: toml::Value,
    source: String,
    variable: String,
}

/// `GET {base}/settings`: every setting with its value, where it came from, and its environment variable, as `signalpost check` shows them. What
/// may be a secret is hidden.
pub async fn settings(State(operate): State<Arc<Operate>>) -> Response {
    let view = |setting: &Setting| {
        let Setting { path, value, source, variable } = setting.clone().hidden();
        SettingView { path, value, source: source.to_string(), variable }
    };
    json(&operate.node.config.settings.iter().map(view).collect::<Vec<SettingView>>())
}
