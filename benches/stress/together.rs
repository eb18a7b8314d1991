//! Everything at once: all attacks that one server can have, over and over, beside neighbours who are compared with themselves alone.
//!
//! Left out is what changes the server for all: a limit of its open files (`no-files`), and a bound on its handshakes (`handshakes`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use signalpost_load::{Report, client_frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::attacks::{self, connections, socket};
use crate::neighbours::{GROSS_P99_MS, live, p99_ms, plan};
use crate::policies::{self, batch, hostile_frames};
use crate::server::{Plugins, Server};
use crate::wat::Guest;

/// How much slower the neighbours may be, and below which time that is not looked at: a shared machine's own.
const SLOWER_MAX: f64 = 2.0;

/// What an allocator keeps of all of it.
const MEMORY_KIB: u64 = 64 << 10;

const RATE: f64 = 500.0;

const JSON: &str = "application/json";
const BATCH: &str = "application/cloudevents-batch+json";

const SETTINGS: &str = "[http]\nheader_deadline_ms = 1000\nbody_deadline_ms = 1500\nbodies_bytes_max = 33_554_432\n\
    [sockets]\nwrite_deadline_ms = 1000\nclose_deadline_ms = 500\n\
    [mailboxes]\nbytes_max = 262_144\nkeep_ms = 2000\nresume_ms = 2000\ntotal_bytes_max = 67_108_864\n\
    [limits]\ntrial_calls = 0\n\
    [policies.spin.limits]\nbreaker_faults = 1_000_000\n[policies.wordy.limits]\ncall_deadline_ms = 100\n";

/// The attacks, by name.
const ATTACKS: [&str; 17] = [
    "silent",
    "half-headers",
    "dribble",
    "large-headers",
    "huge-frame",
    "fragments",
    "bodies",
    "never-reading",
    "storm",
    "reloads",
    "spin",
    "hostile-json",
    "wide-batches",
    "slow-formatting",
    "dry-runs",
    "large-refusals",
    "new-instances",
];

/// Plays for that long. With a minute or more, the neighbours' times are held to those that they have alone; below, only to gross ones.
/// `apart`: the attacks are on another server, which shows what they cost the neighbours by taking the processor.
pub async fn run(length: Duration, apart: bool, seed: u64) -> anyhow::Result<String> {
    let server = Arc::new(start().await?);
    let attacked = if apart { Arc::new(start().await?) } else { server.clone() };
    live(&server, &plan(RATE, Duration::from_secs(2), seed)).await?;
    let alone = live(&server, &plan(RATE, length / 10, seed)).await?;
    let before = server.usage();
    // A thread of their own, and behind the others: what attackers compute is not what is measured.
    let attacking = std::thread::spawn(move || {
        let _ = rustix::process::nice(5);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
        anyhow::Ok((runtime.block_on(attack(&attacked, length)), attacked))
    });
    let beside = live(&server, &plan(RATE, length, seed)).await;
    while !attacking.is_finished() {
        sleep(Duration::from_millis(50)).await;
    }
    let (rounds, attacked) = attacking.join().map_err(|_| anyhow::anyhow!("the attackers panicked"))??;
    let beside = beside?;
    for (name, Rounds { done, failed, first }) in &rounds {
        ensure!(*done > 0, "{name} was never done, and failed {failed} times: {}", first.as_deref().unwrap_or("no reason"));
    }
    let after = server.recovers(before, MEMORY_KIB).await?;
    let (p99_alone, p99) = (p99_ms(&alone), p99_ms(&beside));
    let said: Vec<String> = rounds.iter().map(|(name, rounds)| format!("{name} {}+{}", rounds.done, rounds.failed)).collect();
    let busy = |report: &Report| report.server.as_ref().map_or(0.0, |server| server.processor_seconds / report.seconds);
    let said = format!(
        "rounds done and cut short: {}; the neighbours' server is busy on {:.2} → {:.2} cores, and this program on {:.2} → {:.2}; \
         neighbours: {} exact, p50 {:.2} → {:.2} ms, p99 {p99_alone:.2} → {p99:.2} ms, p99.9 {:.1} → {:.1} ms; \
         memory {} → {} KiB, files {} → {}",
        said.join(", "),
        busy(&alone),
        busy(&beside),
        alone.generator.busy,
        beside.generator.busy,
        beside.deliveries,
        alone.latency.p50_us / 1000.0,
        beside.latency.p50_us / 1000.0,
        alone.latency.p999_us / 1000.0,
        beside.latency.p999_us / 1000.0,
        before.resident_kib,
        after.resident_kib,
        before.open_files,
        after.open_files
    );
    let most = if length >= Duration::from_secs(60) { SLOWER_MAX * p99_alone } else { GROSS_P99_MS };
    ensure!(p99 <= most, "the neighbours' p99 is over {most:.2} ms: {said}");
    drop(server);
    Arc::into_inner(attacked).context("an attacker still has the server")?.stop().await?;
    Ok(said)
}

