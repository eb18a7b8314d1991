use std::time::Duration;

use smallvec::SmallVec;

use super::entry::ENTRY_OVERHEAD_BYTES;
use super::*;
use crate::types::delivery::{PolicySetId, Terms};
use crate::types::drop_reason::DropReason;
use crate::types::event::Body;

const KEEP_MS: u64 = 120_000;
/// Some time after 1970.
const NOW_MS: u64 = 1_000_000;
const ROOMY: Limits = Limits { messages_max: 1000, bytes_max: 1_000_000, keeps_unread: false };
/// The bytes that a message of these tests counts: an id of two bytes, a type of three, and a body of one.
const SIZE: usize = ENTRY_OVERHEAD_BYTES + 6;

fn text(text: &str) -> Arc<Message> {
    Arc::new(Message::new("id".into(), "a.b".into(), Body::Text(text.into()), PolicySetId(1)))
}

fn of(priority: Priority) -> Terms {
    Terms { priority, ..Terms::default() }
}

fn keyed(key: &str) -> Terms {
    Terms { collapse_key: Some(key.into()), ..Terms::default() }
}

fn messages(messages_max: usize) -> Limits {
    Limits { messages_max, ..ROOMY }
}

/// Returns the mark of one session that began at the beginning and has read up to this seq.
fn read(to: u64) -> Option<ReadMark> {
    Some(ReadMark { from: 0, written: to, taken: to, furthest: (0, to) })
}

fn unread(seqs: &[u64], reason: DropReason) -> SmallVec<[(u64, DropReason); 1]> {
    seqs.iter().map(|seq| (*seq, reason)).collect()
}

fn removed(messages: usize) -> Removed {
    Removed { messages, bytes: messages * SIZE, ..Removed::default() }
}

/// Puts a message of one byte.
fn put(log: &mut Log, terms: &Terms, read: Option<ReadMark>, limits: Limits) -> (Result<u64, Full>, Removed) {
    let mut removed = Removed::default();
    let new = New { message: &text("x"), session: None, terms, keep_ms: KEEP_MS, now_ms: NOW_MS, commit: Commit::default() };
    (log.put(&new, read, limits, &mut removed), removed)
}

fn append(log: &mut Log, terms: &Terms) -> u64 {
    put(log, terms, None, ROOMY).0.unwrap()
}

fn append_for(log: &mut Log, session: Option<&Arc<str>>, terms: &Terms, keep_ms: u64) {
    let new = New { message: &text("x"), session, terms, keep_ms, now_ms: NOW_MS, commit: Commit::default() };
    log.put(&new, None, ROOMY, &mut Removed::default()).unwrap();
}

fn filled(messages: usize) -> Log {
    let mut log = Log::default();
    for _ in 0..messages {
        append(&mut log, &Terms::default());
    }
    log
}

fn seqs(log: &Log) -> Vec<u64> {
    log.after(0).map(|entry| entry.seq).collect()
}

#[test]
fn entries_are_read_in_order_after_any_seq() {
    let mut log = filled(4);
    put(&mut log, &Terms::default(), None, messages(4)).0.unwrap();
    let after = |seq| log.after(seq).map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!((after(0), after(3)), (vec![2, 3, 4, 5], vec![4, 5]));
    assert!(after(5).is_empty() && after(u64::MAX).is_empty());
    assert_eq!((log.last(), log.len(), log.bytes()), (5, 4, 4 * SIZE));
}

mod sizes {
    use super::*;

    #[test]
    fn everything_that_is_kept_of_a_message_counts() {
        let message = Message::new("i".repeat(1000), "t".repeat(100), Body::Text("b".repeat(10)), PolicySetId(1));
        let terms = keyed(&"k".repeat(128));
        let new =
            New { message: &Arc::new(message), session: None, terms: &terms, keep_ms: KEEP_MS, now_ms: NOW_MS, commit: Commit::default() };
        assert_eq!(new.size(), ENTRY_OVERHEAD_BYTES + 1000 + 100 + 10 + 128);
        let mut log = Log::default();
        log.put(&new, None, ROOMY, &mut Removed::default()).unwrap();
        assert_eq!(log.bytes(), new.size());
        assert_eq!(log.after(0).next().unwrap().size(), new.size(), "what was added is what will be given back");
    }

