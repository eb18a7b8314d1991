//! The host interfaces of `wit/host.wit`: what a guest may ask, within its bounds. None of them waits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::Instant;
use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, Linker};

use super::bindings::{clock, diagnostics, groups, log, metrics, presence, state};
use super::engine::{Deadline, StoreLimits};
use super::wasi;
use crate::config::{Grant, Limits};
use crate::metrics::Metrics;
use crate::model::groups::Groups;
use crate::model::mailbox::Mailboxes;
use crate::model::state::{Quota, State, StateError, States};

/// What the host interfaces read and write.
#[derive(Debug)]
pub struct Services {
    pub mailboxes: Arc<Mailboxes>,
    pub groups: Arc<Groups>,
    pub states: States,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

/// The time that policies are told.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    #[default]
    Machine,
    /// From a moment on, as the runtime's time goes by: it stands still where that is paused.
    Since(SystemTime, Instant),
}

impl Clock {
    pub fn now(self) -> SystemTime {
        match self {
            Clock::Machine => SystemTime::now(),
            Clock::Since(start, since) => start + since.elapsed(),
        }
    }
}

impl Services {
    /// Services that begin as these are, and whose changes go nowhere. The mailboxes are these: whoever forks must not post.
    ///
    /// # Errors
    /// Those of [`Metrics::new`].
    pub fn fork(&self) -> prometheus::Result<Services> {
        let (mailboxes, groups) = (self.mailboxes.clone(), Arc::new(self.groups.fork()));
        Ok(Services { mailboxes, groups, states: self.states.fork(), metrics: Arc::new(Metrics::new()?), clock: self.clock })
    }
}

/// What all instances of one policy share.
#[derive(Debug)]
pub struct Shared {
    pub name: String,
    pub limits: Limits,
    pub services: Arc<Services>,
    state: Arc<State>,
    metric_names: Mutex<HashSet<String>>,
}

impl Shared {
    pub fn new(name: String, limits: Limits, services: Arc<Services>) -> Arc<Shared> {
        let state = services.states.of(&name);
        Arc::new(Shared { name, limits, services, state, metric_names: Mutex::default() })
    }

    fn quota(&self) -> Quota {
        Quota {
            keys_max: self.limits.state_keys_max,
            bytes_max: self.limits.state_bytes_max,
            value_bytes_max: self.limits.state_value_bytes_max,
        }
    }
}

/// One instance's side of the host.
#[derive(Debug)]
pub struct Host {
    pub shared: Arc<Shared>,
    pub growth: StoreLimits,
    pub deadline: Deadline,
    now_ms: u64,
    log_lines: u32,
    calls: u32,
    panic: Option<String>,
}

/// A guest has made more host calls than one call may.
#[derive(Debug)]
pub struct TooManyHostCalls(u32);

impl std::fmt::Display for TooManyHostCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it made more than {} host calls in one call (limits.host_calls_max)", self.0)
    }
}

impl std::error::Error for TooManyHostCalls {}

/// Bytes of a panic's message that are kept.
const PANIC_BYTES_MAX: usize = 2048;

impl Host {
    pub fn new(shared: Arc<Shared>) -> Host {
        let growth = StoreLimits::new(&shared.limits);
        Host { shared, growth, deadline: Deadline::default(), now_ms: 0, log_lines: 0, calls: 0, panic: None }
    }

    /// Begins a call: its time stands still, and its allowances are new.
    pub fn begin(&mut self, deadline: Deadline) {
        self.deadline = deadline;
        let since = self.shared.services.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.log_lines = 0;
        self.calls = 0;
        self.panic = None;
    }

    /// What the guest said when it panicked.
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// Counts a host call. A guest that only asks spends the host's time, which its deadline doesn't see.
    pub fn count(&mut self) -> wasmtime::Result<()> {
        self.calls += 1;
        let most = self.shared.limits.host_calls_max;
        if self.calls > most { Err(wasmtime::Error::new(TooManyHostCalls(most))) } else { Ok(()) }
    }
}

/// Links what is granted, and nothing else.
///
/// # Errors
/// Two interfaces have one name: a mistake in the WIT.
pub fn link(linker: &mut Linker<Host>, grants: &[Grant], engine: &Engine, component: &Component) -> wasmtime::Result<()> {
    diagnostics::add_to_linker::<_, HasSelf<Host>>(linker, |host| host)?;
    for grant in grants {
        match grant {
            Grant::Clock => clock::add_to_linker::<_, HasSelf<Host>>(linker, |host| host)?,
            Grant::Groups => groups::add_to_linker::<_, HasSelf<Host>>(linker, |host| host)?,
            Grant::Log => log::add_to_linker::<_, HasSelf<Host>>(linker, |host| host)?,
            Grant::Metrics => metrics::add_to_linker::<_, HasSelf<Host>>(linker, |host| host)?,
            Grant::Presence => presence::add_to_linker::<_, HasSelf<Host>>(linker, |host| host)?,
            Grant::State => state::add_to_linker::<_, HasSelf<Host>>(linker, |host| host)?,
            Grant::Wasi => wasi::link(linker, engine, component)?,
        }
    }
    Ok(())
}

