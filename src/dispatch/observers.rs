//! Observers: who looks at what happens while it happens. `GET {base}/live` and `signalpost dev` do.
//!
//! They read one feed, and a slow one delays neither the server nor the others (`net::feed`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::{self, error::RecvError};

use super::Story;
use super::plan::PolicyRef;
use crate::config;
use crate::metrics::Metrics;
pub use crate::net::feed::TooMany;
use crate::net::feed::{Feed, Kept, Limits, Next, Reader};
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
}

/// What an observer receives.
pub type Seen = Next<Entry>;

/// The observers, and the entries that they have not read yet.
#[derive(Debug)]
pub struct Observers {
    feed: Arc<Feed<Entry>>,
    faults: Faults,
}

/// One observer. Dropping it makes room for another.
#[derive(Debug)]
pub struct Observer {
    entries: Reader<Entry>,
    faults: broadcast::Receiver<Arc<Fault>>,
}

impl Observers {
    pub fn new(live: &config::Live, faults: Faults, metrics: &Metrics) -> Arc<Observers> {
        let (readers_max, entries_max, bytes_max) = (live.observers_max.get(), live.entries_max.get(), live.bytes_max.get());
        let feed = Feed::new(Limits { readers_max, entries_max, bytes_max }, &metrics.live_observers, &metrics.live_lost);
        Arc::new(Observers { feed, faults })
    }

    /// Returns a new observer, which receives what happens from now on.
    ///
    /// # Errors
    /// There are as many as the configuration allows.
    pub fn observe(&self) -> Result<Observer, TooMany> {
        Ok(Observer { entries: self.feed.read()?, faults: self.faults.subscribe() })
    }

    /// Returns whether there is an observer.
    pub fn are_there(&self) -> bool {
        self.feed.is_read()
    }

    /// Shows the observers what happened, if there are any. `trace` is not called otherwise.
    pub fn show(&self, trace: impl FnOnce() -> Trace) {
        if self.are_there() {
            let trace = trace();
            self.feed.show(trace.size(), Entry { at: SystemTime::now(), trace });
        }
    }
}

impl Observer {
    /// Returns what happens next. Cancel safe.
    pub async fn next(&mut self) -> Seen {
        let fault = tokio::select! {
            seen = self.entries.next() => return seen,
            fault = self.faults.recv() => fault,
        };
        match fault {
            // There are few, so that they take no room.
            Ok(fault) => Next::Entry(Kept::free(Entry { at: fault.at, trace: Trace::Fault(fault) })),
            Err(RecvError::Lagged(count)) => self.lost(count),
            // The server's policies are gone.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Counts entries that this observer does not get.
    pub fn lost(&self, count: u64) -> Seen {
        self.entries.count_lost(count);
        Next::Lost(count)
    }
}

impl Trace {
    /// Returns about how many bytes it keeps in memory.
    fn size(&self) -> usize {
        let texts = match self {
            Trace::Event { event, story } => event.as_ref().map_or(0, |event| event.size()) + story.size(),
            Trace::Received { body, .. } => body.size(),
            Trace::Asked(Asked { what, answer, .. }) => {
                what.len() + answer.as_ref().ok().and_then(Option::as_ref).map_or(0, Response::size)
            }
            Trace::Opened(_) | Trace::Closed { .. } | Trace::Fault(_) | Trace::Reload(_) => 0,
        };
        ENTRY_BYTES + texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::types::event::UserId;

    fn observers(settings: &str) -> Arc<Observers> {
        observers_with(settings, &Metrics::new().unwrap())
    }

    fn observers_with(settings: &str, metrics: &Metrics) -> Arc<Observers> {
        let file = Some(("test.toml", settings));
        let (config, _) = Config::merge(file, toml::Table::new(), std::iter::empty()).unwrap();
        Observers::new(&config.live, Faults::new(), metrics)
    }

    fn opened() -> Trace {
        Trace::Opened(SessionHandle::new(UserId::new("1001", 128).unwrap(), None, false, Vec::new()))
    }

    fn received(bytes: usize) -> Trace {
        let session = SessionHandle::new(UserId::new("1001", 128).unwrap(), None, false, Vec::new());
        Trace::Received { session, body: Body::Text("x".repeat(bytes)), outcome: "handled", refusal: None }
    }

    /// Returns what waits: `Ok` for each entry, and `Err` for each number of losses.
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
        let metrics = Metrics::new().unwrap();
        let observers = observers_with("live.entries_max = 4", &metrics);
        let (mut fast, mut slow) = (observers.observe().unwrap(), observers.observe().unwrap());
        for _ in 0..5 {
            observers.show(opened);
            observers.show(opened);
            assert_eq!(drain(&mut fast).await, [Ok(()), Ok(())]);
        }
        assert_eq!(drain(&mut slow).await, [Err(6), Ok(()), Ok(()), Ok(()), Ok(())]);
        assert_eq!(metrics.live_lost.get(), 6);
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
        assert_eq!(observers.feed.bytes(), 0);
    }
}
