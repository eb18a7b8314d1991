//! What the bounds of memory are worth: each is filled, and what the process has more in memory then is at most twice what is accounted.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use crate::attacks::socket;
use crate::policies::{batch, subject_policy, wide_policy};
use crate::server::{Plugins, Server};
use crate::wat::Guest;

/// What requests, an allocator and further instances cost beside what is measured.
const NOISE_BYTES: f64 = 6_291_456.0;

const FACTOR_MAX: f64 = 2.0;

/// What docs/security.md says that each costs beside what is accounted in bytes.
const MAILBOX_BYTES: f64 = 300.0;
const ID_BYTES: f64 = 40.0;
const MEMBER_BYTES: f64 = 200.0;

const JSON: &str = "application/json";
const BATCH: &str = "application/cloudevents-batch+json";
const KEPT: &str = "[mailboxes]\nkeep_ms = 600_000\nmessages_max = 1_000_000\n";

pub async fn run(_seed: u64) -> anyhow::Result<String> {
    let mut figures = Vec::new();
    for (name, users, kind) in [
        ("messages", 40_000, Kind::Short),
        ("messages-of-few", 100, Kind::Short),
        ("messages-with-long-names", 2_000, Kind::LongNames),
        ("messages-with-keys", 2_000, Kind::Keys),
        ("large-messages", 100, Kind::Large),
    ] {
        figures.push(mailboxes(name, users, kind).await.with_context(|| name.to_owned())?);
    }
    figures.push(dead_letters().await.context("dead letters")?);
    figures.push(event_ids().await.context("event ids")?);
    figures.push(memberships().await.context("memberships")?);
    figures.push(state().await.context("state")?);
    figures.push(shapes().await.context("shapes")?);
    Ok(figures.join(", "))
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Short,
    LongNames,
    Keys,
    Large,
}

/// Compares what is in memory with what is accounted.
fn compare(name: &str, server: &Server, before_kib: u64, accounted: f64) -> anyhow::Result<String> {
    let rose = server.usage().resident_kib.saturating_sub(before_kib) as f64 * 1024.0;
    let (rose_kib, accounted_kib) = (rose / 1024.0, accounted / 1024.0);
    ensure!(accounted > 2.0 * NOISE_BYTES / 3.0, "{name}: only {accounted_kib:.0} KiB are accounted");
    ensure!(
        rose <= FACTOR_MAX * accounted + NOISE_BYTES,
        "{name}: memory rose by {rose_kib:.0} KiB, and {accounted_kib:.0} KiB are accounted"
    );
    Ok(format!("{name} {:.1}×", rose / accounted))
}

async fn mailboxes(name: &str, users: usize, kind: Kind) -> anyhow::Result<String> {
    let route = subject_policy("kept.*");
    let server = Server::start_frugal(KEPT, Plugins::These(&[("route.wasm", &route)])).await?;
    let mut producer = server.producer().await?;
    // Once before, for what the first requests allocate for good.
    producer.post("/users/first/messages", JSON, b"1").await?;
    let before = server.usage().resident_kib;
    let messages = if kind == Kind::Large { 200 } else { 40_000 };
    let mut sent = 0;
    while sent < messages {
        let answer = match kind {
            Kind::Keys => {
                let key = format!("{sent:0>128}");
                producer.post(&format!("/users/u{}/messages?collapse_key={key}", sent % users), JSON, b"1").await?
            }
            Kind::Large => {
                let body = format!("\"{}\"", "x".repeat(200_000));
                producer.post(&format!("/users/u{}/messages", sent % users), JSON, body.as_bytes()).await?
            }
            Kind::Short | Kind::LongNames => {
                let long = if kind == Kind::LongNames { "n".repeat(900) } else { String::new() };
                let event = |number: usize| {
                    format!(
                        r#"{{"specversion":"1.0","id":"{long}{number}","source":"/s","type":"kept.it","subject":"u{}","data":1}}"#,
                        number % users
                    )
                };
                let events = (sent..sent + 1000).map(event).collect::<Vec<_>>().join(",");
                sent += 999;
                producer.post("/events", BATCH, format!("[{events}]").as_bytes()).await?
            }
        };
        ensure!(answer.status == 202, "{}", answer.sentence());
        sent += 1;
    }
    let kept = server.metric("signalpost_mailbox_messages").await?;
    ensure!(kept as usize > messages, "{kept} messages are kept");
    let ids = if matches!(kind, Kind::Short | Kind::LongNames) { ID_BYTES * kept } else { 0.0 };
    let accounted = server.metric("signalpost_mailbox_bytes").await? + MAILBOX_BYTES * server.metric("signalpost_mailboxes").await? + ids;
    let said = compare(name, &server, before, accounted);
    server.stop().await?;
    said
}

