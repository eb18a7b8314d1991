//! The stream of a cluster as the rest of a node sees it: a queue, which the node writes to JetStream while it leads (`cluster`).
//!
//! Appending never waits. While one frame is under way, the next one gathers. Only one is: a writer with several in flight is not kept out
//! by a sequence that it expects. A message is shown to its readers when its frame is stored, so nobody sees what another leader doesn't know.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::codec::Encoder;
use super::ticket::LOOK_INTERVAL;
use super::{NotStored, Ticket};
use crate::config;
use crate::model::dead_letters::DeadLetter;
use crate::model::order::Order;
use crate::model::record::{Change, Changes};
use crate::types::event::UserId;

/// Bytes of a frame's records, but for the last change in it, which may have an event's data: with it, a frame is within the 1 MiB that a NATS
/// server takes by default. What is decided together and is larger is written in several frames, and answered after the last one.
const FRAME_BYTES: usize = 512 << 10;

/// How long commits wait for those before them to be stored, for a snapshot.
const IDLE_DEADLINE: Duration = Duration::from_millis(500);

/// Letters of readers that wait to be told to the node that leads. Beyond that they are counted as dropped only: a formatting policy fails.
const LETTERS_MAX: usize = 1_000;

/// Whether this node may decide anything, and whether what it decides is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    Well,
    /// No node leads that this one knows of.
    NoLeader,
    /// NATS can't be reached, or does not store anything.
    Unreachable,
    /// This node has not absorbed yet what is stored.
    Behind,
}

/// The handle of a stream.
#[derive(Debug)]
pub struct Stream {
    config: config::Store,
    order: Arc<Order>,
    queue: Mutex<Queue>,
    more: Notify,
    pending: AtomicUsize,
    health: AtomicU8,
    /// Whether this node decides.
    leads: watch::Sender<bool>,
    /// Set when this node has decided what was not stored: it has to begin afresh.
    failed: watch::Sender<bool>,
    letters: Mutex<Vec<DeadLetter>>,
}

#[derive(Debug)]
struct Queue {
    /// Frames that are full, oldest first.
    full: VecDeque<Batch>,
    gathering: Batch,
    /// Tells when what is under way is stored.
    under_way: Option<watch::Receiver<bool>>,
    leads: bool,
    /// Whether the node stops: what it can't store is not answered, and does not matter.
    is_closing: bool,
}

/// What is written in one frame.
#[derive(Debug)]
pub struct Batch {
    pub records: Vec<u8>,
    /// The last commit of which it has changes.
    pub commit: u64,
    /// Whose mailboxes have new messages.
    pub users: Vec<UserId>,
    stored: watch::Sender<bool>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { records: Vec::new(), commit: 0, users: Vec::new(), stored: watch::channel(false).0 }
    }
}

impl Stream {
    pub fn new(config: &config::Store) -> Arc<Stream> {
        Arc::new(Stream {
            config: config.clone(),
            order: Arc::default(),
            queue: Mutex::new(Queue {
                full: VecDeque::new(),
                gathering: Batch::default(),
                under_way: None,
                leads: false,
                is_closing: false,
            }),
            more: Notify::new(),
            pending: AtomicUsize::new(0),
            health: AtomicU8::new(Health::NoLeader as u8),
            leads: watch::channel(false).0,
            failed: watch::channel(false).0,
            letters: Mutex::default(),
        })
    }

    pub(super) fn changes(&self) -> Changes {
        Changes::in_turn(self.order.turn())
    }

