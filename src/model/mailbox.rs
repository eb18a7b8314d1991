//! Mailboxes: a delivery is appended to its user's log and the user's sessions are woken. A session is a cursor.
//!
//! This is the one path: live, slow, resumed and replayed messages are all read by [`Reader::page`]. A full log has a stated outcome
//! ([`log::Log::put`]), and each message that is not read is counted under its reason.
//!
//! A user's sessions and a user's log are two things, and neither touches the other. [`Mailboxes`] owns both, so that a post finds them
//! with one look-up under one lock: it tells the log how far the sessions have read, and wakes the sessions after a post. It doesn't close
//! slow sessions: a session notices that it has missed a message when it reads.
//!
//! Locks: a shard's lock is taken before a mailbox's lock, and neither is held while anything waits. Making room in other mailboxes
//! ([`Mailboxes::reclaim`]) begins before a post takes any of these locks; it holds one shard's at a time.

mod absorb;
pub mod fate;
mod log;
mod noted;
mod presence;
mod reader;
mod seqs;
mod sink;
mod sweep;
#[cfg(test)]
mod tests;
mod usage;
mod users;

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::record::{Change, Changes};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::registry::{ReadMark, Registry, SessionHandle, UserSessions};
use crate::types::clock::Clock;
use crate::types::close::Close;
use crate::types::delivery::{Message, Terms};
use crate::types::drop_reason::DropReason;
use crate::types::event::UserId;
pub use absorb::{Posting, Read};
use fate::Losses;
pub use log::Limits;
#[cfg(test)]
pub use log::Marks;
use log::{Commit, Log, NEVER, New, Removed};
pub use noted::JUMP;
use noted::Noted;
pub use reader::{Batch, Head, Page, Reader, Resumed};
pub use seqs::Seqs;
pub use sink::{Expired, SinkReader, SinkRules, Taken};
use sweep::Reclaim;
use usage::Usage;
pub use users::{Listing, UsersPage};

/// Enough shards that two cores seldom wait for the same lock.
const SHARDS: usize = 64;

/// All users' mailboxes. One exists only while it holds something, has a session, or its reader may resume.
#[derive(Debug)]
pub struct Mailboxes {
    shards: Box<[Shard]>,
    /// Chooses a user's shard, whose own hash is the one that a client can't guess.
    hasher: foldhash::fast::RandomState,
    limits: config::Mailboxes,
    sinks: SinkRules,
    clock: Clock,
    registry: Registry,
    usage: Usage,
    /// Distinguishes the seqs of this store from those of another one with the same users.
    store_id: u64,
    last_birth: AtomicU64,
    reclaim: Mutex<Reclaim>,
    losses: Mutex<Losses>,
    /// The mailboxes whose marks a store has to note; `None` if no store keeps them.
    unnoted: Option<Mutex<Unnoted>>,
    /// Whether this node decides what is in the mailboxes. Otherwise it absorbs what another one has decided.
    decides: AtomicBool,
    /// The last commit that is stored: readers see what it and earlier ones have posted.
    stored: AtomicU64,
    metrics: Arc<Metrics>,
}

/// Whose mailbox it is, and the mailbox's birth.
type Owner<'a> = (&'a UserId, u64);

type Unnoted = Vec<(UserId, Arc<Mailbox>)>;

type Users = HashMap<UserId, Arc<Mailbox>>;

type Shard = Mutex<Users>;

#[derive(Debug)]
struct Mailbox {
    /// Identifies this life of the mailbox: a seq has no meaning in another one. A newer birth replaces an older one.
    birth: u64,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    sessions: UserSessions,
    log: Log,
    /// What it may hold if it is a sink's.
    sink: Option<Arc<Limits>>,
    /// Whether a session has read this mailbox whose client may resume.
    is_resumable: bool,
    /// Whether a client has acked a message: then a message that was only written doesn't count as read.
    is_acked: bool,
    /// When the last session left, in milliseconds since the Unix epoch.
    vacant_since_ms: u64,
    noted: Noted,
}

/// The outcome of one delivery to one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// `birth`: in which life of the mailbox.
    Posted {
        birth: u64,
        seq: u64,
    },
    Dropped(DropReason),
}

