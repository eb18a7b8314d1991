//! Looks at a store, copies it, and saves what is whole of a damaged one: for `signalpost store`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::folder::Folder;
use super::log::Log;
use super::replay::{self, Damage, Replayed};
use super::writer::Position;
use super::{OpenError, Store, random_id};
use crate::config;
use crate::metrics::Metrics;
use crate::model::Counters;

/// What a store holds.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Identifies the store: mailboxes' epochs begin with it.
    pub store: Option<String>,
    pub segments: usize,
    pub bytes: u64,
    pub frames: u64,
    pub records: u64,
    /// Whether the last process stopped in order.
    pub stopped_in_order: bool,
    /// Bytes of an unfinished frame at the end, which the next start cuts off.
    pub unfinished_bytes: u64,
    pub mailboxes: usize,
    pub messages: usize,
    pub memberships: usize,
    pub state_entries: usize,
    pub event_ids: usize,
    pub dead_letters: usize,
}

/// Reads a store as a start would, and changes nothing. It may be in use.
///
/// # Errors
/// It can't be read, or is damaged.
pub fn summary(dir: &Path) -> Result<Summary, OpenError> {
    let folder = Folder::look(dir);
    let replayed = replay::replay(&folder, Damage::Refuse, |_, _| ())?;
    let Replayed { fold, segments, frames, changes, store, is_clean, torn, .. } = &replayed;
    let on_disk: u64 = folder.segments()?.iter().map(|(_, bytes)| bytes).sum();
    let torn_segment = |number: u64| segments.iter().find(|segment| segment.number == number).map_or(0, |segment| segment.bytes);
    Ok(Summary {
        store: store.map(|store| format!("{store:016x}")),
        segments: segments.len(),
        bytes: on_disk,
        frames: *frames,
        records: *changes,
        stopped_in_order: *is_clean,
        unfinished_bytes: torn.map_or(0, |(number, end)| torn_segment(number).saturating_sub(end)),
        mailboxes: fold.mailboxes().len(),
        messages: fold.mailboxes().values().map(|mailbox| mailbox.entries.len()).sum(),
        memberships: fold.memberships().len(),
        state_entries: fold.states().count(),
        event_ids: fold.seen().len(),
        dead_letters: fold.letters().count(),
    })
}

/// Copies a store, which may be in use, into a new folder. Returns the bytes.
///
/// # Errors
/// The operating system's; the new folder is not empty; the copy is not whole.
pub fn backup(from: &Path, to: &Path) -> Result<u64, OpenError> {
    let source = Folder::look(from);
    let target = Folder::take(to)?;
    check_empty(&target)?;
    let mut copied: Option<u64> = None;
    loop {
        // While this copies, segments are cleaned away, whose content goes to later ones, and new ones are begun.
        let segments = source.segments()?;
        let next: Vec<u64> =
            segments.into_iter().map(|(number, _)| number).filter(|number| copied.is_none_or(|last| *number > last)).collect();
        if next.is_empty() {
            break;
        }
        for number in next {
            match fs::copy(source.segment(number), target.segment(number)) {
                Ok(_) => copied = Some(number),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // All that was copied so far is in later segments too.
                    for (number, _) in target.segments()? {
                        fs::remove_file(target.segment(number))?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    for (number, _) in target.segments()? {
        fs::File::open(target.segment(number))?.sync_all()?;
    }
    target.sync()?;
    replay::replay(&target, Damage::Refuse, |_, _| ())?;
    Ok(target.segments()?.iter().map(|(_, bytes)| bytes).sum())
}

/// Writes what is whole in one store into a new one with a new id, so that every mailbox has a new epoch: what was given to readers after a
/// copy was made, or what is missing, is not taken for read. Returns the new store's summary, and the bytes that were passed over.
///
/// # Errors
/// The old one can't be read at all; the new folder is not empty, or can't be written.
pub fn renew(from: &Path, damage: bool, to: &Path, config: &config::Store) -> Result<(Summary, u64), OpenError> {
    let source = Folder::look(from);
    let damage = if damage { Damage::PassOver } else { Damage::Refuse };
    let replayed = replay::replay(&source, damage, |_, _| ())?;
    let folder = Folder::take(to)?;
    check_empty(&folder)?;
    let metrics = Arc::new(Metrics::new().map_err(io::Error::other)?);
    let position = Position { store: random_id(), segment: 1, next_frame: 1, boot: replay::boot(), bytes: 0 };
    let counters = Counters { crashes: 0, ..replayed.counters };
    let log = Log::start(config, folder, position, counters, metrics)?;
    let store = Store::Log(log.clone());
    for piece in replayed.fold.into_changes() {
        let mut changes = store.changes();
        piece.into_iter().for_each(|change| changes.note(|| change));
        let ticket = store.append(changes);
        if log.admit().is_err() {
            ticket.stored_blocking().map_err(io::Error::other)?;
        }
    }
    log.close().map_err(io::Error::other)?;
    let target = Folder::look(to);
    for (number, _) in target.segments()? {
        fs::File::open(target.segment(number))?.sync_all()?;
    }
    target.sync()?;
    Ok((summary(to)?, replayed.passed_over))
}

/// Returns whether a folder holds a store, whole or damaged.
pub fn is_there(dir: &Path) -> bool {
    Folder::look(dir).segments().is_ok_and(|segments| !segments.is_empty())
}

fn check_empty(folder: &Folder) -> Result<(), OpenError> {
    if folder.segments()?.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("{} holds a store already: name an empty folder", folder.dir.display())).into())
}
