//! A histogram of times for what happens with each message: two atomic additions, where the library's own has five and a comparison in a loop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};

/// The bounds in microseconds: from a message on a quiet machine to a reader who is nearly given up.
const BOUNDS_US: [u64; 13] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];

#[derive(Clone, Debug)]
pub struct Latency(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    desc: Desc,
    /// Times up to each bound and over the one before it; the last counts those over all bounds.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Latency {
    /// # Errors
    /// The name is not one of a metric: a mistake where it is written.
    pub(super) fn new(name: &str, help: &str) -> prometheus::Result<Latency> {
        let desc = Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new())?;
        Ok(Latency(Arc::new(Counts { desc, buckets: Default::default(), sum_ns: AtomicU64::new(0) })))
    }

    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // Most times are short, so the first bounds are the ones that are compared.
        let index = BOUNDS_US.iter().take_while(|bound| **bound * 1000 < nanoseconds).count();
        if let Some(bucket) = self.0.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.0.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl Collector for Latency {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_US.len());
        for (index, counted) in self.0.buckets.iter().enumerate() {
            count += counted.load(Ordering::Relaxed);
            if let Some(bound) = BOUNDS_US.get(index) {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound as f64 / 1e6);
                bucket.set_cumulative_count(count);
                buckets.push(bucket);
            }
        }
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(self.0.sum_ns.load(Ordering::Relaxed) as f64 / 1e9);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name(self.0.desc.fq_name.clone());
        family.set_help(self.0.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_up_to_the_bounds_that_it_does_not_exceed() {
        let latency = Latency::new("a_seconds", "Help.").unwrap();
        for microseconds in [0, 100, 101, 1_000, 9_000_000] {
            latency.observe(Duration::from_micros(microseconds));
        }
        let family = &latency.collect()[0];
        let histogram = family.get_metric()[0].get_histogram();
        let counts: Vec<u64> = histogram.get_bucket().iter().map(Bucket::cumulative_count).collect();
        assert_eq!(counts, [2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]);
        assert_eq!((histogram.get_sample_count(), histogram.get_sample_sum()), (5, 9.001201));
        let bounds: Vec<f64> = histogram.get_bucket().iter().map(Bucket::upper_bound).collect();
        assert_eq!((bounds[0], bounds[12]), (0.0001, 5.0));
    }
}
