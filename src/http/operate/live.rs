//! `GET {base}/live`: what happens, while it happens, as server-sent events (WHATWG HTML, section 9.2).
//!
//! An observer pays for itself: entries are filtered, explained and written by the task of its connection, at most `live.per_second_max` of them
//! in a second. What it does not get is counted, and it is told the count.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Operate, query};
use crate::config::Scope;
use crate::dispatch::observers::{Asked, Entry, Observer, Reloaded, Seen, TooMany, Trace};
use crate::explain::{Budget, Explained};
use crate::net::problem::Problem;
use crate::net::rate::Bucket;
use crate::policy::{CallError, Rejected};
use crate::registry::SessionHandle;
use crate::types::delivery::Refusal;
use crate::types::event::{self, Body, Event};
use crate::types::pattern::matches;
use crate::types::time::rfc3339;

/// How often a comment is sent while nothing happens. A client that has left is only noticed by writing to it, and a console that opens the feed
/// again must not be refused for the one that it has just closed.
const COMMENT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a loss waits for an entry to precede.
const LOSS_DELAY: Duration = Duration::from_secs(1);

/// Tells proxies such as nginx not to collect what is sent.
pub(super) const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What an entry is about: the name of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// An event or a direct message: what was decided, and who was told.
    Event,
    /// A session was opened or closed.
    Session,
    /// A client sent a message.
    Message,
    /// A sessions policy was called.
    Policy,
    Fault,
    Reload,
}

impl Kind {
    const ALL: [Kind; 6] = [Kind::Event, Kind::Session, Kind::Message, Kind::Policy, Kind::Fault, Kind::Reload];

    fn of(trace: &Trace) -> Kind {
        match trace {
            Trace::Event { .. } => Kind::Event,
            Trace::Opened(_) | Trace::Closed { .. } => Kind::Session,
            Trace::Received { .. } => Kind::Message,
            Trace::Asked(_) => Kind::Policy,
            Trace::Fault(_) => Kind::Fault,
            Trace::Reload(_) => Kind::Reload,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Event => "event",
            Kind::Session => "session",
            Kind::Message => "message",
            Kind::Policy => "policy",
            Kind::Fault => "fault",
            Kind::Reload => "reload",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveQuery {
    user: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    policy: Option<String>,
    /// Several have commas between them.
    kind: Option<String>,
}

/// What an observer wants to see.
#[derive(Debug)]
struct Filter {
    user: Option<String>,
    event_type: Option<String>,
    policy: Option<String>,
    kinds: Vec<Kind>,
}

impl Filter {
    fn new(query: LiveQuery) -> Result<Filter, Problem> {
        let kind = |name: &str| {
            Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
                let known = Kind::ALL.map(Kind::name).join(", ");
                Problem::new(StatusCode::BAD_REQUEST, "query", format!("there is no kind {name:?}: there are {known}"))
            })
        };
        let names = query.kind.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
        let kinds = names.map(kind).collect::<Result<Vec<Kind>, Problem>>()?;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Filter { user: given(query.user), event_type: given(query.event_type), policy: given(query.policy), kinds })
    }

    fn passes(&self, trace: &Trace) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&Kind::of(trace)))
            && self.user.as_deref().is_none_or(|user| concerns_user(trace, user))
            && self.event_type.as_deref().is_none_or(|pattern| event_type(trace).is_some_and(|known| matches(pattern, known)))
            && self.policy.as_deref().is_none_or(|policy| concerns_policy(trace, policy))
    }
}

fn concerns_user(trace: &Trace, user: &str) -> bool {
    match trace {
        Trace::Event { story, .. } => {
            let mut told = story.done.iter().flat_map(|done| done.plan.deliveries()).flat_map(|planned| &planned.audience);
            told.any(|told| told.as_str() == user)
        }
        Trace::Opened(session) | Trace::Closed { session, .. } | Trace::Received { session, .. } | Trace::Asked(Asked { session, .. }) => {
            session.user.as_str() == user
        }
        Trace::Fault(_) | Trace::Reload(_) => false,
    }
}

fn concerns_policy(trace: &Trace, policy: &str) -> bool {
    let names = |rejected: &[Rejected]| rejected.iter().any(|rejected| rejected.name == policy);
    match trace {
        Trace::Event { story, .. } => story.done.as_ref().is_some_and(|done| done.plan.asks(policy)),
        Trace::Asked(asked) => *asked.policy.name == *policy,
        Trace::Fault(fault) => *fault.policy == *policy,
        Trace::Reload(Reloaded::Swapped { changed, .. }) => changed.iter().any(|name| name == policy),
        Trace::Reload(Reloaded::Refused(rejected) | Reloaded::RolledBack(rejected)) => names(rejected),
        Trace::Reload(Reloaded::Unreadable(_)) => true,
        Trace::Opened(_) | Trace::Closed { .. } | Trace::Received { .. } => false,
    }
}

