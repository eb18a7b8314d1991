//! One user's ordered log: what is in it, what replaces what, and what goes when it is full. Pure: time is an argument.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::types::delivery::{Message, Priority, Terms};

/// What an entry costs beside its message's body.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Entries in the order of their seq. Gaps are normal: an entry that was replaced or has expired leaves one.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    bytes: usize,
    last: u64,
    lost: u64,
    delivered: u64,
}

#[derive(Debug)]
pub struct Entry {
    pub seq: u64,
    pub message: Arc<Message>,
    /// The only session that may read it; `None`: all.
    pub session: Option<Arc<str>>,
    terms: Terms,
    posted: Instant,
    keep: Duration,
}

impl Entry {
    pub fn size(&self) -> usize {
        entry_size(&self.message)
    }

    /// `now` is looked at only where the entry is worthless at some time.
    pub fn expired(&self, now: impl FnOnce() -> Instant) -> bool {
        self.terms.time_to_live.is_some_and(|time| self.posted + time <= now())
    }
}

/// What making room or the passing of time did, for the counters and for the sessions that it concerns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub messages: usize,
    pub bytes: usize,
    /// Of these, past their time to live before everybody had read them.
    pub expired: usize,
    /// Of these, kept for as long as was asked, and nobody came.
    pub uncollected: usize,
    /// Of these, replaced by a newer one with the same key before everybody had read them.
    pub collapsed: usize,
    /// Of these, dropped unread because the mailbox was full.
    pub evicted: usize,
    /// Sessions that have not read up to here have missed something that they were owed.
    pub owed: Option<u64>,
}

impl Removed {
    fn note(&mut self, entry: &Entry) {
        self.messages += 1;
        self.bytes += entry.size();
    }
}

