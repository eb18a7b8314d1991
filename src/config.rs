//! Settings: one TOML file and environment variables over the commented defaults in `config/default.toml`.
//!
//! They are read once at the start; nothing else reads the environment. The defaults and the reason of each limit are in
//! `default.toml`. The types say which settings may be zero: those with a meaning for it, such as "never" or "no limit".

mod known;
mod load;
mod milliseconds;
mod origin;
mod sink;
mod validate;
mod words;

use std::collections::BTreeMap;
use std::net::{AddrParseError, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

pub use load::{Layers, Problems, Setting, Source};
pub use milliseconds::{MILLISECONDS_MAX, Milliseconds};
pub use origin::{Authority, Origin, default_port};
pub use sink::{Sink, SinkLimits};

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
    /// Limits on groups.
    pub groups: Groups,
    /// Limits on dead letters.
    pub dead_letters: DeadLetters,
    /// Limits on those who look at what happens.
    pub live: Live,
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

/// Who may publish, operate and connect.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// API keys of producers and operators.
    pub keys: Vec<ApiKey>,
    /// Origins of web pages that may use this server besides its own.
    pub origins: Vec<String>,
    /// Whether pages of this machine may use this server, whatever their port. Not a setting: `signalpost dev` lets them.
    #[serde(skip)]
    pub pages_of_localhost: bool,
    /// Users' tokens.
    pub users: Users,
}

/// A key that a producer or an operator shows. Only its digest is known.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Names the key in the log.
    pub name: String,
    /// The digest of the key, as 64 hexadecimal digits.
    pub sha256: String,
    /// What the key's holder may do.
    pub scopes: Vec<Scope>,
}

/// A permission of an API key's holder.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Publish,
    Read,
    Operate,
}

/// Users' tokens (JWT).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// The signature algorithms that are accepted. Without any, users need no token.
    pub algorithms: Vec<Algorithm>,
    /// Files with keys: public keys in PEM, JWK sets, or secrets.
    pub key_files: Vec<PathBuf>,
    /// JWK sets that issuers publish.
    pub jwks: Vec<JwkSet>,
    /// How often each set is fetched.
    pub jwks_interval_ms: Milliseconds,
    /// The least time between two fetches of a set.
    pub jwks_pause_ms: Milliseconds,
    /// Accepted issuers (`iss`); empty accepts any.
    pub issuers: Vec<String>,
    /// Accepted audiences (`aud`); empty accepts any.
    pub audiences: Vec<String>,
    /// Accepted types (`typ`), "" for a token without one; an empty list accepts any.
    pub token_types: Vec<String>,
    /// The tolerated difference between clocks, in seconds.
    pub leeway_s: u64,
    /// The claim that names the user.
    pub user_claim: String,
    /// Claims that become session attributes.
    pub claims: Vec<String>,
    /// Whether a token in the query string is accepted.
    pub token_in_query: bool,
    /// How long a socket without a token in its handshake may take to send one.
    pub first_frame_deadline_ms: Milliseconds,
    /// Bytes of that frame.
    pub first_frame_bytes_max: NonZeroUsize,
    /// How long a session outlives its token.
    pub expiry_grace_ms: Milliseconds<0>,
}

/// Keys that an issuer publishes for its tokens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JwkSet {
    /// The value of `iss` in the issuer's tokens.
    pub issuer: String,
    /// The https URL of the set.
    pub url: String,
}

/// A signature's algorithm, by its name in RFC 7518 or RFC 8037.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// The server's certificate; empty paths for a server without TLS.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate with its chain, in PEM.
    pub certificate_file: PathBuf,
    /// The certificate's private key, in PEM.
    pub key_file: PathBuf,
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

/// Limits on those who look at what happens.
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

/// Where plugins are, and how they are loaded.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plugins {
    /// The folder with the plugins.
    pub dir: PathBuf,
    /// What a plugin that can't be loaded does to the start.
    pub on_bad: OnBad,
    /// Whether changed files are loaded without a restart.
    pub watch: bool,
    /// How often the folder is checked for changes.
    pub watch_interval_ms: Milliseconds,
    /// Bytes of a plugin's file.
    pub file_bytes_max: NonZeroU64,
    /// How long the compilation of a plugin may take.
    pub compile_deadline_ms: Milliseconds,
    /// Memory that the compilation of a plugin may use.
    pub compile_memory_bytes_max: NonZeroU64,
    /// The binary that compiles; this one if empty.
    pub compiler: Option<PathBuf>,
    /// The folder with compiled plugins; if empty, systemd's or the user's.
    pub cache_dir: Option<PathBuf>,
    /// How long replaced policies go on formatting messages that were routed before the reload.
    pub retire_ms: Milliseconds<0>,
}

