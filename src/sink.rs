//! Sinks: backends to which events are posted, as Standard Webhooks of CloudEvents. A sink is a reader of a mailbox, as a session is: what it
//! has to be told is in the store, and a backend that is away holds nobody up.
//!
//! Each sink has one task, which reads its mailbox, begins requests and judges their outcome. Events arrive at least once, and those of one
//! subject in order (`lanes`), as fast as the backend takes them (`pace`). What can't be delivered becomes a dead letter.

mod lanes;
mod pace;
mod secrets;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::{self, Config, SinkLimits};
use crate::metrics::{Metrics, SinkEvent, SinkGauges};
use crate::model::Model;
use crate::model::dead_letters::DeadLetter;
use crate::model::mailbox::{SinkReader, Taken};
use crate::net::client::{Answer, Client};
use crate::store::Store;
use crate::types::event::UserId;
use lanes::{Batch, BatchLimits, Lanes, Pending};
use pace::Pace;
use secrets::{Secrets, Stamp};

/// How often events are looked for that have waited for too long.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a stop waits for events that are on their way. What a store keeps goes out after the next start.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// All sinks.
#[derive(Debug, Default)]
pub struct Sinks {
    all: Vec<Arc<Sink>>,
}

/// The tasks of all sinks.
#[derive(Debug)]
pub struct Running {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Sink {
    name: Arc<str>,
    config: config::Sink,
    limits: SinkLimits,
    client: Client,
    secrets: ArcSwap<Secrets>,
    /// The files of the secrets when they were last read, whether or not that succeeded.
    seen: Mutex<Stamp>,
    /// Notified when the backend of a stopped sink may be back.
    resume: Notify,
    status: Mutex<Status>,
    counters: Counters,
    model: Arc<Model>,
    store: Store,
}

#[derive(Debug)]
struct Counters {
    heard: IntCounter,
    accepted: IntCounter,
    refused: IntCounter,
    expired: IntCounter,
    overflowed: IntCounter,
    /// Attempts, by their outcome.
    attempts: [IntCounter; 4],
    seconds: Histogram,
}

/// What others see of a sink's task.
#[derive(Debug, Default)]
struct Status {
    state: State,
    under_way: usize,
    failures: u32,
    oldest_ms: Option<u64>,
    last_failure: Option<Failure>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    #[default]
    Delivering,
    /// The backend seems to be away: one request at a time tries.
    Failing,
    /// The backend has answered 410.
    Stopped,
}

#[derive(Clone, Debug, Serialize)]
struct Failure {
    #[serde(serialize_with = "crate::types::time::time")]
    at: SystemTime,
    detail: Arc<str>,
}

/// A sink as operators see it.
#[derive(Debug, Serialize)]
pub struct View<'a> {
    name: &'a str,
    url: &'a str,
    events: &'a [String],
    sources: &'a [String],
    state: State,
    /// Events that are not delivered yet, and their bytes.
    waiting: usize,
    waiting_bytes: usize,
    /// Age of the oldest of them.
    lag_ms: u64,
    /// Requests that have no answer yet.
    under_way: usize,
    /// Failures since the backend has last answered well.
    failures: u32,
    last_failure: Option<Failure>,
    counters: CountersView,
}

#[derive(Debug, Serialize)]
struct CountersView {
    heard: u64,
    accepted: u64,
    refused: u64,
    expired: u64,
    overflowed: u64,
}

/// The outcome of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Accepted,
    /// The answer says that these events will never be taken.
    Refused(Arc<str>),
    /// The answer says that nothing will be taken any more.
    Gone,
    Failed {
        why: Arc<str>,
        retry_after: Option<Duration>,
    },
}

impl Sinks {
    /// Reads the secrets of all sinks.
    ///
    /// # Errors
    /// A file can't be read, or holds no secret.
    pub fn new(config: &Config, model: &Arc<Model>, store: &Store, metrics: &Metrics) -> anyhow::Result<Arc<Sinks>> {
        let sink = |(name, sink): (&String, &config::Sink)| {
            let limits = config.sink_limits_for(name);
            Ok(Arc::new(Sink {
                name: name.as_str().into(),
                client: Client::new(&sink.url).with_context(|| format!("sinks.{name}.url"))?,
                secrets: ArcSwap::from_pointee(Secrets::read(&sink.secret_files).with_context(|| format!("sinks.{name}.secret_files"))?),
                seen: Mutex::new(secrets::stamp(&sink.secret_files)),
                config: sink.clone(),
                limits,
                resume: Notify::new(),
                status: Mutex::default(),
                counters: Counters::new(name, metrics),
                model: model.clone(),
                store: store.clone(),
            }))
        };
        Ok(Arc::new(Sinks { all: config.sinks.iter().map(sink).collect::<anyhow::Result<_>>()? }))
    }

