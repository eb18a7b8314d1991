//! One loaded plugin: what it says of itself, and its calls.
//!
//! A call takes an idle instance or makes one, runs on the caller's thread within its deadline, and gives the instance
//! back. After a fault the instance is dropped: nothing of it is trusted again.

mod instances;
mod looking;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use prometheus::Histogram;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::bindings::{self, Bounds, Response, formatting, sessions};
use super::breaker::Breaker;
use super::compile::Compiler;
use super::contract::{Role, check_description, check_events, check_exports, check_imports, check_kind, check_vary, matches};
use super::engine::Deadline;
use super::fault::{Defect, Fault, FaultKind};
use super::host::{Services, Shared};
use super::ticker::EpochTicker;
use crate::config::{self, Isolation, Limits, OnFault};
use crate::model::groups::Quota;
use crate::types::delivery::{Decision, Message, Refusal};
use crate::types::event::{Body, Event};
use instances::{Instance, Instances};
pub use looking::Introspection;

/// A call of this length holds up the other tasks of its thread for longer than a thread's hand-over takes.
const LONG_CALL: Duration = Duration::from_millis(1);

/// Of a policy that works, and slowly; an interpreter's instances are like that.
pub const TOO_LARGE_TO_KEEP: &str =
    "each call makes a new instance, since one is larger than a server keeps from call to call: limits.instance_kept_bytes_max bounds that";

/// A policy, ready to be called.
#[derive(Debug)]
pub struct Policy {
    pub name: String,
    pub version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub digest: String,
    pub file: std::path::PathBuf,
    pub roles: Vec<Role>,
    pub events: Vec<String>,
    pub config: config::Policy,
    /// Attributes that its formatting depends on.
    pub vary: Vec<String>,
    pub counters: Counters,
    pub last_fault: Mutex<Option<Fault>>,
    /// The version before this one, while this one is on trial.
    previous: Mutex<Option<Arc<Policy>>>,
    on_trial: AtomicBool,
    breaker: Mutex<Breaker>,
    /// The last call was a long one; so may the next be.
    lingers: AtomicBool,
    instances: Instances,
    bounds: Bounds,
    calls: Calls,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub calls: AtomicU64,
    pub refusals: AtomicU64,
    pub faults: AtomicU64,
}

/// How a call ended that gave no answer.
#[derive(Clone, Debug)]
pub enum CallError {
    Refused(Refusal),
    Fault(Box<Fault>),
    /// It faulted too often in a row, and is left out for a while. It was not called.
    CircuitOpen,
}

/// What the server gives a plugin that is being loaded.
#[derive(Debug)]
pub struct Source<'a> {
    pub name: &'a str,
    pub file: std::path::PathBuf,
    pub digest: String,
    pub bytes: &'a [u8],
}

/// The time of each function, for the roles that the plugin has.
#[derive(Debug)]
struct Calls {
    route: Option<Histogram>,
    format: Option<Histogram>,
    opened: Option<Histogram>,
    received: Option<Histogram>,
    closed: Option<Histogram>,
}

impl Policy {
    /// Compiles, checks, instantiates, describes and configures a plugin.
    ///
    /// # Errors
    /// A sentence that the plugin's author or operator can act on.
    pub fn load(
        ticker: &EpochTicker,
        compiler: &Compiler,
        source: Source<'_>,
        config: config::Policy,
        shared: Arc<Shared>,
        bounds: Bounds,
    ) -> Result<Policy, String> {
        check_kind(source.bytes)?;
        let engine = &ticker.engine;
        let component = compiler.component(engine, &source.digest, source.bytes)?;
        let roles = check_exports(engine, &component)?;
        check_imports(engine, &component, source.name, &config.grants)?;
        let instances = Instances::new(ticker, &component, &config, shared.clone(), &roles)?;
        let (description, vary, first) = instances.probe()?;
        check_description(&description)?;
        check_vary(&vary)?;
        instances.give_back(first);
        Ok(Policy {
            name: source.name.to_owned(),
            version: description.version,
            digest: source.digest,
            file: source.file,
            events: check_events(description.events, config.events.as_deref())?,
            vary,
            counters: Counters::default(),
            last_fault: Mutex::default(),
            previous: Mutex::default(),
            on_trial: AtomicBool::new(false),
            breaker: Mutex::new(breaker(&shared.limits)),
            lingers: AtomicBool::new(false),
            bounds,
            calls: Calls::new(&shared, &roles),
            roles,
            instances,
            config,
        })
    }

