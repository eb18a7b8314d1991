//! From files to a policy set: at the start, and whenever the folder changes.
//!
//! A reload is whole or not at all. It takes the files that changed; if one of them is refused, none takes effect. A file
//! that was refused earlier and has not changed since doesn't hold up later changes: its old policy goes on serving.

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

/// Where a policy stands among the others when its configuration doesn't say.
const ORDER_DEFAULT: i32 = 100;

/// Bytes of a reason that are kept: it may hold what the plugin itself says.
const REASON_BYTES_MAX: usize = 4096;

/// Loads plugins as the configuration says.
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

/// A file in the folder, read.
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

    /// Somebody waits for what it compiles.
    pub fn foreground(self) -> Loader {
        let compiler = Compiler::new(&self.config.plugins).foreground();
        Loader { compiler: Arc::new(compiler), ..self }
    }

    /// Somebody waits for it, and what it compiles is what it compiled before, with an edit.
    pub fn for_edits(self) -> Loader {
        let compiler = Compiler::new(&self.config.plugins).foreground().for_edits();
        Loader { compiler: Arc::new(compiler), ..self }
    }

    /// One that has compiled what this one has, with another configuration and other services.
    pub fn with(&self, config: Arc<Config>, model: Arc<Model>, metrics: Arc<Metrics>) -> Loader {
        Loader { ticker: self.ticker.clone(), compiler: self.compiler.clone(), config, model, metrics }
    }

    /// Everything that can be loaded, and what can't.
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

    /// Puts the version before in the place of each new one that faults from the start. What was rolled back.
    pub fn roll_back(&self, policies: &Policies) -> Vec<Rejected> {
        let current = policies.current();
        let mut next = current.policies.clone();
        let mut rejected = Vec::new();
        for policy in &mut next {
            let Some(previous) = policy.fallback() else { continue };
            let why = policy.last_fault.lock().as_ref().map_or_else(String::new, |fault| {
                let defect = &fault.defect;
                format!(", at last in {} ({}: {})", fault.function, defect.kind.name(), defect.detail)
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

    /// Brings the policies up to date with the files. `again`: a file that was refused is tried again, changed or not.
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

    /// Loads one file under this policy's name, as it would be loaded with all others.
    ///
    /// # Errors
    /// A sentence that the plugin's author or operator can act on.
    pub fn load_one(&self, name: &str, file: &Path) -> Result<Policy, String> {
        self.policy(&Candidate { name: name.to_owned(), file: file.to_owned(), content: self.read(file) })
    }

    /// Puts a policy in the place of the one with its name, or among the others.
    pub fn put(&self, policies: &Policies, policy: Policy) {
        let current = policies.current();
        if let Some(old) = current.find(&policy.name) {
            policy.follows(old);
        }
        let mut next: Vec<Arc<Policy>> = current.policies.iter().filter(|old| old.name != policy.name).cloned().collect();
        next.push(Arc::new(policy));
        policies.swap(self.set(current.revision + 1, next));
    }

    /// The grants that a file needs.
    ///
    /// # Errors
    /// It is no component that this server could load.
    pub fn imported_grants(&self, file: &Path) -> Result<Vec<config::Grant>, String> {
        let (digest, bytes) = self.read(file)?;
        check_kind(&bytes)?;
        imported_grants(&self.ticker.engine, &self.compiler.component(&self.ticker.engine, &digest, &bytes)?)
    }

    /// What there is to know of a file before a configuration fits it.
    ///
    /// # Errors
    /// It is no plugin that this server could load.
    pub fn inspect(&self, name: &str, file: &Path) -> Result<Inspection, String> {
        let (digest, bytes) = self.read(file)?;
        let shared = Shared::new(name, self.config.limits_for(name), self.model.clone(), self.metrics.clone());
        let config = self.config.policies.get(name).cloned().unwrap_or_default();
        Inspection::of(&self.ticker, &self.compiler, digest, bytes, config, shared)
    }

    /// The plugins of the folder and of the configuration, by name, read.
    fn candidates(&self) -> Vec<Candidate> {
        let files = self.files();
        files.into_iter().map(|(name, file)| Candidate { content: self.read(&file), name, file }).collect()
    }

    /// Every policy's file: `NAME.wasm` in the folder, or where the configuration says.
    fn files(&self) -> BTreeMap<String, PathBuf> {
        let dir = &self.config.plugins.dir;
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            // Editors and copiers put their unfinished files beside the real ones under names with a dot in front.
            if path.extension().is_some_and(|extension| extension == "wasm") && !name.starts_with('.') {
                files.insert(name.to_owned(), path.clone());
            }
        }
        let configured = || self.config.policies.iter().filter_map(|(name, policy)| Some((name, dir.join(policy.file.as_ref()?))));
        // A file that serves under configured names doesn't also serve under its own.
        files.retain(|_, known| !configured().any(|(_, file)| file == *known));
        files.extend(configured().map(|(name, file)| (name.clone(), file)));
        files.retain(|name, _| self.config.policies.get(name).is_none_or(|policy| policy.enabled != Some(false)));
        files
    }

    fn read(&self, file: &Path) -> Result<(String, Vec<u8>), String> {
        let bytes_max = self.config.plugins.file_bytes_max;
        let unreadable = |error: std::io::Error| format!("can't be read: {error}");
        let metadata = std::fs::metadata(file).map_err(unreadable)?;
        // Reading a pipe would wait, and a device has no end.
        if !metadata.is_file() {
            return Err("is no file".into());
        }
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that has grown since it was looked at.
        let reading = std::fs::File::open(file).and_then(|file| file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes));
        reading.map_err(unreadable)?;
        if bytes.len() as u64 > bytes_max {
            let size = metadata.len().max(bytes.len() as u64);
            return Err(format!("has {size} bytes, over the limit of {bytes_max} (plugins.file_bytes_max)"));
        }
        Ok((hex(&Sha256::digest(&bytes)), bytes))
    }

    /// What the files look like from outside, to notice a change cheaply.
    pub fn fingerprint(&self) -> Vec<(PathBuf, Option<[i64; 4]>)> {
        let look = |file: PathBuf| {
            // The inode and its change time also tell a file of the same size and time that was put in its place.
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

/// What its operator should know of a policy that was loaded.
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
