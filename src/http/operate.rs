//! The operators' API: sessions, policies, health and metrics.

pub mod candidates;
pub mod dead_letters;
pub mod groups;
pub mod lists;
pub mod live;
mod query;
pub mod receipts;
pub mod recordings;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::auth::Auth;
use crate::cluster::View;
use crate::config::{Grant, OnFault, Scope};
use crate::metrics::{Gauges, Metrics, Times};
use crate::model::groups::Share;
use crate::net::problem::{self, Problem};
use crate::node::Node;
use crate::node::settings::{Changed, Outcome, Settings};
use crate::policy::candidate::Candidate;
use crate::policy::load::Reload;
use crate::policy::{Policy, Rejected, Role};
use crate::registry::SessionHandle;
use crate::sink::{self, Sinks};
use crate::types::close::Close;
use crate::types::delivery::PolicySetId;
use crate::types::fault::Fault;

/// The state of the handlers.
#[derive(Debug)]
pub struct Operate {
    pub node: Arc<Node>,
    pub auth: Arc<Auth>,
    /// Whether the server accepts new sockets.
    pub ready: Arc<AtomicBool>,
    pub sinks: Arc<Sinks>,
    pub settings: Arc<Settings>,
    /// Whether streams have to end, since the server finishes its last requests.
    pub stopping: watch::Receiver<bool>,
    /// Held while a page of users is made.
    pub listing: Mutex<()>,
}

#[derive(Serialize)]
struct Presence {
    user: String,
    online: bool,
    sessions: Vec<SessionView>,
    mailbox: Option<MailboxView>,
}

#[derive(Serialize)]
struct SessionView {
    id: String,
    opened: String,
    subprotocol: Option<&'static str>,
    attributes: serde_json::Map<String, serde_json::Value>,
    /// Seq of the newest message that this session has taken. For a session of another node, as far as is known here.
    seq: u64,
    /// The run of the node that has its socket, if it is not this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

#[derive(Serialize)]
struct MailboxView {
    epoch: String,
    messages: usize,
    bytes: usize,
    seq: u64,
}

/// `GET {base}/users/{user_id}`: the user's sessions and mailbox, as `Presence`.
///
/// # Errors
/// The user id is invalid.
pub async fn presence(State(operate): State<Arc<Operate>>, user: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let user = problem::user(user, operate.node.config.sockets.user_id_bytes_max.get())?;
    let presence = operate.node.model.mailboxes.presence(&user);
    let sessions = presence.sessions.iter().map(|(handle, seq)| SessionView {
        id: handle.id.to_string(),
        opened: crate::types::time::rfc3339(handle.opened),
        subprotocol: handle.subprotocol,
        attributes: attributes(handle),
        seq: *seq,
        node: handle.node().map(str::to_owned),
    });
    let sessions: Vec<SessionView> = sessions.collect();
    let mailbox = presence.epoch.map(|epoch| MailboxView { epoch, messages: presence.messages, bytes: presence.bytes, seq: presence.last });
    Ok(json(&Presence { user: user.to_string(), online: !sessions.is_empty(), sessions, mailbox }))
}

/// `DELETE {base}/users/{user_id}/sessions`: ends the user's sessions, and returns `{"ended": N}`.
///
/// # Errors
/// The user id is invalid.
pub async fn end_sessions(State(operate): State<Arc<Operate>>, user: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Ended {
        ended: usize,
    }
    let user = problem::user(user, operate.node.config.sockets.user_id_bytes_max.get())?;
    Ok(json(&Ended { ended: operate.node.model.mailboxes.end_sessions(&user, &Close::EndedByOperator) }))
}

#[derive(Serialize)]
struct PoliciesView<'a> {
    revision: u64,
    /// The same for the same policies with the same configuration, on every server.
    id: PolicySetId,
    policies: Vec<PolicyView<'a>>,
    /// Files that were refused. If a policy of that name serves, it is the previous version.
    rejected: Vec<Rejected>,
}

#[derive(Serialize)]
struct PolicyView<'a> {
    name: &'a str,
    version: &'a str,
    digest: &'a str,
    file: &'a std::path::Path,
    roles: &'a [Role],
    events: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    vary: &'a [String],
    grants: &'a [Grant],
    order: Option<i32>,
    on_fault: OnFault,
    /// The policy faulted too often in a row, and is not called for a while.
    circuit_open: bool,
    counters: CountersView,
    /// How long the calls took since the server's start, whatever the version.
    times: Vec<TimesView>,
    last_fault: Option<Fault>,
    /// The state of its candidate, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    candidate: Option<&'static str>,
}

