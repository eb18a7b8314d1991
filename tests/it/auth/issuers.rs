//! Issuers that publish their keys, and how the server follows them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::process::ServerProcess;
use crate::support::{Client, SOON, TestServer, plugins};

/// An identity provider: its address, what it publishes there, and how often that was fetched.
struct Issuer {
    url: String,
    published: Arc<Mutex<String>>,
    fetches: Arc<AtomicUsize>,
}

impl Issuer {
    async fn new(keys: &[&Signer]) -> Issuer {
        let (published, fetches) = (Arc::new(Mutex::new(set(keys))), Arc::new(AtomicUsize::new(0)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json?v=1", listener.local_addr().unwrap());
        let (answer, counter) = (published.clone(), fetches.clone());
        let routes = Router::new().route(
            "/jwks.json",
            get(async move || {
                counter.fetch_add(1, Ordering::Relaxed);
                answer.lock().unwrap().clone()
            }),
        );
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Issuer { url, published, fetches }
    }

    fn publishes(&self, text: String) {
        *self.published.lock().unwrap() = text;
    }

    fn settings(&self, name: &str) -> String {
        format!("[[auth.users.jwks]]\nissuer = \"{name}\"\nurl = \"{}\"\n", self.url)
    }
}

/// A key that signs, with its id.
struct Signer {
    id: &'static str,
    pair: KeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Signer {
        Signer { id, pair: KeyPair::generate().unwrap() }
    }

    fn jwk(&self) -> Value {
        let coordinates = &self.pair.der_bytes()[1..];
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
            "x": text(&coordinates[..32]), "y": text(&coordinates[32..]) })
    }

    fn token(&self, issuer: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        let claims = json!({ "sub": "1", "iss": issuer, "exp": now + 60 });
        encode(&header, &claims, &EncodingKey::from_ec_der(&self.pair.serialize_der())).unwrap()
    }
}

fn set(keys: &[&Signer]) -> String {
    set_of(keys.iter().map(|key| key.jwk()).collect())
}

fn set_of(members: Vec<Value>) -> String {
    json!({ "keys": members }).to_string()
}

async fn serve(issuers: &[String]) -> TestServer {
    let timing = "jwks_interval_ms = 600_000\njwks_pause_ms = 300\n";
    TestServer::with(&format!("[auth.users]\nalgorithms = [\"ES256\", \"ES384\"]\n{timing}{}", issuers.concat())).await
}

async fn is_let_in(server: &TestServer, token: &str) -> bool {
    let mut request = server.socket_url("1").into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    Client::ask(request).await.is_ok()
}

async fn comes_in(server: &TestServer, token: &str) {
    let tries = async {
        while !is_let_in(server, token).await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, tries).await.expect("the key is taken in time");
}

#[tokio::test]
async fn published_keys_are_for_the_tokens_of_their_issuer_alone() {
    let (first, second) = (Signer::new("first"), Signer::new("second"));
    let (a, b) = (Issuer::new(&[&first]).await, Issuer::new(&[&second]).await);
    let server = serve(&[a.settings("https://a.example"), b.settings("https://b.example")]).await;
    assert!(is_let_in(&server, &first.token("https://a.example")).await);
    assert!(is_let_in(&server, &second.token("https://b.example")).await);
    assert!(!is_let_in(&server, &first.token("https://b.example")).await, "b's users are not a's to name");
    assert!(!is_let_in(&server, &second.token("https://a.example")).await);
    assert!(!is_let_in(&server, &first.token("https://c.example")).await);
    assert!(!is_let_in(&server, &Signer::new("first").token("https://a.example")).await, "the id alone is no key");
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it_and_no_more_often_than_allowed() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let issuer = Issuer::new(&[&old]).await;
    let server = serve(&[issuer.settings("https://id.example")]).await;
    assert!(is_let_in(&server, &old.token("https://id.example")).await);
    assert_eq!(issuer.fetches.load(Ordering::Relaxed), 1, "at the start");
    issuer.publishes(set(&[&new]));
    comes_in(&server, &new.token("https://id.example")).await;
    assert!(!is_let_in(&server, &old.token("https://id.example")).await, "what isn't published any more is no key");
    let before = issuer.fetches.load(Ordering::Relaxed);
    let began = tokio::time::Instant::now();
    for _ in 0..50 {
        assert!(!is_let_in(&server, &Signer::new("unknown").token("https://id.example")).await);
    }
    let most = usize::try_from(began.elapsed().as_millis() / 300).unwrap() + 2;
    let fetched = issuer.fetches.load(Ordering::Relaxed) - before;
    assert!(fetched <= most, "{fetched} fetches, {most} at most");
}

