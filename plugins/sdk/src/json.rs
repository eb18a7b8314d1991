//! JSON whose values stay as they were written, so that no number changes on its way.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor, value};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;

use crate::bounds::{DATA_BYTES_MAX, ITEMS_MAX, VALUES_MAX};
use crate::{Id, List, Refusal};

/// The members of one JSON object in its order: at most 1000 (`bounds::ITEMS_MAX`), with at most 10000 names and values in them
/// (`bounds::VALUES_MAX`). Of a name that occurs twice, the last value counts. It is for messages that pass on what they don't know;
/// anything else is cheaper to read as a `T` (`Event::data`, `Body::data`), which skips the members that it doesn't have.
///
/// What is wrong with a field is a refusal that names it: `missing_field` or `invalid_field`.
pub struct Fields<'a> {
    /// What stands before a field's name in a refusal: empty, or `shares[0].`.
    path: String,
    members: Members<'a>,
}

impl<'a> Fields<'a> {
    /// Refuses as `invalid_data` what is not an object, and one with too many members or values.
    pub fn parse(json: &'a str) -> Result<Fields<'a>, Refusal> {
        if has_too_many_values(json) {
            return Err(too_many_values());
        }
        match serde_json::from_str(json) {
            Ok(members) => Ok(Fields { path: String::new(), members }),
            Err(_) if json.trim_start().starts_with('{') => {
                Err(Refusal::new("invalid_data", format!("the event's data has more than {ITEMS_MAX} members")))
            }
            Err(_) => Err(Refusal::new("invalid_data", "the event's data should be a JSON object")),
        }
    }

    /// The value as it was written; `None` if there is no such member.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.members.get(name)
    }

    /// The value as it was written. `expected` is what the refusal says that it should be.
    pub fn require(&self, name: &str, expected: &str) -> Result<&'a RawValue, Refusal> {
        self.get(name).ok_or_else(|| Refusal::new("missing_field", format!("`{}{name}` is missing: it should be {expected}", self.path)))
    }

    /// The value as a `T`. `expected` is what the refusal says that it should be.
    pub fn parsed<T: Deserialize<'a>>(&self, name: &str, expected: &str) -> Result<T, Refusal> {
        serde_json::from_str(self.require(name, expected)?.get()).map_err(|_| self.invalid(name, expected))
    }

    /// A user, a pool or the like.
    pub fn id(&self, name: &str) -> Result<Id, Refusal> {
        Id::read(self.require(name, Id::EXPECTED)?).ok_or_else(|| self.invalid(name, Id::EXPECTED))
    }

    /// A list of at most 1000 ids.
    pub fn ids(&self, name: &str) -> Result<Vec<Id>, Refusal> {
        let list: List<&RawValue> = self.parsed(name, &format!("a list of at most {ITEMS_MAX} ids"))?;
        let id = |(index, value)| Id::read(value).ok_or_else(|| self.invalid(&format!("{name}[{index}]"), Id::EXPECTED));
        list.into_iter().enumerate().map(id).collect()
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<f64, Refusal> {
        self.parsed(name, "a number")
    }

    /// A string.
    pub fn text(&self, name: &str) -> Result<String, Refusal> {
        self.parsed(name, "a string")
    }

    /// A list of at most 1000 objects.
    pub fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Refusal> {
        let list: List<Members<'a>> = self.parsed(name, &format!("a list of at most {ITEMS_MAX} objects"))?;
        let fields = |(index, members)| Fields { path: format!("{}{name}[{index}].", self.path), members };
        Ok(list.into_iter().enumerate().map(fields).collect())
    }

    /// All members, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.members.list.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// The refusal for a field with a value that can't be.
    pub fn invalid(&self, name: &str, expected: &str) -> Refusal {
        Refusal::new("invalid_field", format!("`{}{name}` should be {expected}", self.path))
    }
}

