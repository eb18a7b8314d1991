//! The names of all settings. They come from the defaults' text and from the types, so that there is no further list to maintain.

use anyhow::Context;
use toml::{Table, Value};

use super::{Candidate, Config, DEFAULTS, MILLISECONDS_MAX, Policy, Sink, words};

/// A setting's path in the tree of tables, from the root.
pub(super) type KeyPath = Vec<String>;

const PREFIX: &str = "SIGNALPOST_";
/// Below this likeness, a suggestion would be a guess.
const LIKENESS_MIN: f64 = 0.6;

/// What a path refers to.
pub(super) enum Place<'a> {
    Table,
    /// A setting, with its default or an example of its type.
    Value(&'a Value),
    /// Something inside a policy's own settings, which only its plugin knows.
    Free,
}

pub(super) struct Known {
    pub defaults: Table,
    kinds: [Kind; 2],
}

/// A kind of thing that the configuration names: each is a table below that of the kind.
struct Kind {
    table: &'static str,
    /// Every field of one, with an example of its type.
    fields: Table,
}

/// The tables of named things, each with that of the limits which they share.
const NAMED: [(&str, &str); 2] = [("policies", "limits"), ("sinks", "sink_limits")];

/// Returns whether a path leads to a named thing, or to something in it.
pub(super) fn is_named(path: &[String]) -> bool {
    path.len() > 1 && NAMED.iter().any(|(table, _)| path.first().is_some_and(|first| first == table))
}

impl Known {
    pub fn new() -> anyhow::Result<Known> {
        let defaults: Table = DEFAULTS.parse().context("the built-in defaults don't parse")?;
        let config = resolve(&defaults).context("the built-in defaults don't fit the settings")?;
        // The compiler requires every field here, so a new one can't be forgotten.
        let policy = Policy {
            is_named: false,
            file: Some("NAME.wasm".into()),
            enabled: Some(true),
            order: Some(0),
            grants: Vec::new(),
            events: Some(Vec::new()),
            on_fault: Default::default(),
            isolation: Default::default(),
            readers: Default::default(),
            settings: Table::new(),
            candidate: Some(Candidate::default()),
            limits: Some(config.limits),
        };
        let sink = Sink { limits: Some(config.sink_limits), ..Sink::default() };
        let kinds = [Kind { table: "policies", fields: Table::try_from(policy)? }, Kind { table: "sinks", fields: Table::try_from(sink)? }];
        Ok(Known { defaults, kinds })
    }

