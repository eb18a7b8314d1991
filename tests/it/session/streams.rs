//! Server-sent events: the same sessions, over an HTTP response, with a way up by POST.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::described::Request;
use crate::support::process::ServerProcess;
use crate::support::raw::Raw;
use crate::support::wat::Guest;
use crate::support::{QUIET, SOON, TestServer, plugins};

mod origins;
mod stops;
mod tokens;

const SECRET: &str = "cKq8Zr2mW5xT1vB9nJ4hL7pD3fG6sA0yE";

/// A stream as an EventSource reads it.
struct Events {
    response: Response,
    text: String,
    /// The session's id.
    session: String,
    last_id: String,
    retry: String,
    comments: usize,
}

#[derive(Debug, PartialEq)]
struct Event {
    name: String,
    data: Value,
}

impl Events {
    async fn of(request: Request) -> Events {
        let response = timeout(SOON, request.send()).await.expect("a head in time").unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        Events { response, text: String::new(), session: String::new(), last_id: String::new(), retry: String::new(), comments: 0 }
    }

    /// Opens a stream, and reads its hello and the answer to its resume, which is returned.
    async fn greeted(request: Request) -> (Events, Value) {
        let mut events = Events::of(request).await;
        let hello = events.named("hello").await;
        assert_eq!(hello["type"], "hello");
        events.session = hello["data"]["session"].as_str().unwrap().to_owned();
        let resume = events.named("resume").await;
        assert_eq!(resume["type"], "resume");
        (events, resume["data"].clone())
    }

