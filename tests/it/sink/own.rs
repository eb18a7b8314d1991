//! The server's own events: sessions that open and close, and messages that nobody has read in time.

use serde_json::{Value, json};

use super::A;
use crate::support::backend::{Backend, Received};
use crate::support::{QUIET, TestServer, plugins};

/// A server without policies, whose sink hears these types of the server's and the policies' events.
async fn start(backend: &Backend, events: &str) -> (TestServer, tempfile::TempDir) {
    let dir = plugins(&[]);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, A).unwrap();
    let sink = format!("[sinks.backend]\nurl = \"http://{}/\"\nevents = [{events}]\nsecret_files = [{secret:?}]\n", backend.address);
    (TestServer::with(&format!("{sink}\n[plugins]\ndir = {:?}\n", dir.path())).await, dir)
}

/// The type, the subject and the data of each event, without what is new each time.
fn told(received: &[Received]) -> Vec<(String, String, Value)> {
    let of = |one: &Received| {
        let mut event = one.json();
        assert_eq!((&event["source"], event["time"].is_string(), event["id"].is_string()), (&json!("/signalpost"), true, true));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&event["type"]), text(&event["subject"]), event["data"].take())
    };
    received.iter().map(of).collect()
}

#[tokio::test]
async fn a_sink_hears_of_sessions_that_open_and_close() {
    let backend = Backend::start().await;
    let (server, _dir) = start(&backend, "\"signalpost.session.*\"").await;
    let phone = server.connect("1001").await;
    backend.accepts(1).await;
    let mut tablet = server.connect_v1("1001").await;
    backend.accepts(2).await;
    drop(phone);
    backend.accepts(3).await;
    tablet.json().await;
    let ended = server.http.delete(server.url("/users/1001/sessions")).send().await.unwrap();
    assert_eq!(ended.status(), 200);
    let mut told = told(&backend.accepts(4).await);
    let sessions: Vec<String> = told.iter_mut().map(|(_, _, data)| data["session"].take().as_str().unwrap().to_owned()).collect();
    assert_eq!((&sessions[0], &sessions[1]), (&sessions[2], &sessions[3]));
    assert_ne!(sessions[0], sessions[1]);
    let opened = |open: u64| json!({ "user_id": "1001", "session": null, "open_sessions": open });
    let closed = |code: u16, open: u64| json!({ "user_id": "1001", "session": null, "code": code, "open_sessions": open });
    let of = |kind: &str, data: Value| (format!("signalpost.session.{kind}"), "1001".to_owned(), data);
    assert_eq!(told, [of("opened", opened(1)), of("opened", opened(2)), of("closed", closed(1006, 1)), of("closed", closed(4200, 0))]);
}

#[tokio::test]
async fn a_sink_hears_of_messages_that_nobody_has_read_in_time() {
    let backend = Backend::start().await;
    let (server, _dir) = start(&backend, "\"signalpost.message.expired\"").await;
    // Read in time.
    let mut reader = server.connect("2").await;
    server.post("/users/2/messages?ttl_ms=100", json!("read")).await;
    assert_eq!(reader.json().await, "read");
    // Replaced by a newer one, which is not the same as late.
    for text in ["old", "new"] {
        server.post("/users/1/messages?ttl_ms=100&collapse_key=k", json!({ "text": text, "n": 1 })).await;
    }
    // Kept for a while only.
    server.post("/users/3/messages?keep_ms=100", json!(3)).await;
    let mut told = told(&backend.accepts(2).await);
    tokio::time::sleep(QUIET).await;
    assert_eq!(backend.accepted().len(), 2);
    told.sort_by(|(_, a, _), (_, b, _)| a.cmp(b));
    for (_, _, data) in &mut told {
        assert!(data.as_object_mut().unwrap().remove("event_id").unwrap().is_string());
    }
    let expired = |user: &str, message: Value| {
        let data = json!({ "user_id": user, "event_type": "signalpost.direct", "message": { "json": message } });
        ("signalpost.message.expired".to_owned(), user.to_owned(), data)
    };
    assert_eq!(told, [expired("1", json!({ "text": "new", "n": 1 })), expired("3", json!(3))]);
}

#[tokio::test]
async fn events_of_the_server_that_no_sink_hears_are_not_made() {
    let backend = Backend::start().await;
    let (server, _dir) = start(&backend, "\"pooling.*\"").await;
    drop(server.connect("1").await);
    server.post("/users/1/messages?ttl_ms=1", json!("x")).await;
    server.metric_reaches("signalpost_messages_dropped_total{reason=\"expired\"}", 1.0).await;
    server.metric_reaches("signalpost_sessions_closed_total{code=\"1006\"}", 1.0).await;
    tokio::time::sleep(QUIET).await;
    assert!(backend.received().is_empty());
    assert_eq!(server.get("/sinks").await["sinks"][0]["counters"]["heard"], 0);
}
