//! A signed token in its compact form (RFC 7515): its header, and the check of its signature.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::crypto::verify;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::keys::Key;
use crate::auth::Reason;

/// A token, taken apart. Nothing in it is proven.
#[derive(Debug)]
pub struct Jws<'a> {
    pub algorithm: Algorithm,
    /// `typ`.
    pub token_type: Option<String>,
    key_id: Option<String>,
    /// Header and claims, as they are signed.
    signed: &'a str,
    claims: &'a str,
    signature: &'a str,
}

/// The members that are understood. Others are ignored, whatever their type (RFC 7515, section 4); one that is there twice is an error.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "named")]
    typ: Option<String>,
    #[serde(default, deserialize_with = "named")]
    kid: Option<String>,
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
}

impl Jws<'_> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// It is not a token, has an algorithm that nobody could configure, or an extension that must be understood.
    pub fn parse(token: &str) -> Result<Jws<'_>, Reason> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Reason::Malformed)?;
        let (header, claims) = signed.split_once('.').filter(|(_, claims)| !claims.contains('.')).ok_or(Reason::Malformed)?;
        let header = object(header)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| Reason::Malformed)?;
        // It lists extensions that must be understood (RFC 7515, section 4.1.11). This server understands none of them.
        if header.crit {
            return Err(Reason::Critical);
        }
        let algorithm = header.alg.parse().map_err(|_| Reason::Algorithm)?;
        Ok(Jws { algorithm, token_type: header.typ, key_id: header.kid, signed, claims, signature })
    }

    /// Returns the claims if one of these keys made the signature.
    ///
    /// # Errors
    /// None of the keys may verify it, or none did.
    pub fn verified(&self, keys: &[Key]) -> Result<Map<String, Value>, Reason> {
        let mut reason = Reason::NoSuchKey;
        for key in keys.iter().filter(|key| key.fits(self.algorithm, self.key_id.as_deref())) {
            match verify(self.signature, self.signed.as_bytes(), &key.decoding, self.algorithm) {
                Ok(true) => return serde_json::from_slice(&object(self.claims)?).map_err(|_| Reason::Malformed),
                Ok(false) | Err(_) => reason = Reason::Signature,
            }
        }
        Err(reason)
    }
}

/// Returns a part of a token, which is a JSON object. serde would read a list as the members in their order.
fn object(encoded: &str) -> Result<Vec<u8>, Reason> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(encoded).ok();
    json.filter(|json| json.trim_ascii_start().starts_with(b"{")).ok_or(Reason::Malformed)
}

/// Reads a member that must be a string if it is there; null is not one.
fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|IgnoredAny| true)
}
