//! What a store learns of the mailboxes, and what it gives back after a restart.
//!
//! A post notes itself. What readers have read, and what has expired, is noted later, for each mailbox at most once in each round of
//! [`Mailboxes::note_marks`]: nobody waits for it. A mailbox in which nothing is kept, and from which nobody can resume, notes nothing.

#[cfg(test)]
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::log::{Limits, Log, Marks, Removed};
use super::{Content, Mailbox, Mailboxes, Unnoted};
use crate::model::fold;
use crate::model::record::{Change, Changes, Mark};
use crate::types::event::UserId;

/// How far the seqs run ahead of the last noted one before they are noted, although nothing is kept. Below half of [`JUMP`].
const AHEAD_MAX: u64 = JUMP / 4;

/// How far the seqs of every mailbox jump if the last process did not note its last ones: no seq is given twice. Gaps are normal, and 2^53
/// has room for eight thousand million jumps.
pub const JUMP: u64 = 1 << 20;

/// What was noted of a mailbox.
#[derive(Debug, Default)]
pub(super) struct Noted {
    mark: Mark,
    /// The newest message that was noted.
    newest: u64,
    /// Messages that a sink is done with while older ones wait, since the last mark.
    done: Vec<u64>,
    /// Whether the mailbox waits for its mark to be noted.
    is_waiting: bool,
}

impl Noted {
    /// Notes that a message was noted.
    pub(super) fn post(&mut self, seq: u64) {
        self.newest = seq;
        self.mark.last = self.mark.last.max(seq);
    }

    /// Notes a mark that another node has noted.
    pub(super) fn absorb(&mut self, mark: Mark) {
        self.mark = Mark { last: self.mark.last.max(mark.last), delivered: self.mark.delivered.max(mark.delivered), ..mark };
    }

    /// Has the next mark note that a sink is done with a message.
    pub(super) fn done(&mut self, seq: u64) {
        self.done.push(seq);
    }
}

impl Content {
    /// Returns the change that notes the state of this mailbox.
    pub(super) fn mark(&mut self, user: &UserId, birth: u64, mut removed: Vec<(u64, u64)>) -> Change {
        let now = self.mark_now();
        let mark = Mark { version: now.version + 1, ..now };
        let done = std::mem::take(&mut self.noted.done).into_iter();
        removed.extend(done.filter(|seq| *seq > mark.delivered).map(|seq| (seq - 1, seq)));
        self.noted.mark = mark;
        Change::Mark { user: user.clone(), birth, mark, removed }
    }

    /// Returns the mark of this mailbox as it is, which is not noted by that.
    pub(super) fn mark_now(&self) -> Mark {
        let Marks { last, delivered, lost } = self.log.marks();
        Mark { version: self.noted.mark.version, last, delivered, lost, is_resumable: self.is_resumable, is_acked: self.is_acked }
    }

    /// Returns whether a restart would change what a client may see, if it came before the next mark.
    fn is_unnoted(&self) -> bool {
        let Noted { mark, newest, done, .. } = &self.noted;
        let now = self.log.marks();
        !done.is_empty()
            || (mark.delivered < now.delivered && mark.delivered < *newest)
            || mark.lost < now.lost
            || mark.last + AHEAD_MAX < now.last
            || (mark.is_resumable, mark.is_acked) != (self.is_resumable, self.is_acked)
    }
}

impl Mailboxes {
    /// Has a mailbox's mark noted in the next round, if there is something to note.
    pub(super) fn note_later(&self, user: &UserId, mailbox: &Arc<Mailbox>, content: &mut Content) {
        if self.unnoted.is_some() && !content.noted.is_waiting && content.is_unnoted() {
            self.tell_later(user, mailbox, content);
        }
    }

    /// Has it told in the next round how far this node's sessions are.
    pub(super) fn tell_later(&self, user: &UserId, mailbox: &Arc<Mailbox>, content: &mut Content) {
        let Some(unnoted) = &self.unnoted else { return };
        if !content.noted.is_waiting {
            content.noted.is_waiting = true;
            unnoted.lock().push((user.clone(), mailbox.clone()));
        }
    }

    /// Takes the mailboxes of which something is to be noted or told.
    pub(super) fn take_unnoted(&self) -> Unnoted {
        let waiting = self.unnoted.as_ref().map(|unnoted| std::mem::take(&mut *unnoted.lock())).unwrap_or_default();
        waiting.iter().for_each(|(_, mailbox)| mailbox.content.lock().noted.is_waiting = false);
        waiting
    }

    /// Notes the marks of the mailboxes that have changed since the last round.
    pub fn note_marks(&self, changes: &mut Changes) {
        for (user, mailbox) in self.take_unnoted() {
            let mut content = mailbox.content.lock();
            changes.note(|| content.mark(&user, mailbox.birth, Vec::new()));
        }
    }

    /// Notes the newest seq of every mailbox that a client may resume from. For an orderly stop: the next process goes on from there.
    pub fn note_all_marks(&self, changes: &mut Changes) {
        self.note_marks(changes);
        for shard in &self.shards {
            for (user, mailbox) in &*shard.lock() {
                let mut content = mailbox.content.lock();
                if content.noted.mark.last < content.log.last() && (content.is_resumable || !content.log.is_empty()) {
                    changes.note(|| content.mark(user, mailbox.birth, Vec::new()));
                }
            }
        }
    }

