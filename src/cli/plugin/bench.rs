//! `signalpost plugin bench`: what a plugin costs: to compile, to instantiate, and for each call of its fixtures.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::test::component_and_sources;
use crate::cli::{ServerFlags, terminal};
use crate::kit::Workbench;
use crate::kit::fixture::{self, Bench, Fixture, Timed};
use crate::policy::host::Clock;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The component, or the plugin's folder.
    plugin: PathBuf,
    /// Only this fixture; all of the plugin's by default.
    #[arg(long, value_name = "FILE")]
    fixture: Option<PathBuf>,
    /// Calls of each step; fewer where they take long.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    calls: usize,
    /// One JSON object, with times in nanoseconds.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (component, sources) = component_and_sources(&arguments.plugin)?;
    let fixtures = match &arguments.fixture {
        Some(file) => vec![Fixture::read(file)?],
        None => fixture::read_all(&sources.join("fixtures"))?,
    };
    ensure!(!fixtures.is_empty(), "there are no fixtures (*.json) in {}", sources.join("fixtures").display());
    let (config, _) = ServerFlags::of(None).load()?;
    let bench = Workbench::new(config.clone(), Clock::Machine)?;
    let name = bench.name_of(&component);
    let inspection = bench.inspect(&name, &component).map_err(|reason| anyhow!("{} {reason}", component.display()))?;
    let timed = fixtures.iter().map(|fixture| fixture.bench(&component, &config, &inspection.grants, arguments.calls));
    let timed: Vec<Bench> = timed.collect::<anyhow::Result<_>>()?;
    if arguments.json {
        println!("{}", in_numbers(inspection.bytes.len(), inspection.compile, &fixtures, &timed));
        return Ok(());
    }
    println!("{}: {} bytes, compiled in {}", component.display(), inspection.bytes.len(), shown(inspection.compile));
    for (fixture, timed) in fixtures.iter().zip(timed) {
        let memory = match timed.memory_bytes {
            0 => "is not kept from call to call (limits.instance_kept_bytes_max)".to_owned(),
            bytes => format!("has {} KiB", bytes / 1024),
        };
        println!("{}: an instance takes {} to make and {memory}", fixture.file.display(), shown(timed.instance));
        for step in timed.steps {
            let (p50, p99) = (shown(step.p50), shown(step.p99));
            println!("  {:48} p50 {p50:>9}  p99 {p99:>9}  {} calls", terminal::plain(&step.name), step.calls);
        }
    }
    Ok(())
}

fn in_numbers(bytes: usize, compile: Duration, fixtures: &[Fixture], timed: &[Bench]) -> Value {
    let step = |step: &Timed| json!({ "name": step.name, "calls": step.calls, "p50_ns": ns(step.p50), "p99_ns": ns(step.p99) });
    let fixture = |(fixture, timed): (&Fixture, &Bench)| {
        json!({
            "file": fixture.file,
            "instance_ns": ns(timed.instance),
            "instance_kept_bytes": timed.memory_bytes,
            "steps": timed.steps.iter().map(step).collect::<Vec<_>>(),
        })
    };
    let fixtures: Vec<Value> = fixtures.iter().zip(timed).map(fixture).collect();
    json!({ "bytes": bytes, "compile_ns": ns(compile), "fixtures": fixtures })
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn shown(time: Duration) -> String {
    match time.as_nanos() {
        0..1_000_000 => format!("{:.1} µs", time.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}
