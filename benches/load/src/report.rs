//! The report of a run: for programs as JSON; the command prints it for people.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::dialect::Dialect;
use super::histogram::Histogram;
use super::ledger::Findings;

/// The outcome of a run. A delivery is a message times one of its readers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub scenario: &'static str,
    pub dialect: Dialect,
    pub subprotocol: &'static str,
    pub seed: u64,
    pub users: u32,
    pub producers: u32,
    /// Whether every delivery reached its reader once and in order, no request failed, and no socket ended.
    pub exact: bool,
    #[serde(flatten)]
    pub findings: Findings,
    /// Requests that the server refused, or whose receipt reported fewer deliveries.
    pub failed: u64,
    pub first_failure: Option<String>,
    /// Sockets that the server ended, by close code.
    pub closed: BTreeMap<u16, u64>,
    /// Messages without a marker of this run.
    pub unmarked: u64,
    pub events: u64,
    pub deliveries: u64,
    /// From the first request to the last delivery.
    pub seconds: f64,
    pub deliveries_per_second: f64,
    /// From when a message was due to be sent to when it was read.
    pub latency: Latency,
    pub connecting: Connecting,
    /// Only if the server's process is known.
    pub server: Option<Server>,
    pub generator: Generator,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// The time that the sockets took to open; in a storm, in its slowest round.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Connecting {
    pub sockets: u32,
    /// Until the last socket was open.
    pub seconds: f64,
    #[serde(flatten)]
    pub each: Latency,
}

/// The cost of the server's process and its descendants.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Server {
    /// From the first request to the last delivery; in a storm, without the reconnecting.
    pub processor_us_per_delivery: f64,
    pub processor_seconds: f64,
    /// For opening the sockets, per socket; in a storm, over all rounds, including the end of the old sockets.
    pub processor_us_per_socket: f64,
    pub resident_kib_before: u64,
    /// With all sockets open, before the first message.
    pub resident_kib_open: u64,
    pub resident_kib_after: u64,
    pub resident_kib_per_socket: f64,
}

/// The cost of this process. If it is busy all the time, it is the bottleneck.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Generator {
    pub processor_us_per_delivery: f64,
    /// 1 is a whole core.
    pub busy: f64,
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub elapsed: Duration,
    pub open_sockets: u32,
    pub events: u64,
    pub arrived: u64,
    pub outstanding: u64,
}

impl From<&Histogram> for Latency {
    fn from(histogram: &Histogram) -> Latency {
        let quantile = |quantile| micros(histogram.quantile(quantile));
        Latency { p50_us: quantile(0.5), p99_us: quantile(0.99), p999_us: quantile(0.999), max_us: micros(histogram.max()) }
    }
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
