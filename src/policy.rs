//! Policies are values: an event takes one immutable [`PolicySet`] for its whole journey. A reload builds a new set and swaps
//! it, or keeps the old one and says why.

// Private: nothing outside this folder names the types that are generated from the WIT.
mod bindings;
pub mod breaker;
pub mod call;
mod canary;
pub mod candidate;
pub mod compile;
pub mod contract;
pub mod engine;
pub mod fault;
pub mod host;
pub mod inspect;
mod kept;
pub mod load;
mod load_error;
pub mod plugin;
pub mod source;
mod stubs;
pub mod taps;
pub mod ticker;
mod wasi;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::model::agreement::Agreed;
use crate::types::delivery::PolicySetId;
use crate::types::event::{Event, UserId};
#[cfg(feature = "internals")]
pub use bindings::Bounds;
pub use call::CallError;
use canary::Canary;
use candidate::Candidate;
pub use contract::Role;
pub use load_error::LoadError;
pub use plugin::Policy;

/// The policies that are called together, in the configured order.
#[derive(Debug)]
pub struct PolicySet {
    /// Increases with each set of this process.
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
            // What a policy's answers depend on. The order of the policies counts too.
            let depends_on =
                (&*policy.name, &*policy.digest, &config.settings, &config.grants, &config.events, config.on_fault, config.readers);
            digest.update(serde_json::to_vec(&depends_on).unwrap_or_default());
        }
        let digest: [u8; 32] = digest.finalize().into();
        let id = PolicySetId(digest.iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte)));
        PolicySet { revision, id, policies }
    }

    /// Returns the policies with this role that want events of this type, in order.
    pub fn wanting<'a>(&'a self, role: Role, event_type: &'a str) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.iter().filter(move |policy| policy.has(role) && policy.wants(event_type))
    }

    /// Returns the sessions policies, in order.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter().filter(|policy| policy.has(Role::Sessions))
    }

    pub fn find(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies.iter().find(|policy| *policy.name == *name)
    }
}

/// A plugin's file that was refused or rolled back, and why.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Rejected {
    pub name: String,
    pub file: std::path::PathBuf,
    /// SHA-256 of the refused file; `None` if it could not be read.
    pub digest: Option<String>,
    pub reason: String,
    /// Whether it is tried again by itself, since the reason may pass: the machine was busy, or the file could not be read.
    pub is_retried: bool,
    /// Whether nobody is served until it can be loaded: it may be needed, and no version of it serves.
    pub must_serve: bool,
    #[serde(serialize_with = "crate::types::time::time")]
    pub at: SystemTime,
}

impl Rejected {
    /// Returns what is wrong with it, in a sentence.
    pub fn sentence(&self) -> String {
        format!("{} ({}) {}", self.name, self.file.display(), self.reason)
    }
}

/// The current set, the sets just before it, and the files that are refused.
#[derive(Debug)]
pub struct Policies {
    current: ArcSwap<PolicySet>,
    retired: Mutex<VecDeque<(Instant, Arc<PolicySet>)>>,
    rejected: Mutex<Vec<Rejected>>,
    /// Whether no policy is missing without which nobody is served.
    is_complete: AtomicBool,
    /// Whether the first set is still to come: nobody is served before that.
    is_awaited: AtomicBool,
    /// Why the last attempt to get what the nodes of a cluster have agreed on failed.
    trouble: Mutex<Option<String>>,
    retire_after: Duration,
    /// Permits of calls that take long.
    long_calls: Semaphore,
    candidates: ArcSwap<Vec<Arc<Candidate>>>,
    /// The candidate that decides about some events. While there is none, each event costs one relaxed load.
    canary: ArcSwapOption<Canary>,
    has_canary: AtomicBool,
}

/// A policy is missing without which nobody is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete;

fn is_complete(rejected: &[Rejected]) -> bool {
    !rejected.iter().any(|rejected| rejected.must_serve)
}

