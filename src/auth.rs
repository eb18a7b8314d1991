//! Authentication: which user a socket belongs to, what a producer or an operator may do, and which web pages may use the server.
//!
//! Every refusal gets the same answer; the reason is in the log at debug level and in a counter.

pub mod api_keys;
pub mod origin;
mod reason;
pub mod tokens;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::header::{AUTHORIZATION, HeaderMap, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::{self, Origin, Scope, TOKEN_PARAMETER};
use crate::metrics::Metrics;
use crate::net::problem::Problem;
use crate::types::event::UserId;
use crate::types::fault::cut;
use api_keys::ApiKeys;
use origin::Origins;
pub use reason::Reason;
use tokens::Tokens;

/// What precedes a token among the offered subprotocols, the only header that a browser's WebSocket can set.
const TOKEN_SUBPROTOCOL: &str = "signalpost.token.";

/// Refused origins that the log names, each once. A browser's user can make up any number of them.
const ORIGINS_TOLD_MAX: usize = 100;

/// Bytes of a refused origin that the log shows. A host's name has at most 253.
const ORIGIN_BYTES_SHOWN: usize = 300;

/// The keys, tokens and origins that the server accepts. They may be replaced while it runs: each request is judged by those in force when it comes.
#[derive(Debug)]
pub struct Auth {
    rules: ArcSwap<Rules>,
    /// Notified when they were replaced.
    replaced: Notify,
    /// Refused origins that the log has named.
    told: Mutex<BTreeSet<String>>,
    metrics: Arc<Metrics>,
}

/// What one configuration accepts.
#[derive(Debug)]
pub struct Rules {
    keys: ApiKeys,
    tokens: Option<Tokens>,
    origins: Origins,
    token_in_query: bool,
    expiry_grace: Duration,
    first_frame_deadline: Duration,
    first_frame_bytes_max: usize,
}

/// What a valid token says of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// When the session has to end unless it shows another token; `None` if no tokens are asked for.
    pub ends: Option<SystemTime>,
    /// Claims that become session attributes.
    pub attributes: Vec<(String, String)>,
}

/// A refusal. It says which credential was asked for and whether one was shown, which the client knows anyway, but never what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NoKey,
    Key,
    Token,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let detail = match refused {
            Refused::NoKey => "an API key is missing: this address takes one as `Authorization: Bearer KEY`, once; see docs/security.md",
            Refused::Key => "the API key is not valid, or not for this; see docs/security.md",
            Refused::Token => "the user's token is not valid, or not for this user; see docs/security.md",
        };
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }
}

impl Rules {
    fn new(config: &config::Auth, metrics: &Arc<Metrics>) -> anyhow::Result<Rules> {
        let tokens = (!config.users.algorithms.is_empty()).then(|| Tokens::new(config.users.clone(), metrics)).transpose()?;
        let keys = ApiKeys::new(&config.keys)?;
        let asks_all = tokens.is_some() && !keys.is_open();
        Ok(Rules {
            keys,
            tokens,
            origins: Origins::new(config, if asks_all { origin::Own::Named } else { origin::Own::Numbered }),
            token_in_query: config.users.token_in_query,
            expiry_grace: *config.users.expiry_grace_ms,
            first_frame_deadline: *config.users.first_frame_deadline_ms,
            first_frame_bytes_max: config.users.first_frame_bytes_max.get(),
        })
    }
}

impl Auth {
    /// Reads the key files.
    ///
    /// # Errors
    /// A key file can't be read, holds no key of the configured algorithms, or a weak one.
    pub fn new(config: &config::Auth, metrics: Arc<Metrics>) -> anyhow::Result<Auth> {
        let rules = ArcSwap::from_pointee(Rules::new(config, &metrics)?);
        Ok(Auth { rules, replaced: Notify::new(), told: Mutex::default(), metrics })
    }

    /// Reads the rules of another configuration, with the keys that issuers publish. Changes nothing.
    ///
    /// # Errors
    /// As for [`Auth::new`].
    pub async fn prepare(&self, config: &config::Auth) -> anyhow::Result<Rules> {
        let rules = Rules::new(config, &self.metrics)?;
        if let Some(tokens) = &rules.tokens {
            // An issuer that doesn't answer now keeps the keys that it published before.
            let before = self.rules.load_full();
            before.tokens.iter().for_each(|before| tokens.take_over(before));
            tokens.fetch().await;
        }
        Ok(rules)
    }

    /// Replaces the rules. Sessions stay open, each until its token ends.
    pub fn replace(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
        self.replaced.notify_one();
    }

