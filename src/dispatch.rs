//! Dispatch: takes one event through the routing policies and posts what they decide.
//!
//! There is no await from the first policy to the last post, so a producer who hangs up changes nothing: an event is
//! dispatched whole or not at all. What happened is in the receipt.

mod account;
mod receipt;
mod seen;
pub mod session_policies;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::{self, Config, RoutingFault};
use crate::dead_letters::{Content, DeadLetter, DeadLetters, Reader};
use crate::model::mailbox::Posted;
use crate::policy::bindings::Response;
use crate::policy::host::Services;
use crate::policy::{CallError, Policies, Policy, Role};
use crate::types::delivery::{Decision, Delivery, Message, Recipients, Terms};
use crate::types::drop_reason::DropReason;
use crate::types::event::{self, Body, Event, UserId};
pub use account::{Account, Asked, Told};
pub(crate) use receipt::Tally;
pub use receipt::{Consulted, Outcome, Receipt};
use seen::Seen;

/// Carries events from producers and policies to mailboxes.
#[derive(Debug)]
pub struct Dispatch {
    pub policies: Arc<Policies>,
    pub services: Arc<Services>,
    pub dead_letters: Arc<DeadLetters>,
    seen: Mutex<Seen>,
    /// Nothing is posted: see [`Dispatch::rehearsal`].
    rehearses: bool,
    onlooker: OnceLock<mpsc::Sender<Shown>>,
}

/// What somebody who looks on is shown.
#[derive(Debug)]
pub enum Shown {
    Event(Dispatched),
    Session(Spoken),
}

/// What a sessions policy made of a client's coming, of its message, or of its going.
#[derive(Debug)]
pub struct Spoken {
    pub user: UserId,
    pub what: String,
    pub policy: String,
    pub version: String,
    pub took: Duration,
    pub answer: Result<Option<Response>, CallError>,
}

/// What was done for one event.
#[derive(Debug)]
pub struct Dispatched {
    pub event_type: String,
    pub receipt: serde_json::Value,
    pub account: Account,
}

impl Dispatch {
    pub fn new(policies: Arc<Policies>, services: Arc<Services>, dead_letters: Arc<DeadLetters>, events: &config::Events) -> Dispatch {
        Dispatch { policies, services, dead_letters, seen: Mutex::new(Seen::new(events)), rehearses: false, onlooker: OnceLock::new() }
    }

    /// The same policies, state and groups as now, for an event that leaves no trace in them and reaches nobody. All else is the
    /// same code.
    ///
    /// # Errors
    /// Those of [`Services::fork`].
    pub fn rehearsal(&self, config: &Config) -> prometheus::Result<Dispatch> {
        let services = Arc::new(self.services.fork()?);
        let policies = Policies::new(self.policies.current().fork(&services), Vec::new(), Duration::ZERO);
        let dead_letters = DeadLetters::new(config.dead_letters.clone(), services.metrics.clone());
        let dispatch = Dispatch::new(Arc::new(policies), services, Arc::new(dead_letters), &config.events);
        Ok(Dispatch { rehearses: true, ..dispatch })
    }

    /// From now on the onlooker is sent what is done for each event, and what sessions policies do, as long as it keeps up. The first
    /// one stays.
    pub fn show(&self, onlooker: mpsc::Sender<Shown>) {
        // A second one is refused: there is one screen.
        let _ = self.onlooker.set(onlooker);
    }

    /// Publishes an event once: the same source and id again, within the window, does nothing. `account`: what is done is
    /// written there.
    pub fn publish_once(&self, event: Event, account: Option<&mut Account>) -> Receipt {
        let key = self.seen.lock().key(&event.source, &event.id);
        let Some(attempt) = self.seen.lock().attempt(key, Instant::now()) else {
            self.services.metrics.events.with_label_values(&["duplicate"]).inc();
            return Receipt { id: event.id, source: event.source, duplicate: true, ..Receipt::default() };
        };
        let receipt = self.attempt(event, attempt, account);
        // Where every policy failed and the event is kept nowhere, nothing was done: the producer may try again.
        let failed = |consulted: &Consulted| consulted.outcome.is_failure() && consulted.dead_letter.is_none();
        if !receipt.policies.is_empty() && receipt.policies.iter().all(failed) {
            self.seen.lock().failed(key);
        }
        receipt
    }

    /// Asks every routing policy that wants the event, in order, and carries out what each decides.
    pub fn publish(&self, event: Event, account: Option<&mut Account>) -> Receipt {
        self.attempt(event, 1, account)
    }

    fn attempt(&self, event: Event, attempt: u32, account: Option<&mut Account>) -> Receipt {
        let (None, Some(onlooker)) = (&account, self.onlooker.get()) else { return self.route(event, attempt, account) };
        let (event_type, mut account) = (event.event_type.clone(), Account::default());
        let receipt = self.route(event, attempt, Some(&mut account));
        let shown = serde_json::to_value(&receipt).unwrap_or_default();
        // Whoever looks on holds nobody up: what doesn't fit is not shown.
        let _ = onlooker.try_send(Shown::Event(Dispatched { event_type, receipt: shown, account }));
        receipt
    }

