//! Loads files into a policy set: at start-up, and whenever the folder changes.
//!
//! A reload is all or nothing. It loads the files that changed; if one of them is refused, none takes effect. A file that was refused
//! earlier and has not changed since doesn't block later changes: its old policy keeps serving.
//!
//! Nodes of a cluster take what they have agreed on ([`agreed`]).

mod agreed;
mod candidates;
mod findings;
mod start;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::bindings::Bounds;
use super::compile::Compiler;
use super::contract::{check_kind, imported_grants, may_guard};
use super::fault::Faults;
use super::host::{Shared, Trial};
use super::inspect::Inspection;
use super::kept::Kept;
use super::plugin::{Binary, TOO_LARGE_TO_KEEP};
use super::source::{Content, Fingerprint, Found, Source};
use super::taps::Taps;
use super::ticker::EpochTicker;
use super::{LoadError, Policies, Policy, PolicySet, Rejected};
use crate::config::{self, Config, OnBad};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::types::fault::cut;
use findings::Findings;

/// A policy's `order` if its configuration doesn't set one.
const ORDER_DEFAULT: i32 = 100;

/// Bytes of a reason that are kept: it may contain the plugin's own text.
const REASON_BYTES_MAX: usize = 4096;

/// Loads plugins as configured.
#[derive(Debug)]
pub struct Loader {
    ticker: EpochTicker,
    compiler: Arc<Compiler>,
    setup: ArcSwap<Setup>,
    /// The last good versions; `None` if nothing outlives the process.
    kept: Option<Kept>,
    model: Arc<Model>,
    metrics: Arc<Metrics>,
    faults: Faults,
    taps: Taps,
}

/// A configuration, and the files that it names. It may be replaced while the server runs.
#[derive(Debug)]
struct Setup {
    config: Arc<Config>,
    source: Source,
}

impl Setup {
    fn new(config: Arc<Config>) -> Setup {
        Setup { source: Source::new(&config), config }
    }
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
    /// The plugins can't be listed, or the nodes of a cluster can't have them. The current policies keep serving.
    Unreadable(String),
}

impl Found {
    /// Returns whether the plugin may decide who connects, or what a reader may see.
    fn may_guard(&self) -> bool {
        self.content.as_ref().map_or(true, |content| may_guard(&content.bytes))
    }
}

impl Loader {
    pub fn new(ticker: EpochTicker, config: Arc<Config>, model: Arc<Model>, metrics: Arc<Metrics>) -> Loader {
        let compiler = Arc::new(Compiler::new(&config.plugins));
        let taps = Taps::new(&config, &metrics);
        let (setup, faults) = (ArcSwap::from_pointee(Setup::new(config)), Faults::new());
        Loader { setup, kept: None, ticker, compiler, model, metrics, faults, taps }
    }

    /// Makes it keep the last good versions in this folder, and serve them if a start refuses a plugin's file.
    pub fn keeping(self, dir: &Path) -> Loader {
        Loader { kept: Kept::open(dir), ..self }
    }

    /// Makes it compile in the foreground: somebody waits for the result.
    pub fn foreground(self) -> Loader {
        let compiler = Compiler::new(&self.config().plugins).foreground();
        Loader { compiler: Arc::new(compiler), ..self }
    }

    /// Makes it compile in the foreground, and reuse what has not changed since it last compiled the same plugin.
    pub fn for_edits(self) -> Loader {
        let compiler = Compiler::new(&self.config().plugins).foreground().for_edits();
        Loader { compiler: Arc::new(compiler), ..self }
    }

    /// Returns a loader with the same compiler, and another configuration, model and metrics.
    pub fn with(&self, config: Arc<Config>, model: Arc<Model>, metrics: Arc<Metrics>) -> Loader {
        let taps = Taps::new(&config, &metrics);
        let setup = ArcSwap::from_pointee(Setup::new(config));
        let (ticker, compiler) = (self.ticker.clone(), self.compiler.clone());
        Loader { ticker, compiler, setup, kept: None, model, metrics, faults: Faults::new(), taps }
    }

    /// Makes the policies that it loads show their faults and calls where those of another loader do.
    pub fn beside(self, other: &Loader) -> Loader {
        Loader { faults: other.faults.clone(), taps: other.taps.clone(), ..self }
    }

    /// Returns where the calls of its policies are recorded.
    pub fn taps(&self) -> Taps {
        self.taps.clone()
    }

