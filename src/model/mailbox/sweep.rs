//! Sweeping: removes what has expired, and makes room for new messages by removing what was read, in one mailbox, in all others, and shard by
//! shard as time passes.

use std::sync::Arc;

use super::absorb::FORGET_AFTER_MS;
use super::log::{New, Removed};
use super::usage::Usage;
use super::{Content, Mailbox, Mailboxes, Owner, SHARDS};
use crate::net::turns::aside_if;
use crate::types::event::UserId;

/// The pause after a search through all mailboxes: a million of them take some 100 ms. Meanwhile, a message that was read makes room in its
/// own mailbox only.
pub(super) const RECLAIM_PAUSE_MS: u64 = 100;

/// Where the next search for room begins.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    shard: usize,
    /// When a search last went through all mailboxes without finding enough.
    exhausted_ms: Option<u64>,
}

impl Mailboxes {
    /// Removes expired messages and mailboxes of the `round`th of [`Mailboxes::SWEEP_ROUNDS`] parts of the users.
    pub fn sweep(&self, round: usize) {
        self.sweep_shard(round % SHARDS, |user, mailbox, content| {
            self.expire((user, mailbox.birth), content);
            self.note_later(user, mailbox, content);
        });
    }

    /// The number of calls of [`Mailboxes::sweep`] that visit every user once.
    pub const SWEEP_ROUNDS: usize = SHARDS;

    /// Removes messages that were read from this mailbox until a new one is within the bounds of all mailboxes. Returns whether it is.
    pub(super) fn make_room(&self, owner: Owner<'_>, content: &mut Content, new: &New<'_>, is_away: bool, removed: &mut Removed) -> bool {
        let replaced = content.log.replaced(new);
        if !self.usage.is_over_with(is_away, new.size(), replaced) {
            return true;
        }
        self.expire(owner, content);
        loop {
            if !self.usage.is_over_with(is_away, new.size(), content.log.replaced(new)) {
                return true;
            }
            let mut gone = Removed::default();
            if !content.log.give_way(self.read(&content.sessions), &mut gone) {
                return false;
            }
            self.account(owner.1, &content.sessions, &gone);
            removed.for_new.extend(gone.for_new);
        }
    }

    pub(super) fn expire(&self, owner: Owner<'_>, content: &mut Content) {
        let owed = content.log.owed();
        let keep_max_ms = self.keep_max_ms(content.sink.as_deref());
        let (read, now_ms) = (self.read(&content.sessions), self.clock.now_ms());
        let removed = match self.note_expired(owner.0) {
            None => content.log.expire(read, keep_max_ms, now_ms),
            Some(note) => content.log.expire_noting(read, keep_max_ms, now_ms, note),
        };
        self.account(owner.1, &content.sessions, &removed);
        if content.log.owed() > owed {
            // Sessions that have missed a message notice that when they read.
            content.sessions.wake();
        }
    }

    /// Makes room in other mailboxes until there is enough: removes expired messages, messages that were read and, if there are too many
    /// mailboxes, empty ones that a client may resume from.
    pub(super) fn reclaim(&self, is_enough: impl Fn(&Usage) -> bool) {
        // A post that comes during another one's search waits for its outcome. Otherwise a message would be refused although there is room to
        // be made.
        let mut reclaim = self.reclaim.lock();
        let now_ms = self.clock.now_ms();
        // A clock that has gone back doesn't make the pause longer.
        let is_paused = reclaim.exhausted_ms.is_some_and(|exhausted_ms| now_ms.abs_diff(exhausted_ms) < RECLAIM_PAUSE_MS);
        if is_paused || is_enough(&self.usage) {
            return;
        }
        // Among many mailboxes, that takes milliseconds.
        aside_if(self.are_many(), || self.search(&mut reclaim, is_enough));
    }

    fn search(&self, reclaim: &mut Reclaim, is_enough: impl Fn(&Usage) -> bool) {
        for _ in 0..SHARDS {
            let is_crowded = self.usage.is_out_of_mailboxes();
            self.sweep_shard(reclaim.shard % SHARDS, |user, mailbox, content| {
                self.expire((user, mailbox.birth), content);
                let mut removed = Removed::default();
                while content.log.give_way(self.read(&content.sessions), &mut removed) {}
                self.account(mailbox.birth, &content.sessions, &removed);
                content.is_resumable &= !(is_crowded && content.sessions.is_empty() && content.log.is_empty());
                self.note_later(user, mailbox, content);
            });
            reclaim.shard += 1;
            if is_enough(&self.usage) {
                return;
            }
        }
        // The search itself may have taken longer than the pause.
        reclaim.exhausted_ms = Some(self.clock.now_ms());
    }

    /// Visits each mailbox of a shard, and removes it if nobody needs it any more.
    fn sweep_shard(&self, index: usize, visit: impl Fn(&UserId, &Arc<Mailbox>, &mut Content)) {
        let Some(shard) = self.shards.get(index) else { return };
        let mut shard = shard.lock();
        let before = shard.len();
        shard.retain(|user, mailbox| {
            let mut content = mailbox.content.lock();
            visit(user, mailbox, &mut content);
            !self.is_idle(&content)
        });
        self.usage.give_back_mailboxes(before - shard.len());
    }

    /// Returns whether the mailbox can be removed: it is empty and has no session, and no client may resume from it.
    pub(super) fn is_idle(&self, content: &Content) -> bool {
        if !content.sessions.is_empty() || !content.log.is_empty() {
            return false;
        }
        let age_ms = self.clock.now_ms().saturating_sub(content.vacant_since_ms);
        if !self.decides() {
            // Not before the node that decides has forgotten it: its seqs may go on.
            return age_ms >= self.limits.resume_ms.get().saturating_add(FORGET_AFTER_MS);
        }
        !content.is_resumable || age_ms >= self.limits.resume_ms.get() || self.usage.is_crowded()
    }
}
