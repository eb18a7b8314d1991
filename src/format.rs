//! Formatting: what a session's reader sees of a message. Done once for each message and class, live or replayed, unless a
//! policy's circuit was open: then the next reader asks again.

mod shapes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use smallvec::SmallVec;

use crate::config::FormattingFault;
use crate::model::Model;
use crate::model::dead_letters::{DeadLetter, Failure};
use crate::model::world::World;
use crate::policy::call::{Arguments, Output};
use crate::policy::{CallError, Policies, Policy, PolicySet, Role};
use crate::registry::SessionHandle;
use crate::store::Store;
use crate::traces::{Attribute, Kind, Said, Traces};
use crate::types::delivery::Message;
use crate::types::drop_reason::DropReason;
use crate::types::event::Body;
use crate::types::origin::TraceContext;
use shapes::Shapes;
pub use shapes::{Shape, Shaped};

/// Attributes that a message's shape depends on, at most, in nearly all deployments.
const CLASS_ATTRIBUTES: usize = 4;

/// The attributes, with their values, that a message's shape depends on.
pub type Class = BTreeMap<String, Option<String>>;

/// Shapes messages for sessions.
#[derive(Debug)]
pub struct Format {
    policies: Arc<Policies>,
    model: Arc<Model>,
    store: Store,
    shapes: Shapes,
    /// Whether shapes record how long each policy took.
    is_timed: AtomicBool,
    /// `None` if nothing is traced.
    traces: Option<Arc<Traces>>,
}

/// What a message is shaped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A session reads it.
    Read,
    /// An explanation shows it: nothing is counted, stored or kept as a dead letter.
    Look,
}

impl Format {
    /// Returns a formatter that keeps the newest shapes, up to `shapes_bytes_max` bytes, for the next readers of their classes.
    pub fn new(policies: Arc<Policies>, model: Arc<Model>, store: Store, traces: Option<Arc<Traces>>, shapes_bytes_max: usize) -> Format {
        Format { policies, model, store, shapes: Shapes::new(shapes_bytes_max), is_timed: AtomicBool::new(false), traces }
    }

    /// Makes shapes record how long each policy took.
    pub fn time(&self) {
        self.is_timed.store(true, Ordering::Relaxed);
    }

    /// Gives back the shapes of messages that are gone, also if no further message comes.
    pub fn sweep(&self) {
        self.shapes.sweep();
    }

    /// Returns the message as this session reads it, or why it is dropped. Cancel safe: the next call formats instead.
    pub async fn shape(&self, message: &Arc<Message>, handle: &SessionHandle) -> Shaped {
        let policies = self.policies.at(message.policies);
        let chain = Chain { policies: &policies, message, reader: handle };
        if chain.is_empty() {
            return Ok(message.body.clone());
        }
        let class = chain.class();
        let slot = self.shapes.slot(message, policies.id, &class);
        let first = async || {
            let _permit = self.policies.permit(chain.iter()).await;
            let shape = self.run(&chain, handle, Purpose::Read);
            // An open circuit says nothing about the message: the next reader asks again.
            if shape.failure.as_ref().is_some_and(|failure| failure.fault.is_none()) {
                return Err(shape);
            }
            self.shapes.made(&slot, shape.shaped.as_ref().map_or(0, |body| body.size()));
            Ok(shape)
        };
        let passing;
        let shape = match slot.shape.get_or_try_init(first).await {
            Ok(shape) => shape,
            Err(shape) => {
                passing = shape;
                &passing
            }
        };
        if let (Err(DropReason::DeadLetter), Some(failure)) = (&shape.shaped, &shape.failure)
            && !self.store.hand_on(|| DeadLetter::of_reader(failure, message, handle))
        {
            let mut changes = self.store.changes();
            self.model.dead_letters.keep_message(failure, message, handle, &mut changes);
            drop(self.store.append(changes));
        }
        shape.shaped.clone()
    }

    /// Returns the message as this session would read it. Changes nothing.
    pub fn preview(&self, message: &Arc<Message>, handle: &SessionHandle) -> Shape {
        let policies = self.policies.at(message.policies);
        let chain = Chain { policies: &policies, message, reader: handle };
        let class = chain.class();
        self.shapes.get(message, policies.id, &class).unwrap_or_else(|| self.run(&chain, handle, Purpose::Look))
    }

    /// Returns the formatting policies of a message, and this session's class.
    pub fn class(&self, message: &Arc<Message>, handle: &SessionHandle) -> (Vec<Arc<str>>, Class) {
        let policies = self.policies.at(message.policies);
        let chain = Chain { policies: &policies, message, reader: handle };
        let class = chain.vary().map(|name| (name.to_owned(), handle.attribute(name).map(str::to_owned))).collect();
        (chain.all().map(|policy| policy.name.clone()).collect(), class)
    }

