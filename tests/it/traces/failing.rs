//! Collectors that hang, refuse, or are not there: they cost nothing but counted spans.

use std::time::{Duration, Instant};

use serde_json::json;

use super::collector::{PARENT, settings};
use crate::support::TestServer;
use crate::support::backend::{Backend, Then};

async fn publish(server: &TestServer, count: usize) {
    let mut reader = server.connect("1001").await;
    for number in 0..count {
        let request = server.http.post(server.url("/users/1001/messages")).header("traceparent", PARENT).json(&json!(number));
        assert_eq!(request.send().await.unwrap().status(), 202);
        assert_eq!(reader.json().await, json!(number));
    }
}

#[tokio::test]
async fn a_collector_that_hangs_delays_nothing_and_its_spans_are_counted() {
    let collector = Backend::with(|_| Then::Hang).await;
    let bounds = "queue_max = 10\nbatch_max = 5\ndeadline_ms = 100";
    let server = TestServer::with(&settings(&collector, bounds)).await;
    publish(&server, 50).await;
    let counted = async |reason: &str| server.metric(&format!("signalpost_spans_dropped_total{{reason=\"{reason}\"}}")).await;
    let since = Instant::now();
    while counted("collector").await == 0.0 {
        assert!(since.elapsed() < Duration::from_secs(10), "what the collector did not take is counted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(counted("queue").await > 0.0);
    assert_eq!(server.metric("signalpost_spans_sent_total").await, 0.0);
    assert_eq!(server.metric("signalpost_messages_sent_total").await, 50.0);
    let since = Instant::now();
    server.stop().await;
    assert!(since.elapsed() < Duration::from_secs(3), "a stop waits for the deadline at most");
}

#[tokio::test]
async fn spans_that_a_collector_refuses_are_counted_and_later_ones_are_taken() {
    let collector = Backend::with(|_| Then::Answer(400)).await;
    let server = TestServer::with(&settings(&collector, "")).await;
    publish(&server, 1).await;
    server.metric_reaches("signalpost_spans_dropped_total{reason=\"collector\"}", 2.0).await;
    collector.then(|_| Then::Answer(200));
    publish(&server, 1).await;
    server.metric_reaches("signalpost_spans_sent_total", 2.0).await;
}

#[tokio::test]
async fn a_collector_that_is_busy_for_a_moment_is_asked_again() {
    let mut answers = 0;
    let collector = Backend::with(move |_| {
        answers += 1;
        Then::Answer(if answers == 1 { 503 } else { 200 })
    })
    .await;
    let server = TestServer::with(&settings(&collector, "interval_ms = 200").replace("interval_ms = 20\n", "")).await;
    publish(&server, 1).await;
    server.metric_reaches("signalpost_spans_sent_total", 2.0).await;
    assert_eq!(server.metric("signalpost_spans_dropped_total{reason=\"collector\"}").await, 0.0);
}

#[tokio::test]
async fn a_server_starts_although_its_collector_is_not_there() {
    let mut collector = Backend::start().await;
    collector.go_away().await;
    let server = TestServer::with(&settings(&collector, "deadline_ms = 200")).await;
    publish(&server, 1).await;
    server.metric_reaches("signalpost_spans_dropped_total{reason=\"collector\"}", 2.0).await;
}
