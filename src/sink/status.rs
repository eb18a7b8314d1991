//! What operators see of a sink: its state, how far it is behind, and what it has counted.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::{Histogram, IntCounter};
use serde::Serialize;

use super::Sink;
use super::attempt::Outcome;
use crate::config;
use crate::metrics::{Metrics, SinkEvent};
use crate::types::event::UserId;

#[derive(Debug)]
pub(super) struct Counters {
    pub(super) heard: IntCounter,
    pub(super) accepted: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) expired: IntCounter,
    pub(super) overflowed: IntCounter,
    /// Attempts, by their outcome.
    attempts: [IntCounter; 4],
    pub(super) seconds: Histogram,
}

/// What others see of a sink's task.
#[derive(Debug, Default)]
pub(super) struct Status {
    pub(super) state: State,
    pub(super) under_way: usize,
    pub(super) failures: u32,
    pub(super) oldest_ms: Option<u64>,
    pub(super) last_failure: Option<Failure>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    #[default]
    Delivering,
    /// The backend seems to be away: one request at a time tries.
    Failing,
    /// The backend has answered 410.
    Stopped,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Failure {
    #[serde(serialize_with = "crate::types::time::time")]
    pub(super) at: SystemTime,
    pub(super) detail: Arc<str>,
}

/// A sink as operators see it.
#[derive(Debug, Serialize)]
pub struct View {
    name: Arc<str>,
    url: String,
    events: Vec<String>,
    sources: Vec<String>,
    pub(super) state: State,
    /// Events that are not delivered yet, and their bytes.
    pub(super) waiting: usize,
    waiting_bytes: usize,
    /// Age of the oldest of them.
    pub(super) lag_ms: u64,
    /// Requests that have no answer yet.
    under_way: usize,
    /// Failures since the backend has last answered well.
    failures: u32,
    last_failure: Option<Failure>,
    counters: CountersView,
}

#[derive(Debug, Serialize)]
struct CountersView {
    heard: u64,
    accepted: u64,
    refused: u64,
    expired: u64,
    overflowed: u64,
}

impl Counters {
    pub(super) fn new(sink: &str, metrics: &Metrics) -> Counters {
        let attempts = ["accepted", "refused", "failed", "gone"];
        Counters {
            heard: metrics.sink_event(sink, SinkEvent::Heard),
            accepted: metrics.sink_event(sink, SinkEvent::Accepted),
            refused: metrics.sink_event(sink, SinkEvent::Refused),
            expired: metrics.sink_event(sink, SinkEvent::Expired),
            overflowed: metrics.sink_event(sink, SinkEvent::Overflowed),
            attempts: attempts.map(|outcome| metrics.sink_attempts.with_label_values(&[sink, outcome])),
            seconds: metrics.sink_attempt_seconds.with_label_values(&[sink]),
        }
    }

    pub(super) fn attempt(&self, outcome: &Outcome) {
        let [accepted, refused, failed, gone] = &self.attempts;
        match outcome {
            Outcome::Accepted => accepted.inc(),
            Outcome::Refused(_) => refused.inc(),
            Outcome::Failed { .. } => failed.inc(),
            Outcome::Gone => gone.inc(),
        }
    }
}

impl Sink {
    pub(super) fn view(&self) -> View {
        let presence = self.model.mailboxes.presence(&UserId::of_sink(&self.name));
        let config::Sink { url, events, sources, .. } = self.setup.load().config.clone();
        let status = self.status.lock();
        let Counters { heard, accepted, refused, expired, overflowed, .. } = &self.counters;
        View {
            name: self.name.clone(),
            url,
            events,
            sources,
            state: status.state,
            waiting: presence.messages,
            waiting_bytes: presence.bytes,
            lag_ms: status.oldest_ms.map_or(0, |posted_ms| self.model.clock.now_ms().saturating_sub(posted_ms)),
            under_way: status.under_way,
            failures: status.failures,
            last_failure: status.last_failure.clone(),
            counters: CountersView {
                heard: heard.get(),
                accepted: accepted.get(),
                refused: refused.get(),
                expired: expired.get(),
                overflowed: overflowed.get(),
            },
        }
    }
}