    /// Shows what a sessions policy did, where somebody looks on.
    pub fn spoken(&self, spoken: impl FnOnce() -> Spoken) {
        if let Some(onlooker) = self.onlooker.get() {
            let _ = onlooker.try_send(Shown::Session(spoken()));
        }
    }

    fn route(&self, event: Event, attempt: u32, account: Option<&mut Account>) -> Receipt {
        let policies = self.policies.current();
        let mut receipt = Receipt { id: event.id.clone(), source: event.source.clone(), ..Receipt::default() };
        let mut tally = Tally::with(account);
        if let Some(account) = &mut tally.account {
            account.revision = policies.revision;
        }
        for policy in policies.wanting(Role::Routing, &event.event_type) {
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
    fn consult(&self, policy: &Policy, event: &Event, letter: Letter, revision: u64, tally: &mut Tally<'_>) -> Consulted {
        let mut consulted = Consulted::of(policy);
        let started = Instant::now();
        let answer = policy.route(event);
        if let Some(account) = &mut tally.account {
            account.policies.push(Asked::new(policy, started.elapsed(), answer.as_ref().ok()));
        }
        let fault = match answer {
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
            Err(CallError::CircuitOpen) => {
                consulted.outcome = Outcome::CircuitOpen;
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
                    tally.deliveries += 1;
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
        let mut account = self.onlooker.get().map(|_| Account::of_a_direct_message(&user, &message, &terms));
        let mut tally = Tally::with(account.as_mut());
        self.post(&user, None, &message, &terms, &mut tally);
        let receipt = tally.into_receipt(Receipt { id, ..Receipt::default() });
        if let (Some(onlooker), Some(account)) = (self.onlooker.get(), account) {
            let shown = serde_json::to_value(&receipt).unwrap_or_default();
            let _ = onlooker.try_send(Shown::Event(Dispatched { event_type: event::DIRECT.to_owned(), receipt: shown, account }));
        }
        receipt
    }

    /// Joins before deliveries, leaves after them: the order that the contract states.
    pub(crate) fn carry_out(&self, decision: Decision, origin: &Origin<'_>, tally: &mut Tally<'_>) {
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

    fn deliver(&self, delivery: Delivery, origin: &Origin<'_>, tally: &mut Tally<'_>) {
        tally.deliveries += 1;
        let body = delivery.body.or_else(|| origin.event.data.clone()).unwrap_or_else(|| Body::Json("null".to_owned()));
        let message = Message::new(origin.event.id.clone(), origin.event.event_type.clone(), body, origin.revision);
        let message = Arc::new(message);
        if let Some(account) = &mut tally.account {
            account.tell(&delivery.to, &delivery.except, &message, &delivery.terms);
        }
        let users = match delivery.to {
            Recipients::Users(users) => distinct(users),
            Recipients::Session { user, session } => {
                self.post(&user, Some(&session.into()), &message, &delivery.terms, tally);
                return;
            }
            Recipients::Group(group) => self.services.groups.members(&group),
            Recipients::Everyone => self.services.mailboxes.everyone(),
        };
        // A policy may return a hundred thousand names: looking through a list for each recipient would take seconds.
        let except: HashSet<&UserId> = delivery.except.iter().collect();
        for user in &users {
            if except.contains(user) {
                continue;
            }
            if tally.told() >= origin.policy.limits().recipients_max {
                tally.drop(DropReason::TooManyRecipients, user);
                self.services.metrics.dropped(DropReason::TooManyRecipients, 1);
                continue;
            }
            self.post(user, None, &message, &delivery.terms, tally);
        }
    }

    pub(crate) fn post(&self, user: &UserId, session: Option<&Arc<str>>, message: &Arc<Message>, terms: &Terms, tally: &mut Tally<'_>) {
        tally.name(user);
        let mailboxes = &self.services.mailboxes;
        let posted = if self.rehearses { mailboxes.rehearse(user, session, terms) } else { mailboxes.post(user, session, message, terms) };
        if let Some(account) = &mut tally.account {
            account.posted(user, session, posted);
        }
        match posted {
            Posted::Posted { .. } => tally.posted += 1,
            Posted::Dropped(reason) => tally.drop(reason, user),
        }
    }
}

/// Each user once, in the order of their first mention. A policy may return a hundred thousand, so no list is searched.
fn distinct(mut users: Vec<UserId>) -> Vec<UserId> {
    if users.len() > 1 {
        let mut told = HashSet::with_capacity(users.len());
        users.retain(|user| told.insert(user.clone()));
    }
    users
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
