//! What is wrong with JSON, by the name of the field.

use std::fmt;

use serde::Deserialize;

use crate::json::is_no_object_for_a_struct;
use crate::{Id, Refusal};

/// Why JSON is not what it should be, and where: serde knows the line and the column, people know fields.
pub(crate) struct Misfit {
    /// As in `shares[1].amount`; empty for the whole.
    field: String,
    is_missing: bool,
    reason: String,
}

/// Reads a `T`.
pub(crate) fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Misfit> {
    if is_no_object_for_a_struct::<T>(json) {
        return Err(Misfit { field: String::new(), is_missing: false, reason: "should be a JSON object".to_owned() });
    }
    serde_json::from_str(json).map_err(|error| Misfit::find(json, &error))
}

impl Misfit {
    fn find(json: &str, error: &serde_json::Error) -> Misfit {
        let reason = error.to_string();
        let reason = match reason.rfind(" at line ") {
            Some(end) if error.line() > 0 => &reason[..end],
            _ => &reason,
        };
        let mut field = offset(json, error).map(|place| path(json, place)).unwrap_or_default();
        // serde's derive says "missing field `name`" of the object that lacks it.
        let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        if let Some(name) = missing {
            add_name(&mut field, name);
        }
        Misfit { is_missing: missing.is_some(), field, reason: reason.to_owned() }
    }

    /// `whole` is what the JSON is, as in "the event's data".
    pub(crate) fn into_refusal(self, whole: &str) -> Refusal {
        let code = match (self.is_missing, self.field.is_empty()) {
            (true, _) => "missing_field",
            (false, true) => "invalid_data",
            (false, false) => "invalid_field",
        };
        let detail = match self.field.as_str() {
            "" if self.reason.starts_with("should be") => format!("{whole} {}", self.reason),
            "" => format!("{whole}: {}", self.reason),
            _ => self.to_string(),
        };
        Refusal::new(code, detail)
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.is_missing, self.field.is_empty()) {
            (true, _) => write!(f, "`{}` is missing", self.field),
            (false, true) => f.write_str(&self.reason),
            // In the words of `Fields::id`, whatever stands there instead.
            (false, false) if self.reason.ends_with(Id::EXPECTED) => write!(f, "`{}` should be {}", self.field, Id::EXPECTED),
            (false, false) => write!(f, "`{}`: {}", self.field, self.reason),
        }
    }
}

/// Returns how many bytes serde had read.
fn offset(json: &str, error: &serde_json::Error) -> Option<usize> {
    let line_start: usize = json.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    Some(line_start + error.column())
}

/// A value around a place: an object with the name of the member that was begun last, in its quotes, or a list with the item's index.
enum Around<'a> {
    Object(Option<&'a str>),
    List(usize),
}

/// Returns the names of the values around a place, from the outside in. The JSON is valid, so that its brackets, commas and colons tell
/// where that is; a producer may send thousands of members, and nothing is kept of them.
fn path(json: &str, place: usize) -> String {
    let (bytes, mut at, mut around, mut text) = (json.as_bytes(), 0, Vec::new(), "");
    while at < place.min(bytes.len()) {
        let begin = at;
        at += 1;
        match bytes[begin] {
            b'"' => {
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
                text = json.get(begin..at).unwrap_or_default();
            }
            b'{' => around.push(Around::Object(None)),
            b'[' => around.push(Around::List(0)),
            b'}' | b']' => {
                around.pop();
            }
            byte => match (byte, around.last_mut()) {
                (b':', Some(object)) => *object = Around::Object(Some(text)),
                (b',', Some(Around::List(index))) => *index += 1,
                (b',', Some(object)) => *object = Around::Object(None),
                _ => {}
            },
        }
    }
    // A list or an object that is wrong as a whole may be refused behind its bracket, where nothing in it has been read.
    if json.get(..at).is_some_and(|read| read.ends_with(['{', '['])) {
        around.pop();
    }
    around.into_iter().fold(String::new(), |mut field, around| {
        match around {
            Around::Object(Some(name)) => add_name(&mut field, &serde_json::from_str::<String>(name).unwrap_or_default()),
            Around::Object(None) => {}
            Around::List(index) => field.push_str(&format!("[{index}]")),
        }
        field
    })
}

