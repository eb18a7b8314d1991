//! Deduplication: which events were already published within the window.

use std::collections::{HashMap, VecDeque};

use sha2::{Digest as _, Sha256};

use super::record::Change;
use crate::config;

/// The events of the window, by [`key`].
#[derive(Debug)]
pub struct Dedup {
    known: HashMap<u128, Progress>,
    /// Settled attempts, oldest first: time, number and key. An event that was settled again is in here twice, and expires with its
    /// latest entry.
    order: VecDeque<(u64, u64, u128)>,
    settled: u64,
    window_ms: u64,
    entries_max: usize,
}

/// How far the publishing of one event has come.
#[derive(Clone, Copy, Debug)]
enum Progress {
    UnderWay {
        attempts: u32,
    },
    /// It was published by this attempt.
    Done {
        settled: u64,
    },
    /// Every policy refused it, faulted or had an open circuit, so it may be published again.
    Failed {
        settled: u64,
        attempts: u32,
    },
}

/// What the dedup window knows about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It has to be published. This is the number of the attempt: 1, or more after it failed.
    New(u32),
    /// It was published within the window.
    Duplicate,
    /// Another request is publishing it now.
    UnderWay,
}

/// Returns the key of an event's source and id: half of a SHA-256, the same in every process. The source's length is part of it, so that
/// two different pairs never hash the same bytes.
pub fn key(source: &str, id: &str) -> u128 {
    let mut digest = Sha256::new();
    digest.update((source.len() as u64).to_le_bytes());
    digest.update(source);
    digest.update(id);
    let digest: [u8; 32] = digest.finalize().into();
    digest.iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte))
}

impl Dedup {
    pub fn new(events: &config::Events) -> Dedup {
        let (window_ms, entries_max) = (events.dedup_window_ms.get(), events.dedup_entries_max.get());
        Dedup { known: HashMap::new(), order: VecDeque::new(), settled: 0, window_ms, entries_max }
    }

    /// Begins an attempt to publish an event, unless it was published within the window.
    pub fn begin(&mut self, key: u128, now_ms: u64) -> Attempt {
        self.expire(now_ms);
        let attempts = match self.known.get(&key) {
            None => 1,
            Some(Progress::Failed { attempts, .. }) => attempts + 1,
            Some(Progress::Done { .. }) => return Attempt::Duplicate,
            Some(Progress::UnderWay { .. }) => return Attempt::UnderWay,
        };
        self.known.insert(key, Progress::UnderWay { attempts });
        Attempt::New(attempts)
    }

    /// Ends the attempt that [`Dedup::begin`] began. The window starts now.
    pub fn settle(&mut self, key: u128, failed: bool, now_ms: u64) {
        let attempts = match self.known.get(&key) {
            Some(Progress::UnderWay { attempts }) => *attempts,
            _ => 1,
        };
        self.settled += 1;
        let settled = self.settled;
        self.known.insert(key, if failed { Progress::Failed { settled, attempts } } else { Progress::Done { settled } });
        self.order.push_back((now_ms, settled, key));
        // An event that fails repeatedly leaves stale entries in `order`, but does not evict other events.
        while self.known.len() > self.entries_max || self.order.len() > 2 * self.entries_max {
            if !self.forget_oldest() {
                break;
            }
        }
    }

    /// Returns whether the last attempt to publish an event is remembered, and had this outcome.
    pub fn is_known(&self, key: u128, failed: bool) -> bool {
        match self.known.get(&key) {
            Some(Progress::Done { .. }) => !failed,
            // Until it is settled, the outcome before is the last one that a store may know.
            Some(Progress::Failed { .. } | Progress::UnderWay { .. }) => failed,
            None => false,
        }
    }

