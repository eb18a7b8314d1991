//! Settings of authentication: API keys, users' tokens, and the server's certificate.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Milliseconds;

/// Who may publish, operate and connect.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// API keys of producers and operators.
    pub keys: Vec<ApiKey>,
    /// Origins of web pages that may use this server besides its own.
    pub origins: Vec<String>,
    /// Whether pages of this machine may use this server, whatever their port. Not a setting: `signalpost dev` lets them.
    #[serde(skip)]
    pub pages_of_localhost: bool,
    /// Users' tokens.
    pub users: Users,
}

/// A key that a producer or an operator shows. Only its digest is known.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Names the key in the log.
    pub name: String,
    /// The digest of the key, as 64 hexadecimal digits.
    pub sha256: String,
    /// What the key's holder may do.
    pub scopes: Vec<Scope>,
}

/// A permission of an API key's holder.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Publish,
    Read,
    Operate,
}

/// Users' tokens (JWT).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// The signature algorithms that are accepted. Without any, users need no token.
    pub algorithms: Vec<Algorithm>,
    /// Files with keys: public keys in PEM, JWK sets, or secrets.
    pub key_files: Vec<PathBuf>,
    /// JWK sets that issuers publish.
    pub jwks: Vec<JwkSet>,
    /// How often each set is fetched.
    pub jwks_interval_ms: Milliseconds,
    /// The least time between two fetches of a set.
    pub jwks_pause_ms: Milliseconds,
    /// Accepted issuers (`iss`); empty accepts any.
    pub issuers: Vec<String>,
    /// Accepted audiences (`aud`); empty accepts any.
    pub audiences: Vec<String>,
    /// Accepted types (`typ`), "" for a token without one; an empty list accepts any.
    pub token_types: Vec<String>,
    /// The tolerated difference between clocks, in seconds.
    pub leeway_s: u64,
    /// The claim that names the user.
    pub user_claim: String,
    /// Claims that become session attributes.
    pub claims: Vec<String>,
    /// Whether a token in the query string is accepted.
    pub token_in_query: bool,
    /// How long a socket without a token in its handshake may take to send one.
    pub first_frame_deadline_ms: Milliseconds,
    /// Bytes of that frame.
    pub first_frame_bytes_max: NonZeroUsize,
    /// How long a session outlives its token.
    pub expiry_grace_ms: Milliseconds<0>,
}

/// Keys that an issuer publishes for its tokens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JwkSet {
    /// The value of `iss` in the issuer's tokens.
    pub issuer: String,
    /// The https URL of the set.
    pub url: String,
}

/// A signature's algorithm, by its name in RFC 7518 or RFC 8037.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// The server's certificate; empty paths for a server without TLS.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate with its chain, in PEM.
    pub certificate_file: PathBuf,
    /// The certificate's private key, in PEM.
    pub key_file: PathBuf,
}