    #[test]
    fn an_empty_message_still_costs_its_entry() {
        let message = Arc::new(Message::new(String::new(), String::new(), Body::Text(String::new()), PolicySetId(1)));
        let new =
            New { message: &message, session: None, terms: &Terms::default(), keep_ms: KEEP_MS, now_ms: NOW_MS, commit: Commit::default() };
        assert_eq!(new.size(), ENTRY_OVERHEAD_BYTES);
    }
}

mod keys {
    use super::*;

    #[test]
    fn a_key_replaces_what_the_same_readers_were_to_get_and_counts_what_was_not_read() {
        let mut log = Log::default();
        let session: Arc<str> = "session".into();
        append(&mut log, &keyed("k"));
        append(&mut log, &keyed("other"));
        append_for(&mut log, Some(&session), &keyed("k"), KEEP_MS);
        let size = SIZE + 1;
        let (_, gone) = put(&mut log, &keyed("k"), None, ROOMY);
        assert_eq!(seqs(&log), [2, 3, 4]);
        let for_new = smallvec::smallvec![1];
        assert_eq!(gone, Removed { messages: 1, bytes: size, unread: unread(&[1], DropReason::Collapsed), for_new, ..Removed::default() });
        let mut gone = Removed::default();
        let terms = keyed("k");
        let new = New {
            message: &text("x"),
            session: Some(&session),
            terms: &terms,
            keep_ms: KEEP_MS,
            now_ms: NOW_MS,
            commit: Commit::default(),
        };
        assert_eq!(log.replaced(&new), (1, size));
        log.put(&new, read(3), ROOMY, &mut gone).unwrap();
        assert_eq!((seqs(&log), gone.messages, gone.unread.len()), (vec![2, 4, 5], 1, 0), "the session had read it");
        log.mark_delivered(0, 2);
        let (_, gone) = put(&mut log, &keyed("other"), None, ROOMY);
        assert_eq!((gone.messages, gone.unread.len()), (1, 0), "and this one before its reader left");
        assert!(log.is_complete_after(0), "what is replaced is not missed");
    }

    #[test]
    fn a_message_takes_the_place_of_the_one_that_it_replaces() {
        let mut log = Log::default();
        append(&mut log, &Terms { priority: Priority::High, ..keyed("k") });
        append(&mut log, &of(Priority::High));
        let low = Terms { priority: Priority::Low, ..keyed("k") };
        let (seq, gone) = put(&mut log, &low, read(0), messages(2));
        assert_eq!((seq, gone.unread, seqs(&log)), (Ok(3), unread(&[1], DropReason::Collapsed), vec![2, 3]));
        assert!(log.is_complete_after(0));
    }

    #[test]
    fn a_message_that_is_refused_replaces_nothing() {
        let mut log = Log::default();
        append(&mut log, &Terms { priority: Priority::High, ..keyed("k") });
        append(&mut log, &of(Priority::High));
        // The one that it replaces is not enough for it.
        let terms = Terms { priority: Priority::Low, ..keyed("k") };
        let new = New { message: &text("xxx"), session: None, terms: &terms, keep_ms: KEEP_MS, now_ms: NOW_MS, commit: Commit::default() };
        let mut gone = Removed::default();
        let limits = Limits { bytes_max: 2 * SIZE + 2, ..ROOMY };
        assert_eq!(log.put(&new, read(0), limits, &mut gone), Err(Full));
        assert_eq!((gone, seqs(&log)), (Removed::default(), vec![1, 2]));
        let limits = Limits { bytes_max: 2 * SIZE + 3, ..ROOMY };
        assert_eq!(log.put(&new, read(0), limits, &mut Removed::default()), Ok(3));
    }
}

mod full {
    use super::*;

    #[test]
    fn what_everyone_has_read_goes_first_and_is_not_owed() {
        let mut log = filled(4);
        let (seq, gone) = put(&mut log, &of(Priority::Low), read(2), messages(4));
        assert_eq!((seq, seqs(&log)), (Ok(5), vec![2, 3, 4, 5]));
        assert_eq!(gone, Removed { for_new: smallvec::smallvec![1], ..removed(1) });
        // Nobody is there: what was delivered counts as read.
        log.mark_delivered(0, 2);
        let (_, gone) = put(&mut log, &of(Priority::Low), None, messages(4));
        assert_eq!((gone.unread.len(), log.owed(), seqs(&log)), (0, 0, vec![3, 4, 5, 6]));
        assert!(!log.is_complete_after(1) && log.is_complete_after(2));
    }

