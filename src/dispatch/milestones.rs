//! Receipts afterwards: which messages were posted for an event, and how far each one got since. Publishing only notes where the messages
//! are; how far they got is read from the mailboxes when somebody asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

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

/// Bytes of a note in addition to what is packed in it.
const NOTE_BYTES: usize = 96;

/// Bytes of a packed note in addition to its texts, about; and of a recipient in addition to the user.
const HEAD_BYTES: usize = 16;
const RECIPIENT_BYTES: usize = 10;

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

/// Where the messages of one event are. There are many notes, and few are ever read, so they are packed: a [`Head`], and a [`Recipient`] for
/// each message, as postcard writes them.
#[derive(Debug)]
struct Note {
    packed: Box<[u8]>,
    ticket: Ticket,
}

#[derive(Debug, Deserialize, Serialize)]
struct Head<'a> {
    id: &'a str,
    source: &'a str,
    at_ms: u64,
    /// Recipients beyond the number that one event of a policy may have.
    beyond: usize,
    /// Recipients whose messages are not remembered.
    untold: usize,
}

/// A user, and the birth of the mailbox and the seq in it, or why there is no message.
type Recipient<'a> = (&'a str, Result<(u64, u64), DropReason>);

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
    pub user: String,
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
        let users = plan.deliveries().flat_map(|planned| &planned.audience);
        let told = applied.posted.len().min(self.bytes_max / RECIPIENT_BYTES);
        let beyond = plan.deliveries().map(|planned| planned.beyond).sum();
        let head = Head { id, source, at_ms: now_ms, beyond, untold: applied.posted.len() - told };
        self.keep(Note::new(&head, users.zip(applied.posted.iter().copied()).take(told), ticket));
    }

    /// Notes one message that was sent to a user directly.
    pub(super) fn note_direct(&self, id: &str, user: &UserId, posted: Posted, ticket: &Ticket, now_ms: u64) {
        let head = Head { id, source: "", at_ms: now_ms, beyond: 0, untold: 0 };
        self.keep(Note::new(&head, std::iter::once((user, posted)), ticket));
    }

    fn keep(&self, note: Note) {
        // Freed when nothing is locked.
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
        while notes.notes.front().is_some_and(|note| note.at_ms().saturating_add(self.window_ms) <= now_ms) {
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
        let notes: Vec<_> = notes.iter().filter_map(|note| Some((note.unpack()?, &note.ticket))).collect();
        let ((latest, _), _) = notes.last().ok_or(NotTold::NotKnown)?;
        if notes.iter().any(|((head, _), _)| head.source != latest.source) {
            return Err(NotTold::Ambiguous);
        }
        let published = Some(crate::types::time::rfc3339(UNIX_EPOCH + Duration::from_millis(latest.at_ms)));
        let mut told = Afterwards { published, note: None, ..Afterwards::unknown(id, latest.source) };
        let mut index = 0;
        for ((head, packed), ticket) in notes {
            for recipient in recipients(packed) {
                turns.take().await;
                let recipient = view(mailboxes, recipient, ticket);
                *told.states.entry(recipient.state).or_default() += 1;
                match index {
                    _ if index < page.after => {}
                    _ if told.recipients.len() < page.limit => told.recipients.push(recipient),
                    _ => told.next = Some(page.after + page.limit),
                }
                index += 1;
            }
            for (state, count) in [(State::Dropped, head.beyond), (State::Unknown, head.untold)] {
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
                found.extend(looked_at.filter(|note| note.is_of(id, source)).cloned());
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
    fn new<'a>(head: &Head, recipients: impl Iterator<Item = (&'a UserId, Posted)>, ticket: &Ticket) -> Note {
        let mut recipients = recipients.peekable();
        let of_first = recipients.peek().map_or(0, |(user, _)| user.as_str().len() + RECIPIENT_BYTES);
        let mut packed = self::packed(head, Vec::with_capacity(HEAD_BYTES + head.id.len() + head.source.len() + of_first));
        for (user, posted) in recipients {
            let place = match posted {
                Posted::Posted { birth, seq } => Ok((birth, seq)),
                Posted::Dropped(reason) => Err(reason),
            };
            let recipient: Recipient = (user.as_str(), place);
            packed = self::packed(&recipient, packed);
        }
        Note { packed: packed.into(), ticket: ticket.clone() }
    }

    fn bytes(&self) -> usize {
        NOTE_BYTES + self.packed.len()
    }

    /// Returns the head, and the packed recipients.
    fn unpack(&self) -> Option<(Head<'_>, &[u8])> {
        postcard::take_from_bytes(&self.packed).ok()
    }

    fn at_ms(&self) -> u64 {
        self.unpack().map_or(0, |(head, _)| head.at_ms)
    }

    fn is_of(&self, id: &str, source: Option<&str>) -> bool {
        self.unpack().is_some_and(|(head, _)| head.id == id && source.is_none_or(|source| head.source == source))
    }
}

fn packed(value: &impl Serialize, behind: Vec<u8>) -> Vec<u8> {
    // A vector takes all bytes, and nothing here has a length that is not known: this can't fail.
    postcard::to_extend(value, behind).unwrap_or_default()
}

fn recipients(mut packed: &[u8]) -> impl Iterator<Item = Recipient<'_>> {
    std::iter::from_fn(move || {
        let (recipient, rest) = postcard::take_from_bytes(packed).ok()?;
        packed = rest;
        Some(recipient)
    })
}

fn view(mailboxes: &Mailboxes, (user, place): Recipient<'_>, ticket: &Ticket) -> RecipientView {
    let (seq, fate) = match place {
        Ok((birth, seq)) => (Some(seq), mailboxes.fate(user, birth, seq)),
        Err(reason) => (None, Fate::Dropped(reason)),
    };
    let (state, reason) = match fate {
        Fate::Posted if ticket.is_stored() => (State::Stored, None),
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
    RecipientView { user: user.to_owned(), seq, state, reason }
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
            // The notes here have a user of one letter, an id of eight, and small numbers.
            let head = Head { id: "12345678", source: "", at_ms: 0, beyond: 0, untold: 0 };
            let user = UserId::new("u", 64).unwrap();
            let note = Note::new(&head, std::iter::once((&user, Posted::Posted { birth: 1, seq: 1 })), &Ticket::none());
            config.events.receipts_bytes_max = NonZeroUsize::new(events_max * note.bytes()).unwrap();
            let metrics = Arc::new(crate::metrics::Metrics::new().unwrap());
            Fixture { milestones: Milestones::new(&config.events), model: Model::new(&config, Clock::Machine, 1, false, &metrics) }
        }

        fn tell(&self, id: &str, user: &str, at_ms: u64) {
            let user = UserId::new(user, 64).unwrap();
            let message = Message::new(id.to_owned(), "a.b".to_owned(), Body::Text("x".into()), PolicySetId(1));
            let posted = self.model.mailboxes.post(&user, None, &Arc::new(message), &mut Changes::forgotten());
            self.milestones.note_direct(id, &user, posted, &Ticket::none(), at_ms);
        }

        async fn ask(&self, id: &str) -> Result<Vec<(String, State)>, NotTold> {
            let told = self.milestones.tell(&self.model.mailboxes, id, None, Page { after: 0, limit: 10 }).await?;
            Ok(told.recipients.into_iter().map(|recipient| (recipient.user, recipient.state)).collect())
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
