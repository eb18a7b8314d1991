//! The reading side of a mailbox: a session's cursor.

use std::cell::LazyCell;
use std::sync::Arc;

use smallvec::SmallVec;

use super::seqs::is_in;
use super::{Content, Mailbox, Mailboxes};
use crate::registry::SessionHandle;
use crate::types::close::Close;
use crate::types::delivery::Message;
use crate::types::drop_reason::DropReason;

/// One session's cursor in its user's mailbox. Dropping it leaves the mailbox, if it has not left before.
#[derive(Debug)]
pub struct Reader {
    pub(super) mailboxes: Arc<Mailboxes>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) handle: Arc<SessionHandle>,
    /// Stretches that another device has read before this session came.
    skips: Vec<(u64, u64)>,
    /// Messages up to this seq don't count as missed by this session. `None` until it has read its first page: until then it is not slow.
    excused: Option<u64>,
    /// Whether the session outlives the reader.
    stays: bool,
}

/// The newest position of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The seq of the newest message.
    pub seq: u64,
    /// Whether there is anything to resume from.
    pub is_resumable: bool,
}

/// Messages with their seqs. A session mostly reads one.
pub type Batch = SmallVec<[(u64, Arc<Message>); 1]>;

/// What a session may read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// There are more messages. These are complete up to the seq `upto`.
    More { upto: u64 },
    /// There are no more messages.
    End { upto: u64 },
    /// The session has missed something that it was owed: it has fallen behind too far.
    Missed,
}

/// Where a resumed session stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Whether everything after `from` follows that is still wanted; if not, something is missing.
    pub recovered: bool,
    pub from: u64,
}

impl Reader {
    pub(super) fn new(mailboxes: Arc<Mailboxes>, mailbox: Arc<Mailbox>, handle: Arc<SessionHandle>, skips: Vec<(u64, u64)>) -> Reader {
        Reader { mailboxes, mailbox, handle, skips, excused: None, stays: false }
    }

    pub fn handle(&self) -> &Arc<SessionHandle> {
        &self.handle
    }

    /// Returns the epoch of the mailbox.
    pub fn epoch(&self) -> String {
        self.mailboxes.epoch(&self.mailbox)
    }

    pub fn head(&self) -> Head {
        let content = self.mailbox.content.lock();
        Head { seq: content.log.last_shown(self.mailboxes.stored()), is_resumable: !content.log.is_empty() }
    }

    /// Makes a provisional session one of the user's sessions. The first device begins with what was kept, another one with what has come
    /// since it was opened.
    ///
    /// # Errors
    /// The user has too many sessions. This one stays provisional until it leaves.
    pub fn admit(&mut self) -> Result<(), Close> {
        let mut guard = self.mailbox.content.lock();
        let content = &mut *guard;
        let replaced = self.mailboxes.registry.admit(&mut content.sessions, &self.handle)?;
        replaced.iter().for_each(|old| self.mailboxes.settle_up(self.mailbox.birth, content, old));
        self.skips = place(content, &self.handle);
        content.is_resumable |= self.handle.resumes;
        self.mailboxes.note_later(&self.handle.user, &self.mailbox, content);
        self.handle.wake();
        Ok(())
    }

    /// Leaves the mailbox: the session reads nothing more.
    pub fn leave(&self) {
        self.mailboxes.leave(&self.handle, &self.mailbox);
    }

    /// Lets the session stay in the mailbox without this reader: another node has its socket.
    pub fn stay(mut self) {
        self.stays = true;
    }

    /// Reads on from the cursor, into `out`, until it holds `bytes_max` bytes of messages or all there are. The cursor stays until
    /// [`Reader::advance`].
    pub fn page(&mut self, bytes_max: usize, out: &mut Batch) -> Page {
        let mut content = self.mailbox.content.lock();
        let cursor = self.handle.cursor();
        let now_ms = LazyCell::new(|| self.mailboxes.clock.now_ms());
        if content.log.after(cursor).any(|entry| entry.is_expired(|| *now_ms)) {
            self.mailboxes.expire((&self.handle.user, self.mailbox.birth), &mut content);
        }
        let owed = content.log.owed();
        if owed > cursor.max(*self.excused.get_or_insert(owed)) {
            return Page::Missed;
        }
        let mut upto = cursor;
        let mut bytes = 0;
        let stored = self.mailboxes.stored();
        for entry in content.log.after(cursor) {
            if !entry.is_shown(stored) {
                return Page::End { upto };
            }
            if bytes >= bytes_max {
                return Page::More { upto };
            }
            upto = entry.seq;
            let is_for_it = entry.session.as_ref().is_none_or(|session| *session == self.handle.id);
            if is_for_it && !is_in(&self.skips, entry.seq) {
                bytes += entry.size();
                out.push((entry.seq, entry.message.clone()));
            }
        }
        // Seqs without a message are behind it as well.
        Page::End { upto: content.log.last_shown(stored).max(cursor) }
    }

