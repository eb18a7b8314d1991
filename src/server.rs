//! The server: wires the stations together, accepts connections, watches the plugins, and stops without losing what it
//! accepted. Nothing else wires.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{interval, timeout};

use crate::auth::Auth;
use crate::config::{Config, OnBad};
use crate::dead_letters::DeadLetters;
use crate::dispatch::Dispatch;
use crate::explain::Explain;
use crate::format::Format;
use crate::http::ingress::Ingress;
use crate::http::operate::Operate;
use crate::http::routes::{Front, routers};
use crate::metrics::Metrics;
use crate::model::groups::Groups;
use crate::model::mailbox::Mailboxes;
use crate::model::state::States;
use crate::net::permits::{Client, ConnectionPermits, SessionPermits};
use crate::net::rate::Bucket;
use crate::net::stream::Stream;
use crate::net::tls::Tls;
use crate::net::wire::Wire;
use crate::policy::host::{Clock, Services};
use crate::policy::load::Loader;
use crate::policy::{Policies, Policy, Rejected, engine};
use crate::session::Sessions;
use crate::types::close::Close;

/// How often a part of the kept messages is looked through for what has expired.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait before accepting again when the process has no file descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long a stop waits for requests. Those that have arrived are answered in milliseconds; one that still trickles in was
/// not accepted yet, and holds nobody up.
const REQUEST_GRACE: Duration = Duration::from_secs(1);

/// What connections are told of the server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// Requests under way are finished.
    Finishing,
    /// Connections that are no sockets end.
    Over,
}

/// A server that has loaded its policies and bound its address.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    /// With what is served there.
    listeners: Vec<(TcpListener, Arc<Front>)>,
    auth: Arc<Auth>,
    tls: Option<Arc<Tls>>,
    operate: Arc<Operate>,
    format: Arc<Format>,
}

/// Runs a server until `stop` resolves, then drains it.
///
/// # Errors
/// A plugin was refused, or the address can't be bound.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(stop);
    // A start may take a while: policies are compiled, and issuers asked. Nobody was let in yet.
    let server = tokio::select! {
        server = Server::new(config) => server?,
        () = &mut stop => return Ok(()),
    };
    server.serve(stop).await
}

/// Loads the policies as [`run`] would, and says what they are: a line each.
///
/// # Errors
/// A plugin was refused and the configuration says to stop.
pub async fn check(config: Config) -> anyhow::Result<Vec<String>> {
    let config = Arc::new(config);
    let (services, loader) = foundations(&config)?;
    Auth::new(&config.auth, services.metrics.clone())?;
    Tls::new(&config.tls)?;
    let policies = load(&loader, &config).await?;
    let line = |policy: &Arc<Policy>| {
        let roles: Vec<String> = policy.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
        format!("{} {} ({}) from {}", policy.name, policy.version, roles.join(", "), policy.file.display())
    };
    let skipped = |rejected: &Rejected| format!("{} is skipped: it {}", rejected.name, rejected.reason);
    Ok(policies.current().policies.iter().map(line).chain(policies.rejected().iter().map(skipped)).collect())
}

impl Server {
    /// # Errors
    /// A plugin was refused and the configuration says to stop, or the address can't be bound.
    pub async fn new(config: Config) -> anyhow::Result<Server> {
        let config = Arc::new(config);
        let (services, loader) = foundations(&config)?;
        let auth = Arc::new(Auth::new(&config.auth, services.metrics.clone())?);
        let tls = Tls::new(&config.tls)?.map(Arc::new);
        auth.fetch().await;
        let policies = load(&loader, &config).await?;
        let dead_letters = Arc::new(DeadLetters::new(config.dead_letters.clone(), services.metrics.clone()));
        let dispatch = Arc::new(Dispatch::new(policies.clone(), services.clone(), dead_letters.clone(), &config.events));
        let operate = Arc::new(Operate {
            services: services.clone(),
            dispatch: dispatch.clone(),
            policies: policies.clone(),
            loader,
            reloading: tokio::sync::Mutex::default(),
            ready: Arc::new(AtomicBool::new(true)),
            exposed: exposed(&config, &auth),
            user_id_bytes_max: config.sockets.user_id_bytes_max,
        });
        let format = Arc::new(Format::new(policies, dead_letters, config.mailboxes.shapes_bytes_max));
        let sessions = Arc::new(Sessions {
            auth: auth.clone(),
            ready: operate.ready.clone(),
            permits: SessionPermits::new(config.sockets.sessions_max, config.sockets.per_address_max),
            handshakes: parking_lot::Mutex::new(Bucket::full(config.sockets.handshakes_per_second_max)),
            dispatch: dispatch.clone(),
            format: format.clone(),
            mailboxes: services.mailboxes.clone(),
            metrics: services.metrics.clone(),
            sockets: config.sockets.clone(),
            limits: config.mailboxes.clone(),
            return_within_ms: config.stop_return_within_ms,
        });
        let explain = Explain { dispatch: dispatch.clone(), format: format.clone(), config: config.clone() };
        let ingress = Arc::new(Ingress {
            dispatch,
            explain,
            limits: config.events.clone(),
            user_id_bytes_max: config.sockets.user_id_bytes_max,
            body_deadline: Duration::from_millis(config.http.body_deadline_ms),
            bodies_bytes_max: config.http.bodies_bytes_max,
            room: Semaphore::new(config.http.bodies_bytes_max.min(Semaphore::MAX_PERMITS)),
        });
        let (outside, inside) = routers(&config, &auth, ingress, sessions, operate.clone());
        let listener = |address| bind(address, config.http.backlog).with_context(|| format!("can't listen on {address}"));
        let listeners = match config.operate_listen {
            None => vec![(listener(config.listen)?, outside.merge(inside))],
            Some(address) => vec![(listener(config.listen)?, outside), (listener(address)?, inside)],
        };
        let listeners = listeners.into_iter().map(|(listener, routes)| (listener, Front::new(routes, &operate, &auth))).collect();
        Ok(Server { config, listeners, auth, tls, operate, format })
    }

