//! Mailboxes: a delivery is appended to its user's log and the user's sessions are woken. A session is a cursor.
//!
//! This is the one path: live, slow, resumed and replayed messages are all read by [`Reader::take`]. A full log has a stated
//! outcome ([`Log::make_room`]), and each message that is not read is counted under its reason.
//!
//! Locks: a shard's lock is taken before a mailbox's lock, and neither is held while anything waits.

mod log;
mod reader;

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::config::{self, TooMany};
use crate::metrics::Metrics;
use crate::types::close::Close;
use crate::types::delivery::{Message, Terms};
use crate::types::drop_reason::DropReason;
use crate::types::event::UserId;
use log::{Log, Removed};
pub use reader::Reader;

/// Enough that two cores seldom meet at one lock.
const SHARDS: usize = 64;

/// One part in so many of the total bounds is for users who are connected; the rest is for all.
const CONNECTED_SHARE: usize = 10;

/// All users' mailboxes. One exists only while it holds something, has a session, or its reader may resume.
#[derive(Debug)]
pub struct Mailboxes {
    shards: Box<[Shard]>,
    hasher: std::hash::RandomState,
    limits: config::Mailboxes,
    per_user_max: usize,
    too_many: TooMany,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    sessions: AtomicUsize,
    metrics: Arc<Metrics>,
}

type Shard = Mutex<HashMap<UserId, Arc<Mailbox>>>;

#[derive(Debug)]
struct Mailbox {
    /// Names this life of the mailbox: a seq means nothing in another one.
    epoch: String,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    log: Log,
    /// Most users have one session.
    handles: SmallVec<[Registration; 1]>,
    /// A `signalpost.v1` session has read here, so that its client may resume.
    resumable: bool,
    /// When the last session left.
    vacant_since: Instant,
}

/// A session's place in its user's mailbox.
#[derive(Debug)]
struct Registration {
    handle: Arc<SessionHandle>,
    cursor: u64,
    /// Where the session began to read.
    start: u64,
}

/// What a mailbox knows of a session, and how it calls it.
#[derive(Debug)]
pub struct SessionHandle {
    pub id: Arc<str>,
    pub user: UserId,
    pub subprotocol: Option<&'static str>,
    pub attributes: Vec<(String, String)>,
    pub opened: SystemTime,
    wake: Wake,
    ending: OnceLock<Close>,
}

/// Wakes one task. `Notify` would do for many: it keeps a list of those who wait.
#[derive(Debug, Default)]
struct Wake {
    is_woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake {
    fn wake(&self) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_woken.load(Ordering::Acquire) {
            self.task.register(context.waker());
        }
        // Again, since it may have been woken before the task was registered.
        if self.is_woken.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl SessionHandle {
    pub fn new(user: UserId, subprotocol: Option<&'static str>, attributes: Vec<(String, String)>) -> Arc<SessionHandle> {
        Arc::new(SessionHandle {
            id: uuid::Uuid::new_v4().simple().to_string().into(),
            user,
            subprotocol,
            attributes,
            opened: SystemTime::now(),
            wake: Wake::default(),
            ending: OnceLock::new(),
        })
    }

    /// Asks the session to close; the first reason stands.
    pub fn end(&self, close: Close) {
        let _ = self.ending.set(close);
        self.wake.wake();
    }

    /// Ready when there may be something to do. One task polls this.
    pub fn poll_woken(&self, context: &mut Context<'_>) -> Poll<()> {
        self.wake.poll(context)
    }

    pub fn ending(&self) -> Option<&Close> {
        self.ending.get()
    }

    /// The value of an attribute; `user` is the user's id.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        if name == "user" {
            return Some(self.user.as_str());
        }
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What became of one delivery to one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    Posted { seq: u64 },
    Dropped(DropReason),
}

/// A user's presence, for people and programs that ask.
#[derive(Debug)]
pub struct Presence {
    pub sessions: Vec<(Arc<SessionHandle>, u64)>,
    pub messages: usize,
    pub bytes: usize,
    pub last: u64,
    pub epoch: Option<String>,
}

/// Sums over all mailboxes.
#[derive(Debug, PartialEq, Eq)]
pub struct Totals {
    pub mailboxes: usize,
    pub messages: usize,
    pub bytes: usize,
    pub sessions: usize,
}

impl Mailboxes {
    pub fn new(limits: config::Mailboxes, sockets: &config::Sockets, metrics: Arc<Metrics>) -> Arc<Mailboxes> {
        Arc::new(Mailboxes {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: std::hash::RandomState::new(),
            limits,
            per_user_max: sockets.per_user_max,
            too_many: sockets.too_many,
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            metrics,
        })
    }

