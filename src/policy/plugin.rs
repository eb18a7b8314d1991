//! One loaded plugin: what it reports about itself, and its calls.
//!
//! A call takes an idle instance or makes one, runs on the caller's thread within its deadline, and returns the instance to the
//! pool. After a fault the instance is dropped, since its memory can't be trusted.

mod instances;
mod looking;
mod playing;
mod samples;
mod trial;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::Histogram;

use super::bindings::{self, Bounds, formatting};
use super::breaker::Breaker;
use super::call::{Arguments, CallError, CallResult, Function};
use super::compile::{Compiled, Compiler};
use super::contract::{Role, check_description, check_events, check_exports, check_imports, check_kind, check_vary};
use super::engine::Deadline;
use super::fault::defect;
use super::host::Shared;
use super::load_error::LoadError;
use super::ticker::EpochTicker;
use crate::config::{self, Isolation, Limits, OnFault, Readers};
use crate::metrics::Metrics;
use crate::model::agreement::Component;
use crate::model::groups::Quota;
use crate::model::world::World;
use crate::net::turns::aside;
use crate::registry::SessionHandle;
use crate::types::delivery::{Decision, Message, Refusal, Response};
use crate::types::event::{Body, Event};
use crate::types::fault::{Defect, Fault, FaultKind};
use crate::types::origin::Origin;
use crate::types::pattern::any_matches;
use instances::{Instance, Instances};
pub use looking::Introspection;
use samples::Samples;
use trial::breaker;

/// A call that takes longer delays the other tasks of its thread by more than moving them to another thread would.
const LONG_CALL: Duration = Duration::from_millis(1);

/// The warning about a policy that works, but slowly. Instances with an interpreter are often that large.
pub const TOO_LARGE_TO_KEEP: &str =
    "each call makes a new instance, since one is larger than a server keeps from call to call: limits.instance_kept_bytes_max bounds that";

/// A policy, ready to be called.
#[derive(Debug)]
pub struct Policy {
    pub name: Arc<str>,
    pub version: Arc<str>,
    /// SHA-256 of the component, in hexadecimal.
    pub digest: Arc<str>,
    pub file: std::path::PathBuf,
    pub roles: Vec<Role>,
    pub events: Vec<String>,
    pub config: config::Policy,
    /// SHA-256 of its settings, in hexadecimal.
    pub settings: Arc<str>,
    /// Session attributes that its formatting depends on.
    pub vary: Vec<String>,
    pub counters: Counters,
    pub last_fault: Mutex<Option<Fault>>,
    /// The version before this one, while this one is on trial.
    previous: Mutex<Option<Arc<Policy>>>,
    on_trial: AtomicBool,
    breaker: Mutex<Breaker>,
    samples: Samples,
    /// Whether the last call took longer than `LONG_CALL`; if so, the next may too.
    lingers: AtomicBool,
    /// The compiled code, of which a changed configuration makes another policy.
    component: Compiled,
    instances: Instances,
    bounds: Bounds,
    calls: Calls,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub calls: AtomicU64,
    /// Calls that were answered or refused, without a fault.
    completed: AtomicU64,
    pub refusals: AtomicU64,
    pub faults: AtomicU64,
}

/// A guest's answer or refusal, or its flaw.
type GuestResult<R> = Result<Result<R, Refusal>, Flaw>;

/// How a call failed.
enum Flaw {
    /// The guest was stopped or trapped; its instance is dropped.
    Stopped(Defect),
    /// The answer breaks a rule of the contract; the instance can be used again.
    Unusable(Defect),
}

impl Flaw {
    fn into_defect(self) -> Defect {
        match self {
            Flaw::Stopped(defect) | Flaw::Unusable(defect) => defect,
        }
    }
}

/// A plugin's component, where it comes from, and the policy's name.
#[derive(Debug)]
pub struct Binary<'a> {
    pub name: &'a str,
    pub file: std::path::PathBuf,
    pub digest: String,
    pub bytes: &'a [u8],
}

/// The event of a call, and its origin.
#[derive(Clone, Copy)]
struct About<'a> {
    event: &'a str,
    origin: &'a Origin,
}

impl<'a> About<'a> {
    /// Returns the fields of a log line: the event's id, and its trace's.
    fn fields(about: Option<About<'a>>) -> (Option<&'a str>, Option<impl tracing::Value>) {
        (about.map(|about| about.event), about.and_then(|about| about.origin.trace_id()).map(tracing::field::display))
    }
}

