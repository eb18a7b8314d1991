//! What users are owed, with sessions that have no sockets.

use std::num::NonZeroUsize;
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::{Instant, advance};

use super::*;
use crate::config::{Config, Milliseconds, TooMany};
use crate::model::record::Mark;
use crate::types::delivery::{PolicySetId, Priority};
use crate::types::event::Body;

/// Returns all mailboxes, with a clock that stands still unless a test moves it.
fn mailboxes(change: impl FnOnce(&mut config::Mailboxes, &mut config::Sockets)) -> Arc<Mailboxes> {
    let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
    change(&mut config.mailboxes, &mut config.sockets);
    with(&config, false)
}

fn with(config: &Config, is_kept: bool) -> Arc<Mailboxes> {
    let clock = Clock::Since(UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
    Mailboxes::new(config, clock, 35, is_kept, Arc::new(Metrics::new().unwrap()))
}

fn count(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn defaults() -> Arc<Mailboxes> {
    mailboxes(|_, _| ())
}

fn user(name: &str) -> UserId {
    UserId::new(name, 128).unwrap()
}

fn message(terms: &Terms) -> Arc<Message> {
    Arc::new(Message::new("id".into(), "a.b".into(), Body::Text("x".into()), PolicySetId(1)).with(terms.clone()))
}

impl Mailboxes {
    fn tell(&self, name: &str, terms: &Terms) -> Posted {
        self.post(&user(name), None, &message(terms), &mut Changes::forgotten())
    }

    /// Posts messages that must be taken.
    fn tell_all(&self, name: &str, count: usize) {
        for _ in 0..count {
            assert!(matches!(self.tell(name, &Terms::default()), Posted::Posted { .. }));
        }
    }

    fn enter(self: &Arc<Self>, name: &str, resumes: bool) -> Reader {
        self.open(SessionHandle::new(user(name), None, resumes, Vec::new())).unwrap()
    }

    /// Opens an admitted session without a subprotocol.
    fn plain(self: &Arc<Self>, name: &str) -> Reader {
        let mut reader = self.enter(name, false);
        reader.admit().unwrap();
        reader
    }

    /// Opens an admitted session whose client can resume.
    fn v1(self: &Arc<Self>, name: &str) -> Reader {
        let mut reader = self.enter(name, true);
        reader.admit().unwrap();
        reader
    }

    fn count(&self, reason: DropReason) -> u64 {
        let text = self.metrics.text(&crate::metrics::Gauges::default());
        let series = format!("signalpost_messages_dropped_total{{reason=\"{}\"}} ", reason.name());
        text.unwrap().lines().find_map(|line| line.strip_prefix(series.as_str())).unwrap().parse().unwrap()
    }
}

impl Reader {
    /// Takes everything there is, and returns the seqs. `None`: it has missed something.
    fn take(&mut self) -> Option<Vec<u64>> {
        let mut out = Batch::new();
        match self.page(usize::MAX, &mut out) {
            Page::Missed => return None,
            Page::More { upto } | Page::End { upto } => self.advance(upto),
        }
        Some(out.into_iter().map(|(seq, _)| seq).collect())
    }

    /// Takes everything there is and writes it.
    fn read(&mut self) -> Vec<u64> {
        let seqs = self.take().expect("it has missed nothing");
        self.written();
        seqs
    }
}

mod devices {
    use super::*;

    #[test]
    fn what_was_taken_and_not_written_is_not_settled() {
        let all = mailboxes(|limits, _| limits.messages_max = NonZeroUsize::new(3).unwrap());
        let mut stuck = all.plain("u");
        all.tell_all("u", 3);
        assert_eq!(stuck.take(), Some(vec![1, 2, 3]));
        all.tell_all("u", 1);
        assert_eq!(all.count(DropReason::Evicted), 1, "nobody has read it");
        stuck.leave();
        assert_eq!(all.plain("u").read(), [2, 3, 4], "and the others wait for the next session");
    }

    #[test]
    fn a_message_for_one_session_is_missed_by_no_other() {
        let all = mailboxes(|limits, _| limits.messages_max = NonZeroUsize::new(2).unwrap());
        let (mut other, mut asked) = (all.plain("u"), all.plain("u"));
        let id = asked.handle().id.clone();
        for _ in 0..2 {
            all.post(&user("u"), Some(&id), &message(&Terms::default()), &mut Changes::forgotten());
        }
        all.tell_all("u", 2);
        assert_eq!((other.handle().ending(), asked.handle().ending()), (None, Some(&Close::SlowConsumer)));
        assert_eq!((other.read(), asked.read()), (vec![3, 4], vec![3, 4]));
    }

    #[test]
    fn a_device_reads_nothing_twice_because_another_one_was_stuck() {
        let all = defaults();
        let mut stuck = all.plain("u");
        all.tell_all("u", 3);
        assert_eq!(stuck.read(), [1, 2, 3]);
        all.tell_all("u", 2);
        let mut second = all.plain("u");
        all.tell_all("u", 10);
        assert_eq!(second.read(), (6..=15).collect::<Vec<_>>());
        stuck.leave();
        second.leave();
        assert_eq!(all.totals().messages, 2, "what the second device has read is not kept");
        let mut back = all.plain("u");
        assert_eq!(back.read(), [4, 5]);
        back.leave();
        assert_eq!(all.totals(), Totals { mailboxes: 0, messages: 0, bytes: 0, sessions: 0 });
    }

    #[test]
    fn a_second_device_keeps_reading_while_the_first_one_is_owed_everything_it_has_not_read() {
        let all = defaults();
        let mut stuck = all.plain("u");
        all.tell_all("u", 2);
        let mut second = all.plain("u");
        all.tell_all("u", 2);
        assert_eq!(second.read(), [3, 4]);
        second.leave();
        assert_eq!(stuck.read(), [1, 2, 3, 4], "what another device has read since it came is for this one too");
        all.tell_all("u", 1);
        assert_eq!(stuck.read(), [5]);
        assert_eq!(all.totals().messages, 0);
    }

    #[test]
    fn a_late_resume_of_a_device_that_skipped_something_brings_it_back() {
        let all = defaults();
        let stuck = all.v1("u");
        all.tell_all("u", 2);
        let mut second = all.v1("u");
        all.tell_all("u", 2);
        assert_eq!(second.read(), [3, 4]);
        second.leave();
        stuck.leave();
        let mut back = all.v1("u");
        assert_eq!(back.read(), [1, 2]);
        let epoch = back.epoch();
        assert_eq!(back.resume(&epoch, 0), Resumed { recovered: true, from: 0 });
        assert_eq!(back.read(), [1, 2, 3, 4]);
    }

    #[test]
    fn for_a_client_that_never_acks_what_was_written_is_read() {
        let all = defaults();
        let mut first = all.v1("u");
        all.tell_all("u", 3);
        assert_eq!(first.read(), [1, 2, 3]);
        all.tell_all("u", 1);
        assert_eq!(first.take(), Some(vec![4]), "taken, but not written");
        first.leave();
        let mut second = all.v1("u");
        assert_eq!(second.read(), [4]);
        second.leave();
        assert_eq!(all.plain("u").read(), [0; 0], "nor is it sent to a client of the other kind");
    }

    #[test]
    fn for_a_client_that_acks_only_acks_count() {
        let all = defaults();
        let mut first = all.v1("u");
        all.tell_all("u", 4);
        assert_eq!(first.read(), [1, 2, 3, 4]);
        first.acked(2);
        first.leave();
        let mut second = all.v1("u");
        assert_eq!(second.read(), [3, 4]);
        second.leave();
        let mut third = all.v1("u");
        assert_eq!(third.take(), Some(vec![3, 4]), "also in a session that was over before its first ack");
        all.tell_all("u", 1);
        third.acked(99);
        third.leave();
        assert_eq!(all.v1("u").read(), [5], "what was not sent can't be acked");
    }

    #[test]
    fn a_device_that_takes_the_place_of_another_goes_on_where_that_one_was() {
        let all = mailboxes(|_, sockets| sockets.per_user_max = count(1));
        let mut old = all.v1("u");
        all.tell_all("u", 3);
        assert_eq!(old.read(), [1, 2, 3]);
        all.tell_all("u", 1);
        let mut new = all.v1("u");
        assert_eq!((old.handle().ending(), new.read()), (Some(&Close::Replaced), vec![4]));
        old.leave();
        assert_eq!((all.totals().sessions, all.sessions_of("u")), (1, 1));
    }
}

mod provisional {
    use super::*;

    #[test]
    fn a_refused_stranger_takes_no_place_and_no_messages() {
        let all = mailboxes(|_, sockets| sockets.per_user_max = count(1));
        let mut real = all.plain("u");
        let stranger = all.enter("u", false);
        assert_eq!((all.sessions_of("u"), all.totals().sessions, real.handle().ending()), (1, 1, None));
        all.tell_all("u", 2);
        stranger.leave();
        assert_eq!(real.read(), [1, 2]);
        real.leave();
        // One that comes while a user is away, and while something is kept.
        all.tell_all("u", 2);
        let stranger = all.enter("u", false);
        assert!(all.everyone().is_empty() && all.presence(&user("u")).sessions.is_empty());
        assert_eq!(all.tell("u", &Terms { keep: Some(Duration::ZERO), ..Terms::default() }), Posted::Dropped(DropReason::Away));
        let mut back = all.plain("u");
        assert_eq!(back.read(), [1, 2], "the user who comes back beside it is the first device");
        stranger.leave();
        assert_eq!(all.totals().messages, 0);
    }

    #[test]
    fn a_provisional_session_is_reached_by_its_own_replies_which_go_with_it() {
        let all = defaults();
        let mut real = all.plain("u");
        let stranger = all.enter("u", false);
        let id = stranger.handle().id.clone();
        let reply = || all.post(&user("u"), Some(&id), &message(&Terms::default()), &mut Changes::forgotten());
        assert_eq!(reply(), Posted::Posted { birth: 1, seq: 1 });
        assert!(all.has_session(&user("u"), &id));
        assert_eq!(real.read(), [0; 0]);
        stranger.leave();
        assert_eq!((all.totals().messages, all.count(DropReason::Uncollected)), (0, 1));
        assert_eq!(reply(), Posted::Dropped(DropReason::Away));
    }

    #[test]
    fn what_comes_while_a_second_device_is_provisional_is_for_it_too() {
        let all = defaults();
        let mut first = all.plain("u");
        all.tell_all("u", 1);
        let mut second = all.enter("u", false);
        all.tell_all("u", 1);
        assert_eq!(first.read(), [1, 2]);
        second.admit().unwrap();
        assert_eq!(second.read(), [2]);
        assert_eq!(all.totals().messages, 0);
    }

    #[test]
    fn a_session_that_may_not_be_admitted_is_still_to_leave() {
        let all = mailboxes(|_, sockets| (sockets.per_user_max, sockets.too_many) = (count(1), TooMany::RefuseNewest));
        let mut one = all.enter("u", true);
        let mut other = all.enter("u", true);
        one.admit().unwrap();
        assert_eq!(other.admit(), Err(Close::TooManySessions));
        drop(other);
        assert_eq!((all.sessions_of("u"), all.totals().sessions), (1, 1));
    }

    #[test]
    fn a_stranger_who_could_resume_leaves_no_mailbox() {
        let all = defaults();
        drop(all.enter("u", true));
        assert_eq!(all.totals().mailboxes, 0);
        drop(all.v1("u"));
        assert_eq!(all.totals().mailboxes, 1, "one who was admitted may resume");
    }
}

mod slow {
    use super::*;

    fn small() -> Arc<Mailboxes> {
        mailboxes(|limits, _| limits.messages_max = count(3))
    }

    #[test]
    fn a_session_that_has_missed_something_finds_out_by_reading() {
        let all = small();
        let mut slow = all.plain("u");
        assert_eq!(slow.read(), [0; 0]);
        all.tell_all("u", 3);
        assert!(!slow.has_missed());
        let mut fast = all.plain("u");
        all.tell_all("u", 1);
        assert!(slow.has_missed());
        assert_eq!(slow.take(), None);
        assert_eq!(slow.take(), None, "and it stays so");
        assert_eq!(fast.read(), [4], "nobody else has missed anything");
    }

    #[test]
    fn a_session_that_has_not_read_its_first_page_is_not_slow() {
        let all = small();
        all.tell_all("u", 3);
        let mut reader = all.v1("u");
        all.tell_all("u", 5);
        assert!(!reader.has_missed());
        assert_eq!(reader.read(), [6, 7, 8]);
        all.tell_all("u", 4);
        assert_eq!(reader.take(), None, "from then on it is");
    }

    #[test]
    fn a_session_that_was_told_that_nothing_is_missing_is_told_when_that_changes() {
        let all = small();
        all.tell_all("u", 3);
        let mut reader = all.v1("u");
        let epoch = reader.epoch();
        assert_eq!(reader.resume(&epoch, 0), Resumed { recovered: true, from: 0 });
        all.tell_all("u", 1);
        assert_eq!(reader.take(), None);
        reader.leave();
        let mut reader = all.v1("u");
        assert_eq!(reader.begin(), Resumed { recovered: false, from: 0 });
        assert_eq!(reader.read(), [2, 3, 4]);
        assert_eq!(reader.begin(), Resumed { recovered: true, from: 4 });
    }

    #[test]
    fn a_refused_message_is_missed_by_every_reader_who_was_owed_it() {
        let all = small();
        let high = Terms { priority: Priority::High, ..Terms::default() };
        let mut slow = all.v1("u");
        assert_eq!(slow.read(), [0; 0]);
        for _ in 0..3 {
            all.tell("u", &high);
        }
        assert_eq!(all.tell("u", &Terms { priority: Priority::Low, ..Terms::default() }), Posted::Dropped(DropReason::MailboxFull));
        assert!(!slow.has_missed(), "nobody is owed a message of low priority");
        assert_eq!(all.tell("u", &Terms::default()), Posted::Dropped(DropReason::MailboxFull));
        assert_eq!(slow.take(), None);
        let epoch = slow.epoch();
        slow.leave();
        let mut back = all.v1("u");
        assert_eq!(back.resume(&epoch, 0), Resumed { recovered: false, from: 0 });
        assert_eq!(back.read(), [1, 2, 3]);
        assert_eq!(back.resume(&epoch, 5), Resumed { recovered: true, from: 5 }, "one who has been told goes on");
        all.tell_all("u", 1);
        assert_eq!(back.read(), [6]);
    }

    #[test]
    fn a_reply_that_finds_no_room_closes_the_session_that_it_was_for_and_no_other() {
        let all = small();
        let (mut stuck, mut other) = (all.plain("u"), all.plain("u"));
        let high = Terms { priority: Priority::High, ..Terms::default() };
        for _ in 0..3 {
            all.tell("u", &high);
        }
        let id = stuck.handle().id.clone();
        let reply = all.post(&user("u"), Some(&id), &message(&Terms::default()), &mut Changes::forgotten());
        assert_eq!(reply, Posted::Dropped(DropReason::MailboxFull));
        assert_eq!((stuck.handle().ending(), other.handle().ending()), (Some(&Close::SlowConsumer), None));
        assert_eq!((stuck.read(), other.read()), (vec![1, 2, 3], vec![1, 2, 3]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_open_session_has_not_read_for_the_keep_time_is_missed() {
        let keep_ms = 120_000;
        let all = mailboxes(|limits, _| limits.keep_ms = Milliseconds::new(keep_ms));
        let mut slow = all.plain("u");
        assert_eq!(slow.read(), [0; 0]);
        all.tell_all("u", 1);
        advance(Duration::from_millis(keep_ms - 1)).await;
        (0..SHARDS).for_each(|round| all.sweep(round));
        assert!(!slow.has_missed());
        advance(Duration::from_millis(1)).await;
        (0..SHARDS).for_each(|round| all.sweep(round));
        assert_eq!((slow.take(), all.count(DropReason::Uncollected)), (None, 1));
    }
}

mod totals {
    use super::*;

    #[test]
    fn what_was_read_never_keeps_a_message_out() {
        let all = mailboxes(|limits, _| (limits.total_messages_max, limits.messages_max) = (count(100), count(50)));
        let mut readers: Vec<Reader> = (0..8).map(|number| all.v1(&number.to_string())).collect();
        for round in 0..200 {
            for (number, reader) in readers.iter_mut().enumerate() {
                assert!(matches!(all.tell(&number.to_string(), &Terms::default()), Posted::Posted { .. }), "{round}");
                let read = reader.read();
                reader.acked(*read.last().unwrap());
            }
            // A user who is away as well.
            if round % 50 == 0 {
                all.tell_all("away", 1);
            }
        }
        assert_eq!(all.count(DropReason::ServerFull) + all.count(DropReason::Evicted), 0);
        assert!(all.totals().messages <= 100);
        assert_eq!(all.plain("away").read().len(), 4, "nothing that was not read has gone");
    }

    #[test]
    fn what_was_read_makes_room_also_while_others_look_for_some() {
        let all = mailboxes(|limits, _| (limits.total_messages_max, limits.messages_max) = (count(100), count(50)));
        let one = |name: String| {
            let mut reader = all.v1(&name);
            for _ in 0..500 {
                all.tell_all(&name, 1);
                let read = reader.read();
                reader.acked(*read.last().unwrap());
            }
        };
        std::thread::scope(|scope| {
            (0..8).for_each(|number| {
                drop(scope.spawn({
                    let one = &one;
                    move || one(number.to_string())
                }))
            })
        });
        assert_eq!(all.count(DropReason::ServerFull) + all.count(DropReason::Evicted), 0);
    }

    #[test]
    fn what_was_read_makes_room_for_what_was_not_after_a_restart() {
        let all = mailboxes(|limits, _| limits.total_messages_max = count(100));
        let mut kept = crate::model::fold::Fold::default();
        let (message, posted_ms) = (message(&Terms::default()), all.clock.now_ms());
        for number in 0..20 {
            let (name, birth) = (user(&number.to_string()), number + 1);
            for seq in 1..=9 {
                let message = message.clone();
                kept.fold(Change::Post { user: name.clone(), birth, seq, posted_ms, message, session: None, lost: 0, removed: Vec::new() });
            }
            // Every second user has read everything.
            let delivered = if number % 2 == 0 { 9 } else { 0 };
            let mark = Mark { version: 1, last: 9, delivered, lost: 0, is_resumable: true, is_acked: true };
            kept.fold(Change::Mark { user: name, birth, mark, removed: Vec::new() });
        }
        all.restore(kept.take_mailboxes(), 0, false);
        for (name, (_, marks, seqs)) in all.all() {
            let is_read = name.as_str().parse::<u32>().unwrap() % 2 == 0;
            assert!(is_read || (marks.lost == 0 && seqs.len() == 9), "{name} had not read {seqs:?}");
        }
        assert!(all.totals().messages <= 100);
    }

    #[test]
    fn what_was_not_read_is_never_given_up_for_others() {
        let all = mailboxes(|limits, _| (limits.total_messages_max, limits.messages_max) = (count(10), count(10)));
        let mut reader = all.v1("connected");
        all.tell_all("away", 9);
        assert_eq!(all.tell("away", &Terms::default()), Posted::Dropped(DropReason::ServerFull));
        assert_eq!(all.tell("another", &Terms::default()), Posted::Dropped(DropReason::ServerFull));
        assert_eq!(all.totals().mailboxes, 2, "a user who was refused has no mailbox");
        all.tell_all("connected", 1);
        assert_eq!(reader.read(), [1]);
        // Its own, which it has read, makes room.
        all.tell_all("connected", 1);
        assert_eq!(all.tell("connected", &Terms::default()), Posted::Dropped(DropReason::ServerFull));
        assert_eq!(reader.take(), None, "whoever is connected learns that it has missed something");
        let epoch = reader.epoch();
        drop(reader);
        let mut back = all.v1("connected");
        assert_eq!(back.resume(&epoch, 1), Resumed { recovered: false, from: 1 });
        assert_eq!(all.plain("away").read(), (1..=9).collect::<Vec<_>>());
    }

    #[test]
    fn a_newer_message_takes_the_place_of_the_one_that_it_replaces_also_in_a_full_server() {
        let all = mailboxes(|limits, _| (limits.total_messages_max, limits.messages_max) = (count(10), count(10)));
        let keyed = |key: &str| Terms { collapse_key: Some(key.into()), ..Terms::default() };
        all.tell("u", &keyed("k"));
        all.tell_all("u", 8);
        assert_eq!(all.tell("u", &keyed("other")), Posted::Dropped(DropReason::ServerFull));
        assert_eq!(all.tell("u", &keyed("k")), Posted::Posted { birth: 1, seq: 11 });
        assert_eq!(all.plain("u").read(), [2, 3, 4, 5, 6, 7, 8, 9, 11]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_through_all_mailboxes_pauses_and_goes_on() {
        let all = mailboxes(|limits, _| (limits.total_messages_max, limits.messages_max) = (count(10), count(10)));
        all.tell_all("away", 9);
        assert_eq!(all.tell("other", &Terms::default()), Posted::Dropped(DropReason::ServerFull));
        let mut back = all.v1("away");
        back.read();
        assert_eq!(all.tell("other", &Terms::default()), Posted::Dropped(DropReason::ServerFull), "nobody looks again at once");
        advance(Duration::from_millis(super::sweep::RECLAIM_PAUSE_MS)).await;
        all.tell_all("other", 9);
        assert_eq!(all.count(DropReason::ServerFull), 2);
    }

    #[test]
    fn mailboxes_are_bounded_in_number_and_remembered_empty_ones_go_first() {
        let all = mailboxes(|limits, _| limits.mailboxes_max = count(10));
        for number in 0..100 {
            drop(all.v1(&format!("gone {number}")));
            assert!(all.totals().mailboxes <= 11, "{}", all.totals().mailboxes);
        }
        for number in 0..10 {
            all.tell_all(&format!("away {number}"), 1);
        }
        assert_eq!(all.totals().mailboxes, 10);
        assert_eq!(all.tell("one more", &Terms::default()), Posted::Dropped(DropReason::ServerFull));
        all.tell_all("away 3", 1);
        // Sockets have bounds of their own.
        let _connected = all.plain("connected");
        all.tell_all("connected", 1);
        assert_eq!(all.totals().mailboxes, 11);
        drop(all.v1("not remembered"));
        assert_eq!(all.totals().mailboxes, 11);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_mailbox_is_remembered_for_the_resume_time_and_messages_for_the_keep_time() {
        let all = mailboxes(|limits, _| (limits.keep_ms, limits.resume_ms) = (Milliseconds::new(1000), Milliseconds::new(300)));
        let sweep = || (0..SHARDS).for_each(|round| all.sweep(round));
        drop(all.v1("u"));
        all.tell_all("away", 1);
        advance(Duration::from_millis(299)).await;
        sweep();
        assert_eq!(all.totals().mailboxes, 2);
        advance(Duration::from_millis(1)).await;
        sweep();
        assert_eq!((all.totals().mailboxes, all.totals().messages), (1, 1));
        advance(Duration::from_millis(700)).await;
        sweep();
        assert_eq!((all.totals().mailboxes, all.totals().messages), (0, 0));
        let none = mailboxes(|limits, _| limits.resume_ms = Milliseconds::new(0));
        drop(none.v1("u"));
        assert_eq!(none.totals().mailboxes, 0);
    }
}

#[test]
fn an_epoch_names_the_store_and_the_life_of_the_mailbox() {
    let all = defaults();
    assert_eq!([0, 35, 36, u64::MAX].map(base36), ["0", "z", "10", "3w5e11264sgsf"]);
    let first = all.plain("u").epoch();
    let second = all.plain("u").epoch();
    assert_eq!((first.as_str(), second.as_str()), ("z-1", "z-2"), "the mailbox was forgotten in between");
    assert_ne!(mailboxes(|_, _| ()).plain("other").epoch(), all.plain("other").epoch());
}

#[tokio::test(start_paused = true)]
async fn a_post_notes_what_it_changed() {
    let all = mailboxes(|limits, _| limits.messages_max = count(2));
    let mut changes = Changes::kept(0);
    let keyed = Terms { collapse_key: Some("k".into()), ..Terms::default() };
    for terms in [&keyed, &Terms::default(), &keyed, &Terms::default()] {
        all.post(&user("u"), None, &message(terms), &mut changes);
    }
    all.post(&user("u"), None, &message(&Terms { keep: Some(Duration::ZERO), ..Terms::default() }), &mut changes);
    all.post(&user("u"), None, &message(&Terms { priority: Priority::Low, ..Terms::default() }), &mut changes);
    let noted = changes.into_changes().into_iter().map(|change| match change {
        Change::Post { birth, seq, posted_ms, lost, removed, .. } => (birth, seq, posted_ms, lost, removed),
        Change::Mark { birth, mark: Mark { last, delivered, lost, .. }, .. } => (birth, last, delivered, lost, Vec::new()),
        other => panic!("{other:?}"),
    });
    let at = 1_000_000_000;
    let expected = [(1, 1, at, 0, vec![]), (1, 2, at, 0, vec![]), (1, 3, at, 0, vec![1]), (1, 4, at, 2, vec![2]), (1, 5, 0, 5, vec![])];
    assert_eq!(noted.collect::<Vec<_>>(), expected);
}

/// Returns mailboxes of which one is a sink's, for three messages, and its user.
fn with_sink() -> (Arc<Mailboxes>, UserId) {
    let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
    let limits = config::SinkLimits { messages_max: count(3), ..config.sink_limits.clone() };
    config.sinks.insert("s".into(), config::Sink { limits: Some(limits), ..config::Sink::default() });
    (with(&config, true), UserId::of_sink("s"))
}

fn seqs_of(taken: &[Taken]) -> Vec<u64> {
    taken.iter().map(|taken| taken.seq).collect()
}

#[tokio::test(start_paused = true)]
async fn a_sinks_mailbox_loses_nothing_unread_and_makes_room_for_what_is_done() {
    let (mailboxes, user) = with_sink();
    let post = |terms: &Terms| mailboxes.post(&user, None, &message(terms), &mut Changes::forgotten());
    let urgent = Terms { priority: Priority::High, ..Terms::default() };
    for seq in 1..=3 {
        assert_eq!(post(&Terms::default()), Posted::Posted { birth: 1, seq });
    }
    assert_eq!([post(&Terms::default()), post(&urgent)], [Posted::Dropped(DropReason::MailboxFull); 2]);
    let reader = mailboxes.open_sink(user.clone()).unwrap();
    assert_eq!(seqs_of(&reader.take()), [1, 2, 3]);
    assert_eq!((reader.take().len(), post(&urgent)), (0, Posted::Dropped(DropReason::MailboxFull)));
    // Done out of order.
    reader.done([2].into_iter());
    assert_eq!((mailboxes.totals().messages, post(&Terms::default())), (2, Posted::Posted { birth: 1, seq: 4 }));
    assert_eq!(seqs_of(&reader.take()), [4]);
    // However long they wait: their reader decides.
    advance(Duration::from_secs(30 * 86_400)).await;
    (0..Mailboxes::SWEEP_ROUNDS).for_each(|round| mailboxes.sweep(round));
    assert_eq!((mailboxes.totals().messages, mailboxes.totals().sessions, mailboxes.everyone().len()), (3, 0, 0));
    reader.done([1, 3, 4].into_iter());
    assert_eq!((mailboxes.totals().messages, mailboxes.totals().messages), (0, 0));
    // Another reader begins behind what is done.
    drop(reader);
    assert_eq!(post(&Terms::default()), Posted::Posted { birth: 2, seq: 1 }, "an empty mailbox is gone");
    assert_eq!(seqs_of(&mailboxes.open_sink(user).unwrap().take()), [1]);
}

#[tokio::test(start_paused = true)]
async fn marks_note_what_a_sink_has_done_past_one_that_waits() {
    let (mailboxes, user) = with_sink();
    for _ in 0..3 {
        mailboxes.post(&user, None, &message(&Terms::default()), &mut Changes::forgotten());
    }
    let reader = mailboxes.open_sink(user).unwrap();
    reader.take();
    let noted = || {
        let mut changes = Changes::kept(0);
        mailboxes.note_marks(&mut changes);
        let marks = changes.into_changes().into_iter().map(|change| match change {
            Change::Mark { mark, removed, .. } => (mark.delivered, removed),
            other => panic!("{other:?}"),
        });
        marks.collect::<Vec<_>>()
    };
    reader.done([2, 3].into_iter());
    assert_eq!(noted(), [(0, vec![(1, 2), (2, 3)])]);
    assert_eq!(noted(), []);
    reader.done([1].into_iter());
    assert_eq!(noted(), [(3, vec![])]);
}
