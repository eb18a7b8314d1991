//! A node's part in a cluster: it follows the stream, or it leads and writes it.

use std::collections::HashMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::request::Parts;
use http::{Request, Response, header};
use parking_lot::Mutex;
use serde::Serialize;
use serde_bytes::ByteBuf;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout, timeout_at};

use super::election::{Election, Heard};
use super::link::{self, FrameError, Link, Written};
use super::report::Reports;
use super::snapshot::Restored;
use super::wire::{self, Ask, Beat, HttpAsk, Report, Told};
use super::{NotAdmitted, NotForwarded, lead};
use crate::config::{self, Config};
use crate::dispatch::{Dispatch, session_policies};
use crate::metrics::{ClusterGauges, Metrics};
use crate::model::Model;
use crate::model::mailbox::{Head, Reader};
use crate::model::record::Change;
use crate::net::turns::aside_if;
use crate::registry::{Endings, SessionHandle};
use crate::store::codec::{self, Lead, Said};
use crate::store::stream::{Batch, Health, Stream};
use crate::store::{NotStored, Ticket};
use crate::types::close::Close;
use crate::types::delivery::Refusal;
use crate::types::event::Body;

/// How often a node that follows looks at its clocks.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The pause before a request is sent to the leader again, if nobody listens yet.
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// The pause before something is asked of NATS again.
const NATS_PAUSE: Duration = Duration::from_millis(250);

/// How long a stop waits for the next leader.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(2);

/// Attempts of a candidate. If none is answered, it waits to see who leads.
const LEAD_ATTEMPTS: usize = 3;

/// Bytes of a request's head and of its frame, about: what a body may have less than a message of NATS.
const REQUEST_HEAD_BYTES: usize = 16 << 10;

/// Bytes of a frame whose changes take long to absorb.
const LONG_FRAME_BYTES: usize = 64 << 10;

/// How a request of another node is answered.
#[derive(Clone)]
pub struct Answering(Arc<Answer>);

type Answer = dyn Fn(Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Bytes>> + Send>> + Send + Sync;

impl Answering {
    pub fn new<F: Future<Output = Response<Bytes>> + Send + 'static>(
        answer: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static,
    ) -> Answering {
        Answering(Arc::new(move |request| Box::pin(answer(request))))
    }

    pub(super) async fn answer(&self, request: Request<Bytes>) -> Response<Bytes> {
        (self.0)(request).await
    }
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answering")
    }
}

/// A link to a cluster, before the node's memory is made.
#[derive(Debug)]
pub struct Joined {
    link: Link,
    pub stream: Arc<Stream>,
    /// Distinguishes the cluster's mailboxes from those of others.
    pub store: u64,
    me: Arc<str>,
    snapshot: Option<Restored>,
}

/// Why the leader has not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTold {
    /// This node leads.
    Mine,
    Not(NotStored),
}

/// A session of this node that waits to be admitted.
#[derive(Debug)]
struct Joining {
    handle: Arc<SessionHandle>,
    admitted: oneshot::Sender<(Reader, Head)>,
}

