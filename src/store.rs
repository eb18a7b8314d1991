//! The store: a commit's changes become as durable as the configuration says. A closed set, so an enum: `Memory` keeps nothing
//! beyond the process; `Log` writes segments in a folder; `Stream` is one JetStream stream, which all nodes of a cluster read.
//!
//! *What was answered is stored*: a request waits for its [`Ticket`], and nothing else does. With `Log`, a message is shown to its readers at
//! once, since a disk's tail is not theirs; a reader may thus see a message that a crash forgets, whose producer was not answered, and sends
//! it again. With `Stream`, a message is shown when it is stored: readers on all nodes see the same.
//!
//! `frame` is the format, `codec` the records in it, `writer` what writes, `replay` the start, `clean` what keeps the log
//! small, `folder` where it is and who may use it. `stream` is the queue of a cluster's node; what writes it is in `cluster`.

mod clean;
pub(crate) mod codec;
mod folder;
pub(crate) mod frame;
pub mod inspect;
mod log;
mod replay;
pub mod stream;
#[cfg(test)]
mod tests;
mod ticket;
mod writer;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{self, Durability};
use crate::metrics::{Metrics, StoreGauges};
use crate::model::dead_letters::DeadLetter;
use crate::model::record::Changes;
use crate::model::{Counters, Model};
pub use clean::Cleaner;
use folder::Folder;
pub use folder::{FolderError, Place, place};
pub use log::Log;
pub use replay::ReplayError;
use replay::{Damage, Replayed};
use stream::Stream;
pub use ticket::Ticket;
pub use writer::Health;
use writer::Position;

/// How often the start says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default)]
pub enum Store {
    #[default]
    Memory,
    Log(Arc<Log>),
    Stream(Arc<Stream>),
}

/// A store, and what it has kept.
#[derive(Debug)]
pub struct Opened {
    pub store: Store,
    /// Distinguishes this store's mailboxes from those of others.
    pub id: u64,
    kept: Option<(Replayed, Folder)>,
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error("the log can't be written: {0}")]
    Io(#[from] io::Error),
}

/// Why a commit is not stored yet, or a new one can't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStored {
    #[error(
        "more than {0} bytes wait to be stored (store.pending_bytes_max): the disk is slower than what is published; \
             send it again later, with the same id"
    )]
    Behind(usize),
    #[error(
        "the disk is full, or has less free than store.free_bytes_min, or no file can be opened: nothing is stored until \
             there is room; send it again then, with the same id"
    )]
    Full,
    #[error("it was not stored within {} ms (store.commit_deadline_ms); it may be stored yet, so send it again with the same id", .0.as_millis())]
    Late(Duration),
    #[error("the store has failed, and the server is stopping")]
    Failed,
    #[error(
        "no node of the cluster leads at this moment, as after one has died: within seconds another one does; send it again, with the same id"
    )]
    NoLeader,
    #[error("NATS can't be reached from this node, or stores nothing: send it to another node, or again later, with the same id")]
    Unreachable,
    #[error("this node has not caught up with the cluster yet: send it to another node, or again later, with the same id")]
    CatchingUp,
}

impl Opened {
    /// Returns a store that keeps nothing.
    pub fn memory() -> Opened {
        Opened { store: Store::Memory, id: random_id(), kept: None }
    }

    /// Returns the store of a cluster's node, which is empty until the node has absorbed the stream.
    pub fn stream(stream: Arc<Stream>, id: u64) -> Opened {
        Opened { store: Store::Stream(stream), id, kept: None }
    }

