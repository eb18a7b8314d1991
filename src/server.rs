//! The server: connects a node to its listeners, serves, and stops without losing what it accepted. Its submodules accept connections,
//! and run the periodic chores.

mod accept;
mod chores;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::auth::Auth;
use crate::cluster::{Answering, Cluster};
use crate::config::{Config, Layers, OnBad, Setting};
use crate::http::ingress::{self, Ingress};
use crate::http::operate::Operate;
use crate::http::routes::{Front, Routers, answering, routers};
use crate::model::mailbox::Mailboxes;
use crate::net::bodies::Bodies;
use crate::net::permits::{ConnectionPermits, SessionPermits};
use crate::net::rate::Bucket;
use crate::net::tls::Tls;
use crate::node::settings::Settings;
use crate::node::{Foundations, Node};
use crate::policy::candidate::Candidate;
use crate::policy::{Policy, Rejected};
use crate::session::{Sessions, Streams};
use crate::sink::Sinks;
use crate::store::Cleaner;
use crate::types::clock::Clock;
use crate::types::close::Close;
use accept::bind;

/// How long a stop waits for requests. Complete requests are answered within milliseconds; one that still trickles in has not been
/// accepted, and doesn't delay the stop.
const REQUEST_GRACE: Duration = Duration::from_secs(1);

/// The server's stage, which connections follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// Requests in progress are finished.
    Finishing,
    /// Connections without a session end.
    Over,
}

/// A server that has loaded its policies and bound its address.
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    /// Each listener with its routes.
    listeners: Vec<(TcpListener, Arc<Front>)>,
    auth: Arc<Auth>,
    settings: Arc<Settings>,
    tls: Option<Arc<Tls>>,
    operate: Arc<Operate>,
    sinks: Arc<Sinks>,
    /// Notified when the server takes no new sockets any more.
    stopping: Arc<Notify>,
    /// Set when streams have to end.
    streams_end: watch::Sender<bool>,
    cleaner: Option<Cleaner>,
    answering: Answering,
}

/// Runs a server until `stop` resolves, then drains it. Reads the configuration again, from these layers, and reloads the policies at each of
/// `reloads`. `settings` are those of `config`.
///
/// # Errors
/// A plugin was refused and the configuration says to stop, or the address can't be bound.
pub async fn run(
    config: Config,
    (layers, settings): (Layers, Vec<Setting>),
    stop: impl Future<Output = ()>,
    reloads: mpsc::Receiver<()>,
) -> anyhow::Result<()> {
    tokio::pin!(stop);
    let reloads = Arc::new(tokio::sync::Mutex::new(reloads));
    loop {
        // Starting may take a while: policies are compiled, and keys are fetched from issuers. No connection has been accepted by then.
        let server = tokio::select! {
            server = Server::with(config.clone(), Some((layers.clone(), settings.clone()))) => server?,
            () = &mut stop => return Ok(()),
        };
        let node = server.node();
        say_if_empty(&node);
        let reloading = tokio::spawn(chores::reload_at(server.settings.clone(), server.sinks.clone(), reloads.clone()));
        let served = server.serve(&mut stop).await;
        reloading.abort();
        match (served, &node.cluster, node.cluster.fatal()) {
            // What this node has decided and nobody has seen is forgotten, and what the others have decided is read anew.
            (Err(_), Cluster::Member(_), None) => tracing::warn!("beginning afresh"),
            (Err(_), _, Some(why)) => bail!("this node can't go on: {why}"),
            (served, ..) => return served,
        }
    }
}

/// Says why there are no policies, if there are none.
fn say_if_empty(node: &Node) {
    // A node of a cluster has none yet.
    if node.policies.current().policies.is_empty() && node.policies.check().is_ok() {
        let dir = &node.config.plugins.dir;
        let why =
            node.loader.fingerprint().map_or_else(|error| format!("the plugins can't be listed ({error})"), |_| "no policies".to_owned());
        tracing::warn!(?dir, "{why}: events reach nobody, direct messages still do");
    }
}

