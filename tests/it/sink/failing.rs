//! Backends that fail: nothing is lost, nobody else is held up, and each subject keeps its order.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::{A, event, ids, publish, settings, sink, start};
use crate::support::backend::{Backend, Received, Then};
use crate::support::plugins;
use crate::support::process::ServerProcess;

/// Checks that each subject's events came in order, also those that came again, and that each event always had the same id of its own.
fn check_order(received: &[Received]) {
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut webhooks: HashMap<String, String> = HashMap::new();
    for one in received {
        let event = one.json();
        let (subject, n) = (event["subject"].to_string(), event["data"]["n"].as_u64().unwrap());
        let before = last.insert(subject.clone(), n);
        assert!(before.is_none_or(|before| before <= n), "{subject}: {n} after {before:?}");
        let id = event["id"].as_str().unwrap();
        let known = webhooks.insert(one.id().to_owned(), id.to_owned());
        assert!(known.is_none_or(|known| known == id), "{} is the id of two events", one.id());
    }
    assert_eq!(webhooks.len(), ids(received).len(), "an event has one id");
}

#[tokio::test]
async fn a_backend_that_fails_in_every_way_gets_every_event_in_order_and_no_user_is_held_up() {
    let mut round = 0;
    let script = move |_: &Received| {
        round += 1;
        match round % 7 {
            1 => Then::Answer(500),
            3 => Then::Hang,
            4 => Then::Reset,
            6 => Then::Answer(503),
            _ => Then::Answer(200),
        }
    };
    let mut backend = Backend::with(script).await;
    let (server, _dir) = start(&backend, "attempt_deadline_ms = 150\nrequests_max = 4\n").await;
    let mut rider = server.connect("1001").await;
    let subjects = ["a", "b", "c", "d", "e", "f"];
    let mut slowest = Duration::ZERO;
    for n in 0..15 {
        if n == 5 {
            backend.go_away().await;
        }
        if n == 10 {
            backend.come_back().await;
        }
        for subject in subjects {
            publish(&server, subject, n).await;
        }
        let began = Instant::now();
        server.post("/users/1001/messages", json!(n)).await;
        assert_eq!(rider.json().await, json!(n));
        slowest = slowest.max(began.elapsed());
    }
    let all = subjects.len() * 15;
    let accepted = |received: &[Received]| ids(&received.iter().filter(|one| one.is_accepted()).cloned().collect::<Vec<_>>()).len();
    let received = backend.until(|received| accepted(received) == all).await;
    check_order(&received);
    assert!(received.iter().any(|one| one.then == Then::Hang) && received.iter().any(|one| one.then == Then::Reset));
    assert!(slowest < Duration::from_secs(2), "a user waited for {slowest:?}");
    assert_eq!(server.get("/dead-letters").await["letters"], 0);
    server.metric_reaches("signalpost_sink_waiting{sink=\"backend\"}", 0.0).await;
    assert!(server.metric("signalpost_sink_attempts_total{outcome=\"failed\",sink=\"backend\"}").await > 10.0);
}

#[tokio::test]
async fn an_event_that_always_fails_holds_up_its_own_subject_only() {
    let script = |one: &Received| if one.json()["subject"] == "bad" { Then::Answer(500) } else { Then::Answer(200) };
    let backend = Backend::with(script).await;
    let (server, _dir) = start(&backend, "").await;
    publish(&server, "bad", 0).await;
    publish(&server, "bad", 1).await;
    for n in 0..30 {
        publish(&server, "good", n).await;
    }
    backend.accepts(30).await;
    let bad = |received: &[Received]| received.iter().filter(|one| one.json()["subject"] == "bad").count();
    let received = backend.until(|received| bad(received) > 3).await;
    assert!(received.iter().all(|one| one.json()["id"] != "bad-1"), "it waits for the one before");
    server.metric_reaches("signalpost_sink_waiting{sink=\"backend\"}", 2.0).await;
    assert!(server.get("/sinks").await["sinks"][0]["lag_ms"].as_u64().unwrap() > 10);
    backend.then(|_| Then::Answer(200));
    backend.accepts(32).await;
    check_order(&backend.received());
}

#[tokio::test]
async fn a_backend_that_is_away_is_tried_by_one_request_at_a_time() {
    let backend = Backend::with(|_| Then::Answer(503)).await;
    let (server, _dir) = start(&backend, "failures_max = 3\nbackoff_ms = 100\nbackoff_max_ms = 100\n").await;
    for n in 0..20 {
        publish(&server, &n.to_string(), n).await;
    }
    server.metric_reaches("signalpost_sink_waiting{sink=\"backend\"}", 20.0).await;
    let failing = async || server.get("/sinks").await["sinks"][0]["state"] == "failing";
    while !failing().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = backend.received().len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tried = backend.received().len() - before;
    // Pauses are 50 ms on average; twenty subjects by themselves would try four hundred times.
    assert!((2..60).contains(&tried), "{tried}");
    let shown = server.get("/sinks").await["sinks"][0].clone();
    assert_eq!((&shown["waiting"], &shown["last_failure"]["detail"]), (&json!(20), &json!("it answered 503 Service Unavailable")));
    backend.then(|_| Then::Answer(200));
    assert_eq!(ids(&backend.accepts(20).await).len(), 20);
    assert_eq!(server.get("/sinks").await["sinks"][0]["state"], "delivering");
}

