//! What one policy, its events or its author may cost others: log lines, instances, recipients, secrets. The hostile plugins, each beside a
//! neighbour, are in `hostile.rs`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::process::{ServerProcess, signalpost};
use crate::support::wat::{Guest, drafts};
use crate::support::{SOON, TestServer};

const SPIN: &str = "(loop $spin (br $spin)) unreachable";

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn settings(dir: &Path, more: &str) -> String {
    format!("[plugins]\ndir = {dir:?}\nwatch = false\n{more}")
}

#[tokio::test]
async fn a_policy_that_faults_on_every_event_writes_a_bounded_number_of_log_lines() {
    const EVENTS: usize = 300;
    let fields = r#"(import "signalpost:policy/log@0.1.0" "write" (func $write (param i32 i32 i32)))"#;
    let body = "(call $write (i32.const 1) (i32.const 1024) (i32.const 3)) unreachable";
    let noisy = Guest { imports: &["log"], fields, ..Guest::routing(body) }.component();
    let dir = folder(&[("noisy.wasm", &noisy)]);
    let more = "[log]\nformat = \"json\"\n[limits]\nbreaker_faults = 1_000_000\nlog_lines_per_second_max = 2\n\
                [policies.noisy]\ngrants = [\"log\"]\n";
    let process = ServerProcess::start(dir.path(), more);
    let began = Instant::now();
    let event = |number: usize| json!({ "specversion": "1.0", "id": number.to_string(), "source": "/me", "type": "x", "data": number });
    let batch = Value::from((0..EVENTS).map(event).collect::<Vec<_>>()).to_string();
    let request = process.server.http.post(process.server.url("/events")).header("Content-Type", "application/cloudevents-batch+json");
    assert_eq!(request.body(batch).send().await.unwrap().status(), 202);
    let seconds = began.elapsed().as_secs() as usize;
    let left_out = process.server.metric(r#"signalpost_policy_log_lines_dropped_total{policy="noisy"}"#).await as usize;
    // The server's own line about the load is not the policy's.
    let logged = || process.logged("\"policy\":\"noisy\"") - process.logged("policy loaded");
    let waiting = async {
        while logged() + left_out < 2 * EVENTS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("what is not logged is counted");
    assert!((20..=20 + 2 * (seconds + 1)).contains(&logged()), "{} lines in {seconds} s", logged());
    assert_eq!(process.server.get("/policies").await["policies"][0]["counters"]["faults"], EVENTS, "the faults themselves are counted");
}

#[tokio::test]
async fn the_log_as_a_whole_has_a_bounded_number_of_lines_in_a_second() {
    let dir = folder(&[]);
    let process = ServerProcess::start(dir.path(), "[log]\nlevel = \"debug\"\nlines_per_second_max = 20\n");
    let began = Instant::now();
    for user in 0..100 {
        drop(process.server.connect(&user.to_string()).await);
    }
    process.server.metric_reaches("signalpost_sessions", 0.0).await;
    let windows = began.elapsed().as_secs() as usize + 2;
    // Each session says that it was opened, and that it was closed.
    let left_out = process.server.metric("signalpost_log_lines_dropped_total").await as usize;
    let lines = process.log().lines().count();
    assert!(left_out > 0 && lines <= 20 * (windows + 1), "{lines} lines in {windows} s, {left_out} left out");
    assert!(lines + left_out >= 200, "{lines} lines and {left_out} left out");
}

#[tokio::test]
async fn names_and_panics_of_plugins_are_one_line_of_the_log_each() {
    let panicking = r#"(import "signalpost:policy/diagnostics@0.1.0" "panicked" (func $panicked (param i32 i32)))"#;
    let body = "(call $panicked (global.get $words) (global.get $words_bytes)) unreachable";
    let strings = &[("words", "first\nFORGED by a panic\r\n\u{1b}[31mFORGED")];
    let guest = Guest { imports: &["diagnostics"], fields: panicking, strings, ..Guest::routing(body) }.component();
    let file = "bad\nFORGED by a name\r\u{1b}[31m.wasm";
    let dir = folder(&[("good.wasm", &guest), (file, b"no plugin")]);
    let process = ServerProcess::start(dir.path(), "[log]\nformat = \"text\"\n[plugins]\non_bad = \"skip\"\nwatch = false\n");
    process.server.publish("x", json!(1)).await;
    std::fs::write(dir.path().join(file), b"no plugin either").unwrap();
    assert_eq!(process.server.reload().await.0, 422);
    let waiting = async {
        while process.logged("plugin skipped") + process.logged("plugin refused") + process.logged("policy fault") < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("all three are logged");
    let log = process.log();
    assert!(!log.contains(['\u{1b}', '\r']), "{log:?}");
    assert!(log.lines().all(|line| line.starts_with("20")), "each line begins with its time: {log}");
}

#[tokio::test]
async fn the_values_of_a_policys_settings_are_shown_to_nobody() {
    let configure = "(call $unfit (global.get $words) (global.get $words_bytes))";
    let fussy = Guest { strings: &[("words", "the token is too short")], configure, ..Guest::routing("(call $nobody)") }.component();
    let sound = Guest::routing("(call $nobody)").component();
    let dir = folder(&[("a.wasm", &sound)]);
    let more = "on_bad = \"skip\"\n[policies.a.settings]\ntoken = \"s3cr3t-value\"\n";
    let process = ServerProcess::start(dir.path(), &settings(dir.path(), more));
    std::fs::write(dir.path().join("a.wasm"), fussy).unwrap();
    let (status, answer) = process.server.reload().await;
    let policies = process.server.get("/policies").await;
    let reason = policies["rejected"][0]["reason"].as_str().unwrap();
    assert_eq!((status, reason), (422, "refuses its settings (token): the token is too short"));
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), settings(dir.path(), more)).unwrap();
    let checked = signalpost().args(["check", "--config"]).arg(config.path()).output().unwrap();
    let checked = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(checked.contains("policies.a.settings.token") || checked.contains("(token)"), "{checked}");
    for shown in [process.log(), answer.to_string(), policies.to_string(), checked] {
        assert!(!shown.contains("s3cr3t-value"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_policy_keeps_no_more_instances_than_are_allowed_and_only_one_that_nobody_needs() {
    // It counts the instances, each of which is configured once, and takes a while for each event.
    let fields = r#"(import "signalpost:policy/metrics@0.1.0" "count" (func $count (param i32 i32 i64)))"#;
    let configure = "(call $count (global.get $made) (global.get $made_bytes) (i64.const 1)) (call $configured)";
    let body = "(loop $on (local.set $local (i32.add (local.get $local) (i32.const 1))) (br_if $on (i32.lt_u (local.get $local) (i32.const 20000000))))
                (call $nobody)";
    let slow = Guest { imports: &["metrics"], fields, strings: &[("made", "made")], configure, ..Guest::routing(body) }.component();
    let dir = folder(&[("slow.wasm", &slow)]);
    let more = "[policies.slow]\ngrants = [\"metrics\"]\n[policies.slow.limits]\ninstances_idle_max = 2\ncall_deadline_ms = 1000\n";
    let server = TestServer::with(&settings(dir.path(), more)).await;
    let made = r#"signalpost_policy_custom_total{name="made",policy="slow"}"#;
    let idle = async || server.get("/policies").await["policies"][0]["counters"]["idle_instances"].as_u64().unwrap();
    assert_eq!(idle().await, 1, "the one that was asked who it is");
    for _ in 0..50 {
        let publishing = (0..8).map(|number| server.publish("x", json!(number)));
        for receipt in futures_util::future::join_all(publishing).await {
            assert_eq!(receipt["policies"][0]["outcome"], "routed", "{receipt}");
        }
        if server.metric(made).await >= 4.0 {
            break;
        }
    }
    assert!(server.metric(made).await >= 4.0, "several calls ran at once, each with an instance of its own");
    assert_eq!(idle().await, 2);
    let shrinking = async {
        while idle().await > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), shrinking).await.expect("what nobody needs goes");
}

#[tokio::test]
async fn what_one_policy_may_tell_is_not_used_up_by_another() {
    // Tells three users.
    let greedy = "(call $delivery (i32.const 352) (global.get $a) (i32.const 1) (i32.const -1) (i32.const 0) (i32.const 0))
        (call $delivery (i32.const 428) (global.get $b) (i32.const 1) (i32.const -1) (i32.const 0) (i32.const 0))
        (call $delivery (i32.const 504) (global.get $c) (i32.const 1) (i32.const -1) (i32.const 0) (i32.const 0))
        (call $decided (i32.const 3))";
    let greedy = Guest { strings: &[("a", "a"), ("b", "b"), ("c", "c")], ..Guest::routing(greedy) }.component();
    let important = Guest { strings: &[("user", "1")], ..Guest::routing("(call $forward (global.get $user) (global.get $user_bytes))") };
    let dir = folder(&[("a_greedy.wasm", &greedy), ("b_important.wasm", &important.component())]);
    let server = TestServer::with(&settings(dir.path(), "[limits]\nrecipients_max = 2\n")).await;
    let mut user = server.connect("1").await;
    let receipt = server.publish("x", json!(7)).await;
    assert_eq!(user.text().await, "7");
    assert_eq!((&receipt["recipients"], &receipt["posted"]), (&json!(3), &json!(3)), "{receipt}");
    let dropped = receipt["dropped"].to_string();
    assert!(dropped.contains("too_many_recipients") && dropped.contains("\"c\""), "{receipt}");
}

#[tokio::test]
async fn the_recipients_of_all_events_that_a_client_causes_count_together() {
    // Answers a client's message with three events.
    let writes = Guest { strings: &[("type", "written")], ..Guest::sessions(&drafts(3)) }.component();
    // Tells two users of each.
    let tells = "(call $delivery (i32.const 352) (global.get $a) (i32.const 1) (i32.const -1) (i32.const 0) (i32.const 0))
        (call $delivery (i32.const 428) (global.get $b) (i32.const 1) (i32.const -1) (i32.const 0) (i32.const 0))
        (call $decided (i32.const 2))";
    let tells = Guest { strings: &[("a", "a"), ("b", "b")], events: &["written"], ..Guest::routing(tells) }.component();
    let dir = folder(&[("tells.wasm", &tells), ("writes.wasm", &writes)]);
    let server = TestServer::with(&settings(dir.path(), "[limits]\nrecipients_max = 3\n")).await;
    let mut author = server.connect("author").await;
    for written in 1..=2 {
        author.send("1").await;
        let handled = f64::from(written);
        server.metric_reaches(r#"signalpost_client_messages_total{outcome="handled"}"#, handled).await;
        let dropped = server.metric(r#"signalpost_messages_dropped_total{reason="too_many_recipients"}"#).await;
        assert_eq!(dropped, 3.0 * handled, "three of six, and the next message of the client begins anew");
    }
    for (user, messages) in [("a", 4), ("b", 2)] {
        assert_eq!(server.get(&format!("/users/{user}")).await["mailbox"]["messages"], messages, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_event_that_is_being_published_is_not_told_to_be_done() {
    let dir = folder(&[("slow.wasm", &Guest::routing(SPIN).component())]);
    let more = "[limits]\ncall_deadline_ms = 1500\nbreaker_faults = 1000\n";
    let server = std::sync::Arc::new(TestServer::with(&settings(dir.path(), more)).await);
    let event = json!({ "type": "x", "id": "7", "source": "/me", "data": 1 });
    let first = tokio::spawn({
        let (server, event) = (server.clone(), event.clone());
        async move { server.post("/events", event).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let second = server.http.post(server.url("/events")).json(&event).send().await.unwrap();
    assert_eq!(second.status(), 409);
    assert_eq!(second.json::<Value>().await.unwrap()["code"], "under_way");
    let message =
        async || server.http.post(server.url("/users/1/messages")).header("Idempotency-Key", "7").json(&event).send().await.unwrap();
    assert_eq!(message().await.status(), 202, "a message of the same key is another thing");
    let first = first.await.unwrap();
    assert_eq!((&first["duplicate"], &first["policies"][0]["outcome"]), (&json!(false), &json!("faulted")));
    let again = server.post("/events", event.clone()).await;
    assert_eq!((&again["duplicate"], &again["policies"][0]["outcome"]), (&json!(false), &json!("faulted")), "it was not done");
}
