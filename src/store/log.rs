//! The log of a store as the rest of the server sees it: a queue, which a thread writes ([`super::writer`]).
//!
//! Appending copies bytes into the queue's buffer and never waits. While one buffer is written, the next one gathers: a fast disk makes many
//! small commits, and a slow one few large ones. If only the operating system has to have what is appended, those who wait for it write
//! themselves ([`Log::write_in_passing`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::NotStored;
use super::codec;
use super::folder::Folder;
use super::frame::FRAME_HEAD_BYTES;
use super::ticket::{Progress, Ticket};
use super::writer::{self, DISK_INTERVAL, Health, Passed, Position, Writer};
use crate::config::{self, Durability};
use crate::metrics::Metrics;
use crate::model::Counters;
use crate::model::record::Changes;

/// Frames that a request writes at most, one after the other, of those that others hand over meanwhile.
const FRAMES_IN_PASSING: usize = 4;

/// Bytes of the records of a message, and of a change without it, about.
const MESSAGE_BYTES: usize = 256;
const CHANGE_BYTES: usize = 128;

/// The handle of a log. Dropping it lets the thread write what waits, and end.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    /// Locked before the queue. Only the thread waits for it.
    writer: Arc<Mutex<Writer>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the log's users and its thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: config::Store,
    pub(super) queue: Mutex<Queue>,
    /// Wakes the thread: notified when there is something for it to write, and when the queue is closed.
    pub(super) more: Condvar,
    /// The number of the segment that is being written.
    pub(super) segment: AtomicU64,
    /// Bytes that wait to be stored.
    pub(super) pending: AtomicUsize,
    /// Bytes of all segments.
    pub(super) bytes: AtomicU64,
    pub(super) health: AtomicU8,
    pub(super) progress: Progress,
    /// Whether the store has failed.
    pub(super) failed: watch::Sender<bool>,
    pub(super) metrics: Arc<Metrics>,
}

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) batch: Batch,
    /// An earlier batch that a request could not write: it is the thread's.
    pub(super) unwritten: Option<Batch>,
    /// The largest numbers that were appended.
    pub(super) counters: Counters,
    /// Nothing more is appended: the thread ends when it has written what waits.
    pub(super) is_closed: bool,
    /// The thread has ended: what is appended is lost.
    pub(super) is_dead: bool,
}

/// A frame that gathers.
#[derive(Debug)]
pub(super) struct Batch {
    /// The frame; empty, or with its head left free.
    pub(super) frame: Vec<u8>,
    pub(super) began: u64,
    /// Batches are numbered in their order, the first is 1.
    pub(super) number: u64,
}

impl Batch {
    /// Returns an empty batch. `frame`: an empty buffer.
    pub(super) fn new(number: u64, frame: Vec<u8>) -> Batch {
        Batch { frame, began: u64::MAX, number }
    }
}

impl Log {
    /// Starts the thread that writes, at a position of the folder.
    ///
    /// # Errors
    /// The operating system's: the first segment can't be made, or the thread.
    pub(super) fn start(
        config: &config::Store,
        folder: Folder,
        position: Position,
        counters: Counters,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Arc<Log>> {
        let queue = Queue { batch: Batch::new(1, Vec::new()), unwritten: None, counters, is_closed: false, is_dead: false };
        let shared = Arc::new(Shared {
            config: config.clone(),
            queue: Mutex::new(queue),
            more: Condvar::new(),
            segment: AtomicU64::new(position.segment),
            pending: AtomicUsize::new(0),
            bytes: AtomicU64::new(position.bytes),
            health: AtomicU8::new(Health::Writing as u8),
            progress: Progress::default(),
            failed: watch::channel(false).0,
            metrics,
        });
        let writer = Arc::new(Mutex::new(Writer::begin(shared.clone(), folder, position)?));
        let (its_shared, its_writer) = (shared.clone(), writer.clone());
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer::run(&its_shared, &its_writer))?;
        Ok(Arc::new(Log { shared, writer, thread: Mutex::new(Some(thread)) }))
    }

    pub fn segment(&self) -> u64 {
        self.shared.segment.load(Ordering::Relaxed)
    }

    pub fn admit(&self) -> Result<(), NotStored> {
        self.check()?;
        let max = self.shared.config.pending_bytes_max.get();
        if self.pending_bytes() > max { Err(NotStored::Behind(max)) } else { Ok(()) }
    }

    pub fn check(&self) -> Result<(), NotStored> {
        match self.health() {
            Health::Full => Err(NotStored::Full),
            Health::Failed => Err(NotStored::Failed),
            Health::Writing => Ok(()),
        }
    }

    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Resolves when the store has failed.
    pub async fn failed(&self) {
        let mut failed = self.shared.failed.subscribe();
        // The sender lives as long as this handle.
        let _ = failed.wait_for(|failed| *failed).await;
    }

    pub(super) fn append(self: &Arc<Log>, changes: Changes) -> Ticket {
        let began = changes.began();
        let changes = changes.into_changes();
        let mut counters = Counters::default();
        changes.iter().for_each(|change| counters.note(change));
        let mut records = Vec::with_capacity(MESSAGE_BYTES + changes.len() * CHANGE_BYTES);
        codec::encode(&changes, &mut records);
        self.push(&records, began, &counters)
    }

