//! Floods: what is asked of the host too often, and few words that become many messages.

use super::answers::MANY;
use super::{Answer, CASE, Call, Case, Fault, Theme, hostile};
use crate::support::wat::{Guest, drafts};

pub(super) fn theme() -> Theme {
    let mut cases = of_host_calls();
    cases.extend(of_state());
    cases.extend(of_messages());
    cases.extend(of_sessions());
    // Time is not what these are about.
    Theme { cases, more: "[limits]\ngroups_max = 300\ncall_deadline_ms = 2000", ..Theme::default() }
}

/// `(call $spell at number)` writes a word of five letters, another one for each number below a million.
const SPELL: &str = "(func $spell (param $at i32) (param $number i32)
    (i32.store8 offset=0 (local.get $at) (i32.add (i32.const 97) (i32.and (local.get $number) (i32.const 15))))
    (i32.store8 offset=1 (local.get $at) (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $number) (i32.const 4)) (i32.const 15))))
    (i32.store8 offset=2 (local.get $at) (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $number) (i32.const 8)) (i32.const 15))))
    (i32.store8 offset=3 (local.get $at) (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $number) (i32.const 12)) (i32.const 15))))
    (i32.store8 offset=4 (local.get $at) (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $number) (i32.const 16)) (i32.const 15)))))";

/// `(call $crowd count stride)` makes a list of `count` words, with an element every `stride` bytes, and returns its address.
const CROWD: &str = "(func $crowd (param $count i32) (param $stride i32) (result i32)
    (local $list i32) (local $words i32) (local $at i32) (local $number i32)
    (local.set $list (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $count) (local.get $stride))))
    (local.set $words (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $count) (i32.const 5))))
    (local.set $at (local.get $list))
    (loop $on
      (call $spell (local.get $words) (local.get $number))
      (i32.store (local.get $at) (local.get $words))
      (i32.store offset=4 (local.get $at) (i32.const 5))
      (local.set $words (i32.add (local.get $words) (i32.const 5)))
      (local.set $at (i32.add (local.get $at) (local.get $stride)))
      (local.set $number (i32.add (local.get $number) (i32.const 1)))
      (br_if $on (i32.lt_u (local.get $number) (local.get $count))))
    (local.get $list))";

/// Does this `count` times, with `$local` counting from 0, and delivers nothing.
fn times(count: u32, what: &str) -> String {
    format!(
        "(loop $on {what}
           (local.set $local (i32.add (local.get $local) (i32.const 1)))
           (br_if $on (i32.lt_u (local.get $local) (i32.const {count}))))
         (call $nobody)"
    )
}

fn routed(told: &super::Told) {
    assert_eq!(told.receipt()["policies"][0]["outcome"], "routed", "{}", told.receipt());
}

