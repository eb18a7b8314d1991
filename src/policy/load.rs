//! Loads files into a policy set: at start-up, and whenever the folder changes.
//!
//! A reload is all or nothing. It loads the files that changed; if one of them is refused, none takes effect. A file that was refused
//! earlier and has not changed since doesn't block later changes: its old policy keeps serving.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::bindings::Bounds;
use super::compile::Compiler;
use super::contract::{check_kind, imported_grants};
use super::fault::Faults;
use super::host::Shared;
use super::inspect::Inspection;
use super::plugin::{Binary, TOO_LARGE_TO_KEEP};
use super::source::{Candidate, Content, Fingerprint, Source};
use super::ticker::EpochTicker;
use super::{LoadError, Policies, Policy, PolicySet, Rejected};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::types::fault::cut;

/// A policy's `order` if its configuration doesn't set one.
const ORDER_DEFAULT: i32 = 100;

/// Bytes of a reason that are kept: it may contain the plugin's own text.
const REASON_BYTES_MAX: usize = 4096;

/// Loads plugins as configured.
#[derive(Debug)]
pub struct Loader {
    ticker: EpochTicker,
    compiler: Arc<Compiler>,
    config: Arc<Config>,
    source: Source,
    model: Arc<Model>,
    metrics: Arc<Metrics>,
    faults: Faults,
}

/// Which refused files a reload tries again although they have not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    No,
    /// Those whose reason may have passed.
    Passing,
    All,
}

/// How a reload ended.
#[derive(Debug)]
pub enum Reload {
    Unchanged,
    Swapped {
        revision: u64,
        changed: Vec<String>,
    },
    Refused(Vec<Rejected>),
    /// The plugins can't be listed. The current policies keep serving.
    Unreadable(String),
}

impl Loader {
    pub fn new(ticker: EpochTicker, config: Arc<Config>, model: Arc<Model>, metrics: Arc<Metrics>) -> Loader {
        let compiler = Arc::new(Compiler::new(&config.plugins));
        Loader { source: Source::new(&config), ticker, compiler, config, model, metrics, faults: Faults::new() }
    }

    /// Makes it compile in the foreground: somebody waits for the result.
    pub fn foreground(self) -> Loader {
        let compiler = Compiler::new(&self.config.plugins).foreground();
        Loader { compiler: Arc::new(compiler), ..self }
    }

    /// Makes it compile in the foreground, and reuse what has not changed since it last compiled the same plugin.
    pub fn for_edits(self) -> Loader {
        let compiler = Compiler::new(&self.config.plugins).foreground().for_edits();
        Loader { compiler: Arc::new(compiler), ..self }
    }

    /// Returns a loader with the same compiler, and another configuration, model and metrics.
    pub fn with(&self, config: Arc<Config>, model: Arc<Model>, metrics: Arc<Metrics>) -> Loader {
        let (ticker, compiler, source) = (self.ticker.clone(), self.compiler.clone(), Source::new(&config));
        Loader { ticker, compiler, source, config, model, metrics, faults: Faults::new() }
    }

    /// Makes the policies that it loads show their faults where those of another loader do.
    pub fn beside(self, other: &Loader) -> Loader {
        Loader { faults: other.faults.clone(), ..self }
    }

    /// Returns where the faults of its policies are seen.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// Loads every plugin. Returns those that could be loaded, and why the others could not.
    pub fn load(&self) -> (PolicySet, Vec<Rejected>) {
        let mut policies = Vec::new();
        let mut rejected = Vec::new();
        // At start-up there are no policies to keep: a folder that can't be read counts as empty, and the error is logged.
        let files = self.source.files().unwrap_or_else(|error| {
            tracing::warn!(dir = ?self.config.plugins.dir, "the plugins can't be listed: {error}");
            BTreeMap::new()
        });
        for (name, file) in files {
            let candidate = self.source.candidate(&name, &file);
            match self.policy(&candidate) {
                Ok(policy) => {
                    warn(&policy);
                    policies.push(Arc::new(policy));
                }
                Err(error) => rejected.push(reject(&candidate, &error)),
            }
        }
        (self.set(1, policies), rejected)
    }