    /// Appends a message to a user's log and wakes their sessions. `session`: only that one may read it.
    pub fn post(&self, user: &UserId, session: Option<&Arc<str>>, message: &Arc<Message>, terms: &Terms) -> Posted {
        let keep = terms.keep.unwrap_or(Duration::MAX).min(self.keep_max());
        let mut shard = self.shard(user).lock();
        let mailbox = match shard.get(user) {
            Some(mailbox) => mailbox.clone(),
            None if keep.is_zero() || session.is_some() => return self.dropped(DropReason::Away),
            None => shard.entry(user.clone()).or_insert_with(Mailbox::new).clone(),
        };
        let mut content = mailbox.content.lock();
        drop(shard);
        let posted = self.append(&mut content, session, message, terms, keep);
        if let Posted::Posted { .. } = posted {
            for taken in &content.handles {
                taken.handle.wake.wake();
            }
        }
        posted
    }

    /// Foretells what [`Mailboxes::post`] would do for a reader who may be away; that a mailbox is full shows only when it is done.
    pub fn foresee(&self, user: &UserId, session: Option<&Arc<str>>, terms: &Terms) -> Posted {
        let gone = session.is_some_and(|session| !self.has_session(user, session));
        let unkept = terms.keep.is_some_and(|keep| keep.is_zero()) && self.sessions_of(user.as_str()) == 0;
        if gone || unkept { Posted::Dropped(DropReason::Away) } else { Posted::Posted { seq: 0 } }
    }

    /// Opens a session on its user's mailbox.
    ///
    /// # Errors
    /// The user has as many sessions as the configuration allows, and it says that the newest is refused.
    pub fn open(self: &Arc<Self>, handle: Arc<SessionHandle>) -> Result<Reader, Close> {
        let mut shard = self.shard(&handle.user).lock();
        let mailbox = shard.entry(handle.user.clone()).or_insert_with(Mailbox::new).clone();
        let mut content = mailbox.content.lock();
        drop(shard);
        while content.handles.len() >= self.per_user_max {
            if self.too_many == TooMany::RefuseNewest {
                return Err(Close::TooManySessions);
            }
            content.handles.remove(0).handle.end(Close::Replaced);
            self.sessions.fetch_sub(1, Ordering::Relaxed);
        }
        // What was kept is for whoever comes first; another device sees what comes from now on.
        let cursor = if content.handles.is_empty() { content.log.delivered() } else { content.log.last() };
        content.resumable |= handle.subprotocol.is_some();
        content.handles.push(Registration { handle: handle.clone(), cursor, start: cursor });
        self.sessions.fetch_add(1, Ordering::Relaxed);
        handle.wake.wake();
        drop(content);
        Ok(Reader { mailboxes: self.clone(), mailbox, handle })
    }

    /// The number of a user's open sessions.
    pub fn sessions_of(&self, user: &str) -> usize {
        let Some(mailbox) = self.find(user) else { return 0 };
        mailbox.content.lock().handles.len()
    }

    pub fn has_session(&self, user: &UserId, session: &str) -> bool {
        self.find(user.as_str()).is_some_and(|mailbox| mailbox.content.lock().handles.iter().any(|taken| *taken.handle.id == *session))
    }

