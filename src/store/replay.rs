//! Reads a store: its segments in order, each frame checked, into a fold.
//!
//! A torn end, which is what a process leaves behind that was killed while it wrote, is cut off. Any other damage refuses the store, with two
//! exceptions that read what is whole: `signalpost store salvage`, and a store that promised no more than the system's memory on a machine
//! that has gone down since, where the system may have written some pages and not others.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::codec::{self, Said, Unreadable};
use super::folder::Folder;
use super::frame::{self, HEADER_BYTES, Header, HeaderError};
use crate::config::Durability;
use crate::model::Counters;
use crate::model::fold::Fold;
use crate::model::record::Change;

/// What a store holds.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    pub(super) fold: Fold,
    pub(super) counters: Counters,
    pub(super) segments: Vec<Segment>,
    pub(super) frames: u64,
    pub(super) changes: u64,
    /// The number of the next frame.
    pub(super) next_frame: u64,
    pub(super) store: Option<u64>,
    /// Whether the last process stopped in order, so that nothing is missing.
    pub(super) is_clean: bool,
    /// Where whole frames end in the last segment, if there is something behind them.
    pub(super) torn: Option<(u64, u64)>,
    /// Bytes that were passed over although whole frames follow.
    pub(super) passed_over: u64,
    /// Whether the last segment's end may be missing: the machine has gone down since, and the store did not sync.
    pub(super) is_end_in_doubt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) bytes: u64,
    /// The lowest segment in which a frame of this one began.
    pub(super) began: u64,
}

/// How damage is met that is not a torn end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    Refuse,
    /// It is refused unless the machine has gone down since, and the store did not sync.
    RefuseUnlessSystemCrashed,
    PassOver,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("{} can't be read: {why}", .file.display())]
    Io { file: PathBuf, why: io::Error },
    #[error(
        "{} is damaged at byte {at}: `signalpost store salvage DIR` writes what is whole into a new store, with new epochs, so that no \
         client is told that nothing is missing; or restore a backup",
        .file.display()
    )]
    Damaged { file: PathBuf, at: usize },
    #[error("{} was written by a later version of Signalpost (format {version}): start that version", .file.display())]
    Version { file: PathBuf, version: u32 },
    #[error("{}, byte {at}: {why}: start that version", .file.display())]
    Unreadable { file: PathBuf, at: usize, why: Unreadable },
    #[error("{} doesn't follow the segment before it: a file is missing, or is of another store; restore a backup, or salvage", .0.display())]
    Missing(PathBuf),
}

/// Reads all segments of a folder.
///
/// # Errors
/// It can't be read, or is damaged.
pub(super) fn replay(folder: &Folder, damage: Damage, mut progress: impl FnMut(u64, u64)) -> Result<Replayed, ReplayError> {
    let io = |file: PathBuf| move |why| ReplayError::Io { file, why };
    let segments = folder.segments().map_err(io(folder.dir.clone()))?;
    let all: u64 = segments.iter().map(|(_, bytes)| bytes).sum();
    let mut replayed = Replayed { next_frame: 1, is_clean: true, ..Replayed::default() };
    let mut read = 0;
    for (index, (number, _)) in segments.iter().enumerate() {
        let file = folder.segment(*number);
        let bytes = fs::read(&file).map_err(io(file.clone()))?;
        let is_last = index + 1 == segments.len();
        replayed.segment(*number, &bytes, file, is_last, damage)?;
        read += bytes.len() as u64;
        progress(read, all);
    }
    Ok(replayed)
}

/// Returns the changes in one segment; damaged parts are passed over.
pub(super) fn changes_of(bytes: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        match frame::read(bytes, at) {
            Some(frame) => {
                let note = |said| {
                    if let Said::Change(change) = said {
                        changes.push(change);
                    }
                };
                // It was read when the server started, or this process has written it.
                let _ = codec::decode(frame.records, note);
                at = frame.end;
            }
            None => match frame::find(bytes, at, 0) {
                Some(found) => at = found,
                None => break,
            },
        }
    }
    changes
}

/// Returns the lowest segment in which a frame of this one began.
pub(super) fn began_in(bytes: &[u8]) -> Option<u64> {
    let mut at = HEADER_BYTES;
    std::iter::from_fn(|| {
        let frame = frame::read(bytes, at)?;
        at = frame.end;
        Some(frame.began)
    })
    .min()
}