    #[test]
    fn the_oldest_of_the_least_important_goes() {
        let mut log = Log::default();
        for priority in [Priority::High, Priority::Normal, Priority::Low, Priority::Normal, Priority::Low] {
            append(&mut log, &of(priority));
        }
        // A slow session is not owed a message of low priority; it is owed others.
        let (_, gone) = put(&mut log, &of(Priority::Low), read(0), messages(5));
        assert_eq!((seqs(&log), gone.unread.len(), log.owed()), (vec![1, 2, 4, 5, 6], 1, 0));
        let (_, gone) = put(&mut log, &of(Priority::Normal), read(0), messages(3));
        assert_eq!((seqs(&log), gone.unread.len(), log.owed()), (vec![1, 4, 7], 3, 2));
        // Nobody who is connected is owed anything; the loss is remembered for a resume.
        let (_, gone) = put(&mut log, &of(Priority::High), None, messages(3));
        assert_eq!((seqs(&log), gone.unread.len(), log.owed()), (vec![1, 7, 8], 1, 2));
        assert!(!log.is_complete_after(5) && log.is_complete_after(6));
    }

    #[test]
    fn a_message_that_is_less_important_than_all_others_is_refused_and_nothing_goes() {
        let mut log = Log::default();
        append(&mut log, &of(Priority::High));
        append(&mut log, &of(Priority::Normal));
        let (seq, gone) = put(&mut log, &of(Priority::Low), read(0), messages(2));
        assert_eq!((seq, gone, seqs(&log)), (Err(Full), Removed::default(), vec![1, 2]));
        // Two would have to go for it, and only one may.
        let mut gone = Removed::default();
        let terms = of(Priority::Normal);
        let new = New {
            message: &text(&"x".repeat(SIZE)),
            session: None,
            terms: &terms,
            keep_ms: KEEP_MS,
            now_ms: NOW_MS,
            commit: Commit::default(),
        };
        let limits = Limits { bytes_max: 2 * SIZE + SIZE / 2, ..ROOMY };
        assert_eq!((log.put(&new, read(0), limits, &mut gone), gone, seqs(&log)), (Err(Full), Removed::default(), vec![1, 2]));
        let (seq, _) = put(&mut log, &of(Priority::Low), read(1), messages(2));
        assert_eq!((seq, seqs(&log)), (Ok(3), vec![2, 3]), "what was read may go for anything");
    }

    #[test]
    fn a_message_larger_than_the_whole_bound_is_refused_and_costs_no_other() {
        let mut log = filled(3);
        let limits = |bytes_max| Limits { bytes_max, ..ROOMY };
        let (seq, gone) = put(&mut log, &of(Priority::High), None, limits(SIZE - 1));
        assert_eq!((seq, gone, seqs(&log)), (Err(Full), Removed::default(), vec![1, 2, 3]));
        let (_, gone) = put(&mut log, &of(Priority::Normal), None, limits(SIZE));
        assert_eq!((gone.unread.len(), seqs(&log)), (3, vec![4]), "one that just fits has the log for itself");
    }

    #[test]
    fn a_refused_message_takes_a_seq_and_is_missed_by_those_who_had_it_to_read() {
        for (priority, read, owed) in
            [(Priority::Normal, read(3), 4), (Priority::High, read(0), 4), (Priority::Low, read(3), 0), (Priority::Normal, None, 0)]
        {
            let mut log = filled(3);
            log.refuse(priority, read, Commit::default());
            assert_eq!((log.last(), log.owed(), log.len()), (4, owed, 3), "{priority:?} {read:?}");
            assert!(!log.is_complete_after(3) && log.is_complete_after(4));
            assert_eq!(append(&mut log, &Terms::default()), 5);
        }
    }

