//! JWK sets (RFC 7517), member by member: one that can't be used is skipped, and the others are kept (section 5).

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{Key, RSA_BITS_MAX, RSA_BITS_MIN, check_secret};

pub(super) const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
pub(super) const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
const P256: &[Algorithm] = &[Algorithm::ES256];
const P384: &[Algorithm] = &[Algorithm::ES384];
pub(super) const ED: &[Algorithm] = &[Algorithm::EdDSA];

/// Bytes of an Ed25519 public key (RFC 8032).
const ED_BYTES: usize = 32;
/// What comes before the coordinates of a point that is written down in full (SEC 1, section 2.3.3).
const UNCOMPRESSED: u8 = 4;

/// A member that can't be used, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Skipped {
    /// In the set, from 1.
    position: usize,
    id: Option<String>,
    reason: Unusable,
}

/// Why a key can't verify any token.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Not an object with the members of a JWK.
    Malformed(String),
    KeyType(String),
    Curve(Option<String>),
    Missing(&'static str),
    NotBase64(&'static str),
    Length {
        member: &'static str,
        bytes: usize,
        expected: usize,
    },
    /// `use` is not `sig`.
    Use(String),
    /// `key_ops` lacks `verify`.
    Operations,
    /// It has an `alg` that doesn't fit its type, or that no token can have here.
    Algorithm(String),
    /// The configuration names none of the algorithms that the key is for.
    NotConfigured(Vec<Algorithm>),
    Private,
    RsaLength {
        bits: usize,
    },
    RsaExponent,
    WeakSecret {
        bytes: usize,
        needed: usize,
    },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Malformed(error) => write!(f, "it is not a JWK: {error}"),
            Unusable::KeyType(kty) => write!(f, "its `kty` {kty:?} is not one of RSA, EC, OKP and oct"),
            Unusable::Curve(Some(crv)) => write!(f, "its `crv` {crv:?} is not one of P-256, P-384 and Ed25519"),
            Unusable::Curve(None) => f.write_str("it has no `crv`"),
            Unusable::Missing(member) => write!(f, "it has no `{member}`"),
            Unusable::NotBase64(member) => write!(f, "its `{member}` is not base64url"),
            Unusable::Length { member, bytes, expected } => write!(f, "its `{member}` has {bytes} bytes instead of {expected}"),
            Unusable::Use(purpose) => write!(f, "its `use` is {purpose:?}, not \"sig\""),
            Unusable::Operations => f.write_str("its `key_ops` lack \"verify\""),
            Unusable::Algorithm(alg) => write!(f, "its `alg` {alg:?} is not an algorithm of such a key that this server knows"),
            Unusable::NotConfigured(algorithms) => {
                write!(f, "it is a key for {algorithms:?}, and auth.users.algorithms names none of these")
            }
            Unusable::Private => f.write_str("it is a private key; verifying tokens needs only the public one"),
            Unusable::RsaLength { bits } if *bits < RSA_BITS_MIN => {
                write!(f, "it is an RSA key of fewer than {RSA_BITS_MIN} bits; ask its issuer for a longer one")
            }
            Unusable::RsaLength { bits } => write!(f, "it is an RSA key of {bits} bits, over the limit of {RSA_BITS_MAX}"),
            Unusable::RsaExponent => f.write_str("its `e` is not an odd number over 1"),
            Unusable::WeakSecret { bytes, needed } => {
                write!(f, "it is a weak secret of {bytes} bytes; take at least {needed} random ones, as of `openssl rand -hex {needed}`")
            }
        }
    }
}