    pub fn presence(&self, user: &UserId) -> Presence {
        let Some(mailbox) = self.find(user.as_str()) else {
            return Presence { sessions: Vec::new(), messages: 0, bytes: 0, last: 0, epoch: None };
        };
        let content = mailbox.content.lock();
        Presence {
            sessions: content.handles.iter().map(|taken| (taken.handle.clone(), taken.cursor)).collect(),
            messages: content.log.len(),
            bytes: content.log.bytes(),
            last: content.log.last(),
            epoch: Some(mailbox.epoch.clone()),
        }
    }

    /// Ends a user's sessions, and says how many there were.
    pub fn end_sessions(&self, user: &UserId, close: &Close) -> usize {
        let Some(mailbox) = self.find(user.as_str()) else { return 0 };
        let content = mailbox.content.lock();
        for taken in &content.handles {
            taken.handle.end(close.clone());
        }
        content.handles.len()
    }

    /// Asks a part of the sessions to close, as [`Mailboxes::sweep`] does; how many they were.
    pub fn end_part(&self, round: usize, close: &Close) -> usize {
        let Some(shard) = self.shards.get(round % SHARDS) else { return 0 };
        let mut ended = 0;
        for mailbox in shard.lock().values() {
            let content = mailbox.content.lock();
            content.handles.iter().for_each(|taken| taken.handle.end(close.clone()));
            ended += content.handles.len();
        }
        ended
    }

    /// Every user with an open session.
    pub fn everyone(&self) -> Vec<UserId> {
        let mut users = Vec::new();
        self.each(|user, content| {
            if !content.handles.is_empty() {
                users.push(user.clone());
            }
        });
        users
    }

    pub fn totals(&self) -> Totals {
        Totals {
            mailboxes: self.shards.iter().map(|shard| shard.lock().len()).sum(),
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            sessions: self.sessions.load(Ordering::Relaxed),
        }
    }

    /// Forgets what was kept for long enough, a part of the users at each call: the `round`th of [`Mailboxes::SWEEP_ROUNDS`].
    pub fn sweep(&self, round: usize) {
        let Some(shard) = self.shards.get(round % SHARDS) else { return };
        shard.lock().retain(|_, mailbox| {
            let mut content = mailbox.content.lock();
            self.expire(&mut content);
            !self.is_idle(&content)
        });
    }

    /// Calls of [`Mailboxes::sweep`] that see every user once.
    pub const SWEEP_ROUNDS: usize = SHARDS;

    fn append(&self, content: &mut Content, session: Option<&Arc<str>>, message: &Arc<Message>, terms: &Terms, keep: Duration) -> Posted {
        let away = content.handles.is_empty();
        let gone = session.is_some_and(|id| !content.handles.iter().any(|taken| taken.handle.id == *id));
        if gone || (away && keep.is_zero()) {
            return self.dropped(DropReason::Away);
        }
        // Before anything gives way to a message that isn't taken.
        let size = log::entry_size(message);
        if self.is_full(away, size) {
            self.expire(content);
            if self.is_full(away, size) {
                return self.dropped(DropReason::ServerFull);
            }
        }
        let mut removed = Removed::default();
        if let Some(key) = &terms.collapse_key {
            content.log.collapse(key, session, content.read(), &mut removed);
        }
        let limits = (self.limits.messages_max, self.limits.bytes_max);
        let room = content.log.make_room(message, terms, content.read(), limits, &mut removed);
        self.account(content, &removed);
        if room.is_err() {
            return self.dropped(DropReason::MailboxFull);
        }
        let before = content.log.bytes();
        let seq = content.log.append(message.clone(), session.cloned(), terms.clone(), keep, Instant::now());
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(content.log.bytes() - before, Ordering::Relaxed);
        self.metrics.posted.inc();
        Posted::Posted { seq }
    }

