//! `signalpost plugin check`: checks whether a server with this configuration would load the plugin.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use crate::cli::ServerFlags;
use crate::kit::Workbench;
use crate::policy::plugin::TOO_LARGE_TO_KEEP;
use crate::types::clock::Clock;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The component.
    file: PathBuf,
    /// The server's configuration; SIGNALPOST_CONFIG by default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (config, _) = ServerFlags::of(arguments.config.clone()).load()?;
    let bench = Workbench::new(config, Clock::Machine)?;
    let name = bench.name_of(&arguments.file);
    let policy = bench.load(&name, &arguments.file).map_err(|reason| {
        let inspected = bench.inspect(&name, &arguments.file).ok();
        let missing = inspected.and_then(|inspection| bench.missing_grants(&name, &inspection.grants));
        let advice = missing.map(|table| format!("\n\nThe configuration has to grant what it uses:\n\n{table}")).unwrap_or_default();
        anyhow!("{} {reason}{advice}", arguments.file.display())
    })?;
    let roles: Vec<String> = policy.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
    let events = if policy.events.is_empty() { "none".to_owned() } else { policy.events.join(", ") };
    println!("{} would be loaded as {name} {} ({}); events: {events}", arguments.file.display(), policy.version, roles.join(", "));
    if policy.keeps_no_instance() {
        println!("but {TOO_LARGE_TO_KEEP}");
    }
    Ok(())
}
