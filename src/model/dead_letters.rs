//! Dead letters: events and messages that policies failed on, and events that a sink did not take, kept until they are retried or deleted.
//! Nothing is retried automatically, so an event that makes its policy fault can't loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use super::Stamp;
use super::record::{Change, Changes};
use crate::config;
use crate::metrics::Metrics;
use crate::registry::SessionHandle;
use crate::types::delivery::Message;
use crate::types::event::{Event, UserId};
use crate::types::fault::Fault;

/// Bytes that a letter counts beside its payload and its fault.
const LETTER_BYTES: usize = 1024;

/// Recipients of one letter. A client that comes again and again adds one each time, and must not drive out the letters of others.
const RECIPIENTS_MAX: usize = 1000;

/// Bytes that each recipient of a message counts.
const RECIPIENT_BYTES: usize = 128;

/// A letter on which its policy has faulted N times is poison: it is retried only by its id.
const POISON_ATTEMPTS: u32 = 2;

/// All dead letters, oldest first, within their bounds.
#[derive(Debug)]
pub struct DeadLetters {
    limits: config::DeadLetters,
    metrics: Arc<Metrics>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By id, with the stamp of the last change.
    letters: BTreeMap<u64, (Stamp, Arc<DeadLetter>)>,
    bytes: usize,
    last_id: u64,
    last_stamp: Stamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Increasing; assigned when the letter is first kept.
    pub id: u64,
    pub at: SystemTime,
    /// The policy, or the sink.
    pub policy: Arc<str>,
    pub version: Arc<str>,
    pub attempts: u32,
    /// `None` if the policy's circuit was open, so that it was not called, and for a sink.
    pub fault: Option<Box<Fault>>,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The event of a routing policy.
    Event(Arc<Event>),
    /// The message of a formatting policy, and the sessions that were going to read it.
    Message { message: Arc<Message>, recipients: Vec<Recipient> },
    /// A message that holds an event for a sink, and why the sink has not taken it: a sentence.
    Undelivered { message: Arc<Message>, reason: Arc<str> },
    /// An event that came without a producer who waits for an answer, and why no policy decided about it: a sentence.
    Untaken { event: Arc<Event>, reason: Arc<str> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recipient {
    pub user: UserId,
    pub session: Arc<str>,
}

/// A policy that gave no answer.
#[derive(Clone, Debug)]
pub struct Failure {
    pub policy: Arc<str>,
    pub version: Arc<str>,
    /// `None` if the policy's circuit was open, so that it was not called.
    pub fault: Option<Box<Fault>>,
}

impl DeadLetter {
    pub fn new(policy: Arc<str>, version: Arc<str>, attempts: u32, fault: Option<Box<Fault>>, content: Content) -> DeadLetter {
        DeadLetter { id: 0, at: SystemTime::now(), policy, version, attempts, fault, content }
    }

    /// Returns the letter of an event that a sink has not taken.
    pub fn undelivered(sink: Arc<str>, message: Arc<Message>, reason: impl Into<Arc<str>>) -> DeadLetter {
        let attempts = message.attempt;
        DeadLetter::new(sink, "".into(), attempts, None, Content::Undelivered { message, reason: reason.into() })
    }

    /// Returns the letter of an event that no policy was asked about.
    pub fn untaken(event: Event, reason: impl Into<Arc<str>>) -> DeadLetter {
        DeadLetter::new("".into(), "".into(), 0, None, Content::Untaken { event: Arc::new(event), reason: reason.into() })
    }

    /// Returns the letter of a message that a formatting policy failed on, for this reader, to be kept by another node.
    pub fn of_reader(failure: &Failure, message: &Arc<Message>, handle: &SessionHandle) -> DeadLetter {
        let recipients = vec![Recipient { user: handle.user.clone(), session: handle.id.clone() }];
        let Failure { policy, version, fault } = failure.clone();
        DeadLetter::new(policy, version, message.attempt, fault, Content::Message { message: message.clone(), recipients })
    }

    /// Returns whether it is a sink's letter, and not a policy's.
    pub fn is_of_sink(&self) -> bool {
        matches!(self.content, Content::Undelivered { .. })
    }

    /// Returns whether it makes room for another one: what comes from outside, and may be many, drives out its own kind.
    fn gives_way_to(&self, other: &DeadLetter) -> bool {
        let is_untaken = |letter: &DeadLetter| matches!(letter.content, Content::Untaken { .. });
        (self.is_of_sink() && other.is_of_sink()) || (is_untaken(self) && is_untaken(other))
    }

    pub fn is_poison(&self) -> bool {
        self.attempts >= POISON_ATTEMPTS
    }

    fn bytes(&self) -> usize {
        let payload = match &self.content {
            Content::Event(event) => event.size(),
            Content::Untaken { event, reason } => event.size() + reason.len(),
            Content::Message { message, recipients } => {
                message.body.size() + message.event_id.len() + message.event_type.len() + recipients.len() * RECIPIENT_BYTES
            }
            Content::Undelivered { message, reason } => {
                message.body.size() + message.event_id.len() + message.event_type.len() + reason.len()
            }
        };
        LETTER_BYTES + payload + self.fault.as_ref().map_or(0, |fault| fault.defect.size())
    }
}

impl Content {
    /// Says in the log what was kept, at the level debug: a policy whose circuit is open may have thousands in a second.
    fn log(&self, policy: &str, letter: u64) {
        let (event_id, origin) = match self {
            Content::Event(event) | Content::Untaken { event, .. } => (&event.id, &event.origin),
            Content::Message { message, .. } | Content::Undelivered { message, .. } => (&message.event_id, &message.origin),
        };
        let trace_id = origin.trace_id().map(tracing::field::display);
        tracing::debug!(policy, letter, event_id, trace_id, "dead letter kept");
    }
}

impl DeadLetters {
    pub fn new(limits: config::DeadLetters, metrics: Arc<Metrics>) -> DeadLetters {
        DeadLetters { limits, metrics, kept: Mutex::default() }
    }

    /// Keeps a letter, and returns its id. The oldest letters are evicted if there are too many: for a sink's the oldest of a sink, so that a
    /// backend that is away for long costs no policy its letters.
    pub fn keep(&self, letter: DeadLetter, changes: &mut Changes) -> u64 {
        self.count("kept", 1);
        let mut kept = self.kept.lock();
        self.insert(&mut kept, letter, changes)
    }

    /// Keeps a message that a formatting policy failed on, for this reader: one letter, however many readers there are. A letter that was
    /// retried or deleted meanwhile is kept again for those who come later.
    pub fn keep_message(&self, failure: &Failure, message: &Arc<Message>, handle: &SessionHandle, changes: &mut Changes) {
        let recipient = Recipient { user: handle.user.clone(), session: handle.id.clone() };
        let mut kept = self.kept.lock();
        // It is kept again under the same id, so nothing has to be noted of its removal.
        let known = kept.id_of(message).and_then(|id| kept.remove(id, &mut Changes::forgotten()));
        let mut letter = known.map_or_else(
            || {
                self.count("kept", 1);
                let Failure { policy, version, fault } = failure.clone();
                let content = Content::Message { message: message.clone(), recipients: Vec::new() };
                DeadLetter::new(policy, version, message.attempt, fault, content)
            },
            Arc::unwrap_or_clone,
        );
        if let Content::Message { recipients, .. } = &mut letter.content
            && recipients.len() < RECIPIENTS_MAX
            && !recipients.contains(&recipient)
        {
            recipients.push(recipient);
        }
        self.insert(&mut kept, letter, changes);
    }

    /// Returns all letters, oldest first.
    pub fn list(&self) -> Vec<Arc<DeadLetter>> {
        self.kept.lock().letters.values().map(|(_, letter)| letter.clone()).collect()
    }

    pub fn get(&self, id: u64) -> Option<Arc<DeadLetter>> {
        self.kept.lock().letters.get(&id).map(|(_, letter)| letter.clone())
    }

    /// Removes a letter to retry it, so that no other request does at the same time. The caller notes the removal together with the
    /// outcome: if the process ends before, the letter is there again.
    pub fn take(&self, id: u64) -> Option<(DeadLetter, Change)> {
        let mut kept = self.kept.lock();
        let letter = kept.remove(id, &mut Changes::forgotten())?;
        self.count("retried", 1);
        Some((Arc::unwrap_or_clone(letter), Change::NoLetter { stamp: kept.last_stamp, id }))
    }

    /// Removes the letters that these policies have of an event which was published again. Returns the number of this attempt.
    pub fn take_of(&self, event: &Event, attempt: u32, is_of: impl Fn(&str) -> bool, changes: &mut Changes) -> u32 {
        let mut kept = self.kept.lock();
        let is_same = |letter: &DeadLetter| {
            is_of(&letter.policy)
                && matches!(&letter.content, Content::Event(known) if known.id == event.id && known.source == event.source)
        };
        let same: Vec<(u64, u32)> =
            kept.letters.values().filter(|(_, letter)| is_same(letter)).map(|(_, letter)| (letter.id, letter.attempts)).collect();
        for (id, _) in &same {
            kept.remove(*id, changes);
        }
        self.count("retried", same.len() as u64);
        same.iter().map(|(_, attempts)| attempts + 1).fold(attempt, u32::max)
    }

    pub fn delete(&self, id: u64, changes: &mut Changes) -> bool {
        let deleted = self.kept.lock().remove(id, changes).is_some();
        self.count("deleted", u64::from(deleted));
        deleted
    }

    pub fn delete_all(&self, changes: &mut Changes) -> usize {
        let mut kept = self.kept.lock();
        let ids: Vec<u64> = kept.letters.keys().copied().collect();
        ids.iter().for_each(|id| drop(kept.remove(*id, changes)));
        self.count("deleted", ids.len() as u64);
        ids.len()
    }

    /// Puts back a letter that a store has kept.
    pub fn restore(&self, stamp: Stamp, letter: &Arc<DeadLetter>) {
        self.absorb(stamp, letter);
        let mut kept = self.kept.lock();
        // The bounds may be lower than they were.
        while kept.letters.len() > self.limits.letters_max.get() || kept.bytes > self.limits.bytes_max.get() {
            let Some(oldest) = kept.letters.keys().next().copied() else { break };
            kept.remove(oldest, &mut Changes::forgotten());
            self.count("evicted", 1);
        }
    }

    /// Keeps a letter as another node does.
    pub fn absorb(&self, stamp: Stamp, letter: &Arc<DeadLetter>) {
        let mut kept = self.kept.lock();
        if let Some((_, before)) = kept.letters.remove(&letter.id) {
            kept.bytes -= before.bytes();
        }
        kept.bytes += letter.bytes();
        kept.letters.insert(letter.id, (stamp, letter.clone()));
        (kept.last_id, kept.last_stamp) = (kept.last_id.max(letter.id), kept.last_stamp.max(stamp));
    }

    /// Removes a letter as another node does.
    pub fn absorb_removal(&self, stamp: Stamp, id: u64) {
        let mut kept = self.kept.lock();
        kept.remove(id, &mut Changes::forgotten());
        (kept.last_id, kept.last_stamp) = (kept.last_id.max(id), kept.last_stamp.max(stamp));
    }

    /// Keeps a letter that another node has of some of a message's readers: one letter for all of them.
    pub fn keep_of_readers(&self, mut letter: DeadLetter, changes: &mut Changes) {
        let mut kept = self.kept.lock();
        if let Content::Message { message, recipients } = &mut letter.content {
            let same = |known: &DeadLetter| matches!(&known.content, Content::Message { message: known, .. } if known == message);
            let known = kept.letters.values().rev().find(|(_, known)| same(known)).map(|(_, known)| known.id);
            let known = known.and_then(|id| kept.remove(id, &mut Changes::forgotten()));
            if let Some(Content::Message { message: known_message, recipients: known_recipients }) =
                known.as_ref().map(|known| &known.content)
            {
                // The same message as that of this node's mailboxes.
                *message = known_message.clone();
                let mut all = known_recipients.clone();
                all.extend(recipients.drain(..).filter(|recipient| !known_recipients.contains(recipient)));
                all.truncate(RECIPIENTS_MAX);
                *recipients = all;
            }
            letter.id = known.map_or(0, |known| known.id);
        }
        if letter.id == 0 {
            self.count("kept", 1);
        }
        self.insert(&mut kept, letter, changes);
    }

    /// Returns the changes that make them, the oldest first.
    pub fn changes(&self) -> Vec<Change> {
        self.kept.lock().letters.values().map(|(stamp, letter)| Change::Letter { stamp: *stamp, letter: letter.clone() }).collect()
    }

    /// Returns the largest id and the largest stamp.
    pub fn counters(&self) -> (u64, Stamp) {
        let kept = self.kept.lock();
        (kept.last_id, kept.last_stamp)
    }

    /// Has the ids and stamps of new letters go on after these.
    pub fn begin_after(&self, id: u64, stamp: Stamp) {
        let mut kept = self.kept.lock();
        (kept.last_id, kept.last_stamp) = (kept.last_id.max(id), kept.last_stamp.max(stamp));
    }

    /// Notes a letter again, if its last change has this stamp.
    pub fn note_again(&self, id: u64, stamp: Stamp, changes: &mut Changes) {
        if let Some((_, letter)) = self.kept.lock().letters.get(&id).filter(|(known, _)| *known == stamp) {
            changes.note(|| Change::Letter { stamp, letter: letter.clone() });
        }
    }

    /// Returns the number of letters and their bytes.
    pub fn totals(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.letters.len(), kept.bytes)
    }

    fn insert(&self, kept: &mut Kept, mut letter: DeadLetter, changes: &mut Changes) -> u64 {
        if letter.id == 0 {
            kept.last_id += 1;
            letter.id = kept.last_id;
        }
        let (id, bytes) = (letter.id, letter.bytes());
        while kept.letters.len() >= self.limits.letters_max.get() || kept.bytes + bytes > self.limits.bytes_max.get() {
            let mut of_its_kind = kept.letters.iter().filter(|(_, (_, known))| known.gives_way_to(&letter));
            let oldest = of_its_kind.next().or_else(|| kept.letters.first_key_value()).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            kept.remove(oldest, changes);
            self.count("evicted", 1);
        }
        kept.bytes += bytes;
        letter.content.log(&letter.policy, id);
        let (stamp, letter) = (kept.next_stamp(), Arc::new(letter));
        changes.note(|| Change::Letter { stamp, letter: letter.clone() });
        kept.letters.insert(id, (stamp, letter));
        id
    }

    fn count(&self, outcome: &str, by: u64) {
        self.metrics.dead_letters.with_label_values(&[outcome]).inc_by(by);
    }
}

impl Kept {
    fn id_of(&self, message: &Arc<Message>) -> Option<u64> {
        let same = |letter: &DeadLetter| matches!(&letter.content, Content::Message { message: known, .. } if Arc::ptr_eq(known, message));
        // Newest first: that is most likely the message being read.
        self.letters.values().rev().find(|(_, letter)| same(letter)).map(|(_, letter)| letter.id)
    }

