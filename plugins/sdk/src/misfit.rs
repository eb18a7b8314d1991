//! What is wrong with JSON, by the name of the field.

use std::fmt;

use serde_json::value::RawValue;

use crate::Refusal;
use crate::json::Members;

/// Why JSON is not what it should be, and where: serde knows the line and the column, people know fields.
pub(crate) struct Misfit {
    /// As in `shares[1].amount`; empty for the whole.
    field: String,
    is_missing: bool,
    reason: String,
}

impl Misfit {
    pub(crate) fn find(json: &str, error: &serde_json::Error) -> Misfit {
        let reason = error.to_string();
        let reason = match reason.rfind(" at line ") {
            Some(end) if error.line() > 0 => &reason[..end],
            _ => &reason,
        };
        let mut field = String::new();
        if let Some(place) = offset(json, error) {
            descend(json, place, &mut field);
        }
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
        let detail = if self.field.is_empty() { format!("{whole}: {}", self.reason) } else { self.to_string() };
        Refusal::new(code, detail)
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.is_missing, self.field.is_empty()) {
            (true, _) => write!(f, "`{}` is missing", self.field),
            (false, true) => f.write_str(&self.reason),
            (false, false) => write!(f, "`{}`: {}", self.field, self.reason),
        }
    }
}

/// How many bytes serde had read.
fn offset(json: &str, error: &serde_json::Error) -> Option<usize> {
    let line_start: usize = json.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    Some(line_start + error.column())
}

/// Adds the names of the values around this place, from the outside in.
fn descend(json: &str, place: usize, field: &mut String) {
    let holds = |value: &RawValue| {
        let start = value.get().as_ptr() as usize - json.as_ptr() as usize;
        // What is wrong has been read, but for a list or an object that serde refused by its bracket.
        let unread = place == start && value.get().starts_with(['[', '{']);
        (unread || (start + 1..=start + value.get().len()).contains(&place)).then_some(start)
    };
    if let Ok(members) = serde_json::from_str::<Members>(json) {
        for (name, value) in &members.list {
            if let Some(start) = holds(value) {
                add_name(field, name);
                return descend(value.get(), place - start, field);
            }
        }
    } else if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(json) {
        for (index, value) in items.iter().enumerate() {
            if let Some(start) = holds(value) {
                field.push_str(&format!("[{index}]"));
                return descend(value.get(), place - start, field);
            }
        }
    }
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
    use crate::Id;

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
                "`rider`: invalid type: floating point `1.5`, expected an id, which is a whole number or a string that is not empty",
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
                "`rider`: invalid type: sequence, expected an id, which is a whole number or a string that is not empty",
            ),
            (r#"{"rider":1,"seats":[[1]]}"#, "invalid_field", "`seats`: invalid type: sequence, expected u8"),
            (
                r#"{"rider":1,"seats":1,"stops":["Hbf",{"lat":2}]}"#,
                "invalid_field",
                "`stops[0]`: invalid type: string \"Hbf\", expected struct Stop",
            ),
            (r#"{"rider":1,"seat":1}"#, "invalid_data", "the data: unknown field `seat`, expected one of `rider`, `seats`, `stops`"),
            ("7", "invalid_data", "the data: invalid type: integer `7`, expected struct Trip"),
        ] {
            let error = serde_json::from_str::<Trip>(json).unwrap_err();
            let refusal = Misfit::find(json, &error).into_refusal("the data");
            assert_eq!((refusal.code.as_str(), refusal.detail.as_str()), (code, detail), "{json}");
        }
    }
}
