//! The fate of a message: how far it got, for receipts that are asked for later. It is read from the mailbox, which knows it anyway; only
//! losses are remembered here, within a bound.

use std::collections::{HashMap, VecDeque};

use super::{Content, Mailboxes};
use crate::types::drop_reason::DropReason;
use crate::types::event::UserId;

/// Bytes of a remembered loss, with the free places of the tables.
pub(super) const LOSS_BYTES: usize = 80;

/// How far a message got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It waits in the mailbox.
    Posted,
    /// It was written to a socket.
    Sent,
    /// A client has acked it.
    Acked,
    /// A reader did not get it.
    Dropped(DropReason),
    /// It is gone, and the reason is no longer remembered.
    Unknown,
}

/// Why messages were lost: the latest ones, by the birth of their mailbox and their seq.
#[derive(Debug)]
pub(super) struct Losses {
    reasons: HashMap<(u64, u64), DropReason>,
    /// Oldest first.
    order: VecDeque<(u64, u64)>,
    losses_max: usize,
    /// Whether older losses were forgotten for newer ones.
    is_partial: bool,
}

impl Losses {
    pub(super) fn new(losses_max: usize) -> Losses {
        Losses { reasons: HashMap::new(), order: VecDeque::new(), losses_max, is_partial: false }
    }

    fn note(&mut self, birth: u64, seq: u64, reason: DropReason) {
        if self.reasons.insert((birth, seq), reason).is_some() {
            return;
        }
        self.order.push_back((birth, seq));
        if self.order.len() > self.losses_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.reasons.remove(&oldest);
            self.is_partial = true;
        }
    }
}

impl Mailboxes {
    /// Counts a message that a reader does not get, and remembers why.
    pub(super) fn lost(&self, birth: u64, seq: u64, reason: DropReason) {
        // What several nodes remove counts once.
        if self.decides() {
            self.metrics.dropped(reason, 1);
        }
        self.losses.lock().note(birth, seq, reason);
    }

    /// Returns how far a message got that was posted in this life of a user's mailbox.
    pub fn fate(&self, user: &UserId, birth: u64, seq: u64) -> Fate {
        let mailbox = self.find(user.as_str()).filter(|mailbox| mailbox.birth == birth);
        let found = mailbox.map(|mailbox| mailbox.content.lock().fate(seq));
        let losses = self.losses.lock();
        match (losses.reasons.get(&(birth, seq)), found) {
            (Some(reason), _) => Fate::Dropped(*reason),
            (None, Some(fate)) if fate != Fate::Unknown => fate,
            // A mailbox is removed once nobody needs it: what was not lost has been read.
            (None, None) if !losses.is_partial => Fate::Sent,
            (None, _) => Fate::Unknown,
        }
    }
}

impl Content {
    fn fate(&self, seq: u64) -> Fate {
        let was_written = || self.sessions.admitted().any(|handle| handle.position().0 < seq && seq <= handle.written());
        if self.log.delivered().contains(seq) {
            if self.is_acked { Fate::Acked } else { Fate::Sent }
        } else if was_written() {
            Fate::Sent
        } else if self.log.after(seq - 1).next().is_some_and(|entry| entry.seq == seq) {
            Fate::Posted
        } else {
            Fate::Unknown
        }
    }
}
