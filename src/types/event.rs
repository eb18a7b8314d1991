//! Events, and the types that every layer shares: user ids and bodies.
//!
//! Values are validated when they are made, and not checked again. No HTTP, no I/O.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use memchr::memchr;
use serde::ser::{Error as _, SerializeMap as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::types::clock::Clock;
use crate::types::origin::Origin;

/// The `type` that policies see for a message that was sent to a user directly.
pub const DIRECT: &str = "signalpost.direct";

/// The source of the server's own events.
pub const SERVER: &str = "/signalpost";

/// The type of the server's own event about a message that nobody has read in time.
pub const MESSAGE_EXPIRED: &str = "signalpost.message.expired";

/// One CloudEvents 1.0 event. Its members have CloudEvents' names and meanings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub source: String,
    pub event_type: String,
    pub subject: Option<String>,
    /// RFC 3339.
    pub time: Option<String>,
    /// `datacontenttype`; `application/json` if the producer named none.
    pub content_type: String,
    /// Extension attributes in their string form, and `dataschema`.
    pub extensions: Vec<(String, String)>,
    pub data: Option<Body>,
    /// Not part of what it says.
    pub origin: Origin,
}

impl Event {
    /// Returns the bytes of its texts and data.
    pub fn size(&self) -> usize {
        let optional = [&self.subject, &self.time].into_iter().flatten().map(String::len).sum::<usize>();
        let extensions: usize = self.extensions.iter().map(|(name, value)| name.len() + value.len()).sum();
        let texts = [&self.id, &self.source, &self.event_type, &self.content_type].map(|text| text.len()).iter().sum::<usize>();
        texts + optional + extensions + self.data.as_ref().map_or(0, Body::size)
    }
}

/// Writes CloudEvents' structured JSON form, which can be published again.
impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("source", &self.source)?;
        map.serialize_entry("type", &self.event_type)?;
        if let Some(subject) = &self.subject {
            map.serialize_entry("subject", subject)?;
        }
        if let Some(time) = &self.time {
            map.serialize_entry("time", time)?;
        }
        map.serialize_entry("datacontenttype", &self.content_type)?;
        for (name, value) in &self.extensions {
            map.serialize_entry(name, value)?;
        }
        match &self.data {
            None => {}
            Some(Body::Json(text)) => map.serialize_entry("data", raw(text).map_err(S::Error::custom)?)?,
            Some(Body::Text(text)) => map.serialize_entry("data", text)?,
            Some(Body::Binary(bytes)) => map.serialize_entry("data_base64", &BASE64_STANDARD.encode(bytes))?,
        }
        map.end()
    }
}

/// Returns a new id, for an event without one: a UUID of version 7 (RFC 9562, section 5.7). Those of one process sort in their order.
pub fn new_event_id() -> String {
    /// The first half of the newest: milliseconds since the Unix epoch, and twelve bits that count within one, or into the next.
    static NEWEST: AtomicU64 = AtomicU64::new(0);
    let now = Clock::Machine.now_ms() << 12;
    let next = |newest: u64| now.max(newest + 1);
    let stamp = next(NEWEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |newest| Some(next(newest))).unwrap_or_default());
    // The second half of a UUID of version 4 is random but for the same two bits.
    let random = uuid::Uuid::new_v4().as_u64_pair().1;
    let id = uuid::Uuid::from_u64_pair((stamp >> 12) << 16 | 7 << 12 | stamp & 0xfff, random);
    id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).to_owned()
}

/// Bytes of an attribute (id, source, type, extension). Attributes are kept with each message.
pub const ATTRIBUTE_BYTES_MAX: usize = 1024;

/// Checks one attribute of an event.
///
/// # Errors
/// The attribute is invalid. The sentence is for the event's producer.
pub fn check_attribute(name: &str, value: &str) -> Result<(), String> {
    if value.len() > ATTRIBUTE_BYTES_MAX {
        return Err(format!("`{name}` has {} bytes, over the limit of {ATTRIBUTE_BYTES_MAX}", value.len()));
    }
    if value.chars().any(char::is_control) {
        return Err(format!("`{name}` contains a control character"));
    }
    Ok(())
}

