//! Readings of the metrics: what the figures of the last minutes are made of.

use prometheus::core::Collector;

use super::{EventOutcome, Metrics};
use crate::types::drop_reason::DropReason;

/// The counters at one time.
#[derive(Clone, Debug)]
pub struct Readings {
    /// Always the same names in the same order.
    pub counters: Vec<(String, u64)>,
    /// The times of all calls of policies, and those of answers to producers.
    pub calls: Times,
    pub publishes: Times,
}

/// Times, counted by their bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times(Vec<Bucket>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    /// The longest time that is counted here, in nanoseconds.
    upto_ns: u64,
    /// All times up to it.
    count: u64,
}

impl Metrics {
    /// Reads the counters.
    pub fn readings(&self) -> Readings {
        let events =
            EventOutcome::ALL.into_iter().zip(&self.events).map(|(outcome, counter)| (format!("events.{}", outcome.name()), counter.get()));
        let dropped =
            DropReason::ALL.into_iter().zip(&self.dropped).map(|(reason, counter)| (format!("dropped.{}", reason.name()), counter.get()));
        let others = [
            ("posted", self.posted.get()),
            ("sent", self.sent.get()),
            ("sent_bytes", self.sent_bytes.get()),
            ("opened", self.sessions_opened.get()),
            ("client_messages", sum(&self.client_messages)),
            ("refusals", sum(&self.policy_refusals)),
            ("faults", sum(&self.policy_faults)),
        ];
        let others = others.into_iter().map(|(name, value)| (name.to_owned(), value));
        Readings {
            counters: events.chain(dropped).chain(others).collect(),
            calls: Times::of(&self.policy_calls),
            publishes: Times::of(&self.publish_seconds),
        }
    }

    /// Returns the times of the calls that the candidates of a policy have made in the shadow, or of the same calls by the policy itself.
    pub fn candidate_times(&self, policy: &str, version: &str) -> Times {
        Times::of(&self.candidate_time(policy, version))
    }

    /// Returns the times of one policy's calls, by function.
    pub fn calls_of(&self, policy: &str) -> Vec<(String, Times)> {
        let mut found = Vec::new();
        for family in self.policy_calls.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| metric.get_label().iter().find(|label| label.name() == name).map(|label| label.value().to_owned());
                if label("policy").as_deref() == Some(policy) {
                    found.push((label("function").unwrap_or_default(), Times::from(metric.get_histogram())));
                }
            }
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }
}

fn sum(counters: &impl Collector) -> u64 {
    counters.collect().iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value() as u64).sum()
}

impl From<&prometheus::proto::Histogram> for Times {
    fn from(histogram: &prometheus::proto::Histogram) -> Times {
        let bucket =
            |bucket: &prometheus::proto::Bucket| Bucket { upto_ns: (bucket.upper_bound() * 1e9) as u64, count: bucket.cumulative_count() };
        let mut buckets: Vec<Bucket> = histogram.get_bucket().iter().map(bucket).collect();
        // Times beyond the last bound.
        buckets.push(Bucket { upto_ns: u64::MAX, count: histogram.get_sample_count() });
        Times(buckets)
    }
}

impl Times {
    fn of(histograms: &impl Collector) -> Times {
        let mut all = Times::default();
        for family in histograms.collect() {
            family.get_metric().iter().for_each(|metric| all.add(&Times::from(metric.get_histogram())));
        }
        all
    }

    fn add(&mut self, other: &Times) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for (bucket, other) in self.0.iter_mut().zip(&other.0) {
            bucket.count += other.count;
        }
    }

    /// Returns the times that were counted after an earlier reading.
    pub fn since(&self, earlier: &Times) -> Times {
        let before = |index: usize| earlier.0.get(index).map_or(0, |bucket| bucket.count);
        let later =
            self.0.iter().enumerate().map(|(index, bucket)| Bucket { count: bucket.count.saturating_sub(before(index)), ..*bucket });
        Times(later.collect())
    }

    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |bucket| bucket.count)
    }

    /// Returns the time in microseconds that this share of the calls did not exceed, as far as the bounds tell: in between it is assumed
    /// that times are spread evenly. `None` if there was no call.
    pub fn quantile_us(&self, share: f64) -> Option<f64> {
        let rank = share * self.count() as f64;
        let (mut below_ns, mut below) = (0, 0);
        for bucket in &self.0 {
            if bucket.count > below && bucket.count as f64 >= rank {
                if bucket.upto_ns == u64::MAX {
                    return Some(below_ns as f64 / 1e3);
                }
                let part = (rank - below as f64).max(0.0) / (bucket.count - below) as f64;
                return Some((below_ns as f64 + part * (bucket.upto_ns - below_ns) as f64) / 1e3);
            }
            (below_ns, below) = (bucket.upto_ns, bucket.count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_counters_and_of_the_times_between_two_readings() {
        let metrics = Metrics::new().unwrap();
        metrics.event(EventOutcome::Failed);
        metrics.dropped(DropReason::Evicted, 3);
        metrics.client_messages.with_label_values(&["handled"]).inc();
        metrics.client_messages.with_label_values(&["refused"]).inc_by(2);
        let calls = metrics.policy_call("p", "route");
        calls.observe(3e-6);
        let first = metrics.readings();
        let value = |name: &str| first.counters.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let values = ["events.failed", "events.routed", "dropped.evicted", "client_messages", "nothing"].map(value);
        assert_eq!(values, [Some(1), Some(0), Some(3), Some(3), None]);
        assert_eq!(first.calls.count(), 1);
        // Half of them in 5 to 25 µs, half in 100 to 500 µs; and one that is slower than all bounds.
        (0..50).for_each(|_| calls.observe(10e-6));
        (0..50).for_each(|_| metrics.policy_call("q", "format").observe(200e-6));
        let later = metrics.readings().calls.since(&first.calls);
        assert_eq!((later.count(), later.quantile_us(0.25), later.quantile_us(0.75)), (100, Some(15.0), Some(300.0)));
        assert_eq!(later.since(&later).quantile_us(0.5), None);
        calls.observe(60.0);
        assert_eq!(metrics.readings().calls.quantile_us(1.0), Some(250_000.0), "the last bound is what is known");
        let of_p = metrics.calls_of("p");
        assert_eq!(of_p.iter().map(|(function, times)| (function.as_str(), times.count())).collect::<Vec<_>>(), [("route", 52)]);
    }
}