#[derive(Serialize)]
struct CountersView {
    calls: u64,
    refusals: u64,
    faults: u64,
    idle_instances: usize,
}

#[derive(Serialize)]
struct TimesView {
    function: String,
    calls: u64,
    /// Microseconds: the median, and the time that 99 % of the calls did not exceed, as far as the histogram's bounds tell.
    p50_us: f64,
    p99_us: f64,
}

impl TimesView {
    fn of((function, times): (String, Times)) -> TimesView {
        let quantile = |share| times.quantile_us(share).unwrap_or_default().round();
        TimesView { function, calls: times.count(), p50_us: quantile(0.5), p99_us: quantile(0.99) }
    }
}

impl<'a> PolicyView<'a> {
    fn of(policy: &'a Policy, candidate: Option<&Candidate>, metrics: &Metrics) -> PolicyView<'a> {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        PolicyView {
            name: &policy.name,
            version: &policy.version,
            digest: &policy.digest,
            file: &policy.file,
            roles: &policy.roles,
            events: &policy.events,
            vary: &policy.vary,
            grants: &policy.config.grants,
            order: policy.config.order,
            on_fault: policy.on_fault(),
            circuit_open: policy.is_circuit_open(),
            counters: CountersView {
                calls: count(&policy.counters.calls),
                refusals: count(&policy.counters.refusals),
                faults: count(&policy.counters.faults),
                idle_instances: policy.idle_instances(),
            },
            times: metrics.calls_of(&policy.name).into_iter().map(TimesView::of).collect(),
            last_fault: policy.last_fault.lock().clone(),
            candidate: candidate.map(|candidate| candidate.state().name()),
        }
    }
}

/// `GET {base}/policies`: the current policies and the refused files, as `PoliciesView`.
pub async fn policies(State(operate): State<Arc<Operate>>) -> Response {
    let current = operate.node.policies.current();
    let candidates = operate.node.policies.candidates();
    let candidate_of = |policy: &Policy| candidates.iter().find(|candidate| candidate.name == policy.name).map(|candidate| &**candidate);
    let policies = current.policies.iter().map(|policy| PolicyView::of(policy, candidate_of(policy), &operate.node.metrics)).collect();
    json(&PoliciesView { revision: current.revision, id: current.id, policies, rejected: operate.node.policies.rejected() })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterQuery {
    digest: Option<bool>,
}

/// `GET {base}/cluster`: the nodes that serve together, as `cluster::View`. A key with only the scope `read` gets no digest: making one holds
/// the node up.
///
/// # Errors
/// The query is invalid.
pub async fn cluster(
    State(operate): State<Arc<Operate>>,
    headers: HeaderMap,
    asked: Result<Query<ClusterQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let ClusterQuery { digest } = query::read(asked, "the nodes are shown with digest=true or without")?;
    let cluster = &operate.node.cluster;
    let digest = if digest == Some(true) && operate.auth.has(&headers, Scope::Operate) { cluster.digest().await } else { None };
    Ok(json(&View { digest, ..cluster.view() }))
}

/// Returns the policy that a path names.
///
/// # Errors
/// There is no such policy.
fn policy_of(operate: &Operate, name: Result<Path<String>, PathRejection>) -> Result<Arc<Policy>, Problem> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "policy_unknown", format!("there is no policy {name:?}; GET policies lists them"));
    operate.node.policies.current().find(&name).cloned().ok_or_else(unknown)
}

/// `GET {base}/sinks`: each sink and how far it is, as `sink::View`.
pub async fn sinks(State(operate): State<Arc<Operate>>) -> Response {
    #[derive(Serialize)]
    struct List {
        sinks: Vec<sink::View>,
    }
    json(&List { sinks: operate.sinks.views() })
}

