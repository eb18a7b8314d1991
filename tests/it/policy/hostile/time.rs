//! Loops, wherever a guest can run one.

use super::{CASE, Call, Case, Fault, Refused, Theme, hostile};
use crate::support::wat::Guest;

const LOOP: &str = "(loop $on (br $on)) unreachable";

/// `configure` arms what misbehaves later, so that it gets through its own loading.
const ARMED: &str = "(global $armed (mut i32) (i32.const 0))";
const ARM: &str = "(global.set $armed (i32.const 1)) (call $configured)";

const ROUTING: Guest<'static> = Guest::routing("(call $nobody)");

pub(super) fn theme() -> Theme {
    let call = "limits.call_deadline_ms";
    let load = "limits.configure_deadline_ms";
    let cases = vec![
        Case {
            name: "loop-in-route",
            does: "`route` never ends",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || hostile(Guest::routing(LOOP)),
            ..CASE
        },
        Case {
            name: "loop-in-format",
            does: "`format` never ends",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || hostile(Guest::formatting(LOOP)),
            call: Call::Format,
            ..CASE
        },
        Case {
            name: "loop-in-opened",
            does: "`opened` never ends",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || hostile(Guest { opened: LOOP, ..Guest::sessions("(call $not_mine)") }),
            call: Call::Opened,
            ..CASE
        },
        Case {
            name: "loop-in-received",
            does: "`received` never ends",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || hostile(Guest::sessions(LOOP)),
            call: Call::Received,
            ..CASE
        },
        Case {
            name: "loop-in-closed",
            does: "`closed` never ends",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || hostile(Guest { closed: LOOP, ..Guest::sessions("(call $not_mine)") }),
            call: Call::Closed,
            ..CASE
        },
        Case {
            name: "loop-in-describe",
            does: "`describe` never ends",
            outcome: Refused("describe failed (deadline)"),
            bound: load,
            component: || hostile(Guest { describe: LOOP, ..ROUTING }),
            ..CASE
        },
        Case {
            name: "loop-in-configure",
            does: "`configure` never ends",
            outcome: Refused("configure failed (deadline)"),
            bound: load,
            component: || hostile(Guest { configure: LOOP, ..ROUTING }),
            ..CASE
        },
        Case {
            name: "loop-in-vary",
            does: "`vary` never ends",
            outcome: Refused("vary failed (deadline)"),
            bound: load,
            component: || hostile(Guest { vary: LOOP, ..Guest::formatting("unreachable") }),
            ..CASE
        },
        Case {
            name: "loop-at-start",
            does: "a core module's start function never ends",
            outcome: Refused("creating an instance failed (deadline)"),
            bound: load,
            component: || hostile(Guest { fields: "(func $begin (loop $on (br $on))) (start $begin)", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "loop-in-realloc-at-load",
            does: "`cabi_realloc` never ends when its settings are handed over",
            outcome: Refused("configure failed (deadline)"),
            bound: load,
            component: || hostile(Guest { on_realloc: "(loop $on (br $on))", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "loop-in-realloc",
            does: "`cabi_realloc` never ends when an event is handed over",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || {
                let on_realloc = "(if (global.get $armed) (then (loop $on (br $on))))";
                hostile(Guest { fields: ARMED, configure: ARM, on_realloc, ..ROUTING })
            },
            ..CASE
        },
        Case {
            name: "loop-in-post-return",
            does: "the function that frees an answer never ends",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || hostile(Guest { post_return: "(loop $on (br $on))", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "loop-in-a-later-configure",
            does: "configures its first instance well, and never ends configuring the next",
            outcome: Fault("deadline", "configuring a new instance"),
            bound: load,
            component: || {
                let fields = r#"(import "signalpost:policy/state@0.1.0" "increment"
                    (func $increment (param i32 i32 i64 i32 i32 i32)))"#;
                // The number is 1 again in the next pass.
                let configure = "(call $increment (i32.const 64) (i32.const 1) (i64.const 1) (i32.const 1) (i32.const 500) (i32.const 904))
                    (if (i64.eqz (i64.and (i64.load (i32.const 912)) (i64.const 1))) (then (loop $on (br $on))))
                    (call $configured)";
                hostile(Guest { imports: &["state"], fields, configure, ..ROUTING })
            },
            policy: "grants = [\"state\"]\nisolation = \"fresh\"",
            ..CASE
        },
        Case {
            name: "filling-in-a-loop",
            does: "fills its whole memory again and again, one instruction each time",
            outcome: Fault("deadline", "interrupt"),
            bound: call,
            component: || {
                let body = "(loop $on (memory.fill (i32.const 0) (i32.const 0) (i32.const 16000000)) (br $on)) unreachable";
                hostile(Guest { memory: "250", ..Guest::routing(body) })
            },
            ..CASE
        },
    ];
    Theme { cases, ..Theme::default() }
}
