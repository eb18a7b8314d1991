//! What the bundled policies do on the real server: pooling routes, compact formats, chat listens.

use serde_json::{Value, json};
use tokio::time::{Duration, timeout};
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Client, SOON, TestServer};

mod places;
mod refusals;
mod rides;

const MATCHED: &str = "You have been matched for a pooling request!";
const AUF_DEUTSCH: &str = "Für deine Anfrage wurde eine Mitfahrt gefunden!";

/// Users and their clients.
struct Crowd(Vec<(String, Client)>);

impl Crowd {
    async fn connect(server: &TestServer, users: &[&str]) -> Crowd {
        let mut crowd = Vec::new();
        for user in users {
            crowd.push((user.to_string(), server.connect(user).await));
        }
        Crowd(crowd)
    }

    /// Everything that each has been told since the last time. A mark behind it shows where it ends.
    async fn told(&mut self, server: &TestServer) -> Vec<(&str, Vec<String>)> {
        let mut all = Vec::new();
        for (user, client) in &mut self.0 {
            server.post(&format!("/users/{user}/messages"), json!("mark")).await;
            let mut told = Vec::new();
            loop {
                let text = client.text().await;
                if text == "\"mark\"" {
                    break;
                }
                told.push(text);
            }
            all.push((user.as_str(), told));
        }
        all
    }

    /// Those who were told something, and what: one message each.
    async fn told_once(&mut self, server: &TestServer) -> Vec<(String, String)> {
        let told = self.told(server).await.into_iter().filter(|(_, told)| !told.is_empty());
        told.map(|(user, mut told)| {
            assert_eq!(told.len(), 1, "{user}: {told:?}");
            (user.to_owned(), told.remove(0))
        })
        .collect()
    }
}

fn told(users: &[&str], message: &str) -> Vec<(String, String)> {
    users.iter().map(|user| (user.to_string(), message.to_owned())).collect()
}

