//! Whether and when to connect again.

use std::time::Duration;

/// What a client does after its connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    ReconnectNow,
    BackOff,
    Stop,
}

impl After {
    /// Returns what to do after a close with this code. The ranges are the server's; 1005 and 1006 stand for an end without a code (RFC
    /// 6455, section 7.4.1), which is what a broken network looks like.
    pub fn close(code: u16) -> After {
        match code {
            1001 | 1012 | 4000..=4099 => After::ReconnectNow,
            1005 | 1006 | 1011 | 1013 | 4100..=4199 => After::BackOff,
            _ => After::Stop,
        }
    }
}

/// A connection that was open for this long was a good one: its end is a new failure.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// The longest delay before a client reconnects "now", so that many clients don't come back at the same moment.
const NOW_MAX: Duration = Duration::from_millis(100);
const FIRST: Duration = Duration::from_millis(250);
const LAST: Duration = Duration::from_secs(10);

/// Jittered exponential backoff.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns how long to wait after a connection that was open for `held`. `chance` is from 0 to 1. Returns `None` if the client must not
    /// connect again.
    pub fn pause(&mut self, after: After, held: Duration, chance: f64) -> Option<Duration> {
        if held >= GOOD_AFTER {
            self.failures = 0;
        }
        // The client backs off too from a server that says "now" each time.
        let now = after == After::ReconnectNow && self.failures == 0;
        let doubled = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        match after {
            After::Stop => None,
            _ if now => Some(NOW_MAX.mul_f64(chance)),
            // Half of it is certain, so that chance can't make a hot loop.
            _ => Some((doubled / 2).mul_f64(1.0 + chance)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_close_code_says_what_to_do() {
        let codes = |after| (1000..5000).filter(|code| After::close(*code) == after).collect::<Vec<u16>>();
        assert_eq!(codes(After::ReconnectNow), [&[1001, 1012][..], &(4000..4100).collect::<Vec<_>>()].concat());
        assert_eq!(codes(After::BackOff), [&[1005, 1006, 1011, 1013][..], &(4100..4200).collect::<Vec<_>>()].concat());
        for code in [1000, 1002, 1003, 1007, 1008, 1009, 4200, 4999] {
            assert_eq!(After::close(code), After::Stop, "{code}");
        }
    }

    #[test]
    fn the_table_of_all_clients_says_the_same() {
        let table: serde_json::Value = serde_json::from_str(include_str!("../../../clients/close-codes.json")).unwrap();
        let mut codes = 0;
        for range in table["ranges"].as_array().unwrap() {
            let [from, to] = ["from", "to"].map(|name| u16::try_from(range[name].as_u64().unwrap()).unwrap());
            let then = match range["then"].as_str().unwrap() {
                "now" => After::ReconnectNow,
                "back_off" => After::BackOff,
                "stop" => After::Stop,
                other => panic!("{other}"),
            };
            for code in from..=to {
                codes += 1;
                assert_eq!(After::close(code), then, "{code}");
            }
        }
        assert_eq!(codes, 4000, "the ranges are those of all close codes");
        let delay = |name: &str| Duration::from_millis(table["delays"][name].as_u64().unwrap());
        let delays = ["now_max_ms", "first_ms", "last_ms", "good_after_ms"].map(delay);
        assert_eq!(delays, [NOW_MAX, FIRST, LAST, GOOD_AFTER]);
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_start_over_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let mut pauses = |held| backoff.pause(After::BackOff, held, 1.0).unwrap().as_millis();
        assert_eq!([0; 8].map(|_| pauses(Duration::ZERO)), [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(pauses(GOOD_AFTER), 250);
    }

    #[test]
    fn now_is_at_once_only_once() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(After::ReconnectNow, Duration::ZERO, 0.0), Some(Duration::ZERO));
        assert_eq!(backoff.pause(After::ReconnectNow, Duration::ZERO, 0.0), Some(FIRST));
        assert_eq!(backoff.pause(After::Stop, Duration::ZERO, 0.0), None);
    }
}
