//! One user's ordered log: its messages, which of them replace others, and which are removed when it is full. Pure: time is an argument,
//! and so is how far the sessions have read ([`ReadMark`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::seqs::Seqs;
use crate::registry::ReadMark;
use crate::types::delivery::{Message, Priority, Terms};
use crate::types::drop_reason::DropReason;

/// Bytes that an entry counts in addition to its texts.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// A time that never comes, in milliseconds.
pub const NEVER: u64 = u64::MAX;

/// Entries in the order of their seq. Gaps are normal: an entry that was replaced or has expired leaves one.
#[derive(Debug, Default)]
pub struct Log {
    entries: VecDeque<Entry>,
    bytes: usize,
    last: u64,
    /// The number of the commit that gave the last seq, and the last seq before the first one that may not be stored.
    last_commit: u64,
    shown: u64,
    lost: u64,
    owed: u64,
    delivered: Seqs,
}

#[derive(Debug)]
pub struct Entry {
    pub seq: u64,
    pub message: Arc<Message>,
    /// The only session that may read it; `None`: all.
    pub session: Option<Arc<str>>,
    collapse_key: Option<Arc<str>>,
    priority: Priority,
    /// Milliseconds since the Unix epoch. The clock may have gone back since: an age is never negative.
    posted_ms: u64,
    ttl_ms: u64,
    keep_ms: u64,
    /// The number of the commit that has posted it: readers don't see it before that is stored. 0 if they see it at once.
    commit: u64,
}

/// A message that is to be appended.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    pub message: &'a Arc<Message>,
    pub session: Option<&'a Arc<str>>,
    pub terms: &'a Terms,
    /// How long it is kept for a user who is away.
    pub keep_ms: u64,
    pub now_ms: u64,
    pub commit: Commit,
}

/// The number of a commit, and of the last one that is stored. Both are 0 where readers don't wait for the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commit {
    pub number: u64,
    pub stored: u64,
}

/// What one log may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub messages_max: usize,
    pub bytes_max: usize,
    /// Whether a full log refuses a new message rather than lose an unread one.
    pub keeps_unread: bool,
}

/// The number of messages that were removed from a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub messages: usize,
    pub bytes: usize,
    /// Those that not every reader had read, with the reason: expired, uncollected, collapsed or evicted.
    pub unread: SmallVec<[(u64, DropReason); 1]>,
    /// Those that only one session could read: it has missed them, unless it has taken them.
    pub of_sessions: SmallVec<[(Arc<str>, u64); 1]>,
    /// The seqs of those that went for a new message.
    pub for_new: SmallVec<[u64; 2]>,
}

/// The positions of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub last: u64,
    pub delivered: u64,
    pub lost: u64,
}

/// The new message is less important than everything that fills the log, or larger than a log may be.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Entry {
    fn new(seq: u64, new: &New<'_>) -> Entry {
        Entry {
            seq,
            message: new.message.clone(),
            session: new.session.cloned(),
            collapse_key: new.terms.collapse_key.clone(),
            priority: new.terms.priority,
            posted_ms: new.now_ms,
            ttl_ms: new.terms.time_to_live.map_or(NEVER, milliseconds),
            keep_ms: new.keep_ms,
            commit: new.commit.number,
        }
    }

    pub fn size(&self) -> usize {
        size_of(&self.message, self.collapse_key.as_deref())
    }

    /// Returns whether readers see it, since this commit is stored.
    pub fn is_shown(&self, stored: u64) -> bool {
        self.commit <= stored
    }

    /// Returns whether its time to live is over. `now_ms` is called only if it has one.
    pub fn is_expired(&self, now_ms: impl FnOnce() -> u64) -> bool {
        self.ttl_ms != NEVER && self.is_past(self.ttl_ms, now_ms())
    }

    /// Returns whether it can outlive the process: it is kept for readers who are away, and for all of the user's sessions.
    pub fn is_kept(&self) -> bool {
        self.keep_ms > 0 && self.session.is_none()
    }

    /// Returns when it was posted, in milliseconds since the Unix epoch.
    pub fn posted_ms(&self) -> u64 {
        self.posted_ms
    }

    fn is_past(&self, age_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.posted_ms) >= age_ms
    }
}

impl New<'_> {
    /// Returns the bytes that it counts.
    pub fn size(&self) -> usize {
        size_of(self.message, self.terms.collapse_key.as_deref())
    }

    fn replaces(&self, entry: &Entry) -> bool {
        self.terms.collapse_key.is_some() && entry.collapse_key == self.terms.collapse_key && entry.session.as_ref() == self.session
    }
}

impl Removed {
    fn note(&mut self, entry: &Entry) {
        self.messages += 1;
        self.bytes += entry.size();
    }

    fn miss(&mut self, is_unread: bool, seq: u64, reason: DropReason) {
        self.unread.extend(is_unread.then_some((seq, reason)));
    }
}