    /// Returns whether this node decides.
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// Follows whether this node decides.
    pub fn follow(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    pub(super) fn admit(&self) -> Result<(), NotStored> {
        self.check()?;
        if !self.leads() {
            return Err(NotStored::NoLeader);
        }
        let max = self.config.pending_bytes_max.get();
        if self.pending_bytes() > max { Err(NotStored::Behind(max)) } else { Ok(()) }
    }

    pub(super) fn check(&self) -> Result<(), NotStored> {
        if *self.failed.borrow() {
            return Err(NotStored::Failed);
        }
        match self.health() {
            Health::Well => Ok(()),
            Health::NoLeader => Err(NotStored::NoLeader),
            Health::Unreachable => Err(NotStored::Unreachable),
            Health::Behind => Err(NotStored::CatchingUp),
        }
    }

    pub fn health(&self) -> Health {
        let health = self.health.load(Ordering::Relaxed);
        let all = [Health::Well, Health::NoLeader, Health::Unreachable, Health::Behind];
        all.into_iter().find(|known| *known as u8 == health).unwrap_or(Health::Unreachable)
    }

    pub fn set(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }

    pub fn pending_bytes(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    pub(super) fn commit_deadline(&self) -> Duration {
        *self.config.commit_deadline_ms
    }

    pub(super) fn append(self: &Arc<Stream>, changes: Changes) -> Ticket {
        let commit = changes.commit();
        // The turn is over when all is in the queue.
        let (changes, _turn) = changes.into_parts();
        let mut queue = self.queue.lock();
        if !queue.leads {
            if !changes.is_empty() && !queue.is_closing {
                drop(queue);
                tracing::error!("something was decided by a node that doesn't lead any more: it begins afresh");
                self.fail();
            }
            return Ticket::of_frame(watch::channel(false).1, self);
        }
        if changes.is_empty() && queue.gathering.records.is_empty() && queue.full.is_empty() {
            return queue.under_way.clone().map_or(Ticket::none(), |stored| Ticket::of_frame(stored, self));
        }
        let Queue { full, gathering, .. } = &mut *queue;
        let mut encoder = Encoder::default();
        let mut users = Vec::new();
        for change in &changes {
            let before = gathering.records.len();
            encoder.put(change, &mut gathering.records);
            self.pending.fetch_add(gathering.records.len() - before, Ordering::Relaxed);
            if let Change::Post { user, .. } = change {
                users.push(user.clone());
            }
            if gathering.records.len() >= FRAME_BYTES {
                encoder = Encoder::default();
                full.push_back(std::mem::take(gathering));
            }
        }
        // What is in several frames is shown with the last one.
        let last = if gathering.records.is_empty() { full.back_mut().unwrap_or(gathering) } else { gathering };
        last.commit = last.commit.max(commit);
        last.users.extend(users);
        let ticket = Ticket::of_frame(last.stored.subscribe(), self);
        drop(queue);
        self.more.notify_one();
        ticket
    }

    /// Takes what waits, if there is anything. It is under way until [`Stream::stored`].
    pub fn take(&self) -> Option<Batch> {
        let mut queue = self.queue.lock();
        let Some(batch) = queue.next() else {
            queue.under_way = None;
            return None;
        };
        queue.under_way = Some(batch.stored.subscribe());
        Some(batch)
    }

    /// Resolves when something may wait. Cancel safe.
    pub async fn more(&self) {
        self.more.notified().await;
    }

    /// Tells those who wait that a batch is stored. Its readers see it by now.
    pub fn stored(&self, batch: Batch) {
        // What another one has ceased to count is not subtracted.
        let _ = self.pending.try_update(Ordering::Relaxed, Ordering::Relaxed, |pending| Some(pending.saturating_sub(batch.records.len())));
        batch.stored.send_replace(true);
    }

    /// Has this node decide from now on.
    pub fn begin_to_lead(&self) {
        self.queue.lock().leads = true;
        self.leads.send_replace(true);
    }

    /// Has this node decide no longer. Returns what waits to be stored: once it is dropped, those who wait for it learn that it never is.
    pub fn cease_to_lead(&self) -> Vec<Batch> {
        // Not within a commit.
        let _turn = self.order.turn();
        let mut queue = self.queue.lock();
        queue.leads = false;
        self.leads.send_replace(false);
        queue.under_way = None;
        let waiting = std::iter::from_fn(|| queue.next()).collect();
        self.pending.store(0, Ordering::Relaxed);
        waiting
    }

    /// Does something while all that this node has decided is stored, and nothing new is decided. Blocks until it is stored, for a short time;
    /// `None` if it is not by then, or if this node doesn't lead.
    pub fn while_idle<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        self.at_rest(|| self.leads().then(work))?
    }

    /// Does the same, also if this node doesn't lead.
    pub fn at_rest<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let _turn = self.order.turn();
        let began = Instant::now();
        while self.pending_bytes() > 0 {
            if began.elapsed() > IDLE_DEADLINE {
                return None;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Some(work())
    }

    /// Lets what is decided from now on be forgotten: the node stops.
    pub fn close(&self) {
        self.queue.lock().is_closing = true;
    }

    /// Has the node begin afresh.
    pub fn fail(&self) {
        self.failed.send_replace(true);
    }

    pub(super) async fn failed(&self) {
        let mut failed = self.failed.subscribe();
        // The sender lives as long as this handle.
        let _ = failed.wait_for(|failed| *failed).await;
    }

    pub(super) fn hand_on(&self, letter: DeadLetter) {
        let mut letters = self.letters.lock();
        if letters.len() < LETTERS_MAX {
            letters.push(letter);
        }
    }

    /// Takes the letters for the node that leads.
    pub fn take_letters(&self) -> Vec<DeadLetter> {
        std::mem::take(&mut *self.letters.lock())
    }
}

impl Queue {
    fn next(&mut self) -> Option<Batch> {
        self.full.pop_front().or_else(|| (!self.gathering.records.is_empty()).then(|| std::mem::take(&mut self.gathering)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::model::state::Value;

    fn stream() -> Arc<Stream> {
        Stream::new(&Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.store)
    }

    fn commit(stream: &Arc<Stream>, id: u64) -> Ticket {
        let mut changes = stream.changes();
        changes.note(|| Change::NoLetter { stamp: id, id });
        stream.append(changes)
    }

    #[tokio::test]
    async fn what_is_decided_while_a_frame_is_under_way_gathers_in_the_next_one() {
        let stream = stream();
        stream.begin_to_lead();
        let first = commit(&stream, 1);
        let under_way = stream.take().unwrap();
        let (second, third) = (commit(&stream, 2), commit(&stream, 3));
        assert_eq!((under_way.commit, first.is_stored()), (1, false));
        stream.stored(under_way);
        assert_eq!((first.is_stored(), second.is_stored()), (true, false));
        let next = stream.take().unwrap();
        assert_eq!(next.commit, 3);
        stream.stored(next);
        assert!(second.is_stored() && third.is_stored() && stream.take().is_none());
        assert_eq!(stream.pending_bytes(), 0);
    }

    #[tokio::test]
    async fn what_is_too_large_for_a_frame_is_answered_after_its_last_one() {
        let stream = stream();
        stream.begin_to_lead();
        let mut changes = stream.changes();
        let value = Value { bytes: vec![b'x'; FRAME_BYTES / 2].into(), expires_ms: None };
        for stamp in 1..=4 {
            changes.note(|| Change::state(stamp, &"p".into(), "k", Some(&value)));
        }
        let ticket = stream.append(changes);
        let frames: Vec<Batch> = std::iter::from_fn(|| stream.take()).collect();
        assert_eq!(frames.iter().map(|frame| frame.commit).collect::<Vec<_>>(), [0, 1]);
        for frame in frames {
            assert!(!ticket.is_stored() && frame.records.len() < 2 * FRAME_BYTES);
            stream.stored(frame);
        }
        assert!(ticket.is_stored());
    }

    #[test]
    fn nothing_is_decided_while_a_snapshot_is_taken_and_all_before_is_stored() {
        let stream = stream();
        assert_eq!(stream.while_idle(|| ()), None, "it doesn't lead");
        stream.begin_to_lead();
        let ticket = commit(&stream, 1);
        assert_eq!(stream.while_idle(|| ()), None, "something waits");
        stream.stored(stream.take().unwrap());
        assert!(ticket.is_stored());
        let (begins, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (stream, is_idle) = (&stream, Arc::new(std::sync::atomic::AtomicBool::new(true)));
            let during = is_idle.clone();
            scope.spawn(move || {
                stream.while_idle(|| {
                    begins.send(()).unwrap();
                    std::thread::sleep(Duration::from_millis(50));
                    during.store(false, Ordering::SeqCst);
                });
            });
            begun.recv().unwrap();
            drop(commit(stream, 2));
            assert!(!is_idle.load(Ordering::SeqCst), "it waited for its turn");
        });
    }

    #[tokio::test]
    async fn a_node_that_leads_no_longer_stores_nothing_and_begins_afresh_if_it_has_decided_something() {
        let stream = stream();
        stream.begin_to_lead();
        let lost = commit(&stream, 1);
        assert_eq!(stream.cease_to_lead().len(), 1, "something waited, and is dropped");
        assert_eq!(lost.stored().await, Err(NotStored::Failed));
        assert_eq!(stream.append(stream.changes()).stored().await, Err(NotStored::Failed), "even if nothing is to be stored");
        assert!(!*stream.failed.borrow());
        assert_eq!(commit(&stream, 2).stored().await, Err(NotStored::Failed));
        stream.failed().await;
    }
}
