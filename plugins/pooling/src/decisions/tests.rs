use super::*;
use signalpost_plugin::testing::{self, Host};
use signalpost_plugin::{Body, Delivery, Membership, Recipients, json};

fn decide_json(event_type: &str, data: &str) -> Result<Decision, Refusal> {
    Host::new();
    decide_here(event_type, data)
}

/// Keeps the host that the test has set up.
fn decide_here(event_type: &str, data: &str) -> Result<Decision, Refusal> {
    let event = testing::event_of_json(event_type, data);
    decide(&event, &event.fields()?, &Pooling::default())
}

/// Data with every field that any event needs, but for those given, which come first.
fn data_with(given: &str) -> String {
    let known = [
        ("request_id", "1"),
        ("rider_id", "2"),
        ("driver_id", "3"),
        ("pool_id", "4"),
        ("by", "3"),
        ("from", "3"),
        ("candidate_driver_ids", "[3]"),
        ("lat", "52.5"),
        ("lon", "13.4"),
        ("eta_s", "60"),
        ("text", "\"hi\""),
        ("shares", r#"[{"rider_id":2,"amount":1,"currency":"EUR"}]"#),
    ];
    let others = known.iter().filter(|(name, _)| !given.contains(&format!("\"{name}\":")));
    let others: Vec<String> = others.map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{given}{}{}}}", if given.is_empty() { "" } else { "," }, others.join(","))
}

/// The event's only delivery, and its message.
fn only(event_type: &str, data: &str) -> (Delivery, String) {
    let mut decision = decide_json(event_type, data).unwrap();
    assert_eq!(decision.deliveries.len(), 1);
    let delivery = decision.deliveries.remove(0);
    let message = message(&delivery);
    (delivery, message)
}

fn message(delivery: &Delivery) -> String {
    match &delivery.message {
        Some(Body::Json(json)) => json.clone(),
        other => panic!("not a JSON message: {other:?}"),
    }
}

fn users(names: &[&str]) -> Recipients {
    Recipients::Users(names.iter().map(|name| name.to_string()).collect())
}

#[test]
fn every_listed_event_has_a_rule() {
    for event_type in EVENTS {
        let refusal = decide_json(event_type, "{}").unwrap_err();
        assert_eq!(refusal.code, "missing_field", "{event_type}");
    }
    assert_eq!(decide_json("pooling.match.lost", "{}").unwrap_err().code, "unknown_event");
}

