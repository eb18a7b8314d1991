//! What a server that was stopped or killed has again when it is started.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::plugins;
use crate::support::process::ServerProcess;
use crate::support::wat::Guest;

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

#[tokio::test]
async fn groups_and_the_state_of_policies_survive_a_stop_and_a_kill() {
    for signal in [Signal::TERM, Signal::KILL] {
        let (pooling, dir) = (plugins(&["pooling"]), tempfile::tempdir().unwrap());
        let toml = settings(dir.path()) + "[policies.pooling]\ngrants = [\"groups\", \"presence\", \"state\"]\n";
        let process = ServerProcess::start(pooling.path(), &toml);
        for rider in [1, 3] {
            let data = json!({ "request_id": rider, "rider_id": rider, "driver_id": 2, "pool_id": 7 });
            process.server.publish("pooling.match.found", data).await;
        }
        let process = restart(process, signal, pooling.path(), &toml).await;
        let receipt = process.server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": 1 })).await;
        assert_eq!(receipt["recipients"], 2, "the other rider and the driver: {receipt}");
        let cancelled = json!({ "request_id": 1, "pool_id": 7, "by": 2, "reason": "ill" });
        assert_eq!(process.server.publish("pooling.match.cancelled", cancelled).await["recipients"], 2);
        let process = restart(process, signal, pooling.path(), &toml).await;
        // That the driver's cancellation ends the group follows from the state.
        let receipt = process.server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": 9 })).await;
        assert_eq!(receipt["recipients"], 0, "{receipt}");
    }
}

#[tokio::test]
async fn a_state_entry_is_over_at_its_own_end_also_while_no_server_runs() {
    let (pooling, dir) = (plugins(&["pooling"]), tempfile::tempdir().unwrap());
    let with = |order_ms: u32| {
        settings(dir.path())
            + "[policies.pooling]\ngrants = [\"groups\", \"presence\", \"state\"]\n"
            + &format!("settings = {{ location_order_ms = {order_ms}, location_min_metres = 0 }}\n")
    };
    // Whether a location is newer than the last one, which the policy notes in its state.
    let is_newer = async |process: &ServerProcess, pool: u32, second: u32| {
        let data = json!({ "pool_id": pool, "driver_id": 2, "lat": 1.0 + f64::from(second), "lon": 2.0 });
        let event = json!({ "type": "pooling.driver.location", "time": format!("2026-01-01T00:00:{second}Z"), "data": data });
        process.server.post("/events", event).await["policies"][0]["deliveries"] == 1
    };
    let process = ServerProcess::start(pooling.path(), &with(600_000));
    for pool in [7, 8] {
        let data = json!({ "request_id": pool, "rider_id": pool, "driver_id": 2, "pool_id": pool });
        process.server.publish("pooling.match.found", data).await;
    }
    assert!(is_newer(&process, 7, 30).await && !is_newer(&process, 7, 20).await);
    let mut process = restart(process, Signal::KILL, pooling.path(), &with(300)).await;
    assert!(is_newer(&process, 8, 30).await);
    process.signal(Signal::KILL);
    process.ended().await;
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let process = ServerProcess::start(pooling.path(), &with(600_000));
    assert!(!is_newer(&process, 7, 20).await, "this one is kept for longer");
    assert!(is_newer(&process, 8, 20).await);
}

#[tokio::test]
async fn a_dead_letter_survives_a_kill_and_stays_away_once_it_was_retried() {
    let guest = |body| Guest { strings: &[("user", "1")], ..Guest::routing(body) }.component();
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let toml = settings(dir.path());
    std::fs::write(none.path().join("a.wasm"), guest("unreachable")).unwrap();
    let process = ServerProcess::start(none.path(), &toml);
    process.server.post("/events", json!({ "type": "boom", "id": "7", "source": "/me", "data": { "n": 1 } })).await;
    let kept = process.server.get("/dead-letters").await;
    assert_eq!(kept["dead_letters"].as_array().unwrap().len(), 1, "{kept}");

    std::fs::write(none.path().join("a.wasm"), guest("(call $forward (global.get $user) (global.get $user_bytes))")).unwrap();
    let process = restart(process, Signal::KILL, none.path(), &toml).await;
    assert_eq!(process.server.get("/dead-letters").await, kept);
    let retried = process.server.http.post(process.server.url("/dead-letters/1/retry")).send().await.unwrap();
    assert_eq!(retried.status(), 200, "{}", retried.text().await.unwrap());

    let process = restart(process, Signal::KILL, none.path(), &toml).await;
    assert_eq!(process.server.get("/dead-letters").await["dead_letters"], json!([]));
    let mut user = process.server.connect("1").await;
    assert_eq!(user.json().await, json!({ "n": 1 }));
    user.quiet().await;
}
