//! Memories, tables, stacks and handles: what a guest has, and what the host has for it.

use super::{Answer, CASE, Case, Fault, Refused, Theme, VERSION, hostile};
use crate::support::wat::{Guest, component_of};

const ROUTING: Guest<'static> = Guest::routing("(call $nobody)");
const AT_ONCE: &str = "creating an instance failed (memory)";

pub(super) fn theme() -> Theme {
    let mut cases = of_memory();
    cases.extend(of_tables_and_parts());
    cases.extend(of_stacks_and_handles());
    Theme { cases, ..Theme::default() }
}

fn of_memory() -> Vec<Case> {
    vec![
        Case {
            name: "memory-at-start",
            does: "declares 25 MiB of memory",
            outcome: Refused(AT_ONCE),
            bound: "limits.memory_bytes_max",
            component: || hostile(Guest { memory: "400", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "memory-of-4-gib",
            does: "declares all the memory that 32 bits address",
            outcome: Refused(AT_ONCE),
            bound: "limits.memory_bytes_max",
            component: || hostile(Guest { memory: "65536", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "data-of-17-mib",
            does: "brings 17 MiB of data for its memory",
            outcome: Refused(AT_ONCE),
            bound: "limits.memory_bytes_max",
            component: || {
                let data = format!("(data (i32.const 65536) \"{}\")", "x".repeat(17 << 20));
                hostile(Guest { memory: "300", fields: &data, ..ROUTING })
            },
            ..CASE
        },
        Case {
            name: "memory-in-a-call",
            does: "grows its memory until it is refused more",
            outcome: Fault("memory", "unreachable"),
            bound: "limits.memory_bytes_max",
            component: || {
                let body = "(loop $on (br_if $on (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
                hostile(Guest::routing(body))
            },
            ..CASE
        },
        Case {
            name: "memory-call-by-call",
            does: "grows by 1 MiB with each of 40 calls, and traps when it can't",
            outcome: Answer("all 40 are routed: an instance that has grown large is replaced after its call", |told| {
                assert!(told.receipts.iter().all(|receipt| receipt["policies"][0]["outcome"] == "routed"), "{:?}", told.receipts);
            }),
            bound: "limits.instance_kept_bytes_max",
            component: || {
                let body = "(if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable)) (call $nobody)";
                hostile(Guest::routing(body))
            },
            call: super::Call::Route(40),
            ..CASE
        },
    ]
}

fn of_tables_and_parts() -> Vec<Case> {
    vec![
        Case {
            name: "table-at-start",
            does: "declares a table of a million functions",
            outcome: Refused(AT_ONCE),
            bound: "limits.table_elements_max",
            component: || hostile(Guest { fields: "(table 1000000 funcref)", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "tables-at-start",
            does: "declares 50 tables, each just within the bound",
            outcome: Refused(AT_ONCE),
            bound: "limits.table_elements_max",
            component: || hostile(Guest { fields: &"(table 20000 funcref)".repeat(50), ..ROUTING }),
            ..CASE
        },
        Case {
            name: "table-in-a-call",
            does: "grows its table until it is refused more",
            outcome: Fault("memory", "unreachable"),
            bound: "limits.table_elements_max",
            component: || {
                let grow = "(table.grow $grows (ref.null func) (i32.const 1000))";
                let body = format!("(loop $on (br_if $on (i32.ne {grow} (i32.const -1)))) unreachable");
                hostile(Guest { fields: "(table $grows 1 funcref)", ..Guest::routing(&body) })
            },
            ..CASE
        },
        Case {
            name: "instances-without-end",
            does: "makes 900 core instances of an empty module",
            outcome: Refused(AT_ONCE),
            bound: "100 core instances",
            component: || with_instances("(module)", 900),
            ..CASE
        },
        Case {
            name: "memories-without-end",
            does: "makes 900 core instances, each with a memory of a page",
            outcome: Refused(AT_ONCE),
            bound: "100 memories",
            component: || with_instances("(module (memory 1))", 900),
            ..CASE
        },
        Case {
            name: "memories-that-add-up",
            does: "makes nine core instances, each with 2 MiB",
            outcome: Refused(AT_ONCE),
            bound: "limits.memory_bytes_max",
            component: || with_instances("(module (memory 32))", 9),
            ..CASE
        },
    ]
}

fn of_stacks_and_handles() -> Vec<Case> {
    vec![
        Case {
            name: "recursion",
            does: "calls itself without end",
            outcome: Fault("stack", "call stack exhausted"),
            bound: "256 KiB of stack",
            component: || {
                let fields = "(func $again (param i64) (result i64) (i64.add (call $again (local.get 0)) (i64.const 1)))";
                hostile(Guest { fields, ..Guest::routing("(drop (call $again (i64.const 0))) unreachable") })
            },
            ..CASE
        },
        Case {
            name: "recursion-at-start",
            does: "calls itself without end from its start function",
            outcome: Refused("creating an instance failed (stack)"),
            bound: "256 KiB of stack",
            component: || hostile(Guest { fields: "(func $again (call $again) (call $again)) (start $again)", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "recursion-through-the-host",
            does: "asks the host for its state from within `cabi_realloc`, which the host calls to answer such a question",
            outcome: Fault("trap", "cannot leave component instance"),
            bound: "the component model",
            component: || {
                let fields = r#"(import "signalpost:policy/state@0.1.0" "get" (func $get (param i32 i32 i32)))
                    (import "signalpost:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32)))
                    (global $armed (mut i32) (i32.const 0))"#;
                let on_realloc = "(if (global.get $armed) (then (call $get (i32.const 64) (i32.const 1) (i32.const 904))))";
                let body =
                    "(call $set (i32.const 64) (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 904))
                    (global.set $armed (i32.const 1))
                    (call $get (i32.const 64) (i32.const 1) (i32.const 904))
                    (call $nobody)";
                hostile(Guest { imports: &["state"], fields, on_realloc, ..Guest::routing(body) })
            },
            policy: "grants = [\"state\"]",
            ..CASE
        },
        Case {
            name: "handles-without-end",
            does: "makes handles of a resource of its own and drops none",
            outcome: Fault("output", "store handle limit exceeded"),
            bound: "1,000 handles",
            component: || with_resource("(loop $on (drop (call $new (i32.const 1))) (br $on)) unreachable"),
            limits: "call_deadline_ms = 1000",
            ..CASE
        },
        Case {
            name: "handle-dropped-twice",
            does: "drops a handle of a resource of its own twice",
            outcome: Fault("output", "unknown handle index"),
            bound: "the component model",
            component: || {
                with_resource(
                    "(local.set $local (call $new (i32.const 1))) (call $drop (local.get $local)) (call $drop (local.get $local)) unreachable",
                )
            },
            ..CASE
        },
        Case {
            name: "more-exports",
            does: "exports an interface and a resource that nobody knows",
            outcome: Answer("routed: what the contract doesn't name is never called", |told| {
                assert_eq!(told.receipt()["policies"][0]["outcome"], "routed", "{}", told.receipt());
            }),
            bound: "—",
            component: || with_resource("(call $nobody)"),
            ..CASE
        },
    ]
}

/// A policy that also has a resource of its own.
fn with_resource(body: &str) -> Vec<u8> {
    let fields = r#"(import "[export]test:guest/things" "[resource-new]thing" (func $new (param i32) (result i32)))
        (import "[export]test:guest/things" "[resource-drop]thing" (func $drop (param i32)))
        (func (export "test:guest/things#[constructor]thing") (result i32) unreachable)"#;
    let guest = Guest { version: VERSION, events: &["hostile.*"], fields, ..Guest::routing(body) };
    let wit = "interface things { resource thing { constructor(); } }
        world guest { include signalpost:policy/routing-policy@0.1.0; export things; }";
    component_of(wit, &guest.module())
}

/// A good policy, and after it `count` instances of a module.
fn with_instances(module: &str, count: usize) -> Vec<u8> {
    const MODULE_SECTION: u8 = 1;
    const INSTANCE_SECTION: u8 = 2;
    let mut component = hostile(ROUTING);
    section(&mut component, MODULE_SECTION, &wat::parse_str(module).unwrap());
    let mut instances = leb128(count);
    for _ in 0..count {
        // Instantiates module 1, the one after the policy's own, with no arguments.
        instances.extend([0, 1, 0]);
    }
    section(&mut component, INSTANCE_SECTION, &instances);
    component
}

fn section(component: &mut Vec<u8>, id: u8, content: &[u8]) {
    component.push(id);
    component.extend(leb128(content.len()));
    component.extend(content);
}

pub(super) fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7F) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
