//! A run from the first socket to the report.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::interval;

use super::Target;
use super::crowd::{Crowd, Readers};
use super::dialect::Dialect;
use super::pace::Pace;
use super::process::{Process, own_processor_time};
use super::producer::{Answer, Producer};
use super::report::{Connecting, Generator, Latency, Progress, Report, Server, micros};
use super::stream::Stream;
use super::traffic::{Composer, Request, Traffic};

/// Outstanding deliveries per user, on average: a fifth of what a mailbox holds by default. Producers wait for the readers, so
/// that a run measures the server's speed and not its limits.
const OUTSTANDING_PER_USER: u64 = 200;

/// If nothing has arrived for this long, what is missing is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for duplicates after every message has arrived once.
const QUIET: Duration = Duration::from_millis(200);

/// The shortest interval of the pace; at a higher rate several messages are due at each tick. A timer per message would cost
/// more than the message.
const TICK_MIN: Duration = Duration::from_micros(500);

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
                let round = drive.reconnect(progress).await?;
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

/// How a producer sends its requests.
enum Link {
    Posts(Producer),
    Stream(Stream),
}

/// A run in progress, which the producers share.
struct Drive {
    target: Target,
    plan: Plan,
    crowd: Crowd,
    composer: Composer,
    state: Mutex<State>,
    /// Wakes producers when a request is due, or when all have been sent.
    more: Notify,
}

struct State {
    random: fastrand::Rng,
    /// Requests that may still be sent, until `until`.
    left: u64,
    until: Instant,
    /// The next user, if users take turns; otherwise they are chosen at random.
    turn: Option<u32>,
    events: u64,
    failed: u64,
    first_failure: Option<String>,
    /// At a fixed rate: the due times of the requests that wait for a producer.
    due: VecDeque<Duration>,
    all_due: bool,
    took: Option<Duration>,
}

impl Drive {
    fn new(target: &Target, plan: &Plan, crowd: Crowd) -> Arc<Drive> {
        let traffic = match plan.scenario {
            Scenario::Publish(traffic) => traffic,
            Scenario::Idle | Scenario::Storm { .. } => Traffic::Direct,
        };
        Arc::new(Drive {
            target: target.clone(),
            plan: plan.clone(),
            crowd,
            composer: Composer::new(target.dialect, traffic, plan.message_bytes),
            state: Mutex::new(State {
                random: fastrand::Rng::with_seed(plan.seed),
                left: plan.requests_max,
                until: Instant::now() + plan.duration_max,
                turn: None,
                events: 0,
                failed: 0,
                first_failure: None,
                due: VecDeque::new(),
                all_due: false,
                took: None,
            }),
            more: Notify::new(),
        })
    }

    fn progress(&self, began: Instant) -> Progress {
        let ledger = self.crowd.ledger();
        Progress {
            elapsed: began.elapsed(),
            open_sockets: self.crowd.open_sockets(),
            events: self.state.lock().events,
            arrived: ledger.arrived(),
            outstanding: ledger.outstanding(),
        }
    }

    /// Makes the groups that the traffic needs, and the mailboxes of absent users. This is not part of the measurement.
    async fn prepare(&self) -> anyhow::Result<()> {
        let lane = self.plan.producers;
        self.post_all(self.composer.before(&self.crowd, lane).chain(self.composer.for_the_away(&self.crowd, self.plan.away))).await?;
        self.crowd.ledger().forget_latency();
        self.state.lock().events = 0;
        Ok(())
    }

    /// Ends the groups, and waits for duplicates.
    async fn finish(&self) -> anyhow::Result<()> {
        let lane = self.plan.producers;
        self.post_all(self.composer.after(&self.crowd, lane)).await?;
        tokio::time::sleep(QUIET).await;
        Ok(())
    }

    async fn post_all(&self, requests: impl Iterator<Item = Request>) -> anyhow::Result<()> {
        let mut producer = self.producer().await?;
        for request in requests {
            self.post(&mut producer, &request).await?;
            self.crowd.drained_to(0, PATIENCE).await;
        }
        Ok(())
    }

    async fn producer(&self) -> anyhow::Result<Producer> {
        Producer::connect(&self.target).await.context("a producer can't connect")
    }

