//! A sessions policy, and a routing policy that listens: drivers answer the offers that they were sent.
//!
//! A client sends `{"type":"offer_accept","request_id":42}` or `offer_decline`, and this policy publishes `pooling.offer.accepted` or
//! `pooling.offer.declined` with the `request_id` and the `driver_id`, which the backend's sink hears. Who answers is the session's user,
//! whatever the client says. An answer counts only if this driver was a candidate of the request, and the offer is not over; only the first
//! one counts, and to repeat it does no harm.
//!
//! `pooling` tells the drivers. This policy only remembers, when it hears of the same event, whom it is about.

mod frame;
mod round;

use frame::Answer;
use round::Round;
use serde::Deserialize;
use signalpost_plugin::{Body, Decision, Draft, Event, Policy, Refusal, Response, Routing, Session, Sessions, export, state};

#[derive(Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct Offers {
    /// After this time nobody can answer an offer: that of `pooling`, whose clients are shown it no longer.
    offer_ttl_ms: u32,
}

impl Default for Offers {
    fn default() -> Offers {
        Offers { offer_ttl_ms: 30_000 }
    }
}

impl Policy for Offers {
    const EVENTS: &'static [&'static str] = &["pooling.request.created"];

    fn check(&self) -> Result<(), String> {
        if self.offer_ttl_ms == 0 {
            return Err("`offer_ttl_ms` is 0, a time that is over at once: give at least 1 millisecond".to_string());
        }
        Ok(())
    }
}

impl Routing for Offers {
    /// Remembers the candidates. What is wrong with an event is refused in `pooling`'s words.
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        round::begin(&event.fields()?, self.offer_ttl_ms)?;
        Ok(Decision::nothing())
    }
}

impl Sessions for Offers {
    fn received(&self, session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        let Some((answer, request)) = frame::parse(&message)? else { return Ok(None) };
        let Some((round, driver)) = Round::of(&request, &session.user) else {
            return Err(Refusal::new("no_offer", format!("you have no offer of request {request}, or it is over")));
        };
        let key = round.answer_key(&request, &session.user);
        // It outlives the offer, so that the first answer stays the only one.
        if !state::compare_and_swap(&key, None, &answer, Some(self.offer_ttl_ms))? {
            return match state::get::<Answer>(&key) {
                Some(first) if first != answer => {
                    let detail = format!("you have {} the offer of request {request} already", first.word());
                    Err(Refusal::new("already_answered", detail))
                }
                _ => Ok(Some(Response::nothing())),
            };
        }
        let mut response = Response::nothing();
        // The driver is the subject: a sink gets what each of them answers in order, and answers of others beside it.
        let subject = Some(session.user.clone());
        response.events.push(Draft { type_: answer.event_type().to_string(), subject, data: round.answered_by(&driver) });
        Ok(Some(response))
    }
}

