//! What a policy decides, in the host's own types: the recipients, the message, and for how long it matters.

use std::sync::Arc;
use std::time::Duration;

use crate::types::event::{Body, UserId};
use crate::types::origin::Origin;

/// Bytes that a name counts in memory, about.
pub const NAME_BYTES: usize = 64;

/// What a policy wants done, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub joins: Vec<Membership>,
    pub deliveries: Vec<Delivery>,
    pub leaves: Vec<Membership>,
    pub ends: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Membership {
    pub group: String,
    pub user: UserId,
}

/// One message and its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub to: Recipients,
    pub except: Vec<UserId>,
    /// `None` means the event's data.
    pub body: Option<Body>,
    pub terms: Terms,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipients {
    #[serde(rename = "users", serialize_with = "alone")]
    User(UserId),
    Users(Vec<UserId>),
    Group(String),
    Everyone,
    Session {
        user: UserId,
        session: String,
    },
}

impl Decision {
    /// Returns about how many bytes it keeps in memory.
    pub fn size(&self) -> usize {
        let bodies: usize = self.deliveries.iter().filter_map(|delivery| delivery.body.as_ref()).map(Body::size).sum();
        let names: usize = self.deliveries.iter().map(|delivery| delivery.to.names() + delivery.except.len()).sum();
        bodies + (names + self.joins.len() + self.leaves.len() + self.ends.len()) * NAME_BYTES
    }
}

impl Recipients {
    /// Returns how many names it has.
    pub fn names(&self) -> usize {
        match self {
            Recipients::Users(users) => users.len(),
            Recipients::User(_) | Recipients::Group(_) | Recipients::Everyone | Recipients::Session { .. } => 1,
        }
    }
}

/// Writes one user as a list of one.
fn alone<S: serde::Serializer>(user: &UserId, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&[user], serializer)
}

/// How long a message matters, and what may replace it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Terms {
    /// How long the message matters; after that it is dropped.
    pub time_to_live: Option<Duration>,
    /// How long the message is kept for a user who is away. `None` means the server's default, which is also the most.
    pub keep: Option<Duration>,
    /// A newer message with the same key replaces an older one that is still in the mailbox.
    pub collapse_key: Option<Arc<str>>,
    pub priority: Priority,
}

/// Which messages are evicted first when a mailbox is full. It does not change the order of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// What a sessions policy answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub replies: Vec<Body>,
    pub decision: Decision,
    pub drafts: Vec<Draft>,
    pub close: Option<String>,
}

impl Response {
    /// Returns about how many bytes it keeps in memory.
    pub fn size(&self) -> usize {
        let replies: usize = self.replies.iter().map(Body::size).sum();
        replies + self.decision.size() + self.drafts.iter().map(|draft| draft.data.size()).sum::<usize>()
    }
}

/// An event that a sessions policy publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub event_type: String,
    pub subject: Option<String>,
    pub data: Body,
}

/// A policy's refusal of an event, a client's message, a session or a reader.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Refusal {
    pub code: String,
    pub detail: String,
}

/// One message, shared by every mailbox that it was posted to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Id of the event that the message came from; its type is next.
    pub event_id: String,
    pub event_type: String,
    pub body: Arc<Body>,
    /// The policy set that the event took. It also formats the message, unless it has been retired.
    pub policies: PolicySetId,
    pub terms: Terms,
    /// Whether only one session may read it: no other session gets it when that one is gone.
    pub is_for_session: bool,
    /// 1, or more if the message is retried after a fault.
    pub attempt: u32,
    /// That of its event. Not part of what it says.
    #[serde(skip)]
    pub origin: Origin,
}

/// Identifies a policy set by its components and their configuration, in every process alike: the first half of a SHA-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicySetId(pub u128);

impl std::fmt::Display for PolicySetId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl serde::Serialize for PolicySetId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Message {
    /// Returns a message with the default terms.
    pub fn new(event_id: String, event_type: String, body: Body, policies: PolicySetId) -> Message {
        Message {
            event_id,
            event_type,
            body: Arc::new(body),
            policies,
            terms: Terms::default(),
            is_for_session: false,
            attempt: 1,
            origin: Origin::default(),
        }
    }

    pub fn with_origin(self, origin: Origin) -> Message {
        Message { origin, ..self }
    }

    pub fn with(self, terms: Terms) -> Message {
        Message { terms, ..self }
    }

    /// Returns the message as one that these recipients get.
    pub fn to(self, recipients: &Recipients) -> Message {
        Message { is_for_session: matches!(recipients, Recipients::Session { .. }), ..self }
    }

    /// Returns the same message for another attempt, to be formatted by these policies. Its time and trace are over.
    pub fn again(&self, policies: PolicySetId) -> Message {
        Message { policies, attempt: self.attempt + 1, origin: Origin::default(), ..self.clone() }
    }
}
