//! Calls of role functions as values: to repeat them, to record them, and to play them again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::world::Reads;
use crate::registry::SessionHandle;
use crate::types::delivery::{Decision, Message, NAME_BYTES, Refusal, Response};
use crate::types::event::{Body, Event};
use crate::types::fault::Fault;

/// Bytes that a recorded call counts in addition to its texts.
const CALL_BYTES: usize = 1024;

/// A role function of the contract, called for an event, a message or a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Route,
    Format,
    Opened,
    Received,
    Closed,
}

impl Function {
    pub fn name(self) -> &'static str {
        match self {
            Function::Route => "route",
            Function::Format => "format",
            Function::Opened => "opened",
            Function::Received => "received",
            Function::Closed => "closed",
        }
    }
}

/// The arguments of a call.
#[derive(Clone, Debug)]
pub enum Arguments {
    Route(Arc<Event>),
    /// The message, its body as the formatting policies before this one have left it, and the reader's attributes.
    Format(Arc<Message>, Arc<Body>, Vec<(String, String)>),
    Opened(Arc<SessionHandle>),
    Received(Arc<SessionHandle>, Body),
    Closed(Arc<SessionHandle>, u16),
}

impl Arguments {
    pub fn function(&self) -> Function {
        match self {
            Arguments::Route(_) => Function::Route,
            Arguments::Format(..) => Function::Format,
            Arguments::Opened(_) => Function::Opened,
            Arguments::Received(..) => Function::Received,
            Arguments::Closed(..) => Function::Closed,
        }
    }

    /// Returns the type of the event or message, if the call is about one.
    pub fn event_type(&self) -> Option<&str> {
        match self {
            Arguments::Route(event) => Some(&event.event_type),
            Arguments::Format(message, ..) => Some(&message.event_type),
            Arguments::Opened(_) | Arguments::Received(..) | Arguments::Closed(..) => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Arguments::Route(event) => event.size(),
            Arguments::Format(_, body, _) => body.size(),
            Arguments::Received(_, body) => body.size(),
            Arguments::Opened(_) | Arguments::Closed(..) => 0,
        }
    }
}

/// What a role function returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Decided(Decision),
    /// `None` if the message is dropped for this reader.
    Formatted(Option<Body>),
    /// `None` if a client's message is left to others.
    Responded(Option<Response>),
}

/// Why a call gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    Refused(Refusal),
    Fault(Box<Fault>),
    /// The policy was not called: it faulted too often in a row, and its circuit is open.
    CircuitOpen,
}

/// A call's answer, or why there is no answer.
pub type CallResult<R> = Result<R, CallError>;

/// A call as it was made, with all that its answer depends on.
#[derive(Debug)]
pub struct Call {
    pub at: SystemTime,
    pub policy: Arc<str>,
    pub version: Arc<str>,
    pub digest: Arc<str>,
    /// The digest of the policy's settings, which may be secrets.
    pub settings: Arc<str>,
    /// The attributes of a message's reader that the policy sees.
    pub vary: Vec<String>,
    pub arguments: Arguments,
    pub reads: Arc<Reads>,
    pub answer: CallResult<Output>,
    pub took: Duration,
}

impl Call {
    /// Returns about how many bytes it keeps in memory.
    pub fn size(&self) -> usize {
        let state: usize = self.reads.state.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, |value| value.len())).sum();
        let members: usize = self.reads.groups.values().map(|group| group.members.len() + group.asked.len() + 1).sum();
        let names = (members + self.reads.presence.len()) * NAME_BYTES;
        CALL_BYTES + self.arguments.size() + state + names + self.answer.as_ref().map_or(0, Output::size)
    }
}

impl Output {
    fn size(&self) -> usize {
        match self {
            Output::Decided(decision) => decision.size(),
            Output::Formatted(body) => body.as_ref().map_or(0, Body::size),
            Output::Responded(response) => response.as_ref().map_or(0, Response::size),
        }
    }
}
