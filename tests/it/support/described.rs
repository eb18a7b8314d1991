//! What tests see of a server is what docs/openapi.yaml and docs/asyncapi.yaml say: the HTTP client of the tests checks each answer and each event
//! of a stream, and their WebSocket clients check each frame.

pub mod documents;
mod http;
mod shapes;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ::http::{HeaderMap, Method, StatusCode};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::documents::{Operation, at, operations};
pub use self::http::{Http, Request};
use self::shapes::Shapes;

/// The shapes of answers.
static OPENAPI: LazyLock<Shapes> = LazyLock::new(|| Shapes::new(documents::openapi()));

/// The shapes of frames and events.
static ASYNCAPI: LazyLock<Shapes> = LazyLock::new(|| Shapes::new(documents::asyncapi()));

/// An answer, without its body.
struct Head<'a> {
    status: StatusCode,
    headers: &'a HeaderMap,
}

impl Head<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn media_type(&self) -> &str {
        self.header("content-type").unwrap_or_default()
    }
}

/// Checks an answer, and its body if that is known.
fn answer(method: &Method, path: &str, head: &Head<'_>, body: Option<&[u8]>) {
    let what = format!("{method} {path} was answered with {}", head.status);
    // hyper reads no further, and writes no document.
    if head.status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        return assert_eq!(body.unwrap_or_default(), b"", "{what}");
    }
    let found: Vec<&Operation> = operations().iter().filter(|operation| operation.is_at(path)).collect();
    // Paths without parameters come first.
    let Some(template) = found.iter().map(|operation| &operation.path).min_by_key(|path| path.matches('{').count()) else {
        return problem(&what, head, body, (StatusCode::NOT_FOUND, "not_found"));
    };
    let here: Vec<&Operation> = found.iter().copied().filter(|operation| operation.path == *template).collect();
    let as_get = if method == Method::HEAD { &Method::GET } else { method };
    match here.iter().find(|operation| operation.method == *as_get) {
        Some(operation) if method != Method::HEAD || head.status != StatusCode::METHOD_NOT_ALLOWED => {
            described(&what, operation, head, body.filter(|_| method != Method::HEAD));
        }
        _ => {
            if head.status == StatusCode::METHOD_NOT_ALLOWED {
                assert_eq!(allowed(head), documents::methods(template), "{what}: Allow");
            }
            // What precedes the routes is said of any address.
            match head.status {
                StatusCode::BAD_REQUEST => problem(&what, head, body, (StatusCode::BAD_REQUEST, "host")),
                StatusCode::FORBIDDEN => problem(&what, head, body, (StatusCode::FORBIDDEN, "origin")),
                _ => problem(&what, head, body.filter(|_| method != Method::HEAD), (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")),
            }
        }
    }
}

/// Checks that the parameters in the query string of a request, which was answered well, are described.
fn asked(method: &Method, path: &str, mut names: impl Iterator<Item = String>) {
    let found = operations().iter().filter(|operation| operation.method == *method && operation.is_at(path));
    let Some(operation) = found.min_by_key(|operation| operation.path.matches('{').count()) else { return };
    // Any name may be a session's attribute.
    if operation.path.contains("/sse/") {
        return;
    }
    let described = documents::parameters(operation, "query");
    let unknown = names.find(|name| !described.contains(&name.as_str()));
    assert_eq!(unknown, None, "{method} {path} takes a parameter that docs/openapi.yaml doesn't have");
}

/// Checks the answer to a WebSocket handshake.
pub fn handshake(path: &str, response: &::http::Response<Option<Vec<u8>>>) {
    let head = Head { status: response.status(), headers: response.headers() };
    // The client reads no further than the first part of a refusal's body.
    let is_whole = |body: &&[u8]| head.header("content-length").is_some_and(|length| length.parse() == Ok(body.len()));
    answer(&Method::GET, path, &head, response.body().as_deref().filter(is_whole));
}

/// Returns the methods in `Allow`, in the order of the alphabet. HEAD comes with GET.
fn allowed(head: &Head<'_>) -> Vec<String> {
    let mut methods: Vec<String> = head.header("allow").unwrap_or_default().split(',').map(|name| name.trim().to_owned()).collect();
    methods.retain(|method| method != "HEAD");
    methods.sort();
    methods
}

fn problem(what: &str, head: &Head<'_>, body: Option<&[u8]>, expected: (StatusCode, &str)) {
    assert_eq!((head.status, head.media_type()), (expected.0, "application/problem+json"), "{what}");
    if let Some(body) = body {
        let document: Value = serde_json::from_slice(body).unwrap();
        OPENAPI.check(what, "/components/schemas/Problem", &document);
        assert_eq!(document["code"], expected.1, "{what}");
    }
}

/// Checks an answer against the responses of its operation.
fn described(what: &str, operation: &Operation, head: &Head<'_>, body: Option<&[u8]>) {
    let is_elsewhere = || body.is_some_and(|body| serde_json::from_slice::<Value>(body).is_ok_and(|answer| answer["code"] == "not_found"));
    // With `operate_listen` each address is at one of the two.
    if head.status == StatusCode::NOT_FOUND && is_elsewhere() {
        return problem(what, head, body, (StatusCode::NOT_FOUND, "not_found"));
    }
    let pointer = format!("{}/responses/{}", operation.pointer, head.status.as_u16());
    let document = documents::openapi();
    let Some(pointer) = at(document, &pointer) else { panic!("{what}, which docs/openapi.yaml doesn't say of {}", operation.path) };
    let response = document.pointer(&pointer).unwrap();
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let place = at(document, &format!("{pointer}/headers/{}", shapes::escaped(name))).unwrap();
        let header = document.pointer(&place).unwrap_or(header);
        match head.header(name) {
            Some(value) => OPENAPI.check(format_args!("{what}: the header {name}"), &format!("{place}/schema"), &json!(value)),
            None => assert_ne!(header["required"], true, "{what} without the header {name}"),
        }
    }
    let Some(body) = body else { return };
    let Some(content) = response.get("content") else { return assert!(body.is_empty(), "{what} with a body") };
    let media_type = head.media_type();
    let essence = |media_type: &str| media_type.split(';').next().unwrap().to_owned();
    let is_same = |known: &&String| known.as_str() == media_type || **known == essence(media_type);
    let Some(known) = content.as_object().unwrap().keys().find(is_same) else {
        panic!("{what} as {media_type}, which docs/openapi.yaml doesn't say of {}", operation.path);
    };
    let body = match essence(media_type).as_str() {
        "application/json" | "application/problem+json" => read(body).unwrap_or_else(|error| panic!("{what}: {error}")),
        _ => json!(std::str::from_utf8(body).unwrap()),
    };
    OPENAPI.check(what, &format!("{pointer}/content/{}/schema", shapes::escaped(known)), &body);
}

