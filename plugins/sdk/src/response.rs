//! What becomes of a client's message.

use crate::bindings::host::signalpost::policy::types::{Body, Decision};
use crate::bindings::sessions::exports::signalpost::policy::sessions::{Draft, Response};

impl Response {
    /// Nothing is done.
    pub fn nothing() -> Response {
        Response { replies: Vec::new(), decision: Decision::nothing(), events: Vec::new(), close: None }
    }

    /// Sends a message to this session alone.
    pub fn reply(mut self, message: impl Into<Body>) -> Response {
        self.replies.push(message.into());
        self
    }

    /// Publishes an event, which the routing policies see.
    pub fn publish(mut self, event_type: impl Into<String>, data: impl Into<Body>) -> Response {
        self.events.push(Draft { type_: event_type.into(), subject: None, data: data.into() });
        self
    }

    /// Carries out a decision: tells others, changes groups.
    pub fn decide(mut self, decision: impl Into<Decision>) -> Response {
        self.decision = decision.into();
        self
    }

    /// Closes the socket, with this reason, after the replies.
    pub fn close(mut self, reason: impl Into<String>) -> Response {
        self.close = Some(reason.into());
        self
    }
}