    async fn open(server: &TestServer, user_and_query: &str) -> Events {
        Events::greeted(server.http.get(server.url(&format!("/sse/{user_and_query}")))).await.0
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        let mut event = Event { name: String::new(), data: Value::Null };
        loop {
            while let Some((line, rest)) = self.text.split_once('\n') {
                let (field, value) = line.split_once(": ").unwrap_or((line, ""));
                match field {
                    "" if event.data != Value::Null => {
                        self.text = rest.to_owned();
                        return Some(event);
                    }
                    "" => {}
                    ":" => self.comments += 1,
                    "event" => event.name = value.to_owned(),
                    "id" => self.last_id = value.to_owned(),
                    "retry" => self.retry = value.to_owned(),
                    "data" => event.data = serde_json::from_str(value).unwrap_or_else(|error| panic!("{value}: {error}")),
                    other => panic!("an unknown field {other:?}"),
                }
                self.text = rest.to_owned();
            }
            match timeout(SOON, self.response.chunk()).await.expect("an event in time") {
                Ok(Some(bytes)) => self.text += std::str::from_utf8(&bytes).unwrap(),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    async fn named(&mut self, name: &str) -> Value {
        let event = self.next().await.expect("an open stream");
        assert_eq!(event.name, name, "{}", event.data);
        event.data
    }

    /// The data of the next event, which is a message.
    async fn data(&mut self) -> Value {
        let message = self.named("").await;
        assert_eq!(message["type"], "message");
        assert!(self.last_id.ends_with(&format!(".{}", message["seq"])), "{} {message}", self.last_id);
        message["data"].clone()
    }

    /// The code and the rest of the last event, after whatever comes before it.
    async fn closed(&mut self) -> (u64, Value) {
        while let Some(Event { name, data }) = self.next().await {
            if name == "close" {
                assert_eq!(self.next().await, None, "nothing follows");
                return (data["code"].as_u64().unwrap(), data);
            }
        }
        panic!("the stream ended without a close");
    }

    async fn quiet(&mut self) {
        if let Ok(event) = timeout(QUIET, self.next()).await {
            panic!("nothing was to come, and {event:?} did");
        }
    }
}

/// Posts a frame for a stream: the status, and the code of a problem.
async fn up(server: &TestServer, events: &Events, user: &str, frame: &str) -> (u16, Value) {
    let request = server.http.post(server.url(&format!("/sse/{user}/{}", events.session)));
    answer(request.body(frame.to_owned())).await
}

async fn answer(request: Request) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    if status == StatusCode::ACCEPTED {
        assert_eq!(response.text().await.unwrap(), "");
        return (202, Value::Null);
    }
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    (status.as_u16(), response.json::<Value>().await.unwrap()["code"].clone())
}

fn accepted() -> (u16, Value) {
    (202, Value::Null)
}

fn closed(code: u16) -> String {
    format!(r#"signalpost_sessions_closed_total{{code="{code}"}}"#)
}

#[tokio::test]
async fn a_stream_begins_with_hello_and_resume_and_its_messages_have_ids() {
    let server = TestServer::start().await;
    server.post("/users/1001/messages", json!({ "n": 0 })).await;
    let (mut events, resume) = Events::greeted(server.http.get(server.url("/sse/1001"))).await;
    let headers = events.response.headers();
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("connection", "close"),
        ("vary", "origin"),
    ] {
        assert_eq!(headers[name], value);
    }
    assert!(headers["date"].to_str().unwrap().ends_with(" GMT") && !headers.contains_key("access-control-allow-origin"));
    assert_eq!((resume, &*events.retry), (json!({ "recovered": true, "from": 0 }), "2000"));
    assert!(events.last_id.ends_with(".0"), "{}", events.last_id);
    assert_eq!(events.data().await, json!({ "n": 0 }));
    server.post("/users/1001/messages", json!({ "n": 1 })).await;
    assert_eq!(events.data().await, json!({ "n": 1 }));
    assert!(events.last_id.ends_with(".2"));
    let presence = server.get("/users/1001").await;
    assert_eq!((&presence["online"], &presence["sessions"][0]["id"]), (&json!(true), &json!(events.session)));
    assert_eq!(presence["sessions"][0]["subprotocol"], "signalpost.v1");
    events.quiet().await;
}

#[tokio::test]
async fn json_with_line_breaks_is_one_event() {
    let server = TestServer::start().await;
    let mut events = Events::open(&server, "1001").await;
    let body = "{\r\n  \"a\": [1.50,\n\n 2]\n}";
    let request = server.http.post(server.url("/users/1001/messages")).header("content-type", "application/json");
    assert_eq!(request.body(body).send().await.unwrap().status(), 202);
    assert_eq!(events.data().await, json!({ "a": [1.5, 2] }));
}

#[tokio::test]
async fn a_stream_goes_on_after_its_last_event_id_which_acks_what_came_before() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 50").await;
    let mut first = Events::open(&server, "1001").await;
    for n in 1..=3 {
        server.post("/users/1001/messages", json!(n)).await;
    }
    for n in 1..=2 {
        assert_eq!(first.data().await, n);
    }
    let id = first.last_id.clone();
    drop(first);
    server.metric_reaches(&closed(1006), 1.0).await;
    // The header is newer than the query string, which an EventSource repeats.
    let by_header = server.http.get(server.url("/sse/1001?last_event_id=e.1")).header("last-event-id", &id);
    let by_query = server.http.get(server.url(&format!("/sse/1001?last_event_id={id}")));
    for (round, request) in [by_header, by_query].into_iter().enumerate() {
        let (mut events, resume) = Events::greeted(request).await;
        assert_eq!(resume, json!({ "recovered": true, "from": 2 }));
        assert_eq!(events.data().await, 3);
        events.quiet().await;
        drop(events);
        server.metric_reaches(&closed(1006), round as f64 + 2.0).await;
    }
    // Since its client acks, what is only written doesn't count as read: a socket that doesn't resume reads it again, and not what was acked.
    server.post("/users/1001/messages", json!(4)).await;
    let resuming = |id: &str| server.http.get(server.url("/sse/1001")).header("last-event-id", id);
    let (mut events, _) = Events::greeted(resuming(&id)).await;
    assert_eq!([events.data().await, events.data().await], [3, 4]);
    let id = events.last_id.clone();
    drop(events);
    server.metric_reaches(&closed(1006), 4.0).await;
    let mut socket = server.connect_v1("1001").await;
    socket.json().await;
    assert_eq!(socket.json().await["data"], 4);
    drop(socket);
    server.metric_reaches(&closed(1006), 5.0).await;
    drop(Events::greeted(resuming(&id)).await);
    server.metric_reaches(&closed(1006), 6.0).await;
    let mut socket = server.connect_v1("1001").await;
    socket.json().await;
    socket.quiet().await;
}

#[tokio::test]
async fn an_unknown_last_event_id_is_not_recovered_and_what_is_kept_follows() {
    let server = TestServer::start().await;
    for n in 1..=2 {
        server.post("/users/1001/messages", json!(n)).await;
    }
    for id in ["x", "another-epoch.1", "1", "..", "%FF.1", "e.99999999999999999999"] {
        let (mut events, resume) = Events::greeted(server.http.get(server.url(&format!("/sse/1001?last_event_id={id}")))).await;
        assert_eq!(resume, json!({ "recovered": false, "from": 0 }), "{id}");
        for n in 1..=2 {
            assert_eq!(events.data().await, n, "{id}");
        }
    }
}

#[tokio::test]
async fn a_seq_beyond_the_mailbox_is_not_recovered() {
    let server = TestServer::start().await;
    let mut events = Events::open(&server, "1001").await;
    server.post("/users/1001/messages", json!(1)).await;
    events.data().await;
    let (epoch, _) = events.last_id.rsplit_once('.').unwrap();
    let url = server.url(&format!("/sse/1001?last_event_id={epoch}.18446744073709551615"));
    let (mut ahead, resume) = Events::greeted(server.http.get(url)).await;
    assert_eq!((&resume["recovered"], &resume["from"]), (&json!(false), &json!(1)), "{resume}");
    server.post("/users/1001/messages", json!(2)).await;
    assert_eq!(ahead.data().await, 2);
}

/// Takes each message that is a string, and leaves others alone.
fn taking() -> tempfile::TempDir {
    let dir = plugins(&[]);
    let body = "(if (result i32) (i32.eq (i32.load8_u (local.get $body)) (i32.const 34))
        (then (drop (call $silent)) (call $mine)) (else (call $not_mine)))";
    std::fs::write(dir.path().join("take.wasm"), Guest::sessions(body).component()).unwrap();
    dir
}

