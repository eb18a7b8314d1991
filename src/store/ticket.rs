//! Tickets: by which those who have to answer wait until what they handed over is stored.
//!
//! Batches are numbered and stored in their order, so a ticket is a number, and the number of the last batch that is stored answers all. Nobody
//! is woken one by one: most tickets are stored before they are looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::NotStored;
use super::log::Log;

/// How often a thread that waits for a commit looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A commit that is on its way into the store.
#[derive(Clone, Debug)]
#[must_use = "what was answered is stored: wait for it before answering"]
pub struct Ticket(Option<Waiting>);

#[derive(Clone, Debug)]
struct Waiting {
    batch: u64,
    log: Arc<Log>,
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
        Ticket(Some(Waiting { batch, log: log.clone() }))
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
        let Some(waiting) = self.0 else { return Ok(()) };
        waiting.log.write_in_passing();
        if waiting.is_stored() {
            return Ok(());
        }
        let log = &waiting.log;
        match tokio::time::timeout(log.commit_deadline(), log.progress().wait_for(waiting.batch)).await {
            Ok(stored) => stored,
            Err(_) => Err(log.admit().err().unwrap_or(NotStored::Late(log.commit_deadline()))),
        }
    }

    /// Waits until the commit is stored, on a thread that may block, for as long as it takes.
    ///
    /// # Errors
    /// The store has failed.
    pub fn stored_blocking(self) -> Result<(), NotStored> {
        let Some(waiting) = &self.0 else { return Ok(()) };
        waiting.log.write_in_passing();
        loop {
            match waiting.log.progress().outcome(waiting.batch) {
                Some(outcome) => return outcome,
                None => std::thread::sleep(LOOK_INTERVAL),
            }
        }
    }
}

impl Waiting {
    fn is_stored(&self) -> bool {
        self.log.progress().has(self.batch)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.is_stored() {
            self.log.leave_to_thread();
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
