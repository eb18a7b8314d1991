//! A sink's mailbox and its reader. It is a mailbox like others, except that nothing unread is lost in it: a full one refuses what is new, and
//! its reader decides how long a message matters.
//!
//! The reader may have done with messages in any order. It stays provisional, so that it is not counted as a user's session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::log::Entry;
use super::{Limits, Mailboxes, Reader};
use crate::config::{Config, Sink};
use crate::registry::SessionHandle;
use crate::types::close::Close;
use crate::types::delivery::Message;
use crate::types::event::{self, UserId};
use crate::types::pattern::any_matches;

/// Messages that have expired unread and that sinks are not told of yet. There are more only if a crowd's messages expire within the interval in
/// which sinks are told, as after a restart; further ones are counted.
const EXPIRED_MAX: usize = 10_000;

/// What sinks have to do with mailboxes.
#[derive(Debug)]
pub struct SinkRules {
    /// What the mailbox of each sink may hold.
    pub(super) limits: ArcSwap<HashMap<UserId, Arc<Limits>>>,
    /// Whether a sink hears of messages that have expired unread.
    hears_expired: AtomicBool,
    /// Those of which no sink was told yet.
    expired: Mutex<Vec<Expired>>,
}

/// A message that nobody has read in time.
#[derive(Clone, Debug)]
pub struct Expired {
    pub user: UserId,
    pub message: Arc<Message>,
}

impl SinkRules {
    pub fn new(config: &Config) -> SinkRules {
        let limits = ArcSwap::from_pointee(limits(config));
        SinkRules { limits, hears_expired: AtomicBool::new(hears_expired(config)), expired: Mutex::default() }
    }
}

fn hears_expired(config: &Config) -> bool {
    let hears = |sink: &Sink| any_matches(&sink.events, event::MESSAGE_EXPIRED) && any_matches(&sink.sources, event::SERVER);
    config.sinks.values().any(hears)
}

fn limits(config: &Config) -> HashMap<UserId, Arc<Limits>> {
    let limits = config.sinks.keys().map(|name| {
        let limits = config.sink_limits_for(name);
        let limits = Limits { messages_max: limits.messages_max.get(), bytes_max: limits.bytes_max.get(), keeps_unread: true };
        (UserId::of_sink(name), Arc::new(limits))
    });
    limits.collect()
}

/// The reader of a sink's mailbox.
#[derive(Debug)]
pub struct SinkReader {
    reader: Reader,
}

/// A message that a sink has taken from its mailbox.
#[derive(Clone, Debug)]
pub struct Taken {
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub posted_ms: u64,
    pub message: Arc<Message>,
}

impl Mailboxes {
    /// Returns what notes messages that expire unread, if a sink hears of them.
    pub(super) fn note_expired(&self, user: &UserId) -> Option<impl FnMut(&Entry)> {
        let expired = &self.sinks.expired;
        let is_heard = !user.is_internal() && self.sinks.hears_expired.load(Ordering::Relaxed);
        is_heard.then_some(move |entry: &Entry| {
            let mut expired = expired.lock();
            // What was for one session says nothing of a user who was away.
            if entry.session.is_none() && expired.len() < EXPIRED_MAX {
                expired.push(Expired { user: user.clone(), message: entry.message.clone() });
            } else if entry.session.is_none() {
                self.metrics.expired_untold.inc();
            }
        })
    }

    /// Takes the messages that have expired unread since the last call.
    pub fn take_expired(&self) -> Vec<Expired> {
        std::mem::take(&mut *self.sinks.expired.lock())
    }

    /// Follows another configuration of the sinks. What waits for a sink that is not there any more is kept as long as messages for a user.
    pub fn set_sinks(&self, config: &Config) {
        self.sinks.hears_expired.store(hears_expired(config), Ordering::Relaxed);
        let next = Arc::new(limits(config));
        let before = self.sinks.limits.swap(next.clone());
        for user in before.keys().chain(next.keys().filter(|user| !before.contains_key(*user))) {
            let Some(mailbox) = self.shard(user).lock().get(user).cloned() else { continue };
            let mut content = mailbox.content.lock();
            content.sink = self.sink(user);
            let keep_max_ms = self.keep_max_ms(content.sink.as_deref());
            content.log.keep_within(keep_max_ms);
        }
    }

    /// Opens a sink's mailbox for its only reader, which begins with what was not delivered before.
    ///
    /// # Errors
    /// The mailbox has as many sessions as the configuration allows, which its only reader does not meet.
    pub fn open_sink(self: &Arc<Self>, user: UserId) -> Result<SinkReader, Close> {
        let reader = self.open(SessionHandle::new(user, None, false, Vec::new()))?;
        let content = reader.mailbox.content.lock();
        let mark = content.log.delivered().mark();
        reader.handle.place(mark, mark, mark);
        drop(content);
        Ok(SinkReader { reader })
    }
}

impl SinkReader {
    /// Takes what has come since the last call. It stays in the mailbox until it is done.
    pub fn take(&self) -> Vec<Taken> {
        let content = self.reader.mailbox.content.lock();
        let handle = &self.reader.handle;
        let taken: Vec<Taken> = content
            .log
            .after(handle.cursor())
            .map(|entry| Taken { seq: entry.seq, posted_ms: entry.posted_ms(), message: entry.message.clone() })
            .collect();
        if let Some(last) = taken.last() {
            handle.advance(last.seq);
        }
        taken
    }

    /// Removes messages with which the sink is done.
    pub fn done(&self, seqs: impl Iterator<Item = u64>) {
        let Reader { mailboxes, mailbox, handle, .. } = &self.reader;
        let mut content = mailbox.content.lock();
        for seq in seqs {
            content.log.mark_delivered(seq - 1, seq);
            content.noted.done(seq);
        }
        mailboxes.tidy(mailbox.birth, &mut content);
        mailboxes.note_later(&handle.user, mailbox, &mut content);
    }

    /// Resolves when there may be something to take. Only one task may poll this.
    pub fn poll_woken(&self, context: &mut Context<'_>) -> Poll<()> {
        self.reader.handle.poll_woken(context)
    }
}
