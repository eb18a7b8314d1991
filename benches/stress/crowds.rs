//! Too many at once: readers who don't read, a crowd that comes back, and more connections than the system allows.

use std::time::{Duration, Instant};

use anyhow::ensure;
use signalpost_load::{Plan, Scenario, run};
use tokio::time::sleep;

use crate::attacks::{SETTINGS, socket};
use crate::neighbours::{beside, live, plan};
use crate::server::{Plugins, Server};

const NEVER_READING: u32 = 200;
/// Together far over what a mailbox holds here, and what a socket's buffers take.
const MESSAGES_EACH_MAX: usize = 200;
const MESSAGE_BYTES: usize = 60_000;
const NEVER_READING_PATIENCE: Duration = Duration::from_secs(15);

/// Those who don't read are closed as slow consumers, and their messages are bounded by their mailboxes.
pub async fn never_reading(seed: u64) -> anyhow::Result<String> {
    let settings = format!("{SETTINGS}keep_ms = 1000\n");
    let server = Server::start(&settings, Plugins::Bundled).await?;
    let attack = async {
        let mut sockets = Vec::new();
        for number in 0..NEVER_READING {
            sockets.push(socket(&server, &format!("sleeper-{number}")).await?);
        }
        let mut producer = server.producer().await?;
        let message = format!("\"{}\"", "x".repeat(MESSAGE_BYTES));
        let before = server.usage();
        let mut most = before.resident_kib;
        let began = Instant::now();
        let mut closed = 0;
        for _ in 0..MESSAGES_EACH_MAX {
            for number in 0..NEVER_READING {
                let path = format!("/users/sleeper-{number}/messages");
                let answer = producer.post(&path, "application/json", message.as_bytes()).await?;
                ensure!(answer.status == 202, "{}", answer.sentence());
            }
            most = most.max(server.usage().resident_kib);
            let metrics = server.metrics().await?;
            let slow = metrics.lines().find_map(|line| line.strip_prefix("signalpost_sessions_closed_total{code=\"4100\"} "));
            closed = slow.and_then(|count| count.trim().parse().ok()).unwrap_or_default();
            if closed == NEVER_READING || began.elapsed() > NEVER_READING_PATIENCE {
                break;
            }
        }
        ensure!(closed == NEVER_READING, "{closed} of {NEVER_READING} were closed as slow consumers");
        drop(sockets);
        Ok(format!("{NEVER_READING} closed with 4100, memory rose by {} KiB at most", most - before.resident_kib))
    };
    let said = beside(&server, 6, 8 << 10, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Thousands are dropped and come back at once, and nobody misses a message.
pub async fn storm(seed: u64) -> anyhow::Result<String> {
    let server = Server::start("", Plugins::Bundled).await?;
    let storm = Plan {
        scenario: Scenario::Storm { rounds: 3 },
        name: "storm",
        users: 5000,
        at_once: usize::MAX,
        ..plan(1.0, Duration::from_secs(20), seed)
    };
    let storm = Plan { rate: None, ..storm };
    // The first storm leaves what is allocated once: the users' mailboxes, among others.
    let first = run(&server.target, &storm, None, &mut |_| {}).await?;
    ensure!(first.exact, "{}", serde_json::to_string(&first)?);
    sleep(Duration::from_millis(500)).await;
    let before = server.usage();
    let report = run(&server.target, &storm, None, &mut |_| {}).await?;
    ensure!(report.exact, "{}", serde_json::to_string(&report)?);
    let after = server.recovers(before, 16 << 10).await?;
    server.stop().await?;
    let Plan { users, .. } = storm;
    Ok(format!(
        "{users} back in {:.2} s (slowest of 3 rounds; each p99 {:.0} ms), {} messages exact; memory {} → {} KiB",
        report.connecting.seconds,
        report.connecting.each.p99_us / 1000.0,
        report.deliveries,
        before.resident_kib,
        after.resident_kib
    ))
}

/// Without a file descriptor left, those who are connected go on, and others get in when there is one again.
pub async fn no_files(seed: u64) -> anyhow::Result<String> {
    const OPEN_FILES_MAX: u32 = 256;
    // A folder that can't be listed for want of a descriptor is not an empty folder.
    let server = Server::start_with_files(SETTINGS, Plugins::Bundled, Some(OPEN_FILES_MAX)).await?;
    let serving = server.policies().await?.matches("\"digest\"").count();
    ensure!(serving == 4, "{serving} policies serve");
    let attack = async {
        // The neighbours are connected by then.
        sleep(Duration::from_millis(500)).await;
        let mut waiting = Vec::new();
        for number in 0..2 * OPEN_FILES_MAX {
            // The kernel takes it; the server can't.
            waiting.push(server.target.connect(number).await?);
        }
        let mut most = 0;
        for _ in 0..50 {
            most = most.max(server.usage().open_files);
            sleep(Duration::from_millis(20)).await;
        }
        ensure!(most >= OPEN_FILES_MAX as usize - 4, "the limit was not reached: {most} open files");
        drop(waiting);
        Ok(format!("{} connections at a limit of {OPEN_FILES_MAX} files, {most} of them in use", 2 * OPEN_FILES_MAX))
    };
    let said = beside(&server, 4, 8 << 10, seed, attack).await?;
    let metrics = server.metrics().await?;
    let changed = metrics.lines().find(|line| line.starts_with("signalpost_policy_reloads_total{outcome=\"swapped\"}"));
    ensure!(changed.is_none() && server.policies().await?.matches("\"digest\"").count() == serving, "policies were unloaded: {changed:?}");
    // There is room again.
    live(&server, &plan(200.0, Duration::from_millis(500), seed)).await?;
    server.stop().await?;
    Ok(said)
}
