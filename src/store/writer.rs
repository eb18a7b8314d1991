//! Writes the log: on a thread of its own or, if only the operating system has to have a frame, on that of a request that waits for it
//! ([`Writer::write_in_passing`]), since waking a thread and being woken by it costs more than the write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::folder::Folder;
use super::frame::{self, FRAME_HEAD_BYTES, HEADER_BYTES, Header};
use super::log::{Batch, Queue, Shared};
use crate::config::Durability;

/// How often a full disk is tried again, and its free space looked at.
pub(super) const DISK_INTERVAL: Duration = Duration::from_secs(1);

/// A buffer that has grown beyond this is freed, not kept for the next batch.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// A larger frame is written by the thread: copying it takes longer than waking the thread.
const IN_PASSING_BYTES_MAX: usize = 64 << 10;

/// A write in passing that took longer has waited for the disk, and the thread's other tasks with it ...
const SLOW_WRITE: Duration = Duration::from_millis(10);

/// ... so that for this long, only the store's thread writes.
const SLOW_DISK_PAUSE: Duration = Duration::from_secs(10);

/// Whether the store can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Writing,
    /// The disk is full, or nearly, or no file can be opened. It is tried again.
    Full,
    /// The disk has failed. The process has to end: what the disk has is not known any more, until it is read anew.
    Failed,
}

/// Where writing goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub(super) store: u64,
    /// The segment to begin.
    pub(super) segment: u64,
    pub(super) next_frame: u64,
    pub(super) boot: u128,
    /// Bytes of the segments before.
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    folder: Folder,
    position: Position,
    file: File,
    /// Where the checksums of the segment's frames begin.
    salt: u32,
    /// The end of the last good frame.
    offset: u64,
    looked_at_disk: Instant,
    /// A buffer for the next frame.
    spare: Vec<u8>,
    /// When writing last took long on the thread of a request.
    was_slow: Option<Instant>,
}

/// What became of what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// One frame is written.
    Written,
    Nothing,
    /// It is left to the store's thread.
    Left,
}

/// Why the writer has ended early. It was logged.
#[derive(Debug)]
struct Ended;

/// Runs the thread: writes whenever something waits, until the log is closed and nothing does.
pub(super) fn run(shared: &Shared, writer: &Mutex<Writer>) {
    while shared.is_more() {
        let mut writer = writer.lock();
        if let Err(Ended) = writer.write_all() {
            break;
        }
        writer.look_at_disk();
    }
    let mut queue = shared.queue.lock();
    queue.is_dead = true;
    queue.unwritten = None;
    queue.batch.frame = Vec::new();
    shared.progress.end();
}

impl Writer {
    /// Makes the first segment.
    pub(super) fn begin(shared: Arc<Shared>, folder: Folder, position: Position) -> io::Result<Writer> {
        let (file, salt) = create(&shared, &folder, &position)?;
        // The start of a run is on the disk, whatever the store promises: the next one sees that there was a run, and what it promised.
        file.sync_data()?;
        folder.sync()?;
        shared.bytes.fetch_add(HEADER_BYTES as u64, Ordering::Relaxed);
        let now = Instant::now();
        let looked_at_disk = now.checked_sub(DISK_INTERVAL).unwrap_or(now);
        let offset = HEADER_BYTES as u64;
        Ok(Writer { shared, folder, position, file, salt, offset, looked_at_disk, spare: Vec::new(), was_slow: None })
    }

    /// Writes a frame of what waits, if that takes a few microseconds. Otherwise, and after an error, it is the thread's.
    pub(super) fn write_in_passing(&mut self) -> Passed {
        let shared = self.shared.clone();
        let mut queue = shared.queue.lock();
        if queue.unwritten.is_none() && queue.batch.frame.is_empty() {
            return Passed::Nothing;
        }
        let bytes = queue.batch.frame.len();
        let is_short = queue.unwritten.is_none() && bytes <= IN_PASSING_BYTES_MAX && !self.is_over(bytes);
        let is_well = !queue.is_closed && !queue.is_dead && self.shared.health() == Health::Writing;
        let began = Instant::now();
        let is_due = began.duration_since(self.looked_at_disk) >= DISK_INTERVAL;
        let is_slow = self.was_slow.is_some_and(|since| began.duration_since(since) < SLOW_DISK_PAUSE);
        if !is_short || !is_well || is_due || is_slow {
            return Passed::Left;
        }
        let mut batch = self.take(&mut queue);
        drop(queue);
        frame::seal(&mut batch.frame, self.position.next_frame, batch.began, self.salt);
        let written = self.put(&batch.frame);
        if began.elapsed() > SLOW_WRITE {
            self.was_slow = Some(began);
        }
        if written.is_err() {
            self.shared.queue.lock().unwritten = Some(batch);
            return Passed::Left;
        }
        self.stored(batch);
        Passed::Written
    }