    /// What a developer's session looks at and changes while the server runs.
    pub(crate) fn inside(&self) -> (Arc<Operate>, Arc<Format>) {
        (self.operate.clone(), self.format.clone())
    }

    /// The bound addresses; of interest where the configuration says port 0. The first is `listen`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn addresses(&self) -> std::io::Result<Vec<std::net::SocketAddr>> {
        self.listeners.iter().map(|(listener, _)| listener.local_addr()).collect()
    }

    /// Serves until `stop` resolves, then drains: not ready, no new sockets, no new connections, requests finished, sockets closed with
    /// "reconnect".
    ///
    /// # Errors
    /// The operating system's, before the first connection.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        for (address, what) in self.addresses()?.iter().zip(["", "; operators here"]) {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            tracing::info!("listening on {scheme}://{address}{}{what}", self.config.base_path);
        }
        let metrics = &self.operate.services.metrics;
        let http = &self.config.http;
        let permits = [
            ConnectionPermits::new(http.connections_max, http.connections_per_address_max, metrics.clone()),
            ConnectionPermits::new(http.operate_connections_max, 0, metrics.clone()),
        ];
        let (stopping, _) = watch::channel(Stage::Serving);
        let (working, mut idle) = mpsc::channel::<()>(1);
        if let Some(who) = self.operate.exposed {
            tracing::warn!("{who} (listen_beyond_loopback_without_authentication)");
        }
        metrics.exposed.set(self.operate.exposed.is_some().into());
        let chores = [
            tokio::spawn(watch_plugins(self.operate.clone())),
            tokio::spawn(watch_keys(self.auth.clone(), self.tls.clone(), self.config.plugins.watch_interval_ms)),
            tokio::spawn(sweep(self.operate.clone())),
            tokio::spawn(follow_issuers(self.auth.clone())),
        ];
        tokio::select! {
            () = stop => {}
            () = self.accept_all(&permits, &stopping, &working) => {}
        }
        self.operate.ready.store(false, Ordering::Relaxed);
        let notice = Duration::from_millis(self.config.stop_notice_ms);
        let _ = timeout(notice, self.accept_all(&permits, &stopping, &working)).await;
        drop(working);
        for chore in chores {
            chore.abort();
        }
        let Server { config, listeners, operate, .. } = self;
        drop(listeners);
        let mailboxes = &operate.services.mailboxes;
        tracing::info!(sessions = mailboxes.totals().sessions, "stopping");
        let drained = timeout(Duration::from_millis(config.stop_deadline_ms), async {
            // What was accepted is answered, and its messages are in the mailboxes before their readers are sent away.
            let _ = stopping.send(Stage::Finishing);
            let _ = timeout(REQUEST_GRACE, idle.recv()).await;
            let _ = stopping.send(Stage::Over);
            for round in 0..Mailboxes::SWEEP_ROUNDS {
                let ended = u32::try_from(mailboxes.end_part(round, &Close::Restart)).unwrap_or(u32::MAX);
                tokio::time::sleep(Duration::from_secs(1) * ended / config.stop_closes_per_second_max).await;
            }
            for permits in &permits {
                permits.all_free().await;
            }
        });
        match drained.await {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!(sessions = mailboxes.totals().sessions, "stopped with connections still open (stop_deadline_ms)"),
        }
        Ok(())
    }

    async fn accept_all(&self, permits: &[Arc<ConnectionPermits>], stopping: &watch::Sender<Stage>, working: &mpsc::Sender<()>) {
        let accepting = self.listeners.iter().zip(permits);
        let accepting = accepting.map(|((listener, front), permits)| self.accept(listener, front, permits, stopping, working));
        futures_util::future::join_all(accepting).await;
    }

    /// Accepts connections for ever, as many at once as there are permits.
    async fn accept(
        &self,
        listener: &TcpListener,
        front: &Arc<Front>,
        permits: &Arc<ConnectionPermits>,
        stopping: &watch::Sender<Stage>,
        working: &mpsc::Sender<()>,
    ) {
        let write_deadline = Duration::from_millis(self.config.sockets.write_deadline_ms);
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new());
        // A producer may close its side once it has sent a request; that request still counts.
        http.half_close(true);
        http.header_read_timeout(Duration::from_millis(self.config.http.header_deadline_ms));
        http.max_buf_size(self.config.http.header_bytes_max);
        http.max_headers(self.config.http.headers_max);
        while let Some(permit) = permits.free().await {
            let (tcp, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("can't accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let client = Client::from(address.ip());
            let Some(permit) = permits.take(permit, client) else { continue };
            let _ = tcp.set_nodelay(true);
            let tls = match self.tls.as_ref().map(|tls| tls.accept()).transpose() {
                Ok(tls) => tls,
                Err(error) => {
                    tracing::warn!("can't begin TLS: {error}");
                    continue;
                }
            };
            let stream = TokioIo::new(Stream::new(Wire::new(tcp, tls), permit, write_deadline));
            let front = front.clone();
            let connection =
                http.serve_connection(stream, service_fn(move |request| front.clone().answer(client, request))).with_upgrades();
            let (mut stopping, working) = (stopping.subscribe(), working.clone());
            tokio::spawn(async move {
                tokio::pin!(connection);
                tokio::select! {
                    _ = &mut connection => {}
                    () = reaches(&mut stopping, Stage::Finishing) => {
                        connection.as_mut().graceful_shutdown();
                        tokio::select! {
                            _ = connection => {}
                            () = reaches(&mut stopping, Stage::Over) => {}
                        }
                    }
                }
                drop(working);
            });
        }
    }
}

