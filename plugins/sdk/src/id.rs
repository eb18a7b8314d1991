//! Ids, which some producers write as numbers and others as strings.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// An id in JSON: a whole number or a string that is not empty, where the number 1001 is the string "1001". It is written as it
/// was read. As a field of a `T` (`Event::data`) it has at most 64 bits; `Fields::id` and `Id::read` take numbers of any length.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    text: String,
    is_number: bool,
}

impl Id {
    /// What an id looks like, in the words of a refusal.
    pub const EXPECTED: &str = "an id, which is a whole number or a string that is not empty";

    /// `None`: this is no id.
    pub fn read(value: &RawValue) -> Option<Id> {
        let json = value.get();
        if json.starts_with('"') {
            let text = serde_json::from_str(json).ok().filter(|text: &String| !text.is_empty())?;
            return Some(Id { text, is_number: false });
        }
        // JSON allows no leading zeros, so that a whole number has one spelling, apart from `-0`, which is nobody's id.
        let digits = json.strip_prefix('-').unwrap_or(json);
        let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit()) && json != "-0";
        is_whole.then(|| Id { text: json.to_owned(), is_number: true })
    }

    /// The name of the user, or whatever has this id.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.text
    }
}

impl From<&Id> for String {
    fn from(id: &Id) -> String {
        id.text.clone()
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        struct NumberOrString;

        impl Visitor<'_> for NumberOrString {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(Id::EXPECTED)
            }

            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id { text: number.to_string(), is_number: true })
            }

            fn visit_i64<E>(self, number: i64) -> Result<Id, E> {
                Ok(Id { text: number.to_string(), is_number: true })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
                if text.is_empty() {
                    return Err(E::invalid_value(Unexpected::Str(text), &self));
                }
                Ok(Id { text: text.to_owned(), is_number: false })
            }
        }

        deserializer.deserialize_any(NumberOrString)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.is_number {
            return serializer.serialize_str(&self.text);
        }
        match serde_json::from_str::<&RawValue>(&self.text) {
            Ok(number) => number.serialize(serializer),
            Err(error) => Err(serde::ser::Error::custom(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_it_was_read() {
        let written = r#"[1001,"1001","al\"ice",-7,18446744073709551615]"#;
        let ids: Vec<Id> = serde_json::from_str(written).unwrap();
        assert_eq!(serde_json::to_string(&ids).unwrap(), written);
    }
}
