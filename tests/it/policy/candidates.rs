//! Candidates: another version of a policy in its shadow, as a canary, promoted and dropped.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::live::signalpost_key;
use crate::support::process::signalpost;
use crate::support::wat::Guest;
use crate::support::{Client, TestServer, bundled, plugins};

/// A server whose policy `p` has a candidate with these settings.
async fn with_candidate(live: &[u8], candidate: &[u8], settings: &str) -> (TestServer, TempDir) {
    let dir = plugins(&[]);
    std::fs::write(dir.path().join("p.wasm"), live).unwrap();
    std::fs::write(dir.path().join("p-next.wasm"), candidate).unwrap();
    let toml = format!("[plugins]\nwatch = false\ndir = {:?}\n{settings}", dir.path());
    (TestServer::with(&toml).await, dir)
}

fn settings(rest: &str) -> String {
    format!("[policies.p]\ngrants = [\"state\"]\n[policies.p.candidate]\nfile = \"p-next.wasm\"\n{rest}")
}

/// A guest that tells `u` its version.
fn says(version: &str) -> Vec<u8> {
    let text = format!("\"{version}\"");
    let body = "(call $tell (global.get $u) (global.get $u_bytes) (global.get $said) (global.get $said_bytes))";
    Guest { version, strings: &[("u", "u"), ("said", &text)], ..Guest::routing(body) }.component()
}

fn breaks(body: &str) -> Vec<u8> {
    Guest { version: "6.6.6", ..Guest::routing(body) }.component()
}

async fn candidate(server: &TestServer, policy: &str) -> Value {
    server.get(&format!("/policies/{policy}/candidate")).await
}