async fn start() -> anyhow::Result<Server> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins");
    let bundled = |name: &str| std::fs::read(folder.join(name)).with_context(|| name.to_owned());
    let spin = Guest { events: &["spin"], ..Guest::routing("(loop $on (br $on)) (i32.const 0)") }.component();
    let files = [
        ("chat.wasm", bundled("chat.wasm")?),
        ("compact.wasm", bundled("compact.wasm")?),
        ("pooling.wasm", bundled("pooling.wasm")?),
        ("spin.wasm", spin),
        ("route.wasm", policies::subject_policy("slow")),
        ("slow.wasm", policies::slow_formatter("slow", policies::MILLISECOND)),
        ("wide.wasm", policies::wide_policy()),
        ("wordy.wasm", policies::wordy_policy()),
        ("large.wasm", policies::large_instance_policy()),
    ];
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let server = Server::start(SETTINGS, Plugins::These(&files)).await?;
    let mut producer = server.producer().await?;
    let answer = producer.post("/events", BATCH, &batch(20, "wide.join", "1")).await?;
    ensure!(answer.status == 202, "{}", answer.sentence());
    Ok(server)
}

/// How often an attack was done, and how often it was cut short, with the first reason.
#[derive(Debug, Default)]
struct Rounds {
    done: u32,
    failed: u32,
    first: Option<String>,
}

