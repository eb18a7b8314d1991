//! Calls that a policy answered well. When it faults again and again, one of them tells whether the policy is broken or the events are
//! bad: a stream of bad events must not keep good ones from a policy that answers them well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::model::mailbox::SessionHandle;
use crate::types::delivery::Message;
use crate::types::event::{Body, Event};

/// One call in this many is kept, so that the sample is of these days. Copying an event for each call would cost more than it tells.
const SAMPLE_EVERY: u32 = 1024;

/// A function of the contract that is called for an event, a message or a session.
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

/// A call that can be made again.
#[derive(Debug)]
pub enum Sample {
    Route(Box<Event>),
    Format(Arc<Message>, Arc<Body>, Vec<(String, String)>),
    Opened(Arc<SessionHandle>),
    Received(Arc<SessionHandle>, Body),
}

/// The last sample of each function.
#[derive(Debug, Default)]
pub struct Samples([Kept; 5]);

#[derive(Debug, Default)]
struct Kept {
    offered: AtomicU32,
    sample: Mutex<Option<Arc<Sample>>>,
}

impl Samples {
    /// Keeps this call if it is the first or its turn has come.
    pub fn offer(&self, function: Function, sample: impl FnOnce() -> Sample) {
        let Some(kept) = self.0.get(function as usize) else { return };
        if kept.offered.fetch_add(1, Ordering::Relaxed) % SAMPLE_EVERY == 0 {
            *kept.sample.lock() = Some(Arc::new(sample()));
        }
    }

    pub fn of(&self, function: Function) -> Option<Arc<Sample>> {
        self.0.get(function as usize)?.sample.lock().clone()
    }

    /// Begins with the samples of another version.
    pub fn take_over(&self, old: &Samples) {
        for (kept, old) in self.0.iter().zip(&old.0) {
            kept.sample.lock().clone_from(&old.sample.lock());
        }
    }
}