    /// Replaces each policy whose circuit opened while it was on trial with the version before it. Returns what was rolled back.
    pub fn roll_back(&self, policies: &Policies) -> Vec<Rejected> {
        let current = policies.current();
        let mut next = current.policies.clone();
        let mut rejected = Vec::new();
        for policy in &mut next {
            let Some(previous) = policy.fallback() else { continue };
            let why = policy.last_fault.lock().as_ref().map_or_else(String::new, |fault| {
                let defect = &fault.defect;
                format!(", most recently in {} ({}: {})", fault.function, defect.kind.name(), defect.detail)
            });
            let (version, times) = (&policy.version, policy.limits().breaker_faults);
            let reason = format!("was new and faulted {times} times in a row{why}: {version} is rolled back to {}", previous.version);
            let (name, file, digest) = (policy.name.to_string(), policy.file.clone(), Some(policy.digest.to_string()));
            rejected.push(Rejected { name, file, digest, reason, is_retried: false, at: SystemTime::now() });
            *policy = previous;
        }
        if !rejected.is_empty() {
            let mut all = policies.rejected();
            all.retain(|old| !rejected.iter().any(|new| new.name == old.name));
            all.extend(rejected.clone());
            if !policies.replace(&current, all, Some(self.set(current.revision + 1, next))) {
                // A reload came first. What still faults is found the next time.
                return Vec::new();
            }
            self.metrics.reloads.with_label_values(&["rolled_back"]).inc();
        }
        rejected
    }

    /// Brings the policies up to date with the files.
    pub fn reload(&self, policies: &Policies, again: Again) -> Reload {
        loop {
            // A policy may be rolled back while files are compiled.
            if let Some(outcome) = self.reload_once(policies, again) {
                return outcome;
            }
        }
    }

