//! Explanations: what happened or would happen to an event, down to what each class of readers sees.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::dispatch::apply::Applied;
use crate::dispatch::plan::{Answer, Decided, Plan, Planned, PolicyRef, Step};
use crate::dispatch::{Dispatch, Receipt, Story};
use crate::format::{Class, Format, Shape};
use crate::model::mailbox::Posted;
use crate::registry::SessionHandle;
use crate::types::delivery::{Membership, Message, Priority, Recipients, Terms};
use crate::types::drop_reason::DropReason;
use crate::types::event::{Body, UserId};

/// Recipients of one delivery that are listed; the others are counted.
const NAMED_MAX: usize = 100;

/// Bytes of messages and names that the explanations of one answer list; the other deliveries are counted. A person reads less.
const LISTED_BYTES_MAX: usize = 1 << 20;

/// Messages that are formatted for the explanations of one answer, each of which may take a formatting policy's whole deadline.
const PREVIEWS_MAX: usize = 100;

/// The same for each event in the live feed.
const LIVE_BYTES_MAX: usize = 64 << 10;
const LIVE_PREVIEWS_MAX: usize = 10;

/// Bytes that a name counts in addition to its text.
const NAME_BYTES: usize = 128;

/// What the explanations of one answer have left.
#[derive(Debug)]
pub struct Budget {
    bytes: usize,
    previews: usize,
    /// Whether messages are listed. If not, only who was told and in which class.
    shows_messages: bool,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { bytes: LISTED_BYTES_MAX, previews: PREVIEWS_MAX, shows_messages: true }
    }
}

impl Budget {
    /// Returns the budget of one event in the live feed, in which a thousand pass in a second.
    pub fn live(shows_messages: bool) -> Budget {
        Budget { bytes: LIVE_BYTES_MAX, previews: LIVE_PREVIEWS_MAX, shows_messages }
    }

    fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_left(&self) -> bool {
        self.bytes > 0 && self.previews > 0
    }
}

/// A receipt and its explanation.
#[derive(Debug, Serialize)]
pub struct Explained {
    #[serde(flatten)]
    receipt: Receipt,
    explanation: Explanation,
}

#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// Whether this was a dry run, which sends and changes nothing.
    dry_run: bool,
    /// The revision of the policy set.
    revision: u64,
    /// One for each policy of the receipt, which has the outcome, the refusal and the fault.
    policies: Vec<PolicyView>,
}

#[derive(Debug, Serialize)]
struct PolicyView {
    name: Arc<str>,
    version: Arc<str>,
    digest: Arc<str>,
    /// Microseconds.
    took_us: u64,
    joins: Vec<Membership>,
    deliveries: Vec<DeliveryView>,
    /// Number of deliveries that are not listed, for lack of room.
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
    leaves: Vec<Membership>,
    ends: Vec<String>,
}

#[derive(Debug, Serialize)]
struct DeliveryView {
    to: Recipients,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<UserId>,
    /// The message before formatting, unless only the metadata is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Arc<Body>>,
    terms: TermsView,
    recipients: Vec<RecipientView>,
    /// Number of recipients that are not listed.
    more: usize,
    /// Names of the formatting policies, in order.
    formatting: Vec<Arc<str>>,
    /// What the open sessions of the listed recipients see.
    classes: Vec<ClassView>,
}

#[derive(Debug, Serialize)]
struct TermsView {
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse_key: Option<Arc<str>>,
    priority: Priority,
}

#[derive(Debug, Serialize)]
struct RecipientView {
    user: UserId,
    /// The message's seq in the user's mailbox; absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<DropReason>,
    /// The user's open sessions. If there are none, the message waits in the mailbox.
    sessions: Vec<SessionView>,
}

#[derive(Debug, Serialize)]
struct SessionView {
    id: Arc<str>,
    subprotocol: Option<&'static str>,
    /// Index in `classes`.
    class: usize,
}

#[derive(Debug, Serialize)]
struct ClassView {
    attributes: Class,
    #[serde(skip_serializing_if = "Option::is_none")]
    sees: Option<Arc<Body>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<DropReason>,
    /// How long each formatting policy took, if it was measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    took: Vec<TookView>,
}

#[derive(Debug, Serialize)]
struct TookView {
    name: Arc<str>,
    /// Microseconds.
    took_us: u64,
}

impl Explained {
    /// Explains an event. `dry_run` says whether it was only planned.
    pub fn of(story: &Story, dispatch: &Dispatch, format: &Format, dry_run: bool, budget: &mut Budget) -> Explained {
        let explanation = match &story.done {
            Some(done) => Explaining { dispatch, format, dry_run, budget }.explanation(&done.plan, &done.applied),
            None => Explanation { dry_run, revision: dispatch.policies.current().revision, policies: Vec::new() },
        };
        Explained { receipt: story.receipt.clone(), explanation }
    }
}

/// What an explanation is made of, beside the plan and its outcome.
struct Explaining<'a> {
    dispatch: &'a Dispatch,
    format: &'a Format,
    dry_run: bool,
    budget: &'a mut Budget,
}

