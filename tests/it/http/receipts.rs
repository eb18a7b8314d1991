//! Receipts afterwards, and groups: what an operator learns of an event that was answered.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::process::ServerProcess;
use crate::support::wat::Guest;
use crate::support::{SOON, TestServer, plugins};

impl TestServer {
    /// Waits until the only recipient of an event is in this state, and returns the recipient.
    async fn becomes(&self, id: &str, state: &str) -> Value {
        let waiting = async {
            loop {
                let told = self.get(&format!("/receipts/{id}")).await;
                if told["recipients"][0]["state"] == state {
                    assert_eq!(told["states"], json!({ state: 1 }), "{told}");
                    return told["recipients"][0].clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(SOON, waiting).await {
            Ok(recipient) => recipient,
            Err(_) => panic!("it is not {state}: {}", self.get(&format!("/receipts/{id}")).await),
        }
    }

    /// Sends a message to user 1, and returns the event's id.
    async fn tell(&self, query: &str) -> String {
        self.post(&format!("/users/1/messages{query}"), json!("x")).await["id"].as_str().unwrap().to_owned()
    }

    async fn refused(&self, path: &str) -> (u16, Value) {
        let response = self.http.get(self.url(path)).send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap()["code"].clone())
    }
}

#[tokio::test]
async fn a_message_is_posted_then_sent_then_acked() {
    let server = TestServer::start().await;
    let id = server.tell("").await;
    assert_eq!(server.becomes(&id, "posted").await, json!({ "user": "1", "seq": 1, "state": "posted" }));
    let mut client = server.connect_v1("1").await;
    client.json().await;
    client.send_json(json!({ "type": "resume" })).await;
    client.json().await;
    assert_eq!(client.json().await["seq"], 1);
    server.becomes(&id, "sent").await;
    client.send_json(json!({ "type": "ack", "seq": 1 })).await;
    server.becomes(&id, "acked").await;
}

#[tokio::test]
async fn what_a_plain_client_has_read_was_sent_also_after_it_has_gone() {
    let server = TestServer::start().await;
    let id = server.tell("").await;
    let mut client = server.connect("1").await;
    client.text().await;
    server.becomes(&id, "sent").await;
    drop(client);
    server.metric_reaches("signalpost_mailboxes", 0.0).await;
    server.becomes(&id, "sent").await;
}

#[tokio::test]
async fn a_message_that_is_never_read_says_why() {
    let server = TestServer::with("[mailboxes]\nmessages_max = 2\n").await;
    let expired = server.tell("?ttl_ms=1").await;
    let uncollected = server.tell("?keep_ms=1").await;
    server.becomes(&expired, "expired").await;
    server.becomes(&uncollected, "uncollected").await;
    let collapsed = server.tell("?collapse_key=k").await;
    let evicted = server.tell("?collapse_key=k").await;
    server.becomes(&collapsed, "collapsed").await;
    server.tell("").await;
    server.tell("").await;
    server.becomes(&evicted, "evicted").await;
    let away = server.post("/users/2/messages?keep_ms=0", json!("x")).await;
    let dropped = server.becomes(away["id"].as_str().unwrap(), "dropped").await;
    assert_eq!(dropped, json!({ "user": "2", "state": "dropped", "reason": "away" }));
}

#[tokio::test]
async fn a_message_that_a_formatting_policy_drops_is_told_as_dropped() {
    // Answers "nothing" for every reader.
    let dir = plugins(&[]);
    let body = "(memory.fill (i32.const 512) (i32.const 0) (i32.const 20)) (i32.const 512)";
    std::fs::write(dir.path().join("silence.wasm"), Guest::formatting(body).component()).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}", dir.path())).await;
    let id = server.tell("").await;
    let _client = server.connect("1").await;
    let dropped = server.becomes(&id, "dropped").await;
    assert_eq!(dropped, json!({ "user": "1", "seq": 1, "state": "dropped", "reason": "formatted" }));
}

#[tokio::test]
async fn recipients_and_members_come_in_pages() {
    let server = TestServer::start().await;
    let receipt = server.publish("pooling.match.found", json!({ "request_id": 1, "rider_id": 1, "driver_id": 2, "pool_id": 7 })).await;
    let id = receipt["id"].as_str().unwrap();
    let first = server.get(&format!("/receipts/{id}?limit=1")).await;
    assert_eq!((&first["recipients"][0]["user"], &first["next"]), (&json!("1"), &json!(1)), "{first}");
    let second = server.get(&format!("/receipts/{id}?limit=1&after=1")).await;
    assert_eq!((&second["recipients"][0]["user"], &second["next"]), (&json!("2"), &Value::Null), "{second}");
    assert_eq!(second["states"], json!({ "posted": 2 }), "the sums are those of all recipients");

    let group = server.get("/groups/pool:7").await;
    assert_eq!(group, json!({ "name": "pool:7", "policy": "pooling", "size": 2, "members": ["1", "2"] }));
    let group = server.get("/groups/pool:7?limit=1").await;
    assert_eq!((&group["members"], &group["next"]), (&json!(["1"]), &json!(1)));
    let group = server.get("/groups/pool:7?after=1").await;
    assert_eq!((&group["members"], &group["next"]), (&json!(["2"]), &Value::Null));
}

#[tokio::test]
async fn a_question_that_has_no_answer_says_why() {
    let server = TestServer::start().await;
    for path in ["/receipts/x?limit=0", "/receipts/x?limit=1001", "/receipts/x?later=1", "/receipts/x?after=-1", "/groups/x?limit=0"] {
        assert_eq!(server.refused(path).await, (400, json!("query")), "{path}");
    }
    assert_eq!(server.refused("/receipts/x").await, (404, json!("unknown_event")));
    assert_eq!(server.refused("/groups/x").await, (404, json!("unknown_group")));
    for source in ["/a", "/b"] {
        server.post("/events", json!({ "id": "same", "source": source, "type": "pooling.trip.started", "data": {} })).await;
    }
    assert_eq!(server.refused("/receipts/same").await, (409, json!("several_events")));
    let told = server.get("/receipts/same?source=/b").await;
    assert_eq!((&told["source"], &told["states"]), (&json!("/b"), &json!({})));
}

#[tokio::test]
async fn a_restart_forgets_what_became_of_an_event_and_not_that_it_was_published() {
    let (plugins, dir) = (plugins(&["pooling"]), tempfile::tempdir().unwrap());
    let toml = format!("[store]\ndir = {:?}\n", dir.path().join("store"));
    let data = json!({ "request_id": 1, "rider_id": 1, "driver_id": 2, "pool_id": 7 });
    let event = json!({ "id": "e1", "source": "/", "type": "pooling.match.found", "data": data });
    let mut process = ServerProcess::start(plugins.path(), &toml);
    process.server.post("/events", event).await;
    let told = process.server.get("/receipts/e1").await;
    assert_eq!(told["states"], json!({ "stored": 2 }), "{told}");
    process.signal(rustix::process::Signal::KILL);
    process.ended().await;

    let process = ServerProcess::start(plugins.path(), &toml);
    let told = process.server.get("/receipts/e1").await;
    assert_eq!((&told["id"], &told["states"]), (&json!("e1"), &json!({})), "{told}");
    assert!(told["note"].as_str().unwrap().contains("no longer known"), "{told}");
    assert_eq!(process.server.get("/groups/pool:7").await["size"], 2);
}
