//! The order in which a sink's events go out. Pure: time is an argument.
//!
//! Events of one subject are in one lane, and follow each other: while one of them is under way, or waits for another attempt, the later ones
//! wait. Other lanes go on. Events without a subject are in one lane too. What failed is tried again as the same batch, so that it has the
//! same id.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use crate::types::delivery::Message;

/// Attempts after which a batch that fails, while others are accepted, is split: one event in it may be the reason.
const SPLIT_AFTER: u32 = 3;

/// An event that waits.
#[derive(Clone, Debug)]
pub struct Pending {
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub posted_ms: u64,
    pub subject: Arc<str>,
    pub source: Arc<str>,
    pub message: Arc<Message>,
    /// Whether a batch with it was split, so that it is sent alone.
    pub is_alone: bool,
}

/// Events of one request: one, or several if the sink takes batches. Their lanes are busy.
#[derive(Debug)]
pub struct Batch {
    pub events: Vec<Pending>,
    /// Attempts that have failed.
    pub attempts: u32,
}

/// What one request may hold.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub events_max: usize,
    pub bytes_max: usize,
}

#[derive(Debug, Default)]
pub struct Lanes {
    /// Events that are not in a batch, by subject. A subject is here as long as it has any, or is busy.
    lanes: HashMap<Arc<str>, Lane>,
    /// Lanes that are not busy, by the seq of their first event.
    ready: BTreeMap<u64, Arc<str>>,
    /// Batches that have failed, by the time of their next attempt and their first seq.
    waiting: BTreeMap<(Instant, u64), Batch>,
    /// When each event was posted that is not done, by its seq.
    outstanding: BTreeMap<u64, u64>,
}

#[derive(Debug, Default)]
struct Lane {
    events: VecDeque<Pending>,
    is_busy: bool,
}

impl Batch {
    fn first_seq(&self) -> u64 {
        self.events.first().map_or(0, |event| event.seq)
    }

    /// Returns whether each of its events was posted so long ago that it is over.
    fn is_over(&self, keep_ms: u64, now_ms: u64) -> bool {
        self.events.iter().all(|event| is_over(event, keep_ms, now_ms))
    }

    /// Returns whether it is to be split, if other requests are accepted.
    pub fn is_suspect(&self) -> bool {
        self.events.len() > 1 && self.attempts >= SPLIT_AFTER
    }
}

impl Lanes {
    /// Appends an event to its lane.
    pub fn push(&mut self, event: Pending) {
        self.outstanding.insert(event.seq, event.posted_ms);
        let lane = self.lanes.entry(event.subject.clone()).or_default();
        if lane.events.is_empty() && !lane.is_busy {
            self.ready.insert(event.seq, event.subject.clone());
        }
        lane.events.push_back(event);
    }

    /// Returns the next batch, if there is one: one that failed and is due, else the oldest events that may go.
    pub fn take(&mut self, limits: BatchLimits, now: Instant) -> Option<Batch> {
        if let Some(entry) = self.waiting.first_entry().filter(|entry| entry.key().0 <= now) {
            return Some(entry.remove());
        }
        let mut events: Vec<Pending> = Vec::new();
        let mut bytes = 0;
        while let Some((_, subject)) = self.ready.first_key_value() {
            let Some(next) = self.lanes.get(subject).and_then(|lane| lane.events.front()) else { break };
            bytes += next.message.body.size();
            let is_full = events.len() >= limits.events_max || bytes > limits.bytes_max;
            if !events.is_empty() && (is_full || next.is_alone) {
                break;
            }
            let is_alone = next.is_alone;
            events.extend(self.pop());
            if is_alone {
                break;
            }
        }
        // Later events of the same lanes wait until these are done.
        for event in &events {
            // If this was the lane's only event, the lane is gone, and is made again.
            let lane = self.lanes.entry(event.subject.clone()).or_default();
            lane.is_busy = true;
            if let Some(next) = lane.events.front() {
                self.ready.remove(&next.seq);
            }
        }
        (!events.is_empty()).then_some(Batch { events, attempts: 0 })
    }

    /// Forgets a batch that is over, and lets the next events of its lanes go.
    pub fn done(&mut self, batch: &Batch) {
        for event in &batch.events {
            self.outstanding.remove(&event.seq);
            self.free(&event.subject);
        }
    }

    /// Keeps a batch that failed for another attempt.
    pub fn retry(&mut self, batch: Batch, at: Instant) {
        self.waiting.insert((at, batch.first_seq()), Batch { attempts: batch.attempts + 1, ..batch });
    }

