//! A feed: what happens, for those who look, through one bounded ring.
//!
//! While nobody looks, each thing that happens costs one relaxed load. All readers read one ring of the newest entries, each at its own
//! position, so that a slow one delays neither the server nor the others: what is overwritten before it was read is lost for that reader,
//! which learns how many entries that are.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus::{IntCounter, IntGauge};
use tokio::sync::broadcast::{self, error::RecvError};

/// Bounds of a feed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub readers_max: usize,
    /// Entries that are kept until the slowest reader has read them.
    pub entries_max: usize,
    /// Bytes of these entries.
    pub bytes_max: usize,
}

/// There are as many readers as the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany(pub usize);

#[derive(Debug)]
pub struct Feed<T> {
    limits: Limits,
    readers: AtomicUsize,
    entries: broadcast::Sender<Arc<Kept<T>>>,
    /// Bytes of the entries that are kept.
    bytes: Arc<AtomicUsize>,
    /// Entries that were dropped for lack of room, for all readers.
    skipped: AtomicU64,
    present: IntGauge,
    lost: IntCounter,
}

/// An entry, and the room that it takes while somebody has it.
#[derive(Debug)]
pub struct Kept<T> {
    entry: T,
    /// `None` for an entry that takes no room.
    room: Option<(usize, Arc<AtomicUsize>)>,
}

/// One reader. Dropping it makes room for another.
#[derive(Debug)]
pub struct Reader<T> {
    feed: Arc<Feed<T>>,
    entries: broadcast::Receiver<Arc<Kept<T>>>,
    /// `Feed::skipped` when this reader last looked.
    skipped: u64,
}

/// What a reader receives.
#[derive(Debug)]
pub enum Next<T> {
    Entry(Arc<Kept<T>>),
    /// The number of entries that it has missed.
    Lost(u64),
}

impl<T> Feed<T> {
    /// Returns a feed. `present`: shows the number of readers. `lost`: counts entries that a reader did not get.
    pub fn new(limits: Limits, present: &IntGauge, lost: &IntCounter) -> Arc<Feed<T>> {
        let (entries, _) = broadcast::channel(limits.entries_max);
        let (readers, bytes, skipped) = (AtomicUsize::new(0), Arc::default(), AtomicU64::new(0));
        Arc::new(Feed { limits, readers, entries, bytes, skipped, present: present.clone(), lost: lost.clone() })
    }

    /// Returns a new reader, which receives what happens from now on.
    ///
    /// # Errors
    /// There are as many as the configuration allows.
    pub fn read(self: &Arc<Self>) -> Result<Reader<T>, TooMany> {
        let max = self.limits.readers_max;
        let more = |count| (count < max).then_some(count + 1);
        self.readers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| TooMany(max))?;
        self.present.inc();
        Ok(Reader { feed: self.clone(), entries: self.entries.subscribe(), skipped: self.skipped.load(Ordering::Relaxed) })
    }

    /// Returns whether there is a reader.
    pub fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    /// Shows the readers an entry of this size, if there are any, and room for it.
    pub fn show(&self, bytes: usize, entry: T) {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.limits.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // An error means that the last reader has just left.
        let _ = self.entries.send(Arc::new(Kept { entry, room: Some((bytes, self.bytes.clone())) }));
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl<T> Reader<T> {
    /// Returns what happens next. Cancel safe.
    pub async fn next(&mut self) -> Next<T> {
        let skipped = self.feed.skipped.load(Ordering::Relaxed);
        let missed = skipped.saturating_sub(std::mem::replace(&mut self.skipped, skipped));
        if missed > 0 {
            self.count_lost(missed);
            return Next::Lost(missed);
        }
        match self.entries.recv().await {
            Ok(entry) => Next::Entry(entry),
            Err(RecvError::Lagged(count)) => {
                self.count_lost(count);
                Next::Lost(count)
            }
            // This reader keeps the sender.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Counts entries that this reader does not get.
    pub fn count_lost(&self, count: u64) {
        self.feed.lost.inc_by(count);
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.feed.readers.fetch_sub(1, Ordering::Relaxed);
        self.feed.present.dec();
    }
}

impl<T> Kept<T> {
    /// Returns an entry that takes no room.
    pub fn free(entry: T) -> Arc<Kept<T>> {
        Arc::new(Kept { entry, room: None })
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.entry
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some((bytes, all)) = &self.room {
            all.fetch_sub(*bytes, Ordering::Relaxed);
        }
    }
}