    #[test]
    fn a_stuck_device_keeps_nothing_from_one_that_reads() {
        let mut log = Log::default();
        for _ in 0..3 {
            append(&mut log, &of(Priority::High));
        }
        // One has read nothing, the other everything.
        let apart = Some(ReadMark { from: 0, written: 0, taken: 0, furthest: (0, 3) });
        assert_eq!(put(&mut log, &of(Priority::Low), apart, messages(3)).0, Err(Full), "nobody is owed a message of low priority");
        let (seq, gone) = put(&mut log, &of(Priority::Normal), apart, messages(3));
        assert_eq!((seq, gone.unread.len(), log.owed()), (Ok(4), 1, 1));
        // The other one began later, and has not read them either.
        let apart = Some(ReadMark { from: 0, written: 0, taken: 0, furthest: (3, 4) });
        let mut log = filled(0);
        for _ in 0..3 {
            append(&mut log, &of(Priority::High));
        }
        assert_eq!(put(&mut log, &of(Priority::Normal), apart, messages(3)).0, Err(Full));
    }

    #[test]
    fn what_nobody_was_sent_is_not_read_because_a_later_device_has_read_on() {
        let mut log = filled(4);
        log.mark_delivered(2, 4);
        let second_device = Some(ReadMark { from: 2, written: 4, taken: 4, furthest: (2, 4) });
        // What the device has read goes, though it is newer.
        let (_, gone) = put(&mut log, &Terms::default(), second_device, messages(4));
        assert_eq!((gone.unread.len(), seqs(&log)), (0, vec![1, 2, 4, 5]));
        let (_, gone) = put(&mut log, &Terms::default(), second_device, messages(3));
        assert_eq!((gone.unread.len(), log.owed(), seqs(&log)), (1, 0, vec![2, 5, 6]), "the first device is gone: nobody is owed it");
    }

    #[test]
    fn what_was_read_gives_way_to_messages_of_others_one_at_a_time() {
        let mut log = filled(3);
        let mut gone = Removed::default();
        assert!(!log.give_way(None, &mut gone) && !log.give_way(read(0), &mut gone));
        assert!(log.give_way(read(2), &mut gone) && log.give_way(read(2), &mut gone) && !log.give_way(read(2), &mut gone));
        assert_eq!(gone, Removed { for_new: smallvec::smallvec![1, 2], ..removed(2) });
        assert!(!log.is_complete_after(1) && log.is_complete_after(2), "whoever resumes before it learns that it is gone");
        log.mark_delivered(0, 3);
        assert!(log.give_way(None, &mut gone) && log.is_empty());
    }

    #[test]
    fn what_only_one_session_was_to_read_is_not_missed_by_others() {
        let mut log = Log::default();
        let session: Arc<str> = "session".into();
        append_for(&mut log, Some(&session), &Terms::default(), KEEP_MS);
        let (_, gone) = put(&mut log, &Terms::default(), read(0), messages(1));
        assert_eq!(gone.of_sessions[..], [(session.clone(), 1)], "the session is behind, and learns it");
        assert_eq!((log.owed(), log.is_complete_after(0)), (0, true), "the others are not");
        append_for(&mut log, Some(&session), &Terms::default(), KEEP_MS);
        append_for(&mut log, Some(&session), &Terms::default(), KEEP_MS);
        let gone = log.forget_session(&session, 3);
        assert_eq!(gone, Removed { unread: unread(&[4], DropReason::Uncollected), ..removed(2) }, "it had read one of them");
        assert_eq!((seqs(&log), log.bytes()), (vec![2], SIZE));
    }
}

mod reading {
    use super::*;

    #[test]
    fn what_is_read_and_delivered_settles_from_the_front() {
        let mut log = filled(5);
        assert_eq!(log.settle(None), Removed::default(), "nothing was delivered");
        log.mark_delivered(0, 4);
        assert_eq!(log.settle(read(2)).messages, 2, "a slower session still reads");
        assert_eq!(log.settle(read(5)).messages, 2, "what is on its way may have to be sent again");
        assert_eq!(seqs(&log), [5]);
        log.mark_delivered(0, 99);
        assert_eq!(log.delivered().mark(), 5, "nothing that is still to come is delivered");
        log.mark_delivered(0, 1);
        assert_eq!(log.delivered().mark(), 5, "and it never goes back");
        assert_eq!(log.settle(None), removed(1));
        assert_eq!((log.bytes(), log.entries.capacity()), (0, 0), "an empty log holds no buffer");
        assert_eq!(append(&mut log, &Terms::default()), 6, "a seq is never used again");
    }

