//! What a `signalpost.v1` client asks and is answered: pings, and messages with an id.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::process::ServerProcess;
use crate::support::raw::{self, Raw, TEXT};
use crate::support::wat::Guest;
use crate::support::{Client, TestServer, plugins};

/// Takes each message: its user joins the group `lobby`, which is stored.
const JOIN: &str = "(drop (call $silent))
    (memory.fill (i32.const 900) (i32.const 0) (i32.const 64))
    (i32.store (i32.const 844) (i32.const 916)) (i32.store (i32.const 848) (i32.const 1))
    (i32.store (i32.const 916) (global.get $group)) (i32.store (i32.const 920) (global.get $group_bytes))
    (i32.store (i32.const 924) (local.get $user)) (i32.store (i32.const 928) (local.get $user_bytes))
    (call $mine)";

/// A folder with a policy that takes each message.
fn joining() -> tempfile::TempDir {
    let dir = plugins(&[]);
    let guest = Guest { strings: &[("group", "lobby")], ..Guest::sessions(JOIN) };
    std::fs::write(dir.path().join("join.wasm"), guest.component()).unwrap();
    dir
}

async fn greeted(server: &TestServer, user: &str) -> Client {
    let mut client = server.connect_v1(user).await;
    assert_eq!(client.json().await["type"], "hello");
    client
}

