//! Settings of sinks: the backends to which events are posted.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Milliseconds;

/// The sources of events that a sink hears by default: what policies and the server made, so that a producer doesn't hear itself.
const SOURCES: [&str; 2] = ["/policies/*", "/signalpost"];

/// The settings of one sink.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sink {
    /// The http or https URL to which events are posted.
    pub url: String,
    /// Types of events, as in `pooling.offer.*`.
    pub events: Vec<String>,
    /// Sources of events, as in `/policies/*`.
    pub sources: Vec<String>,
    /// Files with the secrets that sign, one in each line. The first ones may be about to go, and the last ones new.
    pub secret_files: Vec<PathBuf>,
    /// Complete once loaded: the limits of all sinks with its own over them. `Config::sink_limits_for` reads them.
    pub limits: Option<SinkLimits>,
}

impl Default for Sink {
    fn default() -> Sink {
        Sink {
            url: String::new(),
            events: Vec::new(),
            sources: SOURCES.map(str::to_owned).to_vec(),
            secret_files: Vec::new(),
            limits: None,
        }
    }
}

/// Limits on one sink.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SinkLimits {
    /// Events that wait.
    pub messages_max: NonZeroUsize,
    /// Bytes of the events that wait.
    pub bytes_max: NonZeroUsize,
    /// How long an event is tried.
    pub keep_ms: Milliseconds,
    /// Requests at a time.
    pub requests_max: NonZeroUsize,
    /// Events in one request.
    pub batch_max: NonZeroUsize,
    /// Bytes of the events in one request.
    pub batch_bytes_max: NonZeroUsize,
    /// How long one attempt may take.
    pub attempt_deadline_ms: Milliseconds,
    /// The longest pause after the first failure.
    pub backoff_ms: Milliseconds,
    /// The longest pause after any failure.
    pub backoff_max_ms: Milliseconds,
    /// The longest pause that an answer may ask for.
    pub retry_after_max_ms: Milliseconds<0>,
    /// Failures in a row after which one request at a time is tried.
    pub failures_max: NonZeroU32,
}