    /// Checks that a request shows an API key with this scope, if any keys are configured.
    ///
    /// # Errors
    /// It shows none, or one without the scope.
    pub fn permits(&self, headers: &HeaderMap, scope: Scope) -> Result<(), Refused> {
        let rules = self.rules.load();
        if rules.keys.is_open() {
            return Ok(());
        }
        match bearer(headers) {
            None => Err(self.refused(Reason::NoKey)),
            Some(key) => match rules.keys.find(key) {
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
        let rules = self.rules.load();
        rules.keys.is_open() || bearer(headers).and_then(|key| rules.keys.find(key)).is_some_and(|(_, scopes)| scopes.contains(&scope))
    }

    /// Returns the name of the API key that a request shows, for the log.
    pub fn name_of_key(&self, headers: &HeaderMap) -> Option<String> {
        self.rules.load().keys.find(bearer(headers)?).map(|(name, _)| name.to_owned())
    }

    /// Checks the `Origin` of a request, if it has one.
    ///
    /// # Errors
    /// The origin is neither listed nor the server's own.
    pub fn origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !headers.contains_key(ORIGIN) || self.rules.load().origins.allow(headers) {
            return Ok(());
        }
        self.refused(Reason::Origin);
        self.tell(headers);
        let detail = "pages of this origin may not use this server; auth.origins lists those that may";
        Err(Problem::new(StatusCode::FORBIDDEN, "origin", detail))
    }

    /// Names a refused origin in the log, once: the page's developer looks there.
    fn tell(&self, headers: &HeaderMap) {
        let shown: Vec<&str> = headers.get_all(ORIGIN).iter().map(|origin| origin.to_str().unwrap_or("an unreadable one")).collect();
        let origin = cut(&shown.join(", "), ORIGIN_BYTES_SHOWN).to_owned();
        let mut told = self.told.lock();
        if told.len() == ORIGINS_TOLD_MAX || !told.insert(origin.clone()) {
            return;
        }
        let what_to_do = match Origin::parse(&origin) {
            Some(_) => format!("to let its pages use this server, set auth.origins = [{origin:?}]"),
            None => "it can't be listed in auth.origins: serve the page over http or https".to_owned(),
        };
        tracing::warn!(origin, "a web page of another origin was refused; {what_to_do}");
    }

    /// Returns the `Origin` of a request, if it is one of those that are listed.
    pub fn listed<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        self.rules.load().origins.listed(headers)
    }

    /// Returns what the handshake's token says of the user whose socket is asked for, or `None` if the token has to come in the
    /// first frame.
    ///
    /// # Errors
    /// The token isn't valid for this user.
    pub fn admit(&self, user: &UserId, headers: &HeaderMap, query: &str) -> Result<Option<Identity>, Refused> {
        let rules = self.rules.load();
        if rules.tokens.is_none() {
            return Ok(Some(Identity::default()));
        }
        let shown = bearer(headers).or_else(|| offered(headers)).map(Cow::Borrowed);
        let token = shown.or_else(|| rules.token_in_query.then(|| queried(query)).flatten());
        token.map(|token| self.token(user, &token)).transpose()
    }

    /// Returns what a token says of a user, at the start of a session or later.
    ///
    /// # Errors
    /// The token isn't valid for this user.
    pub fn token(&self, user: &UserId, token: &str) -> Result<Identity, Refused> {
        let rules = self.rules.load();
        let Some(tokens) = &rules.tokens else { return Ok(Identity::default()) };
        match tokens.verify(token, user) {
            Ok(mut identity) => {
                identity.ends = identity.ends.and_then(|expires| expires.checked_add(rules.expiry_grace));
                Ok(identity)
            }
            Err(reason) => Err(self.refused(reason)),
        }
    }

    /// Says whether the query string may set this session attribute: not if a claim does.
    pub fn is_for_clients(&self, attribute: &str) -> bool {
        self.rules.load().tokens.as_ref().is_none_or(|tokens| !tokens.claims().iter().any(|claim| claim == attribute))
    }

    /// Returns how long a socket without a token may take to send one, and in how many bytes.
    pub fn first_frame(&self) -> (Duration, usize) {
        let rules = self.rules.load();
        (rules.first_frame_deadline, rules.first_frame_bytes_max)
    }

    /// Says whether producers and operators have to show a key, and users a token.
    pub fn asks(&self) -> (bool, bool) {
        let rules = self.rules.load();
        (!rules.keys.is_open(), rules.tokens.is_some())
    }

    /// Fetches the keys that issuers publish, once.
    pub async fn fetch(&self) {
        if let Some(tokens) = &self.rules.load_full().tokens {
            tokens.fetch().await;
        }
    }

    /// Keeps the keys that issuers publish up to date, for ever, for the issuers that are configured at the time.
    pub async fn follow(&self) {
        loop {
            let rules = self.rules.load_full();
            let following = async {
                match &rules.tokens {
                    Some(tokens) => tokens.follow().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = following => self.replaced.notified().await,
                () = self.replaced.notified() => {}
            }
        }
    }

    /// Reads changed key files. If they can't be used, the keys stay as they are.
    pub fn refresh(&self) {
        if let Some(tokens) = &self.rules.load_full().tokens {
            tokens.refresh();
        }
    }

    /// Logs and counts a refusal.
    pub fn refused(&self, reason: Reason) -> Refused {
        tracing::debug!(reason = reason.name(), "refused");
        self.metrics.auth_refused.with_label_values(&[reason.name()]).inc();
        match reason {
            Reason::NoKey => Refused::NoKey,
            Reason::UnknownKey | Reason::Scope => Refused::Key,
            _ => Refused::Token,
        }
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