impl Log {
    /// Returns the log that a store has kept: its messages in the order of their seqs, each with the time when it was posted.
    pub fn restored(marks: Marks, messages: impl Iterator<Item = (u64, u64, Arc<Message>)>, keep_max_ms: u64) -> Log {
        let mut log = Log { last: marks.last, lost: marks.lost, delivered: Seqs::upto(marks.delivered), ..Log::default() };
        for (seq, posted_ms, message) in messages {
            let new = New {
                message: &message,
                session: None,
                terms: &message.terms,
                keep_ms: kept_for(&message.terms, keep_max_ms),
                now_ms: posted_ms,
                commit: Commit::default(),
            };
            let entry = Entry::new(seq, &new);
            log.bytes += entry.size();
            log.entries.push_back(entry);
        }
        log
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the newest seq that was ever given; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns the newest seq that readers may know of, since this commit is stored.
    pub fn last_shown(&self, stored: u64) -> u64 {
        if self.last_commit <= stored {
            return self.last;
        }
        // What was posted since is in order.
        let newest = self.entries.iter().rev().find(|entry| entry.is_shown(stored));
        newest.map_or(self.shown, |entry| entry.seq.max(self.shown))
    }

    /// Returns what has reached a reader: it was written, or acked if the clients ack.
    pub fn delivered(&self) -> &Seqs {
        &self.delivered
    }

    /// Returns the newest message that was lost before all open sessions had read it: a session that has not read up to it has missed a
    /// message.
    pub fn owed(&self) -> u64 {
        self.owed
    }

    pub fn marks(&self) -> Marks {
        Marks { last: self.last, delivered: self.delivered.mark(), lost: self.lost }
    }

    /// Notes that everything after `start` and up to `seq` has reached a reader.
    pub fn mark_delivered(&mut self, start: u64, seq: u64) {
        let Log { entries, delivered, last, .. } = self;
        delivered.add(start, seq.min(*last), |after, to| is_any_between(entries, after, to));
    }

    /// Returns whether the log still has everything after `seq` that is still wanted.
    pub fn is_complete_after(&self, seq: u64) -> bool {
        self.lost <= seq && seq <= self.last
    }

    /// Returns the entries after `seq`, in order.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &Entry> {
        self.entries.range(first_after(&self.entries, seq)..)
    }

    /// Returns the number and the bytes of the entries that a new message replaces.
    pub fn replaced(&self, new: &New<'_>) -> (usize, usize) {
        if new.terms.collapse_key.is_none() {
            return (0, 0);
        }
        let replaced = self.entries.iter().filter(|entry| new.replaces(entry));
        replaced.fold((0, 0), |(messages, bytes), entry| (messages + 1, bytes + entry.size()))
    }

    /// Appends a message and returns its seq. Removes the messages that it replaces, and more if it needs room.
    ///
    /// # Errors
    /// [`Full`]: too little may be removed for a message of this priority, or it would not fit into an empty log. Nothing has
    /// changed.
    pub fn put(&mut self, new: &New<'_>, read: Option<ReadMark>, limits: Limits, removed: &mut Removed) -> Result<u64, Full> {
        let size = new.size();
        if !self.can_fit(new, size, read, limits) {
            return Err(Full);
        }
        if new.terms.collapse_key.is_some() {
            self.collapse(new, read, removed);
        }
        while self.is_over(0, 0, size, limits) {
            let Some(index) = self.victim(read, new.terms.priority, limits) else { return Err(Full) };
            self.evict(index, read, removed);
        }
        self.bytes += size;
        let seq = self.next(new.commit);
        self.entries.push_back(Entry::new(seq, new));
        Ok(seq)
    }

    /// Notes that a message was refused: it takes a seq, so that its readers learn that a message is missing.
    pub fn refuse(&mut self, priority: Priority, read: Option<ReadMark>, commit: Commit) {
        let seq = self.next(commit);
        self.lose(seq, priority, read);
    }

    fn next(&mut self, commit: Commit) -> u64 {
        if self.last_commit <= commit.stored {
            self.shown = self.last;
        }
        self.last_commit = commit.number;
        self.last += 1;
        self.last
    }