    /// Writes everything that waits.
    ///
    /// # Errors
    /// The store has failed, or was closed while it could not be written.
    fn write_all(&mut self) -> Result<(), Ended> {
        while let Some(mut batch) = self.next() {
            self.write(&mut batch.frame, batch.began)?;
            self.stored(batch);
            self.look_at_disk();
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Batch> {
        let shared = self.shared.clone();
        let mut queue = shared.queue.lock();
        let unwritten = queue.unwritten.take();
        if unwritten.is_none() && queue.batch.frame.is_empty() {
            return None;
        }
        Some(unwritten.unwrap_or_else(|| self.take(&mut queue)))
    }

    /// Takes what has gathered.
    fn take(&mut self, queue: &mut Queue) -> Batch {
        let fresh = Batch::new(queue.batch.number + 1, std::mem::take(&mut self.spare));
        std::mem::replace(&mut queue.batch, fresh)
    }

    /// Tells those who wait for a frame that was written.
    fn stored(&mut self, batch: Batch) {
        let Batch { mut frame, number, .. } = batch;
        self.position.next_frame += 1;
        self.shared.pending.fetch_sub(frame.len().saturating_sub(FRAME_HEAD_BYTES), Ordering::Relaxed);
        self.shared.metrics.store_commits.inc();
        self.shared.metrics.store_bytes.inc_by(frame.len() as u64);
        self.shared.progress.note(number);
        if frame.capacity() <= BUFFER_BYTES_MAX {
            frame.clear();
            self.spare = frame;
        }
    }

    fn is_over(&self, bytes: usize) -> bool {
        self.offset + bytes as u64 > self.shared.config.segment_bytes.get()
    }

    /// Writes a frame at the end of the segment.
    fn put(&mut self, frame: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(frame, self.offset) {
            // The part of a frame that was written is in nobody's way, but a restart would have to cut it off.
            let _ = self.file.set_len(self.offset);
            return Err(error);
        }
        self.offset += frame.len() as u64;
        self.shared.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn write(&mut self, frame: &mut [u8], began: u64) -> Result<(), Ended> {
        if self.is_over(frame.len()) && self.offset > HEADER_BYTES as u64 {
            self.position.segment += 1;
            (self.file, self.salt) = self.patiently(|writer| create(&writer.shared, &writer.folder, &writer.position))?;
            self.offset = HEADER_BYTES as u64;
            self.shared.bytes.fetch_add(self.offset, Ordering::Relaxed);
            self.shared.segment.store(self.position.segment, Ordering::Relaxed);
        }
        frame::seal(frame, self.position.next_frame, began, self.salt);
        self.patiently(|writer| writer.put(frame))?;
        if self.shared.config.durability == Durability::Fsync {
            let began = Instant::now();
            // A failed sync is not tried again: the system may have dropped what it could not write.
            self.file.sync_data().map_err(|error| self.fail("synced", &error))?;
            self.shared.metrics.store_sync_seconds.observe(began.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Does something that needs room on the disk or an open file, and tries it again until there is some.
    fn patiently<R>(&mut self, mut work: impl FnMut(&mut Writer) -> io::Result<R>) -> Result<R, Ended> {
        loop {
            let error = match work(self) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !passes(&error) {
                return Err(self.fail("written", &error));
            }
            if self.shared.health() != Health::Full {
                let dir = self.folder.dir.display();
                tracing::error!("the log in {dir} can't be written: {error}; nothing is stored, and producers are refused, until it can");
                self.set(Health::Full);
            }
            let mut queue = self.shared.queue.lock();
            if queue.is_closed {
                let lost = self.shared.pending.load(Ordering::Relaxed);
                tracing::error!(bytes = lost, "the log still can't be written ({error}): what waits was not answered, and is not stored");
                return Err(Ended);
            }
            self.shared.more.wait_for(&mut queue, DISK_INTERVAL);
            // It is looked at after the next success.
            self.looked_at_disk = self.looked_at_disk.checked_sub(DISK_INTERVAL).unwrap_or(self.looked_at_disk);
        }
    }

    /// Refuses what is new before the disk is full.
    fn look_at_disk(&mut self) {
        if self.looked_at_disk.elapsed() < DISK_INTERVAL {
            return;
        }
        self.looked_at_disk = Instant::now();
        let min = self.shared.config.free_bytes_min;
        let free = match self.folder.free_bytes() {
            Ok(free) => free,
            Err(error) => return tracing::warn!("the free space of {} is not known: {error}", self.folder.dir.display()),
        };
        match self.shared.health() {
            Health::Writing if free < min => {
                tracing::error!(free, min, "the disk is nearly full (store.free_bytes_min): producers are refused");
                self.set(Health::Full);
            }
            Health::Full if free >= min => {
                tracing::info!(free, "the log can be written again");
                self.set(Health::Writing);
            }
            _ => {}
        }
    }

    fn set(&self, health: Health) {
        self.shared.health.store(health as u8, Ordering::Relaxed);
    }

    fn fail(&self, what: &str, error: &io::Error) -> Ended {
        let dir = self.folder.dir.display();
        tracing::error!("the log in {dir} can't be {what}: {error}; the server stops, and goes on from what the disk has when it starts");
        self.set(Health::Failed);
        self.shared.failed.send_replace(true);
        Ended
    }
}

/// Returns whether an error lasts only as long as the machine lacks something, and leaves what was written as it is.
fn passes(error: &io::Error) -> bool {
    // Too many open files, of the process or of the machine, have no kind of their own.
    let is_out_of_files = matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE));
    is_out_of_files || matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes a segment with its header, and returns it with its salt. In `fsync`, it is there to stay before a frame is written to it.
fn create(shared: &Shared, folder: &Folder, position: &Position) -> io::Result<(File, u32)> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(folder.segment(position.segment))?;
    let salt = random_salt();
    let header = Header {
        store: position.store,
        number: position.segment,
        first_frame: position.next_frame,
        counters: shared.queue.lock().counters,
        boot: position.boot,
        durability: shared.config.durability,
        salt,
    };
    file.write_all_at(&header.encode(), 0)?;
    if shared.config.durability == Durability::Fsync {
        file.sync_data()?;
        folder.sync()?;
    }
    Ok((file, salt))
}

fn random_salt() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}