#[tokio::test]
async fn what_a_client_posts_is_answered_over_its_stream() {
    let dir = taking();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}", dir.path())).await;
    let mut events = Events::open(&server, "J%C3%BCrgen").await;
    for (frame, name, envelope) in [
        (r#"{"type":"ping"}"#, "pong", json!({ "type": "pong" })),
        (r#"{"type":"message","data":"a","id":"7","want":"taken"}"#, "taken", json!({ "type": "taken", "id": "7" })),
    ] {
        assert_eq!(up(&server, &events, "J%C3%BCrgen", frame).await, accepted());
        assert_eq!(events.named(name).await, envelope);
    }
    assert_eq!(up(&server, &events, "J%C3%BCrgen", r#"{"type":"message","data":1,"id":"8"}"#).await, accepted());
    let problem = events.named("problem").await;
    assert_eq!((&problem["type"], &problem["id"], &problem["data"]["code"]), (&json!("error"), &json!("8"), &json!("unhandled")));

    for n in 1..=2 {
        server.post("/users/J%C3%BCrgen/messages", json!(n)).await;
        events.data().await;
    }
    assert_eq!(up(&server, &events, "J%C3%BCrgen", r#"{"type":"ack","seq":1}"#).await, accepted());
    // One frame after the other: the ack was handled before this is answered.
    up(&server, &events, "J%C3%BCrgen", r#"{"type":"ping"}"#).await;
    events.named("pong").await;
    drop(events);
    server.metric_reaches(&closed(1006), 1.0).await;
    let mut fresh = Events::open(&server, "J%C3%BCrgen").await;
    assert_eq!(fresh.data().await, 2, "what was acked is not sent again");
}

#[tokio::test]
async fn a_frame_that_is_not_one_of_this_session_is_refused_and_the_stream_goes_on() {
    let server = TestServer::with("[sockets]\nmessage_bytes_max = 1024").await;
    let mut events = Events::open(&server, "1001").await;
    let other = Events::open(&server, "1002").await;
    let mut socket = server.connect_v1("1001").await;
    let hello = socket.json().await;
    let to = |session: &str| server.http.post(server.url(&format!("/sse/1001/{session}")));
    let good = r#"{"type":"ping"}"#;
    for session in ["x", &other.session, hello["data"]["session"].as_str().unwrap(), &events.session[..31], "%FF"] {
        let (status, code) = answer(to(session).body(good)).await;
        assert!((status, code.as_str()) == (404, Some("session")) || session == "%FF" && status == 400, "{session}: {status} {code}");
    }
    for (body, expected) in [
        (Vec::new(), (400, json!("frame"))),
        (b"hello".to_vec(), (400, json!("frame"))),
        (b"\xFF".to_vec(), (400, json!("frame"))),
        (br#"{"type":"message"}"#.to_vec(), (400, json!("frame"))),
        (br#"[{"type":"ping"}]"#.to_vec(), (400, json!("frame"))),
        (br#"{"type":"ping"}{"type":"ping"}"#.to_vec(), (400, json!("frame"))),
        (br#"{"type":"resume"}"#.to_vec(), (400, json!("frame"))),
        (format!(r#"{{"type":"message","data":"{}"}}"#, "x".repeat(1024)).into_bytes(), (413, json!("body_too_large"))),
    ] {
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(answer(to(&events.session).body(body)).await, expected, "{text}");
    }
    let (status, code) = answer(to(&events.session).header("content-encoding", "gzip").body(good)).await;
    assert_eq!((status, &code), (415, &json!("content_encoding")));
    let (status, _) = answer(server.http.get(server.url(&format!("/sse/1001/{}", events.session)))).await;
    assert_eq!(status, 405);
    let head = server.http.head(server.url("/sse/1001")).send().await.unwrap();
    assert_eq!(head.status(), 405);

    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(events.data().await, 1);
    let request = to(&events.session);
    drop(events);
    server.metric_reaches(&closed(1006), 1.0).await;
    assert_eq!(answer(request.body(good)).await, (404, json!("session")), "the session is over");
}

#[tokio::test]
async fn too_many_frames_end_the_stream_as_they_end_a_socket() {
    let server = TestServer::with("[sockets]\nmessages_per_second_max = 1\nbytes_per_second_max = 1024\nmessage_bytes_max = 65536").await;
    let mut many = Events::open(&server, "1001").await;
    for _ in 0..30 {
        let (status, _) = up(&server, &many, "1001", r#"{"type":"ping"}"#).await;
        assert!([202, 404].contains(&status), "{status}");
    }
    assert_eq!(many.closed().await.0, 4102);
    let mut large = Events::open(&server, "1002").await;
    let frame = format!(r#"{{"type":"ping","more":"{}"}}"#, "x".repeat(11_000));
    assert_eq!(up(&server, &large, "1002", &frame).await, accepted());
    assert_eq!(large.closed().await.0, 4102);
}

#[tokio::test]
async fn comments_show_a_silent_client_that_the_server_is_there() {
    let server = TestServer::with("[sockets]\nping_interval_ms = 100\npong_deadline_ms = 100").await;
    let mut events = Events::open(&server, "1001").await;
    events.quiet().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(events.data().await, 1);
    assert!((3..=20).contains(&events.comments), "{}", events.comments);
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_at_once() {
    let server = TestServer::start().await;
    let events = Events::open(&server, "1001").await;
    let began = tokio::time::Instant::now();
    drop(events);
    server.metric_reaches("signalpost_sessions", 0.0).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(server.metric(&closed(1006)).await, 1.0);
}

#[tokio::test]
async fn a_slow_reader_of_a_stream_is_closed_as_a_slow_socket_is_and_resumes() {
    let server = TestServer::with("[sockets]\nwrite_deadline_ms = 300\n[mailboxes]\nmessages_max = 500\nbytes_max = 67_108_864").await;
    let mut slow = Raw::connect(server.address).await;
    slow.write(b"GET /api/pool/sse/1001 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(slow.head().await.starts_with("http/1.1 200 "));
    let mut quick = Events::open(&server, "1001").await;
    let large = "x".repeat(200_000);
    for n in 0..50 {
        server.post("/users/1001/messages", json!([n, large])).await;
        assert_eq!(quick.data().await[0], n);
    }
    server.metric_reaches(&closed(4100), 1.0).await;
    // Of a part, the id is whole, and nothing after it is lost.
    let text = slow.rest().await;
    let id = text.match_indices("\ndata: {\"seq\"").filter_map(|(at, _)| text[..at].rsplit_once("id: ")).map(|(_, id)| id).last();
    let id = id.expect("a first message").to_owned();
    let read: u64 = id.rsplit_once('.').unwrap().1.parse().unwrap();
    let (mut events, resume) = Events::greeted(server.http.get(server.url(&format!("/sse/1001?last_event_id={id}")))).await;
    assert_eq!(resume, json!({ "recovered": true, "from": read }));
    for n in read..50 {
        assert_eq!(events.data().await[0], n);
    }
}

#[tokio::test]
async fn a_user_has_as_many_streams_and_sockets_as_the_settings_say() {
    let server = TestServer::with("[sockets]\nper_user_max = 2").await;
    let mut oldest = Events::open(&server, "1001").await;
    let mut socket = server.connect("1001").await;
    let mut newest = Events::open(&server, "1001").await;
    let (code, close) = oldest.closed().await;
    assert_eq!((code, &close["reason"], close.get("after_ms")), (4202, &json!("replaced by a newer session"), None));
    server.post("/users/1001/messages", json!("for two")).await;
    assert_eq!(socket.text().await, "\"for two\"");
    assert_eq!(newest.data().await, "for two");
    let ended = server.http.delete(server.url("/users/1001/sessions")).send().await.unwrap();
    assert_eq!(ended.status(), 200);
    assert_eq!(newest.closed().await.0, 4200);

    let strict = TestServer::with("[sockets]\nper_user_max = 1\ntoo_many = \"refuse-newest\"\nper_address_max = 2").await;
    let _first = Events::open(&strict, "1001").await;
    let mut refused = Events::of(strict.http.get(strict.url("/sse/1001"))).await;
    assert_eq!(refused.closed().await.0, 4101, "it is 200, since an EventSource gives up at anything else");
    let _second = Events::open(&strict, "1002").await;
    let full = strict.http.get(strict.url("/sse/1003"));
    assert_eq!(answer(full).await, (429, json!("too_many_sessions_of_address")));
}

#[tokio::test]
async fn a_policy_refuses_a_stream_in_its_own_words() {
    let dir = plugins(&[]);
    let opened = "(drop (call $silent))
        (i32.store8 (i32.const 832) (i32.const 1))
        (i32.store (i32.const 836) (global.get $code)) (i32.store (i32.const 840) (global.get $code_bytes))
        (i32.store (i32.const 844) (global.get $detail)) (i32.store (i32.const 848) (global.get $detail_bytes))
        (i32.const 832)";
    let strings = &[("code", "stranger"), ("detail", "nobody knows you")];
    let guest = Guest { strings, opened, ..Guest::sessions("(call $not_mine)") };
    std::fs::write(dir.path().join("bouncer.wasm"), guest.component()).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}", dir.path())).await;
    let mut events = Events::of(server.http.get(server.url("/sse/1001"))).await;
    let (code, close) = events.closed().await;
    assert_eq!((code, &close["reason"]), (4203, &json!("nobody knows you")));
    server.metric_reaches(&closed(4203), 1.0).await;
}

#[tokio::test]
async fn a_stream_may_follow_other_requests_on_its_connection_and_nothing_follows_it() {
    let server = TestServer::start().await;
    let mut raw = Raw::connect(server.address).await;
    let health = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    raw.write(health.as_bytes()).await;
    assert!(raw.head().await.starts_with("http/1.1 200 "));
    raw.write(format!("GET /api/pool/sse/1001 HTTP/1.1\r\nHost: x\r\n\r\n{health}").as_bytes()).await;
    server.metric_reaches("signalpost_sessions", 1.0).await;
    server.http.delete(server.url("/users/1001/sessions")).send().await.unwrap();
    let text = raw.rest().await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 1, "{text}");
    assert!(text.contains("event: close\ndata: {\"code\":4200"), "{text}");
}

#[tokio::test]
async fn what_a_reader_sees_is_formatted_as_for_a_socket() {
    let server = TestServer::start().await;
    let mut compact = Events::open(&server, "1001?format=compact&locale=de").await;
    let mut socket = server.connect_v1("1001?format=compact&locale=de").await;
    socket.json().await;
    server.publish("pooling.match.found", json!({ "request_id": 42, "rider_id": 1001, "driver_id": 7, "pool_id": 1 })).await;
    let by_socket = socket.json().await["data"].clone();
    assert_eq!(compact.data().await, by_socket);
    assert_ne!(by_socket["details"], "You have been matched for a pooling request!", "it is formatted: {by_socket}");
}

#[tokio::test]
async fn an_idle_stream_holds_at_most_12_kib() {
    const STREAMS: u64 = 2000;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let none = plugins(&[]);
    let process = ServerProcess::start(none.path(), "");
    let mut open = Vec::new();
    let mut before = 0;
    // The first ones pay for what all of them share.
    for user in 0..STREAMS + 200 {
        let mut raw = Raw::connect(process.server.address).await;
        raw.write(format!("GET /api/pool/sse/{user} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        raw.head().await;
        open.push(raw);
        if user == 200 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            before = process.resident_bytes();
        }
    }
    process.server.metric_reaches("signalpost_sessions", STREAMS as f64 + 200.0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let each = (process.resident_bytes() - before) / STREAMS;
    println!("an idle stream holds {each} bytes");
    assert!((1024..=12 * 1024).contains(&each), "{each} bytes");
}
