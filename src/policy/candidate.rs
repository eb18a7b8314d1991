//! Candidates: another version of a policy, on trial beside the one that serves.
//!
//! In the shadow, a candidate makes calls again that the live policy has made, on what those calls read, and its answers go nowhere
//! (`recording::shadow`). As a canary it decides in place of the live policy for a stable share of the events, as long as its circuit is closed.
//! A guest is not told which it is.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use super::Policy;
use crate::config::{self, CandidateMode};
use crate::metrics::Times;

/// Examples of each kind of difference that are kept.
const EXAMPLES_MAX: usize = 20;

/// Bytes of an example's line. A message may be larger, and there are twenty of each kind.
const LINE_BYTES_MAX: usize = 2048;

/// Lines of an example.
const LINES_MAX: usize = 20;

/// Another version of a policy.
#[derive(Debug)]
pub struct Candidate {
    /// The policy's name.
    pub name: Arc<str>,
    pub file: PathBuf,
    pub config: config::Candidate,
    /// The loaded component, or its digest and why it is refused.
    pub loaded: Result<Arc<Policy>, Refused>,
    pub since: SystemTime,
    /// The times of earlier candidates: the live policy's, and theirs.
    earlier: [Times; 2],
    state: Mutex<State>,
    /// Calls that it was to make again, and that did not fit into the queue.
    pub skipped: Arc<AtomicU64>,
    pub tally: Mutex<Tally>,
}

/// Why a candidate's file is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub digest: Option<String>,
    pub reason: String,
}

/// What a candidate does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is on trial.
    OnTrial,
    /// Its file is refused.
    Refused(String),
    /// It is the version that serves.
    Serves,
    /// It was a canary and faulted too often in a row: the live policy decides again.
    Returned(String),
    /// An operator has dropped it.
    Dropped,
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::OnTrial => "on_trial",
            State::Refused(_) => "refused",
            State::Serves => "serves",
            State::Returned(_) => "returned",
            State::Dropped => "dropped",
        }
    }

    pub fn reason(&self) -> Option<&str> {
        match self {
            State::Refused(reason) | State::Returned(reason) => Some(reason),
            State::OnTrial | State::Serves | State::Dropped => None,
        }
    }
}

/// What came out of a candidate's calls in the shadow.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    pub same: u64,
    pub differ: u64,
    /// Calls that read what the live call had not read.
    pub inconclusive: u64,
    /// Calls on which the candidate faulted and the live policy did not.
    pub faults: u64,
    /// By kind of difference.
    pub kinds: BTreeMap<&'static str, Kind>,
}

/// One kind of difference.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kind {
    /// Calls that differ in this.
    pub calls: u64,
    /// The latest of them.
    pub examples: VecDeque<Example>,
}

/// A call that differs.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    #[serde(serialize_with = "crate::types::time::time")]
    pub at: SystemTime,
    pub function: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Each difference with its path, what the live policy answered and what the candidate did.
    pub lines: Vec<String>,
}

impl Example {
    /// Bounds the lines.
    pub fn cut(mut self) -> Example {
        self.lines.truncate(LINES_MAX);
        self.lines.iter_mut().for_each(|line| line.truncate(line.floor_char_boundary(LINE_BYTES_MAX)));
        self
    }
}

impl Tally {
    /// Counts a call that differs in these kinds, and keeps it as an example of each.
    pub fn note(&mut self, kind: &'static str, example: Example) {
        let kind = self.kinds.entry(kind).or_default();
        kind.calls += 1;
        if kind.examples.len() >= EXAMPLES_MAX {
            kind.examples.pop_front();
        }
        kind.examples.push_back(example.cut());
    }

    pub fn compared(&self) -> u64 {
        self.same + self.differ
    }
}

/// The two whose times are compared, as the metrics name them.
const VERSIONS: [&str; 2] = ["live", "candidate"];

fn times(policy: &Policy, version: &str) -> Times {
    policy.metrics().candidate_times(&policy.name, version)
}

/// Why a candidate is not promoted: the end of a sentence whose subject is the candidate.
pub type Unfit = String;

impl Candidate {
    pub fn new(name: Arc<str>, file: PathBuf, config: config::Candidate, loaded: Result<Arc<Policy>, Refused>) -> Candidate {
        let state = match &loaded {
            Ok(_) => State::OnTrial,
            Err(refused) => State::Refused(refused.reason.clone()),
        };
        let earlier = loaded.as_ref().map_or_else(|_| Default::default(), |policy| VERSIONS.map(|version| times(policy, version)));
        Candidate {
            name,
            file,
            config,
            loaded,
            since: SystemTime::now(),
            earlier,
            state: Mutex::new(state),
            skipped: Arc::default(),
            tally: Mutex::default(),
        }
    }