    /// Hands over that the segments up to this one are removed.
    pub(super) fn append_cleaned(self: &Arc<Log>, segment: u64) -> Ticket {
        let mut records = Vec::new();
        codec::encode_cleaned(segment, &mut records);
        self.push(&records, self.segment(), &Counters::default())
    }

    fn push(self: &Arc<Log>, records: &[u8], began: u64, counters: &Counters) -> Ticket {
        let mut queue = self.shared.queue.lock();
        if queue.is_dead {
            // It never will be.
            return Ticket::of(u64::MAX, self);
        }
        let batch = &mut queue.batch;
        if records.is_empty() && batch.frame.is_empty() {
            let before = batch.number - 1;
            return if self.shared.progress.has(before) { Ticket::none() } else { Ticket::of(before, self) };
        }
        let is_first = batch.frame.is_empty();
        if is_first {
            batch.frame.resize(FRAME_HEAD_BYTES, 0);
        }
        batch.frame.extend_from_slice(records);
        batch.began = batch.began.min(began);
        let ticket = Ticket::of(batch.number, self);
        self.shared.pending.fetch_add(records.len(), Ordering::Relaxed);
        queue.counters.raise(counters);
        drop(queue);
        if is_first && !self.is_written_in_passing() {
            self.shared.more.notify_one();
        }
        ticket
    }

    /// Returns whether a ticket's holder writes what it waits for, or wakes the thread when it is dropped.
    fn is_written_in_passing(&self) -> bool {
        self.shared.config.durability != Durability::Fsync
    }

    /// Writes what waits on this thread, unless another one is writing, or it takes long: then the store's thread does.
    pub(super) fn write_in_passing(&self) {
        if !self.is_written_in_passing() {
            return;
        }
        for _ in 0..FRAMES_IN_PASSING {
            // Who has it looks again afterwards.
            let Some(mut writer) = self.writer.try_lock() else { return };
            let passed = writer.write_in_passing();
            drop(writer);
            if passed == Passed::Left {
                break;
            }
            // Others may have come while it was written, and found it locked.
            if !self.shared.queue.lock().is_any() {
                return;
            }
        }
        self.shared.more.notify_one();
    }

    /// Lets the thread write what a holder of a ticket does not wait for.
    pub(super) fn leave_to_thread(&self) {
        if self.is_written_in_passing() {
            self.shared.more.notify_one();
        }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    pub fn commit_deadline(&self) -> Duration {
        *self.shared.config.commit_deadline_ms
    }

    /// Returns what receipts call the place where an answered message is.
    pub fn stored(&self) -> &'static str {
        match self.shared.config.durability {
            Durability::Fsync => "disk",
            Durability::Os | Durability::Memory => "system",
        }
    }

    pub fn pending_bytes(&self) -> usize {
        self.shared.pending.load(Ordering::Relaxed)
    }

    /// Returns the bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Writes an orderly stop as the last record, and waits until all is stored. Nothing may be appended after it.
    ///
    /// # Errors
    /// Something could not be stored.
    pub fn close(&self) -> Result<(), NotStored> {
        let mut queue = self.shared.queue.lock();
        if !queue.is_closed && !queue.is_dead {
            if queue.batch.frame.is_empty() {
                queue.batch.frame.resize(FRAME_HEAD_BYTES, 0);
                queue.batch.began = self.segment();
            }
            let (counters, before) = (queue.counters, queue.batch.frame.len());
            codec::encode_stop(counters, &mut queue.batch.frame);
            self.shared.pending.fetch_add(queue.batch.frame.len() - before, Ordering::Relaxed);
        }
        queue.is_closed = true;
        drop(queue);
        self.shared.more.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        let is_all_stored = self.shared.pending.load(Ordering::Relaxed) == 0;
        if is_all_stored && self.health() != Health::Failed { Ok(()) } else { Err(NotStored::Failed) }
    }
}

#[cfg(test)]
impl Log {
    /// Ends the thread as a crash does, except that what was handed over is written.
    pub(super) fn abandon(&self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.more.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.more.notify_one();
    }
}

impl Queue {
    fn is_any(&self) -> bool {
        self.unwritten.is_some() || !self.batch.frame.is_empty()
    }
}

impl Shared {
    /// Waits until there is something to write, or the disk has to be looked at. Returns whether the thread goes on: the log is not closed,
    /// or something waits.
    pub(super) fn is_more(&self) -> bool {
        let mut queue = self.queue.lock();
        if self.health() != Health::Writing && !queue.is_any() && !queue.is_closed {
            // Nothing is admitted, so nothing may come: there may be room again all the same.
            self.more.wait_for(&mut queue, DISK_INTERVAL);
            return true;
        }
        while !queue.is_any() && !queue.is_closed {
            self.more.wait(&mut queue);
        }
        queue.is_any()
    }

    pub(super) fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            health if health == Health::Writing as u8 => Health::Writing,
            health if health == Health::Full as u8 => Health::Full,
            _ => Health::Failed,
        }
    }
}
