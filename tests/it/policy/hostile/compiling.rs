//! What is small and valid, or nearly so, and meant to exhaust whoever compiles it.

use std::time::Duration;

use rustix::process::Signal;

use super::memory::leb128;
use super::{CASE, Case, Refused, Theme, hostile};
use crate::support::process::signalpost;
use crate::support::wat::Guest;

const DEADLINE: &str = "takes longer to compile than 500 ms (plugins.compile_deadline_ms)";

/// Run once: the memory that matters is the compiler's, which has ended.
pub(super) fn theme() -> Theme {
    let cases = vec![
        Case {
            name: "if-bomb",
            does: "20,000 branches over 2,000 live variables in one function",
            outcome: Refused(DEADLINE),
            bound: "plugins.compile_deadline_ms",
            component: || if_bomb(20_000, 2000),
            ..CASE
        },
        Case {
            name: "functions-without-end",
            does: "100,000 functions with something in them",
            outcome: Refused(DEADLINE),
            bound: "plugins.compile_deadline_ms",
            component: || {
                let fields = "(func (result i32) (i32.load (i32.load (i32.const 8))))".repeat(100_000);
                hostile(Guest { fields: &fields, ..Guest::routing("(call $nobody)") })
            },
            ..CASE
        },
        Case {
            name: "jump-tables",
            does: "2,000 nested blocks, and 500 jump tables to all of them",
            outcome: Refused(DEADLINE),
            bound: "plugins.compile_deadline_ms",
            component: jump_tables,
            ..CASE
        },
        Case {
            name: "components-in-components",
            does: "has a component in a component, 100,000 deep",
            outcome: Refused(DEADLINE),
            bound: "plugins.compile_deadline_ms",
            component: nested_components,
            ..CASE
        },
    ];
    Theme { cases, plugins: "compile_deadline_ms = 500", passes_max: 1, ..Theme::default() }
}

pub(super) fn memory_theme() -> Theme {
    let cases = vec![Case {
        name: "if-bomb-of-memory",
        does: "the same, with time enough and little memory",
        outcome: Refused("takes more to compile than 90000000 bytes of memory (plugins.compile_memory_bytes_max)"),
        bound: "plugins.compile_memory_bytes_max",
        component: || if_bomb(20_000, 2000),
        ..CASE
    }];
    Theme { cases, plugins: "compile_memory_bytes_max = 90_000_000", passes_max: 1, ..Theme::default() }
}

/// One function of many branches over many live locals: valid, small, and a day's work for a register allocator.
fn if_bomb(branches: usize, locals: usize) -> Vec<u8> {
    let variables = "i32 ".repeat(locals);
    let branches: String = (0..branches)
        .map(|branch| {
            let (test, set, get) = (branch % locals, branch * 7 % locals, branch * 13 % locals);
            format!("(if (local.get {test}) (then (local.set {set} (i32.add (local.get {get}) (i32.const 1)))))")
        })
        .collect();
    let sum: String = (0..locals).map(|local| format!("(local.get {local}) i32.add ")).collect();
    let fields = format!("(func $bomb (result i32) (local {variables}) {branches} (i32.const 0) {sum})");
    let component = hostile(Guest { fields: &fields, ..Guest::routing("(drop (call $bomb)) (call $nobody)") });
    assert!(component.len() < 1 << 20, "{} bytes", component.len());
    component
}

fn jump_tables() -> Vec<u8> {
    const BLOCKS: usize = 2000;
    let targets: String = (0..BLOCKS).map(|depth| format!("{depth} ")).collect();
    let jumps = format!("(if (i32.eqz (local.get 0)) (then (br_table {targets} 0 (local.get 0))))").repeat(500);
    let fields = format!("(func $jump (param i32) {} {jumps} {})", "block ".repeat(BLOCKS), "end ".repeat(BLOCKS));
    hostile(Guest { fields: &fields, ..Guest::routing("(call $jump (i32.const 1)) (call $nobody)") })
}

/// Each component is the only section of the one around it.
fn nested_components() -> Vec<u8> {
    const COMPONENT_SECTION: u8 = 4;
    let empty = wat::parse_str("(component)").unwrap();
    let (mut heads, mut size) = (vec![empty.clone()], empty.len());
    for _ in 0..100_000 {
        let head = [&empty, &[COMPONENT_SECTION][..], &leb128(size)].concat();
        size += head.len();
        heads.push(head);
    }
    heads.iter().rev().flatten().copied().collect()
}

/// For a process to start or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the process id of a server's compiling child, if it has one.
fn compiling_child(server: u32) -> Option<u32> {
    let numbers = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{server}")) && is_compiling(*pid)
    };
    numbers.into_iter().find(is_child)
}

/// Returns whether a process compiles. A process that has ended has no command line, even before its parent waits for it.
fn is_compiling(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("compile-component"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_or_killed_leaves_no_compiler_behind() {
    let plugins = tempfile::tempdir().unwrap();
    std::fs::write(plugins.path().join("bomb.wasm"), if_bomb(20_000, 2000)).unwrap();
    for signal in [Signal::TERM, Signal::KILL] {
        let mut server = signalpost().args(["serve", "--listen", "127.0.0.1:0", "--plugins"]).arg(plugins.path()).spawn().unwrap();
        let mut child = None;
        until("a child compiles", || {
            child = compiling_child(server.id());
            child.is_some()
        })
        .await;
        rustix::process::kill_process(rustix::process::Pid::from_child(&server), signal).unwrap();
        until("the server ends", || server.try_wait().unwrap().is_some()).await;
        until("the child ends", || !is_compiling(child.unwrap())).await;
    }
}
