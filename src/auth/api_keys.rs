//! API keys of producers and operators. The configuration holds only their digests.

use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::{ApiKey, Scope};

/// Begins every key, so that secret scanners and people recognize one.
const PREFIX: &str = "signalpost_";

/// The configured keys. A producer may have several at a time, to change from one to the next.
#[derive(Debug)]
pub struct ApiKeys(Vec<Known>);

#[derive(Debug)]
struct Known {
    name: String,
    digest: [u8; 32],
    scopes: Vec<Scope>,
}

impl ApiKeys {
    /// Reads the digests.
    ///
    /// # Errors
    /// A digest is not 64 hexadecimal digits.
    pub fn new(keys: &[ApiKey]) -> anyhow::Result<ApiKeys> {
        let known = |key: &ApiKey| {
            let digest = from_hex(&key.sha256).with_context(|| {
                format!("the API key \"{}\": sha256 must be 64 hex digits, as `signalpost token --api-key` prints it", key.name)
            })?;
            Ok(Known { name: key.name.clone(), digest, scopes: key.scopes.clone() })
        };
        Ok(ApiKeys(keys.iter().map(known).collect::<anyhow::Result<_>>()?))
    }

    /// Says whether no keys are configured, so that nobody is asked for one.
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the name and the scopes of a key. All digests are compared, each in constant time, so that the time taken reveals nothing.
    pub fn find(&self, key: &str) -> Option<(&str, &[Scope])> {
        let shown: [u8; 32] = Sha256::digest(key).into();
        self.0.iter().fold(None, |found, known| {
            let same: bool = known.digest.ct_eq(&shown).into();
            if same { Some((known.name.as_str(), known.scopes.as_slice())) } else { found }
        })
    }
}

/// Makes a key, and returns it with its digest in hex. A key of 244 random bits can't be guessed from its digest, so that no slow hash is
/// needed.
pub fn generate() -> (String, String) {
    let random = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
    let key = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random));
    let digest = hex_digest(&key);
    (key, digest)
}

/// Returns a key's digest as the configuration has it.
pub fn hex_digest(key: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(key))
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_digest_alone() {
        let made: Vec<(String, String)> = (0..3).map(|_| generate()).collect();
        let config: Vec<ApiKey> = made
            .iter()
            .enumerate()
            .map(|(n, (_, sha256))| ApiKey { name: format!("k{n}"), sha256: sha256.to_uppercase(), scopes: vec![Scope::Publish] })
            .collect();
        let keys = ApiKeys::new(&config).unwrap();
        for (n, (key, digest)) in made.iter().enumerate() {
            assert_eq!(keys.find(key).unwrap().0, format!("k{n}"));
            assert!(keys.find(digest).is_none(), "a digest is not a key");
            assert!(keys.find(&key[..key.len() - 1]).is_none());
        }
        assert!(keys.find("").is_none());
    }

    #[test]
    fn a_digest_that_is_not_64_hex_digits_is_refused() {
        for sha256 in ["", "00", &"g".repeat(64), &"0".repeat(65), &"+1".repeat(32)] {
            let key = ApiKey { name: "backend".into(), sha256: sha256.into(), scopes: vec![] };
            assert!(ApiKeys::new(&[key]).unwrap_err().to_string().contains("backend"), "{sha256}");
        }
    }
}