export!(Offers: routing, sessions);

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::{self, Host, event_of_json, policy, receive, session};

    fn offered(data: &str) {
        let decision = testing::route(&Offers::default(), &event_of_json("pooling.request.created", data)).unwrap();
        assert_eq!(decision.to_string(), "", "pooling tells the drivers");
    }

    fn says(user: &str, frame: &str) -> Result<Option<Response>, Refusal> {
        receive(&Offers::default(), &session(user, &[]), Body::Json(frame.to_string()))
    }

    fn published(event_type: &str, subject: &str, data: &str) -> Result<Option<Response>, Refusal> {
        let mut response = Response::nothing();
        let draft = Draft { type_: event_type.to_string(), subject: Some(subject.to_string()), data: Body::Json(data.to_string()) };
        response.events.push(draft);
        Ok(Some(response))
    }

    const ASKED: &str = r#"{"request_id":42,"rider_id":1001,"candidate_driver_ids":[2002,"bob",18446744073709551616]}"#;

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        assert_eq!(policy("{}"), Ok(Offers { offer_ttl_ms: 30_000 }));
        assert_eq!(policy(r#"{"offer_ttl_ms": 5}"#), Ok(Offers { offer_ttl_ms: 5 }));
        for (settings, named) in [(r#"{"offer_ttl_ms": 0}"#, "offer_ttl_ms"), (r#"{"offer_ttl": 1}"#, "offer_ttl")] {
            let error = policy::<Offers>(settings).unwrap_err();
            assert!(error.contains(&format!("`{named}`")), "{error}");
        }
    }

    #[test]
    fn a_candidates_answer_is_an_event_with_the_ids_as_the_producer_wrote_them() {
        let _host = Host::new();
        offered(ASKED);
        let (accept, decline) = (r#"{"type":"offer_accept","request_id":"42"}"#, r#"{"type":"offer_decline","request_id":42}"#);
        assert_eq!(says("2002", accept), published("pooling.offer.accepted", "2002", r#"{"request_id":42,"driver_id":2002}"#));
        assert_eq!(says("bob", decline), published("pooling.offer.declined", "bob", r#"{"request_id":42,"driver_id":"bob"}"#));
        let long = published("pooling.offer.accepted", "18446744073709551616", r#"{"request_id":42,"driver_id":18446744073709551616}"#);
        assert_eq!(says("18446744073709551616", accept), long);
    }

    #[test]
    fn who_was_not_asked_and_who_is_too_late_has_no_offer() {
        let host = Host::new();
        offered(ASKED);
        let accept = r#"{"type":"offer_accept","request_id":42,"driver_id":2002}"#;
        for (user, frame) in [("2003", accept), ("1001", accept), ("2002", r#"{"type":"offer_accept","request_id":43}"#)] {
            assert_eq!(says(user, frame).unwrap_err().code, "no_offer", "{user}");
        }
        host.set_now_ms(29_999);
        assert!(says("2002", accept).is_ok());
        host.set_now_ms(30_000);
        let refusal = says("bob", accept).unwrap_err();
        assert_eq!((&*refusal.code, &*refusal.detail), ("no_offer", "you have no offer of request 42, or it is over"));
    }

    #[test]
    fn the_first_answer_counts_and_may_be_repeated() {
        let host = Host::new();
        offered(ASKED);
        let (accept, decline) = (r#"{"type":"offer_accept","request_id":42}"#, r#"{"type":"offer_decline","request_id":42}"#);
        assert!(says("2002", accept).unwrap().unwrap().events.len() == 1);
        assert_eq!(says("2002", accept), Ok(Some(Response::nothing())));
        let refusal = says("2002", decline).unwrap_err();
        assert_eq!((&*refusal.code, &*refusal.detail), ("already_answered", "you have accepted the offer of request 42 already"));
        assert!(says("bob", decline).unwrap().unwrap().events.len() == 1, "each driver answers");
        host.set_now_ms(20_000);
        assert_eq!(says("2002", accept), Ok(Some(Response::nothing())));
        // Asked again.
        offered(ASKED);
        assert!(says("2002", decline).unwrap().unwrap().events.len() == 1);
        host.set_now_ms(49_999);
        assert_eq!(says("2002", accept).unwrap_err().code, "already_answered");
    }

    #[test]
    fn another_round_of_a_request_leaves_the_earlier_offers_open_for_their_own_time() {
        let host = Host::new();
        offered(r#"{"request_id":42,"rider_id":1001,"candidate_driver_ids":[1,2]}"#);
        host.set_now_ms(20_000);
        offered(r#"{"request_id":"42","rider_id":1001,"candidate_driver_ids":["3"]}"#);
        let accept = r#"{"type":"offer_accept","request_id":42}"#;
        assert_eq!(says("1", accept), published("pooling.offer.accepted", "1", r#"{"request_id":42,"driver_id":1}"#));
        assert_eq!(says("3", accept), published("pooling.offer.accepted", "3", r#"{"request_id":"42","driver_id":"3"}"#));
        host.set_now_ms(30_000);
        assert_eq!(says("2", accept).unwrap_err().code, "no_offer");
        assert_eq!(says("3", accept), Ok(Some(Response::nothing())));
        // What is over is forgotten.
        offered(r#"{"request_id":42,"rider_id":1001,"candidate_driver_ids":[4]}"#);
        assert!(!host.state(r#"offers:42"#).unwrap().contains("[1,2]"));
    }

    #[test]
    fn ids_side_by_side_are_not_mistaken_for_others() {
        let _host = Host::new();
        offered(r#"{"request_id":"a\",\"b","rider_id":1,"candidate_driver_ids":["c"]}"#);
        assert_eq!(says("b\",\"c", r#"{"type":"offer_accept","request_id":"a"}"#).unwrap_err().code, "no_offer");
    }

    #[test]
    fn an_event_that_pooling_refuses_is_refused_here_too() {
        let _host = Host::new();
        for (data, named) in [
            (r#"{"rider_id":1,"candidate_driver_ids":[2]}"#, "request_id"),
            (r#"{"request_id":42,"candidate_driver_ids":[2]}"#, "rider_id"),
            (r#"{"request_id":42,"rider_id":1}"#, "candidate_driver_ids"),
            (r#"{"request_id":42,"rider_id":1,"candidate_driver_ids":[2.5]}"#, "candidate_driver_ids[0]"),
        ] {
            let refusal = testing::route(&Offers::default(), &event_of_json("pooling.request.created", data)).unwrap_err();
            assert!(refusal.detail.contains(&format!("`{named}`")), "{}", refusal.detail);
        }
    }

    #[test]
    fn a_store_without_room_is_told_to_the_producer_and_the_driver() {
        let host = Host::new();
        offered(ASKED);
        host.fill_state();
        let event = event_of_json("pooling.request.created", ASKED);
        assert_eq!(testing::route(&Offers::default(), &event).unwrap_err().code, "state_quota");
        assert_eq!(says("2002", r#"{"type":"offer_accept","request_id":42}"#).unwrap_err().code, "state_quota");
    }
}
