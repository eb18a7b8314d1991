//! Sessions that no policy has admitted yet.

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