    fn reload_once(&self, policies: &Policies, again: Again) -> Option<Reload> {
        let current = policies.current();
        let known = policies.rejected();
        let (mut next, mut still_rejected, mut refused, mut changed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let files = match self.source.files() {
            Ok(files) => files,
            Err(error) => {
                self.metrics.reloads.with_label_values(&["unreadable"]).inc();
                return Some(Reload::Unreadable(format!("{} can't be listed: {error}", self.config.plugins.dir.display())));
            }
        };
        for (name, file) in &files {
            // One at a time: together they may be larger than memory.
            let candidate = self.source.candidate(name, file);
            let serving = current.find(&candidate.name);
            if let Some(serving) = serving.filter(|policy| candidate.digest() == Some(&*policy.digest)) {
                next.push(serving.clone());
                continue;
            }
            let refused_before = |old: &&Rejected| old.name == candidate.name && old.digest.as_deref() == candidate.digest();
            let refused_before = known.iter().find(refused_before);
            let waits = |old: &&Rejected| again == Again::No || (again == Again::Passing && !old.is_retried);
            if let Some(old) = refused_before.filter(waits) {
                still_rejected.push(old.clone());
                next.extend(serving.cloned());
                continue;
            }
            changed.push(candidate.name.clone());
            match self.policy(&candidate) {
                Ok(policy) => {
                    warn(&policy);
                    if let Some(old) = serving {
                        policy.follows(old);
                    }
                    next.push(Arc::new(policy));
                }
                // It was refused before, so it blocks nothing.
                Err(error) if again == Again::Passing && refused_before.is_some() => {
                    changed.pop();
                    still_rejected.push(reject(&candidate, &error));
                    next.extend(serving.cloned());
                }
                Err(error) => refused.push(reject(&candidate, &error)),
            }
        }
        for gone in current.policies.iter().filter(|policy| !files.contains_key(&*policy.name)) {
            changed.push(gone.name.to_string());
        }
        self.finish(policies, &current, next, still_rejected, refused, changed)
    }

    fn finish(
        &self,
        policies: &Policies,
        current: &Arc<PolicySet>,
        next: Vec<Arc<Policy>>,
        mut still_rejected: Vec<Rejected>,
        refused: Vec<Rejected>,
        changed: Vec<String>,
    ) -> Option<Reload> {
        let reloads = &self.metrics.reloads;
        if !refused.is_empty() {
            still_rejected.extend(refused.clone());
            policies.replace(current, still_rejected, None).then_some(())?;
            reloads.with_label_values(&["refused"]).inc();
            return Some(Reload::Refused(refused));
        }
        if changed.is_empty() {
            policies.replace(current, still_rejected, None).then_some(())?;
            return Some(Reload::Unchanged);
        }
        let revision = current.revision + 1;
        policies.replace(current, still_rejected, Some(self.set(revision, next))).then_some(())?;
        reloads.with_label_values(&["swapped"]).inc();
        Some(Reload::Swapped { revision, changed })
    }

    fn set(&self, revision: u64, mut policies: Vec<Arc<Policy>>) -> PolicySet {
        policies.sort_by_key(|policy| (policy.config.order.unwrap_or(ORDER_DEFAULT), policy.name.clone()));
        PolicySet::new(revision, policies)
    }

    fn policy(&self, candidate: &Candidate) -> Result<Policy, LoadError> {
        let Content { digest, bytes } = candidate.content.as_ref().map_err(Clone::clone)?;
        let name = candidate.name.as_str();
        let config = self.config.policies.get(name).cloned().unwrap_or_default();
        let limits = self.config.limits_for(name);
        let bounds = Bounds {
            items_max: limits.items_max.get(),
            body_bytes_max: self.config.events.event_bytes_max.get(),
            user_id_bytes_max: self.config.sockets.user_id_bytes_max.get(),
            name_bytes_max: self.config.groups.name_bytes_max.get(),
        };
        let shared = Shared::new(name, limits, self.model.clone(), self.metrics.clone(), self.faults.clone());
        let binary = Binary { name, file: candidate.file.clone(), digest: digest.clone(), bytes };
        Policy::load(&self.ticker, &self.compiler, binary, config, shared, bounds)
    }

    /// Loads one file under this policy's name, as `load` would.
    ///
    /// # Errors
    /// This server would not load the file.
    pub fn load_one(&self, name: &str, file: &Path) -> Result<Policy, LoadError> {
        self.policy(&self.source.candidate(name, file))
    }

    /// Adds a policy to the set, or replaces the one with its name.
    pub fn put(&self, policies: &Policies, policy: Policy) {
        let current = policies.current();
        if let Some(old) = current.find(&policy.name) {
            policy.follows(old);
        }
        let mut next: Vec<Arc<Policy>> = current.policies.iter().filter(|old| old.name != policy.name).cloned().collect();
        next.push(Arc::new(policy));
        policies.swap(self.set(current.revision + 1, next));
    }

    /// Returns the grants that a file needs.
    ///
    /// # Errors
    /// The file is not a component that this server could load.
    pub fn imported_grants(&self, file: &Path) -> Result<Vec<config::Grant>, LoadError> {
        let Content { digest, bytes } = self.source.read(file)?;
        check_kind(&bytes)?;
        let component = self.compiler.component(&self.ticker.engine, &digest, &bytes)?;
        Ok(imported_grants(&self.ticker.engine, &component)?)
    }

    /// Inspects a file, whether or not its configuration is complete.
    ///
    /// # Errors
    /// The file is not a plugin that this server could load.
    pub fn inspect(&self, name: &str, file: &Path) -> Result<Inspection, LoadError> {
        let Content { digest, bytes } = self.source.read(file)?;
        let shared = Shared::new(name, self.config.limits_for(name), self.model.clone(), self.metrics.clone(), self.faults.clone());
        let config = self.config.policies.get(name).cloned().unwrap_or_default();
        Inspection::of(&self.ticker, &self.compiler, digest, bytes, config, shared)
    }

    /// Returns the fingerprint of the source.
    ///
    /// # Errors
    /// The plugins can't be listed.
    pub fn fingerprint(&self) -> io::Result<Fingerprint> {
        self.source.fingerprint()
    }

    pub fn config(&self) -> &config::Plugins {
        &self.config.plugins
    }
}

/// Logs what the operator should know about a loaded policy.
fn warn(policy: &Policy) {
    if policy.keeps_no_instance() {
        tracing::warn!(policy = &*policy.name, "{TOO_LARGE_TO_KEEP}");
    }
}

fn reject(candidate: &Candidate, error: &LoadError) -> Rejected {
    let reason = cut(&error.to_string(), REASON_BYTES_MAX).to_owned();
    let digest = candidate.digest().map(str::to_owned);
    let is_retried = error.is_passing();
    Rejected { name: candidate.name.clone(), file: candidate.file.clone(), digest, reason, is_retried, at: SystemTime::now() }
}