/// Says whether a text has more names and values than are read. Reading it to find out would cost what the bound is to save.
pub(crate) fn has_too_many_values(json: &str) -> bool {
    // Each of them has a byte of its own.
    if json.len() <= VALUES_MAX {
        return false;
    }
    let (mut count, mut bytes) = (1, json.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b',' | b':' | b'[' | b'{' => {
                count += 1;
                if count > VALUES_MAX {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// Goes on behind the end of a string.
fn skip_string(bytes: &mut impl Iterator<Item = u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return,
            _ => {}
        }
    }
}

pub(crate) fn too_many_values() -> Refusal {
    Refusal::new("invalid_data", format!("the event's data has more than {VALUES_MAX} names and values"))
}

/// Returns the refusal for data that a message could not pass on, which names the largest field.
pub(crate) fn too_large(json: &str) -> Refusal {
    let members: Members = serde_json::from_str(json).unwrap_or_default();
    let largest = members.list.iter().max_by_key(|(_, value)| value.get().len());
    let all = format!("the event's data has {} bytes and should have at most {DATA_BYTES_MAX}", json.len());
    match largest {
        Some((name, value)) => Refusal::new("invalid_field", format!("`{name}` has {} bytes: {all}", value.get().len())),
        None => Refusal::new("invalid_data", all),
    }
}

/// Names that are found fastest by looking at each: most objects have no more. Those of a larger object are in a tree too, or a producer
/// could make it take longer than a call may.
const FEW: usize = 16;

/// A list, for its order, and the place of each name after the first few.
#[derive(Default)]
struct Members<'a> {
    list: Vec<(Cow<'a, str>, &'a RawValue)>,
    places: BTreeMap<Cow<'a, str>, usize>,
}

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.list.get(self.place(name)?).map(|(_, value)| *value)
    }

    fn insert(&mut self, name: Cow<'a, str>, value: &'a RawValue) {
        match self.place(&name).and_then(|place| self.list.get_mut(place)) {
            Some(member) => member.1 = value,
            None => {
                if self.list.len() >= FEW {
                    self.places.insert(name.clone(), self.list.len());
                }
                self.list.push((name, value));
            }
        }
    }

    fn place(&self, wanted: &str) -> Option<usize> {
        let among_the_first = self.list.iter().take(FEW).position(|(name, _)| name == wanted);
        among_the_first.or_else(|| self.places.get(wanted).copied())
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'de>, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "an object of at most {ITEMS_MAX} members")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                while let Some(Name(name)) = map.next_key()? {
                    members.insert(name, map.next_value()?);
                    if members.list.len() > ITEMS_MAX {
                        return Err(A::Error::invalid_length(members.list.len(), &self));
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A name, which is copied only if escapes make it another text.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name<'de>, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// A JSON object under construction. What is put first stays: a later member of the same name is left out.
///
/// ```
/// use signalpost_plugin::{Fields, Object};
///
/// let data = Fields::parse(r#"{"type":"x","fare":12.50,"secret":1}"#)?;
/// let message = Object::new("ride").text("status", "done").rest(&data, &["secret"]);
/// assert_eq!(message.into_json(), r#"{"type":"ride","status":"done","fare":12.50}"#);
/// # Ok::<(), signalpost_plugin::Refusal>(())
/// ```
#[derive(Clone, Debug)]
pub struct Object<'a> {
    /// All but the closing brace.
    json: Vec<u8>,
    first_names: Vec<&'a str>,
    /// After the first few.
    names: BTreeSet<&'a str>,
    /// Fields that have each name once. They get into the tree only if more is put after them.
    newest_names: Vec<&'a str>,
}

/// Room for a message of usual size, so that it seldom moves while it is written.
const MESSAGE_BYTES: usize = 256;

impl Default for Object<'_> {
    fn default() -> Self {
        let mut json = Vec::with_capacity(MESSAGE_BYTES);
        json.push(b'{');
        Object { json, first_names: Vec::with_capacity(FEW), names: BTreeSet::new(), newest_names: Vec::new() }
    }
}

impl<'a> Object<'a> {
    /// A message with the member `type`.
    pub fn new(message_type: &str) -> Object<'a> {
        Object::default().text("type", message_type)
    }

    /// Adds a string.
    pub fn text(self, name: &'a str, text: &str) -> Object<'a> {
        self.value(name, text)
    }

    /// Adds a value as it was written.
    pub fn raw(mut self, name: &'a str, value: &RawValue) -> Object<'a> {
        if self.begin(name) {
            self.json.extend_from_slice(value.get().as_bytes());
        }
        self
    }

    /// Adds any value. Panics if it can't be JSON, as a map whose keys are lists.
    pub fn value(mut self, name: &'a str, value: &(impl Serialize + ?Sized)) -> Object<'a> {
        if self.begin(name) {
            write(&mut self.json, value);
        }
        self
    }

    /// Adds all fields but those named, in their order.
    pub fn rest(mut self, fields: &'a Fields, but: &[&str]) -> Object<'a> {
        self.settle();
        for (name, value) in fields.iter().filter(|(name, _)| !but.contains(name)) {
            if !self.has(name) {
                self.newest_names.push(name);
                self.write_name(name);
                self.json.extend_from_slice(value.get().as_bytes());
            }
        }
        self
    }

    /// The object as text.
    pub fn into_json(mut self) -> String {
        self.json.push(b'}');
        String::from_utf8(self.json).expect("JSON is written as UTF-8, and names and values are strings")
    }

    /// Writes the name, if it is a new one.
    fn begin(&mut self, name: &'a str) -> bool {
        self.settle();
        let is_new = !self.has(name);
        if is_new {
            if self.first_names.len() < FEW {
                self.first_names.push(name);
            } else {
                self.names.insert(name);
            }
            self.write_name(name);
        }
        is_new
    }

    /// Says whether a settled name is there.
    fn has(&self, name: &str) -> bool {
        self.first_names.contains(&name) || self.names.contains(name)
    }

    fn settle(&mut self) {
        self.names.extend(self.newest_names.drain(..));
    }

    fn write_name(&mut self, name: &str) {
        if self.json.len() > 1 {
            self.json.push(b',');
        }
        write(&mut self.json, name);
        self.json.push(b':');
    }
}

/// Says whether a `T` is a struct and the JSON is not an object: serde would take the items of a list for the fields in their order.
pub(crate) fn is_no_object_for_a_struct<'a, T: Deserialize<'a>>(json: &str) -> bool {
    /// Asks a type what it is read from, and gives it nothing.
    struct Probe<'p>(&'p mut bool);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(value::Error::custom("it is only asked"))
        }

        fn deserialize_struct<V: Visitor<'de>>(self, _: &str, _: &[&str], visitor: V) -> Result<V::Value, value::Error> {
            *self.0 = true;
            self.deserialize_any(visitor)
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
            seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut is_struct = false;
    if !json.trim_start().starts_with('{') {
        // The answer is in the flag.
        let _ = T::deserialize(Probe(&mut is_struct));
    }
    is_struct
}

/// Panics if a value can't be JSON: a defect of the policy, which its author finds in the fault report.
pub(crate) fn text_of(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| panic!("a value can't be JSON: {error}"))
}

/// Appends a value, under the same condition.
fn write(json: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(json, value).unwrap_or_else(|error| panic!("a value can't be JSON: {error}"));
}
