//! Users' tokens: JWT (RFC 7519), by the rules of RFC 8725. The configuration says which signatures and whose; a token's own
//! header only picks among the keys that are there.

mod jwks;
mod keys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use jsonwebtoken::{Validation, decode, decode_header};
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};

use super::Identity;
use crate::config::Users;
use crate::metrics::Metrics;
use crate::types::event::UserId;
use jwks::Published;
use keys::{Key, Stamp};
pub use keys::{algorithm, secret};

/// A token that is good for longer than this is treated as good for this long: times stay countable.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The keys and the rules.
#[derive(Debug)]
pub struct Tokens {
    config: Users,
    keys: RwLock<Arc<Vec<Key>>>,
    published: Vec<Published>,
    /// The key files as they were when last read, well or not.
    seen: Mutex<Vec<Stamp>>,
}

impl Tokens {
    /// # Errors
    /// A key file can't be read, or holds what is no key or a weak one.
    pub fn new(config: Users, metrics: &Arc<Metrics>) -> anyhow::Result<Tokens> {
        let seen = stamps(&config.key_files);
        let keys = keys::read(&config)?;
        let published = config.jwks.iter().map(|source| Published::new(source.clone(), &config, metrics.clone())).collect();
        Ok(Tokens { config, published, keys: RwLock::new(Arc::new(keys)), seen: Mutex::new(seen) })
    }

    /// The claims that become session attributes.
    pub fn claims(&self) -> &[String] {
        &self.config.claims
    }

    /// Reads the key files again if they have changed.
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
                *self.keys.write() = Arc::new(keys);
            }
            Err(error) => tracing::error!("the keys of users' tokens stay as they are: {error:#}"),
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

    /// What a token says of this user.
    ///
    /// # Errors
    /// Why it doesn't: for the log and the counter, not for the client.
    pub fn verify(&self, token: &str, user: &UserId) -> Result<Identity, &'static str> {
        let header = decode_header(token).map_err(|_| "not a JWT")?;
        if !self.config.algorithms.iter().any(|algorithm| keys::algorithm(*algorithm) == header.alg) {
            return Err("algorithm");
        }
        // Extensions that must be understood are not (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err("critical header");
        }
        let types = &self.config.token_types;
        if !types.is_empty() && !header.typ.as_ref().is_some_and(|typ| types.iter().any(|known| known.eq_ignore_ascii_case(typ))) {
            return Err("token type");
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = self.config.leeway_s;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if !self.config.issuers.is_empty() {
            validation.set_issuer(&self.config.issuers);
            required.push("iss");
        }
        // A token that names an audience is refused where none is configured: it is meant for somebody else.
        if !self.config.audiences.is_empty() {
            validation.set_audience(&self.config.audiences);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        let keys = self.keys.read().clone();
        let mut reason = "no such key";
        let mut verified = |keys: &[Key], validation: &Validation| {
            for key in keys.iter().filter(|key| key.fits(header.alg, header.kid.as_deref())) {
                match decode::<Map<String, Value>>(token, &key.decoding, validation) {
                    Ok(token) => return Some(token.claims),
                    Err(error) => reason = words(&error),
                }
            }
            None
        };
        if let Some(claims) = verified(&keys, &validation) {
            return self.pass(&claims, user);
        }
        // What an issuer publishes is for its own tokens.
        required.push("iss");
        validation.set_required_spec_claims(&required);
        for published in &self.published {
            validation.set_issuer(&[published.issuer()]);
            let keys = published.keys();
            if let Some(claims) = verified(&keys, &validation) {
                return self.pass(&claims, user);
            }
            if !keys.iter().any(|key| key.fits(header.alg, header.kid.as_deref())) {
                published.want();
            }
        }
        Err(reason)
    }

    fn pass(&self, claims: &Map<String, Value>, user: &UserId) -> Result<Identity, &'static str> {
        // Ids are numbers or strings in the systems that make tokens.
        let named = claims.get(&self.config.user_claim).and_then(text).ok_or("no user")?;
        if named != user.as_str() {
            return Err("another user");
        }
        let expires = claims.get("exp").and_then(Value::as_f64).filter(|seconds| *seconds >= 0.0).ok_or("exp")?;
        let at = UNIX_EPOCH + Duration::try_from_secs_f64(expires).unwrap_or(Duration::MAX).min(far());
        // One that only the leeway lets in gives a session its grace: ended at once, the client would come back with the same token.
        let at = at.max(SystemTime::now());
        let attribute = |name: &String| Some((name.clone(), claims.get(name).and_then(text)?));
        Ok(Identity { ends: Some(at), attributes: self.config.claims.iter().filter_map(attribute).collect() })
    }
}

/// Since 1970, as is every time in a token.
fn far() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIFETIME_MAX
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

/// The labels of the counter.
fn words(error: &jsonwebtoken::errors::Error) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature => "signature",
        ErrorKind::ExpiredSignature => "expired",
        ErrorKind::ImmatureSignature => "not yet valid",
        ErrorKind::InvalidIssuer => "issuer",
        ErrorKind::InvalidAudience => "audience",
        ErrorKind::MissingRequiredClaim(_) => "missing claim",
        _ => "not a JWT",
    }
}
