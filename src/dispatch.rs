//! Dispatch: takes one event through the routing policies and posts what they decide.
//!
//! There is no await from the first policy to the last post, so a producer who hangs up changes nothing: an event is
//! dispatched whole or not at all. What happened is in the receipt.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::config::{self, RoutingFault};
use crate::dead_letters::{Content, DeadLetter, DeadLetters, Reader};
use crate::delivery::{Decision, Delivery, Message, Recipients, Refusal, Terms};
use crate::event::{self, Body, Event, UserId};
use crate::lock;
use crate::mailbox::Posted;
use crate::metrics::DropReason;
use crate::policy::host::Services;
use crate::policy::{CallError, Fault, Policies, Policy, Role};

/// Users that a receipt names for each reason; the count is of all.
const NAMED_USERS_MAX: usize = 10;

/// Carries events from producers and policies to mailboxes.
#[derive(Debug)]
pub struct Dispatch {
    pub policies: Arc<Policies>,
    pub services: Arc<Services>,
    pub dead_letters: Arc<DeadLetters>,
    seen: Mutex<Seen>,
}

/// The answer to a producer: what became of one event.
#[derive(Debug, Default, Serialize)]
pub struct Receipt {
    pub id: String,
    pub source: String,
    /// The same source and id was published before, and nothing was done this time.
    pub duplicate: bool,
    /// The policies that wanted the event, in the order in which they were asked.
    pub policies: Vec<Consulted>,
    /// Users that deliveries named, each once.
    pub recipients: usize,
    /// Messages appended to mailboxes: one for each delivery and recipient.
    pub posted: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
    /// Joins that a limit refused.
    #[serde(skip_serializing_if = "is_zero")]
    pub joins_refused: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct Consulted {
    pub name: String,
    pub version: String,
    pub outcome: Outcome,
    pub deliveries: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Box<Fault>>,
    /// Where the event is kept for this policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Routed,
    Refused,
    Faulted,
    /// The policy faulted too often in a row, and was not called.
    #[serde(rename = "left_out")]
    LeftOut,
}

#[derive(Debug, Serialize)]
pub struct Dropped {
    pub reason: DropReason,
    pub count: usize,
    /// Some of them.
    pub users: Vec<UserId>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Dispatch {
    pub fn new(policies: Arc<Policies>, services: Arc<Services>, dead_letters: Arc<DeadLetters>, events: &config::Events) -> Dispatch {
        Dispatch { policies, services, dead_letters, seen: Mutex::new(Seen::new(events)) }
    }

    /// Publishes an event once: the same source and id again, within the window, does nothing.
    pub fn publish_once(&self, event: Event) -> Receipt {
        let key = lock(&self.seen).key(&event.source, &event.id);
        let Some(attempt) = lock(&self.seen).attempt(key, Instant::now()) else {
            self.services.metrics.events.with_label_values(&["duplicate"]).inc();
            return Receipt { id: event.id, source: event.source, duplicate: true, ..Receipt::default() };
        };
        let receipt = self.attempt(event, attempt);
        // Where every policy failed and the event is kept nowhere, nothing was done: the producer may try again.
        let failed = |consulted: &Consulted| consulted.outcome.is_failure() && consulted.dead_letter.is_none();
        if !receipt.policies.is_empty() && receipt.policies.iter().all(failed) {
            lock(&self.seen).failed(key);
        }
        receipt
    }

    /// Asks every routing policy that wants the event, in order, and carries out what each decides.
    pub fn publish(&self, event: Event) -> Receipt {
        self.attempt(event, 1)
    }

    fn attempt(&self, event: Event, attempt: u32) -> Receipt {
        let policies = self.policies.current();
        let mut receipt = Receipt { id: event.id.clone(), source: event.source.clone(), ..Receipt::default() };
        let mut tally = Tally::default();
        for policy in policies.wanting(Role::Routing, &event.kind) {
            receipt.policies.push(self.consult(policy, &event, Letter { id: 0, attempt }, policies.revision, &mut tally));
        }
        if receipt.policies.is_empty() {
            receipt.note = Some("no policy wanted this event type");
        }
        let outcome = if receipt.policies.is_empty() { "unwanted" } else { "routed" };
        self.services.metrics.events.with_label_values(&[outcome]).inc();
        tally.into_receipt(receipt)
    }

    /// Asks one policy, and carries out what it decides. Where it faults, its rule says what becomes of the event.
    fn consult(&self, policy: &Policy, event: &Event, letter: Letter, revision: u64, tally: &mut Tally) -> Consulted {
        let mut consulted = Consulted::of(policy);
        let fault = match policy.route(event) {
            Ok(decision) => {
                consulted.deliveries = decision.deliveries.len();
                self.carry_out(decision, &Origin { event, revision, policy }, tally);
                return consulted;
            }
            Err(CallError::Refused(refusal)) => {
                consulted.outcome = Outcome::Refused;
                consulted.refusal = Some(refusal);
                return consulted;
            }
            Err(CallError::Fault(fault)) => {
                consulted.outcome = Outcome::Faulted;
                Some(fault)
            }
            Err(CallError::LeftOut) => {
                consulted.outcome = Outcome::LeftOut;
                None
            }
        };
        // What makes a policy fault twice is poison: it is kept, whatever the rule, so that its producer doesn't try for ever.
        let poison = letter.attempt > 1 && fault.is_some();
        if policy.on_fault().routing == RoutingFault::DeadLetter || poison {
            let content = Content::Event(Box::new(event.clone()));
            let attempts = letter.attempt - u32::from(fault.is_none());
            let kept = DeadLetter::new(policy, attempts, fault.clone(), content);
            consulted.dead_letter = Some(self.dead_letters.keep(DeadLetter { id: letter.id, ..kept }));
        }
        consulted.fault = fault;
        consulted
    }

    /// Tries a dead letter again, with the policies of now. `None`: there is no such letter.
    ///
    /// # Errors
    /// Its policy is not loaded. It is kept.
    pub fn retry(&self, id: u64) -> Option<Result<Receipt, String>> {
        let policies = self.policies.current();
        let named = self.dead_letters.get(id)?.policy.clone();
        let Some(policy) = policies.find(&named) else {
            return Some(Err(format!("its policy {named} is not loaded; load it, and try again")));
        };
        let letter = self.dead_letters.take(id)?;
        let mut tally = Tally::default();
        let receipt = match &letter.content {
            Content::Event(event) => {
                let again = Letter { id, attempt: letter.attempts + 1 };
                let consulted = self.consult(policy, event, again, policies.revision, &mut tally);
                Receipt { id: event.id.clone(), source: event.source.clone(), policies: vec![consulted], ..Receipt::default() }
            }
            Content::Message { message, readers } => {
                let again = Arc::new(message.again(policies.revision));
                for Reader { user, session } in readers {
                    // The user's other devices have read it.
                    let open = self.services.mailboxes.has_session(user, session);
                    self.post(user, open.then_some(session), &again, &Terms::default(), &mut tally);
                }
                Receipt { id: message.event_id.clone(), ..Receipt::default() }
            }
        };
        Some(Ok(tally.into_receipt(receipt)))
    }

    /// Posts a message to one user without asking a routing policy. Formatting applies.
    pub fn tell(&self, user: UserId, body: Body, terms: Terms) -> Receipt {
        let id = event::new_event_id();
        let revision = self.policies.current().revision;
        let message = Arc::new(Message::new(id.clone(), event::DIRECT.to_owned(), body, revision));
        let mut tally = Tally::default();
        self.post(&user, None, &message, &terms, &mut tally);
        tally.into_receipt(Receipt { id, ..Receipt::default() })
    }

    /// Joins before deliveries, leaves after them: the order that the contract states.
    pub(crate) fn carry_out(&self, decision: Decision, origin: &Origin<'_>, tally: &mut Tally) {
        let groups = &self.services.groups;
        for join in decision.joins {
            if groups.join(&join.group, join.user, origin.policy.group_quota()).is_err() {
                tally.joins_refused += 1;
                self.services.metrics.group_changes_refused.inc();
            }
        }
        for delivery in decision.deliveries {
            self.deliver(delivery, origin, tally);
        }
        for leave in decision.leaves {
            groups.leave(&leave.group, &leave.user);
        }
        for group in decision.ends {
            groups.end(&group);
        }
    }

    fn deliver(&self, delivery: Delivery, origin: &Origin<'_>, tally: &mut Tally) {
        let body = delivery.body.or_else(|| origin.event.data.clone()).unwrap_or_else(|| Body::Json("null".to_owned()));
        let message = Message::new(origin.event.id.clone(), origin.event.kind.clone(), body, origin.revision);
        let message = Arc::new(message);
        let users = match delivery.to {
            Recipients::Session { user, session } => {
                self.post(&user, Some(&session.into()), &message, &delivery.terms, tally);
                return;
            }
            Recipients::Users(users) => users,
            Recipients::Group(group) => self.services.groups.members(&group),
            Recipients::Everyone => self.services.mailboxes.everyone(),
        };
        // A policy may return a hundred thousand names: looking through a list for each recipient would take seconds.
        let except: HashSet<&UserId> = delivery.except.iter().collect();
        let mut told = HashSet::new();
        let several = users.len() > 1;
        for user in &users {
            if except.contains(user) || (several && !told.insert(user)) {
                continue;
            }
            if tally.told >= origin.policy.limits().recipients_max {
                tally.drop(DropReason::TooManyRecipients, user);
                self.services.metrics.dropped(DropReason::TooManyRecipients, 1);
                continue;
            }
            self.post(user, None, &message, &delivery.terms, tally);
        }
    }

    pub(crate) fn post(&self, user: &UserId, session: Option<&Arc<str>>, message: &Arc<Message>, terms: &Terms, tally: &mut Tally) {
        tally.name(user);
        match self.services.mailboxes.post(user, session, message, terms) {
            Posted::Posted { .. } => tally.posted += 1,
            Posted::Dropped(reason) => tally.drop(reason, user),
        }
    }
}

/// What deliveries come from: the event, and the policy of which set.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    pub event: &'a Event,
    pub revision: u64,
    pub policy: &'a Policy,
}

/// The dead letter that an event comes from, 0 where it doesn't, and how often it was tried, with this time.
#[derive(Clone, Copy, Debug)]
struct Letter {
    id: u64,
    attempt: u32,
}

impl Consulted {
    fn of(policy: &Policy) -> Consulted {
        let (name, version) = (policy.name.clone(), policy.version.clone());
        Consulted { name, version, outcome: Outcome::Routed, deliveries: 0, refusal: None, fault: None, dead_letter: None }
    }
}

impl Outcome {
    pub fn is_failure(self) -> bool {
        matches!(self, Outcome::Faulted | Outcome::LeftOut)
    }
}

/// What was done for one event, added up.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    recipients: HashSet<UserId>,
    /// One who is told twice counts twice.
    told: usize,
    posted: usize,
    dropped: BTreeMap<DropReason, (usize, Vec<UserId>)>,
    joins_refused: usize,
}

