//! A policy that computes until its deadline, over and over, and the users who have nothing to do with it.

use std::cell::Cell;
use std::time::Duration;

use anyhow::ensure;
use signalpost_load::Pace;

use crate::neighbours::{live, p99_ms, plan};
use crate::server::{Plugins, Server};
use crate::wat::Guest;

const RATE: f64 = 2000.0;
const SPINS_PER_SECOND: f64 = 20.0;
const DURATION: Duration = Duration::from_secs(4);

/// Ten times what the spinning should add.
const ADDED_P99_MS_MAX: f64 = 50.0;

/// The breaker would end the scenario after three faults.
const SETTINGS: &str = "[policies.spin.limits]\nbreaker_faults = 1_000_000\n";

pub async fn run(seed: u64) -> anyhow::Result<String> {
    let spinner = Guest { events: &["spin"], ..Guest::routing("(loop $on (br $on)) (i32.const 0)") }.component();
    let server = Server::start(SETTINGS, Plugins::These(&[("spin.wasm", &spinner)])).await?;
    live(&server, &plan(RATE, Duration::from_secs(1), seed)).await?;
    let calm = live(&server, &plan(RATE, DURATION, seed)).await?;
    let over = Cell::new(false);
    let spun = async {
        let mut producer = server.producer().await?;
        let mut pace = Pace::new(Duration::from_secs_f64(1.0 / SPINS_PER_SECOND))?;
        let mut spins = 0;
        while !over.get() {
            pace.tick().await?;
            let answer = producer.post("/events", "application/json", br#"{"type":"spin"}"#).await?;
            let text = String::from_utf8_lossy(answer.body);
            ensure!(text.contains(r#""kind":"deadline""#), "the policy was not stopped at its deadline: {text}");
            spins += 1;
        }
        anyhow::Ok(spins)
    };
    let plan = plan(RATE, DURATION, seed);
    let spinning = async {
        let report = live(&server, &plan).await;
        over.set(true);
        report
    };
    let (spinning, spins) = tokio::join!(spinning, spun);
    let (spinning, spins) = (spinning?, spins?);
    ensure!(spins >= 50, "only {spins} calls were spun");
    server.stop().await?;
    let (without, with) = (p99_ms(&calm), p99_ms(&spinning));
    ensure!(with - without < ADDED_P99_MS_MAX, "p99 rose from {without:.1} to {with:.1} ms");
    let [p50_without, p50_with] = [&calm, &spinning].map(|report| report.latency.p50_us / 1000.0);
    Ok(format!("{spins} calls spun; {RATE} messages/s: p50 {p50_without:.2} → {p50_with:.2} ms, p99 {without:.2} → {with:.2} ms"))
}
