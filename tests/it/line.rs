//! The line from POST to socket.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Duration, timeout};

use crate::support::TestServer;
use crate::support::described::Http;

#[tokio::test]
async fn a_match_reaches_both_devices_of_the_rider_and_the_driver_and_nobody_else() {
    let server = TestServer::start().await;
    let mut phone = server.connect("1001").await;
    let mut tablet = server.connect("1001").await;
    let mut driver = server.connect("2002").await;
    let mut stranger = server.connect("3003").await;
    let receipt =
        server.publish("pooling.match.found", json!({ "request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 })).await;
    assert_eq!(receipt["recipients"], 2);
    assert_eq!(receipt["posted"], 2);
    assert_eq!(receipt["policies"][0]["name"], "pooling");
    for client in [&mut phone, &mut tablet, &mut driver] {
        let text = client.text().await;
        let original =
            r#"{"type":"pooling_match","request_id":42,"status":"matched","details":"You have been matched for a pooling request!""#;
        assert!(text.starts_with(original), "{text}");
    }
    stranger.quiet().await;
}

/// Everyone is told twice for each round of their producer's events, so that the order of each user's messages is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_users_read_what_sixteen_producers_publish_at_once_each_message_once_and_in_order() {
    const USERS: usize = 1000;
    const PRODUCERS: usize = 16;
    const EVENTS: usize = 20_000;
    let server = Arc::new(TestServer::start().await);
    let mut readers = Vec::new();
    for user in 0..USERS {
        let mut client = server.connect(&user.to_string()).await;
        let expected = told(user, USERS, PRODUCERS, EVENTS);
        readers.push(tokio::spawn(async move {
            for number in expected {
                let mut message = client.next().await.unwrap().unwrap();
                while message.is_ping() {
                    // A busy machine lets a reader wait for longer than the server does before it asks.
                    message = client.next().await.unwrap().unwrap();
                }
                assert!(message.is_text(), "user {user} at {number}: {message:?}");
                let message = message.into_text().unwrap();
                let message: Value = serde_json::from_str(&message).unwrap();
                assert_eq!(
                    (message["rider_id"].as_u64(), message["number"].as_u64()),
                    (Some(user as u64), Some(number as u64)),
                    "{message}"
                );
            }
            client
        }));
    }
    let mut producers = Vec::new();
    for producer in 0..PRODUCERS {
        let server = server.clone();
        producers.push(tokio::spawn(async move {
            let http = Http::new();
            let url = server.url("/events");
            for number in 0..EVENTS / PRODUCERS {
                let share = |user: usize| json!({ "rider_id": user, "amount": 1, "currency": "EUR" });
                let shares: Vec<Value> = recipients(producer, number, USERS, PRODUCERS).map(share).into();
                let event = json!({ "type": "pooling.fare.updated", "data": { "pool_id": producer, "shares": shares, "number": number } });
                let receipt: Value = http.post(&url).json(&event).send().await.unwrap().json().await.unwrap();
                assert_eq!((&receipt["posted"], &receipt["policies"][0]["outcome"]), (&json!(2), &json!("routed")), "{receipt}");
            }
        }));
    }
    let all = async {
        for producer in producers {
            producer.await.unwrap();
        }
        let mut clients = Vec::new();
        for reader in readers {
            clients.push(reader.await.unwrap());
        }
        clients
    };
    let mut clients = timeout(Duration::from_secs(240), all).await.expect("every message arrives");
    assert_eq!(server.metric(r#"signalpost_events_total{outcome="routed"}"#).await, EVENTS as f64);
    assert_eq!(server.metric("signalpost_messages_posted_total").await, 2.0 * EVENTS as f64);
    server.metric_reaches("signalpost_messages_sent_total", 2.0 * EVENTS as f64).await;
    assert_eq!(server.metric("signalpost_sessions").await, USERS as f64, "nobody was sent away");
    // Nothing else is on its way to anybody.
    for (user, client) in clients.iter_mut().enumerate() {
        server.post(&format!("/users/{user}/messages"), json!("end")).await;
        assert_eq!(client.text().await, "\"end\"");
    }
}

/// The two users whom a producer's event is for. Each user belongs to one producer.
fn recipients(producer: usize, number: usize, users: usize, producers: usize) -> [usize; 2] {
    let own = (users - producer).div_ceil(producers);
    [number, number + 1].map(|turn| producer + producers * (turn % own))
}

/// The events that a user is told about, in order.
fn told(user: usize, users: usize, producers: usize, events: usize) -> Vec<usize> {
    let producer = user % producers;
    (0..events / producers).filter(|number| recipients(producer, *number, users, producers).contains(&user)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_knows_that_it_is_connected_misses_nothing() {
    let server = TestServer::start().await;
    let mut first = server.connect("1").await;
    for round in 0..200 {
        let mut second = server.connect("1").await;
        server.post("/users/1/messages", json!(round)).await;
        assert_eq!(second.text().await, round.to_string());
        assert_eq!(first.text().await, round.to_string());
    }
}