    /// Notes again, from this mailbox, those of these messages that are still in it, and its state. Returns whether it exists.
    pub fn note_again(&self, user: &UserId, birth: u64, seqs: &[u64], changes: &mut Changes) -> bool {
        let Some(mailbox) = self.find(user.as_str()).filter(|mailbox| mailbox.birth == birth) else { return false };
        let mut content = mailbox.content.lock();
        let lost = content.log.marks().lost;
        let mut removed = Vec::new();
        let mut before = 0;
        for entry in content.log.after(0) {
            if before < entry.seq - 1 {
                removed.push((before, entry.seq - 1));
            }
            before = entry.seq;
            if seqs.binary_search(&entry.seq).is_ok() && entry.is_kept() {
                let (posted_ms, message) = (entry.posted_ms(), entry.message.clone());
                changes.note(|| Change::Post {
                    user: user.clone(),
                    birth,
                    seq: entry.seq,
                    posted_ms,
                    message,
                    session: None,
                    lost,
                    removed: Vec::new(),
                });
            }
        }
        if before < content.log.last() {
            removed.push((before, content.log.last()));
        }
        changes.note(|| content.mark(user, birth, removed));
        true
    }

    /// Puts back what a store has kept, except for what has expired since. `jump`: how far each mailbox's seqs jump. `is_incomplete`: any of
    /// them may lack messages.
    pub fn restore(&self, kept: HashMap<UserId, fold::Mailbox>, jump: u64, is_incomplete: bool) {
        for (user, mailbox) in kept {
            let sink = self.sink(&user);
            let (keep_max_ms, Limits { messages_max, bytes_max, .. }) = (self.keep_max_ms(sink.as_deref()), self.limits(sink.as_deref()));
            let fold::Mailbox { birth, mark, entries, .. } = mailbox;
            self.last_birth.fetch_max(birth, Ordering::Relaxed);
            let last = mark.last + jump;
            let marks = Marks { last, delivered: mark.delivered, lost: if is_incomplete { last } else { mark.lost } };
            let newest = entries.keys().next_back().copied().unwrap_or_default();
            let messages = entries.into_iter().map(|(seq, entry)| (seq, entry.posted_ms, entry.message));
            let mut content = Content::new(Log::restored(marks, messages, keep_max_ms), sink, self.clock.now_ms());
            (content.is_resumable, content.is_acked) = (mark.is_resumable, mark.is_acked);
            content.noted = Noted { mark, newest, ..Noted::default() };
            self.usage.add(content.log.len(), content.log.bytes());
            self.expire((&user, birth), &mut content);
            self.tidy(birth, &mut content);
            // The bounds may be lower than they were.
            let is_over = |log: &Log| log.len() > messages_max || log.bytes() > bytes_max;
            let mut removed = Removed::default();
            while is_over(&content.log) && content.log.give_up_oldest(&mut removed) {
                self.account(birth, &content.sessions, &std::mem::take(&mut removed));
            }
            if self.is_idle(&content) {
                continue;
            }
            self.usage.add_mailbox();
            let mailbox = Arc::new(Mailbox { birth, content: Mutex::new(content) });
            self.note_later(&user, &mailbox, &mut mailbox.content.lock());
            self.shard(&user).lock().insert(user, mailbox);
        }
        self.restore_bounds();
    }

    /// Removes what is beyond the bounds of all mailboxes: first what was read, as ever, and then the oldest of each.
    fn restore_bounds(&self) {
        if self.usage.is_over() {
            self.reclaim(|usage| !usage.is_over());
        }
        let mut is_any = true;
        while self.usage.is_over() && is_any {
            is_any = false;
            for shard in &self.shards {
                for (user, mailbox) in &*shard.lock() {
                    let (mut content, mut removed) = (mailbox.content.lock(), Removed::default());
                    if self.usage.is_over() && content.log.give_up_oldest(&mut removed) {
                        is_any = true;
                        self.account(mailbox.birth, &content.sessions, &removed);
                        self.note_later(user, mailbox, &mut content);
                    }
                }
            }
        }
    }

    /// Has the births of new mailboxes go on after this one.
    pub fn begin_births_after(&self, birth: u64) {
        self.last_birth.fetch_max(birth, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Mailboxes {
    /// Returns the birth, the marks and the seqs of every mailbox, by user.
    pub fn all(&self) -> BTreeMap<UserId, (u64, Marks, Vec<u64>)> {
        let seqs = |content: &Content| content.log.after(0).map(|entry| entry.seq).collect();
        let view = |mailbox: &Mailbox| {
            let content = mailbox.content.lock();
            (mailbox.birth, content.log.marks(), seqs(&content))
        };
        let shards = self.shards.iter().map(|shard| shard.lock());
        shards.flat_map(|shard| shard.iter().map(|(user, mailbox)| (user.clone(), view(mailbox))).collect::<Vec<_>>()).collect()
    }
}