    pub fn get(&self, path: &[String]) -> Option<Place<'_>> {
        match path {
            [first, _, field, ..] if first == "policies" && field == "settings" => Some(Place::Free),
            [first, _, rest @ ..] if is_named(path) => walk(&self.kinds.iter().find(|kind| kind.table == first)?.fields, rest),
            _ => walk(&self.defaults, path),
        }
    }

    /// Checks a value's type and range by deserializing the defaults with this one value in them. The error says what was
    /// expected.
    pub fn fits(&self, path: &[String], value: &Value) -> Result<(), String> {
        let with = |value: &Value| {
            let mut trial = self.defaults.clone();
            insert(&mut trial, path, value.clone());
            trial
        };
        let Err(error) = resolve(&with(value)) else { return Ok(()) };
        let accepts = |value: &Value| resolve(&with(value)).is_ok();
        let takes_list = accepts(&Value::Array(Vec::new()));
        let is_plain_list = value.as_array().is_some_and(|values| !values.iter().any(|value| value.is_table() || value.is_array()));
        let expected = match words::missed(completed(&with(value))) {
            Some([one, two]) if !takes_list => Some(format!("\"{one}\" or \"{two}\"")),
            Some(words) if !takes_list => Some(format!("one of {}", quoted(words))),
            Some(words) if is_plain_list => Some(format!("a list of {}", quoted(words))),
            // A list with other lists or tables in it, whose mistake only the error names.
            _ if takes_list && value.is_array() && !accepts(&Value::Array(vec!["any text".into()])) => None,
            // Only the error says that a duration is too long.
            _ if is_long(value) && accepts(&1.into()) && !accepts(&i64::MAX.into()) => None,
            _ => examples().into_iter().find(|(example, _)| accepts(example)).map(|(_, expected)| expected.to_owned()),
        };
        Err(expected.map_or_else(|| error.message().to_owned(), |expected| format!("expected {expected}")))
    }

    /// Returns the paths of all settings, including those of the policies and sinks that a table names.
    pub fn settings(&self, merged: &Table) -> Vec<KeyPath> {
        let below = |table: &str| merged.get(table).and_then(Value::as_table).into_iter().flat_map(Table::keys);
        let named: Vec<[String; 2]> =
            NAMED.iter().flat_map(|(table, _)| below(table).map(|name| [(*table).to_owned(), name.clone()])).collect();
        self.paths(&named).into_iter().filter(|path| !matches!(self.get(path), None | Some(Place::Table))).collect()
    }

    /// Returns the known name most like a mistyped one. A right name in the wrong table, or its beginning, counts as nearly right.
    pub fn nearest(&self, path: &[String]) -> Option<String> {
        let named = path.first_chunk::<2>().filter(|_| is_named(path)).cloned();
        let likeness = |known: &KeyPath| {
            let whole = strsim::normalized_damerau_levenshtein(&dotted(known), &dotted(path));
            let last = match (known.last(), path.last()) {
                (Some(known), Some(name)) if name.len() > 2 && known.starts_with(name.as_str()) => 1.0,
                (Some(known), Some(name)) => strsim::normalized_damerau_levenshtein(known, name),
                _ => 0.0,
            };
            whole.max(last * 0.9)
        };
        best(self.paths(named.as_slice()), likeness).map(|path| dotted(&path))
    }

    /// Returns the path of the setting that a variable names. If it is a setting of a policy or sink that no other source names, that name
    /// is the one in the variable, in lower case.
    pub fn by_variable(&self, name: &str, settings: &[KeyPath]) -> Result<KeyPath, String> {
        let mut named = settings.iter().filter(|path| variable(path) == name);
        match (named.next(), named.next()) {
            (Some(path), None) => return Ok(path.clone()),
            (Some(one), Some(two)) => {
                return Err(format!("{name} can mean \"{}\" or \"{}\"; set it in the file", dotted(one), dotted(two)));
            }
            _ => {}
        }
        if let Some(path) = self.kinds.iter().find_map(|kind| kind.of_new(name)) {
            return Ok(path);
        }
        let likeness = |path: &KeyPath| strsim::normalized_damerau_levenshtein(&variable(path), name);
        let hint = best(settings.to_vec(), likeness).map(|path| format!("; did you mean {}?", variable(&path)));
        Err(format!("unknown environment variable {name}{}", hint.unwrap_or_default()))
    }

    fn paths(&self, named: &[[String; 2]]) -> Vec<KeyPath> {
        let mut all = Vec::new();
        flatten(&self.defaults, &mut Vec::new(), &mut all);
        all.retain(|path| !is_named(path) && self.kinds.iter().all(|kind| path.first().is_none_or(|first| first != kind.table)));
        for [table, name] in named {
            for kind in self.kinds.iter().filter(|kind| kind.table == table) {
                flatten(&kind.fields, &mut vec![table.clone(), name.clone()], &mut all);
            }
        }
        all
    }
}

impl Kind {
    /// Returns the path of a setting that a variable names, of one which nothing else names.
    fn of_new(&self, variable_name: &str) -> Option<KeyPath> {
        let table = format!("{}_", self.table.to_uppercase());
        let rest = variable_name.strip_prefix(PREFIX)?.strip_prefix(&table)?;
        let mut fields = Vec::new();
        flatten(&self.fields, &mut Vec::new(), &mut fields);
        let split = |field: KeyPath| {
            let name = rest.strip_suffix(variable(&field).strip_prefix(PREFIX)?)?.strip_suffix('_')?;
            (!name.is_empty()).then(|| [vec![self.table.to_owned(), name.to_lowercase()], field].concat())
        };
        // Of several readings, takes the longest field.
        fields.into_iter().filter_map(split).max_by_key(Vec::len)
    }
}

