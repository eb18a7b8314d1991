//! The link to NATS: the connection, the stream, and what is asked of them. Nothing newer than NATS 2.9 is used.
//!
//! A frame is `format u8`, and then a frame as the log's segments have it (`store::frame`), with the number of the frame before it plus one,
//! and the term of the node that wrote it.
//!
//! Frames are fenced by the sequence that their writer expects, which needs that it has one under way only. `Nats-Expected-Last-Msg-Id` is
//! never sent: a wrong one stops a replicated stream of nats-server 2.15.1 for good.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::client::{Request, RequestErrorKind};
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;

use crate::config;
use crate::store::codec;
use crate::store::frame::{self, FRAME_HEAD_BYTES};

/// A reader refuses a later format. Nodes write the one that all of them read: see docs/cluster.md, "Upgrades".
const FORMAT: u8 = 1;

/// The versions of NATS that are supported: from this one on, and all that are newer, but for 2.13 and the first of 2.12.
const SUPPORTED: &str = "2.12.7, 2.14 and newer";

/// How long the server remembers the ids of frames. Above any pause after which a frame is sent again.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How long a request of JetStream's administration may take.
pub(super) const API_DEADLINE: Duration = Duration::from_secs(5);

/// JetStream's code for a frame whose writer expected another sequence.
const WRONG_LAST_SEQUENCE: u64 = 10071;

/// The pause before NATS is tried again, at most.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Link {
    pub client: Client,
    pub(super) context: Context,
    pub(super) name: String,
}

/// A frame of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framed<'a> {
    /// Its sequence, as its writer expected it.
    pub number: u64,
    pub term: u64,
    pub records: &'a [u8],
}

/// The outcome of an attempt to write a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// With its sequence.
    Stored(u64),
    /// The writer expected another sequence: somebody else has written.
    Refused,
    /// It may be stored.
    Unanswered(String),
}

/// How much the stream has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub first: u64,
    /// 0 if nothing was ever written.
    pub last: u64,
    pub bytes: u64,
}

/// Why a frame can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("it was written by a later version of Signalpost (format {0}): start that version")]
    Format(u8),
    #[error("it is damaged, or was not written by Signalpost: nobody else may publish to the stream's subject")]
    Damaged,
    #[error(transparent)]
    Unreadable(#[from] codec::Unreadable),
}

/// Returns a frame with these records, as it is written.
pub fn framed(records: &[u8], number: u64, term: u64) -> Bytes {
    let mut frame = vec![0; FRAME_HEAD_BYTES];
    frame.extend_from_slice(records);
    frame::seal(&mut frame, number, term, u32::from(FORMAT));
    frame.insert(0, FORMAT);
    frame.into()
}

/// Reads a frame.
///
/// # Errors
/// It is of another format, or is not one.
pub fn read(payload: &[u8]) -> Result<Framed<'_>, FrameError> {
    match payload.split_first() {
        Some((&FORMAT, rest)) => {
            let frame = frame::read(rest, 0, u32::from(FORMAT)).filter(|frame| frame.end == rest.len()).ok_or(FrameError::Damaged)?;
            Ok(Framed { number: frame.number, term: frame.began, records: frame.records })
        }
        Some((format, _)) if *format > FORMAT => Err(FrameError::Format(*format)),
        _ => Err(FrameError::Damaged),
    }
}

impl Link {
    /// Connects, and waits until that is done. Makes the stream, if it is not there.
    ///
    /// # Errors
    /// The settings can't be used, or the servers refuse them.
    pub async fn open(config: &config::Cluster) -> anyhow::Result<Link> {
        let client = connect(config).await?;
        warn_of_version(&client.server_info().version);
        let mut context = jetstream::new(client.clone());
        context.set_timeout(API_DEADLINE);
        let link = Link { client, context, name: config.name.clone() };
        let mut has_said = false;
        loop {
            match link.make_streams(config).await {
                Ok(()) => return Ok(link),
                Err(error) if has_said => tracing::debug!("the stream {} can't be used yet: {error:#}", link.stream()),
                Err(error) => {
                    has_said = true;
                    tracing::warn!("the stream {} can't be used yet, and is tried again: {error:#}", link.stream());
                }
            }
            tokio::time::sleep(RECONNECT_PAUSE_MAX).await;
        }
    }

    /// Returns JetStream.
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    async fn make_streams(&self, config: &config::Cluster) -> anyhow::Result<()> {
        self.make_stream(config, self.stream(), "log", "Signalpost's log: only the node that leads may publish to it").await?;
        self.make_stream(config, self.snapshots(), "snapshot", "Signalpost's snapshots of its log").await?;
        self.make_stream(config, self.components(), "plugin.*", "The plugins of Signalpost's nodes").await
    }

