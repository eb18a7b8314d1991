//! Settings: one TOML file and environment variables over the commented defaults in `config/default.toml`.
//!
//! They are read once at the start; nothing else reads the environment, but OpenTelemetry's SDK (`traces`). The defaults and the reason of each
//! limit are in `default.toml`. The types say which settings may be zero: those with a meaning for it, such as "never" or "no limit".

mod auth;
mod candidate;
mod known;
mod load;
mod milliseconds;
mod opentelemetry;
mod origin;
mod policy;
mod recordings;
mod sink;
mod traces;
mod validate;
mod words;

use std::collections::BTreeMap;
use std::net::{AddrParseError, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

pub use auth::{Algorithm, ApiKey, Auth, JwkSet, Scope, Tls, Users};
pub use candidate::{Candidate, Candidates, Mode as CandidateMode};
pub use load::{Layers, Problems, Setting, Source};
pub use milliseconds::{MILLISECONDS_MAX, Milliseconds};
pub use origin::{Authority, Origin, default_port};
pub use policy::{FormattingFault, Grant, Isolation, Limits, OnBad, OnFault, Plugins, Policy, Readers, RoutingFault, SessionsFault};
pub use recordings::Recordings;
pub use sink::{Sink, SinkLimits};
pub use traces::{Ratio, Traces};

/// The defaults, as text: the reference of all settings.
pub const DEFAULTS: &str = include_str!("config/default.toml");

/// The parameter of a socket's query string that may hold a token, and therefore never becomes a session attribute.
pub const TOKEN_PARAMETER: &str = "access_token";

/// Bytes of a policy's or a sink's name, of the name and version that its plugin states, and of an attribute that it varies on.
pub const NAME_BYTES_MAX: usize = 64;

/// Reads an address and a port. `localhost` is 127.0.0.1, whatever the machine's own list of names says.
///
/// # Errors
/// The text is not an address with a port.
pub fn address(text: &str) -> Result<SocketAddr, AddrParseError> {
    match text.split_once(':') {
        Some((host, port)) if host.eq_ignore_ascii_case("localhost") => format!("127.0.0.1:{port}").parse(),
        _ => text.parse(),
    }
}

/// Reads an address as [`address`] does.
fn deserialize_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    address(&String::deserialize(deserializer)?).map_err(|_| serde::de::Error::custom("invalid socket address"))
}

/// TOML has no null, so an empty string stands for no address.
mod empty_is_none {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || super::address(&text).map_err(|_| D::Error::custom("invalid socket address"));
        (!text.is_empty()).then(parse).transpose()
    }

    pub(super) fn serialize<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        address.map(|address| address.to_string()).unwrap_or_default().serialize(serializer)
    }
}

/// All settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where HTTP and WebSocket are served.
    #[serde(deserialize_with = "deserialize_address")]
    pub listen: SocketAddr,
    /// Whether a server without authentication may listen on an address that other machines can reach.
    pub listen_beyond_loopback_without_authentication: bool,
    /// A separate address for operators, if there is one.
    #[serde(with = "empty_is_none")]
    pub operate_listen: Option<SocketAddr>,
    /// The path before `/ws`, `/events`, `/users` and `/policies`; empty or without a slash at its end.
    pub base_path: String,
    /// How long a server that is told to stop goes on serving while it reports that it isn't ready.
    pub stop_notice_ms: Milliseconds<0>,
    /// How long a stop may take after that.
    pub stop_deadline_ms: Milliseconds,
    /// The rate at which a stop closes sockets.
    pub stop_closes_per_second_max: NonZeroU32,
    /// The time over which a stop spreads the reconnecting clients.
    pub stop_return_within_ms: u32,
    /// Threads that serve; 0 for one per core.
    pub worker_threads: usize,
    pub blocking_threads_max: NonZeroUsize,
    /// What is logged, and how.
    pub log: Log,
    /// Who may publish, operate and connect.
    pub auth: Auth,
    /// The server's certificate.
    pub tls: Tls,
    /// Limits on connections and requests.
    pub http: Http,
    /// What outlives the process, and where.
    pub store: Store,
    /// The nodes that serve together.
    pub cluster: Cluster,
    /// Limits on users' sessions.
    pub sockets: Sockets,
    /// Limits on messages that are kept for users.
    pub mailboxes: Mailboxes,
    /// Limits on published events.
    pub events: Events,
    /// Limits on producers' streams.
    pub publish: Publish,
    /// Limits on groups.
    pub groups: Groups,
    /// Limits on dead letters.
    pub dead_letters: DeadLetters,
    /// Limits on the live feed and its observers.
    pub live: Live,
    /// Where spans of requests are sent, and of which.
    pub traces: Traces,
    /// Limits on recordings of policies' calls.
    pub recordings: Recordings,
    /// Limits on calls that candidates make again.
    pub candidates: Candidates,
    /// Where plugins are, and how they are loaded.
    pub plugins: Plugins,
    /// Limits on each policy.
    pub limits: Limits,
    /// The policies' own settings, by name.
    pub policies: BTreeMap<String, Policy>,
    /// Limits on each sink.
    pub sink_limits: SinkLimits,
    /// Backends to which events are posted, by name.
    pub sinks: BTreeMap<String, Sink>,
    /// The same settings one by one, with the source of each.
    #[serde(skip)]
    pub settings: Arc<[Setting]>,
}