    /// Opens the store at this place, and reads what it has kept. Blocks.
    ///
    /// # Errors
    /// The folder is named and can't be used, another process holds it, or what it holds is damaged.
    pub fn at(place: &Place, config: &config::Store, metrics: &Arc<Metrics>) -> Result<Opened, OpenError> {
        let opened = match place {
            Place::Memory(_) => {
                tracing::info!("{}", place.promise(config.durability));
                return Ok(Opened::memory());
            }
            Place::Named(dir) | Place::Default(dir) => Opened::folder(dir, config, metrics),
        };
        match opened {
            Err(OpenError::Folder(FolderError::Unusable { dir, why })) if matches!(place, Place::Default(_)) => {
                tracing::warn!(
                    "{} can't be used: {why}; everything is kept in memory only (store.dir names another folder)",
                    dir.display()
                );
                Ok(Opened::memory())
            }
            Ok(opened) => {
                tracing::info!("{}", place.promise(config.durability));
                Ok(opened)
            }
            refused => refused,
        }
    }

    fn folder(dir: &Path, config: &config::Store, metrics: &Arc<Metrics>) -> Result<Opened, OpenError> {
        let folder = Folder::take(dir)?;
        let began = Instant::now();
        let mut said = began;
        let progress = |read: u64, all: u64| {
            if said.elapsed() >= PROGRESS_INTERVAL {
                said = Instant::now();
                tracing::info!("reading the store: {} of {} MiB", read >> 20, all >> 20);
            }
        };
        let mut replayed = replay::replay(&folder, Damage::RefuseUnlessSystemCrashed, progress)?;
        if let Some((number, end)) = replayed.torn {
            tracing::info!(file = %folder.segment(number).display(), at = end, "an unfinished frame is cut off: nothing in it was answered");
        }
        if replayed.has_hole {
            tracing::error!(
                bytes = replayed.passed_over,
                "the machine went down before all was written: messages are missing, and clients are told so"
            );
        }
        if replayed.is_end_in_doubt {
            tracing::warn!(
                "the machine went down, and the store did not sync: what was answered last may be missing, and clients are told so"
            );
        }
        replayed.cut(&folder)?;
        if config.durability == Durability::Fsync {
            replayed.sync(&folder)?;
        }
        replayed.counters = match replayed.is_clean {
            true => Counters { crashes: 0, ..replayed.counters },
            false => replayed.counters.after_a_crash(),
        };
        let id = replayed.store.unwrap_or_else(random_id);
        let last = folder.segments()?.last().map_or(0, |(number, _)| *number);
        let bytes = folder.segments()?.iter().map(|(_, bytes)| bytes).sum();
        let position = Position { store: id, segment: last + 1, next_frame: replayed.next_frame, boot: replay::boot(), bytes };
        let beside = Folder::look(dir);
        let log = Log::start(config, folder, position, replayed.counters, metrics.clone())?;
        let (frames, changes, is_clean) = (replayed.frames, replayed.changes, replayed.is_clean);
        tracing::info!(frames, changes, after_a_crash = !is_clean, took_ms = began.elapsed().as_millis() as u64, "the store is read");
        Ok(Opened { store: Store::Log(log), id, kept: Some((replayed, beside)) })
    }

    /// Puts what was kept into an empty model. Returns what keeps the log small. Blocks.
    ///
    /// # Errors
    /// A damaged store can't be written anew.
    pub fn fill(self, model: &Arc<Model>) -> anyhow::Result<Option<Cleaner>> {
        let (Some((replayed, folder)), Store::Log(log)) = (self.kept, self.store) else { return Ok(None) };
        let Replayed { fold, counters, segments, has_hole, is_end_in_doubt, .. } = replayed;
        let is_incomplete = has_hole || is_end_in_doubt;
        model.restore(fold, &counters, is_incomplete);
        if is_incomplete {
            // In one frame, which is the first: a start that finds a frame after the damage knows that every mailbox says so itself.
            let mut changes = Changes::kept(log.segment());
            model.mailboxes.note_all_marks(&mut changes);
            log.append(changes).stored_blocking()?;
        }
        let mut cleaner = Cleaner::new(log, model.clone(), folder, &segments);
        if has_hole {
            cleaner.renew_all()?;
        }
        Ok(Some(cleaner))
    }
}

