//! The producers' stream: many events under way over one WebSocket, with their receipts in order.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use signalpost_load::{Plan, Scenario, Target, Traffic, run};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::process::ServerProcess;
use crate::support::raw::{CLOSE, Raw, TEXT, frame};
use crate::support::{Client, SOON, TestServer, plugins};

const PROTOCOL: &str = "signalpost.publish.v1";

fn url(server: &TestServer) -> String {
    format!("ws://{}/api/pool/publish", server.address)
}

/// Opens a stream, and reads its hello.
async fn open(server: &TestServer) -> (Client, Value) {
    let mut stream = Client::open(&url(server), Some(PROTOCOL)).await;
    let hello = stream.json().await;
    assert_eq!(hello["type"], "hello", "{hello}");
    (stream, hello)
}

/// Opens a stream by hand, to write several frames together.
async fn open_raw(server: &TestServer) -> Raw {
    let mut raw = Raw::connect(server.address).await;
    let head = "GET /api/pool/publish HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    raw.write(format!("{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n").as_bytes()).await;
    assert!(raw.head().await.starts_with("http/1.1 101 "));
    assert!(raw.text().await.contains("hello"));
    raw
}

fn frames(texts: impl IntoIterator<Item = String>) -> Vec<u8> {
    texts.into_iter().flat_map(|text| frame(TEXT, true, text.as_bytes())).collect()
}

fn told(number: usize) -> String {
    json!({ "user": "1001", "message": number, "id": format!("m{number}") }).to_string()
}

/// The status and the problem's code of a handshake that is refused.
async fn refused(server: &TestServer, path: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
    let mut request = format!("ws://{}/api/pool{path}", server.address).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match Client::ask(request).await {
        Err(Error::Http(response)) => {
            let problem: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap_or_default();
            (response.status().as_u16(), problem["code"].as_str().unwrap_or_default().to_owned())
        }
        Err(other) => panic!("a refusal, not {other:?}"),
        Ok(_) => panic!("a refusal, not a stream"),
    }
}

#[tokio::test]
async fn receipts_come_in_the_order_of_the_frames_however_many_are_under_way() {
    let server = TestServer::start().await;
    let mut reader = server.connect("1001").await;
    let mut stream = open_raw(&server).await;
    stream.write(&frames((0..200).map(told))).await;
    for number in 0..200 {
        let receipt: Value = serde_json::from_str(&stream.text().await).unwrap();
        assert_eq!((&receipt["id"], &receipt["posted"]), (&json!(format!("m{number}")), &json!(1)), "{receipt}");
    }
    for number in 0..200 {
        assert_eq!(reader.json().await, json!(number));
    }
    server.metric_reaches("signalpost_publish_streams", 1.0).await;
    assert_eq!(server.metric("signalpost_publish_seconds_count").await, 200.0);
    drop(stream);
    server.metric_reaches("signalpost_publish_streams", 0.0).await;
}

#[tokio::test]
async fn a_frame_is_an_event_several_or_a_message_and_its_answer_is_that_of_a_post() {
    let server = TestServer::start().await;
    let (mut rider, mut driver) = (server.connect("1001").await, server.connect("2002").await);
    let (mut stream, hello) = open(&server).await;
    assert_eq!((&hello["credit"], &hello["limits"]["batch_max"]), (&json!(256), &json!(1000)));
    let matched = json!({ "request_id": 42, "rider_id": "1001", "driver_id": "2002", "pool_id": "p1" });
    stream.send_json(json!({ "type": "pooling.match.found", "data": matched })).await;
    let receipt = stream.json().await;
    let posted = server.publish("pooling.match.found", matched.clone()).await;
    let members = |receipt: &Value| receipt.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((members(&receipt), &receipt["policies"]), (members(&posted), &posted["policies"]));
    for client in [&mut rider, &mut driver] {
        assert_eq!(client.json().await, client.json().await);
    }

    let event = |id: &str| json!({ "specversion": "1.0", "id": id, "source": "/s", "type": "nobody.wants" });
    stream.send_json(json!([event("1"), { "type": "nobody.wants" }, { "no": "type" }, event("1")])).await;
    let answers = stream.json().await;
    assert_eq!((&answers[0]["id"], &answers[0]["duplicate"]), (&json!("1"), &json!(false)));
    assert_eq!((&answers[2]["status"], &answers[2]["code"]), (&json!(400), &json!("missing_attribute")));
    assert_eq!((answers.as_array().unwrap().len(), &answers[3]["duplicate"]), (4, &json!(true)));

    stream.send_json(json!({ "user": "1001", "message": { "a": 1 }, "ttl_ms": 60_000 })).await;
    assert_eq!(stream.json().await["posted"], 1);
    assert_eq!(rider.json().await, json!({ "a": 1 }));
    stream.send(Message::Binary(br#"{"user":"1001","message":"binary frames are read too"}"#.as_slice().into())).await;
    assert_eq!(stream.json().await["posted"], 1);
}

#[tokio::test]
async fn what_is_wrong_with_a_frame_is_its_answer_and_the_stream_goes_on() {
    let server = TestServer::with("[events]\nevent_bytes_max = 20").await;
    let (mut stream, _) = open(&server).await;
    for (text, status, code) in [
        ("nonsense", 400, "json"),
        (r#"{"data":1}"#, 400, "missing_attribute"),
        (r#"{"type":"a","subject":""}"#, 400, "attribute"),
        (r#"{"type":"a","data":"0123456789012345678901"}"#, 413, "event_too_large"),
        (r#"{"user":"1","message":"0123456789012345678901"}"#, 413, "event_too_large"),
        (r#"{"user":"","message":1}"#, 400, "user_id"),
        (r#"{"user":"1","message":1,"collapse_key":""}"#, 400, "collapse_key"),
    ] {
        stream.send(text).await;
        let problem = stream.json().await;
        assert_eq!(
            (&problem["status"], &problem["code"], &problem["type"]),
            (&json!(status), &json!(code), &json!("about:blank")),
            "{text}"
        );
        assert!(problem["detail"].as_str().unwrap().len() > 10, "{problem}");
    }
    assert_eq!(server.metric("signalpost_http_problems_total{code=\"event_too_large\"}").await, 2.0);
    stream.send(r#"{"type":"a"}"#).await;
    assert_eq!(stream.json().await["duplicate"], false);
}

#[tokio::test]
async fn a_producer_that_ignores_its_credit_is_closed_and_nothing_beyond_it_is_published() {
    let server = TestServer::with("[publish]\ncredit = 4").await;
    let mut stream = open_raw(&server).await;
    stream.write(&frames((0..6).map(told))).await;
    for number in 0..4 {
        assert!(stream.text().await.contains(&format!("\"m{number}\"")));
    }
    assert_eq!(stream.closed().await.0, 4103);
    assert_eq!(server.metric("signalpost_messages_posted_total").await, 4.0);
    // One that waits for its answers may send any number.
    let (mut stream, hello) = open(&server).await;
    assert_eq!(hello["credit"], 4);
    for number in 10..30 {
        stream.send(told(number)).await;
        assert_eq!(stream.json().await["posted"], 1);
    }
}

#[tokio::test]
async fn a_frame_over_the_limit_is_answered_and_ends_the_stream() {
    let server = TestServer::with("[events]\nbody_bytes_max = 1000\nevent_bytes_max = 500").await;
    let mut stream = open_raw(&server).await;
    stream.write(&frames([told(0), "x".repeat(1001)])).await;
    assert!(stream.text().await.contains("\"m0\""));
    let problem: Value = serde_json::from_str(&stream.text().await).unwrap();
    assert_eq!((&problem["status"], &problem["code"]), (&json!(413), &json!("body_too_large")));
    assert_eq!(stream.closed().await.0, 1009);
    // Text that is not UTF-8 has no answer.
    let mut stream = open_raw(&server).await;
    stream.write(&frame(TEXT, true, b"\xFF")).await;
    assert_eq!(stream.closed().await.0, 1007);
}

#[tokio::test]
async fn a_handshake_without_the_subprotocol_or_over_a_limit_is_refused_in_words() {
    let server = TestServer::with("[publish]\nstreams_max = 1").await;
    assert_eq!(refused(&server, "/publish", &[]).await, (400, "subprotocol".into()));
    assert_eq!(refused(&server, "/publish", &[("sec-websocket-protocol", "signalpost.v1")]).await, (400, "subprotocol".into()));
    assert_eq!(refused(&server, "/publish?dry_run=true", &[("sec-websocket-protocol", PROTOCOL)]).await, (400, "query".into()));
    let plain = server.http.get(server.url("/publish")).send().await.unwrap();
    assert_eq!((plain.status().as_u16(), plain.headers()["upgrade"].to_str().unwrap()), (426, "websocket"));
    let posted = server.http.post(server.url("/publish")).send().await.unwrap();
    assert_eq!((posted.status().as_u16(), posted.headers()["allow"].to_str().unwrap()), (405, "GET,HEAD"));
    let (stream, _) = open(&server).await;
    assert_eq!(refused(&server, "/publish", &[("sec-websocket-protocol", PROTOCOL)]).await, (503, "too_many_streams".into()));
    drop(stream);
    server.metric_reaches("signalpost_publish_streams", 0.0).await;
    open(&server).await;
}

#[tokio::test]
async fn a_stream_needs_a_key_with_the_scope_and_ends_when_that_is_withdrawn() {
    let key = |name: &str, scope: &str| {
        let digest: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{digest}\"\nscopes = [\"{scope}\"]\n")
    };
    let none = plugins(&[]);
    let common = "[store]\ndurability = \"memory\"\n[sockets]\nping_interval_ms = 100\n";
    let process = ServerProcess::start(none.path(), &format!("{common}{}{}", key("p", "publish"), key("r", "read")));
    let server = &process.server;
    let offer = ("sec-websocket-protocol", PROTOCOL);
    assert_eq!(refused(server, "/publish", &[offer]).await.0, 401);
    assert_eq!(refused(server, "/publish", &[offer, ("authorization", "Bearer r")]).await.0, 401);
    let mut request = url(server).into_client_request().unwrap();
    request.headers_mut().insert(offer.0, offer.1.parse().unwrap());
    request.headers_mut().insert("authorization", "Bearer p".parse().unwrap());
    let mut stream = Client::ask(request).await.unwrap();
    stream.json().await;
    stream.send(told(1)).await;
    assert_eq!(stream.json().await["posted"], 1);
    process.configure(&format!("{common}{}", key("r", "read")));
    process.signal(Signal::HUP);
    assert_eq!(stream.closed().await.0, 4205);
}

#[tokio::test]
async fn an_event_that_is_sent_again_over_another_stream_is_a_duplicate() {
    let server = TestServer::start().await;
    let mut reader = server.connect("1001").await;
    for duplicate in [false, true] {
        let (mut stream, _) = open(&server).await;
        stream.send(told(7)).await;
        assert_eq!(stream.json().await["duplicate"], duplicate);
        stream.send_json(json!({ "specversion": "1.0", "id": "e", "source": "/s", "type": "nobody.wants" })).await;
        assert_eq!(stream.json().await["duplicate"], duplicate);
    }
    assert_eq!(reader.json().await, json!(7));
    reader.quiet().await;
}

#[tokio::test]
async fn a_stop_answers_what_has_arrived_and_says_when_it_is_over() {
    let mut server = TestServer::start().await;
    let mut stream = open_raw(&server).await;
    let half = frame(TEXT, true, told(50).as_bytes());
    stream.write(&[frames((0..50).map(told)), half[..half.len() - 1].to_vec()].concat()).await;
    for number in 0..50 {
        assert!(stream.text().await.contains(&format!("\"m{number}\"")));
    }
    server.begin_stop();
    let (opcode, payload) = stream.frame().await.unwrap();
    assert_eq!((opcode, u16::from_be_bytes([payload[0], payload[1]])), (CLOSE, 1012), "the frame that has not arrived has no answer");
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn what_a_stream_has_answered_survives_a_kill() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let toml = format!("[store]\ndir = {:?}\n", dir.path().join("store"));
    let mut process = ServerProcess::start(none.path(), &toml);
    let mut stream = open_raw(&process.server).await;
    stream.write(&frames((0..100).map(told))).await;
    for _ in 0..100 {
        assert!(stream.text().await.contains("\"stored\":\"system\""));
    }
    process.signal(Signal::KILL);
    process.ended().await;
    let process = ServerProcess::start(none.path(), &toml);
    let mut reader = process.server.connect("1001").await;
    for number in 0..100 {
        assert_eq!(reader.json().await, json!(number));
    }
    let (mut stream, _) = open(&process.server).await;
    stream.send(told(99)).await;
    assert_eq!(stream.json().await["duplicate"], true);
}

#[tokio::test]
async fn a_producer_that_does_not_read_its_answers_is_given_up() {
    let server = TestServer::with("[sockets]\nwrite_deadline_ms = 200").await;
    let mut stream = open_raw(&server).await;
    // A receipt has five times the bytes of its event.
    let events = frames([Value::from(vec![json!({ "type": "nobody.wants" }); 1000]).to_string()]);
    let flood = async {
        while timeout(SOON, tokio::io::AsyncWriteExt::write_all(&mut stream.tcp, &events)).await.is_ok_and(|written| written.is_ok()) {}
    };
    timeout(3 * SOON, flood).await.expect("the server gives up in time");
    server.metric_reaches("signalpost_publish_streams", 0.0).await;
}

#[tokio::test]
async fn a_silent_producer_is_pinged_and_one_that_is_gone_is_closed() {
    let server = TestServer::with("[sockets]\nping_interval_ms = 50\npong_deadline_ms = 200\nidle_deadline_ms = 100").await;
    let (mut stream, _) = open(&server).await;
    // It answers pings, and is not idle however little it says.
    assert!(timeout(Duration::from_millis(600), async { while stream.next().await.unwrap().unwrap().is_ping() {} }).await.is_err());
    stream.send(told(1)).await;
    assert_eq!(stream.json().await["posted"], 1);
    let mut silent = open_raw(&server).await;
    assert_eq!(silent.closed().await.0, 4000);
}

#[tokio::test]
async fn an_event_of_a_stream_takes_its_own_traceparent_as_its_parent() {
    let collector = crate::support::backend::Backend::start().await;
    let server = TestServer::with(&crate::traces::collector::settings(&collector, "")).await;
    let (mut stream, _) = open(&server).await;
    let mut event = json!({ "specversion": "1.0", "id": "e1", "source": "/s", "type": "nobody.wants" });
    event["traceparent"] = crate::traces::collector::PARENT.into();
    stream.send_json(event).await;
    stream.json().await;
    let spans = crate::traces::collector::collected(&collector, 1).await;
    let id = |bytes: &[u8]| crate::traces::collector::hex(bytes);
    assert_eq!((spans[0].name.as_str(), id(&spans[0].trace_id).as_str()), ("publish", crate::traces::collector::TRACE));
    assert_eq!((id(&spans[0].parent_span_id).as_str(), spans[0].links.len()), (crate::traces::collector::PARENT_SPAN, 0));
}

#[tokio::test]
async fn every_message_of_many_streams_reaches_its_readers_once_and_in_order() {
    for (traffic, name, deliveries) in
        [(Traffic::Direct, "direct", 3_000), (Traffic::Routed, "routed", 6_000), (Traffic::FanOut, "fan-out", 24_000)]
    {
        let server = TestServer::start().await;
        let plan = Plan {
            scenario: Scenario::Publish(traffic),
            name,
            users: 8,
            producers: 4,
            v1: false,
            query: String::new(),
            away: 0,
            requests_max: 3_000,
            duration_max: 6 * SOON,
            rate: None,
            stream: 64,
            message_bytes: 64,
            at_once: 8,
            seed: 1,
        };
        let report = run(&Target::at(server.address), &plan, None, &mut |_| {}).await.unwrap();
        assert!(report.exact && report.deliveries == deliveries, "{report:?}");
    }
}

#[tokio::test]
async fn operators_have_no_stream_at_their_address() {
    let server = TestServer::with("operate_listen = \"127.0.0.1:0\"").await;
    let there = server.http.get(format!("http://{}/api/pool/publish", server.operators)).send().await.unwrap();
    assert_eq!(there.status(), 404);
}