    /// Appends a message that another node has posted, with its seq.
    pub fn append(&mut self, seq: u64, new: &New<'_>, lost: u64, removed: &mut Removed) {
        // What this node has posted and nobody has seen never was.
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.seq >= seq) {
            self.bytes -= entry.size();
            removed.note(&entry);
        }
        self.bytes += new.size();
        self.entries.push_back(Entry::new(seq, new));
        (self.last, self.last_commit) = (seq, 0);
        self.lost = self.lost.max(lost);
    }

    /// Removes what another node has removed after `after` and up to `to`, for a message with this key if there is one.
    pub fn remove(&mut self, (after, to): (u64, u64), read: Option<ReadMark>, collapse_key: Option<&Arc<str>>, removed: &mut Removed) {
        let Log { entries, bytes, delivered, owed, .. } = self;
        // Most removals are of few messages among many.
        if !is_any_between(entries, after, to) {
            return;
        }
        let goes = |entry: &Entry| after < entry.seq && entry.seq <= to;
        self::remove(entries, bytes, goes, |entry| {
            removed.note(entry);
            let is_replaced = collapse_key.is_some() && entry.collapse_key.as_ref() == collapse_key;
            let reason = if is_replaced { DropReason::Collapsed } else { DropReason::Evicted };
            removed.miss(!is_settled(delivered, read, entry.seq), entry.seq, reason);
            if is_replaced {
                return;
            }
            removed.of_sessions.extend(entry.session.clone().map(|session| (session, entry.seq)));
            let is_awaited = read.is_some_and(|read| read.is_awaited(entry.seq));
            if is_awaited && entry.session.is_none() && entry.priority > Priority::Low {
                *owed = (*owed).max(entry.seq);
            }
        });
        self.shrink();
    }

    /// Takes over how far another node knows the log to be.
    pub fn raise(&mut self, marks: Marks) {
        if marks.last > self.last {
            (self.last, self.last_commit) = (marks.last, 0);
        }
        self.lost = self.lost.max(marks.lost);
        self.mark_delivered(0, marks.delivered);
    }

    /// Removes the oldest entry that has been read, if there is one: it gives way to a message in this log or in another.
    pub fn give_way(&mut self, read: Option<ReadMark>, removed: &mut Removed) -> bool {
        let settled = self.first_settled(read);
        if let Some(index) = settled {
            self.evict(index, read, removed);
        }
        settled.is_some()
    }

    /// Removes the oldest entry, read or not, if there is one.
    pub fn give_up_oldest(&mut self, removed: &mut Removed) -> bool {
        let is_any = !self.is_empty();
        self.evict(0, None, removed);
        is_any
    }

    /// Removes what has been delivered and was read by every open session. For mailboxes from which nobody can resume.
    pub fn settle(&mut self, read: Option<ReadMark>) -> Removed {
        let mut removed = Removed::default();
        let Log { entries, bytes, delivered, .. } = self;
        let is_over = |entry: &Entry| delivered.contains(entry.seq) && read.is_none_or(|read| !read.is_awaited(entry.seq));
        while let Some(entry) = entries.pop_front_if(|entry| is_over(entry)) {
            *bytes -= entry.size();
            removed.note(&entry);
        }
        if !delivered.beyond().is_empty() {
            remove(entries, bytes, is_over, |entry| removed.note(entry));
        }
        self.shrink();
        removed
    }

    /// Removes what has expired or was kept for long enough. What an open session has still to read is kept for `keep_max_ms`.
    pub fn expire(&mut self, read: Option<ReadMark>, keep_max_ms: u64, now_ms: u64) -> Removed {
        self.expire_noting(read, keep_max_ms, now_ms, |_| ())
    }

    /// Does the same, and calls `note` with each entry that nobody has read.
    pub fn expire_noting(&mut self, read: Option<ReadMark>, keep_max_ms: u64, now_ms: u64, mut note: impl FnMut(&Entry)) -> Removed {
        let mut removed = Removed::default();
        let Log { entries, bytes, delivered, lost, owed, .. } = self;
        let is_awaited = |entry: &Entry| read.is_some_and(|read| read.is_awaited(entry.seq));
        let goes = |entry: &Entry| {
            let keep_ms = if is_awaited(entry) { keep_max_ms } else { entry.keep_ms };
            entry.is_expired(|| now_ms) || entry.is_past(keep_ms, now_ms)
        };
        remove(entries, bytes, goes, |entry| {
            removed.note(entry);
            let is_unread = !is_settled(delivered, read, entry.seq);
            if is_unread {
                note(entry);
            }
            if entry.is_expired(|| now_ms) {
                removed.miss(is_unread, entry.seq, DropReason::Expired);
                return;
            }
            removed.miss(is_unread, entry.seq, DropReason::Uncollected);
            removed.of_sessions.extend(entry.session.clone().map(|session| (session, entry.seq)));
            if is_awaited(entry) && entry.session.is_none() {
                *owed = (*owed).max(entry.seq);
            }
            // A message that was not to be kept, or was for one session, is not missed by a user who was away; any other is.
            if entry.keep_ms > 0 && entry.session.is_none() {
                *lost = (*lost).max(entry.seq);
            }
        });
        self.shrink();
        removed
    }

    /// Removes the messages that only a session that is gone could read.
    pub fn forget_session(&mut self, id: &Arc<str>, cursor: u64) -> Removed {
        let mut removed = Removed::default();
        let is_its = |entry: &Entry| entry.session.as_ref() == Some(id);
        remove(&mut self.entries, &mut self.bytes, is_its, |entry| {
            removed.note(entry);
            removed.miss(entry.seq > cursor, entry.seq, DropReason::Uncollected);
        });
        self.shrink();
        removed
    }

    /// Removes the messages that a new one replaces. Only unread ones count as replaced.
    fn collapse(&mut self, new: &New<'_>, read: Option<ReadMark>, removed: &mut Removed) {
        let Log { entries, bytes, delivered, .. } = self;
        remove(
            entries,
            bytes,
            |entry| new.replaces(entry),
            |entry| {
                removed.note(entry);
                removed.for_new.push(entry.seq);
                removed.miss(!is_settled(delivered, read, entry.seq), entry.seq, DropReason::Collapsed);
            },
        );
    }

    /// Returns whether a new message of `size` bytes would be over the limits even if this many messages and bytes were removed.
    fn is_over(&self, messages: usize, bytes: usize, size: usize, limits: Limits) -> bool {
        self.entries.len() - messages >= limits.messages_max || self.bytes - bytes + size > limits.bytes_max
    }

    /// Returns whether a new message fits if everything is removed that may be removed for it.
    fn can_fit(&self, new: &New<'_>, size: usize, read: Option<ReadMark>, limits: Limits) -> bool {
        let (mut messages, mut bytes) = (0, 0);
        if !self.is_over(messages, bytes, size, limits) {
            return true;
        }
        // In the usual case of a full log, the oldest were read long ago.
        let mut is_settled_so_far = true;
        for entry in &self.entries {
            let settled = is_settled(&self.delivered, read, entry.seq);
            is_settled_so_far &= settled;
            if settled || new.replaces(entry) || (!limits.keeps_unread && may_go(entry, new.terms.priority, read)) {
                (messages, bytes) = (messages + 1, bytes + entry.size());
            }
            if is_settled_so_far && !self.is_over(messages, bytes, size, limits) {
                return true;
            }
        }
        !self.is_over(messages, bytes, size, limits)
    }

    /// Returns the entry to remove next for a message of this priority: one that was read; else the oldest of the least important; else a
    /// more important one that another device has read.
    fn victim(&self, read: Option<ReadMark>, priority: Priority, limits: Limits) -> Option<usize> {
        let settled = self.first_settled(read);
        if settled.is_some() || limits.keeps_unread {
            return settled;
        }
        let least = self.entries.iter().map(|entry| entry.priority).min()?;
        if least <= priority {
            return self.entries.iter().position(|entry| entry.priority == least);
        }
        self.entries.iter().position(|entry| may_go(entry, priority, read))
    }

    fn first_settled(&self, read: Option<ReadMark>) -> Option<usize> {
        let front = self.entries.front()?;
        if is_settled(&self.delivered, read, front.seq) {
            return Some(0);
        }
        // After an unread entry there can only be read ones if devices have read different parts.
        let is_apart = !self.delivered.beyond().is_empty() || read.is_some_and(|read| front.seq <= read.from);
        if !is_apart {
            return None;
        }
        self.entries.iter().position(|entry| is_settled(&self.delivered, read, entry.seq))
    }

    fn evict(&mut self, index: usize, read: Option<ReadMark>, removed: &mut Removed) {
        let Some(entry) = self.entries.remove(index) else { return };
        self.bytes -= entry.size();
        removed.note(&entry);
        removed.for_new.push(entry.seq);
        removed.miss(!is_settled(&self.delivered, read, entry.seq), entry.seq, DropReason::Evicted);
        if entry.session.is_none() {
            self.lose(entry.seq, entry.priority, read);
        }
        removed.of_sessions.extend(entry.session.map(|session| (session, entry.seq)));
        self.shrink();
    }

    /// Notes that a message was lost to a bound. A reader who has fallen behind isn't owed a message of low priority, but is owed any
    /// other.
    fn lose(&mut self, seq: u64, priority: Priority, read: Option<ReadMark>) {
        self.lost = self.lost.max(seq);
        if priority > Priority::Low && read.is_some_and(|read| read.is_awaited(seq)) {
            self.owed = self.owed.max(seq);
        }
    }

    /// Frees the buffer of an empty log.
    fn shrink(&mut self) {
        if self.entries.is_empty() && self.entries.capacity() > 4 {
            self.entries = VecDeque::new();
        }
    }
}

