//! Key files: a PEM with a public key, a JWK set, or a secret as it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};

use crate::config::{self, Users};

/// Bytes of a key file or of a published set. A JWK set has some KiB.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// RFC 7518, section 3.3: an RSA key has at least 2048 bits.
const RSA_BYTES_MIN: usize = 256;
/// Fewer different bytes than this are no random secret.
const DIFFERENT_BYTES_MIN: usize = 8;

/// When a file changed and how long it is; `None` where it can't be seen.
pub type Stamp = Option<(SystemTime, u64)>;

pub fn stamp(file: &Path) -> Stamp {
    let data = fs::metadata(file).ok()?;
    Some((data.modified().ok()?, data.len()))
}

/// A key and what may be verified with it.
pub struct Key {
    id: Option<String>,
    /// Where the key says so itself.
    algorithm: Option<Algorithm>,
    pub decoding: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key.
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Key {
    /// Whether a token with this header may be verified with it. An id that both name must be the same.
    pub fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        let same_id = match (&self.id, id) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        };
        same_id && self.decoding.family() == algorithm.family() && self.algorithm.is_none_or(|own| own == algorithm)
    }
}

/// The library's name of a configured algorithm.
pub fn algorithm(algorithm: config::Algorithm) -> Algorithm {
    use config::Algorithm as Configured;
    match algorithm {
        Configured::HS256 => Algorithm::HS256,
        Configured::HS384 => Algorithm::HS384,
        Configured::HS512 => Algorithm::HS512,
        Configured::RS256 => Algorithm::RS256,
        Configured::RS384 => Algorithm::RS384,
        Configured::RS512 => Algorithm::RS512,
        Configured::PS256 => Algorithm::PS256,
        Configured::PS384 => Algorithm::PS384,
        Configured::PS512 => Algorithm::PS512,
        Configured::ES256 => Algorithm::ES256,
        Configured::ES384 => Algorithm::ES384,
        Configured::EdDSA => Algorithm::EdDSA,
    }
}

/// The configured algorithms.
pub fn algorithms(config: &Users) -> impl Iterator<Item = Algorithm> {
    config.algorithms.iter().map(|named| algorithm(*named))
}

/// All keys of the configured files.
///
/// # Errors
/// A file can't be read, or holds what is no key, a weak one, or one of another algorithm.
pub fn read(config: &Users) -> anyhow::Result<Vec<Key>> {
    let algorithms: Vec<Algorithm> = algorithms(config).collect();
    let mut keys = Vec::new();
    for file in &config.key_files {
        let name = || format!("auth.users.key_files: {}", file.display());
        let length = fs::metadata(file).with_context(name)?.len();
        ensure!(length <= FILE_BYTES_MAX, "{} has {length} bytes; a key file has at most {FILE_BYTES_MAX}", name());
        let bytes = fs::read(file).with_context(name)?;
        for key in parse(&bytes, &algorithms).with_context(name)? {
            let family = key.decoding.family();
            let of_use = algorithms.iter().any(|algorithm| algorithm.family() == family);
            ensure!(of_use, "{} is a key of none of auth.users.algorithms; name its algorithm there, or leave it out", name());
            keys.push(key);
        }
    }
    for algorithm in algorithms {
        let is_published = !config.jwks.is_empty() && algorithm.family() != AlgorithmFamily::Hmac;
        let served = is_published || keys.iter().any(|key| key.decoding.family() == algorithm.family());
        ensure!(served, "auth.users.algorithms names {algorithm:?}, and there is no key for it in auth.users.key_files");
    }
    Ok(keys)
}

/// The first configured secret, with which tokens can be made as well as verified.
pub fn secret(config: &Users) -> Option<Vec<u8>> {
    let is_secret =
        |bytes: &Vec<u8>| !bytes.trim_ascii_start().starts_with(b"{") && !bytes.windows(11).any(|window| window == b"-----BEGIN ");
    let found = config.key_files.iter().filter_map(|file| fs::read(file).ok()).find(is_secret)?;
    Some(found.trim_ascii_end().to_vec())
}

