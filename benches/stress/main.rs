//! The stress program: what a server has to bear, done to the real one, with each message checked.
//!
//! `cargo bench --bench stress -- [SCENARIO…] [--seed N]`, or `--all-at-once [--minutes N]` for all of them together, half a minute by
//! default; with `--apart`, on another server than the neighbours'. Each scenario starts the server's binary as a child with its own
//! configuration and plugins, prints a line with its figures, and fails with a reason. The exit code is 0 when none failed.
//! What is checked is exact: messages, outcomes, and that memory and files come back. Times are only reported, but for gross ones,
//! because a shared machine has its own.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, reason = "a run fails by panicking")]

mod attacks;
mod crowds;
mod memory;
mod neighbours;
mod policies;
mod reloads;
mod server;
mod spin;
mod together;
#[path = "../../tests/it/support/wat.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "the tests use the rest of it, and a component that can't be built is a defect")]
mod wat;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use signalpost_load::raise_open_files_limit;
use tokio::time::timeout;

/// One that hangs is cut off.
const SCENARIO_DEADLINE: Duration = Duration::from_secs(90);

/// All together take some four minutes on two cores of their own. This is for those that are shared.
const ALL_DEADLINE: Duration = Duration::from_secs(480);

const SCENARIOS: [&str; 23] = [
    "reloads",
    "spin",
    "silent",
    "idle",
    "half-headers",
    "dribble",
    "large-headers",
    "huge-frame",
    "fragments",
    "bodies",
    "handshakes",
    "never-reading",
    "storm",
    "no-files",
    "hostile-json",
    "wide-batches",
    "slow-formatting",
    "dry-runs",
    "large-refusals",
    "large-files",
    "new-instances",
    "memory",
    "steady",
];

async fn play(scenario: &str, seed: u64) -> anyhow::Result<String> {
    match scenario {
        "reloads" => reloads::run(seed).await,
        "spin" => spin::run(seed).await,
        "silent" => attacks::silent(seed).await,
        "idle" => attacks::idle(seed).await,
        "half-headers" => attacks::half_headers(seed).await,
        "dribble" => attacks::dribble(seed).await,
        "large-headers" => attacks::large_headers(seed).await,
        "huge-frame" => attacks::huge_frame(seed).await,
        "fragments" => attacks::fragments(seed).await,
        "bodies" => attacks::bodies(seed).await,
        "handshakes" => attacks::handshakes(seed).await,
        "never-reading" => crowds::never_reading(seed).await,
        "storm" => crowds::storm(seed).await,
        "no-files" => crowds::no_files(seed).await,
        "hostile-json" => policies::hostile_json(seed).await,
        "wide-batches" => policies::wide_batches(seed).await,
        "slow-formatting" => policies::slow_formatting(seed).await,
        "dry-runs" => policies::dry_runs(seed).await,
        "large-refusals" => policies::large_refusals(seed).await,
        "large-files" => policies::large_files(seed).await,
        "new-instances" => policies::new_instances(seed).await,
        "memory" => memory::run(seed).await,
        "steady" => neighbours::steady(seed).await,
        _ => anyhow::bail!("there is no scenario of this name; there are {}", SCENARIOS.join(", ")),
    }
}

fn main() -> ExitCode {
    let Arguments { chosen, seed, all_at_once, apart } = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    raise_open_files_limit();
    println!("seed {seed}");
    if let Some(length) = all_at_once {
        // The neighbours alone, the attacks, and what is given back afterwards.
        let failed = show("all at once", 2 * length + SCENARIO_DEADLINE, together::run(length, apart, seed));
        return if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let all_began = Instant::now();
    let mut failures = chosen.iter().filter(|scenario| show(scenario, SCENARIO_DEADLINE, play(scenario, seed))).count();
    let seconds = all_began.elapsed().as_secs_f64();
    println!("{failures} failed; {seconds:.1} s in all");
    if seconds > ALL_DEADLINE.as_secs_f64() {
        println!("FAILED  all together take more than {} s", ALL_DEADLINE.as_secs());
        failures += 1;
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs it to its end, says how it went, and returns whether it failed.
fn show(name: &str, deadline: Duration, scenario: impl Future<Output = anyhow::Result<String>>) -> bool {
    let began = Instant::now();
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime").and_then(|runtime| {
        let played = runtime.block_on(async { timeout(deadline, scenario).await });
        played.with_context(|| format!("not done after {} s", deadline.as_secs())).flatten()
    });
    let seconds = began.elapsed().as_secs_f64();
    match &outcome {
        Ok(figures) => println!("ok      {name:<15} {seconds:>5.1} s  {figures}"),
        Err(error) => println!("FAILED  {name:<15} {seconds:>5.1} s  {error:#}"),
    }
    outcome.is_err()
}

struct Arguments {
    /// The scenarios, all where none is named.
    chosen: Vec<String>,
    seed: u64,
    /// How long all of them are played at once, instead of one after the other.
    all_at_once: Option<Duration>,
    /// Whether the attacks are on another server than the neighbours'.
    apart: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let (mut chosen, mut is_at_once, mut apart, mut minutes) = (Vec::new(), false, false, 0.5);
    let mut seed = u64::from(std::process::id());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // cargo says so to every benchmark.
            "--bench" => {}
            "--seed" => seed = words.next().and_then(|number| number.parse().ok()).context("--seed takes a number")?,
            "--all-at-once" => is_at_once = true,
            "--apart" => apart = true,
            "--minutes" => minutes = words.next().and_then(|number| number.parse().ok()).context("--minutes takes a number")?,
            flag if flag.starts_with('-') => {
                anyhow::bail!("there is no {flag}; stress takes scenarios, --seed N, and --all-at-once with --minutes N and --apart")
            }
            name => {
                let known = SCENARIOS.contains(&name);
                anyhow::ensure!(known, "there is no scenario {name}; there are {}", SCENARIOS.join(", "));
                chosen.push(name.to_owned());
            }
        }
    }
    if chosen.is_empty() {
        chosen = SCENARIOS.map(str::to_owned).to_vec();
    }
    let all_at_once =
        is_at_once.then(|| Duration::try_from_secs_f64(60.0 * minutes)).transpose().context("--minutes takes a number above 0")?;
    Ok(Arguments { chosen, seed, all_at_once, apart })
}
