//! Policies as an operator and a plugin's author meet them: loading, refusing, reloading, narrowing, failing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use signalpost::server::Server;
use tokio::time::{Duration, timeout};

use crate::support::wat::{Guest, wrapper};
use crate::support::{SOON, TestServer, bundled, config, plugins};

mod reloads;

const REFUSED: &str = r#"signalpost_policy_reloads_total{outcome="refused"}"#;
const SWAPPED: &str = r#"signalpost_policy_reloads_total{outcome="swapped"}"#;

/// A policy that tells `user` that it was asked, in these words.
fn teller(user: &str, word: &str) -> Vec<u8> {
    let message = format!("\"{word}\"");
    let strings = &[("user", user), ("message", message.as_str())];
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $message) (global.get $message_bytes))";
    Guest { strings, ..Guest::routing(body) }.component()
}

fn bundled_file(name: &str) -> Vec<u8> {
    std::fs::read(bundled().join(name)).unwrap()
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Settings with this folder; `plugins` belongs to its table.
fn settings(dir: &Path, plugins: &str, more: &str) -> String {
    format!("[plugins]\ndir = {dir:?}\n{plugins}\n{more}")
}

/// A server that looks at its folder all the time.
async fn watching(dir: &Path, more: &str) -> TestServer {
    TestServer::with(&settings(dir, "watch_interval_ms = 20", more)).await
}

/// A server that looks at its folder when it is told to.
async fn still(dir: &Path, more: &str) -> TestServer {
    TestServer::with(&settings(dir, "watch = false", more)).await
}

/// As a careful deployment does it: written elsewhere, then moved over the old file.
fn replace(dir: &Path, name: &str, bytes: &[u8]) {
    let unfinished = dir.join(format!(".{name}.part"));
    std::fs::write(&unfinished, bytes).unwrap();
    std::fs::rename(unfinished, dir.join(name)).unwrap();
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until `GET policies` looks like this, and returns it.
async fn until(server: &TestServer, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let looking = async {
        loop {
            let policies = server.get("/policies").await;
            if holds(&policies) {
                return policies;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match timeout(SOON, looking).await {
        Ok(policies) => policies,
        Err(_) => panic!("{what}: {}", server.get("/policies").await),
    }
}

fn names(policies: &Value) -> Vec<&str> {
    policies["policies"].as_array().unwrap().iter().map(|policy| policy["name"].as_str().unwrap()).collect()
}

fn policy<'a>(policies: &'a Value, name: &str) -> &'a Value {
    policies["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == name).unwrap_or_else(|| panic!("{name}: {policies}"))
}

fn rejected<'a>(policies: &'a Value, name: &str) -> &'a Value {
    policies["rejected"].as_array().unwrap().iter().find(|policy| policy["name"] == name).unwrap_or_else(|| panic!("{name}: {policies}"))
}

#[tokio::test]
async fn a_plugin_that_cannot_be_loaded_stops_the_start_and_says_why() {
    let pooling = bundled_file("pooling.wasm");
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("garbage", b"this is not it".into(), "", "is not WebAssembly"),
        (
            "pooling",
            pooling.clone(),
            "[policies.pooling]\ngrants = []",
            "imports groups, presence, state, which are not granted: add `grants = [\"groups\", \"presence\", \"state\"]` to [policies.pooling]",
        ),
        (
            "pooling",
            pooling.clone(),
            "[policies.pooling]\ngrants = [\"groups\", \"log\", \"presence\"]",
            "imports state, which is not granted: add `grants = [\"groups\", \"log\", \"presence\", \"state\"]` to [policies.pooling]",
        ),
        (
            "chat",
            bundled_file("chat.wasm"),
            "[policies.chat.settings]\ntext_chars_max = 0",
            "refuses its settings (text_chars_max): `text_chars_max` is 0",
        ),
        ("chat", bundled_file("chat.wasm"), "[policies.chat.settings]\ntext_max = 5", "unknown field `text_max`"),
        (
            "pooling",
            pooling.clone(),
            "[policies.pooling]\nevents = [\"pooling.match.found\", \"billing.*\"]",
            "its configuration names the event type `billing.*`, which it doesn't want; it wants pooling.request.created",
        ),
        ("pooling", pooling.clone(), "[policies.pooling]\nevents = [\"pooling.*\"]", "the event type `pooling.*`, which it doesn't want"),
        ("pooling", pooling.clone(), "[policies.pooling]\nevents = [\"*.found\"]", "`*.found` is not an event type, `prefix.*` or `*`"),
        (
            "picky",
            Guest {
                strings: &[("reason", "there is no moon today")],
                configure: "(call $unfit (global.get $reason) (global.get $reason_bytes))",
                ..Guest::routing("(call $nobody)")
            }
            .component(),
            "",
            "refuses its settings (none are set): there is no moon today",
        ),
    ];
    for (name, bytes, more, reason) in cases {
        let dir = folder(&[(&format!("{name}.wasm"), &bytes)]);
        let error = Server::new(config(&settings(dir.path(), "on_bad = \"stop\"", more))).await.expect_err(name).to_string();
        assert!(error.contains(reason), "{name}: {error}");
        assert!(error.contains(&format!("{name} (")) && error.contains(&format!("{name}.wasm)")), "it names policy and file: {error}");
        assert!(error.contains("plugins.on_bad = \"skip\""), "{error}");
    }
    let dir = plugins(&["pooling"]);
    let error = Server::new(config(&settings(dir.path(), "on_bad = \"stop\"\nfile_bytes_max = 1000", ""))).await.unwrap_err().to_string();
    assert!(error.contains(&format!("has {} bytes, over the limit of 1000 (plugins.file_bytes_max)", pooling.len())), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let error = Server::new(config(&settings(dir.path(), "on_bad = \"stop\"", "[policies.mine]\nfile = \"nowhere.wasm\"")))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("mine (") && error.contains("is not there, and [policies.mine] configures it"), "{error}");
}

#[tokio::test]
async fn every_bad_plugin_is_named_when_the_start_is_refused() {
    let dir = folder(&[("one.wasm", b"1"), ("two.wasm", b"2")]);
    let error = Server::new(config(&settings(dir.path(), "on_bad = \"stop\"", ""))).await.unwrap_err().to_string();
    assert!(error.contains("one.wasm) is not WebAssembly") && error.contains("two.wasm) is not WebAssembly"), "{error}");
}

#[tokio::test]
async fn on_bad_skip_starts_without_the_bad_plugin_and_shows_it() {
    let dir = folder(&[("bad.wasm", b"bad"), ("good.wasm", &teller("1", "told"))]);
    let server = TestServer::with(&settings(dir.path(), "on_bad = \"skip\"\nwatch = false", "")).await;
    let policies = server.get("/policies").await;
    assert_eq!(names(&policies), ["good"]);
    let bad = rejected(&policies, "bad");
    assert_eq!(bad["reason"], "is not WebAssembly: the file does not begin with its magic number");
    assert_eq!((&bad["digest"], &bad["file"]), (&json!(digest(b"bad")), &json!(dir.path().join("bad.wasm"))));
    assert!(bad["at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{bad}");
    let mut user = server.connect("1").await;
    server.publish("a", json!(1)).await;
    assert_eq!(user.text().await, "\"told\"");
}

#[tokio::test]
async fn the_policies_are_shown_with_all_that_an_operator_asks() {
    let server = TestServer::start().await;
    server.publish("pooling.trip.started", json!({ "pool_id": 7 })).await;
    server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": 1 })).await;
    let policies = server.get("/policies").await;
    assert_eq!(names(&policies), ["chat", "compact", "pooling", "offers"]);
    assert_eq!((&policies["revision"], &policies["rejected"]), (&json!(1), &json!([])));
    let pooling = policy(&policies, "pooling");
    assert_eq!(pooling["digest"], digest(&bundled_file("pooling.wasm")));
    assert_eq!(pooling["file"], json!(bundled().join("pooling.wasm")));
    assert_eq!(
        (&pooling["version"], &pooling["roles"], &pooling["grants"]),
        (&json!("0.1.0"), &json!(["routing"]), &json!(["groups", "presence", "state"]))
    );
    assert_eq!(pooling["events"].as_array().unwrap().len(), 12);
    assert_eq!(pooling["counters"], json!({ "calls": 2, "refusals": 1, "faults": 0, "idle_instances": 1 }));
    assert_eq!(
        (&pooling["last_fault"], &pooling["on_fault"]),
        (&Value::Null, &json!({"routing": "dead-letter", "formatting": "dead-letter", "sessions": "refuse"}))
    );
    let compact = policy(&policies, "compact");
    assert_eq!((&compact["roles"], &compact["vary"]), (&json!(["formatting"]), &json!(["format", "locale"])));
    assert_eq!((&compact["on_fault"]["formatting"], &compact["events"]), (&json!("pass"), &json!(["*"])));
    assert_eq!(policy(&policies, "chat")["roles"], json!(["sessions"]));
    assert_eq!(policy(&policies, "offers")["roles"], json!(["routing", "sessions"]));
    assert_eq!(server.metric(r#"signalpost_policy_refusals_total{policy="pooling"}"#).await, 1.0);
}

#[tokio::test]
async fn a_policys_file_may_have_another_name() {
    let dir = folder(&[("other.wasm", &teller("1", "told"))]);
    let server = still(dir.path(), "[policies.mine]\nfile = \"other.wasm\"").await;
    let policies = server.get("/policies").await;
    assert_eq!(names(&policies), ["mine"], "and it serves once");
    assert_eq!(policy(&policies, "mine")["file"], json!(dir.path().join("other.wasm")));
}

#[tokio::test]
async fn one_file_may_serve_under_several_names_each_with_its_settings() {
    let dir = plugins(&["pooling"]);
    let more = "[policies.north]\nfile = \"pooling.wasm\"\ngrants = [\"groups\", \"presence\", \"state\"]\nevents = [\"pooling.trip.started\"]\n\
                [policies.south]\nfile = \"pooling.wasm\"\ngrants = [\"groups\", \"presence\", \"state\"]\nevents = [\"pooling.match.found\"]\n";
    let server = still(dir.path(), more).await;
    let policies = server.get("/policies").await;
    assert_eq!(names(&policies), ["north", "south"], "and not under the file's own name, which nobody configured so");
    assert_eq!(policy(&policies, "south")["events"], json!(["pooling.match.found"]));

    let more = format!("{more}[policies.pooling]\nfile = \"pooling.wasm\"\n");
    let server = still(dir.path(), &more).await;
    assert_eq!(names(&server.get("/policies").await), ["north", "pooling", "south"]);
}

#[tokio::test]
async fn a_policy_that_is_not_enabled_is_left_out() {
    let server = TestServer::with("[policies.pooling]\nenabled = false").await;
    assert_eq!(names(&server.get("/policies").await), ["chat", "compact", "offers"]);
    let receipt = server.publish("pooling.match.found", json!({})).await;
    assert_eq!(receipt["note"], "no policy wanted this event type");
}

#[tokio::test]
async fn policies_are_asked_in_the_configured_order_and_equal_ones_by_name() {
    let files = ["a", "b", "c", "d"].map(|name| (format!("{name}.wasm"), teller("1", name)));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let dir = folder(&files);
    let server = still(dir.path(), "[policies.d]\norder = -1\n[policies.a]\norder = 200\n[policies.c]\norder = 100").await;
    assert_eq!(names(&server.get("/policies").await), ["d", "b", "c", "a"]);
    let mut user = server.connect("1").await;
    let receipt = server.publish("x", json!(1)).await;
    let asked: Vec<&Value> = receipt["policies"].as_array().unwrap().iter().map(|policy| &policy["name"]).collect();
    assert_eq!(asked, ["d", "b", "c", "a"]);
    for word in ["\"d\"", "\"b\"", "\"c\"", "\"a\""] {
        assert_eq!(user.text().await, word);
    }
}

#[tokio::test]
async fn formatting_policies_are_a_chain_in_the_configured_order() {
    let dir = folder(&[("inner.wasm", &wrapper("inner")), ("outer.wasm", &wrapper("outer"))]);
    let server = still(dir.path(), "").await;
    let mut user = server.connect("1").await;
    server.post("/users/1/messages", json!(7)).await;
    assert_eq!(user.text().await, r#"{"by":"outer","message":{"by":"inner","message":7}}"#);
}

#[tokio::test]
async fn two_routing_policies_are_both_asked() {
    let pooling = bundled_file("pooling.wasm");
    let dir = folder(&[("first.wasm", &pooling), ("second.wasm", &pooling)]);
    let server = still(dir.path(), "[policies.first]\ngrants = [\"groups\", \"presence\", \"state\"]\n[policies.second]\ngrants = [\"groups\", \"presence\", \"state\"]").await;
    let mut rider = server.connect("1").await;
    let receipt = server.publish("pooling.match.found", json!({ "request_id": 1, "rider_id": 1, "driver_id": 2, "pool_id": 3 })).await;
    let asked: Vec<(&Value, &Value)> = receipt["policies"].as_array().unwrap().iter().map(|p| (&p["name"], &p["deliveries"])).collect();
    assert_eq!(asked, [(&json!("first"), &json!(1)), (&json!("second"), &json!(1))]);
    assert_eq!((&receipt["recipients"], &receipt["posted"]), (&json!(2), &json!(4)));
    assert_eq!(rider.json().await["type"], "pooling_match");
    assert_eq!(rider.json().await["type"], "pooling_match");
    rider.quiet().await;
}

#[tokio::test]
async fn a_policys_settings_reach_it() {
    let server = TestServer::with("[policies.chat.settings]\ntext_chars_max = 5").await;
    let mut rider = server.connect("1").await;
    rider.send_json(json!({ "type": "chat", "pool_id": 7, "text": "123456" })).await;
    assert_eq!(rider.json().await["detail"], "`text` has 6 characters: it should have 1 to 5");
}

/// Fails in its own way on events of type `boom`, and tells user 1 about all others.
fn faulty(failure: &str, more: Guest<'_>) -> Vec<u8> {
    let body = format!(
        "(if (i32.eq (i32.load offset=20 (local.get $event)) (i32.const 4)) (then {failure}))
         (call $forward (global.get $user) (global.get $user_bytes))"
    );
    Guest { strings: &[("user", "1"), ("bad", "{not json")], body: &body, ..more }.component()
}

/// Tests a fault that drops the instance, and one that doesn't. All the others are in `hostile.rs`.
#[tokio::test]
async fn a_fault_is_told_counted_and_shown_and_touches_nobody_else() {
    let plain = Guest::routing("");
    for (kind, detail, guest) in [
        ("trap", "unreachable", faulty("unreachable", plain)),
        (
            "output",
            "a json body is not JSON",
            faulty("(return (call $tell (global.get $user) (global.get $user_bytes) (global.get $bad) (global.get $bad_bytes)))", plain),
        ),
    ] {
        let dir = folder(&[("a.wasm", &guest), ("b.wasm", &teller("2", "told"))]);
        let server = still(dir.path(), "").await;
        let (mut first, mut second) = (server.connect("1").await, server.connect("2").await);
        for round in 1..=2 {
            let receipt = server.publish("boom", json!(1)).await;
            let fault = &receipt["policies"][0]["fault"];
            assert_eq!((&receipt["policies"][0]["outcome"], &fault["kind"]), (&json!("faulted"), &json!(kind)), "{detail}: {receipt}");
            assert_eq!((&fault["function"], &fault["event"]), (&json!("route"), &receipt["id"]));
            assert!(fault["detail"].as_str().unwrap().contains(detail), "{detail}: {receipt}");
            assert_eq!(receipt["policies"][1]["outcome"], "routed");
            assert_eq!(second.text().await, "\"told\"");
            let series = format!(r#"signalpost_policy_faults_total{{kind="{kind}",policy="a"}}"#);
            assert_eq!(server.metric(&series).await, f64::from(round));
            let policies = server.get("/policies").await;
            assert_eq!(&policy(&policies, "a")["last_fault"], fault);
            assert_eq!(policy(&policies, "a")["counters"]["faults"], round);
            assert_eq!(policy(&policies, "b")["last_fault"], Value::Null);
            let receipt = server.publish("all.good", json!(round)).await;
            assert_eq!(receipt["policies"][0]["outcome"], "routed", "{kind}: {receipt}");
            assert_eq!(first.text().await, round.to_string());
            assert_eq!(second.text().await, "\"told\"");
        }
        assert_eq!(policy(&server.get("/policies").await, "a")["counters"]["refusals"], 0, "a fault is no refusal");
    }
}

#[tokio::test]
async fn a_refusal_is_the_policys_answer_and_no_fault() {
    let body = "(call $refuse (global.get $code) (global.get $code_bytes) (global.get $detail) (global.get $detail_bytes))";
    let strings = &[("code", "not_today"), ("detail", "come back tomorrow")];
    let dir = folder(&[("a.wasm", &Guest { strings, ..Guest::routing(body) }.component()), ("b.wasm", &teller("2", "told"))]);
    let server = still(dir.path(), "").await;
    let receipt = server.publish("x", json!(1)).await;
    assert_eq!(receipt["policies"][0]["outcome"], "refused");
    assert_eq!(receipt["policies"][0]["refusal"], json!({ "code": "not_today", "detail": "come back tomorrow" }));
    assert_eq!((&receipt["policies"][1]["outcome"], &receipt["posted"]), (&json!("routed"), &json!(1)));
    let policies = server.get("/policies").await;
    assert_eq!(policy(&policies, "a")["counters"], json!({ "calls": 1, "refusals": 1, "faults": 0, "idle_instances": 1 }));
    assert_eq!(policy(&policies, "a")["last_fault"], Value::Null);
}

#[tokio::test]
async fn what_one_call_may_hand_over_is_not_used_up_by_many() {
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $long) (global.get $long_bytes))";
    let long = format!("\"{}\"", "x".repeat(5000));
    let dir = folder(&[("a.wasm", &Guest { strings: &[("user", "1"), ("long", &long)], ..Guest::routing(body) }.component())]);
    let server = still(dir.path(), "[policies.a.limits]\noutput_bytes_max = 20000").await;
    let mut user = server.connect("1").await;
    for _ in 0..20 {
        let receipt = server.publish("x", json!(1)).await;
        assert_eq!(receipt["policies"][0]["outcome"], "routed", "{receipt}");
        assert_eq!(user.text().await, long);
    }
}

#[tokio::test]
async fn a_failing_formatting_policy_lets_messages_pass_or_drops_them_as_configured() {
    let failing = Guest::formatting("unreachable").component();
    for (rule, arrives) in [("pass", true), ("drop", false)] {
        let dir = folder(&[("f.wasm", &failing)]);
        let server = still(dir.path(), &format!("[policies.f]\non_fault = {{ formatting = \"{rule}\" }}")).await;
        let mut user = server.connect("1").await;
        server.post("/users/1/messages", json!({ "n": 1 })).await;
        if arrives {
            assert_eq!(user.text().await, r#"{"n":1}"#);
        } else {
            server.metric_reaches(r#"signalpost_messages_dropped_total{reason="format_failed"}"#, 1.0).await;
            user.quiet().await;
        }
        assert_eq!(policy(&server.get("/policies").await, "f")["last_fault"]["function"], "format");
    }
}

#[tokio::test]
async fn a_policy_is_called_for_what_it_wants_and_its_configuration_leaves_it() {
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $user) (global.get $user_bytes))";
    let guest = Guest { events: &["a.*", "b"], strings: &[("user", "1")], ..Guest::routing(body) }.component();
    let dir = folder(&[("p.wasm", &guest)]);
    let server = still(dir.path(), "").await;
    let asked = async |server: &TestServer, kind: &str| server.publish(kind, json!(1)).await["policies"].as_array().unwrap().len();
    for (kind, expected) in [("a.x", 1), ("a.x.y", 1), ("a", 0), ("ab", 0), ("b", 1), ("b.x", 0)] {
        assert_eq!(asked(&server, kind).await, expected, "{kind}");
    }
    let server = still(dir.path(), "[policies.p]\nevents = [\"a.x.*\"]").await;
    assert_eq!(policy(&server.get("/policies").await, "p")["events"], json!(["a.x.*"]));
    for (kind, expected) in [("a.x.y", 1), ("a.x", 0), ("b", 0)] {
        assert_eq!(asked(&server, kind).await, expected, "{kind}");
    }
    let server = still(dir.path(), "[policies.p]\nevents = []").await;
    assert_eq!(asked(&server, "a.x").await, 0);
}