/// Loads the policies and their candidates as [`run`] would, and returns a line about each.
///
/// # Errors
/// A plugin or a candidate is refused and the configuration doesn't say to skip it, or there is no folder of plugins.
pub async fn check(config: Config) -> anyhow::Result<Vec<String>> {
    let (dir, on_bad) = (config.plugins.dir.clone(), config.plugins.on_bad);
    let foundations = Foundations::new(Arc::new(config), Clock::Machine)?;
    Auth::new(&foundations.config.auth, foundations.metrics.clone())?;
    Tls::new(&foundations.config.tls)?;
    let Foundations { config, model, store, metrics, .. } = &foundations;
    Sinks::new(config, model, store, metrics)?;
    let policies = foundations.load().await?.policies.clone();
    foundations.loader.fingerprint().with_context(|| format!("plugins.dir is {}, which can't be listed", dir.display()))?;
    let candidates = policies.candidates();
    let refused_candidate = |candidate: &Arc<Candidate>| {
        let refused = candidate.loaded.as_ref().err()?;
        Some(format!("the candidate of {} ({}) {}", candidate.name, candidate.file.display(), refused.reason))
    };
    let refused: Vec<String> =
        policies.rejected().iter().map(Rejected::sentence).chain(candidates.iter().filter_map(refused_candidate)).collect();
    if on_bad != OnBad::Skip && !refused.is_empty() {
        bail!("a plugin can't be loaded: {}", refused.join("\n"));
    }
    let line = |policy: &Arc<Policy>| {
        let roles: Vec<String> = policy.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
        format!("policy {} {} ({}) from {}", policy.name, policy.version, roles.join(", "), policy.file.display())
    };
    let candidate = |candidate: &Arc<Candidate>| {
        let (version, mode, file) = (&candidate.loaded.as_ref().ok()?.version, candidate.config.mode.name(), candidate.file.display());
        Some(format!("candidate of {}: {version} ({mode}) from {file}", candidate.name))
    };
    let loaded = policies.current().policies.iter().map(line).chain(candidates.iter().filter_map(candidate)).collect::<Vec<_>>();
    Ok(loaded.into_iter().chain(refused.into_iter().map(|sentence| format!("skipped: {sentence}"))).collect())
}

impl Server {
    /// Loads the policies and binds the listeners.
    ///
    /// # Errors
    /// A plugin was refused and the configuration says to stop, or the address can't be bound.
    pub async fn new(config: Config) -> anyhow::Result<Server> {
        Server::with(config, None).await
    }

