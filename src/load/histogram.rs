//! How often each duration came: exact counts, durations to better than 1 %, in a few KiB however many are counted.

use std::time::Duration;

/// Buckets for each power of two; the first so many nanoseconds have a bucket each.
const STEPS: u64 = 128;
const STEPS_BITS: u32 = STEPS.ilog2();

/// Durations from 1 ns to centuries, in buckets whose width is under 1 % of their value.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Histogram {
    pub fn record(&mut self, duration: Duration) {
        let index = bucket(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        if let Some(count) = self.buckets.get_mut(index) {
            *count += 1;
        }
        self.count += 1;
        self.max = self.max.max(duration);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn max(&self) -> Duration {
        self.max
    }

    /// The duration that a share of `quantile` (0 to 1) of all does not exceed; zero where there is none.
    pub fn quantile(&self, quantile: f64) -> Duration {
        // Counts are far below 2^52, where floats would begin to round.
        let rank = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_edge(index)).min(self.max);
            }
        }
        self.max
    }
}

/// Small values are their own bucket; of larger ones the leading bits count.
fn bucket(nanos: u64) -> usize {
    let shift = nanos.max(1).ilog2().saturating_sub(STEPS_BITS);
    // At most 57 × 128 + 255.
    (u64::from(shift) * STEPS + (nanos >> shift)) as usize
}

fn upper_edge(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    let leading = bucket - shift * STEPS;
    // The last bucket's edge is u64::MAX itself, which needs the wider type on the way.
    u64::try_from(((u128::from(leading) + 1) << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_at_most_its_buckets_edge_and_within_1_percent_of_it() {
        for nanos in
            (0..2000).chain((11..64).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + (1 << (bits - 2)) + 3])).chain([u64::MAX])
        {
            let edge = upper_edge(bucket(nanos));
            assert!(edge >= nanos && edge - nanos <= nanos / 100, "{nanos} is counted as {edge}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for micros in (1..=1000).rev() {
            histogram.record(Duration::from_micros(micros));
        }
        for (quantile, micros) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.quantile(quantile).as_secs_f64() * 1e6;
            assert!((found / micros - 1.0).abs() < 0.01, "{quantile}: {found} instead of {micros}");
        }
        assert_eq!((histogram.count(), histogram.max()), (1000, Duration::from_millis(1)));
    }
}
