//! The reading side of a mailbox: a session's cursor.

use std::cell::LazyCell;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Content, Mailbox, Mailboxes, SessionHandle};
use crate::types::delivery::Message;

/// One session's cursor in its user's mailbox. Dropping it leaves the mailbox, if it has not left before.
#[derive(Debug)]
pub struct Reader {
    pub(super) mailboxes: Arc<Mailboxes>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) handle: Arc<SessionHandle>,
}

/// Where a resumed session stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Everything after `from` that is still wanted follows; else something is missing.
    pub recovered: bool,
    pub from: u64,
}

impl Reader {
    pub fn handle(&self) -> &Arc<SessionHandle> {
        &self.handle
    }

    pub fn epoch(&self) -> &str {
        &self.mailbox.epoch
    }

    /// Gives the place in the mailbox up: there is nothing more to read.
    pub fn leave(&self) {
        self.mailboxes.leave(&self.handle, &self.mailbox);
    }

    /// The seq of the newest message, and whether there is anything that a client could resume from.
    pub fn position(&self) -> (u64, bool) {
        let content = self.mailbox.content.lock();
        (content.log.last(), !content.log.is_empty())
    }

    /// Reads on from the cursor, into `out`, until it holds `bytes_max` bytes of messages or all there are. Says whether there are more.
    pub fn take(&self, bytes_max: usize, out: &mut Vec<(u64, Arc<Message>)>) -> bool {
        let mut content = self.mailbox.content.lock();
        let Some(cursor) = content.handles.iter().find(|taken| Arc::ptr_eq(&taken.handle, &self.handle)).map(|taken| taken.cursor) else {
            return false;
        };
        let now = LazyCell::new(Instant::now);
        if content.log.after(cursor).any(|entry| entry.expired(|| *now)) {
            self.mailboxes.expire(&mut content);
        }
        let mut last = cursor;
        let mut bytes = 0;
        for entry in content.log.after(cursor) {
            if bytes >= bytes_max {
                break;
            }
            last = entry.seq;
            if entry.session.as_ref().is_none_or(|session| *session == self.handle.id) {
                bytes += entry.size();
                out.push((entry.seq, entry.message.clone()));
            }
        }
        if let Some(taken) = content.handles.iter_mut().find(|taken| Arc::ptr_eq(&taken.handle, &self.handle)) {
            taken.cursor = last;
        }
        content.log.last() > last
    }

    /// Everything up to `seq` has reached the client, as far as anyone can know: it was written, or acked.
    pub fn delivered(&self, seq: u64) {
        let mut content = self.mailbox.content.lock();
        let Some(start) = content.handles.iter().find(|taken| Arc::ptr_eq(&taken.handle, &self.handle)).map(|taken| taken.start) else {
            return;
        };
        content.log.mark_delivered(start, seq);
        self.mailboxes.tidy(&mut content);
    }

    /// Goes on after what the client has seen. What this session has sent is sent again only if something before it was not.
    pub fn resume(&self, epoch: &str, seq: u64) -> Resumed {
        let mut content = self.mailbox.content.lock();
        let Content { log, handles, .. } = &mut *content;
        let same = epoch == self.mailbox.epoch;
        let recovered = same && log.complete_after(seq);
        // In another life of the mailbox the client has seen nothing of what is here.
        let seen = if same { seq.min(log.last()) } else { 0 };
        let Some(taken) = handles.iter_mut().find(|taken| Arc::ptr_eq(&taken.handle, &self.handle)) else {
            return Resumed { recovered: false, from: seen };
        };
        let skipped = log.after(seen).next().is_some_and(|entry| entry.seq <= taken.start);
        taken.cursor = if skipped { seen } else { taken.cursor.max(seen) };
        taken.start = taken.start.min(seen);
        Resumed { recovered, from: seen }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.leave();
    }
}
