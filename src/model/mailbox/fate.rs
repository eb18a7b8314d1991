//! The fate of a message: how far it got, for receipts that are asked for later. It is read from the mailbox, which knows it anyway; only
//! losses are remembered here, within a bound.

use std::collections::{HashMap, VecDeque};

use super::{Content, Mailboxes};
use crate::types::drop_reason::DropReason;

/// Bytes of a block of remembered losses, with the free places of the tables.
pub(super) const BLOCK_BYTES: usize = 80;

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

/// Why messages were lost: the latest ones, in blocks, since a mailbox loses many in a row.
#[derive(Debug)]
pub(super) struct Losses {
    blocks: HashMap<Place, Reasons>,
    /// Oldest first.
    order: VecDeque<Place>,
    blocks_max: usize,
    /// Whether older losses were forgotten for newer ones.
    is_partial: bool,
}

/// The birth of a mailbox, and which of its blocks of seqs.
type Place = (u64, u64);

/// The reasons of the losses in a block, four bits for each seq; 0 for one that was not lost.
type Reasons = u128;

const REASON_BITS: u32 = 4;
const REASON_MASK: Reasons = (1 << REASON_BITS) - 1;
const _: () = assert!(DropReason::ALL.len() <= REASON_MASK as usize, "a reason has a number above 0");
const BLOCK_SEQS: u64 = (Reasons::BITS / REASON_BITS) as u64;

impl Losses {
    pub(super) fn new(blocks_max: usize) -> Losses {
        Losses { blocks: HashMap::new(), order: VecDeque::new(), blocks_max, is_partial: false }
    }

    fn place(birth: u64, seq: u64) -> (Place, u32) {
        ((birth, seq / BLOCK_SEQS), (seq % BLOCK_SEQS) as u32 * REASON_BITS)
    }

    fn note(&mut self, birth: u64, seq: u64, reason: DropReason) {
        let (place, shift) = Losses::place(birth, seq);
        let reasons = self.blocks.entry(place).or_default();
        let is_new = *reasons == 0;
        *reasons = *reasons & !(REASON_MASK << shift) | (reason as Reasons + 1) << shift;
        if !is_new {
            return;
        }
        self.order.push_back(place);
        if self.order.len() > self.blocks_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.blocks.remove(&oldest);
            self.is_partial = true;
        }
    }

    fn reason(&self, birth: u64, seq: u64) -> Option<DropReason> {
        let (place, shift) = Losses::place(birth, seq);
        let number = (self.blocks.get(&place)? >> shift & REASON_MASK) as usize;
        DropReason::ALL.get(number.checked_sub(1)?).copied()
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
    pub fn fate(&self, user: &str, birth: u64, seq: u64) -> Fate {
        let mailbox = self.find(user).filter(|mailbox| mailbox.birth == birth);
        let found = mailbox.map(|mailbox| mailbox.content.lock().fate(seq));
        let losses = self.losses.lock();
        match (losses.reason(birth, seq), found) {
            (Some(reason), _) => Fate::Dropped(reason),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_each_loss_is_remembered_and_the_last_one_counts() {
        let mut losses = Losses::new(usize::MAX);
        let reason = |seq: u64| DropReason::ALL[seq as usize % DropReason::ALL.len()];
        for seq in (1..200).filter(|seq| seq % 3 > 0) {
            losses.note(7, seq, DropReason::Evicted);
            losses.note(7, seq, reason(seq));
        }
        for seq in 0..300 {
            let lost = seq < 200 && seq % 3 > 0;
            assert_eq!(losses.reason(7, seq), lost.then(|| reason(seq)), "{seq}");
            assert_eq!(losses.reason(8, seq), None, "another mailbox lost nothing");
        }
    }

    #[test]
    fn a_row_of_losses_takes_a_block_and_the_oldest_block_is_forgotten_beyond_the_bound() {
        let mut losses = Losses::new(2);
        for seq in 0..2 * BLOCK_SEQS {
            losses.note(1, seq, DropReason::Evicted);
        }
        assert_eq!((losses.blocks.len(), losses.is_partial), (2, false));
        losses.note(2, 1, DropReason::Expired);
        assert_eq!((losses.blocks.len(), losses.order.len(), losses.is_partial), (2, 2, true));
        let found = [(1, 0), (1, BLOCK_SEQS), (2, 1)].map(|(birth, seq)| losses.reason(birth, seq));
        assert_eq!(found, [None, Some(DropReason::Evicted), Some(DropReason::Expired)]);
    }
}