/// What is logged, and how.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// For people or for machines.
    pub format: LogFormat,
    /// Lines that are written in a second.
    pub lines_per_second_max: NonZeroU32,
}

/// A severity.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// A log format.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// Limits on connections and requests.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// TCP connections, sockets included.
    pub connections_max: NonZeroUsize,
    /// TCP connections from one address; 0 for no limit.
    pub connections_per_address_max: usize,
    /// TCP connections to `operate_listen`.
    pub operate_connections_max: NonZeroUsize,
    /// Connections that the system holds until they are accepted.
    pub backlog: NonZeroU32,
    /// How long the head of a request may take.
    pub header_deadline_ms: Milliseconds,
    /// How long the body of a request may take.
    pub body_deadline_ms: Milliseconds,
    /// Bytes of all bodies together.
    pub bodies_bytes_max: NonZeroUsize,
    /// Bytes of a request's head.
    pub header_bytes_max: NonZeroUsize,
    /// Header lines of a request.
    pub headers_max: NonZeroUsize,
}

/// What outlives the process, and where.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// What an answer to a producer means.
    pub durability: Durability,
    /// The folder; if empty, systemd's or the user's.
    pub dir: PathBuf,
    /// Bytes that may wait to be stored.
    pub pending_bytes_max: NonZeroUsize,
    /// How long a producer waits for an answer.
    pub commit_deadline_ms: Milliseconds,
    /// Bytes of the disk that are left free; 0 for none.
    pub free_bytes_min: u64,
    /// How often the marks of readers are noted.
    pub marks_interval_ms: Milliseconds,
    /// Bytes of one file of the log.
    pub segment_bytes: NonZeroU64,
}

/// The nodes that serve together.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Addresses of NATS servers; none for a server that is alone.
    pub nats: Vec<String>,
    /// What the nodes' stream and subjects begin with.
    pub name: String,
    /// What this node is called; if empty, as its host.
    pub node: String,
    /// NATS servers that have a copy of the stream.
    pub replicas: NonZeroUsize,
    /// The node's credentials for NATS; if empty, none.
    pub credentials_file: PathBuf,
    /// Certificate authorities that the servers' certificates are checked with; if empty, the system's.
    pub ca_file: PathBuf,
    /// The node's own certificate, if the servers ask for one.
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    /// How often the node that leads is heard of.
    pub beat_ms: Milliseconds,
    /// After this silence, another node leads.
    pub lead_after_ms: Milliseconds,
    /// After this silence, a node has no sessions any more.
    pub gone_after_ms: Milliseconds,
    /// After this time without NATS, a node closes its sockets and begins afresh.
    pub alone_ms: Milliseconds,
    /// How long a node may be behind what is stored.
    pub lag_max_ms: Milliseconds,
    /// How long NATS may take to store a frame before it is sent again.
    pub attempt_deadline_ms: Milliseconds,
    /// How long a node waits for the answer of the one that leads.
    pub ask_deadline_ms: Milliseconds,
    /// How long a client's message waits for a policy of the node that leads.
    pub message_deadline_ms: Milliseconds,
    /// How often a node tells what its readers have read.
    pub reads_interval_ms: Milliseconds,
    /// Requests of other nodes that are handled at a time.
    pub asks_max: NonZeroUsize,
    /// Bytes of the stream after which a snapshot is written, and the stream is cut off.
    pub snapshot_bytes: NonZeroU64,
    /// How long after the snapshot.
    pub cut_after_ms: Milliseconds,
    /// Whether events are taken from NATS, too.
    pub events: bool,
    /// Events that are taken together.
    pub events_batch_max: NonZeroUsize,
    /// Bytes of the events that wait at NATS.
    pub events_bytes_max: NonZeroU64,
    /// After this time without an answer, NATS delivers an event again.
    pub events_again_after_ms: Milliseconds,
}

