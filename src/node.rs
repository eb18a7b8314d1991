//! A node: the parts of one running server, without sockets and HTTP. Servers, fixtures, benchmarks and fuzzers all assemble it here.

mod exposure;
pub mod settings;
pub mod sharing;
mod stats;

use std::sync::Arc;

use anyhow::bail;
use tokio::runtime::Handle;

use crate::cluster::{Cluster, Joined, Member};
use crate::config::{Config, OnBad};
use crate::dispatch::Dispatch;
use crate::dispatch::observers::{Observers, Reloaded, Trace};
use crate::dispatch::sinks::Sinks;
use crate::explain::{Budget, Explained};
use crate::format::Format;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::policy::load::{Again, Loader, Reload};
use crate::policy::{Policies, PolicySet, Rejected, engine};
use crate::recording::shadow;
use crate::store::{self, Cleaner, Opened, Store};
use crate::traces::Traces;
use crate::types::clock::Clock;
use crate::types::event::Event;
use sharing::Sharing;
pub use stats::{INTERVAL, SAMPLES_MAX, Stats};

/// What a node needs before its policies are loaded.
#[derive(Debug)]
pub struct Foundations {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub model: Arc<Model>,
    pub loader: Arc<Loader>,
    pub store: Store,
    pub cluster: Cluster,
    /// `None` if nothing is traced.
    pub traces: Option<Arc<Traces>>,
}

/// The folder of the plugins' last good versions, in that of the store.
const PLUGINS_KEPT: &str = "policies";

#[derive(Debug)]
pub struct Node {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub model: Arc<Model>,
    pub policies: Arc<Policies>,
    pub loader: Arc<Loader>,
    pub dispatch: Arc<Dispatch>,
    pub format: Arc<Format>,
    pub store: Store,
    pub cluster: Cluster,
    pub traces: Option<Arc<Traces>>,
    pub stats: Stats,
    /// Held by a reload: there is one at a time.
    reloading: tokio::sync::Mutex<()>,
    sharing: Sharing,
}

impl Foundations {
    /// Returns foundations that keep everything in memory only.
    ///
    /// # Errors
    /// This machine can't run compiled WebAssembly, or refuses a thread.
    pub fn new(config: Arc<Config>, clock: Clock) -> anyhow::Result<Foundations> {
        Ok(Foundations::on(Opened::memory(), config, clock, Arc::new(Metrics::new()?))?.0)
    }

    /// Opens the store that the configuration names, and returns foundations with what it has kept, and what keeps the store small. Blocks.
    ///
    /// # Errors
    /// As for [`Foundations::new`]; the store can't be opened.
    pub fn durable(config: Arc<Config>, clock: Clock) -> anyhow::Result<(Foundations, Option<Cleaner>)> {
        let metrics = Arc::new(Metrics::new()?);
        if !config.cluster.nats.is_empty() {
            return Ok((Foundations::among_others(config, clock, metrics)?, None));
        }
        let place = store::place(&config.store, |name| std::env::var_os(name));
        let opened = Opened::at(&place, &config.store, &metrics)?;
        let dir = opened.store.is_kept().then(|| place.dir()).flatten().map(|dir| dir.join(PLUGINS_KEPT));
        let traces = Traces::new(&config.traces, &metrics)?;
        let (foundations, cleaner) = Foundations::on(opened, config, clock, metrics)?;
        let foundations = Foundations { traces, ..foundations };
        let keeping = |loader: Loader| if let Some(dir) = dir { loader.keeping(&dir) } else { loader };
        Ok((foundations.with_loader(keeping), cleaner))
    }

