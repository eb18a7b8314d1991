//! `signalpost plugin bench`: times a plugin: compiling, making an instance, and each call of its fixtures; and the same calls without
//! WebAssembly, if the plugin can be built natively.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::baseline::{self, Native};
use super::test::component_and_sources;
use crate::cli::{ServerFlags, terminal};
use crate::kit::Workbench;
use crate::kit::fixture::{self, Bench, Fixture, Timed};
use crate::types::clock::Clock;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The component, or the plugin's folder. Given its folder, a plugin in Rust is also timed without WebAssembly.
    plugin: PathBuf,
    /// Only this fixture; all of the plugin's by default.
    #[arg(long, value_name = "FILE")]
    fixture: Option<PathBuf>,
    /// Calls of each step; fewer if they take long.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    calls: usize,
    /// Print one JSON object, with times in nanoseconds.
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
    let bench = Workbench::new(config, Clock::Machine)?;
    let name = bench.name_of(&component);
    let inspection = bench.inspect(&name, &component).map_err(|reason| anyhow!("{} {reason}", component.display()))?;
    let timed = fixtures.iter().map(|fixture| fixture.bench(&component, &bench, &inspection.grants, arguments.calls));
    let timed: Vec<Bench> = timed.collect::<anyhow::Result<_>>()?;
    let natives: Vec<Natives> = timed.iter().map(|timed| natives(arguments, timed)).collect();
    if arguments.json {
        println!("{}", in_numbers(inspection.bytes.len(), inspection.compile, &fixtures, &timed, &natives));
        return Ok(());
    }
    println!("{}: {} bytes, compiled in {}", component.display(), inspection.bytes.len(), shown(inspection.compile));
    for ((fixture, timed), natives) in fixtures.iter().zip(timed).zip(natives) {
        let memory = match timed.memory_bytes {
            0 => "is not kept from call to call (limits.instance_kept_bytes_max)".to_owned(),
            bytes => format!("has {} KiB", bytes / 1024),
        };
        println!("{}: an instance takes {} to make and {memory}", fixture.file.display(), shown(timed.instance));
        for (index, step) in timed.steps.into_iter().enumerate() {
            let (p50, p99) = (shown(step.p50), shown(step.p99));
            let native = native(&natives, index).map_or_else(String::new, |native| {
                let times = ns(step.p50) as f64 / native.p50_ns.max(1) as f64;
                format!("  native p50 {:>9} ({times:.1} times faster)", shown(Duration::from_nanos(native.p50_ns)))
            });
            println!("  {:48} p50 {p50:>9}  p99 {p99:>9}{native}  {} calls", terminal::plain(&step.name), step.calls);
        }
    }
    Ok(())
}

/// The native times of each step; empty if there is no native build.
type Natives = Vec<Option<Native>>;

fn natives(arguments: &Arguments, timed: &Bench) -> Natives {
    // A component without its sources can't be built natively, nor can a plugin without the SDK.
    if !arguments.plugin.is_dir() || !baseline::is_there(&arguments.plugin) {
        return Vec::new();
    }
    baseline::time(&arguments.plugin, &timed.question, arguments.calls).unwrap_or_else(|error| {
        eprintln!("There is no native baseline: {error:#}");
        Vec::new()
    })
}

fn native(natives: &Natives, step: usize) -> Option<Native> {
    natives.get(step).copied().flatten()
}

fn in_numbers(bytes: usize, compile: Duration, fixtures: &[Fixture], timed: &[Bench], natives: &[Natives]) -> Value {
    let step = |(step, native): (&Timed, Option<Native>)| {
        let mut numbers = json!({ "name": step.name, "calls": step.calls, "p50_ns": ns(step.p50), "p99_ns": ns(step.p99) });
        if let (Some(members), Some(native)) = (numbers.as_object_mut(), native) {
            members.extend([("native_p50_ns".to_owned(), json!(native.p50_ns)), ("native_p99_ns".to_owned(), json!(native.p99_ns))]);
        }
        numbers
    };
    let fixture = |((fixture, timed), natives): ((&Fixture, &Bench), &Natives)| {
        let steps = timed.steps.iter().enumerate().map(|(index, timed)| step((timed, native(natives, index))));
        json!({
            "file": fixture.file,
            "instance_ns": ns(timed.instance),
            "instance_kept_bytes": timed.memory_bytes,
            "steps": steps.collect::<Vec<_>>(),
        })
    };
    let fixtures: Vec<Value> = fixtures.iter().zip(timed).zip(natives).map(fixture).collect();
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
