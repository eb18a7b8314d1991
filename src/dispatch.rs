//! Dispatch: takes one event through the routing policies and posts what they decide.
//!
//! There is no await from the first policy to the last post, so a producer who hangs up changes nothing: an event is
//! dispatched whole or not at all. What happened is in the receipt.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::config;
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
    pub fn new(policies: Arc<Policies>, services: Arc<Services>, events: &config::Events) -> Dispatch {
        Dispatch { policies, services, seen: Mutex::new(Seen::new(events)) }
    }

    /// Publishes an event once: the same source and id again, within the window, does nothing.
    pub fn publish_once(&self, event: Event) -> Receipt {
        let key = lock(&self.seen).key(&event.source, &event.id);
        if lock(&self.seen).repeats(key, Instant::now()) {
            self.services.metrics.events.with_label_values(&["duplicate"]).inc();
            return Receipt { id: event.id, source: event.source, duplicate: true, ..Receipt::default() };
        }
        let receipt = self.publish(event);
        // Where every policy failed, nothing was done: the producer may try again.
        let failed = |consulted: &Consulted| matches!(consulted.outcome, Outcome::Faulted | Outcome::LeftOut);
        if !receipt.policies.is_empty() && receipt.policies.iter().all(failed) {
            lock(&self.seen).forget(key);
        }
        receipt
    }

    /// Asks every routing policy that wants the event, in order, and carries out what each decides.
    pub fn publish(&self, event: Event) -> Receipt {
        let policies = self.policies.current();
        let mut receipt = Receipt { id: event.id.clone(), source: event.source.clone(), ..Receipt::default() };
        let mut tally = Tally::default();
        for policy in policies.wanting(Role::Routing, &event.kind) {
            let mut consulted = Consulted::of(policy);
            match policy.route(&event) {
                Ok(decision) => {
                    consulted.deliveries = decision.deliveries.len();
                    let origin = Origin { event: &event, revision: policies.revision, recipients_max: policy.recipients_max() };
                    self.carry_out(decision, &origin, &mut tally);
                }
                Err(error) => consulted.failed(error),
            }
            receipt.policies.push(consulted);
        }
        if receipt.policies.is_empty() {
            receipt.note = Some("no policy wanted this event type");
        }
        let outcome = if receipt.policies.is_empty() { "unwanted" } else { "routed" };
        self.services.metrics.events.with_label_values(&[outcome]).inc();
        tally.into_receipt(receipt)
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
            if groups.join(&join.group, join.user).is_err() {
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
            if tally.recipients() >= origin.recipients_max {
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

/// The event that deliveries come from, and the policies that it took.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    pub event: &'a Event,
    pub revision: u64,
    pub recipients_max: usize,
}

impl Consulted {
    fn of(policy: &Policy) -> Consulted {
        let (name, version) = (policy.name.clone(), policy.version.clone());
        Consulted { name, version, outcome: Outcome::Routed, deliveries: 0, refusal: None, fault: None }
    }

    fn failed(&mut self, error: CallError) {
        match error {
            CallError::Refused(refusal) => {
                self.outcome = Outcome::Refused;
                self.refusal = Some(refusal);
            }
            CallError::Fault(fault) => {
                self.outcome = Outcome::Faulted;
                self.fault = Some(fault);
            }
            CallError::LeftOut => self.outcome = Outcome::LeftOut,
        }
    }
}

/// What was done for one event, added up.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    recipients: HashSet<UserId>,
    posted: usize,
    dropped: BTreeMap<DropReason, (usize, Vec<UserId>)>,
    joins_refused: usize,
}

impl Tally {
    fn recipients(&self) -> usize {
        self.recipients.len()
    }

    fn name(&mut self, user: &UserId) {
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
    known: HashSet<u128>,
    order: VecDeque<(Instant, u128)>,
    window: Duration,
    entries_max: usize,
}

impl Seen {
    fn new(events: &config::Events) -> Seen {
        Seen {
            keys: (RandomState::new(), RandomState::new()),
            known: HashSet::new(),
            order: VecDeque::new(),
            window: Duration::from_millis(events.dedup_window_ms),
            entries_max: events.dedup_entries_max,
        }
    }

    fn key(&self, source: &str, id: &str) -> u128 {
        u128::from(self.keys.0.hash_one((source, id))) << 64 | u128::from(self.keys.1.hash_one((source, id)))
    }

    fn forget(&mut self, key: u128) {
        self.known.remove(&key);
    }

    /// Whether this event was seen within the window; remembers it.
    fn repeats(&mut self, key: u128, now: Instant) -> bool {
        while self.order.front().is_some_and(|(since, _)| *since + self.window <= now) || self.order.len() >= self.entries_max.max(1) {
            let Some((_, oldest)) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
        if !self.known.insert(key) {
            return true;
        }
        self.order.push_back((now, key));
        false
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
            seen.repeats(key, Instant::now())
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
