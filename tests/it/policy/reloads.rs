//! Plugins that change in the ways of editors, copies and deployments, while the server runs.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use tokio::time::{Duration, timeout};

use crate::support::wat::Guest;
use crate::support::{SOON, TestServer, bundled};

const REFUSED: &str = r#"signalpost_policy_reloads_total{outcome="refused"}"#;
const SWAPPED: &str = r#"signalpost_policy_reloads_total{outcome="swapped"}"#;

/// Tells user 1 its version.
fn teller(version: &str) -> Vec<u8> {
    let message = format!("\"{version}\"");
    let strings = &[("user", "1"), ("message", message.as_str())];
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $message) (global.get $message_bytes))";
    Guest { strings, version, ..Guest::routing(body) }.component()
}

async fn watching(dir: &Path, more: &str) -> TestServer {
    TestServer::with(&format!("[plugins]\ndir = {dir:?}\nwatch_interval_ms = 20\n{more}")).await
}

/// Publishes until what user 1 reads is this.
async fn tells(server: &TestServer, expected: &str) {
    let mut user = server.connect("1").await;
    let told = async {
        loop {
            server.publish("x", json!(1)).await;
            if user.text().await == format!("\"{expected}\"") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, told).await.unwrap_or_else(|_| panic!("{expected} serves in time"));
}

async fn rejected(server: &TestServer) -> Value {
    let looking = async {
        loop {
            let rejected = server.get("/policies").await["rejected"].clone();
            if rejected != json!([]) {
                return rejected;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, looking).await.expect("it is refused in time")
}

#[tokio::test]
async fn a_symbolic_link_that_is_switched_takes_effect() {
    let releases = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for version in ["1.0.0", "2.0.0"] {
        std::fs::create_dir(releases.path().join(version)).unwrap();
        std::fs::write(releases.path().join(version).join("p.wasm"), teller(version)).unwrap();
    }
    symlink(releases.path().join("1.0.0/p.wasm"), dir.path().join("p.wasm")).unwrap();
    let server = watching(dir.path(), "").await;
    tells(&server, "1.0.0").await;
    symlink(releases.path().join("2.0.0/p.wasm"), dir.path().join("next")).unwrap();
    std::fs::rename(dir.path().join("next"), dir.path().join("p.wasm")).unwrap();
    tells(&server, "2.0.0").await;
}

/// As a mounted Kubernetes volume does it: each file is a link into a folder that is a link.
#[tokio::test]
async fn a_folder_behind_a_link_that_is_switched_takes_effect() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["1.0.0", "2.0.0"] {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        std::fs::write(dir.path().join(version).join("p.wasm"), teller(version)).unwrap();
    }
    symlink("1.0.0", dir.path().join("..data")).unwrap();
    symlink("..data/p.wasm", dir.path().join("p.wasm")).unwrap();
    let server = watching(dir.path(), "").await;
    tells(&server, "1.0.0").await;
    symlink("2.0.0", dir.path().join("..next")).unwrap();
    std::fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
    tells(&server, "2.0.0").await;
    assert_eq!((server.metric(REFUSED).await, server.metric(SWAPPED).await), (0.0, 1.0));
}

#[tokio::test]
async fn of_a_burst_of_writes_the_last_one_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.wasm");
    std::fs::write(&path, teller("0.0.0")).unwrap();
    let server = watching(dir.path(), "").await;
    for round in 1..=50 {
        std::fs::write(&path, teller(&format!("{round}.0.0"))).unwrap();
        tokio::time::sleep(Duration::from_millis(round % 5)).await;
    }
    tells(&server, "50.0.0").await;
    let policies = server.get("/policies").await;
    assert_eq!((&policies["policies"][0]["version"], &policies["rejected"]), (&json!("50.0.0"), &json!([])));
}

#[tokio::test]
async fn a_version_that_refuses_its_settings_is_refused_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.wasm"), teller("1.0.0")).unwrap();
    let server = watching(dir.path(), "").await;
    let configure = "(call $unfit (global.get $words) (global.get $words_bytes))";
    let fussy = Guest { strings: &[("words", "`radius_m` is missing")], configure, ..Guest::routing("(call $nobody)") };
    std::fs::write(dir.path().join("p.wasm"), fussy.component()).unwrap();
    assert_eq!(rejected(&server).await[0]["reason"], "refuses its settings (none are set): `radius_m` is missing");
    tells(&server, "1.0.0").await;
}