/// The new entry is less important than everything that fills the log, or larger than a log may be.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Log {
    pub fn new() -> Log {
        Log { entries: VecDeque::new(), bytes: 0, last: 0, lost: 0, delivered: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The seq of the newest entry ever; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Up to here some session has been sent everything (or, with acks, has acked it).
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// A session that began after `start` has been sent everything up to `seq`. What is older and was sent to nobody is still
    /// owed to whoever comes next, so nothing changes while there is such an entry.
    pub fn mark_delivered(&mut self, start: u64, seq: u64) {
        let owed = self.after(self.delivered).next().is_some_and(|entry| entry.seq <= start);
        if !owed {
            self.delivered = self.delivered.max(seq.min(self.last));
        }
    }

    /// Whether a reader who has read up to `seq` can be given all that came after it and is still wanted.
    pub fn complete_after(&self, seq: u64) -> bool {
        self.lost <= seq && seq <= self.last
    }

    /// Makes room for one more message and removes what it replaces. `read` is how far every open session has read, `None`
    /// where none is open.
    ///
    /// # Errors
    /// [`Full`]: nothing here may go for a message of this priority, or it would not fit into an empty log. What was removed up to
    /// then is in `removed`.
    pub fn make_room(
        &mut self,
        message: &Message,
        terms: &Terms,
        read: Option<u64>,
        limits: (usize, usize),
        removed: &mut Removed,
    ) -> Result<(), Full> {
        let (messages_max, bytes_max) = limits;
        let size = entry_size(message);
        if size > bytes_max {
            // Nothing is gained by what could go for it.
            return Err(Full);
        }
        while self.entries.len() >= messages_max || self.bytes + size > bytes_max {
            let Some(index) = self.victim(read, terms.priority) else { return Err(Full) };
            self.evict(index, read, removed);
        }
        Ok(())
    }

    /// Removes entries with this key, for the same readers. Only what was not read yet counts as replaced.
    pub fn collapse(&mut self, key: &str, session: Option<&Arc<str>>, read: Option<u64>, removed: &mut Removed) {
        let collected = read.unwrap_or(self.delivered);
        self.remove_where(
            |entry| entry.terms.collapse_key.as_deref() == Some(key) && entry.session.as_ref() == session,
            |entry| {
                removed.note(entry);
                removed.collapsed += usize::from(entry.seq > collected);
            },
        );
    }

    /// Appends, and returns the new entry's seq.
    pub fn append(&mut self, message: Arc<Message>, session: Option<Arc<str>>, terms: Terms, keep: Duration, now: Instant) -> u64 {
        self.last += 1;
        self.bytes += entry_size(&message);
        self.entries.push_back(Entry { seq: self.last, message, session, terms, posted: now, keep });
        self.last
    }

    /// Entries after `seq`, in order.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &Entry> {
        let start = self.entries.partition_point(|entry| entry.seq <= seq);
        self.entries.range(start..)
    }

    /// Removes from the front what has been delivered and read by every open session. For mailboxes from which nobody can resume.
    pub fn settle(&mut self, read: Option<u64>) -> Removed {
        let mut removed = Removed::default();
        let settled = read.map_or(self.delivered, |read| read.min(self.delivered));
        while self.entries.front().is_some_and(|entry| entry.seq <= settled) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.size();
                removed.note(&entry);
            }
        }
        self.shrink();
        removed
    }

    /// Removes what has expired or was kept for long enough. An open session that has not read something for `keep_max` is owed it.
    pub fn expire(&mut self, read: Option<u64>, keep_max: Duration, now: Instant) -> Removed {
        let mut removed = Removed::default();
        let collected = read.unwrap_or(self.delivered);
        let mut lost = self.lost;
        self.remove_where(
            |entry| {
                let kept = if read.is_some() && entry.seq > collected { keep_max } else { entry.keep };
                entry.expired(|| now) || entry.posted + kept <= now
            },
            |entry| {
                removed.note(entry);
                let unread = usize::from(entry.seq > collected);
                if entry.expired(|| now) {
                    removed.expired += unread;
                    return;
                }
                removed.uncollected += unread;
                if unread > 0 {
                    removed.owed = removed.owed.max(read.map(|_| entry.seq));
                }
                // What was never to be kept is not missed by whoever was away; all else is.
                if !entry.keep.is_zero() {
                    lost = lost.max(entry.seq);
                }
            },
        );
        self.lost = lost;
        removed
    }

    /// The entry that goes next: what everyone has read, else the oldest of the least important, if it may go for a message of
    /// this priority.
    fn victim(&self, read: Option<u64>, priority: Priority) -> Option<usize> {
        let settled = read.unwrap_or(self.delivered);
        if self.entries.front()?.seq <= settled {
            return Some(0);
        }
        let least = self.entries.iter().map(|entry| entry.terms.priority).min()?;
        if least > priority {
            return None;
        }
        self.entries.iter().position(|entry| entry.terms.priority == least)
    }

    fn evict(&mut self, index: usize, read: Option<u64>, removed: &mut Removed) {
        let Some(entry) = self.entries.remove(index) else { return };
        self.bytes -= entry.size();
        self.lost = self.lost.max(entry.seq);
        removed.note(&entry);
        if entry.seq > read.unwrap_or(self.delivered) {
            removed.evicted += 1;
            // A message of low priority may be dropped for a reader who has fallen behind; any other is owed to them.
            if entry.terms.priority > Priority::Low {
                removed.owed = removed.owed.max(read.map(|_| entry.seq));
            }
        }
    }

    fn remove_where(&mut self, goes: impl Fn(&Entry) -> bool, mut note: impl FnMut(&Entry)) {
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            let goes = goes(entry);
            if goes {
                *bytes -= entry.size();
                note(entry);
            }
            !goes
        });
        self.shrink();
    }

    /// An empty log holds no buffer.
    fn shrink(&mut self) {
        if self.entries.is_empty() && self.entries.capacity() > 4 {
            self.entries = VecDeque::new();
        }
    }
}

