//! What another node has decided, absorbed in the order in which that node has decided it: the same changes in the same order add up to the
//! same model.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::mailbox::{Head, Posting, Reader};
use super::record::Change;
use super::{Model, restore::Counters};
use crate::registry::{Endings, SessionHandle, SessionInfo};

impl Model {
    /// Makes a change that another node has made. `claim`: returns the handle of a session of this node that waits to be admitted. Returns its
    /// reader once it is.
    pub fn absorb(
        &self,
        change: &Change,
        claim: impl FnOnce(&SessionInfo) -> Option<Arc<SessionHandle>>,
        endings: &Arc<Endings>,
    ) -> Option<(Reader, Head)> {
        let mut counters = Counters::default();
        counters.note(change);
        self.last_stamp.fetch_max(counters.stamp, Ordering::Relaxed);
        match change {
            Change::Post { user, birth, seq, posted_ms, message, session, lost, removed } => {
                let (birth, seq, posted_ms, lost) = (*birth, *seq, *posted_ms, *lost);
                self.mailboxes.absorb_post(Posting { user, birth, seq, posted_ms, message, session: session.as_ref(), lost, removed });
            }
            Change::Mark { user, birth, mark, removed } => self.mailboxes.absorb_mark(user, *birth, *mark, removed),
            Change::Join { stamp, group, user, policy } => self.groups.write().join(group, user.clone(), policy, *stamp),
            Change::Leave { stamp, group, user } => self.groups.write().leave(group, user, *stamp),
            Change::End { group, .. } => {
                let ended = self.groups.write().end(group);
                // Tens of thousands of members are freed after the lock is released.
                drop(ended);
            }
            Change::Set { stamp, policy, key, value } => self.states.write().write(policy, key, Some(value.clone()), *stamp),
            Change::Unset { stamp, policy, key } => self.states.write().write(policy, key, None, *stamp),
            Change::Seen { key, at_ms, failed } => self.dedup.lock().settle(*key, *failed, *at_ms),
            Change::Letter { stamp, letter } => self.dead_letters.absorb(*stamp, letter),
            Change::NoLetter { stamp, id } => self.dead_letters.absorb_removal(*stamp, *id),
            Change::Opened { birth, at, info } => return self.mailboxes.absorb_opened(info, (*birth, *at), claim(info), endings),
            Change::Closed { user, session, why } => drop(self.mailboxes.absorb_closed(user, session, why.as_ref())),
            Change::Gone { node } => drop(self.mailboxes.absorb_gone(node)),
            Change::Agreed(agreed) => self.agreement.absorb(agreed),
        }
        None
    }
}
