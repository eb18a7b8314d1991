//! What comes in, in the contract's own types, and what is said about it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Refusal;
use crate::bindings::formatting::exports::signalpost::policy::formatting::Message;
use crate::bindings::host::signalpost::policy::types::{Attributes, Body, Event};
use crate::bindings::sessions::exports::signalpost::policy::sessions::Session;
use crate::bounds::DATA_BYTES_MAX;
use crate::json::{Fields, Object, has_too_many_values, is_no_object_for_a_struct, text_of, too_large, too_many_values};
use crate::misfit;
use crate::time;

impl Event {
    /// The event's data as a `T`. A refusal names the field that is missing or wrong; data that are not JSON, or too large to be
    /// passed on (`bounds::DATA_BYTES_MAX`), or of too many values (`bounds::VALUES_MAX`), are refused too. Members that `T` doesn't have are skipped.
    pub fn data<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Refusal> {
        let json = self.json()?;
        if has_too_many_values(json) {
            return Err(too_many_values());
        }
        misfit::read(json).map_err(|misfit| misfit.into_refusal("the event's data"))
    }

    /// The event's data as an object whose values stay as the producer wrote them.
    pub fn fields(&self) -> Result<Fields<'_>, Refusal> {
        Fields::parse(self.json()?)
    }

    /// The value of a CloudEvents extension attribute.
    pub fn extension(&self, name: &str) -> Option<&str> {
        value_of(&self.extensions, name)
    }

    /// The event's `time` in nanoseconds since the Unix epoch; `None` if it has none.
    pub fn unix_ns(&self) -> Option<i64> {
        time::unix_ns(self.time.as_deref()?)
    }

    fn json(&self) -> Result<&str, Refusal> {
        let json = self.data.as_ref().and_then(Body::as_json);
        let json = json.ok_or_else(|| Refusal::new("invalid_data", "the event's data should be JSON, and it has none that is"))?;
        if json.len() > DATA_BYTES_MAX { Err(too_large(json)) } else { Ok(json) }
    }
}

impl Body {
    /// Makes a body of JSON. Panics if `value` can't be JSON, as a map whose keys are lists.
    pub fn json(value: &impl Serialize) -> Body {
        Body::Json(text_of(value))
    }

    /// The text of a JSON value; `None` for text and bytes.
    pub fn as_json(&self) -> Option<&str> {
        match self {
            Body::Json(json) => Some(json),
            Body::Text(_) | Body::Binary(_) => None,
        }
    }

    /// The body as a `T`; `None` if it isn't JSON of that shape. Members that `T` doesn't have are skipped and not kept, so this is the
    /// way to read what clients send: what they add costs next to nothing, and `None` if it is too much (`bounds::VALUES_MAX`).
    pub fn data<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        let json = self.as_json().filter(|json| !is_no_object_for_a_struct::<T>(json) && !has_too_many_values(json))?;
        serde_json::from_str(json).ok()
    }
}

/// `tell(to::user("1"), json!({ "type": "hello" }))`.
impl From<Value> for Body {
    fn from(value: Value) -> Body {
        Body::Json(value.to_string())
    }
}

impl From<Object<'_>> for Body {
    fn from(object: Object) -> Body {
        Body::Json(object.into_json())
    }
}

impl Session {
    /// The value of an attribute of the session.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        value_of(&self.attributes, name)
    }
}

impl Message {
    /// The body as a `T`; `None` if it isn't JSON of that shape.
    pub fn data<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        self.body.data()
    }
}

/// Those for whom a message is formatted: the varied attributes that they have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reader(pub Attributes);

impl Reader {
    /// The value of a varied attribute; `None` if the reader has none, and for one that `VARY` doesn't name.
    pub fn get(&self, name: &str) -> Option<&str> {
        value_of(&self.0, name)
    }
}

fn value_of<'a>(attributes: &'a Attributes, wanted: &str) -> Option<&'a str> {
    attributes.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
}
