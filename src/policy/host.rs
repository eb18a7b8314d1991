//! The host interfaces of `wit/host.wit`: what a guest may call, within its bounds. No function blocks.

use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::Engine;
use wasmtime::component::{Component, HasSelf, Linker};

use super::bindings::{clock, diagnostics, groups, log, metrics, presence, state};
use super::engine::{Deadline, StoreLimits};
use super::fault::Faults;
use super::taps::Taps;
use super::wasi;
use crate::config::{Grant, Limits};
use crate::metrics::{DROPPED_METRIC, Metrics};
use crate::model::Model;
use crate::model::state::Quota;
use crate::model::world::{StateError, World};
use crate::net::rate::Bucket;
use crate::types::fault::cut;

/// What all instances of one policy share.
#[derive(Debug)]
pub struct Shared {
    pub name: Arc<str>,
    pub limits: Limits,
    pub model: Arc<Model>,
    pub metrics: Arc<Metrics>,
    pub faults: Faults,
    pub taps: Taps,
    pub trial: Trial,
    /// The allowance of log lines.
    log_lines: Mutex<Bucket>,
}

/// Whether a policy is on trial beside the one of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    No,
    Candidate,
}

impl Shared {
    pub fn new(
        name: &str,
        limits: Limits,
        model: Arc<Model>,
        metrics: Arc<Metrics>,
        faults: Faults,
        taps: Taps,
        trial: Trial,
    ) -> Arc<Shared> {
        let log_lines = Mutex::new(Bucket::full(log_burst(&limits)));
        Arc::new(Shared { name: name.into(), limits, model, metrics, faults, taps, trial, log_lines })
    }

    /// Returns whether one more line about this policy may be logged. If not, counts it.
    pub fn may_log(&self) -> bool {
        let per_second = self.limits.log_lines_per_second_max.get();
        let may_log = self.log_lines.lock().take(1, per_second, log_burst(&self.limits));
        if !may_log {
            self.count_dropped_line();
        }
        may_log
    }

    fn count_dropped_line(&self) {
        self.metrics.policy_log_lines_dropped.with_label_values(&[&*self.name]).inc();
    }

    fn quota(&self) -> Quota {
        Quota {
            keys_max: self.limits.state_keys_max,
            bytes_max: self.limits.state_bytes_max,
            value_bytes_max: self.limits.state_value_bytes_max.get(),
        }
    }
}

/// The host's state for one instance.
#[derive(Debug)]
pub struct Host {
    pub shared: Arc<Shared>,
    pub growth: StoreLimits,
    pub deadline: Deadline,
    /// What the guest sees. During a call it is the caller's world, swapped in for that call.
    pub world: World,
    log_lines: u32,
    calls: u32,
    panic: Option<String>,
}

/// A guest made more host calls than one call may.
#[derive(Debug)]
pub struct TooManyHostCalls(u32);

impl std::fmt::Display for TooManyHostCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it made more than {} host calls in one call (limits.host_calls_max)", self.0)
    }
}

impl std::error::Error for TooManyHostCalls {}

/// How many seconds' log lines a policy may write at once: a start, or a burst of faults.
const LOG_BURST_S: u32 = 10;

/// Bytes of the name of a policy's counter.
const METRIC_NAME_BYTES_MAX: usize = 64;

/// Bytes of a panic's message that are kept.
const PANIC_BYTES_MAX: usize = 2048;

impl Host {
    pub fn new(shared: Arc<Shared>) -> Host {
        let growth = StoreLimits::new(&shared.limits);
        let world = World::dry(&shared.model);
        Host { shared, growth, deadline: Deadline::default(), world, log_lines: 0, calls: 0, panic: None }
    }

    /// Begins a call: its clock stands still, and its limits start afresh.
    pub fn begin(&mut self, deadline: Deadline) {
        self.world.begin_call();
        self.deadline = deadline;
        self.log_lines = 0;
        self.calls = 0;
        self.panic = None;
        self.growth.refused = None;
    }

