//! Eviction: a full log makes room for a new message. It removes what the message replaces, then what was read, then what is less important.

use super::entry::{Entry, New, Removed};
use super::{Full, Limits, Log, is_settled, remove};
use crate::registry::ReadMark;
use crate::types::delivery::Priority;
use crate::types::drop_reason::DropReason;

impl Log {
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
}

/// Returns whether an entry that a session has still to read may be removed for a message of this priority. A device that reads has
/// precedence over one that is stuck: an entry that it has read doesn't keep a new message from it.
fn may_go(entry: &Entry, priority: Priority, read: Option<ReadMark>) -> bool {
    entry.priority <= priority || (priority > Priority::Low && read.is_some_and(|read| read.is_read(entry.seq)))
}