fn parse(bytes: &[u8], algorithms: &[Algorithm]) -> anyhow::Result<Vec<Key>> {
    let key = |decoding| vec![Key { id: None, algorithm: None, decoding }];
    let text = String::from_utf8_lossy(bytes);
    if text.contains("PRIVATE KEY-----") {
        bail!("is a private key; whoever verifies tokens needs the public one only");
    }
    if text.contains("-----BEGIN ") {
        let parsed =
            DecodingKey::from_rsa_pem(bytes).or_else(|_| DecodingKey::from_ec_pem(bytes)).or_else(|_| DecodingKey::from_ed_pem(bytes));
        let parsed = parsed.context("is no public key of RSA, EC or Ed25519")?;
        long(&parsed)?;
        return Ok(key(parsed));
    }
    if text.trim_start().starts_with('{') {
        return jwk_set(bytes, algorithms);
    }
    let secret = bytes.trim_ascii_end();
    strong(secret, algorithms)?;
    Ok(key(DecodingKey::from_secret(secret)))
}

/// The set's signature keys of the configured algorithms; a set may hold others as well.
///
/// # Errors
/// It is none, or has no such key.
pub fn jwk_set(bytes: &[u8], algorithms: &[Algorithm]) -> anyhow::Result<Vec<Key>> {
    let set: JwkSet = serde_json::from_slice(bytes).context("is no JWK set (RFC 7517)")?;
    let mut keys = Vec::new();
    for jwk in &set.keys {
        let Ok(decoding) = DecodingKey::from_jwk(jwk) else { continue };
        let for_encryption = matches!(jwk.common.public_key_use, Some(jsonwebtoken::jwk::PublicKeyUse::Encryption));
        if for_encryption || !algorithms.iter().any(|algorithm| algorithm.family() == decoding.family()) {
            continue;
        }
        if let Ok(secret) = decoding.try_get_hmac_secret() {
            strong(secret, algorithms)?;
        }
        long(&decoding)?;
        let named = jwk.common.key_algorithm.map(|named| named.to_string().parse::<Algorithm>());
        let Ok(algorithm) = named.transpose() else { continue };
        keys.push(Key { id: jwk.common.key_id.clone(), algorithm, decoding });
    }
    ensure!(!keys.is_empty(), "has no key of auth.users.algorithms");
    Ok(keys)
}

/// An RSA key that can be factored is no secret of its owner's.
fn long(key: &DecodingKey) -> anyhow::Result<()> {
    let bytes = match key.kind() {
        // Leading zeros are no length.
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.iter().skip_while(|byte| **byte == 0).count(),
        // In DER, which is longer than the modulus in it by a dozen bytes. Verifying refuses what hides in those.
        DecodingKeyKind::SecretOrDer(der) => der.len(),
    };
    ensure!(
        key.family() != AlgorithmFamily::Rsa || bytes >= RSA_BYTES_MIN,
        "is an RSA key of fewer than {} bits; have its issuer take a longer one",
        RSA_BYTES_MIN * 8
    );
    Ok(())
}

/// RFC 7518, section 3.2: a secret has as many bytes as the hash. A phrase that is repeated is no secret either.
fn strong(secret: &[u8], algorithms: &[Algorithm]) -> anyhow::Result<()> {
    let needed = |algorithm: &Algorithm| match algorithm {
        Algorithm::HS256 => 32,
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 0,
    };
    let min = algorithms.iter().map(needed).max().unwrap_or_default();
    ensure!(
        algorithms.iter().any(|algorithm| algorithm.family() == AlgorithmFamily::Hmac),
        "is a secret, and auth.users.algorithms has no HS…"
    );
    let different = secret.iter().collect::<BTreeSet<_>>().len();
    ensure!(
        secret.len() >= min && different >= DIFFERENT_BYTES_MIN,
        "is a weak secret of {} bytes; take at least {min} random ones, as of `openssl rand -hex {min}`",
        secret.len()
    );
    Ok(())
}