    /// Starts the task of each sink.
    pub fn start(&self) -> Running {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for sink in &self.all {
            match sink.model.mailboxes.open_sink(UserId::of_sink(&sink.name)) {
                Ok(reader) => drop(tasks.spawn(sink.clone().run(reader, stopped.clone()))),
                Err(close) => tracing::error!(sink = &*sink.name, "the sink's mailbox can't be read: {}", close.reason()),
            }
        }
        Running { tasks, stop }
    }

    /// Lets sinks go on whose backends have answered 410, and others try at once.
    pub fn resume(&self) {
        self.all.iter().for_each(|sink| sink.resume.notify_one());
    }

    /// Reads changed files with secrets. If they can't be used, the secrets stay as they are. Blocks.
    pub fn refresh(&self) {
        self.all.iter().for_each(|sink| sink.refresh());
    }

    /// Returns what operators see.
    pub fn views(&self) -> Vec<View<'_>> {
        self.all.iter().map(|sink| sink.view()).collect()
    }

    pub fn gauges(&self) -> Vec<SinkGauges> {
        let gauges = |sink: &Arc<Sink>| {
            let view = sink.view();
            SinkGauges { name: sink.name.clone(), waiting: view.waiting, lag_ms: view.lag_ms, is_stopped: view.state == State::Stopped }
        };
        self.all.iter().map(gauges).collect()
    }
}

impl Running {
    /// Lets the sinks finish what is on its way, for a short time.
    pub async fn finish(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Counters {
    fn new(sink: &str, metrics: &Metrics) -> Counters {
        let attempts = ["accepted", "refused", "failed", "gone"];
        Counters {
            heard: metrics.sink_event(sink, SinkEvent::Heard),
            accepted: metrics.sink_event(sink, SinkEvent::Accepted),
            refused: metrics.sink_event(sink, SinkEvent::Refused),
            expired: metrics.sink_event(sink, SinkEvent::Expired),
            overflowed: metrics.sink_event(sink, SinkEvent::Overflowed),
            attempts: attempts.map(|outcome| metrics.sink_attempts.with_label_values(&[sink, outcome])),
            seconds: metrics.sink_attempt_seconds.with_label_values(&[sink]),
        }
    }

    fn attempt(&self, outcome: &Outcome) {
        let [accepted, refused, failed, gone] = &self.attempts;
        match outcome {
            Outcome::Accepted => accepted.inc(),
            Outcome::Refused(_) => refused.inc(),
            Outcome::Failed { .. } => failed.inc(),
            Outcome::Gone => gone.inc(),
        }
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
    /// Delivers until the server stops. Each round does everything that needs no waiting, then waits for what comes first.
    async fn run(self: Arc<Sink>, reader: SinkReader, mut stop: watch::Receiver<bool>) {
        let (lanes, pace) = (Lanes::default(), Pace::new(&self.limits));
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
                    work.pace.reset();
                    work.lanes.hurry(Instant::now());
                }
                Ok(()) = stop.changed(), if ends.is_none() => ends = Some(Instant::now() + STOP_GRACE),
            }
        }
        if !work.lanes.is_empty() {
            let (sink, waiting) = (&*self.name, work.lanes.len());
            match self.store.is_kept() {
                true => tracing::info!(sink, waiting, "stopped: what waits goes out after the next start"),
                false => tracing::warn!(sink, waiting, "stopped: what waits is lost, since everything is in memory only"),
            }
        }
    }

    /// Begins as many requests as there may be.
    fn begin(self: &Arc<Sink>, work: &mut Work) {
        let limits = BatchLimits { events_max: self.limits.batch_max.get(), bytes_max: self.limits.batch_bytes_max.get() };
        while !work.is_stopped && work.pace.allows(work.under_way.len(), Instant::now()) {
            let Some(batch) = work.lanes.take(limits, Instant::now()) else { return };
            let sink = self.clone();
            work.under_way.spawn(async move {
                let outcome = sink.attempt(&batch).await;
                (batch, outcome)
            });
        }
    }

    /// Sends a batch once.
    async fn attempt(&self, batch: &Batch) -> Outcome {
        let began = Instant::now();
        let (headers, body) = self.request(batch);
        let deadline = *self.limits.attempt_deadline_ms;
        let answered = match timeout(deadline, self.client.post(&headers, &body)).await {
            Ok(answered) => answered,
            Err(_) => Err(format!("didn't answer within {} ms (attempt_deadline_ms)", deadline.as_millis())),
        };
        self.counters.seconds.observe(began.elapsed().as_secs_f64());
        let outcome = match answered {
            Ok(answer) => judge(&answer, self.model.clock.now_ms()),
            Err(why) => Outcome::Failed { why: format!("it {why}").into(), retry_after: None },
        };
        self.counters.attempt(&outcome);
        outcome
    }

