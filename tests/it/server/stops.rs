//! A stop, step by step: the server reports that it isn't ready, takes no new sockets, tells clients when to come back, closes them at a
//! limited rate, and ends in time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::SinkExt;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::support::described::Http;
use crate::support::process::{ServerProcess, signalpost};
use crate::support::raw::{self, Raw};
use crate::support::{SOON, TestServer, plugins};

/// Returns the status of `/readyz` on a new connection, or `None` if there is no answer.
async fn ready(server: &TestServer) -> Option<u16> {
    let fresh = Http::new();
    Some(fresh.get(format!("http://{}/readyz", server.address)).send().await.ok()?.status().as_u16())
}

async fn is_not_ready(server: &TestServer) {
    let waiting = async {
        while ready(server).await != Some(503) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.expect("a stop begins in time");
}

#[tokio::test]
async fn a_stopping_server_is_not_ready_and_takes_no_sockets_before_it_takes_no_connections() {
    let mut server = TestServer::with("stop_notice_ms = 2000").await;
    let mut client = server.connect_v1("1001").await;
    client.json().await;
    assert_eq!(ready(&server).await, Some(200));
    server.begin_stop();
    is_not_ready(&server).await;
    let mut late = Raw::connect(server.address).await;
    late.write(raw::handshake("1002", "Connection: close, Upgrade\r\n").as_bytes()).await;
    let answer = late.rest().await.to_lowercase();
    assert!(answer.starts_with("http/1.1 503 ") && answer.contains("\r\nretry-after: ") && answer.contains("stopping"), "{answer}");
    // Who is connected is served as before.
    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(client.json().await["data"], 1);
    let farewell = client.json().await;
    assert_eq!(farewell["type"], "reconnect", "{farewell}");
    assert_eq!(client.closed().await.0, 1012);
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_has_not_shown_its_token_yet_becomes_no_session_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "cKq8Zr2mW5xT1vB9nJ4hL7pD3fG6sA0yE").unwrap();
    let users = format!("[auth.users]\nalgorithms = [\"HS256\"]\nkey_files = [{secret:?}]\nfirst_frame_deadline_ms = 60_000\n");
    let mut server = TestServer::with(&format!("stop_notice_ms = 300\n{users}")).await;
    let mut silent = server.connect("1001").await;
    let mut late = server.connect_v1("1002").await;
    let began = Instant::now();
    server.begin_stop();
    is_not_ready(&server).await;
    // It may come too late for the server to read.
    let _ = late.socket.send(Message::text(r#"{"type":"auth","token":"x"}"#)).await;
    assert_eq!(silent.closed().await, (1012, "server restarts, reconnect".into()));
    assert_eq!(late.closed().await.0, 1012);
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn clients_are_told_different_times_and_closed_at_a_pace() {
    let mut server = TestServer::with("stop_closes_per_second_max = 60\nstop_return_within_ms = 100_000").await;
    let mut clients = Vec::new();
    for user in 0..60 {
        let mut client = server.connect_v1(&user.to_string()).await;
        client.json().await;
        clients.push(client);
    }
    let began = Instant::now();
    server.begin_stop();
    let mut times = BTreeSet::new();
    for client in &mut clients {
        times.insert(client.json().await["data"]["after_ms"].as_u64().unwrap());
        assert_eq!(client.closed().await.0, 1012);
    }
    assert!(times.len() > 50 && times.iter().all(|time| *time < 100_000), "{times:?}");
    assert!(began.elapsed() > Duration::from_millis(500), "60 at 60 a second take a second, not {:?}", began.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn a_signal_ends_the_server_with_0_within_its_bound_whatever_a_client_does() {
    let plugins = plugins(&["pooling"]);
    let settings = "stop_deadline_ms = 1500\n[sockets]\nclose_deadline_ms = 1500\nwrite_deadline_ms = 600_000\n";
    let mut process = ServerProcess::start(plugins.path(), settings);
    // It never answers the closing handshake, nor ends the connection.
    let mut stuck = Raw::open(&process.server, "1", "").await;
    let mut reader = process.server.connect("2").await;
    process.server.post("/users/2/messages", json!("before")).await;
    process.signal(Signal::TERM);
    assert_eq!(reader.text().await, "\"before\"");
    assert_eq!(reader.closed().await.0, 1012);
    let (status, took) = process.ended().await;
    assert_eq!(status.code(), Some(0), "{}", process.log());
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(stuck.closed().await.0, 1012);
}

#[tokio::test]
async fn a_second_signal_ends_the_server_at_once() {
    let plugins = plugins(&["pooling"]);
    let mut process = ServerProcess::start(plugins.path(), "stop_notice_ms = 60_000");
    let _client = process.server.connect("1").await;
    process.signal(Signal::TERM);
    is_not_ready(&process.server).await;
    process.signal(Signal::TERM);
    let (status, took) = process.ended().await;
    assert_eq!(status.code(), Some(130), "{}", process.log());
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_signal_during_the_start_ends_the_server_too() {
    let plugins = plugins(&["pooling"]);
    // An issuer that is slow to answer.
    let issuer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    let jwks = format!("[[auth.users.jwks]]\nissuer = \"x\"\nurl = \"http://{}/\"\n", issuer.local_addr().unwrap());
    std::fs::write(config.path(), format!("auth.users.algorithms = [\"ES256\"]\n{jwks}")).unwrap();
    let mut process = tokio::process::Command::from(signalpost())
        .args(["serve", "--listen", "127.0.0.1:0", "--plugins"])
        .arg(plugins.path())
        .arg("--config")
        .arg(config.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let _asks = timeout(SOON, issuer.accept()).await.expect("the issuer is asked").unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(process.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = timeout(Duration::from_secs(3), process.wait()).await.expect("it ends at once").unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Logs more than a pipe holds, if anybody reads it.
async fn chatter(server: &TestServer) {
    for user in 0..400 {
        drop(server.connect(&user.to_string()).await);
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nobody_up() {
    let plugins = plugins(&["pooling"]);
    let (mut process, _log) = ServerProcess::piped(plugins.path(), "[log]\nlevel = \"debug\"\n");
    for _ in 0..20 {
        chatter(&process.server).await;
        if process.server.metric("signalpost_log_lines_dropped_total").await > 0.0 {
            process.signal(Signal::TERM);
            assert_eq!(process.ended().await.0.code(), Some(0));
            return;
        }
    }
    panic!("lines that nobody reads are dropped and counted");
}

#[tokio::test]
async fn a_log_whose_reader_is_gone_changes_nothing() {
    let plugins = plugins(&["pooling"]);
    let (mut process, log) = ServerProcess::piped(plugins.path(), "");
    drop(log);
    let mut client = process.server.connect("1001").await;
    assert_eq!(process.server.reload().await.0, 200);
    process.server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(client.json().await, 1);
    process.signal(Signal::TERM);
    assert_eq!(client.closed().await.0, 1012, "it drains");
    assert_eq!(process.ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_hangup_reloads_the_policies_and_other_signals_of_users_do_nothing() {
    let dir = plugins(&["pooling"]);
    let process = ServerProcess::start(dir.path(), "[plugins]\nwatch = false\n");
    let mut client = process.server.connect("1001").await;
    for signal in [Signal::USR1, Signal::USR2] {
        process.signal(signal);
    }
    std::fs::remove_file(dir.path().join("pooling.wasm")).unwrap();
    process.signal(Signal::HUP);
    process.server.metric_reaches(r#"signalpost_policy_reloads_total{outcome="swapped"}"#, 1.0).await;
    assert_eq!(process.server.get("/policies").await["policies"], json!([]));
    process.server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(client.json().await, 1, "the sockets stay");
}
