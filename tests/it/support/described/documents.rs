//! The descriptions, read from docs/ once, and what is looked up in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use http::Method;
use serde_json::{Map, Value};

/// The file of the shapes that docs/asyncapi.yaml refers to.
const SHARED: &str = "openapi.yaml";

/// A method at a path.
#[derive(Debug)]
pub struct Operation {
    pub method: Method,
    pub path: String,
    /// Where it stands in the document.
    pub pointer: String,
}

impl Operation {
    /// Says whether a path is of this form.
    pub fn is_at(&self, path: &str) -> bool {
        let (mut known, mut given) = (self.path.split('/'), path.split('/'));
        loop {
            match (known.next(), given.next()) {
                (None, None) => return true,
                (Some(known), Some(given)) if known == given || (known.starts_with('{') && !given.is_empty()) => {}
                _ => return false,
            }
        }
    }

    pub fn description(&self) -> &'static Value {
        openapi().pointer(&self.pointer).unwrap()
    }
}

pub fn openapi() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| read(SHARED));
    &DOCUMENT
}

/// docs/asyncapi.yaml with the shapes of docs/openapi.yaml that it refers to.
pub fn asyncapi() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| whole(read("asyncapi.yaml")));
    &DOCUMENT
}

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("docs/{name}: {error}"))
}

/// Copies the shapes of the other document, and those that they refer to.
fn whole(mut document: Value) -> Value {
    let mut wanted = Vec::new();
    rename(&mut document, &mut wanted);
    while let Some(name) = wanted.pop() {
        let mut shape = openapi()["components"]["schemas"].get(&name).unwrap_or_else(|| panic!("{SHARED} has no {name}")).clone();
        let shapes = document["components"]["schemas"].as_object_mut().unwrap();
        if let Some(known) = shapes.get(&name) {
            assert_eq!(*known, shape, "both descriptions have {name}");
            continue;
        }
        shapes.insert(name, shape.clone());
        // Within their document they have no file.
        prefix(&mut shape);
        rename(&mut shape, &mut wanted);
    }
    document
}

/// Has all references to the other document be within this one, and collects their names.
fn rename(value: &mut Value, wanted: &mut Vec<String>) {
    each_reference(value, &mut |reference| {
        if let Some(inside) = reference.strip_prefix(SHARED) {
            wanted.push(inside.strip_prefix("#/components/schemas/").expect("only schemas are shared").to_owned());
            *reference = inside.to_owned();
        }
    });
}

fn prefix(value: &mut Value) {
    each_reference(value, &mut |reference| *reference = format!("{SHARED}{reference}"));
}

fn each_reference(value: &mut Value, take: &mut impl FnMut(&mut String)) {
    match value {
        Value::Object(members) => members.iter_mut().for_each(|(name, member)| match member {
            Value::String(reference) if name == "$ref" => take(reference),
            _ => each_reference(member, take),
        }),
        Value::Array(items) => items.iter_mut().for_each(|item| each_reference(item, take)),
        _ => {}
    }
}

/// Returns where a value of a document really is, if it is there: it may be a reference to another place.
pub fn at(document: &Value, pointer: &str) -> Option<String> {
    match document.pointer(pointer)?.get("$ref") {
        Some(reference) => at(document, reference.as_str().unwrap().strip_prefix('#').unwrap()),
        None => Some(pointer.to_owned()),
    }
}

/// All operations, in the order of the document.
pub fn operations() -> &'static [Operation] {
    static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
        let paths = openapi()["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &Value)| {
            let names: Vec<String> = item.as_object().unwrap().keys().filter(|name| *name != "parameters").cloned().collect();
            names
                .into_iter()
                .map(|name| Operation {
                    method: name.to_uppercase().parse().unwrap(),
                    path: path.clone(),
                    pointer: format!("/paths/{}/{name}", super::shapes::escaped(path)),
                })
                .collect::<Vec<_>>()
        };
        paths.iter().flat_map(of_path).collect()
    });
    &OPERATIONS
}

/// The names of an operation's parameters in this place.
pub fn parameters(operation: &Operation, place: &str) -> Vec<&'static str> {
    let document = openapi();
    let of_path = document["paths"][&operation.path].get("parameters");
    let all = [of_path, operation.description().get("parameters")].into_iter().flatten().flat_map(|list| list.as_array().unwrap());
    let whole = all.map(|one| one["$ref"].as_str().map_or(one, |reference| document.pointer(&reference[1..]).unwrap()));
    whole.filter(|one| one["in"] == place).map(|one| one["name"].as_str().unwrap()).collect()
}

/// The methods of a path, in the order of the alphabet.
pub fn methods(path: &str) -> Vec<String> {
    let mut methods: Vec<String> =
        operations().iter().filter(|operation| operation.path == path).map(|operation| operation.method.to_string()).collect();
    methods.sort();
    methods
}

/// Where the messages are that the server sends, by channel and type; of streams by channel and the name of the event.
pub fn sent() -> &'static BTreeMap<(&'static str, &'static str), String> {
    static SENT: LazyLock<BTreeMap<(&'static str, &'static str), String>> = LazyLock::new(|| {
        let mut found = BTreeMap::new();
        for (channel, pointer, message) in messages() {
            let kind = match message.get("headers") {
                Some(headers) => headers.pointer("/properties/event/const"),
                None => kind(message).filter(|_| is_sent(channel, &pointer)),
            };
            let kind = kind.and_then(Value::as_str).or(message.get("headers").map(|_| ""));
            if let Some(kind) = kind {
                assert!(found.insert((channel, kind), pointer).is_none(), "{channel} has two messages {kind:?}");
            }
        }
        found
    });
    &SENT
}

/// Where the frames are that clients send, by type.
pub fn received() -> &'static BTreeMap<&'static str, String> {
    static RECEIVED: LazyLock<BTreeMap<&'static str, String>> = LazyLock::new(|| {
        let of_client = messages().into_iter().filter(|(channel, pointer, _)| *channel == "socket" && !is_sent(channel, pointer));
        of_client.map(|(_, pointer, message)| (kind(message).unwrap().as_str().unwrap(), pointer)).collect()
    });
    &RECEIVED
}

/// Each message of each channel, and where it is.
fn messages() -> Vec<(&'static str, String, &'static Value)> {
    let mut found = Vec::new();
    for (name, channel) in asyncapi()["channels"].as_object().unwrap() {
        for key in channel["messages"].as_object().into_iter().flat_map(Map::keys) {
            let pointer = at(asyncapi(), &format!("/channels/{name}/messages/{key}")).unwrap();
            let message = asyncapi().pointer(&pointer).unwrap();
            found.push((name.as_str(), pointer, message));
        }
    }
    found
}

/// The `type` of an envelope.
fn kind(message: &'static Value) -> Option<&'static Value> {
    let payload = message["payload"]
        .get("$ref")
        .map_or(&message["payload"], |reference| asyncapi().pointer(reference.as_str().unwrap().strip_prefix('#').unwrap()).unwrap());
    payload.pointer("/properties/type/const")
}

/// Says whether the server sends a message, unasked or as a reply.
fn is_sent(channel: &str, message: &str) -> bool {
    asyncapi()["operations"].as_object().unwrap().values().any(|operation| {
        let ours = if operation["action"] == "send" { operation } else { &operation["reply"] };
        ours["channel"]["$ref"] == format!("#/channels/{channel}")
            && ours["messages"].as_array().into_iter().flatten().any(|one| {
                let pointer = one["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
                at(asyncapi(), pointer).as_deref() == Some(message)
            })
    })
}
