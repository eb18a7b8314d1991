//! Which events were published already, within the window.

use std::collections::{HashMap, VecDeque};

use sha2::{Digest as _, Sha256};

use crate::config;

/// The events of the last while, by [`key`].
#[derive(Debug)]
pub struct Dedup {
    known: HashMap<u128, Entry>,
    /// Settled ones, oldest first. One that was settled again is in here twice, and counts from the last time.
    order: VecDeque<(u64, u128)>,
    window_ms: u64,
    entries_max: usize,
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    UnderWay {
        attempts: u32,
    },
    /// Its policies answered at this time, in milliseconds since the Unix epoch.
    Done {
        at_ms: u64,
    },
    /// Every policy refused it, faulted or was left out, so it may be published again.
    Failed {
        at_ms: u64,
        attempts: u32,
    },
}

/// What an event with a known id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The how often it is tried: 1, or more after it failed.
    New(u32),
    /// It was published within the window.
    Duplicate,
    /// Another request is publishing it now.
    UnderWay,
}

/// Returns the name of an event by its source and id: half of a SHA-256, the same in every process. Lengths are part of it, so that no
/// two pairs are taken for one.
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
        let (window_ms, entries_max) = (events.dedup_window_ms, events.dedup_entries_max.max(1));
        Dedup { known: HashMap::new(), order: VecDeque::new(), window_ms, entries_max }
    }

    /// Begins to publish an event, unless it was published before.
    pub fn begin(&mut self, key: u128, now_ms: u64) -> Attempt {
        self.expire(now_ms);
        let attempts = match self.known.get(&key) {
            None => 1,
            Some(Entry::Failed { attempts, .. }) => attempts + 1,
            Some(Entry::Done { .. }) => return Attempt::Duplicate,
            Some(Entry::UnderWay { .. }) => return Attempt::UnderWay,
        };
        self.known.insert(key, Entry::UnderWay { attempts });
        Attempt::New(attempts)
    }

    /// Ends what [`Dedup::begin`] began. The window counts from here.
    pub fn settle(&mut self, key: u128, failed: bool, now_ms: u64) {
        let attempts = match self.known.get(&key) {
            Some(Entry::UnderWay { attempts }) => *attempts,
            _ => 1,
        };
        let entry = if failed { Entry::Failed { at_ms: now_ms, attempts } } else { Entry::Done { at_ms: now_ms } };
        self.known.insert(key, entry);
        self.order.push_back((now_ms, key));
        while self.order.len() > self.entries_max {
            self.forget_oldest();
        }
    }

    fn expire(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(at_ms, _)| at_ms.saturating_add(self.window_ms) <= now_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((then_ms, key)) = self.order.pop_front() else { return };
        let is_current = match self.known.get(&key) {
            Some(Entry::Done { at_ms } | Entry::Failed { at_ms, .. }) => *at_ms == then_ms,
            Some(Entry::UnderWay { .. }) | None => false,
        };
        if is_current {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dedup() -> Dedup {
        Dedup::new(&config::Events { body_bytes_max: 1, event_bytes_max: 1, batch_max: 1, dedup_window_ms: 1000, dedup_entries_max: 2 })
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
    fn a_key_is_half_of_a_digest_of_both_names() {
        assert_ne!(key("a", "bc"), key("ab", "c"));
        let mut whole = 1_u64.to_le_bytes().to_vec();
        whole.extend_from_slice(b"abc");
        assert_eq!(Sha256::digest(whole)[..16], key("a", "bc").to_be_bytes());
    }
}
