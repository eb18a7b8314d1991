//! Policies are values: an event takes one immutable [`PolicySet`] for its whole journey. A reload builds a new set and swaps
//! it, or keeps the old one and says why.

pub mod bindings;
pub mod breaker;
pub mod compile;
pub mod contract;
pub mod engine;
pub mod fault;
pub mod host;
pub mod inspect;
pub mod load;
pub mod plugin;
pub mod ticker;
mod wasi;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::time::Instant;

pub use contract::Role;
pub use fault::Fault;
pub use plugin::{CallError, Policy};

/// The policies that are asked together, in the configured order.
#[derive(Debug)]
pub struct PolicySet {
    pub revision: u64,
    pub policies: Vec<Arc<Policy>>,
}

impl PolicySet {
    /// The policies with this role that want events of this type, in order.
    pub fn wanting<'a>(&'a self, role: Role, event_type: &'a str) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.iter().filter(move |policy| policy.has(role) && policy.wants(event_type))
    }

    /// The same policies over other services, with nothing behind them.
    pub fn fork(&self, services: &Arc<host::Services>) -> PolicySet {
        let policies = self.policies.iter().map(|policy| Arc::new(policy.fork(services))).collect();
        PolicySet { revision: self.revision, policies }
    }

    /// The sessions policies, in order.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter().filter(|policy| policy.has(Role::Sessions))
    }

    pub fn find(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies.iter().find(|policy| policy.name == name)
    }
}

/// A file that could not be taken, and why.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Rejected {
    pub name: String,
    pub file: std::path::PathBuf,
    /// SHA-256 of what was refused; absent where the file could not be read.
    pub digest: Option<String>,
    pub reason: String,
    #[serde(serialize_with = "crate::types::time::time")]
    pub at: SystemTime,
}

/// The current set, those just before it, and what was refused since.
#[derive(Debug)]
pub struct Policies {
    current: RwLock<Arc<PolicySet>>,
    retired: Mutex<VecDeque<(Instant, Arc<PolicySet>)>>,
    rejected: Mutex<Vec<Rejected>>,
    retire_after: Duration,
}

impl Policies {
    pub fn new(first: PolicySet, rejected: Vec<Rejected>, retire_after: Duration) -> Policies {
        Policies { current: RwLock::new(Arc::new(first)), retired: Mutex::default(), rejected: Mutex::new(rejected), retire_after }
    }

    pub fn current(&self) -> Arc<PolicySet> {
        self.current.read().clone()
    }

    /// The set that a message's event took. A message that is read long after a reload is shaped by the current one.
    pub fn at(&self, revision: u64) -> Arc<PolicySet> {
        let current = self.current();
        if current.revision == revision {
            return current;
        }
        let retired = self.retired.lock();
        retired.iter().find(|(_, set)| set.revision == revision).map_or(current, |(_, set)| set.clone())
    }

    pub fn rejected(&self) -> Vec<Rejected> {
        self.rejected.lock().clone()
    }

    pub fn set_rejected(&self, rejected: Vec<Rejected>) {
        *self.rejected.lock() = rejected;
    }

    /// Puts a new set in place. Events under way finish with the one that they took.
    pub fn swap(&self, next: PolicySet) {
        let mut current = self.current.write();
        let old = std::mem::replace(&mut *current, Arc::new(next));
        // Before anybody sees the new one: the old one is always in one of the two places.
        self.retired.lock().push_back((Instant::now(), old));
    }

    /// Forgets the sets that no message under way needs any more.
    pub fn retire(&self) {
        let mut retired = self.retired.lock();
        while retired.front().is_some_and(|(since, _)| since.elapsed() >= self.retire_after) {
            retired.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_finds_the_set_of_its_event_whatever_is_swapped_meanwhile() {
        let set = |revision| PolicySet { revision, policies: Vec::new() };
        let policies = Policies::new(set(0), Vec::new(), Duration::from_secs(60));
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=2000).for_each(|revision| policies.swap(set(revision))));
            loop {
                let revision = policies.current().revision;
                assert_eq!(policies.at(revision).revision, revision);
                if revision == 2000 {
                    break;
                }
            }
        });
    }
}
