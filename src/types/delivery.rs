//! What a policy decides, in the host's own types: who is told, what, and for how long it matters.

use std::sync::Arc;
use std::time::Duration;

use indexmap::{Equivalent, IndexMap};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::types::drop_reason::DropReason;
use crate::types::event::{Body, UserId};

/// What a policy wants done; carried out in the order of the members.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub joins: Vec<Membership>,
    pub deliveries: Vec<Delivery>,
    pub leaves: Vec<Membership>,
    pub ends: Vec<String>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct Membership {
    pub group: String,
    pub user: UserId,
}

/// One message and who is to get it.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub to: Recipients,
    pub except: Vec<UserId>,
    /// `None`: the event's data as it is.
    pub body: Option<Body>,
    pub terms: Terms,
}

#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipients {
    Users(Vec<UserId>),
    Group(String),
    Everyone,
    Session { user: UserId, session: String },
}

/// For how long a message matters, and what may replace it.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Worthless after this time, read or not.
    pub time_to_live: Option<Duration>,
    /// How long it is kept for a user who is away. `None`: the server's default, which is also the most.
    pub keep: Option<Duration>,
    /// A newer message with the same key replaces an older one that is still in the mailbox.
    pub collapse_key: Option<Arc<str>>,
    pub priority: Priority,
}

/// What goes first when a mailbox is full. Never the order of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// "No", and why: a policy's answer to an event, a frame or a reader.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Refusal {
    pub code: String,
    pub detail: String,
}

/// One message, shared by every mailbox that it was posted to.
#[derive(Debug)]
pub struct Message {
    /// Id and type of the event that it came from.
    pub event_id: String,
    pub event_type: String,
    pub body: Arc<Body>,
    /// The policies that its event took; they format it too, as long as they are there.
    pub revision: u64,
    /// 1, and more where it is tried again after a fault.
    pub attempt: u32,
    shapes: Mutex<IndexMap<Class, Arc<OnceCell<Shaped>>>>,
}

/// What one class of readers sees of a message, or why nothing.
pub type Shaped = Result<Arc<Body>, DropReason>;

/// A policy set's revision, and the values of the attributes that its formatting varies on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Class(u64, Vec<Option<Box<str>>>);

/// As it is asked for: hashes as the owned one does, so that looking costs no allocation.
#[derive(Hash)]
struct ClassRef<'a>(u64, &'a [Option<&'a str>]);

impl Equivalent<Class> for ClassRef<'_> {
    fn equivalent(&self, known: &Class) -> bool {
        self.0 == known.0 && self.1.iter().copied().eq(known.1.iter().map(Option::as_deref))
    }
}

impl Message {
    pub fn new(event_id: String, event_type: String, body: Body, revision: u64) -> Message {
        Message { event_id, event_type, body: Arc::new(body), revision, attempt: 1, shapes: Mutex::default() }
    }

    /// The same message, to be shaped again by these policies.
    pub fn again(&self, revision: u64) -> Message {
        let (event_id, event_type, body) = (self.event_id.clone(), self.event_type.clone(), self.body.clone());
        Message { event_id, event_type, body, revision, attempt: self.attempt + 1, shapes: Mutex::default() }
    }

    /// The place where the shape for one class is kept. Whoever comes first fills it, and formatting never runs twice for one
    /// message and class while it is kept. A class is the values of the attributes that `revision`'s policies vary on.
    pub fn shape(&self, revision: u64, class: &[Option<&str>]) -> Arc<OnceCell<Shaped>> {
        let mut shapes = self.shapes.lock();
        if let Some(shaped) = shapes.get(&ClassRef(revision, class)) {
            return shaped.clone();
        }
        let shaped = Arc::new(OnceCell::new());
        let class = class.iter().map(|value| value.map(Box::from)).collect();
        shapes.insert(Class(revision, class), shaped.clone());
        shaped
    }

    /// Gives back the memory of all shapes. Who reads one now keeps it; who asks later has it made again.
    pub fn forget_shapes(&self) {
        *self.shapes.lock() = IndexMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_one_place_for_its_shape() {
        let message = Message::new("1".into(), "a.b".into(), Body::Text("x".into()), 1);
        let german = message.shape(1, &[Some("de"), None]);
        german.set(Err(DropReason::Formatted)).unwrap();
        assert!(message.shape(1, &[Some("de"), None]).initialized());
        assert!(!message.shape(1, &[Some("hi"), None]).initialized());
        assert!(!message.shape(1, &[None, Some("de")]).initialized());
        assert!(!message.shape(2, &[Some("de"), None]).initialized());
        message.forget_shapes();
        assert!(!message.shape(1, &[Some("de"), None]).initialized());
    }
}
