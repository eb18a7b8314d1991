//! One user's ordered log: its messages, which of them replace others, and which are removed when it is full. Pure: time is an argument,
//! and so is how far the sessions have read ([`ReadMark`]).

mod entry;
mod eviction;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

pub use entry::{Commit, Entry, NEVER, New, Removed, kept_for};

use super::seqs::Seqs;
use crate::registry::ReadMark;
use crate::types::delivery::{Message, Priority};
use crate::types::drop_reason::DropReason;

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

/// What one log may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub messages_max: usize,
    pub bytes_max: usize,
    /// Whether a full log refuses a new message rather than lose an unread one.
    pub keeps_unread: bool,
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

    /// Keeps every message for as long as its terms say, and for this long at most.
    pub fn keep_within(&mut self, keep_max_ms: u64) {
        self.entries.iter_mut().for_each(|entry| entry.keep_ms = kept_for(&entry.message.terms, keep_max_ms));
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
