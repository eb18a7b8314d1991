//! Policies and data that mean no good, one kind at a time, beside neighbours. Each has a stated outcome.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use signalpost_load::client_frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::attacks::socket;
use crate::neighbours::beside;
use crate::server::{Plugins, Server};
use crate::wat::Guest;

/// What an allocator keeps of some thousand requests.
const MEMORY_KIB: u64 = 16 << 10;

/// A probe must be answered in this time, however much the others want: gross, since the machine is shared.
const PROBE_MS_MAX: u128 = 2000;

const BATCH: &str = "application/cloudevents-batch+json";

/// A batch of `count` events of a type, each with this data.
pub fn batch(count: usize, event_type: &str, data: &str) -> Vec<u8> {
    let run = fastrand::u64(..);
    let event =
        |number: usize| format!(r#"{{"specversion":"1.0","id":"{run}-{number}","source":"/s","type":"{event_type}","data":{data}}}"#);
    format!("[{}]", (0..count).map(event).collect::<Vec<_>>().join(",")).into_bytes()
}

/// Asks for `/healthz` again and again until the other future is done. Returns what that returns, and the longest wait in milliseconds.
async fn probed<T>(server: &Server, other: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, u128)> {
    let over = Cell::new(false);
    let probing = async {
        let mut worst = 0;
        while !over.get() {
            let began = Instant::now();
            server.healthy().await?;
            worst = worst.max(began.elapsed().as_millis());
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(worst)
    };
    let watched = async {
        let outcome = other.await;
        over.set(true);
        outcome
    };
    let (worst, outcome) = tokio::join!(probing, watched);
    let (worst, outcome) = (worst?, outcome?);
    ensure!(worst < PROBE_MS_MAX, "a probe waited for {worst} ms");
    Ok((outcome, worst))
}

/// Frames of 63 KB, each as expensive to read as 63 KB of JSON can be.
pub fn hostile_frames() -> Vec<(&'static str, String)> {
    const BYTES: usize = 63_000;
    let members = |count: usize| (0..count).map(|name| format!("\"{name:x}\":1")).collect::<Vec<_>>().join(",");
    let chat = |text: &str| format!(r#"{{"type":"chat","pool_id":7,"text":"{text}"}}"#);
    vec![
        ("short keys", format!("{{{}}}", members(6500))),
        ("one key", format!("{{{}}}", vec!["\"a\":1"; BYTES / 6].join(","))),
        ("escaped keys", format!("{{{}}}", (0..4500).map(|name| format!("\"\\u0061{name:x}\":1")).collect::<Vec<_>>().join(","))),
        ("nested lists", format!("{}{}", "[".repeat(BYTES / 2), "]".repeat(BYTES / 2))),
        ("nested objects", format!("{}1{}", "{\"a\":".repeat(BYTES / 6), "}".repeat(BYTES / 6))),
        ("a list of nothing", format!("[{}]", vec!["0"; BYTES / 2].join(","))),
        ("an escaped text", chat(&"\\\"".repeat(BYTES / 2 - 50))),
        ("a long number", format!(r#"{{"type":"chat","pool_id":{},"text":"x"}}"#, "1".repeat(BYTES))),
        ("a long id", format!(r#"{{"type":"chat","pool_id":"{}","text":"x"}}"#, "\\u0031".repeat(BYTES / 7))),
        ("no end", "[{\"type\":\"chat\",".repeat(BYTES / 17)),
    ]
}

/// One client sends hostile JSON as fast as it may. Nobody else's message is refused, no call faults, and what the guest's time was is told.
pub async fn hostile_json(seed: u64) -> anyhow::Result<String> {
    const LINES: u64 = 100;
    let server = Server::start("", Plugins::Bundled).await?;
    let attack = async {
        let mut producer = server.producer().await?;
        let pool = br#"{"type":"pooling.match.found","data":{"request_id":1,"rider_id":1001,"driver_id":2002,"pool_id":7}}"#;
        let answer = producer.post("/events", "application/json", pool).await?;
        ensure!(answer.posted() == 2, "{}", answer.sentence());
        let over = Cell::new(false);
        let attacking = async {
            let mut tcp = socket(&server, "mallory").await?;
            let frames = hostile_frames();
            let (mut sent, mut answered) = (0_u32, 0_usize);
            let mut answers = vec![0; 1 << 16];
            while !over.get() {
                let (_, text) = &frames[sent as usize % frames.len()];
                let mut frame = Vec::with_capacity(text.len() + 16);
                client_frame(1, text.as_bytes(), sent, &mut frame);
                tcp.write_all(&frame).await?;
                sent += 1;
                // Within both rates: 16 frames of 63 KB are 1 MB.
                while let Ok(read) = timeout(Duration::from_millis(65), tcp.read(&mut answers)).await {
                    answered += read?;
                    ensure!(answered > 0 || !over.get(), "the server ended the connection");
                }
            }
            anyhow::Ok(sent)
        };
        let honest = async {
            let mut author = socket(&server, "1001").await?;
            let mut reader = socket(&server, "2002").await?;
            let (mut got, mut seen) = (vec![0; 1 << 16], String::new());
            for line in 0..LINES {
                let text = format!(r#"{{"type":"chat","pool_id":7,"text":"line {line}."}}"#);
                let mut frame = Vec::new();
                client_frame(1, text.as_bytes(), 7, &mut frame);
                author.write_all(&frame).await?;
                let wanted = format!("line {line}.");
                while !seen.contains(&wanted) {
                    let read =
                        timeout(Duration::from_secs(5), reader.read(&mut got)).await.with_context(|| format!("{wanted} is lost"))??;
                    ensure!(read > 0, "an honest reader was sent away");
                    seen.push_str(&String::from_utf8_lossy(&got[..read]));
                }
                sleep(Duration::from_millis(25)).await;
            }
            over.set(true);
            anyhow::Ok(())
        };
        let (sent, lines) = tokio::join!(attacking, honest);
        let (sent, ()) = (sent?, lines?);
        let metrics = server.metrics().await?;
        ensure!(!metrics.contains("signalpost_policy_faults_total{"), "a policy faulted: {}", faults(&metrics));
        let of_chat = |part: &str| {
            let line = format!("signalpost_policy_call_seconds_{part}{{function=\"received\",policy=\"chat\"");
            metrics
                .lines()
                .filter(|known| known.starts_with(&line))
                .filter_map(|known| known.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>()
        };
        let slow = {
            let line =
                |bucket: &str| format!("signalpost_policy_call_seconds_bucket{{function=\"received\",policy=\"chat\",le=\"{bucket}\"}} ");
            let of =
                |bucket: &str| metrics.lines().find_map(|known| known.strip_prefix(&line(bucket))?.parse::<f64>().ok()).unwrap_or_default();
            of("+Inf") - of("0.0025")
        };
        let mean_us = of_chat("sum") / of_chat("count") * 1e6;
        Ok(format!(
            "{sent} hostile frames and {LINES} honest ones, no fault; a call takes {mean_us:.0} µs on average, {slow} took over 2.5 ms"
        ))
    };
    let said = beside(&server, 6, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

fn faults(metrics: &str) -> String {
    metrics.lines().filter(|line| line.starts_with("signalpost_policy_faults_total{")).collect::<Vec<_>>().join(", ")
}

/// Lets a thousand more users join a group for each event of the type `wide.join`, and sends the group a thousand messages for `wide.tell`.
pub fn wide_policy() -> Vec<u8> {
    let fields = "(global $next (mut i32) (i32.const 0))
        (func $spell (param $at i32) (param $number i32)
          (i32.store8 offset=0 (local.get $at) (i32.add (i32.const 97) (i32.and (local.get $number) (i32.const 15))))
          (i32.store8 offset=1 (local.get $at) (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $number) (i32.const 4)) (i32.const 15))))
          (i32.store8 offset=2 (local.get $at) (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $number) (i32.const 8)) (i32.const 15))))
          (i32.store8 offset=3 (local.get $at) (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $number) (i32.const 12)) (i32.const 15)))))
        (func $join (result i32) (local $list i32) (local $words i32) (local $end i32) (local $at i32)
          (local.set $list (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 16000)))
          (local.set $words (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 4000)))
          (local.set $at (local.get $list))
          (local.set $end (i32.add (local.get $list) (i32.const 16000)))
          (loop $on
            (call $spell (local.get $words) (global.get $next))
            (i32.store (local.get $at) (global.get $group))
            (i32.store offset=4 (local.get $at) (global.get $group_bytes))
            (i32.store offset=8 (local.get $at) (local.get $words))
            (i32.store offset=12 (local.get $at) (i32.const 4))
            (local.set $words (i32.add (local.get $words) (i32.const 4)))
            (local.set $at (i32.add (local.get $at) (i32.const 16)))
            (global.set $next (i32.add (global.get $next) (i32.const 1)))
            (br_if $on (i32.lt_u (local.get $at) (local.get $end))))
          (drop (call $nobody))
          (i32.store (i32.const 292) (local.get $list))
          (i32.store (i32.const 296) (i32.const 1000))
          (i32.const 288))
        (func $tell_all (result i32) (local $list i32) (local $at i32) (local $end i32)
          (local.set $list (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 76000)))
          (local.set $at (local.get $list))
          (local.set $end (i32.add (local.get $list) (i32.const 76000)))
          (loop $on
            (call $delivery (local.get $at) (global.get $group) (global.get $group_bytes) (i32.const -1) (i32.const 0) (i32.const 0))
            (i32.store8 (local.get $at) (i32.const 2))
            (local.set $at (i32.add (local.get $at) (i32.const 76)))
            (br_if $on (i32.lt_u (local.get $at) (local.get $end))))
          (drop (call $nobody))
          (i32.store (i32.const 300) (local.get $list))
          (i32.store (i32.const 304) (i32.const 1000))
          (i32.const 288))";
    // The two types end with different letters.
    let body = "(if (i32.eq (i32.load8_u offset=8 (i32.load offset=16 (local.get $event))) (i32.const 110)) (then (return (call $join))))
        (call $tell_all)";
    Guest { events: &["wide.join", "wide.tell"], strings: &[("group", "all")], fields, memory: "4", ..Guest::routing(body) }.component()
}