    /// Joins the cluster that the configuration names, and waits for NATS. Blocks.
    fn among_others(config: Arc<Config>, clock: Clock, metrics: Arc<Metrics>) -> anyhow::Result<Foundations> {
        let joined = Handle::current().block_on(Joined::open(&config))?;
        tracing::info!("what is answered is kept in the cluster {}: on the NATS servers", config.cluster.name);
        let opened = Opened::stream(joined.stream.clone(), joined.store);
        let traces = Traces::new(&config.traces, &metrics)?;
        let (foundations, _) = Foundations::on(opened, config.clone(), clock, metrics.clone())?;
        let member = Member::new(joined, &config, foundations.model.clone(), metrics);
        Ok(Foundations { cluster: Cluster::Member(member), traces, ..foundations })
    }

    fn on(opened: Opened, config: Arc<Config>, clock: Clock, metrics: Arc<Metrics>) -> anyhow::Result<(Foundations, Option<Cleaner>)> {
        let store = opened.store.clone();
        let model = Model::new(&config, clock, opened.id, store.is_kept(), &metrics);
        let cleaner = opened.fill(&model)?;
        let loader = Arc::new(Loader::new(engine::serving()?, config.clone(), model.clone(), metrics.clone()));
        Ok((Foundations { config, metrics, model, loader, store, cluster: Cluster::Alone, traces: None }, cleaner))
    }

    /// Does the same with another kind of loader.
    pub fn with_loader(self, change: impl FnOnce(Loader) -> Loader) -> Foundations {
        let loader = self.loader.with(self.config.clone(), self.model.clone(), self.metrics.clone());
        Foundations { loader: Arc::new(change(loader)), ..self }
    }

    /// Loads the policies that the configuration names.
    ///
    /// # Errors
    /// A plugin was refused, and the configuration says to stop.
    pub async fn load(&self) -> anyhow::Result<Arc<Node>> {
        if let Cluster::Member(_) = &self.cluster {
            // It takes what the nodes have agreed on, which it does not know yet: see `sharing`.
            let node = self.node(PolicySet::new(0, Vec::new()), Vec::new());
            node.policies.await_first();
            return Ok(node);
        }
        let loading = self.loader.clone();
        // Compiling takes a while, and must not block the runtime's threads.
        let (set, rejected) = tokio::task::spawn_blocking(move || loading.load()).await?;
        let sentence = Rejected::sentence;
        let plugins = &self.config.plugins;
        if plugins.on_bad == OnBad::Stop && !rejected.is_empty() {
            let reasons: Vec<String> = rejected.iter().map(sentence).collect();
            bail!("a plugin can't be loaded: {}\n(plugins.on_bad = \"skip\" starts without it)", reasons.join("\n"));
        }
        for rejected in &rejected {
            let sentence = sentence(rejected);
            match set.find(&rejected.name) {
                Some(kept) => tracing::error!(version = &*kept.version, "plugin refused, its last good version serves: {sentence}"),
                None if rejected.must_serve => {
                    tracing::error!("plugin refused, and nobody is served without it (plugins.on_bad = \"skip\" serves): {sentence}");
                }
                None => tracing::error!("plugin skipped: {sentence}"),
            }
        }
        for policy in &set.policies {
            tracing::info!(policy = &*policy.name, version = &*policy.version, roles = ?policy.roles, "policy loaded");
        }
        let node = self.node(set, rejected);
        let renewing = node.clone();
        tokio::task::spawn_blocking(move || renewing.renew_candidates()).await?;
        Ok(node)
    }

    /// Returns a node with these policies.
    pub fn node(&self, set: PolicySet, rejected: Vec<Rejected>) -> Arc<Node> {
        let Foundations { config, metrics, model, loader, store, cluster, traces } = self;
        let retire_after = *config.plugins.retire_ms;
        let policies = Arc::new(Policies::new(set, rejected, retire_after));
        let format = Format::new(policies.clone(), model.clone(), store.clone(), traces.clone(), config.mailboxes.shapes_bytes_max);
        let observers = Observers::new(&config.live, loader.faults(), metrics);
        let sinks = Sinks::new(config, metrics);
        let dispatch = Dispatch::new(policies.clone(), model.clone(), metrics.clone(), store.clone(), sinks, observers, &config.events);
        Arc::new(Node {
            dispatch: Arc::new(dispatch.traced(traces.clone())),
            stats: Stats::default(),
            format: Arc::new(format),
            config: config.clone(),
            metrics: metrics.clone(),
            model: model.clone(),
            loader: loader.clone(),
            policies,
            store: store.clone(),
            cluster: cluster.clone(),
            traces: traces.clone(),
            reloading: tokio::sync::Mutex::default(),
            sharing: Sharing::default(),
        })
    }
}