    /// Returns the headers and the body of a request. The time, and so the signature, is another one in each attempt.
    fn request(&self, batch: &Batch) -> (HeaderMap, Bytes) {
        let (media_type, body) = match (self.limits.batch_max.get(), batch.events.as_slice()) {
            (1, [event]) => ("application/cloudevents+json", event.message.body.as_bytes().to_vec()),
            (_, events) => {
                let texts: Vec<&[u8]> = events.iter().map(|event| event.message.body.as_bytes()).collect();
                ("application/cloudevents-batch+json", [b"[", texts.join(&b","[..]).as_slice(), b"]"].concat())
            }
        };
        let id = webhook_id(&batch.events);
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = self.secrets.load().sign(&id, now_s, &body);
        let mut headers = HeaderMap::with_capacity(5);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("signalpost/", env!("CARGO_PKG_VERSION"))));
        headers.insert("webhook-timestamp", HeaderValue::from(now_s));
        // Letters, digits and signs that are all allowed in a header.
        for (name, value) in [("webhook-id", id), ("webhook-signature", signature)] {
            headers.extend(HeaderValue::try_from(value).ok().map(|value| (http::HeaderName::from_static(name), value)));
        }
        (headers, body.into())
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
        let over = work.lanes.expire(self.limits.keep_ms.get(), self.model.clock.now_ms());
        if over.is_empty() {
            return;
        }
        let last = self.status.lock().last_failure.as_ref().map(|failure| format!("; the last failure: {}", failure.detail));
        let why = format!("it was not delivered within {} ms (keep_ms){}", self.limits.keep_ms.get(), last.unwrap_or_default());
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

    fn refresh(&self) {
        let now = secrets::stamp(&self.config.secret_files);
        let mut seen = self.seen.lock();
        if *seen == now {
            return;
        }
        *seen = now;
        match Secrets::read(&self.config.secret_files) {
            Ok(secrets) => {
                self.secrets.store(Arc::new(secrets));
                tracing::info!(sink = &*self.name, "the secrets were read again");
            }
            Err(error) => tracing::error!(sink = &*self.name, "the secrets stay as they are: {error:#}"),
        }
    }

    fn view(&self) -> View<'_> {
        let presence = self.model.mailboxes.presence(&UserId::of_sink(&self.name));
        let status = self.status.lock();
        let Counters { heard, accepted, refused, expired, overflowed, .. } = &self.counters;
        View {
            name: &self.name,
            url: &self.config.url,
            events: &self.config.events,
            sources: &self.config.sources,
            state: status.state,
            waiting: presence.messages,
            waiting_bytes: presence.bytes,
            lag_ms: status.oldest_ms.map_or(0, |posted_ms| self.model.clock.now_ms().saturating_sub(posted_ms)),
            under_way: status.under_way,
            failures: status.failures,
            last_failure: status.last_failure.clone(),
            counters: CountersView {
                heard: heard.get(),
                accepted: accepted.get(),
                refused: refused.get(),
                expired: expired.get(),
                overflowed: overflowed.get(),
            },
        }
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

/// Returns what an answer means.
fn judge(answer: &Answer, now_ms: u64) -> Outcome {
    let status = answer.status;
    let why = |note: &str| -> Arc<str> { format!("it answered {status}{note}").into() };
    match status {
        _ if status.is_success() => Outcome::Accepted,
        StatusCode::GONE => Outcome::Gone,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Outcome::Failed { why: why(""), retry_after: answer.pause(now_ms) }
        }
        _ if status.is_client_error() => Outcome::Refused(why("")),
        _ if status.is_redirection() => Outcome::Failed { why: why("; redirections are not followed"), retry_after: answer.pause(now_ms) },
        _ => Outcome::Failed { why: why(""), retry_after: answer.pause(now_ms) },
    }
}

impl Answer {
    fn pause(&self, now_ms: u64) -> Option<Duration> {
        self.retry_after.as_deref().and_then(|value| pace::retry_after(value, now_ms))
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

/// Returns the id of a request: the same for the same events, and different for others. It is a digest of their sources and ids, since an id
/// of a producer's may have characters that a header can't.
fn webhook_id(events: &[Pending]) -> String {
    let mut digest = Sha256::new();
    for event in events {
        for text in [&*event.source, event.message.event_id.as_str()] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
    }
    let digest: [u8; 32] = digest.finalize().into();
    let (half, _) = digest.split_at(digest.len() / 2);
    format!("msg_{}", HEXLOWER.encode(half))
}
