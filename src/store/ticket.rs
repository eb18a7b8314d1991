//! Tickets: by which those who have to answer wait until what they handed over is stored.
//!
//! Batches are numbered and stored in their order, so a ticket is a number, and the number of the last batch that is stored answers all. Nobody
//! is woken one by one: most tickets are stored before they are looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::NotStored;
use super::log::Log;
use super::stream::Stream;

/// How often a thread that waits for a commit looks.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A commit that is on its way into the store.
#[derive(Clone, Debug)]
#[must_use = "what was answered is stored: wait for it before answering"]
pub struct Ticket(Option<Waiting>);

#[derive(Clone, Debug)]
enum Waiting {
    /// The number of a batch.
    Log(u64, Arc<Log>),
    /// What tells that the frame is in the stream.
    Stream(watch::Receiver<bool>, Arc<Stream>),
}

/// Which batches are stored.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The number of the last one; 0 before the first.
    last: AtomicU64,
    /// No more will be stored.
    is_over: AtomicBool,
    /// Those who wait for a batch of an even number, and of an odd one: while one gathers, the one before is written.
    waiting: [Notify; 2],
}

impl Ticket {
    /// Returns the ticket of a batch.
    pub(super) fn of(batch: u64, log: &Arc<Log>) -> Ticket {
        Ticket(Some(Waiting::Log(batch, log.clone())))
    }

    /// Returns the ticket of a frame.
    pub(super) fn of_frame(stored: watch::Receiver<bool>, stream: &Arc<Stream>) -> Ticket {
        Ticket(Some(Waiting::Stream(stored, stream.clone())))
    }

    /// Returns the ticket of what nothing has to store.
    pub fn none() -> Ticket {
        Ticket(None)
    }

    /// Returns whether a store has it.
    pub fn is_stored(&self) -> bool {
        self.0.as_ref().is_some_and(Waiting::is_stored)
    }

    /// Waits until the commit is stored, at most for `store.commit_deadline_ms`. Cancel safe.
    ///
    /// # Errors
    /// It is not stored.
    pub async fn stored(self) -> Result<(), NotStored> {
        let Some(mut waiting) = self.0 else { return Ok(()) };
        waiting.write_in_passing();
        if waiting.is_stored() {
            return Ok(());
        }
        match tokio::time::timeout(waiting.deadline(), waiting.wait()).await {
            Ok(stored) => stored,
            Err(_) => Err(waiting.admit().err().unwrap_or(NotStored::Late(waiting.deadline()))),
        }
    }

    /// Waits until the commit is stored, on a thread that may block, for as long as it takes.
    ///
    /// # Errors
    /// The store has failed.
    pub fn stored_blocking(self) -> Result<(), NotStored> {
        let Some(waiting) = &self.0 else { return Ok(()) };
        waiting.write_in_passing();
        loop {
            match waiting.outcome() {
                Some(outcome) => return outcome,
                None => std::thread::sleep(LOOK_INTERVAL),
            }
        }
    }
}

impl Waiting {
    fn is_stored(&self) -> bool {
        match self {
            Waiting::Log(batch, log) => log.progress().has(*batch),
            Waiting::Stream(stored, _) => *stored.borrow(),
        }
    }

    /// Returns what became of it, if that is known.
    fn outcome(&self) -> Option<Result<(), NotStored>> {
        match self {
            Waiting::Log(batch, log) => log.progress().outcome(*batch),
            Waiting::Stream(stored, _) => {
                // Looked at first: it may have been stored before the end.
                let is_over = stored.has_changed().is_err();
                if *stored.borrow() { Some(Ok(())) } else { is_over.then_some(Err(NotStored::Failed)) }
            }
        }
    }

    async fn wait(&mut self) -> Result<(), NotStored> {
        match self {
            Waiting::Log(batch, log) => log.progress().wait_for(*batch).await,
            Waiting::Stream(stored, _) => stored.wait_for(|stored| *stored).await.map(drop).map_err(|_| NotStored::Failed),
        }
    }

    fn write_in_passing(&self) {
        if let Waiting::Log(_, log) = self {
            log.write_in_passing();
        }
    }

    fn deadline(&self) -> Duration {
        match self {
            Waiting::Log(_, log) => log.commit_deadline(),
            Waiting::Stream(_, stream) => stream.commit_deadline(),
        }
    }

    fn admit(&self) -> Result<(), NotStored> {
        match self {
            Waiting::Log(_, log) => log.admit(),
            Waiting::Stream(_, stream) => stream.admit(),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Waiting::Log(batch, log) = self
            && !log.progress().has(*batch)
        {
            log.leave_to_thread();
        }
    }
}

impl Progress {
    /// Notes that a batch is stored, and tells those who wait for it.
    pub(super) fn note(&self, batch: u64) {
        self.last.store(batch, Ordering::Release);
        let [even, odd] = &self.waiting;
        if batch.is_multiple_of(2) { even } else { odd }.notify_waiters();
    }

    /// Tells all who wait that nothing more will be stored.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.waiting.iter().for_each(Notify::notify_waiters);
    }

    pub(super) fn has(&self, batch: u64) -> bool {
        batch <= self.last.load(Ordering::Acquire)
    }

    /// Returns what became of a batch, if that is known.
    fn outcome(&self, batch: u64) -> Option<Result<(), NotStored>> {
        // Looked at first: what was stored before the end is stored.
        let is_over = self.is_over.load(Ordering::Acquire);
        match self.has(batch) {
            true => Some(Ok(())),
            false => is_over.then_some(Err(NotStored::Failed)),
        }
    }

    async fn wait_for(&self, batch: u64) -> Result<(), NotStored> {
        let [even, odd] = &self.waiting;
        let waiting = if batch.is_multiple_of(2) { even } else { odd };
        loop {
            // Made before the look, so that no notification is missed.
            let notified = waiting.notified();
            match self.outcome(batch) {
                Some(outcome) => return outcome,
                None => notified.await,
            }
        }
    }
}