    #[test]
    fn what_a_second_device_has_read_settles_although_a_first_one_left_something_unread() {
        let mut log = filled(6);
        log.mark_delivered(0, 2);
        log.mark_delivered(4, 6);
        assert_eq!((log.delivered().mark(), log.delivered().beyond()), (2, &[(4, 6)][..]));
        assert_eq!(log.settle(None).messages, 4);
        assert_eq!(seqs(&log), [3, 4]);
        log.mark_delivered(2, 4);
        assert_eq!((log.delivered().mark(), log.settle(None).messages), (6, 2));
    }

    #[test]
    fn what_is_past_its_time_to_live_is_counted_if_unread_and_never_missed() {
        let mut log = Log::default();
        let short = Terms { time_to_live: Some(Duration::from_secs(1)), ..Terms::default() };
        for terms in [&short, &short, &Terms::default()] {
            append(&mut log, terms);
        }
        let entry = log.after(0).next().unwrap();
        assert!(!entry.is_expired(|| NOW_MS + 999) && entry.is_expired(|| NOW_MS + 1000));
        let gone = log.expire(read(1), KEEP_MS, NOW_MS + 1000);
        assert_eq!(gone, Removed { unread: unread(&[2], DropReason::Expired), ..removed(2) });
        assert!(log.is_complete_after(0));
        assert_eq!(log.owed(), 0);
    }

    #[test]
    fn what_is_kept_for_long_enough_is_missed_by_a_client_that_resumes() {
        let mut log = Log::default();
        for keep_ms in [1000, 1000, 0, KEEP_MS] {
            append_for(&mut log, None, &Terms::default(), keep_ms);
        }
        log.mark_delivered(0, 1);
        let gone = log.expire(None, KEEP_MS, NOW_MS + 1000);
        assert_eq!(gone, Removed { unread: unread(&[2, 3], DropReason::Uncollected), ..removed(3) });
        assert_eq!(seqs(&log), [4]);
        assert!(!log.is_complete_after(1));
        assert!(log.is_complete_after(2), "the third was for open sessions only");
    }

    #[test]
    fn an_open_session_has_the_whole_keep_time_to_read_and_is_then_owed() {
        let mut log = Log::default();
        for _ in 0..2 {
            append_for(&mut log, None, &Terms::default(), 0);
        }
        let gone = log.expire(read(1), KEEP_MS, NOW_MS + 1000);
        assert_eq!((gone.messages, log.owed(), seqs(&log)), (1, 0, vec![2]), "only what was read is over");
        let gone = log.expire(read(1), KEEP_MS, NOW_MS + KEEP_MS);
        assert_eq!((gone, log.owed()), (Removed { unread: unread(&[2], DropReason::Uncollected), ..removed(1) }, 2));
    }

    #[test]
    fn a_clock_that_goes_back_makes_nothing_older() {
        let mut log = Log::default();
        append(&mut log, &Terms { time_to_live: Some(Duration::from_millis(1)), ..Terms::default() });
        append_for(&mut log, None, &Terms::default(), 1);
        assert_eq!(log.expire(None, KEEP_MS, NOW_MS - 10_000), Removed::default());
        assert_eq!(log.expire(None, KEEP_MS, NOW_MS + 1).messages, 2);
        append_for(&mut log, None, &Terms { time_to_live: Some(Duration::MAX), ..Terms::default() }, u64::MAX);
        append_for(&mut log, None, &Terms::default(), u64::MAX);
        assert_eq!(log.expire(None, u64::MAX, u64::MAX - 2), Removed::default(), "and what never ends never does");
    }

    #[test]
    fn only_a_seq_that_was_given_and_lost_nothing_since_is_complete() {
        let mut log = filled(3);
        assert!(log.is_complete_after(0) && log.is_complete_after(3));
        assert!(!log.is_complete_after(4));
        put(&mut log, &Terms::default(), None, messages(3)).0.unwrap();
        assert!(!log.is_complete_after(0) && log.is_complete_after(1));
        assert_eq!(log.marks(), Marks { last: 4, delivered: 0, lost: 1 });
    }
}

/// What the walk knows of its own doing.
#[derive(Default)]
struct Ledger {
    /// The seqs that a bound or age has cost.
    lost: Vec<u64>,
}

