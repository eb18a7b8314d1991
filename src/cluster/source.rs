//! Events from NATS: CloudEvents that producers publish to a subject, which a stream of their own keeps until what the node that leads has
//! decided about them is stored. At least once: an event that comes again is a duplicate, as over HTTP.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::sleep;

use super::link::Link;
use super::member::{Answering, Member, NATS_PAUSE};
use crate::config;

/// What the consumer is called, which is the same for whoever leads.
const CONSUMER: &str = "signalpost";

/// How long one request for events stays at NATS. A leader that has died is not sent events for longer than this.
const ASKED_FOR: Duration = Duration::from_secs(5);

/// The pause before NATS delivers events again that could not be stored.
const LATER: Duration = Duration::from_secs(1);

/// An event as NATS has delivered it.
#[derive(Clone, Debug)]
pub struct Taken {
    pub headers: HeaderMap,
    pub payload: Bytes,
    /// Identifies the message, also if it is delivered again: the id of an event that has none.
    pub id: String,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What was decided about it is stored.
    Published,
    /// It can't be read, or no policy wants it: it is a dead letter.
    Untaken,
    /// Nothing can be stored now.
    Later,
}

impl Fate {
    fn name(self) -> &'static str {
        match self {
            Fate::Published => "published",
            Fate::Untaken => "untaken",
            Fate::Later => "later",
        }
    }
}

impl Taken {
    fn of(message: &async_nats::jetstream::Message) -> Taken {
        // Nobody else than JetStream publishes to a consumer's inbox.
        let id =
            message.info().map(|info| format!("{}-{}", info.stream_sequence, info.published.unix_timestamp_nanos())).unwrap_or_default();
        Taken { headers: message.headers.as_ref().map(headers).unwrap_or_default(), payload: message.payload.clone(), id }
    }
}

/// Returns the headers that HTTP has, too. The others say nothing of an event.
fn headers(given: &async_nats::HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in given.iter() {
        let Ok(name) = HeaderName::from_bytes(AsRef::<[u8]>::as_ref(name)) else { continue };
        for value in values {
            if let Ok(value) = HeaderValue::from_str(value.as_str()) {
                headers.append(name.clone(), value);
            }
        }
    }
    headers
}

impl Link {
    /// Returns the consumer of the events. Makes it, and their stream, if they are not there.
    async fn events(&self, config: &config::Cluster) -> anyhow::Result<PullConsumer> {
        let stream = self.context().get_or_create_stream(StreamConfig {
            name: format!("{}_EVENTS", config.name),
            subjects: vec![self.subject("events")],
            num_replicas: config.replicas.get(),
            storage: StorageType::File,
            // An event is removed when it is acked.
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            max_bytes: i64::try_from(config.events_bytes_max.get()).unwrap_or(i64::MAX),
            description: Some("Events for Signalpost".to_owned()),
            ..StreamConfig::default()
        });
        let consumer = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: *config.events_again_after_ms,
            max_ack_pending: i64::try_from(config.events_batch_max.get()).unwrap_or(i64::MAX),
            ..pull::Config::default()
        };
        Ok(stream.await?.get_or_create_consumer(CONSUMER, consumer).await?)
    }
}

impl Member {
    /// Takes events from NATS, again and again.
    pub(super) async fn take_events(self: Arc<Member>, answering: Answering) {
        let mut has_said = false;
        loop {
            match self.link.events(&self.config).await {
                Ok(consumer) => {
                    has_said = false;
                    if let Err(error) = self.take_from(&consumer, &answering).await {
                        tracing::warn!("events can't be taken from NATS, and are asked for again: {error:#}");
                    }
                }
                Err(error) if has_said => tracing::debug!("the stream of events can't be used yet: {error:#}"),
                Err(error) => {
                    has_said = true;
                    tracing::warn!("the stream of events can't be used yet, and is tried again: {error:#}");
                }
            }
            sleep(NATS_PAUSE).await;
        }
    }

    /// Takes the events of one request, as many together as have come.
    async fn take_from(&self, consumer: &PullConsumer, answering: &Answering) -> anyhow::Result<()> {
        let most = self.config.events_batch_max.get();
        loop {
            let asked = consumer.batch().max_messages(most).expires(ASKED_FOR).messages().await?;
            let mut asked = asked.ready_chunks(most);
            while let Some(chunk) = asked.next().await {
                let messages = chunk.into_iter().collect::<Result<Vec<_>, _>>().map_err(|error| anyhow::anyhow!("{error}"))?;
                let fates = answering.0.publish(messages.iter().map(Taken::of).collect()).await;
                for (message, fate) in messages.iter().zip(&fates) {
                    self.metrics.cluster_events.with_label_values(&[fate.name()]).inc();
                    let kind = if *fate == Fate::Later { AckKind::Nak(Some(LATER)) } else { AckKind::Ack };
                    // If it is lost, the event is delivered again, and is a duplicate.
                    message.ack_with(kind).await.map_err(|error| anyhow::anyhow!("{error}"))?;
                }
                if fates.contains(&Fate::Later) {
                    sleep(LATER).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_nats_are_read_as_those_of_http() {
        let mut given = async_nats::HeaderMap::new();
        given.insert("ce-id", "1");
        given.insert("Content-Type", "application/json");
        given.insert("ce-subject", "S\u{fc}d");
        let headers = headers(&given);
        assert_eq!(headers.get("ce-id").unwrap(), "1");
        assert_eq!(headers.get("content-type").unwrap(), "application/json");
        assert_eq!(headers.len(), 3);
    }
}