#[test]
fn an_offer_goes_to_the_candidates_and_does_not_name_them() {
    let (delivery, message) = only(
        "pooling.request.created",
        r#"{"request_id":42,"rider_id":1001,"candidate_driver_ids":[2002,"bob"],"pickup":{"lat":52.520,"lon":13.4},"dropoff":"Hbf"}"#,
    );
    assert_eq!(delivery.to, users(&["2002", "bob"]));
    assert_eq!(delivery.ttl_ms, Some(30_000));
    assert_eq!(message, r#"{"type":"pooling_offer","request_id":42,"rider_id":1001,"pickup":{"lat":52.520,"lon":13.4},"dropoff":"Hbf"}"#);
}

#[test]
fn a_match_begins_as_it_always_did_and_makes_the_group() {
    let data = r#"{"rider_id":1001,"driver_id":"bob","pool_id":7,"request_id":42,"seats":2}"#;
    let (delivery, message) = only("pooling.match.found", data);
    assert_eq!(delivery.to, users(&["1001", "bob"]));
    assert_eq!(
        message,
        r#"{"type":"pooling_match","request_id":42,"status":"matched","details":"You have been matched for a pooling request!","rider_id":1001,"driver_id":"bob","pool_id":7,"seats":2}"#
    );
    let joins = decide_json("pooling.match.found", data).unwrap().joins;
    let join = |user: &str| Membership { group: "pool:7".to_string(), user: user.to_string() };
    assert_eq!(joins, [join("1001"), join("bob")]);
}

#[test]
fn a_producer_cannot_replace_or_double_what_the_policy_says() {
    let (_, message) =
        only("pooling.match.found", r#"{"type":"x","status":"y","details":"z","request_id":1,"rider_id":2,"driver_id":3,"pool_id":4}"#);
    assert_eq!(
        message,
        r#"{"type":"pooling_match","request_id":1,"status":"matched","details":"You have been matched for a pooling request!","rider_id":2,"driver_id":3,"pool_id":4}"#
    );
    let (_, message) = only("pooling.trip.started", r#"{"type":"x","pool_id":4,"by":3,"by":5}"#);
    assert_eq!(message, r#"{"type":"trip_started","pool_id":4,"by":5}"#);
}

#[test]
fn news_of_the_pool_goes_to_all_but_the_one_who_caused_it() {
    for (event_type, data, message_type, ends) in [
        ("pooling.match.accepted", r#"{"request_id":1,"pool_id":"p","by":3}"#, "pooling_accepted", false),
        ("pooling.match.cancelled", r#"{"request_id":1,"pool_id":"p","by":3,"reason":"ill"}"#, "pooling_cancelled", true),
        ("pooling.driver.location", r#"{"pool_id":"p","driver_id":3,"lat":1,"lon":2}"#, "driver_location", false),
        ("pooling.driver.arriving", r#"{"pool_id":"p","driver_id":3,"eta_s":60}"#, "driver_arriving", false),
        ("pooling.trip.started", r#"{"pool_id":"p","by":3}"#, "trip_started", false),
        ("pooling.trip.completed", r#"{"pool_id":"p","by":3}"#, "trip_completed", true),
        ("pooling.chat.message", r#"{"pool_id":"p","from":3,"text":"hi"}"#, "chat_message", false),
    ] {
        let (delivery, message) = only(event_type, data);
        assert_eq!(delivery.to, Recipients::Group("pool:p".to_string()), "{event_type}");
        assert_eq!(delivery.except, ["3"], "{event_type}");
        assert_eq!(message, format!(r#"{{"type":"{message_type}",{}"#, &data[1..]));
        let ended = decide_json(event_type, data).unwrap().ends;
        assert_eq!(ended, if ends { vec!["pool:p".to_string()] } else { vec![] }, "{event_type}");
    }
}

#[test]
fn only_the_newest_position_counts_and_only_now() {
    let (delivery, message) = only("pooling.driver.location", r#"{"pool_id":7,"driver_id":3,"lat":52.52000,"lon":13.40500000000000001}"#);
    assert_eq!(delivery.collapse_key.as_deref(), Some("location:1:7:3"));
    assert_eq!((delivery.ttl_ms, delivery.keep_ms), (Some(10_000), Some(0)));
    assert_eq!(delivery.priority, Priority::Low);
    assert_eq!(message, r#"{"type":"driver_location","pool_id":7,"driver_id":3,"lat":52.52000,"lon":13.40500000000000001}"#);
}

/// How often a position was sent of those that are published one after the other: the time, if there is one, and the latitude.
fn sent(positions: &[(&str, f64)]) -> Vec<usize> {
    let route = |(time, lat): &(&str, f64)| {
        let data = json!({ "pool_id": 7, "driver_id": 3, "lat": lat, "lon": 13.4 });
        let time = (!time.is_empty()).then(|| format!("2026-01-01T00:00:{time}Z"));
        let event = Event { time, ..testing::event("pooling.driver.location", data) };
        testing::route(&Pooling::default(), &event).unwrap().deliveries.len()
    };
    positions.iter().map(route).collect()
}

/// A host where rider 2 of pool 7 reads what driver 3 does.
fn ride() -> Host {
    let host = Host::new();
    host.join("pool:7", &["2", "3"]);
    host.connect("2", 1);
    host
}

#[test]
fn a_car_that_stands_still_is_not_sent_until_it_is_forgotten() {
    let host = ride();
    assert_eq!(sent(&[("", 52.5), ("", 52.5)]), [1, 0]);
    host.set_now_ms(30_000);
    assert_eq!(sent(&[("", 52.5), ("", 52.5)]), [1, 0]);
}

#[test]
fn a_position_that_reached_nobody_does_not_suppress_the_next() {
    let host = Host::new();
    host.connect("3", 1);
    assert_eq!(sent(&[("", 52.5), ("", 52.5)]), [1, 1], "nobody belongs to the pool");
    host.join("pool:7", &["2", "3"]);
    assert_eq!(sent(&[("", 52.5), ("", 52.5)]), [1, 1], "only the driver is connected");
    host.connect("2", 1);
    assert_eq!(sent(&[("", 52.5), ("", 52.5)]), [1, 0]);
    host.connect("2", 0);
    assert_eq!(sent(&[("", 52.6)]), [1], "it is elsewhere, and the rider is gone");
    host.connect("2", 1);
    assert_eq!(sent(&[("", 52.6), ("", 52.6)]), [1, 0]);
}

#[test]
fn an_older_position_never_replaces_a_newer_one() {
    let host = ride();
    for (positions, expected) in [
        (&[("10", 1.0), ("09", 2.0), ("10", 3.0), ("11", 4.0)][..], &[1, 0, 1, 1][..]),
        (&[("20", 4.0), ("19", 5.0)], &[0, 0]),
        (&[("", 6.0), ("19", 7.0), ("21", 8.0)], &[1, 0, 1]),
        (&[("21.5", 9.0), ("21.499999999", 1.0), ("21.500000001", 2.0)], &[1, 0, 1]),
    ] {
        assert_eq!(sent(positions), expected, "{positions:?}");
    }
    host.set_now_ms(599_999);
    assert_eq!(sent(&[("21", 3.0)]), [0]);
    host.set_now_ms(600_000);
    assert_eq!(sent(&[("21", 3.0)]), [1], "a clock that was ahead hides no car for longer");
}

#[test]
fn a_store_without_room_hides_no_car() {
    let host = ride();
    host.fill_state();
    assert_eq!(sent(&[("10", 52.5), ("11", 52.5)]), [1, 1]);
}

#[test]
fn a_place_off_the_globe_is_refused_before_anyone_remembers_it() {
    let host = ride();
    let decided = decide_here("pooling.driver.location", r#"{"pool_id":7,"driver_id":3,"lat":91,"lon":13.4}"#);
    assert!(decided.unwrap_err().detail.contains("`lat`"));
    assert_eq!(host.state("location:1:7:3"), None);
}

#[test]
fn a_rider_who_cancels_leaves_and_the_others_go_on() {
    let host = Host::new();
    let cancelled = |by: &str| {
        let decision = decide_here("pooling.match.cancelled", &format!(r#"{{"request_id":1,"pool_id":7,"by":{by}}}"#)).unwrap();
        decision.to_string().lines().skip(1).collect::<Vec<_>>().join("\n")
    };
    for rider in ["1", "\"eve\""] {
        decide_here("pooling.match.found", &data_with(&format!(r#""rider_id":{rider},"pool_id":7"#))).unwrap();
    }
    host.join("pool:7", &["1", "3", "eve"]);
    assert_eq!(cancelled("1"), "leave pool:7: 1");
    assert_eq!(cancelled("\"eve\""), "leave pool:7: eve");
    assert_eq!(cancelled("\"support\""), "leave pool:7: support", "who is not a member leaves nothing");
    assert_eq!(cancelled("\"3\""), "end pool:7", "the driver");
    assert_eq!(host.state("driver:7"), None);
    decide_here("pooling.match.found", &data_with(r#""pool_id":8"#)).unwrap();
    host.join("pool:8", &["2", "3"]);
    let decision = decide_here("pooling.match.cancelled", r#"{"request_id":1,"pool_id":8,"by":2}"#).unwrap();
    assert_eq!(decision.ends, ["pool:8"], "the last rider");
}

#[test]
fn the_end_of_a_trip_forgets_its_driver() {
    let host = Host::new();
    decide_here("pooling.match.found", &data_with("")).unwrap();
    assert_eq!(host.state("driver:4").as_deref(), Some("3"));
    decide_here("pooling.trip.completed", &data_with("")).unwrap();
    assert_eq!(host.state("driver:4"), None);
}

#[test]
fn a_drivers_answer_to_an_offer_is_told_to_nobody() {
    for event_type in ["pooling.offer.accepted", "pooling.offer.declined"] {
        assert_eq!(decide_json(event_type, r#"{"request_id":42,"driver_id":"bob"}"#), Ok(Decision::nothing()));
    }
}

#[test]
fn an_id_that_the_server_would_not_take_is_refused_by_its_name_in_every_event() {
    let fields: [(&str, &[&str]); 12] = [
        ("pooling.request.created", &["request_id", "rider_id"]),
        ("pooling.match.found", &["request_id", "rider_id", "driver_id", "pool_id"]),
        ("pooling.match.accepted", &["request_id", "pool_id", "by"]),
        ("pooling.match.cancelled", &["request_id", "pool_id", "by"]),
        ("pooling.driver.location", &["pool_id", "driver_id"]),
        ("pooling.driver.arriving", &["pool_id", "driver_id"]),
        ("pooling.trip.started", &["pool_id", "by"]),
        ("pooling.trip.completed", &["pool_id", "by"]),
        ("pooling.fare.updated", &["pool_id"]),
        ("pooling.chat.message", &["pool_id", "from"]),
        ("pooling.offer.accepted", &["request_id", "driver_id"]),
        ("pooling.offer.declined", &["request_id", "driver_id"]),
    ];
    let too_long = format!("\"{}\"", "x".repeat(129));
    let many_digits = "1".repeat(129);
    let values =
        ["null", "true", "1.5", "[1]", "{}", r#""""#, r#""1001 ""#, r#"" 1001""#, r#""\t""#, r#""a\u0007b""#, &too_long, &many_digits];
    for (event_type, names) in fields {
        assert!(decide_json(event_type, &data_with("")).is_ok(), "{event_type}");
        for (name, value) in names.iter().flat_map(|name| values.iter().map(move |value| (name, value))) {
            let refusal = decide_json(event_type, &data_with(&format!("\"{name}\":{value}"))).unwrap_err();
            assert_eq!(refusal.code, "invalid_field", "{event_type} {name}: {value}");
            assert!(refusal.detail.starts_with(&format!("`{name}` should be an id: ")), "{event_type}: {}", refusal.detail);
        }
    }
}

#[test]
fn what_would_be_too_much_for_the_server_is_refused_by_its_name() {
    let id = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let list = |items: usize, item: &str| format!("[{}]", vec![item; items].join(","));
    let share = r#"{"rider_id":2,"amount":1,"currency":"EUR"}"#;
    let rest: String = (0..900).map(|member| format!("\"m{member}\":1,")).collect();
    for (event_type, given, words) in [
        ("pooling.trip.started", format!("\"pool_id\":{}", id(124)), "`pool_id` has 124 bytes: it should have at most 123"),
        (
            "pooling.driver.location",
            format!("\"pool_id\":{},\"driver_id\":{}", id(100), id(15)),
            "`pool_id` and `driver_id` have 115 bytes",
        ),
        (
            "pooling.request.created",
            format!("\"candidate_driver_ids\":{}", list(1001, "3")),
            "`candidate_driver_ids` should be a list of at most 1000 ids",
        ),
        (
            "pooling.request.created",
            format!("\"candidate_driver_ids\":{}", list(2, "\" 3\"")),
            "`candidate_driver_ids[0]` should be an id: ",
        ),
        ("pooling.request.created", "\"candidate_driver_ids\":3".to_owned(), "`candidate_driver_ids` should be a list"),
        ("pooling.fare.updated", format!("\"shares\":{}", list(1001, share)), "`shares` should be a list of at most 1000 objects"),
        ("pooling.fare.updated", format!("\"shares\":{},\"note\":{}", list(250, share), id(3000)), "`shares` makes 250 messages"),
        ("pooling.fare.updated", format!("{rest}\"shares\":{}", list(100, share)), "`shares` makes 100 messages"),
        (
            "pooling.fare.updated",
            format!("\"shares\":{}", list(1, r#"{"rider_id":" 2","amount":1,"currency":"EUR"}"#)),
            "`shares[0].rider_id` should be an id: ",
        ),
        (
            "pooling.fare.updated",
            format!("\"shares\":{}", list(1, r#"{"rider_id":2,"amount":1,"currency":5}"#)),
            "`shares[0].currency` should be a string",
        ),
        ("pooling.chat.message", format!("\"text\":{}", id(261_000)), "`text` has 261002 bytes: the event's data has "),
        ("pooling.chat.message", r#""text":"\ud800""#.to_owned(), "`text` should be a string"),
        ("pooling.driver.arriving", r#""eta_s":1e999"#.to_owned(), "`eta_s` should be a number"),
        ("pooling.driver.location", r#""lon":-180.1"#.to_owned(), "`lon` should be a number of degrees between -180 and 180"),
    ] {
        let refusal = decide_json(event_type, &data_with(&given)).unwrap_err();
        assert_eq!(refusal.code, "invalid_field", "{}", refusal.detail);
        assert!(refusal.detail.starts_with(words), "{}", refusal.detail);
    }
}

#[test]
fn what_is_just_not_too_much_is_routed() {
    let id = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let list = |items: usize, item: &str| format!("[{}]", vec![item; items].join(","));
    let share = r#"{"rider_id":2,"amount":1,"currency":"EUR"}"#;
    for (event_type, given, deliveries) in [
        ("pooling.trip.started", format!("\"pool_id\":{},\"by\":{}", id(123), id(128)), 1),
        ("pooling.driver.location", format!("\"pool_id\":{},\"driver_id\":{}", id(100), id(14)), 1),
        ("pooling.request.created", format!("\"candidate_driver_ids\":{}", list(1000, "3")), 1),
        ("pooling.fare.updated", format!("\"shares\":{}", list(250, share)), 250),
        ("pooling.chat.message", format!("\"text\":{}", id(260_000)), 1),
    ] {
        let decision = decide_json(event_type, &data_with(&given)).unwrap();
        assert_eq!(decision.deliveries.len(), deliveries, "{event_type}");
        for delivery in decision.deliveries {
            assert!(message(&delivery).len() <= 262_144 && delivery.collapse_key.unwrap_or_default().len() <= 128);
        }
    }
}

#[test]
fn an_amount_is_a_number_in_either_spelling() {
    let data = Fields::parse(r#"{"a": 12.50, "b": "12.50", "c": -3, "d": null, "e": "free", "f": "NaN", "g": ""}"#).unwrap();
    let written: Vec<_> = ["a", "b", "c"].iter().map(|name| amount(&data, name).unwrap().get()).collect();
    assert_eq!(written, ["12.50", "\"12.50\"", "-3"]);
    for name in ["d", "e", "f", "g"] {
        assert_eq!(amount(&data, name).unwrap_err().code, "invalid_field", "{name}");
    }
}

#[test]
fn each_rider_sees_their_own_share_only() {
    let decision = decide_json(
        "pooling.fare.updated",
        r#"{"pool_id":7,"shares":[{"rider_id":1001,"amount":12.50,"currency":"EUR"},{"rider_id":"eve","amount":"7.10","currency":"EUR","tip":1}],"at":"12:00"}"#,
    )
    .unwrap();
    let told: Vec<_> = decision.deliveries.iter().map(|delivery| (delivery.to.clone(), message(delivery))).collect();
    let user = |name: &str| Recipients::User(name.to_string());
    assert_eq!(
        told,
        [
            (
                user("1001"),
                r#"{"type":"fare_updated","pool_id":7,"amount":12.50,"currency":"EUR","rider_id":1001,"at":"12:00"}"#.to_string()
            ),
            (
                user("eve"),
                r#"{"type":"fare_updated","pool_id":7,"amount":"7.10","currency":"EUR","rider_id":"eve","tip":1,"at":"12:00"}"#.to_string()
            ),
        ]
    );
}

#[test]
fn one_bad_share_refuses_the_whole_fare() {
    let refusal = decide_json(
        "pooling.fare.updated",
        r#"{"pool_id":7,"shares":[{"rider_id":1,"amount":2,"currency":"EUR"},{"rider_id":2,"currency":"EUR"}]}"#,
    )
    .unwrap_err();
    assert_eq!(refusal.code, "missing_field");
    assert!(refusal.detail.contains("`shares[1].amount`"), "{}", refusal.detail);
}
