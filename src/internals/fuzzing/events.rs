//! Requests that publish events.

use std::num::NonZeroUsize;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config;
use crate::http::ingress::cloudevents::{EXTENSIONS_MAX, Request, read};
use crate::net::problem::{DETAIL_BYTES_MAX, Problem};
use crate::types::event::{ATTRIBUTE_BYTES_MAX, Body, Event};

/// Small limits, so that small inputs reach them.
const LIMITS: config::Events = config::Events {
    body_bytes_max: NonZeroUsize::MIN.saturating_add(4095),
    event_bytes_max: NonZeroUsize::MIN.saturating_add(199),
    batch_max: NonZeroUsize::MIN.saturating_add(3),
    dedup_window_ms: config::Milliseconds::new(1),
    dedup_entries_max: NonZeroUsize::MIN,
    receipts_bytes_max: NonZeroUsize::MIN,
};

/// The characters that need an escape in a header.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'+').remove(b'-').remove(b'.').remove(b';').remove(b'=');

/// Reads a request from the input: lines of `name: value`, an empty line, and the body.
pub fn event(input: &[u8]) {
    let (head, body) = split(input, b"\n\n").unwrap_or((input, &[]));
    let mut headers = HeaderMap::new();
    for (name, value) in head.split(|byte| *byte == b'\n').filter_map(|line| split(line, b": ")) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    match read(&headers, body, &LIMITS) {
        Err(problem) => explains(&problem),
        Ok(Request::One(parsed)) => proven(&parsed.event),
        Ok(Request::Batch(items)) => {
            assert!(items.len() <= LIMITS.batch_max.get());
            for item in items {
                match item {
                    Err(problem) => explains(&problem),
                    Ok(parsed) => proven(&parsed.event),
                }
            }
        }
    }
}

fn split<'a>(bytes: &'a [u8], at: &[u8; 2]) -> Option<(&'a [u8], &'a [u8])> {
    let place = bytes.windows(2).position(|pair| pair == at)?;
    Some((bytes.get(..place)?, bytes.get(place + 2..)?))
}

fn explains(problem: &Problem) {
    assert!(problem.status.is_client_error() && !problem.code.is_empty(), "{problem:?}");
    assert!((1..=DETAIL_BYTES_MAX).contains(&problem.detail.len()), "a detail of {} bytes", problem.detail.len());
}

/// Checks that an event is within the limits, and is unchanged after it is written and read, in structured and in binary mode.
fn proven(event: &Event) {
    let required = [&event.id, &event.source, &event.event_type];
    assert!(required.iter().all(|value| !value.is_empty()), "{event:?}");
    assert!(event.extensions.len() <= EXTENSIONS_MAX);
    let extensions = event.extensions.iter().flat_map(|(name, value)| [name, value]);
    for value in required.into_iter().chain(&event.subject).chain(&event.time).chain([&event.content_type]).chain(extensions) {
        assert!(value.len() <= ATTRIBUTE_BYTES_MAX && !value.chars().any(char::is_control), "{event:?}");
    }
    match &event.data {
        Some(body) if body.size() > LIMITS.event_bytes_max.get() => panic!("data of {} bytes", body.size()),
        Some(Body::Json(text)) => assert!(super::is_json(text), "{event:?}"),
        _ => {}
    }

    let structured_headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/cloudevents+json"))]);
    let again = one(read(&structured_headers, structured(event).as_bytes(), &LIMITS), event);
    assert_eq!(attributes(event), attributes(&again));
    assert_eq!(event.data, again.data);

    // A content type that says another mode can't be sent in this one.
    if event.content_type.trim().to_ascii_lowercase().starts_with("application/cloudevents") {
        return;
    }
    // Without a type of its own, data is what its bytes are: a string from JSON need not be text again.
    let bytes = event.data.as_ref().map(Body::as_bytes).unwrap_or_default();
    let again = one(read(&binary_headers(event), bytes, &LIMITS), event);
    assert_eq!(attributes(event), attributes(&again));
    assert_eq!(bytes, again.data.as_ref().map(Body::as_bytes).unwrap_or_default());
}

fn one(request: Result<Request, Problem>, event: &Event) -> Event {
    match request {
        Ok(Request::One(parsed)) => parsed.event,
        other => panic!("{event:?} is read as {other:?}"),
    }
}

/// Returns everything except the data; extensions have no order.
fn attributes(event: &Event) -> impl PartialEq + std::fmt::Debug {
    let Event { id, source, event_type, subject, time, content_type, mut extensions, data: _, origin: _ } = event.clone();
    extensions.sort();
    (id, source, event_type, subject, time, content_type, extensions)
}

fn structured(event: &Event) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let attributes = named(event).chain([("specversion", "1.0"), ("datacontenttype", &event.content_type)]);
    let mut members: Vec<String> = attributes.map(|(name, value)| format!("{}:{}", quoted(name), quoted(value))).collect();
    members.extend(event.data.as_ref().map(|data| match data {
        Body::Json(text) => format!("\"data\":{text}"),
        Body::Text(text) => format!("\"data\":{}", quoted(text)),
        Body::Binary(bytes) => format!("\"data_base64\":\"{}\"", BASE64_STANDARD.encode(bytes)),
    }));
    format!("{{{}}}", members.join(","))
}

fn binary_headers(event: &Event) -> HeaderMap {
    let value = |text: &str| {
        let escaped = utf8_percent_encode(text, ESCAPED).to_string();
        HeaderValue::from_str(&escaped).unwrap_or_else(|error| panic!("{escaped:?}: {error}"))
    };
    let name = |name: &str| HeaderName::try_from(format!("ce-{name}")).unwrap_or_else(|error| panic!("{name:?}: {error}"));
    let attributes = named(event).chain([("specversion", "1.0")]).map(|(attribute, text)| (name(attribute), value(text)));
    attributes.chain([(CONTENT_TYPE, value(&event.content_type))]).collect()
}

fn named(event: &Event) -> impl Iterator<Item = (&str, &str)> {
    let required = [("id", event.id.as_str()), ("source", &event.source), ("type", &event.event_type)];
    let optional = [("subject", event.subject.as_deref()), ("time", event.time.as_deref())];
    let extensions = event.extensions.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    required.into_iter().chain(optional.into_iter().filter_map(|(name, value)| Some((name, value?)))).chain(extensions)
}
