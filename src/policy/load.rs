//! Loads files into a policy set: at start-up, and whenever the folder changes.
//!
//! A reload is all or nothing. It loads the files that changed; if one of them is refused, none takes effect. A file that was refused
//! earlier and has not changed since doesn't block later changes: its old policy keeps serving.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::ticker::EpochTicker;
use sha2::{Digest, Sha256};

use super::bindings::Bounds;
use super::compile::Compiler;
use super::contract::{check_kind, imported_grants};
use super::host::Shared;
use super::inspect::Inspection;
use super::plugin::{Source, TOO_LARGE_TO_KEEP};
use super::{Policies, Policy, PolicySet, Rejected};
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
    model: Arc<Model>,
    metrics: Arc<Metrics>,
}

/// How a reload ended.
#[derive(Debug)]
pub enum Reload {
    Unchanged,
    Swapped { revision: u64, changed: Vec<String> },
    Refused(Vec<Rejected>),
}

/// A plugin's file, with its digest and bytes or why it could not be read.
struct Candidate {
    name: String,
    file: PathBuf,
    content: Result<(String, Vec<u8>), String>,
}

impl Candidate {
    fn digest(&self) -> Option<&str> {
        self.content.as_ref().ok().map(|(digest, _)| digest.as_str())
    }
}

impl Loader {
    pub fn new(ticker: EpochTicker, config: Arc<Config>, model: Arc<Model>, metrics: Arc<Metrics>) -> Loader {
        let compiler = Arc::new(Compiler::new(&config.plugins));
        Loader { ticker, compiler, config, model, metrics }
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
        Loader { ticker: self.ticker.clone(), compiler: self.compiler.clone(), config, model, metrics }
    }