    /// Puts the events of a batch back into their lanes. `alone`: each is sent by itself.
    pub fn put_back(&mut self, batch: Batch, alone: bool) {
        let subjects: Vec<Arc<str>> = batch.events.iter().map(|event| event.subject.clone()).collect();
        for event in batch.events.into_iter().rev() {
            let lane = self.lanes.entry(event.subject.clone()).or_default();
            lane.events.push_front(Pending { is_alone: event.is_alone || alone, ..event });
        }
        subjects.iter().for_each(|subject| self.free(subject));
    }

    /// Makes every batch that waits due now.
    pub fn hurry(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting = waiting.into_iter().map(|((at, seq), batch)| ((at.min(now), seq), batch)).collect();
    }

    /// Removes what has waited for too long and is not under way.
    pub fn expire(&mut self, keep_ms: u64, now_ms: u64) -> Vec<Pending> {
        let mut over = Vec::new();
        while let Some((_, subject)) = self.ready.first_key_value()
            && let Some(next) = self.lanes.get(subject).and_then(|lane| lane.events.front())
            && is_over(next, keep_ms, now_ms)
        {
            over.extend(self.pop());
        }
        let due: Vec<(Instant, u64)> =
            self.waiting.iter().filter(|(_, batch)| batch.is_over(keep_ms, now_ms)).map(|(key, _)| *key).collect();
        for key in due {
            if let Some(batch) = self.waiting.remove(&key) {
                self.done(&batch);
                over.extend(batch.events);
            }
        }
        for event in &over {
            self.outstanding.remove(&event.seq);
        }
        over
    }

    /// Returns when a batch that failed is due, if none is ready before.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Returns when the oldest event was posted that is not done.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.outstanding.first_key_value().map(|(_, posted_ms)| *posted_ms)
    }

    /// Returns the number of events that are not done.
    pub fn len(&self) -> usize {
        self.outstanding.len()
    }

    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Takes the first event of the first ready lane out.
    fn pop(&mut self) -> Option<Pending> {
        let (_, subject) = self.ready.pop_first()?;
        let lane = self.lanes.get_mut(&subject)?;
        let event = lane.events.pop_front();
        match lane.events.front() {
            Some(next) => drop(self.ready.insert(next.seq, subject)),
            None => drop(self.lanes.remove(&subject)),
        }
        event
    }

    fn free(&mut self, subject: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(subject) else { return };
        lane.is_busy = false;
        match lane.events.front() {
            Some(next) => drop(self.ready.insert(next.seq, subject.clone())),
            None => drop(self.lanes.remove(subject)),
        }
    }
}

