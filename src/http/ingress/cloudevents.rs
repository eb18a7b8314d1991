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
use crate::types::origin::Origin;
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
#[expect(clippy::large_enum_variant, reason = "nearly all hold one event, which has no use for a place of its own on the heap")]
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
        return batch(text(body)?, true, limits).map(Request::Batch);
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
pub(super) fn structured(text: &str, cloud_event: bool, limits: &config::Events) -> Result<Parsed, Problem> {
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
        origin: Origin::default(),
    };
    Ok(Parsed { event: checked(event, limits)?, id_given })
}

/// An optional attribute that policies find among the extensions: it says more about the data, and is for them alone.
const DATASCHEMA: &str = "dataschema";

/// The attributes that CloudEvents defines, and the two members for data.
const ATTRIBUTES: [&str; 10] =
    ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", DATASCHEMA, "data", "data_base64"];

/// Reads an array of events. `cloud_events`: none of them may be in the short form.
pub(super) fn batch(text: &str, cloud_events: bool, limits: &config::Events) -> Result<Vec<Result<Parsed, Problem>>, Problem> {
    let items: Vec<&RawValue> =
        serde_json::from_str(text).map_err(|error| invalid("json", format!("the body is not a JSON array of events: {error}")))?;
    if items.len() > limits.batch_max.get() {
        let detail = format!("{} events in a batch are over the limit of {} (events.batch_max)", items.len(), limits.batch_max);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_too_large", detail));
    }
    Ok(items.into_iter().map(|item| structured(item.get(), cloud_events, limits)).collect())
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
        origin: Origin::default(),
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

pub(super) fn invalid(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, detail)
}

#[cfg(test)]
mod tests;