    /// Loads every plugin. Returns those that could be loaded, and why the others could not.
    pub fn load(&self) -> (PolicySet, Vec<Rejected>) {
        let mut policies = Vec::new();
        let mut rejected = Vec::new();
        for candidate in self.candidates() {
            match self.policy(&candidate) {
                Ok(policy) => {
                    warn(&policy);
                    policies.push(Arc::new(policy));
                }
                Err(reason) => rejected.push(reject(&candidate, reason)),
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
            rejected.push(Rejected { name, file, digest, reason, at: SystemTime::now() });
            *policy = previous;
        }
        if !rejected.is_empty() {
            let mut all = policies.rejected();
            all.retain(|old| !rejected.iter().any(|new| new.name == old.name));
            all.extend(rejected.clone());
            policies.set_rejected(all);
            policies.swap(self.set(current.revision + 1, next));
            self.metrics.reloads.with_label_values(&["rolled_back"]).inc();
        }
        rejected
    }

    /// Brings the policies up to date with the files. With `again`, a refused file is tried again even if it has not changed.
    pub fn reload(&self, policies: &Policies, again: bool) -> Reload {
        let current = policies.current();
        let known = policies.rejected();
        let (mut next, mut still_rejected, mut refused, mut changed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let candidates = self.candidates();
        for candidate in &candidates {
            let serving = current.find(&candidate.name);
            if let Some(serving) = serving.filter(|policy| candidate.digest() == Some(&*policy.digest)) {
                next.push(serving.clone());
                continue;
            }
            let refused_before = |old: &&Rejected| old.name == candidate.name && old.digest.as_deref() == candidate.digest();
            if let Some(old) = known.iter().find(refused_before).filter(|_| !again) {
                still_rejected.push(old.clone());
                next.extend(serving.cloned());
                continue;
            }
            changed.push(candidate.name.clone());
            match self.policy(candidate) {
                Ok(policy) => {
                    warn(&policy);
                    if let Some(old) = serving {
                        policy.follows(old);
                    }
                    next.push(Arc::new(policy));
                }
                Err(reason) => refused.push(reject(candidate, reason)),
            }
        }
        for gone in current.policies.iter().filter(|policy| !candidates.iter().any(|candidate| *candidate.name == *policy.name)) {
            changed.push(gone.name.to_string());
        }
        self.finish(policies, next, still_rejected, refused, changed)
    }

    fn finish(
        &self,
        policies: &Policies,
        next: Vec<Arc<Policy>>,
        mut still_rejected: Vec<Rejected>,
        refused: Vec<Rejected>,
        changed: Vec<String>,
    ) -> Reload {
        let reloads = &self.metrics.reloads;
        if !refused.is_empty() {
            still_rejected.extend(refused.clone());
            policies.set_rejected(still_rejected);
            reloads.with_label_values(&["refused"]).inc();
            return Reload::Refused(refused);
        }
        policies.set_rejected(still_rejected);
        if changed.is_empty() {
            return Reload::Unchanged;
        }
        let revision = policies.current().revision + 1;
        policies.swap(self.set(revision, next));
        reloads.with_label_values(&["swapped"]).inc();
        Reload::Swapped { revision, changed }
    }

    fn set(&self, revision: u64, mut policies: Vec<Arc<Policy>>) -> PolicySet {
        policies.sort_by_key(|policy| (policy.config.order.unwrap_or(ORDER_DEFAULT), policy.name.clone()));
        PolicySet::new(revision, policies)
    }

    fn policy(&self, candidate: &Candidate) -> Result<Policy, String> {
        let (digest, bytes) = candidate.content.as_ref().map_err(Clone::clone)?;
        let name = candidate.name.as_str();
        let config = self.config.policies.get(name).cloned().unwrap_or_default();
        let limits = self.config.limits_for(name);
        let bounds = Bounds {
            items_max: limits.items_max,
            body_bytes_max: self.config.events.event_bytes_max,
            user_id_bytes_max: self.config.sockets.user_id_bytes_max,
            name_bytes_max: self.config.groups.name_bytes_max,
        };
        let shared = Shared::new(name, limits, self.model.clone(), self.metrics.clone());
        let source = Source { name, file: candidate.file.clone(), digest: digest.clone(), bytes };
        Policy::load(&self.ticker, &self.compiler, source, config, shared, bounds)
    }

    /// Loads one file under this policy's name, as `load` would.
    ///
    /// # Errors
    /// A sentence that the plugin's author or operator can act on.
    pub fn load_one(&self, name: &str, file: &Path) -> Result<Policy, String> {
        self.policy(&Candidate { name: name.to_owned(), file: file.to_owned(), content: self.read(file) })
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
    pub fn imported_grants(&self, file: &Path) -> Result<Vec<config::Grant>, String> {
        let (digest, bytes) = self.read(file)?;
        check_kind(&bytes)?;
        imported_grants(&self.ticker.engine, &self.compiler.component(&self.ticker.engine, &digest, &bytes)?)
    }

    /// Inspects a file, whether or not its configuration is complete.
    ///
    /// # Errors
    /// The file is not a plugin that this server could load.
    pub fn inspect(&self, name: &str, file: &Path) -> Result<Inspection, String> {
        let (digest, bytes) = self.read(file)?;
        let shared = Shared::new(name, self.config.limits_for(name), self.model.clone(), self.metrics.clone());
        let config = self.config.policies.get(name).cloned().unwrap_or_default();
        Inspection::of(&self.ticker, &self.compiler, digest, bytes, config, shared)
    }

    /// Reads the plugins of the folder and of the configuration, in order of their names.
    fn candidates(&self) -> Vec<Candidate> {
        let files = self.files();
        files.into_iter().map(|(name, file)| Candidate { content: self.read(&file), name, file }).collect()
    }

    /// Returns every policy's file: `NAME.wasm` in the folder, or the one that the configuration names.
    fn files(&self) -> BTreeMap<String, PathBuf> {
        let dir = &self.config.plugins.dir;
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            // Editors and copying tools keep unfinished files in the same folder, under names that begin with a dot.
            if path.extension().is_some_and(|extension| extension == "wasm") && !name.starts_with('.') {
                files.insert(name.to_owned(), path.clone());
            }
        }
        let configured = || self.config.policies.iter().filter_map(|(name, policy)| Some((name, dir.join(policy.file.as_ref()?))));
        // A file that is configured under other names isn't also loaded under its own.
        files.retain(|_, known| !configured().any(|(_, file)| file == *known));
        files.extend(configured().map(|(name, file)| (name.clone(), file)));
        files.retain(|name, _| self.config.policies.get(name).is_none_or(|policy| policy.enabled != Some(false)));
        files
    }

    fn read(&self, file: &Path) -> Result<(String, Vec<u8>), String> {
        let bytes_max = self.config.plugins.file_bytes_max;
        let unreadable = |error: std::io::Error| format!("can't be read: {error}");
        let metadata = std::fs::metadata(file).map_err(unreadable)?;
        // Reading a pipe may block, and a device may never end.
        if !metadata.is_file() {
            return Err("is not a file".into());
        }
        let mut bytes = Vec::new();
        // One byte more than allowed, to notice a file that has grown since `metadata`.
        let reading = std::fs::File::open(file).and_then(|file| file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes));
        reading.map_err(unreadable)?;
        if bytes.len() as u64 > bytes_max {
            let size = metadata.len().max(bytes.len() as u64);
            return Err(format!("has {size} bytes, over the limit of {bytes_max} (plugins.file_bytes_max)"));
        }
        Ok((hex(&Sha256::digest(&bytes)), bytes))
    }

    /// Returns the metadata of every policy's file, to notice a change cheaply.
    pub fn fingerprint(&self) -> Vec<(PathBuf, Option<[i64; 4]>)> {
        let look = |file: PathBuf| {
            // The inode and its change time also show a replacement of the same size and modification time.
            let seen = std::fs::metadata(&file).ok();
            let seen = seen.map(|seen| [seen.ino().cast_signed(), seen.size().cast_signed(), seen.ctime(), seen.ctime_nsec()]);
            (file, seen)
        };
        self.files().into_values().map(look).collect()
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

fn reject(candidate: &Candidate, reason: String) -> Rejected {
    let reason = cut(&reason, REASON_BYTES_MAX).to_owned();
    let digest = candidate.digest().map(str::to_owned);
    Rejected { name: candidate.name.clone(), file: candidate.file.clone(), digest, reason, at: SystemTime::now() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
