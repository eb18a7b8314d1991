//! What is no policy of this contract, whatever it claims.

use super::{CASE, Case, Fault, Refused, Theme, hostile};
use crate::support::wat::Guest;

const ROUTING: Guest<'static> = Guest::routing("(call $nobody)");
const CONTRACT: &str = "the contract";
const EXPORTS: &str = r#"(instance $empty)
    (export "signalpost:policy/plugin@0.1.0" (instance $empty)) (export "signalpost:policy/routing@0.1.0" (instance $empty))"#;

fn component(fields: &str) -> Vec<u8> {
    wat::parse_str(format!("(component {fields})")).unwrap()
}

/// Claims to be a policy, and imports this.
fn importing(name: &str) -> Vec<u8> {
    component(&format!(r#"(import "{name}" (instance)) {EXPORTS}"#))
}

fn exporting(name: &str) -> Vec<u8> {
    component(&format!(r#"(instance $empty) (export "{name}" (instance $empty))"#))
}

pub(super) fn theme() -> Theme {
    let mut cases = of_files();
    cases.extend(of_worlds());
    cases.extend(of_loading());
    cases.extend(of_types());
    Theme { cases, plugins: "file_bytes_max = 4_000_000", ..Theme::default() }
}

fn of_files() -> Vec<Case> {
    vec![
        Case {
            name: "empty-file",
            does: "is a file without a byte",
            outcome: Refused("is not WebAssembly: the file does not begin with its magic number"),
            bound: CONTRACT,
            component: Vec::new,
            ..CASE
        },
        Case {
            name: "garbage",
            does: "is a file of something else",
            outcome: Refused("is not WebAssembly: the file does not begin with its magic number"),
            bound: CONTRACT,
            component: || b"this is not it".into(),
            ..CASE
        },
        Case {
            name: "large-file",
            does: "has 5 MB, and 4 are allowed",
            outcome: Refused("(plugins.file_bytes_max)"),
            bound: "plugins.file_bytes_max",
            component: || vec![0; 5_000_000],
            ..CASE
        },
        Case {
            name: "core-module",
            does: "is a core module",
            outcome: Refused("is a core module, not a component: build it with `signalpost plugin build`"),
            bound: CONTRACT,
            component: || wat::parse_str(ROUTING.module()).unwrap(),
            ..CASE
        },
    ]
}

fn of_worlds() -> Vec<Case> {
    vec![
        Case {
            name: "empty-component",
            does: "exports nothing",
            outcome: Refused("exports no signalpost:policy/plugin@0.1.0; it exports nothing"),
            bound: CONTRACT,
            component: || component(""),
            ..CASE
        },
        Case {
            name: "other-world",
            does: "is a component of another world",
            outcome: Refused("exports no signalpost:policy/plugin@0.1.0; it exports wasi:cli/run@0.2.0"),
            bound: CONTRACT,
            component: || exporting("wasi:cli/run@0.2.0"),
            ..CASE
        },
        Case {
            name: "exports-without-end",
            does: "exports 900 interfaces with long names, none of them a policy's",
            outcome: Refused("exports no signalpost:policy/plugin@0.1.0; it exports "),
            bound: "4 KiB",
            component: || {
                let exports: String = (0..900).map(|index| format!("(export \"{}{index}\" (instance $empty))", "x".repeat(900))).collect();
                component(&format!("(instance $empty) {exports}"))
            },
            ..CASE
        },
        Case {
            name: "later-contract",
            does: "is built for a version of the contract that doesn't exist yet",
            outcome: Refused("is built for signalpost:policy@9.9.9; this server serves 0.1.0"),
            bound: CONTRACT,
            component: || exporting("signalpost:policy/plugin@9.9.9"),
            ..CASE
        },
        Case {
            name: "later-import",
            does: "imports from a version of the contract that doesn't exist yet",
            outcome: Refused("is built for signalpost:policy@0.2.0; this server serves 0.1.0"),
            bound: CONTRACT,
            component: || importing("signalpost:policy/log@0.2.0"),
            ..CASE
        },
        Case {
            name: "no-role",
            does: "exports `plugin` alone",
            outcome: Refused("exports none of the roles routing, formatting and sessions"),
            bound: CONTRACT,
            component: || exporting("signalpost:policy/plugin@0.1.0"),
            ..CASE
        },
        Case {
            name: "hollow",
            does: "exports the right interfaces with no functions in them",
            outcome: Refused("an export does not fit the contract signalpost:policy@0.1.0"),
            bound: CONTRACT,
            component: || component(EXPORTS),
            ..CASE
        },
        Case {
            name: "wasi",
            does: "imports the environment",
            outcome: Refused("imports wasi, which is not granted: build it without WASI, or let it have one that denies everything"),
            bound: "policies.NAME.grants",
            component: || importing("wasi:cli/environment@0.2.0"),
            ..CASE
        },
        Case {
            name: "no-such-interface",
            does: "imports an interface that the contract doesn't have",
            outcome: Refused("imports signalpost:policy/files@0.1.0, which signalpost:policy@0.1.0 does not have"),
            bound: CONTRACT,
            component: || importing("signalpost:policy/files@0.1.0"),
            ..CASE
        },
        Case {
            name: "not-granted",
            does: "imports `log`, which it isn't granted",
            outcome: Refused("imports log, which is not granted: add `grants = [\"log\"]` to [policies.not-granted]"),
            bound: "policies.NAME.grants",
            component: || importing("signalpost:policy/log@0.1.0"),
            ..CASE
        },
        Case {
            name: "wrong-types",
            does: "imports `log` as something else",
            outcome: Refused("does not fit the contract signalpost:policy@0.1.0"),
            bound: CONTRACT,
            component: || {
                let import = r#"(import "signalpost:policy/log@0.1.0" (instance (export "write" (func (param "message" string)))))"#;
                component(&format!("{import} {EXPORTS}"))
            },
            policy: "grants = [\"log\"]",
            ..CASE
        },
    ]
}

fn of_loading() -> Vec<Case> {
    vec![
        Case {
            name: "trap-at-start",
            does: "traps in its start function",
            outcome: Refused("creating an instance failed (trap)"),
            bound: CONTRACT,
            component: || hostile(Guest { fields: "(func $begin unreachable) (start $begin)", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "trap-in-describe",
            does: "traps when it is asked to describe itself",
            outcome: Refused("describe failed (trap)"),
            bound: CONTRACT,
            component: || hostile(Guest { describe: "unreachable", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "trap-in-configure",
            does: "traps when it is given its settings",
            outcome: Refused("configure failed (trap)"),
            bound: CONTRACT,
            component: || hostile(Guest { configure: "unreachable", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "patterns-of-nothing",
            does: "wants events by an invalid pattern",
            outcome: Refused("`a*` is not an event type, `prefix.*` or `*`"),
            bound: CONTRACT,
            component: || Guest { events: &["a*"], ..ROUTING }.component(),
            ..CASE
        },
        Case {
            name: "data-beyond-memory",
            does: "has data for memory that it doesn't have",
            outcome: Refused("creating an instance failed (trap)"),
            bound: CONTRACT,
            component: || hostile(Guest { fields: "(data (i32.const 0x7fffffff) \"x\")", ..ROUTING }),
            ..CASE
        },
        Case {
            name: "trap-in-a-later-configure",
            does: "configures its first instance well, and traps configuring the next",
            outcome: Fault("trap", "configuring a new instance"),
            bound: CONTRACT,
            component: || {
                let fields = r#"(import "signalpost:policy/state@0.1.0" "delete" (func $delete (param i32 i32) (result i32)))
                    (import "signalpost:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32)))"#;
                // What it deletes is there again, since it traps; the key is gone before the next pass.
                let configure = "(if (call $delete (i32.const 64) (i32.const 1)) (then unreachable))
                    (call $set (i32.const 64) (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 1) (i32.const 500) (i32.const 904))
                    (call $configured)";
                hostile(Guest { imports: &["state"], fields, configure, ..ROUTING })
            },
            policy: "grants = [\"state\"]\nisolation = \"fresh\"",
            ..CASE
        },
    ]
}

/// What is valid in small and too large.
fn of_types() -> Vec<Case> {
    vec![
        Case {
            name: "types-of-types",
            does: "has a type of 10 times another type, 12 times over",
            outcome: Refused("is not a valid component"),
            bound: "a million parts of a type",
            component: || {
                let types: String =
                    (1..13).map(|level| format!("(type $t{level} (tuple {}))", format!("$t{} ", level - 1).repeat(10))).collect();
                wat::parse_str(format!("(component (type $t0 (tuple u8 u8)) {types})")).unwrap()
            },
            ..CASE
        },
        Case {
            name: "variables-without-end",
            does: "has a function of 60,000 variables",
            outcome: Refused("is not a valid component"),
            bound: "50,000 variables",
            component: || wat::parse_str(format!("(component (core module (func (local {}))))", "i32 ".repeat(60_000))).unwrap(),
            ..CASE
        },
    ]
}
