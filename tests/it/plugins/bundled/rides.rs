//! Shared rides: who is in one and for how long, and where its car is.

use serde_json::{Value, json};

use super::{Crowd, pool, publish, shared_ride, told};
use crate::support::TestServer;

#[tokio::test]
async fn a_rider_who_cancels_leaves_and_the_others_go_on() {
    let server = TestServer::start().await;
    let mut crowd = Crowd::connect(&server, &["1", "2", "3"]).await;
    pool(&server, json!(7), json!(3), [json!(1), json!(2)]).await;
    crowd.told(&server).await;
    publish(&server, "pooling.match.cancelled", r#"{"request_id":1,"pool_id":7,"by":1,"reason":"ill"}"#).await;
    let cancelled = r#"{"type":"pooling_cancelled","request_id":1,"pool_id":7,"by":1,"reason":"ill"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&["2", "3"], cancelled));

    publish(&server, "pooling.trip.started", r#"{"pool_id":7,"by":3}"#).await;
    assert_eq!(crowd.told_once(&server).await, told(&["2"], r#"{"type":"trip_started","pool_id":7,"by":3}"#));
    crowd.0[0].1.send_json(json!({ "type": "chat", "pool_id": 7, "text": "wait" })).await;
    assert_eq!(crowd.0[0].1.json().await["code"], "not_a_member");
    // Somebody else's cancellation takes nobody out.
    publish(&server, "pooling.match.cancelled", r#"{"request_id":1,"pool_id":7,"by":"stranger"}"#).await;
    let cancelled = r#"{"type":"pooling_cancelled","request_id":1,"pool_id":7,"by":"stranger"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&["2", "3"], cancelled));

    // Who is matched again is in the pool again.
    pool(&server, json!(7), json!(3), [json!(1)]).await;
    crowd.told(&server).await;
    publish(&server, "pooling.trip.started", r#"{"pool_id":7,"by":3}"#).await;
    assert_eq!(crowd.told_once(&server).await, told(&["1", "2"], r#"{"type":"trip_started","pool_id":7,"by":3}"#));
}

#[tokio::test]
async fn a_ride_without_its_driver_or_without_riders_is_over() {
    // In which order they cancel, and whether the ride is over after each of them.
    for cancellations in [&[("3", true)][..], &[("1", false), ("3", true)], &[("1", false), ("2", true)], &[("2", false), ("1", true)]] {
        let server = TestServer::start().await;
        let mut crowd = Crowd::connect(&server, &["1", "2", "3"]).await;
        pool(&server, json!(7), json!(3), [json!(1), json!(2)]).await;
        crowd.told(&server).await;
        let mut left = vec!["1", "2", "3"];
        for (by, is_over) in cancellations {
            left.retain(|user| user != by);
            publish(&server, "pooling.match.cancelled", &format!(r#"{{"request_id":1,"pool_id":"7","by":"{by}"}}"#)).await;
            let cancelled = format!(r#"{{"type":"pooling_cancelled","request_id":1,"pool_id":"7","by":"{by}"}}"#);
            assert_eq!(crowd.told_once(&server).await, told(&left, &cancelled), "{cancellations:?}");
            assert_eq!(server.metric("signalpost_groups").await, if *is_over { 0.0 } else { 1.0 }, "{cancellations:?}");
        }
        // The pool's next ride may have another driver, who is not taken for a rider.
        pool(&server, json!(7), json!(1), [json!(2)]).await;
        publish(&server, "pooling.match.cancelled", r#"{"request_id":1,"pool_id":7,"by":2}"#).await;
        assert_eq!(server.metric("signalpost_groups").await, 0.0);
    }
}

#[tokio::test]
async fn a_drivers_answer_to_an_offer_is_read_by_nobody() {
    let server = TestServer::start().await;
    let mut crowd = shared_ride(&server).await;
    for kind in ["pooling.offer.accepted", "pooling.offer.declined"] {
        let receipt = publish(&server, kind, r#"{"request_id":1,"driver_id":3}"#).await;
        assert_eq!((&receipt["policies"][0]["outcome"], &receipt["recipients"]), (&json!("routed"), &json!(0)), "{receipt}");
        let receipt = publish(&server, kind, r#"{"request_id":1,"driver_id":"3 "}"#).await;
        assert_eq!(receipt["policies"][0]["refusal"]["code"], "invalid_field", "{receipt}");
    }
    assert_eq!(crowd.told_once(&server).await, []);
}

/// Publishes a place of driver 3 in pool 7 that was reported at this second, and returns how many messages were posted.
async fn report(server: &TestServer, second: Option<u64>, lat: f64) -> u64 {
    let data = json!({ "pool_id": 7, "driver_id": 3, "lat": lat, "lon": 13.4 });
    let mut event = json!({ "specversion": "1.0", "type": "pooling.driver.location", "source": "/car", "id": fastrand::u64(..).to_string(), "data": data });
    if let Some(second) = second {
        event["time"] = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60).into();
    }
    let request = server.http.post(server.url("/events")).header("content-type", "application/cloudevents+json");
    let receipt: Value = request.body(event.to_string()).send().await.unwrap().json().await.unwrap();
    assert_eq!(receipt["policies"][0]["outcome"], "routed", "{receipt}");
    receipt["posted"].as_u64().unwrap()
}

#[tokio::test]
async fn an_older_place_never_replaces_a_newer_one_in_whatever_order_they_come() {
    for seed in 0..3 {
        let server = TestServer::start().await;
        let mut crowd = Crowd::connect(&server, &["1"]).await;
        pool(&server, json!(7), json!(3), [json!(1)]).await;
        crowd.told(&server).await;
        let mut seconds: Vec<u64> = (0..100).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut seconds);
        let mut newest = None;
        for second in seconds {
            // 111 m further each second.
            let posted = report(&server, Some(second), second as f64 / 1000.0).await;
            assert_eq!(posted == 1, newest.is_none_or(|newest| newest < second), "{second} after {newest:?}");
            newest = newest.max(Some(second));
        }
        let (_, places) = crowd.told(&server).await.remove(0);
        let lats: Vec<f64> = places.iter().map(|text| serde_json::from_str::<Value>(text).unwrap()["lat"].as_f64().unwrap()).collect();
        assert!(lats.is_sorted(), "{lats:?}");
        assert_eq!(lats.last(), Some(&0.099));
        // The same second, and a place without a time, count as they come.
        assert_eq!(report(&server, Some(99), 0.2).await, 1);
        assert_eq!(report(&server, Some(98), 0.3).await, 0);
        assert_eq!(report(&server, None, 0.1).await, 1);
    }
}

#[tokio::test]
async fn a_place_that_reached_nobody_does_not_keep_the_next_one_back() {
    let server = TestServer::start().await;
    pool(&server, json!(7), json!(3), [json!(1), json!(2)]).await;
    let _driver = server.connect("3").await;
    let _stranger = server.connect("4").await;
    for _ in 0..2 {
        assert_eq!(report(&server, None, 52.5).await, 0, "both riders are away");
    }
    let mut crowd = Crowd::connect(&server, &["1"]).await;
    crowd.told(&server).await;
    assert_eq!(report(&server, None, 52.5).await, 1, "the rider has seen no place yet");
    assert_eq!(report(&server, None, 52.5).await, 0, "and now has");
    crowd.told(&server).await;
    drop(crowd);
    server.metric_reaches("signalpost_sessions", 2.0).await;
    assert_eq!(report(&server, None, 52.6).await, 0, "the rider has gone");
    let _back = server.connect("1").await;
    assert_eq!(report(&server, None, 52.6).await, 1);
}
