//! Receipts afterwards: which messages were posted for an event, and how far each one got since. Publishing only notes where the messages
//! are; how far they got is read from the mailboxes when somebody asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use smallvec::SmallVec;

use super::apply::Applied;
use super::plan::Plan;
use crate::config;
use crate::model::mailbox::fate::Fate;
use crate::model::mailbox::{Mailboxes, Posted};
use crate::net::turns::Turns;
use crate::store::Ticket;
use crate::types::drop_reason::DropReason;
use crate::types::event::UserId;
use crate::types::page::Page;

/// Bytes of a note in addition to its texts and recipients, and of a recipient.
const NOTE_BYTES: usize = 160;
const RECIPIENT_BYTES: usize = 64;

/// Notes that are looked through before publishers have their turn.
const LOOK_AT_ONCE: u64 = 4096;

/// The notes of the deduplication window.
#[derive(Debug)]
pub struct Milestones {
    notes: Mutex<Notes>,
    window_ms: u64,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Notes {
    /// Oldest first.
    notes: VecDeque<Arc<Note>>,
    /// How many were forgotten, so that each note has a number.
    forgotten: u64,
    bytes: usize,
}

/// Where the messages of one event are.
#[derive(Debug)]
struct Note {
    id: String,
    source: String,
    at_ms: u64,
    posts: SmallVec<[(UserId, Posted); 1]>,
    /// Recipients beyond the number that one event of a policy may have.
    beyond: usize,
    /// Recipients whose messages are not remembered.
    untold: usize,
    ticket: Ticket,
}

/// What became of an event: the answer to `GET {base}/receipts/{event_id}`.
#[derive(Debug, Serialize)]
pub struct Afterwards {
    pub id: String,
    pub source: String,
    /// RFC 3339. The last time, if it was published several times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// The number of recipients in each state, for each delivery.
    pub states: BTreeMap<State, usize>,
    /// A page of them, in the order of the posts.
    pub recipients: Vec<RecipientView>,
    /// The value of `after` for the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct RecipientView {
    pub user: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    pub state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<DropReason>,
}

/// A milestone that a message has reached, or why it reaches none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits in the mailbox, and the store does not have it, or keeps nothing.
    Posted,
    /// It waits in the mailbox, and the store has it.
    Stored,
    Sent,
    Acked,
    Expired,
    Uncollected,
    Collapsed,
    Evicted,
    /// It was dropped for another reason, which is named.
    Dropped,
    /// What became of it is not remembered.
    Unknown,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTold {
    NotKnown,
    /// Events of several sources have this id.
    Ambiguous,
}

impl Milestones {
    pub fn new(events: &config::Events) -> Milestones {
        let (window_ms, bytes_max) = (events.dedup_window_ms.get(), events.receipts_bytes_max.get());
        Milestones { notes: Mutex::default(), window_ms, bytes_max }
    }

    /// Notes the messages of a plan.
    pub(super) fn note(&self, id: &str, source: &str, plan: &Plan, applied: &Applied, ticket: &Ticket, now_ms: u64) {
        let audiences = plan.deliveries().flat_map(|planned| &planned.audience);
        let told = self.bytes_max / RECIPIENT_BYTES;
        let posts = audiences.cloned().zip(applied.posted.iter().copied()).take(told).collect();
        let beyond = plan.deliveries().map(|planned| planned.beyond).sum();
        let untold = applied.posted.len().saturating_sub(told);
        self.keep(Note { id: id.to_owned(), source: source.to_owned(), at_ms: now_ms, posts, beyond, untold, ticket: ticket.clone() });
    }

    /// Notes one message that was sent to a user directly.
    pub(super) fn note_direct(&self, id: &str, user: UserId, posted: Posted, ticket: &Ticket, now_ms: u64) {
        let posts = SmallVec::from([(user, posted)]);
        self.keep(Note { id: id.to_owned(), source: String::new(), at_ms: now_ms, posts, beyond: 0, untold: 0, ticket: ticket.clone() });
    }