async fn promote(server: &TestServer, policy: &str) -> (u16, Value) {
    let response = server.http.post(server.url(&format!("/policies/{policy}/candidate/promote"))).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn publish(server: &TestServer, subject: Option<&str>, data: Value) {
    server.post("/events", json!({ "type": "t", "subject": subject, "data": data })).await;
}

async fn calls_reach(server: &TestServer, policy: &str, outcome: &str, count: f64) {
    server.metric_reaches(&format!("signalpost_candidate_calls_total{{outcome=\"{outcome}\",policy=\"{policy}\"}}"), count).await;
}

/// `pooling` in which one text is another one of the same length.
fn changed_pooling(dir: &Path, from: &str, to: &str) {
    let mut bytes = std::fs::read(bundled().join("pooling.wasm")).unwrap();
    let found: Vec<usize> = bytes.windows(from.len()).enumerate().filter(|(_, part)| *part == from.as_bytes()).map(|(at, _)| at).collect();
    found.iter().for_each(|at| bytes[*at..*at + from.len()].copy_from_slice(to.as_bytes()));
    std::fs::write(dir.join("pooling-next.wasm"), bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_compared_on_what_the_live_calls_read_and_nobody_else_notices() {
    let dir = plugins(&["pooling"]);
    changed_pooling(dir.path(), "trip_started", "trip_startex");
    let toml = format!(
        "[plugins]\nwatch = false\ndir = {:?}\n[policies.pooling.candidate]\nfile = \"pooling-next.wasm\"\nshare = 1\ncalls_min = 10\n",
        dir.path()
    );
    let server = TestServer::with(&toml).await;
    let loaded = server.get("/policies").await;
    assert_eq!((loaded["policies"].as_array().unwrap().len(), &loaded["rejected"]), (1, &json!([])), "it is not a policy of its own");
    assert_eq!(loaded["policies"][0]["candidate"], "on_trial");
    let mut rider = server.connect("1001").await;
    for pool in 0..25 {
        let found = json!({ "request_id": pool, "rider_id": 1001, "driver_id": 2002, "pool_id": pool });
        server.publish("pooling.match.found", found).await;
        server.publish("pooling.trip.started", json!({ "request_id": pool, "pool_id": pool, "by": 2002 })).await;
    }
    calls_reach(&server, "pooling", "same", 25.0).await;
    calls_reach(&server, "pooling", "differs", 25.0).await;
    for _ in 0..25 {
        assert_eq!(rider.json().await["type"], "pooling_match");
        assert_eq!(rider.json().await["type"], "trip_started", "the live policy decides");
    }
    let seen = candidate(&server, "pooling").await;
    assert_eq!((&seen["state"], &seen["mode"], &seen["share"]), (&json!("on_trial"), &json!("shadow"), &json!(1.0)));
    let expected = json!({ "compared": 50, "same": 25, "differ": 25, "inconclusive": 0, "faults": 0, "skipped": 0 });
    assert_eq!(seen["calls"], expected);
    let message = &seen["differences"]["message"];
    assert_eq!((&message["calls"], message["examples"].as_array().unwrap().len()), (&json!(25), 20));
    let line = "decides.deliveries[0].message.type: \"trip_started\" ≠ \"trip_startex\"";
    assert_eq!(message["examples"][19]["lines"], json!([line]));
    assert!(seen["times"]["candidate"]["p99_us"].as_f64().unwrap() > 0.0 && seen["times"]["live"]["calls"] == 50, "{seen}");
    assert_eq!(server.metric("signalpost_candidate_differences_total{kind=\"message\",policy=\"pooling\"}").await, 25.0);
    // The policy's own figures are those of its own calls.
    assert_eq!(server.get("/policies").await["policies"][0]["counters"]["calls"], 50);
    assert_eq!(server.get("/groups/pool:3").await["members"].as_array().unwrap().len(), 2);

    let url = format!("http://{}/api/pool", server.address);
    let shown = tokio::task::spawn_blocking(move || signalpost().args(["candidate", "pooling", "--url", &url]).output().unwrap());
    let shown = String::from_utf8(shown.await.unwrap().stdout).unwrap();
    let summary = "50 compared, 0 skipped, 0 inconclusive: 25 same, 25 differ (25 message), 0 faults\n";
    assert!(shown.contains(summary) && shown.contains(&format!("  {line}\n")), "{shown}");
    let (status, problem) = promote(&server, "pooling").await;
    assert_eq!((status, &problem["code"]), (409, &json!("candidate_unfit")));
    let why = problem["detail"].as_str().unwrap();
    assert!(why.contains("differs in 25 of 50 calls, and policies.pooling.candidate.differences_max allows 0 of them"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_was_tried_takes_the_place_of_the_policy_and_one_that_was_not_does_not() {
    let (server, dir) = with_candidate(&says("1.0.0"), &says("2.0.0"), &settings("share = 1\ncalls_min = 3\ndifferences_max = 1\n")).await;
    let mut user = server.connect("u").await;
    publish(&server, None, json!(1)).await;
    calls_reach(&server, "p", "differs", 1.0).await;
    let (status, problem) = promote(&server, "p").await;
    let why = problem["detail"].as_str().unwrap();
    assert!(status == 409 && why.contains("has made 1 calls that count, and policies.p.candidate.calls_min asks for 3"), "{why}");
    publish(&server, None, json!(2)).await;
    publish(&server, None, json!(3)).await;
    calls_reach(&server, "p", "differs", 3.0).await;
    let (status, promoted) = promote(&server, "p").await;
    assert_eq!((status, &promoted["version"]), (200, &json!("2.0.0")), "{promoted}");
    assert_eq!(std::fs::read(dir.path().join("p.wasm")).unwrap(), says("2.0.0"), "it outlasts a restart");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left there");
    publish(&server, None, json!(4)).await;
    let said = [user.text().await, user.text().await, user.text().await, user.text().await];
    assert_eq!(said, ["\"1.0.0\"", "\"1.0.0\"", "\"1.0.0\"", "\"2.0.0\""]);
    assert_eq!(candidate(&server, "p").await["state"], "serves");
    assert_eq!(promote(&server, "p").await.0, 409);
}

/// Publishes an event, and returns the version that decided.
async fn decided_by(server: &TestServer, user: &mut Client, subject: Option<&str>, data: Value) -> String {
    publish(server, subject, data).await;
    user.json().await.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_decides_the_same_share_each_time_by_subject_or_by_the_configured_key() {
    let with = settings("mode = \"canary\"\nshare = 0.5\nkey = \"data.pool_id\"\n");
    let (server, _dir) = with_candidate(&says("1.0.0"), &says("2.0.0"), &with).await;
    let mut user = server.connect("u").await;
    let mut taken = Vec::new();
    for key in 0..40 {
        let text = key.to_string();
        let by_subject = decided_by(&server, &mut user, Some(&text), json!({ "pool_id": "other" })).await;
        let again = decided_by(&server, &mut user, Some(&text), json!({})).await;
        let by_key = decided_by(&server, &mut user, None, json!({ "pool_id": key })).await;
        assert_eq!((&again, &by_key), (&by_subject, &by_subject), "{key}");
        taken.push(by_subject == "2.0.0");
    }
    let share = taken.iter().filter(|is_taken| **is_taken).count();
    assert!((8..33).contains(&share), "{share} of 40");
    for data in [json!({}), json!({ "pool_id": null }), json!([1])] {
        let version = decided_by(&server, &mut user, None, data).await;
        assert!(version == "1.0.0" || version == "2.0.0");
    }
    assert_eq!(decided_by(&server, &mut user, None, json!({})).await, "1.0.0", "what has no key is the old version's");
    let events = |version: &str| format!("signalpost_canary_events_total{{policy=\"p\",version=\"{version}\"}}");
    assert!(server.metric(&events("candidate")).await >= (share * 3) as f64 && server.metric(&events("live")).await > 0.0);
    let seen = candidate(&server, "p").await;
    assert!(seen["calls"]["decided"].as_u64().unwrap() >= 3 * share as u64 && seen["calls"]["faults"] == 0, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_faults_gives_the_events_back_by_the_rules_of_the_circuit() {
    let with = settings("mode = \"canary\"\nshare = 1\n");
    let (server, _dir) = with_candidate(&says("1.0.0"), &breaks("unreachable"), &with).await;
    let metrics = server.http.get(format!("http://{}/metrics", server.address)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("signalpost_canary_returns_total{policy=\"p\"} 0\n"), "an increase needs a beginning");
    let mut user = server.connect("u").await;
    for _ in 0..3 {
        publish(&server, Some("s"), json!(1)).await;
    }
    assert_eq!(decided_by(&server, &mut user, Some("s"), json!(2)).await, "1.0.0", "from the next event on");
    server.metric_reaches("signalpost_canary_returns_total{policy=\"p\"}", 1.0).await;
    let seen = candidate(&server, "p").await;
    assert_eq!((&seen["state"], &seen["calls"]["faults"]), (&json!("returned"), &json!(3)));
    let reason = seen["reason"].as_str().unwrap();
    assert!(
        reason.contains("faulted 3 times in a row, most recently in route (trap: ") && reason.contains("the live policy decides again"),
        "{reason}"
    );
    let live = &server.get("/policies").await["policies"][0];
    assert_eq!((&live["version"], &live["circuit_open"], &live["candidate"]), (&json!("1.0.0"), &json!(false), &json!("returned")));
    assert_eq!(
        (&live["last_fault"], &seen["last_fault"]["kind"], &seen["last_fault"]["version"]),
        (&Value::Null, &json!("trap"), &json!("6.6.6"))
    );
    assert_eq!(promote(&server, "p").await.0, 409);
    assert_eq!(decided_by(&server, &mut user, Some("s"), json!(3)).await, "1.0.0", "and it is not tried again by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_whose_file_is_refused_affects_nobody_and_says_why() {
    let (server, dir) = with_candidate(&says("1.0.0"), b"not a component", &settings("share = 1\n")).await;
    let mut user = server.connect("u").await;
    assert_eq!(decided_by(&server, &mut user, None, json!(1)).await, "1.0.0");
    let seen = candidate(&server, "p").await;
    assert_eq!(seen["state"], "refused");
    assert!(seen["reason"].as_str().unwrap().contains("is not WebAssembly"), "{seen}");
    assert_eq!(server.http.get(format!("http://{}/readyz", server.address)).send().await.unwrap().status(), 200);
    // A better file is tried from the next reload on.
    std::fs::write(dir.path().join("p-next.wasm"), says("2.0.0")).unwrap();
    assert_eq!(server.reload().await.0, 200);
    assert_eq!(candidate(&server, "p").await["state"], "on_trial");
    publish(&server, None, json!(2)).await;
    calls_reach(&server, "p", "differs", 1.0).await;
    let unknown = server.http.get(server.url("/policies/none/candidate")).send().await.unwrap();
    assert_eq!(unknown.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_dropped_makes_no_more_calls() {
    let (server, dir) = with_candidate(&says("1.0.0"), &says("2.0.0"), &settings("share = 1\n")).await;
    publish(&server, None, json!(1)).await;
    calls_reach(&server, "p", "differs", 1.0).await;
    let dropped = server.http.delete(server.url("/policies/p/candidate")).send().await.unwrap();
    assert_eq!(dropped.json::<Value>().await.unwrap(), json!({ "dropped": true }));
    publish(&server, None, json!(2)).await;
    assert_eq!(server.reload().await.0, 200);
    publish(&server, None, json!(3)).await;
    let seen = candidate(&server, "p").await;
    assert_eq!((&seen["state"], &seen["calls"]["compared"]), (&json!("dropped"), &json!(1)), "not even after a reload");
    std::fs::write(dir.path().join("p-next.wasm"), says("3.0.0")).unwrap();
    server.reload().await;
    assert_eq!(candidate(&server, "p").await["state"], "on_trial", "another file is another candidate");
}

const STATE: &str = r#"(import "signalpost:policy/state@0.1.0" "delete" (func $delete (param i32 i32) (result i32)))
    (import "signalpost:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32)))"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shadow_writes_is_gone_and_what_it_reads_beyond_the_live_call_is_inconclusive() {
    let guest = |body: &str| {
        let strings = &[("key", "k"), ("other", "o")];
        Guest { imports: &["state"], fields: STATE, strings, ..Guest::routing(body) }.component()
    };
    // The live policy breaks if it finds what the candidate has written.
    let live = guest("(if (call $delete (global.get $key) (global.get $key_bytes)) (then unreachable)) (call $nobody)");
    let set = "(call $set (global.get $key) (global.get $key_bytes) (global.get $key) (global.get $key_bytes) (i32.const 0) (i32.const 0) (i32.const 128))
        (call $nobody)";
    let (server, dir) = with_candidate(&live, &guest(set), &settings("share = 1\n")).await;
    for number in 0..5 {
        publish(&server, None, json!(number)).await;
    }
    calls_reach(&server, "p", "same", 5.0).await;
    assert_eq!(server.metric("signalpost_policy_faults_total{kind=\"trap\",policy=\"p\"}").await, 0.0);
    let reads = guest("(drop (call $delete (global.get $other) (global.get $other_bytes))) (call $nobody)");
    std::fs::write(dir.path().join("p-next.wasm"), reads).unwrap();
    server.reload().await;
    publish(&server, None, json!(6)).await;
    calls_reach(&server, "p", "inconclusive", 1.0).await;
    assert_eq!(candidate(&server, "p").await["calls"]["compared"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_a_slow_shadow_does_not_make_are_counted_and_its_faults_are_its_own() {
    let with = settings("share = 1\n[candidates]\nentries_max = 2\n");
    let (server, _dir) = with_candidate(&says("1.0.0"), &breaks("(loop $ever (br $ever)) unreachable"), &with).await;
    let mut user = server.connect("u").await;
    for number in 0..60 {
        publish(&server, None, json!(number)).await;
        assert_eq!(user.text().await, "\"1.0.0\"");
    }
    let waiting = async {
        loop {
            let calls = &candidate(&server, "p").await["calls"];
            let [compared, skipped, faults] = ["compared", "skipped", "faults"].map(|name| calls[name].as_u64().unwrap());
            if compared + skipped == 60 {
                return (compared, skipped, faults);
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let (compared, skipped, faults) = tokio::time::timeout(crate::support::SOON, waiting).await.unwrap();
    assert!(skipped > 0 && faults == compared && compared > 0, "{compared} {skipped} {faults}");
    assert_eq!(server.metric("signalpost_candidate_skipped_total{policy=\"p\"}").await, skipped as f64);
    let live = &server.get("/policies").await["policies"][0];
    assert_eq!((&live["counters"]["faults"], &live["last_fault"]), (&json!(0), &Value::Null));
    assert_eq!(server.get("/dead-letters").await["letters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_reads_sees_how_a_candidate_compares_and_no_example() {
    let (key, sha256) = signalpost_key("reader");
    let keys = format!("[[auth.keys]]\nname = \"k\"\nsha256 = \"{sha256}\"\nscopes = [\"read\", \"publish\"]\n");
    let (server, _dir) = with_candidate(&says("1.0.0"), &says("2.0.0"), &(settings("share = 1\n") + &keys)).await;
    let event = json!({ "type": "t", "data": 1 });
    server.http.post(server.url("/events")).bearer_auth(&key).json(&event).send().await.unwrap();
    let seen = async || {
        let asked = server.http.get(server.url("/policies/p/candidate")).bearer_auth(&key).send().await.unwrap();
        asked.json::<Value>().await.unwrap()
    };
    let waiting = async {
        while seen().await["calls"]["differ"] != 1 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::support::SOON, waiting).await.unwrap();
    assert_eq!(seen().await["differences"], json!({ "message": { "calls": 1 } }));
    for asked in [server.http.delete(server.url("/policies/p/candidate")), server.http.post(server.url("/policies/p/candidate/promote"))] {
        assert_eq!(asked.bearer_auth(&key).send().await.unwrap().status(), 401);
    }
}

#[test]
fn check_lists_candidates_and_fails_if_one_is_refused() {
    let dir = plugins(&[]);
    let file = dir.path().join("s.toml");
    std::fs::write(dir.path().join("p.wasm"), says("1.0.0")).unwrap();
    let check = |candidate: &[u8], on_bad: &str| {
        std::fs::write(dir.path().join("p-next.wasm"), candidate).unwrap();
        let toml = format!("[plugins]\ndir = {:?}\non_bad = {on_bad:?}\n{}", dir.path(), settings("mode = \"canary\"\n"));
        std::fs::write(&file, toml).unwrap();
        let output = signalpost().args(["check", "--config"]).arg(&file).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let next = dir.path().join("p-next.wasm").display().to_string();
    let (code, said) = check(&says("2.0.0"), "keep");
    assert!(code == Some(0) && said.contains(&format!("candidate of p: 2.0.0 (canary) from {next}\n")), "{said}");
    let refused = format!("the candidate of p ({next}) is not WebAssembly");
    let (code, said) = check(b"not a component", "keep");
    assert!(code == Some(1) && said.contains(&format!("a plugin can't be loaded: {refused}")), "{said}");
    let (code, said) = check(b"not a component", "skip");
    assert!(code == Some(0) && said.contains("policy p 1.0.0 (routing)") && said.contains(&format!("skipped: {refused}")), "{said}");
}

#[test]
fn the_settings_of_candidates_are_checked() {
    let check = |toml: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.toml");
        std::fs::write(&file, toml).unwrap();
        let output = signalpost().args(["check", "--config", file.to_str().unwrap()]).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let said = check("[policies.a.candidate]\nshare = 2\n");
    assert!(said.contains("policies.a.candidate.share") && said.contains("expected a number from 0 to 1"), "{said}");
    assert!(check("[policies.a.candidate]\nshare = 0.5\n").contains("\"policies.a.candidate.file\" is empty"));
    let two = "[policies.a.candidate]\nfile = \"x\"\nmode = \"canary\"\n[policies.b.candidate]\nfile = \"y\"\nmode = \"canary\"\n";
    assert!(check(two).contains("are both \"canary\""), "{}", check(two));
    let said = check("[policies.a.candidate]\nfile = \"x\"\nmode = \"ghost\"\n");
    assert!(said.contains("expected \"shadow\" or \"canary\""), "{said}");
}