    /// Returns the changes that make it, the oldest first.
    pub fn changes(&self) -> Vec<Change> {
        let seen = |(at_ms, number, key): &(u64, u64, u128)| {
            let failed = match self.known.get(key)? {
                Progress::Done { settled } if settled == number => false,
                Progress::Failed { settled, .. } if settled == number => true,
                _ => return None,
            };
            Some(Change::Seen { key: *key, at_ms: *at_ms, failed })
        };
        self.order.iter().filter_map(seen).collect()
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    fn expire(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(at_ms, ..)| at_ms.saturating_add(self.window_ms) <= now_ms) {
            self.forget_oldest();
        }
    }

    /// Removes the oldest entry, and returns whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let Some((_, then, key)) = self.order.pop_front() else { return false };
        let is_current = match self.known.get(&key) {
            Some(Progress::Done { settled } | Progress::Failed { settled, .. }) => *settled == then,
            Some(Progress::UnderWay { .. }) | None => false,
        };
        if is_current {
            self.known.remove(&key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn dedup() -> Dedup {
        let one = NonZeroUsize::MIN;
        Dedup::new(&config::Events {
            body_bytes_max: one,
            event_bytes_max: one,
            batch_max: one,
            dedup_window_ms: config::Milliseconds::new(1000),
            dedup_entries_max: one.saturating_add(1),
            receipts_bytes_max: one,
        })
    }

    fn publish(dedup: &mut Dedup, name: (&str, &str), now_ms: u64) -> Attempt {
        let key = key(name.0, name.1);
        let attempt = dedup.begin(key, now_ms);
        if let Attempt::New(_) = attempt {
            dedup.settle(key, false, now_ms);
        }
        attempt
    }

    #[test]
    fn an_event_is_new_again_after_the_window_or_when_crowded_out() {
        let mut dedup = dedup();
        assert_eq!(publish(&mut dedup, ("a", "1"), 0), Attempt::New(1));
        assert_eq!(publish(&mut dedup, ("a", "1"), 999), Attempt::Duplicate);
        assert_eq!(publish(&mut dedup, ("b", "1"), 0), Attempt::New(1), "the source is part of the identity");
        assert_eq!(publish(&mut dedup, ("a", "2"), 0), Attempt::New(1), "the third crowds out the first");
        assert_eq!(publish(&mut dedup, ("a", "1"), 0), Attempt::New(1));
        assert_eq!(publish(&mut dedup, ("a", "1"), 1000), Attempt::New(1));
    }

    #[test]
    fn an_event_that_failed_may_come_again_and_its_window_counts_from_its_success() {
        let mut dedup = dedup();
        let key = key("a", "1");
        assert_eq!(dedup.begin(key, 0), Attempt::New(1));
        assert_eq!(dedup.begin(key, 0), Attempt::UnderWay);
        dedup.settle(key, true, 0);
        assert_eq!(dedup.begin(key, 500), Attempt::New(2));
        dedup.settle(key, false, 500);
        assert_eq!(dedup.begin(key, 1400), Attempt::Duplicate, "not from the first, which failed");
        assert_eq!(dedup.begin(key, 1500), Attempt::New(1));
    }

    #[test]
    fn an_event_that_fails_again_and_again_crowds_out_no_other() {
        let mut dedup = dedup();
        let failing = key("a", "2");
        for attempt in 1..=3 {
            publish(&mut dedup, ("a", "1"), 0);
            assert_eq!(dedup.begin(failing, 0), Attempt::New(attempt));
            dedup.settle(failing, true, 0);
        }
        assert_eq!(publish(&mut dedup, ("a", "1"), 0), Attempt::Duplicate);
        dedup.begin(failing, 0);
        dedup.settle(failing, false, 0);
        assert_eq!(dedup.begin(failing, 0), Attempt::Duplicate, "a success in the same millisecond counts");
    }

    #[test]
    fn a_key_is_half_of_a_digest_of_both_names() {
        assert_ne!(key("a", "bc"), key("ab", "c"));
        let mut whole = 1_u64.to_le_bytes().to_vec();
        whole.extend_from_slice(b"abc");
        assert_eq!(Sha256::digest(whole)[..16], key("a", "bc").to_be_bytes());
    }
}
