//! A rate: so many in a second, and some at once.

use tokio::time::Instant;

/// A bucket of tokens. Each use takes one; they come back at the rate, up to the burst.
#[derive(Debug)]
pub struct Bucket {
    left: f32,
    at: Instant,
}

impl Bucket {
    pub fn full(burst: u32) -> Bucket {
        Bucket { left: burst as f32, at: Instant::now() }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, per_second: u32, burst: u32) -> bool {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.at).as_secs_f32();
        self.left = (self.left + since * per_second as f32).min(burst as f32);
        self.at = now;
        let is_there = self.left >= 1.0;
        if is_there {
            self.left -= 1.0;
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
        let mut take = || (0..10).filter(|_| bucket.take(2, 3)).count();
        assert_eq!(take(), 3);
        assert_eq!(take(), 0);
        tokio::time::advance(Duration::from_millis(1001)).await;
        let again = (0..10).filter(|_| bucket.take(2, 3)).count();
        assert_eq!(again, 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!((0..10).filter(|_| bucket.take(2, 3)).count(), 3);
    }
}
