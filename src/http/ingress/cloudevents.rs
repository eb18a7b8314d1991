//! Events in HTTP requests: CloudEvents 1.0 in structured, batched and binary mode, and the short form `{"type": …, "data": …}`. What
//! is read here has been checked; nothing after it checks again.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, StatusCode};
use serde_json::value::RawValue;

use crate::config;
use crate::net::problem::Problem;
use crate::types::event::{ATTRIBUTE_BYTES_MAX, Body, Event, check_attribute, check_surrogates, new_event_id};
use crate::types::timestamp::is_rfc3339;

/// The most extension attributes that one event may have; `dataschema` is kept among them.
pub const EXTENSIONS_MAX: usize = 32;

/// What the server can read: a part of the answer to any other media type.
const SERVED: &str =
    "send application/cloudevents+json, application/cloudevents-batch+json, ce- headers with any data, or application/json";

/// The source of events in the short form that name no source.
pub const SHORT_FORM_SOURCE: &str = "/";

/// The media type of bytes whose type is not given (RFC 9110, section 8.3).
const OPAQUE: &str = "application/octet-stream";

/// The event or the events of a request.
#[derive(Debug)]
pub enum Request {
    One(Parsed),
    Batch(Vec<Result<Parsed, Problem>>),
}

#[derive(Debug)]
pub struct Parsed {
    pub event: Event,
    /// Whether the producer named the id, so that a repetition can be recognized.
    pub id_given: bool,
}

