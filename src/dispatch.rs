//! Dispatch: an event is planned, its plan is applied, and the producer is answered.
//!
//! There is no await from the first policy to the last post, so a producer that disconnects changes nothing: an event is dispatched as a
//! whole or not at all. What happened is in the plan and in its outcome; receipts and explanations are views of the two.

pub mod apply;
pub mod milestones;
pub mod observers;
pub mod plan;
mod receipt;
pub mod session_policies;
pub mod sinks;
mod spans;

use std::collections::HashSet;
use std::sync::Arc;

use indexmap::IndexSet;
use serde::Serialize;

use crate::config::{self, Config};
use crate::metrics::{EventOutcome, Metrics};
use crate::model::Model;
use crate::model::dead_letters::{Content, DeadLetter, Recipient};
use crate::model::dedup::{self, Attempt};
use crate::model::mailbox::{Expired, Posted};
use crate::model::record::{Change, Changes};
use crate::model::world::World;
use crate::net::turns::aside_if;
use crate::policy::{Policies, PolicySet, Role};
use crate::registry::SessionHandle;
use crate::store::{Store, Ticket};
use crate::traces::Traces;
use crate::types::delivery::{Message, NAME_BYTES, Recipients, Terms};
use crate::types::event::{self, Body, Event, UserId};
use crate::types::origin::Origin;
use apply::{Applied, Letter};
use milestones::Milestones;
use observers::{Observers, Trace};
use plan::{Decided, Plan, Planned};
pub use receipt::{Consulted, Dropped, Outcome, Receipt};
use sinks::{Maker, Own, Sinks};

/// Dispatches events from producers and policies to mailboxes.
#[derive(Debug)]
pub struct Dispatch {
    pub policies: Arc<Policies>,
    pub model: Arc<Model>,
    pub metrics: Arc<Metrics>,
    pub store: Store,
    sinks: Sinks,
    pub observers: Arc<Observers>,
    pub milestones: Milestones,
    /// `None` if nothing is traced.
    traces: Option<Arc<Traces>>,
}

/// An event's receipt, and the plan and outcome behind it.
#[derive(Clone, Debug)]
pub struct Story {
    pub receipt: Receipt,
    /// `None` if the event was published before, and nothing was done.
    pub done: Option<Arc<Done>>,
}

#[derive(Clone, Debug)]
pub struct Done {
    pub plan: Plan,
    pub applied: Applied,
}

/// Another request is publishing the same event right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay;

/// Why a dead letter was not retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryError {
    /// No policy wants events of this type.
    Unwanted(String),
    /// There is no such letter.
    Unknown,
    /// Its policy is not loaded. The letter is kept.
    PolicyMissing(Arc<str>),
    /// Its sink is not configured. The letter is kept.
    SinkMissing(Arc<str>),
}

impl Story {
    fn of(id: String, source: String, plan: Plan, applied: Applied) -> Story {
        let receipt = Receipt::of(id, source, &plan, &applied);
        Story { receipt, done: Some(Arc::new(Done { plan, applied })) }
    }

    /// Returns about how many bytes it keeps in memory.
    pub fn size(&self) -> usize {
        let size = |planned: &Planned| planned.message.body.size() + NAME_BYTES * (planned.audience.len() + planned.to.names());
        self.done.as_ref().map_or(0, |done| done.plan.deliveries().map(size).sum())
    }
}

impl Dispatch {
    pub fn new(
        policies: Arc<Policies>,
        model: Arc<Model>,
        metrics: Arc<Metrics>,
        store: Store,
        sinks: Sinks,
        observers: Arc<Observers>,
        events: &config::Events,
    ) -> Dispatch {
        Dispatch { policies, model, metrics, store, sinks, observers, milestones: Milestones::new(events), traces: None }
    }

    /// Returns the same, with spans of what is sampled.
    pub fn traced(self, traces: Option<Arc<Traces>>) -> Dispatch {
        Dispatch { traces, ..self }
    }