async fn attack(server: &Server, length: Duration) -> Vec<(&'static str, Rounds)> {
    let began = Instant::now();
    let repeated = |name: &'static str| async move {
        let mut rounds = Rounds::default();
        while began.elapsed() < length {
            // What others take all of, this one may be refused.
            match round(server, name, rounds.done + rounds.failed).await {
                Ok(()) => rounds.done += 1,
                Err(error) => {
                    rounds.failed += 1;
                    rounds.first.get_or_insert_with(|| format!("{error:#}"));
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
        (name, rounds)
    };
    futures_util::future::join_all(ATTACKS.map(repeated)).await
}

async fn round(server: &Server, name: &str, number: u32) -> anyhow::Result<()> {
    match name {
        "silent" => drop(attacks::all_end(connections(server, 200, b"").await?).await?),
        "half-headers" => drop(attacks::all_end(connections(server, 200, b"GET /api/pool/ws/1 HTTP/1.1\r\nHost: x\r\nUpgr").await?).await?),
        "dribble" => drop(attacks::dribbled(server).await?),
        "large-headers" => drop(attacks::headers_refused(server, 2).await?),
        "huge-frame" => attacks::huge_frames(server, 20).await?,
        "fragments" => drop(attacks::fragmented(server, 2).await?),
        "bodies" => bodies(server).await?,
        "never-reading" => never_reading(server).await?,
        "storm" => storm(server).await?,
        "reloads" => reload(server, number).await?,
        "spin" => events(server, "spin", 5).await?,
        "hostile-json" => hostile_json(server).await?,
        "wide-batches" => events(server, "wide.tell", 1).await?,
        "slow-formatting" => slow_formatting(server).await?,
        "dry-runs" => {
            let body = batch(500, "pooling.match.found", r#"{"request_id":1,"rider_id":1001,"driver_id":2002,"pool_id":7}"#);
            let mut producer = server.producer().await?;
            let answer = producer.post("/events?dry_run=true", BATCH, &body).await?;
            ensure!(answer.status == 202, "{}", answer.sentence());
        }
        "large-refusals" => events(server, "wordy", 100).await?,
        "new-instances" => events(server, "large", 5).await?,
        _ => anyhow::bail!("there is no attack {name}"),
    }
    Ok(())
}

async fn events(server: &Server, event_type: &str, count: usize) -> anyhow::Result<()> {
    let mut producer = server.producer().await?;
    let answer = producer.post("/events", BATCH, &batch(count, event_type, "1")).await?;
    ensure!(answer.status == 202, "{}", answer.sentence());
    Ok(())
}

/// Bodies that stop half-way.
async fn bodies(server: &Server) -> anyhow::Result<()> {
    let head = b"POST /api/pool/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n";
    let mut all = connections(server, 60, head).await?;
    let blanks = vec![b' '; 900_000];
    for tcp in &mut all {
        // It may be refused, and then takes no more.
        let _ = timeout(Duration::from_millis(200), tcp.write_all(&blanks)).await;
    }
    attacks::all_end(all).await?;
    Ok(())
}

async fn never_reading(server: &Server) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for number in 0..20 {
        sockets.push(socket(server, &format!("sleeper-{number}")).await?);
    }
    let message = format!("\"{}\"", "x".repeat(60_000));
    let mut producer = server.producer().await?;
    for _ in 0..20 {
        for number in 0..20 {
            let answer = producer.post(&format!("/users/sleeper-{number}/messages"), JSON, message.as_bytes()).await?;
            ensure!(answer.status == 202, "{}", answer.sentence());
        }
    }
    sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// A crowd comes, and is gone.
async fn storm(server: &Server) -> anyhow::Result<()> {
    let users: Vec<String> = (0..200).map(|number| format!("crowd-{number}")).collect();
    let sockets = futures_util::future::try_join_all(users.iter().map(|user| socket(server, user))).await?;
    drop(sockets);
    Ok(())
}

/// Another file of the same policy, and a bad one in between.
async fn reload(server: &Server, number: u32) -> anyhow::Result<()> {
    let mut file = policies::subject_policy("slow");
    if number % 4 == 3 {
        file.truncate(file.len() / 2);
    } else {
        // A custom section: the same policy, and yet another file.
        file.extend([0, 5, 1, b'x']);
        file.extend([number % 3, 0, 0].map(|byte| u8::try_from(byte).unwrap_or_default()));
    }
    server.replace("route.wasm", &file)?;
    let mut producer = server.producer().await?;
    let answer = producer.post("/policies/reload", JSON, b"").await?;
    ensure!(matches!(answer.status, 200 | 422), "{}", answer.sentence());
    Ok(())
}

async fn hostile_json(server: &Server) -> anyhow::Result<()> {
    let mut tcp = socket(server, "mallory").await?;
    let mut answers = vec![0; 1 << 16];
    for (number, (_, text)) in hostile_frames().iter().enumerate() {
        let mut frame = Vec::with_capacity(text.len() + 16);
        client_frame(1, text.as_bytes(), u32::try_from(number).unwrap_or_default(), &mut frame);
        tcp.write_all(&frame).await?;
        while let Ok(read) = timeout(Duration::from_millis(65), tcp.read(&mut answers)).await {
            ensure!(read? > 0, "the server ended the connection");
        }
    }
    Ok(())
}

/// A few come back for what they missed, and formatting takes a millisecond for each message and reader.
async fn slow_formatting(server: &Server) -> anyhow::Result<()> {
    const READERS: u32 = 10;
    const MISSED: u32 = 20;
    let mut producer = server.producer().await?;
    for reader in 0..READERS {
        for number in 0..MISSED {
            let event = format!(r#"{{"type":"slow","subject":"late-{reader}","data":"message {number}."}}"#);
            let answer = producer.post("/events", JSON, event.as_bytes()).await?;
            ensure!(answer.posted() == 1, "{}", answer.sentence());
        }
    }
    let one = async |reader: u32| {
        let mut tcp = socket(server, &format!("late-{reader}")).await?;
        let (mut got, mut seen) = (vec![0; 1 << 14], String::new());
        while !seen.contains(&format!("message {}.", MISSED - 1)) {
            let read = timeout(Duration::from_secs(10), tcp.read(&mut got)).await.context("a message is lost")??;
            ensure!(read > 0, "a reader was sent away");
            seen.push_str(&String::from_utf8_lossy(&got[..read]));
        }
        anyhow::Ok(())
    };
    futures_util::future::try_join_all((0..READERS).map(one)).await?;
    Ok(())
}
