//! Users' tokens: JWT (RFC 7519), by the rules of RFC 8725. The configuration says which algorithms, keys and issuers count; a
//! token's own header only picks among the keys that are there.

mod jwks;
mod jws;
mod keys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::{Identity, Reason};
use crate::config::Users;
use crate::metrics::Metrics;
use crate::types::event::UserId;
use jwks::Published;
use jws::Jws;
use keys::{Key, Stamp};
pub use keys::{algorithm, secret};

/// A token that is valid for longer is treated as valid for this long, so that times can be added.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What `auth.users.token_types` calls a token without a `typ`.
const UNTYPED: &str = "";

/// The keys and the rules by which tokens are verified.
#[derive(Debug)]
pub struct Tokens {
    config: Users,
    keys: ArcSwap<Vec<Key>>,
    published: Vec<Published>,
    /// The key files as they were when last read, successfully or not.
    seen: Mutex<Vec<Stamp>>,
}

impl Tokens {
    /// Reads the key files.
    ///
    /// # Errors
    /// A key file can't be read, or holds no key that can be used.
    pub fn new(config: Users, metrics: &Arc<Metrics>) -> anyhow::Result<Tokens> {
        let seen = stamps(&config.key_files);
        let keys = keys::read(&config)?;
        let published = config.jwks.iter().map(|source| Published::new(source.clone(), &config, metrics.clone())).collect();
        Ok(Tokens { config, published, keys: ArcSwap::from_pointee(keys), seen: Mutex::new(seen) })
    }

    /// Returns the names of the claims that become session attributes.
    pub fn claims(&self) -> &[String] {
        &self.config.claims
    }

    /// Reads the key files again if they have changed. If they can't be used, the keys stay as they are.
    pub fn refresh(&self) {
        let now = stamps(&self.config.key_files);
        let mut seen = self.seen.lock();
        if *seen == now {
            return;
        }
        *seen = now;
        match keys::read(&self.config) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "the keys of users' tokens were read again");
                self.keys.store(Arc::new(keys));
            }
            Err(error) => tracing::error!("the keys of users' tokens stay as they are: {error:#}"),
        }
    }

    /// Takes over what the same issuers published before.
    pub fn take_over(&self, before: &Tokens) {
        for published in &self.published {
            if let Some(before) = before.published.iter().find(|before| before.is_of(published)) {
                published.take_over(before);
            }
        }
    }

    /// Fetches what issuers publish, once.
    pub async fn fetch(&self) {
        join_all(self.published.iter().map(Published::fetch)).await;
    }

    /// Follows what issuers publish, for ever.
    pub async fn follow(&self) {
        join_all(self.published.iter().map(Published::follow)).await;
    }

    /// Verifies a token and returns what it says of this user.
    ///
    /// # Errors
    /// What is wrong with the token.
    pub fn verify(&self, token: &str, user: &UserId) -> Result<Identity, Reason> {
        let jws = Jws::parse(token)?;
        if !keys::algorithms(&self.config).any(|algorithm| algorithm == jws.algorithm) {
            return Err(Reason::Algorithm);
        }
        if !self.takes_type(jws.token_type.as_deref()) {
            return Err(Reason::TokenType);
        }
        let mut reason = match jws.verified(&self.keys.load()) {
            Ok(claims) => match self.identify(&claims, &self.config.issuers, user) {
                Ok(identity) => return Ok(identity),
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        for published in &self.published {
            match jws.verified(&published.keys()) {
                // An issuer's keys are for its own tokens.
                Ok(claims) => match self.identify(&claims, &[published.issuer()], user) {
                    Ok(identity) => return Ok(identity),
                    Err(refused) => reason = refused,
                },
                Err(Reason::NoSuchKey) => published.want(),
                Err(refused) => reason = refused,
            }
        }
        Err(reason)
    }

    /// Returns whether a token of this `typ` is accepted. Both names may be a full media type (RFC 7515, section 4.1.9).
    fn takes_type(&self, token_type: Option<&str>) -> bool {
        let types = &self.config.token_types;
        let is = |known: &String| match token_type {
            None => known == UNTYPED,
            Some(named) => known != UNTYPED && subtype(known).eq_ignore_ascii_case(subtype(named)),
        };
        types.is_empty() || types.iter().any(is)
    }

    /// Checks the claims of a token whose signature is good, and returns what they say of this user. `issuers` are those whose tokens are
    /// accepted; an empty list accepts any.
    fn identify(&self, claims: &Map<String, Value>, issuers: &[impl AsRef<str>], user: &UserId) -> Result<Identity, Reason> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ends = self.check_times(claims, now)?;
        let claim = |name: &str| claims.get(name).filter(|value| !value.is_null());
        if !issuers.is_empty() {
            let issuer = claim("iss").ok_or(Reason::MissingClaim)?;
            if !issuers.iter().any(|known| issuer.as_str() == Some(known.as_ref())) {
                return Err(Reason::Issuer);
            }
        }
        // A token that names an audience is meant for somebody else if none is configured.
        let is_ours = |named: &Value| named.as_str().is_some_and(|named| self.config.audiences.iter().any(|audience| audience == named));
        match claim("aud") {
            None if self.config.audiences.is_empty() => {}
            None => return Err(Reason::MissingClaim),
            Some(Value::Array(named)) if named.iter().any(is_ours) => {}
            Some(named) if is_ours(named) => {}
            Some(_) => return Err(Reason::Audience),
        }
        // Ids are numbers or strings in the systems that make tokens.
        let named = claim(&self.config.user_claim).and_then(text).ok_or(Reason::MissingClaim)?;
        if named != user.as_str() {
            return Err(Reason::OtherUser);
        }
        let attribute = |name: &String| Some((name.clone(), claims.get(name).and_then(text)?));
        // A session whose token is past its end, but within the leeway, still gets its grace: ended at once, the client would come back
        // with the same token.
        let ends = UNIX_EPOCH + ends.max(now);
        Ok(Identity { ends: Some(ends), attributes: self.config.claims.iter().filter_map(attribute).collect() })
    }

    /// Checks `exp` and `nbf` against `now`, and returns the token's end. Times count from 1970.
    fn check_times(&self, claims: &Map<String, Value>, now: Duration) -> Result<Duration, Reason> {
        let leeway = Duration::from_secs(self.config.leeway_s);
        let time = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0).ok_or(Reason::Malformed)?;
                Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
            }
        };
        let ends = time("exp")?.ok_or(Reason::MissingClaim)?;
        if ends.saturating_add(leeway) <= now {
            return Err(Reason::Expired);
        }
        if time("nbf")?.is_some_and(|begins| begins > now.saturating_add(leeway)) {
            return Err(Reason::NotYetValid);
        }
        Ok(ends.min(now.saturating_add(LIFETIME_MAX)))
    }
}

/// Returns a `typ` without the `application/` that it may leave out.
fn subtype(token_type: &str) -> &str {
    match token_type.split_once('/') {
        Some((family, subtype)) if family.eq_ignore_ascii_case("application") && !subtype.contains('/') => subtype,
        _ => token_type,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|file| keys::stamp(file)).collect()
}
