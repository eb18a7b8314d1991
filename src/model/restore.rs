//! The model and a store: what a store gives back after a restart, and what of its old records still counts.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::fold::Fold;
use super::mailbox::JUMP;
use super::record::{Change, Changes};
use super::{Model, Stamp};
use crate::types::event::UserId;

/// Bytes of a membership, a state entry, an id of the dedup window and a mailbox's mark in a store, beside their texts. About right: they
/// decide only when a store cleans up.
const RECORD_BYTES: usize = 48;

/// The largest numbers that a store has seen. New ones are larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub stamp: Stamp,
    pub birth: u64,
    pub letter: u64,
    pub letter_stamp: Stamp,
    /// How many processes in a row have ended without an orderly stop.
    pub crashes: u64,
}

impl Counters {
    /// Raises the counters to those of a change.
    pub fn note(&mut self, change: &Change) {
        match change {
            Change::Post { birth, .. } | Change::Mark { birth, .. } | Change::Opened { birth, .. } => self.birth = self.birth.max(*birth),
            Change::Join { stamp, .. }
            | Change::Leave { stamp, .. }
            | Change::End { stamp, .. }
            | Change::Set { stamp, .. }
            | Change::Unset { stamp, .. } => self.stamp = self.stamp.max(*stamp),
            Change::Seen { .. } | Change::Closed { .. } | Change::Gone { .. } | Change::Agreed(_) => {}
            Change::Letter { stamp, letter } => {
                (self.letter, self.letter_stamp) = (self.letter.max(letter.id), self.letter_stamp.max(*stamp));
            }
            Change::NoLetter { stamp, id } => (self.letter, self.letter_stamp) = (self.letter.max(*id), self.letter_stamp.max(*stamp)),
        }
    }

    pub fn raise(&mut self, other: &Counters) {
        self.stamp = self.stamp.max(other.stamp);
        self.birth = self.birth.max(other.birth);
        self.letter = self.letter.max(other.letter);
        self.letter_stamp = self.letter_stamp.max(other.letter_stamp);
    }

    /// Returns counters that no number of a process has reached whose last records are missing.
    pub fn after_a_crash(self) -> Counters {
        Counters {
            stamp: self.stamp + (JUMP << 12),
            birth: self.birth + (JUMP << 4),
            letter: self.letter + JUMP,
            letter_stamp: self.letter_stamp + JUMP,
            crashes: self.crashes + 1,
        }
    }
}

impl Model {
    /// Fills an empty model with what a store has kept. `is_incomplete`: some of it is missing, so no client is told that nothing is.
    pub fn restore(&self, mut fold: Fold, counters: &Counters, is_incomplete: bool) {
        self.begin_after(counters);
        let mut states = self.states.write();
        for (policy, key, stamp, value) in fold.states() {
            states.write(policy, key, Some(value.clone()), stamp);
        }
        drop(states);
        let mut groups = self.groups.write();
        for (group, user, policy, stamp) in fold.memberships() {
            groups.join(group, user.clone(), policy, stamp);
        }
        drop(groups);
        let mut dedup = self.dedup.lock();
        for (key, at_ms, failed) in fold.seen() {
            dedup.settle(key, failed, at_ms);
        }
        drop(dedup);
        let mut letters: Vec<_> = fold.letters().collect();
        letters.sort_unstable_by_key(|(_, letter)| letter.id);
        for (stamp, letter) in letters {
            self.dead_letters.restore(stamp, letter);
        }
        self.mailboxes.restore(fold.take_mailboxes(), JUMP * counters.crashes, is_incomplete);
    }

    /// Has new numbers go on after these.
    pub fn begin_after(&self, counters: &Counters) {
        self.last_stamp.fetch_max(counters.stamp, Ordering::Relaxed);
        self.mailboxes.begin_births_after(counters.birth);
        self.dead_letters.begin_after(counters.letter, counters.letter_stamp);
    }

    /// Notes again what still counts of these old changes. `with_removals`: also removals, since an older change may be among the records
    /// that follow.
    pub fn note_again(&self, old: Vec<Change>, with_removals: bool, changes: &mut Changes) {
        let mut mailboxes: HashMap<(UserId, u64), Vec<u64>> = HashMap::new();
        for change in old {
            match change {
                Change::Post { user, birth, seq, .. } => mailboxes.entry((user, birth)).or_default().push(seq),
                Change::Mark { user, birth, .. } => drop(mailboxes.entry((user, birth)).or_default()),
                Change::Set { stamp, ref policy, ref key, .. } => {
                    let states = self.states.read();
                    if states.entry(policy, key).is_some_and(|entry| entry.stamp == stamp) {
                        changes.note(|| change);
                    }
                }
                Change::Join { stamp, ref group, ref user, .. } => {
                    let groups = self.groups.read();
                    if groups.get(group).is_some_and(|group| group.joined(user.as_str()) == Some(stamp)) {
                        changes.note(|| change);
                    }
                }
                Change::Seen { key, at_ms, failed } => {
                    if self.dedup.lock().is_known(key, failed) {
                        changes.note(|| Change::Seen { key, at_ms, failed });
                    }
                }
                Change::Letter { stamp, letter } => self.dead_letters.note_again(letter.id, stamp, changes),
                Change::Unset { .. } | Change::Leave { .. } | Change::End { .. } | Change::NoLetter { .. } => {
                    if with_removals {
                        changes.note(|| change);
                    }
                }
                Change::Opened { .. } | Change::Closed { .. } | Change::Gone { .. } | Change::Agreed(_) => {}
            }
        }
        // What is gone already may be on its way to the store, which has to have it before the old record goes.
        self.settled();
        for ((user, birth), mut seqs) in mailboxes {
            seqs.sort_unstable();
            self.mailboxes.note_again(&user, birth, &seqs, changes);
        }
    }

    /// Returns about how many bytes the records of everything that counts have.
    pub fn kept_bytes(&self) -> usize {
        let mailboxes = self.mailboxes.totals();
        let states: usize = {
            let states = self.states.read();
            states.policies().iter().map(|policy| states.usage(policy).bytes).sum()
        };
        let memberships = self.groups.read().totals().memberships;
        let ids = self.dedup.lock().len();
        mailboxes.bytes + states + self.dead_letters.totals().1 + (memberships * 2 + ids + mailboxes.mailboxes) * RECORD_BYTES
    }
}
