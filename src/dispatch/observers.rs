//! Observers: who looks at what happens while it happens. `GET {base}/live` and `signalpost dev` do.
//!
//! While nobody looks, each event costs one relaxed load. All observers read one ring of the newest entries, each at its own position, so that
//! a slow one delays neither the server nor the others: what is overwritten before it was read is lost for that observer, which learns how
//! many entries that are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::{self, error::RecvError};

use super::Story;
use super::plan::PolicyRef;
use crate::config;
use crate::metrics::Metrics;
use crate::policy::fault::Faults;
use crate::policy::{CallError, Rejected};
use crate::registry::SessionHandle;
use crate::types::delivery::{Refusal, Response};
use crate::types::event::{Body, Event};
use crate::types::fault::Fault;

/// Bytes that an entry counts in addition to its texts and names.
const ENTRY_BYTES: usize = 1024;

/// Something that happened.
#[derive(Debug)]
pub enum Trace {
    /// An event was published or retried. `None` stands for a message that was sent to its user directly.
    Event { event: Option<Arc<Event>>, story: Story },
    /// A session was opened.
    Opened(Arc<SessionHandle>),
    /// A session was closed, with this code and reason.
    Closed { session: Arc<SessionHandle>, code: u16, reason: String },
    /// A client sent a message.
    Received { session: Arc<SessionHandle>, body: Body, outcome: &'static str, refusal: Option<Refusal> },
    /// A sessions policy was called.
    Asked(Asked),
    /// A policy faulted, in whichever function.
    Fault(Arc<Fault>),
    /// The policies were reloaded, or could not be.
    Reload(Reloaded),
}

/// A call of a sessions policy and its answer.
#[derive(Clone, Debug)]
pub struct Asked {
    pub session: Arc<SessionHandle>,
    /// The function that was called.
    pub function: &'static str,
    /// The call in words. It may quote the client.
    pub what: String,
    pub policy: PolicyRef,
    pub took: Duration,
    /// `None` if the policy left the message to others.
    pub answer: Result<Option<Response>, CallError>,
}

/// The outcome of a reload.
#[derive(Debug)]
pub enum Reloaded {
    Swapped { revision: u64, changed: Vec<String> },
    Refused(Vec<Rejected>),
    RolledBack(Vec<Rejected>),
    Unreadable(String),
}

/// A trace, and when it was made.
#[derive(Debug)]
pub struct Entry {
    pub at: SystemTime,
    pub trace: Trace,
    /// The bytes that it takes of `live.bytes_max`, and where they are counted. Traces of faults take none: they are few.
    room: Option<(usize, Arc<AtomicUsize>)>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some((bytes, all)) = &self.room {
            all.fetch_sub(*bytes, Ordering::Relaxed);
        }
    }
}

/// What an observer receives.
#[derive(Debug)]
pub enum Seen {
    Entry(Arc<Entry>),
    /// The number of entries that it has missed.
    Lost(u64),
}

/// There are `live.observers_max` observers already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany(pub usize);

/// The observers, and the entries that they have not read yet.
#[derive(Debug)]
pub struct Observers {
    limits: config::Live,
    count: AtomicUsize,
    entries: broadcast::Sender<Arc<Entry>>,
    faults: Faults,
    /// Bytes of the entries that are kept.
    bytes: Arc<AtomicUsize>,
    /// Entries that were dropped for lack of room, for all observers.
    skipped: AtomicU64,
    metrics: Arc<Metrics>,
}

/// One observer. Dropping it makes room for another.
#[derive(Debug)]
pub struct Observer {
    observers: Arc<Observers>,
    entries: broadcast::Receiver<Arc<Entry>>,
    faults: broadcast::Receiver<Arc<Fault>>,
    /// `Observers::skipped` when this observer last looked.
    skipped: u64,
}

impl Observers {
    pub fn new(limits: config::Live, faults: Faults, metrics: Arc<Metrics>) -> Arc<Observers> {
        let (entries, _) = broadcast::channel(limits.entries_max.get());
        let (bytes, skipped) = (Arc::default(), AtomicU64::new(0));
        Arc::new(Observers { limits, count: AtomicUsize::new(0), entries, faults, bytes, skipped, metrics })
    }

    /// Returns a new observer, which receives what happens from now on.
    ///
    /// # Errors
    /// There are as many as the configuration allows.
    pub fn observe(self: &Arc<Self>) -> Result<Observer, TooMany> {
        let max = self.limits.observers_max.get();
        let more = |count| (count < max).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| TooMany(max))?;
        self.metrics.live_observers.inc();
        Ok(Observer {
            observers: self.clone(),
            entries: self.entries.subscribe(),
            faults: self.faults.subscribe(),
            skipped: self.skipped.load(Ordering::Relaxed),
        })
    }

    /// Returns whether there is an observer.
    pub fn are_there(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Shows the observers what happened, if there are any. `trace` is not called otherwise.
    pub fn show(&self, trace: impl FnOnce() -> Trace) {
        if !self.are_there() {
            return;
        }
        let trace = trace();
        let bytes = trace.size();
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.limits.bytes_max.get() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let entry = Entry { at: SystemTime::now(), trace, room: Some((bytes, self.bytes.clone())) };
        // An error means that the last observer has just left.
        let _ = self.entries.send(Arc::new(entry));
    }
}