impl std::error::Error for Unusable {}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.position)?;
        if let Some(id) = &self.id {
            write!(f, " ({id:?})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Why a set gives no keys.
#[derive(Debug)]
pub enum NoKeys {
    NotASet(serde_json::Error),
    Empty,
    /// It has no member that can be used.
    NoneUsable(Vec<Skipped>),
}

impl fmt::Display for NoKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoKeys::NotASet(error) => write!(f, "it is not a JWK set (RFC 7517): {error}"),
            NoKeys::Empty => f.write_str("it is a JWK set without keys"),
            NoKeys::NoneUsable(skipped) => {
                f.write_str("none of its keys can be used: ")?;
                for (index, skipped) in skipped.iter().enumerate() {
                    write!(f, "{}{skipped}", if index == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for NoKeys {}

/// The members of a JWK that matter here. Others are ignored, whatever their type.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    k: Option<String>,
    /// The private half of a key, which must not be published.
    d: Option<IgnoredAny>,
}

/// Returns a set's keys that can verify tokens of these algorithms, and the members that can't.
///
/// # Errors
/// It is not a set, or has no such key.
pub fn jwk_set(bytes: &[u8], algorithms: &[Algorithm]) -> Result<(Vec<Key>, Vec<Skipped>), NoKeys> {
    let mut set: Map<String, Value> = serde_json::from_slice(bytes).map_err(NoKeys::NotASet)?;
    let members: Vec<Value> = serde_json::from_value(set.remove("keys").unwrap_or_default()).map_err(NoKeys::NotASet)?;
    if members.is_empty() {
        return Err(NoKeys::Empty);
    }
    let (mut keys, mut skipped) = (Vec::new(), Vec::new());
    for (index, member) in members.into_iter().enumerate() {
        let id = member.get("kid").and_then(Value::as_str).map(str::to_owned);
        match read(member, algorithms) {
            Ok(key) => keys.push(key),
            Err(reason) => skipped.push(Skipped { position: index + 1, id, reason }),
        }
    }
    if keys.is_empty() { Err(NoKeys::NoneUsable(skipped)) } else { Ok((keys, skipped)) }
}

/// Reads one member.
fn read(member: Value, algorithms: &[Algorithm]) -> Result<Key, Unusable> {
    if !member.is_object() {
        return Err(Unusable::Malformed("it is not an object".into()));
    }
    let jwk: Jwk = serde_json::from_value(member).map_err(|error| Unusable::Malformed(error.to_string()))?;
    // The purpose of a key is checked first, so that the reason is not a detail of a key that is for something else.
    if let Some(purpose) = jwk.purpose.as_ref().filter(|purpose| *purpose != "sig") {
        return Err(Unusable::Use(purpose.clone()));
    }
    if jwk.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err(Unusable::Operations);
    }
    let possible = possible(&jwk)?;
    let own: Vec<Algorithm> = match &jwk.alg {
        None => possible.to_vec(),
        Some(named) => match named.parse().ok().filter(|algorithm| possible.contains(algorithm)) {
            Some(algorithm) => vec![algorithm],
            None => return Err(Unusable::Algorithm(named.clone())),
        },
    };
    let usable: Vec<Algorithm> = own.iter().copied().filter(|algorithm| algorithms.contains(algorithm)).collect();
    if usable.is_empty() {
        return Err(Unusable::NotConfigured(own));
    }
    if jwk.d.is_some() {
        return Err(Unusable::Private);
    }
    let decoding = match possible {
        HMAC => {
            let secret = bytes("k", jwk.k.as_ref())?;
            check_secret(&secret, &usable)?;
            DecodingKey::from_secret(&secret)
        }
        RSA => rsa(&bytes("n", jwk.n.as_ref())?, &bytes("e", jwk.e.as_ref())?)?,
        ED => DecodingKey::from_ed_der(&exactly("x", jwk.x.as_ref(), ED_BYTES)?),
        curve => {
            let size = coordinate_bytes(curve);
            let point = [vec![UNCOMPRESSED], exactly("x", jwk.x.as_ref(), size)?, exactly("y", jwk.y.as_ref(), size)?].concat();
            DecodingKey::from_ec_der(&point)
        }
    };
    Ok(Key { id: jwk.kid, algorithms: usable, decoding })
}

/// Returns the algorithms of a key of this type and curve.
fn possible(jwk: &Jwk) -> Result<&'static [Algorithm], Unusable> {
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => Ok(RSA),
        ("oct", _) => Ok(HMAC),
        ("EC", Some("P-256")) => Ok(P256),
        ("EC", Some("P-384")) => Ok(P384),
        ("OKP", Some("Ed25519")) => Ok(ED),
        ("EC" | "OKP", crv) => Err(Unusable::Curve(crv.map(str::to_owned))),
        (kty, _) => Err(Unusable::KeyType(kty.to_owned())),
    }
}

/// Returns the algorithms of an elliptic curve whose coordinates have this many bytes.
pub(super) fn ec(coordinate: usize) -> Option<&'static [Algorithm]> {
    [P256, P384].into_iter().find(|curve| coordinate_bytes(curve) == coordinate)
}

