//! Event data in, messages out. Values are kept as the producer wrote them, so that no number changes on its way.

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::signalpost::policy::types::{Body, Refusal};

/// The members of one JSON object, in its order. Of a name that occurs twice the last value counts.
pub struct Fields<'a> {
    /// What stands before a field's name in a refusal: empty, or `shares[0].`.
    path: String,
    members: IndexMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    pub fn parse(json: &'a str) -> Result<Fields<'a>, Refusal> {
        let members = serde_json::from_str(json).map_err(|_| not_an_object())?;
        Ok(Fields { path: String::new(), members })
    }

    /// A user or a pool: the number 1001 is the user "1001".
    pub fn id(&self, name: &str) -> Result<String, Refusal> {
        id_from(self.get(name, ID)?).ok_or_else(|| self.invalid(name, ID))
    }

    pub fn ids(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let expected = "a list of ids, each a whole number or a string that is not empty";
        let list: Vec<&RawValue> = self.parsed(name, expected)?;
        list.into_iter().map(|value| id_from(value).ok_or_else(|| self.invalid(name, expected))).collect()
    }

    pub fn number(&self, name: &str) -> Result<f64, Refusal> {
        self.parsed(name, "a number")
    }

    /// Degrees of latitude (`most` 90) or longitude (180).
    pub fn degrees(&self, name: &str, most: u8) -> Result<f64, Refusal> {
        let expected = format!("a number of degrees between -{most} and {most}");
        let degrees: f64 = self.parsed(name, &expected)?;
        if degrees.abs() <= f64::from(most) { Ok(degrees) } else { Err(self.invalid(name, &expected)) }
    }

    pub fn text(&self, name: &str) -> Result<String, Refusal> {
        self.parsed(name, "a string")
    }

    /// Money, as it was written: a number, or the string of those who do not trust a reader's numbers.
    pub fn amount(&self, name: &str) -> Result<&'a RawValue, Refusal> {
        let expected = "an amount, which is a number or a decimal string";
        let value = self.get(name, expected)?;
        let number = value.get().trim_matches('"');
        // JSON's rule for numbers, which knows no `NaN`, and no `+5` either.
        serde_json::from_str::<f64>(number).map(|_| value).map_err(|_| self.invalid(name, expected))
    }

    pub fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Refusal> {
        let list: Vec<IndexMap<String, &'a RawValue>> = self.parsed(name, "a list of objects")?;
        let fields = |(index, members)| Fields { path: format!("{}{name}[{index}].", self.path), members };
        Ok(list.into_iter().enumerate().map(fields).collect())
    }

    /// The value as it was written.
    pub fn get(&self, name: &str, expected: &str) -> Result<&'a RawValue, Refusal> {
        self.members.get(name).copied().ok_or_else(|| Refusal {
            code: "missing_field".to_string(),
            detail: format!("`{}{name}` is missing: it should be {expected}", self.path),
        })
    }

    fn parsed<T: serde::Deserialize<'a>>(&self, name: &str, expected: &str) -> Result<T, Refusal> {
        serde_json::from_str(self.get(name, expected)?.get()).map_err(|_| self.invalid(name, expected))
    }

    fn invalid(&self, name: &str, expected: &str) -> Refusal {
        Refusal { code: "invalid_field".to_string(), detail: format!("`{}{name}` should be {expected}", self.path) }
    }
}

pub fn not_an_object() -> Refusal {
    Refusal { code: "invalid_data".to_string(), detail: "the event's data should be a JSON object".to_string() }
}

/// What an id looks like, in the words of a refusal.
pub const ID: &str = "an id, which is a whole number or a string that is not empty";

fn id_from(value: &RawValue) -> Option<String> {
    let json = value.get();
    if json.starts_with('"') {
        return serde_json::from_str(json).ok().filter(|id: &String| !id.is_empty());
    }
    // JSON allows no leading zeros, so that a whole number has one spelling, apart from `-0`, which is nobody's id.
    let digits = json.strip_prefix('-').unwrap_or(json);
    let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit()) && json != "-0";
    is_whole.then(|| json.to_string())
}

/// A message under construction. What is put first stays: a field of the data never replaces or doubles it.
#[derive(Clone)]
pub struct Message<'a>(IndexMap<&'a str, Value<'a>>);

#[derive(Clone, Serialize)]
#[serde(untagged)]
enum Value<'a> {
    Text(&'a str),
    AsWritten(&'a RawValue),
}

impl<'a> Message<'a> {
    pub fn new(message_type: &'a str) -> Message<'a> {
        Message(IndexMap::from([("type", Value::Text(message_type))]))
    }

    pub fn text(mut self, name: &'a str, text: &'a str) -> Message<'a> {
        self.0.entry(name).or_insert(Value::Text(text));
        self
    }

    pub fn value(mut self, name: &'a str, value: &'a RawValue) -> Message<'a> {
        self.0.entry(name).or_insert(Value::AsWritten(value));
        self
    }

    /// All fields but those named, in their order.
    pub fn rest(mut self, fields: &'a Fields, but: &[&str]) -> Message<'a> {
        for (name, value) in fields.members.iter().filter(|(name, _)| !but.contains(&name.as_str())) {
            self.0.entry(name).or_insert(Value::AsWritten(value));
        }
        self
    }

    pub fn into_body(self) -> Body {
        // Cannot fail: names and texts are strings, values are JSON already, and a string takes any number of bytes.
        Body::Json(serde_json::to_string(&self.0).expect("a message is JSON"))
    }
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
        }
    }

    #[test]
    fn an_amount_is_a_number_in_either_spelling() {
        let data = Fields::parse(r#"{"a": 12.50, "b": "12.50", "c": -3, "d": null, "e": "free", "f": "NaN", "g": ""}"#).unwrap();
        let written: Vec<_> = ["a", "b", "c"].iter().map(|name| data.amount(name).unwrap().get()).collect();
        assert_eq!(written, ["12.50", "\"12.50\"", "-3"]);
        for name in ["d", "e", "f", "g"] {
            assert_eq!(data.amount(name).unwrap_err().code, "invalid_field", "{name}");
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
}
