//! Sinks that are added, changed and removed while the server runs: whole or not at all, and in order.

use std::path::Path;

use serde_json::{Value, json};

use super::{A, B, ids, publish, settings, sink};
use crate::support::backend::{Backend, Then};
use crate::support::process::ServerProcess;
use crate::support::{QUIET, TestServer};

const MEMORY: &str = "[store]\ndurability = \"memory\"\n[plugins]\nwatch = false\n";

/// A server without plugins, and the folder of the sinks' secrets.
fn start(dir: &Path, sinks: &str) -> ServerProcess {
    for (name, secret) in [("a", A), ("b", B)] {
        std::fs::write(dir.join(name), secret).unwrap();
    }
    let plugins = dir.join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    ServerProcess::start(&plugins, &settings(sinks, &format!("\n{MEMORY}")))
}

/// Configures these sinks and reloads. The status, and the answer.
async fn reload(process: &ServerProcess, sinks: &str) -> (u16, Value) {
    process.configure(&settings(sinks, &format!("\n{MEMORY}")));
    process.server.reload().await
}

/// Which sinks a reload has added, changed and removed.
async fn changes(process: &ServerProcess, sinks: &str) -> Value {
    let (status, answer) = reload(process, sinks).await;
    assert_eq!((status, &answer["changed"]), (200, &json!([])), "{answer}");
    answer["settings"]["sinks"].clone()
}

async fn known(server: &TestServer) -> Vec<String> {
    let sinks = server.get("/sinks").await["sinks"].clone();
    sinks.as_array().unwrap().iter().map(|sink| sink["url"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_sink_is_added_changed_and_removed_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let process = start(dir.path(), "");
    let (server, secrets) = (&process.server, [dir.path().join("a"), dir.path().join("b")]);
    let (one, two) = (Backend::start().await, Backend::start().await);
    publish(server, "early", 0).await;
    assert_eq!(changes(&process, &sink(one.address, &secrets[0], "")).await, json!({ "added": ["backend"] }));
    publish(server, "a", 1).await;
    assert_eq!(ids(&one.accepts(1).await), ["a-1"], "what was published before it was there is not for it");
    assert!(one.accepted()[0].signed_by(A) == [true]);

    let (status, unchanged) = reload(&process, &sink(one.address, &secrets[0], "")).await;
    assert_eq!((status, unchanged), (200, json!({ "revision": 1, "changed": [] })));
    assert_eq!(changes(&process, &sink(two.address, &secrets[1], "batch_max = 2\n")).await, json!({ "changed": ["backend"] }));
    assert_eq!(known(server).await, [format!("http://{}/hook", two.address)]);
    publish(server, "a", 2).await;
    let received = two.accepts(1).await;
    assert_eq!((received[0].json()[0]["id"].as_str(), received[0].signed_by(B)), (Some("a-2"), vec![true]));

    let other = sink(one.address, &secrets[0], "").replace("backend", "other").replace("ride.*", "ride.told");
    assert_eq!(changes(&process, &other).await, json!({ "added": ["other"], "removed": ["backend"] }));
    publish(server, "a", 3).await;
    assert_eq!(changes(&process, &other.replace("ride.told", "*")).await, json!({ "changed": ["other"] }));
    publish(server, "a", 4).await;
    assert_eq!(ids(&one.accepts(2).await), ["a-1", "a-4"]);
    assert_eq!((changes(&process, "").await, known(server).await), (json!({ "removed": ["other"] }), Vec::new()));
    publish(server, "a", 5).await;
    tokio::time::sleep(QUIET).await;
    assert_eq!((one.received().len(), two.received().len()), (2, 1));
    for line in ["\"sink added\"", "\"sink changed\"", "\"sink removed: "] {
        assert!(process.logged(line) > 0, "{line}: {}", process.log());
    }
    assert_eq!(server.metric("signalpost_sink_events_total{outcome=\"accepted\",sink=\"backend\"}").await, 2.0);
    let metrics = server.http.get(format!("http://{}/metrics", server.address)).send().await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("signalpost_sink_waiting{"), "nothing is told of sinks that are not there: {metrics}");
}

#[tokio::test]
async fn a_sink_that_stays_keeps_its_place_and_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("a");
    let (old, new) = (Backend::with(|_| Then::Answer(503)).await, Backend::start().await);
    let process = start(dir.path(), &sink(old.address, &secret, "failures_max = 100\n"));
    for n in 0..20 {
        publish(&process.server, ["a", "b"][n as usize % 2], n).await;
    }
    old.receives(4).await;
    // A bound that changes meanwhile takes nothing away either.
    assert_eq!(changes(&process, &sink(new.address, &secret, "messages_max = 5\n")).await, json!({ "changed": ["backend"] }));
    let arrived = ids(&new.accepts(20).await);
    for (subject, first) in [("a", 0), ("b", 1)] {
        let own: Vec<&String> = arrived.iter().filter(|id| id.starts_with(subject)).collect();
        let expected: Vec<String> = (0..10).map(|n| format!("{subject}-{}", first + 2 * n)).collect();
        assert_eq!(own, expected.iter().collect::<Vec<_>>());
    }
    let counters = process.server.get("/sinks").await["sinks"][0]["counters"].clone();
    assert_eq!((&counters["heard"], &counters["accepted"], &counters["overflowed"]), (&json!(20), &json!(20), &json!(0)));
    // The new bound holds for what comes.
    new.then(|_| Then::Answer(503));
    for n in 20..26 {
        publish(&process.server, "a", n).await;
    }
    process.server.metric_reaches("signalpost_sink_events_total{outcome=\"overflowed\",sink=\"backend\"}", 1.0).await;
}