#[tokio::test]
async fn a_redirection_is_not_followed() {
    let elsewhere = Backend::start().await;
    let location = format!("http://{}/hook", elsewhere.address);
    let statuses = [301, 302, 303, 307, 308];
    let mut round = 0;
    let backend = Backend::with(move |_| {
        round += 1;
        Then::AnswerWith(statuses[round % 5], "location", location.clone())
    })
    .await;
    let (server, _dir) = start(&backend, "").await;
    publish(&server, "a", 1).await;
    backend.receives(6).await;
    assert!(elsewhere.received().is_empty());
    let shown = server.get("/sinks").await["sinks"][0].clone();
    assert!(shown["last_failure"]["detail"].as_str().unwrap().ends_with("; redirections are not followed"), "{shown}");
    backend.then(|_| Then::Answer(200));
    backend.accepts(1).await;
}

#[tokio::test]
async fn an_answer_that_asks_for_a_pause_gets_it() {
    for status in [429, 503] {
        let mut round = 0;
        let backend = Backend::with(move |_| {
            round += 1;
            if round == 1 { Then::AnswerWith(status, "retry-after", "1".into()) } else { Then::Answer(200) }
        })
        .await;
        let (server, _dir) = start(&backend, "").await;
        publish(&server, "a", 1).await;
        backend.receives(1).await;
        publish(&server, "b", 1).await;
        let received = backend.receives(3).await;
        // A second from the answer, which came after the request; another subject waits too.
        assert!(received[1].at - received[0].at >= Duration::from_millis(995), "{:?}", received[1].at - received[0].at);
        assert_eq!(ids(&backend.accepted()).len(), 2);
    }
}

#[tokio::test]
async fn an_answer_that_asks_for_too_long_a_pause_gets_a_shorter_one() {
    let mut round = 0;
    let backend = Backend::with(move |_| {
        round += 1;
        if round == 1 { Then::AnswerWith(429, "retry-after", "86400".into()) } else { Then::Answer(200) }
    })
    .await;
    let (server, _dir) = start(&backend, "retry_after_max_ms = 300\n").await;
    publish(&server, "a", 1).await;
    let received = backend.receives(2).await;
    assert!(received[1].at - received[0].at >= Duration::from_millis(295));
}

/// A process with a store and a sink.
fn process(backend: &Backend, dir: &tempfile::TempDir, none: &tempfile::TempDir) -> ServerProcess {
    let secret = dir.path().join("secret");
    std::fs::write(&secret, A).unwrap();
    let store = format!("\n[store]\ndir = {:?}\nmarks_interval_ms = 50\n", dir.path().join("store"));
    ServerProcess::start(none.path(), &settings(&sink(backend.address, &secret, ""), &store))
}

#[tokio::test]
async fn what_was_answered_arrives_after_a_kill() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let mut backend = Backend::start().await;
    let mut running = process(&backend, &dir, &none);
    publish(&running.server, "a", 0).await;
    backend.accepts(1).await;
    backend.go_away().await;
    for n in 1..20 {
        publish(&running.server, ["a", "b"][n as usize % 2], n).await;
    }
    running.signal(Signal::KILL);
    running.ended().await;
    backend.come_back().await;
    let running = process(&backend, &dir, &none);
    let accepted = |received: &[Received]| ids(received).len() == 20;
    check_order(&backend.until(accepted).await);
    running.server.metric_reaches("signalpost_sink_waiting{sink=\"backend\"}", 0.0).await;
}

#[tokio::test]
async fn what_was_delivered_past_one_that_fails_is_not_sent_again_after_a_kill() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let script = |one: &Received| if one.json()["subject"] == "bad" { Then::Answer(500) } else { Then::Answer(200) };
    let backend = Backend::with(script).await;
    let mut running = process(&backend, &dir, &none);
    publish(&running.server, "bad", 0).await;
    for n in 0..20 {
        publish(&running.server, "good", n).await;
    }
    backend.accepts(20).await;
    // Twice the interval in which marks are noted, and more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    running.signal(Signal::KILL);
    running.ended().await;
    let before = backend.received().len();
    let running = process(&backend, &dir, &none);
    let received = backend.receives(before + 3).await;
    assert!(received[before..].iter().all(|one| one.json()["id"] == "bad-0"), "{:?}", ids(&received[before..]));
    publish(&running.server, "good", 20).await;
    backend.then(|_| Then::Answer(200));
    backend.accepts(22).await;
    assert_eq!(ids(&backend.accepted()).len(), 22);
}

#[tokio::test]
async fn events_of_a_sink_that_was_taken_out_of_the_configuration_are_kept_for_a_while() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let mut backend = Backend::start().await;
    backend.go_away().await;
    let running = process(&backend, &dir, &none);
    running.server.post("/events", event("a", 1)).await;
    drop(running);
    let without = format!("[store]\ndir = {:?}\n", dir.path().join("store"));
    let mut running = ServerProcess::start(none.path(), &without);
    running.server.post("/users/1/messages", json!("x")).await;
    running.signal(Signal::TERM);
    running.ended().await;
    backend.come_back().await;
    let _running = process(&backend, &dir, &none);
    assert_eq!(ids(&backend.accepts(1).await), ["a-1"]);
}
