//! A thousand reloads under load: two versions of two policies and bad files, and each message shaped by exactly one version.

use std::cell::Cell;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use signalpost_load::{Crowd, Pace, Readers};

use crate::server::{Plugins, Server, Usage};
use crate::wat::Guest;

const RELOADS: u32 = 1000;
/// The fastest that they follow one another. A replaced policy set is kept for two seconds, so that a hundred are there at a time.
const RELOAD_INTERVAL: Duration = Duration::from_millis(20);
/// By now, whatever is allocated once is, and as many sets are retired as made.
const WARM_RELOADS: u32 = 200;
const EVENTS_PER_SECOND: f64 = 2000.0;
const USERS: u32 = 100;
const PRODUCERS: u32 = 4;
/// Two of ten reloads are of a bad file: one of garbage, one of a component that ends too early.
const BAD_EVERY: u32 = 10;

/// An allocator's ups and downs. Eight hundred instances, or compiled policies, that were not given back would be 100 MiB.
const GROWTH_KIB_MAX: u64 = 16 << 10;

/// Two versions of a policy that routes and one that formats, which both write their version into each message.
struct Version {
    name: &'static str,
    route: Vec<u8>,
    format: Vec<u8>,
}

impl Version {
    fn new(name: &'static str) -> Version {
        let before = format!(r#"{{"routed":"{name}","event":"#);
        // To the user that the event's subject names. An event's layout: subject 24 (an option), data 64 (an option of a variant).
        let body = "(call $append (global.get $before) (global.get $before_bytes))
            (call $append (i32.load offset=72 (local.get $event)) (i32.load offset=76 (local.get $event)))
            (call $append (global.get $after) (global.get $after_bytes))
            (call $tell (i32.load offset=28 (local.get $event)) (i32.load offset=32 (local.get $event))
                (global.get $text) (global.get $text_bytes))";
        let route = Guest { version: name, strings: &[("before", &before), ("after", "}")], ..Guest::routing(body) }.component();
        let before = format!(r#"{{"formatted":"{name}","message":"#);
        let body = "(call $append (global.get $before) (global.get $before_bytes))
            (call $append (local.get $body) (local.get $body_bytes))
            (call $append (global.get $after) (global.get $after_bytes))
            (call $shaped (global.get $text) (global.get $text_bytes))";
        let format = Guest { version: name, strings: &[("before", &before), ("after", "}")], ..Guest::formatting(body) }.component();
        Version { name, route, format }
    }
}

/// Messages by the version that shaped them, and those that more than one did.
#[derive(Default)]
struct Shaped {
    first: AtomicU64,
    second: AtomicU64,
    mixed: AtomicU64,
}

pub async fn run(seed: u64) -> anyhow::Result<String> {
    let versions = [Version::new("one"), Version::new("two")];
    let files: [(&str, &[u8]); 2] = [("route.wasm", &versions[0].route), ("format.wasm", &versions[0].format)];
    let server = Server::start("", Plugins::These(&files)).await?;
    let run = format!("reloads-{seed:x}");
    let readers = Readers { run, users: USERS, lanes: PRODUCERS, v1: false, query: String::new(), one_channel: false, at_once: 100, seed };
    let mut crowd = Crowd::new(&server.target, readers);
    let shaped = Arc::new(Shaped::default());
    let counted = shaped.clone();
    crowd.look_at_messages(move |_, payload| {
        let counter = match payload {
            one if one.starts_with(br#"{"formatted":"one","message":{"routed":"one","event":"#) => &counted.first,
            two if two.starts_with(br#"{"formatted":"two","message":{"routed":"two","event":"#) => &counted.second,
            _ => &counted.mixed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    });
    crowd.open().await?;
    let over = Cell::new(false);
    let publishing = async {
        let lanes = (0..PRODUCERS).map(|lane| publish(&server, &crowd, lane, seed, &over));
        futures_util::future::try_join_all(lanes).await
    };
    let reloading = async {
        let outcome = reload(&server, &versions, seed).await;
        over.set(true);
        outcome
    };
    let (published, reloaded) = tokio::join!(publishing, reloading);
    let (warm, swaps, seconds) = reloaded?;
    let published: u64 = published?.into_iter().sum();
    ensure!(crowd.drained_to(0, Duration::from_secs(5)).await, "{:?}", crowd.ledger().findings());
    let findings = crowd.ledger().findings();
    let [first, second, mixed] = [&shaped.first, &shaped.second, &shaped.mixed].map(|counter| counter.load(Ordering::Relaxed));
    ensure!(findings.exact() && crowd.closed().is_empty() && crowd.ledger().unmarked() == 0, "{findings:?}, closed {:?}", crowd.closed());
    ensure!(mixed == 0, "{mixed} messages were not shaped by one version");
    ensure!(first + second == published && first > 0 && second > 0, "{first} and {second} of {published} messages");
    // The instances of the last version before are retired.
    let after = server.recovers(warm, GROWTH_KIB_MAX).await?;
    let p99 = crowd.ledger().latency().quantile(0.99).as_secs_f64() * 1000.0;
    drop(crowd);
    server.stop().await?;
    Ok(format!(
        "{RELOADS} reloads ({swaps} swaps) in {seconds:.1} s; {first} + {second} messages exact, p99 {p99:.1} ms; memory {} → {} KiB, files {} → {}",
        warm.resident_kib, after.resident_kib, warm.open_files, after.open_files
    ))
}

/// Events to users by chance, at this lane's part of the rate; how many.
async fn publish(server: &Server, crowd: &Crowd, lane: u32, seed: u64, over: &Cell<bool>) -> anyhow::Result<u64> {
    let mut producer = server.producer().await?;
    let mut random = fastrand::Rng::with_seed(seed ^ u64::from(lane));
    let mut pace = Pace::new(Duration::from_secs_f64(f64::from(PRODUCERS) / EVENTS_PER_SECOND))?;
    let start = crowd.now();
    let (mut body, mut count) = (Vec::new(), 0);
    while !over.get() {
        let due = start + pace.tick().await?;
        let user = random.u32(..USERS);
        body.clear();
        write!(body, r#"{{"type":"stamp","subject":"{}","data":{{"#, crowd.user(user))?;
        crowd.ledger().send(lane, due, &[user], &mut body);
        body.extend_from_slice(b"}}");
        let answer = producer.post("/events", "application/json", &body).await?;
        ensure!(answer.status == 202 && answer.posted() == 1, "{}", answer.sentence());
        count += 1;
    }
    Ok(count)
}

/// What the server had in use when warm, how many reloads swapped, and how long all of them took.
async fn reload(server: &Server, versions: &[Version; 2], seed: u64) -> anyhow::Result<(Usage, u32, f64)> {
    let mut producer = server.producer().await?;
    let mut random = fastrand::Rng::with_seed(seed);
    let began = std::time::Instant::now();
    let (mut serving, mut swaps, mut warm) = (0, 0, None);
    let mut interval = tokio::time::interval(RELOAD_INTERVAL);
    for round in 1..=RELOADS {
        interval.tick().await;
        let next = &versions[(serving + 1) % 2];
        let bad = match round % BAD_EVERY {
            3 => {
                // Garbage that is new every time: what was refused before isn't looked at again.
                let garbage: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(800).collect();
                server.replace("route.wasm", &garbage)?;
                true
            }
            7 => {
                let end = random.usize(..next.format.len());
                server.replace("format.wasm", &next.format[..end])?;
                true
            }
            _ => {
                server.replace("route.wasm", &next.route)?;
                server.replace("format.wasm", &next.format)?;
                false
            }
        };
        let answer = producer.post("/policies/reload", "application/json", b"").await?;
        if bad {
            // The same bytes may have been cut off here before; then there is nothing new to refuse.
            ensure!(matches!(answer.status, 200 | 422), "round {round}: {}", answer.sentence());
            ensure!(answer.status == 422 || answer.body.ends_with(br#""changed":[]}"#), "round {round}: a bad file was taken");
        } else {
            ensure!(answer.status == 200, "round {round}, version {}: {}", next.name, answer.sentence());
            serving = (serving + 1) % 2;
            swaps += 1;
        }
        if round == WARM_RELOADS {
            warm = Some(server.usage());
        }
    }
    Ok((warm.context("too few reloads")?, swaps, began.elapsed().as_secs_f64()))
}