/// `POST {base}/policies/reload`: reads the configuration again, and brings the policies up to date with it and with their files. Refused files
/// are tried again, and so are sinks that have stopped.
///
/// # Errors
/// The configuration is invalid, or a changed file was refused; nothing has changed.
pub async fn reload(State(operate): State<Arc<Operate>>) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Reloaded {
        revision: u64,
        changed: Vec<String>,
        #[serde(skip_serializing_if = "Changed::is_empty")]
        settings: Changed,
    }
    operate.sinks.resume();
    let (reload, settings) = match operate.settings.reload().await {
        Outcome::Reloaded(reload, settings) => (reload, settings),
        Outcome::Invalid(problems) => {
            let detail = format!("the configuration stays as it is: {problems}");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "configuration_invalid", detail));
        }
    };
    match reload {
        Reload::Unchanged => Ok(json(&Reloaded { revision: operate.node.policies.current().revision, changed: Vec::new(), settings })),
        Reload::Swapped { revision, changed } => Ok(json(&Reloaded { revision, changed, settings })),
        Reload::Unreadable(detail) => {
            let detail = format!("{detail}; the current policies keep serving");
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "plugins_unreadable", detail))
        }
        Reload::Refused(rejected) => {
            let reasons: Vec<String> = rejected.iter().map(|rejected| format!("{}: {}", rejected.name, rejected.reason)).collect();
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "policy_refused", reasons.join("; ")))
        }
    }
}

/// `GET /`: tells a person who opens the address in a browser what is here.
pub async fn index(State(operate): State<Arc<Operate>>) -> Response {
    #[derive(Serialize)]
    struct Index<'a> {
        about: &'static str,
        base: &'a str,
        socket: String,
        publish: String,
        health: [&'static str; 2],
        openapi: String,
        asyncapi: String,
        docs: &'static str,
    }
    let base = &operate.node.config.base_path;
    json(&Index {
        about: "Signalpost routes messages to WebSockets",
        base,
        socket: format!("{base}/ws/{{user_id}}"),
        publish: format!("{base}/events"),
        health: ["/healthz", "/readyz"],
        openapi: format!("{base}/openapi.json"),
        asyncapi: format!("{base}/asyncapi.json"),
        docs: "README.md and docs/ in Signalpost's sources, and `signalpost --help`",
    })
}

/// `GET /healthz`: answers as long as the process serves.
pub async fn health() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: answers with success if the server accepts new sockets, its store can write, and no policy is missing. Says what anybody
/// may do, and which plugins are refused.
///
/// # Errors
/// The server is stopping, the store's disk is full or has failed, a policy is missing without which nobody is served, or the
/// policies are not those on which the nodes of the cluster have agreed.
pub async fn ready(State(operate): State<Arc<Operate>>) -> Result<Response, Problem> {
    if !operate.ready.load(Ordering::Relaxed) {
        return Err(Problem::stopping());
    }
    operate.node.store.check()?;
    let agreed = operate.node.model.agreement.now();
    if let Some(why) = operate.node.policies.lack(agreed.as_deref()) {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "policy_missing", why));
    }
    operate.node.policies.check()?;
    let mut text = "ready\n".to_owned();
    text.extend(operate.settings.exposed().map(|who| format!("{who}\n")));
    let current = operate.node.policies.current();
    if agreed.is_some_and(|agreed| agreed.id != current.id) {
        text.push_str("this node has other settings of the policies than the one that has proposed them\n");
    }
    text.extend(operate.node.policies.rejected().iter().map(|rejected| match current.find(&rejected.name) {
        Some(_) => format!("the plugin {} is refused, and its last good version serves\n", rejected.name),
        None => format!("the plugin {} is refused\n", rejected.name),
    }));
    Ok(text.into_response())
}

/// `GET /metrics`: Prometheus' text format.
///
/// # Errors
/// A metric can't be written as text.
pub async fn metrics(State(operate): State<Arc<Operate>>) -> Result<Response, Problem> {
    let model = &operate.node.model;
    let totals = model.mailboxes.totals();
    let rejected = operate.node.policies.rejected();
    let Share { groups, memberships } = model.groups.read().totals();
    let gauges = Gauges {
        sessions: totals.sessions,
        mailboxes: totals.mailboxes,
        messages: totals.messages,
        bytes: totals.bytes,
        groups,
        memberships,
        dead_letters: model.dead_letters.totals().0,
        store: operate.node.store.gauges(&operate.node.model),
        cluster: operate.node.cluster.gauges(),
        sinks: operate.sinks.gauges(),
        refused: rejected.len(),
        missing: rejected.iter().filter(|rejected| rejected.must_serve).count(),
    };
    let text = operate.node.metrics.text(&gauges);
    let text = text.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics", error.to_string()))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// Returns a session's attributes, for a view.
fn attributes(session: &SessionHandle) -> serde_json::Map<String, serde_json::Value> {
    session.attributes.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect()
}

fn json<T: Serialize>(view: &T) -> Response {
    // Views are structs of strings and numbers: serializing them can't fail.
    let body = serde_json::to_vec(view).unwrap_or_default();
    (StatusCode::OK, [(CONTENT_TYPE, "application/json")], body).into_response()
}
