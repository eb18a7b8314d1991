//! The circuit breaker: a policy that faults again and again is not called for a while, and then tried again. Pure: time is an argument.
//!
//! Faults in a row say that something is wrong, not what: the policy may be broken, or somebody may publish events that it can't bear. The
//! caller tells the two apart, by a call that the policy has answered before, and says which it is.

use std::time::Duration;

use tokio::time::Instant;

/// Counts faults in a row. Closed: calls pass. Open: none do, until the pause is over; then one call is a trial.
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

    /// Whether a call may pass now. After the pause the first one does, and the others wait for its outcome or one more pause.
    /// The time is asked for only while the circuit is open.
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

    /// Counts a fault, and returns whether there are so many in a row that the circuit has to open unless the policy is sound.
    pub fn faulted(&mut self) -> bool {
        self.faults = self.faults.saturating_add(1);
        self.faults >= self.faults_max
    }

    /// Opens the circuit, and returns whether it was closed. After a trial that failed it stays open for longer.
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