impl diagnostics::Host for Host {
    fn panicked(&mut self, message: String) -> wasmtime::Result<()> {
        self.count()?;
        self.panic.get_or_insert_with(|| cut(&message, PANIC_BYTES_MAX).to_owned());
        Ok(())
    }
}

impl log::Host for Host {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        self.count()?;
        let shared = &self.shared;
        self.log_lines = self.log_lines.saturating_add(1);
        if self.log_lines > shared.limits.log_lines_max {
            shared.services.metrics.policy_log_lines_dropped.with_label_values(&[&shared.name]).inc();
            return Ok(());
        }
        // A guest's line can't forge another one, nor paint the terminal.
        let line: String =
            cut(&message, shared.limits.log_line_bytes_max).chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        let policy = shared.name.as_str();
        match level {
            log::Level::Debug => tracing::debug!(policy, "{line}"),
            log::Level::Info => tracing::info!(policy, "{line}"),
            log::Level::Warn => tracing::warn!(policy, "{line}"),
            log::Level::Error => tracing::error!(policy, "{line}"),
        }
        Ok(())
    }
}

impl clock::Host for Host {
    fn now_ms(&mut self) -> wasmtime::Result<u64> {
        self.count()?;
        Ok(self.now_ms)
    }
}

impl state::Host for Host {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.count()?;
        Ok(self.shared.state.get(&key))
    }

    fn set(&mut self, key: String, value: Vec<u8>, ttl_ms: Option<u32>) -> wasmtime::Result<Result<(), state::Error>> {
        self.count()?;
        Ok(self.shared.state.set(key, value, ttl_ms.map(milliseconds), self.shared.quota()).map_err(Into::into))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<bool> {
        self.count()?;
        Ok(self.shared.state.delete(&key))
    }

    fn increment(&mut self, key: String, by: i64, ttl_ms: Option<u32>) -> wasmtime::Result<Result<i64, state::Error>> {
        self.count()?;
        Ok(self.shared.state.increment(key, by, ttl_ms.map(milliseconds), self.shared.quota()).map_err(Into::into))
    }

    fn compare_and_swap(
        &mut self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        ttl_ms: Option<u32>,
    ) -> wasmtime::Result<Result<bool, state::Error>> {
        self.count()?;
        let (state, quota) = (&self.shared.state, self.shared.quota());
        Ok(state.compare_and_swap(key, expected.as_deref(), value, ttl_ms.map(milliseconds), quota).map_err(Into::into))
    }
}

impl From<StateError> for state::Error {
    fn from(error: StateError) -> state::Error {
        match error {
            StateError::Quota => state::Error::Quota,
            StateError::NotANumber => state::Error::NotANumber,
        }
    }
}

impl presence::Host for Host {
    fn sessions(&mut self, user: String) -> wasmtime::Result<u32> {
        self.count()?;
        Ok(small(self.shared.services.mailboxes.sessions_of(&user)))
    }
}

impl groups::Host for Host {
    fn contains(&mut self, group: String, user: String) -> wasmtime::Result<bool> {
        self.count()?;
        Ok(self.shared.services.groups.contains(&group, &user))
    }

    fn size(&mut self, group: String) -> wasmtime::Result<u32> {
        self.count()?;
        Ok(small(self.shared.services.groups.size(&group)))
    }

    fn members(&mut self, group: String) -> wasmtime::Result<Vec<String>> {
        self.count()?;
        let members = self.shared.services.groups.first_members(&group, self.shared.limits.items_max);
        Ok(members.iter().map(|user| user.as_str().to_owned()).collect())
    }
}

impl metrics::Host for Host {
    fn count(&mut self, name: String, by: u64) -> wasmtime::Result<()> {
        Host::count(self)?;
        let shared = &self.shared;
        let sane = (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let mut names = shared.metric_names.lock();
        if !sane || (!names.contains(&name) && names.len() >= shared.limits.metric_names_max) {
            // The guest's own counter of what it could not count.
            shared.services.metrics.policy_custom.with_label_values(&[shared.name.as_str(), "_dropped"]).inc();
            return Ok(());
        }
        shared.services.metrics.policy_custom.with_label_values(&[shared.name.as_str(), name.as_str()]).inc_by(by);
        names.insert(name);
        Ok(())
    }
}

/// The longest beginning of `text` within `bytes_max` bytes.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

fn milliseconds(count: u32) -> Duration {
    Duration::from_millis(count.into())
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