/// Returns whether a message is kept only so that a client can resume: all open sessions have read it, or none has it still to read and it
/// has reached a reader before.
fn is_settled(delivered: &Seqs, read: Option<ReadMark>, seq: u64) -> bool {
    match read {
        None => delivered.contains(seq),
        Some(read) => read.covers(seq) || (!read.is_awaited(seq) && delivered.contains(seq)),
    }
}

/// Returns whether an entry that a session has still to read may be removed for a message of this priority. A device that reads has
/// precedence over one that is stuck: an entry that it has read doesn't keep a new message from it.
fn may_go(entry: &Entry, priority: Priority, read: Option<ReadMark>) -> bool {
    entry.priority <= priority || (priority > Priority::Low && read.is_some_and(|read| read.is_read(entry.seq)))
}

fn remove(entries: &mut VecDeque<Entry>, bytes: &mut usize, goes: impl Fn(&Entry) -> bool, mut note: impl FnMut(&Entry)) {
    entries.retain(|entry| {
        let goes = goes(entry);
        if goes {
            *bytes -= entry.size();
            note(entry);
        }
        !goes
    });
}

fn first_after(entries: &VecDeque<Entry>, seq: u64) -> usize {
    entries.partition_point(|entry| entry.seq <= seq)
}

fn is_any_between(entries: &VecDeque<Entry>, after: u64, to: u64) -> bool {
    entries.get(first_after(entries, after)).is_some_and(|entry| entry.seq <= to)
}

/// Returns how long a message is kept for a user who is away.
pub fn kept_for(terms: &Terms, keep_max_ms: u64) -> u64 {
    terms.keep.map_or(keep_max_ms, |keep| milliseconds(keep).min(keep_max_ms))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}