/// Durations of each function's calls, for the roles that the plugin has.
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
    /// The plugin can't be compiled, does not keep the contract, faults, or refuses its settings.
    pub fn load(
        ticker: &EpochTicker,
        compiler: &Compiler,
        binary: Binary<'_>,
        config: config::Policy,
        shared: Arc<Shared>,
        bounds: Bounds,
    ) -> Result<Policy, LoadError> {
        check_kind(binary.bytes)?;
        let component = compiler.component(&ticker.engine, binary.name, &binary.digest, binary.bytes)?;
        Policy::of(ticker, component, binary.digest.into(), binary.file, config, shared, bounds)
    }

    /// Returns a policy of the same code with another configuration.
    ///
    /// # Errors
    /// The plugin lacks a grant, or refuses its settings.
    pub fn configured(
        &self,
        ticker: &EpochTicker,
        config: config::Policy,
        shared: Arc<Shared>,
        bounds: Bounds,
    ) -> Result<Policy, LoadError> {
        Policy::of(ticker, self.component.clone(), self.digest.clone(), self.file.clone(), config, shared, bounds)
    }

    fn of(
        ticker: &EpochTicker,
        component: Compiled,
        digest: Arc<str>,
        file: std::path::PathBuf,
        config: config::Policy,
        shared: Arc<Shared>,
        bounds: Bounds,
    ) -> Result<Policy, LoadError> {
        let engine = &ticker.engine;
        let roles = check_exports(engine, &component)?;
        check_imports(engine, &component, &shared.name, &config.grants)?;
        let instances = Instances::new(ticker, &component, &config, shared.clone(), &roles)?;
        let (description, vary, first) = instances.probe()?;
        check_description(&description)?;
        check_vary(&vary)?;
        instances.give_back(first);
        Ok(Policy {
            name: shared.name.clone(),
            version: description.version.into(),
            settings: instances.settings_digest(),
            digest,
            file,
            events: check_events(description.events, config.events.as_deref())?,
            vary,
            counters: Counters::default(),
            last_fault: Mutex::default(),
            previous: Mutex::default(),
            on_trial: AtomicBool::new(false),
            breaker: Mutex::new(breaker(&shared.limits)),
            samples: Samples::default(),
            lingers: AtomicBool::new(false),
            bounds,
            calls: Calls::new(&shared, &roles),
            roles,
            component,
            instances,
            config,
        })
    }

    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Returns whether the plugin wants events of this type and its configuration allows them.
    pub fn wants(&self, event_type: &str) -> bool {
        any_matches(&self.events, event_type)
    }

    /// Returns whether the policy is asked for a reader with these attributes. One that varies on nothing is asked for all.
    pub fn formats_for<'a>(&self, attribute: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.config.readers == Readers::All || self.vary.is_empty() || self.vary.iter().any(|name| attribute(name).is_some())
    }

    pub fn on_fault(&self) -> OnFault {
        self.config.on_fault
    }

    pub fn limits(&self) -> &Limits {
        &self.instances.shared.limits
    }

    /// Returns how many groups and memberships its decisions may create.
    pub fn group_quota(&self) -> Quota {
        Quota { groups_max: self.limits().groups_max.get(), memberships_max: self.limits().memberships_max.get() }
    }

    /// Returns whether the first instance was too large to keep. Only meaningful before the first call.
    pub fn keeps_no_instance(&self) -> bool {
        self.config.isolation == Isolation::Reuse && self.idle_instances() == 0
    }

    pub fn idle_instances(&self) -> usize {
        self.instances.idle.lock().instances.len()
    }

    /// Returns whether the last call took long, so that the next may too.
    pub fn takes_long(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }

    /// Drops idle instances that were not needed for a while.
    pub fn shrink(&self) {
        self.instances.shrink();
    }

    /// Calls `route`.
    ///
    /// # Errors
    /// The policy refused the event, faulted, or has an open circuit.
    pub fn route(&self, event: &Event, world: &mut World) -> CallResult<Decision> {
        let answer = self
            .call(Function::Route, Some(About { event: &event.id, origin: &event.origin }), world, |world| self.ask_route(event, world));
        self.sample(Function::Route, world, &answer, || Arguments::Route(Arc::new(event.clone())));
        answer
    }

    /// Calls `format`. Returns `None` if the policy drops the message for this reader.
    ///
    /// # Errors
    /// The policy refused the message, faulted, or has an open circuit.
    pub fn format(&self, message: &Arc<Message>, body: &Arc<Body>, reader: &[(&str, &str)], world: &mut World) -> CallResult<Option<Body>> {
        let about = About { event: &message.event_id, origin: &message.origin };
        let answer = self.call(Function::Format, Some(about), world, |world| self.ask_format(message, body, reader, world));
        self.sample(Function::Format, world, &answer, || {
            let reader = reader.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Arguments::Format(message.clone(), body.clone(), reader)
        });
        answer
    }

    /// Calls `opened`.
    ///
    /// # Errors
    /// The policy refused the session, faulted, or has an open circuit.
    pub fn opened(&self, handle: &Arc<SessionHandle>, world: &mut World) -> CallResult<Response> {
        let answer = self.call(Function::Opened, None, world, |world| self.ask_opened(handle, world));
        self.sample(Function::Opened, world, &answer, || Arguments::Opened(handle.clone()));
        answer
    }

    /// Calls `received`. Returns `None` if the policy leaves the message to others.
    ///
    /// # Errors
    /// The policy refused the message, faulted, or has an open circuit.
    pub fn received(&self, handle: &Arc<SessionHandle>, body: &Body, world: &mut World) -> CallResult<Option<Response>> {
        let answer = self.call(Function::Received, None, world, |world| self.ask_received(handle, body, world));
        self.sample(Function::Received, world, &answer, || Arguments::Received(handle.clone(), body.clone()));
        answer
    }

    /// Calls `closed`. What makes no sense after a close is left out of the answer: replies, and another close.
    ///
    /// # Errors
    /// The policy refused, which changes nothing, faulted, or has an open circuit.
    pub fn closed(&self, handle: &Arc<SessionHandle>, code: u16, world: &mut World) -> CallResult<Response> {
        self.call(Function::Closed, None, world, |world| {
            self.attempt(world, |instance| {
                let Some(sessions) = &instance.sessions else { return Err(wasmtime::Error::msg("exports no sessions")) };
                let response = bindings::with_session(handle, |session| sessions.call_closed(&mut instance.store, session, code))?;
                let response = response.map(|response| self.bounds.response(response));
                Ok(response.map(|response| response.map(|response| Response { replies: Vec::new(), close: None, ..response })))
            })
        })
    }

    fn ask_route(&self, event: &Event, world: &mut World) -> GuestResult<Decision> {
        self.attempt(world, |instance| {
            let Some(routing) = &instance.routing else { return Err(wasmtime::Error::msg("exports no routing")) };
            let decision = bindings::with_event(event, |event| routing.call_route(&mut instance.store, event))?;
            Ok(decision.map(|decision| self.bounds.decision(decision)))
        })
    }

    fn ask_format(&self, message: &Message, body: &Body, reader: &[(&str, &str)], world: &mut World) -> GuestResult<Option<Body>> {
        self.attempt(world, |instance| {
            let Some(formatting) = &instance.formatting else { return Err(wasmtime::Error::msg("exports no formatting")) };
            let param = formatting::Message { id: &message.event_id, event_type: &message.event_type, body: bindings::body_param(body) };
            let shaped = formatting.call_format(&mut instance.store, param, reader)?;
            Ok(shaped.map(|shaped| shaped.map(|body| self.bounds.body(body)).transpose()))
        })
    }

    fn ask_opened(&self, handle: &SessionHandle, world: &mut World) -> GuestResult<Response> {
        self.attempt(world, |instance| {
            let Some(sessions) = &instance.sessions else { return Err(wasmtime::Error::msg("exports no sessions")) };
            let response = bindings::with_session(handle, |session| sessions.call_opened(&mut instance.store, session))?;
            Ok(response.map(|response| self.bounds.response(response)))
        })
    }

    fn ask_received(&self, handle: &SessionHandle, body: &Body, world: &mut World) -> GuestResult<Option<Response>> {
        self.attempt(world, |instance| {
            let Some(sessions) = &instance.sessions else { return Err(wasmtime::Error::msg("exports no sessions")) };
            let body = bindings::body_param(body);
            let response = bindings::with_session(handle, |session| sessions.call_received(&mut instance.store, session, body))?;
            Ok(response.map(|response| response.map(|response| self.bounds.response(response)).transpose()))
        })
    }

    /// Makes one call: admitted by the breaker, counted, timed, and reported if it faults. In a dry world only the fault is reported.
    fn call<R>(
        &self,
        function: Function,
        about: Option<About<'_>>,
        world: &mut World,
        ask: impl FnOnce(&mut World) -> GuestResult<R>,
    ) -> CallResult<R> {
        if !world.is_live() {
            // Nobody has measured these, and an explanation makes a hundred.
            return aside(|| ask(world))
                .map_err(|flaw| CallError::Fault(Box::new(self.fault(function, about, flaw.into_defect()))))
                .and_then(|answer| answer.map_err(CallError::Refused));
        }
        let started = Instant::now();
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        if !self.breaker.lock().admits(tokio::time::Instant::now) {
            return Err(CallError::CircuitOpen);
        }
        let answer = ask(world);
        let took = started.elapsed();
        if self.lingers.load(Ordering::Relaxed) != (took > LONG_CALL) {
            self.lingers.store(took > LONG_CALL, Ordering::Relaxed);
        }
        let answer = answer.map_err(|flaw| self.faulted(function, about, flaw))?;
        if let Some(time) = self.calls.of(function) {
            time.observe(took.as_secs_f64());
        }
        self.completed();
        answer.map_err(|refusal| {
            self.counters.refusals.fetch_add(1, Ordering::Relaxed);
            self.instances.shared.metrics.policy_refusals.with_label_values(&[&*self.name]).inc();
            if tracing::enabled!(tracing::Level::DEBUG) && self.may_log() {
                let (event_id, trace_id) = About::fields(about);
                let (policy, version, function) = (&*self.name, &*self.version, function.name());
                tracing::debug!(policy, version, function, event_id, trace_id, code = refusal.code, "policy refusal: {}", refusal.detail);
            }
            CallError::Refused(refusal)
        })
    }

    /// Calls a guest within its deadline. What the call wrote to the world is dropped if it gives no answer. The three layers of what
    /// `run` returns are: trapped or not, refused or not, usable or not.
    fn attempt<R>(
        &self,
        world: &mut World,
        run: impl FnOnce(&mut Instance) -> wasmtime::Result<Result<Result<R, bindings::Unusable>, bindings::types::Refusal>>,
    ) -> GuestResult<R> {
        // A dry call takes a fresh instance: it neither sees nor changes what other calls left in a guest's memory. A tape has only what the
        // recorded call has read, and not what the configuration of an instance reads.
        let is_kept = world.is_live() || world.is_tape();
        let instance = match (is_kept, world.is_tape()) {
            (false, _) => self.instances.fresh(world),
            (true, false) => self.instances.take(world),
            (true, true) => self.instances.take(&mut World::dry(&self.instances.shared.model)),
        };
        let mut instance = instance.map_err(Flaw::Stopped)?;
        std::mem::swap(&mut instance.store.data_mut().world, world);
        instance.begin(Deadline::call(self.limits()));
        let answer = if self.takes_long() { aside(|| run(&mut instance)) } else { run(&mut instance) };
        std::mem::swap(&mut instance.store.data_mut().world, world);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                world.drop_call();
                return Err(Flaw::Stopped(defect(&error, instance.store.data())));
            }
        };
        if is_kept {
            self.instances.give_back(instance);
        }
        let usable = match answer {
            Ok(answer) => answer.map(Ok),
            Err(refusal) => self.bounds.refusal(refusal).map(Err),
        };
        usable.map_err(|detail| {
            world.drop_call();
            Flaw::Unusable(Defect::new(FaultKind::Output, &detail))
        })
    }

    /// Returns whether one more line about this policy may be logged. If not, counts it.
    pub fn may_log(&self) -> bool {
        self.instances.shared.may_log()
    }

    /// Offers an answered call as a sample.
    fn sample<R>(&self, function: Function, world: &World, answer: &CallResult<R>, sample: impl FnOnce() -> Arguments) {
        if world.is_live() && answer.is_ok() {
            self.samples.offer(function, sample);
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.instances.shared.metrics
    }

    /// Returns what nodes of a cluster agree on to have this policy.
    pub fn component(&self) -> Component {
        Component { name: self.name.to_string(), digest: self.digest.to_string() }
    }
}

impl Calls {
    fn of(&self, function: Function) -> Option<&Histogram> {
        match function {
            Function::Route => self.route.as_ref(),
            Function::Format => self.format.as_ref(),
            Function::Opened => self.opened.as_ref(),
            Function::Received => self.received.as_ref(),
            Function::Closed => self.closed.as_ref(),
        }
    }

    fn new(shared: &Shared, roles: &[Role]) -> Calls {
        let metrics = &shared.metrics;
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
