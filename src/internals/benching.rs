//! A server without sockets, whose parts can be timed one by one.

use std::sync::Arc;

use http::header::HeaderMap;
use parking_lot::Mutex;

use crate::auth::Auth;
pub use crate::auth::api_keys::{generate as new_key, hex_digest as digest};
use crate::config::{Config, Scope};
use crate::http::ingress::cloudevents;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::mailbox::{Batch, Page, Reader};
use crate::model::record::Changes;
use crate::model::world::World;
use crate::node::{Foundations, Node};
use crate::policy::Policy;
use crate::registry::SessionHandle;
use crate::types::clock::Clock;
use crate::types::delivery::{Message, PolicySetId};
use crate::types::event::{Body, Event, UserId};

/// All steps from an event to the bytes that a session sends, with the plugins of a configuration.
#[derive(Debug)]
pub struct Line(Arc<Node>);

/// Checks producers' API keys.
#[derive(Debug)]
pub struct Door(Auth);

impl Door {
    /// # Errors
    /// The configuration's keys are invalid.
    pub fn new(config: &Config) -> anyhow::Result<Door> {
        Ok(Door(Auth::new(&config.auth, Arc::new(Metrics::new()?))?))
    }

    /// Returns whether a request with these headers may publish.
    pub fn opens(&self, headers: &HeaderMap) -> bool {
        self.0.permits(headers, Scope::Publish).is_ok()
    }
}

/// One loaded policy.
#[derive(Debug)]
pub struct Loaded(Arc<Policy>, Arc<Model>);

/// An event that policies can be called with.
#[derive(Clone, Debug)]
pub struct Published(Event);

/// A message before formatting.
#[derive(Debug)]
pub struct Unshaped(Arc<Message>);

/// An open session.
#[derive(Debug)]
pub struct Device {
    handle: Arc<SessionHandle>,
    reader: Mutex<Reader>,
}

impl Line {
    /// # Errors
    /// A plugin can't be loaded.
    pub async fn new(config: Config) -> anyhow::Result<Line> {
        Ok(Line(Foundations::new(Arc::new(config), Clock::Machine)?.load().await?))
    }

    pub fn policy(&self, name: &str) -> Option<Loaded> {
        Some(Loaded(self.0.policies.current().find(name)?.clone(), self.0.model.clone()))
    }

    /// Opens a session with these attributes, without a socket.
    ///
    /// # Errors
    /// The user id is refused, or the user has too many sessions.
    pub fn connect(&self, user: &str, attributes: Vec<(String, String)>) -> anyhow::Result<Device> {
        let user = UserId::new(user, self.0.config.sockets.user_id_bytes_max.get()).map_err(anyhow::Error::msg)?;
        let opened = self.0.model.mailboxes.open(SessionHandle::new(user, None, false, attributes));
        let admitted = opened.and_then(|mut reader| reader.admit().map(|()| reader));
        admitted
            .map(|reader| Device { handle: reader.handle().clone(), reader: Mutex::new(reader) })
            .map_err(|close| anyhow::anyhow!("{close:?}"))
    }

    /// Reads an event from a request; of a batch, the first event.
    ///
    /// # Errors
    /// The request is not an event.
    pub fn read(&self, headers: &HeaderMap, body: &[u8]) -> anyhow::Result<Published> {
        let wrong = |problem| anyhow::anyhow!("{problem:?}");
        match cloudevents::read(headers, body, &self.0.config.events).map_err(wrong)? {
            cloudevents::Request::One(parsed) => Ok(Published(parsed.event)),
            cloudevents::Request::Batch(items) => match items.into_iter().next() {
                Some(first) => Ok(Published(first.map_err(wrong)?.event)),
                None => anyhow::bail!("an empty batch"),
            },
        }
    }

    /// Routes an event and posts its messages. Returns their number.
    pub fn publish(&self, event: Published) -> usize {
        self.0.dispatch.publish(event.0, false).map_or(0, |(story, _)| story.receipt.posted)
    }

    pub fn post(&self, device: &Device, message: &Unshaped) {
        self.0.model.mailboxes.post(&device.handle.user, None, &message.0, &mut Changes::forgotten());
    }

    /// Formats a message, and returns the number of its bytes.
    ///
    /// # Errors
    /// Formatting dropped it.
    pub async fn shape(&self, message: &Unshaped, device: &Device) -> anyhow::Result<usize> {
        let shaped = self.0.format.shape(&message.0, &device.handle).await;
        shaped.map(|body| body.size()).map_err(|reason| anyhow::anyhow!("{reason:?}"))
    }
}

impl Loaded {
    /// # Errors
    /// The policy refused, or faulted.
    pub fn route(&self, event: &Published) -> anyhow::Result<usize> {
        let decision = self.0.route(&event.0, &mut World::live(&self.1)).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(decision.deliveries.len())
    }

    /// # Errors
    /// The policy refused, or faulted.
    pub fn format(&self, message: &Unshaped, reader: &[(&str, &str)]) -> anyhow::Result<usize> {
        let shaped =
            self.0.format(&message.0, &message.0.body, reader, &mut World::live(&self.1)).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(shaped.map_or(0, |body| body.size()))
    }
}

impl Unshaped {
    /// # Errors
    /// The text is not JSON.
    pub fn new(event_type: &str, json: &str) -> anyhow::Result<Unshaped> {
        Ok(Unshaped(Arc::new(Message::new("1".into(), event_type.into(), proven(json)?, PolicySetId::default()))))
    }
}

impl Device {
    /// Reads everything in the mailbox as if it were sent. Returns the number of messages.
    pub fn take(&self) -> usize {
        let mut taken = Batch::new();
        let mut reader = self.reader.lock();
        if let Page::More { upto } | Page::End { upto } = reader.page(usize::MAX, &mut taken) {
            reader.advance(upto);
            reader.written();
        }
        taken.len()
    }
}

/// Validates a body as one that a guest returns.
///
/// # Errors
/// The text is not JSON.
pub fn proven(json: &str) -> anyhow::Result<Body> {
    Ok(Body::json(json.to_owned())?)
}