fn event_type(trace: &Trace) -> Option<&str> {
    match trace {
        Trace::Event { event, .. } => Some(event.as_ref().map_or(event::DIRECT, |event| &event.event_type)),
        _ => None,
    }
}

/// `GET {base}/live`: a stream of entries until the client leaves or the server stops. A key with only the scope `read` sees no payloads.
///
/// # Errors
/// The query is invalid, or there are too many observers.
pub async fn live(
    State(operate): State<Arc<Operate>>,
    headers: HeaderMap,
    asked: Result<Query<LiveQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let filter = Filter::new(query::read(asked, "the live feed takes user, type, policy and kind")?)?;
    let observer = operate.node.dispatch.observers.observe().map_err(|TooMany(max)| {
        let detail = format!("there are {max} observers (live.observers_max); end one of them, or come back later");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_observers", detail)
    })?;
    let feed = Feed::new(operate.clone(), observer, filter, operate.auth.has(&headers, Scope::Operate));
    let frames = Sse::new(stream::unfold(feed, Feed::next)).keep_alive(KeepAlive::new().interval(COMMENT_INTERVAL));
    let no = |text: &'static str| HeaderValue::from_static(text);
    Ok(([(CACHE_CONTROL, no("no-store, no-transform")), (BUFFERING, no("no"))], frames).into_response())
}

/// One observer's stream.
struct Feed {
    operate: Arc<Operate>,
    observer: Observer,
    filter: Filter,
    shows_payloads: bool,
    allowance: Bucket,
    /// Entries over the allowance that the observer was not told about, and when it will be.
    withheld: Option<(u64, Instant)>,
    frames: VecDeque<Frame>,
    stopping: watch::Receiver<bool>,
    is_over: bool,
}

impl Feed {
    fn new(operate: Arc<Operate>, observer: Observer, filter: Filter, shows_payloads: bool) -> Feed {
        #[derive(Serialize)]
        struct Hello {
            version: &'static str,
            revision: u64,
            payloads: bool,
        }
        let hello =
            Hello { version: env!("CARGO_PKG_VERSION"), revision: operate.node.policies.current().revision, payloads: shows_payloads };
        Feed {
            allowance: Bucket::full(operate.node.config.live.per_second_max.get()),
            stopping: operate.stopping.clone(),
            observer,
            filter,
            shows_payloads,
            withheld: None,
            frames: VecDeque::from([frame("hello", &hello)]),
            is_over: false,
            operate,
        }
    }

    async fn next(mut self) -> Option<(Result<Frame, Infallible>, Feed)> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some((Ok(frame), self));
            }
            if self.is_over {
                return None;
            }
            let due = self.withheld.map(|(_, due)| due);
            tokio::select! {
                () = stops(&mut self.stopping) => {
                    self.frames.push_back(frame("end", &serde_json::json!({ "reason": "the server is stopping" })));
                    self.is_over = true;
                }
                seen = self.observer.next() => self.take(seen),
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => self.tell_loss(0),
            }
        }
    }

    fn take(&mut self, seen: Seen) {
        let entry = match seen {
            Seen::Lost(count) => return self.tell_loss(count),
            Seen::Entry(entry) => entry,
        };
        if !self.filter.passes(&entry.trace) {
            return;
        }
        let per_second = self.operate.node.config.live.per_second_max.get();
        if !self.allowance.take(1, per_second, per_second) {
            let (withheld, due) = self.withheld.unwrap_or_else(|| (0, Instant::now() + LOSS_DELAY));
            self.withheld = Some((withheld + 1, due));
            self.observer.lost(1);
            return;
        }
        if self.withheld.is_some() {
            self.tell_loss(0);
        }
        let frame = self.frame(&entry);
        self.frames.push_back(frame);
    }

    /// Tells the observer of entries that it did not get, those that were withheld among them.
    fn tell_loss(&mut self, count: u64) {
        #[derive(Serialize)]
        struct Lost {
            count: u64,
        }
        let count = count + self.withheld.take().map_or(0, |(withheld, _)| withheld);
        self.frames.push_back(frame("lost", &Lost { count }));
    }

    fn frame(&self, entry: &Entry) -> Frame {
        let at = rfc3339(entry.at);
        let (kind, shows) = (Kind::of(&entry.trace).name(), self.shows_payloads);
        match &entry.trace {
            Trace::Event { event, story } => {
                let (dispatch, format) = (&self.operate.node.dispatch, &self.operate.node.format);
                let explained = Explained::of(story, dispatch, format, false, &mut Budget::live(shows));
                let event_type = event_type(&entry.trace).unwrap_or_default();
                frame(kind, &EventView { at, event_type, explained, event: event.as_deref().filter(|_| shows) })
            }
            Trace::Opened(session) => frame(kind, &SessionView { state: "opened", ..SessionView::of(at, session) }),
            Trace::Closed { session, code, reason } => {
                frame(kind, &SessionView { state: "closed", code: Some(*code), reason: Some(reason), ..SessionView::of(at, session) })
            }
            Trace::Received { session, body, outcome, refusal } => {
                let SessionHandle { id, user, .. } = &**session;
                let data = Some(body).filter(|_| shows);
                frame(kind, &MessageView { at, session: id, user: user.as_str(), outcome, refusal: refusal.as_ref(), data })
            }
            Trace::Asked(asked) => frame(kind, &PolicyView::of(at, asked)),
            Trace::Fault(fault) => frame(kind, &**fault),
            Trace::Reload(reloaded) => frame(kind, &ReloadView::of(at, reloaded)),
        }
    }
}

