//! The limits on sessions, connections and bytes that wait, and the answers beyond them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::raw::{self, Raw};
use crate::support::{SOON, TestServer};

/// The answer to a handshake that gets no socket: its head in small letters, and its problem.
async fn turned_away(server: &TestServer, user: &str) -> (String, Value) {
    let mut raw = Raw::connect(server.address).await;
    raw.write(raw::handshake(user, "Connection: close, Upgrade\r\n").as_bytes()).await;
    let answer = raw.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.to_lowercase(), serde_json::from_str(body).unwrap())
}

/// There is a place again.
async fn gets_in(server: &TestServer, user: &str) -> Raw {
    let trying = async {
        loop {
            let mut raw = Raw::connect(server.address).await;
            raw.write(raw::handshake(user, "").as_bytes()).await;
            if raw.head().await.starts_with("http/1.1 101 ") {
                return raw;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, trying).await.expect("a place is given back")
}

#[tokio::test]
async fn one_session_too_many_is_told_to_come_back_and_requests_still_get_in() {
    let server = TestServer::with("sockets.sessions_max = 2").await;
    let mut first = server.connect("1").await;
    let second = server.connect("2").await;
    let (head, problem) = turned_away(&server, "3").await;
    assert!(head.starts_with("http/1.1 503 ") && head.contains("\r\nretry-after: "), "{head}");
    assert_eq!(problem["code"], "too_many_sessions");
    assert!(problem["detail"].as_str().unwrap().contains("sockets.sessions_max"), "{problem}");
    server.post("/users/1/messages", json!(1)).await;
    assert_eq!(first.text().await, "1");
    drop(second);
    gets_in(&server, "3").await;
}

#[tokio::test]
async fn one_session_too_many_of_an_address_is_told_so() {
    let server = TestServer::with("sockets.per_address_max = 2").await;
    let first = server.connect("1").await;
    let mut second = server.connect("2").await;
    let (head, problem) = turned_away(&server, "3").await;
    assert!(head.starts_with("http/1.1 429 ") && head.contains("\r\nretry-after: "), "{head}");
    assert_eq!(problem["code"], "too_many_sessions_of_address");
    server.post("/users/2/messages", json!(2)).await;
    assert_eq!(second.text().await, "2");
    drop(first);
    gets_in(&server, "3").await;
}

#[tokio::test]
async fn a_socket_that_still_has_to_show_its_token_has_a_place_and_gives_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "cKq8Zr2mW5xT1vB9nJ4hL7pD3fG6sA0yE").unwrap();
    let users = format!("algorithms = [\"HS256\"]\nkey_files = [{secret:?}]\nfirst_frame_deadline_ms = 500");
    let server = TestServer::with(&format!("sockets.sessions_max = 1\n[auth.users]\n{users}\n")).await;
    let mut silent = server.connect("1").await;
    assert_eq!(turned_away(&server, "2").await.1["code"], "too_many_sessions");
    assert_eq!(silent.closed().await.0, 4205);
    drop(silent);
    gets_in(&server, "2").await;
}

#[tokio::test]
async fn operators_get_in_when_clients_have_taken_every_connection() {
    let server = TestServer::with("operate_listen = \"127.0.0.1:0\"\nhttp.connections_max = 1\nhttp.operate_connections_max = 5\n").await;
    let operators = TestServer::elsewhere(server.operators);
    let _client = server.connect("1").await;
    let asking = async {
        assert_eq!(operators.get("/users/1").await["online"], true);
        assert_eq!(operators.metric("signalpost_sessions").await, 1.0);
        operators.http.get(format!("http://{}/healthz", operators.address)).send().await.unwrap().status()
    };
    assert_eq!(timeout(SOON, asking).await.expect("an answer in time"), 200);
}

#[tokio::test]
async fn bodies_that_find_no_room_are_refused_and_small_ones_go_on() {
    let server = TestServer::with("[http]\nbodies_bytes_max = 1_000_000\n[events]\nbody_bytes_max = 900_000\n").await;
    let mut reader = server.connect("1").await;
    let begin = async |sent: usize| {
        let mut raw = Raw::connect(server.address).await;
        raw.write(b"POST /api/pool/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n").await;
        // By itself, so that what needs no room is small.
        sleep(Duration::from_millis(50)).await;
        raw.write(&vec![b' '; sent]).await;
        raw
    };
    let held = begin(800_000).await;
    sleep(Duration::from_millis(100)).await;
    let answer = begin(700_000).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: "), "{answer}");
    assert!(answer.contains("too_many_bodies") && answer.contains("http.bodies_bytes_max"), "{answer}");
    server.post("/users/1/messages", json!("small")).await;
    assert_eq!(reader.text().await, "\"small\"");
    drop(held);
    let large = json!({ "type": "x", "data": "y".repeat(200_000) });
    let publishing = async {
        // What the lost producer had sent makes room when its end is noticed.
        let batch = vec![large; 4];
        while server
            .http
            .post(server.url("/events"))
            .json(&batch)
            .header("content-type", "application/cloudevents-batch+json")
            .send()
            .await
            .unwrap()
            .status()
            == 503
        {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, publishing).await.expect("there is room again");
}

#[tokio::test]
async fn a_head_over_its_bytes_or_its_lines_is_refused() {
    let server = TestServer::with("[http]\nheaders_max = 20\nheader_bytes_max = 9_000\n").await;
    let ask = async |headers: String| {
        let mut raw = Raw::connect(server.address).await;
        raw.write(format!("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").as_bytes()).await;
        raw.rest().await.lines().next().unwrap_or_default().to_owned()
    };
    let lines = |count: usize| (0..count).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    assert_eq!(ask(lines(18)).await, "HTTP/1.1 200 OK");
    assert!(ask(lines(19)).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(ask(format!("X: {}\r\n", "x".repeat(8_000))).await, "HTTP/1.1 200 OK");
    assert!(ask(format!("X: {}\r\n", "x".repeat(20_000))).await.starts_with("HTTP/1.1 431 "));
}

/// Each bound on clients and producers, as `signalpost check` names it.
#[test]
fn every_bound_is_shown_by_check() {
    let bounds = [
        "http.connections_max",
        "http.connections_per_address_max",
        "http.operate_connections_max",
        "http.header_deadline_ms",
        "http.header_bytes_max",
        "http.headers_max",
        "http.body_deadline_ms",
        "http.bodies_bytes_max",
        "events.body_bytes_max",
        "events.event_bytes_max",
        "sockets.sessions_max",
        "sockets.per_address_max",
        "sockets.per_user_max",
        "sockets.handshakes_per_second_max",
        "sockets.messages_per_second_max",
        "sockets.bytes_per_second_max",
        "sockets.message_bytes_max",
        "sockets.idle_deadline_ms",
        "sockets.write_deadline_ms",
        "sockets.ping_interval_ms",
        "sockets.pong_deadline_ms",
        "sockets.close_deadline_ms",
        "auth.users.first_frame_deadline_ms",
        "auth.users.first_frame_bytes_max",
        "auth.users.expiry_grace_ms",
        "stop_notice_ms",
        "stop_deadline_ms",
    ];
    let output = crate::support::process::signalpost().args(["check", "--json"]).output().unwrap();
    let shown: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let documented = include_str!("../../../docs/security.md");
    for bound in bounds {
        assert!(shown.iter().any(|setting| setting["path"] == bound), "{bound} is not shown");
        let name = bound.rsplit('.').next().unwrap();
        assert!(documented.contains(name), "{bound} is not in docs/security.md");
    }
}
