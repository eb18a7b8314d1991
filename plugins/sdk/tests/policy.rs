//! A policy with every role, written and tested as its author would.

use serde::Deserialize;
use signalpost_plugin::testing::{self, Host};
use signalpost_plugin::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // The zones are read to be refused.
struct Rides {
    #[serde(default)]
    seats_max: u32,
    #[serde(default)]
    zones: Vec<Zone>,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Zone {
    name: String,
}

#[derive(Deserialize)]
struct Ride<'a> {
    ride_id: Id,
    rider_id: Id,
    seats: u32,
    note: Option<&'a str>,
}

impl Policy for Rides {
    const EVENTS: &'static [&'static str] = &["ride.*"];

    fn check(&self) -> Result<(), String> {
        if self.seats_max > 8 { Err("`seats_max`: no car has more than 8".to_owned()) } else { Ok(()) }
    }
}

impl Routing for Rides {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let ride: Ride = event.data()?;
        let group = format!("ride:{}", ride.ride_id);
        let message = json!({ "type": "ride", "id": ride.ride_id, "note": ride.note });
        match event.type_.as_str() {
            "ride.booked" => {
                let seats = state::increment(&format!("seats:{}", ride.ride_id), ride.seats.into(), Some(60_000))?;
                if seats > self.seats_max.into() {
                    log::warn(&format!("{group} is full"));
                    return Err(Refusal::new("full", "there is no seat left"));
                }
                metrics::count("booked", 1);
                Ok(Decision::nothing().join(&group, &ride.rider_id).tell(to::group(&group), message))
            }
            "ride.place" if groups::size(&group) == 0 => Ok(Decision::nothing()),
            "ride.place" => {
                let place = tell(to::group(&group), message).except([&ride.rider_id]).ttl_ms(5000).keep_ms(0);
                Ok(place.collapse(&group).priority(Priority::Low).into())
            }
            "ride.over" => {
                let to_all = tell(to::everyone(), Body::Text("over".to_owned())).priority(Priority::High);
                let here = forward(to::session(&ride.rider_id, "s1"));
                Ok([to_all, here].into_iter().collect::<Decision>().leave(&group, &ride.rider_id).end_group(&group))
            }
            _ => Ok(Decision::nothing().tell(to::users(groups::members(&group)), json!(clock::now_ms()))),
        }
    }
}

impl Formatting for Rides {
    const VARY: &'static [&'static str] = &["locale"];

    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal> {
        assert_eq!(reader.get("role"), None, "it is not varied");
        let Some(fields) = message.body.as_json().and_then(|json| Fields::parse(json).ok()) else { return Ok(None) };
        let texts = [("de", "Fahrt"), ("de-AT", "Ride, oida")];
        let text = reader.get("locale").and_then(|locale| locale::pick(&texts, locale)).unwrap_or(&"ride");
        Ok(Some(Object::default().text("text", text).rest(&fields, &["text"]).into()))
    }
}

impl Sessions for Rides {
    fn opened(&self, session: &Session) -> Result<Response, Refusal> {
        let devices = presence::sessions(&session.user);
        Ok(Response::nothing().reply(json!({ "devices": devices, "role": session.attribute("role") })))
    }

    fn received(&self, session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        let Some(json) = message.as_json() else { return Ok(None) };
        let response = Response::nothing().publish("ride.said", Body::Json(json.to_owned())).close("enough");
        Ok(Some(response.decide(tell(to::user(&session.user), json!("sent")))))
    }
}

export!(Rides: routing, formatting, sessions);

