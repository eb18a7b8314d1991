//! A server whose policy is replaced while it runs, each time its author saves a file.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, Durability, Grant, OnBad};
use crate::dispatch::Story;
use crate::dispatch::observers::{Asked, Observer, TooMany};
use crate::explain::{Budget, Explained};
use crate::kit::Workbench;
use crate::node::Node;
use crate::policy::{CallError, LoadError};
use crate::recording::notation;
use crate::server::Server;

/// A running server and the policy that is being written.
#[derive(Debug)]
pub struct Dev {
    name: String,
    node: Arc<Node>,
    bench: Workbench,
}

/// A policy that was swapped in.
#[derive(Debug)]
pub struct Swapped {
    pub version: String,
    pub took: Duration,
    /// Grants that the component needs and the configuration lacks. The development server grants them anyway.
    pub granted: Vec<Grant>,
    /// Whether each call makes a new instance, because an instance is too large to keep.
    pub keeps_no_instance: bool,
}

impl Dev {
    /// Returns a server with this configuration, without the policy that is being written, and a handle to change it.
    ///
    /// # Errors
    /// Those of [`Server::new`].
    pub async fn start(name: &str, mut config: Config) -> anyhow::Result<(Dev, Server)> {
        if config.store.dir.as_os_str().is_empty() {
            // What its author tries is not kept for a server of this user.
            config.store.durability = Durability::Memory;
        }
        config.plugins.on_bad = OnBad::Skip;
        // The front end that is written beside it has a server and a port of its own.
        config.auth.pages_of_localhost = true;
        // `swap` loads the policy. The folder may contain the author's component, which must not be loaded as well.
        config.plugins.watch = false;
        config.policies.entry(name.to_owned()).or_default().enabled = Some(false);
        let server = Server::new(config.clone()).await?;
        let node = server.node();
        node.format.time();
        let bench = Workbench::for_edits(config)?;
        Ok((Dev { name: name.to_owned(), node, bench }, server))
    }

    /// Returns an observer of all that happens from now on.
    ///
    /// # Errors
    /// There are as many as the configuration allows.
    pub fn observe(&self) -> Result<Observer, TooMany> {
        self.node.dispatch.observers.observe()
    }

    /// Returns the explanation of an event, as `events?explain=true` does.
    pub fn tell(&self, story: &Story) -> String {
        let explained = Explained::of(story, &self.node.dispatch, &self.node.format, false, &mut Budget::default());
        // Structs of strings and numbers: serializing them can't fail.
        serde_json::to_string(&explained).unwrap_or_default()
    }

    /// Returns what a sessions policy answered, in the notation of fixtures.
    pub fn answer(asked: &Asked) -> String {
        match &asked.answer {
            Ok(None) => "leaves it to other policies".to_owned(),
            Ok(Some(response)) => format!("answers {}", notation::response(response)),
            Err(CallError::Refused(refusal)) => format!("refuses {}", notation::refusal(refusal)),
            Err(CallError::Fault(fault)) => format!("faults {}", notation::fault(fault)),
            Err(CallError::CircuitOpen) => "is not called: its circuit is open".to_owned(),
        }
    }

    /// Compiles a component, for its fixtures and for the server, and returns the grants that it needs.
    ///
    /// # Errors
    /// No server would load it.
    pub fn compile(&self, component: &Path) -> Result<Vec<Grant>, LoadError> {
        self.bench.imported_grants(component)
    }

    /// Returns the workbench that runs its fixtures.
    pub fn bench(&self) -> &Workbench {
        &self.bench
    }

    /// Loads a component with the settings of this configuration and replaces the policy. It is granted everything that it needs.
    ///
    /// # Errors
    /// The component can't be loaded; the old one keeps serving.
    pub fn swap(&self, component: &Path, needed: &[Grant], mut config: Config) -> Result<Swapped, LoadError> {
        let started = Instant::now();
        let configured = config.policies.entry(self.name.clone()).or_default();
        let granted: Vec<Grant> = needed.iter().copied().filter(|grant| !configured.grants.contains(grant)).collect();
        configured.grants.extend(&granted);
        let loader = self.bench.loader(config, &self.node);
        let policy = loader.load_one(&self.name, component)?;
        let (version, keeps_no_instance) = (policy.version.to_string(), policy.keeps_no_instance());
        loader.put(&self.node.policies, policy);
        Ok(Swapped { version, took: started.elapsed(), granted, keeps_no_instance })
    }
}
