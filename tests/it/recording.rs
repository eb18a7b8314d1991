//! Recordings: the calls of a policy on a running server, made again by the same component and by others.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::http::live::signalpost_key;
use crate::support::process::signalpost;
use crate::support::wat::Guest;
use crate::support::{SOON, TestServer, bundled, plugins};

/// A recording that is being made, and its file.
struct Recording {
    file: PathBuf,
    command: JoinHandle<Output>,
}

impl Recording {
    /// Begins to record a policy's calls, and returns when the server does so.
    async fn of(server: &TestServer, dir: &Path, policy: &str, rest: &str) -> Recording {
        let before = server.metric("signalpost_recorders").await;
        let url = format!("http://{}/api/pool", server.operators);
        let file = dir.join(format!("{policy}.jsonl"));
        let arguments: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
        let (policy, out) = (policy.to_owned(), File::create(&file).unwrap());
        let command = tokio::task::spawn_blocking(move || {
            signalpost().args(["record", "--url", &url, "--policy", &policy]).args(arguments).stdout(out).output().unwrap()
        });
        server.metric_reaches("signalpost_recorders", before + 1.0).await;
        Recording { file, command }
    }

    /// Waits until it has ended by itself.
    async fn end(self) -> Vec<Value> {
        let output = timeout(SOON, self.command).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        lines(&self.file)
    }
}

fn lines(file: &Path) -> Vec<Value> {
    std::fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Replays a file: the exit code, and what was printed.
fn replay(file: &Path, arguments: &[&str]) -> (i32, String) {
    let output = signalpost().arg("replay").arg(file).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout) + &text(output.stderr))
}

fn component(name: &str) -> String {
    bundled().join(format!("{name}.wasm")).to_str().unwrap().to_owned()
}

