//! Several sessions of one user: what each has read, and what the others are owed.

use super::presence::Totals;
use super::*;

#[test]
fn what_was_taken_and_not_written_is_not_settled() {
    let all = mailboxes(|limits, _| limits.messages_max = count(3));
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
    let all = mailboxes(|limits, _| limits.messages_max = count(2));
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
