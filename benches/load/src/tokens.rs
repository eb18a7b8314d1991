//! Users' tokens (JWT) for a server that asks for them.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey, Header, encode};
use serde_json::{Map, Value};

/// Longer than any run.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes tokens that are all alike but for the user.
pub struct Signer {
    header: Header,
    key: EncodingKey,
    /// The claim that names the user.
    user_claim: String,
    /// The claims of every token.
    claims: Map<String, Value>,
}

impl Signer {
    /// Reads the key: for HS256, HS384 and HS512 a secret, otherwise a private key in PEM. `claims` go into each token, as
    /// `iss` and `aud` if the server checks them.
    ///
    /// # Errors
    /// The file can't be read, or holds no key for this algorithm.
    pub fn new(algorithm: Algorithm, key_file: &Path, user_claim: &str, mut claims: Map<String, Value>) -> anyhow::Result<Signer> {
        let bytes = fs::read(key_file).with_context(|| format!("can't read {}", key_file.display()))?;
        let key = match algorithm.family() {
            // The server doesn't count a line break at the end of a secret either.
            AlgorithmFamily::Hmac => Ok(EncodingKey::from_secret(bytes.trim_ascii_end())),
            AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(&bytes),
            AlgorithmFamily::Ec => EncodingKey::from_ec_pem(&bytes),
            AlgorithmFamily::Ed => EncodingKey::from_ed_pem(&bytes),
        };
        let key = key.with_context(|| format!("{} is not a private key for {algorithm:?} in PEM", key_file.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        claims.insert("iat".to_owned(), now.as_secs().into());
        claims.insert("exp".to_owned(), (now + LIFETIME).as_secs().into());
        let signer = Signer { header: Header::new(algorithm), key, user_claim: user_claim.to_owned(), claims };
        signer.sign("").context("this key can't sign a token")?;
        Ok(signer)
    }

    /// Returns the token of this user.
    ///
    /// # Errors
    /// The signature fails, which it did not when `new` tried it.
    pub fn sign(&self, user: &str) -> anyhow::Result<String> {
        let mut claims = self.claims.clone();
        claims.insert(self.user_claim.clone(), user.into());
        Ok(encode(&self.header, &claims, &self.key)?)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode};

    use super::*;

    fn key_file(name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let file = std::env::temp_dir().join(format!("signalpost-load-{name}-{}", std::process::id()));
        fs::write(&file, bytes).unwrap();
        file
    }

    #[test]
    fn a_token_names_its_user_and_has_the_further_claims() {
        let file = key_file("secret", b"a secret of thirty-two bytes....\n");
        let claims = Map::from_iter([("iss".to_owned(), "https://id.example.com".into())]);
        let signer = Signer::new(Algorithm::HS256, &file, "user", claims).unwrap();
        fs::remove_file(file).unwrap();
        let key = DecodingKey::from_secret(b"a secret of thirty-two bytes....");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&["https://id.example.com"]);
        let claims = decode::<Map<String, Value>>(signer.sign("run-7").unwrap(), &key, &validation).unwrap().claims;
        assert_eq!(claims["user"], "run-7");
        assert!(claims["exp"].as_u64().unwrap() > claims["iat"].as_u64().unwrap() + 3600);
    }

    #[test]
    fn a_secret_is_not_a_private_key() {
        let file = key_file("not-a-key", b"a secret of thirty-two bytes....");
        let Err(error) = Signer::new(Algorithm::ES256, &file, "sub", Map::new()) else { panic!("a secret was taken") };
        fs::remove_file(&file).unwrap();
        assert!(error.to_string().contains("is not a private key for ES256"), "{error}");
        assert!(Signer::new(Algorithm::HS256, &file, "sub", Map::new()).is_err(), "the file is gone");
    }
}