    /// Publishes until all requests are sent, and waits until all messages have arrived.
    async fn publish(self: &Arc<Drive>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<()> {
        let mut links = Vec::new();
        for _ in 0..self.plan.producers {
            links.push(match self.plan.stream {
                0 => Link::Posts(self.producer().await?),
                _ => Link::Stream(Stream::connect(&self.target).await.context("a producer can't open a stream")?),
            });
        }
        let mut tasks = Vec::new();
        let began = Instant::now();
        self.state.lock().until = began + self.plan.duration_max;
        for (link, lane) in links.into_iter().zip(0..) {
            let drive = self.clone();
            tasks.push(tokio::spawn(async move {
                match (link, drive.plan.rate) {
                    (Link::Stream(stream), _) => drive.streamed(stream, lane).await,
                    (Link::Posts(producer), None) => drive.closed_loop(producer, lane).await,
                    (Link::Posts(producer), Some(_)) => drive.open_loop(producer, lane).await,
                }
            }));
        }
        let pace = self.plan.rate.map(|rate| {
            let drive = self.clone();
            tokio::spawn(async move { drive.keep_pace(rate).await })
        });
        let all = async {
            if let Some(pace) = pace {
                pace.await??;
            }
            for task in tasks {
                task.await?;
            }
            self.crowd.drained_to(0, PATIENCE).await;
            anyhow::Ok(())
        };
        tokio::pin!(all);
        let mut tick = interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                done = &mut all => {
                    done?;
                    break;
                }
                _ = tick.tick() => progress(self.progress(began)),
            }
        }
        *self.state.lock().took.get_or_insert_default() += began.elapsed();
        Ok(())
    }

    /// Sends a request as soon as the last one is answered and the readers keep up.
    async fn closed_loop(&self, mut producer: Producer, lane: u32) {
        let mut request = Request::default();
        let window = OUTSTANDING_PER_USER * u64::from(self.plan.users);
        while let Some(user) = self.next() {
            let outstanding = self.crowd.ledger().outstanding();
            if outstanding >= window && !self.crowd.drained_to(window / 2, PATIENCE).await {
                return;
            }
            self.composer.compose(&self.crowd, lane, user, self.crowd.now(), &mut request);
            if self.post(&mut producer, &request).await.is_err() {
                return;
            }
        }
    }

    /// Keeps this many requests under way over a stream, as long as the readers keep up.
    async fn streamed(&self, mut stream: Stream, lane: u32) {
        let mut request = Request::default();
        let window = OUTSTANDING_PER_USER * u64::from(self.plan.users);
        let mut is_more = true;
        while is_more || stream.under_way() > 0 {
            if self.crowd.ledger().outstanding() >= window && !self.crowd.drained_to(window / 2, PATIENCE).await {
                return;
            }
            while is_more && stream.under_way() < self.plan.stream {
                let Some(user) = self.next() else {
                    is_more = false;
                    break;
                };
                self.composer.compose(&self.crowd, lane, user, self.crowd.now(), &mut request);
                stream.add(&request);
            }
            let exchange = async {
                stream.flush().await?;
                if stream.under_way() > 0 {
                    stream.answers(|answer, deliveries, events| self.judge(&answer, deliveries, events)).await
                } else {
                    Ok(())
                }
            };
            if let Err(error) = exchange.await {
                self.failed(format!("a producer's stream failed: {error}"));
                return;
            }
        }
    }

    /// Sends the requests that are due. All producers take them from one queue.
    async fn open_loop(&self, mut producer: Producer, lane: u32) {
        let mut request = Request::default();
        loop {
            let (due, all_due) = {
                let mut state = self.state.lock();
                (state.due.pop_front(), state.all_due)
            };
            match due {
                Some(at) => {
                    let user = self.user();
                    self.composer.compose(&self.crowd, lane, user, at, &mut request);
                    if self.post(&mut producer, &request).await.is_err() {
                        return;
                    }
                }
                None if all_due => return,
                None => self.more.notified().await,
            }
        }
    }

    async fn keep_pace(&self, rate: f64) -> io::Result<()> {
        let mut pace = Pace::new(Duration::from_secs_f64(1.0 / rate).max(TICK_MIN))?;
        let start = self.crowd.now();
        let mut sent = 0.0;
        loop {
            let since = pace.tick().await?;
            while sent + 1.0 <= since.as_secs_f64() * rate + 1e-6 {
                sent += 1.0;
                if !self.claim() {
                    self.state.lock().all_due = true;
                    self.more.notify_waiters();
                    return Ok(());
                }
                self.state.lock().due.push_back(start + since);
                self.more.notify_one();
            }
        }
    }

    /// Takes one of the requests that may still be sent; returns whether there was one.
    fn claim(&self) -> bool {
        let mut state = self.state.lock();
        if state.left == 0 || Instant::now() >= state.until {
            return false;
        }
        state.left -= 1;
        true
    }

    fn next(&self) -> Option<u32> {
        self.claim().then(|| self.user())
    }

    fn user(&self) -> u32 {
        let mut state = self.state.lock();
        match &mut state.turn {
            Some(turn) => {
                let user = *turn % self.plan.users.max(1);
                *turn += 1;
                user
            }
            None => state.random.u32(..self.plan.users.max(1)),
        }
    }

    /// Posts a request, and counts a failure or an answer that is not the expected one.
    ///
    /// # Errors
    /// The connection can't be used any more.
    async fn post(&self, producer: &mut Producer, request: &Request) -> io::Result<()> {
        match producer.post(&request.path, request.content_type, &request.body).await {
            Ok(answer) => {
                self.judge(&answer, request.deliveries, request.events);
                Ok(())
            }
            Err(error) => {
                self.failed(format!("a producer's connection failed: {error}"));
                Err(error)
            }
        }
    }

    /// Counts an answer as a success, or as a failure if it is not the expected one.
    fn judge(&self, answer: &Answer<'_>, deliveries: u64, events: u64) {
        if self.target.dialect.took(answer, deliveries) {
            self.state.lock().events += events;
            return;
        }
        let sentence = match self.target.dialect {
            Dialect::Signalpost => format!("of {deliveries} deliveries the server posted {}: ", answer.posted()),
            _ => String::new(),
        };
        self.failed(sentence + &answer.sentence());
    }

    fn failed(&self, sentence: String) {
        let mut state = self.state.lock();
        state.failed += 1;
        state.first_failure.get_or_insert(sentence);
    }

    /// Drops all sockets, and opens them again at once.
    async fn reconnect(self: &mut Arc<Drive>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Connecting> {
        // No producer task is running between two rounds, so this is the only reference.
        let drive = Arc::get_mut(self).context("a producer task is still running")?;
        drive.crowd.drop_all().await;
        let began = Instant::now();
        open(&mut drive.crowd, began, progress).await?;
        Ok(connected(&drive.crowd, began))
    }

    async fn publish_to_each(self: &Arc<Drive>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<()> {
        {
            let mut state = self.state.lock();
            (state.left, state.turn) = (u64::from(self.plan.users), Some(0));
        }
        self.publish(progress).await
    }
}
