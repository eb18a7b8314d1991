//! A server whose policy is replaced while it runs, as often as its author saves a file.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::config::{Config, Grant, OnBad};
use crate::dispatch::Dispatched;
use crate::explain;
use crate::format::Format;
use crate::operate::Operate;
use crate::policy::engine;
use crate::policy::load::Loader;
use crate::server::Server;

/// Events that wait to be shown. A screen that is this far behind is read by nobody.
const SHOWN_MAX: usize = 256;

/// A running server and the policy that is being written.
#[derive(Debug)]
pub struct Dev {
    name: String,
    operate: Arc<Operate>,
    format: Arc<Format>,
    compiler: Loader,
}

/// A policy that serves from now on.
#[derive(Debug)]
pub struct Swapped {
    pub version: String,
    pub took: Duration,
    /// What the component needs and the configuration doesn't grant. Here it has it all the same.
    pub granted: Vec<Grant>,
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
        let (operate, format) = server.inside();
        let compiler = Loader::new(engine::serving()?, Arc::new(config), operate.services.clone()).in_a_hurry().for_edits();
        Ok((Dev { name: name.to_owned(), operate, format, compiler }, server))
    }

    /// What is done for each event from now on, as JSON: a receipt with its explanation.
    pub fn events(&self) -> mpsc::Receiver<Dispatched> {
        let (onlooker, events) = mpsc::channel(SHOWN_MAX);
        self.operate.dispatch.show(onlooker);
        events
    }

    /// The whole story of an event, as `events?explain=true` answers it.
    pub async fn tell(&self, dispatched: Dispatched) -> String {
        let explanation = explain::told(&self.operate.dispatch, &self.format, dispatched.account, false).await;
        let mut story = dispatched.receipt;
        if let (Some(members), Ok(explanation)) = (story.as_object_mut(), serde_json::to_value(&explanation)) {
            members.insert("explanation".to_owned(), explanation);
        }
        story.to_string()
    }

    /// Compiles a component into the cache, from which fixtures and server take it.
    ///
    /// # Errors
    /// No server would load it.
    pub fn compile(&self, component: &Path) -> Result<(), String> {
        self.compiler.imported_grants(component).map(drop)
    }

    /// Loads a component with the settings of this configuration and puts it in the place of the policy. It has what it imports.
    ///
    /// # Errors
    /// Why it is not loaded; the old one keeps serving.
    pub fn swap(&self, component: &Path, mut config: Config) -> Result<Swapped, String> {
        let started = Instant::now();
        let engine = engine::serving().map_err(|error| error.to_string())?;
        let needed = Loader::new(engine.clone(), Arc::new(config.clone()), self.operate.services.clone()).imported_grants(component)?;
        let configured = config.policies.entry(self.name.clone()).or_default();
        let granted: Vec<Grant> = needed.into_iter().filter(|grant| !configured.grants.contains(grant)).collect();
        configured.grants.extend(&granted);
        let loader = Loader::new(engine, Arc::new(config), self.operate.services.clone());
        let policy = loader.load_one(&self.name, component)?;
        let version = policy.version.clone();
        loader.put(&self.operate.policies, policy);
        Ok(Swapped { version, took: started.elapsed(), granted })
    }
}