    /// Lets sinks hear what another configuration says.
    pub fn follow(&self, config: &Config) {
        self.sinks.follow(config, &self.metrics);
    }

    /// Publishes an event. With `once`, an event whose source and id were published within the window does nothing.
    ///
    /// # Errors
    /// The same event is being published by another request.
    pub fn publish(&self, event: Event, once: bool) -> Result<(Story, Ticket), UnderWay> {
        let mut seen = None;
        let mut attempt = 1;
        if once {
            let key = dedup::key(&event.source, &event.id);
            match self.begin(key, &event.id, &event.source)? {
                Begun::New(attempts, publishing) => (attempt, seen) = (attempts, Some(publishing)),
                Begun::Duplicate(receipt) => return Ok((Story { receipt, done: None }, self.store.append(self.store.changes()))),
            }
        }
        let mut generation = self.model.generation();
        let mut set = self.policies.of_event(&event);
        let event = Arc::new(event);
        let ((plan, _), (applied, ticket)) = self.model.transact(
            || self.store.changes(),
            |world| {
                let now = self.model.generation();
                if now != generation {
                    (generation, set) = (now, self.policies.of_event(&event));
                }
                (plan::plan(&set, &event, world), set.clone())
            },
            |(plan, set), mut changes| {
                aside_if(apply::take_long([plan]), || {
                    let applied = apply::post(&self.model, &self.metrics, plan, &mut changes);
                    let letter = match attempt {
                        1 => {
                            self.sinks.post(&self.model, &event, Maker::Producer, &mut changes);
                            Letter::FIRST
                        }
                        // The policies that were asked again have no use for their letters of earlier attempts.
                        _ => {
                            let letters = &self.model.dead_letters;
                            Letter { id: 0, attempt: letters.take_of(&event, attempt, |policy| plan.asks(policy), &mut changes) }
                        }
                    };
                    let applied = self.keep_failures(set, &event, letter, plan, applied, &mut changes);
                    if let Some(seen) = seen.take() {
                        seen.settle(plan.is_failure(), &mut changes);
                    }
                    (applied, self.store.append(changes))
                })
            },
        );
        self.metrics.event(plan.outcome());
        if let Some((traces, context)) = self.traces.as_ref().zip(event.origin.trace.as_ref()) {
            spans::of_plan(traces, context, &event, &plan);
        }
        let story = aside_if(apply::take_long([&plan]), || {
            self.milestones.note(&event.id, &event.source, &plan, &applied, &ticket, self.model.clock.now_ms());
            Story::of(event.id.clone(), event.source.clone(), plan, applied)
        });
        self.show(Some(&event), &story);
        Ok((story, ticket))
    }

    /// Returns what publishing an event would do. Changes nothing.
    pub fn look(&self, event: &Event) -> Story {
        let set = self.policies.foreseen(event);
        let plan = plan::plan(&set, event, &mut World::dry(&self.model));
        let applied = apply::foresee(&self.model, &plan);
        Story::of(event.id.clone(), event.source.clone(), plan, applied)
    }

    /// Posts a message to one user without calling routing policies. Formatting applies. A message whose key `once` was used for the same
    /// user within the window does nothing.
    ///
    /// # Errors
    /// A message with the same key is being sent by another request.
    pub fn tell(&self, user: UserId, body: Body, terms: Terms, once: Option<&str>, origin: Origin) -> Result<(Receipt, Ticket), UnderWay> {
        let mut seen = None;
        let id = match once {
            None => event::new_event_id(),
            Some(id) => {
                // No producer can use such a source, since control characters are refused.
                let key = dedup::key(&format!("\0{user}"), id);
                match self.begin(key, id, "")? {
                    Begun::New(_, publishing) => seen = Some(publishing),
                    Begun::Duplicate(receipt) => return Ok((receipt, self.store.append(self.store.changes()))),
                }
                id.to_owned()
            }
        };
        let set = self.policies.of_user(&user);
        let message = Message::new(id.clone(), event::DIRECT.to_owned(), body, set.id).with(terms);
        let message = Arc::new(message.with_origin(origin));
        let mut changes = self.store.changes();
        let now_ms = self.model.clock.now_ms();
        let posted = self.model.mailboxes.post_at(now_ms, &user, None, &message, &mut changes);
        if let Some(seen) = seen {
            // A dropped message may be sent again with the same key.
            seen.settle(matches!(posted, Posted::Dropped(_)), &mut changes);
        }
        let receipt = Receipt::direct(id, &user, posted);
        self.observers.show(|| {
            let (plan, applied) = (Plan::direct(&set, user.clone(), message), Applied { posted: vec![posted], letters: Vec::new() });
            let story = Story { receipt: receipt.clone(), done: Some(Arc::new(Done { plan, applied })) };
            Trace::Event { event: None, story }
        });
        let ticket = self.store.append(changes);
        self.milestones.note_direct(&receipt.id, &user, posted, &ticket, now_ms);
        Ok((receipt, ticket))
    }