    fn run(&self, chain: &Chain<'_>, handle: &SessionHandle, purpose: Purpose) -> Shape {
        // An explanation shows what readers would see, and is not part of a trace.
        let traced = self.traces.as_ref().filter(|_| purpose == Purpose::Read).zip(chain.message.origin.trace.as_ref());
        let is_timed = purpose == Purpose::Look || traced.is_some() || self.is_timed.load(Ordering::Relaxed);
        let mut took = Vec::new();
        let mut failure = None;
        let mut step = |body, policy: &Arc<Policy>| {
            let started = is_timed.then(Instant::now);
            let shaped = self.step(policy, chain.message, body, handle, purpose, &mut failure);
            if let Some(started) = started {
                let ended = Instant::now();
                took.push((policy.name.clone(), ended - started));
                if let Some((traces, context)) = traced {
                    let failure = failure.as_ref().filter(|failure| failure.policy == policy.name);
                    span(traces, context, policy, (started, ended), &shaped, failure);
                }
            }
            shaped
        };
        let shaped = chain.iter().try_fold(chain.message.body.clone(), &mut step);
        Shape { shaped, took, failure }
    }

    fn step(
        &self,
        policy: &Policy,
        message: &Arc<Message>,
        body: Arc<Body>,
        handle: &SessionHandle,
        purpose: Purpose,
        failure: &mut Option<Failure>,
    ) -> Shaped {
        let reader: Vec<(&str, &str)> =
            policy.vary.iter().filter_map(|name| handle.attribute(name).map(|value| (name.as_str(), value))).collect();
        let fault = match self.call(policy, message, &body, &reader, purpose) {
            Ok(Some(shaped)) => return Ok(Arc::new(shaped)),
            Ok(None) => return Err(DropReason::Formatted),
            Err(CallError::Refused(_)) => return Err(DropReason::FormatFailed),
            Err(CallError::Fault(fault)) => Some(fault),
            Err(CallError::CircuitOpen) => None,
        };
        *failure = Some(Failure { policy: policy.name.clone(), version: policy.version.clone(), fault });
        failed(policy, body)
    }

    fn call(
        &self,
        policy: &Policy,
        message: &Arc<Message>,
        body: &Arc<Body>,
        reader: &[(&str, &str)],
        purpose: Purpose,
    ) -> Result<Option<Body>, CallError> {
        if purpose == Purpose::Look {
            return policy.format(message, body, reader, &mut World::dry(&self.model));
        }
        let format = |world: &mut World| {
            let tapped = policy.tap(world);
            let started = tapped.map(|_| Instant::now());
            let answer = policy.format(message, body, reader, world);
            if let Some((tapped, started)) = tapped.zip(started) {
                let reader = reader.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
                let arguments = Arguments::Format(message.clone(), body.clone(), reader);
                policy.record(tapped, world, arguments, answer.clone().map(Output::Formatted), started.elapsed());
            }
            answer
        };
        if !self.store.decides() {
            return self.model.read_only(format);
        }
        // No caller is answered, so the store is not waited for.
        self.model.transact(|| self.store.changes(), format, |_, changes| drop(self.store.append(changes))).0
    }
}

/// Makes the span of one policy's call.
fn span(traces: &Traces, context: &TraceContext, policy: &Policy, times: (Instant, Instant), shaped: &Shaped, failure: Option<&Failure>) {
    traces.child(context, Kind::Internal, format!("format {}", policy.name), times, || {
        let fault = failure.map(|failure| failure.fault.as_ref().map_or("the circuit is open".into(), |fault| fault.defect.detail.clone()));
        let attributes = vec![
            Attribute::new("signalpost.policy.name", policy.name.clone()),
            Attribute::new("signalpost.policy.version", policy.version.clone()),
            Attribute::new("signalpost.policy.digest", policy.digest.clone()),
            Attribute::new("signalpost.outcome", shaped.as_ref().map_or_else(|reason| reason.name(), |_| "formatted")),
        ];
        Said { attributes, error: fault.map(Into::into), ..Said::default() }
    });
}

/// Returns what a reader sees if the policy gave no answer, according to its `on_fault`.
fn failed(policy: &Policy, body: Arc<Body>) -> Shaped {
    match policy.on_fault().formatting {
        FormattingFault::Pass => Ok(body),
        FormattingFault::Drop => Err(DropReason::FormatFailed),
        FormattingFault::DeadLetter => Err(DropReason::DeadLetter),
    }
}

/// The formatting policies of one message and reader.
struct Chain<'a> {
    policies: &'a PolicySet,
    message: &'a Arc<Message>,
    reader: &'a SessionHandle,
}

impl<'a> Chain<'a> {
    /// Returns the policies that format the message for this reader.
    fn iter(&self) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.all().filter(|policy| policy.formats_for(|name| self.reader.attribute(name)))
    }

    fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Returns the policies that format the message for some readers.
    fn all(&self) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.wanting(Role::Formatting, &self.message.event_type)
    }

    /// Returns the attributes on which the message's shape depends: those of all policies, since they also decide which are asked.
    fn vary(&self) -> impl Iterator<Item = &'a str> {
        self.all().flat_map(|policy| policy.vary.iter().map(String::as_str))
    }

    fn class(&self) -> SmallVec<[Option<&'a str>; CLASS_ATTRIBUTES]> {
        self.vary().map(|name| self.reader.attribute(name)).collect()
    }
}