impl Node {
    /// Returns what publishing an event would do, as far as there is room for it. Changes nothing.
    pub fn look(&self, event: &Event, budget: &mut Budget) -> Explained {
        Explained::of(&self.dispatch.look(event), &self.dispatch, &self.format, true, budget)
    }

    /// Brings the candidates up to date with the configuration and their files, and lets those in the shadow run. Blocks.
    fn renew_candidates(&self) {
        self.loader.renew_candidates(&self.policies);
        if self.policies.candidates().is_empty() {
            return;
        }
        // The first time.
        if let Some(calls) = self.loader.taps().shadowed()
            && let Err(error) = shadow::start(Arc::downgrade(&self.policies), calls)
        {
            tracing::error!("candidates make no calls in the shadow: the system refuses a thread: {error}");
        }
    }

    /// Goes back to the previous version of a policy if a new one faults from the start, and to the live policy if a canary does. Does not wait
    /// for a reload.
    pub async fn roll_back(self: &Arc<Node>) {
        let mut rolled_back = self.loader.roll_back(&self.policies);
        rolled_back.extend(self.loader.return_canary(&self.policies));
        for rejected in &rolled_back {
            tracing::error!(policy = rejected.name, file = ?rejected.file, "rolled back: it {}", rejected.reason);
        }
        if !rolled_back.is_empty() {
            self.loader.tap_candidates(&self.policies);
            self.show(|| Reloaded::RolledBack(rolled_back));
            if let Cluster::Member(member) = &self.cluster {
                sharing::go_back(self, member).await;
            }
        }
    }

    /// Reloads the policies off the serving threads, with the next configuration if there is one, and logs the outcome.
    pub async fn reload(self: &Arc<Node>, again: Again, next: Option<Arc<Config>>) -> Reload {
        let _one_at_a_time = self.reloading.lock().await;
        let outcome = match &self.cluster {
            Cluster::Alone => {
                let (loader, policies) = (self.loader.clone(), self.policies.clone());
                let reloading = tokio::task::spawn_blocking(move || loader.reload(&policies, again, next));
                reloading.await.unwrap_or_else(|error| Reload::Unreadable(format!("the plugins can't be loaded: {error}")))
            }
            Cluster::Member(member) => sharing::reload(self, member, again, next).await,
        };
        let renewing = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || renewing.renew_candidates()).await {
            tracing::error!("candidates can't be loaded: {error}");
        }
        match &outcome {
            Reload::Unchanged => {}
            Reload::Swapped { revision, changed } => {
                tracing::info!(revision, "policies reloaded: {}", changed.join(", "));
                self.show(|| Reloaded::Swapped { revision: *revision, changed: changed.clone() });
            }
            Reload::Refused(rejected) => {
                for rejected in rejected {
                    tracing::error!(policy = rejected.name, file = ?rejected.file, "plugin refused, the old one keeps serving: it {}", rejected.reason);
                }
                self.show(|| Reloaded::Refused(rejected.clone()));
            }
            Reload::Unreadable(detail) => {
                tracing::error!("{detail}; the current policies keep serving");
                self.show(|| Reloaded::Unreadable(detail.clone()));
            }
        }
        outcome
    }

    fn show(&self, reloaded: impl FnOnce() -> Reloaded) {
        self.dispatch.observers.show(|| Trace::Reload(reloaded()));
    }
}
