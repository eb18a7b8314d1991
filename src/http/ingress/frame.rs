//! What a frame of a producers' stream holds: an event, several, or a message to one user.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::TellQuery;
use super::cloudevents::{self, Parsed};
use crate::config;
use crate::net::problem::{self, Problem};
use crate::types::event::{Body, UserId, check_attribute, check_surrogates};

/// The content of a frame.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all hold one event, which has no use for a place of its own on the heap")]
pub enum Frame {
    One(Parsed),
    /// Each has a result of its own, as in a batch over HTTP.
    Batch(Vec<Result<Parsed, Problem>>),
    Tell(Box<Tell>),
}

/// A message to one user.
#[derive(Debug)]
pub struct Tell {
    pub user: UserId,
    pub body: Body,
    pub query: TellQuery,
    /// By which it is sent once, as by the header `Idempotency-Key`.
    pub id: Option<String>,
    /// Its place in a trace, as the headers of these names have it.
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

/// The JSON form of a message to one user.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Telling<'a> {
    #[serde(borrow)]
    user: Cow<'a, str>,
    #[serde(borrow)]
    message: &'a RawValue,
    id: Option<String>,
    ttl_ms: Option<u64>,
    keep_ms: Option<u64>,
    collapse_key: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

/// Reads a frame.
///
/// # Errors
/// What is wrong with it as a whole.
pub fn read(bytes: &[u8], config: &config::Config) -> Result<Frame, Problem> {
    let text = cloudevents::text(bytes)?;
    let limits = &config.events;
    let begin = text.trim_ascii_start();
    if begin.starts_with('[') {
        return cloudevents::batch(text, false, limits).map(Frame::Batch);
    }
    // Only a message to a user has no type, so the order in which the two are tried tells nothing to a producer.
    if begin.starts_with("{\"user\"")
        && let Ok(telling) = serde_json::from_str(text)
    {
        return tell(telling, config);
    }
    cloudevents::structured(text, false, limits).map(Frame::One).or_else(|problem| match serde_json::from_str(text) {
        Ok(telling) => tell(telling, config),
        Err(_) => Err(problem),
    })
}

fn tell(telling: Telling<'_>, config: &config::Config) -> Result<Frame, Problem> {
    let Telling { user, message, id, ttl_ms, keep_ms, collapse_key, traceparent, tracestate } = telling;
    let user = UserId::new(&user, config.sockets.user_id_bytes_max.get()).map_err(problem::invalid_user)?;
    check_surrogates(message.get()).map_err(|error| cloudevents::invalid("json", error.to_string()))?;
    if let Some(id) = &id {
        let is_empty = id.is_empty().then(|| "`id` is empty: give it a value, or leave it out".to_owned());
        is_empty.map_or_else(|| check_attribute("id", id), Err).map_err(|detail| cloudevents::invalid("idempotency_key", detail))?;
    }
    let body = Body::Json(message.get().to_owned());
    let query = TellQuery { ttl_ms, keep_ms, collapse_key };
    Ok(Frame::Tell(Box::new(Tell { user, body, query, id, traceparent, tracestate })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Frame, Problem> {
        super::read(text.as_bytes(), &Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0)
    }

    fn kind(text: &str) -> &'static str {
        match read(text) {
            Ok(Frame::One(_)) => "one",
            Ok(Frame::Batch(_)) => "batch",
            Ok(Frame::Tell(_)) => "tell",
            Err(problem) => problem.code,
        }
    }

    #[test]
    fn a_frame_is_an_event_several_or_a_message_whatever_the_order_of_its_members() {
        for (text, expected) in [
            (r#"{"type":"a.b","data":1}"#, "one"),
            (r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#, "one"),
            (r#"{"specversion":"1.0","type":"t"}"#, "missing_attribute"),
            (r#" [{"type":"a"},{"type":"b"}]"#, "batch"),
            ("[]", "batch"),
            (r#"{"user":"1001","message":{"type":"a"}}"#, "tell"),
            (
                r#" {"message":[1],"ttl_ms":5,"keep_ms":0,"collapse_key":"k","id":"7","user":"1001","traceparent":"-","tracestate":"a=b"}"#,
                "tell",
            ),
            (r#"{"user":"1001","type":"a"}"#, "one"),
            (r#"{"user":"1001"}"#, "missing_attribute"),
            (r#"{"user":"1001","message":1,"extra":1}"#, "missing_attribute"),
            (r#"{"user":"","message":1}"#, "user_id"),
            (r#"{"user":"1001","message":"\ud800"}"#, "json"),
            (r#"{"user":"1001","message":1,"id":""}"#, "idempotency_key"),
            ("", "json"),
            ("7", "json"),
            ("{", "json"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn a_message_keeps_its_digits() {
        let Ok(Frame::Tell(tell)) = read(r#"{"user":"ü","message": {"n": 1.50} ,"ttl_ms":5}"#) else { panic!("a message") };
        assert_eq!((tell.user.as_str(), tell.body, tell.query.ttl_ms), ("ü", Body::Json(r#"{"n": 1.50}"#.into()), Some(5)));
    }

    #[test]
    fn events_of_an_array_may_be_in_the_short_form() {
        let Ok(Frame::Batch(events)) = read(r#"[{"type":"a"},{"nothing":1},{"specversion":"1.0","type":"b"}]"#) else { panic!("a batch") };
        let read: Vec<_> =
            events.iter().map(|event| event.as_ref().map_or_else(|problem| problem.code, |parsed| &parsed.event.event_type)).collect();
        assert_eq!(read, ["a", "missing_attribute", "missing_attribute"]);
    }
}
