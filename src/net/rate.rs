//! A rate limiter: N per second, with a burst.

use tokio::time::Instant;

/// A token bucket. Each use takes tokens; they are refilled at the rate, up to the burst.
#[derive(Debug)]
pub struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    pub fn full(burst: u32) -> Bucket {
        Bucket { left: f64::from(burst), at: Instant::now() }
    }

    /// Takes `count` tokens and returns true, if that many are there.
    pub fn take(&mut self, count: u32, per_second: u32, burst: u32) -> bool {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * f64::from(per_second)).min(f64::from(burst));
        self.at = now;
        let is_there = self.left >= f64::from(count);
        if is_there {
            self.left -= f64::from(count);
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let mut bucket = Bucket::full(3);
        let mut take = || (0..10).filter(|_| bucket.take(1, 2, 3)).count();
        assert_eq!(take(), 3);
        assert_eq!(take(), 0);
        tokio::time::advance(Duration::from_millis(1001)).await;
        let again = (0..10).filter(|_| bucket.take(1, 2, 3)).count();
        assert_eq!(again, 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!bucket.take(4, 2, 3));
        assert!(bucket.take(3, 2, 3));
    }
}