    async fn make_stream(&self, config: &config::Cluster, name: String, subject: &str, description: &str) -> anyhow::Result<()> {
        let replicas = config.replicas.get();
        let wanted = StreamConfig {
            name: name.clone(),
            subjects: vec![self.subject(subject)],
            num_replicas: replicas,
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            duplicate_window: DUPLICATE_WINDOW,
            description: Some(description.to_owned()),
            ..StreamConfig::default()
        };
        let mut stream = self.context.get_or_create_stream(wanted).await?;
        let info = stream.info().await?;
        if info.config.num_replicas != replicas {
            tracing::warn!(
                "the stream {name} has {} replicas, and cluster.replicas is {replicas}: change one (`nats stream edit`)",
                info.config.num_replicas
            );
        }
        Ok(())
    }

    /// Returns the name of the stream.
    pub fn stream(&self) -> String {
        format!("{}_LOG", self.name)
    }

    /// Returns the name of the stream with the snapshots.
    fn snapshots(&self) -> String {
        format!("{}_SNAPSHOTS", self.name)
    }

    /// Writes a frame of a snapshot, and returns its sequence.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn keep(&self, frame: Bytes) -> anyhow::Result<u64> {
        Ok(self.context.publish(self.subject("snapshot"), frame).await?.await?.sequence)
    }

    /// Returns the frames of all snapshots, in order.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn snapshot_frames(&self) -> anyhow::Result<Vec<Bytes>> {
        let stream = self.context.get_stream_no_info(self.snapshots()).await?;
        let state = stream.get_info().await?.state;
        let (last, messages) = (state.last_sequence, state.messages);
        let mut found = Vec::new();
        if messages == 0 {
            return Ok(found);
        }
        let config = push::OrderedConfig { deliver_subject: self.client.new_inbox(), ..push::OrderedConfig::default() };
        let mut frames = stream.create_consumer(config).await?.messages().await?;
        loop {
            let next = tokio::time::timeout(API_DEADLINE, frames.next()).await.context("the snapshots don't come")?;
            let frame = next.context("the snapshots break off")??;
            let sequence = frame.info().map_err(|error| anyhow::anyhow!("{error}"))?.stream_sequence;
            found.push(frame.payload.clone());
            if sequence >= last {
                return Ok(found);
            }
        }
    }

    /// Removes the frames of snapshots before this one.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn forget_snapshots_before(&self, sequence: u64) -> anyhow::Result<()> {
        // NATS 2.9.10 removes everything when it is asked to remove what is before the first one.
        if sequence <= 1 {
            return Ok(());
        }
        self.context.get_stream_no_info(self.snapshots()).await?.purge().sequence(sequence).await?;
        Ok(())
    }

    /// Removes the frames of the log up to this one.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn cut_off(&self, upto: u64) -> anyhow::Result<()> {
        self.context.get_stream_no_info(self.stream()).await?.purge().sequence(upto + 1).await?;
        Ok(())
    }

    /// Returns a subject of these nodes.
    pub fn subject(&self, what: &str) -> String {
        format!("{}.{what}", self.name)
    }

    /// Writes a frame, once: with the same id, it is stored at most once.
    pub async fn write(&self, frame: Bytes, expected: u64, id: &str, deadline: Duration) -> Written {
        #[derive(Deserialize)]
        struct Answer {
            seq: Option<u64>,
            error: Option<Refusal>,
        }
        #[derive(Deserialize)]
        struct Refusal {
            #[serde(default)]
            err_code: u64,
            #[serde(default)]
            description: String,
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        headers.insert("Nats-Expected-Last-Sequence", expected.to_string().as_str());
        let request = Request::new().headers(headers).payload(frame).timeout(Some(deadline));
        // The client's own queue may be full while it is not connected.
        let answered = match tokio::time::timeout(deadline, self.client.send_request(self.subject("log"), request)).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Written::Unanswered(error.to_string()),
            Err(_) => return Written::Unanswered("no answer in time".to_owned()),
        };
        match serde_json::from_slice::<Answer>(&answered.payload) {
            Ok(Answer { error: Some(error), .. }) if error.err_code == WRONG_LAST_SEQUENCE => Written::Refused,
            Ok(Answer { error: Some(error), .. }) => Written::Unanswered(error.description),
            Ok(Answer { seq: Some(sequence), .. }) => Written::Stored(sequence),
            _ => Written::Unanswered("an answer that JetStream does not give".to_owned()),
        }
    }

    /// Returns how much the stream has.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn extent(&self) -> anyhow::Result<Extent> {
        let state = self.context.get_stream_no_info(self.stream()).await?.get_info().await?.state;
        Ok(Extent { first: state.first_sequence, last: state.last_sequence, bytes: state.bytes })
    }

    /// Returns the frame with this sequence.
    ///
    /// # Errors
    /// It is not there, or JetStream's.
    pub async fn frame(&self, sequence: u64) -> anyhow::Result<Bytes> {
        Ok(self.context.get_stream_no_info(self.stream()).await?.get_raw_message(sequence).await?.payload)
    }

    /// Reads the stream from this sequence on, in order.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn frames(&self, first: u64) -> anyhow::Result<push::Ordered> {
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first },
            ..push::OrderedConfig::default()
        };
        let stream = self.context.get_stream_no_info(self.stream()).await?;
        Ok(stream.create_consumer(config).await?.messages().await?)
    }

    /// Asks a node, and returns its answer; `None` if nobody listens to the subject, so that nothing was done.
    ///
    /// # Errors
    /// There is no answer, so that it may have been done.
    pub async fn ask(&self, subject: String, ask: Bytes, deadline: Duration) -> Result<Option<Bytes>, String> {
        let request = Request::new().payload(ask).timeout(Some(deadline));
        match tokio::time::timeout(deadline, self.client.send_request(subject, request)).await {
            Ok(Ok(answered)) => Ok(Some(answered.payload)),
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    /// Listens to a subject.
    ///
    /// # Errors
    /// The client's.
    pub async fn listen(&self, subject: String) -> anyhow::Result<Subscriber> {
        Ok(self.client.subscribe(subject).await?)
    }

    /// Tells whoever listens.
    pub async fn tell(&self, subject: String, message: Bytes) {
        // Said again soon.
        let _ = self.client.publish(subject, message).await;
    }

    /// Returns whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Returns the bytes of a message that the servers take.
    pub fn message_bytes_max(&self) -> usize {
        self.client.max_payload()
    }
}

async fn connect(config: &config::Cluster) -> anyhow::Result<Client> {
    let is_set = |file: &Path| !file.as_os_str().is_empty();
    let mut options = ConnectOptions::new()
        .name(format!("signalpost {}", config.name))
        .connection_timeout(API_DEADLINE)
        .ping_interval(Duration::from_secs(2))
        .reconnect_delay_callback(|attempts| {
            let pause = Duration::from_millis(50).saturating_mul(u32::try_from(attempts).unwrap_or(u32::MAX));
            pause.min(RECONNECT_PAUSE_MAX)
        })
        .event_callback(|event| async move {
            match event {
                Event::Connected => tracing::info!("connected to NATS"),
                Event::Disconnected => tracing::warn!("the connection to NATS is lost, and is made again"),
                Event::SlowConsumer(_) => tracing::warn!("NATS sends faster than this node reads"),
                Event::LameDuckMode => tracing::info!("the NATS server is going to stop: another one is used"),
                other => tracing::info!("NATS: {other}"),
            }
        });
    if is_set(&config.credentials_file) {
        let file = config.credentials_file.display();
        options = options.credentials_file(&config.credentials_file).await.with_context(|| format!("cluster.credentials_file {file}"))?;
    }
    if is_set(&config.ca_file) {
        options = options.add_root_certificates(config.ca_file.clone());
    }
    if is_set(&config.certificate_file) {
        options = options.add_client_certificate(config.certificate_file.clone(), config.key_file.clone());
    }
    if config.nats.iter().any(|address| address.starts_with("tls://")) {
        options = options.require_tls(true);
    }
    let servers = config.nats.join(", ");
    let mut has_said = false;
    loop {
        match options.clone().connect(config.nats.as_slice()).await {
            Ok(client) => {
                tracing::info!("NATS {} at {servers}", client.server_info().version);
                return Ok(client);
            }
            Err(error) if has_said => tracing::debug!("NATS can't be reached at {servers}: {error}"),
            Err(error) => {
                has_said = true;
                tracing::warn!("NATS can't be reached at {servers} (cluster.nats), and is tried again: {error}");
            }
        }
        tokio::time::sleep(RECONNECT_PAUSE_MAX).await;
    }
}

/// Says what an older server lacks.
fn warn_of_version(version: &str) {
    if !is_supported(version) {
        tracing::warn!(
            "NATS {version} is older than what is supported ({SUPPORTED}): it has known defects that lose acked writes when servers fail, and \
             below 2.10.23 it can't flush each write (sync_interval)"
        );
    }
}

fn is_supported(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (2, 12, patch) => patch >= 7,
        (2, 13, _) => false,
        (2, minor, _) => minor > 13,
        (major, ..) => major > 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_no_bit_of_it_may_change() {
        let written = framed(b"records", 7, 3);
        assert_eq!(read(&written), Ok(Framed { number: 7, term: 3, records: b"records" }));
        for bit in 0..written.len() * 8 {
            let mut flipped = written.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped).is_err(), "bit {bit}");
        }
        assert_eq!(read(&[written.as_ref(), b"x"].concat()), Err(FrameError::Damaged));
        assert_eq!(read(b""), Err(FrameError::Damaged));
        let mut later = written.to_vec();
        later[0] = FORMAT + 1;
        assert_eq!(read(&later), Err(FrameError::Format(FORMAT + 1)));
    }

    #[test]
    fn the_versions_that_are_supported() {
        let supported = ["2.12.7", "2.12.10", "2.14.0", "2.15.1", "2.20.0-beta.1", "3.0.0"];
        assert!(supported.into_iter().all(is_supported));
        assert!(!["2.9.10", "2.10.27", "2.12.6", "2.13.4", "1.4.0", "x"].into_iter().any(is_supported));
    }
}