impl Replayed {
    fn segment(&mut self, number: u64, bytes: &[u8], file: PathBuf, is_last: bool, damage: Damage) -> Result<(), ReplayError> {
        let header = match Header::decode(bytes) {
            Ok(header) => header,
            Err(HeaderError::Version(version)) => return Err(ReplayError::Version { file, version }),
            // A segment whose header was not written to its end has no frames.
            Err(HeaderError::Damaged) if is_last && frame::find(bytes, 0, self.next_frame).is_none() => {
                self.is_clean = false;
                self.torn = Some((number, 0));
                return Ok(());
            }
            Err(HeaderError::Damaged) if damage == Damage::PassOver => {
                self.passed_over += bytes.len() as u64;
                return Ok(());
            }
            Err(HeaderError::Damaged) => return Err(ReplayError::Damaged { file, at: 0 }),
        };
        let is_next = self.segments.last().is_none_or(|before| before.number + 1 == number && self.next_frame == header.first_frame);
        let is_same = header.number == number && self.store.is_none_or(|store| store == header.store);
        let passes_over = match damage {
            Damage::Refuse => false,
            Damage::RefuseUnlessSystemCrashed => header.durability != Durability::Fsync && header.boot != boot(),
            Damage::PassOver => true,
        };
        if !(is_same && (is_next || passes_over)) {
            return Err(ReplayError::Missing(file));
        }
        self.store = Some(header.store);
        self.is_end_in_doubt = header.durability != Durability::Fsync && header.boot != boot();
        self.next_frame = self.next_frame.max(header.first_frame);
        let crashes = header.counters.crashes;
        self.counters.raise(&header.counters);
        self.counters.crashes = crashes;
        let mut segment = Segment { number, bytes: bytes.len() as u64, began: number };
        let mut at = HEADER_BYTES;
        // A segment without frames says nothing about the stop before it.
        self.is_clean &= at == bytes.len();
        while at < bytes.len() {
            let frame =
                frame::read(bytes, at).filter(|frame| frame.number == self.next_frame || (passes_over && frame.number > self.next_frame));
            let Some(frame) = frame else {
                self.is_clean = false;
                match frame::find(bytes, at, self.next_frame) {
                    None if is_last => {
                        self.torn = Some((number, at as u64));
                        break;
                    }
                    None if passes_over => {
                        self.passed_over += (bytes.len() - at) as u64;
                        break;
                    }
                    Some(found) if passes_over => {
                        self.passed_over += (found - at) as u64;
                        at = found;
                        continue;
                    }
                    _ => return Err(ReplayError::Damaged { file, at }),
                }
            };
            let mut stopped = None;
            let (fold, counters, changes) = (&mut self.fold, &mut self.counters, &mut self.changes);
            let read = codec::decode(frame.records, |said| match said {
                Said::Change(change) => {
                    *changes += 1;
                    counters.note(&change);
                    fold.fold(change);
                    stopped = None;
                }
                Said::Stop(last) => stopped = Some(last),
            });
            read.map_err(|why| ReplayError::Unreadable { file: file.clone(), at, why })?;
            self.is_clean = stopped.is_some();
            if let Some(last) = stopped {
                self.counters.raise(&last);
            }
            segment.began = segment.began.min(frame.began);
            self.next_frame = frame.number + 1;
            self.frames += 1;
            at = frame.end;
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Has the disk take what was read, before anybody is told that it is there. What the system has of the last segment may be more than
    /// the disk has, and after a failed sync the system may take it for written: it is written once more, byte for byte.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn sync(&self, folder: &Folder) -> io::Result<()> {
        let last = folder.segments()?.last().map(|(number, _)| *number);
        for (number, _) in folder.segments()? {
            let file = folder.segment(number);
            if Some(number) == last && !self.is_clean {
                OpenOptions::new().write(true).open(&file)?.write_all_at(&fs::read(&file)?, 0)?;
            }
            fs::File::open(file)?.sync_all()?;
        }
        folder.sync()
    }

    /// Cuts off the torn end, and removes a segment in which nothing is left.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn cut(&self, folder: &Folder) -> io::Result<()> {
        let Some((number, end)) = self.torn else { return Ok(()) };
        let file = folder.segment(number);
        if end < HEADER_BYTES as u64 {
            return fs::remove_file(file);
        }
        let file = OpenOptions::new().write(true).open(file)?;
        file.set_len(end)?;
        file.sync_all()
    }
}

/// Returns a number that identifies this run of the machine; 0 if the system doesn't tell.
pub(super) fn boot() -> u128 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    id.and_then(|id| uuid::Uuid::parse_str(id.trim()).ok()).map_or(0, |id| id.as_u128())
}
