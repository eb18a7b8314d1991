//! `signalpost plugin`: the commands for plugin authors.

mod baseline;
mod bench;
mod check;
mod inspect;
mod new;
pub(super) mod test;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::plugin_build;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a plugin: a project that builds and passes its own fixtures.
    New(new::Arguments),
    /// Build a plugin into a component.
    Build(Build),
    /// Show a component's imports and exports, what it reports about itself, and the grants that it needs.
    Inspect(inspect::Arguments),
    /// Check whether a server would load a component with the grants and settings of its configuration.
    Check(check::Arguments),
    /// Run a plugin's fixtures against its component.
    Test(test::Arguments),
    /// Time the calls of a plugin's fixtures.
    Bench(bench::Arguments),
}

#[derive(Args, Debug)]
pub struct Build {
    /// The plugin's folder: with a Cargo.toml, a package.json or a pyproject.toml.
    dir: PathBuf,
    /// The component's file; by default beside DIR, under the plugin's name.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Build nothing; fail if the component was not built from these sources.
    #[arg(long)]
    check: bool,
}

pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::New(arguments) => new::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Test(arguments) => test::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Build(build) if build.check => up_to_date(build),
        Command::Build(arguments) => build(&arguments.dir, arguments.out.as_deref()),
    }
}

fn build(dir: &Path, out: Option<&Path>) -> anyhow::Result<()> {
    let built = plugin_build::build(dir, out)?;
    let plugin_build::Built { output, bytes, imports, exports, took, .. } = &built;
    let imports = if imports.is_empty() { "nothing".to_owned() } else { imports.join(", ") };
    let (output, exports, seconds) = (output.display(), exports.join(", "), took.as_secs_f64());
    println!("{output}  {bytes} bytes  exports {exports}  imports {imports}  {seconds:.1} s");
    Ok(())
}

fn up_to_date(build: &Build) -> anyhow::Result<()> {
    let component = build.out.clone().map_or_else(|| plugin_build::output(&build.dir), Ok)?;
    let bytes = std::fs::read(&component).with_context(|| format!("can't read {}", component.display()))?;
    let wit = plugin_build::find_wit(&build.dir);
    let sources = plugin_build::sources_digest(&build.dir, wit.as_deref())?;
    if plugin_build::recorded_digest(&bytes).as_deref() != Some(sources.as_str()) {
        bail!("{} is stale: build it again with `signalpost plugin build {}`", component.display(), build.dir.display());
    }
    println!("{} is up to date", component.display());
    Ok(())
}
