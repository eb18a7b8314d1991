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
pub mod source;
pub mod ticker;
mod wasi;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::types::delivery::PolicySetId;
pub use contract::Role;
pub use plugin::{CallError, Policy};

/// The policies that are asked together, in the configured order.
#[derive(Debug)]
pub struct PolicySet {
    /// Counts up with each set of this process.
    pub revision: u64,
    /// The same for the same policies with the same configuration, in every process.
    pub id: PolicySetId,
    pub policies: Vec<Arc<Policy>>,
}

impl PolicySet {
    pub fn new(revision: u64, policies: Vec<Arc<Policy>>) -> PolicySet {
        let mut digest = Sha256::new();
        for policy in &policies {
            let config = &policy.config;
            // What a policy's answers depend on. Order is the order here.
            let depends_on = (&*policy.name, &*policy.digest, &config.settings, &config.grants, &config.events, config.on_fault);
            digest.update(serde_json::to_vec(&depends_on).unwrap_or_default());
        }
        let digest: [u8; 32] = digest.finalize().into();
        let id = PolicySetId(digest.iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte)));
        PolicySet { revision, id, policies }
    }

    /// The policies with this role that want events of this type, in order.
    pub fn wanting<'a>(&'a self, role: Role, event_type: &'a str) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.iter().filter(move |policy| policy.has(role) && policy.wants(event_type))
    }

    /// The sessions policies, in order.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter().filter(|policy| policy.has(Role::Sessions))
    }

    pub fn find(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies.iter().find(|policy| *policy.name == *name)
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
    current: ArcSwap<PolicySet>,
    retired: Mutex<VecDeque<(Instant, Arc<PolicySet>)>>,
    rejected: Mutex<Vec<Rejected>>,
    retire_after: Duration,
}

impl Policies {
    pub fn new(first: PolicySet, rejected: Vec<Rejected>, retire_after: Duration) -> Policies {
        Policies { current: ArcSwap::from_pointee(first), retired: Mutex::default(), rejected: Mutex::new(rejected), retire_after }
    }

    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// The set that a message's event took. A message that is read long after a reload is shaped by the current one.
    pub fn at(&self, id: PolicySetId) -> Arc<PolicySet> {
        let current = self.current();
        if current.id == id {
            return current;
        }
        let retired = self.retired.lock();
        retired.iter().find(|(_, set)| set.id == id).map_or(current, |(_, set)| set.clone())
    }

    pub fn rejected(&self) -> Vec<Rejected> {
        self.rejected.lock().clone()
    }

    pub fn set_rejected(&self, rejected: Vec<Rejected>) {
        *self.rejected.lock() = rejected;
    }

    /// Puts a new set in place. Events under way finish with the one that they took.
    pub fn swap(&self, next: PolicySet) {
        // The old one is always in one of the two places: a reader who finds neither of them current waits here.
        let mut retired = self.retired.lock();
        let old = self.current.swap(Arc::new(next));
        retired.push_back((Instant::now(), old));
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
        let set = |revision| PolicySet { revision, id: PolicySetId(revision.into()), policies: Vec::new() };
        let policies = Policies::new(set(0), Vec::new(), Duration::from_secs(60));
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=2000).for_each(|revision| policies.swap(set(revision))));
            loop {
                let revision = policies.current().revision;
                assert_eq!(policies.at(PolicySetId(revision.into())).revision, revision);
                if revision == 2000 {
                    break;
                }
            }
        });
    }
}