/// Reads a request in the mode that its headers say.
///
/// # Errors
/// What is wrong with the request as a whole. Each event of a batch has a result of its own.
pub fn read(headers: &HeaderMap, body: &[u8], limits: &config::Events) -> Result<Request, Problem> {
    let media_type = media_type(headers.get(CONTENT_TYPE));
    if media_type == "application/cloudevents+json" {
        return structured(text(body)?, true, limits).map(Request::One);
    }
    if media_type == "application/cloudevents-batch+json" {
        return batch(text(body)?, limits).map(Request::Batch);
    }
    if media_type.starts_with("application/cloudevents") {
        let detail = format!("the event format {media_type} is not served; {SERVED}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "event_format", detail));
    }
    if headers.keys().any(|name| name.as_str().starts_with("ce-")) {
        return binary(headers, body, limits).map(Request::One);
    }
    if media_type.is_empty() || is_json(&media_type) {
        return structured(text(body)?, false, limits).map(Request::One);
    }
    let detail = format!("{media_type} is neither JSON nor a CloudEvent; {SERVED}");
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", detail))
}

/// Returns the JSON text of a body. A byte order mark, which some producers write before it, is ignored (RFC 8259, section 8.1).
///
/// # Errors
/// It is not UTF-8.
pub fn text(body: &[u8]) -> Result<&str, Problem> {
    let text = std::str::from_utf8(body).map_err(|error| invalid("json", format!("the body is not UTF-8: {error}")))?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

/// Reads a message to one user: text if its content type is `text/plain`, else one JSON value, whatever else its type says.
///
/// # Errors
/// It is text in another encoding than UTF-8, or not one JSON value.
pub fn message(headers: &HeaderMap, body: &[u8]) -> Result<Body, Problem> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if essence(content_type).eq_ignore_ascii_case("text/plain") {
        let is_utf8 = is_utf8(content_type);
        let text = std::str::from_utf8(body).ok().filter(|_| is_utf8).map(str::to_owned);
        return text.map(Body::Text).ok_or_else(|| invalid("text", "the text is not UTF-8".to_owned()));
    }
    Body::json(text(body)?.to_owned()).map_err(|error| invalid("json", format!("the body is not one JSON value: {error}")))
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads one event in JSON: a CloudEvent, or the short form, in which only `type` must be there.
fn structured(text: &str, cloud_event: bool, limits: &config::Events) -> Result<Parsed, Problem> {
    // Checked first, since the parser's own error would not name the half of a surrogate pair.
    check_surrogates(text).map_err(|error| invalid("json", error.to_string()))?;
    // Members as they were written, so that numbers keep their digits; those that CloudEvents doesn't define are extensions.
    let members: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_str(text).map_err(|error| invalid("json", format!("the body is not one JSON object: {error}")))?;
    let member = |name: &str| members.get(name).copied().filter(|value| value.get() != "null");
    let string = |name: &str| match member(name) {
        None => Ok(None),
        Some(value) => {
            let string = serde_json::from_str::<String>(value.get());
            string.map(Some).map_err(|_| invalid("attribute", format!("`{name}` must be a string")))
        }
    };
    let specversion = string("specversion")?;
    if cloud_event || specversion.is_some() {
        check_specversion(specversion.as_deref())?;
    }
    let strict = cloud_event || specversion.is_some();
    let encoded = string("data_base64")?;
    // The JSON format forbids to assume that `data_base64` without a type is JSON (section 3.1.2).
    let unnamed = if encoded.is_some() { OPAQUE } else { "application/json" };
    let content_type = string("datacontenttype")?.unwrap_or_else(|| unnamed.to_owned());
    let data = match (member("data"), encoded) {
        (Some(_), Some(_)) => return Err(invalid("data", "an event has `data` or `data_base64`, not both".into())),
        // Null is data; it is not the same as no data.
        (None, None) => members.get("data").filter(|_| is_json(&media_type_of(&content_type))).map(|_| Body::Json("null".into())),
        (Some(data), None) => Some(json_data(data, &content_type)),
        (None, Some(encoded)) => Some(bytes_data(&decode(&encoded)?, &content_type)?),
    };
    let id = string("id")?;
    let id_given = id.is_some();
    if strict && !id_given {
        return Err(missing("id"));
    }
    let source = string("source")?;
    if strict && source.is_none() {
        return Err(missing("source"));
    }
    let mut extensions: Vec<_> = string(DATASCHEMA)?.map(|schema| (DATASCHEMA.to_owned(), schema)).into_iter().collect();
    for (name, value) in &members {
        if !ATTRIBUTES.contains(&name.as_ref()) && value.get() != "null" {
            extensions.push((name.to_string(), extension(name, value)?));
        }
    }
    let event = Event {
        id: id.unwrap_or_else(new_event_id),
        source: source.unwrap_or_else(|| SHORT_FORM_SOURCE.to_owned()),
        event_type: string("type")?.ok_or_else(|| missing("type"))?,
        subject: string("subject")?,
        time: string("time")?,
        content_type,
        extensions,
        data,
    };
    Ok(Parsed { event: checked(event, limits)?, id_given })
}

/// An optional attribute that policies find among the extensions: it says more about the data, and is for them alone.
const DATASCHEMA: &str = "dataschema";

/// The attributes that CloudEvents defines, and the two members for data.
const ATTRIBUTES: [&str; 10] =
    ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", DATASCHEMA, "data", "data_base64"];

fn batch(text: &str, limits: &config::Events) -> Result<Vec<Result<Parsed, Problem>>, Problem> {
    let items: Vec<&RawValue> =
        serde_json::from_str(text).map_err(|error| invalid("json", format!("the body is not a JSON array of events: {error}")))?;
    if items.len() > limits.batch_max.get() {
        let detail = format!("{} events in a batch are over the limit of {} (events.batch_max)", items.len(), limits.batch_max);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_too_large", detail));
    }
    Ok(items.into_iter().map(|item| structured(item.get(), true, limits)).collect())
}

/// Reads an event in binary mode: attributes in `ce-` headers, and the data as the body (CloudEvents HTTP binding, section 3.1).
fn binary(headers: &HeaderMap, body: &[u8], limits: &config::Events) -> Result<Parsed, Problem> {
    let mut event = Event {
        id: String::new(),
        source: String::new(),
        event_type: String::new(),
        subject: None,
        time: None,
        content_type: "application/json".to_owned(),
        extensions: Vec::new(),
        data: None,
    };
    let mut specversion = None;
    for header in headers.keys() {
        let Some(name) = header.as_str().strip_prefix("ce-") else { continue };
        let mut values = headers.get_all(header).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(invalid("attribute", format!("the header ce-{name} is there more than once")));
        };
        let value = header_text(name, value)?;
        match name {
            "specversion" => specversion = Some(value),
            "id" => event.id = value,
            "source" => event.source = value,
            "type" => event.event_type = value,
            "subject" => event.subject = Some(value),
            "time" => event.time = Some(value),
            _ => event.extensions.push((name.to_owned(), value)),
        }
    }
    check_specversion(specversion.as_deref())?;
    match headers.get(CONTENT_TYPE) {
        Some(content_type) => {
            event.content_type = header_text("Content-Type", content_type)?;
            event.data = (!body.is_empty()).then(|| bytes_data(body, &event.content_type)).transpose()?;
        }
        None if body.is_empty() => {}
        // Producers who leave it out mostly send JSON, but any bytes are an event's data.
        None => match bytes_data(body, &event.content_type) {
            Ok(json) => event.data = Some(json),
            Err(_) => {
                event.content_type = OPAQUE.to_owned();
                event.data = Some(Body::Binary(body.to_vec()));
            }
        },
    }
    Ok(Parsed { event: checked(event, limits)?, id_given: true })
}

/// Checks the rules of the CloudEvents specification, section 3, and our limits.
fn checked(event: Event, limits: &config::Events) -> Result<Event, Problem> {
    let attributes = [("id", &event.id), ("source", &event.source), ("type", &event.event_type)];
    for (name, value) in attributes {
        if value.is_empty() {
            return Err(missing(name));
        }
    }
    let optional = [("subject", event.subject.as_ref()), ("time", event.time.as_ref()), ("datacontenttype", Some(&event.content_type))];
    let given = optional.into_iter().filter_map(|(name, value)| value.map(|value| (name, value)));
    for (name, value) in attributes.into_iter().chain(given) {
        check_attribute(name, value).map_err(|detail| invalid("attribute", detail))?;
    }
    if event.subject.as_ref().is_some_and(String::is_empty) {
        return Err(invalid("attribute", "`subject` is empty: give it a value, or leave it out".into()));
    }
    if let Some(time) = event.time.as_ref().filter(|time| !is_rfc3339(time)) {
        return Err(invalid("attribute", format!("`time` is not an RFC 3339 timestamp, as in 2018-04-05T17:31:00Z: {time:?}")));
    }
    if !is_uri_reference(&event.source) {
        return Err(invalid("attribute", format!("`source` is not a URI reference (RFC 3986): {:?}", event.source)));
    }
    if event.extensions.len() > EXTENSIONS_MAX {
        let detail = format!("{} extension attributes are over the limit of {EXTENSIONS_MAX}", event.extensions.len());
        return Err(invalid("attribute", detail));
    }
    for (name, value) in &event.extensions {
        if name.len() > ATTRIBUTE_BYTES_MAX {
            let detail = format!("an extension's name has {} bytes, over the limit of {ATTRIBUTE_BYTES_MAX}", name.len());
            return Err(invalid("attribute", detail));
        }
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err(invalid("attribute", format!("the extension `{name}` is not named by lower-case letters and digits")));
        }
        check_attribute(name, value).map_err(|detail| invalid("attribute", detail))?;
        if name == DATASCHEMA && !is_uri(value) {
            return Err(invalid("attribute", format!("`dataschema` is not a URI (RFC 3986), as in https://example.com/schema: {value:?}")));
        }
        if name != DATASCHEMA && ATTRIBUTES.contains(&name.as_str()) {
            return Err(invalid("attribute", format!("`{name}` is not an extension, and has no ce- header of its own")));
        }
    }
    let size = event.data.as_ref().map_or(0, Body::size);
    if size > limits.event_bytes_max.get() {
        let detail = format!("the event's data has {size} bytes, over the limit of {} (events.event_bytes_max)", limits.event_bytes_max);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "event_too_large", detail));
    }
    Ok(event)
}