    /// Returns where the faults of its policies are seen.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// Keeps a version that serves, for the next start.
    fn keep(&self, setup: &Setup, policy: &Policy) {
        let Some(kept) = &self.kept else { return };
        // The file may be another one by now; the next reload looks at that.
        let bytes = || {
            setup.source.folder().read(&policy.file).ok().filter(|content| *content.digest == *policy.digest).map(|content| content.bytes)
        };
        kept.keep(&policy.name, &policy.digest, bytes);
    }

    /// Returns whether nobody may be served without a refused plugin: none of its versions serves, and the configuration names it, or it is
    /// missed for another reason.
    fn must_serve(&self, setup: &Setup, name: &str, serves: bool, is_missed: bool) -> bool {
        let is_named = setup.config.policies.get(name).is_some_and(|policy| policy.is_named);
        !serves && (is_named || is_missed) && setup.config.plugins.on_bad != OnBad::Skip
    }

    /// Forgets the versions before those that have passed their trial.
    pub fn settle(&self, policies: &Policies) {
        let Some(kept) = &self.kept else { return };
        for policy in policies.current().policies.iter().filter(|policy| !policy.is_on_trial()) {
            kept.settle(&policy.name, &policy.digest);
        }
    }

    /// Replaces each policy whose circuit opened while it was on trial with the version before it. Returns what was rolled back.
    pub fn roll_back(&self, policies: &Policies) -> Vec<Rejected> {
        let current = policies.current();
        let mut next = current.policies.clone();
        let mut rejected = Vec::new();
        for policy in &mut next {
            let Some(previous) = policy.fallback() else { continue };
            let why = last_fault(policy);
            let (version, times) = (&policy.version, policy.limits().breaker_faults);
            let reason = format!("was new and faulted {times} times in a row{why}: {version} is rolled back to {}", previous.version);
            rejected.push(Rejected::while_serving(policy, reason));
            *policy = previous;
        }
        if !rejected.is_empty() {
            let mut all = policies.rejected();
            all.retain(|old| !rejected.iter().any(|new| new.name == old.name));
            all.extend(rejected.clone());
            let next = set(&self.setup.load(), current.revision + 1, next);
            if !self.model.replace_policies(|| policies.replace(&current, all, Some(next))) {
                // A reload came first. What still faults is found the next time.
                return Vec::new();
            }
            self.metrics.reloads.with_label_values(&["rolled_back"]).inc();
            if let Some(kept) = &self.kept {
                for Rejected { name, digest, reason, .. } in &rejected {
                    digest.iter().for_each(|digest| kept.roll_back(name, digest, reason));
                }
            }
        }
        rejected
    }

    /// Brings the policies up to date with the files, and with the next configuration if there is one. That takes effect if nothing is
    /// refused.
    pub fn reload(&self, policies: &Policies, again: Again, next: Option<Arc<Config>>) -> Reload {
        let next = next.map(|config| Arc::new(Setup::new(config)));
        loop {
            // A policy may be rolled back while files are compiled.
            let setup = next.clone().unwrap_or_else(|| self.setup.load_full());
            if let Some(outcome) = self.reload_once(policies, again, &setup, next.is_some()) {
                if let (Some(next), Reload::Unchanged | Reload::Swapped { .. }) = (next, &outcome) {
                    self.setup.store(next);
                }
                return outcome;
            }
        }
    }

    /// Brings the policies up to date with a configuration and the plugins that it names. `is_next`: the configuration is not in force yet. `None`
    /// if the policies were replaced meanwhile.
    fn reload_once(&self, policies: &Policies, again: Again, setup: &Setup, is_next: bool) -> Option<Reload> {
        let current = policies.current();
        let (findings, names) = match self.look(setup, policies, &current, (again, is_next)) {
            Ok(looked) => looked,
            Err(unreadable) => return Some(unreadable),
        };
        let outcome = self.finish(policies, &current, setup, findings)?;
        if let (Some(kept), Reload::Swapped { .. }) = (&self.kept, &outcome) {
            kept.retain(|name| names.contains(name));
            policies.current().policies.iter().for_each(|policy| self.keep(setup, policy));
        }
        Some(outcome)
    }