    /// Returns the times of the calls that it has made in the shadow, and of the same calls by the live policy, each with its version.
    pub fn times(&self) -> Vec<(&'static str, Times)> {
        let Ok(policy) = &self.loaded else { return Vec::new() };
        VERSIONS.iter().zip(&self.earlier).map(|(version, earlier)| (*version, times(policy, version).since(earlier))).collect()
    }

    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Returns its policy if it is on trial, in this way.
    pub fn on_trial(&self, mode: CandidateMode) -> Option<&Arc<Policy>> {
        let is_on_trial = self.config.mode == mode && *self.state.lock() == State::OnTrial;
        self.loaded.as_ref().ok().filter(|_| is_on_trial)
    }

    pub fn digest(&self) -> Option<&str> {
        match &self.loaded {
            Ok(policy) => Some(&policy.digest),
            Err(refused) => refused.digest.as_deref(),
        }
    }

    /// Notes whether it is the version that serves: then there is nothing to try.
    pub fn compare_with(&self, live: Option<&Arc<Policy>>) {
        let serves = live.is_some_and(|live| Some(&*live.digest) == self.digest());
        let mut state = self.state.lock();
        match *state {
            State::OnTrial if serves => *state = State::Serves,
            State::Serves if !serves => *state = State::OnTrial,
            _ => {}
        }
    }

    /// Ends its trial, and returns whether it was on trial.
    pub fn end(&self, how: State) -> bool {
        let mut state = self.state.lock();
        let was_on_trial = *state == State::OnTrial;
        if was_on_trial || how == State::Dropped {
            *state = how;
        }
        was_on_trial
    }

    /// Checks that it may take the live policy's place.
    ///
    /// # Errors
    /// It was not tried enough, or it is over its budget of differences or faults.
    pub fn check(&self) -> Result<&Arc<Policy>, Unfit> {
        let policy = self.loaded.as_ref().map_err(|refused| format!("is refused: it {}", refused.reason))?;
        match &*self.state.lock() {
            State::OnTrial => {}
            State::Refused(reason) => return Err(format!("is refused: it {reason}")),
            State::Serves => return Err("serves already".into()),
            State::Returned(reason) => return Err(format!("faulted as a canary, and the live policy decides again: {reason}")),
            State::Dropped => return Err("was dropped; a reload with another file or configuration tries again".into()),
        }
        let tally = self.tally.lock().clone();
        let (calls, faults) = match self.config.mode {
            CandidateMode::Shadow => (tally.compared(), tally.faults),
            CandidateMode::Canary => (policy.counters.calls.load(Ordering::Relaxed), policy.counters.faults.load(Ordering::Relaxed)),
        };
        let named = |field: &str| format!("policies.{}.candidate.{field}", self.name);
        let (calls_min, faults_max) = (self.config.calls_min.get(), self.config.faults_max);
        if calls < calls_min {
            return Err(format!("has made {calls} calls that count, and {} asks for {calls_min}", named("calls_min")));
        }
        if faults > faults_max {
            return Err(format!("faulted {faults} times, and {} allows {faults_max}", named("faults_max")));
        }
        let (differ, most) = (tally.differ, self.config.differences_max.get());
        if self.config.mode == CandidateMode::Shadow && differ as f64 > most * calls as f64 {
            return Err(format!("differs in {differ} of {calls} calls, and {} allows {most} of them", named("differences_max")));
        }
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_examples_of_each_kind_are_kept_the_latest_ones() {
        let mut tally = Tally::default();
        for number in 0..50 {
            let lines = vec!["x".repeat(LINE_BYTES_MAX + 1); LINES_MAX + 1];
            let at = SystemTime::UNIX_EPOCH;
            tally.note("message", Example { at, function: "route", event_type: None, event: Some(number.to_string()), lines });
        }
        let kind = &tally.kinds["message"];
        assert_eq!((kind.calls, kind.examples.len(), kind.examples[0].event.as_deref()), (50, EXAMPLES_MAX, Some("30")));
        assert_eq!((kind.examples[0].lines.len(), kind.examples[0].lines[0].len()), (LINES_MAX, LINE_BYTES_MAX));
    }
}