impl Mailboxes {
    /// Returns empty mailboxes. `is_kept`: a store keeps what they note.
    pub fn new(config: &Config, clock: Clock, store_id: u64, is_kept: bool, metrics: Arc<Metrics>) -> Arc<Mailboxes> {
        let limits = config.mailboxes.clone();
        Arc::new(Mailboxes {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            usage: Usage::new(&limits),
            limits,
            sinks: SinkRules::new(config),
            clock,
            registry: Registry::new(&config.sockets),
            store_id,
            last_birth: AtomicU64::new(0),
            reclaim: Mutex::default(),
            losses: Mutex::new(Losses::new(config.events.receipts_bytes_max.get() / fate::BLOCK_BYTES)),
            unnoted: is_kept.then(Mutex::default),
            decides: AtomicBool::new(true),
            stored: AtomicU64::new(0),
            metrics,
        })
    }

    /// Appends a message to a user's log, notes that, and wakes the user's sessions. `session`: only that one may read it.
    pub fn post(&self, user: &UserId, session: Option<&Arc<str>>, message: &Arc<Message>, changes: &mut Changes) -> Posted {
        self.post_at(self.clock.now_ms(), user, session, message, changes)
    }

    /// Does the same at a time that the caller has read from the clock, for several users.
    pub fn post_at(&self, now_ms: u64, user: &UserId, session: Option<&Arc<str>>, message: &Arc<Message>, changes: &mut Changes) -> Posted {
        let terms = &message.terms;
        let keep_ms = log::kept_for(terms, self.keep_max_ms(self.sink(user).as_deref()));
        let commit = Commit { number: changes.commit(), stored: self.stored() };
        let new = New { message, session, terms, keep_ms, now_ms, commit };
        if self.usage.is_over_with(true, new.size(), (0, 0)) {
            self.reclaim(|usage| !usage.is_over_with(true, new.size(), (0, 0)));
            // What made room must not come back after a crash, and take the room of what was not read.
            self.note_marks(changes);
        }
        let (shard, mailbox) = match self.receiving(user, &new) {
            Ok(found) => found,
            Err(reason) => return self.dropped(reason),
        };
        let mut content = mailbox.content.lock();
        drop(shard);
        let mut removed = Removed::default();
        let posted = self.append((user, mailbox.birth), &mut content, &new, &mut removed);
        let is_refused = matches!(posted, Posted::Dropped(DropReason::MailboxFull | DropReason::ServerFull));
        // What readers see when it is stored wakes them then.
        let is_seen = commit.number == 0 && matches!(posted, Posted::Posted { .. });
        if is_refused || is_seen {
            content.sessions.wake();
        }
        match posted {
            // Only a message that is kept and has no session as its only reader can outlive the process. Other nodes need all of them.
            Posted::Posted { seq, .. } if (keep_ms > 0 && session.is_none()) || changes.are_for_nodes() => {
                content.noted.post(seq);
                changes.note(|| {
                    let (posted_ms, message, lost) = (new.now_ms, message.clone(), content.log.marks().lost);
                    Change::Post {
                        user: user.clone(),
                        birth: mailbox.birth,
                        seq,
                        posted_ms,
                        message,
                        session: session.cloned(),
                        lost,
                        removed: removed.for_new.to_vec(),
                    }
                });
            }
            _ if is_refused || !removed.for_new.is_empty() => {
                let gone = removed.for_new.iter().map(|seq| (seq - 1, *seq)).collect();
                changes.note(|| content.mark(user, mailbox.birth, gone));
            }
            _ => self.note_later(user, &mailbox, &mut content),
        }
        posted
    }

    /// Predicts what [`Mailboxes::post`] would do for a user who may be away. Doesn't predict whether a mailbox is full.
    pub fn foresee(&self, user: &UserId, session: Option<&Arc<str>>, terms: &Terms) -> Posted {
        let gone = session.is_some_and(|session| !self.has_session(user, session));
        let unkept = terms.keep.is_some_and(|keep| keep.is_zero()) && self.sessions_of(user.as_str()) == 0;
        if gone || unkept { Posted::Dropped(DropReason::Away) } else { Posted::Posted { birth: 0, seq: 0 } }
    }

