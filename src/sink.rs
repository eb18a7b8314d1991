//! Sinks: backends to which events are posted, as Standard Webhooks of CloudEvents. A sink is a reader of a mailbox, as a session is: what it
//! has to deliver is in the store, and a backend that is away delays nobody.
//!
//! Each sink has one task, which reads its mailbox, begins requests and judges their outcome. Events arrive at least once, and those of one
//! subject in order (`lanes`), as fast as the backend takes them (`pace`). What can't be delivered becomes a dead letter.

mod attempt;
mod lanes;
mod pace;
mod secrets;
mod setup;
mod status;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::IntCounter;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::{Config, SinkLimits};
use crate::metrics::{Metrics, SinkGauges};
use crate::model::Model;
use crate::model::dead_letters::DeadLetter;
use crate::model::mailbox::{SinkReader, Taken};
use crate::store::Store;
use crate::types::event::UserId;
use attempt::Outcome;
use lanes::{Batch, BatchLimits, Lanes, Pending};
use pace::Pace;
use secrets::Stamp;
use setup::Setup;
pub use setup::{Changed, Prepared};
pub use status::View;
use status::{Counters, Failure, State, Status};

/// How often events are looked for that have waited for too long.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a stop waits for events that are on their way. What a store keeps goes out after the next start.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// All sinks.
#[derive(Debug)]
pub struct Sinks {
    all: ArcSwap<Vec<Arc<Sink>>>,
    /// The tasks of the sinks, while this process delivers. Locked while that changes.
    running: tokio::sync::Mutex<Option<HashMap<Arc<str>, Running>>>,
    model: Arc<Model>,
    store: Store,
    metrics: Arc<Metrics>,
}

/// The task of a sink.
#[derive(Debug)]
struct Running {
    task: JoinSet<()>,
    stop: watch::Sender<Option<Stop>>,
}

/// Why a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The server stops, or another node delivers from now on.
    Here,
    /// The configuration names the sink no more.
    Removed,
}

#[derive(Debug)]
struct Sink {
    name: Arc<str>,
    setup: ArcSwap<Setup>,
    /// The files of the secrets when they were last read, whether or not that succeeded.
    seen: Mutex<Stamp>,
    /// Notified when the backend may be back, or is another one.
    resume: Notify,
    status: Mutex<Status>,
    counters: Counters,
    model: Arc<Model>,
    store: Store,
}

impl Sinks {
    /// Reads the secrets of all sinks.
    ///
    /// # Errors
    /// A file can't be read, or holds no secret.
    pub fn new(config: &Config, model: &Arc<Model>, store: &Store, metrics: &Arc<Metrics>) -> anyhow::Result<Arc<Sinks>> {
        let (model, store, metrics) = (model.clone(), store.clone(), metrics.clone());
        let sinks = Sinks { all: ArcSwap::default(), running: tokio::sync::Mutex::default(), model, store, metrics };
        let all = sinks.prepare(config)?.0.into_iter().filter_map(|(name, setup)| Some(sinks.sink(&name, setup?))).collect();
        sinks.all.store(Arc::new(all));
        Ok(Arc::new(sinks))
    }

    /// Starts the task of each sink.
    pub async fn start(&self) {
        let all = self.all.load();
        let running = all.iter().filter_map(|sink| Some((sink.name.clone(), sink.start()?))).collect();
        *self.running.lock().await = Some(running);
    }

    /// Lets the sinks finish what is on its way, for a short time.
    pub async fn finish(&self) {
        let running = self.running.lock().await.take();
        finish(running.into_iter().flatten().map(|(_, running)| running), Stop::Here).await;
    }

    /// Lets sinks go on whose backends have answered 410, and others try at once.
    pub fn resume(&self) {
        self.all.load().iter().for_each(|sink| sink.resume.notify_one());
    }

    /// Reads changed files with secrets. If they can't be used, the secrets stay as they are. Blocks.
    pub fn refresh(&self) {
        self.all.load().iter().for_each(|sink| sink.refresh());
    }

    /// Returns what operators see.
    pub fn views(&self) -> Vec<View> {
        self.all.load().iter().map(|sink| sink.view()).collect()
    }

    pub fn gauges(&self) -> Vec<SinkGauges> {
        let gauges = |sink: &Arc<Sink>| {
            let view = sink.view();
            SinkGauges { name: sink.name.clone(), waiting: view.waiting, lag_ms: view.lag_ms, is_stopped: view.state == State::Stopped }
        };
        self.all.load().iter().map(gauges).collect()
    }