    fn keep(&self, note: Note) {
        // Those of large fan-outs take long to free, so that is done when nothing is locked.
        let mut forgotten = Vec::new();
        let mut notes = self.notes.lock();
        notes.bytes += note.bytes();
        notes.notes.push_back(Arc::new(note));
        while notes.bytes > self.bytes_max && notes.notes.len() > 1 {
            forgotten.extend(notes.forget_oldest());
        }
        drop(notes);
    }

    /// Forgets what is older than the window.
    pub fn sweep(&self, now_ms: u64) {
        let mut forgotten = Vec::new();
        let mut notes = self.notes.lock();
        while notes.notes.front().is_some_and(|note| note.at_ms.saturating_add(self.window_ms) <= now_ms) {
            forgotten.extend(notes.forget_oldest());
        }
        drop(notes);
    }

    /// Returns what became of an event, with a page of its recipients.
    ///
    /// # Errors
    /// No such event is remembered, or several are.
    pub async fn tell(&self, mailboxes: &Mailboxes, id: &str, source: Option<&str>, page: Page) -> Result<Afterwards, NotTold> {
        let mut turns = Turns::default();
        let notes = self.find(id, source, &mut turns).await;
        let latest = notes.last().ok_or(NotTold::NotKnown)?;
        if notes.iter().any(|note| note.source != latest.source) {
            return Err(NotTold::Ambiguous);
        }
        let published = Some(crate::types::time::rfc3339(UNIX_EPOCH + Duration::from_millis(latest.at_ms)));
        let mut told = Afterwards { published, note: None, ..Afterwards::unknown(id, &latest.source) };
        let mut index = 0;
        for note in &notes {
            for (user, posted) in &note.posts {
                turns.take().await;
                let recipient = note.recipient(mailboxes, user, *posted);
                *told.states.entry(recipient.state).or_default() += 1;
                match index {
                    _ if index < page.after => {}
                    _ if told.recipients.len() < page.limit => told.recipients.push(recipient),
                    _ => told.next = Some(page.after + page.limit),
                }
                index += 1;
            }
            for (state, count) in [(State::Dropped, note.beyond), (State::Unknown, note.untold)] {
                if count > 0 {
                    *told.states.entry(state).or_default() += count;
                }
            }
        }
        Ok(told)
    }

    async fn find(&self, id: &str, source: Option<&str>, turns: &mut Turns) -> Vec<Arc<Note>> {
        let mut found = Vec::new();
        let mut next = 0;
        loop {
            next = {
                let notes = self.notes.lock();
                let begin = next.max(notes.forgotten);
                let skipped = usize::try_from(begin - notes.forgotten).unwrap_or(usize::MAX);
                let looked_at = notes.notes.iter().skip(skipped).take(LOOK_AT_ONCE as usize);
                found.extend(looked_at.filter(|note| note.id == id && source.is_none_or(|source| note.source == source)).cloned());
                if skipped + LOOK_AT_ONCE as usize >= notes.notes.len() {
                    return found;
                }
                begin + LOOK_AT_ONCE
            };
            turns.take().await;
        }
    }
}

impl Notes {
    fn forget_oldest(&mut self) -> Option<Arc<Note>> {
        let note = self.notes.pop_front()?;
        self.bytes -= note.bytes();
        self.forgotten += 1;
        Some(note)
    }
}

impl Note {
    fn bytes(&self) -> usize {
        NOTE_BYTES + self.id.len() + self.source.len() + self.posts.len() * RECIPIENT_BYTES
    }