    /// Does the same, and lets operators have the configuration read again.
    ///
    /// # Errors
    /// As for [`Server::new`].
    pub async fn with(config: Config, layers: Option<(Layers, Vec<Setting>)>) -> anyhow::Result<Server> {
        // Reading a store takes a while, and must not block the runtime's threads.
        let opening = tokio::task::spawn_blocking(move || Foundations::durable(Arc::new(config), Clock::Machine));
        let (foundations, cleaner) = opening.await??;
        let auth = Arc::new(Auth::new(&foundations.config.auth, foundations.metrics.clone())?);
        let tls = Tls::new(&foundations.config.tls)?.map(Arc::new);
        let Foundations { config, model, store, metrics, .. } = &foundations;
        let sinks = Sinks::new(config, model, store, metrics)?;
        auth.fetch().await;
        let node = foundations.load().await?;
        let config = node.config.clone();
        let ready = Arc::new(AtomicBool::new(true));
        let stopping = Arc::new(Notify::new());
        let settings = Arc::new(Settings::new(node.clone(), auth.clone(), sinks.clone(), layers));
        let bodies = Arc::new(Bodies::new(&config.http));
        let (streams_end, ending) = watch::channel(false);
        let operate = Arc::new(Operate {
            node: node.clone(),
            auth: auth.clone(),
            ready: ready.clone(),
            sinks: sinks.clone(),
            settings: settings.clone(),
            stopping: ending,
            listing: tokio::sync::Mutex::default(),
        });
        let sessions = Arc::new(Sessions {
            auth: auth.clone(),
            bodies: bodies.clone(),
            streams: Streams::default(),
            ready,
            stopping: stopping.clone(),
            permits: SessionPermits::new(config.sockets.sessions_max.get(), config.sockets.per_address_max),
            handshakes: Mutex::new(Bucket::full(config.sockets.handshakes_per_second_max.get())),
            dispatch: node.dispatch.clone(),
            format: node.format.clone(),
            cluster: node.cluster.clone(),
            metrics: node.metrics.clone(),
            traces: node.traces.clone(),
            sockets: config.sockets.clone(),
            limits: config.mailboxes.clone(),
            return_within_ms: config.stop_return_within_ms,
        });
        let streams = ingress::stream::Streams::new(&config, operate.stopping.clone());
        let ingress = Arc::new(Ingress::new(node.clone(), bodies, auth.clone(), streams));
        let Routers { outside, inside, among } = routers(&config, &auth, sessions, ingress.clone(), operate.clone());
        let answering = answering(ingress.clone(), among);
        let front = |ingress, routes| Front::new(ingress, routes, &operate, &auth);
        let clients = listener(config.listen, "--listen, or `listen` in the configuration", &config)?;
        let listeners = match config.operate_listen {
            None => vec![(clients, front(Some(ingress), outside.merge(inside)))],
            Some(address) => {
                let operators = listener(address, "`operate_listen` in the configuration", &config)?;
                vec![(clients, front(Some(ingress), outside)), (operators, front(None, inside))]
            }
        };
        Ok(Server { node, listeners, auth, settings, tls, operate, sinks, stopping, streams_end, cleaner, answering })
    }

    /// Returns the node, for the development server.
    pub(crate) fn node(&self) -> Arc<Node> {
        self.node.clone()
    }

    /// Returns the bound addresses, which are only known once bound if the configured port is 0. The first is `listen`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(|(listener, _)| listener.local_addr()).collect()
    }

    /// Serves until `stop` resolves, then drains: reports not ready and refuses new sockets, closes the listeners, finishes requests, and
    /// closes sockets with [`Close::Restart`].
    ///
    /// # Errors
    /// The addresses can't be read, before the first connection; or the store has failed, which also stops the server.
    pub async fn serve(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        for (address, what) in self.addresses()?.iter().zip(["", ", for operators"]) {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            tracing::info!("listening on {scheme}://{address}{}{what}", self.node.config.base_path);
        }
        let metrics = &self.node.metrics;
        let http = &self.node.config.http;
        let permits = [
            ConnectionPermits::new(http.connections_max.get(), http.connections_per_address_max, metrics.clone()),
            ConnectionPermits::new(http.operate_connections_max.get(), 0, metrics.clone()),
        ];
        let (stage, _) = watch::channel(Stage::Serving);
        let (working, idle) = mpsc::channel::<()>(1);
        self.settings.note_exposure();
        let chores = self.start_chores();
        let (sinks_end, end) = watch::channel(false);
        let sinks = tokio::spawn(chores::deliver(self.node.clone(), self.sinks.clone(), end));
        let among = self.node.cluster.run(&self.node.dispatch, self.answering.clone());
        let mut has_failed = false;
        tokio::select! {
            () = stop => {}
            () = self.node.store.failed() => has_failed = true,
            () = self.accept_all(&permits, &stage, &working) => {}
        }
        self.operate.ready.store(false, Ordering::Relaxed);
        self.stopping.notify_waiters();
        let notice = if has_failed { Duration::ZERO } else { *self.node.config.stop_notice_ms };
        // Another node leads at once: what is left to do here is passed on to it.
        let handing = async {
            if !has_failed {
                self.node.cluster.hand_over().await;
            }
        };
        let (_, ()) = tokio::join!(timeout(notice, self.accept_all(&permits, &stage, &working)), handing);
        drop(working);
        for chore in chores {
            chore.abort();
        }
        let Server { node, listeners, streams_end, .. } = self;
        drop(listeners);
        let (mailboxes, deadline) = (&node.model.mailboxes, *node.config.stop_deadline_ms);
        tracing::info!(sessions = mailboxes.totals().sessions, "stopping");
        match timeout(deadline, drain(&node, &permits, (&stage, idle), &streams_end, (&sinks_end, sinks))).await {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!(sessions = mailboxes.totals().sessions, "stopped with connections still open (stop_deadline_ms)"),
        }
        if !has_failed {
            node.cluster.leave().await;
        }
        drop(among);
        let is_stored = close(node).await;
        if has_failed || !is_stored { Err(anyhow::anyhow!("the store has failed: see the log")) } else { Ok(()) }
    }

    fn start_chores(&mut self) -> Vec<JoinHandle<()>> {
        let every = *self.node.config.plugins.watch_interval_ms;
        vec![
            tokio::spawn(chores::watch_plugins(self.node.clone())),
            tokio::spawn(chores::retry_plugins(self.node.clone())),
            tokio::spawn(chores::share_policies(self.node.clone())),
            tokio::spawn(chores::roll_back(self.node.clone())),
            tokio::spawn(chores::watch_keys(self.auth.clone(), self.tls.clone(), self.sinks.clone(), every)),
            tokio::spawn(chores::sweep(self.node.clone())),
            tokio::spawn(chores::sample(self.node.clone())),
            tokio::spawn(chores::note_marks(self.node.clone())),
            tokio::spawn(chores::clean(self.cleaner.take())),
            tokio::spawn(chores::follow_issuers(self.auth.clone())),
        ]
    }
}