/// A user's id, as in `/ws/{user_id}`: cheap to clone, bounded, never empty, without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Validates a user's id.
    ///
    /// # Errors
    /// The id is invalid. The sentence is for the client or producer that sent it.
    pub fn new(text: &str, bytes_max: usize) -> Result<UserId, String> {
        if text.is_empty() {
            return Err("a user id can't be empty".into());
        }
        if text.len() > bytes_max {
            return Err(format!("a user id of {} bytes is over the limit of {bytes_max}", text.len()));
        }
        if text.chars().any(char::is_control) || text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
            return Err("a user id can't contain control characters, nor begin or end with a space".into());
        }
        Ok(UserId(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Begins the ids of the server's own readers. No other id has a control character, so that nobody else can name them.
const INTERNAL: char = '\0';

impl UserId {
    /// Returns the user whose mailbox a sink reads.
    pub fn of_sink(name: &str) -> UserId {
        UserId(format!("{INTERNAL}sink:{name}").into())
    }

    /// Returns whether the user is one of the server's own readers.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with(INTERNAL)
    }

    /// Reads an id from the store, which may be that of an internal reader. The length that this server allows does not matter there.
    ///
    /// # Errors
    /// As for [`UserId::new`].
    pub fn stored(text: &str) -> Result<UserId, String> {
        match text.strip_prefix(INTERNAL) {
            Some(name) => UserId::new(name, usize::MAX).map(|_| UserId(text.into())),
            None => UserId::new(text, usize::MAX),
        }
    }
}

/// Reads an id that a server wrote. The length that this server allows is not known here.
impl<'de> Deserialize<'de> for UserId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UserId, D::Error> {
        UserId::new(&String::deserialize(deserializer)?, usize::MAX).map_err(serde::de::Error::custom)
    }
}

impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The payload of an event or message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// One JSON value; see [`Body::json`].
    Json(String),
    Text(String),
    Binary(Vec<u8>),
}

/// Writes an object with one member, named after the variant: `json`, `text`, or `base64` for binary.
impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Body::Json(text) => map.serialize_entry("json", raw(text).map_err(S::Error::custom)?)?,
            Body::Text(text) => map.serialize_entry("text", text)?,
            Body::Binary(bytes) => map.serialize_entry("base64", &BASE64_STANDARD.encode(bytes))?,
        }
        map.end()
    }
}

fn raw(text: &str) -> serde_json::Result<&RawValue> {
    serde_json::from_str(text)
}

/// Checks that the strings in a JSON value are Unicode text. The grammar lets an escape stand for half of a surrogate pair, which most
/// languages can't read or write (RFC 8259, section 8.2).
///
/// # Errors
/// Which half stands alone, and where.
pub fn check_surrogates(json: &str) -> Result<(), serde_json::Error> {
    let escape = |at: usize| json.get(at..)?.strip_prefix("\\u")?.get(..4).and_then(|digits| u16::from_str_radix(digits, 16).ok());
    let mut at = 0;
    while let Some(found) = json.as_bytes().get(at..).and_then(|rest| memchr(b'\\', rest)) {
        at += found;
        let (first, second) = (escape(at), escape(at + 6));
        at += match (first, second) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(half @ 0xD800..=0xDFFF), _) => {
                let words = format!("\\u{half:04x} at byte {at} is half of a character: it must be one of a surrogate pair");
                return Err(serde::de::Error::custom(words));
            }
            (Some(_), _) => 6,
            // A backslash and what it escapes.
            (None, _) => 2,
        };
    }
    Ok(())
}

impl Body {
    /// Returns a body of one JSON value (RFC 8259), kept as it was written: numbers keep their digits.
    ///
    /// # Errors
    /// The text is not one JSON value.
    pub fn json(text: String) -> Result<Body, serde_json::Error> {
        let value: &RawValue = serde_json::from_str(&text)?;
        check_surrogates(value.get())?;
        // Surrounding whitespace is not part of the value.
        if value.get().len() == text.len() { Ok(Body::Json(text)) } else { Ok(Body::Json(value.get().to_owned())) }
    }

