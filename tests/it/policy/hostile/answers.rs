//! Answers that are too much, or no answers at all: the canonical ABI, abused.

use super::{Answer, CASE, Call, Case, Fault, Refused, Theme, VERSION, hostile};
use crate::support::wat::Guest;

pub(super) fn theme() -> Theme {
    let mut cases = too_much();
    cases.extend(malformed());
    cases.extend(of_words());
    cases.extend(of_description());
    Theme { cases, more: "[limits]\ncall_deadline_ms = 1000", ..Theme::default() }
}

/// `$user`, and a list of `$count` deliveries to it, each of `$bytes` bytes at `$at` as text.
pub(super) const MANY: &str = "(func $many (param $count i32) (param $kind i32) (param $at i32) (param $bytes i32) (result i32)
    (local $list i32) (local $next i32) (local $end i32)
    (local.set $list (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $count) (i32.const 76))))
    (local.set $next (local.get $list))
    (local.set $end (i32.add (local.get $list) (i32.mul (local.get $count) (i32.const 76))))
    (loop $on
      (call $delivery (local.get $next)
        (global.get $user) (global.get $user_bytes) (local.get $kind) (local.get $at) (local.get $bytes))
      (local.set $next (i32.add (local.get $next) (i32.const 76)))
      (br_if $on (i32.lt_u (local.get $next) (local.get $end))))
    (drop (call $decided (local.get $count)))
    (i32.store (i32.const 300) (local.get $list))
    (i32.const 288))";

const USER: &[(&str, &str)] = &[("user", "u")];
const FORWARD: &str = "(call $forward (global.get $user) (global.get $user_bytes))";

/// Tells the user as it should, and then spoils the answer before it returns.
fn spoiled(spoil: &str) -> Vec<u8> {
    let body = format!("(local.set $local {FORWARD}) {spoil} (local.get $local)");
    hostile(Guest { strings: USER, ..Guest::routing(&body) })
}

