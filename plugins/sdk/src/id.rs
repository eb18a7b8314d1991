//! Ids, which some producers write as numbers and others as strings.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::Refusal;
use crate::bounds::{ID_BYTES_MAX, NAME_BYTES_MAX};

/// An id in JSON that the server takes for a user: a whole number or a string, where the number 1001 is the string "1001".
///
/// It is written as it was read, digit by digit. As a field of a `T` (`Event::data`) a number has at most 64 bits; `Fields::id` and
/// `Id::read` take longer ones, which are written as strings, since most readers of JSON would round them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    text: String,
    is_number: bool,
}

impl Id {
    /// What an id looks like, in the words of a refusal.
    pub const EXPECTED: &str =
        "an id: a whole number, or a string, of 1 to 128 bytes, without control characters and without blanks at its ends";

    /// Reads an id; `None` for any other value.
    pub fn read(value: &RawValue) -> Option<Id> {
        let json = value.get();
        if json.starts_with('"') {
            return serde_json::from_str(json).ok().and_then(Id::of_text);
        }
        // JSON allows no leading zeros, so that a whole number has one spelling, apart from `-0`, which is nobody's id.
        let digits = json.strip_prefix('-').unwrap_or(json);
        let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit()) && json != "-0" && json.len() <= ID_BYTES_MAX;
        is_whole.then(|| Id { text: json.to_owned(), is_number: true })
    }

    /// The name of the user, or whatever has this id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the name of a group, or a collapse key, that is made of this id: `pool_id.prefixed("pool:", "pool_id")`. A name that
    /// is too long for the server is a refusal, which names the `field` that the id was read from.
    pub fn prefixed(&self, prefix: &str, field: &str) -> Result<String, Refusal> {
        let bytes_max = NAME_BYTES_MAX.saturating_sub(prefix.len());
        if self.text.len() > bytes_max {
            let detail = format!("`{field}` has {} bytes: it should have at most {bytes_max}", self.text.len());
            return Err(Refusal::new("invalid_field", detail));
        }
        Ok(format!("{prefix}{}", self.text))
    }

    /// The server's own rule for a user's id.
    fn of_text(text: String) -> Option<Id> {
        let is_id = !text.is_empty() && text.len() <= ID_BYTES_MAX && text.trim() == text && !text.contains(char::is_control);
        is_id.then_some(Id { text, is_number: false })
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

            // Whole numbers of more than 64 bits arrive here too, rounded: they are refused, since they would name another user.
            fn visit_f64<E: Error>(self, _: f64) -> Result<Id, E> {
                Err(E::invalid_type(Unexpected::Other("number with a fraction or of more than 64 bits"), &self))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
                Id::of_text(text.to_owned()).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(NumberOrString)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let (true, Ok(number)) = (self.is_number, self.text.parse::<i64>()) {
            return serializer.serialize_i64(number);
        }
        match (self.is_number, self.text.parse::<u64>()) {
            (true, Ok(number)) => serializer.serialize_u64(number),
            _ => serializer.serialize_str(&self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fields, json};

    const LONGEST: &str =
        "é234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567";

    fn both_ways(value: &str) -> (Option<Id>, Option<Id>) {
        let raw: &RawValue = serde_json::from_str(value).unwrap();
        (Id::read(raw), serde_json::from_str(value).ok())
    }

    #[test]
    fn an_id_is_written_as_it_was_read() {
        let written = r#"[1001,"1001","al\"ice",-7,9007199254740993,18446744073709551615,-9223372036854775808]"#;
        let ids: Vec<Id> = serde_json::from_str(written).unwrap();
        assert_eq!(serde_json::to_string(&ids).unwrap(), written);
        assert_eq!(json!(ids).to_string(), written);
    }

    #[test]
    fn a_number_of_more_than_64_bits_keeps_its_digits() {
        let data = Fields::parse(r#"{"id":18446744073709551616}"#).unwrap();
        assert_eq!(json!(data.id("id").unwrap()).to_string(), "\"18446744073709551616\"");
        assert_eq!(both_ways("18446744073709551616").1, None, "as a field of a `T` it would be rounded");
    }

    #[test]
    fn an_id_is_what_the_server_takes_for_a_user() {
        assert_eq!(LONGEST.len(), 128);
        for text in ["1001", " ", "a b", "é", "\u{2003}x", "x\u{feff}", "007", "+7", LONGEST] {
            let is_id = text.trim() == text;
            let (read, typed) = both_ways(&json!(text).to_string());
            assert_eq!((read.is_some(), typed.is_some()), (is_id, is_id), "{text:?}");
        }
    }

    #[test]
    fn what_the_server_would_not_take_for_a_user_is_not_an_id() {
        let too_long = format!("\"{LONGEST}x\"");
        let too_many_digits = "1".repeat(129);
        for value in [
            "null",
            "true",
            "[]",
            "[1]",
            "{}",
            "1.5",
            "1.0",
            "1e3",
            "-0",
            r#""""#,
            r#"" ""#,
            r#""1001 ""#,
            r#"" 1001""#,
            r#""1001\t""#,
            r#""1001\n""#,
            r#""a\u0000b""#,
            r#""a\u007fb""#,
            r#""a\u0085b""#,
            r#""1001\u00a0""#,
            r#""\u2003x""#,
            r#""\ud800""#,
            &too_long,
            &too_many_digits,
        ] {
            assert_eq!(both_ways(value), (None, None), "{value}");
        }
    }

    #[test]
    fn a_name_that_is_made_of_an_id_is_bounded() {
        let id = |bytes: usize| Id::of_text("x".repeat(bytes)).unwrap();
        assert_eq!(id(123).prefixed("pool:", "pool_id").unwrap().len(), 128);
        let refusal = id(124).prefixed("pool:", "pool_id").unwrap_err();
        assert_eq!(refusal, Refusal::new("invalid_field", "`pool_id` has 124 bytes: it should have at most 123"));
    }
}