    /// Loads what has changed, and returns it with the names of all plugins.
    ///
    /// # Errors
    /// The plugins can't be listed.
    fn look(
        &self,
        setup: &Setup,
        policies: &Policies,
        current: &Arc<PolicySet>,
        (again, is_next): (Again, bool),
    ) -> Result<(Findings, BTreeSet<String>), Reload> {
        let before = self.setup.load_full();
        let known = policies.rejected();
        let mut findings = Findings::default();
        let files = setup.source.files().map_err(|error| {
            self.metrics.reloads.with_label_values(&["unreadable"]).inc();
            Reload::Unreadable(format!("{} can't be listed: {error}", setup.config.plugins.dir.display()))
        })?;
        for (name, file) in &files {
            // One at a time: together they may be larger than memory.
            let found = setup.source.found(name, file);
            let serving = current.find(&found.name);
            let config = setup.config.policy(name);
            if let Some(serving) = serving.filter(|policy| found.digest() == Some(&*policy.digest)) {
                if serving.config == config {
                    findings.next.push(serving.clone());
                } else {
                    findings.take(&found, Some(serving), self.configured(setup, serving));
                }
                continue;
            }
            let is_configured_anew = before.config.policies.get(name) != setup.config.policies.get(name);
            let refused_before = |old: &&Rejected| old.name == found.name && old.digest.as_deref() == found.digest();
            let refused_before = known.iter().find(refused_before).filter(|_| !is_configured_anew);
            let waits = |old: &&Rejected| again == Again::No || (again == Again::Passing && !old.is_retried);
            if let Some(old) = refused_before.filter(waits) {
                findings.keeps(serving, old.clone());
                continue;
            }
            match self.policy(setup, &found) {
                // It was refused before, so it blocks nothing.
                Err(error) if refused_before.is_some() && (again == Again::Passing || is_next) && !setup.source.is_whole() => {
                    findings.keeps(serving, Rejected::because(&found, &error));
                }
                loaded => findings.take(&found, serving, loaded),
            }
        }
        for gone in current.policies.iter().filter(|policy| !files.contains_key(&*policy.name)) {
            findings.changed.push(gone.name.to_string());
        }
        for rejected in findings.still_rejected.iter_mut().chain(&mut findings.refused) {
            let was_missed = known.iter().any(|old| old.name == rejected.name && old.must_serve);
            // What is refused changes nothing, so that the old one serves on.
            let serves = current.find(&rejected.name).is_some();
            rejected.must_serve = self.must_serve(setup, &rejected.name, serves, was_missed);
        }
        Ok((findings, files.into_keys().collect()))
    }

    fn finish(&self, policies: &Policies, current: &Arc<PolicySet>, setup: &Setup, findings: Findings) -> Option<Reload> {
        let Findings { next, mut still_rejected, refused, changed } = findings;
        let reloads = &self.metrics.reloads;
        if !refused.is_empty() {
            still_rejected.extend(refused.clone());
            policies.replace(current, still_rejected, None).then_some(())?;
            reloads.with_label_values(&["refused"]).inc();
            return Some(Reload::Refused(refused));
        }
        let revision = current.revision + 1;
        let next = set(setup, revision, next);
        // In another order, it is another set.
        if changed.is_empty() && next.id == current.id {
            policies.replace(current, still_rejected, None).then_some(())?;
            return Some(Reload::Unchanged);
        }
        self.model.replace_policies(|| policies.replace(current, still_rejected, Some(next))).then_some(())?;
        reloads.with_label_values(&["swapped"]).inc();
        Some(Reload::Swapped { revision, changed })
    }

    fn policy(&self, setup: &Setup, found: &Found) -> Result<Policy, LoadError> {
        self.load_found(setup, found, Trial::No)
    }

    fn load_found(&self, setup: &Setup, found: &Found, trial: Trial) -> Result<Policy, LoadError> {
        let Content { digest, bytes } = found.content.as_ref().map_err(Clone::clone)?;
        let name = found.name.as_str();
        let (config, shared, bounds) = self.around(setup, name, trial);
        let binary = Binary { name, file: found.file.clone(), digest: digest.clone(), bytes };
        Policy::load(&self.ticker, &self.compiler, binary, config, shared, bounds)
    }

    /// Returns a policy of the same code with its configuration of now.
    fn configured(&self, setup: &Setup, policy: &Policy) -> Result<Policy, LoadError> {
        let (config, shared, bounds) = self.around(setup, &policy.name, Trial::No);
        policy.configured(&self.ticker, config, shared, bounds)
    }