    /// Opens a provisional session on its user's mailbox; [`Reader::admit`] makes it a session like others.
    ///
    /// # Errors
    /// The user has as many sessions as the configuration allows, and it says that the newest is refused.
    pub fn open(self: &Arc<Self>, handle: Arc<SessionHandle>) -> Result<Reader, Close> {
        if self.usage.is_out_of_mailboxes() {
            self.reclaim(|usage| !usage.is_out_of_mailboxes());
        }
        let mut shard = self.shard(&handle.user).lock();
        let mailbox = self.mailbox(&mut shard, &handle.user);
        let mut content = mailbox.content.lock();
        drop(shard);
        self.registry.enter(&mut content.sessions, &handle)?;
        // Where a second device begins: it reads what comes from now on.
        let last = content.log.last_shown(self.stored());
        handle.place(last, last, last);
        drop(content);
        Ok(Reader::new(self.clone(), mailbox, handle, Vec::new()))
    }

    /// Returns how far a user's sessions have read, as far as that matters to this node.
    fn read(&self, sessions: &UserSessions) -> Option<ReadMark> {
        sessions.read_mark(self.decides())
    }

    /// Returns the mailbox that a message goes to, and the lock of its shard.
    ///
    /// # Errors
    /// There is no mailbox for it, for this reason.
    fn receiving(&self, user: &UserId, new: &New<'_>) -> Result<(MutexGuard<'_, Users>, Arc<Mailbox>), DropReason> {
        let mut shard = self.shard(user).lock();
        if let Some(mailbox) = shard.get(user).cloned() {
            return Ok((shard, mailbox));
        }
        if new.keep_ms == 0 || new.session.is_some() {
            return Err(DropReason::Away);
        }
        if self.usage.is_out_of_mailboxes() {
            drop(shard);
            self.reclaim(|usage| !usage.is_out_of_mailboxes());
            shard = self.shard(user).lock();
        }
        // A user without a mailbox misses nothing: the next mailbox has another epoch.
        if !shard.contains_key(user) && (self.usage.is_out_of_mailboxes() || self.usage.is_over_with(true, new.size(), (0, 0))) {
            return Err(DropReason::ServerFull);
        }
        let mailbox = self.mailbox(&mut shard, user);
        Ok((shard, mailbox))
    }

    fn append(&self, owner: Owner<'_>, content: &mut Content, new: &New<'_>, removed: &mut Removed) -> Posted {
        let is_away = content.sessions.is_away();
        let is_gone = match new.session {
            Some(id) => content.sessions.find(id).is_none(),
            None => is_away && new.keep_ms == 0,
        };
        if is_gone {
            return self.dropped(DropReason::Away);
        }
        if !self.make_room(owner, content, new, is_away, removed) {
            return self.refuse(content, new, DropReason::ServerFull);
        }
        let limits = self.limits(content.sink.as_deref());
        let mut gone = Removed::default();
        let Ok(seq) = content.log.put(new, self.read(&content.sessions), limits, &mut gone) else {
            return self.refuse(content, new, DropReason::MailboxFull);
        };
        if gone.messages > 0 {
            self.account(owner.1, &content.sessions, &gone);
            removed.for_new.extend(gone.for_new);
        }
        self.usage.add(1, new.size());
        if content.sink.is_none() {
            self.metrics.posted.inc();
        }
        Posted::Posted { birth: owner.1, seq }
    }

    /// Refuses a message for lack of room. It takes a seq, so that its readers learn that something is missing.
    fn refuse(&self, content: &mut Content, new: &New<'_>, reason: DropReason) -> Posted {
        if content.sink.is_some() {
            // The caller counts it and keeps it: a sink's reader misses nothing.
            return Posted::Dropped(reason);
        }
        match new.session {
            None => content.log.refuse(new.terms.priority, self.read(&content.sessions), new.commit),
            // The user's other sessions don't miss it.
            Some(id) => content.sessions.find(id).into_iter().for_each(|handle| handle.end(Close::SlowConsumer)),
        }
        self.dropped(reason)
    }

