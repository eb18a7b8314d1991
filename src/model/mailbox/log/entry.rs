//! An entry of a log, which is one message; the message that is about to become one; and the record of those that were removed.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::types::delivery::{Message, Priority, Terms};
use crate::types::drop_reason::DropReason;

/// Bytes that an entry counts in addition to its texts.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 256;

/// A time that never comes, in milliseconds.
pub const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub struct Entry {
    pub seq: u64,
    pub message: Arc<Message>,
    /// The only session that may read it; `None`: all.
    pub session: Option<Arc<str>>,
    pub(super) collapse_key: Option<Arc<str>>,
    pub(super) priority: Priority,
    /// Milliseconds since the Unix epoch. The clock may have gone back since: an age is never negative.
    posted_ms: u64,
    ttl_ms: u64,
    pub(super) keep_ms: u64,
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

impl Entry {
    pub(super) fn new(seq: u64, new: &New<'_>) -> Entry {
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

    /// Returns whether readers see it, since this commit is stored.
    pub fn is_shown(&self, stored: u64) -> bool {
        self.commit <= stored
    }

    pub fn size(&self) -> usize {
        size_of(&self.message, self.collapse_key.as_deref())
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

    pub(super) fn is_past(&self, age_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.posted_ms) >= age_ms
    }
}

impl New<'_> {
    /// Returns the bytes that it counts.
    pub fn size(&self) -> usize {
        size_of(self.message, self.terms.collapse_key.as_deref())
    }

    pub(super) fn replaces(&self, entry: &Entry) -> bool {
        self.terms.collapse_key.is_some() && entry.collapse_key == self.terms.collapse_key && entry.session.as_ref() == self.session
    }
}

impl Removed {
    pub(super) fn note(&mut self, entry: &Entry) {
        self.messages += 1;
        self.bytes += entry.size();
    }

    pub(super) fn miss(&mut self, is_unread: bool, seq: u64, reason: DropReason) {
        self.unread.extend(is_unread.then_some((seq, reason)));
    }
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