fn rides() -> Rides {
    testing::policy(r#"{"seats_max": 4}"#).unwrap()
}

fn decide(event_type: &str, data: &str) -> Result<Decision, Refusal> {
    testing::route(&rides(), &testing::event_of_json(event_type, data))
}

#[test]
fn bad_settings_are_refused_in_a_sentence_that_names_the_setting() {
    for (settings, words) in [
        (r#"{"seats_max": "four"}"#, "the settings of `Rides`: `seats_max`: invalid type: string \"four\", expected u32"),
        (r#"{"seats": 4}"#, "the settings of `Rides`: unknown field `seats`, expected `seats_max` or `zones`"),
        (r#"{"zones": [{"name": "A"}, {}]}"#, "the settings of `Rides`: `zones[1].name` is missing"),
        (r#"{"seats_max": 9}"#, "`seats_max`: no car has more than 8"),
    ] {
        assert_eq!(testing::policy::<Rides>(settings).unwrap_err(), words);
    }
}

#[test]
fn a_decision_reads_as_what_it_does() {
    let host = Host::new();
    let data = r#"{"ride_id":"r7","rider_id":1001,"seats":2,"note":"gate 3"}"#;
    assert_eq!(
        decide("ride.booked", data).unwrap().to_string(),
        "join ride:r7: 1001\ntell group ride:r7: {\"type\":\"ride\",\"id\":\"r7\",\"note\":\"gate 3\"}"
    );
    assert_eq!(decide("ride.place", data), Ok(Decision::nothing()));
    host.join("ride:r7", &["1001", "eve"]);
    assert_eq!(
        decide("ride.place", r#"{"ride_id":"r7","rider_id":1001,"seats":2}"#).unwrap().to_string(),
        "tell group ride:r7 but 1001 (low, ttl 5000 ms, keep 0 ms, collapse ride:r7): {\"type\":\"ride\",\"id\":\"r7\",\"note\":null}"
    );
    assert_eq!(
        decide("ride.over", data).unwrap().to_string(),
        "tell everyone (high): over\ntell session s1 of 1001: the event's data\nleave ride:r7: 1001\nend ride:r7"
    );
    host.set_now_ms(1_800_000_000_000);
    assert_eq!(decide("ride.asked", data).unwrap().to_string(), "tell 1001, eve: 1800000000000");
}

#[test]
fn what_the_policy_did_with_its_host_can_be_seen() {
    let host = Host::new();
    let book = || decide("ride.booked", r#"{"ride_id":7,"rider_id":1001,"seats":3}"#).map(|_| ()).map_err(|refusal| refusal.code);
    assert_eq!((book(), book()), (Ok(()), Err("full".to_owned())));
    assert_eq!(host.log(), ["warn: ride:7 is full"]);
    assert_eq!((host.counted("booked"), host.counted("lost")), (1, 0));
    assert_eq!(host.state("seats:7").as_deref(), Some("6"));
    host.set_now_ms(60_000);
    assert_eq!(host.state("seats:7"), None, "a minute after the first booking");
    host.set_state("seats:7", "many");
    assert_eq!(book(), Err("state_not_a_number".to_owned()));
    host.fill_state();
    host.set_now_ms(0);
    host.set_state("seats:7", "1");
    assert_eq!(book(), Err("state_quota".to_owned()));
}

#[test]
fn data_that_do_not_fit_are_refused_by_the_fields_name() {
    let _host = Host::new();
    for (data, code, named) in [
        (r#"{"ride_id":7,"seats":1}"#, "missing_field", "`rider_id`"),
        (r#"{"ride_id":7,"rider_id":[1],"seats":1}"#, "invalid_field", "`rider_id`"),
        (r#"{"ride_id":7,"rider_id":1,"seats":-1}"#, "invalid_field", "`seats`"),
        ("[]", "invalid_data", "the event's data"),
        (r#"[7, 1001, 1, "gate 3"]"#, "invalid_data", "the event's data"),
        (r#"{"ride_id":7,"rider_id":"1001 ","seats":1}"#, "invalid_field", "`rider_id`"),
        (r#"{"ride_id":7,"rider_id":null,"seats":1}"#, "invalid_field", "`rider_id`"),
        ("7", "invalid_data", "the event's data"),
    ] {
        let refusal = decide("ride.booked", data).unwrap_err();
        assert_eq!(refusal.code, code, "{data}: {}", refusal.detail);
        assert!(refusal.detail.contains(named), "{data}: {}", refusal.detail);
    }
    let nothing = Event { data: None, ..testing::event("ride.booked", json!(1)) };
    assert_eq!(testing::route(&rides(), &nothing).unwrap_err().code, "invalid_data");
}

#[test]
#[should_panic(expected = "never calls the policy for rider.booked")]
fn an_event_that_the_server_would_not_bring_is_a_mistake_of_the_test() {
    let _ = decide("rider.booked", "{}");
}

#[test]
fn a_message_is_formatted_for_its_reader() {
    let told = |locale: &str| {
        let body = testing::format(&rides(), "ride.booked", json!({ "id": 7, "text": "x" }), &[("locale", locale), ("role", "rider")]);
        body.unwrap().unwrap().as_json().unwrap().to_owned()
    };
    assert_eq!(told("de-CH"), r#"{"text":"Fahrt","id":7}"#);
    assert_eq!(told("de_at"), r#"{"text":"Ride, oida","id":7}"#);
    assert_eq!(told("fr"), r#"{"text":"ride","id":7}"#);
}

#[test]
fn a_client_is_answered() {
    let host = Host::new();
    host.connect("1001", 2);
    let session = testing::session("1001", &[("role", "rider")]);
    let opened = rides().opened(&session).unwrap();
    assert_eq!(opened.replies, [Body::Json(r#"{"devices":2,"role":"rider"}"#.to_owned())]);
    let response = testing::receive(&rides(), &session, json!({ "say": "hi" })).unwrap().unwrap();
    assert_eq!((response.events[0].type_.as_str(), response.close.as_deref()), ("ride.said", Some("enough")));
    assert_eq!(response.decision.to_string(), r#"tell 1001: "sent""#);
    assert_eq!(testing::receive(&rides(), &session, Body::Text("hi".to_owned())), Ok(None));
    assert_eq!(rides().closed(&session, 1000), Ok(Response::nothing()));
}

#[test]
fn state_keeps_typed_values() {
    let host = Host::new();
    assert_eq!(state::get::<Vec<u32>>("list"), None);
    state::set("list", &[1, 2], Some(100)).unwrap();
    assert_eq!(state::get("list"), Some(vec![1, 2]));
    assert_eq!(state::get::<String>("list"), None, "of another type");
    assert_eq!(state::compare_and_swap("list", Some(&vec![1]), &vec![3], None), Ok(false));
    assert_eq!(state::compare_and_swap("list", Some(&vec![1, 2]), &vec![3], Some(100)), Ok(true));
    assert_eq!(state::compare_and_swap("list", None, &vec![4], None), Ok(false));
    assert_eq!(host.state("list").as_deref(), Some("[3]"));
    host.set_now_ms(100);
    assert!(!state::delete("list"), "its time is over");
    state::set_bytes("list", &[0xff], None).unwrap();
    assert_eq!((state::get::<u32>("list"), state::delete("list"), state::delete("list")), (None, true, false));
}

#[test]
fn a_body_is_read_as_what_it_should_be_or_not_at_all() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Ping {
        n: u8,
    }
    let read = |json: &str| Body::Json(json.to_owned()).data::<Ping>();
    assert_eq!(read(r#" {"a":[{}],"n":7,"b":1.50}"#), Some(Ping { n: 7 }));
    for json in ["[7]", " [7]", "7", "null", "{}", r#"{"n":"7"}"#, r#"{"n":7,"n":8}"#] {
        assert_eq!(read(json), None, "{json}");
    }
    assert_eq!(Body::Json("[7]".to_owned()).data::<Vec<u8>>(), Some(vec![7]));
    assert_eq!(Body::Text(r#"{"n":7}"#.to_owned()).data::<Ping>(), None);
}

#[test]
fn data_that_no_message_could_pass_on_are_refused_and_the_largest_field_is_named() {
    let _host = Host::new();
    let booked = |bytes: usize| {
        let data = r#"{"ride_id":7,"rider_id":1,"seats":1,"note":""}"#;
        decide("ride.booked", &data.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - data.len()))))
    };
    assert!(booked(261_120).is_ok());
    let refusal = booked(261_121).unwrap_err();
    assert_eq!(refusal.code, "invalid_field");
    assert_eq!(refusal.detail, "`note` has 261077 bytes: the event's data has 261121 bytes and should have at most 261120");
}