/// Takes a simple random walk, which is the same at each run.
#[test]
fn a_random_walk_keeps_sums_order_and_the_truth_about_what_was_lost() {
    let mut log = Log::default();
    let mut state: u64 = 42;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let limits = Limits { messages_max: 50, bytes_max: 10_000, keeps_unread: false };
    let (mut messages, mut bytes) = (0, 0);
    let mut ledger = Ledger::default();
    let (mut refused, mut most_apart) = (0, 0);
    for step in 0..20_000_u64 {
        let now_ms = NOW_MS + step;
        let read = (random(2) == 0).then(|| {
            let (from, to) = (random(log.last() + 1), random(log.last() + 2));
            ReadMark { from: from.min(to), written: to, taken: to + random(3), furthest: (from.min(to), to + random(5)) }
        });
        let mut gone = Removed::default();
        let before = seqs(&log);
        let mut is_bound = false;
        match random(9) {
            0 => {
                let start = log.last().saturating_sub(random(60));
                log.mark_delivered(start, start + random(10));
            }
            1 => gone = log.settle(read),
            2 => gone = log.expire(read, 200, now_ms),
            3 => {
                is_bound = true;
                log.give_way(read, &mut gone);
            }
            _ => {
                let priority = [Priority::Low, Priority::Normal, Priority::High][random(3) as usize];
                let time_to_live = (random(3) == 0).then(|| Duration::from_millis(random(50)));
                let collapse_key: Option<Arc<str>> = (random(3) == 0).then(|| random(3).to_string().into());
                let terms = Terms { time_to_live, collapse_key: collapse_key.clone(), priority, ..Terms::default() };
                let message = text(&"x".repeat(random(1000) as usize));
                let new = New { message: &message, session: None, terms: &terms, keep_ms: random(200), now_ms, commit: Commit::default() };
                let replaced: Vec<u64> = log
                    .after(0)
                    .filter(|entry| collapse_key.is_some() && entry.collapse_key == collapse_key)
                    .map(|entry| entry.seq)
                    .collect();
                let last = log.last();
                match log.put(&new, read, limits, &mut gone) {
                    Ok(seq) => {
                        assert_eq!(seq, last + 1);
                        messages += 1;
                        bytes += new.size();
                        let all: Vec<u64> = before.iter().copied().filter(|seq| log.after(seq - 1).next().unwrap().seq != *seq).collect();
                        let mut for_new = gone.for_new.to_vec();
                        for_new.sort_unstable();
                        assert_eq!(for_new, all, "what has gone for it is named");
                        ledger.lost.extend(all.iter().filter(|seq| !replaced.contains(seq)));
                    }
                    Err(Full) => {
                        assert_eq!((seqs(&log), &gone), (before.clone(), &Removed::default()), "nothing goes for a refused message");
                        log.refuse(priority, read, Commit::default());
                        ledger.lost.push(last + 1);
                        refused += 1;
                    }
                }
            }
        }
        if is_bound {
            ledger.lost.extend(&gone.for_new);
        }
        messages -= gone.messages;
        bytes -= gone.bytes;
        assert!(gone.unread.len() <= gone.messages, "{gone:?}");
        assert!(log.len() <= 50 && log.bytes() <= 10_000);
        assert_eq!((log.len(), log.bytes()), (messages, bytes));
        assert_eq!(log.bytes(), log.after(0).map(Entry::size).sum::<usize>());
        assert!(seqs(&log).is_sorted_by(|one, next| one < next));
        let Marks { last, delivered, lost } = log.marks();
        assert!(lost <= last && delivered <= last && log.owed() <= last);
        let lost_at_least = ledger.lost.iter().copied().max().unwrap_or(0);
        assert!(lost_at_least == 0 || !log.is_complete_after(lost_at_least - 1), "a loss to a bound is never denied");
        let beyond = log.delivered().beyond();
        assert!(beyond.is_sorted_by(|(_, to), (after, _)| to < after) && beyond.iter().all(|(after, to)| after < to && *to <= last));
        most_apart = most_apart.max(beyond.len());
    }
    assert!(log.last() > 5_000 && refused > 50 && most_apart > 1, "the walk went somewhere: {} {refused} {most_apart}", log.last());
}
