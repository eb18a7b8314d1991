//! One function per event: who is told, and what.

use signalpost_plugin::{Decision, Fields, Id, Object, Priority, RawValue, Refusal, serde_json, state, tell, to};

use crate::Pooling;
use crate::location::{self, Position};

pub const EVENTS: [&str; 10] = [
    "pooling.request.created",
    "pooling.match.found",
    "pooling.match.accepted",
    "pooling.match.cancelled",
    "pooling.driver.location",
    "pooling.driver.arriving",
    "pooling.trip.started",
    "pooling.trip.completed",
    "pooling.fare.updated",
    "pooling.chat.message",
];

pub fn decide(event_type: &str, data: &Fields, settings: &Pooling) -> Result<Decision, Refusal> {
    match event_type {
        "pooling.request.created" => request_created(data, settings),
        "pooling.match.found" => match_found(data),
        "pooling.match.accepted" => match_accepted(data),
        "pooling.match.cancelled" => match_cancelled(data),
        "pooling.driver.location" => driver_location(data, settings),
        "pooling.driver.arriving" => driver_arriving(data),
        "pooling.trip.started" => to_the_others("trip_started", data, "by", Priority::High),
        "pooling.trip.completed" => trip_completed(data),
        "pooling.fare.updated" => fare_updated(data),
        "pooling.chat.message" => chat_message(data),
        _ => Err(Refusal::new("unknown_event", format!("`pooling` has no rule for `{event_type}`: it knows {}", EVENTS.join(", ")))),
    }
}

fn request_created(data: &Fields, settings: &Pooling) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    data.id("rider_id")?;
    let drivers = data.ids("candidate_driver_ids")?;
    // A driver need not know who else was asked.
    let message = Object::new("pooling_offer").rest(data, &["candidate_driver_ids"]);
    Ok(tell(to::users(drivers), message).ttl_ms(settings.offer_ttl_ms).into())
}

/// Clients of the first hour read exactly these four members in this order; further ones follow them.
fn match_found(data: &Fields) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    let both = [data.id("rider_id")?, data.id("driver_id")?];
    let group = group(&data.id("pool_id")?);
    let message = Object::new("pooling_match")
        .raw("request_id", data.require("request_id", Id::EXPECTED)?)
        .text("status", "matched")
        .text("details", "You have been matched for a pooling request!")
        .rest(data, &[]);
    let joined = both.iter().fold(Decision::nothing(), |decision, user| decision.join(&group, user));
    Ok(joined.deliver(tell(to::users(both), message).priority(Priority::High)))
}

fn match_accepted(data: &Fields) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    to_the_others("pooling_accepted", data, "by", Priority::High)
}

fn match_cancelled(data: &Fields) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    Ok(to_the_others("pooling_cancelled", data, "by", Priority::High)?.end_group(group(&data.id("pool_id")?)))
}

fn trip_completed(data: &Fields) -> Result<Decision, Refusal> {
    Ok(to_the_others("trip_completed", data, "by", Priority::High)?.end_group(group(&data.id("pool_id")?)))
}

/// Only the newest position is worth anything, and only to those who look at the map now: it replaces an unread one, it is
/// not kept for the absent, and it goes first where a mailbox is full.
fn driver_location(data: &Fields, settings: &Pooling) -> Result<Decision, Refusal> {
    let (pool, driver) = (data.id("pool_id")?, data.id("driver_id")?);
    let position = Position { lat: degrees(data, "lat", 90)?, lon: degrees(data, "lon", 180)? };
    // The length tells where the pool ends, since ids may contain colons.
    let key = format!("location:{}:{pool}:{driver}", pool.len());
    if !has_moved(&key, position, settings) {
        return Ok(Decision::nothing());
    }
    let delivery = tell(to::group(group(&pool)), Object::new("driver_location").rest(data, &[])).except([driver]);
    Ok(delivery.ttl_ms(settings.location_ttl_ms).keep_ms(0).collapse(key).priority(Priority::Low).into())
}

/// Compares a car's position with the one sent last, and remembers it if it is to be sent.
///
/// Two positions of one car in the same instant may both pass, since reading and writing are two steps: one message too many,
/// and the collapse key lets the newer one win.
fn has_moved(key: &str, position: Position, settings: &Pooling) -> bool {
    let last = state::get_bytes(key).and_then(|bytes| Position::from_bytes(&bytes));
    let moved = location::is_worth_sending(last, position, settings.location_min_metres);
    if moved {
        // A store without room must not hide the car: the position is sent, and so is the next one.
        let _ = state::set_bytes(key, &position.to_bytes(), Some(settings.location_repeat_ms));
    }
    moved
}

fn driver_arriving(data: &Fields) -> Result<Decision, Refusal> {
    data.number("eta_s")?;
    to_the_others("driver_arriving", data, "driver_id", Priority::Normal)
}

