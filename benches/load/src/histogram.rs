//! A histogram of durations: exact counts, and durations to 0.1 %.

use std::time::Duration;

/// Significant decimal digits of a duration.
const DIGITS: u8 = 3;

/// Counts durations by nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

impl Default for Histogram {
    #[expect(clippy::expect_used, reason = "the crate allows these bounds, and 0 to 5 digits")]
    fn default() -> Histogram {
        // With bounds: a histogram that grows on demand would record a long duration as the longest that it has room for so far.
        Histogram(hdrhistogram::Histogram::new_with_bounds(1, u64::MAX, DIGITS).expect("valid bounds and number of digits"))
    }
}

impl Histogram {
    pub fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Returns the duration that the given share (0 to 1) of all durations does not exceed, or zero if there are no durations.
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(quantile))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_recorded_durations() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max(), histogram.count()), (Duration::ZERO, Duration::ZERO, 0));
        for micros in (1..=1000).rev() {
            histogram.record(Duration::from_micros(micros));
        }
        for (quantile, micros) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.quantile(quantile).as_secs_f64() * 1e6;
            assert!((found / micros - 1.0).abs() < 0.001, "{quantile}: {found} instead of {micros}");
        }
        assert_eq!(histogram.count(), 1000);
        // Longer than any run, and as long as a duration can be.
        for long in [Duration::from_secs(100_000), Duration::MAX] {
            histogram.record(long);
            assert!(histogram.max() >= long.min(Duration::from_nanos(u64::MAX / 1001 * 1000)), "{:?}", histogram.max());
        }
    }
}