fn is_over(event: &Pending, keep_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(event.posted_ms) >= keep_ms
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::delivery::PolicySetId;
    use crate::types::event::Body;

    const ONE: BatchLimits = BatchLimits { events_max: 1, bytes_max: 100 };
    const MANY: BatchLimits = BatchLimits { events_max: 4, bytes_max: 100 };

    /// Returns lanes with these events: their seqs count from 1, and each was posted a millisecond after the one before.
    fn lanes(subjects: &[&str]) -> Lanes {
        let mut lanes = Lanes::default();
        for (index, subject) in subjects.iter().enumerate() {
            lanes.push(pending(index as u64 + 1, subject, "x"));
        }
        lanes
    }

    fn pending(seq: u64, subject: &str, body: &str) -> Pending {
        let message = Message::new(seq.to_string(), "t".into(), Body::Text(body.into()), PolicySetId(0));
        Pending { seq, posted_ms: seq, subject: subject.into(), source: "s".into(), message: Arc::new(message), is_alone: false }
    }

    fn seqs(batch: Option<&Batch>) -> Vec<u64> {
        batch.into_iter().flat_map(|batch| &batch.events).map(|event| event.seq).collect()
    }

    #[test]
    fn events_of_one_subject_follow_each_other_and_others_go_beside_them() {
        let (mut lanes, now) = (lanes(&["a", "a", "b", "a", "c"]), Instant::now());
        let (a, b, c) = (lanes.take(ONE, now), lanes.take(ONE, now), lanes.take(ONE, now));
        assert_eq!([&a, &b, &c].map(|batch| seqs(batch.as_ref())), [vec![1], vec![3], vec![5]]);
        assert!(lanes.take(ONE, now).is_none(), "the rest is behind what is under way");
        // What comes while the lane is busy waits too.
        lanes.push(pending(6, "c", "x"));
        assert!(lanes.take(ONE, now).is_none());
        lanes.done(&a.unwrap());
        let a = lanes.take(ONE, now);
        assert_eq!((seqs(a.as_ref()), lanes.take(ONE, now).is_none()), (vec![2], true));
        lanes.done(&c.unwrap());
        assert_eq!(seqs(lanes.take(ONE, now).as_ref()), [6]);
        lanes.done(&b.unwrap());
        lanes.done(&a.unwrap());
        assert_eq!((seqs(lanes.take(ONE, now).as_ref()), lanes.len()), (vec![4], 2));
    }

    #[test]
    fn what_failed_holds_its_lane_until_it_is_due_and_is_the_same_batch() {
        let (mut lanes, now) = (lanes(&["a", "a", "b"]), Instant::now());
        let failed = lanes.take(ONE, now).unwrap();
        lanes.retry(failed, now + Duration::from_secs(1));
        assert_eq!((seqs(lanes.take(ONE, now).as_ref()), lanes.take(ONE, now).is_none()), (vec![3], true));
        assert_eq!(lanes.due(), Some(now + Duration::from_secs(1)));
        let again = lanes.take(MANY, now + Duration::from_secs(1)).unwrap();
        assert_eq!((seqs(Some(&again)), again.attempts), (vec![1], 1));
        lanes.retry(again, now + Duration::from_secs(9));
        lanes.hurry(now);
        let again = lanes.take(ONE, now).unwrap();
        assert_eq!((seqs(Some(&again)), again.attempts), (vec![1], 2));
        lanes.done(&again);
        assert_eq!(seqs(lanes.take(ONE, now).as_ref()), [2]);
    }

    #[test]
    fn a_batch_has_the_oldest_events_in_order_within_its_limits() {
        let (mut lanes, now) = (lanes(&["a", "b", "a", "a", "c", "a"]), Instant::now());
        let first = lanes.take(MANY, now);
        assert_eq!(seqs(first.as_ref()), [1, 2, 3, 4]);
        assert_eq!(seqs(lanes.take(MANY, now).as_ref()), [5], "6 is behind the first batch");
        lanes.done(&first.unwrap());
        lanes.push(pending(7, "d", &"x".repeat(99)));
        lanes.push(pending(8, "e", "x"));
        assert_eq!(seqs(lanes.take(MANY, now).as_ref()), [6, 7]);
        lanes.push(pending(9, "f", &"x".repeat(200)));
        assert_eq!(seqs(lanes.take(MANY, now).as_ref()), [8]);
        assert_eq!(seqs(lanes.take(MANY, now).as_ref()), [9], "one that is too large goes alone");
    }

    #[test]
    fn a_split_batch_goes_one_by_one_and_in_order() {
        let (mut lanes, now) = (lanes(&["a", "b", "a", "c"]), Instant::now());
        let batch = lanes.take(MANY, now).unwrap();
        lanes.push(pending(5, "a", "x"));
        lanes.push(pending(6, "d", "x"));
        lanes.put_back(batch, true);
        let (a, b, c) = (lanes.take(MANY, now), lanes.take(MANY, now), lanes.take(MANY, now));
        assert_eq!([&a, &b, &c].map(|batch| seqs(batch.as_ref())), [vec![1], vec![2], vec![4]]);
        assert_eq!(seqs(lanes.take(MANY, now).as_ref()), [6]);
        lanes.done(&a.unwrap());
        let a = lanes.take(MANY, now);
        assert_eq!(seqs(a.as_ref()), [3]);
        lanes.done(&a.unwrap());
        assert_eq!(seqs(lanes.take(MANY, now).as_ref()), [5]);
    }

    #[test]
    fn what_has_waited_for_too_long_goes_unless_it_is_under_way() {
        let (mut lanes, now) = (lanes(&["a", "b", "c", "b", "b"]), Instant::now());
        let (under_way, failed) = (lanes.take(ONE, now).unwrap(), lanes.take(ONE, now).unwrap());
        lanes.retry(failed, now + Duration::from_secs(1));
        assert_eq!((lanes.oldest_ms(), lanes.expire(10, 10).len()), (Some(1), 0));
        let over: Vec<u64> = lanes.expire(10, 14).iter().map(|event| event.seq).collect();
        // The first of b's was in a batch that waits; with it gone, the next one of b is the lane's first.
        assert_eq!((over, lanes.len()), (vec![3, 2], 3));
        assert_eq!(lanes.expire(10, 14).iter().map(|event| event.seq).collect::<Vec<_>>(), [4]);
        lanes.done(&under_way);
        assert_eq!((seqs(lanes.take(ONE, now).as_ref()), lanes.oldest_ms()), (vec![5], Some(5)));
    }
}