fn too_much() -> Vec<Case> {
    let bound = "limits.output_bytes_max";
    vec![
        Case {
            name: "string-of-15-mib",
            does: "names a user whose id is 15 MiB long",
            outcome: Fault("output", "fuel"),
            bound,
            component: || hostile(Guest { memory: "250", ..Guest::routing("(call $forward (i32.const 0) (i32.const 15728640))") }),
            ..CASE
        },
        Case {
            name: "list-of-a-million",
            does: "returns a list of a million user ids",
            outcome: Fault("output", "fuel"),
            bound,
            component: || {
                let body = "(drop (call $forward (i32.const 8192) (i32.const 1000000))) (i32.store8 (i32.const 352) (i32.const 1)) (i32.const 288)";
                hostile(Guest { memory: "200", ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "one-string-many-times",
            does: "returns 900 messages that are all one string of 60 KB",
            outcome: Fault("output", "fuel"),
            bound,
            component: || {
                let body = "(call $many (i32.const 900) (i32.const 1) (i32.const 200000) (i32.const 60000))";
                hostile(Guest { strings: USER, fields: MANY, memory: "4", ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "one-delivery-too-many",
            does: "returns 1,001 deliveries",
            outcome: Fault("output", "1001 deliveries, replies, drafts and group changes are over the limit of 1000"),
            bound: "limits.items_max",
            component: || {
                let body = "(call $many (i32.const 1001) (i32.const -1) (i32.const 0) (i32.const 0))";
                hostile(Guest { strings: USER, fields: MANY, memory: "4", ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "message-over-the-bound",
            does: "returns one message of 300,000 bytes",
            outcome: Fault("output", "a body of 300000 bytes is over the limit of 262144 (events.event_bytes_max)"),
            bound: "events.event_bytes_max",
            component: || {
                let body = "(call $many (i32.const 1) (i32.const 1) (i32.const 16384) (i32.const 300000))";
                hostile(Guest { strings: USER, fields: MANY, memory: "8", ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "farewell-of-a-megabyte",
            does: "closes a socket with a reason of 900,000 bytes",
            outcome: Answer("closed with the 123 bytes that a close frame holds", |told| {
                let (code, reason) = told.closed.clone().expect("closed");
                assert!(code == 4204 && reason.len() <= 123, "{code} {reason:?}");
            }),
            bound: "RFC 6455",
            component: || {
                let body = "(drop (call $silent))
                    (memory.fill (i32.const 8192) (i32.const 120) (i32.const 900000))
                    (i32.store8 (i32.const 884) (i32.const 1))
                    (i32.store (i32.const 888) (i32.const 8192))
                    (i32.store (i32.const 892) (i32.const 900000))
                    (call $mine)";
                hostile(Guest { memory: "20", ..Guest::sessions(body) })
            },
            call: Call::Received,
            ..CASE
        },
    ]
}

fn malformed() -> Vec<Case> {
    let abi = "the component model";
    vec![
        Case {
            name: "no-such-result",
            does: "returns neither `ok` nor `err`",
            outcome: Fault("output", "discriminant"),
            bound: abi,
            component: || spoiled("(i32.store8 (i32.const 288) (i32.const 2))"),
            ..CASE
        },
        Case {
            name: "no-such-recipients",
            does: "returns a sixth of five kinds of recipients",
            outcome: Fault("output", "discriminant"),
            bound: abi,
            component: || spoiled("(i32.store8 (i32.const 352) (i32.const 5))"),
            ..CASE
        },
        Case {
            name: "no-such-option",
            does: "returns an option that is neither there nor absent",
            outcome: Fault("output", "discriminant"),
            bound: abi,
            component: || spoiled("(i32.store8 (i32.const 380) (i32.const 255))"),
            ..CASE
        },
        Case {
            name: "no-such-priority",
            does: "returns a fourth of three priorities",
            outcome: Fault("output", "discriminant"),
            bound: abi,
            component: || spoiled("(i32.store8 (i32.const 424) (i32.const 3))"),
            ..CASE
        },
        Case {
            name: "no-utf-8",
            does: "returns a user id of bytes that are not UTF-8",
            outcome: Fault("output", "utf-8"),
            bound: abi,
            component: || {
                spoiled(
                    "(i32.store (i32.const 8200) (i32.const 0x80FFC0FE)) (i32.store (i32.const 356) (i32.const 8200)) (i32.store (i32.const 360) (i32.const 4))",
                )
            },
            ..CASE
        },
        Case {
            name: "half-a-character",
            does: "returns a user id that ends within a character",
            outcome: Fault("output", "utf-8"),
            bound: abi,
            component: || {
                spoiled(
                    "(i32.store (i32.const 8200) (i32.const 0x0082E261)) (i32.store (i32.const 356) (i32.const 8200)) (i32.store (i32.const 360) (i32.const 3))",
                )
            },
            ..CASE
        },
        Case {
            name: "string-out-of-bounds",
            does: "returns a string that begins beyond its memory",
            outcome: Fault("output", "out of bounds"),
            bound: abi,
            component: || spoiled("(i32.store (i32.const 356) (i32.const -65536))"),
            ..CASE
        },
        Case {
            name: "string-past-the-end",
            does: "returns a string whose length wraps around",
            outcome: Fault("output", "out of bounds"),
            bound: abi,
            component: || spoiled("(i32.store (i32.const 360) (i32.const -1))"),
            ..CASE
        },
        Case {
            name: "list-out-of-bounds",
            does: "returns a list that begins beyond its memory",
            outcome: Fault("output", "out of bounds"),
            bound: abi,
            component: || spoiled("(i32.store (i32.const 300) (i32.const -65536))"),
            ..CASE
        },
        Case {
            name: "list-past-the-end",
            does: "returns a list whose size in bytes wraps around",
            outcome: Fault("output", "out of bounds"),
            bound: abi,
            component: || spoiled("(i32.store (i32.const 304) (i32.const 0x40000000))"),
            ..CASE
        },
        Case {
            name: "answer-out-of-bounds",
            does: "returns an address beyond its memory",
            outcome: Fault("output", "out of bounds"),
            bound: abi,
            component: || spoiled("(local.set $local (i32.const -8))"),
            ..CASE
        },
        Case {
            name: "answer-misaligned",
            does: "returns an odd address",
            outcome: Fault("output", "not aligned"),
            bound: abi,
            component: || spoiled("(local.set $local (i32.const 289))"),
            ..CASE
        },
        Case {
            name: "list-misaligned",
            does: "returns a list that begins at an odd address",
            outcome: Fault("output", "not aligned"),
            bound: abi,
            component: || spoiled("(i32.store (i32.const 300) (i32.const 353))"),
            ..CASE
        },
        Case {
            name: "realloc-out-of-bounds",
            does: "gives the host memory that it doesn't have",
            outcome: Fault("output", "realloc return: beyond end of memory"),
            bound: abi,
            component: || allocating("(return (i32.const -65536))"),
            ..CASE
        },
        Case {
            name: "realloc-misaligned",
            does: "gives the host memory at an odd address",
            outcome: Fault("output", "realloc return: result not aligned"),
            bound: abi,
            component: || allocating("(if (i32.gt_u (local.get $align) (i32.const 1)) (then (return (i32.const 8193))))"),
            ..CASE
        },
        Case {
            name: "realloc-the-same-again",
            does: "gives the host the same memory each time",
            outcome: Answer("answered: what the host wrote is the guest's to lose", |told| {
                assert_eq!(told.receipt()["policies"][0]["outcome"], "routed", "{}", told.receipt());
            }),
            bound: "—",
            component: || allocating("(return (i32.const 8192))"),
            ..CASE
        },
    ]
}

/// What `cabi_realloc` does once the policy is loaded.
fn allocating(on_realloc: &str) -> Vec<u8> {
    let on_realloc = format!("(if (global.get $armed) (then {on_realloc}))");
    hostile(Guest {
        fields: "(global $armed (mut i32) (i32.const 0))",
        configure: "(global.set $armed (i32.const 1)) (call $configured)",
        on_realloc: &on_realloc,
        ..Guest::routing("(call $nobody)")
    })
}

/// Tells the user this.
fn telling(json: &str) -> Vec<u8> {
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $json) (global.get $json_bytes))";
    hostile(Guest { strings: &[("user", "u"), ("json", json)], ..Guest::routing(body) })
}

fn of_words() -> Vec<Case> {
    let contract = "the contract";
    vec![
        Case {
            name: "json-that-is-none",
            does: "returns text as JSON that is not JSON",
            outcome: Fault("output", "a json body is not JSON"),
            bound: contract,
            component: || telling("{not json"),
            ..CASE
        },
        Case {
            name: "json-without-bottom",
            does: "returns 3,000 JSON arrays, one within the other",
            outcome: Answer("posted as it is: the server doesn't descend into it", |told| assert_eq!(told.receipt()["posted"], 1)),
            bound: "—",
            component: || telling(&format!("{}{}", "[".repeat(3000), "]".repeat(3000))),
            ..CASE
        },
        Case {
            name: "user-without-id",
            does: "names a user whose id is empty",
            outcome: Fault("output", "a user id can't be empty"),
            bound: contract,
            component: || spoiled("(i32.store (i32.const 360) (i32.const 0))"),
            ..CASE
        },
        Case {
            name: "group-of-a-long-name",
            does: "names a group in 60,000 bytes",
            outcome: Fault("output", "a group's name of 60000 bytes is not within 1 to 128 bytes (groups.name_bytes_max)"),
            bound: "groups.name_bytes_max",
            component: || {
                spoiled(
                    "(i32.store8 (i32.const 352) (i32.const 2)) (i32.store (i32.const 356) (i32.const 65536)) (i32.store (i32.const 360) (i32.const 60000))",
                )
            },
            ..CASE
        },
        Case {
            name: "refusal-of-no-code",
            does: "refuses with a code that no program could read",
            outcome: Fault("output", "a refusal's code"),
            bound: contract,
            component: || {
                let body = "(call $refuse (global.get $odd) (global.get $odd_bytes) (global.get $odd) (global.get $odd_bytes))";
                hostile(Guest { strings: &[("odd", "no such code!")], ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "panic-of-a-megabyte",
            does: "says a megabyte before it dies",
            outcome: Fault("panic", "unreachable"),
            bound: "2 KiB",
            component: || {
                let fields = r#"(import "signalpost:policy/diagnostics@0.1.0" "panicked" (func $panicked (param i32 i32)))"#;
                let body = "(memory.fill (i32.const 8192) (i32.const 120) (i32.const 1000000))
                    (call $panicked (i32.const 8192) (i32.const 1000000)) unreachable";
                hostile(Guest { imports: &["diagnostics"], fields, memory: "20", ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "functions-of-long-names",
            does: "traps below functions whose names have 90,000 bytes",
            outcome: Fault("trap", "unreachable"),
            bound: "128 bytes a name",
            component: || {
                let name = |index: usize| format!("${}{index}", "n".repeat(90_000));
                let calls: String = (0..20).map(|index| format!("(func {} (call {}))", name(index), name(index + 1))).collect();
                let fields = format!("{calls} (func {} unreachable)", name(20));
                hostile(Guest { fields: &fields, ..Guest::routing(&format!("(call {}) unreachable", name(0))) })
            },
            ..CASE
        },
        Case {
            name: "trap-on-the-fifth-call",
            does: "serves well four times, and traps on the fifth",
            outcome: Fault("trap", "unreachable"),
            bound: contract,
            component: || {
                let body = "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
                    (if (i32.eq (global.get $calls) (i32.const 5)) (then unreachable)) (call $nobody)";
                hostile(Guest { fields: "(global $calls (mut i32) (i32.const 0))", ..Guest::routing(body) })
            },
            call: Call::Route(5),
            ..CASE
        },
        Case {
            name: "faults-in-a-row",
            does: "traps on each of 4 calls",
            outcome: Answer("faults three times; the fourth call is not made, since the circuit is open", |told| {
                let outcomes: Vec<_> = told.receipts.iter().map(|receipt| receipt["policies"][0]["outcome"].as_str().unwrap()).collect();
                assert_eq!(outcomes, ["faulted", "faulted", "faulted", "circuit_open"]);
                assert_eq!(told.policy["circuit_open"], true);
            }),
            bound: "limits.breaker_faults",
            component: || hostile(Guest::routing("unreachable")),
            call: Call::Route(4),
            // Longer than a busy machine takes for four events.
            limits: "breaker_pause_ms = 60_000",
            ..CASE
        },
    ]
}

fn of_description() -> Vec<Case> {
    let contract = "the contract";
    vec![
        Case {
            name: "version-of-a-megabyte",
            does: "says that its version is 900,000 bytes long",
            outcome: Refused("its version"),
            bound: contract,
            component: || {
                let describe = "(drop (call $description)) (i32.store (i32.const 28) (i32.const 900000)) (i32.const 16)";
                hostile(Guest { describe, memory: "20", ..Guest::routing("(call $nobody)") })
            },
            ..CASE
        },
        Case {
            name: "wishes-without-end",
            does: "wants 20,000 event types",
            outcome: Refused("20000 event types"),
            bound: "256 event types",
            component: || {
                // All of them are one string of 8 bytes, made of the list itself.
                let describe = "(local $at i32)
                    (drop (call $description))
                    (local.set $at (i32.const 8192))
                    (loop $on
                      (i32.store (local.get $at) (global.get $event_0))
                      (i32.store offset=4 (local.get $at) (global.get $event_0_bytes))
                      (local.set $at (i32.add (local.get $at) (i32.const 8)))
                      (br_if $on (i32.lt_u (local.get $at) (i32.const 168192))))
                    (i32.store (i32.const 32) (i32.const 8192))
                    (i32.store (i32.const 36) (i32.const 20000))
                    (i32.const 16)";
                hostile(Guest { describe, memory: "20", ..Guest::routing("(call $nobody)") })
            },
            ..CASE
        },
        Case {
            name: "variety-without-end",
            does: "varies on 20,000 attributes",
            outcome: Refused("20000 attributes"),
            bound: "16 attributes",
            component: || {
                let vary = "(local $at i32)
                    (local.set $at (i32.const 8192))
                    (loop $on
                      (i32.store (local.get $at) (global.get $event_0))
                      (i32.store offset=4 (local.get $at) (global.get $event_0_bytes))
                      (local.set $at (i32.add (local.get $at) (i32.const 8)))
                      (br_if $on (i32.lt_u (local.get $at) (i32.const 168192))))
                    (i32.store (i32.const 448) (i32.const 8192))
                    (i32.store (i32.const 452) (i32.const 20000))
                    (i32.const 448)";
                hostile(Guest { vary, memory: "20", version: VERSION, ..Guest::formatting("unreachable") })
            },
            ..CASE
        },
        Case {
            name: "refusal-of-a-megabyte",
            does: "refuses an event in 900,000 bytes",
            outcome: Answer("refused, in the first KiB of them", |told| {
                let policy = &told.receipt()["policies"][0];
                assert_eq!(policy["outcome"], "refused", "{policy}");
                assert_eq!(policy["refusal"]["detail"].as_str().unwrap(), "x".repeat(1024));
            }),
            bound: "1 KiB",
            component: || {
                let body = "(memory.fill (i32.const 8192) (i32.const 120) (i32.const 900000))
                    (call $refuse (global.get $code) (global.get $code_bytes) (i32.const 8192) (i32.const 900000))";
                hostile(Guest { strings: &[("code", "no")], memory: "20", ..Guest::routing(body) })
            },
            ..CASE
        },
        Case {
            name: "objection-of-a-megabyte",
            does: "refuses its settings in 900,000 bytes",
            outcome: Refused("refuses its settings (none are set): xxx"),
            bound: "4 KiB",
            component: || {
                let configure =
                    "(memory.fill (i32.const 8192) (i32.const 120) (i32.const 900000)) (call $unfit (i32.const 8192) (i32.const 900000))";
                hostile(Guest { configure, memory: "20", ..Guest::routing("(call $nobody)") })
            },
            ..CASE
        },
    ]
}
