use super::*;
use crate::model::dead_letters::{Content, DeadLetter, Recipient};
use crate::registry::V1;
use crate::types::delivery::{PolicySetId, Priority, Terms};
use crate::types::event::{Body, Event};
use crate::types::fault::{Defect, Fault, FaultKind};
use crate::types::origin::Origin;

fn user(name: &str) -> UserId {
    UserId::new(name, 128).unwrap()
}

fn message(body: Body) -> Arc<Message> {
    let terms =
        Terms { time_to_live: Some(Duration::from_millis(5)), keep: None, collapse_key: Some("k".into()), priority: Priority::High };
    Arc::new(Message { attempt: 2, ..Message::new("e".into(), "a.b".into(), body, PolicySetId(u128::MAX)).with(terms) })
}

fn post(seq: u64, message: &Arc<Message>) -> Change {
    post_to(seq, message, None)
}

fn post_to(seq: u64, message: &Arc<Message>, session: Option<&str>) -> Change {
    let (message, session, removed) = (message.clone(), session.map(Arc::from), vec![seq - 1]);
    Change::Post { user: user("ü"), birth: 1, seq, posted_ms: 3, message, session, lost: 4, removed }
}

fn letter(content: Content, with_fault: bool) -> Change {
    let fault = with_fault.then(|| {
        Box::new(Fault {
            policy: "p".into(),
            version: "1".into(),
            digest: "d".into(),
            function: "route".into(),
            event: Some("e".into()),
            defect: Defect { kind: FaultKind::Trap, detail: "trap".into(), backtrace: vec!["f".into(), "g".into()] },
            at: time(7),
        })
    });
    let letter = DeadLetter { id: 5, at: time(6), policy: "p".into(), version: "1".into(), attempts: 2, fault, content };
    Change::Letter { stamp: 9, letter: Arc::new(letter) }
}

fn every_change() -> Vec<Change> {
    let [json, binary] = [Body::Json("{\"a\":1}".into()), Body::Binary(vec![0, 255])].map(message);
    let mark = Mark { version: 1, last: 2, delivered: 3, lost: 4, is_resumable: true, is_acked: false };
    let value = Value { bytes: [1, 2].as_slice().into(), expires_ms: Some(8) };
    let event = Event {
        id: "i".into(),
        source: "s".into(),
        event_type: "t".into(),
        subject: Some("u".into()),
        time: None,
        content_type: "application/json".into(),
        extensions: vec![("x".into(), "y".into())],
        data: Some(Body::Text("z".into())),
        origin: Origin::default(),
    };
    let recipients = vec![Recipient { user: user("1"), session: "s".into() }];
    vec![
        post(1, &json),
        post(2, &json),
        post(3, &binary),
        Change::Mark { user: user("1"), birth: 2, mark, removed: vec![(0, 9), (11, 12)] },
        Change::Join { stamp: 1, group: "g".into(), user: user("1"), policy: "p".into() },
        Change::Leave { stamp: 2, group: "g".into(), user: user("1") },
        Change::End { stamp: 3, group: "g".into() },
        Change::Set { stamp: 4, policy: "p".into(), key: "k".into(), value },
        Change::Unset { stamp: 5, policy: "p".into(), key: "k".into() },
        Change::Seen { key: u128::MAX - 1, at_ms: 6, failed: true },
        letter(Content::Event(Arc::new(event.clone())), true),
        letter(Content::Message { message: binary.clone(), recipients }, false),
        letter(Content::Untaken { event: Arc::new(event), reason: "no policy wants it".into() }, false),
        letter(Content::Undelivered { message: binary, reason: "the answer is 404".into() }, false),
        Change::Join { stamp: 11, group: "g".into(), user: UserId::of_sink("s"), policy: "p".into() },
        Change::NoLetter { stamp: 10, id: 5 },
        post_to(4, &json, Some("s")),
        Change::Opened { birth: 1, at: 2, info: Arc::new(info(Some(V1))) },
        Change::Opened { birth: 1, at: 2, info: Arc::new(info(None)) },
        Change::Closed { user: user("1"), session: "s".into(), why: None },
        Change::Closed { user: user("1"), session: "s".into(), why: Some(Close::ClosedByPolicy("over".into())) },
        Change::Closed { user: user("1"), session: "s".into(), why: Some(Close::Replaced) },
        Change::Gone { node: "a".into() },
        Change::Agreed(Arc::new(Agreed {
            revision: 3,
            id: PolicySetId(u128::MAX),
            components: vec![
                Component { name: "p".into(), digest: "0".repeat(64) },
                Component { name: "ü".into(), digest: "1".repeat(64) },
            ],
        })),
    ]
}

