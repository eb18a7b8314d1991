//! Writes a recorded call as a fixture with one step. What a fixture can't say is in its member `recorded`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::notation::{self, users};
use crate::model::world::Reads;
use crate::policy::call::{Arguments, Call};
use crate::policy::contract::{CONTRACT, CONTRACT_VERSION};
use crate::registry::SessionHandle;
use crate::types::event::{Body, Event};
use crate::types::json::Json;
use crate::types::time::rfc3339;

/// The version of a recording's form.
pub const VERSION: u32 = 1;

/// Returns the first line of a recording.
pub fn header(policy: &str, redacted: &[String]) -> Json {
    Json::object([
        ("signalpost_recording", Some(Json::number(VERSION))),
        ("policy", Some(Json::string(policy))),
        ("contract", Some(Json::string(format!("{CONTRACT}@{CONTRACT_VERSION}")))),
        ("server", Some(Json::string(env!("CARGO_PKG_VERSION")))),
        ("began", Some(Json::string(rfc3339(SystemTime::now())))),
        ("redacted", (!redacted.is_empty()).then(|| Json::Array(redacted.iter().map(Json::string).collect()))),
    ])
}

/// Returns the line about calls that the recording does not have.
pub fn lost(count: u64) -> Json {
    Json::object([("lost", Some(Json::number(count)))])
}

/// Returns the last line of a recording. `reason`: why it ends.
pub fn end(reason: &str, calls: u64, lost: u64) -> Json {
    let members = [("reason", Json::string(reason)), ("calls", Json::number(calls)), ("lost", Json::number(lost))];
    Json::object([("end", Some(Json::object(members.map(|(name, value)| (name, Some(value))))))])
}

/// Returns a call as a fixture.
pub fn call(call: &Call) -> Json {
    let (name, value) = notation::outcome(&call.arguments, &call.answer);
    let step = Json::object([step(&call.arguments), (name, Some(value))]);
    let what = call.arguments.event_type().map_or(String::new(), |event_type| format!(" {event_type}"));
    Json::object([
        ("about", Some(Json::string(format!("A recorded call of {}: {}{what}.", call.policy, call.arguments.function().name())))),
        ("recorded", Some(recorded(call))),
        ("now", Some(Json::string(rfc3339(UNIX_EPOCH + Duration::from_millis(call.reads.now_ms))))),
        ("host", host(call)),
        ("steps", Some(Json::Array(vec![step]))),
    ])
}

fn step(arguments: &Arguments) -> (&'static str, Option<Json>) {
    let text = |text: &str| Some(Json::string(text));
    let json = match arguments {
        Arguments::Route(event) => ("event", self::event(event)),
        Arguments::Format(message, body, reader) => (
            "format",
            Json::object([
                ("id", text(&message.event_id)),
                ("event_type", text(&message.event_type)),
                ("message", Some(Json::of_body(body))),
                ("reader", attributes(reader)),
            ]),
        ),
        Arguments::Opened(handle) => ("opened", session(handle)),
        Arguments::Received(handle, body) => {
            ("received", Json::object([("session", text(&handle.id)), ("message", Some(Json::of_body(body)))]))
        }
        Arguments::Closed(handle, code) => ("closed", Json::object([("session", text(&handle.id)), ("code", Some(Json::number(code)))])),
    };
    (json.0, Some(json.1))
}

/// Writes an event in CloudEvents' structured form. A fixture gives an event without a time its own, and this one had none.
fn event(event: &Event) -> Json {
    let text = serde_json::to_string(event).unwrap_or_default();
    let mut json = Json::parse(&text).unwrap_or_else(|_| Json::null());
    if event.time.is_none() {
        json.set("time", Json::null());
    }
    json
}

fn session(handle: &SessionHandle) -> Json {
    Json::object([
        ("id", Some(Json::string(&*handle.id))),
        ("user", Some(Json::string(handle.user.as_str()))),
        ("subprotocol", handle.subprotocol.map(Json::string)),
        ("attributes", attributes(&handle.attributes)),
    ])
}

fn attributes(attributes: &[(String, String)]) -> Option<Json> {
    let members = attributes.iter().map(|(name, value)| (name.clone(), Json::string(value))).collect();
    (!attributes.is_empty()).then_some(Json::Object(members))
}

/// Writes what was there before the call, as far as the call read it.
fn host(call: &Call) -> Option<Json> {
    let Reads { state, groups, presence, .. } = &*call.reads;
    let groups = groups.iter().map(|(group, read)| (group.clone(), users(&read.members))).collect();
    let value = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Json::string(text),
        Err(_) => Json::of_body(&Body::Binary(bytes.to_vec())),
    };
    // What is null was read, and not there.
    let state = state.iter().map(|(key, bytes)| (key.clone(), bytes.as_ref().map_or_else(Json::null, |bytes| value(bytes)))).collect();
    let own = match &call.arguments {
        Arguments::Received(handle, _) | Arguments::Closed(handle, _) => Some(handle),
        Arguments::Route(_) | Arguments::Format(..) | Arguments::Opened(_) => None,
    };
    let is_own = |user: &str| matches!(&call.arguments, Arguments::Received(handle, _) if handle.user.as_str() == user);
    let others = presence.iter().flat_map(|(user, count)| {
        let of =
            move |number| [("id", format!("{user}#{number}")), ("user", user.clone())].map(|(name, text)| (name, Some(Json::String(text))));
        (1..=count.saturating_sub(usize::from(is_own(user)))).map(move |number| Json::object(of(number)))
    });
    let sessions = own.into_iter().map(|handle| session(handle)).chain(others).collect();
    let members = [("groups", Json::Object(groups)), ("state", Json::Object(state)), ("sessions", Json::Array(sessions))];
    let is_empty = |json: &Json| matches!(json, Json::Object(members) if members.is_empty()) || *json == Json::Array(Vec::new());
    let host = Json::object(members.map(|(name, value)| (name, (!is_empty(&value)).then_some(value))));
    (!is_empty(&host)).then_some(host)
}

/// Writes where the call comes from, and what no fixture can say of it.
fn recorded(call: &Call) -> Json {
    let text = |text: &str| Some(Json::string(text));
    let presence: Vec<(String, Json)> = call.reads.presence.iter().map(|(user, count)| (user.clone(), Json::number(count))).collect();
    let parts = call.reads.groups.iter().filter(|(_, read)| !read.is_whole()).map(|(group, read)| {
        let asked = read.asked.iter().map(|(user, is_member)| (user.clone(), Json::Word(is_member.to_string()))).collect();
        (group.clone(), Json::object([("size", Some(Json::number(read.size))), ("asked", Some(Json::Object(asked)))]))
    });
    let parts: Vec<(String, Json)> = parts.collect();
    Json::object([
        ("at", Some(Json::string(rfc3339(call.at)))),
        ("policy", text(&call.policy)),
        ("version", text(&call.version)),
        ("digest", text(&call.digest)),
        ("settings", text(&call.settings)),
        ("took_us", Some(Json::number(call.took.as_micros()))),
        ("vary", (!call.vary.is_empty()).then(|| Json::Array(call.vary.iter().map(Json::string).collect()))),
        ("presence", (!presence.is_empty()).then_some(Json::Object(presence))),
        ("groups", (!parts.is_empty()).then_some(Json::Object(parts))),
        ("full", call.reads.is_full.then(|| Json::Word("true".into()))),
    ])
}
