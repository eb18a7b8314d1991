//! Merges the layers (defaults, file, environment, flags) into one `Config`, and remembers the source of each value. All problems of all
//! layers are reported together, so that an operator can correct them together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::known::{KeyPath, Known, Place, dotted, flatten, insert, is_named, resolve, variable};
use super::{Auth, Config, DEFAULTS, Limits, Log, Policy, SinkLimits, opentelemetry, validate};

/// A setting with its value in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its key, as in `sockets.per_user_max`.
    pub path: String,
    /// The environment variable that sets it.
    pub variable: String,
    pub value: Value,
    pub source: Source,
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File,
    /// With the variable's name.
    Environment(String),
    Flag,
}

/// Stands for a value that may be a secret.
const HIDDEN: &str = "hidden";

impl Setting {
    /// Hides what may be a secret: a plugin's own setting, and the digests of API keys.
    pub fn hidden(mut self) -> Setting {
        if is_of_plugin(&self.path) {
            self.value = HIDDEN.into();
        } else if self.path == "auth.keys" {
            let keys = self.value.as_array_mut().into_iter().flatten().filter_map(Value::as_table_mut);
            keys.filter_map(|key| key.get_mut("sha256")).for_each(|digest| *digest = HIDDEN.into());
        }
        self
    }
}

/// Returns whether a setting is a plugin's own, as in `policies.chat.settings.text_chars_max`.
fn is_of_plugin(path: &str) -> bool {
    let mut parts = path.split('.');
    parts.next() == Some("policies") && parts.nth(1) == Some("settings")
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

/// Where the settings come from: a file that may change, and what a process is started with.
#[derive(Clone, Debug)]
pub struct Layers {
    pub file: Option<PathBuf>,
    pub flags: Table,
    pub environment: Vec<(String, String)>,
}

impl Layers {
    /// Loads the settings, as they are now.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn load(&self) -> anyhow::Result<(Config, Vec<Setting>)> {
        Config::load(self.file.as_deref(), self.flags.clone(), self.environment.iter().cloned())
    }
}

/// Everything that is wrong with the settings, a sentence each.
#[derive(Debug)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

impl Setting {
    /// Returns whether a change of it takes effect without a restart: those that [`Config::with_live`] takes.
    pub fn is_live(&self) -> bool {
        let tables = ["auth.", "limits.", "policies.", "sink_limits.", "sinks."];
        tables.iter().any(|table| self.path.starts_with(table)) || ["log.level", "log.lines_per_second_max"].contains(&&*self.path)
    }
}