/// Bytes of a coordinate (RFC 7518, section 6.2.1.2).
fn coordinate_bytes(curve: &[Algorithm]) -> usize {
    if curve == P384 { 48 } else { 32 }
}

/// Makes an RSA key. Leading zeros, which some issuers write because their numbers have a sign, are not part of the number.
fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, Unusable> {
    let [modulus, exponent] = [modulus, exponent].map(|number| {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        number.get(zeros..).unwrap_or_default()
    });
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(Unusable::RsaLength { bits });
    }
    if exponent == [1] || exponent.last().is_none_or(|last| last % 2 == 0) {
        return Err(Unusable::RsaExponent);
    }
    Ok(DecodingKey::from_rsa_raw_components(modulus, exponent))
}

fn bytes(member: &'static str, value: Option<&String>) -> Result<Vec<u8>, Unusable> {
    let value = value.ok_or(Unusable::Missing(member))?;
    BASE64_URL_SAFE_NO_PAD.decode(value).map_err(|_| Unusable::NotBase64(member))
}

fn exactly(member: &'static str, value: Option<&String>, expected: usize) -> Result<Vec<u8>, Unusable> {
    let bytes = bytes(member, value)?;
    if bytes.len() != expected {
        return Err(Unusable::Length { member, bytes: bytes.len(), expected });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: &[Algorithm] = &[Algorithm::HS256, Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

    fn text(bytes: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    fn rsa_key(modulus: &[u8]) -> Value {
        json!({ "kty": "RSA", "n": text(modulus), "e": "AQAB" })
    }

    fn p256() -> Value {
        json!({ "kty": "EC", "crv": "P-256", "x": text(&[1; 32]), "y": text(&[2; 32]) })
    }

    /// `key` with these members over it.
    fn with(mut key: Value, members: Value) -> Value {
        key.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        key
    }

    #[test]
    fn a_key_is_for_the_configured_algorithms_of_its_type() {
        let secret: Vec<u8> = (0..32).collect();
        for (key, expected) in [
            (rsa_key(&[0xAB; 256]), vec![Algorithm::RS256, Algorithm::PS256]),
            (with(rsa_key(&[0xAB; 256]), json!({ "alg": "PS256", "use": "sig", "key_ops": ["verify"] })), vec![Algorithm::PS256]),
            (p256(), vec![Algorithm::ES256]),
            (json!({ "kty": "EC", "crv": "P-384", "x": text(&[1; 48]), "y": text(&[2; 48]) }), vec![Algorithm::ES384]),
            (json!({ "kty": "OKP", "crv": "Ed25519", "x": text(&[1; 32]) }), vec![Algorithm::EdDSA]),
            (json!({ "kty": "oct", "k": text(&secret) }), vec![Algorithm::HS256]),
            // Members that nobody here needs may be of any type.
            (with(p256(), json!({ "x5c": 7, "x5t": [], "exp": {}, "revoked": null })), vec![Algorithm::ES256]),
        ] {
            assert_eq!(read(key.clone(), ALL).unwrap().algorithms, expected, "{key}");
        }
    }

    #[test]
    fn leading_zeros_are_not_part_of_an_rsa_key() {
        let key = read(rsa_key(&[vec![0], vec![0xAB; 256]].concat()), ALL).unwrap();
        let plain = read(rsa_key(&[0xAB; 256]), ALL).unwrap();
        let modulus = |key: &Key| match key.decoding.kind() {
            jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => n.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(modulus(&key), modulus(&plain));
        let zeros = rsa_key(&[vec![0; 200], vec![0xAB; 128]].concat());
        assert_eq!(read(zeros, ALL).unwrap_err(), Unusable::RsaLength { bits: 1024 });
    }

    #[test]
    fn a_key_that_can_verify_nothing_has_a_reason() {
        let okp = |crv: &str| json!({ "kty": "OKP", "crv": crv, "x": text(&[1; 32]) });
        for (key, reason) in [
            (json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AQAB" }), Unusable::KeyType("AKP".into())),
            (json!({ "kty": "EC", "crv": "P-521", "x": "AQ", "y": "AQ" }), Unusable::Curve(Some("P-521".into()))),
            (okp("X25519"), Unusable::Curve(Some("X25519".into()))),
            (okp("Ed448"), Unusable::Curve(Some("Ed448".into()))),
            (json!({ "kty": "EC", "x": "AQ", "y": "AQ" }), Unusable::Curve(None)),
            (json!({ "kty": "RSA", "e": "AQAB" }), Unusable::Missing("n")),
            (json!({ "kty": "RSA", "n": text(&[0xAB; 256]) }), Unusable::Missing("e")),
            (with(p256(), json!({ "y": null })), Unusable::Missing("y")),
            (with(p256(), json!({ "x": "a+b/" })), Unusable::NotBase64("x")),
            (with(p256(), json!({ "x": text(&[1; 31]) })), Unusable::Length { member: "x", bytes: 31, expected: 32 }),
            (with(p256(), json!({ "use": "enc" })), Unusable::Use("enc".into())),
            (with(p256(), json!({ "key_ops": ["sign", "encrypt"] })), Unusable::Operations),
            (with(p256(), json!({ "key_ops": [] })), Unusable::Operations),
            (with(p256(), json!({ "alg": "ES384" })), Unusable::Algorithm("ES384".into())),
            (with(p256(), json!({ "alg": "ECDH-ES" })), Unusable::Algorithm("ECDH-ES".into())),
            (with(rsa_key(&[0xAB; 256]), json!({ "alg": "RS512" })), Unusable::NotConfigured(vec![Algorithm::RS512])),
            (with(p256(), json!({ "d": "AQ" })), Unusable::Private),
            (rsa_key(&[0x7F; 256]), Unusable::RsaLength { bits: 2047 }),
            (rsa_key(&[0xAB; 1025]), Unusable::RsaLength { bits: 8200 }),
            (with(rsa_key(&[0xAB; 256]), json!({ "e": "AQ" })), Unusable::RsaExponent),
            (with(rsa_key(&[0xAB; 256]), json!({ "e": "Ag" })), Unusable::RsaExponent),
            (json!({ "kty": "oct", "k": text(b"short") }), Unusable::WeakSecret { bytes: 5, needed: 32 }),
        ] {
            let found = read(key.clone(), ALL).unwrap_err();
            assert_eq!(found, reason, "{key}");
            assert!(!found.to_string().is_empty());
        }
        for malformed in
            [json!(7), json!(null), json!([]), json!(["RSA"]), json!({}), json!({ "kty": 7 }), with(p256(), json!({ "kid": 7 }))]
        {
            assert!(matches!(read(malformed.clone(), ALL), Err(Unusable::Malformed(_))), "{malformed}");
        }
    }

    #[test]
    fn a_set_keeps_what_can_be_used_and_names_the_rest() {
        let set = json!({ "keys": [{ "kty": "AKP", "kid": "new" }, with(p256(), json!({ "kid": "good" })), 7] });
        let (keys, skipped) = jwk_set(set.to_string().as_bytes(), ALL).unwrap();
        assert_eq!(keys.iter().map(|key| key.id.as_deref()).collect::<Vec<_>>(), [Some("good")]);
        let skipped: Vec<String> = skipped.iter().map(Skipped::to_string).collect();
        assert_eq!(skipped.len(), 2);
        assert_eq!(skipped[0], r#"key 1 ("new"): its `kty` "AKP" is not one of RSA, EC, OKP and oct"#);
        assert!(skipped[1].starts_with("key 3: it is not a JWK: "), "{skipped:?}");
    }

    #[test]
    fn a_set_without_usable_keys_says_why_of_each() {
        let set = json!({ "keys": [{ "kty": "AKP" }, { "kty": "EC", "crv": "P-521", "kid": "b" }] });
        let error = jwk_set(set.to_string().as_bytes(), ALL).unwrap_err().to_string();
        assert!(error.contains("key 1: its `kty` \"AKP\"") && error.contains("key 2 (\"b\"): its `crv` \"P-521\""), "{error}");
        assert!(matches!(jwk_set(br#"{"keys":[]}"#, ALL), Err(NoKeys::Empty)));
        for bad in ["", "[]", "{}", r#"{"keys":{}}"#, "<html>"] {
            assert!(matches!(jwk_set(bad.as_bytes(), ALL), Err(NoKeys::NotASet(_))), "{bad}");
        }
    }
}
