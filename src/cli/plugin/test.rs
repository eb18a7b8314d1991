//! `signalpost plugin test`: runs a plugin's fixtures against its component.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::Args;

use crate::cli::{ServerFlags, plugin_build, terminal};
use crate::config::Grant;
use crate::kit::{Workbench, fixture};

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The plugin's folder, whose component is built if it is missing or stale; or a component.
    #[arg(default_value = ".")]
    plugin: PathBuf,
    /// The folder of the fixtures; by default `fixtures` in the plugin's folder.
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Write the actual outcomes into the fixtures.
    #[arg(long)]
    update: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (component, sources) = component_and_sources(&arguments.plugin)?;
    let dir = arguments.fixtures.clone().unwrap_or_else(|| sources.join("fixtures"));
    let (config, _) = ServerFlags::of(None).load()?;
    let bench = Workbench::for_edits(config)?;
    let needed = bench.imported_grants(&component).map_err(|reason| anyhow!("{} {reason}", component.display()))?;
    let report = play(&bench, &component, &needed, &dir, arguments.update)?;
    print!("{}", report.text);
    if report.failed > 0 {
        bail!("{} (expected ≠ actual); `--update` records the actual outcome", differ(report.failed));
    }
    Ok(())
}

/// The result of a component's fixtures.
pub(in crate::cli) struct Report {
    pub(in crate::cli) text: String,
    pub(in crate::cli) failed: u64,
}

/// Runs the fixtures of a folder. `needed` are the grants of a fixture that doesn't list any.
pub(in crate::cli) fn play(bench: &Workbench, component: &Path, needed: &[Grant], dir: &Path, update: bool) -> anyhow::Result<Report> {
    let started = Instant::now();
    let fixtures = fixture::read_all(dir)?;
    if fixtures.is_empty() {
        bail!("there are no fixtures (*.json) in {}", dir.display());
    }
    let (mut text, mut steps, mut failed) = (String::new(), 0, 0);
    for fixture in &fixtures {
        let outcome = fixture.run(component, bench, needed)?;
        steps += outcome.steps as u64;
        if outcome.differences.is_empty() {
            continue;
        }
        let name = fixture.file.display();
        if update {
            std::fs::write(&fixture.file, outcome.recorded).with_context(|| format!("can't write {name}"))?;
            text.push_str(&format!("{name}: recorded\n"));
            continue;
        }
        failed += 1;
        text.push_str(&format!("{name}: {}\n", terminal::plain(&fixture.about)));
        outcome.differences.iter().for_each(|line| text.push_str(&format!("  {}\n", terminal::plain(line))));
    }
    if failed == 0 {
        let fixtures = terminal::count(fixtures.len() as u64, "fixture", "fixtures");
        let steps = terminal::count(steps, "step", "steps");
        text.push_str(&format!("{}: {fixtures}, {steps}, all as expected ({} ms)\n", component.display(), started.elapsed().as_millis()));
    }
    Ok(Report { text, failed })
}

pub(in crate::cli) fn differ(count: u64) -> String {
    terminal::count(count, "fixture differs", "fixtures differ")
}

/// Returns the component of a plugin, which is built if it is stale, and the folder of its sources.
pub(in crate::cli) fn component_and_sources(plugin: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    if !plugin.is_dir() {
        // The component is beside its sources' folder, or in it.
        let beside = plugin.with_extension("");
        let sources = if beside.is_dir() { beside } else { plugin.parent().unwrap_or(Path::new("")).to_owned() };
        return Ok((plugin.to_owned(), sources));
    }
    let component = plugin_build::output(plugin)?;
    let sources = plugin_build::sources_digest(plugin, plugin_build::find_wit(plugin).as_deref())?;
    let built = std::fs::read(&component).ok().and_then(|bytes| plugin_build::recorded_digest(&bytes));
    if built.as_deref() != Some(sources.as_str()) {
        super::build(plugin, None)?;
    }
    Ok((component, plugin.to_owned()))
}
