//! Formatting: what a session's reader sees of a message. Once for each message and class, live or replayed.

use std::sync::Arc;

use crate::config::OnFault;
use crate::delivery::{Message, Shaped};
use crate::event::Body;
use crate::mailbox::Seat;
use crate::metrics::DropReason;
use crate::policy::{CallError, Policies, Policy, PolicySet, Role};

/// Shapes messages for sessions.
#[derive(Debug)]
pub struct Format {
    policies: Arc<Policies>,
}

impl Format {
    pub fn new(policies: Arc<Policies>) -> Format {
        Format { policies }
    }

    /// The message as this session reads it, or why it doesn't. Cancel safe: whoever comes next formats.
    pub async fn shape(&self, message: &Message, seat: &Seat) -> Shaped {
        let policies = self.policies.at(message.revision);
        let mut wanting = policies.wanting(Role::Formatting, &message.event_type).peekable();
        if wanting.peek().is_none() {
            return Ok(message.body.clone());
        }
        drop(wanting);
        let chain = Chain { policies: &policies, message };
        let class: Vec<Option<&str>> = chain.vary().map(|name| seat.attribute(name)).collect();
        let place = message.shape(policies.revision, class.iter().copied());
        place.get_or_init(async || run(&chain, seat)).await.clone()
    }
}

fn run(chain: &Chain<'_>, seat: &Seat) -> Shaped {
    chain.iter().try_fold(chain.message.body.clone(), |body, policy| step(policy, chain.message, body, seat))
}

fn step(policy: &Policy, message: &Message, body: Arc<Body>, seat: &Seat) -> Shaped {
    let reader: Vec<(&str, &str)> =
        policy.vary.iter().filter_map(|name| seat.attribute(name).map(|value| (name.as_str(), value))).collect();
    match policy.format(message, &body, &reader) {
        Ok(Some(shaped)) => Ok(Arc::new(shaped)),
        Ok(None) => Err(DropReason::Formatted),
        Err(CallError::Fault(_) | CallError::LeftOut) if policy.on_fault() == OnFault::Pass => Ok(body),
        Err(_) => Err(DropReason::FormatFailed),
    }
}

/// The formatting policies of one message.
struct Chain<'a> {
    policies: &'a PolicySet,
    message: &'a Message,
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
