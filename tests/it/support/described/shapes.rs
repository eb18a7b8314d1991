//! The shapes of a description, each compiled once. A server's own shapes are closed: a member that is not described is found, although clients are
//! told to ignore it.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use jsonschema::Validator;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

/// The shapes of one description.
pub struct Shapes {
    document: &'static Value,
    /// The shared shapes, closed, and open for those that add members to them.
    shared: Value,
    compiled: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Shapes {
    pub fn new(document: &'static Value) -> Shapes {
        let shapes = document["components"]["schemas"].as_object().unwrap();
        let all = |is_part| shapes.iter().map(|(name, shape)| (name.clone(), close(shape, is_part))).collect::<Map<String, Value>>();
        Shapes { document, shared: json!({ "schemas": all(false), "open": all(true) }), compiled: Mutex::default() }
    }

    /// Checks that a value has the shape that is at this place, and no members besides.
    pub fn check(&self, what: impl Display, pointer: &str, value: &Value) {
        let shape = self.compiled(pointer, false);
        if shape.is_valid(value) {
            return;
        }
        let errors: Vec<String> = shape.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        panic!("{what} is not as {pointer} of the description says: {}\n{value}", errors.join("; "));
    }

    /// Says whether a value has the shape that is at this place, perhaps with other members besides.
    pub fn is_valid(&self, pointer: &str, value: &Value) -> bool {
        self.compiled(pointer, true).is_valid(value)
    }

    fn compiled(&self, pointer: &str, is_open: bool) -> Arc<Validator> {
        let mut compiled = self.compiled.lock();
        let known = compiled.entry(format!("{is_open} {pointer}")).or_insert_with(|| {
            let shape = self.document.pointer(pointer).unwrap_or_else(|| panic!("the description has no {pointer}"));
            let mut whole = close(shape, is_open);
            let Value::Object(members) = &mut whole else { panic!("{pointer} is not a shape") };
            members.insert("components".to_owned(), self.shared.clone());
            let built = jsonschema::draft202012::options().should_validate_formats(true).build(&whole);
            Arc::new(built.unwrap_or_else(|error| panic!("{pointer}: {error}")))
        });
        known.clone()
    }
}

/// Returns a shape that has no other members than those that it names. `is_part`: whether another shape adds members to it.
fn close(shape: &Value, is_part: bool) -> Value {
    let Value::Object(members) = shape else { return shape.clone() };
    let mut closed = Map::new();
    for (name, member) in members {
        let member = match (name.as_str(), member) {
            ("$ref", Value::String(reference)) if is_part => reference.replace("#/components/schemas/", "#/components/open/").into(),
            ("allOf", Value::Array(parts)) => parts.iter().map(|part| close(part, true)).collect(),
            ("anyOf" | "oneOf", Value::Array(kinds)) => kinds.iter().map(|kind| close(kind, is_part)).collect(),
            ("properties", Value::Object(named)) => {
                named.iter().map(|(name, shape)| (name.clone(), close(shape, false))).collect::<Map<String, Value>>().into()
            }
            ("items" | "additionalProperties" | "propertyNames", shape) => close(shape, false),
            (_, other) => other.clone(),
        };
        closed.insert(name.clone(), member);
    }
    let has_members = ["properties", "allOf"].iter().any(|name| members.contains_key(*name));
    if has_members && !is_part && !members.contains_key("additionalProperties") {
        closed.insert("unevaluatedProperties".to_owned(), false.into());
    }
    closed.into()
}

/// Returns a name as a part of a JSON pointer (RFC 6901).
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