/// The share of the serving threads on which policies may compute for milliseconds at a time. The others are for those who need none of them:
/// a crowd that reads what a slow policy formats would otherwise take all processors, and every thread beside the serving ones.
const LONG_CALLS_SHARE: usize = 2;

impl Policies {
    pub fn new(first: PolicySet, rejected: Vec<Rejected>, retire_after: Duration) -> Policies {
        let workers = Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers());
        Policies {
            current: ArcSwap::from_pointee(first),
            retired: Mutex::default(),
            is_complete: AtomicBool::new(is_complete(&rejected)),
            is_awaited: AtomicBool::new(false),
            trouble: Mutex::default(),
            rejected: Mutex::new(rejected),
            retire_after,
            long_calls: Semaphore::new((workers / LONG_CALLS_SHARE).max(1)),
            candidates: ArcSwap::default(),
            canary: ArcSwapOption::empty(),
            has_canary: AtomicBool::new(false),
        }
    }

    /// Returns the policies that decide about an event: a canary is among them if the event is one of its share.
    pub fn of_event(&self, event: &Event) -> Arc<PolicySet> {
        self.chosen(|canary| canary.counted(canary.takes(event)))
    }

    /// Returns the policies that would decide about an event, and counts nothing.
    pub fn foreseen(&self, event: &Event) -> Arc<PolicySet> {
        self.chosen(|canary| canary.takes(event))
    }

    /// Returns the policies of a user's sessions and direct messages.
    pub fn of_user(&self, user: &UserId) -> Arc<PolicySet> {
        self.chosen(|canary| canary.counted(canary.takes_key(user.as_str())))
    }

    fn chosen(&self, is_taken: impl FnOnce(&Canary) -> bool) -> Arc<PolicySet> {
        match self.canary() {
            Some(canary) if is_taken(&canary) => canary.set.clone(),
            _ => self.current(),
        }
    }

    /// Returns the candidate that decides about some events.
    pub fn canary(&self) -> Option<Arc<Canary>> {
        if self.has_canary.load(Ordering::Relaxed) { self.canary.load_full() } else { None }
    }

    pub fn candidates(&self) -> Arc<Vec<Arc<Candidate>>> {
        self.candidates.load_full()
    }

    /// Returns the candidate of a policy.
    pub fn candidate(&self, policy: &str) -> Option<Arc<Candidate>> {
        self.candidates.load().iter().find(|candidate| *candidate.name == *policy).cloned()
    }

    /// Replaces the candidates.
    pub fn set_candidates(&self, candidates: Vec<Arc<Candidate>>) {
        self.candidates.store(Arc::new(candidates));
        self.refresh_canary();
    }

    /// Finds out which candidate decides about some events, and beside which policies.
    pub fn refresh_canary(&self) {
        self.refresh_canary_beside(&mut self.retired.lock());
    }

    fn refresh_canary_beside(&self, retired: &mut VecDeque<(Instant, Arc<PolicySet>)>) {
        let (current, candidates) = (self.current(), self.candidates());
        candidates.iter().for_each(|candidate| candidate.compare_with(current.find(&candidate.name)));
        let canary = candidates.iter().find_map(|candidate| Canary::of(candidate, &current)).map(Arc::new);
        self.has_canary.store(canary.is_some(), Ordering::Relaxed);
        if let Some(old) = self.canary.swap(canary) {
            retired.push_back((Instant::now(), old.set.clone()));
        }
    }

    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// Returns the set that the message's event took, or the current one if that set has been retired.
    pub fn at(&self, id: PolicySetId) -> Guard<Arc<PolicySet>> {
        // Each delivery asks, and all threads would count references in one place.
        let current = self.current.load();
        if current.id == id {
            return current;
        }
        if let Some(canary) = self.canary().filter(|canary| canary.set.id == id) {
            return Guard::from_inner(canary.set.clone());
        }
        let retired = self.retired.lock();
        retired.iter().find(|(_, set)| set.id == id).map_or(current, |(_, set)| Guard::from_inner(set.clone()))
    }

    /// Waits until policies may be called, which is at once unless one of them takes long: then only some calls run at a time. Hold the permit
    /// until they are done.
    pub async fn permit<'a>(&self, mut called: impl Iterator<Item = &'a Arc<Policy>>) -> Option<SemaphorePermit<'_>> {
        if called.any(|policy| policy.takes_long()) { self.long_calls.acquire().await.ok() } else { None }
    }

    pub fn rejected(&self) -> Vec<Rejected> {
        self.rejected.lock().clone()
    }

    /// Checks that no policy is missing that may decide who connects, what is routed and what readers see.
    ///
    /// # Errors
    /// One is missing, so nobody may be served.
    pub fn check(&self) -> Result<(), Incomplete> {
        let is_there = self.is_complete.load(Ordering::Relaxed) && !self.is_awaited.load(Ordering::Relaxed);
        if is_there { Ok(()) } else { Err(Incomplete) }
    }

    /// Has nobody be served before [`Policies::begin`].
    pub fn await_first(&self) {
        self.is_awaited.store(true, Ordering::Relaxed);
    }

    /// Has everybody be served with the current set.
    pub fn begin(&self) {
        self.is_awaited.store(false, Ordering::Relaxed);
    }

    /// Notes why what the nodes of a cluster have agreed on could not be had, if it could not.
    pub fn note_trouble(&self, why: Option<String>) {
        *self.trouble.lock() = why;
    }

    /// Returns why the current set is not the one on which the nodes of a cluster have agreed; `None` if it is, and if there are no other nodes.
    pub fn lack(&self, agreed: Option<&Agreed>) -> Option<String> {
        let why = self.trouble.lock().clone();
        let Some(agreed) = agreed else {
            let is_awaited = self.is_awaited.load(Ordering::Relaxed);
            return is_awaited.then(|| why.unwrap_or_else(|| "the nodes of the cluster have not agreed on policies yet".to_owned()));
        };
        if agreed.is(&self.current()) && !self.is_awaited.load(Ordering::Relaxed) {
            return None;
        }
        let is_of_it = |rejected: &&Rejected| agreed.components.iter().any(|component| Some(&component.digest) == rejected.digest.as_ref());
        let refused: Vec<String> =
            self.rejected.lock().iter().filter(is_of_it).map(|rejected| format!("{} {}", rejected.name, rejected.reason)).collect();
        let why = if refused.is_empty() { why.unwrap_or_else(|| "they are being loaded".to_owned()) } else { refused.join("; ") };
        Some(format!("revision {} of the cluster's policies does not serve here: {why}", agreed.revision))
    }

    /// Replaces the refused files, and the current set if there is a next one. Returns whether `expected` was still the current set;
    /// else nothing has changed, and the caller decides again.
    pub fn replace(&self, expected: &Arc<PolicySet>, rejected: Vec<Rejected>, next: Option<PolicySet>) -> bool {
        let mut retired = self.retired.lock();
        if !Arc::ptr_eq(expected, &self.current()) {
            return false;
        }
        self.is_complete.store(is_complete(&rejected), Ordering::Relaxed);
        *self.rejected.lock() = rejected;
        if let Some(next) = next {
            self.retire_current(next, &mut retired);
        }
        true
    }

    /// Replaces the current set. Events in progress finish with the set that they took.
    pub fn swap(&self, next: PolicySet) {
        // Locked before the swap, so that `at` always finds the old set: it is either current or, once the lock is free, retired.
        self.retire_current(next, &mut self.retired.lock());
    }

    fn retire_current(&self, next: PolicySet, retired: &mut VecDeque<(Instant, Arc<PolicySet>)>) {
        let old = self.current.swap(Arc::new(next));
        retired.push_back((Instant::now(), old));
        self.refresh_canary_beside(retired);
    }

    /// Drops the sets that were replaced at least `retire_after` ago: no message in progress needs them any more.
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