    fn remove(&mut self, id: u64, changes: &mut Changes) -> Option<Arc<DeadLetter>> {
        let (_, letter) = self.letters.remove(&id)?;
        self.bytes -= letter.bytes();
        let stamp = self.next_stamp();
        changes.note(|| Change::NoLetter { stamp, id });
        Some(letter)
    }

    fn next_stamp(&mut self) -> Stamp {
        self.last_stamp += 1;
        self.last_stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::types::delivery::PolicySetId;
    use crate::types::event::Body;

    #[test]
    fn a_sink_that_is_away_evicts_its_own_letters_and_one_of_a_policy_at_most() {
        let limits = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.dead_letters;
        let limits = config::DeadLetters { letters_max: 3.try_into().unwrap(), ..limits };
        let letters = DeadLetters::new(limits, Arc::new(Metrics::new().unwrap()));
        let message = |id: &str| Arc::new(Message::new(id.into(), "a".into(), Body::Text("x".into()), PolicySetId(1)));
        let of_policy = |id: &str| {
            let content = Content::Message { message: message(id), recipients: Vec::new() };
            letters.keep(DeadLetter::new("p".into(), "1".into(), 1, None, content), &mut Changes::forgotten());
        };
        let of_sink = |id: &str| {
            letters.keep(DeadLetter::undelivered("s".into(), message(id), "away"), &mut Changes::forgotten());
        };
        let kept = || {
            let id = |letter: &Arc<DeadLetter>| match &letter.content {
                Content::Message { message, .. } | Content::Undelivered { message, .. } => message.event_id.clone(),
                Content::Event(event) | Content::Untaken { event, .. } => event.id.clone(),
            };
            letters.list().iter().map(id).collect::<Vec<_>>()
        };
        ["p1", "p2", "p3"].into_iter().for_each(of_policy);
        assert_eq!(kept(), ["p1", "p2", "p3"]);
        (1..=9).for_each(|number| of_sink(&format!("s{number}")));
        assert_eq!(kept(), ["p2", "p3", "s9"]);
        of_policy("p4");
        assert_eq!(kept(), ["p3", "s9", "p4"]);
    }

    #[test]
    fn a_client_that_comes_again_and_again_drives_out_no_other_letter() {
        let limits = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.dead_letters;
        let limits = config::DeadLetters { bytes_max: 300_000.try_into().unwrap(), ..limits };
        let letters = DeadLetters::new(limits, Arc::new(Metrics::new().unwrap()));
        let failure = Failure { policy: "a".into(), version: "1".into(), fault: None };
        let message = || Arc::new(Message::new("1".into(), "a".into(), Body::Text("x".into()), PolicySetId(1)));
        let user = |name: &str| UserId::new(name, 128).unwrap();
        for number in 0..20 {
            let handle = SessionHandle::new(user(&number.to_string()), None, false, Vec::new());
            letters.keep_message(&failure, &message(), &handle, &mut Changes::forgotten());
        }
        let missed = message();
        for _ in 0..2 * RECIPIENTS_MAX {
            let stranger = SessionHandle::new(user("stranger"), None, false, Vec::new());
            letters.keep_message(&failure, &missed, &stranger, &mut Changes::forgotten());
        }
        let kept = letters.list();
        let recipients = |letter: &DeadLetter| match &letter.content {
            Content::Message { recipients, .. } => recipients.len(),
            Content::Event(_) | Content::Undelivered { .. } | Content::Untaken { .. } => 0,
        };
        assert_eq!((kept.len(), recipients(kept.last().unwrap())), (21, RECIPIENTS_MAX));
    }
}
