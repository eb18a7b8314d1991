//! One user's ordered log: what is in it, what replaces what, and what goes when it is full. Pure: time is an argument.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::{Message, Priority, Terms};

/// What an entry costs beside its message's body.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Entries in the order of their seq. Gaps are normal: an entry that was replaced or has expired leaves one.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    bytes: usize,
    last: u64,
    lost: u64,
    delivered: u64,
}

#[derive(Debug)]
pub struct Entry {
    pub seq: u64,
    pub message: Arc<Message>,
    /// The only session that may read it; `None`: all.
    pub session: Option<Arc<str>>,
    terms: Terms,
    posted: Instant,
    keep: Duration,
}

impl Entry {
    pub fn size(&self) -> usize {
        entry_size(&self.message)
    }

    pub fn expired(&self, now: Instant) -> bool {
        self.terms.time_to_live.is_some_and(|time| self.posted + time <= now)
    }
}

/// What making room or the passing of time did, for the counters and for the sessions that it concerns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub messages: usize,
    pub bytes: usize,
    /// Of these, past their time to live before everybody had read them.
    pub expired: usize,
    /// Of these, kept for as long as was asked, and nobody came.
    pub uncollected: usize,
    /// Of these, replaced by a newer one with the same key.
    pub collapsed: usize,
    /// Of these, dropped unread because the mailbox was full.
    pub evicted: usize,
    /// Sessions that have not read up to here have missed something that they were owed.
    pub owed: Option<u64>,
}

impl Removed {
    fn note(&mut self, entry: &Entry) {
        self.messages += 1;
        self.bytes += entry.size();
    }
}

/// The new entry is less important than everything that fills the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Log {
    pub fn new() -> Log {
        Log { entries: VecDeque::new(), bytes: 0, last: 0, lost: 0, delivered: 0 }
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

    /// The seq of the newest entry ever; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Up to here some session has been sent everything (or, with acks, has acked it).
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    pub fn mark_delivered(&mut self, seq: u64) {
        self.delivered = self.delivered.max(seq.min(self.last));
    }

    /// Whether a reader who has read up to `seq` can be given all that came after it and is still wanted.
    pub fn complete_after(&self, seq: u64) -> bool {
        self.lost <= seq && seq <= self.last
    }

    /// Makes room for one more message and removes what it replaces. `read` is how far every open session has read, `None`
    /// where none is open.
    ///
    /// # Errors
    /// [`Full`]: nothing here may go for a message of this priority. What was removed up to then is in `removed`.
    pub fn make_room(
        &mut self,
        message: &Message,
        terms: &Terms,
        read: Option<u64>,
        limits: (usize, usize),
        removed: &mut Removed,
    ) -> Result<(), Full> {
        let (messages_max, bytes_max) = limits;
        let size = entry_size(message);
        while self.entries.len() >= messages_max || self.bytes + size > bytes_max {
            let Some(index) = self.victim(read, terms.priority) else { return Err(Full) };
            self.evict(index, read, removed);
        }
        Ok(())
    }

    /// Removes entries with this key, for the same readers.
    pub fn collapse(&mut self, key: &str, session: Option<&Arc<str>>, removed: &mut Removed) {
        self.remove_where(
            |entry| entry.terms.collapse_key.as_deref() == Some(key) && entry.session.as_ref() == session,
            |entry| {
                removed.note(entry);
                removed.collapsed += 1;
            },
        );
    }

    /// Appends, and returns the new entry's seq.
    pub fn append(&mut self, message: Arc<Message>, session: Option<Arc<str>>, terms: Terms, keep: Duration, now: Instant) -> u64 {
        self.last += 1;
        self.bytes += entry_size(&message);
        self.entries.push_back(Entry { seq: self.last, message, session, terms, posted: now, keep });
        self.last
    }

    /// Entries after `seq`, in order.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &Entry> {
        let start = self.entries.partition_point(|entry| entry.seq <= seq);
        self.entries.range(start..)
    }

    /// Removes from the front what has been delivered and read by every open session. For mailboxes from which nobody can resume.
    pub fn settle(&mut self, read: Option<u64>) -> Removed {
        let mut removed = Removed::default();
        let settled = read.map_or(self.delivered, |read| read.min(self.delivered));
        while self.entries.front().is_some_and(|entry| entry.seq <= settled) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.size();
                removed.note(&entry);
            }
        }
        self.shrink();
        removed
    }

    /// Removes what has expired or was kept for long enough. An open session that has not read something for `keep_max` is owed it.
    pub fn expire(&mut self, read: Option<u64>, keep_max: Duration, now: Instant) -> Removed {
        let mut removed = Removed::default();
        let collected = read.unwrap_or(self.delivered);
        let mut lost = self.lost;
        self.remove_where(
            |entry| {
                let kept = if read.is_some() && entry.seq > collected { keep_max } else { entry.keep };
                entry.expired(now) || entry.posted + kept <= now
            },
            |entry| {
                removed.note(entry);
                let unread = usize::from(entry.seq > collected);
                if entry.expired(now) {
                    removed.expired += unread;
                    return;
                }
                removed.uncollected += unread;
                if unread > 0 {
                    removed.owed = removed.owed.max(read.map(|_| entry.seq));
                }
                // What was never to be kept is not missed by whoever was away; all else is.
                if !entry.keep.is_zero() {
                    lost = lost.max(entry.seq);
                }
            },
        );
        self.lost = lost;
        removed
    }

    /// The entry that goes next: what everyone has read, else the oldest of the least important, if it may go for a message of
    /// this priority.
    fn victim(&self, read: Option<u64>, priority: Priority) -> Option<usize> {
        let settled = read.unwrap_or(self.delivered);
        if self.entries.front()?.seq <= settled {
            return Some(0);
        }
        let least = self.entries.iter().map(|entry| entry.terms.priority).min()?;
        if least > priority {
            return None;
        }
        self.entries.iter().position(|entry| entry.terms.priority == least)
    }

    fn evict(&mut self, index: usize, read: Option<u64>, removed: &mut Removed) {
        let Some(entry) = self.entries.remove(index) else { return };
        self.bytes -= entry.size();
        self.lost = self.lost.max(entry.seq);
        removed.note(&entry);
        if entry.seq > read.unwrap_or(self.delivered) {
            removed.evicted += 1;
            // A message of low priority may be dropped for a reader who has fallen behind; any other is owed to them.
            if entry.terms.priority > Priority::Low {
                removed.owed = removed.owed.max(read.map(|_| entry.seq));
            }
        }
    }

    fn remove_where(&mut self, goes: impl Fn(&Entry) -> bool, mut note: impl FnMut(&Entry)) {
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            let goes = goes(entry);
            if goes {
                *bytes -= entry.size();
                note(entry);
            }
            !goes
        });
        self.shrink();
    }

    /// An empty log holds no buffer.
    fn shrink(&mut self) {
        if self.entries.is_empty() && self.entries.capacity() > 4 {
            self.entries = VecDeque::new();
        }
    }
}

fn entry_size(message: &Message) -> usize {
    message.body.size() + ENTRY_OVERHEAD_BYTES
}
