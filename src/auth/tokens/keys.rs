//! Keys that verify tokens, from files and from what issuers publish: a PEM with a public key, a JWK set (RFC 7517), or a secret.

mod jwk;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail, ensure};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use crate::config::{self, Users};
use crate::types::file;
use jwk::Unusable;
pub use jwk::{Skipped, jwk_set};

/// Bytes of a key file or of a published set. A JWK set has some KiB.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// RFC 7518, section 3.3: an RSA key has at least 2048 bits.
const RSA_BITS_MIN: usize = 2048;
/// The longest RSA key that the cryptography in use verifies with.
const RSA_BITS_MAX: usize = 8192;
/// A secret with fewer different bytes than this is not random.
const DIFFERENT_BYTES_MIN: usize = 8;

/// When a file changed and how long it is; `None` if it can't be read.
pub type Stamp = Option<(SystemTime, u64)>;

pub fn stamp(file: &Path) -> Stamp {
    let data = fs::metadata(file).ok()?;
    Some((data.modified().ok()?, data.len()))
}

/// A key and what may be verified with it.
pub struct Key {
    id: Option<String>,
    /// The configured algorithms whose signatures it can verify; never empty.
    algorithms: Vec<Algorithm>,
    pub decoding: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key itself.
        f.debug_struct("Key").field("id", &self.id).field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

impl Key {
    /// Says whether a token with this header may be verified with the key. If both have an id, it must be the same.
    pub fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        let same_id = match (&self.id, id) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        };
        same_id && self.algorithms.contains(&algorithm)
    }
}

/// Returns the library's name of a configured algorithm.
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

/// Returns the configured algorithms.
pub fn algorithms(config: &Users) -> impl Iterator<Item = Algorithm> {
    config.algorithms.iter().map(|named| algorithm(*named))
}

/// Reads all keys of the configured files. Members of a JWK set that can't be used are logged and skipped.
///
/// # Errors
/// A file can't be read, or holds no key that can be used; or an algorithm has no key.
pub fn read(config: &Users) -> anyhow::Result<Vec<Key>> {
    let algorithms: Vec<Algorithm> = algorithms(config).collect();
    let mut keys = Vec::new();
    for path in &config.key_files {
        let name = || format!("auth.users.key_files: {}", path.display());
        let bytes = file::read(path, FILE_BYTES_MAX).map_err(|error| anyhow!("{} {error}", name()))?;
        let (read, skipped) = parse(&bytes, &algorithms).with_context(name)?;
        for skipped in skipped {
            tracing::warn!(file = ?path, "a key of users' tokens is not used: {skipped}");
        }
        keys.extend(read);
    }
    for algorithm in algorithms {
        let is_published = !config.jwks.is_empty() && algorithm.family() != AlgorithmFamily::Hmac;
        let is_served = is_published || keys.iter().any(|key| key.decoding.family() == algorithm.family());
        ensure!(is_served, "auth.users.algorithms names {algorithm:?}, and there is no key for it in auth.users.key_files");
    }
    Ok(keys)
}

/// Returns the first configured secret, with which tokens can be made as well as verified.
pub fn secret(config: &Users) -> Option<Vec<u8>> {
    let is_secret =
        |bytes: &Vec<u8>| !bytes.trim_ascii_start().starts_with(b"{") && !bytes.windows(11).any(|window| window == b"-----BEGIN ");
    let found = config.key_files.iter().filter_map(|path| file::read(path, FILE_BYTES_MAX).ok()).find(is_secret)?;
    Some(found.trim_ascii_end().to_vec())
}

fn parse(bytes: &[u8], algorithms: &[Algorithm]) -> anyhow::Result<(Vec<Key>, Vec<Skipped>)> {
    let text = String::from_utf8_lossy(bytes);
    if text.contains("PRIVATE KEY-----") {
        bail!("it is a private key; verifying tokens needs only the public one");
    }
    if text.trim_start().starts_with('{') {
        return Ok(jwk_set(bytes, algorithms)?);
    }
    let (family, decoding) = if text.contains("-----BEGIN ") { pem(bytes)? } else { plain_secret(bytes, algorithms)? };
    let algorithms: Vec<Algorithm> = algorithms.iter().copied().filter(|algorithm| family.contains(algorithm)).collect();
    ensure!(!algorithms.is_empty(), "{}; name one of them there, or leave the file out", Unusable::NotConfigured(family.to_vec()));
    Ok((vec![Key { id: None, algorithms, decoding }], Vec::new()))
}

/// Reads a public key, and returns it with the algorithms that it is for.
fn pem(bytes: &[u8]) -> anyhow::Result<(&'static [Algorithm], DecodingKey)> {
    let parsed = DecodingKey::from_rsa_pem(bytes).or_else(|_| DecodingKey::from_ec_pem(bytes)).or_else(|_| DecodingKey::from_ed_pem(bytes));
    let key = parsed.context("it is not a public key of RSA, EC or Ed25519")?;
    // The key in DER: an RSA key's is longer than its modulus by a dozen bytes, and verifying refuses what those could hide.
    let bytes = key.as_bytes().len();
    let algorithms = match key.family() {
        AlgorithmFamily::Rsa if bytes * 8 < RSA_BITS_MIN => bail!(Unusable::RsaLength { bits: bytes * 8 }),
        AlgorithmFamily::Rsa => jwk::RSA,
        AlgorithmFamily::Ec => jwk::ec(bytes.saturating_sub(1) / 2).context("it is on a curve other than P-256 and P-384")?,
        AlgorithmFamily::Ed => jwk::ED,
        AlgorithmFamily::Hmac => jwk::HMAC,
    };
    Ok((algorithms, key))
}

fn plain_secret(bytes: &[u8], algorithms: &[Algorithm]) -> anyhow::Result<(&'static [Algorithm], DecodingKey)> {
    let secret = bytes.trim_ascii_end();
    let own: Vec<Algorithm> = algorithms.iter().copied().filter(|algorithm| algorithm.family() == AlgorithmFamily::Hmac).collect();
    ensure!(!own.is_empty(), "it is a secret, and auth.users.algorithms has no HS…");
    check_secret(secret, &own)?;
    Ok((jwk::HMAC, DecodingKey::from_secret(secret)))
}

/// Checks that a secret is as long as the hash of each algorithm (RFC 7518, section 3.2), and not a repeated phrase.
fn check_secret(secret: &[u8], algorithms: &[Algorithm]) -> Result<(), Unusable> {
    let needed = |algorithm: &Algorithm| match algorithm {
        Algorithm::HS256 => 32,
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 0,
    };
    let needed = algorithms.iter().map(needed).max().unwrap_or_default();
    let different = secret.iter().collect::<BTreeSet<_>>().len();
    if secret.len() < needed || different < DIFFERENT_BYTES_MIN {
        return Err(Unusable::WeakSecret { bytes: secret.len(), needed });
    }
    Ok(())
}