#[derive(Debug)]
pub struct Member {
    pub(super) config: config::Cluster,
    node: String,
    /// This run of the node.
    me: Arc<str>,
    store: u64,
    pub(super) link: Link,
    pub(super) stream: Arc<Stream>,
    pub(super) model: Arc<Model>,
    metrics: Arc<Metrics>,
    dispatch: OnceLock<Arc<Dispatch>>,
    endings: Arc<Endings>,
    pub(super) reports: Reports,
    joining: Mutex<HashMap<Arc<str>, Joining>>,
    election: Mutex<Election>,
    leader: watch::Sender<Option<Lead>>,
    /// The last frame that was absorbed, or written.
    pub(super) absorbed: AtomicU64,
    /// What was the stream's last frame when that was last known, and since when it is not absorbed.
    known: Mutex<Known>,
    beats: Mutex<HashMap<String, (Beat, Instant)>>,
    /// Nodes that have sessions, and since when.
    seated: Mutex<HashMap<Arc<str>, Instant>>,
    /// Who is to lead next, since this node is about to stop.
    handing: Mutex<Option<Arc<str>>>,
    to_hand: Notify,
    /// Whether this node stops, so that it does not lead again.
    is_leaving: AtomicBool,
    fatal: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Known {
    last: u64,
    behind_since: Option<Instant>,
    apart_since: Option<Instant>,
}

/// The nodes as operators see them: `GET {base}/cluster`.
#[derive(Debug, Default, Serialize)]
pub struct View {
    /// What this node is called; absent for a server that is alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name of the node that leads, if there is one.
    pub leader: Option<String>,
    pub term: u64,
    /// The frame of the stream that this node has absorbed last.
    pub absorbed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nats: Option<String>,
    pub nodes: Vec<NodeView>,
}

#[derive(Debug, Serialize)]
pub struct NodeView {
    pub node: String,
    /// Identifies a run of the node.
    pub instance: String,
    pub version: String,
    pub leads: bool,
    pub absorbed: u64,
    /// Frames that it has not absorbed yet, as far as this node knows.
    pub behind: u64,
    /// The id of its policies, which should be the same on all nodes.
    pub policies: String,
    pub sessions: u64,
    /// How long ago it was heard of.
    pub heard_ms: u64,
}

impl Joined {
    /// Connects to NATS, and waits for it. Makes the stream if it is not there.
    ///
    /// # Errors
    /// The settings can't be used, or the stream is not one of this version.
    pub async fn open(config: &Config) -> anyhow::Result<Joined> {
        let link = Link::open(&config.cluster).await?;
        let node = node_name(&config.cluster);
        let me: Arc<str> = format!("{node}-{:08x}", uuid::Uuid::new_v4().as_fields().0).into();
        loop {
            match found(&link, &me, &config.cluster).await {
                Ok(Some((store, snapshot))) => return Ok(Joined { link, stream: Stream::new(&config.store), store, me, snapshot }),
                Ok(None) => {}
                Err(error) => tracing::warn!("the stream {} can't be read yet: {error:#}", link.stream()),
            }
            sleep(NATS_PAUSE).await;
        }
    }
}

/// Returns the store of the latest snapshot, or of the stream's first frame. Writes that frame if there is none.
async fn found(link: &Link, me: &Arc<str>, config: &config::Cluster) -> anyhow::Result<Option<(u64, Option<Restored>)>> {
    let extent = link.extent().await?;
    if extent.last == 0 {
        let mut records = Vec::new();
        codec::encode_lead(&Lead { term: 1, node: me.clone(), store: uuid::Uuid::new_v4().as_u64_pair().0 }, &mut records);
        // If it is stored, or another node's is, the next look finds it.
        link.write(link::framed(&records, 1, 1), 0, &format!("1-{me}-lead"), *config.attempt_deadline_ms).await;
        return Ok(None);
    }
    let first = if extent.first == 1 { store_of(&link.frame(1).await?)? } else { None };
    // There may be snapshots of an earlier stream of this name.
    let fits = |snapshot: &Restored| {
        (extent.first..=extent.last + 1).contains(&(snapshot.upto + 1)) && first.is_none_or(|first| first == snapshot.lead.store)
    };
    match Restored::latest(&link.snapshot_frames().await?).filter(fits) {
        Some(snapshot) => Ok(Some((snapshot.lead.store, Some(snapshot)))),
        None => match first {
            Some(store) => Ok(Some((store, None))),
            None => anyhow::bail!("it begins at frame {}, and no snapshot goes that far: make it anew (docs/cluster.md)", extent.first),
        },
    }
}

/// Returns the store that a frame names.
fn store_of(frame: &[u8]) -> anyhow::Result<Option<u64>> {
    let mut store = None;
    codec::decode(link::read(frame)?.records, |said| {
        if let Said::Lead(lead) = said {
            store = Some(lead.store);
        }
    })?;
    Ok(store)
}

/// Returns what the node is called.
fn node_name(config: &config::Cluster) -> String {
    if !config.node.is_empty() {
        return config.node.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "node".to_owned() } else { host.to_owned() }
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
            known: Mutex::default(),
            beats: Mutex::default(),
            seated: Mutex::default(),
            handing: Mutex::default(),
            to_hand: Notify::new(),
            is_leaving: AtomicBool::new(false),
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

    pub fn fatal(&self) -> Option<String> {
        self.fatal.lock().clone()
    }

    fn absorbed(&self) -> u64 {
        self.absorbed.load(Ordering::Acquire)
    }

    /// Notes that a node has sessions.
    pub(super) fn seat_taken(&self, node: &Arc<str>) {
        self.seated.lock().entry(node.clone()).or_insert_with(Instant::now);
    }

    /// Runs the node's part.
    pub(super) fn run(self: Arc<Member>, dispatch: Arc<Dispatch>, answering: Answering) -> JoinSet<()> {
        let _ = self.dispatch.set(dispatch.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().keep_telling());
        tasks.spawn(self.clone().say(dispatch.clone()));
        tasks.spawn(self.clone().listen());
        tasks.spawn(self.clone().keep_short());
        tasks.spawn(async move {
            loop {
                self.follow().await;
                self.lead(&dispatch, &answering).await;
            }
        });
        tasks
    }

    // Following.

    /// Absorbs the stream until this node leads.
    async fn follow(&self) {
        let mut tick = interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        'anew: loop {
            self.look();
            match self.link.extent().await {
                Ok(extent) if extent.first > self.absorbed() + 1 => {
                    tracing::error!("the stream was cut off behind what this node has absorbed: it begins afresh, from a snapshot");
                    self.stream.fail();
                    pending::<()>().await;
                }
                Ok(extent) if extent.last < self.absorbed() => {
                    tracing::error!(last = extent.last, absorbed = self.absorbed(), "the stream has lost frames: this node begins afresh");
                    self.stream.fail();
                    pending::<()>().await;
                }
                Ok(extent) => self.know(extent.last),
                Err(error) => {
                    tracing::debug!("the stream can't be asked: {error:#}");
                    sleep(NATS_PAUSE).await;
                    continue;
                }
            }
            let mut frames = match self.link.frames(self.absorbed() + 1).await {
                Ok(frames) => frames,
                Err(error) => {
                    tracing::warn!("the stream can't be read yet: {error:#}");
                    sleep(NATS_PAUSE).await;
                    continue;
                }
            };
            loop {
                // Both are cancel safe.
                tokio::select! {
                    frame = frames.next() => {
                        let Some(Ok(message)) = frame else { continue 'anew };
                        let Ok(sequence) = message.info().map(|info| info.stream_sequence) else { continue 'anew };
                        let next = self.absorbed() + 1;
                        if sequence < next {
                            continue;
                        }
                        if sequence > next {
                            tracing::warn!(sequence, next, "frames were passed over, and are read again");
                            continue 'anew;
                        }
                        match aside_if(message.payload.len() > LONG_FRAME_BYTES, || self.absorb(sequence, &message.payload)) {
                            Ok(Heard::Nothing) => {}
                            Ok(Heard::Leads) if self.is_leader() => return,
                            Ok(Heard::Leads) => self.model.mailboxes.tell_everything(),
                            Ok(Heard::MayLead) => {
                                if !self.is_leaving.load(Ordering::Relaxed) && self.stand().await {
                                    return;
                                }
                            }
                            Err(error) => self.give_up(format!("frame {sequence} of the stream can't be read: {error}")).await,
                        }
                    }
                    _ = tick.tick() => {
                        self.look();
                        let is_due = self.election.lock().is_due(Instant::now());
                        if is_due && self.link.is_connected() && !self.is_leaving.load(Ordering::Relaxed) {
                            if self.stand().await {
                                return;
                            }
                            continue 'anew;
                        }
                    }
                }
            }
        }
    }

    /// Makes the changes of a frame.
    fn absorb(&self, sequence: u64, payload: &[u8]) -> Result<Heard, FrameError> {
        let frame = link::read(payload)?;
        let mut said = Vec::new();
        codec::decode(frame.records, |one| said.push(one))?;
        let now = Instant::now();
        let mut heard = Heard::Nothing;
        let leads = said.iter().find_map(|said| if let Said::Lead(lead) = said { Some(lead.clone()) } else { None });
        let counts = {
            let mut election = self.election.lock();
            match &leads {
                Some(lead) => {
                    heard = election.lead(lead, now);
                    heard == Heard::Leads
                }
                None => election.counts(frame.term) && frame.number == sequence,
            }
        };
        if counts {
            self.election.lock().hear(now);
            for one in &said {
                match one {
                    Said::Change(change) => self.make(change),
                    Said::Lead(lead) => {
                        tracing::info!(term = lead.term, leader = &*lead.node, "a node leads");
                        self.metrics.cluster_elections.inc();
                        self.leader.send_replace(Some(lead.clone()));
                    }
                    Said::Yield(to) => {
                        heard = self.election.lock().give_over(to, now);
                        self.leader.send_replace(None);
                    }
                    Said::Beat | Said::Stop(_) | Said::Cleaned(_) => {}
                }
            }
        } else {
            tracing::warn!(sequence, term = frame.term, "a frame of a node that does not lead does not count");
        }
        self.absorbed.store(sequence, Ordering::Release);
        Ok(heard)
    }

    pub(super) fn make(&self, change: &Change) {
        let mut own = None;
        let claim = |seat: &crate::registry::Seat| {
            own = if seat.node == self.me { self.joining.lock().remove(&seat.session) } else { None };
            own.as_ref().map(|joining| joining.handle.clone())
        };
        let admitted = self.model.absorb(change, claim, &self.endings);
        match change {
            Change::Opened { seat, .. } => {
                self.seat_taken(&seat.node);
                let is_wanted = match (own, admitted) {
                    (Some(joining), Some(admitted)) => joining.admitted.send(admitted).is_ok(),
                    // The client has given up, or the same session was opened twice.
                    (None, _) => false,
                    (Some(_), None) => true,
                };
                if seat.node == self.me && !is_wanted {
                    self.reports.closed(&SessionHandle::elsewhere(seat, &self.endings), &self.me, 1006);
                }
            }
            Change::Gone { node } => {
                self.seated.lock().remove(node);
                if *node == self.me {
                    tracing::error!("the other nodes take this one to be gone: it begins afresh");
                    self.stream.fail();
                }
            }
            _ => {}
        }
    }

    /// Looks at the clocks: says whether the node is ready, and begins afresh after too long without NATS.
    fn look(&self) {
        let now = Instant::now();
        let mut known = self.known.lock();
        if self.link.is_connected() {
            known.apart_since = None;
        } else {
            known.apart_since.get_or_insert(now);
        }
        if self.absorbed() >= known.last {
            known.behind_since = None;
        }
        let lasts = |since: Option<Instant>, long: Duration| since.is_some_and(|since| now.duration_since(since) >= long);
        let (lag_max, alone) = (*self.config.lag_max_ms, *self.config.alone_ms);
        let is_behind = lasts(known.behind_since, lag_max);
        let health = if lasts(known.apart_since, lag_max) {
            Health::Unreachable
        } else if is_behind {
            Health::Behind
        } else if self.leader.borrow().is_none() || self.election.lock().is_due(now) {
            Health::NoLeader
        } else {
            Health::Well
        };
        if lasts(known.apart_since, alone) {
            tracing::error!(
                "no NATS for {} ms (cluster.alone_ms): the sockets are closed, in case other nodes still work",
                alone.as_millis()
            );
            self.stream.fail();
        }
        drop(known);
        self.stream.set(health);
    }

    /// Notes that the stream has this frame.
    fn know(&self, last: u64) {
        let mut known = self.known.lock();
        known.last = known.last.max(last);
        if self.absorbed() < known.last {
            known.behind_since.get_or_insert_with(Instant::now);
        }
    }

    /// Tries to lead. Returns whether this node does.
    async fn stand(&self) -> bool {
        let leads = self.try_to_lead().await;
        if !leads {
            self.election.lock().postpone(Instant::now());
        }
        leads
    }

    async fn try_to_lead(&self) -> bool {
        let extent = match self.link.extent().await {
            Ok(extent) => extent,
            Err(error) => {
                tracing::debug!("no election: {error:#}");
                return false;
            }
        };
        let last = self.absorbed();
        if extent.last != last {
            // The leader may be well, and this node be behind.
            self.know(extent.last);
            return false;
        }
        let lead = Lead { term: self.election.lock().term() + 1, node: self.me.clone(), store: self.store };
        let mut records = Vec::new();
        codec::encode_lead(&lead, &mut records);
        let (frame, id) = (link::framed(&records, last + 1, lead.term), format!("{}-{}-lead", lead.term, self.me));
        for _ in 0..LEAD_ATTEMPTS {
            match self.link.write(frame.clone(), last, &id, *self.config.attempt_deadline_ms).await {
                Written::Stored(sequence) if sequence == last + 1 => {
                    self.election.lock().lead(&lead, Instant::now());
                    self.absorbed.store(sequence, Ordering::Release);
                    self.metrics.cluster_elections.inc();
                    return true;
                }
                // Another one was faster.
                Written::Stored(_) | Written::Refused => return false,
                Written::Unanswered(why) => tracing::warn!("the record that this node leads is not stored yet: {why}"),
            }
        }
        false
    }

    fn is_leader(&self) -> bool {
        self.election.lock().leader().is_some_and(|lead| lead.node == self.me)
    }

    /// Ends the node for good: it can't go on.
    async fn give_up(&self, why: String) {
        tracing::error!("{why}");
        *self.fatal.lock() = Some(why);
        self.stream.fail();
        pending::<()>().await;
    }

    // Leading.

    /// Writes the stream until this node leads no longer.
    async fn lead(self: &Arc<Member>, dispatch: &Arc<Dispatch>, answering: &Answering) {
        let Some(lead) = self.election.lock().leader().cloned() else { return };
        tracing::info!(term = lead.term, "this node leads");
        let asks = match self.link.listen(self.lead_subject(lead.term)).await {
            Ok(asks) => asks,
            Err(error) => {
                tracing::error!("this node can't be asked: {error:#}");
                return;
            }
        };
        self.model.mailboxes.decide(true);
        self.stream.begin_to_lead();
        self.stream.set(Health::Well);
        self.leader.send_replace(Some(lead.clone()));
        let mut serving = JoinSet::new();
        serving.spawn(self.clone().serve(asks, dispatch.clone(), answering.clone()));
        serving.spawn(self.clone().end_sessions(dispatch.clone()));
        serving.spawn(self.clone().miss_nodes(dispatch.clone()));
        serving.spawn({
            let member = self.clone();
            // What was to be told to the leader before.
            async move {
                member.tell_waiting().await;
            }
        });
        let under_way = self.write_all(lead.term).await;
        self.model.mailboxes.decide(false);
        let waiting = self.stream.cease_to_lead();
        self.leader.send_replace(None);
        tracing::warn!(term = lead.term, "this node leads no longer");
        if under_way.is_some() || !waiting.is_empty() {
            tracing::error!("it has decided what was not stored, and nobody has seen: it begins afresh");
            self.stream.fail();
            pending::<()>().await;
        }
        self.election.lock().postpone(Instant::now());
    }

    /// Writes frame after frame. Returns the one that could not be written, if there is one.
    async fn write_all(&self, term: u64) -> Option<Batch> {
        let mut beat = Instant::now() + *self.config.beat_ms;
        loop {
            if let Some(batch) = self.stream.take() {
                if !self.write(&batch.records, term).await {
                    return Some(batch);
                }
                self.show(batch);
                beat = Instant::now() + *self.config.beat_ms;
                continue;
            }
            let handing = self.handing.lock().take();
            if let Some(next) = handing {
                return self.yield_to(&next, term).await;
            }
            // All are cancel safe.
            tokio::select! {
                () = self.stream.more() => {}
                () = self.to_hand.notified() => {}
                () = sleep_until(beat) => {
                    let mut records = Vec::new();
                    codec::encode_beat(&mut records);
                    if !self.write(&records, term).await {
                        return None;
                    }
                    beat = Instant::now() + *self.config.beat_ms;
                }
            }
        }
    }

    /// Shows readers what is stored, and answers those who wait.
    fn show(&self, batch: Batch) {
        self.model.mailboxes.show(batch.commit, batch.users.iter());
        self.stream.stored(batch);
    }

    /// Writes what waits, and that another node may lead.
    async fn yield_to(&self, next: &Arc<str>, term: u64) -> Option<Batch> {
        self.leader.send_replace(None);
        for batch in self.stream.cease_to_lead() {
            if !self.write(&batch.records, term).await {
                return Some(batch);
            }
            self.show(batch);
        }
        let mut records = Vec::new();
        codec::encode_yield(next, &mut records);
        if self.write(&records, term).await {
            self.election.lock().give_over(next, Instant::now());
        }
        None
    }

    /// Writes a frame, and returns whether it is stored: otherwise this node leads no longer.
    async fn write(&self, records: &[u8], term: u64) -> bool {
        let last = self.absorbed();
        let (frame, id) = (link::framed(records, last + 1, term), format!("{term}-{}-{}", self.me, last + 1));
        let began = Instant::now();
        let mut has_said = false;
        loop {
            let written = self.link.write(frame.clone(), last, &id, *self.config.attempt_deadline_ms).await;
            match written {
                Written::Stored(sequence) if sequence == last + 1 => break,
                Written::Stored(_) => return false,
                Written::Refused => match self.link.frame(last + 1).await {
                    // Its id was forgotten since it was stored.
                    Ok(stored) if stored == frame => break,
                    Ok(_) => return false,
                    Err(error) => tracing::debug!("it is not known yet who has written: {error:#}"),
                },
                Written::Unanswered(why) => {
                    if !has_said {
                        has_said = true;
                        tracing::warn!("a frame is not stored yet, and is sent again: {why}");
                    }
                    if began.elapsed() >= *self.config.lag_max_ms {
                        self.stream.set(Health::Unreachable);
                    }
                    if began.elapsed() >= *self.config.alone_ms {
                        tracing::error!("NATS has stored nothing for {} ms (cluster.alone_ms)", self.config.alone_ms.as_millis());
                        self.stream.fail();
                        return false;
                    }
                    // No loop without a pause, however fast NATS refuses.
                    sleep(ASK_PAUSE).await;
                }
            }
        }
        self.absorbed.store(last + 1, Ordering::Release);
        self.stream.set(Health::Well);
        self.metrics.store_commits.inc();
        self.metrics.store_bytes.inc_by(frame.len() as u64);
        self.metrics.cluster_commit_seconds.observe(began.elapsed().as_secs_f64());
        true
    }

    fn lead_subject(&self, term: u64) -> String {
        self.link.subject(&format!("lead.{term}"))
    }

    /// Answers other nodes.
    async fn serve(self: Arc<Member>, mut asks: async_nats::Subscriber, dispatch: Arc<Dispatch>, answering: Answering) {
        let permits = Arc::new(Semaphore::new(self.config.asks_max.get()));
        let mut under_way = JoinSet::new();
        while let Some(ask) = asks.next().await {
            while under_way.try_join_next().is_some() {}
            let Some(reply) = ask.reply.clone() else { continue };
            // Closed never.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let (member, dispatch, answering) = (self.clone(), dispatch.clone(), answering.clone());
            under_way.spawn(async move {
                let mut answer = wire::encode(&member.answer(&dispatch, &answering, &ask.payload).await);
                if answer.len() > member.link.message_bytes_max() {
                    answer = wire::encode(&Told::Unavailable("the answer has more bytes than NATS takes (max_payload)".to_owned()));
                }
                member.link.tell(reply.to_string(), answer.into()).await;
                drop(permit);
            });
        }
    }

    /// Has other nodes close sessions that this one has ended.
    async fn end_sessions(self: Arc<Member>, dispatch: Arc<Dispatch>) {
        loop {
            for (user, session, why) in self.endings.take().await {
                drop(lead::note_closed(&dispatch, &user, &session, Some(why)));
            }
        }
    }

    /// Removes the sessions of nodes that are gone.
    async fn miss_nodes(self: Arc<Member>, dispatch: Arc<Dispatch>) {
        let (began, patience) = (Instant::now(), *self.config.gone_after_ms);
        let mut tick = interval(*self.config.beat_ms);
        loop {
            tick.tick().await;
            let beats: HashMap<String, Instant> =
                self.beats.lock().iter().map(|(instance, (_, heard))| (instance.clone(), *heard)).collect();
            let is_gone = |node: &Arc<str>, since: Instant| {
                let heard = beats.get(&**node).copied().unwrap_or(since).max(since).max(began);
                *node != self.me && heard.elapsed() >= patience
            };
            let gone: Vec<Arc<str>> =
                self.seated.lock().iter().filter(|(node, since)| is_gone(node, **since)).map(|(node, _)| node.clone()).collect();
            for node in gone {
                let sessions = lead::gone(&dispatch, &node);
                self.seated.lock().remove(&node);
                tracing::warn!(node = &*node, sessions, "a node was not heard of for {} ms: its sessions are over", patience.as_millis());
            }
        }
    }

    /// Lets another node lead. Waits until one does, for a short time.
    pub(super) async fn hand_over(&self) {
        self.stream.close();
        self.is_leaving.store(true, Ordering::Relaxed);
        if self.follows() {
            return;
        }
        let fresh = *self.config.beat_ms * 5 / 2;
        let next = {
            let beats = self.beats.lock();
            let others = beats.values().filter(|(beat, heard)| *beat.instance != *self.me && heard.elapsed() < fresh);
            others.max_by_key(|(beat, _)| beat.absorbed).map(|(beat, _)| beat.instance.as_str().into())
        };
        let Some(next) = next else { return };
        let began = Instant::now();
        *self.handing.lock() = Some(next);
        self.to_hand.notify_one();
        let mut leader = self.leader.subscribe();
        let another = leader.wait_for(|lead| lead.as_ref().is_some_and(|lead| lead.node != self.me));
        match timeout(HAND_OVER_DEADLINE, another).await {
            Ok(_) => tracing::info!(took_ms = began.elapsed().as_millis() as u64, "another node leads"),
            Err(_) => tracing::warn!("no other node leads yet"),
        }
    }

    /// Tells the leader what it has to know, and waits until what this node has decided is stored, for a short time.
    pub(super) async fn leave(&self) {
        let all = async {
            while self.follows() && !self.tell_waiting().await {
                sleep(ASK_PAUSE).await;
            }
            while !self.follows() && self.stream.pending_bytes() > 0 {
                sleep(ASK_PAUSE).await;
            }
        };
        if timeout(HAND_OVER_DEADLINE, all).await.is_err() {
            tracing::warn!("the leader does not know all: it takes this node to be gone");
        }
    }

    // What is asked of the leader.

    /// Asks the leader, and waits for one if there is none.
    pub(super) async fn ask(&self, ask: &Ask, patience: Duration) -> Result<Told, NotTold> {
        let message = Bytes::from(wire::encode(ask));
        let deadline = Instant::now() + patience;
        let mut leader = self.leader.subscribe();
        loop {
            let lead = match timeout_at(deadline, leader.wait_for(Option::is_some)).await {
                Ok(Ok(lead)) => lead.clone(),
                Ok(Err(_)) | Err(_) => None,
            };
            let Some(lead) = lead else { return Err(NotTold::Not(self.why_not())) };
            if lead.node == self.me {
                return Err(NotTold::Mine);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.link.ask(self.lead_subject(lead.term), message.clone(), left).await {
                Ok(Some(told)) => match wire::decode(&told) {
                    Some(Told::NotMe) => {}
                    Some(told) => return Ok(told),
                    None => return Err(NotTold::Not(NotStored::NoLeader)),
                },
                Ok(None) => {}
                Err(why) => {
                    tracing::debug!("the leader has not answered: {why}");
                    return Err(NotTold::Not(self.why_not()));
                }
            }
            if left.is_zero() {
                return Err(NotTold::Not(self.why_not()));
            }
            // It has stopped, or it does not listen yet.
            sleep(ASK_PAUSE).await;
        }
    }

    fn why_not(&self) -> NotStored {
        if self.link.is_connected() { NotStored::NoLeader } else { NotStored::Unreachable }
    }

    /// Does here what was to be told to the leader, since this node leads now.
    pub(super) async fn tell_myself(&self, reports: Vec<Report>) {
        if let Some(dispatch) = self.dispatch.get() {
            // There are no requests among reports.
            let nobody = Answering::new(|_| async { Response::new(Bytes::new()) });
            drop(self.answer(dispatch, &nobody, &wire::encode(&Ask::Reports(reports))).await);
        }
    }

    pub(super) async fn open(&self, dispatch: &Dispatch, handle: &Arc<SessionHandle>) -> Result<(Reader, Head), NotAdmitted> {
        let deadline = Instant::now() + *self.config.ask_deadline_ms;
        loop {
            if !self.follows() {
                let (reader, head, ticket) = lead::admit(dispatch, handle, &self.me)?;
                ticket.stored().await.map_err(NotAdmitted::NotNow)?;
                return Ok((reader, head));
            }
            let (admitted, admission) = oneshot::channel();
            self.joining.lock().insert(handle.id.clone(), Joining { handle: handle.clone(), admitted });
            // Whoever gives up is no longer waited for.
            let _waits = Waits { member: self, session: &handle.id };
            let ask = Ask::Open(wire::seat(handle.seat(&self.me)));
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ask(&ask, left).await {
                Ok(Told::Done) => {
                    let absorbed = timeout_at(deadline, admission).await;
                    return absorbed.ok().and_then(Result::ok).ok_or(NotAdmitted::NotNow(NotStored::CatchingUp));
                }
                Ok(Told::Close(code, text)) => return Err(Close::of(code, &text).unwrap_or(Close::Restart).into()),
                Ok(Told::Unavailable(why)) => {
                    tracing::debug!("a session is not admitted: {why}");
                    return Err(NotAdmitted::NotNow(NotStored::NoLeader));
                }
                Err(NotTold::Mine) => {}
                Err(NotTold::Not(why)) => return Err(NotAdmitted::NotNow(why)),
                Ok(_) => return Err(NotAdmitted::NotNow(NotStored::NoLeader)),
            }
        }
    }

    pub(super) async fn received(&self, dispatch: &Dispatch, handle: &Arc<SessionHandle>, body: &Body) -> Result<Ticket, Refusal> {
        let is_for_policies = dispatch.policies.current().sessions().next().is_some();
        if !is_for_policies || !self.follows() {
            return session_policies::received(dispatch, handle, body);
        }
        let ask = Ask::Received { user: handle.user.to_string(), session: handle.id.to_string(), body: wire::Spoken::of(body) };
        let unavailable = |why: String| Refusal { code: "unavailable".into(), detail: why };
        match self.ask(&ask, *self.config.message_deadline_ms).await {
            Ok(Told::Done) => Ok(Ticket::none()),
            Ok(Told::Refused(code, detail)) => Err(Refusal { code, detail }),
            Ok(Told::Unavailable(why)) => Err(unavailable(why)),
            Err(NotTold::Mine) => session_policies::received(dispatch, handle, body),
            Err(NotTold::Not(why)) => Err(unavailable(why.to_string())),
            Ok(_) => Err(unavailable(NotStored::NoLeader.to_string())),
        }
    }

    pub(super) fn closed(&self, dispatch: &Dispatch, reader: &Reader, code: u16) {
        let handle = reader.handle();
        if self.follows() {
            reader.leave();
            self.reports.closed(handle, &self.me, code);
            return;
        }
        session_policies::closed(dispatch, handle, code);
        reader.leave();
        drop(lead::note_closed(dispatch, &handle.user, &handle.id, None));
        dispatch.tell_of_session(handle, Some(code));
    }

    pub(super) async fn forward(&self, head: &Parts, body: &Bytes) -> Result<Option<Response<Bytes>>, NotForwarded> {
        if !self.follows() {
            return Ok(None);
        }
        let most = self.link.message_bytes_max().saturating_sub(REQUEST_HEAD_BYTES);
        if body.len() > most {
            return Err(NotForwarded::TooLarge(most));
        }
        // Who sent it was checked here, and what is said of the connection is this one's.
        let own =
            [header::AUTHORIZATION, header::COOKIE, header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH];
        let headers = head.headers.iter().filter(|(name, _)| !own.contains(name));
        let ask = Ask::Http(HttpAsk {
            method: head.method.to_string(),
            uri: head.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            headers: headers.map(|(name, value)| (name.to_string(), ByteBuf::from(value.as_bytes()))).collect(),
            body: ByteBuf::from(body.to_vec()),
        });
        let not_stored = |why| Err(NotForwarded::NotStored(why));
        match self.ask(&ask, *self.config.ask_deadline_ms).await {
            Ok(Told::Http { status, headers, body }) => {
                self.metrics.cluster_forwarded.inc();
                let mut response = Response::builder().status(status);
                for (name, value) in &headers {
                    response = response.header(name.as_str(), value.as_slice());
                }
                match response.body(body.into_vec().into()) {
                    Ok(response) => Ok(Some(response)),
                    Err(_) => not_stored(NotStored::NoLeader),
                }
            }
            Err(NotTold::Mine) => Ok(None),
            Err(NotTold::Not(why)) => not_stored(why),
            Ok(Told::Unavailable(why)) => {
                tracing::warn!("a request was not answered by the leader: {why}");
                not_stored(NotStored::NoLeader)
            }
            Ok(_) => not_stored(NotStored::NoLeader),
        }
    }

    // Beats.

    /// Says each second that this node is there.
    async fn say(self: Arc<Member>, dispatch: Arc<Dispatch>) {
        let mut tick = interval(*self.config.beat_ms);
        loop {
            tick.tick().await;
            let beat = self.beat(&dispatch);
            self.beats.lock().retain(|_, (_, heard)| heard.elapsed() < *self.config.alone_ms);
            if self.link.is_connected() {
                self.link.tell(self.link.subject("beat"), wire::encode(&beat).into()).await;
            }
        }
    }

    fn beat(&self, dispatch: &Dispatch) -> Beat {
        Beat {
            instance: self.me.to_string(),
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            absorbed: self.absorbed(),
            term: self.election.lock().term(),
            leads: !self.follows(),
            policies: dispatch.policies.current().id.to_string(),
            sessions: self.model.mailboxes.totals().sessions as u64,
        }
    }

    /// Hears of the other nodes.
    async fn listen(self: Arc<Member>) {
        loop {
            match self.link.listen(self.link.subject("beat")).await {
                Ok(mut beats) => {
                    while let Some(beat) = beats.next().await {
                        let Some(beat) = wire::decode::<Beat>(&beat.payload) else { continue };
                        self.know(beat.absorbed);
                        self.beats.lock().insert(beat.instance.clone(), (beat, Instant::now()));
                    }
                }
                Err(error) => tracing::warn!("other nodes can't be heard: {error:#}"),
            }
            sleep(NATS_PAUSE).await;
        }
    }

    pub(super) fn view(&self) -> View {
        let leader = self.leader.borrow().clone();
        let last = self.known.lock().last.max(self.absorbed());
        let beats = self.beats.lock();
        let name_of = |instance: &str| beats.get(instance).map_or_else(|| instance.to_owned(), |(beat, _)| beat.node.clone());
        let leader = leader.map(|lead| if lead.node == self.me { self.node.clone() } else { name_of(&lead.node) });
        let mut nodes: Vec<NodeView> = beats
            .values()
            .map(|(beat, heard)| NodeView {
                node: beat.node.clone(),
                instance: beat.instance.clone(),
                version: beat.version.clone(),
                leads: beat.leads,
                absorbed: beat.absorbed,
                behind: last.saturating_sub(beat.absorbed),
                policies: beat.policies.clone(),
                sessions: beat.sessions,
                heard_ms: u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
            .collect();
        nodes.sort_by(|a, b| (&a.node, &a.instance).cmp(&(&b.node, &b.instance)));
        View {
            node: Some(self.node.clone()),
            name: Some(self.config.name.clone()),
            leader,
            term: self.election.lock().term(),
            absorbed: self.absorbed(),
            nats: Some(self.link.client.server_info().version),
            nodes,
        }
    }

    pub(super) fn gauges(&self) -> ClusterGauges {
        let behind = self.known.lock().last.saturating_sub(self.absorbed());
        ClusterGauges {
            leads: !self.follows(),
            term: self.election.lock().term(),
            absorbed: self.absorbed(),
            nodes: self.beats.lock().len(),
            behind,
            pending_bytes: self.stream.pending_bytes(),
        }
    }
}

/// A session's place among those that wait to be admitted. Dropping it gives the place up.
struct Waits<'a> {
    member: &'a Member,
    session: &'a Arc<str>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.member.joining.lock().remove(self.session);
    }
}
