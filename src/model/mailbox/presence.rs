//! Presence: which sessions a user has, what waits in the mailbox, and the sums over all users.

use std::sync::Arc;

use super::{Mailboxes, SHARDS};
use crate::registry::SessionHandle;
use crate::types::close::Close;
use crate::types::event::UserId;

/// Mailboxes that are all visited in less than a millisecond.
const MAILBOXES_IN_PASSING: usize = 5_000;

/// A user's sessions and mailbox, as they are reported.
#[derive(Debug)]
pub struct Presence {
    /// Each session with the seq of the last message that it has taken.
    pub sessions: Vec<(Arc<SessionHandle>, u64)>,
    pub messages: usize,
    pub bytes: usize,
    pub last: u64,
    pub epoch: Option<String>,
}

/// Sums over all mailboxes.
#[derive(Debug, PartialEq, Eq)]
pub struct Totals {
    pub mailboxes: usize,
    pub messages: usize,
    pub bytes: usize,
    pub sessions: usize,
}

impl Mailboxes {
    /// Returns the number of a user's open sessions.
    pub fn sessions_of(&self, user: &str) -> usize {
        let Some(mailbox) = self.find(user) else { return 0 };
        mailbox.content.lock().sessions.admitted().count()
    }

    /// Returns whether a session can be reached, even if it is still provisional.
    pub fn has_session(&self, user: &UserId, session: &str) -> bool {
        self.find(user.as_str()).is_some_and(|mailbox| mailbox.content.lock().sessions.find(session).is_some())
    }

    pub fn presence(&self, user: &UserId) -> Presence {
        let Some(mailbox) = self.find(user.as_str()) else {
            return Presence { sessions: Vec::new(), messages: 0, bytes: 0, last: 0, epoch: None };
        };
        let content = mailbox.content.lock();
        Presence {
            sessions: content.sessions.admitted().map(|handle| (handle.clone(), handle.cursor())).collect(),
            messages: content.log.len(),
            bytes: content.log.bytes(),
            last: content.log.last(),
            epoch: Some(self.epoch(&mailbox)),
        }
    }

    /// Ends a user's sessions, and returns how many there were.
    pub fn end_sessions(&self, user: &UserId, close: &Close) -> usize {
        let Some(mailbox) = self.find(user.as_str()) else { return 0 };
        mailbox.content.lock().sessions.end(close)
    }

    /// Asks the `round`th of [`Mailboxes::SWEEP_ROUNDS`] parts of this node's sessions to close, and returns how many there are.
    pub fn end_part(&self, round: usize, close: &Close) -> usize {
        let Some(shard) = self.shards.get(round % SHARDS) else { return 0 };
        shard.lock().values().map(|mailbox| mailbox.content.lock().sessions.end_here(close)).sum()
    }

    /// Returns every user with an open session.
    pub fn everyone(&self) -> Vec<UserId> {
        let mut users = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let connected = shard.iter().filter(|(_, mailbox)| !mailbox.content.lock().sessions.is_away());
            users.extend(connected.map(|(user, _)| user.clone()));
        }
        users
    }

    /// Returns whether it takes milliseconds to look at all of them.
    pub fn are_many(&self) -> bool {
        self.usage.mailboxes() > MAILBOXES_IN_PASSING
    }

    pub fn totals(&self) -> Totals {
        Totals {
            mailboxes: self.usage.mailboxes(),
            messages: self.usage.messages(),
            bytes: self.usage.bytes(),
            sessions: self.registry.count(),
        }
    }
}
