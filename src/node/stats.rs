//! The figures of the last quarter of an hour, one sample a second, so that a chart has a past without anything beside the server.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

use super::Node;
use crate::metrics::Readings;

/// The time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Samples that are kept: 15 minutes, in some 150 KB.
pub const SAMPLES_MAX: usize = 900;

/// The samples.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    samples: VecDeque<Sample>,
    /// The counters at the time of the newest sample.
    last: Option<Readings>,
}

#[derive(Clone, Debug)]
struct Sample {
    /// Milliseconds since the Unix epoch.
    at_ms: u64,
    /// In the order of `Kept::columns`.
    values: Box<[u32]>,
}

/// Samples, column by column, the oldest first.
#[derive(Debug, Serialize)]
pub struct Figures {
    interval_ms: u32,
    /// When each sample was taken, in milliseconds since the Unix epoch.
    at_ms: Vec<u64>,
    /// What each interval brought, or how things stood at its end.
    columns: BTreeMap<String, Vec<u32>>,
}

impl Stats {
    /// Takes a sample.
    pub fn sample(&self, node: &Node) {
        let (readings, gauges) = (node.metrics.readings(), gauges(node));
        let mut kept = self.0.lock();
        let last = kept.last.replace(readings.clone()).unwrap_or_else(|| readings.clone());
        let counted = readings.counters.iter().zip(&last.counters).map(|((_, now), (_, before))| now.saturating_sub(*before));
        let calls = readings.calls.since(&last.calls);
        let publishes = readings.publishes.since(&last.publishes);
        let times = [&calls, &publishes]
            .into_iter()
            .flat_map(|times| [0.5, 0.99].map(|share| times.quantile_us(share).unwrap_or_default().ceil() as u64));
        let values = counted.chain(gauges.map(|(_, value)| value)).chain([calls.count()]).chain(times);
        let at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        if kept.samples.len() >= SAMPLES_MAX {
            kept.samples.pop_front();
        }
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        kept.samples.push_back(Sample { at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX), values: values.map(narrow).collect() });
    }

    /// Returns the newest samples, at most `count`.
    pub fn figures(&self, node: &Node, count: usize) -> Figures {
        let kept = self.0.lock();
        let samples: Vec<Sample> = kept.samples.iter().skip(kept.samples.len().saturating_sub(count)).cloned().collect();
        let counted = kept.last.iter().flat_map(|readings| readings.counters.iter().map(|(name, _)| name.clone())).collect::<Vec<String>>();
        drop(kept);
        let others = gauges(node).map(|(name, _)| name).into_iter().chain([
            "calls",
            "call_p50_us",
            "call_p99_us",
            "publish_p50_us",
            "publish_p99_us",
        ]);
        let names = counted.into_iter().chain(others.map(str::to_owned));
        let column = |index: usize| samples.iter().filter_map(|sample| sample.values.get(index).copied()).collect();
        Figures {
            interval_ms: u32::try_from(INTERVAL.as_millis()).unwrap_or_default(),
            at_ms: samples.iter().map(|sample| sample.at_ms).collect(),
            columns: names.enumerate().map(|(index, name)| (name, column(index))).collect(),
        }
    }
}

/// Returns how things stand.
fn gauges(node: &Node) -> [(&'static str, u64); 5] {
    let totals = node.model.mailboxes.totals();
    [
        ("sessions", totals.sessions as u64),
        ("mailboxes", totals.mailboxes as u64),
        ("messages", totals.messages as u64),
        ("message_bytes", totals.bytes as u64),
        ("dead_letters", node.model.dead_letters.totals().0 as u64),
    ]
}