fn info(subprotocol: Option<&'static str>) -> SessionInfo {
    SessionInfo {
        node: "a".into(),
        session: "s".into(),
        user: user("1"),
        subprotocol,
        resumes: subprotocol.is_some(),
        attributes: vec![("locale".into(), "de".into())],
        opened: time(7),
    }
}

#[test]
fn what_nodes_say_of_leading_is_read_as_it_was_written() {
    let lead = Lead { term: 3, node: "a".into(), store: 9 };
    let mut records = Vec::new();
    encode_lead(&lead, &mut records);
    encode_beat(&mut records);
    encode_yield("b", &mut records);
    assert_eq!(decoded(&records).unwrap(), [Said::Lead(lead), Said::Beat, Said::Yield("b".into())]);
}

fn decoded(records: &[u8]) -> Result<Vec<Said>, Unreadable> {
    let mut said = Vec::new();
    decode(records, |one| said.push(one)).map(|()| said)
}

#[test]
fn every_change_is_read_as_it_was_written() {
    let changes = every_change();
    let mut records = Vec::new();
    encode(&changes, &mut records);
    assert_eq!(decoded(&records).unwrap(), changes.into_iter().map(Said::Change).collect::<Vec<_>>());
}

#[test]
fn a_record_is_the_bytes_that_earlier_versions_wrote() {
    // The variant's position, and its members in order; numbers as they are below 128, texts and lists after their length.
    let post_record = [1, 2, 0xc3, 0xbc, 1, 2, 3, 4, 1, 1];
    let post_to_record = [13, 2, 0xc3, 0xbc, 1, 2, 3, 4, 1, 1, 1, b's'];
    let leave_record = [4, 2, 1, b'g', 1, b'1'];
    let json = message(Body::Json("1".into()));
    let leave = Change::Leave { stamp: 2, group: "g".into(), user: user("1") };
    for (change, record) in [(post(2, &json), &post_record[..]), (post_to(2, &json, Some("s")), &post_to_record), (leave, &leave_record)] {
        let mut records = Vec::new();
        encode(std::slice::from_ref(&change), &mut records);
        let head = [&[0][..], &u32::try_from(record.len()).unwrap().to_le_bytes()].concat();
        assert!(records.ends_with(&[&head, record].concat()), "{change:?}: {records:?}");
    }
}

#[test]
fn a_message_is_written_once_for_all_of_its_recipients() {
    let large = message(Body::Text("x".repeat(10_000)));
    let mut records = Vec::new();
    encode(&(1..=100).map(|seq| post(seq, &large)).collect::<Vec<_>>(), &mut records);
    assert!(records.len() < 10_000 + 100 * 40, "{}", records.len());
}

#[test]
fn records_of_a_later_version_are_skipped_only_if_they_say_so() {
    let unknown = |flags: u8| [&[flags][..], &3_u32.to_le_bytes(), &[99, 1, 2]].concat();
    let mut records = unknown(MAY_BE_SKIPPED);
    encode_stop(Counters::default(), &mut records);
    encode_cleaned(7, &mut records);
    assert_eq!(decoded(&records), Ok(vec![Said::Stop(Counters::default()), Said::Cleaned(7)]));
    assert_eq!(decoded(&unknown(0)), Err(Unreadable::Newer));
    assert_eq!(decoded(&records[..2]), Err(Unreadable::Short));
}