    /// Counts what has gone, and closes sessions that have missed a message which only they could read: the user's other sessions don't
    /// miss it.
    fn account(&self, birth: u64, sessions: &UserSessions, removed: &Removed) {
        if removed.messages == 0 {
            return;
        }
        for (id, seq) in &removed.of_sessions {
            sessions.find(id).filter(|handle| handle.cursor() < *seq).into_iter().for_each(|handle| handle.end(Close::SlowConsumer));
        }
        self.usage.give_back(removed);
        for (seq, reason) in &removed.unread {
            self.lost(birth, *seq, *reason);
        }
    }

    fn dropped(&self, reason: DropReason) -> Posted {
        self.metrics.dropped(reason, 1);
        Posted::Dropped(reason)
    }

    fn leave(&self, handle: &Arc<SessionHandle>, mailbox: &Arc<Mailbox>) {
        let mut shard = self.shard(&handle.user).lock();
        let mut content = mailbox.content.lock();
        if !self.registry.leave(&mut content.sessions, handle) {
            // It has left already, when another session replaced it.
            return;
        }
        self.settle_up(mailbox.birth, &mut content, handle);
        content.vacant_since_ms = self.clock.now_ms();
        self.tidy(mailbox.birth, &mut content);
        self.note_later(&handle.user, mailbox, &mut content);
        let is_current = shard.get(&handle.user).is_some_and(|current| Arc::ptr_eq(current, mailbox));
        if is_current && self.is_idle(&content) {
            shard.remove(&handle.user);
            self.usage.give_back_mailboxes(1);
        }
    }

    /// Notes what a session that is leaving has delivered, and removes the messages that only that session could read.
    fn settle_up(&self, birth: u64, content: &mut Content, handle: &Arc<SessionHandle>) {
        // If no client acks, a message that was written counts as read. Acks were noted when they came.
        if !content.is_acked {
            content.log.mark_delivered(handle.position().0, handle.written());
        }
        let forgotten = content.log.forget_session(&handle.id, handle.cursor());
        self.account(birth, &content.sessions, &forgotten);
    }

    /// Removes what has been read, if no client can resume.
    fn tidy(&self, birth: u64, content: &mut Content) {
        if !content.is_resumable {
            let removed = content.log.settle(self.read(&content.sessions));
            self.account(birth, &content.sessions, &removed);
        }
    }

    /// Returns the user's mailbox, and creates it if it does not exist.
    fn mailbox(&self, shard: &mut Users, user: &UserId) -> Arc<Mailbox> {
        if let Some(mailbox) = shard.get(user) {
            return mailbox.clone();
        }
        let birth = self.last_birth.fetch_add(1, Ordering::Relaxed) + 1;
        let mailbox = Arc::new(Mailbox { birth, content: Mutex::new(Content::new(Log::default(), self.sink(user), self.clock.now_ms())) });
        shard.insert(user.clone(), mailbox.clone());
        self.usage.add_mailbox();
        mailbox
    }

    /// Returns what a sink's mailbox may hold; `None` for that of a user.
    fn sink(&self, user: &UserId) -> Option<Arc<Limits>> {
        if user.is_internal() { self.sinks.limits.load().get(user).cloned() } else { None }
    }

    fn limits(&self, sink: Option<&Limits>) -> Limits {
        let config::Mailboxes { messages_max, bytes_max, .. } = &self.limits;
        sink.copied().unwrap_or(Limits { messages_max: messages_max.get(), bytes_max: bytes_max.get(), keeps_unread: false })
    }

    /// Returns how long a message is kept at most.
    fn keep_max_ms(&self, sink: Option<&Limits>) -> u64 {
        // A sink's reader decides itself.
        if sink.is_some() { NEVER } else { self.limits.keep_ms.get() }
    }

    /// Returns the epoch: what clients call this life of the mailbox.
    fn epoch(&self, mailbox: &Mailbox) -> String {
        format!("{}-{}", base36(self.store_id), base36(mailbox.birth))
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
}

impl Content {
    fn new(log: Log, sink: Option<Arc<Limits>>, now_ms: u64) -> Content {
        Content {
            sessions: UserSessions::default(),
            log,
            sink,
            is_resumable: false,
            is_acked: false,
            vacant_since_ms: now_ms,
            noted: Noted::default(),
        }
    }
}

/// Returns a number in digits and lower-case letters.
fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}