/// Returns when the server stops.
pub(super) async fn stops(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server is gone.
    drop(stopping.wait_for(|is_stopping| *is_stopping).await);
}

fn frame<T: Serialize>(name: &str, view: &T) -> Frame {
    // Views are structs of strings and numbers: serializing them can't fail. JSON has no line breaks.
    Frame::default().event(name).data(serde_json::to_string(view).unwrap_or_default())
}

#[derive(Serialize)]
struct EventView<'a> {
    at: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    #[serde(flatten)]
    explained: Explained,
    /// CloudEvents' structured form.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Event>,
}

#[derive(Serialize)]
struct SessionView<'a> {
    at: String,
    session: &'a str,
    user: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    subprotocol: Option<&'static str>,
    attributes: serde_json::Map<String, serde_json::Value>,
}

impl<'a> SessionView<'a> {
    fn of(at: String, session: &'a SessionHandle) -> SessionView<'a> {
        let SessionHandle { id, user, subprotocol, .. } = session;
        let attributes = super::attributes(session);
        SessionView { at, session: id, user: user.as_str(), state: "", code: None, reason: None, subprotocol: *subprotocol, attributes }
    }
}

#[derive(Serialize)]
struct MessageView<'a> {
    at: String,
    session: &'a str,
    user: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Body>,
}

/// What a sessions policy answered. The messages of its answer are events of their own.
#[derive(Serialize)]
struct PolicyView<'a> {
    at: String,
    session: &'a str,
    user: &'a str,
    policy: &'a str,
    version: &'a str,
    function: &'static str,
    took_us: u128,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a Refusal>,
    replies: usize,
    deliveries: usize,
    events: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closes: Option<&'a str>,
}

impl<'a> PolicyView<'a> {
    fn of(at: String, asked: &'a Asked) -> PolicyView<'a> {
        let outcome = match &asked.answer {
            Ok(Some(_)) => "answered",
            Ok(None) => "left",
            Err(CallError::Refused(_)) => "refused",
            Err(CallError::Fault(_)) => "faulted",
            Err(CallError::CircuitOpen) => "circuit_open",
        };
        let refusal = if let Err(CallError::Refused(refusal)) = &asked.answer { Some(refusal) } else { None };
        let response = asked.answer.as_ref().ok().and_then(Option::as_ref);
        PolicyView {
            at,
            session: &asked.session.id,
            user: asked.session.user.as_str(),
            policy: &asked.policy.name,
            version: &asked.policy.version,
            function: asked.function,
            took_us: asked.took.as_micros(),
            outcome,
            refusal,
            replies: response.map_or(0, |response| response.replies.len()),
            deliveries: response.map_or(0, |response| response.decision.deliveries.len()),
            events: response.iter().flat_map(|response| &response.drafts).map(|draft| draft.event_type.as_str()).collect(),
            closes: response.and_then(|response| response.close.as_deref()),
        }
    }
}

#[derive(Serialize)]
struct ReloadView<'a> {
    at: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    changed: &'a [String],
    #[serde(skip_serializing_if = "<[Rejected]>::is_empty")]
    rejected: &'a [Rejected],
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

impl<'a> ReloadView<'a> {
    fn of(at: String, reloaded: &'a Reloaded) -> ReloadView<'a> {
        let view = |outcome| ReloadView { at, outcome, revision: None, changed: &[], rejected: &[], detail: None };
        match reloaded {
            Reloaded::Swapped { revision, changed } => ReloadView { revision: Some(*revision), changed, ..view("swapped") },
            Reloaded::Refused(rejected) => ReloadView { rejected, ..view("refused") },
            Reloaded::RolledBack(rejected) => ReloadView { rejected, ..view("rolled_back") },
            Reloaded::Unreadable(detail) => ReloadView { detail: Some(detail), ..view("unreadable") },
        }
    }
}
