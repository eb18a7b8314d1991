//! JWK sets that issuers publish (RFC 7517): fetched at the start, from time to time, and when a token names a key that isn't there. The
//! address comes from the configuration; nothing that a token says is in the request.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::keys::{self, FILE_BYTES_MAX, Key, Skipped};
use crate::config::{JwkSet, Users};
use crate::metrics::Metrics;
use crate::net::tls;
use crate::net::wire::Wire;

/// An issuer that takes longer is asked again later.
const DEADLINE: Duration = Duration::from_secs(10);

/// One issuer's keys.
#[derive(Debug)]
pub struct Published {
    source: JwkSet,
    algorithms: Vec<Algorithm>,
    interval: Duration,
    pause: Duration,
    keys: ArcSwap<Vec<Key>>,
    /// The members that the last set had and that can't be used, so that each is logged once.
    skipped: Mutex<Vec<Skipped>>,
    /// Notified when a token names a key that isn't there.
    wanted: Notify,
    metrics: Arc<Metrics>,
}

impl Published {
    pub fn new(source: JwkSet, config: &Users, metrics: Arc<Metrics>) -> Published {
        Published {
            source,
            // A published key can't be a secret.
            algorithms: keys::algorithms(config).filter(|algorithm| algorithm.family() != AlgorithmFamily::Hmac).collect(),
            interval: *config.jwks_interval_ms,
            pause: *config.jwks_pause_ms,
            keys: ArcSwap::default(),
            skipped: Mutex::default(),
            wanted: Notify::new(),
            metrics,
        }
    }

    /// Returns the issuer, whose tokens alone are verified with these keys.
    pub fn issuer(&self) -> &str {
        &self.source.issuer
    }

    /// Returns whether the other is what the same issuer publishes at the same address, for the same algorithms.
    pub fn is_of(&self, other: &Published) -> bool {
        (&self.source.issuer, &self.source.url, &self.algorithms) == (&other.source.issuer, &other.source.url, &other.algorithms)
    }

    /// Takes over the keys that were fetched before.
    pub fn take_over(&self, before: &Published) {
        self.keys.store(before.keys());
    }

    pub fn keys(&self) -> Arc<Vec<Key>> {
        self.keys.load_full()
    }

    /// Asks for a fetch: the issuer may have another key by now.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Fetches for ever.
    pub async fn follow(&self) {
        loop {
            sleep(self.pause).await;
            // Without keys, no token can be verified: it fetches again after the pause.
            let rest = if self.keys().is_empty() { Duration::ZERO } else { self.interval.saturating_sub(self.pause) };
            let _ = timeout(rest, self.wanted.notified()).await;
            self.fetch().await;
        }
    }

    /// Fetches once. A set that can't be fetched, or has no key that can be used, leaves the keys as they are.
    pub async fn fetch(&self) {
        let fetched = timeout(DEADLINE, get(&self.source.url)).await.unwrap_or_else(|_| Err(anyhow::Error::msg("no answer in time")));
        let outcome = match fetched.and_then(|set| Ok(keys::jwk_set(&set, &self.algorithms)?)) {
            Ok((keys, skipped)) => {
                tracing::debug!(issuer = self.source.issuer, keys = keys.len(), "the issuer's keys were fetched");
                self.keys.store(Arc::new(keys));
                self.skip(skipped);
                "taken"
            }
            Err(error) => {
                tracing::error!(issuer = self.source.issuer, "the issuer's keys stay as they are: {}: {error:#}", self.source.url);
                "failed"
            }
        };
        self.metrics.jwks_fetches.with_label_values(&[outcome]).inc();
    }

    /// Logs the members that can't be used, unless they were the same the last time.
    fn skip(&self, skipped: Vec<Skipped>) {
        let mut before = self.skipped.lock();
        for skipped in skipped.iter().filter(|skipped| !before.contains(skipped)) {
            tracing::warn!(issuer = self.source.issuer, "a published key is not used: {skipped}");
        }
        *before = skipped;
    }
}

/// Returns the body of a good answer. Redirections are not followed: the configuration names the address that answers.
async fn get(url: &str) -> anyhow::Result<Bytes> {
    let uri: Uri = url.parse()?;
    let host = uri.host().context("names no host")?;
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let wire = Wire::new(tcp, is_tls.then(|| tls::connect(host)).transpose()?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, uri.authority().map_or(host, |authority| authority.as_str()))
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    ensure!(head.status.is_success(), "the answer is {}", head.status);
    let bytes_max = usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX);
    let body = Limited::new(body, bytes_max).collect().await.map_err(anyhow::Error::from_boxed)?;
    connection.abort();
    Ok(body.to_bytes())
}