/// A bundled plugin in which one text is another one of the same length.
fn changed(dir: &Path, name: &str, from: &str, to: &str) -> String {
    let mut bytes = std::fs::read(component(name)).unwrap();
    let found: Vec<usize> = bytes.windows(from.len()).enumerate().filter(|(_, part)| *part == from.as_bytes()).map(|(at, _)| at).collect();
    assert!(!found.is_empty() && from.len() == to.len(), "{from} is in {name}.wasm");
    for at in found {
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
    let file = dir.join(format!("{name}-changed.wasm"));
    std::fs::write(&file, bytes).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Publishes what riders of one pool live through: eight calls of `pooling`.
async fn ride(server: &TestServer, pool: u32) {
    let (rider, driver) = (1000 + pool, 2000 + pool);
    let of_pool = |more: Value| {
        let mut data = json!({ "request_id": 42, "pool_id": pool });
        data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        data
    };
    let located = json!({ "driver_id": driver, "lat": 52.50, "lon": 13.405 });
    server.publish("pooling.match.found", of_pool(json!({ "rider_id": rider, "driver_id": driver }))).await;
    server.publish("pooling.match.accepted", of_pool(json!({ "by": driver }))).await;
    server.publish("pooling.driver.location", of_pool(located.clone())).await;
    server.publish("pooling.driver.location", of_pool(located)).await;
    server.publish("pooling.driver.arriving", of_pool(json!({ "driver_id": driver, "eta_s": 5 }))).await;
    server.publish("pooling.trip.started", of_pool(json!({ "by": driver }))).await;
    server.publish("pooling.fare.updated", json!({ "pool_id": pool, "shares": "none" })).await;
    server.publish("pooling.trip.completed", of_pool(json!({ "by": driver }))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_calls_give_the_same_again_and_a_planted_difference_is_found_where_it_is() {
    let (server, dir) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let recording = Recording::of(&server, dir.path(), "pooling", "--count 80 --minutes 1").await;
    let _rider = server.connect("1001").await;
    for pool in 1..=10 {
        ride(&server, pool).await;
    }
    let file = recording.file.clone();
    let lines = recording.end().await;
    assert_eq!((&lines[0]["policy"], &lines[0]["signalpost_recording"], lines.len()), (&json!("pooling"), &json!(1), 82));
    assert_eq!(lines[81], json!({ "end": { "reason": "count", "calls": 80, "lost": 0 } }));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "nobody else reads it");
    // What the calls read is there, and nothing else.
    let accepted = &lines[2];
    assert_eq!(accepted["steps"][0]["event"]["type"], "pooling.match.accepted");
    assert_eq!(accepted["host"]["groups"]["pool:1"], json!(["1001", "2001"]));
    let found = &lines[1];
    assert_eq!(found["host"]["groups"], json!({ "pool:1": [] }), "the group was empty before");
    assert_eq!(found["steps"][0]["decides"]["joins"], json!({ "pool:1": ["1001", "2001"] }));

    let (code, said) = replay(&file, &["--policy", &component("pooling")]);
    assert!(code == 0 && said.contains("80 calls of pooling 0.1.0, 0 lost\n80 same, 0 differ, 0 inconclusive\n"), "{said}");
    let other = changed(dir.path(), "pooling", "trip_started", "trip_startex");
    let (code, said) = replay(&file, &["--policy", &other]);
    assert!(code == 1 && said.contains("70 same, 10 differ, 0 inconclusive\nerror: 10 calls differ (expected ≠ actual)\n"), "{said}");
    assert!(said.contains(": route pooling.trip.started, 20"), "{said}");
    assert!(said.contains("\n  decides.deliveries[0].message.type: \"trip_started\" ≠ \"trip_startex\"\n"), "{said}");
    let (code, said) = replay(&file, &["--policy", &other, "--against", &other, "--show", "0"]);
    assert!(code == 0 && said.contains("80 same"), "{said}");
    assert_eq!(replay(&file, &["--policy", &component("pooling"), "--against", &other]).0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_every_role_are_recorded_and_give_the_same_again() {
    let (server, dir) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let chat = Recording::of(&server, dir.path(), "chat", "--count 5").await;
    let compact = Recording::of(&server, dir.path(), "compact", "--count 1").await;
    let mut rider = server.connect("1001?format=compact&locale=de").await;
    server.publish("pooling.match.found", json!({ "request_id": 1, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 })).await;
    rider.json().await;
    rider.send_json(json!({ "type": "chat", "pool_id": 7, "text": "hello" })).await;
    rider.send_json(json!({ "type": "chat", "pool_id": 8, "text": "not mine" })).await;
    rider.send_json(json!({ "type": "other" })).await;
    server.metric_reaches("signalpost_client_messages_total{outcome=\"unhandled\"}", 1.0).await;
    drop(rider);
    let (files, chat, compact) = ([chat.file.clone(), compact.file.clone()], chat.end().await, compact.end().await);
    let verbs: Vec<&str> = chat[1..6].iter().map(|line| line["steps"][0].as_object().unwrap().keys().next().unwrap().as_str()).collect();
    assert_eq!(verbs, ["opened", "received", "received", "received", "closed"]);
    assert_eq!(chat[2]["host"]["sessions"][0]["user"], "1001");
    assert_eq!(compact[1]["steps"][0]["format"]["reader"], json!({ "format": "compact", "locale": "de" }));
    for (file, name) in files.iter().zip(["chat", "compact"]) {
        let (code, said) = replay(file, &["--policy", &component(name)]);
        assert!(code == 0 && said.contains(" 0 differ, 0 inconclusive"), "{said}");
    }
}

/// A guest that asks whether a key is there, and then tells nobody.
fn asks(key: &str) -> Vec<u8> {
    let fields = r#"(import "signalpost:policy/state@0.1.0" "delete" (func $delete (param i32 i32) (result i32)))"#;
    let body = "(drop (call $delete (global.get $key) (global.get $key_bytes))) (call $nobody)";
    Guest { imports: &["state"], fields, strings: &[("key", key)], ..Guest::routing(body) }.component()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_was_not_recorded_is_inconclusive() {
    let dir = plugins(&[]);
    std::fs::write(dir.path().join("asks.wasm"), asks("a")).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}\n[policies.asks]\ngrants = [\"state\"]\n", dir.path())).await;
    let recording = Recording::of(&server, dir.path(), "asks", "--count 2").await;
    server.publish("x", json!(1)).await;
    server.publish("x", json!(2)).await;
    let file = recording.file.clone();
    assert_eq!(recording.end().await[1]["host"], json!({ "state": { "a": null } }), "the key was read, and not there");
    assert_eq!(replay(&file, &["--policy", dir.path().join("asks.wasm").to_str().unwrap()]).0, 0);
    let other = dir.path().join("other");
    std::fs::write(&other, asks("b")).unwrap();
    let (code, said) = replay(&file, &["--policy", other.to_str().unwrap()]);
    assert!(code == 1 && said.contains("0 same, 0 differ, 2 inconclusive"), "{said}");
    assert!(said.contains("\n  inconclusive: read state \"b\"\n") && said.contains("error: 2 calls can't be compared"), "{said}");
    assert_eq!(replay(&file, &["--policy", other.to_str().unwrap(), "--allow-inconclusive"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_does_not_leave_the_server_and_the_calls_still_give_the_same() {
    let (server, dir) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let rest = "--count 2 --redact data.rider_id --redact data.text,data.from";
    let recording = Recording::of(&server, dir.path(), "pooling", rest).await;
    server.publish("pooling.match.found", json!({ "request_id": 42, "rider_id": 917354, "driver_id": 2002, "pool_id": 7 })).await;
    server.publish("pooling.chat.message", json!({ "pool_id": 7, "from": "917354", "text": "PRIVATE words" })).await;
    let file = recording.file.clone();
    let lines = recording.end().await;
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("917354") && !text.contains("PRIVATE") && !text.contains("words") && text.contains("2002"), "{text}");
    assert_eq!(lines[0]["redacted"], json!(["data.rider_id", "data.text", "data.from"]));
    let (code, said) = replay(&file, &["--policy", &component("pooling")]);
    assert!(code == 0 && said.contains("2 same"), "{said}\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_picked_out_is_a_fixture() {
    let (server, dir) = (TestServer::start().await, tempfile::tempdir().unwrap());
    let recording = Recording::of(&server, dir.path(), "pooling", "--count 8").await;
    ride(&server, 7).await;
    let file = recording.file.clone();
    recording.end().await;
    std::fs::create_dir(dir.path().join("fixtures")).unwrap();
    for line in 2..=9 {
        let (code, fixture) = replay(&file, &["--pick", &line.to_string()]);
        assert_eq!(code, 0, "{fixture}");
        std::fs::write(dir.path().join(format!("fixtures/{line}.json")), fixture).unwrap();
    }
    let fixtures = dir.path().join("fixtures");
    let tested = signalpost().args(["plugin", "test", &component("pooling"), "--fixtures", fixtures.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&tested.stdout);
    assert!(said.contains("8 fixtures, 8 steps, all as expected"), "{said}{}", String::from_utf8_lossy(&tested.stderr));
    let (code, said) = replay(&file, &["--pick", "1"]);
    assert!(code == 1 && said.contains("line 1: the line is not a call"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_bounded_and_a_stop_ends_them() {
    let toml = "[recordings]\nrecorders_max = 1\ncalls_max = 10\nminutes_max = 2\n";
    let mut server = TestServer::with(toml).await;
    let ask = async |path: &str| {
        let response = server.http.post(server.url(path)).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap()["code"].clone())
    };
    assert_eq!(ask("/policies/none/record").await, (404, json!("policy_unknown")));
    for query in ["count=11", "count=0", "minutes=3", "redact=data..x", "what=1"] {
        assert_eq!(ask(&format!("/policies/pooling/record?{query}")).await, (400, json!("query")), "{query}");
    }
    let mut first = server.http.post(server.url("/policies/pooling/record")).send().await.unwrap();
    assert_eq!((first.status().as_u16(), &first.headers()["content-type"]), (200, &"application/x-ndjson".parse().unwrap()));
    assert_eq!(ask("/policies/pooling/record").await, (503, json!("too_many_recordings")));
    // A stop ends it, and does not wait for it.
    server.begin_stop();
    let mut text = String::new();
    while let Some(chunk) = timeout(SOON, first.chunk()).await.unwrap().unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let last: Value = serde_json::from_str(text.trim_end().lines().last().unwrap()).unwrap();
    assert_eq!(last, json!({ "end": { "reason": "the server is stopping", "calls": 0, "lost": 0 } }));
    server.stop().await;
}

#[tokio::test]
async fn only_an_operator_may_record() {
    let (key, sha256) = signalpost_key("reader");
    let scopes = |scopes: &str| format!("[[auth.keys]]\nname = \"k\"\nsha256 = \"{sha256}\"\nscopes = [{scopes}]\n");
    for (scopes, status) in [(scopes("\"read\""), 401), (scopes("\"operate\""), 200)] {
        let server = TestServer::with(&scopes).await;
        let asked = server.http.post(server.url("/policies/pooling/record")).bearer_auth(&key);
        assert_eq!(asked.send().await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn calls_for_which_there_is_no_room_are_counted_and_the_recording_says_how_many() {
    // Less than any call takes.
    let mut server = TestServer::with("[recordings]\nbytes_max = 500\n").await;
    let mut recording = server.http.post(server.url("/policies/pooling/record")).send().await.unwrap();
    recording.chunk().await.unwrap();
    for _ in 0..20 {
        server.publish("pooling.trip.started", json!({})).await;
    }
    server.metric_reaches("signalpost_recordings_lost_total", 20.0).await;
    server.begin_stop();
    let mut text = String::new();
    while let Some(chunk) = timeout(SOON, recording.chunk()).await.unwrap().unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let lines: Vec<Value> = text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
    let lost: u64 = lines.iter().filter_map(|line| line["lost"].as_u64()).sum();
    assert_eq!((lost, &lines.last().unwrap()["end"]["lost"]), (20, &json!(20)), "{text}");
    server.stop().await;
}
