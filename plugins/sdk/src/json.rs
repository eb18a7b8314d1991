//! JSON whose values stay as they were written, so that no number changes on its way.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{Id, Refusal};

/// The members of one JSON object, in its order. Of a name that occurs twice, the last value counts.
///
/// What is wrong with a field is a refusal that names it: `missing_field` or `invalid_field`.
pub struct Fields<'a> {
    /// What stands before a field's name in a refusal: empty, or `shares[0].`.
    path: String,
    members: Members<'a>,
}

impl<'a> Fields<'a> {
    /// Refuses what is no object as `invalid_data`.
    pub fn parse(json: &'a str) -> Result<Fields<'a>, Refusal> {
        match serde_json::from_str(json) {
            Ok(members) => Ok(Fields { path: String::new(), members }),
            Err(_) => Err(Refusal::new("invalid_data", "the event's data should be a JSON object")),
        }
    }

    /// The value as it was written; `None` where there is none.
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
    pub fn id(&self, name: &str) -> Result<String, Refusal> {
        Id::read(self.require(name, Id::EXPECTED)?).map(String::from).ok_or_else(|| self.invalid(name, Id::EXPECTED))
    }

    /// A list of ids.
    pub fn ids(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let expected = "a list of ids, each a whole number or a string that is not empty";
        let list: Vec<&RawValue> = self.parsed(name, expected)?;
        let id = |value| Id::read(value).map(String::from).ok_or_else(|| self.invalid(name, expected));
        list.into_iter().map(id).collect()
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<f64, Refusal> {
        self.parsed(name, "a number")
    }

    /// A string.
    pub fn text(&self, name: &str) -> Result<String, Refusal> {
        self.parsed(name, "a string")
    }

    /// A list of objects.
    pub fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Refusal> {
        let list: Vec<Members<'a>> = self.parsed(name, "a list of objects")?;
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

/// A list, for its order, and each name's place in it: a client that sends ten thousand names costs no more than their sorting.
#[derive(Default)]
pub(crate) struct Members<'a> {
    pub(crate) list: Vec<(Cow<'a, str>, &'a RawValue)>,
    places: BTreeMap<Cow<'a, str>, usize>,
}

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.places.get(name).and_then(|&place| self.list.get(place)).map(|(_, value)| *value)
    }

    fn insert(&mut self, name: Cow<'a, str>, value: &'a RawValue) {
        match self.places.get(&name).and_then(|&place| self.list.get_mut(place)) {
            Some(member) => member.1 = value,
            None => {
                self.places.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'de>, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                while let Some(Name(name)) = map.next_key()? {
                    members.insert(name, map.next_value()?);
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A name is copied only where escapes make it another text.
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
    names: BTreeSet<&'a str>,
}

impl Default for Object<'_> {
    fn default() -> Self {
        Object { json: b"{".to_vec(), names: BTreeSet::new() }
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
        for (name, value) in fields.iter().filter(|(name, _)| !but.contains(name)) {
            self = self.raw(name, value);
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
        let is_new = self.names.insert(name);
        if is_new {
            if self.names.len() > 1 {
                self.json.push(b',');
            }
            write(&mut self.json, name);
            self.json.push(b':');
        }
        is_new
    }
}

/// Panics where a value can't be JSON: a defect of the policy, which its author finds in the fault report.
pub(crate) fn text_of(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| panic!("a value can't be JSON: {error}"))
}

/// Appends a value, under the same condition.
fn write(json: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(json, value).unwrap_or_else(|error| panic!("a value can't be JSON: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_and_its_string_are_one_id() {
        let data = Fields::parse(r#"{"a": 1001, "b": "1001", "c": "alice", "d": -7, "e": 18446744073709551616}"#).unwrap();
        let ids: Vec<String> = ["a", "b", "c", "d", "e"].iter().map(|name| data.id(name).unwrap()).collect();
        assert_eq!(ids, ["1001", "1001", "alice", "-7", "18446744073709551616"]);
    }

    #[test]
    fn anything_else_is_no_id_and_the_refusal_names_the_field() {
        for value in ["1.5", "1.0", "1e3", "-0", "null", "true", "\"\"", "[1]", "{}"] {
            let json = format!(r#"{{"driver_id": {value}}}"#);
            let refusal = Fields::parse(&json).unwrap().id("driver_id").unwrap_err();
            assert_eq!(refusal.code, "invalid_field", "{value}");
            assert!(refusal.detail.contains("`driver_id`"), "{}", refusal.detail);
            assert!(serde_json::from_str::<Id>(value).is_err());
        }
    }

    #[test]
    fn a_field_in_a_list_is_named_with_its_place() {
        let data = Fields::parse(r#"{"shares": [{"rider_id": 1}, {}]}"#).unwrap();
        let shares = data.objects("shares").unwrap();
        let refusal = shares[1].id("rider_id").unwrap_err();
        assert_eq!(refusal.code, "missing_field");
        assert!(refusal.detail.contains("`shares[1].rider_id`"), "{}", refusal.detail);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in ["[]", "1", "null", "\"text\""] {
            assert_eq!(Fields::parse(json).err().unwrap().code, "invalid_data");
        }
    }

    #[test]
    fn of_a_name_that_occurs_twice_the_last_value_counts_in_the_first_place() {
        let data = Fields::parse(r#"{"a":1,"b":2,"\u0061":3}"#).unwrap();
        let members: Vec<_> = data.iter().map(|(name, value)| (name, value.get())).collect();
        assert_eq!(members, [("a", "3"), ("b", "2")]);
    }

    #[test]
    fn what_is_put_into_an_object_first_stays() {
        let data = Fields::parse(r#"{"type":"x","a\"":1.50,"b":2}"#).unwrap();
        let object = Object::new("y").value("b", &[1]).rest(&data, &[]).text("b", "z");
        assert_eq!(object.into_json(), r#"{"type":"y","b":[1],"a\"":1.50}"#);
        assert_eq!(Object::default().into_json(), "{}");
    }
}
