//! Neighbours: users who go on reading while something bad happens next to them. Not one of their messages may be touched.

use std::time::Duration;

use anyhow::ensure;
use signalpost_load::{Plan, Report, Scenario, Traffic, run};

use crate::server::{Plugins, Server};

/// Latencies over this are no accident of a shared machine any more.
pub const GROSS_P99_MS: f64 = 250.0;

/// Direct messages at a fixed rate.
pub fn plan(rate: f64, duration: Duration, seed: u64) -> Plan {
    Plan {
        scenario: Scenario::Publish(Traffic::Direct),
        name: "neighbours",
        users: 100,
        producers: 8,
        v1: false,
        query: String::new(),
        away: 0,
        requests_max: u64::MAX,
        duration_max: duration,
        rate: Some(rate),
        stream: 0,
        message_bytes: 64,
        at_once: 100,
        seed,
    }
}

/// The neighbours' report, which must be exact.
pub async fn live(server: &Server, plan: &Plan) -> anyhow::Result<Report> {
    let report = run(&server.target, plan, Some(server.process), &mut |_| {}).await?;
    ensure!(report.exact, "the neighbours' messages were touched: {}", serde_json::to_string(&report)?);
    ensure!(report.deliveries > 0, "the neighbours sent nothing");
    Ok(report)
}

pub fn p99_ms(report: &Report) -> f64 {
    report.latency.p99_us / 1000.0
}

/// An attack beside neighbours: their messages are exact, and afterwards the server has what it had before.
pub async fn beside(
    server: &Server,
    seconds: u64,
    memory_kib: u64,
    seed: u64,
    attack: impl Future<Output = anyhow::Result<String>>,
) -> anyhow::Result<String> {
    // Once before, so that what the first messages allocate for good doesn't count.
    live(server, &plan(500.0, Duration::from_millis(300), seed)).await?;
    let before = server.usage();
    let plan = plan(500.0, Duration::from_secs(seconds), seed);
    let (report, said) = tokio::join!(live(server, &plan), attack);
    let (report, said) = (report?, said?);
    let after = server.recovers(before, memory_kib).await?;
    let p99 = p99_ms(&report);
    ensure!(p99 < GROSS_P99_MS, "the neighbours' p99 is {p99:.1} ms");
    Ok(format!(
        "{said}; neighbours: {} exact, p99 {p99:.1} ms; memory {} → {} KiB, files {} → {}",
        report.deliveries, before.resident_kib, after.resident_kib, before.open_files, after.open_files
    ))
}

/// No attack: matches, batches and a crowded group, in both protocols, and the groups that they made are gone afterwards.
pub async fn steady(seed: u64) -> anyhow::Result<String> {
    let server = Server::start("", Plugins::Bundled).await?;
    let mut figures = Vec::new();
    for (name, traffic, requests_max) in
        [("routed", Traffic::Routed, 4000), ("batch", Traffic::Batch, 100), ("fan-out", Traffic::FanOut, 100)]
    {
        for v1 in [false, true] {
            let duration_max = Duration::from_secs(5);
            let scenario = Scenario::Publish(traffic);
            let plan = Plan { scenario, name, v1, users: 200, requests_max, rate: None, duration_max, ..plan(1.0, duration_max, seed) };
            let report = live(&server, &plan).await?;
            figures.push(format!("{name}{} {:.0}/s", if v1 { " v1" } else { "" }, report.deliveries_per_second));
        }
    }
    let mut producer = server.producer().await?;
    let policies = producer.request("GET", "/policies", "application/json", b"").await?;
    ensure!(!String::from_utf8_lossy(policies.body).contains("\"circuit_open\":true"), "a policy was left out");
    server.stop().await?;
    Ok(figures.join(", "))
}