/// Publishes in the short form, with the data exactly as it is written.
async fn publish(server: &TestServer, kind: &str, data: &str) -> Value {
    let body = format!(r#"{{"type":"{kind}","data":{data}}}"#);
    let response = server.http.post(server.url("/events")).body(body).send().await.unwrap();
    assert_eq!(response.status(), 202);
    response.json().await.unwrap()
}

/// Matches each rider with the driver: all are in the pool.
async fn pool(server: &TestServer, pool_id: Value, driver: Value, riders: impl IntoIterator<Item = Value>) {
    for rider in riders {
        let data = json!({ "request_id": 1, "rider_id": rider, "driver_id": driver, "pool_id": pool_id });
        let receipt = server.publish("pooling.match.found", data).await;
        assert_eq!(receipt["policies"][0]["outcome"], "routed", "{receipt}");
    }
}

/// The clients of rider 1 and driver 3, who are matched in pool 7 and have read so.
async fn shared_ride(server: &TestServer) -> Crowd {
    let mut crowd = Crowd::connect(server, &["1", "3"]).await;
    pool(server, json!(7), json!(3), [json!(1)]).await;
    crowd.told(server).await;
    crowd
}

async fn calls_of_compact(server: &TestServer) -> u64 {
    let policies = server.get("/policies").await;
    let compact = policies["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == "compact").unwrap();
    compact["counters"]["calls"].as_u64().unwrap()
}

#[tokio::test]
async fn each_pooling_event_is_read_by_those_whom_it_concerns_and_by_nobody_else() {
    let server = TestServer::start().await;
    let mut crowd = Crowd::connect(&server, &["1", "eve", "3", "stranger"]).await;
    let data = r#"{"request_id":42,"rider_id":1,"candidate_driver_ids":[3,"stranger"],"pickup":{"lat":52.50,"lon":13.4},"dropoff":"Hbf"}"#;
    publish(&server, "pooling.request.created", data).await;
    let offer = r#"{"type":"pooling_offer","request_id":42,"rider_id":1,"pickup":{"lat":52.50,"lon":13.4},"dropoff":"Hbf"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&["3", "stranger"], offer));

    for rider in ["1", "\"eve\""] {
        let data = format!(r#"{{"handles":2,"request_id":42,"rider_id":{rider},"driver_id":3,"pool_id":7}}"#);
        publish(&server, "pooling.match.found", &data).await;
        let matched = format!(
            r#"{{"type":"pooling_match","request_id":42,"status":"matched","details":"{MATCHED}","handles":2,"rider_id":{rider},"driver_id":3,"pool_id":7}}"#
        );
        let rider = rider.trim_matches('"');
        assert_eq!(crowd.told_once(&server).await, told(&[rider, "3"], &matched));
    }

    for (kind, message_type, members, readers) in [
        ("pooling.match.accepted", "pooling_accepted", r#""request_id":42,"pool_id":7,"by":3"#, &["1", "eve"][..]),
        ("pooling.driver.location", "driver_location", r#""pool_id":7,"driver_id":3,"lat":52.5200,"lon":13.40500"#, &["1", "eve"]),
        ("pooling.driver.arriving", "driver_arriving", r#""pool_id":7,"driver_id":3,"eta_s":120"#, &["1", "eve"]),
        ("pooling.trip.started", "trip_started", r#""pool_id":7,"by":3"#, &["1", "eve"]),
        ("pooling.chat.message", "chat_message", r#""pool_id":7,"from":"eve","text":"At the gate 🚗""#, &["1", "3"]),
        ("pooling.trip.completed", "trip_completed", r#""pool_id":"7","by":1,"km":12.50"#, &["eve", "3"]),
    ] {
        let receipt = publish(&server, kind, &format!("{{{members}}}")).await;
        assert_eq!((&receipt["recipients"], &receipt["posted"]), (&json!(2), &json!(2)), "{kind}");
        let message = format!(r#"{{"type":"{message_type}",{members}}}"#);
        assert_eq!(crowd.told_once(&server).await, told(readers, &message), "{kind}");
    }

    pool(&server, json!(8), json!(3), [json!(1)]).await;
    crowd.told(&server).await;
    publish(&server, "pooling.match.cancelled", r#"{"request_id":42,"pool_id":8,"by":1,"reason":"ill"}"#).await;
    let cancelled = r#"{"type":"pooling_cancelled","request_id":42,"pool_id":8,"by":1,"reason":"ill"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&["3"], cancelled));
}

#[tokio::test]
async fn a_match_begins_with_the_very_bytes_of_the_original() {
    let server = TestServer::start().await;
    let mut rider = server.connect("1001").await;
    pool(&server, json!(7), json!(2002), [json!(1001)]).await;
    assert!(rider.text().await.starts_with(
        r#"{"type":"pooling_match","request_id":1,"status":"matched","details":"You have been matched for a pooling request!""#
    ));
}

#[tokio::test]
async fn a_pool_ends_when_its_trip_is_completed_or_cancelled() {
    let server = TestServer::start().await;
    let mut crowd = Crowd::connect(&server, &["1", "2", "3"]).await;
    for (pool_id, end, data) in [
        (7, "pooling.trip.completed", json!({ "pool_id": 7, "by": 3 })),
        (8, "pooling.match.cancelled", json!({ "request_id": 1, "pool_id": 8, "by": 3 })),
    ] {
        pool(&server, json!(pool_id), json!(3), [json!(1), json!(2)]).await;
        assert_eq!(server.metric("signalpost_groups").await, 1.0);
        assert_eq!(server.publish("pooling.trip.started", json!({ "pool_id": pool_id, "by": 3 })).await["posted"], 2);
        assert_eq!(server.publish(end, data).await["posted"], 2, "those who leave by it are told");
        crowd.told(&server).await;
        assert_eq!(server.metric("signalpost_groups").await, 0.0);
        assert_eq!(server.publish("pooling.trip.started", json!({ "pool_id": pool_id, "by": 3 })).await["recipients"], 0);
        assert_eq!(crowd.told_once(&server).await, []);
    }
}

#[tokio::test]
async fn each_rider_reads_their_own_fare_and_no_other() {
    let server = TestServer::start().await;
    let mut crowd = Crowd::connect(&server, &["1", "eve", "3"]).await;
    let data =
        r#"{"pool_id":7,"shares":[{"rider_id":1,"amount":12.50,"currency":"EUR"},{"rider_id":"eve","amount":"7.10","currency":"EUR"}]}"#;
    publish(&server, "pooling.fare.updated", data).await;
    let fare = |rider: &str, amount: &str| {
        format!(r#"{{"type":"fare_updated","pool_id":7,"amount":{amount},"currency":"EUR","rider_id":{rider}}}"#)
    };
    let expected = [("1".to_owned(), fare("1", "12.50")), ("eve".to_owned(), fare("\"eve\"", "\"7.10\""))];
    assert_eq!(crowd.told_once(&server).await, expected);
}

#[tokio::test]
async fn an_offer_waits_for_a_driver_for_as_long_as_it_is_worth_something() {
    let offer = json!({ "request_id": 1, "rider_id": 1, "candidate_driver_ids": [3] });
    let server = TestServer::start().await;
    server.publish("pooling.request.created", offer.clone()).await;
    let mut driver = server.connect("3").await;
    assert_eq!(driver.json().await["type"], "pooling_offer", "30 s by default");

    let server = TestServer::with("[policies.pooling.settings]\noffer_ttl_ms = 50").await;
    server.publish("pooling.request.created", offer).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let mut crowd = Crowd::connect(&server, &["3"]).await;
    assert_eq!(crowd.told_once(&server).await, []);
    assert_eq!(server.metric(r#"signalpost_messages_dropped_total{reason="expired"}"#).await, 1.0);
}

#[tokio::test]
async fn a_number_and_its_string_are_one_user_and_one_pool() {
    let server = TestServer::start().await;
    let mut crowd = Crowd::connect(&server, &["1001", "driver-b"]).await;
    pool(&server, json!("7"), json!("driver-b"), [json!("1001")]).await;
    crowd.told(&server).await;
    for by in [json!(1001), json!("1001")] {
        server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": by })).await;
        let told = crowd.told_once(&server).await;
        assert_eq!((told.len(), told[0].0.as_str()), (1, "driver-b"), "{by}");
    }
    server.publish("pooling.trip.started", json!({ "pool_id": "7", "by": "driver-b" })).await;
    assert_eq!(crowd.told_once(&server).await, told(&["1001"], r#"{"type":"trip_started","pool_id":"7","by":"driver-b"}"#));
}

#[tokio::test]
async fn data_without_what_the_policy_needs_is_refused_by_the_fields_name() {
    let server = TestServer::start().await;
    let mut crowd = shared_ride(&server).await;
    for (kind, data, code, named) in [
        ("pooling.request.created", r#"{"request_id":1,"rider_id":1}"#, "missing_field", "candidate_driver_ids"),
        ("pooling.match.found", r#"{"request_id":1,"rider_id":1,"pool_id":7}"#, "missing_field", "driver_id"),
        ("pooling.match.accepted", r#"{"pool_id":7,"by":1}"#, "missing_field", "request_id"),
        ("pooling.match.cancelled", r#"{"request_id":1,"pool_id":7}"#, "missing_field", "by"),
        ("pooling.driver.location", r#"{"pool_id":7,"driver_id":3,"lon":1}"#, "missing_field", "lat"),
        ("pooling.driver.location", r#"{"pool_id":7,"driver_id":3,"lat":91,"lon":1}"#, "invalid_field", "lat"),
        ("pooling.driver.arriving", r#"{"pool_id":7,"driver_id":3}"#, "missing_field", "eta_s"),
        ("pooling.trip.started", r#"{"by":3}"#, "missing_field", "pool_id"),
        ("pooling.trip.completed", r#"{"pool_id":1.5,"by":3}"#, "invalid_field", "pool_id"),
        ("pooling.fare.updated", r#"{"pool_id":7,"shares":[{"rider_id":1,"amount":1}]}"#, "missing_field", "shares[0].currency"),
        ("pooling.chat.message", r#"{"pool_id":7,"from":1}"#, "missing_field", "text"),
        ("pooling.trip.started", "[]", "invalid_data", "object"),
        ("pooling.trip.started", "null", "invalid_data", "object"),
    ] {
        let receipt = publish(&server, kind, data).await;
        let pooling = &receipt["policies"][0];
        assert_eq!((&pooling["name"], &pooling["outcome"]), (&json!("pooling"), &json!("refused")), "{kind} {data}: {receipt}");
        assert_eq!(pooling["refusal"]["code"], code, "{kind} {data}: {receipt}");
        assert!(pooling["refusal"]["detail"].as_str().unwrap().contains(named), "{kind} {data}: {receipt}");
        assert_eq!(receipt["posted"], 0);
    }
    assert_eq!(crowd.told_once(&server).await, []);
    assert_eq!(server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": 3 })).await["posted"], 1, "the pool has not ended");
}

#[tokio::test]
async fn each_reader_gets_the_keys_and_the_language_that_they_asked_for() {
    let server = TestServer::start().await;
    let data = r#"{"request_id":42,"rider_id":1001,"driver_id":2002,"pool_id":7,"speed":{"type":1.50}}"#;
    let english = format!(
        r#"{{"type":"pooling_match","request_id":42,"status":"matched","details":"{MATCHED}","rider_id":1001,"driver_id":2002,"pool_id":7,"speed":{{"type":1.50}}}}"#
    );
    let compact = |details: &str| {
        format!(r#"{{"t":"pooling_match","r":42,"s":"matched","d":"{details}","ri":1001,"dr":2002,"p":7,"speed":{{"type":1.50}}}}"#)
    };
    let hindi = "आपके राइड-शेयरिंग अनुरोध के लिए मैच मिल गया है!";
    let mut readers = Vec::new();
    for (query, expected) in [
        ("", english.clone()),
        ("?format=json", english.clone()),
        ("?locale=fr", english.clone()),
        ("?format=compact", compact(MATCHED)),
        ("?locale=de", english.replace(MATCHED, AUF_DEUTSCH)),
        ("?locale=hi", english.replace(MATCHED, hindi)),
        ("?locale=de-AT", english.replace(MATCHED, AUF_DEUTSCH)),
        ("?locale=de&format=compact", compact(AUF_DEUTSCH)),
    ] {
        readers.push((query, expected, server.connect(&format!("1001{query}")).await));
    }
    publish(&server, "pooling.match.found", data).await;
    for (query, expected, client) in &mut readers {
        assert_eq!(client.text().await, *expected, "{query}");
    }
    // What is told directly is formatted too, and what nobody asked to be changed keeps every byte.
    let written = r#"{ "type" : "notice", "amount": 12.50 }"#;
    let response = server.http.post(server.url("/users/1001/messages")).body(written).send().await.unwrap();
    assert_eq!(response.status(), 202);
    for (query, _, client) in &mut readers {
        let expected = if query.contains("compact") { r#"{"t":"notice","a":12.50}"# } else { written };
        assert_eq!(client.text().await, expected, "{query}");
    }
}

#[tokio::test]
async fn a_message_that_compact_has_no_room_for_is_read_as_it_came() {
    let server = TestServer::start().await;
    let mut german = server.connect("1?locale=de").await;
    let mut compact = server.connect("1?format=compact").await;
    let message = |bytes: usize| {
        let empty = json!({ "type": "pooling_match", "details": MATCHED, "note": "" }).to_string();
        empty.replace(r#""note":"""#, &format!(r#""note":"{}""#, "x".repeat(bytes - empty.len())))
    };
    let many = |members: usize| {
        let members: Vec<String> = (1..members).map(|member| format!("\"{member}\":1")).collect();
        format!(r#"{{"type":"x",{}}}"#, members.join(","))
    };
    for (written, is_translated, is_shortened) in
        [(message(262_144), false, true), (message(262_144 - 50), true, true), (many(1000), false, true), (many(1001), false, false)]
    {
        let response = server.http.post(server.url("/users/1/messages")).body(written.clone()).send().await.unwrap();
        assert_eq!(response.status(), 202, "{}", written.len());
        assert_eq!(german.text().await, if is_translated { written.replace(MATCHED, AUF_DEUTSCH) } else { written.clone() });
        assert_eq!(compact.text().await != written, is_shortened, "{}", written.len());
    }
    let policies = server.get("/policies").await;
    assert!(policies["policies"].as_array().unwrap().iter().all(|policy| policy["counters"]["faults"] == 0), "{policies}");
}

#[tokio::test]
async fn compact_is_asked_only_for_readers_who_ask_for_something() {
    let server = TestServer::start().await;
    let mut plain = server.connect("1").await;
    let mut short = server.connect("2?format=compact").await;
    let before = calls_of_compact(&server).await;
    let message = r#"{"type":"x"}"#;
    for (user, calls) in [("1", before), ("2", before + 1)] {
        let response = server.http.post(server.url(&format!("/users/{user}/messages"))).body(message).send().await.unwrap();
        assert_eq!(response.status(), 202);
        let (reader, seen) = if user == "1" { (&mut plain, message) } else { (&mut short, r#"{"t":"x"}"#) };
        assert_eq!(reader.text().await, seen);
        assert_eq!(calls_of_compact(&server).await, calls, "{user}");
    }
}

#[tokio::test]
async fn a_message_is_formatted_once_for_each_class_and_not_for_each_reader() {
    let server = TestServer::with("[policies.compact]\nreaders = \"all\"\n").await;
    let mut readers = Vec::new();
    for rider in 0..20 {
        let query = if rider % 2 == 0 { "?format=compact" } else { "" };
        readers.push(server.connect(&format!("{rider}{query}")).await);
    }
    pool(&server, json!(7), json!("driver"), (0..20).map(|rider| json!(rider))).await;
    for reader in &mut readers {
        reader.text().await;
    }
    let before = calls_of_compact(&server).await;
    assert_eq!(server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": "driver" })).await["posted"], 20);
    for (rider, reader) in readers.iter_mut().enumerate() {
        let expected = if rider % 2 == 0 {
            r#"{"t":"trip_started","p":7,"b":"driver"}"#
        } else {
            r#"{"type":"trip_started","pool_id":7,"by":"driver"}"#
        };
        assert_eq!(reader.text().await, expected);
    }
    assert_eq!(calls_of_compact(&server).await, before + 2);
}

#[tokio::test]
async fn a_replayed_message_is_not_formatted_again() {
    let server = TestServer::start().await;
    let mut live = server.connect_v1("1?format=compact").await;
    let hello = live.json().await;
    pool(&server, json!(7), json!("driver"), [json!(1), json!(2)]).await;
    let first = live.json().await;
    assert_eq!(first["data"]["t"], "pooling_match");
    server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": "driver" })).await;
    assert_eq!(live.json().await["data"]["t"], "trip_started");
    let before = calls_of_compact(&server).await;

    // Of the same class: the reader themselves, who resumes from the beginning, …
    drop(live);
    let mut again = server.connect_v1("1?format=compact").await;
    again.json().await;
    again.send_json(json!({ "type": "resume", "epoch": hello["data"]["epoch"], "seq": 0 })).await;
    assert_eq!(again.json().await["data"]["recovered"], true);
    assert_eq!(again.json().await["data"], first["data"]);
    assert_eq!(again.json().await["data"]["t"], "trip_started");
    assert_eq!(calls_of_compact(&server).await, before);
    // … and another, who was away. Their match is a message of its own, and the trip's start is the same one.
    let mut other = server.connect("2?format=compact").await;
    assert_eq!(other.json().await["t"], "pooling_match");
    assert_eq!(other.json().await["t"], "trip_started");
    assert_eq!(calls_of_compact(&server).await, before + 1);
    // Another class is formatted for itself.
    let mut french = server.connect_v1("1?locale=fr").await;
    french.json().await;
    french.send_json(json!({ "type": "resume", "epoch": hello["data"]["epoch"], "seq": 0 })).await;
    assert_eq!(french.json().await["data"]["recovered"], true);
    assert_eq!(french.json().await["data"]["type"], "pooling_match");
    assert_eq!(french.json().await["data"]["type"], "trip_started");
    assert_eq!(calls_of_compact(&server).await, before + 3);
}

#[tokio::test]
async fn what_a_member_writes_reaches_the_others_under_the_members_name() {
    let server = TestServer::start().await;
    let mut crowd = Crowd::connect(&server, &["1", "eve", "3", "stranger"]).await;
    let mut tablet = server.connect_v1("1").await;
    tablet.json().await;
    pool(&server, json!(7), json!(3), [json!(1), json!("eve")]).await;
    crowd.told(&server).await;
    assert_eq!(tablet.json().await["data"]["type"], "pooling_match");
    assert_eq!(tablet.json().await["data"], "mark");
    crowd.0[0].1.send(r#"{"type":"chat","pool_id":7,"text":"At \"the\" gate 🚗","from":"mallory"}"#).await;
    server.metric_reaches(r#"signalpost_client_messages_total{outcome="handled"}"#, 1.0).await;
    let line = r#"{"type":"chat_message","pool_id":7,"from":1,"text":"At \"the\" gate 🚗"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&["eve", "3"], line));
    assert_eq!(tablet.json().await["data"], serde_json::from_str::<Value>(line).unwrap(), "the author's other device shows it too");
    assert_eq!(tablet.json().await["data"], "mark");
    tablet.send(r#"{"type":"message","data":{"type":"chat","pool_id":"7","text":"here"}}"#).await;
    server.metric_reaches(r#"signalpost_client_messages_total{outcome="handled"}"#, 2.0).await;
    let line = r#"{"type":"chat_message","pool_id":"7","from":1,"text":"here"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&["1", "eve", "3"], line));
    assert_eq!(tablet.json().await["data"], "mark", "the device that wrote it gets no copy");

    // A device that is gone gets no copy, and none waits for the author to be back.
    drop(tablet);
    server.metric_reaches("signalpost_sessions", 4.0).await;
    crowd.0[0].1.send(r#"{"type":"chat","pool_id":7,"text":"alone"}"#).await;
    server.metric_reaches(r#"signalpost_client_messages_total{outcome="handled"}"#, 3.0).await;
    let line = r#"{"type":"chat_message","pool_id":7,"from":1,"text":"alone"}"#;
    assert_eq!(crowd.told_once(&server).await, told(&["eve", "3"], line));
    let mut back = Crowd::connect(&server, &["1"]).await;
    assert_eq!(back.told_once(&server).await, []);
}

#[tokio::test]
async fn what_chat_cannot_take_is_answered_with_an_error_frame_to_its_author_alone() {
    let server = TestServer::start().await;
    let mut crowd = shared_ride(&server).await;
    let (mut plain, mut v1) = (server.connect("stranger").await, server.connect_v1("stranger").await);
    assert_eq!(v1.json().await["type"], "hello");
    let long = json!({ "type": "chat", "pool_id": 7, "text": "x".repeat(2001) }).to_string();
    for (frame, code) in [
        (r#"{"type":"chat","pool_id":7,"text":"let me in"}"#, "not_a_member"),
        (r#"{"type":"chat","pool_id":8,"text":"no such pool"}"#, "not_a_member"),
        (r#"{"type":"chat","text":"nowhere"}"#, "invalid_chat"),
        (r#"{"type":"chat","pool_id":7}"#, "invalid_chat"),
        (r#"{"type":"chat","pool_id":"7 ","text":"hi"}"#, "invalid_chat"),
        (r#"{"type":"chat","pool_id":null,"text":"hi"}"#, "invalid_chat"),
        (r#"{"type":"chat","pool_id":7,"text":["hi"]}"#, "invalid_chat"),
        (r#"{"type":"chat","pool_id":7,"text":""}"#, "text_length"),
        (&long, "text_length"),
        (r#"{"type":"dance"}"#, "unhandled"),
    ] {
        plain.send(frame).await;
        let error = plain.json().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{frame}");
        assert!(error["detail"].is_string());
        v1.send(format!(r#"{{"type":"message","data":{frame}}}"#)).await;
        let error = v1.json().await;
        assert_eq!((&error["type"], &error["data"]["code"]), (&json!("error"), &json!(code)), "{frame}");
        assert!(error.get("seq").is_none(), "an error is no message of the mailbox: {error}");
    }
    plain.send("not even JSON").await;
    assert_eq!(plain.json().await["code"], "unhandled");
    assert_eq!(crowd.told_once(&server).await, []);
    assert_eq!(server.metric(r#"signalpost_client_messages_total{outcome="refused"}"#).await, 18.0);
    // Both are still connected.
    server.post("/users/stranger/messages", json!(1)).await;
    assert_eq!(plain.text().await, "1");
    assert_eq!(v1.json().await["data"], 1);
}

#[tokio::test]
async fn the_end_of_a_pool_ends_its_chat() {
    let server = TestServer::start().await;
    let mut crowd = shared_ride(&server).await;
    server.publish("pooling.trip.completed", json!({ "pool_id": 7, "by": 3 })).await;
    crowd.told(&server).await;
    let rider = &mut crowd.0[0].1;
    rider.send_json(json!({ "type": "chat", "pool_id": 7, "text": "thanks" })).await;
    assert_eq!(rider.json().await["code"], "not_a_member");
    assert!(timeout(Duration::from_millis(50), rider.next()).await.is_err());
}

#[tokio::test]
async fn what_was_formatted_is_kept_for_the_next_reader_of_its_class_within_the_bound() {
    for (settings, calls) in [("", 1.0), ("[mailboxes]\nshapes_bytes_max = 0", 2.0)] {
        let server = TestServer::with(settings).await;
        let device = || {
            let url = server.socket_url("1001?format=compact");
            async move { Client::open(&url, Some("signalpost.v1")).await }
        };
        let mut first = device().await;
        assert_eq!(first.json().await["type"], "hello");
        server.post("/users/1001/messages", json!({ "type": "news" })).await;
        let frame = first.json().await;
        // It isn't acked, so a second device can ask for it.
        let mut second = device().await;
        let epoch = second.json().await["data"]["epoch"].clone();
        second.send_json(json!({ "type": "resume", "epoch": epoch, "seq": 0 })).await;
        assert_eq!(second.json().await["type"], "resume");
        assert_eq!(second.json().await, frame);
        assert_eq!(server.metric(r#"signalpost_policy_call_seconds_count{function="format",policy="compact"}"#).await, calls);
    }
}