    fn sink(&self, name: &str, setup: Setup) -> Arc<Sink> {
        Arc::new(Sink {
            name: name.into(),
            seen: Mutex::new(secrets::stamp(&setup.config.secret_files)),
            setup: ArcSwap::from_pointee(setup),
            resume: Notify::new(),
            status: Mutex::default(),
            counters: Counters::new(name, &self.metrics),
            model: self.model.clone(),
            store: self.store.clone(),
        })
    }
}

/// Ends tasks, and waits for them.
async fn finish(running: impl Iterator<Item = Running>, why: Stop) {
    let ending: Vec<Running> = running
        .inspect(|running| {
            running.stop.send_replace(Some(why));
        })
        .collect();
    for Running { mut task, stop: _stop } in ending {
        while task.join_next().await.is_some() {}
    }
}

/// What a sink's task knows.
struct Work {
    reader: SinkReader,
    lanes: Lanes,
    pace: Pace,
    under_way: JoinSet<(Batch, Outcome)>,
    is_stopped: bool,
}

impl Sink {
    /// Starts its task, if its mailbox can be read.
    fn start(self: &Arc<Sink>) -> Option<Running> {
        match self.model.mailboxes.open_sink(UserId::of_sink(&self.name)) {
            Ok(reader) => {
                let (stop, stopped) = watch::channel(None);
                let mut task = JoinSet::new();
                task.spawn(self.clone().run(reader, stopped));
                Some(Running { task, stop })
            }
            Err(close) => {
                tracing::error!(sink = &*self.name, "the sink's mailbox can't be read: {}", close.reason());
                None
            }
        }
    }

    /// Delivers until it is stopped. Each round does everything that needs no waiting, then waits for what comes first.
    async fn run(self: Arc<Sink>, reader: SinkReader, mut stop: watch::Receiver<Option<Stop>>) {
        let (lanes, pace) = (Lanes::default(), Pace::new(&self.setup.load().limits));
        let mut work = Work { reader, lanes, pace, under_way: JoinSet::new(), is_stopped: false };
        let mut ends: Option<Instant> = None;
        loop {
            for taken in work.reader.take() {
                work.lanes.push(pending(taken));
            }
            self.expire(&mut work);
            self.begin(&mut work);
            self.show(&work);
            let is_over = ends.is_some_and(|ends| work.lanes.is_empty() || ends <= Instant::now());
            if is_over {
                break;
            }
            let due = work.due(ends);
            // All of these are cancel safe.
            tokio::select! {
                Some(ended) = work.under_way.join_next() => match ended {
                    Ok((batch, outcome)) => self.conclude(&mut work, batch, outcome),
                    Err(error) => tracing::error!(sink = &*self.name, "a request broke off; what it had is sent after a restart: {error}"),
                },
                () = poll_fn(|context| work.reader.poll_woken(context)) => {}
                () = sleep_until(due) => {}
                () = self.resume.notified() => {
                    work.is_stopped = false;
                    work.pace = Pace::new(&self.setup.load().limits);
                    work.lanes.hurry(Instant::now());
                }
                Ok(()) = stop.changed(), if ends.is_none() => ends = Some(Instant::now() + STOP_GRACE),
            }
        }
        let why = *stop.borrow();
        let (sink, waiting) = (&*self.name, work.lanes.len());
        match (why, self.store.is_kept()) {
            (Some(Stop::Removed), _) => {
                tracing::info!(sink, waiting, "sink removed: what waits is dropped after mailboxes.keep_ms, unless the sink comes back");
            }
            _ if waiting == 0 => {}
            (_, true) => tracing::info!(sink, waiting, "stopped: what waits goes out after the next start"),
            (_, false) => tracing::warn!(sink, waiting, "stopped: what waits is lost, since everything is in memory only"),
        }
    }

    /// Begins as many requests as there may be.
    fn begin(self: &Arc<Sink>, work: &mut Work) {
        let SinkLimits { batch_max, batch_bytes_max, .. } = self.setup.load().limits;
        let limits = BatchLimits { events_max: batch_max.get(), bytes_max: batch_bytes_max.get() };
        while !work.is_stopped && work.pace.allows(work.under_way.len(), Instant::now()) {
            let Some(batch) = work.lanes.take(limits, Instant::now()) else { return };
            let sink = self.clone();
            work.under_way.spawn(async move {
                let outcome = sink.attempt(&batch).await;
                (batch, outcome)
            });
        }
    }

