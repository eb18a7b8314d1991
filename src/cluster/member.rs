//! A node's part in a cluster: what it knows, and its loop. It follows the stream ([`super::follow`]), or it leads and writes it
//! ([`super::write`]).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::election::Election;
use super::join::{Joined, node_name};
use super::link::Link;
use super::report::Reports;
use super::source::{Fate, Taken};
use super::wire::Beat;
use crate::config::{self, Config};
use crate::dispatch::Dispatch;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::mailbox::{Head, Reader};
use crate::registry::{Endings, SessionHandle};
use crate::store::codec::Lead;
use crate::store::stream::Stream;

/// RFC 6455's code for a connection that ended without a close frame.
pub(super) const LOST: u16 = 1006;

/// The pause before a request is sent to the leader again, if nobody listens yet.
pub(super) const ASK_PAUSE: Duration = Duration::from_millis(20);

/// The pause before something is asked of NATS again.
pub(super) const NATS_PAUSE: Duration = Duration::from_millis(250);

/// How long a stop waits for the next leader.
pub(super) const HAND_OVER_DEADLINE: Duration = Duration::from_secs(2);

/// What will be there.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What answers other nodes, and publishes events from NATS.
pub trait Answers: Send + Sync {
    /// Answers a request, of which the sender was checked.
    fn answer(&self, request: Request<Bytes>) -> Boxed<Response<Bytes>>;

    /// Answers frames of a producers' stream, in their order.
    fn frames(&self, frames: Vec<Bytes>) -> Boxed<Vec<Vec<u8>>>;

    /// Publishes events in their order, and returns what became of each.
    fn publish(&self, taken: Vec<Taken>) -> Boxed<Vec<Fate>>;
}

#[derive(Clone)]
pub struct Answering(pub Arc<dyn Answers>);

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answering")
    }
}
/// A session of this node that waits to be admitted.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) handle: Arc<SessionHandle>,
    pub(super) admitted: oneshot::Sender<(Reader, Head)>,
}

#[derive(Debug)]
pub struct Member {
    pub(super) config: config::Cluster,
    pub(super) node: String,
    /// This run of the node.
    pub(super) me: Arc<str>,
    pub(super) store: u64,
    pub(super) link: Link,
    pub(super) stream: Arc<Stream>,
    pub(super) model: Arc<Model>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) dispatch: OnceLock<Arc<Dispatch>>,
    pub(super) endings: Arc<Endings>,
    pub(super) reports: Reports,
    pub(super) joining: Mutex<HashMap<Arc<str>, Joining>>,
    pub(super) election: Mutex<Election>,
    pub(super) leader: watch::Sender<Option<Lead>>,
    /// The last frame that was absorbed, or written.
    pub(super) absorbed: AtomicU64,
    /// Held while a frame is absorbed.
    pub(super) absorbing: Mutex<()>,
    /// Held while a digest is made.
    pub(super) digesting: tokio::sync::Mutex<()>,
    /// What was the stream's last frame when that was last known, and since when it is not absorbed.
    pub(super) known: Mutex<Known>,
    pub(super) beats: Mutex<HashMap<String, (Beat, Instant)>>,
    /// Nodes that have sessions, and since when.
    pub(super) with_sessions: Mutex<HashMap<Arc<str>, Instant>>,
    /// Who is to lead next, since this node is about to stop.
    pub(super) handing: Mutex<Option<Arc<str>>>,
    pub(super) to_hand: Notify,
    /// Whether this node stops, so that it does not lead again.
    pub(super) is_leaving: AtomicBool,
    /// Held while policies are agreed on, and while components are removed.
    pub(super) tending: tokio::sync::Mutex<()>,
    pub(super) fatal: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) last: u64,
    pub(super) behind_since: Option<Instant>,
    pub(super) apart_since: Option<Instant>,
}
impl Member {
    pub fn new(joined: Joined, config: &Config, model: Arc<Model>, metrics: Arc<Metrics>) -> Arc<Member> {
        let Joined { link, stream, store, me, snapshot } = joined;
        // Until it leads.
        model.mailboxes.decide(false);
        let member = Arc::new(Member {
            config: config.cluster.clone(),
            node: node_name(&config.cluster),
            election: Mutex::new(Election::new(me.clone(), &config.cluster, Instant::now())),
            me,
            store,
            link,
            stream,
            model,
            metrics,
            dispatch: OnceLock::new(),
            endings: Arc::default(),
            reports: Reports::default(),
            joining: Mutex::default(),
            leader: watch::channel(None).0,
            absorbed: AtomicU64::new(0),
            absorbing: Mutex::default(),
            digesting: tokio::sync::Mutex::default(),
            known: Mutex::default(),
            beats: Mutex::default(),
            with_sessions: Mutex::default(),
            handing: Mutex::default(),
            to_hand: Notify::new(),
            is_leaving: AtomicBool::new(false),
            tending: tokio::sync::Mutex::default(),
            fatal: Mutex::default(),
        });
        if let Some(snapshot) = snapshot {
            member.restore(snapshot);
        }
        member
    }

    /// Begins after this frame, when this node led.
    pub(super) fn begin_at(&self, upto: u64, lead: &Lead) {
        self.election.lock().lead(lead, Instant::now());
        self.leader.send_replace(Some(lead.clone()));
        self.absorbed.store(upto, Ordering::Release);
    }

    /// Returns who leads, if it is known.
    pub(super) fn lead_now(&self) -> Option<Lead> {
        self.election.lock().leader().cloned()
    }

    /// Returns what this run of the node is called.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.me
    }

    pub(super) fn endings(&self) -> &Arc<Endings> {
        &self.endings
    }

    pub fn follows(&self) -> bool {
        !self.stream.leads()
    }

    /// Returns whether this node has absorbed what is in the stream, as far as it knows.
    pub fn has_caught_up(&self) -> bool {
        let last = self.known.lock().last;
        last > 0 && self.absorbed() >= last
    }

    pub fn fatal(&self) -> Option<String> {
        self.fatal.lock().clone()
    }

    pub(super) fn absorbed(&self) -> u64 {
        self.absorbed.load(Ordering::Acquire)
    }

    /// Notes that a node has sessions.
    pub(super) fn note_sessions_of(&self, node: &Arc<str>) {
        self.with_sessions.lock().entry(node.clone()).or_insert_with(Instant::now);
    }

    /// Runs the node's part.
    pub(super) fn run(self: Arc<Member>, dispatch: Arc<Dispatch>, answering: Answering) -> JoinSet<()> {
        let _ = self.dispatch.set(dispatch.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().keep_telling());
        tasks.spawn(self.clone().say(dispatch.clone()));
        tasks.spawn(self.clone().listen());
        tasks.spawn(self.clone().keep_short());
        tasks.spawn(self.clone().look_at_flushing());
        tasks.spawn(async move {
            loop {
                self.follow().await;
                self.lead(&dispatch, &answering).await;
            }
        });
        tasks
    }
}
