//! Plans: what the routing policies decide about an event, as a value. Planning changes nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use smallvec::SmallVec;

use crate::metrics::EventOutcome;
use crate::model::world::World;
use crate::policy::call::{Arguments, Output};
use crate::policy::{CallError, Policy, PolicySet, Role};
use crate::types::delivery::{Decision, Delivery, Membership, Message, PolicySetId, Recipients, Refusal};
use crate::types::event::{Body, Event, UserId};
use crate::types::fault::Fault;

/// The number of users beyond `limits.recipients_max` that are named; the others are counted.
const BEYOND_NAMED_MAX: usize = 10;

/// What has been decided about one event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The policy set that decided.
    pub policies: PolicySetId,
    pub revision: u64,
    /// One for each policy that wanted the event, in order.
    pub steps: Vec<Step>,
}

/// One policy's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// `None` if the message was sent to its user directly.
    pub policy: Option<PolicyRef>,
    /// When it was called.
    #[serde(skip)]
    pub began: Option<Instant>,
    pub took: Duration,
    pub answer: Answer,
}

/// Identifies one version of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRef {
    pub name: Arc<str>,
    pub version: Arc<str>,
    pub digest: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Decided(Decided),
    Refused(Refusal),
    Faulted(Box<Fault>),
    CircuitOpen,
}

/// A decision, with the users whom it reaches.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decided {
    pub joins: Vec<Membership>,
    /// Number of joins that a limit refused.
    pub joins_refused: usize,
    pub deliveries: Vec<Planned>,
    pub leaves: Vec<Membership>,
    pub ends: Vec<String>,
}

/// A message and its recipients.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    pub to: Recipients,
    pub except: Vec<UserId>,
    pub message: Arc<Message>,
    /// The users who get the message, each once.
    pub audience: SmallVec<[UserId; 1]>,
    /// Number of recipients beyond `limits.recipients_max`, who get nothing, and the first of them.
    pub beyond: usize,
    pub beyond_users: Vec<UserId>,
}

impl PolicyRef {
    pub fn of(policy: &Policy) -> PolicyRef {
        PolicyRef { name: policy.name.clone(), version: policy.version.clone(), digest: policy.digest.clone() }
    }
}

impl Planned {
    /// Returns a message to one user: `to` names the user, or one of the user's sessions.
    pub fn to_one(to: Recipients, user: UserId, message: Arc<Message>) -> Planned {
        Planned { to, except: Vec::new(), message, audience: smallvec::smallvec![user], beyond: 0, beyond_users: Vec::new() }
    }

    /// Returns the only session that may read the message, if it is for one session.
    pub fn session(&self) -> Option<Arc<str>> {
        match &self.to {
            Recipients::Session { session, .. } => Some(session.as_str().into()),
            _ => None,
        }
    }
}

impl Step {
    /// Returns the number of joins that a limit refused.
    pub fn joins_refused(&self) -> usize {
        if let Answer::Decided(decided) = &self.answer { decided.joins_refused } else { 0 }
    }
}

impl Answer {
    /// Returns whether the policy decided about the event.
    pub fn is_decision(&self) -> bool {
        matches!(self, Answer::Decided(_))
    }
}

impl Plan {
    /// Returns a plan without steps.
    pub fn empty(set: &PolicySet) -> Plan {
        Plan { policies: set.id, revision: set.revision, steps: Vec::new() }
    }

    /// Returns the plan of a message to one user, without calling a policy.
    pub fn direct(set: &PolicySet, user: UserId, message: Arc<Message>) -> Plan {
        let planned = Planned::to_one(Recipients::User(user.clone()), user, message);
        Plan::of(set, None, Decided { deliveries: vec![planned], ..Decided::default() })
    }

    /// Returns the plan of one decision.
    pub fn of(set: &PolicySet, policy: Option<PolicyRef>, decided: Decided) -> Plan {
        let step = Step { policy, began: None, took: Duration::ZERO, answer: Answer::Decided(decided) };
        Plan { steps: vec![step], ..Plan::empty(set) }
    }

    /// Returns every delivery, in order.
    pub fn deliveries(&self) -> impl Iterator<Item = &Planned> {
        let decided = self.steps.iter().filter_map(|step| if let Answer::Decided(decided) = &step.answer { Some(decided) } else { None });
        decided.flat_map(|decided| &decided.deliveries)
    }

    /// Returns whether the policy is asked.
    pub fn asks(&self, policy: &str) -> bool {
        self.steps.iter().filter_map(|step| step.policy.as_ref()).any(|asked| *asked.name == *policy)
    }

    /// Returns whether it does nothing although a policy decided, as most answers of sessions policies do.
    pub fn is_idle(&self) -> bool {
        self.steps.iter().all(|step| matches!(&step.answer, Answer::Decided(decided) if *decided == Decided::default()))
            && !self.steps.is_empty()
    }

    /// Returns what became of the event, for the metrics.
    pub fn outcome(&self) -> EventOutcome {
        match self.steps.is_empty() {
            true => EventOutcome::Unwanted,
            false if self.is_failure() => EventOutcome::Failed,
            false => EventOutcome::Routed,
        }
    }