    /// Retries a dead letter with the current policies.
    ///
    /// # Errors
    /// There is no such letter, or its policy is not loaded, or its sink is not configured.
    pub fn retry(&self, id: u64) -> Result<(Receipt, Ticket), RetryError> {
        let set = self.policies.current();
        let known = self.model.dead_letters.get(id).ok_or(RetryError::Unknown)?;
        if known.is_of_sink() {
            return self.deliver_again(id, &known.policy);
        }
        if let Content::Untaken { event, .. } = &known.content {
            return self.route_again(id, event);
        }
        let named = known.policy.clone();
        let policy = set.find(&named).ok_or(RetryError::PolicyMissing(named))?;
        let (letter, removal) = self.model.dead_letters.take(id).ok_or(RetryError::Unknown)?;
        match &letter.content {
            Content::Event(event) => {
                // Its time and its trace are over.
                let event = &Arc::new(Event { origin: Origin::default(), ..(**event).clone() });
                let again = Letter { id, attempt: letter.attempts + 1 };
                let consult = |world: &mut World| Plan { steps: vec![plan::consult(&set, policy, event, world)], ..Plan::empty(&set) };
                let (plan, (applied, ticket)) = self.model.transact(
                    || self.store.changes(),
                    consult,
                    |plan, mut changes| {
                        aside_if(apply::take_long([plan]), || {
                            changes.note(|| removal.clone());
                            let applied = apply::post(&self.model, &self.metrics, plan, &mut changes);
                            let applied = self.keep_failures(&set, event, again, plan, applied, &mut changes);
                            (applied, self.store.append(changes))
                        })
                    },
                );
                self.milestones.note(&event.id, &event.source, &plan, &applied, &ticket, self.model.clock.now_ms());
                let story = Story::of(event.id.clone(), event.source.clone(), plan, applied);
                self.show(Some(event), &story);
                Ok((story.receipt, ticket))
            }
            Content::Message { message, recipients } => {
                let mut changes = self.store.changes();
                changes.note(|| removal);
                let again = Arc::new(message.again(set.id));
                let deliveries =
                    self.readers_of(message, recipients).map(|(to, user)| Planned::to_one(to, user.clone(), again.clone())).collect();
                let plan = Plan::of(&set, None, Decided { deliveries, ..Decided::default() });
                let applied = apply::post(&self.model, &self.metrics, &plan, &mut changes);
                if !applied.posted.iter().any(|posted| matches!(posted, Posted::Posted { .. })) {
                    // There was no room for it anywhere: it stays as it was.
                    self.model.dead_letters.keep(letter.clone(), &mut changes);
                }
                Ok((Receipt::of(message.event_id.clone(), String::new(), &plan, &applied), self.store.append(changes)))
            }
            // They were handled above.
            Content::Undelivered { .. } | Content::Untaken { .. } => Err(RetryError::Unknown),
        }
    }