    fn recipient(&self, mailboxes: &Mailboxes, user: &UserId, posted: Posted) -> RecipientView {
        let (seq, fate) = match posted {
            Posted::Posted { birth, seq } => (Some(seq), mailboxes.fate(user, birth, seq)),
            Posted::Dropped(reason) => (None, Fate::Dropped(reason)),
        };
        let (state, reason) = match fate {
            Fate::Posted if self.ticket.is_stored() => (State::Stored, None),
            Fate::Posted => (State::Posted, None),
            Fate::Sent => (State::Sent, None),
            Fate::Acked => (State::Acked, None),
            Fate::Unknown => (State::Unknown, None),
            Fate::Dropped(DropReason::Expired) => (State::Expired, None),
            Fate::Dropped(DropReason::Uncollected) => (State::Uncollected, None),
            Fate::Dropped(DropReason::Collapsed) => (State::Collapsed, None),
            Fate::Dropped(DropReason::Evicted) => (State::Evicted, None),
            Fate::Dropped(reason) => (State::Dropped, Some(reason)),
        };
        RecipientView { user: user.clone(), seq, state, reason }
    }
}

impl Afterwards {
    /// Returns the answer for an event that was published, of which nothing else is known any more.
    pub fn unknown(id: &str, source: &str) -> Afterwards {
        Afterwards {
            id: id.to_owned(),
            source: source.to_owned(),
            published: None,
            states: BTreeMap::new(),
            recipients: Vec::new(),
            next: None,
            note: Some("it was published, and what became of its messages is no longer known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::config::Config;
    use crate::model::Model;
    use crate::model::record::Changes;
    use crate::types::clock::Clock;
    use crate::types::delivery::{Message, PolicySetId};
    use crate::types::event::Body;

    struct Fixture {
        milestones: Milestones,
        model: Arc<Model>,
    }

    impl Fixture {
        fn new(events_max: usize) -> Fixture {
            let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
            config.events.receipts_bytes_max = NonZeroUsize::new(events_max * (NOTE_BYTES + 8 + RECIPIENT_BYTES)).unwrap();
            let metrics = Arc::new(crate::metrics::Metrics::new().unwrap());
            Fixture { milestones: Milestones::new(&config.events), model: Model::new(&config, Clock::Machine, 1, false, &metrics) }
        }

        fn tell(&self, id: &str, user: &str, at_ms: u64) {
            let user = UserId::new(user, 64).unwrap();
            let message = Message::new(id.to_owned(), "a.b".to_owned(), Body::Text("x".into()), PolicySetId(1));
            let posted = self.model.mailboxes.post(&user, None, &Arc::new(message), &mut Changes::forgotten());
            self.milestones.note_direct(id, user, posted, &Ticket::none(), at_ms);
        }

        async fn ask(&self, id: &str) -> Result<Vec<(String, State)>, NotTold> {
            let told = self.milestones.tell(&self.model.mailboxes, id, None, Page { after: 0, limit: 10 }).await?;
            Ok(told.recipients.into_iter().map(|recipient| (recipient.user.to_string(), recipient.state)).collect())
        }
    }

    #[tokio::test]
    async fn the_oldest_events_are_forgotten_beyond_the_bound_and_after_the_window() {
        let fixture = Fixture::new(3);
        for (at_ms, id) in ["a", "b", "c", "d"].into_iter().map(|id| id.repeat(8)).enumerate() {
            fixture.tell(&id, "u", at_ms as u64);
        }
        assert_eq!(fixture.ask("aaaaaaaa").await, Err(NotTold::NotKnown));
        assert_eq!(fixture.ask("bbbbbbbb").await.unwrap(), [("u".to_owned(), State::Posted)]);
        let window_ms = fixture.milestones.window_ms;
        fixture.milestones.sweep(window_ms + 2);
        assert_eq!(fixture.ask("cccccccc").await, Err(NotTold::NotKnown));
        assert!(fixture.ask("dddddddd").await.is_ok());
        fixture.milestones.sweep(window_ms + 3);
        assert_eq!(fixture.milestones.notes.lock().bytes, 0);
    }

    #[tokio::test]
    async fn every_event_is_found_among_many_more_than_are_looked_at_at_once() {
        let fixture = Fixture::new(20_000);
        for number in 0..10_000 {
            fixture.tell(&number.to_string(), "u", 0);
        }
        for number in [0, LOOK_AT_ONCE - 1, LOOK_AT_ONCE, 2 * LOOK_AT_ONCE, 9_999] {
            assert_eq!(fixture.ask(&number.to_string()).await.unwrap().len(), 1, "{number}");
        }
    }
}
