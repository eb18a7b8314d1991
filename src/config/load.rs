//! Merges the layers (defaults, file, environment, flags) into one `Config`, and remembers where each value came from.
//! Every problem of every layer is found before it gives up, so that an operator mends a file once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Context;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::known::{KeyPath, Known, Place, dotted, flatten, insert, resolve, variable};
use super::{Config, DEFAULTS, Limits, validate};

/// One setting as it is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its key, as in `sockets.per_user_max`.
    pub path: String,
    /// The environment variable that sets it.
    pub variable: String,
    pub value: Value,
    pub source: Source,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File,
    /// With the variable's name.
    Environment(String),
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Source::Default => "default",
            Source::File => "file",
            Source::Environment(_) => "environment",
            Source::Flag => "flag",
        })
    }
}

/// All that is wrong with the settings, a sentence each.
#[derive(Debug)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// Flags stand over the environment, the environment over the file, the file over the defaults. Tables merge by key,
    /// anything else is replaced. Fails with [`Problems`], or with the reason why the file can't be read.
    pub fn load(
        file: Option<&Path>,
        overrides: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<(Config, Vec<Setting>)> {
        let text = file.map(|file| std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))).transpose()?;
        let name = file.map(|file| file.display().to_string());
        Config::merge(name.as_deref().zip(text.as_deref()), overrides, environment)
    }

    /// [`Config::load`] of a file that has been read: its name and text.
    pub fn merge(
        file: Option<(&str, &str)>,
        overrides: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<(Config, Vec<Setting>)> {
        let known = Known::new()?;
        let mut merge = Merge { merged: known.defaults.clone(), known, sources: BTreeMap::new(), problems: Vec::new() };
        if let Some((name, text)) = file {
            merge.file(name, text);
        }
        merge.environment(environment);
        merge.layer(&mut Vec::new(), Value::Table(overrides), &Source::Flag, &|path| format!("\"{}\" on the command line", dotted(path)));

        let config = resolve(&merge.merged).context("the settings don't fit together")?;
        merge.problems.extend(validate::problems(&config, &merge.merged));
        if merge.problems.is_empty() { Ok((config, merge.settings())) } else { Err(Problems(merge.problems).into()) }
    }

    /// The bounds on a policy: the global ones with its own over them.
    pub fn limits_for(&self, policy: &str) -> Limits {
        let own = self.policies.get(policy).and_then(|policy| policy.limits.as_ref());
        own.unwrap_or(&self.limits).clone()
    }
}

struct Merge {
    known: Known,
    /// Holds only values that were checked one by one, so that it always deserializes.
    merged: Table,
    sources: BTreeMap<KeyPath, Source>,
    problems: Vec<String>,
}

impl Merge {
    fn file(&mut self, name: &str, text: &str) {
        let (document, errors) = DeTable::parse_recoverable(text);
        let line = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        let errors = errors.into_iter().chain(text.parse::<Table>().err()).collect::<Vec<_>>();
        for error in &errors {
            let place = error.span().map(|span| format!(":{}", line(span.start))).unwrap_or_default();
            let problem = format!("{name}{place} isn't TOML: {}", error.message().replace('\n', ", "));
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
        // A file with a slip in it has still been read as far as it goes, but what it means is then a guess.
        let (true, Ok(table)) = (errors.is_empty(), text.parse::<Table>()) else { return };
        let mut offsets = BTreeMap::new();
        locate(document.get_ref(), &mut Vec::new(), &mut offsets);
        let place = |path: &KeyPath| {
            let at = offsets.get(path).map(|offset| format!(":{}", line(*offset))).unwrap_or_default();
            format!("\"{}\" in {name}{at}", dotted(path))
        };
        self.layer(&mut Vec::new(), Value::Table(table), &Source::File, &place);
    }

    fn environment(&mut self, environment: impl Iterator<Item = (String, String)>) {
        let mut variables: Vec<_> =
            environment.filter(|(name, value)| name.starts_with("SIGNALPOST_") && !is_foreign(name, value)).collect();
        // So that the problems come in the same order each time.
        variables.sort();
        let policies = self.merged.get("policies").and_then(Value::as_table).cloned().unwrap_or_default();
        let mut settings = self.known.settings(policies.keys());
        settings.extend(self.leaves().into_iter().filter(|path| matches!(self.known.get(path), Some(Place::Free))));
        settings.sort();
        settings.dedup();
        for (name, text) in variables {
            match self.known.by_variable(&name, &settings) {
                Err(problem) => self.problems.push(problem),
                Ok(mut path) => {
                    let value = self.value_of(&path, &text);
                    self.layer(&mut path, value, &Source::Environment(name.clone()), &|_| name.clone());
                }
            }
        }
    }

    /// What a variable's text means depends on what it sets: `5` may be a number or a string.
    fn value_of(&self, path: &[String], text: &str) -> Value {
        let literal = || Value::String(text.to_owned());
        let sample = match self.known.get(path) {
            Some(Place::Value(value)) => Some(value),
            _ => value_at(&self.merged, path),
        };
        match sample {
            Some(Value::String(_)) => literal(),
            Some(Value::Array(_)) if !text.trim_start().starts_with('[') => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Value::Array(words.map(Value::from).collect())
            }
            _ => text.trim().parse().unwrap_or_else(|_| literal()),
        }
    }

