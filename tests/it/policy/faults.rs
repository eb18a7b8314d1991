//! Policies that fail: what their authors are told, and what happens to the next call. The hostile ones are in `hostile.rs`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::TestServer;
use crate::support::wat::Guest;

/// Tells user 1 the event's data.
const FORWARD: &str = "(call $forward (global.get $user) (global.get $user_bytes))";

fn folder(component: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.wasm"), component).unwrap();
    dir
}

fn settings(dir: &Path, more: &str) -> String {
    format!("[plugins]\ndir = {dir:?}\nwatch = false\n{more}")
}

async fn fault_of(guest: Guest<'_>, more: &str) -> Value {
    let dir = folder(&guest.component());
    let server = TestServer::with(&settings(dir.path(), more)).await;
    let receipt = server.publish("x", json!(1)).await;
    assert_eq!(receipt["policies"][0]["outcome"], "faulted", "{receipt}");
    receipt["policies"][0]["fault"].clone()
}

#[tokio::test]
async fn a_panic_is_reported_with_its_message_and_the_guests_functions() {
    let fields = r#"(import "signalpost:policy/diagnostics@0.1.0" "panicked" (func $panicked (param i32 i32)))
        (func $give_up (call $panicked (global.get $last) (global.get $last_bytes)) unreachable)"#;
    let strings = &[("last", "no such pool")];
    let fault = fault_of(Guest { imports: &["diagnostics"], fields, strings, ..Guest::routing("(call $give_up) (i32.const 0)") }, "").await;
    assert_eq!(fault["kind"], "panic", "{fault}");
    assert!(fault["detail"].as_str().unwrap().starts_with("no such pool"), "{fault}");
    assert_eq!(fault["backtrace"][0], "give_up");
    assert_eq!((&fault["policy"], &fault["function"], &fault["version"]), (&json!("a"), &json!("route"), &json!("1.0.0")));
    assert_eq!(fault["digest"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn a_fresh_instance_meets_nothing_of_an_earlier_call() {
    let fields = "(global $called (mut i32) (i32.const 0))";
    let body = format!("(if (global.get $called) (then unreachable)) (global.set $called (i32.const 1)) {FORWARD}");
    let dir = folder(&Guest { fields, strings: &[("user", "1")], ..Guest::routing(&body) }.component());
    for (isolation, second) in [("fresh", "routed"), ("reuse", "faulted")] {
        let server = TestServer::with(&settings(dir.path(), &format!("[policies.a]\nisolation = \"{isolation}\""))).await;
        assert_eq!(server.publish("x", json!(1)).await["policies"][0]["outcome"], "routed");
        assert_eq!(server.publish("x", json!(2)).await["policies"][0]["outcome"], second, "{isolation}");
    }
}

#[tokio::test]
async fn a_policy_that_faults_in_a_row_is_left_out_and_tried_again() {
    // Traps on events whose type is four letters long.
    let body = format!("(if (i32.eq (i32.load offset=20 (local.get $event)) (i32.const 4)) (then unreachable)) {FORWARD}");
    let dir = folder(&Guest { strings: &[("user", "1")], ..Guest::routing(&body) }.component());
    let server = TestServer::with(&settings(dir.path(), "[limits]\nbreaker_pause_ms = 1000")).await;
    let mut client = server.connect("1").await;
    let publish = async |kind: &str| server.publish(kind, json!(7)).await["policies"][0]["outcome"].clone();
    for _ in 0..3 {
        assert_eq!(publish("boom").await, "faulted");
    }
    assert_eq!(publish("good.one").await, "circuit_open");
    assert_eq!(server.get("/policies").await["policies"][0]["circuit_open"], true);
    assert_eq!(server.get("/policies").await["policies"][0]["counters"]["faults"], 3);
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(publish("good.one").await, "routed", "the trial");
    assert_eq!(publish("good.one").await, "routed");
    assert_eq!(server.get("/policies").await["policies"][0]["circuit_open"], false);
    assert_eq!((client.text().await, client.text().await), ("7".into(), "7".into()));
}

#[tokio::test]
async fn a_stream_of_bad_events_keeps_no_good_one_from_a_policy() {
    // On events whose type is four letters long it stops, or names a user whom there can't be.
    let bad = |what: &str| format!("(if (i32.eq (i32.load offset=20 (local.get $event)) (i32.const 4)) (then (return {what}))) {FORWARD}");
    let misaddress = "(call $forward (global.get $bad) (global.get $bad_bytes))";
    for (what, good_first) in [("(unreachable)", 1), (misaddress, 1), (misaddress, 0)] {
        let strings = &[("user", "1"), ("bad", "1001 ")];
        let dir = folder(&Guest { strings, ..Guest::routing(&bad(what)) }.component());
        let server = TestServer::with(&settings(dir.path(), "")).await;
        let publish = async |kind: &str| server.publish(kind, json!(7)).await["policies"][0]["outcome"].clone();
        for _ in 0..good_first {
            assert_eq!(publish("good.one").await, "routed");
        }
        for _ in 0..5 {
            assert_eq!(publish("boom").await, "faulted", "{what}");
        }
        let mut random = fastrand::Rng::with_seed(14);
        for round in 0..100 {
            let (kind, outcome) = if random.bool() { ("boom", "faulted") } else { ("good.one", "routed") };
            assert_eq!(publish(kind).await, outcome, "{what}, event {round}");
        }
        assert_eq!(server.get("/policies").await["policies"][0]["circuit_open"], false);
    }
}

#[tokio::test]
async fn a_policy_that_fails_on_everything_is_not_called_after_three_calls() {
    let spins = "(loop $spin (br $spin)) unreachable";
    for (what, version) in [("unreachable", "1.0.0"), (spins, "1.0.0"), ("unreachable", "2.0.0"), (spins, "2.0.0")] {
        let broken = Guest { version, ..Guest::routing(what) }.component();
        let sound = Guest { strings: &[("user", "1")], ..Guest::routing(FORWARD) }.component();
        // A second version has to bear what the first one answered well; it is long past its trial here.
        let dir = folder(if version == "1.0.0" { &broken } else { &sound });
        let server = TestServer::with(&settings(dir.path(), "[limits]\nbreaker_pause_ms = 60000")).await;
        if version == "2.0.0" {
            assert_eq!(server.publish("x", json!(0)).await["policies"][0]["outcome"], "routed");
            std::fs::write(dir.path().join("a.wasm"), &broken).unwrap();
            server.http.post(server.url("/policies/reload")).send().await.unwrap();
        }
        let mut random = fastrand::Rng::with_seed(14);
        for round in 0..3 {
            let kind = if random.bool() { "one.kind" } else { "another.kind" };
            assert_eq!(server.publish(kind, json!(1)).await["policies"][0]["outcome"], "faulted", "{what}, event {round}");
        }
        let next = server.publish("x", json!(1)).await["policies"][0].clone();
        let is_over = next["outcome"] == "circuit_open" || (next["outcome"] == "routed" && next["version"] == "1.0.0");
        assert!(is_over, "{what} {version}: {next}");
    }
}

#[tokio::test]
async fn a_compiled_plugin_is_kept_in_a_private_folder_and_a_damaged_one_is_made_anew() {
    use std::os::unix::fs::PermissionsExt;

    let dir = folder(&Guest { strings: &[("user", "1")], ..Guest::routing(FORWARD) }.component());
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().join("signalpost");
    let more = format!("cache_dir = {cache:?}");
    let kept = || std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let start = async || {
        let server = TestServer::with(&settings(dir.path(), &more)).await;
        assert_eq!(server.publish("x", json!(1)).await["policies"][0]["outcome"], "routed");
    };
    start().await;
    assert_eq!(std::fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);
    let [artefact] = kept().try_into().unwrap();
    let whole = std::fs::read(&artefact).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&artefact, damaged).unwrap();
    start().await;
    assert_eq!(std::fs::read(&artefact).unwrap(), whole);
    std::fs::set_permissions(&cache, PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::remove_file(&artefact).unwrap();
    start().await;
    assert!(kept().is_empty(), "a folder that others may write to is not used");
}
