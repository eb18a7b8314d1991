//! Settings, and query strings of clients.

use std::sync::LazyLock;

use toml::Table;

use crate::config::{Config, Problems, Source};
use crate::session::handshake::attributes;

static DEFAULTS: LazyLock<Config> = LazyLock::new(|| loaded("", &[]).unwrap_or_else(|problems| panic!("{problems:?}")).0);

/// Reads a query string: the attributes in it are known, each is there once and within its limit, and all are the same when written again.
pub fn query(input: &[u8]) {
    let Ok(query) = std::str::from_utf8(input) else { return };
    let sockets = &DEFAULTS.sockets;
    match attributes(query, sockets) {
        Err(problem) => assert_eq!((problem.status.as_u16(), problem.code), (400, "attribute_too_long")),
        Ok(found) => {
            for (index, (name, value)) in found.iter().enumerate() {
                assert!(sockets.attributes.contains(name) && value.len() <= sockets.attribute_bytes_max.get(), "{found:?}");
                assert!(!found.iter().skip(index + 1).any(|(other, _)| other == name), "{found:?}");
            }
            let escaped = |value| percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            let again: Vec<String> = found.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
            assert_eq!(attributes(&again.join("&"), sockets).ok(), Some(found));
        }
    }
}

/// Reads a configuration file and, after a line of `---`, lines of `VARIABLE=value`. If it is valid, the output of `signalpost check` makes
/// the same configuration; if not, each problem is a sentence.
pub fn settings(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (file, environment) = text.split_once("\n---\n").unwrap_or((text, ""));
    let environment: Vec<(&str, &str)> = environment.lines().filter_map(|line| line.split_once('=')).collect();
    match loaded(file, &environment) {
        Err(Problems(problems)) => assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.is_empty())),
        Ok((config, shown)) => {
            let (again, _) = loaded(&shown, &[]).unwrap_or_else(|problems| panic!("{shown}\n{problems}"));
            // Where a setting came from may differ, and what it is may not.
            let [config, again] = [config, again].map(|config| format!("{:?}", Config { settings: Default::default(), ..config }));
            assert_eq!(config, again, "{shown}");
        }
    }
}

/// Returns a configuration, and the settings that differ from the defaults, as TOML.
fn loaded(file: &str, environment: &[(&str, &str)]) -> Result<(Config, String), Problems> {
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    match Config::merge(Some(("signalpost.toml", file)), Table::new(), environment) {
        Ok((config, settings)) => {
            let set = settings.iter().filter(|setting| setting.source != Source::Default);
            Ok((config, set.map(|setting| format!("{} = {}\n", setting.path, setting.value)).collect()))
        }
        Err(error) => Err(error.downcast().unwrap_or_else(|error| panic!("no sentence for the operator: {error:#}"))),
    }
}
