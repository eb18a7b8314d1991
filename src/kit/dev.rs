//! A server whose policy is replaced while it runs, as often as its author saves a file.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::config::{Config, Grant, OnBad};
use crate::dispatch::session_policies::Asked;
use crate::dispatch::{Story, Trace};
use crate::explain::Explained;
use crate::kit::Workbench;
use crate::kit::fixture::words;
use crate::node::Node;
use crate::policy::CallError;
use crate::server::Server;

/// Events that wait to be shown. A screen that is this far behind is read by nobody.
const TRACES_MAX: usize = 256;

/// A running server and the policy that is being written.
#[derive(Debug)]
pub struct Dev {
    name: String,
    node: Arc<Node>,
    bench: Workbench,
}

/// A policy that serves from now on.
#[derive(Debug)]
pub struct Swapped {
    pub version: String,
    pub took: Duration,
    /// What the component needs and the configuration doesn't grant. Here it has it all the same.
    pub granted: Vec<Grant>,
    /// Each call makes a new instance, since one is too large to be kept.
    pub keeps_no_instance: bool,
}

impl Dev {
    /// The server of this configuration, without the policy that is being written.
    ///
    /// # Errors
    /// Those of [`Server::new`].
    pub async fn start(name: &str, mut config: Config) -> anyhow::Result<(Dev, Server)> {
        config.plugins.on_bad = OnBad::Skip;
        // What changes is put there from here; the author's own component may lie in that folder.
        config.plugins.watch = false;
        config.policies.entry(name.to_owned()).or_default().enabled = Some(false);
        let server = Server::new(config.clone()).await?;
        let node = server.node();
        node.format.time();
        let bench = Workbench::for_edits(config)?;
        Ok((Dev { name: name.to_owned(), node, bench }, server))
    }

    /// Returns what is done from now on, for each event and by sessions policies.
    pub fn traces(&self) -> mpsc::Receiver<Trace> {
        let (observer, traces) = mpsc::channel(TRACES_MAX);
        self.node.dispatch.observe(observer);
        traces
    }

    /// Returns the whole story of an event, as `events?explain=true` answers it.
    pub fn tell(&self, story: Story) -> String {
        let explained = Explained::of(story, &self.node.dispatch, &self.node.format, false);
        // Structs of strings and numbers: serializing them can't fail.
        serde_json::to_string(&explained).unwrap_or_default()
    }

    /// Returns what a sessions policy answered, as fixtures write it.
    pub fn answer(asked: &Asked) -> String {
        match &asked.answer {
            Ok(None) => "does not take it".to_owned(),
            Ok(Some(response)) => format!("answers {}", words::response(response)),
            Err(CallError::Refused(refusal)) => format!("refuses {}", words::refusal(refusal)),
            Err(CallError::Fault(fault)) => format!("faults {}", words::fault(fault)),
            Err(CallError::CircuitOpen) => "is not called: its circuit is open".to_owned(),
        }
    }

    /// Compiles a component, for its fixtures and for the server, and says which grants it needs.
    ///
    /// # Errors
    /// No server would load it.
    pub fn compile(&self, component: &Path) -> Result<Vec<Grant>, String> {
        self.bench.imported_grants(component)
    }

    /// Where its fixtures are played.
    pub fn bench(&self) -> &Workbench {
        &self.bench
    }

    /// Loads a component with the settings of this configuration and puts it in the place of the policy. It has what it needs.
    ///
    /// # Errors
    /// Why it is not loaded; the old one keeps serving.
    pub fn swap(&self, component: &Path, needed: &[Grant], mut config: Config) -> Result<Swapped, String> {
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