    /// Returns the body of a text frame: JSON if it is one JSON value, else text.
    pub fn sniff(text: String) -> Body {
        match Body::json(text.clone()) {
            Ok(body) => body,
            Err(_) => Body::Text(text),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Body::Json(text) | Body::Text(text) => text.as_bytes(),
            Body::Binary(bytes) => bytes,
        }
    }

    /// Returns the length in bytes.
    pub fn size(&self) -> usize {
        self.as_bytes().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_sort_in_their_order_and_are_uuids_of_version_7() {
        let before = Clock::Machine.now_ms();
        let ids: Vec<String> = (0..10_000).map(|_| new_event_id()).collect();
        assert!(ids.is_sorted_by(|one, next| one < next));
        for id in [&ids[0], &ids[9_999]] {
            let uuid = uuid::Uuid::parse_str(id).unwrap();
            assert_eq!((uuid.get_version_num(), uuid.get_variant(), uuid.to_string()), (7, uuid::Variant::RFC4122, id.clone()));
            let (seconds, nanoseconds) = uuid.get_timestamp().unwrap().to_unix();
            let at = seconds * 1000 + u64::from(nanoseconds) / 1_000_000;
            assert!(at >= before && at <= Clock::Machine.now_ms() + 3, "{at} is not after {before}");
        }
    }

    #[test]
    fn user_ids_are_any_sane_text() {
        for text in ["1001", "alice", "9b2e-…", "a b", "用户"] {
            assert_eq!(UserId::new(text, 128).unwrap().as_str(), text);
        }
        for text in ["", " a", "a\n", "\u{0}", &"x".repeat(129)] {
            assert!(UserId::new(text, 128).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_sinks_user_can_be_stored_and_nobody_else_can_name_it() {
        let sink = UserId::of_sink("backend");
        assert!(sink.is_internal() && !UserId::new("sink:backend", 128).unwrap().is_internal());
        assert_eq!(UserId::stored(sink.as_str()).as_ref(), Ok(&sink));
        assert!(UserId::new(sink.as_str(), 128).is_err());
        assert!(serde_json::from_value::<UserId>(sink.as_str().into()).is_err());
        for broken in ["\0", "\0\0a", "\0 a", "a\0"] {
            assert!(UserId::stored(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn json_keeps_its_digits_and_loses_its_margins() {
        let body = Body::json(" {\"n\": 1.10000000000000000001e400}\n".into()).unwrap();
        assert_eq!(body, Body::Json("{\"n\": 1.10000000000000000001e400}".into()));
        assert!(Body::json("{} {}".into()).is_err());
        assert!(Body::json(String::new()).is_err());
    }

    #[test]
    fn a_json_body_is_unicode_text() {
        for good in [r#""\ud83d\ude97 \u00e4\uFFFF \uD83D\uDE97""#, r#""\\ud800""#, r#""\"\\\\ud800 \u005cud800""#, r#"{"\ud83d\ude97":1}"#]
        {
            assert!(Body::json(good.into()).is_ok(), "{good}");
        }
        for bad in [
            r#""\ud800""#,
            r#""\uDFFF""#,
            r#""\ud800 \udc00""#,
            r#""\ude97\ud83d""#,
            r#""\ud83d\ud83d\ude97""#,
            r#"{"a":["\\\ud83d"]}"#,
            r#"{"\udc00":1}"#,
        ] {
            let error = Body::json(bad.into()).unwrap_err().to_string();
            assert!(error.contains("half of a character"), "{bad}: {error}");
        }
        assert_eq!(Body::sniff(r#""\ud800""#.into()), Body::Text(r#""\ud800""#.into()));
    }

    #[test]
    fn a_text_frame_is_json_when_it_is_one_value() {
        assert_eq!(Body::sniff("{\"a\":1}".into()), Body::Json("{\"a\":1}".into()));
        assert_eq!(Body::sniff("ping".into()), Body::Text("ping".into()));
    }
}