#[tokio::test]
async fn a_version_that_wants_more_than_it_is_granted_is_refused_until_the_configuration_grants_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.wasm"), teller("1.0.0")).unwrap();
    let server = watching(dir.path(), "").await;
    let greedy = Guest { imports: &["state"], fields: SET_AND_DELETE, ..Guest::routing("(call $nobody)") }.component();
    std::fs::write(dir.path().join("p.wasm"), &greedy).unwrap();
    let reason = rejected(&server).await[0]["reason"].clone();
    assert_eq!(reason, "imports state, which is not granted: add `grants = [\"state\"]` to [policies.p]");
    tells(&server, "1.0.0").await;
    server.stop().await;
    let server = watching(dir.path(), "[policies.p]\ngrants = [\"state\"]\n").await;
    assert_eq!(server.get("/policies").await["policies"][0]["grants"], json!(["state"]));
}

const SET_AND_DELETE: &str = r#"(import "signalpost:policy/state@0.1.0" "delete" (func $delete (param i32 i32) (result i32)))
    (import "signalpost:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32)))"#;

#[tokio::test]
async fn state_survives_a_reload() {
    // Tells user 1 its version if the key was there, and sets it.
    let remembering = |version: &str| {
        let message = format!("\"{version}\"");
        let body = "(local.set $local (call $delete (global.get $key) (global.get $key_bytes)))
            (call $set (global.get $key) (global.get $key_bytes) (global.get $key) (global.get $key_bytes) (i32.const 0) (i32.const 0) (i32.const 700))
            (if (i32.eqz (local.get $local)) (then (return (call $nobody))))
            (call $tell (global.get $user) (global.get $user_bytes) (global.get $message) (global.get $message_bytes))";
        let strings = &[("user", "1"), ("message", message.as_str()), ("key", "k")];
        Guest { imports: &["state"], fields: SET_AND_DELETE, strings, version, ..Guest::routing(body) }.component()
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.wasm"), remembering("1.0.0")).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}\nwatch = false\n[policies.p]\ngrants = [\"state\"]", dir.path())).await;
    assert_eq!(server.publish("x", json!(1)).await["recipients"], 0);
    std::fs::write(dir.path().join("p.wasm"), remembering("2.0.0")).unwrap();
    assert_eq!(server.reload().await, (200, json!({ "revision": 2, "changed": ["p"] })));
    assert_eq!(server.publish("x", json!(1)).await["recipients"], 1, "the new version finds what the old one left");
}

#[tokio::test]
async fn groups_survive_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let mut pooling = std::fs::read(bundled().join("pooling.wasm")).unwrap();
    std::fs::write(dir.path().join("pooling.wasm"), &pooling).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}\nwatch = false", dir.path())).await;
    server.publish("pooling.match.found", json!({ "request_id": 42, "rider_id": 1, "driver_id": 2, "pool_id": 7 })).await;
    // A custom section: the same policy, and yet another file.
    pooling.extend([0, 3, 1, b'x', b'y']);
    std::fs::write(dir.path().join("pooling.wasm"), &pooling).unwrap();
    assert_eq!(server.reload().await, (200, json!({ "revision": 2, "changed": ["pooling"] })));
    let receipt = server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": 2 })).await;
    assert_eq!(receipt["recipients"], 1, "{receipt}");
}

#[tokio::test]
async fn policies_go_on_while_their_folder_cannot_be_listed() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, away) = (parent.path().join("plugins"), parent.path().join("away"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy("plugins/pooling.wasm", dir.join("pooling.wasm")).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {dir:?}\nwatch_interval_ms = 10")).await;
    let routed = async || server.publish("pooling.trip.started", json!({ "pool_id": "p", "by": 1 })).await["policies"][0]["name"].clone();
    assert_eq!(routed().await, "pooling");
    std::fs::rename(&dir, &away).unwrap();
    let (status, problem) = server.reload().await;
    assert_eq!((status, &problem["code"]), (503, &json!("plugins_unreadable")));
    // Several looks later it still serves, and the folder that is back changes nothing.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(routed().await, "pooling");
    std::fs::rename(&away, &dir).unwrap();
    let (status, answer) = server.reload().await;
    assert_eq!((status, &answer["changed"]), (200, &json!([])));
    // A plugin that is gone from a folder that can be listed is gone.
    std::fs::remove_file(dir.join("pooling.wasm")).unwrap();
    // By this reload, or by the watch that came first.
    assert_eq!(server.reload().await.0, 200);
    assert_eq!(server.get("/policies").await["policies"], json!([]));
}

#[tokio::test]
async fn a_folder_that_is_emptied_right_after_the_start_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.wasm"), teller("1.0.0")).unwrap();
    let settings = format!("[plugins]\ndir = {:?}\nwatch_interval_ms = 20\n", dir.path());
    let loaded = signalpost::server::Server::new(crate::support::config(&settings)).await.unwrap();
    std::fs::remove_file(dir.path().join("p.wasm")).unwrap();
    let server = TestServer::run(loaded);
    server.metric_reaches(SWAPPED, 1.0).await;
    assert_eq!(server.get("/policies").await["policies"], json!([]));
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_plugin_holds_up_neither_a_reload_nor_a_roll_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.wasm");
    std::fs::write(&file, teller("1.0.0")).unwrap();
    let server = watching(dir.path(), "[limits]\nbreaker_pause_ms = 60000\n").await;
    tells(&server, "1.0.0").await;
    std::fs::write(&file, Guest { version: "2.0.0", ..Guest::routing("unreachable") }.component()).unwrap();
    server.metric_reaches(SWAPPED, 1.0).await;
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    assert_eq!(rejected(&server).await[0]["reason"], "is not a file");
    for number in 0..3 {
        server.publish("x", json!(number)).await;
    }
    server.metric_reaches(r#"signalpost_policy_reloads_total{outcome="rolled_back"}"#, 1.0).await;
    tells(&server, "1.0.0").await;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, teller("3.0.0")).unwrap();
    tells(&server, "3.0.0").await;
}

