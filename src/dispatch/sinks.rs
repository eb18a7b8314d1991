//! Sinks hear events: an event that a sink's configuration names is posted to the sink's mailbox, in the same commit as what policies decided
//! about it. `sink` reads those mailboxes.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use serde::Serialize;

use crate::config::Config;
use crate::metrics::{Metrics, SinkEvent};
use crate::model::Model;
use crate::model::dead_letters::DeadLetter;
use crate::model::mailbox::Posted;
use crate::model::record::Changes;
use crate::types::delivery::{Message, PolicySetId};
use crate::types::drop_reason::DropReason;
use crate::types::event::{self, Body, Event, SERVER, UserId};
use crate::types::origin::Origin;
use crate::types::pattern::any_matches;
use crate::types::time::rfc3339;

/// What the sources of policies' events begin with.
pub const POLICIES: &str = "/policies/";

/// What each sink hears. The configuration may change it while the server runs.
#[derive(Debug)]
pub struct Sinks(ArcSwap<Ears>);

#[derive(Debug)]
struct Ears {
    all: Vec<Hearing>,
    /// Which of the server's own events any of them hears.
    own: [bool; Own::ALL.len()],
}

/// An event of the server's own. It is made only if a sink hears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    SessionOpened,
    SessionClosed,
    MessageExpired,
}

/// Who made an event. Its source alone doesn't tell: a producer may write anything there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    Producer,
    /// A policy, or the server itself.
    Server,
}

#[derive(Debug)]
struct Hearing {
    name: Arc<str>,
    user: UserId,
    events: Vec<String>,
    sources: Vec<String>,
    heard: IntCounter,
    overflowed: IntCounter,
}

impl Own {
    const ALL: [Own; 3] = [Own::SessionOpened, Own::SessionClosed, Own::MessageExpired];

    fn event_type(self) -> &'static str {
        match self {
            Own::SessionOpened => "signalpost.session.opened",
            Own::SessionClosed => "signalpost.session.closed",
            Own::MessageExpired => event::MESSAGE_EXPIRED,
        }
    }
}

impl Ears {
    fn new(config: &Config, metrics: &Metrics) -> Ears {
        let hearing = |name: &String, sink: &crate::config::Sink| Hearing {
            name: name.as_str().into(),
            user: UserId::of_sink(name),
            events: sink.events.clone(),
            sources: sink.sources.clone(),
            heard: metrics.sink_event(name, SinkEvent::Heard),
            overflowed: metrics.sink_event(name, SinkEvent::Overflowed),
        };
        let all: Vec<Hearing> = config.sinks.iter().map(|(name, sink)| hearing(name, sink)).collect();
        let own = Own::ALL.map(|own| all.iter().any(|sink| sink.hears(own.event_type(), SERVER, Maker::Server)));
        Ears { all, own }
    }

    fn find(&self, sink: &str) -> Option<&Hearing> {
        self.all.iter().find(|known| *known.name == *sink)
    }
}

impl Sinks {
    pub fn new(config: &Config, metrics: &Metrics) -> Sinks {
        Sinks(ArcSwap::from_pointee(Ears::new(config, metrics)))
    }

    /// Follows another configuration.
    pub fn follow(&self, config: &Config, metrics: &Metrics) {
        self.0.store(Arc::new(Ears::new(config, metrics)));
    }

    /// Returns whether any sink hears this event of the server's own.
    pub fn hears(&self, own: Own) -> bool {
        self.0.load().own.get(own as usize).copied().unwrap_or_default()
    }

    /// Posts an event to each sink that hears it. An event for which a sink has no room becomes a dead letter.
    pub fn post(&self, model: &Model, event: &Event, maker: Maker, changes: &mut Changes) {
        let mut message = None;
        for sink in self.0.load().all.iter().filter(|sink| sink.hears(&event.event_type, &event.source, maker)) {
            // Written once for all of them.
            let message = message.get_or_insert_with(|| Arc::new(written(event)));
            sink.heard.inc();
            sink.take(model, message, changes);
        }
    }

    pub fn has(&self, sink: &str) -> bool {
        self.0.load().find(sink).is_some()
    }

    /// Posts the event of a dead letter to its sink again. `None` if there is no such sink any more.
    pub fn again(&self, model: &Model, sink: &str, message: &Message, changes: &mut Changes) -> Option<Posted> {
        let ears = self.0.load();
        let sink = ears.find(sink)?;
        Some(sink.take(model, &Arc::new(message.again(message.policies)), changes))
    }
}

impl Hearing {
    fn hears(&self, event_type: &str, source: &str, maker: Maker) -> bool {
        let is_pretended = maker == Maker::Producer && (source == SERVER || source.starts_with(POLICIES));
        !is_pretended && any_matches(&self.events, event_type) && any_matches(&self.sources, source)
    }

    fn take(&self, model: &Model, message: &Arc<Message>, changes: &mut Changes) -> Posted {
        let posted = model.mailboxes.post(&self.user, None, message, changes);
        if let Posted::Dropped(reason) = posted {
            self.overflowed.inc();
            let reason = match reason {
                DropReason::MailboxFull => "too much waits for the sink (messages_max, bytes_max in its limits)",
                _ => "all mailboxes together are full (mailboxes.total_messages_max, total_bytes_max, mailboxes_max)",
            };
            model.dead_letters.keep(DeadLetter::undelivered(self.name.clone(), message.clone(), reason), changes);
        }
        posted
    }
}

/// Returns an event of the server's own about a user.
pub fn own_event(own: Own, user: &UserId, data: &impl Serialize) -> Event {
    Event {
        id: event::new_event_id(),
        source: SERVER.to_owned(),
        event_type: own.event_type().to_owned(),
        subject: Some(user.to_string()),
        time: Some(rfc3339(SystemTime::now())),
        content_type: "application/json".to_owned(),
        extensions: Vec::new(),
        // Structs of strings, numbers and JSON that was checked: writing them can't fail.
        data: serde_json::to_string(data).ok().map(Body::Json),
        origin: Origin::default(),
    }
}

/// Returns the message that holds an event, as the structured JSON form of CloudEvents.
fn written(event: &Event) -> Message {
    // An event is strings and JSON that was checked: writing it can't fail.
    let text = serde_json::to_string(event).unwrap_or_default();
    Message::new(event.id.clone(), event.event_type.clone(), Body::Json(text), PolicySetId::default())
}
