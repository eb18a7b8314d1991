//! What a producer sends wrong is refused by its name and does no harm; what is only strange is taken as it is.

use serde_json::{Value, json};

use super::{Crowd, MATCHED, publish, shared_ride, told};
use crate::support::TestServer;

/// Data that the server could not take from the policy, and the field that is wrong.
fn data_that_make_no_answer() -> Vec<(&'static str, Value, &'static str)> {
    let matched = |field: &str, value: Value| {
        let mut data = json!({ "request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 });
        data[field] = value;
        data
    };
    let started = |pool_id: Value| json!({ "pool_id": pool_id, "by": 3 });
    let offer = |drivers: Vec<Value>| json!({ "request_id": 42, "rider_id": 1001, "candidate_driver_ids": drivers });
    let share = json!({ "rider_id": 1, "amount": 12.5, "currency": "EUR" });
    let mut bad_share = share.clone();
    bad_share["rider_id"] = json!(" 1");
    let mut all = vec![
        ("pooling.trip.started", started(json!("x".repeat(124))), "pool_id"),
        ("pooling.trip.started", json!({ "pool_id": 7, "by": "3\n" }), "by"),
        ("pooling.match.cancelled", json!({ "request_id": 42, "pool_id": 7, "by": null }), "by"),
        ("pooling.driver.arriving", json!({ "pool_id": 7, "driver_id": true, "eta_s": 60 }), "driver_id"),
        ("pooling.request.created", offer(vec![json!(3), json!("3 ")]), "candidate_driver_ids[1]"),
        ("pooling.request.created", offer(vec![json!(3), Value::Null]), "candidate_driver_ids[1]"),
        ("pooling.request.created", offer((0..1001).map(Value::from).collect()), "candidate_driver_ids"),
        ("pooling.fare.updated", json!({ "pool_id": 7, "shares": [share, bad_share] }), "shares[1].rider_id"),
        ("pooling.fare.updated", json!({ "pool_id": 7, "shares": vec![share; 251] }), "shares"),
        ("pooling.chat.message", json!({ "pool_id": 7, "from": 1, "text": "x".repeat(262_000) }), "text"),
        (
            "pooling.driver.location",
            json!({ "pool_id": "p".repeat(57), "driver_id": "d".repeat(59), "lat": 1, "lon": 1 }),
            "pool_id` and `driver_id",
        ),
    ];
    for value in
        [json!("1001 "), json!("\t1001"), json!("a\u{0}b"), json!(""), json!("x".repeat(129)), json!(1.5), json!([1001]), Value::Null]
    {
        all.extend(["rider_id", "driver_id", "pool_id"].map(|field| ("pooling.match.found", matched(field, value.clone()), field)));
    }
    all
}

#[tokio::test]
async fn data_that_make_no_answer_are_refused_by_name_and_no_good_event_is_lost() {
    let server = TestServer::start().await;
    let mut crowd = shared_ride(&server).await;
    let bad = data_that_make_no_answer();
    let mut random = fastrand::Rng::with_seed(14);
    // Each bad one occurs, in no order, and three times out of four an event is bad.
    let mut waiting: Vec<usize> = (0..bad.len()).cycle().take(3 * bad.len()).collect();
    random.shuffle(&mut waiting);
    let mut good = Vec::new();
    while let Some(&next) = waiting.last() {
        if random.u8(..4) == 0 {
            let receipt = server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": 3, "n": good.len() })).await;
            assert_eq!((&receipt["policies"][0]["outcome"], &receipt["posted"]), (&json!("routed"), &json!(1)), "{receipt}");
            good.push(format!(r#"{{"type":"trip_started","pool_id":7,"by":3,"n":{}}}"#, good.len()));
            continue;
        }
        waiting.pop();
        let (kind, data, field) = &bad[next];
        let receipt = server.publish(kind, data.clone()).await;
        let pooling = &receipt["policies"][0];
        let refusal = (&pooling["outcome"], &pooling["refusal"]["code"]);
        assert_eq!(refusal, (&json!("refused"), &json!("invalid_field")), "{kind} {field}: {receipt}");
        let detail = pooling["refusal"]["detail"].as_str().unwrap();
        assert!(detail.starts_with(&format!("`{field}`")), "{kind} {field}: {detail}");
    }
    assert!(good.len() > 20);
    assert_eq!(crowd.told(&server).await, [("1", good), ("3", Vec::new())]);
    let policies = server.get("/policies").await;
    let pooling = policies["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == "pooling").unwrap();
    assert_eq!((&pooling["counters"]["faults"], &pooling["circuit_open"]), (&json!(0), &json!(false)));
    assert_eq!(server.metric("signalpost_dead_letters").await, 0.0);
}

#[tokio::test]
async fn the_largest_and_the_strangest_data_that_can_be_taken_are_taken() {
    let server = TestServer::start().await;
    let (pool_id, user) = ("x".repeat(123), "é".repeat(64));
    let matched = json!({ "request_id": "a b", "rider_id": user, "driver_id": -7, "pool_id": pool_id });
    let drivers: Vec<u32> = (0..1000).collect();
    let shares: Vec<Value> = (0..250).map(|rider| json!({ "rider_id": rider, "amount": "7.10", "currency": "EUR" })).collect();
    for (kind, data, recipients) in [
        ("pooling.match.found", matched, 2),
        ("pooling.trip.started", json!({ "pool_id": pool_id, "by": user }), 1),
        ("pooling.request.created", json!({ "request_id": 42, "rider_id": 1, "candidate_driver_ids": drivers }), 1000),
        ("pooling.fare.updated", json!({ "pool_id": 7, "shares": shares }), 250),
        ("pooling.chat.message", json!({ "pool_id": pool_id, "from": user, "text": "x".repeat(260_000) }), 1),
        ("pooling.driver.location", json!({ "pool_id": "p".repeat(57), "driver_id": "d".repeat(58), "lat": 1, "lon": 1 }), 0),
    ] {
        let receipt = server.publish(kind, data).await;
        assert_eq!(
            (&receipt["policies"][0]["outcome"], &receipt["recipients"]),
            (&json!("routed"), &json!(recipients)),
            "{kind}: {receipt}"
        );
    }
}

#[tokio::test]
async fn no_digit_of_an_id_or_an_amount_changes_on_its_way() {
    let server = TestServer::start().await;
    let ids = ["9007199254740993", "9007199254740992"];
    let mut crowd = Crowd::connect(&server, &[ids[0], ids[1], "null", "None"]).await;
    let data = r#"{"request_id":9007199254740993,"rider_id":9007199254740993,"driver_id":"d","pool_id":18446744073709551617,"fare":12.50}"#;
    publish(&server, "pooling.match.found", data).await;
    let members = data.trim_start_matches(r#"{"request_id":9007199254740993,"#);
    let matched = format!(r#"{{"type":"pooling_match","request_id":9007199254740993,"status":"matched","details":"{MATCHED}",{members}"#);
    assert_eq!(crowd.told_once(&server).await, told(&ids[..1], &matched));
    publish(&server, "pooling.trip.started", r#"{"pool_id":"18446744073709551617","by":"d"}"#).await;
    let started = r#"{"type":"trip_started","pool_id":"18446744073709551617","by":"d"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&ids[..1], started), "it is the same pool, and no neighbour of it");
    publish(&server, "pooling.trip.started", r#"{"pool_id":18446744073709551616,"by":"d"}"#).await;
    let receipt = publish(&server, "pooling.match.found", r#"{"request_id":1,"rider_id":null,"driver_id":"d","pool_id":7}"#).await;
    assert_eq!(receipt["policies"][0]["outcome"], "refused", "null names nobody: {receipt}");
    assert_eq!(crowd.told_once(&server).await, []);
}