fn of_host_calls() -> Vec<Case> {
    vec![
        Case {
            name: "questions-without-end",
            does: "asks what time it is, for ever",
            outcome: Fault("host", "limits.host_calls_max"),
            bound: "limits.host_calls_max",
            component: || {
                let fields = r#"(import "signalpost:policy/clock@0.1.0" "now-ms" (func $now (result i64)))"#;
                let body = "(loop $on (drop (call $now)) (br $on)) unreachable";
                hostile(Guest { imports: &["clock"], fields, ..Guest::routing(body) })
            },
            policy: "grants = [\"clock\"]",
            ..CASE
        },
        Case {
            name: "questions-of-a-megabyte",
            does: "asks for a group by a name of a megabyte, as often as it may",
            outcome: Fault("deadline", "interrupt"),
            bound: "limits.call_deadline_ms",
            component: || {
                let fields = r#"(import "signalpost:policy/groups@0.1.0" "size" (func $size (param i32 i32) (result i32)))"#;
                let body = times(9000, "(drop (call $size (i32.const 8192) (i32.const 1000000)))");
                let body = format!("(memory.fill (i32.const 8192) (i32.const 120) (i32.const 1000000)) {body}");
                hostile(Guest { imports: &["groups"], fields, memory: "20", ..Guest::routing(&body) })
            },
            policy: "grants = [\"groups\"]",
            limits: "call_deadline_ms = 20",
            ..CASE
        },
        Case {
            name: "log-lines",
            does: "writes 5,000 log lines of 30 KB in one call, with line ends in them",
            outcome: Answer("32 lines of 1 KiB are in the log, the others in a counter", |told| {
                routed(told);
                assert_eq!(told.logged, 32);
                assert_eq!(told.metric(r#"signalpost_policy_log_lines_dropped_total{policy="log-lines"}"#) % 4968, 0);
            }),
            bound: "limits.log_lines_max, limits.log_line_bytes_max",
            component: || {
                let fields = r#"(import "signalpost:policy/log@0.1.0" "write" (func $write (param i32 i32 i32)))"#;
                let body = times(5000, "(call $write (i32.const 1) (i32.const 8192) (i32.const 30000))");
                let body = format!("(memory.fill (i32.const 8192) (i32.const 10) (i32.const 30000)) {body}");
                hostile(Guest { imports: &["log"], fields, ..Guest::routing(&body) })
            },
            policy: "grants = [\"log\"]",
            ..CASE
        },
        Case {
            name: "metric-names",
            does: "counts under 1,000 names",
            outcome: Answer("32 names are counted, the others under `_dropped`", |told| {
                routed(told);
                let series = told
                    .metrics
                    .lines()
                    .filter(|line| line.starts_with("signalpost_policy_custom_total{") && line.contains("metric-names"));
                assert_eq!(series.count(), 33, "with the counter of what was dropped");
                let dropped = told.metric(r#"signalpost_policy_custom_total{name="_dropped",policy="metric-names"}"#);
                assert!(dropped > 0 && dropped % 968 == 0, "{dropped}");
            }),
            bound: "limits.metric_names_max",
            component: || {
                let fields = r#"(import "signalpost:policy/metrics@0.1.0" "count" (func $count (param i32 i32 i64)))"#.to_owned() + SPELL;
                let body = times(
                    1000,
                    "(call $spell (i32.const 904) (local.get $local)) (call $count (i32.const 904) (i32.const 5) (i64.const 1))",
                );
                hostile(Guest { imports: &["metrics"], fields: &fields, ..Guest::routing(&body) })
            },
            policy: "grants = [\"metrics\"]",
            ..CASE
        },
    ]
}

/// Sets `keys` keys to values of `bytes` bytes, and traps unless `taken` of them are accepted.
fn hoarder(keys: u32, bytes: u32, taken: u32) -> Vec<u8> {
    let fields = r#"(import "signalpost:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32)))"#.to_owned() + SPELL;
    let set = format!(
        "(call $spell (i32.const 904) (local.get $local))
         (call $set (i32.const 904) (i32.const 5) (i32.const 8192) (i32.const {bytes}) (i32.const 0) (i32.const 0) (i32.const 912))
         (if (i32.eqz (i32.load8_u (i32.const 912))) (then (local.set $other (i32.add (local.get $other) (i32.const 1)))))"
    );
    let body = times(keys, &set)
        .replace("(call $nobody)", &format!("(if (i32.ne (local.get $other) (i32.const {taken})) (then unreachable)) (call $nobody)"));
    hostile(Guest { imports: &["state"], fields: &fields, ..Guest::routing(&body) })
}

fn of_state() -> Vec<Case> {
    vec![
        Case {
            name: "state-keys",
            does: "remembers 5,000 keys, and may have 100",
            outcome: Answer("100 are taken, the others refused: it is told `quota`", routed),
            bound: "limits.state_keys_max",
            component: || hoarder(5000, 1, 100),
            policy: "grants = [\"state\"]",
            limits: "state_keys_max = 100",
            ..CASE
        },
        Case {
            name: "state-bytes",
            does: "remembers 500 values of 50,000 bytes, and may have 1 MB",
            outcome: Answer("19 are taken, the others refused: it is told `quota`", routed),
            bound: "limits.state_bytes_max",
            component: || hoarder(500, 50_000, 19),
            policy: "grants = [\"state\"]",
            limits: "state_bytes_max = 1_000_000",
            ..CASE
        },
        Case {
            name: "state-value",
            does: "remembers a value of 65,537 bytes",
            outcome: Answer("refused: it is told `quota`", routed),
            bound: "limits.state_value_bytes_max",
            component: || hoarder(1, 65_537, 0),
            policy: "grants = [\"state\"]",
            ..CASE
        },
        Case {
            name: "groups",
            does: "lets one user join 1,000 groups, and there may be 300",
            outcome: Answer(
                "300 joins are carried out, the others refused and counted; the neighbour's group is on another account",
                |told| {
                    routed(told);
                    assert_eq!(told.receipts[0]["joins_refused"], 700, "{}", told.receipts[0]);
                    assert_eq!(told.receipts[1]["joins_refused"], 700, "{}", told.receipts[1]);
                    assert_eq!(told.metric("signalpost_groups"), 301);
                },
            ),
            bound: "limits.groups_max",
            component: || {
                // A membership is a group's name and a user's id.
                let body = "(local.set $local (call $crowd (i32.const 1000) (i32.const 16)))
                    (local.set $other (local.get $local))
                    (loop $on
                      (i32.store offset=8 (local.get $other) (global.get $user))
                      (i32.store offset=12 (local.get $other) (global.get $user_bytes))
                      (local.set $other (i32.add (local.get $other) (i32.const 16)))
                      (br_if $on (i32.lt_u (local.get $other) (i32.add (local.get $local) (i32.const 16000)))))
                    (drop (call $nobody))
                    (i32.store (i32.const 292) (local.get $local))
                    (i32.store (i32.const 296) (i32.const 1000))
                    (i32.const 288)";
                let fields = SPELL.to_owned() + CROWD;
                hostile(Guest { strings: &[("user", "u")], fields: &fields, ..Guest::routing(body) })
            },
            call: Call::Route(2),
            ..CASE
        },
        Case {
            name: "groups-given-back",
            does: "ends the groups that it made",
            outcome: Answer("there is room again", |told| {
                routed(told);
                assert_eq!(told.metric("signalpost_groups"), 1);
            }),
            bound: "—",
            component: || {
                let body = "(local.set $local (call $crowd (i32.const 1000) (i32.const 8)))
                    (drop (call $nobody))
                    (i32.store (i32.const 316) (local.get $local))
                    (i32.store (i32.const 320) (i32.const 1000))
                    (i32.const 288)";
                let fields = SPELL.to_owned() + CROWD;
                hostile(Guest { fields: &fields, ..Guest::routing(body) })
            },
            ..CASE
        },
    ]
}

/// One delivery of the event's data to a crowd, with more said about it.
fn to_a_crowd(count: u32, more: &str) -> Vec<u8> {
    let body = format!(
        "(drop (call $forward (call $crowd (i32.const {count}) (i32.const 8)) (i32.const {count})))
         (i32.store8 (i32.const 352) (i32.const 1))
         {more}
         (i32.const 288)"
    );
    let fields = SPELL.to_owned() + CROWD;
    hostile(Guest { fields: &fields, ..Guest::routing(&body) })
}

fn of_messages() -> Vec<Case> {
    vec![
        Case {
            name: "crowd-of-100000",
            does: "answers one event with 100,000 recipients",
            outcome: Answer("50,000 are told, the others are in the receipt as `too_many_recipients`", |told| {
                let receipt = told.receipt();
                assert_eq!((receipt["recipients"].as_u64(), receipt["posted"].as_u64()), (Some(50_000), Some(50_000)), "{receipt}");
                assert_eq!(
                    (&receipt["dropped"][0]["reason"], receipt["dropped"][0]["count"].as_u64()),
                    (&"too_many_recipients".into(), Some(50_000))
                );
                assert_eq!(receipt["dropped"][0]["users"].as_array().unwrap().len(), 10, "some of them");
            }),
            bound: "limits.recipients_max",
            component: || to_a_crowd(100_000, ""),
            limits: "output_bytes_max = 8_000_000",
            ..CASE
        },
        Case {
            name: "crowd-by-default",
            does: "the same, within the bytes that a call may hand over by default",
            outcome: Fault("output", "fuel"),
            bound: "limits.output_bytes_max",
            component: || to_a_crowd(100_000, ""),
            ..CASE
        },
        Case {
            name: "crowd-but-the-crowd",
            does: "tells 30,000 users but 30,000 users",
            outcome: Answer("nobody is told, at once", |told| assert_eq!(told.receipt()["posted"], 0, "{}", told.receipt())),
            bound: "—",
            component: || {
                to_a_crowd(30_000, "(i32.store (i32.const 372) (i32.load (i32.const 356))) (i32.store (i32.const 376) (i32.const 30000))")
            },
            limits: "output_bytes_max = 8_000_000",
            ..CASE
        },
        Case {
            name: "group-times-deliveries",
            does: "lets 250 users join a group and sends it 749 messages",
            outcome: Answer("50,000 are posted, the others are in the receipt as `too_many_recipients`", |told| {
                let receipt = told.receipt();
                assert_eq!(receipt["posted"].as_u64(), Some(50_000), "{receipt}");
                assert_eq!(
                    (&receipt["dropped"][0]["reason"], receipt["dropped"][0]["count"].as_u64()),
                    (&"too_many_recipients".into(), Some(137_250))
                );
            }),
            bound: "limits.recipients_max",
            component: || {
                let body = "(local.set $local (call $crowd (i32.const 250) (i32.const 16)))
                    (local.set $other (local.get $local))
                    (loop $on
                      (i64.store offset=8 (local.get $other) (i64.load (local.get $other)))
                      (i32.store (local.get $other) (global.get $user))
                      (i32.store offset=4 (local.get $other) (global.get $user_bytes))
                      (local.set $other (i32.add (local.get $other) (i32.const 16)))
                      (br_if $on (i32.lt_u (local.get $other) (i32.add (local.get $local) (i32.const 4000)))))
                    (drop (call $many (i32.const 749) (i32.const -1) (i32.const 0) (i32.const 0)))
                    (i32.store (i32.const 292) (local.get $local))
                    (i32.store (i32.const 296) (i32.const 250))
                    (local.set $local (i32.load (i32.const 300)))
                    (local.set $other (i32.const 0))
                    (loop $on
                      (i32.store8 (i32.add (local.get $local) (i32.mul (local.get $other) (i32.const 76))) (i32.const 2))
                      (local.set $other (i32.add (local.get $other) (i32.const 1)))
                      (br_if $on (i32.lt_u (local.get $other) (i32.const 749))))
                    (i32.store (i32.const 316) (i32.const 904))
                    (i32.store (i32.const 320) (i32.const 1))
                    (i32.store (i32.const 904) (global.get $user))
                    (i32.store (i32.const 908) (global.get $user_bytes))
                    (i32.const 288)";
                let fields = SPELL.to_owned() + CROWD + MANY;
                hostile(Guest { strings: &[("user", "everybody")], fields: &fields, ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "large-messages",
            does: "answers an event of 200 KB with 1,000 deliveries of it to one user",
            outcome: Answer("the user's mailbox keeps the last MiB of them", |told| {
                let receipt = told.receipt();
                assert_eq!((receipt["recipients"].as_u64(), receipt["posted"].as_u64()), (Some(1), Some(1000)), "{receipt}");
                assert!(told.metric(r#"signalpost_messages_dropped_total{reason="evicted"}"#) >= 990);
            }),
            bound: "mailboxes.bytes_max",
            component: || {
                let body = "(call $many (i32.const 1000) (i32.const -1) (i32.const 0) (i32.const 0))";
                hostile(Guest { strings: &[("user", "nobody-in-particular")], fields: MANY, memory: "8", ..Guest::routing(body) })
            },
            data_bytes: 200_000,
            ..CASE
        },
    ]
}

fn of_sessions() -> Vec<Case> {
    vec![
        Case {
            name: "replies",
            does: "answers a client's message with 1,001 replies",
            outcome: Fault("output", "1001 deliveries, replies, drafts and group changes are over the limit of 1000"),
            bound: "limits.items_max",
            component: || {
                let body = "(drop (call $silent))
                    (memory.fill (i32.const 8192) (i32.const 0) (i32.const 12012))
                    (i32.store (global.get $response) (i32.const 8192))
                    (i32.store offset=4 (global.get $response) (i32.const 1001))
                    (call $mine)";
                // A body of zeros is empty, and said to be JSON.
                hostile(Guest::sessions(body))
            },
            call: Call::Received,
            ..CASE
        },
        Case {
            name: "drafts",
            does: "answers a client's message with 1,000 events",
            outcome: Answer("1,000 events are published, and no policy's call makes another", |told| {
                assert_eq!(told.metric(r#"signalpost_events_total{outcome="unwanted"}"#) % 1000, 0);
                assert!(told.metric(r#"signalpost_events_total{outcome="unwanted"}"#) > 0);
                assert_eq!((told.replies, &told.closed), (0, &None));
            }),
            bound: "limits.items_max",
            component: || hostile(Guest { strings: &[("type", "nobody.wants.this")], ..Guest::sessions(&drafts(1000)) }),
            call: Call::Received,
            ..CASE
        },
    ]
}
