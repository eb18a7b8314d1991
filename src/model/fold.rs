//! The fold: what changes add up to, whatever their order, and however often each comes. Entries of mailboxes are a set by user, birth and
//! seq; marks are maxima; groups and state are last-writer-wins by stamp.
//!
//! A removal may be folded before what it removes, so removals are remembered until no older change can follow: [`Fold::settle`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Stamp;
use super::record::Change;
use super::state::Value;
use crate::types::delivery::{Message, Terms};
use crate::types::event::UserId;

/// What has been folded so far.
#[derive(Debug, Default, PartialEq)]
pub struct Fold {
    /// By policy and key. `None`: removed.
    states: HashMap<(Arc<str>, String), (Stamp, Option<Value>)>,
    /// By group and user: the policy that let the user in. `None`: left.
    memberships: HashMap<(String, UserId), (Stamp, Option<Arc<str>>)>,
    /// When a group last ended.
    ends: HashMap<String, Stamp>,
    mailboxes: HashMap<UserId, Mailbox>,
    /// By the event's key: when it was published, and whether every policy failed on it.
    seen: HashMap<u128, (u64, bool)>,
}

/// One life of a user's mailbox.
#[derive(Debug, Default, PartialEq)]
pub struct Mailbox {
    pub birth: u64,
    pub last: u64,
    pub delivered: u64,
    pub lost: u64,
    pub entries: BTreeMap<u64, Entry>,
    removed: BTreeSet<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub message: Arc<Message>,
    pub terms: Terms,
    pub posted_ms: u64,
}

impl Fold {
    pub fn fold(&mut self, change: Change) {
        match change {
            Change::Set { stamp, policy, key, value } => newest(&mut self.states, (policy, key), stamp, Some(value)),
            Change::Unset { stamp, policy, key } => newest(&mut self.states, (policy, key), stamp, None),
            Change::Join { stamp, group, user, policy } => newest(&mut self.memberships, (group, user), stamp, Some(policy)),
            Change::Leave { stamp, group, user } => newest(&mut self.memberships, (group, user), stamp, None),
            Change::End { stamp, group } => {
                let ended = self.ends.entry(group).or_default();
                *ended = stamp.max(*ended);
            }
            Change::Seen { key, at_ms, failed } => {
                let seen = self.seen.entry(key).or_insert((at_ms, failed));
                if at_ms >= seen.0 {
                    // A success is not taken back by a failure of the same moment.
                    *seen = (at_ms, failed && (at_ms > seen.0 || seen.1));
                }
            }
            Change::Post { user, birth, seq, posted_ms, message, terms, removed } => {
                let Some(mailbox) = self.mailbox(user, birth) else { return };
                mailbox.last = mailbox.last.max(seq);
                for seq in removed {
                    mailbox.remove(seq);
                }
                if !mailbox.removed.contains(&seq) {
                    mailbox.entries.insert(seq, Entry { message, terms, posted_ms });
                }
            }
            Change::Mark { user, birth, last, delivered, lost } => {
                let Some(mailbox) = self.mailbox(user, birth) else { return };
                mailbox.last = mailbox.last.max(last);
                mailbox.delivered = mailbox.delivered.max(delivered);
                mailbox.lost = mailbox.lost.max(lost);
            }
        }
    }

    /// Forgets removals that are older than anything that can still come.
    pub fn settle(&mut self, settled: Stamp) {
        let ends = &self.ends;
        self.states.retain(|_, (stamp, value)| value.is_some() || *stamp >= settled);
        self.memberships.retain(|(group, _), (stamp, policy)| {
            let is_over = policy.is_none() || ends.get(group).is_some_and(|ended| ended > stamp);
            !is_over || *stamp >= settled
        });
        self.ends.retain(|_, stamp| *stamp >= settled);
    }

    /// Every policy's entries that are there.
    pub fn states(&self) -> impl Iterator<Item = (&Arc<str>, &String, Stamp, &Value)> {
        self.states.iter().filter_map(|((policy, key), (stamp, value))| Some((policy, key, *stamp, value.as_ref()?)))
    }

    /// Every membership that stands, in the order in which users joined.
    pub fn memberships(&self) -> Vec<(&String, &UserId, &Arc<str>, Stamp)> {
        let standing = self.memberships.iter().filter_map(|((group, user), (stamp, policy))| {
            let is_over = self.ends.get(group).is_some_and(|ended| ended > stamp);
            Some((group, user, policy.as_ref().filter(|_| !is_over)?, *stamp))
        });
        let mut standing: Vec<_> = standing.collect();
        standing.sort_by_key(|(.., stamp)| *stamp);
        standing
    }

    pub fn mailboxes(&self) -> &HashMap<UserId, Mailbox> {
        &self.mailboxes
    }

    /// The events that were published, with their times, and whether they failed.
    pub fn seen(&self) -> impl Iterator<Item = (u128, u64, bool)> {
        self.seen.iter().map(|(key, (at_ms, failed))| (*key, *at_ms, *failed))
    }

    /// The mailbox of this birth, or nothing if there was a later one.
    fn mailbox(&mut self, user: UserId, birth: u64) -> Option<&mut Mailbox> {
        let mailbox = self.mailboxes.entry(user).or_default();
        if birth > mailbox.birth {
            *mailbox = Mailbox { birth, ..Mailbox::default() };
        }
        (birth == mailbox.birth).then_some(mailbox)
    }
}

impl Mailbox {
    fn remove(&mut self, seq: u64) {
        self.entries.remove(&seq);
        self.removed.insert(seq);
    }
}

/// Takes a value if it is newer than the one that is there.
fn newest<K: std::hash::Hash + Eq, V>(table: &mut HashMap<K, (Stamp, Option<V>)>, key: K, stamp: Stamp, value: Option<V>) {
    match table.get_mut(&key) {
        Some(known) if known.0 > stamp => {}
        Some(known) => *known = (stamp, value),
        None => {
            table.insert(key, (stamp, value));
        }
    }
}