    /// The same policy over other services, with nothing behind it: for calls that must leave no trace.
    pub fn fork(&self, services: &Arc<Services>) -> Policy {
        let shared = Shared::new(self.name.clone(), self.limits().clone(), services.clone());
        Policy {
            name: self.name.clone(),
            version: self.version.clone(),
            digest: self.digest.clone(),
            file: self.file.clone(),
            roles: self.roles.clone(),
            events: self.events.clone(),
            config: self.config.clone(),
            vary: self.vary.clone(),
            counters: Counters::default(),
            last_fault: Mutex::default(),
            previous: Mutex::default(),
            on_trial: AtomicBool::new(false),
            breaker: Mutex::new(breaker(&shared.limits)),
            lingers: AtomicBool::new(false),
            bounds: self.bounds,
            calls: Calls::new(&shared, &self.roles),
            instances: self.instances.fork(shared),
        }
    }

    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether the plugin wants events of this type, and the configuration lets it have them.
    pub fn wants(&self, event_type: &str) -> bool {
        self.events.iter().any(|pattern| matches(pattern, event_type))
    }

    pub fn on_fault(&self) -> OnFault {
        self.config.on_fault
    }

    pub fn limits(&self) -> &Limits {
        &self.instances.shared.limits
    }

    /// What its decisions may make of groups.
    pub fn group_quota(&self) -> Quota<'_> {
        Quota { policy: &self.name, groups_max: self.limits().groups_max, memberships_max: self.limits().memberships_max }
    }

    /// Whether the first instance was too large to be kept, asked before the first call.
    pub fn keeps_no_instance(&self) -> bool {
        self.config.isolation == Isolation::Reuse && self.idle_instances() == 0
    }

    pub fn idle_instances(&self) -> usize {
        self.instances.idle.lock().len()
    }

    /// # Errors
    /// The policy refused the event, or faulted.
    pub fn route(&self, event: &Event) -> Result<Decision, CallError> {
        self.call("route", &self.calls.route, Some(&event.id), |instance| {
            let Some(routing) = &instance.routing else { return Err(wasmtime::Error::msg("exports no routing")) };
            match bindings::with_event(event, |event| routing.call_route(&mut instance.store, event))? {
                Ok(decision) => Ok(Ok(self.bounds.decision(decision))),
                Err(refusal) => Ok(Err(refusal)),
            }
        })
    }

    /// # Errors
    /// The policy refused the message, or faulted.
    pub fn format(&self, message: &Message, body: &Body, reader: &[(&str, &str)]) -> Result<Option<Body>, CallError> {
        self.call("format", &self.calls.format, Some(&message.event_id), |instance| {
            let Some(formatting) = &instance.formatting else { return Err(wasmtime::Error::msg("exports no formatting")) };
            let param = formatting::Message { id: &message.event_id, event_type: &message.event_type, body: bindings::body_param(body) };
            match formatting.call_format(&mut instance.store, param, reader)? {
                Ok(shaped) => Ok(Ok(shaped.map(|body| self.bounds.body(body)).transpose())),
                Err(refusal) => Ok(Err(refusal)),
            }
        })
    }

    /// # Errors
    /// The policy refused the session, or faulted.
    pub fn opened(&self, session: sessions::Session<'_>) -> Result<Response, CallError> {
        self.call("opened", &self.calls.opened, None, |instance| {
            let Some(sessions) = &instance.sessions else { return Err(wasmtime::Error::msg("exports no sessions")) };
            Ok(sessions.call_opened(&mut instance.store, session)?.map(|response| self.bounds.response(response)))
        })
    }

    /// `None`: not this policy's.
    ///
    /// # Errors
    /// The policy refused the message, or faulted.
    pub fn received(&self, session: sessions::Session<'_>, body: &Body) -> Result<Option<Response>, CallError> {
        self.call("received", &self.calls.received, None, |instance| {
            let Some(sessions) = &instance.sessions else { return Err(wasmtime::Error::msg("exports no sessions")) };
            let answer = sessions.call_received(&mut instance.store, session, bindings::body_param(body))?;
            Ok(answer.map(|response| response.map(|response| self.bounds.response(response)).transpose()))
        })
    }

    /// # Errors
    /// The policy refused, which changes nothing, or faulted.
    pub fn closed(&self, session: sessions::Session<'_>, code: u16) -> Result<Response, CallError> {
        self.call("closed", &self.calls.closed, None, |instance| {
            let Some(sessions) = &instance.sessions else { return Err(wasmtime::Error::msg("exports no sessions")) };
            Ok(sessions.call_closed(&mut instance.store, session, code)?.map(|response| self.bounds.response(response)))
        })
    }

    /// One call: on an instance of its own, within the deadline, counted. The layers of the result: trapped or not; refused or
    /// not; usable or not.
    fn call<R>(
        &self,
        function: &'static str,
        time: &Option<Histogram>,
        event: Option<&str>,
        run: impl FnOnce(&mut Instance) -> wasmtime::Result<Result<Result<R, bindings::Unusable>, bindings::types::Refusal>>,
    ) -> Result<R, CallError> {
        let started = Instant::now();
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        if !self.breaker.lock().admits(tokio::time::Instant::now()) {
            return Err(CallError::CircuitOpen);
        }
        let fault = |defect| CallError::Fault(Box::new(self.fault(function, event, defect)));
        let mut instance = self.instances.take().map_err(fault)?;
        instance.begin(Deadline::call(&self.instances.shared.limits));
        let lingers = self.lingers.load(Ordering::Relaxed);
        let answer = if lingers { aside(|| run(&mut instance)) } else { run(&mut instance) };
        let took = started.elapsed();
        if lingers != (took > LONG_CALL) {
            self.lingers.store(!lingers, Ordering::Relaxed);
        }
        if let Some(time) = time {
            time.observe(took.as_secs_f64());
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(fault(Defect::of(&error, instance.store.data()))),
        };
        // An answer that can't be used is a defect too, but one that leaves the instance whole.
        self.instances.give_back(instance);
        let unusable = |detail| fault(Defect::new(FaultKind::Output, detail));
        let answer = match answer {
            Ok(answer) => Ok(answer.map_err(unusable)?),
            Err(refusal) => Err(self.bounds.refusal(refusal).map_err(unusable)?),
        };
        self.breaker.lock().succeeded();
        if self.on_trial.load(Ordering::Relaxed) && self.counters.calls.load(Ordering::Relaxed) >= self.limits().trial_calls {
            self.end_trial();
        }
        let refusal = match answer {
            Ok(answer) => return Ok(answer),
            Err(refusal) => refusal,
        };
        self.counters.refusals.fetch_add(1, Ordering::Relaxed);
        self.instances.shared.services.metrics.policy_refusals.with_label_values(&[&self.name]).inc();
        Err(CallError::Refused(refusal))
    }

    fn fault(&self, function: &'static str, event: Option<&str>, defect: Defect) -> Fault {
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        let kind = defect.kind.name();
        self.instances.shared.services.metrics.policy_faults.with_label_values(&[self.name.as_str(), kind]).inc();
        tracing::warn!(policy = self.name, version = self.version, function, event, kind, "policy fault: {}", defect.detail);
        if self.breaker.lock().faulted(tokio::time::Instant::now()) {
            tracing::error!(policy = self.name, version = self.version, "left out for a while: it faulted too often in a row");
        }
        let fault = Fault {
            policy: self.name.clone(),
            version: self.version.clone(),
            digest: self.digest.clone(),
            function,
            event: event.map(str::to_owned),
            defect,
            at: SystemTime::now(),
        };
        *self.last_fault.lock() = Some(fault.clone());
        fault
    }

    /// Begins a trial: until it has proven itself, the last version that has is at hand.
    pub fn follows(&self, old: &Arc<Policy>) {
        let proven = old.previous.lock().clone().unwrap_or_else(|| old.clone());
        self.on_trial.store(true, Ordering::Relaxed);
        *self.previous.lock() = Some(proven);
    }

    fn end_trial(&self) {
        self.on_trial.store(false, Ordering::Relaxed);
        self.previous.lock().take();
    }

    /// The version to go back to, where this one is new and has faulted too often in a row.
    pub fn fallback(&self) -> Option<Arc<Policy>> {
        if self.is_circuit_open() { self.previous.lock().clone() } else { None }
    }

    /// Whether the policy is left out at the moment.
    pub fn is_circuit_open(&self) -> bool {
        self.breaker.lock().is_open()
    }
}

/// Runs something long on this thread, after handing the thread's other tasks to another one.
fn aside<R>(long: impl FnOnce() -> R) -> R {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(long),
        _ => long(),
    }
}

fn breaker(limits: &Limits) -> Breaker {
    let (first, longest) = (Duration::from_millis(limits.breaker_pause_ms), Duration::from_millis(limits.breaker_pause_max_ms));
    Breaker::new(limits.breaker_faults, first, longest)
}

impl Calls {
    fn new(shared: &Shared, roles: &[Role]) -> Calls {
        let metrics = &shared.services.metrics;
        let time = |role, function| roles.contains(&role).then(|| metrics.policy_call(&shared.name, function));
        Calls {
            route: time(Role::Routing, "route"),
            format: time(Role::Formatting, "format"),
            opened: time(Role::Sessions, "opened"),
            received: time(Role::Sessions, "received"),
            closed: time(Role::Sessions, "closed"),
        }
    }
}
