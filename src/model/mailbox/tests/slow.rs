//! Sessions that have missed something.

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
