//! How fast a sink goes: how many requests may be under way, and how long it pauses after a failure. Pure: time is an argument.
//!
//! One event that fails holds up its subject only. If everything fails, the backend is away: then one request at a time tries whether it is
//! back, with longer and longer pauses.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::SinkLimits;

/// Doublings of a pause after which it stays as it is: far above `backoff_max_ms`, and without an overflow.
const DOUBLINGS_MAX: u32 = 32;

#[derive(Debug)]
pub struct Pace {
    requests_max: usize,
    failures_max: u32,
    backoff: Duration,
    backoff_max: Duration,
    retry_after_max: Duration,
    /// Failures since the backend has last answered well.
    failures: u32,
    /// Nothing is sent before.
    until: Option<Instant>,
}

impl Pace {
    pub fn new(limits: &SinkLimits) -> Pace {
        Pace {
            requests_max: limits.requests_max.get(),
            failures_max: limits.failures_max.get(),
            backoff: *limits.backoff_ms,
            backoff_max: *limits.backoff_max_ms,
            retry_after_max: *limits.retry_after_max_ms,
            failures: 0,
            until: None,
        }
    }

    /// Returns whether another request may begin while this number is under way.
    pub fn allows(&self, under_way: usize, now: Instant) -> bool {
        let requests_max = if self.is_down() { 1 } else { self.requests_max };
        under_way < requests_max && self.until.is_none_or(|until| until <= now)
    }

    /// Returns whether the backend seems to be away.
    pub fn is_down(&self) -> bool {
        self.failures >= self.failures_max
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns when a pause ends.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Notes that the backend has answered, and returns whether it had seemed to be away.
    pub fn succeed(&mut self) -> bool {
        let was_down = self.is_down();
        (self.failures, self.until) = (0, None);
        was_down
    }

    /// Notes a failure, and returns when the same batch may be tried again. `attempts`: those of the batch that have failed before.
    /// `retry_after`: what the answer asked for, which holds for all batches.
    pub fn fail(&mut self, attempts: u32, retry_after: Option<Duration>, now: Instant) -> Instant {
        self.failures = self.failures.saturating_add(1);
        let mut pause = Duration::ZERO;
        if self.is_down() {
            pause = self.random(self.failures - self.failures_max);
        }
        if let Some(asked) = retry_after {
            pause = pause.max(asked.min(self.retry_after_max));
        }
        if !pause.is_zero() {
            self.until = self.until.max(Some(now + pause));
        }
        now + self.random(attempts).max(pause)
    }

    /// Returns a random pause ("full jitter"): up to the first one after the first failure, twice that after the second, and so on.
    fn random(&self, failures_before: u32) -> Duration {
        let most = self.backoff.saturating_mul(1 << failures_before.min(DOUBLINGS_MAX - 1)).min(self.backoff_max);
        Duration::from_millis(fastrand::u64(0..=u64::try_from(most.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Reads `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
pub fn retry_after(value: &str, now_ms: u64) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds are a long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    let at_ms = u64::try_from(at.as_millisecond()).ok()?;
    Some(Duration::from_millis(at_ms.saturating_sub(now_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Milliseconds};

    fn pace() -> Pace {
        let mut limits = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.sink_limits;
        (limits.requests_max, limits.failures_max) = (4.try_into().unwrap(), 3.try_into().unwrap());
        (limits.backoff_ms, limits.backoff_max_ms) = (Milliseconds::new(100), Milliseconds::new(1000));
        limits.retry_after_max_ms = Milliseconds::new(5000);
        Pace::new(&limits)
    }

    #[test]
    fn pauses_are_random_and_grow_up_to_their_bound() {
        let (pace, now) = (pace(), Instant::now());
        for (attempts, most) in [(0, 100), (1, 200), (3, 800), (4, 1000), (1000, 1000)] {
            let pauses: Vec<u128> =
                (0..200).map(|_| (super::Pace { ..self::pace() }.fail(attempts, None, now) - now).as_millis()).collect();
            assert!(pauses.iter().all(|pause| *pause <= most), "{attempts}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause > most / 2) && pauses.iter().any(|pause| *pause < most / 2), "{attempts}: {pauses:?}");
        }
        assert_eq!(pace.failures(), 0);
    }

    #[test]
    fn some_failures_hold_up_nothing_else_and_many_in_a_row_let_one_request_try() {
        let (mut pace, now) = (pace(), Instant::now());
        pace.fail(0, None, now);
        pace.fail(0, None, now);
        assert!(pace.allows(3, now) && !pace.allows(4, now) && pace.until().is_none());
        pace.fail(0, None, now);
        let later = now + Duration::from_secs(1);
        assert!(pace.is_down() && pace.allows(0, later) && !pace.allows(1, later));
        assert!(pace.succeed() && !pace.is_down() && pace.allows(3, now));
        assert!(!pace.succeed());
    }

    #[test]
    fn an_answer_that_asks_for_a_pause_gets_one_within_its_bound() {
        let (mut pace, now) = (pace(), Instant::now());
        let again = pace.fail(0, Some(Duration::from_secs(2)), now);
        assert!(again >= now + Duration::from_secs(2));
        let at = |ms: u64| now + Duration::from_millis(ms);
        assert!(!pace.allows(0, at(1999)) && pace.allows(0, at(2000)));
        // A shorter one does not end it.
        pace.fail(0, Some(Duration::ZERO), now);
        assert!(!pace.allows(0, at(1999)));
        assert!(!pace.succeed());
        pace.fail(0, Some(Duration::from_secs(86_400)), now);
        assert!(!pace.allows(0, at(4999)) && pace.allows(0, at(5000)));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now_ms = 784_111_777_000;
        let read = |value: &str| retry_after(value, now_ms).map(|pause| pause.as_millis());
        assert_eq!([read("0"), read(" 120 "), read("Sun, 06 Nov 1994 08:49:40 GMT")], [Some(0), Some(120_000), Some(3000)]);
        assert_eq!(read("Sun, 06 Nov 1994 08:49:00 GMT"), Some(0), "what is past is now");
        assert!(read("99999999999999999999999").is_some_and(|pause| pause > 86_400_000));
        assert_eq!(["", "-1", "1.5", "soon", "+1"].map(read), [None; 5]);
    }
}