/// What an answer to a producer means.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The process has it.
    Memory,
    /// The operating system has it.
    Os,
    /// The disk has it.
    Fsync,
}

/// Limits on users' sessions.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// Open sessions in all.
    pub sessions_max: NonZeroUsize,
    /// Open sessions from one address; 0 for no limit.
    pub per_address_max: usize,
    /// Open sessions of one user.
    pub per_user_max: NonZeroUsize,
    /// What happens to a session over `per_user_max`.
    pub too_many: TooMany,
    /// Bytes of a user id, after percent-decoding.
    pub user_id_bytes_max: NonZeroUsize,
    /// Names in the query string that become session attributes.
    pub attributes: Vec<String>,
    /// Bytes of an attribute's value.
    pub attribute_bytes_max: NonZeroUsize,
    /// Bytes of a message from a client.
    pub message_bytes_max: NonZeroUsize,
    /// How long a client may be silent before it is pinged.
    pub ping_interval_ms: Milliseconds,
    /// How long a client may take to answer a ping.
    pub pong_deadline_ms: Milliseconds,
    /// How long a session without messages stays open; 0 for ever.
    pub idle_deadline_ms: Milliseconds<0>,
    /// How long a write may make no progress.
    pub write_deadline_ms: Milliseconds,
    /// Bytes of messages that one write may gather.
    pub write_bytes_max: NonZeroUsize,
    /// How long a resumable session waits for its client's resume.
    pub resume_wait_ms: Milliseconds<0>,
    /// The rate of messages from one client.
    pub messages_per_second_max: NonZeroU32,
    /// The rate of bytes from one client.
    pub bytes_per_second_max: NonZeroU32,
    /// The rate of handshakes in all.
    pub handshakes_per_second_max: NonZeroU32,
    /// How long to wait for the client's half of the closing handshake.
    pub close_deadline_ms: Milliseconds,
}

/// What happens to a user's session over `per_user_max`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum TooMany {
    CloseOldest,
    RefuseNewest,
}

/// Limits on messages that are kept for users.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mailboxes {
    /// Messages in one mailbox.
    pub messages_max: NonZeroUsize,
    /// Bytes of the messages in one mailbox.
    pub bytes_max: NonZeroUsize,
    /// How long a message is kept.
    pub keep_ms: Milliseconds,
    /// How long an empty mailbox is remembered for a client that may resume; 0 remembers none.
    pub resume_ms: Milliseconds<0>,
    /// Messages in all mailboxes.
    pub total_messages_max: NonZeroUsize,
    /// Bytes of the messages in all mailboxes.
    pub total_bytes_max: NonZeroUsize,
    /// Users who have a mailbox.
    pub mailboxes_max: NonZeroUsize,
    /// Bytes of formatted messages that are kept for further readers; 0 keeps none.
    pub shapes_bytes_max: usize,
}

/// Limits on published events.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// Bytes of a request's body.
    pub body_bytes_max: NonZeroUsize,
    /// Bytes of an event's data, and of a message.
    pub event_bytes_max: NonZeroUsize,
    /// Events in a batch.
    pub batch_max: NonZeroUsize,
    /// How long an event with the same source and id counts as published already; 0 for never.
    pub dedup_window_ms: Milliseconds<0>,
    /// Ids that are remembered for that.
    pub dedup_entries_max: NonZeroUsize,
    /// Bytes of what is remembered of published events and their recipients.
    pub receipts_bytes_max: NonZeroUsize,
}

/// Limits on producers' streams.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Streams at a time.
    pub streams_max: NonZeroUsize,
    /// Frames of one stream that may be under way.
    pub credit: NonZeroUsize,
}

/// Limits on groups.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// Bytes of a group's name.
    pub name_bytes_max: NonZeroUsize,
    /// Groups in all.
    pub groups_max: NonZeroUsize,
    /// Members of one group.
    pub members_max: NonZeroUsize,
    /// Memberships in all.
    pub memberships_max: NonZeroUsize,
}

/// Limits on dead letters.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetters {
    /// Dead letters that are kept.
    pub letters_max: NonZeroUsize,
    /// Bytes of the dead letters that are kept.
    pub bytes_max: NonZeroUsize,
}

/// Limits on the live feed and its observers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    /// Observers at a time.
    pub observers_max: NonZeroUsize,
    /// Entries that are kept until the slowest observer has read them.
    pub entries_max: NonZeroUsize,
    /// Bytes of these entries.
    pub bytes_max: NonZeroUsize,
    /// Entries that an observer is sent in a second.
    pub per_second_max: NonZeroU32,
}