/// Says whether a text is a URI, which begins with a scheme (RFC 3986, section 3.1).
fn is_uri(text: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    text.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)) && is_uri_reference(text)
}

/// Says whether a text has only the characters of a URI reference (RFC 3986, section 2), each percent sign with its two digits.
fn is_uri_reference(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let is_escape = |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    !text.is_empty() && text.bytes().all(is_allowed) && text.split('%').skip(1).all(is_escape) && text.matches('#').count() <= 1
}

fn check_specversion(version: Option<&str>) -> Result<(), Problem> {
    match version {
        Some("1.0") => Ok(()),
        Some(other) => Err(invalid("specversion", format!("CloudEvents {other:?} is not served; send specversion \"1.0\""))),
        None => Err(missing("specversion")),
    }
}

/// Returns the body of `data`: the value itself for JSON media types, and the text of a string for others.
fn json_data(data: &RawValue, content_type: &str) -> Body {
    if !is_json(&media_type_of(content_type))
        && let Ok(text) = serde_json::from_str(data.get())
    {
        return Body::Text(text);
    }
    // The JSON format allows any value for any type.
    Body::Json(data.get().to_owned())
}

/// Returns the body of bytes: JSON if the type says so, text if it is one of text and the bytes are UTF-8, else the bytes.
fn bytes_data(bytes: &[u8], content_type: &str) -> Result<Body, Problem> {
    let media_type = media_type_of(content_type);
    if is_json(&media_type) {
        let json = text(bytes).map_err(|problem| Problem { code: "data", ..problem })?.to_owned();
        return Body::json(json).map_err(|error| invalid("data", format!("the data is not JSON as {media_type} says: {error}")));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if is_text(&media_type) && is_utf8(content_type) => Ok(Body::Text(text.to_owned())),
        _ => Ok(Body::Binary(bytes.to_vec())),
    }
}