    /// Returns what a policy is given beside its code.
    fn around(&self, setup: &Setup, name: &str, trial: Trial) -> (config::Policy, Arc<Shared>, Bounds) {
        let config = setup.config.policy(name);
        let limits = setup.config.limits_for(name);
        let bounds = Bounds {
            items_max: limits.items_max.get(),
            body_bytes_max: setup.config.events.event_bytes_max.get(),
            user_id_bytes_max: setup.config.sockets.user_id_bytes_max.get(),
            name_bytes_max: setup.config.groups.name_bytes_max.get(),
        };
        let (model, metrics, faults, taps) = (self.model.clone(), self.metrics.clone(), self.faults.clone(), self.taps.clone());
        (config, Shared::new(name, limits, model, metrics, faults, taps, trial), bounds)
    }

    /// Loads one file under this policy's name, as `load` would.
    ///
    /// # Errors
    /// This server would not load the file.
    pub fn load_one(&self, name: &str, file: &Path) -> Result<Policy, LoadError> {
        let setup = self.setup.load();
        self.policy(&setup, &setup.source.folder().found(name, file))
    }

    /// Adds a policy to the set, or replaces the one with its name.
    pub fn put(&self, policies: &Policies, policy: Policy) {
        let current = policies.current();
        if let Some(old) = current.find(&policy.name) {
            policy.follows(old);
        }
        let mut next: Vec<Arc<Policy>> = current.policies.iter().filter(|old| old.name != policy.name).cloned().collect();
        next.push(Arc::new(policy));
        let next = set(&self.setup.load(), current.revision + 1, next);
        self.model.replace_policies(|| policies.swap(next));
    }

    /// Returns the grants that a file needs.
    ///
    /// # Errors
    /// The file is not a component that this server could load.
    pub fn imported_grants(&self, file: &Path) -> Result<Vec<config::Grant>, LoadError> {
        let Content { digest, bytes } = self.setup.load().source.folder().read(file)?;
        check_kind(&bytes)?;
        let component = self.compiler.component(&self.ticker.engine, &file.display().to_string(), &digest, &bytes)?;
        Ok(imported_grants(&self.ticker.engine, &component)?)
    }

    /// Inspects a file, whether or not its configuration is complete.
    ///
    /// # Errors
    /// The file is not a plugin that this server could load.
    pub fn inspect(&self, name: &str, file: &Path) -> Result<Inspection, LoadError> {
        let setup = self.setup.load();
        let Content { digest, bytes } = setup.source.folder().read(file)?;
        let (config, shared, _) = self.around(&setup, name, Trial::No);
        Inspection::of(&self.ticker, &self.compiler, digest, bytes, config, shared)
    }

    /// Returns the fingerprint of the source.
    ///
    /// # Errors
    /// The plugins can't be listed.
    pub fn fingerprint(&self) -> io::Result<Fingerprint> {
        self.setup.load().source.folder().fingerprint()
    }

    /// Returns the configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.setup.load().config.clone()
    }
}

/// Returns a set of these policies, in their order.
fn set(setup: &Setup, revision: u64, mut policies: Vec<Arc<Policy>>) -> PolicySet {
    let order = |policy: &Policy| policy.config.order.unwrap_or(ORDER_DEFAULT);
    policies.sort_by_key(|policy| (setup.source.rank(&policy.name), order(policy), policy.name.clone()));
    PolicySet::new(revision, policies)
}

/// Returns what is known of a policy's last fault, as the end of a sentence.
fn last_fault(policy: &Policy) -> String {
    policy.last_fault.lock().as_ref().map_or_else(String::new, |fault| {
        let defect = &fault.defect;
        format!(", most recently in {} ({}: {})", fault.function, defect.kind.name(), defect.detail)
    })
}

/// Logs what the operator should know about a loaded policy.
fn warn(policy: &Policy) {
    if policy.keeps_no_instance() {
        tracing::warn!(policy = &*policy.name, "{TOO_LARGE_TO_KEEP}");
    }
}

impl Rejected {
    fn of(found: &Found, reason: String, is_retried: bool) -> Rejected {
        let digest = found.digest().map(str::to_owned);
        let (name, file) = (found.name.clone(), found.file.clone());
        Rejected { name, file, digest, reason, is_retried, must_serve: false, at: SystemTime::now() }
    }

    /// Returns why a version is replaced that has served.
    fn while_serving(policy: &Policy, reason: String) -> Rejected {
        let (name, file, digest) = (policy.name.to_string(), policy.file.clone(), Some(policy.digest.to_string()));
        Rejected { name, file, digest, reason, is_retried: false, must_serve: false, at: SystemTime::now() }
    }

    fn because(found: &Found, error: &LoadError) -> Rejected {
        Rejected::of(found, cut(&error.to_string(), REASON_BYTES_MAX).to_owned(), error.is_passing())
    }
}
