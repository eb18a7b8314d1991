//! What comes in, in the contract's own types, and what is said about it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Refusal;
use crate::bindings::formatting::exports::signalpost::policy::formatting::Message;
use crate::bindings::host::signalpost::policy::types::{Attributes, Body, Event};
use crate::bindings::sessions::exports::signalpost::policy::sessions::Session;
use crate::json::{Fields, Object, text_of};
use crate::misfit::Misfit;

impl Event {
    /// The event's data as a `T`. It is refused where there is none, where it isn't JSON, and where it isn't a `T`, by the name of
    /// the field.
    pub fn data<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Refusal> {
        let json = self.json()?;
        serde_json::from_str(json).map_err(|error| Misfit::find(json, &error).into_refusal("the event's data"))
    }

    /// The event's data as an object whose values stay as the producer wrote them.
    pub fn fields(&self) -> Result<Fields<'_>, Refusal> {
        Fields::parse(self.json()?)
    }

    /// The value of a CloudEvents extension attribute.
    pub fn extension(&self, name: &str) -> Option<&str> {
        value_of(&self.extensions, name)
    }

    fn json(&self) -> Result<&str, Refusal> {
        let json = self.data.as_ref().and_then(Body::as_json);
        json.ok_or_else(|| Refusal::new("invalid_data", "the event's data should be a JSON object, and it has none that is JSON"))
    }
}

impl Body {
    /// A body of JSON. Panics if `value` can't be JSON, as a map whose keys are lists.
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
    /// The body as a `T`: `None` where it isn't JSON of that shape.
    pub fn data<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_str(self.body.as_json()?).ok()
    }
}

/// Those for whom a message is formatted: the varied attributes that they have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reader(pub Attributes);

impl Reader {
    /// The value of a varied attribute; `None` where the reader has none, and for one that `VARY` doesn't name.
    pub fn get(&self, name: &str) -> Option<&str> {
        value_of(&self.0, name)
    }
}

fn value_of<'a>(attributes: &'a Attributes, wanted: &str) -> Option<&'a str> {
    attributes.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
}
