//! Loads, inspects and runs single plugins as a node would, without sockets.

use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, Grant};
use crate::node::{Foundations, Node};
use crate::policy::contract::grant_names;
use crate::policy::inspect::Inspection;
use crate::policy::load::Loader;
use crate::policy::{LoadError, Policy, PolicySet};
use crate::types::clock::Clock;

#[derive(Debug)]
pub struct Workbench {
    pub foundations: Foundations,
}

impl Workbench {
    /// Returns a workbench that compiles in the foreground.
    ///
    /// # Errors
    /// This machine can't run WebAssembly.
    pub fn new(config: Config, clock: Clock) -> anyhow::Result<Workbench> {
        // Compiling can't delay a server here, and somebody waits for it.
        let foundations = Foundations::new(Arc::new(config), clock)?.with_loader(Loader::foreground);
        Ok(Workbench { foundations })
    }

    /// Returns a workbench for a plugin that is compiled again after each edit.
    ///
    /// # Errors
    /// This machine can't run WebAssembly.
    pub fn for_edits(config: Config) -> anyhow::Result<Workbench> {
        let Workbench { foundations } = Workbench::new(config, Clock::Machine)?;
        Ok(Workbench { foundations: foundations.with_loader(Loader::for_edits) })
    }

    /// Returns another workbench, with its own configuration and clock, that shares this one's compiled components.
    ///
    /// # Errors
    /// This machine can't run WebAssembly.
    pub fn beside(&self, config: Config, clock: Clock) -> anyhow::Result<Workbench> {
        let beside = Foundations::new(Arc::new(config), clock)?;
        let loader = self.foundations.loader.with(beside.config.clone(), beside.model.clone(), beside.metrics.clone());
        Ok(Workbench { foundations: beside.with_loader(|_| loader) })
    }

    /// Returns a loader of policies for this node with another configuration.
    pub fn loader(&self, config: Config, node: &Node) -> Loader {
        self.foundations.loader.with(Arc::new(config), node.model.clone(), node.metrics.clone()).beside(&node.loader)
    }

    pub fn config(&self) -> &Config {
        &self.foundations.config
    }

    /// Returns the name of the policy that a file is: the configured one, or the file's own.
    pub fn name_of(&self, file: &Path) -> String {
        let same = |configured: &Path| {
            let configured = self.config().plugins.dir.join(configured);
            std::fs::canonicalize(configured).is_ok_and(|there| std::fs::canonicalize(file).is_ok_and(|here| here == there))
        };
        let configured = self.config().policies.iter().find(|(_, policy)| policy.file.as_deref().is_some_and(same));
        let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        configured.map_or_else(stem, |(name, _)| name.clone())
    }

    /// Inspects a plugin's file.
    ///
    /// # Errors
    /// No server would load it.
    pub fn inspect(&self, name: &str, file: &Path) -> Result<Inspection, LoadError> {
        self.foundations.loader.inspect(name, file)
    }

    /// Returns the grants that a file needs.
    ///
    /// # Errors
    /// No server would load it.
    pub fn imported_grants(&self, file: &Path) -> Result<Vec<Grant>, LoadError> {
        self.foundations.loader.imported_grants(file)
    }

    /// Loads a plugin's file as a policy.
    ///
    /// # Errors
    /// This server would not load it.
    pub fn load(&self, name: &str, file: &Path) -> Result<Policy, LoadError> {
        self.foundations.loader.load_one(name, file)
    }

    /// Returns the configuration table that grants a policy what it needs; `None` if nothing is missing.
    pub fn missing_grants(&self, name: &str, needed: &[Grant]) -> Option<String> {
        let known = self.config().policies.get(name);
        let granted = known.map(|policy| policy.grants.as_slice()).unwrap_or_default();
        if needed.iter().all(|grant| granted.contains(grant)) {
            return None;
        }
        Some(Workbench::grant_table(name, granted, needed))
    }

    /// Returns the configuration table that grants a policy what it has and what it needs.
    pub fn grant_table(name: &str, granted: &[Grant], needed: &[Grant]) -> String {
        let mut all: Vec<Grant> = granted.iter().chain(needed).copied().collect();
        all.sort();
        all.dedup();
        format!("[policies.{name}]\ngrants = {:?}\n", grant_names(all.iter()))
    }

    /// Returns a node with this policy alone.
    pub fn node(&self, policy: Arc<Policy>) -> Arc<Node> {
        self.foundations.node(PolicySet::new(1, vec![policy]), Vec::new())
    }
}