fn decode(encoded: &str) -> Result<Vec<u8>, Problem> {
    let decoded = base64::prelude::BASE64_STANDARD.decode(encoded);
    decoded.map_err(|error| invalid("data", format!("`data_base64` is not base64: {error}")))
}

/// Returns an extension's canonical string form: extensions are strings, integers or booleans (CloudEvents, section 3.1).
fn extension(name: &str, value: &RawValue) -> Result<String, Problem> {
    match serde_json::from_str::<serde_json::Value>(value.get()) {
        Ok(serde_json::Value::String(text)) => Ok(text),
        Ok(serde_json::Value::Bool(flag)) => Ok(flag.to_string()),
        Ok(serde_json::Value::Number(number)) if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => {
            Ok(number.to_string())
        }
        _ => Err(invalid(
            "attribute",
            format!("the extension `{name}` must be a string, a boolean or a 32-bit integer; other members belong in `data`"),
        )),
    }
}

/// Returns a `ce-` header's value, out of its quotes and then percent-decoded (CloudEvents HTTP binding, section 3.1.3.2).
fn header_text(name: &str, value: &HeaderValue) -> Result<String, Problem> {
    let bytes = value.as_bytes();
    let quoted = bytes.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let unquoted = quoted.map_or(Cow::Borrowed(bytes), |quoted| unescape(quoted).into());
    let decoded = percent_encoding::percent_decode(&unquoted).decode_utf8();
    let text = decoded.map_err(|_| invalid("attribute", format!("the header of `{name}` is not UTF-8")))?;
    Ok(text.into_owned())
}

/// Returns what a quoted string stands for: a backslash escapes the byte after it (RFC 9110, section 5.6.4).
fn unescape(quoted: &[u8]) -> Vec<u8> {
    let mut bytes = quoted.iter().copied();
    std::iter::from_fn(|| bytes.next().and_then(|byte| if byte == b'\\' { bytes.next() } else { Some(byte) })).collect()
}

fn media_type(value: Option<&HeaderValue>) -> String {
    value.and_then(|value| value.to_str().ok()).map(media_type_of).unwrap_or_default()
}

/// Returns a media type without its parameters, in lower case.
fn media_type_of(content_type: &str) -> String {
    essence(content_type).to_ascii_lowercase()
}

fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim_ascii()
}

