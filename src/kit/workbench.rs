//! A server's inside with one plugin on it, and no sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Grant};
use crate::dead_letters::DeadLetters;
use crate::dispatch::Dispatch;
use crate::policy::contract::grant_names;
use crate::policy::host::{Clock, Services};
use crate::policy::inspect::Inspection;
use crate::policy::load::Loader;
use crate::policy::{Policies, Policy, PolicySet};
use crate::server;

#[derive(Debug)]
pub struct Workbench {
    pub config: Arc<Config>,
    pub services: Arc<Services>,
    loader: Loader,
}

impl Workbench {
    /// # Errors
    /// This machine can't run WebAssembly.
    pub fn new(config: Config, clock: Clock) -> anyhow::Result<Workbench> {
        let config = Arc::new(config);
        let (services, loader) = server::foundations_at(&config, clock)?;
        // There is no serving that compiling could hold up, and somebody waits.
        Ok(Workbench { config, services, loader: loader.foreground() })
    }

    /// One for a plugin that is tried again after each edit.
    ///
    /// # Errors
    /// This machine can't run WebAssembly.
    pub fn for_edits(config: Config) -> anyhow::Result<Workbench> {
        let Workbench { config, services, loader } = Workbench::new(config, Clock::Machine)?;
        Ok(Workbench { config, services, loader: loader.for_edits() })
    }

    /// Another one, with a configuration and a time of its own, that needn't compile what this one has.
    ///
    /// # Errors
    /// This machine can't run WebAssembly.
    pub fn beside(&self, config: Config, clock: Clock) -> anyhow::Result<Workbench> {
        let config = Arc::new(config);
        let (services, _) = server::foundations_at(&config, clock)?;
        let loader = self.loader.with(config.clone(), services.clone());
        Ok(Workbench { config, services, loader })
    }

    /// What loads policies for a server with this configuration and these services.
    pub fn loader(&self, config: Config, services: Arc<Services>) -> Loader {
        self.loader.with(Arc::new(config), services)
    }

    /// The name under which the configuration knows a file: what it says, or the file's own.
    pub fn name_of(&self, file: &Path) -> String {
        let same = |configured: &Path| {
            let configured = self.config.plugins.dir.join(configured);
            std::fs::canonicalize(configured).is_ok_and(|there| std::fs::canonicalize(file).is_ok_and(|here| here == there))
        };
        let configured = self.config.policies.iter().find(|(_, policy)| policy.file.as_deref().is_some_and(same));
        let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        configured.map_or_else(stem, |(name, _)| name.clone())
    }

    /// # Errors
    /// No server would load it: why, for its author or operator.
    pub fn inspect(&self, name: &str, file: &Path) -> Result<Inspection, String> {
        self.loader.inspect(name, file)
    }

    /// The grants that a file needs.
    ///
    /// # Errors
    /// No server would load it.
    pub fn imported_grants(&self, file: &Path) -> Result<Vec<Grant>, String> {
        self.loader.imported_grants(file)
    }

    /// # Errors
    /// This server would not load it: why, for its author or operator.
    pub fn load(&self, name: &str, file: &Path) -> Result<Policy, String> {
        self.loader.load_one(name, file)
    }

    /// The table that grants a policy what it needs, ready to be pasted; `None` where nothing is missing.
    pub fn missing_grants(&self, name: &str, needed: &[Grant]) -> Option<String> {
        let known = self.config.policies.get(name);
        let granted = known.map(|policy| policy.grants.as_slice()).unwrap_or_default();
        if needed.iter().all(|grant| granted.contains(grant)) {
            return None;
        }
        Some(Workbench::grant_table(name, granted, needed))
    }

    /// The table of a policy that is granted these and those.
    pub fn grant_table(name: &str, granted: &[Grant], needed: &[Grant]) -> String {
        let mut all: Vec<Grant> = granted.iter().chain(needed).copied().collect();
        all.sort();
        all.dedup();
        format!("[policies.{name}]\ngrants = {:?}\n", grant_names(all.iter()))
    }

    /// Carries out what this policy alone decides.
    pub fn dispatch(&self, policy: Arc<Policy>) -> Dispatch {
        let policies = Policies::new(PolicySet { revision: 1, policies: vec![policy] }, Vec::new(), Duration::ZERO);
        let dead_letters = DeadLetters::new(self.config.dead_letters.clone(), self.services.metrics.clone());
        Dispatch::new(Arc::new(policies), self.services.clone(), Arc::new(dead_letters), &self.config.events)
    }
}