/// Events that their policy fails on, each with thirty long extensions.
async fn dead_letters() -> anyhow::Result<String> {
    let boom = Guest { events: &["boom"], ..Guest::routing("unreachable") }.component();
    let settings = "[limits]\nbreaker_faults = 1_000_000\n[dead_letters]\nletters_max = 100_000\nbytes_max = 16_777_216\n";
    let server = Server::start_frugal(settings, Plugins::These(&[("boom.wasm", &boom)])).await?;
    let mut producer = server.producer().await?;
    producer.post("/events", JSON, br#"{"type":"boom"}"#).await?;
    let before = server.usage().resident_kib;
    let extensions: String = (0..30).map(|number| format!("\"ext{number}\":\"{}\",", "x".repeat(200))).collect();
    for number in 0..6 {
        let event = |event: usize| {
            format!(
                r#"{{"specversion":"1.0","id":"{number}-{event}","source":"/s",{extensions}"type":"boom","data":{{"number":{event}}}}}"#
            )
        };
        let events = (0..500).map(event).collect::<Vec<_>>().join(",");
        let answer = producer.post("/events", BATCH, format!("[{events}]").as_bytes()).await?;
        ensure!(answer.status == 202, "{}", answer.sentence());
    }
    let listed = producer.request("GET", "/dead-letters", JSON, b"").await?;
    let text = String::from_utf8_lossy(listed.body).into_owned();
    let bytes = text.split_once("\"bytes\":").and_then(|(_, rest)| rest.split([',', '}']).next()?.parse::<f64>().ok());
    let bytes = bytes.context("the dead letters have no bytes")?;
    ensure!(bytes <= 16_777_216.0, "{bytes} bytes of dead letters");
    let said = compare("dead-letters", &server, before, bytes);
    server.stop().await?;
    said
}

/// As many ids as are remembered.
async fn event_ids() -> anyhow::Result<String> {
    let server = Server::start_frugal("", Plugins::These(&[])).await?;
    let mut producer = server.producer().await?;
    producer.post("/events", BATCH, &batch(1000, "nobody.wants", "1")).await?;
    let before = server.usage().resident_kib;
    for _ in 0..220 {
        let answer = producer.post("/events", BATCH, &batch(1000, "nobody.wants", "1")).await?;
        ensure!(answer.status == 202, "{}", answer.sentence());
    }
    let said = compare("event-ids", &server, before, ID_BYTES * 200_000.0);
    server.stop().await?;
    said
}

async fn memberships() -> anyhow::Result<String> {
    const EVENTS: usize = 45;
    let wide = wide_policy();
    let server = Server::start_frugal("", Plugins::These(&[("wide.wasm", &wide)])).await?;
    let mut producer = server.producer().await?;
    let before = server.usage().resident_kib;
    let answer = producer.post("/events", BATCH, &batch(EVENTS, "wide.join", "1")).await?;
    ensure!(answer.status == 202, "{}", answer.sentence());
    let members = server.metric("signalpost_group_memberships").await?;
    ensure!(members == EVENTS as f64 * 1000.0, "{members} memberships");
    let said = compare("memberships", &server, before, MEMBER_BYTES * members);
    server.stop().await?;
    said
}

/// Short keys with short values, until there is no room.
async fn state() -> anyhow::Result<String> {
    const BYTES: f64 = 8_388_608.0;
    let fields = r#"(import "signalpost:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32)))
        (global $next (mut i32) (i32.const 0))"#;
    let body = "(loop $on
          (i32.store (i32.const 904) (global.get $next))
          (call $set (i32.const 904) (i32.const 4) (i32.const 904) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 912))
          (global.set $next (i32.add (global.get $next) (i32.const 1)))
          (local.set $local (i32.add (local.get $local) (i32.const 1)))
          (br_if $on (i32.lt_u (local.get $local) (i32.const 1000))))
        (call $nobody)";
    // A key is text: only numbers whose bytes are ASCII are.
    let body = body.replace("(i32.store (i32.const 904) (global.get $next))", SPELLED);
    let hoarder = Guest { imports: &["state"], events: &["hoard"], fields, ..Guest::routing(&body) }.component();
    let settings = "[policies.hoard]\ngrants = [\"state\"]\n[policies.hoard.limits]\ncall_deadline_ms = 2000\nstate_bytes_max = 8_388_608\n\
                    state_keys_max = 1_000_000\n";
    let server = Server::start_frugal(settings, Plugins::These(&[("hoard.wasm", &hoarder)])).await?;
    let mut producer = server.producer().await?;
    producer.post("/events", JSON, br#"{"type":"hoard"}"#).await?;
    let before = server.usage().resident_kib;
    for _ in 0..12 {
        let answer = producer.post("/events", BATCH, &batch(15, "hoard", "1")).await?;
        let text = String::from_utf8_lossy(answer.body);
        let fault = text.split_once("\"kind\"").map(|(_, rest)| rest);
        ensure!(answer.status == 202 && fault.is_none(), "{} {}", answer.status, fault.unwrap_or_default());
    }
    let said = compare("state", &server, before, BYTES);
    server.stop().await?;
    said
}