    /// Asks the policies about the event of a dead letter about which none was asked.
    fn route_again(&self, id: u64, event: &Arc<Event>) -> Result<(Receipt, Ticket), RetryError> {
        if self.policies.current().wanting(Role::Routing, &event.event_type).next().is_none() {
            return Err(RetryError::Unwanted(event.event_type.clone()));
        }
        let set = self.policies.of_event(event);
        let (_, removal) = self.model.dead_letters.take(id).ok_or(RetryError::Unknown)?;
        let (plan, (applied, ticket)) = self.model.transact(
            || self.store.changes(),
            |world| plan::plan(&set, event, world),
            |plan, mut changes| {
                aside_if(apply::take_long([plan]), || {
                    changes.note(|| removal.clone());
                    let applied = apply::post(&self.model, &self.metrics, plan, &mut changes);
                    let applied = self.keep_failures(&set, event, Letter::FIRST, plan, applied, &mut changes);
                    (applied, self.store.append(changes))
                })
            },
        );
        self.milestones.note(&event.id, &event.source, &plan, &applied, &ticket, self.model.clock.now_ms());
        let story = Story::of(event.id.clone(), event.source.clone(), plan, applied);
        self.show(Some(event), &story);
        Ok((story.receipt, ticket))
    }

    /// Keeps an event that no policy was asked about, and why.
    pub fn keep_untaken(&self, event: Event, reason: String) -> Ticket {
        let mut changes = self.store.changes();
        self.model.dead_letters.keep(DeadLetter::untaken(event, reason), &mut changes);
        self.store.append(changes)
    }

    /// Posts the event of a dead letter to its sink again.
    fn deliver_again(&self, id: u64, sink: &Arc<str>) -> Result<(Receipt, Ticket), RetryError> {
        if !self.sinks.has(sink) {
            return Err(RetryError::SinkMissing(sink.clone()));
        }
        let (letter, removal) = self.model.dead_letters.take(id).ok_or(RetryError::Unknown)?;
        let Content::Undelivered { message, .. } = &letter.content else { return Err(RetryError::Unknown) };
        let mut changes = self.store.changes();
        changes.note(|| removal);
        let posted = self.sinks.again(&self.model, sink, message, &mut changes).ok_or(RetryError::Unknown)?;
        Ok((Receipt::to_sink(message.event_id.clone(), posted), self.store.append(changes)))
    }

