//! The bounds of all mailboxes together, and what makes room.

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
