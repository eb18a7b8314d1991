//! Applies a plan: its messages go to mailboxes, and events that its policies failed on go to the dead letters.

use std::sync::Arc;

use super::plan::{Answer, Plan, Planned, Step};
use crate::config::RoutingFault;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::dead_letters::{Content, DeadLetter};
use crate::model::mailbox::Posted;
use crate::model::record::Changes;
use crate::policy::PolicySet;
use crate::types::drop_reason::DropReason;
use crate::types::event::Event;

/// Posts that take less than a millisecond together.
const POSTS_IN_PASSING: usize = 500;

/// The outcome of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// One for each user of each delivery, in the plan's order.
    pub posted: Vec<Posted>,
    /// The dead letter of each step that has one.
    pub letters: Vec<Option<u64>>,
}

/// The id of the dead letter that an event comes from (0 if it comes from none), and the number of this attempt.
#[derive(Clone, Copy, Debug)]
pub struct Letter {
    pub id: u64,
    pub attempt: u32,
}

impl Letter {
    pub const FIRST: Letter = Letter { id: 0, attempt: 1 };
}

/// Returns whether plans take as long as a slow policy to apply, store and report. Then other tasks go on beside that.
pub fn take_long<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> bool {
    plans.into_iter().map(posts).sum::<usize>() > POSTS_IN_PASSING
}

fn posts(plan: &Plan) -> usize {
    plan.deliveries().map(|planned| planned.audience.len()).sum()
}

/// Posts every delivery of a plan whose world is committed.
pub fn post(model: &Model, metrics: &Metrics, plan: &Plan, changes: &mut Changes) -> Applied {
    let mut applied = Applied { posted: Vec::with_capacity(posts(plan)), letters: Vec::new() };
    for planned in plan.deliveries() {
        deliver(model, planned, &mut applied.posted, changes);
        metrics.dropped(DropReason::TooManyRecipients, planned.beyond);
    }
    let refused: usize = plan.steps.iter().map(Step::joins_refused).sum();
    metrics.group_changes_refused.inc_by(refused as u64);
    applied
}

fn deliver(model: &Model, planned: &Planned, posted: &mut Vec<Posted>, changes: &mut Changes) {
    let (session, now_ms) = (planned.session(), model.clock.now_ms());
    for user in &planned.audience {
        posted.push(model.mailboxes.post_at(now_ms, user, session.as_ref(), &planned.message, changes));
    }
}

/// Returns what [`post`] would do, except that it doesn't predict whether a mailbox is full.
pub fn foresee(model: &Model, plan: &Plan) -> Applied {
    let foresee = |planned: &Planned| {
        let session = planned.session();
        let posted: Vec<Posted> =
            planned.audience.iter().map(|user| model.mailboxes.foresee(user, session.as_ref(), &planned.message.terms)).collect();
        posted
    };
    Applied { posted: plan.deliveries().flat_map(foresee).collect(), letters: Vec::new() }
}

/// Keeps the event for each policy that failed on it, according to the policy's `on_fault`. An event that is retried is always kept:
/// it is not lost because the policy fails again, and its producer does not retry for ever.
pub fn keep_failures(
    model: &Model,
    set: &PolicySet,
    event: &Arc<Event>,
    letter: Letter,
    plan: &Plan,
    changes: &mut Changes,
) -> Vec<Option<u64>> {
    plan.steps.iter().map(|step| keep_failure(model, set, event, letter, step, changes)).collect()
}

fn keep_failure(model: &Model, set: &PolicySet, event: &Arc<Event>, letter: Letter, step: &Step, changes: &mut Changes) -> Option<u64> {
    let policy = step.policy.as_ref()?;
    let fault = match &step.answer {
        Answer::Faulted(fault) => Some(fault.clone()),
        Answer::CircuitOpen => None,
        Answer::Decided(_) | Answer::Refused(_) => return None,
    };
    // What is retried was worth keeping, and is kept again.
    let is_retried = letter.attempt > 1;
    let rule = set.find(&policy.name)?.on_fault().routing;
    if rule != RoutingFault::DeadLetter && !is_retried {
        return None;
    }
    let attempts = letter.attempt - u32::from(fault.is_none());
    let kept = DeadLetter::new(policy.name.clone(), policy.version.clone(), attempts, fault, Content::Event(event.clone()));
    Some(model.dead_letters.keep(DeadLetter { id: letter.id, ..kept }, changes))
}