impl Store {
    pub fn is_kept(&self) -> bool {
        matches!(self, Store::Log(_) | Store::Stream(_))
    }

    /// Returns whether this process decides what is stored. Otherwise another node does, and nothing may be appended.
    pub fn decides(&self) -> bool {
        match self {
            Store::Memory | Store::Log(_) => true,
            Store::Stream(stream) => stream.leads(),
        }
    }

    /// Waits until this process decides, or until it does so no longer. Cancel safe.
    pub async fn until(&self, decides: bool) {
        match self {
            Store::Memory | Store::Log(_) if decides => {}
            Store::Memory | Store::Log(_) => std::future::pending().await,
            // The sender lives as long as the stream.
            Store::Stream(stream) => drop(stream.follow().wait_for(|leads| *leads == decides).await),
        }
    }

    /// Hands a letter of a reader on to the node that decides, if this one does not. Returns whether it did.
    pub fn hand_on(&self, letter: impl FnOnce() -> DeadLetter) -> bool {
        match self {
            Store::Stream(stream) if !stream.leads() => {
                stream.hand_on(letter());
                true
            }
            Store::Memory | Store::Log(_) | Store::Stream(_) => false,
        }
    }

    /// Returns where the changes of a commit are noted. Begin the list before the commit.
    pub fn changes(&self) -> Changes {
        match self {
            Store::Memory => Changes::forgotten(),
            Store::Log(log) => Changes::kept(log.segment()),
            Store::Stream(stream) => stream.changes(),
        }
    }

    /// Checks that a request may be dispatched: policies have side effects, so this is decided before they run.
    ///
    /// # Errors
    /// The store can't keep up, or can't write.
    pub fn admit(&self) -> Result<(), NotStored> {
        match self {
            Store::Memory => Ok(()),
            Store::Log(log) => log.admit(),
            Store::Stream(stream) => stream.admit(),
        }
    }

    /// Checks that the store can write, however much waits.
    ///
    /// # Errors
    /// Its disk is full, or has failed.
    pub fn check(&self) -> Result<(), NotStored> {
        match self {
            Store::Memory => Ok(()),
            Store::Log(log) => log.check(),
            Store::Stream(stream) => stream.check(),
        }
    }

    /// Hands over a commit. Never waits. The ticket of an empty one is that of everything that was handed over before.
    pub fn append(&self, changes: Changes) -> Ticket {
        match self {
            Store::Memory => Ticket::none(),
            Store::Log(log) => log.append(changes),
            Store::Stream(stream) => stream.append(changes),
        }
    }

    /// Resolves when the store has failed, so that the process has to end.
    pub async fn failed(&self) {
        match self {
            Store::Memory => std::future::pending().await,
            Store::Log(log) => log.failed().await,
            Store::Stream(stream) => stream.failed().await,
        }
    }

    /// Notes the last marks of all mailboxes and an orderly stop, and waits until all is stored. Blocks.
    ///
    /// # Errors
    /// Something could not be stored.
    pub fn close(&self, model: &Model) -> Result<(), NotStored> {
        let Store::Log(log) = self else { return Ok(()) };
        let mut changes = self.changes();
        model.mailboxes.note_all_marks(&mut changes);
        drop(self.append(changes));
        log.close()
    }

    pub fn gauges(&self, model: &Model) -> Option<StoreGauges> {
        let Store::Log(log) = self else { return None };
        let (pending_bytes, log_bytes) = (log.pending_bytes(), usize::try_from(log.bytes()).unwrap_or(usize::MAX));
        Some(StoreGauges { pending_bytes, log_bytes, kept_bytes: model.kept_bytes(), is_writing: log.health() == Health::Writing })
    }

    /// Returns what receipts call the place where an answered message is.
    pub fn stored(&self) -> Option<&'static str> {
        match self {
            Store::Memory => None,
            Store::Log(log) => Some(log.stored()),
            Store::Stream(_) => Some("cluster"),
        }
    }
}

/// Returns a number that no other store has.
fn random_id() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