/// Reads JSON. A number that `Value` can't hold counts as 0: its shape is the same.
fn read(json: &[u8]) -> serde_json::Result<Value> {
    let error = match serde_json::from_slice(json) {
        Ok(value) => return Ok(value),
        Err(error) if error.to_string().contains("number out of range") => error,
        Err(error) => return Err(error),
    };
    if let Ok(members) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(json) {
        return members.into_iter().map(|(name, member)| Ok((name, read(member.get().as_bytes())?))).collect();
    }
    match serde_json::from_slice::<Vec<Box<RawValue>>>(json) {
        Ok(items) => items.iter().map(|item| read(item.get().as_bytes())).collect(),
        Err(_) if json.trim_ascii_start().starts_with(b"{") => Err(error),
        Err(_) => Ok(json!(0)),
    }
}

/// A way in which the server sends frames: its channel in docs/asyncapi.yaml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Socket,
    PlainSocket,
    Stream,
    /// A producer's.
    Publish,
    Live,
}

impl Channel {
    /// Returns the channel of a socket whose handshake has selected this subprotocol.
    pub fn of(subprotocol: Option<&str>) -> Channel {
        match subprotocol {
            None => Channel::PlainSocket,
            Some("signalpost.v1") => Channel::Socket,
            Some("signalpost.publish.v1") => Channel::Publish,
            Some(other) => panic!("docs/asyncapi.yaml has no subprotocol {other}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Channel::Socket => "socket",
            Channel::PlainSocket => "plainSocket",
            Channel::Stream => "stream",
            Channel::Publish => "publish",
            Channel::Live => "live",
        }
    }

    /// Checks a text frame of a server.
    pub fn frame(self, text: &str) {
        match self {
            Channel::Socket => {
                let frame = read(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
                let kind = frame["type"].as_str().unwrap_or_else(|| panic!("a frame without a type: {text}"));
                let name = documents::sent().get(&(self.name(), kind)).unwrap_or_else(|| panic!("docs/asyncapi.yaml has no frame {text}"));
                ASYNCAPI.check(text, &format!("{name}/payload"), &frame);
            }
            Channel::PlainSocket => {
                // Anything may be a message, and what looks like an error of the server is one.
                let frame = read(text.as_bytes()).unwrap_or_default();
                if frame["type"] == "error" {
                    ASYNCAPI.check(text, "/components/messages/plainError/payload", &frame);
                }
            }
            Channel::Publish => {
                let frame = read(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
                let shape = if frame["type"] == "hello" { "PublishHello" } else { "PublishAnswer" };
                ASYNCAPI.check(text, &format!("/components/schemas/{shape}"), &frame);
            }
            Channel::Stream | Channel::Live => unreachable!("{self:?} has events"),
        }
    }

    /// Checks an event of a stream, by its fields.
    fn event(self, fields: &BTreeMap<&str, &str>) {
        let what = || format!("the event {fields:?}");
        let Some(data) = fields.get("data") else { return assert!(fields.is_empty(), "{} without data", what()) };
        let name = fields.get("event").copied().unwrap_or_default();
        let message = documents::sent().get(&(self.name(), name)).unwrap_or_else(|| panic!("docs/asyncapi.yaml has not {}", what()));
        let headers: BTreeMap<&str, &str> =
            fields.iter().filter(|(name, _)| **name != "data").map(|(name, value)| (*name, *value)).collect();
        ASYNCAPI.check(format_args!("the event {fields:?}"), &format!("{message}/headers"), &json!(headers));
        let data = read(data.as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", what()));
        ASYNCAPI.check(format_args!("the event {fields:?}"), &format!("{message}/payload"), &data);
    }
}

/// Checks a line of a recording. Empty ones come while nothing happens.
fn line(text: &str) {
    if text.trim().is_empty() {
        return;
    }
    let line = read(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
    OPENAPI.check(text, "/components/schemas/RecordingLine", &line);
}

/// Checks the code with which a server has ended a socket.
pub fn close_code(code: u16) {
    let codes = documents::asyncapi()["x-close-codes"].as_array().unwrap();
    assert!(codes.iter().any(|row| row["code"] == code), "docs/asyncapi.yaml has no close code {code}");
}

/// Says whether a frame of a client is as described.
pub fn is_client_frame(frame: &Value) -> bool {
    let of_this_type = documents::received().get(frame["type"].as_str().unwrap_or_default());
    of_this_type.is_some_and(|message| ASYNCAPI.is_valid(&format!("{message}/payload"), frame))
}

/// Checks the value of an example against the shape beside it.
pub fn example(document: &Value, shape: &str, value: &Value) {
    let shapes: &Shapes = if document.get("openapi").is_some() { &OPENAPI } else { &ASYNCAPI };
    shapes.check(format_args!("the example {value}"), shape, value);
}

/// Checks what a sink's backend is sent.
pub fn webhook(headers: &HeaderMap, body: &[u8]) {
    let operation = &documents::openapi()["webhooks"]["sink"]["post"];
    for (index, parameter) in operation["parameters"].as_array().unwrap().iter().enumerate() {
        let value = headers.get(parameter["name"].as_str().unwrap()).map(|value| value.to_str().unwrap());
        OPENAPI.check("a header of a webhook", &format!("/webhooks/sink/post/parameters/{index}/schema"), &json!(value));
    }
    let media_type = headers.get("content-type").unwrap().to_str().unwrap();
    let shape = format!("/webhooks/sink/post/requestBody/content/{}/schema", shapes::escaped(media_type));
    let body = read(body).unwrap();
    OPENAPI.check(format_args!("a webhook {body}"), &shape, &body);
}
