//! Settings: one TOML file and environment variables over the commented defaults in `config/default.toml`.
//!
//! Read once at the start; nothing else reads the environment. Every bound's reason stands beside its default there.

mod known;
mod load;
mod origin;
mod validate;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use load::{Problems, Setting, Source};
pub use origin::{Authority, Origin, default_port};

/// The defaults, as text: the reference of all settings.
pub const DEFAULTS: &str = include_str!("config/default.toml");

/// TOML has no null: an address that isn't there is an empty text.
mod empty_is_none {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || text.parse().map_err(|_| D::Error::custom("invalid socket address"));
        (!text.is_empty()).then(parse).transpose()
    }

    pub(super) fn serialize<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        address.map(|address| address.to_string()).unwrap_or_default().serialize(serializer)
    }
}

/// All settings. See `config/default.toml` for each one's meaning, unit and reason.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub listen: SocketAddr,
    pub listen_beyond_loopback_without_authentication: bool,
    #[serde(with = "empty_is_none")]
    pub operate_listen: Option<SocketAddr>,
    pub base_path: String,
    pub stop_notice_ms: u64,
    pub stop_deadline_ms: u64,
    pub stop_closes_per_second_max: u32,
    pub stop_return_within_ms: u32,
    pub worker_threads: usize,
    pub log: Log,
    pub auth: Auth,
    pub tls: Tls,
    pub http: Http,
    pub sockets: Sockets,
    pub mailboxes: Mailboxes,
    pub events: Events,
    pub groups: Groups,
    pub dead_letters: DeadLetters,
    pub plugins: Plugins,
    pub limits: Limits,
    pub policies: BTreeMap<String, Policy>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

/// Who may publish, operate and connect.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    pub keys: Vec<ApiKey>,
    pub origins: Vec<String>,
    pub users: Users,
}

/// A key that a producer or an operator shows, known by its digest.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    pub name: String,
    /// In hex.
    pub sha256: String,
    pub scopes: Vec<Scope>,
}

/// What the holder of a key may do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Publish,
    Read,
    Operate,
}

/// Users' tokens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    pub algorithms: Vec<Algorithm>,
    pub key_files: Vec<PathBuf>,
    pub jwks: Vec<JwkSet>,
    pub jwks_interval_ms: u64,
    pub jwks_pause_ms: u64,
    pub issuers: Vec<String>,
    pub audiences: Vec<String>,
    pub token_types: Vec<String>,
    pub leeway_s: u64,
    pub user_claim: String,
    pub claims: Vec<String>,
    pub token_in_query: bool,
    pub first_frame_deadline_ms: u64,
    pub first_frame_bytes_max: usize,
    pub expiry_grace_ms: u64,
}

/// Keys that an issuer publishes for its tokens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JwkSet {
    /// As `iss` has it.
    pub issuer: String,
    pub url: String,
}

/// A signature's algorithm, by its name in RFC 7518 and RFC 8037.
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

/// The server's certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub operate_connections_max: usize,
    pub backlog: u32,
    pub header_deadline_ms: u64,
    pub body_deadline_ms: u64,
    pub bodies_bytes_max: usize,
    pub header_bytes_max: usize,
    pub headers_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    pub sessions_max: usize,
    pub per_address_max: usize,
    pub per_user_max: usize,
    pub too_many: TooMany,
    pub user_id_bytes_max: usize,
    pub attributes: Vec<String>,
    pub attribute_bytes_max: usize,
    pub message_bytes_max: usize,
    pub ping_interval_ms: u64,
    pub pong_deadline_ms: u64,
    pub idle_deadline_ms: u64,
    pub write_deadline_ms: u64,
    pub write_bytes_max: usize,
    pub resume_wait_ms: u64,
    pub messages_per_second_max: u32,
    pub bytes_per_second_max: u32,
    pub handshakes_per_second_max: u32,
    pub close_deadline_ms: u64,
}

/// What happens to a user's session over `per_user_max`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum TooMany {
    CloseOldest,
    RefuseNewest,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mailboxes {
    pub messages_max: usize,
    pub bytes_max: usize,
    pub keep_ms: u64,
    pub resume_ms: u64,
    pub total_messages_max: usize,
    pub total_bytes_max: usize,
    pub mailboxes_max: usize,
    pub shapes_bytes_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    pub body_bytes_max: usize,
    pub event_bytes_max: usize,
    pub batch_max: usize,
    pub dedup_window_ms: u64,
    pub dedup_entries_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    pub name_bytes_max: usize,
    pub groups_max: usize,
    pub members_max: usize,
    pub memberships_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetters {
    pub letters_max: usize,
    pub bytes_max: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plugins {
    pub dir: PathBuf,
    pub on_bad: OnBad,
    pub watch: bool,
    pub watch_interval_ms: u64,
    pub file_bytes_max: u64,
    pub compile_deadline_ms: u64,
    pub compile_memory_bytes_max: u64,
    pub compiler: Option<PathBuf>,
    pub cache_dir: Option<PathBuf>,
    pub retire_ms: u64,
}

/// What a plugin that can't be loaded does to the start.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnBad {
    Stop,
    Skip,
}

/// One policy's own settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub file: Option<PathBuf>,
    pub enabled: Option<bool>,
    pub order: Option<i32>,
    #[serde(default)]
    pub grants: Vec<Grant>,
    pub events: Option<Vec<String>>,
    #[serde(default)]
    pub on_fault: OnFault,
    #[serde(default)]
    pub isolation: Isolation,
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
    /// One that denies everything.
    Wasi,
}

/// What becomes of that for which a policy was called when it faults, by role.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct OnFault {
    pub routing: RoutingFault,
    pub formatting: FormattingFault,
    pub sessions: SessionsFault,
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingFault {
    #[default]
    DeadLetter,
    Drop,
}

/// What becomes of a message, for the readers who were to see this shape of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FormattingFault {
    #[default]
    DeadLetter,
    Drop,
    /// It goes on as it came to the policy.
    Pass,
}

/// What becomes of a socket that the policy was asked about.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SessionsFault {
    #[default]
    Refuse,
    Admit,
}

/// Whether calls of a policy may meet what an earlier call left in the guest's memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    #[default]
    Reuse,
    Fresh,
}

/// Bounds on one policy.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub call_deadline_ms: u64,
    pub configure_deadline_ms: u64,
    pub memory_bytes_max: usize,
    pub table_elements_max: usize,
    pub output_bytes_max: usize,
    pub calls_per_instance_max: u64,
    pub instance_kept_bytes_max: usize,
    pub host_calls_max: u32,
    pub trial_calls: u64,
    pub breaker_faults: u32,
    pub breaker_pause_ms: u64,
    pub breaker_pause_max_ms: u64,
    pub items_max: usize,
    pub recipients_max: usize,
    pub groups_max: usize,
    pub memberships_max: usize,
    pub log_lines_max: u32,
    pub log_line_bytes_max: usize,
    pub state_keys_max: usize,
    pub state_bytes_max: usize,
    pub state_value_bytes_max: usize,
    pub metric_names_max: usize,
}
