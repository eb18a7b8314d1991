//! Authentication: which user a socket belongs to, what a producer or an operator may do, and which web pages may use the server.
//!
//! Every refusal gets the same answer; the reason is in the log at debug level and in a counter.

pub mod api_keys;
pub mod origin;
mod reason;
pub mod tokens;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderValue, Method, StatusCode};

use crate::config::{self, Scope, TOKEN_PARAMETER};
use crate::metrics::Metrics;
use crate::net::problem::Problem;
use crate::types::event::UserId;
use api_keys::ApiKeys;
use origin::Origins;
pub use reason::Reason;
use tokens::Tokens;

/// What precedes a token among the offered subprotocols, the only header that a browser's WebSocket can set.
const TOKEN_SUBPROTOCOL: &str = "signalpost.token.";

/// The keys, tokens and origins that the server accepts.
#[derive(Debug)]
pub struct Auth {
    keys: ApiKeys,
    tokens: Option<Tokens>,
    origins: Origins,
    token_in_query: bool,
    expiry_grace: Duration,
    first_frame_deadline: Duration,
    first_frame_bytes_max: usize,
    metrics: Arc<Metrics>,
}

/// What a valid token says of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// When the session has to end unless it shows another token; `None` if no tokens are asked for.
    pub ends: Option<SystemTime>,
    /// Claims that become session attributes.
    pub attributes: Vec<(String, String)>,
}

/// A refusal. It carries nothing, so that a client learns nothing from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl From<Refused> for Problem {
    fn from(_: Refused) -> Problem {
        let detail = "the token is missing, not valid, or not for this; see docs/security.md";
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }
}

impl Auth {
    /// Reads the key files.
    ///
    /// # Errors
    /// A key file can't be read, holds no key of the configured algorithms, or a weak one.
    pub fn new(config: &config::Auth, metrics: Arc<Metrics>) -> anyhow::Result<Auth> {
        let tokens = (!config.users.algorithms.is_empty()).then(|| Tokens::new(config.users.clone(), &metrics)).transpose()?;
        let keys = ApiKeys::new(&config.keys)?;
        let asks_all = tokens.is_some() && !keys.is_open();
        Ok(Auth {
            keys,
            tokens,
            origins: Origins::new(&config.origins, if asks_all { origin::Own::Named } else { origin::Own::Numbered }),
            token_in_query: config.users.token_in_query,
            expiry_grace: *config.users.expiry_grace_ms,
            first_frame_deadline: *config.users.first_frame_deadline_ms,
            first_frame_bytes_max: config.users.first_frame_bytes_max.get(),
            metrics,
        })
    }

    /// Checks that a request shows an API key with this scope, if any keys are configured.
    ///
    /// # Errors
    /// It shows none, or one without the scope.
    pub fn permits(&self, headers: &HeaderMap, scope: Scope) -> Result<(), Refused> {
        if self.keys.is_open() {
            return Ok(());
        }
        match bearer(headers) {
            None => Err(self.refused(Reason::NoKey)),
            Some(key) => match self.keys.find(key) {
                Some((_, scopes)) if scopes.contains(&scope) => Ok(()),
                Some((name, _)) => {
                    tracing::debug!(key = name, ?scope, "an API key lacks the scope");
                    Err(self.refused(Reason::Scope))
                }
                None => Err(self.refused(Reason::UnknownKey)),
            },
        }
    }

    /// Returns whether a request shows an API key with this scope, or no keys are configured. Counts nothing.
    pub fn has(&self, headers: &HeaderMap, scope: Scope) -> bool {
        self.keys.is_open() || bearer(headers).and_then(|key| self.keys.find(key)).is_some_and(|(_, scopes)| scopes.contains(&scope))
    }

    /// Checks the `Origin` of a request, if it has one.
    ///
    /// # Errors
    /// The origin is neither listed nor the server's own.
    pub fn origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.origins.allow(headers) {
            return Ok(());
        }
        self.refused(Reason::Origin);
        let detail = "pages of this origin may not use this server; auth.origins lists those that may";
        Err(Problem::new(StatusCode::FORBIDDEN, "origin", detail))
    }

    /// Returns the `Origin` of a request, if it is one of those that are listed.
    pub fn listed<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        self.origins.listed(headers)
    }

    /// Returns what the handshake's token says of the user whose socket is asked for, or `None` if the token has to come in the
    /// first frame.
    ///
    /// # Errors
    /// The token isn't valid for this user.
    pub fn admit(&self, user: &UserId, headers: &HeaderMap, query: &str) -> Result<Option<Identity>, Refused> {
        if self.tokens.is_none() {
            return Ok(Some(Identity::default()));
        }
        let shown = bearer(headers).or_else(|| offered(headers)).map(Cow::Borrowed);
        let token = shown.or_else(|| self.token_in_query.then(|| queried(query)).flatten());
        token.map(|token| self.token(user, &token)).transpose()
    }

    /// Returns what a token says of a user, at the start of a session or later.
    ///
    /// # Errors
    /// The token isn't valid for this user.
    pub fn token(&self, user: &UserId, token: &str) -> Result<Identity, Refused> {
        let Some(tokens) = &self.tokens else { return Ok(Identity::default()) };
        match tokens.verify(token, user) {
            Ok(mut identity) => {
                identity.ends = identity.ends.and_then(|expires| expires.checked_add(self.expiry_grace));
                Ok(identity)
            }
            Err(reason) => Err(self.refused(reason)),
        }
    }

    /// Says whether the query string may set this session attribute: not if a claim does.
    pub fn is_for_clients(&self, attribute: &str) -> bool {
        self.tokens.as_ref().is_none_or(|tokens| !tokens.claims().iter().any(|claim| claim == attribute))
    }

    /// Returns how long a socket without a token may take to send one, and in how many bytes.
    pub fn first_frame(&self) -> (Duration, usize) {
        (self.first_frame_deadline, self.first_frame_bytes_max)
    }

    /// Says whether producers and operators have to show a key, and users a token.
    pub fn asks(&self) -> (bool, bool) {
        (!self.keys.is_open(), self.tokens.is_some())
    }

    /// Fetches the keys that issuers publish, once.
    pub async fn fetch(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.fetch().await;
        }
    }

    /// Follows the keys that issuers publish, for ever.
    pub async fn follow(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.follow().await;
        }
    }

    /// Reads changed key files. If they can't be used, the keys stay as they are.
    pub fn refresh(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.refresh();
        }
    }

    /// Logs and counts a refusal.
    pub fn refused(&self, reason: Reason) -> Refused {
        tracing::debug!(reason = reason.name(), "refused");
        self.metrics.auth_refused.with_label_values(&[reason.name()]).inc();
        Refused
    }
}

/// Returns the scope that a request to an operating address needs.
pub fn operating_scope(method: &Method) -> Scope {
    if *method == Method::GET || *method == Method::HEAD { Scope::Read } else { Scope::Operate }
}

/// Returns the credentials of RFC 6750. More than one `Authorization` header counts as none: a proxy may have checked a different one.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Returns the token among the offered subprotocols.
fn offered(headers: &HeaderMap) -> Option<&str> {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    offers.flat_map(|value| value.split(',')).find_map(|offer| offer.trim().strip_prefix(TOKEN_SUBPROTOCOL))
}

/// Returns the token in the query string.
fn queried(query: &str) -> Option<Cow<'_, str>> {
    form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == TOKEN_PARAMETER).map(|(_, token)| token)
}
