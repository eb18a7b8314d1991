//! Cleaning: removes the oldest segment, after writing again what still counts of it.
//!
//! No index says what counts: each record of the segment is compared with the model. A removal is written anew only if an older change may
//! be among the segments that follow, because the change began while this segment was written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::folder::Folder;
use super::frame::Header;
use super::log::Log;
use super::replay::{self, Segment};
use super::{NotStored, Store};
use crate::model::Model;
use crate::model::record::Change;
use crate::types::event::UserId;

/// How often the size of the log is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Records that are compared and written at a time: others append in between.
const PIECE: usize = 1000;

/// Segments beyond twice what counts.
const SEGMENTS_SPARE: u64 = 2;

/// Cleans a log.
#[derive(Debug)]
pub struct Cleaner {
    log: Arc<Log>,
    model: Arc<Model>,
    folder: Folder,
    /// The segments that were there when the server started, and in which their frames began. Of later ones it is read.
    began: BTreeMap<u64, u64>,
    /// The newest segment that the disk has whole.
    synced: u64,
}

impl Cleaner {
    pub(super) fn new(log: Arc<Log>, model: Arc<Model>, folder: Folder, segments: &[Segment]) -> Cleaner {
        Cleaner { log, model, folder, began: segments.iter().map(|segment| (segment.number, segment.began)).collect(), synced: 0 }
    }

    /// Cleans for as long as the server runs.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(INTERVAL);
        loop {
            tick.tick().await;
            let work = tokio::task::spawn_blocking(move || {
                if let Err(error) = self.clean() {
                    tracing::warn!(dir = %self.folder.dir.display(), "the log can't be cleaned, and grows: {error}");
                }
                self
            });
            match work.await {
                Ok(cleaner) => self = cleaner,
                // The runtime is stopping.
                Err(_) => return,
            }
        }
    }

    /// Removes the oldest segments while the log is too large.
    pub(super) fn clean(&mut self) -> anyhow::Result<()> {
        let segment_bytes = self.log.shared().config.segment_bytes.get();
        while self.log.bytes() > 2 * self.model.kept_bytes() as u64 + SEGMENTS_SPARE * segment_bytes {
            let segments = self.folder.segments()?;
            let Some((oldest, bytes)) = segments.first().filter(|(number, _)| *number < self.log.segment()) else { return Ok(()) };
            self.remove(*oldest, *bytes)?;
        }
        Ok(())
    }

    /// Removes every segment that was there when the server started: what counts of them is written anew.
    pub(super) fn renew_all(&mut self) -> anyhow::Result<()> {
        for oldest in self.old() {
            let segments = self.folder.segments()?;
            match segments.iter().find(|(known, _)| *known == oldest) {
                Some((_, bytes)) => self.remove(oldest, *bytes)?,
                // It was cut off whole.
                None => drop(self.began.remove(&oldest)),
            }
        }
        Ok(())
    }

    /// Returns the segments that were there when the server started. First those without a header of their own, of which nothing can be
    /// read: a later start must not find one as its first.
    pub(super) fn old(&self) -> Vec<u64> {
        let has_header = |number: &u64| {
            let bytes = fs::read(self.folder.segment(*number));
            bytes.is_ok_and(|bytes| Header::decode(&bytes).is_ok_and(|header| header.number == *number))
        };
        let mut old: Vec<u64> = self.began.keys().copied().collect();
        old.sort_by_key(has_header);
        old
    }

    fn remove(&mut self, number: u64, bytes: u64) -> anyhow::Result<()> {
        let with_removals = self.is_reached_back_to(number)?;
        let mut old = replay::changes_of(&fs::read(self.folder.segment(number))?);
        // A mailbox's records stay together, so that its mark is written once.
        old.sort_by(|a, b| user_of(a).cmp(&user_of(b)));
        let store = Store::Log(self.log.clone());
        while !old.is_empty() {
            let mut end = old.len().min(PIECE);
            while end < old.len() && user_of_at(&old, end).is_some() && user_of_at(&old, end) == user_of_at(&old, end - 1) {
                end += 1;
            }
            let rest = old.split_off(end);
            self.wait_for_room()?;
            let mut changes = store.changes();
            self.model.note_again(std::mem::replace(&mut old, rest), with_removals, &mut changes);
            drop(store.append(changes));
        }
        self.log.append_cleaned(number).stored_blocking()?;
        self.sync(number)?;
        fs::remove_file(self.folder.segment(number))?;
        self.folder.sync()?;
        self.began.remove(&number);
        self.log.shared().bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.log.shared().metrics.store_cleaned_bytes.inc_by(bytes);
        Ok(())
    }

    /// Has the disk take the segments after this one. What counts may be nowhere else once it is gone, and a store that does not sync
    /// promises that a power cut takes no more than the last seconds.
    fn sync(&mut self, number: u64) -> anyhow::Result<()> {
        let writing = self.log.segment();
        for (later, _) in self.folder.segments()?.into_iter().filter(|(later, _)| *later > number.max(self.synced)) {
            File::open(self.folder.segment(later))?.sync_data()?;
        }
        self.folder.sync()?;
        self.synced = self.synced.max(writing - 1);
        Ok(())
    }

    /// Returns whether a later segment has a frame that began in this one or before.
    fn is_reached_back_to(&mut self, number: u64) -> anyhow::Result<bool> {
        for (later, _) in self.folder.segments()?.into_iter().filter(|(later, _)| *later > number) {
            let is_closed = later < self.log.segment();
            let began = match self.began.get(&later) {
                Some(began) => *began,
                None => {
                    let began = replay::began_in(&fs::read(self.folder.segment(later))?).unwrap_or(later);
                    if is_closed {
                        self.began.insert(later, began);
                    }
                    began
                }
            };
            if began <= number {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits while more than half of the bytes wait that may: producers come first.
    fn wait_for_room(&self) -> Result<(), NotStored> {
        let shared = self.log.shared();
        while shared.pending.load(Ordering::Relaxed) > shared.config.pending_bytes_max.get() / 2 {
            std::thread::sleep(Duration::from_millis(10));
            if self.log.health() == super::Health::Failed {
                return Err(NotStored::Failed);
            }
        }
        Ok(())
    }
}

fn user_of(change: &Change) -> Option<&UserId> {
    match change {
        Change::Post { user, .. } | Change::Mark { user, .. } => Some(user),
        _ => None,
    }
}

fn user_of_at(changes: &[Change], index: usize) -> Option<&UserId> {
    changes.get(index).and_then(user_of)
}