/// What a plugin that can't be loaded does to the start.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnBad {
    /// Its last good version serves. If there is none, and it may be needed, nobody is served until it is mended.
    Keep,
    Stop,
    Skip,
}

/// The settings of one policy.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Whether the file, the environment or a flag names the policy, and not the built-in defaults alone. Not a setting.
    #[serde(skip)]
    pub is_named: bool,
    /// The plugin's file, relative to `plugins.dir`; by default `NAME.wasm`.
    pub file: Option<PathBuf>,
    /// Whether the policy is loaded; true by default.
    pub enabled: Option<bool>,
    /// Policies are called in this order; 100 by default.
    pub order: Option<i32>,
    /// Host interfaces that the plugin may import.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// Event types that the policy is called for; all that the plugin wants by default.
    pub events: Option<Vec<String>>,
    /// What happens when the policy faults.
    #[serde(default)]
    pub on_fault: OnFault,
    /// Whether instances are reused.
    #[serde(default)]
    pub isolation: Isolation,
    /// The readers for whom it formats.
    #[serde(default)]
    pub readers: Readers,
    /// Passed to the plugin's `configure`.
    #[serde(default)]
    pub settings: toml::Table,
    /// Complete once loaded: the global limits with the policy's own over them. `Config::limits_for` reads them.
    pub limits: Option<Limits>,
}

/// A host interface that a policy may import.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    Clock,
    Groups,
    Log,
    Metrics,
    Presence,
    State,
    /// A WASI whose functions all deny access.
    Wasi,
}

/// What happens, in each role, when the policy faults.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct OnFault {
    /// What happens to the event.
    pub routing: RoutingFault,
    /// What happens to the message.
    pub formatting: FormattingFault,
    /// What happens to the socket.
    pub sessions: SessionsFault,
}

/// What happens to an event.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingFault {
    /// It is kept for a retry.
    #[default]
    DeadLetter,
    /// It is counted.
    Drop,
}

/// What happens to a message, for the readers of the class that it was being formatted for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FormattingFault {
    /// It is kept for a retry.
    #[default]
    DeadLetter,
    /// It is counted.
    Drop,
    /// It is passed on as the policy received it.
    Pass,
}

/// What happens to a socket that the policy was called for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SessionsFault {
    #[default]
    Refuse,
    Admit,
}

/// Whether a call may find what an earlier call left in the guest's memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// An instance serves many calls.
    #[default]
    Reuse,
    /// Each call has an instance of its own.
    Fresh,
}

/// The readers for whom a formatting policy is asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Readers {
    #[default]
    All,
    /// Those who have an attribute that it varies on.
    WithAttributes,
}

/// Limits on one policy.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Processor time of a call of a role function.
    pub call_deadline_ms: Milliseconds,
    /// Processor time of instantiation, `describe`, `configure` and `vary`.
    pub configure_deadline_ms: Milliseconds,
    /// Linear memory of one instance.
    pub memory_bytes_max: NonZeroUsize,
    /// Elements in the tables of one instance.
    pub table_elements_max: NonZeroUsize,
    /// Bytes that a call may pass to the host at a time.
    pub output_bytes_max: NonZeroUsize,
    /// Calls after which an instance is replaced.
    pub calls_per_instance_max: NonZeroU64,
    pub instances_idle_max: NonZeroUsize,
    /// Memory above which an instance is replaced after a call.
    pub instance_kept_bytes_max: NonZeroUsize,
    /// Host calls of one call.
    pub host_calls_max: NonZeroU32,
    /// Calls for which a new version is on trial.
    pub trial_calls: u64,
    /// Consecutive faults that open the circuit breaker.
    pub breaker_faults: NonZeroU32,
    /// How long the circuit is open the first time.
    pub breaker_pause_ms: Milliseconds,
    /// How long the circuit is open at most.
    pub breaker_pause_max_ms: Milliseconds,
    /// Deliveries, replies, drafts and group changes that a call may return.
    pub items_max: NonZeroUsize,
    /// Recipients of one event.
    pub recipients_max: NonZeroUsize,
    /// Groups that the policy may open.
    pub groups_max: NonZeroUsize,
    /// Memberships that the policy may give.
    pub memberships_max: NonZeroUsize,
    /// Log lines of one call.
    pub log_lines_max: u32,
    /// Log lines of the policy in a second, its faults' among them.
    pub log_lines_per_second_max: NonZeroU32,
    /// Bytes of one log line.
    pub log_line_bytes_max: usize,
    /// Keys of the policy's state.
    pub state_keys_max: usize,
    /// Bytes of the policy's state.
    pub state_bytes_max: usize,
    /// Bytes of one value in the policy's state.
    pub state_value_bytes_max: NonZeroUsize,
    /// Names of the policy's own counters.
    pub metric_names_max: usize,
}
