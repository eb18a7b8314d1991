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
use super::frame::{self, Frame, HEADER_BYTES, Header, HeaderError};
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
    /// Whether frames are missing before the end.
    pub(super) has_hole: bool,
    /// Whether frames may be missing at the end: the machine has gone down since, and the store did not sync.
    pub(super) is_end_in_doubt: bool,
    /// Whether the system may not have written all of the segment that was read last.
    is_unsynced: bool,
    /// Whether that is so of any segment.
    is_any_unsynced: bool,
    /// The newest segment that was cleaned away, or was about to be.
    cleaned: u64,
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
    #[error("{} is not the first file of its store, and those before it were not cleaned away: a file is missing; restore a backup, or salvage", .0.display())]
    MissingFirst(PathBuf),
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
    replayed.check_first(folder, damage)?;
    Ok(replayed)
}

/// Returns the changes in one segment; damaged parts are passed over.
pub(super) fn changes_of(bytes: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    let Ok(Header { salt, .. }) = Header::decode(bytes) else { return changes };
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        match frame::read(bytes, at, salt) {
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
            None => match frame::find(bytes, at, 0, salt) {
                Some(found) => at = found,
                None => break,
            },
        }
    }
    changes
}

/// Returns the lowest segment in which a frame of this one began.
pub(super) fn began_in(bytes: &[u8]) -> Option<u64> {
    let Header { salt, .. } = Header::decode(bytes).ok()?;
    let mut at = HEADER_BYTES;
    std::iter::from_fn(|| {
        let frame = frame::read(bytes, at, salt)?;
        at = frame.end;
        Some(frame.began)
    })
    .min()
}

impl Replayed {
    fn segment(&mut self, number: u64, bytes: &[u8], file: PathBuf, is_last: bool, damage: Damage) -> Result<(), ReplayError> {
        let is_of_this = |header: &Header| header.number == number && self.store.is_none_or(|store| store == header.store);
        let header = match Header::decode(bytes) {
            Ok(header) if is_of_this(&header) => header,
            Err(HeaderError::Version(version)) => return Err(ReplayError::Version { file, version }),
            // No frame is written before the header is; and of one run's segments, the last ones are those that the system may not have
            // written. What the disk has in its place may even be another file's header.
            _ if is_last && (bytes.len() <= HEADER_BYTES || (damage == Damage::RefuseUnlessSystemCrashed && self.is_unsynced)) => {
                self.is_clean = false;
                self.is_end_in_doubt |= self.is_unsynced;
                self.torn = Some((number, 0));
                return Ok(());
            }
            _ if self.passes_over(damage) => {
                self.segments.push(Segment { number, bytes: bytes.len() as u64, began: number });
                self.pass_over(bytes.len());
                return Ok(());
            }
            Ok(_) => return Err(ReplayError::Missing(file)),
            Err(HeaderError::Damaged) => return Err(ReplayError::Damaged { file, at: 0 }),
        };
        let is_next = self.segments.last().is_none_or(|before| before.number + 1 == number && self.next_frame == header.first_frame);
        // A start that wrote a damaged store anew, and was killed, has removed files that could not be read before its own.
        let passes_over_gap = self.passes_over(damage);
        self.is_unsynced = header.durability != Durability::Fsync && header.boot != boot();
        self.is_any_unsynced |= self.is_unsynced;
        let passes_over = self.passes_over(damage);
        if !is_next && !passes_over_gap && !passes_over {
            return Err(ReplayError::Missing(file));
        }
        self.has_hole |= !is_next;
        self.store = Some(header.store);
        self.next_frame = self.next_frame.max(header.first_frame);
        let crashes = header.counters.crashes;
        self.counters.raise(&header.counters);
        self.counters.crashes = crashes;
        self.segments.push(Segment { number, bytes: bytes.len() as u64, began: number });
        // A run that has left no frame may have shown messages that no frame has.
        self.is_clean = false;
        let mut at = HEADER_BYTES;
        while at < bytes.len() {
            let frame = frame::read(bytes, at, header.salt)
                .filter(|frame| frame.number == self.next_frame || (passes_over && frame.number > self.next_frame));
            let Some(frame) = frame else {
                self.is_clean = false;
                match frame::find(bytes, at, self.next_frame, header.salt) {
                    None if is_last => {
                        self.torn = Some((number, at as u64));
                        break;
                    }
                    None if passes_over => {
                        self.pass_over(bytes.len() - at);
                        break;
                    }
                    Some(found) if passes_over => {
                        self.pass_over(found - at);
                        at = found;
                        continue;
                    }
                    _ => return Err(ReplayError::Damaged { file, at }),
                }
            };
            self.frame(&frame).map_err(|why| ReplayError::Unreadable { file: file.clone(), at, why })?;
            at = frame.end;
        }
        // The first frame after the machine went down says that messages may be missing, if any may be: see `Opened::fill`. So does every
        // segment without one say what those before it say.
        let is_in_doubt = self.is_unsynced && !self.is_clean;
        self.is_end_in_doubt = is_in_doubt || (self.is_end_in_doubt && at == HEADER_BYTES);
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<(), Unreadable> {
        let mut stopped = None;
        codec::decode(frame.records, |said| match said {
            Said::Change(change) => {
                self.changes += 1;
                self.counters.note(&change);
                self.fold.fold(change);
                stopped = None;
            }
            Said::Stop(last) => stopped = Some(last),
            Said::Cleaned(segment) => self.cleaned = self.cleaned.max(segment),
            // Only between nodes.
            Said::Lead(_) | Said::Beat | Said::Yield(_) => {}
        })?;
        self.is_clean = stopped.is_some();
        if let Some(last) = stopped {
            self.counters.raise(&last);
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.began = segment.began.min(frame.began);
        }
        self.has_hole |= frame.number != self.next_frame;
        self.next_frame = frame.number + 1;
        self.frames += 1;
        Ok(())
    }

    /// Returns whether damage is passed over here.
    fn passes_over(&self, damage: Damage) -> bool {
        match damage {
            Damage::Refuse => false,
            Damage::RefuseUnlessSystemCrashed => self.is_unsynced,
            Damage::PassOver => true,
        }
    }

    fn pass_over(&mut self, bytes: usize) {
        self.has_hole = true;
        self.passed_over += bytes as u64;
    }

    /// Checks that the first segment is the one after the last that was cleaned away. Which one that was, any segment may say, and the system
    /// may not have written it.
    fn check_first(&mut self, folder: &Folder, damage: Damage) -> Result<(), ReplayError> {
        let Some(first) = self.segments.first().filter(|first| first.number > self.cleaned + 1) else { return Ok(()) };
        if damage == Damage::Refuse || (damage == Damage::RefuseUnlessSystemCrashed && !self.is_any_unsynced) {
            return Err(ReplayError::MissingFirst(folder.segment(first.number)));
        }
        self.has_hole = true;
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