impl Config {
    /// Loads the settings. Flags override the environment, the environment overrides the file, the file overrides the defaults. Tables are
    /// merged by key; any other value is replaced.
    ///
    /// # Errors
    /// [`Problems`], or the reason why the file can't be read.
    pub fn load(
        file: Option<&Path>,
        overrides: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<(Config, Vec<Setting>)> {
        let text = file.map(|file| std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))).transpose()?;
        let name = file.map(|file| file.display().to_string());
        Config::merge(name.as_deref().zip(text.as_deref()), overrides, environment)
    }

    /// Does the same as [`Config::load`] for a file that has been read: its name and text.
    ///
    /// # Errors
    /// [`Problems`].
    pub fn merge(
        file: Option<(&str, &str)>,
        overrides: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<(Config, Vec<Setting>)> {
        let known = Known::new()?;
        let mut merge =
            Merge { merged: known.defaults.clone(), known, sources: BTreeMap::new(), problems: Vec::new(), named: BTreeSet::new() };
        if let Some((name, text)) = file {
            merge.file(name, text);
        }
        merge.environment(environment);
        merge.layer(&mut Vec::new(), Value::Table(overrides), &Source::Flag, &|path| format!("\"{}\" on the command line", dotted(path)));

        let mut config = resolve(&merge.merged).context("the settings don't fit together")?;
        for name in &merge.named {
            if let Some(policy) = config.policies.get_mut(name) {
                policy.is_named = true;
            }
        }
        merge.problems.extend(validate::problems(&config));
        if !merge.problems.is_empty() {
            return Err(Problems(merge.problems).into());
        }
        let settings = merge.settings();
        config.settings = settings.as_slice().into();
        Ok((config, settings))
    }

    /// Returns this configuration with the settings of another one that take effect without a restart.
    ///
    /// # Errors
    /// [`Problems`]: those settings contradict others that stay as they are.
    pub fn with_live(&self, next: &Config) -> Result<Config, Problems> {
        let mut config = self.clone();
        config.auth = Auth { pages_of_localhost: self.auth.pages_of_localhost, ..next.auth.clone() };
        config.log = Log { format: self.log.format, ..next.log.clone() };
        config.limits = next.limits.clone();
        config.policies = next.policies.clone();
        config.sink_limits = next.sink_limits.clone();
        config.sinks = next.sinks.clone();
        let kept = self.settings.iter().filter(|setting| !setting.is_live());
        config.settings = next.settings.iter().filter(|setting| setting.is_live()).chain(kept).cloned().collect();
        let problems = validate::problems(&config);
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    /// Returns what a policy is loaded with, whether or not the configuration names it. Equal values make equal policies of equal code.
    pub fn policy(&self, name: &str) -> Policy {
        let policy = self.policies.get(name).cloned().unwrap_or_default();
        Policy { is_named: false, limits: Some(self.limits_for(name)), candidate: None, ..policy }
    }

    /// Returns the limits of a policy: the global ones with its own over them.
    pub fn limits_for(&self, policy: &str) -> Limits {
        let own = self.policies.get(policy).and_then(|policy| policy.limits.as_ref());
        own.unwrap_or(&self.limits).clone()
    }

    /// Returns the limits of a sink: those of all sinks with its own over them.
    pub fn sink_limits_for(&self, sink: &str) -> SinkLimits {
        let own = self.sinks.get(sink).and_then(|sink| sink.limits.as_ref());
        own.unwrap_or(&self.sink_limits).clone()
    }
}

struct Merge {
    known: Known,
    /// Contains only values that were checked one by one, so it always deserializes.
    merged: Table,
    sources: BTreeMap<KeyPath, Source>,
    problems: Vec<String>,
    /// The policies that a layer above the defaults names.
    named: BTreeSet<String>,
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
        // The parser recovers from errors, but what follows one may be misunderstood, so nothing of such a file is used.
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
        let (mut variables, others): (Vec<_>, Vec<_>) = environment.partition(|(name, value)| !is_foreign(name, value));
        for (setting, value, name) in opentelemetry::given(&others) {
            let mut path = vec!["traces".to_owned(), setting.to_owned()];
            if self.known.fits(&path, &value).is_ok() {
                self.layer(&mut path, value, &Source::Environment(name.to_owned()), &|_| name.to_owned());
            }
        }
        // In a stable order, for the problems.
        variables.sort();
        let mut settings = self.known.settings(&self.merged);
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

    /// Parses a variable's text by the type of its setting: `5` may be a number or a string.
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

    /// Merges the valid values of a layer, and notes the problems. `place` describes a path to a person.
    fn layer(&mut self, path: &mut KeyPath, value: Value, source: &Source, place: &dyn Fn(&KeyPath) -> String) {
        let Some(known) = self.known.get(path) else {
            let hint = self.known.nearest(path).map(|name| format!("; did you mean \"{name}\"?"));
            return self.problems.push(format!("unknown setting {}{}", place(path), hint.unwrap_or_default()));
        };
        if let [policies, name, ..] = path.as_slice()
            && policies == "policies"
        {
            self.named.insert(name.clone());
        }
        match (known, value) {
            (Place::Table | Place::Free, Value::Table(table)) => {
                // Even an empty [policies.NAME] makes a policy, and an empty [sinks.NAME] a sink, which is refused.
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

    /// Returns all settings in the order of `default.toml`, then the policies and the sinks by name.
    fn settings(&self) -> Vec<Setting> {
        let mut offsets = BTreeMap::new();
        locate(DeTable::parse_recoverable(DEFAULTS).0.get_ref(), &mut Vec::new(), &mut offsets);
        offsets.retain(|path, _| !is_named(path));
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

/// Returns whether a variable is not a setting. `SIGNALPOST_CONFIG`, `_KEY` and `_TOKEN` are read by commands, and `_URL` by applications
/// that may share the environment. Kubernetes and Docker links set the others for a service with the name `signalpost`; refusing them would
/// keep the server from starting there.
fn is_foreign(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix("SIGNALPOST_") else { return true };
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_of_port = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    matches!(rest, "CONFIG" | "KEY" | "TOKEN" | "URL")
        || rest == "SERVICE_HOST"
        || rest.starts_with("SERVICE_PORT")
        || (rest == "PORT" && is_url)
        || rest.strip_prefix("PORT_").is_some_and(is_of_port)
}

#[cfg(test)]
mod tests;
