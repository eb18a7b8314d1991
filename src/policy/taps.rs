//! Taps: which policies' calls are recorded, and where the records go. `signalpost record` and the candidates that run in the shadow of a
//! policy read them.
//!
//! While nobody does, a call costs one relaxed load.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::{Mutex, MutexGuard};
use prometheus::IntCounter;

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
    shadows: SyncSender<Arc<Call>>,
    /// The other end, until somebody takes it.
    shadowed: Mutex<Option<Shadowed>>,
    /// Bytes of the calls that wait for candidates, and how many there may be.
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

/// Who wants to see the calls of one policy.
#[derive(Debug, Default)]
struct Wanted {
    recorders: usize,
    /// The candidate in the policy's shadow.
    shadow: Option<Shadow>,
}

/// How many of a policy's calls its candidate makes too.
#[derive(Clone, Debug)]
pub struct Shadow {
    pub share: f64,
    /// Counts the calls that it was to make, and that did not fit into the queue.
    pub skipped: Arc<AtomicU64>,
    pub skipped_total: IntCounter,
}

/// The calls that candidates in the shadow make again.
#[derive(Debug)]
pub struct Shadowed {
    calls: Receiver<Arc<Call>>,
    waiting: Arc<AtomicUsize>,
}

/// A call that is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Tapped {
    is_recorded: bool,
    is_shadowed: bool,
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
    pub fn new(config: &config::Config, metrics: &Metrics) -> Taps {
        let limits = &config.recordings;
        let (readers_max, entries_max, bytes_max) = (limits.recorders_max.get(), limits.entries_max.get(), limits.bytes_max.get());
        let recordings = Feed::new(Limits { readers_max, entries_max, bytes_max }, &metrics.recorders, &metrics.recordings_lost);
        let (shadows, calls) = sync_channel(config.candidates.entries_max.get());
        let waiting: Arc<AtomicUsize> = Arc::default();
        Taps(Arc::new(Shared {
            are_there: AtomicBool::new(false),
            wanted: Mutex::default(),
            recordings,
            shadows,
            shadowed: Mutex::new(Some(Shadowed { calls, waiting: waiting.clone() })),
            waiting,
            waiting_max: config.candidates.bytes_max.get(),
        }))
    }

    /// Returns whether any calls are recorded.
    pub fn are_there(&self) -> bool {
        self.0.are_there.load(Ordering::Relaxed)
    }

    /// Decides whether the next call of a policy is recorded.
    pub fn of(&self, policy: &str) -> Option<Tapped> {
        let wanted = self.0.wanted.lock();
        let wanted = wanted.get(policy)?;
        let is_shadowed = wanted.shadow.as_ref().is_some_and(|shadow| fastrand::f64() < shadow.share);
        let tapped = Tapped { is_recorded: wanted.recorders > 0, is_shadowed };
        (tapped.is_recorded || is_shadowed).then_some(tapped)
    }

    /// Shows a call to those who want it.
    pub fn show(&self, tapped: Tapped, call: Call) {
        let (bytes, call) = (call.size(), Arc::new(call));
        if tapped.is_shadowed {
            self.shadow(bytes, call.clone());
        }
        if tapped.is_recorded {
            self.0.recordings.show(bytes, call);
        }
    }

    fn shadow(&self, bytes: usize, call: Arc<Call>) {
        let policy = call.policy.clone();
        let fits = self.0.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.0.waiting_max;
        if !fits || self.0.shadows.try_send(call).is_err() {
            self.0.waiting.fetch_sub(bytes, Ordering::Relaxed);
            if let Some(shadow) = self.0.wanted.lock().get(&policy).and_then(|wanted| wanted.shadow.as_ref()) {
                shadow.skipped.fetch_add(1, Ordering::Relaxed);
                shadow.skipped_total.inc();
            }
        }
    }

    /// Lets candidates make calls again: those of these policies, and of no others.
    pub fn set_shadows(&self, shadows: HashMap<Arc<str>, Shadow>) {
        let mut wanted = self.0.wanted.lock();
        wanted.values_mut().for_each(|wanted| wanted.shadow = None);
        for (policy, shadow) in shadows {
            wanted.entry(policy).or_default().shadow = Some(shadow);
        }
        self.settle(wanted);
    }

    /// Returns the calls that candidates make again, once.
    pub fn shadowed(&self) -> Option<Shadowed> {
        self.0.shadowed.lock().take()
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
        self.settle(wanted);
    }

    fn settle(&self, mut wanted: MutexGuard<'_, HashMap<Arc<str>, Wanted>>) {
        wanted.retain(|_, wanted| wanted.recorders > 0 || wanted.shadow.is_some());
        self.0.are_there.store(!wanted.is_empty(), Ordering::Relaxed);
    }
}

impl Shadowed {
    /// Waits for the next call. Returns `None` when all policies are gone.
    pub fn next(&self) -> Option<Arc<Call>> {
        let call = self.calls.recv().ok()?;
        self.waiting.fetch_sub(call.size(), Ordering::Relaxed);
        Some(call)
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
