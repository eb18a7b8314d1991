//! What is told of messages when they are written: how long they took, and a span of each that is sampled.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::Sessions;
use crate::registry::SessionHandle;
use crate::traces::{Attribute, Kind, Said};
use crate::types::delivery::Message;

/// The messages of one session that are taken from the mailbox and not written yet.
#[derive(Debug)]
pub struct Leaving {
    /// When the session began. What was accepted before waited for its reader, and its time is not the server's.
    began: Instant,
    /// When they were accepted.
    accepted: SmallVec<[Instant; 1]>,
    sampled: Vec<Sampled>,
}

#[derive(Debug)]
struct Sampled {
    message: Arc<Message>,
    seq: u64,
    /// When the message was taken from the mailbox.
    taken: Instant,
}

impl Leaving {
    pub fn new(began: Instant) -> Leaving {
        Leaving { began, accepted: SmallVec::new(), sampled: Vec::new() }
    }

    /// Notes a message that will be written.
    pub fn takes(&mut self, seq: u64, message: &Arc<Message>) {
        self.accepted.extend(message.origin.accepted.filter(|accepted| *accepted >= self.began));
        if message.origin.trace.is_some() {
            self.sampled.push(Sampled { message: message.clone(), seq, taken: Instant::now() });
        }
    }

    /// Tells of all of them that they are written.
    pub fn written(&mut self, now: Instant, sessions: &Sessions, handle: &SessionHandle) {
        for accepted in self.accepted.drain(..) {
            sessions.metrics.delivery_seconds.observe(now.saturating_duration_since(accepted));
        }
        for sampled in std::mem::take(&mut self.sampled) {
            sampled.span(self.began, now, sessions, handle);
        }
    }
}

impl Sampled {
    fn span(self, began: Instant, now: Instant, sessions: &Sessions, handle: &SessionHandle) {
        let Sampled { message, seq, taken } = self;
        let (Some(traces), Some(context)) = (&sessions.traces, &message.origin.trace) else { return };
        if !context.takes_delivery() {
            return;
        }
        let name = format!("send {}", message.event_type);
        let say = || {
            let waited = message.origin.accepted.map(|accepted| taken.saturating_duration_since(accepted));
            let waited_us = waited.map_or(0, |waited| i64::try_from(waited.as_micros()).unwrap_or(i64::MAX));
            let attributes = vec![
                Attribute::new("cloudevents.event_id", message.event_id.clone()),
                Attribute::new("signalpost.session", handle.id.clone()),
                Attribute::new("signalpost.seq", i64::try_from(seq).unwrap_or(i64::MAX)),
                Attribute::new("signalpost.mailbox.wait_us", waited_us),
            ];
            Said { attributes, ..Said::default() }
        };
        // A reader who comes later begins a trace of its own.
        if message.origin.accepted.is_some_and(|accepted| accepted < began) {
            traces.linked(context, Kind::Producer, name, (taken, now), say);
        } else {
            traces.child(context, Kind::Producer, name, (taken, now), say);
        }
    }
}
