//! Formatting: what a session's reader sees of a message. Once for each message and class, live or replayed.

mod window;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::config::FormattingFault;
use crate::dead_letters::DeadLetters;
use crate::model::mailbox::SessionHandle;
use crate::policy::{CallError, Policies, Policy, PolicySet, Role};
use crate::types::delivery::{Message, Shaped};
use crate::types::drop_reason::DropReason;
use crate::types::event::Body;
use parking_lot::Mutex;
use window::Window;

/// What a message's shape depends on: attributes and their values.
pub type Class = BTreeMap<String, Option<String>>;

/// Shapings that an onlooker may still ask about. One that is asked about later is not told.
const TIMED_MAX: usize = 1_000;

/// Shapes messages for sessions.
#[derive(Debug)]
pub struct Format {
    policies: Arc<Policies>,
    dead_letters: Arc<DeadLetters>,
    kept: Window,
    /// Where somebody looks on: how long each policy took, the newest last.
    timed: OnceLock<Mutex<VecDeque<Timed>>>,
}

/// How long the policies took that shaped a message for a class.
#[derive(Debug)]
struct Timed {
    message: Weak<Message>,
    class: Vec<Option<String>>,
    took: Vec<(String, Duration)>,
}

impl Format {
    /// Of the shapes made last, this many bytes are kept for the next reader of their class.
    pub fn new(policies: Arc<Policies>, dead_letters: Arc<DeadLetters>, shapes_bytes_max: usize) -> Format {
        Format { policies, dead_letters, kept: Window::new(shapes_bytes_max), timed: OnceLock::new() }
    }

    /// From now on, how long each policy takes is remembered for a while.
    pub fn watch(&self) {
        self.timed.get_or_init(Mutex::default);
    }

    /// How long each policy took to shape the message for this session's class; nothing where that isn't known.
    pub fn took(&self, message: &Arc<Message>, handle: &SessionHandle) -> Vec<(String, Duration)> {
        let Some(timed) = self.timed.get() else { return Vec::new() };
        let policies = self.policies.at(message.revision);
        let class: Vec<Option<&str>> = Chain { policies: &policies, message }.vary().map(|name| handle.attribute(name)).collect();
        let is_it = |timed: &&Timed| {
            std::ptr::eq(timed.message.as_ptr(), Arc::as_ptr(message)) && timed.class.iter().map(Option::as_deref).eq(class.iter().copied())
        };
        timed.lock().iter().rfind(is_it).map(|timed| timed.took.clone()).unwrap_or_default()
    }

    /// The message as this session reads it, or why it doesn't. Cancel safe: whoever comes next formats.
    pub async fn shape(&self, message: &Arc<Message>, handle: &SessionHandle) -> Shaped {
        let shaped = self.view(message, handle).await;
        if matches!(shaped, Err(DropReason::DeadLetter)) {
            self.dead_letters.wanted_by(message, handle);
        }
        shaped
    }

    /// The formatting policies that a message goes through, and what of a reader they look at.
    pub fn class(&self, message: &Arc<Message>, handle: &SessionHandle) -> (Vec<String>, Class) {
        let policies = self.policies.at(message.revision);
        let chain = Chain { policies: &policies, message };
        let class = chain.vary().map(|name| (name.to_owned(), handle.attribute(name).map(str::to_owned))).collect();
        (chain.iter().map(|policy| policy.name.clone()).collect(), class)
    }

    /// As [`Format::shape`], for somebody who looks on.
    pub async fn view(&self, message: &Arc<Message>, handle: &SessionHandle) -> Shaped {
        let policies = self.policies.at(message.revision);
        let mut wanting = policies.wanting(Role::Formatting, &message.event_type).peekable();
        if wanting.peek().is_none() {
            return Ok(message.body.clone());
        }
        drop(wanting);
        let chain = Chain { policies: &policies, message };
        let class: Vec<Option<&str>> = chain.vary().map(|name| handle.attribute(name)).collect();
        let place = message.shape(policies.revision, &class);
        let first = async || {
            let shaped = self.run(&chain, handle, &class);
            let class_bytes: usize = class.iter().flatten().map(|value| value.len()).sum();
            self.kept.keep(message, class_bytes + shaped.as_ref().map_or(0, |body| body.size()));
            shaped
        };
        place.get_or_init(first).await.clone()
    }

    fn run(&self, chain: &Chain<'_>, handle: &SessionHandle, class: &[Option<&str>]) -> Shaped {
        let mut took = Vec::new();
        let mut step = |body, policy: &Arc<Policy>| {
            let started = self.timed.get().map(|_| Instant::now());
            let shaped = self.step(policy, chain.message, body, handle);
            took.extend(started.map(|started| (policy.name.clone(), started.elapsed())));
            shaped
        };
        let shaped = chain.iter().try_fold(chain.message.body.clone(), &mut step);
        if let Some(timed) = self.timed.get() {
            let (message, class) = (Arc::downgrade(chain.message), class.iter().map(|value| value.map(str::to_owned)).collect());
            let mut timed = timed.lock();
            timed.push_back(Timed { message, class, took });
            if timed.len() > TIMED_MAX {
                timed.pop_front();
            }
        }
        shaped
    }

    fn step(&self, policy: &Policy, message: &Arc<Message>, body: Arc<Body>, handle: &SessionHandle) -> Shaped {
        let reader: Vec<(&str, &str)> =
            policy.vary.iter().filter_map(|name| handle.attribute(name).map(|value| (name.as_str(), value))).collect();
        let fault = match policy.format(message, &body, &reader) {
            Ok(Some(shaped)) => return Ok(Arc::new(shaped)),
            Ok(None) => return Err(DropReason::Formatted),
            Err(CallError::Refused(_)) => return Err(DropReason::FormatFailed),
            Err(CallError::Fault(fault)) => Some(fault),
            Err(CallError::CircuitOpen) => None,
        };
        match policy.on_fault().formatting {
            FormattingFault::Pass => Ok(body),
            FormattingFault::Drop => Err(DropReason::FormatFailed),
            FormattingFault::DeadLetter => {
                self.dead_letters.keep_message(policy, fault, message);
                Err(DropReason::DeadLetter)
            }
        }
    }
}

/// The formatting policies of one message.
struct Chain<'a> {
    policies: &'a PolicySet,
    message: &'a Arc<Message>,
}

impl Chain<'_> {
    fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.wanting(Role::Formatting, &self.message.event_type)
    }

    /// The attributes that the whole chain depends on.
    fn vary(&self) -> impl Iterator<Item = &str> {
        self.iter().flat_map(|policy| policy.vary.iter().map(String::as_str))
    }
}
