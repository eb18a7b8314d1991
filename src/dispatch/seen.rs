//! Which events were published already.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::config;

/// The events of the last while, by a keyed hash of source and id: 128 bits, so that no two are taken for one.
#[derive(Debug)]
pub(super) struct Seen {
    keys: (RandomState, RandomState),
    /// Whether the event failed, and may come again.
    known: HashMap<u128, bool>,
    order: VecDeque<(Instant, u128)>,
    window: Duration,
    entries_max: usize,
}

impl Seen {
    pub(super) fn new(events: &config::Events) -> Seen {
        Seen {
            keys: (RandomState::new(), RandomState::new()),
            known: HashMap::new(),
            order: VecDeque::new(),
            window: Duration::from_millis(events.dedup_window_ms),
            entries_max: events.dedup_entries_max,
        }
    }

    pub(super) fn key(&self, source: &str, id: &str) -> u128 {
        u128::from(self.keys.0.hash_one((source, id))) << 64 | u128::from(self.keys.1.hash_one((source, id)))
    }

    pub(super) fn failed(&mut self, key: u128) {
        if let Some(failed) = self.known.get_mut(&key) {
            *failed = true;
        }
    }

    /// The how-manieth attempt this is, 2 standing for all after the first; `None` where the event was seen within the window.
    /// Remembers it.
    pub(super) fn attempt(&mut self, key: u128, now: Instant) -> Option<u32> {
        while self.order.front().is_some_and(|(since, _)| *since + self.window <= now) || self.order.len() >= self.entries_max.max(1) {
            let Some((_, oldest)) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
        match self.known.insert(key, false) {
            None => {
                self.order.push_back((now, key));
                Some(1)
            }
            Some(true) => Some(2),
            Some(false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_event_is_new_again_after_the_window_or_when_crowded_out() {
        let events = config::Events { body_bytes_max: 1, event_bytes_max: 1, batch_max: 1, dedup_window_ms: 1000, dedup_entries_max: 2 };
        let mut seen = Seen::new(&events);
        let repeats = |seen: &mut Seen, source, id| {
            let key = seen.key(source, id);
            seen.attempt(key, Instant::now()).is_none()
        };
        assert!(!repeats(&mut seen, "a", "1"));
        assert!(repeats(&mut seen, "a", "1"));
        assert!(!repeats(&mut seen, "b", "1"), "the source is part of the identity");
        assert!(!repeats(&mut seen, "a", "2"), "the third crowds out the first");
        assert!(!repeats(&mut seen, "a", "1"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!repeats(&mut seen, "a", "1"));
    }
}