/// Writes a number as four letters.
const SPELLED: &str = "(i32.store8 (i32.const 904) (i32.add (i32.const 64) (i32.and (global.get $next) (i32.const 31))))
    (i32.store8 (i32.const 905) (i32.add (i32.const 64) (i32.and (i32.shr_u (global.get $next) (i32.const 5)) (i32.const 31))))
    (i32.store8 (i32.const 906) (i32.add (i32.const 64) (i32.and (i32.shr_u (global.get $next) (i32.const 10)) (i32.const 31))))
    (i32.store8 (i32.const 907) (i32.add (i32.const 64) (i32.and (i32.shr_u (global.get $next) (i32.const 15)) (i32.const 31))))";

/// Small messages that are formatted to 32 KiB each, far more than are kept.
async fn shapes() -> anyhow::Result<String> {
    const BYTES: f64 = 16_777_216.0;
    let body = "(memory.fill (i32.const 16384) (i32.const 120) (i32.const 32768))
        (i32.store8 (i32.const 16384) (i32.const 34)) (i32.store8 (i32.const 49151) (i32.const 34))
        (call $shaped (i32.const 16384) (i32.const 32768))";
    let large = Guest { memory: "4", ..Guest::formatting(body) }.component();
    let settings = "[mailboxes]\nshapes_bytes_max = 16_777_216\n";
    let server = Server::start_frugal(settings, Plugins::These(&[("large.wasm", &large)])).await?;
    let mut reader = socket(&server, "reader").await?;
    let mut producer = server.producer().await?;
    let before = server.usage().resident_kib;
    let (mut got, mut read) = (vec![0; 1 << 16], 0);
    for number in 1..=1200 {
        let answer = producer.post("/users/reader/messages", JSON, b"1").await?;
        ensure!(answer.posted() == 1, "{}", answer.sentence());
        while read < number * 32_768 {
            read += timeout(Duration::from_secs(10), reader.read(&mut got)).await.context("no message in time")??;
        }
    }
    let said = compare("shapes", &server, before, BYTES);
    server.stop().await?;
    said
}
