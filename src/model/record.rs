//! The changes of one commit, as values: a store writes them, and a replay folds them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Stamp;
use super::agreement::Agreed;
use super::dead_letters::DeadLetter;
use super::order::Turn;
use super::state::Value;
use crate::registry::SessionInfo;
use crate::types::close::Close;
use crate::types::delivery::Message;
use crate::types::event::UserId;

/// One change of the model. Changes may be folded in any order, and more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A message was added to a user's mailbox, and these older ones were removed for it. `lost` as in a [`Mark`].
    Post {
        user: UserId,
        birth: u64,
        seq: u64,
        posted_ms: u64,
        message: Arc<Message>,
        /// The only session that may read it. Only other nodes are told of such a message; no store keeps it.
        session: Option<Arc<str>>,
        lost: u64,
        removed: Vec<u64>,
    },
    /// The state of a mailbox, and stretches of messages that were removed from it: each begins after its first seq and ends with its second.
    Mark {
        user: UserId,
        birth: u64,
        mark: Mark,
        removed: Vec<(u64, u64)>,
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
    /// A dead letter was kept, or changed.
    Letter {
        stamp: Stamp,
        letter: Arc<DeadLetter>,
    },
    /// A dead letter was retried, deleted or evicted.
    NoLetter {
        stamp: Stamp,
        id: u64,
    },
    /// A session was admitted to its user's mailbox, at this position. This change and those below are for other nodes alone.
    Opened {
        birth: u64,
        at: u64,
        info: Arc<SessionInfo>,
    },
    /// A session is over. With a reason, the node that has its socket closes it.
    Closed {
        user: UserId,
        session: Arc<str>,
        why: Option<Close>,
    },
    /// All sessions of a node are over.
    Gone {
        node: Arc<str>,
    },
    /// The nodes are to have these policies.
    Agreed(Arc<Agreed>),
}

/// The state of a mailbox beside its messages. The positions only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The number of this mark: of two marks, the flags of the one with the larger number hold.
    pub version: u32,
    /// The newest seq.
    pub last: u64,
    /// The seq up to which all were delivered.
    pub delivered: u64,
    /// The newest seq that a bound or age has cost.
    pub lost: u64,
    /// Whether a client may resume from the mailbox.
    pub is_resumable: bool,
    /// Whether a client has acked a message.
    pub is_acked: bool,
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
#[derive(Debug)]
pub struct Changes(Option<Kept>);

#[derive(Debug)]
struct Kept {
    began: u64,
    changes: Vec<Change>,
    /// Held if other nodes make the same changes: they do so in this order.
    turn: Option<Turn>,
}

impl Changes {
    /// Returns a list that discards changes.
    pub fn forgotten() -> Changes {
        Changes(None)
    }

    /// Returns a list for a store that was writing its segment `began` at this moment.
    pub fn kept(began: u64) -> Changes {
        Changes(Some(Kept { began, changes: Vec::new(), turn: None }))
    }

    /// Returns a list for a store from which other nodes make the same changes. No other commit is made before it is handed over.
    pub fn in_turn(turn: Turn) -> Changes {
        Changes(Some(Kept { began: 0, changes: Vec::new(), turn: Some(turn) }))
    }

    /// Returns the number of this commit; 0 if readers don't wait for the store.
    pub fn commit(&self) -> u64 {
        self.0.as_ref().and_then(|kept| kept.turn.as_ref()).map_or(0, Turn::number)
    }

    /// Returns whether other nodes make the same changes.
    pub fn are_for_nodes(&self) -> bool {
        self.0.as_ref().is_some_and(|kept| kept.turn.is_some())
    }

    /// Records a change. The closure runs only if changes are kept.
    pub fn note(&mut self, change: impl FnOnce() -> Change) {
        if let Some(kept) = &mut self.0 {
            kept.changes.push(change());
        }
    }

    /// Returns the segment that the store was writing when the first of these changes could be made.
    pub fn began(&self) -> u64 {
        self.0.as_ref().map_or(0, |kept| kept.began)
    }

    pub fn into_changes(self) -> Vec<Change> {
        self.into_parts().0
    }

    /// Returns the changes, and the turn that their owner keeps until it has handed them over.
    pub fn into_parts(self) -> (Vec<Change>, Option<Turn>) {
        self.0.map(|kept| (kept.changes, kept.turn)).unwrap_or_default()
    }
}
