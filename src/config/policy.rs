//! Settings of plugins and their policies, and the limits on what a policy may use.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Candidate, Milliseconds};

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
    /// Its last good version serves. If there is none, and it may be needed, nobody is served until that is fixed.
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
    /// Another version, on trial beside this one.
    pub candidate: Option<Candidate>,
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
