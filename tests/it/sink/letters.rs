//! What a sink can't deliver becomes a dead letter, which says why and can be tried again.

use serde_json::{Value, json};

use super::{ids, publish, start};
use crate::support::TestServer;
use crate::support::backend::{Backend, Received, Then};

/// Waits until there are this many dead letters.
async fn letters(server: &TestServer, count: usize) -> Vec<Value> {
    server.metric_reaches("signalpost_dead_letters", count as f64).await;
    server.get("/dead-letters").await["dead_letters"].as_array().unwrap().clone()
}

async fn retry(server: &TestServer, id: &Value) -> (u16, Value) {
    let response = server.http.post(server.url(&format!("/dead-letters/{id}/retry"))).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn what_a_backend_refuses_is_kept_and_can_be_tried_again() {
    for status in [400, 401, 404, 422, 499] {
        let script = move |one: &Received| if one.json()["subject"] == "bad" { Then::Answer(status) } else { Then::Answer(200) };
        let backend = Backend::with(script).await;
        let (server, _dir) = start(&backend, "").await;
        publish(&server, "bad", 0).await;
        publish(&server, "good", 0).await;
        let letters = letters(&server, 1).await;
        backend.accepts(1).await;
        assert_eq!(backend.received().len(), 2, "{status} is not tried again");
        let letter = &letters[0];
        assert_eq!((&letter["sink"], &letter["event_id"], &letter["outcome"]), (&json!("backend"), &json!("bad-0"), &json!("undelivered")));
        assert!(letter.get("policy").is_none() && letter["poison"] == false, "{letter}");
        assert!(letter["detail"].as_str().unwrap().starts_with(&format!("it answered {status}")), "{letter}");
        let shown = server.get(&format!("/dead-letters/{}", letter["id"])).await;
        assert_eq!(shown["message"]["json"]["subject"], "bad");
        assert_eq!(server.metric("signalpost_sink_events_total{outcome=\"refused\",sink=\"backend\"}").await, 1.0);
        backend.then(|_| Then::Answer(200));
        let (answered, receipt) = retry(&server, &letter["id"]).await;
        assert_eq!((answered, &receipt["posted"]), (200, &json!(1)), "{receipt}");
        let received = backend.accepts(2).await;
        assert_eq!(ids(&received), ["good-0", "bad-0"]);
        assert_eq!(received[1].id(), backend.received()[0].id().to_owned().as_str(), "it has the same id");
        assert_eq!(self::letters(&server, 0).await.len(), 0);
    }
}

#[tokio::test]
async fn answers_that_may_pass_are_no_refusals() {
    for status in [408, 425, 429, 500, 501, 502, 503, 504, 599, 304] {
        let backend = Backend::with(move |_| Then::Answer(status)).await;
        let (server, _dir) = start(&backend, "").await;
        publish(&server, "a", 0).await;
        backend.receives(3).await;
        assert_eq!(letters(&server, 0).await.len(), 0, "{status}");
        backend.then(|_| Then::Answer(299));
        backend.accepts(1).await;
    }
}

#[tokio::test]
async fn one_event_that_is_refused_costs_no_other_of_its_batch() {
    let is_bad = |one: &Received| one.json().as_array().unwrap().iter().any(|event| event["data"]["n"] == 3);
    let backend = Backend::with(|_| Then::Answer(500)).await;
    let (server, _dir) = start(&backend, "batch_max = 100\nrequests_max = 1\nfailures_max = 1000\n").await;
    for n in 0..8 {
        publish(&server, ["a", "b"][n as usize % 2], n).await;
    }
    backend.then(move |one| if is_bad(one) { Then::Answer(413) } else { Then::Answer(200) });
    let letters = letters(&server, 1).await;
    assert_eq!(letters[0]["event_id"], "b-3");
    server.metric_reaches("signalpost_sink_waiting{sink=\"backend\"}", 0.0).await;
    let accepted: Vec<Value> = backend.accepted().iter().flat_map(|one| one.json().as_array().unwrap().clone()).collect();
    let of = |subject: &str| {
        accepted.iter().filter(|event| event["subject"] == subject).map(|event| event["data"]["n"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((of("a"), of("b")), (vec![0, 2, 4, 6], vec![1, 5, 7]));
}

#[tokio::test]
async fn one_event_on_which_the_backend_breaks_holds_up_no_other_of_its_batch_for_long() {
    let is_bad = |one: &Received| one.json().as_array().unwrap().iter().any(|event| event["data"]["n"] == 3);
    let backend = Backend::with(move |one| if is_bad(one) { Then::Answer(500) } else { Then::Answer(200) }).await;
    let (server, _dir) = start(&backend, "batch_max = 100\nrequests_max = 2\nfailures_max = 1000\nkeep_ms = 4000\n").await;
    for n in 0..8 {
        publish(&server, &n.to_string(), n).await;
    }
    server.metric_reaches("signalpost_sink_waiting{sink=\"backend\"}", 1.0).await;
    let letters = letters(&server, 1).await;
    assert_eq!(letters[0]["event_id"], "3-3");
}

#[tokio::test]
async fn a_backend_that_is_gone_is_left_alone_until_a_reload() {
    let backend = Backend::with(|_| Then::Answer(410)).await;
    let (server, _dir) = start(&backend, "").await;
    publish(&server, "a", 0).await;
    server.metric_reaches("signalpost_sink_stopped{sink=\"backend\"}", 1.0).await;
    publish(&server, "b", 0).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(backend.received().len(), 1);
    let shown = server.get("/sinks").await["sinks"][0].clone();
    assert_eq!((&shown["state"], &shown["waiting"]), (&json!("stopped"), &json!(2)), "{shown}");
    // Still gone.
    assert_eq!(server.reload().await.0, 200);
    backend.receives(2).await;
    server.metric_reaches("signalpost_sink_stopped{sink=\"backend\"}", 1.0).await;
    backend.then(|_| Then::Answer(200));
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(backend.accepted().is_empty());
    assert_eq!(server.reload().await.0, 200);
    assert_eq!(ids(&backend.accepts(2).await).len(), 2);
    assert_eq!(server.metric("signalpost_sink_stopped{sink=\"backend\"}").await, 0.0);
    assert_eq!(letters(&server, 0).await.len(), 0);
}

#[tokio::test]
async fn a_sink_without_room_says_what_it_did_not_keep() {
    let mut backend = Backend::start().await;
    let (server, _dir) = start(&backend, "messages_max = 3\n").await;
    backend.go_away().await;
    for n in 0..5 {
        publish(&server, "a", n).await;
    }
    let letters = letters(&server, 2).await;
    let named: Vec<&str> = letters.iter().map(|letter| letter["event_id"].as_str().unwrap()).collect();
    assert_eq!(named, ["a-3", "a-4"]);
    assert!(letters[0]["detail"].as_str().unwrap().contains("messages_max"), "{letters:?}");
    assert_eq!(server.metric("signalpost_sink_events_total{outcome=\"overflowed\",sink=\"backend\"}").await, 2.0);
    assert_eq!(server.metric("signalpost_sink_events_total{outcome=\"heard\",sink=\"backend\"}").await, 5.0);
    backend.come_back().await;
    assert_eq!(ids(&backend.accepts(3).await), ["a-0", "a-1", "a-2"]);
    for letter in &letters {
        assert_eq!(retry(&server, &letter["id"]).await.0, 200);
    }
    assert_eq!(ids(&backend.accepts(5).await), ["a-0", "a-1", "a-2", "a-3", "a-4"]);
}

#[tokio::test]
async fn what_has_waited_for_too_long_is_kept_as_a_letter_that_says_why() {
    let backend = Backend::with(|_| Then::Answer(500)).await;
    let (server, _dir) = start(&backend, "keep_ms = 300\n").await;
    for n in 0..3 {
        publish(&server, "a", n).await;
    }
    let letters = letters(&server, 3).await;
    let detail = "it was not delivered within 300 ms (keep_ms); the last failure: it answered 500 Internal Server Error";
    assert!(letters.iter().all(|letter| letter["detail"] == detail), "{letters:?}");
    assert_eq!(server.metric("signalpost_sink_events_total{outcome=\"expired\",sink=\"backend\"}").await, 3.0);
    backend.then(|_| Then::Answer(200));
    // All at once, as after an outage.
    let response = server.http.post(server.url("/dead-letters/retry")).send().await.unwrap();
    assert_eq!(response.json::<Value>().await.unwrap()["retried"], 3);
    assert_eq!(ids(&backend.accepts(3).await), ["a-0", "a-1", "a-2"]);
}