fn add_name(field: &mut String, name: &str) {
    if !field.is_empty() {
        field.push('.');
    }
    field.push_str(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Trip {
        rider: Id,
        seats: u8,
        #[serde(default)]
        stops: Vec<Stop>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Stop {
        lat: f64,
        name: Option<String>,
    }

    #[test]
    fn a_misfit_is_named_wherever_it_is() {
        for (json, code, detail) in [
            (r#"{"seats":1}"#, "missing_field", "`rider` is missing"),
            (r#"{"rider":1,"seats":1,"stops":[{"lat":1},{"name":"x"}]}"#, "missing_field", "`stops[1].lat` is missing"),
            (r#"{"rider":1,"seats":256}"#, "invalid_field", "`seats`: invalid value: integer `256`, expected u8"),
            (r#"{"rider":1,"seats":"two"}"#, "invalid_field", "`seats`: invalid type: string \"two\", expected u8"),
            (r#"{"rider":1,"seats":null}"#, "invalid_field", "`seats`: invalid type: null, expected u8"),
            (r#"{"rider":1,"seats":{"n":1}}"#, "invalid_field", "`seats`: invalid type: map, expected u8"),
            (r#"{"seats":1.5,"rider":1}"#, "invalid_field", "`seats`: invalid type: floating point `1.5`, expected u8"),
            ("{\n  \"seats\": true,\n  \"rider\": 1\n}", "invalid_field", "`seats`: invalid type: boolean `true`, expected u8"),
            (
                r#"{"seats":1,"rider":1.5}"#,
                "invalid_field",
                "`rider` should be an id: a whole number, or a string, of 1 to 128 bytes, without control characters and without blanks at its ends",
            ),
            (r#"{"rider":1,"seats":1,"stops":[{"lat":"x"}]}"#, "invalid_field", "`stops[0].lat`: invalid type: string \"x\", expected f64"),
            (
                r#"{"rider":1,"seats":1,"stops":[{"lat":1,"name":[]}]}"#,
                "invalid_field",
                "`stops[0].name`: invalid type: sequence, expected a string",
            ),
            (r#"{"rider":1,"seats":1,"stops":7}"#, "invalid_field", "`stops`: invalid type: integer `7`, expected a sequence"),
            (
                r#"{"rider":[1],"seats":1}"#,
                "invalid_field",
                "`rider` should be an id: a whole number, or a string, of 1 to 128 bytes, without control characters and without blanks at its ends",
            ),
            (r#"{"rider":1,"seats":[[1]]}"#, "invalid_field", "`seats`: invalid type: sequence, expected u8"),
            (
                r#"{"rider":1,"seats":1,"stops":["Hbf",{"lat":2}]}"#,
                "invalid_field",
                "`stops[0]`: invalid type: string \"Hbf\", expected struct Stop",
            ),
            (
                r#"{"a\"}":["{",[],{"\\":1}],"rider":1,"seats":1,"st\u006fps":[{"lat":1},{"lat":1,"l\u0061t":2}]}"#,
                "invalid_data",
                "the data: unknown field `a\"}`, expected one of `rider`, `seats`, `stops`",
            ),
            (
                r#"{"st\u006fps":[{"lat":1,"x\"]}":["{",[[]],{"\\":1}]},{"name":"x","lat":{}}],"rider":1,"seats":1}"#,
                "invalid_field",
                "`stops[1].lat`: invalid type: map, expected f64",
            ),
            (r#"{"rider":1,"seat":1}"#, "invalid_data", "the data: unknown field `seat`, expected one of `rider`, `seats`, `stops`"),
            (r#"[1, 2, []]"#, "invalid_data", "the data should be a JSON object"),
            ("7", "invalid_data", "the data should be a JSON object"),
        ] {
            let refusal = read::<Trip>(json).unwrap_err().into_refusal("the data");
            assert_eq!((refusal.code.as_str(), refusal.detail.as_str()), (code, detail), "{json}");
        }
    }
}