/// Nobody learns what another rider pays.
fn fare_updated(data: &Fields) -> Result<Decision, Refusal> {
    data.id("pool_id")?;
    let shares = data.objects("shares")?;
    let deliveries = shares.iter().map(|share| {
        let rider = share.id("rider_id")?;
        share.text("currency")?;
        let message = Object::new("fare_updated")
            .raw("pool_id", data.require("pool_id", Id::EXPECTED)?)
            .raw("amount", amount(share, "amount")?)
            .raw("currency", share.require("currency", "a currency code")?)
            .rest(share, &[])
            .rest(data, &["shares"]);
        Ok(tell(to::user(rider), message))
    });
    deliveries.collect()
}

fn chat_message(data: &Fields) -> Result<Decision, Refusal> {
    data.text("text")?;
    to_the_others("chat_message", data, "from", Priority::Normal)
}

/// The pool's group but the one who caused the event and so knows about it.
fn to_the_others(message_type: &str, data: &Fields, cause: &str, priority: Priority) -> Result<Decision, Refusal> {
    let group = group(&data.id("pool_id")?);
    let message = Object::new(message_type).rest(data, &[]);
    Ok(tell(to::group(group), message).except([data.id(cause)?]).priority(priority).into())
}

/// The `chat` plugin knows this name too: it asks whether a user is a member.
fn group(pool: &str) -> String {
    format!("pool:{pool}")
}

/// Degrees of latitude (`most` 90) or longitude (180).
fn degrees(data: &Fields, name: &str, most: u8) -> Result<f64, Refusal> {
    let expected = format!("a number of degrees between -{most} and {most}");
    let degrees: f64 = data.parsed(name, &expected)?;
    if degrees.abs() <= f64::from(most) { Ok(degrees) } else { Err(data.invalid(name, &expected)) }
}

/// Money, as it was written: a number, or the string of those who do not trust a reader's numbers.
fn amount<'a>(data: &Fields<'a>, name: &str) -> Result<&'a RawValue, Refusal> {
    let expected = "an amount, which is a number or a decimal string";
    let value = data.require(name, expected)?;
    let number = value.get().trim_matches('"');
    // JSON's rule for numbers, which knows no `NaN`, and no `+5` either.
    serde_json::from_str::<f64>(number).map(|_| value).map_err(|_| data.invalid(name, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::{self, Host};
    use signalpost_plugin::{Body, Delivery, Membership, Recipients, json};

    fn decide_json(event_type: &str, data: &str) -> Result<Decision, Refusal> {
        Host::new();
        decide(event_type, &Fields::parse(data)?, &Pooling::default())
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
        assert_eq!(
            message,
            r#"{"type":"pooling_offer","request_id":42,"rider_id":1001,"pickup":{"lat":52.520,"lon":13.4},"dropoff":"Hbf"}"#
        );
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
        let (delivery, message) =
            only("pooling.driver.location", r#"{"pool_id":7,"driver_id":3,"lat":52.52000,"lon":13.40500000000000001}"#);
        assert_eq!(delivery.collapse_key.as_deref(), Some("location:1:7:3"));
        assert_eq!((delivery.ttl_ms, delivery.keep_ms), (Some(10_000), Some(0)));
        assert_eq!(delivery.priority, Priority::Low);
        assert_eq!(message, r#"{"type":"driver_location","pool_id":7,"driver_id":3,"lat":52.52000,"lon":13.40500000000000001}"#);
    }

    #[test]
    fn a_car_that_stands_still_is_not_sent_until_it_is_forgotten() {
        let (host, pooling) = (Host::new(), Pooling::default());
        let place = testing::event("pooling.driver.location", json!({ "pool_id": 7, "driver_id": 3, "lat": 52.5, "lon": 13.4 }));
        let told = || testing::route(&pooling, &place).unwrap().deliveries.len();
        assert_eq!((told(), told()), (1, 0));
        host.set_now_ms(30_000);
        assert_eq!((told(), told()), (1, 0));
    }

    #[test]
    fn a_store_without_room_hides_no_car() {
        let (host, pooling) = (Host::new(), Pooling::default());
        host.fill_state();
        let place = testing::event("pooling.driver.location", json!({ "pool_id": 7, "driver_id": 3, "lat": 52.5, "lon": 13.4 }));
        for _ in 0..2 {
            assert_eq!(testing::route(&pooling, &place).unwrap().deliveries.len(), 1);
        }
    }

    #[test]
    fn a_place_off_the_globe_is_refused_before_anyone_remembers_it() {
        let host = Host::new();
        let data = Fields::parse(r#"{"pool_id":7,"driver_id":3,"lat":91,"lon":13.4}"#).unwrap();
        let decided = decide("pooling.driver.location", &data, &Pooling::default());
        assert!(decided.unwrap_err().detail.contains("`lat`"));
        assert_eq!(host.state("location:1:7:3"), None);
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
                    r#"{"type":"fare_updated","pool_id":7,"amount":"7.10","currency":"EUR","rider_id":"eve","tip":1,"at":"12:00"}"#
                        .to_string()
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
}