#[tokio::test]
async fn sinks_change_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("a");
    let (one, two) = (Backend::start().await, Backend::start().await);
    let process = start(dir.path(), &sink(one.address, &secret, ""));
    let changed = sink(two.address, &secret, "");
    let lacking = sink(two.address, &dir.path().join("none"), "").replace("backend", "other");
    let events = changed.replace("[\"ride.*\"]", "[\"\"]");
    for (sinks, says) in [(format!("{changed}{lacking}"), "sinks.other.secret_files: "), (events, "sinks.backend.events")] {
        let (status, problem) = reload(&process, &sinks).await;
        assert_eq!((status, &problem["code"]), (422, &json!("configuration_invalid")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    // Nor if a policy is refused.
    std::fs::write(dir.path().join("plugins/p.wasm"), "not a component").unwrap();
    let (status, problem) = reload(&process, &changed).await;
    assert_eq!((status, &problem["code"]), (422, &json!("policy_refused")), "{problem}");
    assert_eq!(known(&process.server).await, [format!("http://{}/hook", one.address)]);
    publish(&process.server, "a", 1).await;
    assert_eq!(ids(&one.accepts(1).await), ["a-1"]);
    std::fs::remove_file(dir.path().join("plugins/p.wasm")).unwrap();
    assert_eq!(changes(&process, &changed).await, json!({ "changed": ["backend"] }));
    publish(&process.server, "a", 2).await;
    assert_eq!((ids(&two.accepts(1).await), one.received().len()), (vec!["a-2".to_owned()], 1));
}

#[tokio::test]
async fn a_sink_that_is_removed_ends_in_order_and_what_waits_is_there_if_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("a");
    let backend = Backend::with(|_| Then::Hang).await;
    let with = sink(backend.address, &secret, "backoff_ms = 60_000\nbackoff_max_ms = 60_000\n");
    let process = start(dir.path(), &with);
    for n in 0..3 {
        publish(&process.server, "a", n).await;
    }
    backend.receives(1).await;
    assert_eq!(changes(&process, "").await, json!({ "removed": ["backend"] }));
    assert_eq!(process.logged("sink removed: "), 1, "{}", process.log());
    assert_eq!(process.logged("\"waiting\":3"), 1, "{}", process.log());
    publish(&process.server, "a", 3).await;
    backend.then(|_| Then::Answer(204));
    assert_eq!(changes(&process, &with).await, json!({ "added": ["backend"] }));
    publish(&process.server, "a", 4).await;
    assert_eq!(ids(&backend.accepts(4).await), ["a-0", "a-1", "a-2", "a-4"], "nobody heard a-3");
}

#[tokio::test]
async fn a_sink_that_is_added_hears_of_messages_that_expire() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::start().await;
    let process = start(dir.path(), "");
    let expires = async |text: &str| process.server.post("/users/1/messages?ttl_ms=50", json!(text)).await;
    expires("unheard").await;
    process.server.metric_reaches("signalpost_messages_dropped_total{reason=\"expired\"}", 1.0).await;
    changes(&process, &sink(backend.address, &dir.path().join("a"), "").replace("ride.*", "signalpost.message.expired")).await;
    expires("heard").await;
    let told = backend.accepts(1).await;
    assert_eq!((told.len(), &told[0].json()["data"]["message"]), (1, &json!({ "json": "heard" })));
}