/// What the bounds count for a message.
pub fn entry_size(message: &Message) -> usize {
    message.body.size() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::delivery::PolicySetId;
    use crate::types::event::Body;

    const KEEP: Duration = Duration::from_secs(120);
    const SIZE: usize = ENTRY_OVERHEAD_BYTES + 1;
    const ROOMY: (usize, usize) = (1000, 1_000_000);

    fn message() -> Arc<Message> {
        Arc::new(Message::new("id".into(), "a.b".into(), Body::Text("x".into()), PolicySetId(1)))
    }

    fn of(priority: Priority) -> Terms {
        Terms { priority, ..Terms::default() }
    }

    fn keyed(key: &str) -> Terms {
        Terms { collapse_key: Some(key.into()), ..Terms::default() }
    }

    fn append(log: &mut Log, terms: &Terms) -> u64 {
        log.append(message(), None, terms.clone(), KEEP, Instant::now())
    }

    fn filled(messages: usize) -> Log {
        let mut log = Log::new();
        for _ in 0..messages {
            append(&mut log, &Terms::default());
        }
        log
    }

    fn seqs(log: &Log) -> Vec<u64> {
        log.after(0).map(|entry| entry.seq).collect()
    }

    /// Makes room for one more among at most `messages_max`.
    fn make_room(log: &mut Log, priority: Priority, read: Option<u64>, messages_max: usize) -> (Result<(), Full>, Removed) {
        let mut removed = Removed::default();
        let room = log.make_room(&message(), &of(priority), read, (messages_max, 1_000_000), &mut removed);
        (room, removed)
    }

    #[test]
    fn a_reader_finds_what_comes_after_its_seq_also_across_gaps() {
        let mut log = Log::new();
        for terms in [keyed("k"), Terms::default(), keyed("k"), Terms::default()] {
            if let Some(key) = &terms.collapse_key {
                log.collapse(key, None, None, &mut Removed::default());
            }
            append(&mut log, &terms);
        }
        assert_eq!(seqs(&log), [2, 3, 4]);
        let after = |seq| log.after(seq).map(|entry| entry.seq).collect::<Vec<_>>();
        assert_eq!(after(1), [2, 3, 4]);
        assert_eq!(after(3), [4]);
        assert!(after(4).is_empty() && after(u64::MAX).is_empty());
        assert_eq!((log.last(), log.len(), log.bytes()), (4, 3, 3 * SIZE));
    }

    #[test]
    fn a_key_replaces_what_the_same_readers_were_to_get_and_counts_what_was_not_read() {
        let mut log = Log::new();
        let session: Arc<str> = "session".into();
        append(&mut log, &keyed("k"));
        append(&mut log, &keyed("other"));
        log.append(message(), Some(session.clone()), keyed("k"), KEEP, Instant::now());
        let mut removed = Removed::default();
        log.collapse("k", None, None, &mut removed);
        assert_eq!(seqs(&log), [2, 3]);
        assert_eq!(removed, Removed { messages: 1, bytes: SIZE, collapsed: 1, ..Removed::default() });
        log.collapse("k", Some(&session), Some(3), &mut removed);
        assert_eq!(seqs(&log), [2]);
        assert_eq!(removed, Removed { messages: 2, bytes: 2 * SIZE, collapsed: 1, ..Removed::default() }, "the last one was read");
        log.mark_delivered(0, 2);
        log.collapse("other", None, None, &mut removed);
        assert_eq!((removed.messages, removed.collapsed), (3, 1), "and this one before its reader left");
        assert!(log.complete_after(0), "what is replaced is not missed");
    }

    #[test]
    fn what_everyone_has_read_goes_first_and_is_not_missed() {
        let mut log = filled(4);
        let (room, removed) = make_room(&mut log, Priority::Low, Some(2), 4);
        assert_eq!((room, seqs(&log)), (Ok(()), vec![2, 3, 4]));
        assert_eq!(removed, Removed { messages: 1, bytes: SIZE, ..Removed::default() });
        // Nobody is there: what was delivered counts as read.
        log.mark_delivered(0, 2);
        let (room, removed) = make_room(&mut log, Priority::Low, None, 3);
        assert_eq!((room, seqs(&log)), (Ok(()), vec![3, 4]));
        assert_eq!((removed.evicted, removed.owed), (0, None));
        assert!(!log.complete_after(1) && log.complete_after(2));
    }

    #[test]
    fn a_full_log_drops_the_oldest_of_the_least_important() {
        let mut log = Log::new();
        for priority in [Priority::High, Priority::Normal, Priority::Low, Priority::Normal, Priority::Low] {
            append(&mut log, &of(priority));
        }
        // For a slow session, a message of low priority is not owed; others are.
        let (room, removed) = make_room(&mut log, Priority::Low, Some(0), 5);
        assert_eq!((room, seqs(&log)), (Ok(()), vec![1, 2, 4, 5]));
        assert_eq!(removed, Removed { messages: 1, bytes: SIZE, evicted: 1, ..Removed::default() });
        let (room, removed) = make_room(&mut log, Priority::Normal, Some(0), 3);
        assert_eq!((room, seqs(&log)), (Ok(()), vec![1, 4]));
        assert_eq!((removed.evicted, removed.owed), (2, Some(2)));
        // An away user is owed nothing by anyone; the loss is remembered for their resume.
        let (room, removed) = make_room(&mut log, Priority::High, None, 2);
        assert_eq!((room, seqs(&log)), (Ok(()), vec![1]));
        assert_eq!((removed.evicted, removed.owed), (1, None));
        assert!(!log.complete_after(4) && log.complete_after(5));
    }

    #[test]
    fn a_message_is_refused_where_everything_is_more_important() {
        let mut log = Log::new();
        append(&mut log, &of(Priority::High));
        append(&mut log, &of(Priority::Normal));
        let (room, removed) = make_room(&mut log, Priority::Low, Some(0), 2);
        assert_eq!((room, removed), (Err(Full), Removed::default()));
        assert_eq!(seqs(&log), [1, 2]);
        let (room, _) = make_room(&mut log, Priority::Low, Some(1), 2);
        assert_eq!((room, seqs(&log)), (Ok(()), vec![2]), "what was read may go for anything");
    }

    #[test]
    fn a_message_larger_than_the_whole_bound_is_refused_and_costs_no_other() {
        let mut log = filled(3);
        let mut removed = Removed::default();
        let room = log.make_room(&message(), &of(Priority::High), None, (1000, SIZE - 1), &mut removed);
        assert_eq!((room, &removed, seqs(&log)), (Err(Full), &Removed::default(), vec![1, 2, 3]));
        let room = log.make_room(&message(), &of(Priority::Normal), None, (1000, SIZE), &mut removed);
        assert_eq!((room, removed.evicted), (Ok(()), 3), "one that just fits has the log for itself");
    }

    #[test]
    fn what_is_read_and_delivered_settles_from_the_front() {
        let mut log = filled(5);
        assert_eq!(log.settle(None), Removed::default(), "nothing was delivered");
        log.mark_delivered(0, 4);
        assert_eq!(log.settle(Some(2)).messages, 2, "a slower session still reads");
        assert_eq!(log.settle(Some(5)).messages, 2, "what is on its way may have to be sent again");
        assert_eq!(seqs(&log), [5]);
        log.mark_delivered(0, 99);
        assert_eq!(log.delivered(), 5, "nothing that is still to come is delivered");
        log.mark_delivered(0, 1);
        assert_eq!(log.delivered(), 5, "and it never goes back");
        assert_eq!(log.settle(None), Removed { messages: 1, bytes: SIZE, ..Removed::default() });
        assert_eq!((log.bytes(), log.entries.capacity()), (0, 0), "an empty log holds no buffer");
        assert_eq!(append(&mut log, &Terms::default()), 6, "a seq is never used again");
    }

    #[test]
    fn what_is_past_its_time_to_live_is_counted_where_unread_and_never_missed() {
        let mut log = Log::new();
        let short = Terms { time_to_live: Some(Duration::from_secs(1)), ..Terms::default() };
        for terms in [&short, &short, &Terms::default()] {
            append(&mut log, terms);
        }
        let later = Instant::now() + Duration::from_secs(1);
        assert!(log.after(0).next().unwrap().expired(|| later));
        let removed = log.expire(Some(1), KEEP, later);
        assert_eq!(removed, Removed { messages: 2, bytes: 2 * SIZE, expired: 1, ..Removed::default() });
        assert!(log.complete_after(0));
    }

    #[test]
    fn what_is_kept_for_long_enough_is_missed_by_whoever_resumes() {
        let mut log = Log::new();
        let begun = Instant::now();
        for keep in [Duration::from_secs(1), Duration::from_secs(1), Duration::ZERO, KEEP] {
            log.append(message(), None, Terms::default(), keep, begun);
        }
        log.mark_delivered(0, 1);
        let removed = log.expire(None, KEEP, begun + Duration::from_secs(1));
        assert_eq!(removed, Removed { messages: 3, bytes: 3 * SIZE, uncollected: 2, ..Removed::default() });
        assert_eq!(seqs(&log), [4]);
        assert!(!log.complete_after(1));
        assert!(log.complete_after(2), "the third was for open sessions only");
    }

    #[test]
    fn an_open_session_has_the_whole_keep_time_to_read_and_is_then_owed() {
        let mut log = Log::new();
        let begun = Instant::now();
        for _ in 0..2 {
            log.append(message(), None, Terms::default(), Duration::ZERO, begun);
        }
        let removed = log.expire(Some(1), KEEP, begun + Duration::from_secs(1));
        assert_eq!((removed.messages, removed.owed, seqs(&log)), (1, None, vec![2]), "only what was read is over");
        let removed = log.expire(Some(1), KEEP, begun + KEEP);
        assert_eq!(removed, Removed { messages: 1, bytes: SIZE, uncollected: 1, owed: Some(2), ..Removed::default() });
    }

    #[test]
    fn only_a_seq_that_was_given_and_lost_nothing_since_is_complete() {
        let mut log = filled(3);
        assert!(log.complete_after(0) && log.complete_after(3));
        assert!(!log.complete_after(4));
        make_room(&mut log, Priority::Normal, None, 3).0.unwrap();
        assert!(!log.complete_after(0) && log.complete_after(1));
    }

    /// A simple random walk; the same at each run.
    #[test]
    fn whatever_happens_the_sums_are_right_and_the_order_is_kept() {
        let mut log = Log::new();
        let mut state: u64 = 42;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let begun = Instant::now();
        let (mut messages, mut bytes) = (0, 0);
        for step in 0..20_000_u64 {
            let now = begun + Duration::from_millis(step);
            let read = (random(2) == 0).then(|| random(log.last() + 2));
            let mut removed = Removed::default();
            match random(8) {
                0 => log.mark_delivered(0, random(log.last() + 2)),
                1 => removed = log.settle(read),
                2 => removed = log.expire(read, Duration::from_millis(200), now),
                _ => {
                    let priority = [Priority::Low, Priority::Normal, Priority::High][random(3) as usize];
                    let time_to_live = (random(3) == 0).then(|| Duration::from_millis(random(50)));
                    let collapse_key = (random(3) == 0).then(|| random(3).to_string().into());
                    let terms = Terms { time_to_live, collapse_key, priority, ..Terms::default() };
                    let text = "x".repeat(random(300) as usize);
                    let message = Arc::new(Message::new("id".into(), "a.b".into(), Body::Text(text), PolicySetId(1)));
                    if let Some(key) = &terms.collapse_key {
                        log.collapse(key, None, read, &mut removed);
                    }
                    if log.make_room(&message, &terms, read, (50, 10_000), &mut removed).is_ok() {
                        messages += 1;
                        bytes += entry_size(&message);
                        log.append(message, None, terms, Duration::from_millis(random(200)), now);
                    }
                }
            }
            messages -= removed.messages;
            bytes -= removed.bytes;
            let counted = removed.expired + removed.uncollected + removed.collapsed + removed.evicted;
            assert!(counted <= removed.messages, "{removed:?}");
            assert!(log.len() <= 50 && log.bytes() <= 10_000);
            assert_eq!((log.len(), log.bytes()), (messages, bytes));
            assert_eq!(log.bytes(), log.after(0).map(Entry::size).sum::<usize>());
            assert!(seqs(&log).is_sorted_by(|one, next| one < next));
            assert!(log.lost <= log.last() && log.delivered() <= log.last());
        }
        assert!(log.last() > 5_000, "the walk went somewhere");
    }

    #[test]
    fn an_empty_message_still_costs_its_entry() {
        let empty = Message::new("id".into(), "a.b".into(), Body::Text(String::new()), PolicySetId(1));
        assert_eq!(entry_size(&empty), ENTRY_OVERHEAD_BYTES);
        let mut log = filled(1);
        let mut removed = Removed::default();
        assert_eq!(log.make_room(&empty, &Terms::default(), None, ROOMY, &mut removed), Ok(()));
        assert_eq!(removed, Removed::default());
    }
}
