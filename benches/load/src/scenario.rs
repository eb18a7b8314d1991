//! A run from the first socket to the report.

mod drive;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::Target;
use super::crowd::{Crowd, Readers};
use super::process::{Process, own_processor_time};
use super::report::{Connecting, Generator, Latency, Progress, Report, Server, micros};
use super::traffic::{Composer, Traffic};
use drive::Drive;

const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The course of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    Publish(Traffic),
    /// Sockets only.
    Idle,
    /// In each round, all sockets are dropped and reconnect at once, and each gets a message.
    Storm {
        rounds: u32,
    },
}

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scenario: Scenario,
    /// For the report.
    pub name: &'static str,
    pub users: u32,
    pub producers: u32,
    pub v1: bool,
    /// Attributes of the sessions, as in `format=compact`; may be empty.
    pub query: String,
    /// Further users without a socket, who each have a message in their mailbox.
    pub away: u32,
    /// The run ends after this many requests or this time, whichever comes first.
    pub requests_max: u64,
    pub duration_max: Duration,
    /// Requests per second, whether or not the server keeps up. If this is not set, each producer waits for its answer.
    pub rate: Option<f64>,
    /// Requests that each producer has under way over a stream; 0 for POSTs one after the other.
    pub stream: usize,
    pub message_bytes: usize,
    /// Handshakes under way at the same time.
    pub at_once: usize,
    pub seed: u64,
}

/// Runs the plan against a server, and measures its process if `server` is given.
///
/// # Errors
/// A user or a producer can't connect. Later failures are in the report.
pub async fn run(target: &Target, plan: &Plan, server: Option<Process>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Report> {
    let readers = Readers {
        run: run_name(plan.seed),
        users: plan.users,
        lanes: Composer::lanes(plan.producers),
        v1: plan.v1,
        query: plan.query.clone(),
        one_channel: target.dialect.has_channels() && plan.scenario == Scenario::Publish(Traffic::FanOut),
        at_once: plan.at_once,
        seed: plan.seed,
    };
    let resident = || server.map(|server| server.resident_kib()).unwrap_or_default();
    let before = resident();
    // The time of a child that has ended is no longer counted, so a later time may be less.
    let processor = || server.map(|server| server.processor_time()).unwrap_or_default();
    let at_first = processor();
    let mut crowd = Crowd::new(target, readers);
    let began = Instant::now();
    open(&mut crowd, began, progress).await?;
    let mut connecting = connected(&crowd, began);
    let opened = resident();
    let (mut opening, mut sockets) = (processor().saturating_sub(at_first), plan.users);
    let mut drive = Drive::new(target, plan, crowd);
    drive.prepare().await?;
    let arrived = drive.crowd.ledger().arrived();
    let began = Instant::now();
    let (own, its) = (own_processor_time(), processor());
    match plan.scenario {
        Scenario::Idle => hold(&drive, began, plan.duration_max, progress).await,
        Scenario::Publish(_) => drive.publish(progress).await?,
        Scenario::Storm { rounds } => {
            (opening, sockets) = (Duration::ZERO, plan.users.saturating_mul(rounds));
            for _ in 0..rounds {
                let before = processor();
                let round = reconnect(&mut drive, progress).await?;
                opening += processor().saturating_sub(before);
                drive.publish_to_each(progress).await?;
                if round.seconds > connecting.seconds {
                    connecting = round;
                }
            }
        }
    }
    let seconds = drive.state.lock().took.unwrap_or_else(|| began.elapsed()).as_secs_f64();
    let storm = if matches!(plan.scenario, Scenario::Storm { .. }) { opening } else { Duration::ZERO };
    let (own, its) = (own_processor_time() - own, processor().saturating_sub(its + storm));
    let after = resident();
    let deliveries = drive.crowd.ledger().arrived() - arrived;
    let events = drive.state.lock().events;
    let latency = Latency::from(drive.crowd.ledger().latency());
    drive.finish().await?;
    let each = |time: Duration| if deliveries > 0 { micros(time) / deliveries as f64 } else { 0.0 };
    let ledger = drive.crowd.ledger();
    let (findings, closed) = (ledger.findings(), drive.crowd.closed());
    let state = drive.state.lock();
    Ok(Report {
        scenario: plan.name,
        dialect: target.dialect,
        subprotocol: if plan.v1 { "signalpost.v1" } else { "plain" },
        seed: plan.seed,
        users: plan.users,
        producers: plan.producers,
        exact: findings.exact() && state.failed == 0 && closed.is_empty(),
        findings,
        failed: state.failed,
        first_failure: state.first_failure.clone(),
        closed,
        unmarked: ledger.unmarked(),
        events,
        deliveries,
        seconds,
        deliveries_per_second: if seconds > 0.0 { deliveries as f64 / seconds } else { 0.0 },
        latency,
        connecting,
        server: server.map(|_| Server {
            processor_us_per_delivery: each(its),
            processor_seconds: its.as_secs_f64(),
            processor_us_per_socket: micros(opening) / f64::from(sockets.max(1)),
            resident_kib_before: before,
            resident_kib_open: opened,
            resident_kib_after: after,
            resident_kib_per_socket: opened.saturating_sub(before) as f64 / f64::from(plan.users.max(1)),
        }),
        generator: Generator { processor_us_per_delivery: each(own), busy: own.as_secs_f64() / began.elapsed().as_secs_f64() },
    })
}

/// Makes a name that is unique to the run, so that runs don't share users.
fn run_name(seed: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("load-{:08x}", fastrand::Rng::with_seed(seed ^ now.as_nanos() as u64).u32(..))
}

async fn open(crowd: &mut Crowd, began: Instant, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<()> {
    progress(Progress { elapsed: began.elapsed(), ..Progress::default() });
    let users = crowd.readers().users;
    crowd.open().await.with_context(|| format!("can't open a socket for each of {users} users"))
}

fn connected(crowd: &Crowd, began: Instant) -> Connecting {
    let each = crowd.connecting();
    Connecting { sockets: crowd.open_sockets(), seconds: began.elapsed().as_secs_f64(), each: Latency::from(&each) }
}

async fn hold(drive: &Drive, began: Instant, duration: Duration, progress: &mut dyn FnMut(Progress)) {
    while let Some(left) = duration.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(PROGRESS_INTERVAL)).await;
        progress(drive.progress(began));
    }
}

/// Drops all sockets, and opens them again at once.
async fn reconnect(drive: &mut Arc<Drive>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Connecting> {
    // No producer task is running between two rounds, so this is the only reference.
    let drive = Arc::get_mut(drive).context("a producer task is still running")?;
    drive.crowd.drop_all().await;
    let began = Instant::now();
    open(&mut drive.crowd, began, progress).await?;
    Ok(connected(&drive.crowd, began))
}