/// Says whether data of this type is JSON: `application/json`, `text/json` and whatever ends in `+json`, as the CloudEvents JSON format
/// has it.
fn is_json(media_type: &str) -> bool {
    media_type.ends_with("/json") || media_type.ends_with("+json") || media_type.is_empty()
}

/// Says whether data of this type is text, if it is UTF-8. XML declares its encoding itself, and has UTF-8 without that (RFC 7303).
fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/") || media_type.ends_with("/xml") || media_type.ends_with("+xml")
}

/// Says whether a content type leaves it open, or says, that the data is UTF-8.
fn is_utf8(content_type: &str) -> bool {
    let charset = content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    charset.is_none_or(|charset| ["utf-8", "utf8", "us-ascii"].iter().any(|utf8| utf8.eq_ignore_ascii_case(charset)))
}

fn missing(name: &str) -> Problem {
    invalid("missing_attribute", format!("the event has no `{name}`"))
}

fn invalid(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, detail)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::net::problem::DETAIL_BYTES_MAX;

    const LIMITS: config::Events = config::Events {
        body_bytes_max: NonZeroUsize::new(1000).unwrap(),
        event_bytes_max: NonZeroUsize::new(100).unwrap(),
        batch_max: NonZeroUsize::new(2).unwrap(),
        dedup_window_ms: config::Milliseconds::new(1),
        dedup_entries_max: NonZeroUsize::new(1).unwrap(),
        receipts_bytes_max: NonZeroUsize::MIN,
    };

    fn json(members: &str) -> Result<Event, Problem> {
        structured(&format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t",{members}}}"#), true, &LIMITS)
            .map(|parsed| parsed.event)
    }

    fn http(headers: &[(&'static str, &'static str)], body: &[u8]) -> Result<Request, Problem> {
        let pairs = headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name, value);
        }
        read(&map, body, &LIMITS)
    }

    fn binary(headers: &[(&'static str, &'static str)], body: &[u8]) -> Result<Event, Problem> {
        let all = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
        match http(&[&all[..], headers].concat(), body)? {
            Request::One(parsed) => Ok(parsed.event),
            Request::Batch(_) => panic!("one event is no batch"),
        }
    }

    #[test]
    fn data_is_what_its_content_type_says() {
        let text = |text: &str| Body::Text(text.into());
        let value = |text: &str| Body::Json(text.into());
        for (members, data) in [
            (r#""data":{"n": 1.50}"#, Some(value(r#"{"n": 1.50}"#))),
            (r#""data":"a""#, Some(value(r#""a""#))),
            (r#""data":null"#, Some(value("null"))),
            (r#""datacontenttype":"application/json; charset=utf-8","data":null"#, Some(value("null"))),
            (r#""datacontenttype":"text/plain","data":null"#, None),
            (r#""datacontenttype":"text/plain","data":"a\nb""#, Some(text("a\nb"))),
            (r#""datacontenttype":"application/geo+json","data":"{}""#, Some(value(r#""{}""#))),
            (r#""datacontenttype":"text/json","data_base64":"WzFd""#, Some(value("[1]"))),
            (r#""datacontenttype":"text/plain","data_base64":"WzFd""#, Some(text("[1]"))),
            (r#""datacontenttype":"text/plain","data_base64":"/w==""#, Some(Body::Binary(vec![255]))),
            (r#""datacontenttype":"text/plain;charset=UTF-8","data_base64":"WzFd""#, Some(text("[1]"))),
            (r#""datacontenttype":"text/plain; charset=\"us-ascii\"","data_base64":"WzFd""#, Some(text("[1]"))),
            (r#""datacontenttype":"text/plain; charset=utf-16","data_base64":"WzFd""#, Some(Body::Binary(b"[1]".into()))),
            (r#""datacontenttype":"text/plain; charset=iso-8859-1","data_base64":"w6Q=""#, Some(Body::Binary(vec![0xC3, 0xA4]))),
            (r#""datacontenttype":"application/xml","data":"<a/>""#, Some(text("<a/>"))),
            (r#""datacontenttype":"application/xml","data_base64":"PGEvPg==""#, Some(text("<a/>"))),
            (r#""datacontenttype":"image/svg+xml","data_base64":"PGEvPg==""#, Some(text("<a/>"))),
            (r#""datacontenttype":"application/xml","data_base64":"/w==""#, Some(Body::Binary(vec![255]))),
            (r#""datacontenttype":"image/png","data_base64":"WzFd""#, Some(Body::Binary(b"[1]".into()))),
            (r#""data_base64":"WzFd""#, Some(Body::Binary(b"[1]".into()))),
            (r#""subject":"x""#, None),
        ] {
            assert_eq!(json(members).unwrap().data, data, "{members}");
        }
    }

    #[test]
    fn bytes_whose_type_nobody_named_are_opaque_unless_a_body_is_json() {
        assert_eq!(json(r#""data_base64":"WzFd""#).unwrap().content_type, OPAQUE);
        assert_eq!(json(r#""data":1"#).unwrap().content_type, "application/json");
        let (bare, bytes) = (binary(&[], b" {\"a\":1}\n").unwrap(), binary(&[], b"{").unwrap());
        assert_eq!((bare.content_type.as_str(), bare.data), ("application/json", Some(Body::Json("{\"a\":1}".into()))));
        assert_eq!((bytes.content_type.as_str(), bytes.data), (OPAQUE, Some(Body::Binary(b"{".into()))));
        assert_eq!(binary(&[("content-type", "application/json")], b"{").unwrap_err().code, "data");
        assert_eq!(binary(&[], b"").unwrap().data, None);
    }

    #[test]
    fn xml_is_text_in_every_mode_and_an_event_format_in_none() {
        for media_type in ["application/xml", "text/xml", "application/atom+xml; charset=utf-8"] {
            let event = binary(&[("content-type", media_type)], "<ä/>".as_bytes()).unwrap();
            assert_eq!(event.data, Some(Body::Text("<ä/>".into())), "{media_type}");
        }
        let latin = binary(&[("content-type", "application/xml")], b"<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><\xE4/>").unwrap();
        assert!(matches!(latin.data, Some(Body::Binary(_))));
        for media_type in ["application/cloudevents+xml", "application/cloudevents-batch+xml; charset=utf-8", "application/cloudevents"] {
            let problem = http(&[("content-type", media_type), ("ce-id", "1")], b"<event/>").unwrap_err();
            assert_eq!((problem.status.as_u16(), problem.code), (415, "event_format"), "{media_type}");
            assert!(problem.detail.contains("application/cloudevents+json"), "{}", problem.detail);
        }
    }

    #[test]
    fn a_byte_order_mark_before_json_is_ignored() {
        let event = "\u{feff}{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}";
        assert!(matches!(http(&[("content-type", "application/cloudevents+json")], event.as_bytes()), Ok(Request::One(_))));
        let batch = format!("\u{feff}[{}]", event.trim_start_matches('\u{feff}'));
        assert!(matches!(http(&[("content-type", "application/cloudevents-batch+json")], batch.as_bytes()), Ok(Request::Batch(_))));
        let mark = "\u{feff}1".as_bytes();
        assert_eq!(binary(&[("content-type", "application/json")], mark).unwrap().data, Some(Body::Json("1".into())));
        assert_eq!(binary(&[("content-type", "text/plain")], mark).unwrap().data, Some(Body::Text("\u{feff}1".into())));
        assert_eq!(http(&[], "\u{feff}\u{feff}1".as_bytes()).unwrap_err().code, "json");
        assert_eq!(http(&[], b"\xFF\xFE{\0}\0").unwrap_err().code, "json");
    }

    #[test]
    fn half_a_surrogate_pair_is_refused_wherever_it_stands() {
        for members in [r#""data":"\ud800""#, r#""data":{"\udc00":1}"#, r#""subject":"\ud800x""#, r#""ext":"\udfff""#, r#""\ud800":1"#] {
            let problem = json(members).unwrap_err();
            assert_eq!(problem.code, "json", "{members}");
            assert!(problem.detail.contains("half of a character"), "{members}: {}", problem.detail);
        }
        let problem = binary(&[("content-type", "application/json")], br#""\ud800""#).unwrap_err();
        assert!(problem.code == "data" && problem.detail.contains("half of a character"), "{problem:?}");
        assert!(json(r#""data":"\ud83d\ude97","subject":"\ud83d\ude97""#).is_ok());
    }

    #[test]
    fn a_source_is_a_uri_reference_and_a_dataschema_a_uri() {
        for good in [
            "/s",
            "//host/a",
            "a",
            "urn:uuid:6e8bc430-9c3a",
            "https://[::1]/a?b=c#d",
            "mailto:me@example.com",
            "%C3%A4",
            "?",
            "#",
            "1-555-123-4567",
        ] {
            assert!(is_uri_reference(good), "{good}");
        }
        for bad in ["", "a b", " a", "ä", "{a}", "a\\b", "<a>", "\"a\"", "%", "%a", "%4g", "a#b#c", "a|b", "a^b", "a`b"] {
            assert!(!is_uri_reference(bad), "{bad}");
        }
        let schema = |value: &str| json(&format!(r#""dataschema":"{value}""#));
        for good in ["https://example.com/schema", "urn:a", "a+b-c.1:"] {
            let extensions = schema(good).unwrap().extensions;
            assert_eq!(extensions, [("dataschema".to_owned(), good.to_owned())], "policies see it");
        }
        for bad in ["", "schema", "/schema", "//a/b", ":a", "1a:b", "https://a b"] {
            assert_eq!(schema(bad).unwrap_err().code, "attribute", "{bad}");
        }
        assert_eq!(json(r#""dataschema":7"#).unwrap_err().code, "attribute");
        assert_eq!(json(r#""dataschema":null"#).unwrap().extensions, []);
        assert_eq!(binary(&[("ce-dataschema", "urn:a")], b"").unwrap().extensions, [("dataschema".to_owned(), "urn:a".to_owned())]);
        assert_eq!(binary(&[("ce-dataschema", "a")], b"").unwrap_err().code, "attribute");
    }

    #[test]
    fn a_subject_is_not_empty_and_a_time_is_rfc_3339() {
        assert_eq!(json(r#""subject":"""#).unwrap_err().code, "attribute");
        assert_eq!(binary(&[("ce-subject", "")], b"").unwrap_err().code, "attribute");
        assert_eq!(json(r#""subject":null"#).unwrap().subject, None);
        for (time, is_taken) in [
            ("9999-12-31T23:59:59Z", true),
            ("2018-04-05t17:31:00.123456789012z", true),
            ("2016-12-31T23:59:60Z", true),
            ("2018-W14-4T17:31:00Z", false),
            ("2018-04-05T17:31:00", false),
            ("2018-04-05T24:00:00Z", false),
            ("", false),
        ] {
            match json(&format!(r#""time":"{time}""#)) {
                Ok(event) => assert!(is_taken && event.time.as_deref() == Some(time), "{time}"),
                Err(problem) => assert!(!is_taken && problem.code == "attribute" && problem.detail.contains("`time`"), "{time}"),
            }
        }
    }

    #[test]
    fn a_headers_value_leaves_its_quotes_and_one_round_of_percent_encoding() {
        for (header, value) in [
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("Euro%20%e2%82%ac", "Euro €"),
            ("%61b", "ab"),
            ("100%2525", "100%25"),
            ("\"Euro %E2%82%AC\"", "Euro €"),
            (r#""say \"hi\" \\ 50%25""#, r#"say "hi" \ 50%"#),
            ("\"", "\""),
            ("a\"b\"", "a\"b\""),
        ] {
            assert_eq!(binary(&[("ce-subject", header)], b"").unwrap().subject.unwrap(), value, "{header}");
        }
        for header in ["%C0%A0", "%FF", "\"%ff\""] {
            assert_eq!(binary(&[("ce-subject", header)], b"").unwrap_err().code, "attribute", "{header}");
        }
    }

    #[test]
    fn an_extension_has_a_plain_name_one_value_and_no_control_characters() {
        let extensions = json(r#""a":"x","b2":true,"c":-7,"gone":null,"d":"""#).unwrap().extensions;
        let expected = [("a", "x"), ("b2", "true"), ("c", "-7"), ("d", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(extensions, expected);
        for bad in [r#""A":"x""#, r#""a_b":"x""#, r#""":"x""#, r#""a":1.5"#, r#""a":2147483648"#, r#""a":[]"#, r#""a":{}"#, r#""a":"\n""#] {
            assert_eq!(json(bad).unwrap_err().code, "attribute", "{bad}");
        }
        let bad: [&[(&str, &str)]; 6] = [
            &[("ce-a", "x"), ("ce-a", "y")],
            &[("ce-id", "2")],
            &[("ce-a-b", "x")],
            &[("ce-datacontenttype", "text/plain")],
            &[("ce-data", "x")],
            &[("ce-a", "%0A")],
        ];
        for headers in bad {
            assert_eq!(binary(headers, b"").unwrap_err().code, "attribute", "{headers:?}");
        }
    }

    #[test]
    fn the_media_type_says_the_mode_in_any_case_and_with_any_parameters() {
        let event = br#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
        for media_type in ["application/cloudevents+json", "Application/CloudEvents+JSON;charset=UTF-8", "application/json", "text/json"] {
            assert!(matches!(http(&[("content-type", media_type)], event), Ok(Request::One(_))), "{media_type}");
        }
        let batch = http(&[("content-type", "application/cloudevents-batch+json ; charset=utf-8")], b"[]");
        assert!(matches!(batch, Ok(Request::Batch(items)) if items.is_empty()));
        // The mode is structured although there are headers too: a gateway may have added them.
        assert!(http(&[("content-type", "application/cloudevents+json"), ("ce-id", "2")], event).is_ok());
        assert!(matches!(http(&[], event), Ok(Request::One(_))));
    }

    #[test]
    fn the_short_form_needs_a_type_and_nothing_else_until_it_says_a_specversion() {
        let short = |text: &str| structured(text, false, &LIMITS);
        let parsed = short(r#"{"type":"t"}"#).unwrap();
        assert!(!parsed.id_given && !parsed.event.id.is_empty());
        assert_eq!(parsed.event.source, SHORT_FORM_SOURCE);
        assert!(short(r#"{"type":"t","id":"7"}"#).unwrap().id_given);
        for text in ["{}", r#"{"type":null}"#, r#"{"type":""}"#, r#"{"type":"t","id":""}"#, r#"{"type":"t","specversion":"1.0","id":"1"}"#]
        {
            assert_eq!(short(text).unwrap_err().code, "missing_attribute", "{text}");
        }
    }

    #[test]
    fn a_producer_is_not_told_back_all_that_it_sent() {
        let long = "\u{1}".repeat(DETAIL_BYTES_MAX);
        let version = serde_json::json!({"specversion": long, "id": "1", "source": "/s", "type": "t"}).to_string();
        for text in [version, format!(r#"{{"type":"t","{}":1.5}}"#, "x".repeat(DETAIL_BYTES_MAX))] {
            assert_eq!(structured(&text, false, &LIMITS).unwrap_err().detail.len(), DETAIL_BYTES_MAX, "{text}");
        }
    }

    #[test]
    fn an_attribute_is_bounded_and_printable() {
        let long = "x".repeat(ATTRIBUTE_BYTES_MAX + 1);
        for name in ["subject", "time", "datacontenttype", "extension"] {
            assert_eq!(json(&format!(r#""{name}":"{long}""#)).unwrap_err().code, "attribute", "{name}");
        }
        assert_eq!(json(r#""subject":"a\u0000""#).unwrap_err().code, "attribute");
        assert_eq!(json(r#""time":"yesterday""#).unwrap_err().code, "attribute");
        assert_eq!(json(r#""source":"/a b""#).unwrap_err().code, "attribute");
        assert_eq!(json(&format!(r#""{long}":"x""#)).unwrap_err().code, "attribute");
        let many: Vec<String> = (0..=EXTENSIONS_MAX).map(|number| format!(r#""x{number}":1"#)).collect();
        assert_eq!(json(&many.join(",")).unwrap_err().code, "attribute");
    }
}