/// Two batches whose events tell a group of 20,000 users a thousand messages each. The others are served meanwhile, and a stop ends in time.
pub async fn wide_batches(seed: u64) -> anyhow::Result<String> {
    const EVENTS: usize = 20;
    let wide = wide_policy();
    let settings = "stop_deadline_ms = 5000\n[mailboxes]\nkeep_ms = 500\nresume_ms = 500\ntotal_bytes_max = 33_554_432\n";
    let server = Server::start(settings, Plugins::These(&[("wide.wasm", &wide)])).await?;
    let attack = async {
        let mut producer = server.producer().await?;
        let answer = producer.post("/events", BATCH, &batch(20, "wide.join", "1")).await?;
        ensure!(answer.status == 202, "{}", answer.sentence());
        let one = async || {
            let mut producer = server.producer().await?;
            let answer = producer.post("/events", BATCH, &batch(EVENTS, "wide.tell", "1")).await?;
            ensure!(answer.status == 202, "{}", answer.sentence());
            anyhow::Ok(answer.body.windows(19).filter(|part| *part == b"too_many_recipients").count())
        };
        let ((first, second), worst) = probed(&server, async { tokio::try_join!(one(), one()) }).await?;
        ensure!(first + second == 2 * EVENTS, "{first} and {second} events reached their bound");
        Ok(format!("{} events of 20,000,000 recipients each are cut at their bound; a probe waited {worst} ms at most", 2 * EVENTS))
    };
    // What the mailboxes of 20,000 users and the group took is an allocator's to give back.
    let said = beside(&server, 4, 4 * MEMORY_KIB, seed, attack).await?;
    let stopping = async {
        let mut producer = server.producer().await?;
        // Whatever becomes of the answer: the server stops.
        let _ = producer.post("/events", BATCH, &batch(200, "wide.tell", "1")).await;
        anyhow::Ok(())
    };
    let busy = timeout(Duration::from_millis(300), stopping).await.is_err();
    let began = Instant::now();
    server.stop().await?;
    Ok(format!("{said}; stopped in {} ms{}", began.elapsed().as_millis(), if busy { " with a batch under way" } else { "" }))
}