impl Tally {
    fn name(&mut self, user: &UserId) {
        self.told += 1;
        if !self.recipients.contains(user) {
            self.recipients.insert(user.clone());
        }
    }

    fn drop(&mut self, reason: DropReason, user: &UserId) {
        let (count, users) = self.dropped.entry(reason).or_default();
        *count += 1;
        if users.len() < NAMED_USERS_MAX {
            users.push(user.clone());
        }
    }

    fn into_receipt(self, receipt: Receipt) -> Receipt {
        let dropped = self.dropped.into_iter().map(|(reason, (count, users))| Dropped { reason, count, users });
        Receipt {
            recipients: self.recipients.len(),
            posted: self.posted,
            dropped: dropped.collect(),
            joins_refused: self.joins_refused,
            ..receipt
        }
    }
}

/// The events of the last while, by a keyed hash of source and id: 128 bits, so that no two are taken for one.
#[derive(Debug)]
struct Seen {
    keys: (RandomState, RandomState),
    /// Whether the event failed, and may come again.
    known: HashMap<u128, bool>,
    order: VecDeque<(Instant, u128)>,
    window: Duration,
    entries_max: usize,
}

impl Seen {
    fn new(events: &config::Events) -> Seen {
        Seen {
            keys: (RandomState::new(), RandomState::new()),
            known: HashMap::new(),
            order: VecDeque::new(),
            window: Duration::from_millis(events.dedup_window_ms),
            entries_max: events.dedup_entries_max,
        }
    }

