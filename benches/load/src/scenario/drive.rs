//! The producers of a run: they publish by the plan, one request after the other, many under way, or at a fixed rate.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::interval;

use super::{PROGRESS_INTERVAL, Plan, Scenario};
use crate::Target;
use crate::crowd::Crowd;
use crate::dialect::Dialect;
use crate::pace::Pace;
use crate::producer::{Answer, Producer};
use crate::report::Progress;
use crate::stream::Stream;
use crate::traffic::{Composer, Request, Traffic};

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

/// How a producer sends its requests.
enum Link {
    Posts(Producer),
    Stream(Stream),
}

/// A run in progress, which the producers share.
pub struct Drive {
    target: Target,
    plan: Plan,
    pub crowd: Crowd,
    composer: Composer,
    pub state: Mutex<State>,
    /// Wakes producers when a request is due, or when all have been sent.
    more: Notify,
}

pub struct State {
    random: fastrand::Rng,
    /// Requests that may still be sent, until `until`.
    left: u64,
    until: Instant,
    /// The next user, if users take turns; otherwise they are chosen at random.
    turn: Option<u32>,
    pub events: u64,
    pub failed: u64,
    pub first_failure: Option<String>,
    /// At a fixed rate: the due times of the requests that wait for a producer.
    due: VecDeque<Duration>,
    all_due: bool,
    pub took: Option<Duration>,
}

impl Drive {
    pub fn new(target: &Target, plan: &Plan, crowd: Crowd) -> Arc<Drive> {
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

    pub fn progress(&self, began: Instant) -> Progress {
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
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let lane = self.plan.producers;
        self.post_all(self.composer.before(&self.crowd, lane).chain(self.composer.for_the_away(&self.crowd, self.plan.away))).await?;
        self.crowd.ledger().forget_latency();
        self.state.lock().events = 0;
        Ok(())
    }

    /// Ends the groups, and waits for duplicates.
    pub async fn finish(&self) -> anyhow::Result<()> {
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
    pub async fn publish(self: &Arc<Drive>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<()> {
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

    pub async fn publish_to_each(self: &Arc<Drive>, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<()> {
        {
            let mut state = self.state.lock();
            (state.left, state.turn) = (u64::from(self.plan.users), Some(0));
        }
        self.publish(progress).await
    }
}