    /// Takes over what is right in a layer and notes what is wrong. `place` names a path for a person.
    fn layer(&mut self, path: &mut KeyPath, value: Value, source: &Source, place: &dyn Fn(&KeyPath) -> String) {
        let Some(known) = self.known.get(path) else {
            let hint = self.known.nearest(path).map(|name| format!("; did you mean \"{name}\"?"));
            return self.problems.push(format!("unknown setting {}{}", place(path), hint.unwrap_or_default()));
        };
        match (known, value) {
            (Place::Table | Place::Free, Value::Table(table)) => {
                // An empty [policies.NAME] is a policy too.
                if !value_at(&self.merged, path).is_some_and(Value::is_table) {
                    insert(&mut self.merged, path, Value::Table(Table::new()));
                }
                for (key, value) in table {
                    path.push(key);
                    self.layer(path, value, source, place);
                    path.pop();
                }
            }
            (Place::Table, value) => self.problems.push(format!("{} is {value}; expected a table", place(path))),
            (_, value) => match self.known.fits(path, &value) {
                Err(expected) => self.problems.push(format!("{} is {value}; {expected}", place(path))),
                Ok(()) => {
                    insert(&mut self.merged, path, value);
                    self.sources.insert(path.clone(), source.clone());
                }
            },
        }
    }

    /// In the order of `default.toml`; the policies, of which it knows only some, last and by name.
    fn settings(&self) -> Vec<Setting> {
        let mut offsets = BTreeMap::new();
        locate(DeTable::parse_recoverable(DEFAULTS).0.get_ref(), &mut Vec::new(), &mut offsets);
        offsets.retain(|path, _| path.first().is_some_and(|first| first != "policies"));
        let mut leaves = self.leaves();
        leaves.sort_by_key(|path| (offsets.get(path).copied().unwrap_or(usize::MAX), path.clone()));
        let setting = |path: KeyPath| {
            let value = value_at(&self.merged, &path)?.clone();
            let source = self.sources.get(&path).cloned().unwrap_or(Source::Default);
            Some(Setting { path: dotted(&path), variable: variable(&path), value, source })
        };
        leaves.into_iter().filter_map(setting).collect()
    }

    fn leaves(&self) -> Vec<KeyPath> {
        let mut paths = Vec::new();
        flatten(&self.merged, &mut Vec::new(), &mut paths);
        paths.retain(|path| value_at(&self.merged, path).is_some_and(|value| !value.is_table()));
        paths
    }
}

fn value_at<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (last, tables) = path.split_last()?;
    tables.iter().try_fold(table, |table, key| table.get(key)?.as_table())?.get(last)
}

fn locate(table: &DeTable<'_>, prefix: &mut KeyPath, offsets: &mut BTreeMap<KeyPath, usize>) {
    for (key, value) in table {
        prefix.push(key.get_ref().to_string());
        offsets.insert(prefix.clone(), key.span().start);
        if let DeValue::Table(below) = value.get_ref() {
            locate(below, prefix, offsets);
        }
        prefix.pop();
    }
}

/// Whether a variable is no setting. `SIGNALPOST_CONFIG` names the file. The others are what Kubernetes and Docker links put
/// into the environment beside a service that is called `signalpost`; to refuse them would stop the server there.
fn is_foreign(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix("SIGNALPOST_") else { return true };
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_of_port = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    matches!(rest, "CONFIG" | "KEY" | "TOKEN")
        || rest == "SERVICE_HOST"
        || rest.starts_with("SERVICE_PORT")
        || (rest == "PORT" && is_url)
        || rest.strip_prefix("PORT_").is_some_and(is_of_port)
}

#[cfg(test)]
mod tests;