    /// Returns whether [`Reader::page`] would return [`Page::Missed`]. For a session that reads no page because its client doesn't read.
    pub fn has_missed(&self) -> bool {
        let owed = self.mailbox.content.lock().log.owed();
        self.excused.is_some_and(|excused| owed > self.handle.cursor().max(excused))
    }

    /// Counts a message that this session does not get, for a reason of formatting.
    pub fn dropped(&self, seq: u64, reason: DropReason) {
        self.mailboxes.lost(self.mailbox.birth, seq, reason);
    }

    /// Notes that the session has taken everything up to `seq`.
    pub fn advance(&self, seq: u64) {
        self.handle.advance(seq);
    }

    /// Notes that everything which the session has taken was written, and so was read as far as anyone can know. A client that may ack is
    /// given until it leaves.
    pub fn written(&self) {
        let seq = self.handle.cursor();
        self.handle.note_written(seq);
        if !self.handle.resumes {
            let mut content = self.mailbox.content.lock();
            content.log.mark_delivered(self.handle.position().0, seq);
            self.mailboxes.tidy(self.mailbox.birth, &mut content);
            self.mailboxes.note_later(&self.handle.user, &self.mailbox, &mut content);
        }
        self.moved();
    }

    /// Notes that the session is behind everything up to its cursor, of which nothing was for it.
    pub fn passed(&self) {
        let seq = self.handle.cursor();
        if self.handle.written() < seq {
            self.handle.note_written(seq);
            self.moved();
        }
    }

    /// Has another node told how far the session is, if that one decides.
    fn moved(&self) {
        if !self.mailboxes.decides() {
            self.mailboxes.tell_later(&self.handle.user, &self.mailbox, &mut self.mailbox.content.lock());
        }
    }

    /// Notes that the client has acked everything up to `seq`. Only messages that it was sent count.
    pub fn acked(&self, seq: u64) {
        let mut content = self.mailbox.content.lock();
        let (start, cursor) = self.handle.position();
        content.is_acked = true;
        content.log.mark_delivered(start, seq.min(cursor));
        self.mailboxes.tidy(self.mailbox.birth, &mut content);
        self.mailboxes.note_later(&self.handle.user, &self.mailbox, &mut content);
    }

    /// Goes on after what the client has seen. What this session has sent is sent again only if something before it was not.
    pub fn resume(&mut self, epoch: &str, seq: u64) -> Resumed {
        let is_same = epoch == self.epoch();
        let content = self.mailbox.content.lock();
        let recovered = is_same && content.log.is_complete_after(seq);
        // If the seq is from another life of the mailbox, the client has seen nothing of this one.
        let seen = if is_same { seq.min(content.log.last()) } else { 0 };
        let (start, cursor) = self.handle.position();
        let is_skipped = |entry: &super::log::Entry| entry.seq <= start || is_in(&self.skips, entry.seq);
        let is_any_skipped = content.log.after(seen).any(is_skipped);
        // If any was skipped, what comes now was not written yet, or is written again.
        let (cursor, written) = if is_any_skipped { (seen, seen) } else { (cursor.max(seen), self.handle.written().max(seen)) };
        self.handle.place(start.min(seen), cursor, written);
        self.skips = Vec::new();
        // A message that is lost from now on makes the answer untrue, so it counts as missed.
        self.excused = Some(content.log.owed());
        Resumed { recovered, from: seen }
    }

    /// Goes on from where the session is.
    pub fn begin(&mut self) -> Resumed {
        let content = self.mailbox.content.lock();
        let from = self.handle.cursor();
        self.excused = Some(content.log.owed());
        Resumed { recovered: content.log.is_complete_after(from), from }
    }
}

/// Has the first device begin with what was not delivered. Returns the stretches that another device has read.
pub(super) fn place(content: &Content, handle: &SessionHandle) -> Vec<(u64, u64)> {
    if content.sessions.admitted().count() > 1 {
        return Vec::new();
    }
    let delivered = content.log.delivered();
    handle.place(delivered.mark(), delivered.mark(), delivered.mark());
    delivered.beyond().to_vec()
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.stays {
            self.leave();
        }
    }
}
