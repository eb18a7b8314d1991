//! The words that a setting takes, for the report of a wrong value. The error of toml's deserializer has them only within a sentence.

use std::fmt;

use serde::Deserialize as _;
use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::Config;

/// Returns the words of which a table's wrong value had to be one. `None` if it had to be something else, or if no value is wrong.
pub(super) fn missed(table: Table) -> Option<&'static [&'static str]> {
    match Config::deserialize(Reader(&Value::Table(table))) {
        Err(Wrong::Word(words)) => Some(words),
        Err(Wrong::Other) | Ok(_) => None,
    }
}

#[derive(Debug)]
enum Wrong {
    /// The value is not one of these words.
    Word(&'static [&'static str]),
    Other,
}

impl serde::de::Error for Wrong {
    fn custom<T: fmt::Display>(_: T) -> Wrong {
        Wrong::Other
    }

    fn unknown_variant(_: &str, words: &'static [&'static str]) -> Wrong {
        Wrong::Word(words)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting has a wrong value")
    }
}

impl std::error::Error for Wrong {}

/// Deserializes settings with [`Wrong`] as its error.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a Value);

impl<'de> IntoDeserializer<'de, Wrong> for Reader<'de> {
    type Deserializer = Reader<'de>;

    fn into_deserializer(self) -> Reader<'de> {
        self
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(flag) => visitor.visit_bool(*flag),
            // No setting is a time, except in what only a plugin reads.
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::Array(values) => visitor.visit_seq(SeqDeserializer::new(values.iter().map(Reader))),
            Value::Table(table) => visitor.visit_map(MapDeserializer::new(table.iter().map(|(key, value)| (key.as_str(), Reader(value))))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, words: &'static [&'static str], visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::String(word) => visitor.visit_enum(StrDeserializer::new(word)),
            _ => Err(Wrong::Word(words)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        struct identifier ignored_any
    }
}