    fn is_full(&self, away: bool, size: usize) -> bool {
        let bound = |max: usize| if away { max - max / CONNECTED_SHARE } else { max };
        self.messages.load(Ordering::Relaxed) >= bound(self.limits.total_messages_max)
            || self.bytes.load(Ordering::Relaxed) + size > bound(self.limits.total_bytes_max)
    }

    fn expire(&self, content: &mut Content) {
        let removed = content.log.expire(content.read(), self.keep_max(), Instant::now());
        self.account(content, &removed);
    }

    /// Counts what has gone, and closes the sessions that were owed it.
    fn account(&self, content: &mut Content, removed: &Removed) {
        if removed.messages == 0 {
            return;
        }
        self.messages.fetch_sub(removed.messages, Ordering::Relaxed);
        self.bytes.fetch_sub(removed.bytes, Ordering::Relaxed);
        self.metrics.dropped(DropReason::Expired, removed.expired);
        self.metrics.dropped(DropReason::Uncollected, removed.uncollected);
        self.metrics.dropped(DropReason::Collapsed, removed.collapsed);
        self.metrics.dropped(DropReason::Evicted, removed.evicted);
        let Some(owed) = removed.owed else { return };
        content.handles.retain(|taken| {
            let behind = taken.cursor < owed;
            if behind {
                taken.handle.end(Close::SlowConsumer);
                self.sessions.fetch_sub(1, Ordering::Relaxed);
            }
            !behind
        });
    }

    fn dropped(&self, reason: DropReason) -> Posted {
        self.metrics.dropped(reason, 1);
        Posted::Dropped(reason)
    }

    /// Nothing kept, nobody there, and nobody who could ask what they missed.
    fn is_idle(&self, content: &Content) -> bool {
        let may_resume = content.resumable && content.vacant_since + self.keep_max() > Instant::now();
        content.handles.is_empty() && content.log.is_empty() && !may_resume
    }

    fn leave(&self, handle: &Arc<SessionHandle>, mailbox: &Arc<Mailbox>) {
        let mut shard = self.shard(&handle.user).lock();
        let mut content = mailbox.content.lock();
        // By identity: a late leave never takes a newer session's place away, and one who was put out has left already.
        let before = content.handles.len();
        content.handles.retain(|taken| !Arc::ptr_eq(&taken.handle, handle));
        self.sessions.fetch_sub(before - content.handles.len(), Ordering::Relaxed);
        content.vacant_since = Instant::now();
        self.tidy(&mut content);
        let current = shard.get(&handle.user).is_some_and(|current| Arc::ptr_eq(current, mailbox));
        if current && self.is_idle(&content) {
            shard.remove(&handle.user);
        }
    }

    /// Where nobody can resume, what has been read is not kept.
    fn tidy(&self, content: &mut Content) {
        if !content.resumable {
            let removed = content.log.settle(content.read());
            self.account(content, &removed);
        }
    }

    fn each(&self, mut visit: impl FnMut(&UserId, &Content)) {
        for shard in &self.shards {
            for (user, mailbox) in shard.lock().iter() {
                visit(user, &mailbox.content.lock());
            }
        }
    }

    fn find(&self, user: &str) -> Option<Arc<Mailbox>> {
        self.shard_of(user).lock().get(user).cloned()
    }

    fn shard(&self, user: &UserId) -> &Shard {
        self.shard_of(user.as_str())
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below SHARDS, which is their number")]
    fn shard_of(&self, user: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(user) as usize % SHARDS]
    }

    fn keep_max(&self) -> Duration {
        Duration::from_millis(self.limits.keep_ms)
    }
}

impl Mailbox {
    fn new() -> Arc<Mailbox> {
        let content = Content { log: Log::new(), handles: SmallVec::new(), resumable: false, vacant_since: Instant::now() };
        Arc::new(Mailbox { epoch: uuid::Uuid::new_v4().simple().to_string(), content: Mutex::new(content) })
    }
}

impl Content {
    /// How far every open session has read; `None` where none is open.
    fn read(&self) -> Option<u64> {
        self.handles.iter().map(|taken| taken.cursor).min()
    }
}
