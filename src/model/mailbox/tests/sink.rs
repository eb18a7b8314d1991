//! A sink's mailbox.

use super::*;

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
