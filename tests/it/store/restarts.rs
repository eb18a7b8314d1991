//! What a server that was stopped or killed has again when it is started.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::plugins;
use crate::support::process::ServerProcess;

fn settings(dir: &Path) -> String {
    format!("[store]\ndir = {:?}\n", dir.join("store"))
}

/// Ends the server and starts it again on its store.
async fn restart(mut process: ServerProcess, signal: Signal, plugins: &Path, toml: &str) -> ServerProcess {
    process.signal(signal);
    let (status, _) = process.ended().await;
    assert_eq!(status.code(), (signal == Signal::TERM).then_some(0), "{}", process.log());
    ServerProcess::start(plugins, toml)
}

#[tokio::test]
async fn a_client_resumes_after_a_stop_and_after_a_kill_and_misses_nothing() {
    for signal in [Signal::TERM, Signal::KILL] {
        let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
        let toml = settings(dir.path());
        let process = ServerProcess::start(none.path(), &toml);
        let mut client = process.server.connect_v1("1").await;
        let hello = client.json().await["data"].clone();
        process.server.post("/users/1/messages", json!("read")).await;
        let read = client.json().await;
        assert_eq!(read["data"], "read");
        drop(client);
        process.server.metric_reaches("signalpost_sessions", 0.0).await;
        for missed in ["a", "b"] {
            process.server.post("/users/1/messages", json!(missed)).await;
        }

        let process = restart(process, signal, none.path(), &toml).await;
        let mut client = process.server.connect_v1("1").await;
        let again = client.json().await;
        assert_eq!(again["data"]["epoch"], hello["epoch"], "{again}");
        client.send_json(json!({ "type": "resume", "epoch": hello["epoch"], "seq": read["seq"] })).await;
        assert_eq!(client.json().await, json!({ "type": "resume", "data": { "recovered": true, "from": read["seq"] } }));
        for missed in ["a", "b"] {
            assert_eq!(client.json().await["data"], missed);
        }
        client.quiet().await;
    }
}

#[tokio::test]
async fn a_plain_client_reads_nothing_twice_after_a_stop() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let toml = settings(dir.path());
    let process = ServerProcess::start(none.path(), &toml);
    let mut client = process.server.connect("1").await;
    process.server.post("/users/1/messages", json!("read")).await;
    assert_eq!(client.text().await, "\"read\"");
    drop(client);
    process.server.metric_reaches("signalpost_sessions", 0.0).await;
    process.server.post("/users/1/messages", json!("unread")).await;
    let process = restart(process, Signal::TERM, none.path(), &toml).await;
    let mut client = process.server.connect("1").await;
    assert_eq!(client.text().await, "\"unread\"");
    client.quiet().await;
}

#[tokio::test]
async fn an_event_that_was_answered_is_a_duplicate_after_a_stop_and_after_a_kill() {
    for signal in [Signal::TERM, Signal::KILL] {
        let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
        let toml = settings(dir.path());
        let process = ServerProcess::start(none.path(), &toml);
        let publish = async |process: &ServerProcess| {
            let request = process.server.http.post(process.server.url("/users/1/messages")).header("Idempotency-Key", "k");
            let response = request.json(&json!("once")).send().await.unwrap();
            response.json::<Value>().await.unwrap()
        };
        let receipt = publish(&process).await;
        assert!(receipt["duplicate"] != true && receipt["posted"] == 1, "{receipt}");
        let process = restart(process, signal, none.path(), &toml).await;
        let receipt = publish(&process).await;
        assert_eq!(receipt["duplicate"], true, "{receipt}");
        let mut client = process.server.connect("1").await;
        assert_eq!(client.text().await, "\"once\"");
        client.quiet().await;
    }
}