/// Binds a listener. `settings`: what chooses its address.
fn listener(address: SocketAddr, settings: &str, config: &Config) -> anyhow::Result<TcpListener> {
    bind(address, config.http.backlog.get())
        .with_context(|| format!("can't listen on {address}; another address is chosen with {settings}, and a port of 0 takes a free one"))
}

/// Ends what was accepted, each after what it may still hear of: requests, then streams' connections and sessions, then sinks. `idle` resolves
/// when no request is under way.
async fn drain(
    node: &Node,
    permits: &[Arc<ConnectionPermits>],
    (stage, mut idle): (&watch::Sender<Stage>, mpsc::Receiver<()>),
    streams_end: &watch::Sender<bool>,
    (sinks_end, sinks): (&watch::Sender<bool>, JoinHandle<()>),
) {
    // Accepted requests are answered, and their messages are in the mailboxes, before the readers' sockets are closed.
    let _ = stage.send(Stage::Finishing);
    let _ = streams_end.send(true);
    let _ = timeout(REQUEST_GRACE, idle.recv()).await;
    let _ = stage.send(Stage::Over);
    for round in 0..Mailboxes::SWEEP_ROUNDS {
        let ended = u32::try_from(node.model.mailboxes.end_part(round, &Close::Restart)).unwrap_or(u32::MAX);
        tokio::time::sleep(Duration::from_secs(1) * ended / node.config.stop_closes_per_second_max.get()).await;
    }
    for permits in permits {
        permits.all_free().await;
    }
    // Last, so that they hear of the sessions that have closed.
    let _ = sinks_end.send(true);
    let _ = sinks.await;
}

/// Sends the last spans, and closes the store. Returns whether all that was accepted is stored: then the next start knows that nothing is
/// missing.
async fn close(node: Arc<Node>) -> bool {
    if let Some(traces) = node.traces.clone() {
        // They are of the sessions that have closed.
        let _ = tokio::task::spawn_blocking(move || traces.close()).await;
    }
    matches!(tokio::task::spawn_blocking(move || node.store.close(&node.model)).await, Ok(Ok(())))
}