    /// Returns whether policies were called and none of them decided. Such an event may be published again.
    pub fn is_failure(&self) -> bool {
        !self.steps.is_empty() && !self.steps.iter().any(|step| step.answer.is_decision())
    }
}

/// Calls every routing policy that wants the event, in order. Each sees what the previous ones changed.
pub fn plan(set: &PolicySet, event: &Event, world: &mut World) -> Plan {
    let steps = set.wanting(Role::Routing, &event.event_type).map(|policy| consult(set, policy, event, world));
    Plan { steps: steps.collect(), ..Plan::empty(set) }
}

/// Calls one routing policy.
pub fn consult(set: &PolicySet, policy: &Policy, event: &Event, world: &mut World) -> Step {
    let tapped = policy.tap(world);
    let started = Instant::now();
    let answer = policy.route(event, world);
    let took = started.elapsed();
    let recorded = tapped.map(|tapped| (tapped, answer.clone().map(Output::Decided)));
    let answer = match answer {
        Ok(decision) => Answer::Decided(expand(set, policy, event, decision, world)),
        Err(error) => error.into(),
    };
    if let Some((tapped, answer)) = recorded {
        policy.record(tapped, world, Arguments::Route(Arc::new(event.clone())), answer, took);
    }
    Step { policy: Some(PolicyRef::of(policy)), began: Some(started), took, answer }
}

impl From<CallError> for Answer {
    fn from(error: CallError) -> Answer {
        match error {
            CallError::Refused(refusal) => Answer::Refused(refusal),
            CallError::Fault(fault) => Answer::Faulted(fault),
            CallError::CircuitOpen => Answer::CircuitOpen,
        }
    }
}

/// Finds the users whom a decision reaches. Joins come before deliveries, leaves after them: the order that the contract states.
pub fn expand(set: &PolicySet, policy: &Policy, event: &Event, decision: Decision, world: &mut World) -> Decided {
    let Decision { joins, deliveries, leaves, ends } = decision;
    let joined = |join: &&Membership| world.join(&policy.name, policy.group_quota(), &join.group, join.user.clone()).is_err();
    let joins_refused = joins.iter().filter(joined).count();
    let recipients_max = policy.limits().recipients_max.get();
    let mut room = recipients_max.saturating_sub(*world.told(&policy.name));
    let deliveries = deliveries.into_iter().map(|delivery| address(set, event, delivery, &mut room, world)).collect();
    *world.told(&policy.name) = recipients_max.saturating_sub(room);
    for leave in &leaves {
        world.leave(&leave.group, &leave.user);
    }
    for group in &ends {
        world.end(group);
    }
    Decided { joins, joins_refused, deliveries, leaves, ends }
}

/// Makes the message of a delivery and finds its recipients, at most `room` of them.
fn address(set: &PolicySet, event: &Event, delivery: Delivery, room: &mut usize, world: &mut World) -> Planned {
    let Delivery { to, except, body, terms } = delivery;
    let body = body.or_else(|| event.data.clone()).unwrap_or_else(|| Body::Json("null".to_owned()));
    let message = Message::new(event.id.clone(), event.event_type.clone(), body, set.id).with(terms).to(&to);
    let message = Arc::new(message.with_origin(event.origin.clone()));
    let (mut audience, total) = audience(&to, &except, *room + BEYOND_NAMED_MAX, world);
    let beyond_users = audience.drain(audience.len().min(*room)..).take(BEYOND_NAMED_MAX).collect();
    *room -= audience.len();
    Planned { to, except, message, beyond: total.saturating_sub(audience.len()), audience, beyond_users }
}

/// Returns the first recipients of a delivery, each once, and how many there are in total.
fn audience(to: &Recipients, except: &[UserId], most: usize, world: &mut World) -> (SmallVec<[UserId; 1]>, usize) {
    // A policy may return 100,000 names: searching a list for each recipient would take seconds.
    let except: HashSet<&UserId> = except.iter().collect();
    let mut audience: SmallVec<[UserId; 1]> = match to {
        // `except` does not apply to a message for one session.
        Recipients::Session { user, .. } => return (smallvec::smallvec![user.clone()], 1),
        Recipients::Group(group) => {
            let (members, total) = world.audience(group, &except, most);
            return (members.into(), total);
        }
        Recipients::User(user) => smallvec::smallvec![user.clone()],
        Recipients::Users(users) => distinct(users),
        Recipients::Everyone => {
            let everyone = world.everyone();
            let excepted = except.iter().filter(|user| everyone.contains(**user)).count();
            let audience = everyone.iter().filter(|user| !except.contains(user)).take(most).cloned().collect();
            return (audience, everyone.len() - excepted);
        }
    };
    audience.retain(|user| !except.contains(user));
    let total = audience.len();
    audience.truncate(most);
    (audience, total)
}

/// Returns each user once, in the order of first mention.
fn distinct(users: &[UserId]) -> SmallVec<[UserId; 1]> {
    let mut told = HashSet::with_capacity(users.len());
    users.iter().filter(|user| told.insert(*user)).cloned().collect()
}