/// What anybody may do where other machines reach the server and it doesn't ask: the log, a metric and `/readyz` say so.
fn exposed(config: &Config, auth: &Auth) -> Option<&'static str> {
    let is_reached = |address| !is_loopback(address);
    let (asks_keys, asks_tokens) = auth.asks();
    let connects = is_reached(config.listen) && !asks_tokens;
    let publishes = is_reached(config.listen) && !asks_keys;
    let operates = is_reached(config.operate_listen.unwrap_or(config.listen)) && !asks_keys;
    match (connects, publishes, operates) {
        (false, false, false) => None,
        (true, false, false) => Some("anybody who reaches this server may connect as any user"),
        (false, true, false) => Some("anybody who reaches this server may publish"),
        (false, false, true) => Some("anybody who reaches this server may operate"),
        (true, true, false) => Some("anybody who reaches this server may connect as any user and publish"),
        (true, false, true) => Some("anybody who reaches this server may connect as any user and operate"),
        (false, true, true) => Some("anybody who reaches this server may publish and operate"),
        (true, true, true) => Some("anybody who reaches this server may connect as any user, publish and operate"),
    }
}

fn is_loopback(address: std::net::SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

async fn reaches(stopping: &mut watch::Receiver<Stage>, stage: Stage) {
    // An error says that the server is gone, which is as late as it gets.
    drop(stopping.wait_for(|now| *now >= stage).await);
}

/// What policies and stations stand on.
pub(crate) fn foundations(config: &Arc<Config>) -> anyhow::Result<(Arc<Services>, Arc<Loader>)> {
    let (services, loader) = foundations_at(config, Clock::Machine)?;
    Ok((services, Arc::new(loader)))
}

/// The same in another time.
pub(crate) fn foundations_at(config: &Arc<Config>, clock: Clock) -> anyhow::Result<(Arc<Services>, Loader)> {
    let metrics = Arc::new(Metrics::new()?);
    let services = Arc::new(Services {
        mailboxes: Mailboxes::new(config.mailboxes.clone(), &config.sockets, metrics.clone()),
        groups: Arc::new(Groups::new(config.groups.clone())),
        states: States::default(),
        metrics,
        clock,
    });
    let loader = Loader::new(engine::serving()?, config.clone(), services.clone());
    Ok((services, loader))
}

pub(crate) async fn load(loader: &Arc<Loader>, config: &Config) -> anyhow::Result<Arc<Policies>> {
    let loading = loader.clone();
    // Compiling takes a while; the runtime's threads are not for that.
    let (set, rejected) = tokio::task::spawn_blocking(move || loading.load()).await?;
    let sentence = |rejected: &Rejected| format!("{} ({}) {}", rejected.name, rejected.file.display(), rejected.reason);
    if config.plugins.on_bad == OnBad::Stop && !rejected.is_empty() {
        let reasons: Vec<String> = rejected.iter().map(sentence).collect();
        bail!("a plugin can't be loaded: {}\n(plugins.on_bad = \"skip\" starts without it)", reasons.join("\n"));
    }
    for rejected in &rejected {
        tracing::error!("plugin skipped: {}", sentence(rejected));
    }
    for policy in &set.policies {
        tracing::info!(policy = policy.name, version = policy.version, roles = ?policy.roles, "policy loaded");
    }
    if set.policies.is_empty() {
        tracing::warn!(dir = %config.plugins.dir.display(), "no policies: events reach nobody, direct messages still do");
    }
    Ok(Arc::new(Policies::new(set, rejected, Duration::from_millis(config.plugins.retire_ms))))
}

fn bind(address: std::net::SocketAddr, backlog: u32) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// Rolls back what fails, and reloads when the files have changed and look the same twice, so that a copy in progress is not
/// read.
async fn watch_plugins(operate: Arc<Operate>) {
    let config = operate.loader.config();
    let mut tick = interval(Duration::from_millis(config.watch_interval_ms));
    // Registration from before the first load, so that a file that changed during it is noticed.
    let (mut seen, mut taken) = (Vec::new(), Vec::new());
    loop {
        tick.tick().await;
        operate.policies.retire();
        operate.roll_back().await;
        if !config.watch {
            continue;
        }
        let now = operate.loader.fingerprint();
        if now == seen && now != taken {
            operate.reload(false).await;
            taken = now.clone();
        }
        seen = now;
    }
}

/// Takes changed keys of users' tokens, and a changed certificate.
async fn watch_keys(auth: Arc<Auth>, tls: Option<Arc<Tls>>, interval_ms: u64) {
    let mut tick = interval(Duration::from_millis(interval_ms));
    loop {
        tick.tick().await;
        let (auth, tls) = (auth.clone(), tls.clone());
        // Files are read on threads that may wait. A failure is logged there.
        let _ = tokio::task::spawn_blocking(move || {
            auth.refresh();
            if let Some(tls) = tls {
                tls.refresh();
            }
        })
        .await;
    }
}

/// Fetches the keys that issuers publish.
async fn follow_issuers(auth: Arc<Auth>) {
    auth.follow().await;
}

/// Forgets what was kept for long enough, a part at a time.
async fn sweep(operate: Arc<Operate>) {
    let mut tick = interval(SWEEP_INTERVAL);
    for round in 0.. {
        tick.tick().await;
        operate.services.mailboxes.sweep(round);
        if round % Mailboxes::SWEEP_ROUNDS == 0 {
            operate.services.states.sweep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scope;

    #[test]
    fn what_anybody_may_do_is_said_of_the_address_where_they_may() {
        let says = |settings: &str| {
            let overrides: toml::Table = settings.parse().unwrap();
            let (mut config, _) = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap();
            let address = |name: &str| overrides.get(name).and_then(|address| address.as_str()?.parse().ok());
            config.listen = address("listen").unwrap_or(config.listen);
            config.operate_listen = address("operate_listen");
            if overrides.contains_key("keys") {
                let sha256 = "0".repeat(64);
                config.auth.keys.push(crate::config::ApiKey { name: "x".into(), sha256, scopes: vec![Scope::Publish] });
            }
            let auth = Auth::new(&config.auth, Arc::new(Metrics::new().unwrap())).unwrap();
            exposed(&config, &auth).map(|says| says.trim_start_matches("anybody who reaches this server may "))
        };
        assert_eq!(says(""), None);
        assert_eq!(says("listen = \"[::1]:1\"\noperate_listen = \"127.0.0.1:1\""), None);
        assert_eq!(says("listen = \"0.0.0.0:1\""), Some("connect as any user, publish and operate"));
        assert_eq!(says("listen = \"0.0.0.0:1\"\nkeys = 1"), Some("connect as any user"));
        assert_eq!(says("listen = \"0.0.0.0:1\"\noperate_listen = \"127.0.0.1:1\""), Some("connect as any user and publish"));
        assert_eq!(says("operate_listen = \"[::]:1\""), Some("operate"));
        assert_eq!(says("operate_listen = \"[::]:1\"\nkeys = 1"), None);
    }
}