/// Members of a set that can't verify anything here, as issuers publish them: of kinds that are newer than this server, for encryption,
/// and broken.
fn unusable() -> Vec<Value> {
    let broken = json!({ "kty": "EC", "crv": "P-256", "kid": "broken", "x": "AQ", "y": "AQ" });
    vec![
        json!({ "kty": "AKP", "kid": "pq", "alg": "ML-DSA-44", "pub": "AQAB" }),
        json!({ "kty": "EC", "crv": "P-521", "kid": "long", "x": "AQ", "y": "AQ" }),
        json!({ "kty": "RSA", "use": "enc", "kid": "enc", "alg": "RSA-OAEP", "n": "AQ", "e": "AQAB" }),
        json!({ "kty": "OKP", "crv": "X25519", "kid": "dh", "key_ops": ["deriveKey"], "x": "AQ" }),
        broken,
        json!({ "kid": "kind-less" }),
        json!("a word"),
    ]
}

/// What is said of each of them.
const UNUSABLE: [&str; 7] = [
    r#"key 1 ("pq"): its `kty` "AKP""#,
    r#"key 2 ("long"): its `crv` "P-521""#,
    r#"key 3 ("enc"): its `use` is "enc""#,
    r#"key 4 ("dh"): its `key_ops` lack "verify""#,
    r#"key 5 ("broken"): its `x` has 1 bytes instead of 32"#,
    r#"key 6 ("kind-less"): it is not a JWK"#,
    "key 7: it is not a JWK",
];

#[tokio::test]
async fn a_published_key_that_cannot_be_used_leaves_the_others_in_use() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let issuer = Issuer::new(&[]).await;
    issuer.publishes(set_of([unusable(), vec![old.jwk()]].concat()));
    let server = serve(&[issuer.settings("https://id.example")]).await;
    assert!(is_let_in(&server, &old.token("https://id.example")).await, "at the start");
    issuer.publishes(set_of([vec![new.jwk()], unusable()].concat()));
    comes_in(&server, &new.token("https://id.example")).await;
    assert!(!is_let_in(&server, &old.token("https://id.example")).await, "a withdrawn key is withdrawn, whatever is beside the new one");
    assert_eq!(server.metric("signalpost_jwks_fetches_total{outcome=\"failed\"}").await, 0.0);
}

#[tokio::test]
async fn a_key_file_with_members_that_cannot_be_used_serves_the_others() {
    let key = Signer::new("key");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    std::fs::write(&file, set_of([unusable(), vec![key.jwk()]].concat())).unwrap();
    let settings = format!("[auth.users]\nalgorithms = [\"ES256\"]\nkey_files = [{file:?}]\n");
    let plugins = plugins(&["pooling"]);
    let process = ServerProcess::start(plugins.path(), &settings);
    assert!(is_let_in(&process.server, &key.token("https://id.example")).await);
    for reason in UNUSABLE {
        // The log is JSON.
        assert_eq!(process.logged(&reason.replace('"', "\\\"")), 1, "{reason}: {}", process.log());
    }
    assert_eq!(process.logged("a key of users' tokens is not used: "), UNUSABLE.len(), "{}", process.log());
}

#[tokio::test]
async fn a_key_file_without_a_usable_member_is_refused_with_the_reason_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    std::fs::write(&file, set_of(unusable())).unwrap();
    let config = crate::support::config(&format!("[auth.users]\nalgorithms = [\"ES256\"]\nkey_files = [{file:?}]\n"));
    let said = format!("{:#}", signalpost::server::Server::new(config).await.map(drop).unwrap_err());
    for reason in UNUSABLE.into_iter().chain(["keys.json"]) {
        assert!(said.contains(reason), "{reason} is not in {said}");
    }
}

#[tokio::test]
async fn a_fetched_set_that_cannot_be_used_leaves_the_keys_as_they_are() {
    let key = Signer::new("key");
    let token = key.token("https://id.example");
    let issuer = Issuer::new(&[&key]).await;
    let server = serve(&[issuer.settings("https://id.example")]).await;
    let secret = json!({ "keys": [{ "kty": "oct", "kid": "key", "alg": "HS256", "k": BASE64_URL_SAFE_NO_PAD.encode([7; 64]) }] });
    for bad in [String::new(), "<html>".into(), r#"{"keys":[]}"#.into(), set_of(unusable()), secret.to_string(), "x".repeat(2 << 20)] {
        let before = server.metric("signalpost_jwks_fetches_total{outcome=\"failed\"}").await;
        issuer.publishes(bad);
        let failed = async {
            while server.metric("signalpost_jwks_fetches_total{outcome=\"failed\"}").await <= before {
                assert!(!is_let_in(&server, &Signer::new("other").token("https://id.example")).await);
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, failed).await.expect("it is fetched again");
        assert!(is_let_in(&server, &token).await);
    }
}

#[tokio::test]
async fn an_issuer_that_is_away_at_the_start_is_asked_again() {
    let key = Signer::new("key");
    let issuer = Issuer::new(&[]).await;
    let server = serve(&[issuer.settings("https://id.example")]).await;
    assert!(!is_let_in(&server, &key.token("https://id.example")).await);
    issuer.publishes(set(&[&key]));
    comes_in(&server, &key.token("https://id.example")).await;
}
