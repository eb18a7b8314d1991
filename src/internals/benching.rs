//! A server without sockets, whose parts can be timed one by one.

use std::sync::Arc;

use http::header::HeaderMap;

use crate::auth::Auth;
pub use crate::auth::api_keys::{generate as new_key, hex_digest as digest};
use crate::config::{Config, Scope};
use crate::dead_letters::DeadLetters;
use crate::dispatch::{Dispatch, Receipt};
use crate::format::Format;
use crate::http::ingress::cloudevents;
use crate::metrics::Metrics;
use crate::model::mailbox::{Reader, SessionHandle};
use crate::policy::Policy;
use crate::policy::host::Services;
use crate::server;
use crate::types::delivery::{Message, Terms};
use crate::types::event::{Body, Event, UserId};

/// The line from an event to what a session sends, with the plugins of a configuration.
#[derive(Debug)]
pub struct Line {
    config: Arc<Config>,
    services: Arc<Services>,
    dispatch: Dispatch,
    format: Format,
}

/// What asks producers for their keys.
#[derive(Debug)]
pub struct Door(Auth);

impl Door {
    /// # Errors
    /// The configuration's keys are none.
    pub fn new(config: &Config) -> anyhow::Result<Door> {
        Ok(Door(Auth::new(&config.auth, Arc::new(Metrics::new()?))?))
    }

    /// Whether a request with these headers may publish.
    pub fn opens(&self, headers: &HeaderMap) -> bool {
        self.0.permits(headers, Scope::Publish).is_ok()
    }
}

/// One loaded policy.
#[derive(Debug)]
pub struct Loaded(Arc<Policy>);

/// An event as policies take it.
#[derive(Clone, Debug)]
pub struct Published(Event);

/// A message that nobody has formatted yet.
#[derive(Debug)]
pub struct Unshaped(Arc<Message>);

/// An open session.
#[derive(Debug)]
pub struct Device(Reader);

impl Line {
    /// # Errors
    /// A plugin can't be loaded.
    pub async fn new(config: Config) -> anyhow::Result<Line> {
        let config = Arc::new(config);
        let (services, loader) = server::foundations(&config)?;
        let policies = server::load(&loader, &config).await?;
        let dead_letters = Arc::new(DeadLetters::new(config.dead_letters.clone(), services.metrics.clone()));
        let dispatch = Dispatch::new(policies.clone(), services.clone(), dead_letters.clone(), &config.events);
        let format = Format::new(policies, dead_letters, config.mailboxes.shapes_bytes_max);
        Ok(Line { config, services, dispatch, format })
    }

    pub fn policy(&self, name: &str) -> Option<Loaded> {
        self.dispatch.policies.current().find(name).cloned().map(Loaded)
    }

    /// Opens a session with these attributes; nothing is connected to it.
    ///
    /// # Errors
    /// The user id is refused, or the user has too many sessions.
    pub fn connect(&self, user: &str, attributes: Vec<(String, String)>) -> anyhow::Result<Device> {
        let user = UserId::new(user, self.config.sockets.user_id_bytes_max).map_err(anyhow::Error::msg)?;
        let opened = self.services.mailboxes.open(SessionHandle::new(user, None, attributes));
        opened.map(Device).map_err(|close| anyhow::anyhow!("{close:?}"))
    }

    /// Reads an event from a request; a batch counts as its first.
    ///
    /// # Errors
    /// It is none.
    pub fn read(&self, headers: &HeaderMap, body: &[u8]) -> anyhow::Result<Published> {
        let wrong = |problem| anyhow::anyhow!("{problem:?}");
        match cloudevents::read(headers, body, &self.config.events).map_err(wrong)? {
            cloudevents::Request::One(parsed) => Ok(Published(parsed.event)),
            cloudevents::Request::Batch(items) => match items.into_iter().next() {
                Some(first) => Ok(Published(first.map_err(wrong)?.event)),
                None => anyhow::bail!("an empty batch"),
            },
        }
    }

    /// Routes and posts; the number of messages.
    pub fn publish(&self, event: Published) -> usize {
        let Receipt { posted, .. } = self.dispatch.publish(event.0, None);
        posted
    }

    pub fn post(&self, device: &Device, message: &Unshaped) {
        self.services.mailboxes.post(&device.0.handle().user, None, &message.0, &Terms::default());
    }

    /// The bytes that a session sends of a message.
    ///
    /// # Errors
    /// Formatting dropped it.
    pub async fn shape(&self, message: &Unshaped, device: &Device) -> anyhow::Result<usize> {
        let shaped = self.format.shape(&message.0, device.0.handle()).await;
        shaped.map(|body| body.size()).map_err(|reason| anyhow::anyhow!("{reason:?}"))
    }
}

impl Loaded {
    /// # Errors
    /// The policy refused, or faulted.
    pub fn route(&self, event: &Published) -> anyhow::Result<usize> {
        let decision = self.0.route(&event.0).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(decision.deliveries.len())
    }

    /// # Errors
    /// The policy refused, or faulted.
    pub fn format(&self, message: &Unshaped, reader: &[(&str, &str)]) -> anyhow::Result<usize> {
        let shaped = self.0.format(&message.0, &message.0.body, reader).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(shaped.map_or(0, |body| body.size()))
    }
}

impl Unshaped {
    /// # Errors
    /// The text is not JSON.
    pub fn new(event_type: &str, json: &str) -> anyhow::Result<Unshaped> {
        Ok(Unshaped(Arc::new(Message::new("1".into(), event_type.into(), proven(json)?, 1))))
    }
}

impl Device {
    /// Takes all there is, as sent; the number of messages.
    pub fn take(&self) -> usize {
        let mut taken = Vec::new();
        self.0.take(usize::MAX, &mut taken);
        if let Some((seq, _)) = taken.last() {
            self.0.delivered(*seq);
        }
        taken.len()
    }
}

/// What is proven of each body that a guest returns.
///
/// # Errors
/// The text is not JSON.
pub fn proven(json: &str) -> anyhow::Result<Body> {
    Ok(Body::json(json.to_owned())?)
}