    fn key(&self, source: &str, id: &str) -> u128 {
        u128::from(self.keys.0.hash_one((source, id))) << 64 | u128::from(self.keys.1.hash_one((source, id)))
    }

    fn failed(&mut self, key: u128) {
        if let Some(failed) = self.known.get_mut(&key) {
            *failed = true;
        }
    }

    /// The how-manieth attempt this is, 2 standing for all after the first; `None` where the event was seen within the window.
    /// Remembers it.
    fn attempt(&mut self, key: u128, now: Instant) -> Option<u32> {
        while self.order.front().is_some_and(|(since, _)| *since + self.window <= now) || self.order.len() >= self.entries_max.max(1) {
            let Some((_, oldest)) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
        match self.known.insert(key, false) {
            None => {
                self.order.push_back((now, key));
                Some(1)
            }
            Some(true) => Some(2),
            Some(false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_event_is_new_again_after_the_window_or_when_crowded_out() {
        let events = config::Events { body_bytes_max: 1, event_bytes_max: 1, batch_max: 1, dedup_window_ms: 1000, dedup_entries_max: 2 };
        let mut seen = Seen::new(&events);
        let repeats = |seen: &mut Seen, source, id| {
            let key = seen.key(source, id);
            seen.attempt(key, Instant::now()).is_none()
        };
        assert!(!repeats(&mut seen, "a", "1"));
        assert!(repeats(&mut seen, "a", "1"));
        assert!(!repeats(&mut seen, "b", "1"), "the source is part of the identity");
        assert!(!repeats(&mut seen, "a", "2"), "the third crowds out the first");
        assert!(!repeats(&mut seen, "a", "1"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!repeats(&mut seen, "a", "1"));
    }
}