    /// Returns the guest's panic message, if it reported one.
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// Counts a host call, and traps if there were more than `limits.host_calls_max` in this call.
    pub fn count(&mut self) -> wasmtime::Result<()> {
        self.calls += 1;
        let most = self.shared.limits.host_calls_max.get();
        if self.calls > most { Err(wasmtime::Error::new(TooManyHostCalls(most))) } else { Ok(()) }
    }
}

fn log_burst(limits: &Limits) -> u32 {
    limits.log_lines_per_second_max.get().saturating_mul(LOG_BURST_S)
}

/// Counts a host call and runs it on the call's world.
fn seen<R>(host: &mut Host, ask: impl FnOnce(&mut World, &Shared) -> R) -> wasmtime::Result<R> {
    host.count()?;
    Ok(ask(&mut host.world, &host.shared))
}

/// Links the interfaces that are granted, and `diagnostics`, which every plugin may import.
///
/// # Errors
/// Two interfaces have the same name: a mistake in the WIT. Or the component imports something that WASI can't provide.
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
        if self.world.is_tape() {
            // The recorded call has written its lines.
            return Ok(());
        }
        let shared = &self.shared;
        self.log_lines = self.log_lines.saturating_add(1);
        if self.log_lines > shared.limits.log_lines_max {
            shared.count_dropped_line();
            return Ok(());
        }
        if !shared.may_log() {
            return Ok(());
        }
        // A guest's line can neither forge another line nor control the terminal.
        let line: String =
            cut(&message, shared.limits.log_line_bytes_max).chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        let policy = &*shared.name;
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
        seen(self, |world, _| world.now_ms())
    }
}

impl state::Host for Host {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        seen(self, |world, shared| world.get(&shared.name, &key, shared.quota()).map(|value| value.to_vec()))
    }

    fn set(&mut self, key: String, value: Vec<u8>, ttl_ms: Option<u32>) -> wasmtime::Result<Result<(), state::Error>> {
        written(self, |world, shared| world.set(&shared.name, key, value, ttl_ms, shared.quota()))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<bool> {
        seen(self, |world, shared| world.delete(&shared.name, &key, shared.quota()))
    }

    fn increment(&mut self, key: String, by: i64, ttl_ms: Option<u32>) -> wasmtime::Result<Result<i64, state::Error>> {
        written(self, |world, shared| world.increment(&shared.name, key, by, ttl_ms, shared.quota()))
    }

    fn compare_and_swap(
        &mut self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        ttl_ms: Option<u32>,
    ) -> wasmtime::Result<Result<bool, state::Error>> {
        written(self, |world, shared| world.compare_and_swap(&shared.name, key, expected.as_deref(), value, ttl_ms, shared.quota()))
    }
}

/// Counts a host call and writes to the call's world.
fn written<R>(
    host: &mut Host,
    write: impl FnOnce(&mut World, &Shared) -> Result<R, StateError>,
) -> wasmtime::Result<Result<R, state::Error>> {
    Ok(seen(host, write)?.map_err(|error| match error {
        StateError::Quota => state::Error::Quota,
        StateError::NotANumber => state::Error::NotANumber,
    }))
}

impl presence::Host for Host {
    fn sessions(&mut self, user: String) -> wasmtime::Result<u32> {
        seen(self, |world, _| small(world.sessions_of(&user)))
    }
}

impl groups::Host for Host {
    fn contains(&mut self, group: String, user: String) -> wasmtime::Result<bool> {
        seen(self, |world, _| world.contains(&group, &user))
    }

    fn size(&mut self, group: String) -> wasmtime::Result<u32> {
        seen(self, |world, _| small(world.size(&group)))
    }

    fn members(&mut self, group: String) -> wasmtime::Result<Vec<String>> {
        let members = seen(self, |world, shared| world.members(&group, shared.limits.items_max.get()))?;
        Ok(members.iter().map(|user| user.as_str().to_owned()).collect())
    }
}

impl metrics::Host for Host {
    fn count(&mut self, name: String, by: u64) -> wasmtime::Result<()> {
        let is_sane =
            (1..=METRIC_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        // A count under an invalid name is itself counted, under its own name.
        let (name, by) = if is_sane { (name, by) } else { (DROPPED_METRIC.to_owned(), 1) };
        seen(self, |world, shared| world.count(&shared.name, name, by, shared.limits.metric_names_max))
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