#[tokio::test]
async fn a_ping_is_answered_and_counts_as_a_message_of_the_rate() {
    let server = TestServer::with("[sockets]\nmessages_per_second_max = 1").await;
    let mut client = greeted(&server, "1001").await;
    for _ in 0..10 {
        client.send(Message::text(r#"{"type":"ping"}"#)).await;
        assert_eq!(client.text().await, r#"{"type":"pong"}"#);
    }
    // A burst is ten times the rate; the seconds that this takes refill it.
    for _ in 0..30 {
        let _ = futures_util::SinkExt::send(&mut client.socket, Message::text(r#"{"type":"ping"}"#)).await;
    }
    assert_eq!(client.closed().await.0, 4102);
}

#[tokio::test]
async fn a_ping_does_not_end_the_wait_for_a_resume() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 60_000").await;
    server.post("/users/1001/messages", json!(1)).await;
    let mut client = greeted(&server, "1001").await;
    client.send(Message::text(r#"{"type":"ping"}"#)).await;
    assert_eq!(client.text().await, r#"{"type":"pong"}"#);
    client.quiet().await;
    client.send(Message::text(r#"{"type":"resume"}"#)).await;
    assert_eq!(client.json().await["type"], "resume");
    assert_eq!(client.text().await, r#"{"seq":1,"type":"message","data":1}"#);
}

#[tokio::test]
async fn a_message_with_an_id_is_answered_by_it_and_one_without_is_not() {
    let dir = joining();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}", dir.path())).await;
    let mut client = greeted(&server, "1001").await;
    for quiet in [r#"{"type":"message","data":1}"#, r#"{"type":"message","data":1,"id":"a"}"#] {
        client.send(Message::text(quiet)).await;
    }
    client.send(Message::text(r#"{"type":"message","data":1,"id":"b","want":"taken"}"#)).await;
    assert_eq!(client.text().await, r#"{"type":"taken","id":"b"}"#);
    // The id of one message may be that of another.
    client.send(Message::text(r#"{"type":"message","id":"b","want":"taken","data":null}"#)).await;
    assert_eq!(client.text().await, r#"{"type":"taken","id":"b"}"#);
    assert_eq!(server.metric(r#"signalpost_client_messages_total{outcome="handled"}"#).await, 4.0);
    client.quiet().await;
}

#[tokio::test]
async fn a_refused_message_is_refused_by_its_id() {
    let dir = plugins(&[]);
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}", dir.path())).await;
    let mut client = greeted(&server, "1001").await;
    let longest = "x".repeat(64);
    for (frame, id, code) in [
        (r#"{"type":"message","data":1,"id":"7"}"#.to_owned(), Some("7"), "unhandled"),
        (r#"{"type":"message","data":1,"id":"7","want":"taken"}"#.to_owned(), Some("7"), "unhandled"),
        (format!(r#"{{"type":"message","data":1,"id":"{longest}"}}"#), Some(&*longest), "unhandled"),
        (r#"{"type":"message","data":1}"#.to_owned(), None, "unhandled"),
        (r#"{"type":"message","id":"7"}"#.to_owned(), Some("7"), "invalid_frame"),
        (r#"{"type":"message","data":1,"id":"7","want":"more"}"#.to_owned(), Some("7"), "invalid_frame"),
        (r#"{"type":"message","data":1,"want":"taken"}"#.to_owned(), None, "invalid_frame"),
        (format!(r#"{{"type":"message","data":1,"id":"{longest}x"}}"#), None, "invalid_frame"),
        (r#"{"type":"message","data":1,"id":7}"#.to_owned(), None, "invalid_frame"),
        (r#"{"type":"message","data":1,"id":""}"#.to_owned(), None, "invalid_frame"),
    ] {
        client.send(Message::text(frame.clone())).await;
        let answer = client.json().await;
        assert_eq!((&answer["type"], answer.get("id")), (&json!("error"), id.map(|id| json!(id)).as_ref()), "{frame}: {answer}");
        assert_eq!(answer["data"]["code"], code, "{frame}: {answer}");
    }
}

#[tokio::test]
async fn without_a_subprotocol_an_id_is_part_of_the_message() {
    let dir = joining();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}", dir.path())).await;
    let mut client = server.connect("1001").await;
    for frame in [r#"{"type":"message","data":1,"id":"7","want":"taken"}"#, r#"{"type":"ping"}"#] {
        client.send(Message::text(frame)).await;
    }
    server.metric_reaches(r#"signalpost_client_messages_total{outcome="handled"}"#, 2.0).await;
    client.quiet().await;
}

/// A server each of whose syncs takes a while, and a client of it.
struct Slow {
    process: ServerProcess,
    client: Client,
    /// The folders of its plugins and of its store.
    _folders: [tempfile::TempDir; 2],
}

impl Slow {
    /// `deadline_ms`: how long an answer waits for a sync.
    async fn start(sync_ms: u32, deadline_ms: u32) -> Slow {
        let (plugins, store) = (joining(), tempfile::tempdir().unwrap());
        let dir = store.path().join("store");
        let settings = format!("[store]\ndir = {dir:?}\ndurability = \"fsync\"\ncommit_deadline_ms = {deadline_ms}\n");
        let inject = format!("-einject=fdatasync:delay_enter={}", sync_ms * 1000);
        // With -D the server, and not strace, is the child.
        let trace = ["/usr/bin/strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o/dev/null", &inject];
        let process = ServerProcess::under(&trace, plugins.path(), &settings);
        let client = greeted(&process.server, "1001").await;
        Slow { process, client, _folders: [plugins, store] }
    }
}

#[tokio::test]
async fn a_message_is_taken_when_it_is_stored_and_the_session_goes_on_meanwhile() {
    let mut slow = Slow::start(600, 30_000).await;
    let began = Instant::now();
    slow.client.send(Message::text(r#"{"type":"message","data":1,"id":"a","want":"taken"}"#)).await;
    slow.client.send(Message::text(r#"{"type":"ping"}"#)).await;
    assert_eq!(slow.client.text().await, r#"{"type":"pong"}"#, "the disk is not waited for");
    assert_eq!(slow.client.text().await, r#"{"type":"taken","id":"a"}"#);
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
}

#[tokio::test]
async fn many_messages_at_once_are_all_taken_in_their_order() {
    let mut slow = Slow::start(300, 30_000).await;
    // More than wait at a time: further ones are read when the store is that far.
    let mut frames = Vec::new();
    for id in 0..600 {
        frames.extend(raw::frame(TEXT, true, format!(r#"{{"type":"message","data":1,"id":"{id}","want":"taken"}}"#).as_bytes()));
    }
    tokio::io::AsyncWriteExt::write_all(slow.client.socket.get_mut(), &frames).await.unwrap();
    for id in 0..600 {
        assert_eq!(slow.client.json().await, json!({ "type": "taken", "id": id.to_string() }));
    }
}

#[tokio::test]
async fn a_message_that_is_not_stored_in_time_is_not_taken() {
    let mut slow = Slow::start(2000, 300).await;
    slow.client.send(Message::text(r#"{"type":"message","data":1,"id":"a","want":"taken"}"#)).await;
    let answer = slow.client.json().await;
    assert_eq!((&answer["type"], &answer["id"], &answer["data"]["code"]), (&json!("error"), &json!("a"), &json!("not_stored")), "{answer}");
}

#[tokio::test]
async fn a_stop_waits_until_what_was_taken_is_stored() {
    let mut slow = Slow::start(600, 30_000).await;
    slow.client.send(Message::text(r#"{"type":"message","data":1,"id":"a","want":"taken"}"#)).await;
    slow.process.server.metric_reaches(r#"signalpost_client_messages_total{outcome="handled"}"#, 1.0).await;
    slow.process.signal(rustix::process::Signal::TERM);
    assert_eq!(slow.client.text().await, r#"{"type":"taken","id":"a"}"#);
    assert_eq!(slow.client.json().await["type"], "reconnect");
    assert_eq!(slow.client.closed().await.0, 1012);
}

#[tokio::test]
async fn what_comes_with_the_handshake_is_answered_in_its_order() {
    let server = TestServer::start().await;
    server.post("/users/1001/messages", json!(1)).await;
    let mut raw = Raw::connect(server.address).await;
    let mut bytes = raw::handshake("1001", "Sec-WebSocket-Protocol: signalpost.v1\r\n").into_bytes();
    for frame in [r#"{"type":"resume"}"#, r#"{"type":"ping"}"#] {
        bytes.extend(raw::frame(TEXT, true, frame.as_bytes()));
    }
    raw.write(&bytes).await;
    raw.head().await;
    let mut kinds = Vec::new();
    for _ in 0..4 {
        let frame: serde_json::Value = serde_json::from_str(&raw.text().await).unwrap();
        kinds.push(frame["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["hello", "resume", "pong", "message"]);
}
