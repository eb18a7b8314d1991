//! The changes of one commit, as values: a store writes them, and a replay folds them.

use std::sync::Arc;

use super::Stamp;
use super::state::Value;
use crate::types::delivery::Message;
use crate::types::event::UserId;

/// One change of the model. Changes may be folded in any order, and more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A message was added to a user's mailbox, and these older ones were removed for it. `lost`: as for a mark.
    Post {
        user: UserId,
        birth: u64,
        seq: u64,
        posted_ms: u64,
        message: Arc<Message>,
        lost: u64,
        removed: Vec<u64>,
    },
    /// The positions of a mailbox, each of which only grows, and messages that were removed from it: the newest seq, the one up to which
    /// all were delivered, and the newest that a bound or age has cost.
    Mark {
        user: UserId,
        birth: u64,
        last: u64,
        delivered: u64,
        lost: u64,
        removed: Vec<u64>,
    },
    Join {
        stamp: Stamp,
        group: String,
        user: UserId,
        policy: Arc<str>,
    },
    Leave {
        stamp: Stamp,
        group: String,
        user: UserId,
    },
    /// A group ended: memberships with an older stamp are over.
    End {
        stamp: Stamp,
        group: String,
    },
    Set {
        stamp: Stamp,
        policy: Arc<str>,
        key: String,
        value: Value,
    },
    Unset {
        stamp: Stamp,
        policy: Arc<str>,
        key: String,
    },
    /// An event was published. `failed` if no policy decided about it, so that it may be published again.
    Seen {
        key: u128,
        at_ms: u64,
        failed: bool,
    },
}

impl Change {
    pub fn state(stamp: Stamp, policy: &Arc<str>, key: &str, value: Option<&Value>) -> Change {
        let (policy, key) = (policy.clone(), key.to_owned());
        match value {
            Some(value) => Change::Set { stamp, policy, key, value: value.clone() },
            None => Change::Unset { stamp, policy, key },
        }
    }
}

/// The changes of one commit, if a store keeps them.
#[derive(Debug, Default)]
pub struct Changes(Option<Vec<Change>>);

impl Changes {
    /// Returns a list that discards changes.
    pub fn forgotten() -> Changes {
        Changes(None)
    }

    pub fn kept() -> Changes {
        Changes(Some(Vec::new()))
    }

    /// Records a change. The closure runs only if changes are kept.
    pub fn note(&mut self, change: impl FnOnce() -> Change) {
        if let Some(kept) = &mut self.0 {
            kept.push(change());
        }
    }

    pub fn into_changes(self) -> Vec<Change> {
        self.0.unwrap_or_default()
    }
}