impl Observer {
    /// Returns what happens next. Cancel safe.
    pub async fn next(&mut self) -> Seen {
        let skipped = self.observers.skipped.load(Ordering::Relaxed);
        let missed = skipped.saturating_sub(std::mem::replace(&mut self.skipped, skipped));
        if missed > 0 {
            return self.lost(missed);
        }
        let received = tokio::select! {
            entry = self.entries.recv() => entry,
            fault = self.faults.recv() => fault.map(|fault| Arc::new(Entry { at: fault.at, trace: Trace::Fault(fault), room: None })),
        };
        match received {
            Ok(entry) => Seen::Entry(entry),
            Err(RecvError::Lagged(count)) => self.lost(count),
            // This observer keeps the senders.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Counts entries that this observer does not get.
    pub fn lost(&self, count: u64) -> Seen {
        self.observers.metrics.live_lost.inc_by(count);
        Seen::Lost(count)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.observers.count.fetch_sub(1, Ordering::Relaxed);
        self.observers.metrics.live_observers.dec();
    }
}

impl Trace {
    /// Returns about how many bytes it keeps in memory.
    fn size(&self) -> usize {
        let texts = match self {
            Trace::Event { event, story } => event.as_ref().map_or(0, |event| event.size()) + story.size(),
            Trace::Received { body, .. } => body.size(),
            Trace::Asked(asked) => asked.size(),
            Trace::Opened(_) | Trace::Closed { .. } | Trace::Fault(_) | Trace::Reload(_) => 0,
        };
        ENTRY_BYTES + texts
    }
}

impl Asked {
    fn size(&self) -> usize {
        let Ok(Some(response)) = &self.answer else { return self.what.len() };
        let replies: usize = response.replies.iter().map(Body::size).sum();
        let bodies: usize = response.decision.deliveries.iter().filter_map(|delivery| delivery.body.as_ref()).map(Body::size).sum();
        let drafts: usize = response.drafts.iter().map(|draft| draft.data.size()).sum();
        self.what.len() + replies + bodies + drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::types::event::UserId;

    fn observers(settings: &str) -> Arc<Observers> {
        let file = Some(("test.toml", settings));
        let (config, _) = Config::merge(file, toml::Table::new(), std::iter::empty()).unwrap();
        Observers::new(config.live, Faults::new(), Arc::new(Metrics::new().unwrap()))
    }

    fn opened() -> Trace {
        Trace::Opened(SessionHandle::new(UserId::new("1001", 128).unwrap(), None, false, Vec::new()))
    }

    fn received(bytes: usize) -> Trace {
        let session = SessionHandle::new(UserId::new("1001", 128).unwrap(), None, false, Vec::new());
        Trace::Received { session, body: Body::Text("x".repeat(bytes)), outcome: "handled", refusal: None }
    }

    /// Returns the entries that wait, as `true`, and the losses.
    async fn drain(observer: &mut Observer) -> Vec<Result<(), u64>> {
        let mut seen = Vec::new();
        while let Ok(next) = tokio::time::timeout(Duration::from_millis(20), observer.next()).await {
            seen.push(match next {
                Seen::Entry(_) => Ok(()),
                Seen::Lost(count) => Err(count),
            });
        }
        seen
    }

    #[tokio::test]
    async fn nothing_is_made_while_nobody_looks_and_observers_are_bounded() {
        let observers = observers("live.observers_max = 2");
        observers.show(|| panic!("nobody looks"));
        let (mut first, second) = (observers.observe().unwrap(), observers.observe().unwrap());
        assert_eq!(observers.observe().unwrap_err(), TooMany(2));
        drop(second);
        let mut third = observers.observe().unwrap();
        observers.show(opened);
        assert_eq!((drain(&mut first).await, drain(&mut third).await), (vec![Ok(())], vec![Ok(())]));
        drop((first, third));
        assert!(!observers.are_there());
        observers.show(|| panic!("nobody looks any more"));
    }

    #[tokio::test]
    async fn a_slow_observer_is_told_how_much_it_has_lost_and_the_others_lose_nothing() {
        let observers = observers("live.entries_max = 4");
        let (mut fast, mut slow) = (observers.observe().unwrap(), observers.observe().unwrap());
        for _ in 0..5 {
            observers.show(opened);
            observers.show(opened);
            assert_eq!(drain(&mut fast).await, [Ok(()), Ok(())]);
        }
        assert_eq!(drain(&mut slow).await, [Err(6), Ok(()), Ok(()), Ok(()), Ok(())]);
        assert_eq!(observers.metrics.live_lost.get(), 6);
    }

    #[tokio::test]
    async fn entries_over_the_bytes_are_lost_for_all_and_room_comes_back() {
        let observers = observers("live.bytes_max = 10_000");
        let mut observer = observers.observe().unwrap();
        for _ in 0..3 {
            observers.show(|| received(4_000));
        }
        assert_eq!(drain(&mut observer).await, [Err(2), Ok(())], "one with its own 1,024 bytes has room, and two have not");
        observers.show(|| received(4_000));
        assert_eq!(drain(&mut observer).await, [Ok(())]);
        assert_eq!(observers.bytes.load(Ordering::Relaxed), 0);
    }
}