/// Tells the user whom the event's subject names what its data are.
pub fn subject_policy(event_type: &str) -> Vec<u8> {
    let body = "(call $forward (i32.load offset=28 (local.get $event)) (i32.load offset=32 (local.get $event)))";
    Guest { events: &[event_type], ..Guest::routing(body) }.component()
}

/// Computes for a while for each reader, and passes the message on.
pub fn slow_formatter(event_type: &str, rounds: u32) -> Vec<u8> {
    let body = format!(
        "(loop $on (local.set $local (i32.add (local.get $local) (i32.const 1))) (br_if $on (i32.lt_u (local.get $local) (i32.const {rounds}))))
         (call $shaped (local.get $body) (local.get $body_bytes))"
    );
    let vary = "(i32.store (i32.const 456) (global.get $user_name)) (i32.store (i32.const 460) (global.get $user_name_bytes))
        (i32.store (i32.const 448) (i32.const 456)) (i32.store (i32.const 452) (i32.const 1)) (i32.const 448)";
    Guest { events: &[event_type], strings: &[("user_name", "user")], vary, ..Guest::formatting(&body) }.component()
}

/// Rounds of a loop of three instructions that take about a millisecond.
pub const MILLISECOND: u32 = 1_000_000;

/// A crowd comes back for what it missed, and each message takes a formatting policy a millisecond for each of them.
pub async fn slow_formatting(seed: u64) -> anyhow::Result<String> {
    const READERS: u32 = 40;
    const MISSED: u32 = 50;
    const THREADS_MAX: usize = 20;
    let (route, format) = (subject_policy("slow"), slow_formatter("slow", MILLISECOND));
    let settings = "blocking_threads_max = 8\n[limits]\ncall_deadline_ms = 200\n";
    let server = Server::start(settings, Plugins::These(&[("route.wasm", &route), ("slow.wasm", &format)])).await?;
    let attack = async {
        let mut producer = server.producer().await?;
        for reader in 0..READERS {
            for number in 0..MISSED {
                let event = format!(r#"{{"type":"slow","subject":"crowd-{reader}","data":"message {number}."}}"#);
                let answer = producer.post("/events", "application/json", event.as_bytes()).await?;
                ensure!(answer.posted() == 1, "{}", answer.sentence());
            }
        }
        let most_threads = Cell::new(0);
        let one = async |reader: u32| {
            let mut tcp = socket(&server, &format!("crowd-{reader}")).await?;
            let (mut got, mut seen) = (vec![0; 1 << 14], String::new());
            while (0..MISSED).any(|number| !seen.contains(&format!("message {number}."))) {
                let read = timeout(Duration::from_secs(30), tcp.read(&mut got)).await.context("a message is lost")??;
                ensure!(read > 0, "a reader was sent away");
                seen.push_str(&String::from_utf8_lossy(&got[..read]));
                most_threads.set(most_threads.get().max(server.threads()));
            }
            anyhow::Ok(())
        };
        let (_, worst) = probed(&server, futures_util::future::try_join_all((0..READERS).map(one))).await?;
        let most = most_threads.get();
        ensure!(most <= THREADS_MAX, "{most} threads, and {THREADS_MAX} at most should be");
        let policies = server.policies().await?;
        let idle = policies.split("\"idle_instances\":").skip(1).filter_map(|rest| rest.split('}').next()?.parse::<u32>().ok()).max();
        ensure!(idle.is_some_and(|idle| idle <= 16), "{idle:?} instances are kept");
        Ok(format!("{READERS} × {MISSED} messages formatted and read; {most} threads at most, a probe waited {worst} ms at most"))
    };
    let said = beside(&server, 5, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Two producers ask what would happen to a thousand events each, over and over.
pub async fn dry_runs(seed: u64) -> anyhow::Result<String> {
    let server = Server::start("", Plugins::Bundled).await?;
    let body = batch(1000, "pooling.match.found", r#"{"request_id":1,"rider_id":1001,"driver_id":2002,"pool_id":7}"#);
    let attack = async {
        let began = Instant::now();
        let one = async || {
            let (mut runs, mut producer) = (0, server.producer().await?);
            while began.elapsed() < Duration::from_secs(2) {
                let answer = producer.post("/events?dry_run=true", BATCH, &body).await?;
                ensure!(answer.status == 202, "{}", answer.sentence());
                runs += 1;
            }
            anyhow::Ok(runs)
        };
        let ((first, second), worst) = probed(&server, async { tokio::try_join!(one(), one()) }).await?;
        let metrics = server.metrics().await?;
        ensure!(!metrics.contains("signalpost_groups 1"), "a dry run has changed something");
        Ok(format!("{} dry runs of 1,000 events; a probe waited {worst} ms at most", first + second))
    };
    let said = beside(&server, 4, 2 * MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Refuses each event in a megabyte of words.
pub fn wordy_policy() -> Vec<u8> {
    let body = "(memory.fill (i32.const 8192) (i32.const 120) (i32.const 900000))
        (call $refuse (global.get $code) (global.get $code_bytes) (i32.const 8192) (i32.const 900000))";
    Guest { events: &["wordy"], strings: &[("code", "no")], memory: "20", ..Guest::routing(body) }.component()
}

/// A policy refuses each of a thousand events in a megabyte of words. The answer has the first KiB of each.
pub async fn large_refusals(seed: u64) -> anyhow::Result<String> {
    const RISE_KIB_MAX: u64 = 64 << 10;
    let wordy = wordy_policy();
    let server = Server::start("[limits]\ncall_deadline_ms = 100\n", Plugins::These(&[("wordy.wasm", &wordy)])).await?;
    let attack = async {
        let before = server.usage().resident_kib;
        let mut producer = server.producer().await?;
        let body = batch(1000, "wordy", "1");
        let asking = async {
            let answer = producer.post("/events", BATCH, &body).await?;
            ensure!(answer.status == 202, "{}", answer.sentence());
            Ok(answer.body.len())
        };
        let (bytes, most) = server.most_resident(asking).await?;
        ensure!(bytes < 2_000_000, "an answer of {bytes} bytes");
        let rose = most.saturating_sub(before);
        ensure!(rose < RISE_KIB_MAX, "memory rose by {rose} KiB");
        Ok(format!("1,000 refusals of 900 kB answered in {} KiB, memory rose by {rose} KiB at most", bytes >> 10))
    };
    let said = beside(&server, 4, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// A folder full of large files that are no plugins: they are read one at a time.
pub async fn large_files(seed: u64) -> anyhow::Result<String> {
    const FILES: u64 = 20;
    const FILE_BYTES: u64 = 33_000_000;
    let server = Server::start("", Plugins::Bundled).await?;
    let attack = async {
        for number in 0..FILES {
            std::fs::File::create(server.plugin_file(&format!("large-{number}.wasm")))?.set_len(FILE_BYTES)?;
        }
        let before = server.usage().resident_kib;
        let mut producer = server.producer().await?;
        let reloading = async {
            let answer = producer.post("/policies/reload", "application/json", b"").await?;
            ensure!(answer.status == 422, "{}", answer.sentence());
            Ok(())
        };
        let ((), most) = server.most_resident(reloading).await?;
        let rose = most.saturating_sub(before);
        ensure!(rose < 3 * (FILE_BYTES >> 10), "memory rose by {rose} KiB for {FILES} files of {} KiB", FILE_BYTES >> 10);
        Ok(format!("{FILES} files of 33 MB refused, memory rose by {rose} KiB at most"))
    };
    let said = beside(&server, 4, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Is too large to be kept from call to call, and takes some ten milliseconds to be made.
pub fn large_instance_policy() -> Vec<u8> {
    let configure = "(local $round i32)
        (loop $on (local.set $round (i32.add (local.get $round) (i32.const 1))) (br_if $on (i32.lt_u (local.get $round) (i32.const 20000000))))
        (call $configured)";
    Guest { events: &["large"], memory: "150", configure, ..Guest::routing("(call $nobody)") }.component()
}

/// A policy that needs a new instance for each call, which takes long to make: its own producers wait, and nobody else.
pub async fn new_instances(seed: u64) -> anyhow::Result<String> {
    let large = large_instance_policy();
    let server = Server::start("", Plugins::These(&[("large.wasm", &large)])).await?;
    let attack = async {
        let began = Instant::now();
        let one = async || {
            let (mut calls, mut producer) = (0, server.producer().await?);
            while began.elapsed() < Duration::from_secs(2) {
                let answer = producer.post("/events", "application/json", br#"{"type":"large"}"#).await?;
                ensure!(String::from_utf8_lossy(answer.body).contains("\"routed\""), "{}", answer.sentence());
                calls += 1;
            }
            anyhow::Ok(calls)
        };
        let ((first, second), worst) = probed(&server, async { tokio::try_join!(one(), one()) }).await?;
        Ok(format!("{} calls, each with an instance of its own; a probe waited {worst} ms at most", first + second))
    };
    let said = beside(&server, 4, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}