/// Returns the bytes that a message counts: all that is kept of it.
fn size_of(message: &Message, collapse_key: Option<&str>) -> usize {
    ENTRY_OVERHEAD_BYTES + message.body.size() + message.event_id.len() + message.event_type.len() + collapse_key.map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::delivery::PolicySetId;
    use crate::types::event::Body;

    const KEEP_MS: u64 = 120_000;
    /// Some time after 1970.
    const NOW_MS: u64 = 1_000_000;
    const ROOMY: Limits = Limits { messages_max: 1000, bytes_max: 1_000_000, keeps_unread: false };
    /// The bytes that a message of these tests counts: an id of two bytes, a type of three, and a body of one.
    const SIZE: usize = ENTRY_OVERHEAD_BYTES + 6;

    fn text(text: &str) -> Arc<Message> {
        Arc::new(Message::new("id".into(), "a.b".into(), Body::Text(text.into()), PolicySetId(1)))
    }

    fn of(priority: Priority) -> Terms {
        Terms { priority, ..Terms::default() }
    }

    fn keyed(key: &str) -> Terms {
        Terms { collapse_key: Some(key.into()), ..Terms::default() }
    }

    fn messages(messages_max: usize) -> Limits {
        Limits { messages_max, ..ROOMY }
    }

    /// Returns the mark of one session that began at the beginning and has read up to this seq.
    fn read(to: u64) -> Option<ReadMark> {
        Some(ReadMark { from: 0, written: to, taken: to, furthest: (0, to) })
    }

    fn unread(seqs: &[u64], reason: DropReason) -> SmallVec<[(u64, DropReason); 1]> {
        seqs.iter().map(|seq| (*seq, reason)).collect()
    }

    fn removed(messages: usize) -> Removed {
        Removed { messages, bytes: messages * SIZE, ..Removed::default() }
    }

    /// Puts a message of one byte.
    fn put(log: &mut Log, terms: &Terms, read: Option<ReadMark>, limits: Limits) -> (Result<u64, Full>, Removed) {
        let mut removed = Removed::default();
        let new = New { message: &text("x"), session: None, terms, keep_ms: KEEP_MS, now_ms: NOW_MS, commit: Commit::default() };
        (log.put(&new, read, limits, &mut removed), removed)
    }

    fn append(log: &mut Log, terms: &Terms) -> u64 {
        put(log, terms, None, ROOMY).0.unwrap()
    }

    fn append_for(log: &mut Log, session: Option<&Arc<str>>, terms: &Terms, keep_ms: u64) {
        let new = New { message: &text("x"), session, terms, keep_ms, now_ms: NOW_MS, commit: Commit::default() };
        log.put(&new, None, ROOMY, &mut Removed::default()).unwrap();
    }

    fn filled(messages: usize) -> Log {
        let mut log = Log::default();
        for _ in 0..messages {
            append(&mut log, &Terms::default());
        }
        log
    }

    fn seqs(log: &Log) -> Vec<u64> {
        log.after(0).map(|entry| entry.seq).collect()
    }

    #[test]
    fn entries_are_read_in_order_after_any_seq() {
        let mut log = filled(4);
        put(&mut log, &Terms::default(), None, messages(4)).0.unwrap();
        let after = |seq| log.after(seq).map(|entry| entry.seq).collect::<Vec<_>>();
        assert_eq!((after(0), after(3)), (vec![2, 3, 4, 5], vec![4, 5]));
        assert!(after(5).is_empty() && after(u64::MAX).is_empty());
        assert_eq!((log.last(), log.len(), log.bytes()), (5, 4, 4 * SIZE));
    }

    mod sizes {
        use super::*;

        #[test]
        fn everything_that_is_kept_of_a_message_counts() {
            let message = Message::new("i".repeat(1000), "t".repeat(100), Body::Text("b".repeat(10)), PolicySetId(1));
            let terms = keyed(&"k".repeat(128));
            let new = New {
                message: &Arc::new(message),
                session: None,
                terms: &terms,
                keep_ms: KEEP_MS,
                now_ms: NOW_MS,
                commit: Commit::default(),
            };
            assert_eq!(new.size(), ENTRY_OVERHEAD_BYTES + 1000 + 100 + 10 + 128);
            let mut log = Log::default();
            log.put(&new, None, ROOMY, &mut Removed::default()).unwrap();
            assert_eq!(log.bytes(), new.size());
            assert_eq!(log.after(0).next().unwrap().size(), new.size(), "what was added is what will be given back");
        }

        #[test]
        fn an_empty_message_still_costs_its_entry() {
            let message = Arc::new(Message::new(String::new(), String::new(), Body::Text(String::new()), PolicySetId(1)));
            let new = New {
                message: &message,
                session: None,
                terms: &Terms::default(),
                keep_ms: KEEP_MS,
                now_ms: NOW_MS,
                commit: Commit::default(),
            };
            assert_eq!(new.size(), ENTRY_OVERHEAD_BYTES);
        }
    }

    mod keys {
        use super::*;

        #[test]
        fn a_key_replaces_what_the_same_readers_were_to_get_and_counts_what_was_not_read() {
            let mut log = Log::default();
            let session: Arc<str> = "session".into();
            append(&mut log, &keyed("k"));
            append(&mut log, &keyed("other"));
            append_for(&mut log, Some(&session), &keyed("k"), KEEP_MS);
            let size = SIZE + 1;
            let (_, gone) = put(&mut log, &keyed("k"), None, ROOMY);
            assert_eq!(seqs(&log), [2, 3, 4]);
            let for_new = smallvec::smallvec![1];
            assert_eq!(
                gone,
                Removed { messages: 1, bytes: size, unread: unread(&[1], DropReason::Collapsed), for_new, ..Removed::default() }
            );
            let mut gone = Removed::default();
            let terms = keyed("k");
            let new = New {
                message: &text("x"),
                session: Some(&session),
                terms: &terms,
                keep_ms: KEEP_MS,
                now_ms: NOW_MS,
                commit: Commit::default(),
            };
            assert_eq!(log.replaced(&new), (1, size));
            log.put(&new, read(3), ROOMY, &mut gone).unwrap();
            assert_eq!((seqs(&log), gone.messages, gone.unread.len()), (vec![2, 4, 5], 1, 0), "the session had read it");
            log.mark_delivered(0, 2);
            let (_, gone) = put(&mut log, &keyed("other"), None, ROOMY);
            assert_eq!((gone.messages, gone.unread.len()), (1, 0), "and this one before its reader left");
            assert!(log.is_complete_after(0), "what is replaced is not missed");
        }

        #[test]
        fn a_message_takes_the_place_of_the_one_that_it_replaces() {
            let mut log = Log::default();
            append(&mut log, &Terms { priority: Priority::High, ..keyed("k") });
            append(&mut log, &of(Priority::High));
            let low = Terms { priority: Priority::Low, ..keyed("k") };
            let (seq, gone) = put(&mut log, &low, read(0), messages(2));
            assert_eq!((seq, gone.unread, seqs(&log)), (Ok(3), unread(&[1], DropReason::Collapsed), vec![2, 3]));
            assert!(log.is_complete_after(0));
        }

        #[test]
        fn a_message_that_is_refused_replaces_nothing() {
            let mut log = Log::default();
            append(&mut log, &Terms { priority: Priority::High, ..keyed("k") });
            append(&mut log, &of(Priority::High));
            // The one that it replaces is not enough for it.
            let terms = Terms { priority: Priority::Low, ..keyed("k") };
            let new =
                New { message: &text("xxx"), session: None, terms: &terms, keep_ms: KEEP_MS, now_ms: NOW_MS, commit: Commit::default() };
            let mut gone = Removed::default();
            let limits = Limits { bytes_max: 2 * SIZE + 2, ..ROOMY };
            assert_eq!(log.put(&new, read(0), limits, &mut gone), Err(Full));
            assert_eq!((gone, seqs(&log)), (Removed::default(), vec![1, 2]));
            let limits = Limits { bytes_max: 2 * SIZE + 3, ..ROOMY };
            assert_eq!(log.put(&new, read(0), limits, &mut Removed::default()), Ok(3));
        }
    }

    mod full {
        use super::*;

        #[test]
        fn what_everyone_has_read_goes_first_and_is_not_owed() {
            let mut log = filled(4);
            let (seq, gone) = put(&mut log, &of(Priority::Low), read(2), messages(4));
            assert_eq!((seq, seqs(&log)), (Ok(5), vec![2, 3, 4, 5]));
            assert_eq!(gone, Removed { for_new: smallvec::smallvec![1], ..removed(1) });
            // Nobody is there: what was delivered counts as read.
            log.mark_delivered(0, 2);
            let (_, gone) = put(&mut log, &of(Priority::Low), None, messages(4));
            assert_eq!((gone.unread.len(), log.owed(), seqs(&log)), (0, 0, vec![3, 4, 5, 6]));
            assert!(!log.is_complete_after(1) && log.is_complete_after(2));
        }

        #[test]
        fn the_oldest_of_the_least_important_goes() {
            let mut log = Log::default();
            for priority in [Priority::High, Priority::Normal, Priority::Low, Priority::Normal, Priority::Low] {
                append(&mut log, &of(priority));
            }
            // A slow session is not owed a message of low priority; it is owed others.
            let (_, gone) = put(&mut log, &of(Priority::Low), read(0), messages(5));
            assert_eq!((seqs(&log), gone.unread.len(), log.owed()), (vec![1, 2, 4, 5, 6], 1, 0));
            let (_, gone) = put(&mut log, &of(Priority::Normal), read(0), messages(3));
            assert_eq!((seqs(&log), gone.unread.len(), log.owed()), (vec![1, 4, 7], 3, 2));
            // Nobody who is connected is owed anything; the loss is remembered for a resume.
            let (_, gone) = put(&mut log, &of(Priority::High), None, messages(3));
            assert_eq!((seqs(&log), gone.unread.len(), log.owed()), (vec![1, 7, 8], 1, 2));
            assert!(!log.is_complete_after(5) && log.is_complete_after(6));
        }

        #[test]
        fn a_message_that_is_less_important_than_all_others_is_refused_and_nothing_goes() {
            let mut log = Log::default();
            append(&mut log, &of(Priority::High));
            append(&mut log, &of(Priority::Normal));
            let (seq, gone) = put(&mut log, &of(Priority::Low), read(0), messages(2));
            assert_eq!((seq, gone, seqs(&log)), (Err(Full), Removed::default(), vec![1, 2]));
            // Two would have to go for it, and only one may.
            let mut gone = Removed::default();
            let terms = of(Priority::Normal);
            let new = New {
                message: &text(&"x".repeat(SIZE)),
                session: None,
                terms: &terms,
                keep_ms: KEEP_MS,
                now_ms: NOW_MS,
                commit: Commit::default(),
            };
            let limits = Limits { bytes_max: 2 * SIZE + SIZE / 2, ..ROOMY };
            assert_eq!((log.put(&new, read(0), limits, &mut gone), gone, seqs(&log)), (Err(Full), Removed::default(), vec![1, 2]));
            let (seq, _) = put(&mut log, &of(Priority::Low), read(1), messages(2));
            assert_eq!((seq, seqs(&log)), (Ok(3), vec![2, 3]), "what was read may go for anything");
        }

        #[test]
        fn a_message_larger_than_the_whole_bound_is_refused_and_costs_no_other() {
            let mut log = filled(3);
            let limits = |bytes_max| Limits { bytes_max, ..ROOMY };
            let (seq, gone) = put(&mut log, &of(Priority::High), None, limits(SIZE - 1));
            assert_eq!((seq, gone, seqs(&log)), (Err(Full), Removed::default(), vec![1, 2, 3]));
            let (_, gone) = put(&mut log, &of(Priority::Normal), None, limits(SIZE));
            assert_eq!((gone.unread.len(), seqs(&log)), (3, vec![4]), "one that just fits has the log for itself");
        }

        #[test]
        fn a_refused_message_takes_a_seq_and_is_missed_by_those_who_had_it_to_read() {
            for (priority, read, owed) in
                [(Priority::Normal, read(3), 4), (Priority::High, read(0), 4), (Priority::Low, read(3), 0), (Priority::Normal, None, 0)]
            {
                let mut log = filled(3);
                log.refuse(priority, read, Commit::default());
                assert_eq!((log.last(), log.owed(), log.len()), (4, owed, 3), "{priority:?} {read:?}");
                assert!(!log.is_complete_after(3) && log.is_complete_after(4));
                assert_eq!(append(&mut log, &Terms::default()), 5);
            }
        }

        #[test]
        fn a_stuck_device_keeps_nothing_from_one_that_reads() {
            let mut log = Log::default();
            for _ in 0..3 {
                append(&mut log, &of(Priority::High));
            }
            // One has read nothing, the other everything.
            let apart = Some(ReadMark { from: 0, written: 0, taken: 0, furthest: (0, 3) });
            assert_eq!(put(&mut log, &of(Priority::Low), apart, messages(3)).0, Err(Full), "nobody is owed a message of low priority");
            let (seq, gone) = put(&mut log, &of(Priority::Normal), apart, messages(3));
            assert_eq!((seq, gone.unread.len(), log.owed()), (Ok(4), 1, 1));
            // The other one began later, and has not read them either.
            let apart = Some(ReadMark { from: 0, written: 0, taken: 0, furthest: (3, 4) });
            let mut log = filled(0);
            for _ in 0..3 {
                append(&mut log, &of(Priority::High));
            }
            assert_eq!(put(&mut log, &of(Priority::Normal), apart, messages(3)).0, Err(Full));
        }

        #[test]
        fn what_nobody_was_sent_is_not_read_because_a_later_device_has_read_on() {
            let mut log = filled(4);
            log.mark_delivered(2, 4);
            let second_device = Some(ReadMark { from: 2, written: 4, taken: 4, furthest: (2, 4) });
            // What the device has read goes, though it is newer.
            let (_, gone) = put(&mut log, &Terms::default(), second_device, messages(4));
            assert_eq!((gone.unread.len(), seqs(&log)), (0, vec![1, 2, 4, 5]));
            let (_, gone) = put(&mut log, &Terms::default(), second_device, messages(3));
            assert_eq!((gone.unread.len(), log.owed(), seqs(&log)), (1, 0, vec![2, 5, 6]), "the first device is gone: nobody is owed it");
        }

        #[test]
        fn what_was_read_gives_way_to_messages_of_others_one_at_a_time() {
            let mut log = filled(3);
            let mut gone = Removed::default();
            assert!(!log.give_way(None, &mut gone) && !log.give_way(read(0), &mut gone));
            assert!(log.give_way(read(2), &mut gone) && log.give_way(read(2), &mut gone) && !log.give_way(read(2), &mut gone));
            assert_eq!(gone, Removed { for_new: smallvec::smallvec![1, 2], ..removed(2) });
            assert!(!log.is_complete_after(1) && log.is_complete_after(2), "whoever resumes before it learns that it is gone");
            log.mark_delivered(0, 3);
            assert!(log.give_way(None, &mut gone) && log.is_empty());
        }

        #[test]
        fn what_only_one_session_was_to_read_is_not_missed_by_others() {
            let mut log = Log::default();
            let session: Arc<str> = "session".into();
            append_for(&mut log, Some(&session), &Terms::default(), KEEP_MS);
            let (_, gone) = put(&mut log, &Terms::default(), read(0), messages(1));
            assert_eq!(gone.of_sessions[..], [(session.clone(), 1)], "the session is behind, and learns it");
            assert_eq!((log.owed(), log.is_complete_after(0)), (0, true), "the others are not");
            append_for(&mut log, Some(&session), &Terms::default(), KEEP_MS);
            append_for(&mut log, Some(&session), &Terms::default(), KEEP_MS);
            let gone = log.forget_session(&session, 3);
            assert_eq!(gone, Removed { unread: unread(&[4], DropReason::Uncollected), ..removed(2) }, "it had read one of them");
            assert_eq!((seqs(&log), log.bytes()), (vec![2], SIZE));
        }
    }

    mod reading {
        use super::*;

        #[test]
        fn what_is_read_and_delivered_settles_from_the_front() {
            let mut log = filled(5);
            assert_eq!(log.settle(None), Removed::default(), "nothing was delivered");
            log.mark_delivered(0, 4);
            assert_eq!(log.settle(read(2)).messages, 2, "a slower session still reads");
            assert_eq!(log.settle(read(5)).messages, 2, "what is on its way may have to be sent again");
            assert_eq!(seqs(&log), [5]);
            log.mark_delivered(0, 99);
            assert_eq!(log.delivered().mark(), 5, "nothing that is still to come is delivered");
            log.mark_delivered(0, 1);
            assert_eq!(log.delivered().mark(), 5, "and it never goes back");
            assert_eq!(log.settle(None), removed(1));
            assert_eq!((log.bytes(), log.entries.capacity()), (0, 0), "an empty log holds no buffer");
            assert_eq!(append(&mut log, &Terms::default()), 6, "a seq is never used again");
        }

        #[test]
        fn what_a_second_device_has_read_settles_although_a_first_one_left_something_unread() {
            let mut log = filled(6);
            log.mark_delivered(0, 2);
            log.mark_delivered(4, 6);
            assert_eq!((log.delivered().mark(), log.delivered().beyond()), (2, &[(4, 6)][..]));
            assert_eq!(log.settle(None).messages, 4);
            assert_eq!(seqs(&log), [3, 4]);
            log.mark_delivered(2, 4);
            assert_eq!((log.delivered().mark(), log.settle(None).messages), (6, 2));
        }

        #[test]
        fn what_is_past_its_time_to_live_is_counted_if_unread_and_never_missed() {
            let mut log = Log::default();
            let short = Terms { time_to_live: Some(Duration::from_secs(1)), ..Terms::default() };
            for terms in [&short, &short, &Terms::default()] {
                append(&mut log, terms);
            }
            let entry = log.after(0).next().unwrap();
            assert!(!entry.is_expired(|| NOW_MS + 999) && entry.is_expired(|| NOW_MS + 1000));
            let gone = log.expire(read(1), KEEP_MS, NOW_MS + 1000);
            assert_eq!(gone, Removed { unread: unread(&[2], DropReason::Expired), ..removed(2) });
            assert!(log.is_complete_after(0));
            assert_eq!(log.owed(), 0);
        }

        #[test]
        fn what_is_kept_for_long_enough_is_missed_by_a_client_that_resumes() {
            let mut log = Log::default();
            for keep_ms in [1000, 1000, 0, KEEP_MS] {
                append_for(&mut log, None, &Terms::default(), keep_ms);
            }
            log.mark_delivered(0, 1);
            let gone = log.expire(None, KEEP_MS, NOW_MS + 1000);
            assert_eq!(gone, Removed { unread: unread(&[2, 3], DropReason::Uncollected), ..removed(3) });
            assert_eq!(seqs(&log), [4]);
            assert!(!log.is_complete_after(1));
            assert!(log.is_complete_after(2), "the third was for open sessions only");
        }

        #[test]
        fn an_open_session_has_the_whole_keep_time_to_read_and_is_then_owed() {
            let mut log = Log::default();
            for _ in 0..2 {
                append_for(&mut log, None, &Terms::default(), 0);
            }
            let gone = log.expire(read(1), KEEP_MS, NOW_MS + 1000);
            assert_eq!((gone.messages, log.owed(), seqs(&log)), (1, 0, vec![2]), "only what was read is over");
            let gone = log.expire(read(1), KEEP_MS, NOW_MS + KEEP_MS);
            assert_eq!((gone, log.owed()), (Removed { unread: unread(&[2], DropReason::Uncollected), ..removed(1) }, 2));
        }

        #[test]
        fn a_clock_that_goes_back_makes_nothing_older() {
            let mut log = Log::default();
            append(&mut log, &Terms { time_to_live: Some(Duration::from_millis(1)), ..Terms::default() });
            append_for(&mut log, None, &Terms::default(), 1);
            assert_eq!(log.expire(None, KEEP_MS, NOW_MS - 10_000), Removed::default());
            assert_eq!(log.expire(None, KEEP_MS, NOW_MS + 1).messages, 2);
            append_for(&mut log, None, &Terms { time_to_live: Some(Duration::MAX), ..Terms::default() }, u64::MAX);
            append_for(&mut log, None, &Terms::default(), u64::MAX);
            assert_eq!(log.expire(None, u64::MAX, u64::MAX - 2), Removed::default(), "and what never ends never does");
        }

        #[test]
        fn only_a_seq_that_was_given_and_lost_nothing_since_is_complete() {
            let mut log = filled(3);
            assert!(log.is_complete_after(0) && log.is_complete_after(3));
            assert!(!log.is_complete_after(4));
            put(&mut log, &Terms::default(), None, messages(3)).0.unwrap();
            assert!(!log.is_complete_after(0) && log.is_complete_after(1));
            assert_eq!(log.marks(), Marks { last: 4, delivered: 0, lost: 1 });
        }
    }

    /// What the walk knows of its own doing.
    #[derive(Default)]
    struct Ledger {
        /// The seqs that a bound or age has cost.
        lost: Vec<u64>,
    }

    /// Takes a simple random walk, which is the same at each run.
    #[test]
    fn a_random_walk_keeps_sums_order_and_the_truth_about_what_was_lost() {
        let mut log = Log::default();
        let mut state: u64 = 42;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let limits = Limits { messages_max: 50, bytes_max: 10_000, keeps_unread: false };
        let (mut messages, mut bytes) = (0, 0);
        let mut ledger = Ledger::default();
        let (mut refused, mut most_apart) = (0, 0);
        for step in 0..20_000_u64 {
            let now_ms = NOW_MS + step;
            let read = (random(2) == 0).then(|| {
                let (from, to) = (random(log.last() + 1), random(log.last() + 2));
                ReadMark { from: from.min(to), written: to, taken: to + random(3), furthest: (from.min(to), to + random(5)) }
            });
            let mut gone = Removed::default();
            let before = seqs(&log);
            let mut is_bound = false;
            match random(9) {
                0 => {
                    let start = log.last().saturating_sub(random(60));
                    log.mark_delivered(start, start + random(10));
                }
                1 => gone = log.settle(read),
                2 => gone = log.expire(read, 200, now_ms),
                3 => {
                    is_bound = true;
                    log.give_way(read, &mut gone);
                }
                _ => {
                    let priority = [Priority::Low, Priority::Normal, Priority::High][random(3) as usize];
                    let time_to_live = (random(3) == 0).then(|| Duration::from_millis(random(50)));
                    let collapse_key: Option<Arc<str>> = (random(3) == 0).then(|| random(3).to_string().into());
                    let terms = Terms { time_to_live, collapse_key: collapse_key.clone(), priority, ..Terms::default() };
                    let message = text(&"x".repeat(random(1000) as usize));
                    let new =
                        New { message: &message, session: None, terms: &terms, keep_ms: random(200), now_ms, commit: Commit::default() };
                    let replaced: Vec<u64> = log
                        .after(0)
                        .filter(|entry| collapse_key.is_some() && entry.collapse_key == collapse_key)
                        .map(|entry| entry.seq)
                        .collect();
                    let last = log.last();
                    match log.put(&new, read, limits, &mut gone) {
                        Ok(seq) => {
                            assert_eq!(seq, last + 1);
                            messages += 1;
                            bytes += new.size();
                            let all: Vec<u64> =
                                before.iter().copied().filter(|seq| log.after(seq - 1).next().unwrap().seq != *seq).collect();
                            let mut for_new = gone.for_new.to_vec();
                            for_new.sort_unstable();
                            assert_eq!(for_new, all, "what has gone for it is named");
                            ledger.lost.extend(all.iter().filter(|seq| !replaced.contains(seq)));
                        }
                        Err(Full) => {
                            assert_eq!((seqs(&log), &gone), (before.clone(), &Removed::default()), "nothing goes for a refused message");
                            log.refuse(priority, read, Commit::default());
                            ledger.lost.push(last + 1);
                            refused += 1;
                        }
                    }
                }
            }
            if is_bound {
                ledger.lost.extend(&gone.for_new);
            }
            messages -= gone.messages;
            bytes -= gone.bytes;
            assert!(gone.unread.len() <= gone.messages, "{gone:?}");
            assert!(log.len() <= 50 && log.bytes() <= 10_000);
            assert_eq!((log.len(), log.bytes()), (messages, bytes));
            assert_eq!(log.bytes(), log.after(0).map(Entry::size).sum::<usize>());
            assert!(seqs(&log).is_sorted_by(|one, next| one < next));
            let Marks { last, delivered, lost } = log.marks();
            assert!(lost <= last && delivered <= last && log.owed() <= last);
            let lost_at_least = ledger.lost.iter().copied().max().unwrap_or(0);
            assert!(lost_at_least == 0 || !log.is_complete_after(lost_at_least - 1), "a loss to a bound is never denied");
            let beyond = log.delivered().beyond();
            assert!(beyond.is_sorted_by(|(_, to), (after, _)| to < after) && beyond.iter().all(|(after, to)| after < to && *to <= last));
            most_apart = most_apart.max(beyond.len());
        }
        assert!(log.last() > 5_000 && refused > 50 && most_apart > 1, "the walk went somewhere: {} {refused} {most_apart}", log.last());
    }
}