/// A compiler that takes as long as a file says, if there is such a file.
fn slow_compiler(dir: &Path) -> std::path::PathBuf {
    let (script, delay) = (dir.join("compiler"), dir.join("delay"));
    let text = format!("#!/bin/sh\n[ -e {delay:?} ] && sleep \"$(cat {delay:?})\"\nexec {:?} \"$@\"\n", env!("CARGO_BIN_EXE_signalpost"));
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    script
}

#[tokio::test]
async fn what_can_not_be_compiled_for_a_passing_reason_is_tried_again_by_itself() {
    let (dir, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("p.wasm"), teller("1.0.0")).unwrap();
    let (compiler, cache) = (tools.path().join("compiler"), tools.path().join("cache"));
    let server = watching(dir.path(), &format!("on_bad = \"skip\"\ncompiler = {compiler:?}\ncache_dir = {cache:?}\n")).await;
    let refused = rejected(&server).await[0].clone();
    assert!(refused["reason"].as_str().unwrap().starts_with("can't be compiled now: "), "{refused}");
    assert_eq!(refused["is_retried"], true);
    // The file has not changed; what kept it from being compiled has passed.
    slow_compiler(tools.path());
    server.metric_reaches(SWAPPED, 1.0).await;
    tells(&server, "1.0.0").await;
    assert_eq!(server.get("/policies").await["rejected"], json!([]));
}

#[tokio::test]
async fn a_roll_back_waits_for_no_compiler() {
    let (dir, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (compiler, cache) = (slow_compiler(tools.path()), tools.path().join("cache"));
    std::fs::write(dir.path().join("p.wasm"), teller("1.0.0")).unwrap();
    let more = format!("compiler = {compiler:?}\ncache_dir = {cache:?}\n[limits]\nbreaker_pause_ms = 60000\n");
    let server = watching(dir.path(), &more).await;
    tells(&server, "1.0.0").await;
    let broken = Guest { version: "2.0.0", ..Guest::routing("unreachable") }.component();
    std::fs::write(dir.path().join("p.wasm"), broken).unwrap();
    server.metric_reaches(SWAPPED, 1.0).await;
    std::fs::write(tools.path().join("delay"), "4").unwrap();
    std::fs::write(dir.path().join("other.wasm"), teller("3.0.0")).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for number in 0..3 {
        server.publish("x", json!(number)).await;
    }
    server.metric_reaches(r#"signalpost_policy_reloads_total{outcome="rolled_back"}"#, 1.0).await;
    let policies = server.get("/policies").await["policies"].clone();
    let names: Vec<&Value> = policies.as_array().unwrap().iter().map(|policy| &policy["name"]).collect();
    assert_eq!((names, &policies[0]["version"]), (vec![&json!("p")], &json!("1.0.0")), "the other one is still being compiled");
    server.metric_reaches(SWAPPED, 2.0).await;
    let policies = server.get("/policies").await["policies"].clone();
    let versions: Vec<(&Value, &Value)> = policies.as_array().unwrap().iter().map(|policy| (&policy["name"], &policy["version"])).collect();
    let expected = [(&json!("other"), &json!("3.0.0")), (&json!("p"), &json!("1.0.0"))];
    assert_eq!(versions, expected, "what was rolled back stays so");
}