/// Returns whether a value is a number that no duration may have.
fn is_long(value: &Value) -> bool {
    value.as_integer().and_then(|number| u64::try_from(number).ok()).is_some_and(|number| number > MILLISECONDS_MAX)
}

/// Returns values of the types that settings have, each with what to write for it. A setting's type is that of the first that it accepts.
fn examples() -> [(Value, &'static str); 10] {
    [
        (true.into(), "true or false"),
        (0.5.into(), "a number from 0 to 1"),
        ((-1).into(), "a whole number"),
        (0.into(), "a whole number, 0 or more"),
        (1.into(), "a whole number, 1 or more"),
        ("any text".into(), "a string in quotes"),
        ("127.0.0.1:8080".into(), "an address and a port, as in \"127.0.0.1:8080\""),
        (Value::Array(vec!["any text".into()]), "a list of strings in quotes"),
        (Value::Array(Vec::new()), "a list"),
        (Value::Table(Table::new()), "a table"),
    ]
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

/// Deserializes a complete table; see [`completed`].
pub(super) fn resolve(table: &Table) -> Result<Config, toml::de::Error> {
    completed(table).try_into()
}

/// Returns a table in which the limits of each policy and sink are those of all with its own over them.
fn completed(table: &Table) -> Table {
    let mut table = table.clone();
    for (named, limits) in NAMED {
        let global = table.get(limits).cloned();
        let Some(Value::Table(all)) = table.get_mut(named) else { continue };
        for one in all.iter_mut().filter_map(|(_, one)| one.as_table_mut()) {
            match (one.get_mut("limits"), &global) {
                (Some(Value::Table(own)), Some(Value::Table(global))) => {
                    *own = global.clone().into_iter().chain(std::mem::take(own)).collect();
                }
                (None, Some(global)) => drop(one.insert("limits".to_owned(), global.clone())),
                _ => {}
            }
        }
    }
    table
}

/// Puts a value at a path, and makes the tables on the way.
pub(super) fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => drop(table.insert(key.clone(), value)),
        [key, rest @ ..] => {
            let below = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !below.is_table() {
                *below = Value::Table(Table::new());
            }
            if let Value::Table(below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// Appends all paths in a table; a table comes before its content.
pub(super) fn flatten(table: &Table, prefix: &mut KeyPath, into: &mut Vec<KeyPath>) {
    for (key, value) in table {
        prefix.push(key.clone());
        into.push(prefix.clone());
        if let Value::Table(below) = value {
            flatten(below, prefix, into);
        }
        prefix.pop();
    }
}

/// Returns the environment variable of a setting.
pub(super) fn variable(path: &[String]) -> String {
    let name = path.join("_").to_uppercase();
    PREFIX.to_owned() + &name.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

/// Writes a path as TOML does.
pub(super) fn dotted(path: &[String]) -> String {
    let bare = |key: &String| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let keys: Vec<String> = path.iter().map(|key| if bare(key) { key.clone() } else { Value::String(key.clone()).to_string() }).collect();
    keys.join(".")
}

fn walk<'a>(table: &'a Table, path: &[String]) -> Option<Place<'a>> {
    let Some((key, rest)) = path.split_first() else { return Some(Place::Table) };
    match table.get(key)? {
        Value::Table(below) => walk(below, rest),
        value => rest.is_empty().then_some(Place::Value(value)),
    }
}

fn best(candidates: Vec<KeyPath>, likeness: impl Fn(&KeyPath) -> f64) -> Option<KeyPath> {
    let scored = candidates.into_iter().map(|path| (likeness(&path), path));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(score, _)| *score >= LIKENESS_MIN).map(|(_, path)| path)
}
