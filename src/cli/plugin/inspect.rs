//! `signalpost plugin inspect`: shows a component's properties, and the grants that it needs.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::{ServerFlags, plugin_build, terminal};
use crate::kit::Workbench;
use crate::policy::contract::{CONTRACT, CONTRACT_VERSION, grant_names};
use crate::policy::inspect::Inspection;
use crate::types::clock::Clock;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The component.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (config, _) = ServerFlags::of(None).load()?;
    let bench = Workbench::new(config, Clock::Machine)?;
    let name = bench.name_of(&arguments.file);
    let inspection = bench.inspect(&name, &arguments.file).map_err(|reason| anyhow!("{} {reason}", arguments.file.display()))?;
    let view = view(&inspection);
    let text = if arguments.json { format!("{view:#}\n") } else { table(&view) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn view(inspection: &Inspection) -> Value {
    let Inspection { bytes, digest, says, grants, imports, exports, compile } = inspection;
    let roles: Vec<String> = says.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
    let vary = match &says.vary {
        Ok(vary) => json!(vary),
        Err(error) => json!({ "unknown": error.to_string() }),
    };
    json!({
        "name": says.name,
        "version": says.version,
        "roles": roles,
        "contract": format!("{CONTRACT}@{CONTRACT_VERSION}"),
        "events": says.events,
        "vary": vary,
        "grants": grant_names(grants.iter()),
        "imports": imports,
        "exports": exports,
        "bytes": bytes.len(),
        "digest": digest,
        "compile_seconds": (compile.as_secs_f64() * 1000.0).round() / 1000.0,
        "sources": plugin_build::recorded_digest(bytes),
    })
}

/// Returns one line for each member, and one for each item of a list of interfaces.
fn table(view: &Value) -> String {
    let mut text = String::new();
    for (name, value) in view.as_object().into_iter().flatten() {
        let value = match (name.as_str(), value) {
            ("sources", Value::Null) => "unknown: not made by `signalpost plugin build`".to_owned(),
            ("vary", Value::Object(unknown)) => {
                format!("unknown until it is configured: {}", unknown.get("unknown").map(terminal::word).unwrap_or_default())
            }
            (_, Value::Array(items)) if items.is_empty() => "none".to_owned(),
            (_, Value::Array(items)) => {
                let gap = if matches!(name.as_str(), "imports" | "exports") { format!("\n{:17}", "") } else { ", ".to_owned() };
                items.iter().map(terminal::word).collect::<Vec<_>>().join(&gap)
            }
            _ => terminal::word(value),
        };
        text.push_str(&format!("{:17}{value}\n", name.replace('_', " ")));
    }
    text
}
