//! `signalpost check`: checks the configuration and the plugins, and shows every setting.

use std::io::{self, Write};

use clap::Args;
use serde_json::json;

use super::ServerFlags;
use crate::config::Setting;
use crate::server;
use crate::store;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    server: ServerFlags,
    /// Print the settings as JSON.
    #[arg(long)]
    json: bool,
    /// Show the values of the plugins' own settings, which may be secrets, and the digests of API keys.
    #[arg(long)]
    show_settings: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (config, mut settings) = arguments.server.load()?;
    if !arguments.show_settings {
        settings = settings.into_iter().map(Setting::hidden).collect();
    }
    let text = if arguments.json { as_json(&settings) } else { as_table(&settings) };
    io::stdout().write_all(text.as_bytes())?;
    // On stderr, so that stdout is only the settings.
    let place = store::place(&config.store, |name| std::env::var_os(name));
    eprintln!("store: {}", place.promise(config.store.durability));
    for line in super::client_runtime()?.block_on(server::check(config))? {
        eprintln!("{line}");
    }
    Ok(())
}

fn as_table(settings: &[Setting]) -> String {
    let mut rows = vec![["SETTING".to_owned(), "VALUE".to_owned(), "FROM".to_owned(), "ENVIRONMENT VARIABLE".to_owned()]];
    rows.extend(settings.iter().map(|setting| {
        let Setting { path, value, source, variable } = setting;
        [path.clone(), value.to_string(), source.to_string(), variable.clone()]
    }));
    let [path, value, from] = [0, 1, 2].map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max());
    let [path, value, from] = [path, value, from].map(Option::unwrap_or_default);
    let line = |[a, b, c, d]: &[String; 4]| format!("{a:path$}  {b:value$}  {c:from$}  {d}\n");
    rows.iter().map(line).collect()
}

fn as_json(settings: &[Setting]) -> String {
    let row = |setting: &Setting| {
        let Setting { path, value, source, variable } = setting;
        json!({"path": path, "value": value, "source": source.to_string(), "variable": variable})
    };
    format!("{:#}\n", serde_json::Value::from_iter(settings.iter().map(row)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_setting_is_shown_with_its_value_source_and_variable() {
        let environment = [("SIGNALPOST_LOG_LEVEL".to_owned(), "warn".to_owned())];
        let (_, settings) = Config::load(None, toml::Table::new(), environment.into_iter()).unwrap();
        let table = as_table(&settings);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let level = table.lines().find(|line| line.starts_with("log.level")).unwrap();
        assert_eq!(words(level), ["log.level", "\"warn\"", "environment", "SIGNALPOST_LOG_LEVEL"]);
        let starts: Vec<_> = table.lines().skip(1).map(|line| line.find("SIGNALPOST_")).collect();
        assert!(starts.iter().all(|start| *start == starts[0]), "the columns are aligned");
        let json: Vec<serde_json::Value> = serde_json::from_str(&as_json(&settings)).unwrap();
        assert_eq!(json.len(), settings.len());
        assert_eq!(json[0]["path"], "listen");
    }
}