    /// Tells the sinks that hear it of a session that was opened, or closed with a code.
    pub fn tell_of_session(&self, handle: &SessionHandle, code: Option<u16>) {
        #[derive(Serialize)]
        struct Data<'a> {
            user_id: &'a UserId,
            session: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            code: Option<u16>,
            /// The user's open sessions after that.
            open_sessions: usize,
        }
        let own = if code.is_some() { Own::SessionClosed } else { Own::SessionOpened };
        if self.sinks.hears(own) {
            let open_sessions = self.model.mailboxes.sessions_of(handle.user.as_str());
            self.tell_sinks(own, &handle.user, &Data { user_id: &handle.user, session: &handle.id, code, open_sessions });
        }
    }

    /// Tells the sinks that hear it of the messages that have expired unread since the last call.
    pub fn tell_of_expired(&self) {
        #[derive(Serialize)]
        struct Data<'a> {
            user_id: &'a UserId,
            event_id: &'a str,
            event_type: &'a str,
            message: &'a Body,
        }
        let expired = self.model.mailboxes.take_expired();
        if !self.store.decides() {
            // The node that decides tells of them.
            return;
        }
        for Expired { user, message } in expired {
            let Message { event_id, event_type, body, .. } = &*message;
            self.tell_sinks(Own::MessageExpired, &user, &Data { user_id: &user, event_id, event_type, message: body });
        }
    }

    fn tell_sinks(&self, own: Own, user: &UserId, data: &impl Serialize) {
        let mut changes = self.store.changes();
        self.sinks.post(&self.model, &sinks::own_event(own, user, data), Maker::Server, &mut changes);
        // Nobody waits for it.
        drop(self.store.append(changes));
    }

    /// Deletes a dead letter, and returns whether it was there.
    pub fn delete_letter(&self, id: u64) -> (bool, Ticket) {
        let mut changes = self.store.changes();
        let deleted = self.model.dead_letters.delete(id, &mut changes);
        (deleted, self.store.append(changes))
    }

    /// Deletes all dead letters, and returns how many there were.
    pub fn delete_letters(&self) -> (usize, Ticket) {
        let mut changes = self.store.changes();
        let deleted = self.model.dead_letters.delete_all(&mut changes);
        (deleted, self.store.append(changes))
    }

    /// Keeps the event for the policies of a plan that failed on it.
    fn keep_failures(
        &self,
        set: &PolicySet,
        event: &Arc<Event>,
        letter: Letter,
        plan: &Plan,
        applied: Applied,
        changes: &mut Changes,
    ) -> Applied {
        if plan.steps.iter().all(|step| step.answer.is_decision()) {
            return applied;
        }
        Applied { letters: apply::keep_failures(&self.model, set, event, letter, plan, changes), ..applied }
    }

    /// Returns the recipients of a retried message: the sessions that are still open, since the user's other sessions have read it, and
    /// once each user whose sessions are all closed, unless the message was for one session only.
    fn readers_of<'a>(&self, message: &Message, recipients: &'a [Recipient]) -> impl Iterator<Item = (Recipients, &'a UserId)> {
        let (open, closed): (Vec<&Recipient>, Vec<&Recipient>) =
            recipients.iter().partition(|Recipient { user, session }| self.model.mailboxes.has_session(user, session));
        let closed = if message.is_for_session { Vec::new() } else { closed };
        let reachable: HashSet<&UserId> = open.iter().map(|Recipient { user, .. }| user).collect();
        let away: IndexSet<&UserId> = closed.iter().map(|Recipient { user, .. }| user).filter(|user| !reachable.contains(user)).collect();
        let to_session =
            |Recipient { user, session }: &'a Recipient| (Recipients::Session { user: user.clone(), session: session.to_string() }, user);
        open.into_iter().map(to_session).chain(away.into_iter().map(|user| (Recipients::User(user.clone()), user)))
    }

    /// Returns whether an event was published within the window.
    pub fn was_published(&self, id: &str, source: &str) -> bool {
        self.model.dedup.lock().is_known(dedup::key(source, id), false)
    }

    fn begin(&self, key: u128, id: &str, source: &str) -> Result<Begun<'_>, UnderWay> {
        match self.model.dedup.lock().begin(key, self.model.clock.now_ms()) {
            Attempt::New(attempts) => Ok(Begun::New(attempts, Publishing { model: &self.model, key, is_settled: false })),
            Attempt::UnderWay => Err(UnderWay),
            Attempt::Duplicate => {
                self.metrics.event(EventOutcome::Duplicate);
                let receipt = Receipt { id: id.to_owned(), source: source.to_owned(), duplicate: true, ..Receipt::default() };
                Ok(Begun::Duplicate(receipt))
            }
        }
    }

    /// Shows an event's story to the observers, if there are any.
    fn show(&self, event: Option<&Arc<Event>>, story: &Story) {
        self.observers.show(|| Trace::Event { event: event.cloned(), story: story.clone() });
    }
}

/// Whether an event has to be published.
enum Begun<'a> {
    /// The number of this attempt.
    New(u32, Publishing<'a>),
    Duplicate(Receipt),
}

/// A guard for an event that is being published. If it is dropped before it is settled, the event may be published again.
struct Publishing<'a> {
    model: &'a Model,
    key: u128,
    is_settled: bool,
}

impl Publishing<'_> {
    fn settle(mut self, failed: bool, changes: &mut Changes) {
        self.is_settled = true;
        let (key, at_ms) = (self.key, self.model.clock.now_ms());
        self.model.dedup.lock().settle(key, failed, at_ms);
        changes.note(|| Change::Seen { key, at_ms, failed });
    }
}

impl Drop for Publishing<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.model.dedup.lock().settle(self.key, true, self.model.clock.now_ms());
        }
    }
}