impl Explaining<'_> {
    fn explanation(&mut self, plan: &Plan, applied: &Applied) -> Explanation {
        let mut posted = applied.posted.iter().copied();
        let policies = plan.steps.iter().map(|step| self.step(step, &mut posted)).collect();
        Explanation { dry_run: self.dry_run, revision: plan.revision, policies }
    }

    fn step(&mut self, step: &Step, posted: &mut impl Iterator<Item = Posted>) -> PolicyView {
        let (name, version, digest) = match &step.policy {
            Some(PolicyRef { name, version, digest }) => (name.clone(), version.clone(), digest.clone()),
            None => ("sent directly".into(), "".into(), "".into()),
        };
        let took_us = microseconds(step.took);
        let nothing = Decided::default();
        let decided = if let Answer::Decided(decided) = &step.answer { decided } else { &nothing };
        let mut deliveries = Vec::new();
        for planned in &decided.deliveries {
            // Collected in full, so that the next delivery begins with its own outcomes.
            let posted: Vec<Posted> = posted.take(planned.audience.len()).collect();
            if self.budget.is_left() {
                deliveries.push(self.delivery(planned, &posted));
            }
        }
        let more = decided.deliveries.len() - deliveries.len();
        // Each of a thousand events may have a thousand of these too.
        let (joins, leaves, ends) = if self.budget.is_left() {
            self.budget.take((decided.joins.len() + decided.leaves.len() + decided.ends.len()) * NAME_BYTES);
            (decided.joins.clone(), decided.leaves.clone(), decided.ends.clone())
        } else {
            (Vec::new(), Vec::new(), Vec::new())
        };
        PolicyView { name, version, digest, took_us, joins, deliveries, more, leaves, ends }
    }

    fn delivery(&mut self, planned: &Planned, posted: &[Posted]) -> DeliveryView {
        let Planned { to, except, message, audience, beyond, .. } = planned;
        self.budget.take(message.body.size() + NAME_BYTES * (1 + except.len() + to.names()));
        let mut recipients = Vec::new();
        let mut readers = Readers { only: planned.session(), ..Readers::default() };
        for (user, posted) in audience.iter().zip(posted).take(NAMED_MAX) {
            if !self.budget.is_left() {
                break;
            }
            self.budget.take(NAME_BYTES);
            let (seq, dropped) = match posted {
                Posted::Posted { seq, .. } => ((!self.dry_run).then_some(*seq), None),
                Posted::Dropped(reason) => (None, Some(*reason)),
            };
            let sessions = self.sessions(user, message, &mut readers);
            recipients.push(RecipientView { user: user.clone(), seq, dropped, sessions });
        }
        DeliveryView {
            to: to.clone(),
            except: except.clone(),
            message: self.budget.shows_messages.then(|| message.body.clone()),
            terms: terms_view(&message.terms),
            more: audience.len() - recipients.len() + beyond,
            recipients,
            formatting: readers.formatting,
            classes: readers.classes,
        }
    }

    /// Returns the open sessions of a recipient, and adds what they see to the readers' classes.
    fn sessions(&mut self, user: &UserId, message: &Arc<Message>, readers: &mut Readers) -> Vec<SessionView> {
        let mut sessions = Vec::new();
        for (handle, _) in self.dispatch.model.mailboxes.presence(user).sessions {
            if readers.only.as_ref().is_some_and(|only| *only != handle.id) {
                continue;
            }
            let (policies, attributes) = self.format.class(message, &handle);
            readers.formatting = policies;
            let known = readers.classes.iter().position(|class| class.attributes == attributes);
            let class = known.unwrap_or_else(|| {
                readers.classes.push(self.class(message, &handle, attributes, !readers.formatting.is_empty()));
                readers.classes.len() - 1
            });
            sessions.push(SessionView { id: handle.id.clone(), subprotocol: handle.subprotocol, class });
        }
        sessions
    }

    /// Returns what the readers of a class see. `is_formatted`: policies are asked.
    fn class(&mut self, message: &Arc<Message>, handle: &SessionHandle, attributes: Class, is_formatted: bool) -> ClassView {
        if !self.budget.shows_messages {
            return ClassView { attributes, sees: None, dropped: None, took: Vec::new() };
        }
        let shape = self.format.preview(message, handle);
        self.budget.take(shape.shaped.as_ref().map_or(0, |body| body.size()));
        self.budget.previews = self.budget.previews.saturating_sub(usize::from(is_formatted));
        class_view(shape, attributes)
    }
}

/// The readers of one delivery.
#[derive(Default)]
struct Readers {
    /// The only session that reads it, if there is one.
    only: Option<Arc<str>>,
    /// Names of the formatting policies, in order.
    formatting: Vec<Arc<str>>,
    classes: Vec<ClassView>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn terms_view(terms: &Terms) -> TermsView {
    let Terms { time_to_live, keep, collapse_key, priority } = terms.clone();
    TermsView { ttl_ms: time_to_live.map(|time| time.as_millis()), keep_ms: keep.map(|time| time.as_millis()), collapse_key, priority }
}

fn class_view(shape: Shape, attributes: Class) -> ClassView {
    let (sees, dropped) = match shape.shaped {
        Ok(body) => (Some(body), None),
        Err(reason) => (None, Some(reason)),
    };
    let took = shape.took.into_iter().map(|(name, took)| TookView { name, took_us: microseconds(took) }).collect();
    ClassView { attributes, sees, dropped, took }
}