    /// Does what an attempt's outcome asks for.
    fn conclude(&self, work: &mut Work, batch: Batch, outcome: Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Accepted => {
                self.answered(work, now);
                self.counters.accepted.inc_by(batch.events.len() as u64);
                work.lanes.done(&batch);
                work.reader.done(batch.events.iter().map(|event| event.seq));
            }
            // Which of them was refused shows when each goes alone.
            Outcome::Refused(_) if batch.events.len() > 1 => {
                self.answered(work, now);
                work.lanes.put_back(batch, true);
            }
            Outcome::Refused(why) => {
                self.answered(work, now);
                self.fail(why.clone());
                work.lanes.done(&batch);
                self.give_up(work, &batch.events, &why, &self.counters.refused);
            }
            Outcome::Gone => {
                let why: Arc<str> = "it answered 410 Gone: nothing more is sent until the policies are reloaded, or a restart".into();
                tracing::error!(sink = &*self.name, "the sink is stopped: {why}");
                self.fail(why);
                work.is_stopped = true;
                work.lanes.put_back(batch, false);
            }
            Outcome::Failed { why, retry_after } => {
                tracing::debug!(sink = &*self.name, attempts = batch.attempts + 1, "the backend didn't take an event: {why}");
                let was_down = work.pace.is_down();
                let again = work.pace.fail(batch.attempts, retry_after, now);
                if work.pace.is_down() && !was_down {
                    tracing::warn!(sink = &*self.name, "the backend seems to be away: {why}; events wait, and one at a time is tried");
                }
                self.fail(why);
                match batch.is_suspect() && !work.pace.is_down() {
                    true => work.lanes.put_back(batch, true),
                    false => work.lanes.retry(batch, again),
                }
            }
        }
    }

    /// Notes that the backend has answered. If it was away, everything that waits is tried at once.
    fn answered(&self, work: &mut Work, now: Instant) {
        if work.pace.succeed() {
            tracing::info!(sink = &*self.name, waiting = work.lanes.len(), "the backend is back");
            work.lanes.hurry(now);
        }
    }

    /// Turns events into dead letters that have waited for too long.
    fn expire(&self, work: &mut Work) {
        let keep_ms = self.setup.load().limits.keep_ms.get();
        let over = work.lanes.expire(keep_ms, self.model.clock.now_ms());
        if over.is_empty() {
            return;
        }
        let last = self.status.lock().last_failure.as_ref().map(|failure| format!("; the last failure: {}", failure.detail));
        let why = format!("it was not delivered within {keep_ms} ms (keep_ms){}", last.unwrap_or_default());
        self.give_up(work, &over, &why, &self.counters.expired);
    }

    /// Turns events into dead letters.
    fn give_up(&self, work: &Work, events: &[Pending], why: &str, counter: &IntCounter) {
        counter.inc_by(events.len() as u64);
        let mut changes = self.store.changes();
        for event in events {
            self.model.dead_letters.keep(DeadLetter::undelivered(self.name.clone(), event.message.clone(), why), &mut changes);
        }
        // In the store before the mailbox forgets them: after a crash they are in one of the two, or in both.
        drop(self.store.append(changes));
        work.reader.done(events.iter().map(|event| event.seq));
    }

    fn fail(&self, detail: Arc<str>) {
        self.status.lock().last_failure = Some(Failure { at: SystemTime::now(), detail });
    }

    fn show(&self, work: &Work) {
        let mut status = self.status.lock();
        status.state = match (work.is_stopped, work.pace.is_down()) {
            (true, _) => State::Stopped,
            (false, true) => State::Failing,
            (false, false) => State::Delivering,
        };
        (status.under_way, status.failures, status.oldest_ms) = (work.under_way.len(), work.pace.failures(), work.lanes.oldest_ms());
    }
}

impl Work {
    /// Returns when there is something to do, if nothing happens before.
    fn due(&self, ends: Option<Instant>) -> Instant {
        let now = Instant::now();
        let later = [self.lanes.due(), self.pace.until(), ends].into_iter().flatten().filter(|at| *at > now);
        later.fold(now + EXPIRE_INTERVAL, Instant::min)
    }
}

/// Reads what decides where an event stands.
fn pending(Taken { seq, posted_ms, message }: Taken) -> Pending {
    #[derive(Default, Deserialize)]
    struct Head {
        source: Box<str>,
        #[serde(default)]
        subject: Option<Box<str>>,
    }
    // The server wrote it, so it can be read.
    let Head { source, subject } = serde_json::from_slice(message.body.as_bytes()).unwrap_or_default();
    Pending { seq, posted_ms, subject: subject.unwrap_or_default().into(), source: source.into(), message, is_alone: false }
}
