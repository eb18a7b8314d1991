//! What follows a call. Faults in a row open the circuit, unless the events are to blame. A new version is on trial until it has completed
//! some calls; if its circuit opens before, the version before it comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::{About, Flaw, Policy};
use crate::config::Limits;
use crate::model::world::World;
use crate::policy::breaker::Breaker;
use crate::policy::call::{CallError, Function};
use crate::types::fault::{Defect, Fault};

/// Returns the circuit breaker of a policy with these limits.
pub(super) fn breaker(limits: &Limits) -> Breaker {
    let (first, longest) = (*limits.breaker_pause_ms, *limits.breaker_pause_max_ms);
    Breaker::new(limits.breaker_faults.get(), first, longest)
}

impl Policy {
    /// Starts the trial period: keeps the last proven version for rollback until this one has completed `trial_calls` calls. The old
    /// version's samples are taken over, since this one has to answer them too.
    pub fn follows(&self, old: &Arc<Policy>) {
        self.samples.take_over(&old.samples);
        let proven = old.previous.lock().clone().unwrap_or_else(|| old.clone());
        self.on_trial.store(true, Ordering::Relaxed);
        *self.previous.lock() = Some(proven);
    }

    /// Takes over what another version has answered well: a policy that faults has to answer it too.
    pub fn learns_from(&self, other: &Policy) {
        self.samples.take_over(&other.samples);
    }

    pub fn is_on_trial(&self) -> bool {
        self.on_trial.load(Ordering::Relaxed)
    }

    /// Returns the version before this one while it is on trial.
    pub fn before(&self) -> Option<Arc<Policy>> {
        self.previous.lock().clone()
    }

    /// Returns the version to roll back to if this one is on trial and its circuit is open.
    pub fn fallback(&self) -> Option<Arc<Policy>> {
        if self.is_circuit_open() { self.before() } else { None }
    }

    /// Returns whether the policy's circuit is open, so that it is not called.
    pub fn is_circuit_open(&self) -> bool {
        self.breaker.lock().is_open()
    }

    /// Notes a call without a fault: closes the circuit, and ends the trial period after `trial_calls` of them.
    pub(super) fn completed(&self) {
        self.breaker.lock().succeeded();
        let completed = self.counters.completed.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_on_trial() && completed >= self.limits().trial_calls {
            self.on_trial.store(false, Ordering::Relaxed);
            self.previous.lock().take();
        }
    }

    /// Counts and logs a fault. Opens the circuit after too many in a row, unless the events are to blame.
    pub(super) fn faulted(&self, function: Function, about: Option<About<'_>>, flaw: Flaw) -> CallError {
        let is_stopped = matches!(flaw, Flaw::Stopped(_));
        let defect = flaw.into_defect();
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        let kind = defect.kind.name();
        self.instances.shared.metrics.policy_faults.with_label_values(&[&*self.name, kind]).inc();
        if self.may_log() {
            let (event_id, trace_id) = About::fields(about);
            tracing::warn!(
                policy = &*self.name,
                version = &*self.version,
                function = function.name(),
                event_id,
                trace_id,
                kind,
                "policy fault: {}",
                defect.detail
            );
        }
        let is_suspect = self.breaker.lock().faulted();
        if is_suspect {
            // Without a sample to repeat, a guest that stopped counts as broken; an answer that breaks a rule may be due to the event.
            let is_broken = self.is_sound(function).map_or(is_stopped, |is_sound| !is_sound);
            let mut breaker = self.breaker.lock();
            if !is_broken {
                breaker.succeeded();
            } else if breaker.open(tokio::time::Instant::now()) {
                tracing::error!(policy = &*self.name, version = &*self.version, "circuit open: the policy faulted too often in a row");
            }
        }
        let fault = self.fault(function, about, defect);
        *self.last_fault.lock() = Some(fault.clone());
        self.instances.shared.faults.show(&fault);
        CallError::Fault(Box::new(fault))
    }

    pub(super) fn fault(&self, function: Function, about: Option<About<'_>>, defect: Defect) -> Fault {
        Fault {
            policy: self.name.clone(),
            version: self.version.clone(),
            digest: self.digest.clone(),
            function: function.name().into(),
            event: about.map(|about| about.event.to_owned()),
            defect,
            at: SystemTime::now(),
        }
    }

    /// Repeats the function's sample in a dry world, and returns whether it is still answered without a fault. `None` if there is no
    /// sample.
    fn is_sound(&self, function: Function) -> Option<bool> {
        let sample = self.samples.of(function)?;
        let answer = self.repeat(&sample, &mut World::dry(&self.instances.shared.model));
        Some(!matches!(answer, Err(CallError::Fault(_))))
    }
}
