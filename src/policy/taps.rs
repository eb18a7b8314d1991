//! Taps: which policies' calls are recorded, and where the records go. `signalpost record` and the candidates that run in the shadow of a
//! policy read them.
//!
//! While nobody does, a call costs one relaxed load.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::call::Call;
use crate::config;
use crate::metrics::Metrics;
use crate::net::feed::{Feed, Limits, Next, Reader, TooMany};

/// The taps of a node's policies, by name. Policies share them.
#[derive(Clone, Debug)]
pub struct Taps(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    are_there: AtomicBool,
    wanted: Mutex<HashMap<Arc<str>, Wanted>>,
    recordings: Arc<Feed<Arc<Call>>>,
}

/// Who wants to see the calls of one policy.
#[derive(Debug, Default)]
struct Wanted {
    recorders: usize,
}

/// A call that is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Tapped {
    is_recorded: bool,
}

/// Receives the calls of one policy from now on. Dropping it ends that.
#[derive(Debug)]
pub struct Recorder {
    taps: Taps,
    policy: Arc<str>,
    calls: Reader<Arc<Call>>,
}

/// What a recorder receives.
#[derive(Debug)]
pub enum Recorded {
    Call(Arc<Call>),
    /// The number of calls, of this policy or another, that it has missed.
    Lost(u64),
}

impl Taps {
    pub fn new(limits: &config::Recordings, metrics: &Metrics) -> Taps {
        let (readers_max, entries_max, bytes_max) = (limits.recorders_max.get(), limits.entries_max.get(), limits.bytes_max.get());
        let recordings = Feed::new(Limits { readers_max, entries_max, bytes_max }, &metrics.recorders, &metrics.recordings_lost);
        Taps(Arc::new(Shared { are_there: AtomicBool::new(false), wanted: Mutex::default(), recordings }))
    }

    /// Returns whether any calls are recorded.
    pub fn are_there(&self) -> bool {
        self.0.are_there.load(Ordering::Relaxed)
    }

    /// Decides whether the next call of a policy is recorded.
    pub fn of(&self, policy: &str) -> Option<Tapped> {
        let wanted = self.0.wanted.lock();
        let wanted = wanted.get(policy)?;
        let tapped = Tapped { is_recorded: wanted.recorders > 0 };
        tapped.is_recorded.then_some(tapped)
    }

    /// Shows a call to those who want it.
    pub fn show(&self, tapped: Tapped, call: Call) {
        let (bytes, call) = (call.size(), Arc::new(call));
        if tapped.is_recorded {
            self.0.recordings.show(bytes, call);
        }
    }

    /// Records the calls of a policy.
    ///
    /// # Errors
    /// There are as many recorders as the configuration allows.
    pub fn record(&self, policy: &Arc<str>) -> Result<Recorder, TooMany> {
        let calls = self.0.recordings.read()?;
        self.change(policy, |wanted| wanted.recorders += 1);
        Ok(Recorder { taps: self.clone(), policy: policy.clone(), calls })
    }

    fn change(&self, policy: &Arc<str>, change: impl FnOnce(&mut Wanted)) {
        let mut wanted = self.0.wanted.lock();
        change(wanted.entry(policy.clone()).or_default());
        wanted.retain(|_, wanted| wanted.recorders > 0);
        self.0.are_there.store(!wanted.is_empty(), Ordering::Relaxed);
    }
}

impl Recorder {
    /// Returns what is recorded next. Cancel safe.
    pub async fn next(&mut self) -> Recorded {
        loop {
            match self.calls.next().await {
                Next::Lost(count) => return Recorded::Lost(count),
                Next::Entry(call) if call.policy == self.policy => return Recorded::Call(Arc::clone(&**call)),
                // Another recorder's.
                Next::Entry(_) => {}
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.taps.change(&self.policy, |wanted| wanted.recorders -= 1);
    }
}
