//! The circuit breaker: a policy that faults repeatedly is not called for a while, and then tried again. Pure: time is an argument.
//!
//! Several faults in a row may mean that the policy is broken, or that a producer publishes events that it can't handle. The caller
//! finds out which, by repeating a call that the policy has answered before, and calls `open` or `succeeded`.

use std::time::Duration;

use tokio::time::Instant;

/// Counts faults in a row. While the circuit is closed, calls pass. While it is open, no call passes until the pause is over; then one
/// call passes as a trial.
#[derive(Debug)]
pub struct Breaker {
    faults_max: u32,
    pause_min: Duration,
    pause_max: Duration,
    faults: u32,
    pause: Duration,
    open_until: Option<Instant>,
}

impl Breaker {
    pub fn new(faults_max: u32, pause_min: Duration, pause_max: Duration) -> Breaker {
        Breaker { faults_max, pause_min, pause_max, faults: 0, pause: pause_min, open_until: None }
    }

    /// Returns whether a call may pass now. After the pause one call passes as a trial; no other does until it ends or one more pause is
    /// over. `now` is called only while the circuit is open.
    pub fn admits(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let Some(until) = self.open_until else { return true };
        let now = now();
        let is_over = until <= now;
        if is_over {
            self.open_until = Some(now + self.pause);
        }
        is_over
    }

    pub fn succeeded(&mut self) {
        self.faults = 0;
        self.pause = self.pause_min;
        self.open_until = None;
    }

    /// Counts a fault, and returns whether the bound on faults in a row is reached: the circuit has to open unless the events are to blame.
    pub fn faulted(&mut self) -> bool {
        self.faults = self.faults.saturating_add(1);
        self.faults >= self.faults_max
    }

    /// Opens the circuit, and returns whether it was closed. After a failed trial the pause is twice as long.
    pub fn open(&mut self, now: Instant) -> bool {
        let was_closed = self.open_until.is_none();
        if !was_closed {
            self.pause = (self.pause * 2).min(self.pause_max);
        }
        self.open_until = Some(now + self.pause);
        was_closed
    }

    pub fn is_open(&self) -> bool {
        self.open_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(3, SECOND, 4 * SECOND);
        assert!(!breaker.faulted() && !breaker.faulted() && breaker.faulted());
        assert!(breaker.open(now));
        breaker
    }

    #[test]
    fn faults_that_are_not_in_a_row_leave_it_closed() {
        let now = Instant::now();
        let mut breaker = Breaker::new(3, SECOND, 4 * SECOND);
        for _ in 0..10 {
            assert!(!breaker.faulted() && !breaker.faulted());
            breaker.succeeded();
        }
        assert!(breaker.admits(|| now) && !breaker.is_open());
    }

    #[test]
    fn after_the_pause_one_call_is_a_trial_and_its_success_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(!breaker.admits(|| now));
        assert!(breaker.admits(|| now + SECOND), "the trial");
        assert!(!breaker.admits(|| now + SECOND), "the others wait for it");
        breaker.succeeded();
        assert!(breaker.admits(|| now + SECOND) && !breaker.is_open());
    }

    #[test]
    fn each_failed_trial_doubles_the_pause_up_to_its_bound() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [1, 2, 4, 4] {
            assert!(!breaker.admits(|| now + pause * SECOND - Duration::from_millis(1)));
            now += pause * SECOND;
            assert!(breaker.admits(|| now));
            assert!(breaker.faulted());
            assert!(!breaker.open(now), "it was open already");
        }
    }

    #[test]
    fn a_trial_that_never_ends_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.admits(|| now + SECOND));
        assert!(breaker.admits(|| now + 2 * SECOND));
    }
}
