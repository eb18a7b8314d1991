//! The configuration changes while the server runs: whole or not at all, and without touching a socket.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use crate::support::process::ServerProcess;
use crate::support::wat::Guest;
use crate::support::{Client, SOON, TestServer};

/// Tells user 1 that it was asked.
fn teller() -> Vec<u8> {
    let strings = &[("user", "1"), ("message", "\"told\"")];
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $message) (global.get $message_bytes))";
    Guest { strings, events: &["x"], ..Guest::routing(body) }.component()
}

/// Refuses settings of fewer than three bytes, which are none.
fn picky() -> Vec<u8> {
    let configure = "(if (result i32) (i32.le_u (local.get $settings_bytes) (i32.const 2))
        (then (call $unfit (global.get $reason) (global.get $reason_bytes))) (else (call $configured)))";
    Guest { strings: &[("reason", "factor_min is missing")], configure, ..Guest::routing("(call $nobody)") }.component()
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

fn key(name: &str) -> String {
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(name));
    format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{digest}\"\nscopes = [\"publish\", \"read\", \"operate\"]\n")
}

/// Publishes with this key, and returns the status.
async fn publish(server: &TestServer, key: &str) -> u16 {
    let request = server.http.post(server.url("/events")).json(&json!({ "type": "x", "data": 1 }));
    request.bearer_auth(key).send().await.unwrap().status().as_u16()
}

async fn reload(server: &TestServer, key: &str) -> (u16, Value) {
    let answer = server.http.post(server.url("/policies/reload")).bearer_auth(key).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn origin(server: &TestServer, origin: &str) -> u16 {
    let request = server.http.get(format!("http://{}/healthz", server.address)).header("Origin", origin);
    request.send().await.unwrap().status().as_u16()
}

/// Waits until the log says this a number of times.
async fn logs(process: &ServerProcess, words: &str, times: usize) {
    let waiting = async {
        while process.logged(words) < times {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{words:?} is not logged {times} times: {}", process.log()));
}

const MEMORY: &str = "[store]\ndurability = \"memory\"\n[plugins]\nwatch = false\n";

#[tokio::test]
async fn keys_origins_policies_and_the_log_change_and_no_socket_does() {
    let dir = folder(&[("p.wasm", &teller())]);
    let process = ServerProcess::start(dir.path(), &format!("{MEMORY}{}", key("old")));
    let server = &process.server;
    let mut user = server.connect("1").await;
    assert_eq!((publish(server, "old").await, publish(server, "new").await), (202, 401));
    assert_eq!(user.text().await, "\"told\"");
    assert_eq!(reload(server, "old").await, (200, json!({ "revision": 1, "changed": [] })), "nothing has changed");

    let next = format!(
        "log.level = \"debug\"\n{MEMORY}[sockets]\nper_user_max = 2\n[auth]\norigins = [\"https://a.example\"]\n{}[policies.p]\nevents = [\"y.*\"]\n",
        key("new")
    );
    process.configure(&next);
    // The plugin wants no such events.
    let (status, problem) = reload(server, "old").await;
    assert!(status == 422 && problem["code"] == "policy_refused", "{problem}");
    assert_eq!((publish(server, "old").await, origin(server, "https://a.example").await), (202, 403), "nothing has changed");
    assert_eq!(user.text().await, "\"told\"");

    process.configure(&next.replace("events = [\"y.*\"]", "order = 7"));
    let (status, answer) = reload(server, "old").await;
    assert_eq!(status, 200, "{answer}");
    let changed = ["auth.keys", "auth.origins", "log.level", "policies.p.order"];
    let settings = json!({ "changed": changed, "after_a_restart": ["sockets.per_user_max"] });
    assert_eq!(answer, json!({ "revision": 2, "changed": ["p"], "settings": settings }));
    assert_eq!((publish(server, "old").await, publish(server, "new").await), (401, 202));
    assert_eq!((origin(server, "https://a.example").await, origin(server, "https://b.example").await), (200, 403));
    assert_eq!(user.text().await, "\"told\"", "the socket stays, and so does its session");
    user.quiet().await;
    logs(&process, "DEBUG", 1).await;
    assert_eq!(process.logged("settings changed: auth.keys, auth.origins, log.level, policies.p.order"), 1, "{}", process.log());
    let (_, again) = reload(server, "new").await;
    assert_eq!(again["settings"], json!({ "changed": [], "after_a_restart": ["sockets.per_user_max"] }), "it still waits for a restart");
    assert_eq!(again["changed"], json!([]));
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_all_that_is_wrong_is_said() {
    let dir = folder(&[("p.wasm", &teller())]);
    let good = format!("{MEMORY}{}", key("old"));
    let process = ServerProcess::start(dir.path(), &good);
    let server = &process.server;
    let key_file = "[auth.users]\nalgorithms = [\"HS256\"]\nkey_files = [\"/nowhere/secret\"]\n";
    let cases = [
        (
            format!("{MEMORY}{}[limits]\ncall_deadline_ms = 0\n[policies.p]\norder = \"last\"\n", key("new")),
            ["limits.call_deadline_ms", "policies.p.order"],
        ),
        ("auth = = 1\n".to_owned(), ["isn't TOML", ":1"]),
        (format!("{MEMORY}{}{key_file}", key("new")), ["/nowhere/secret", "auth.users.key_files"]),
    ];
    for (text, words) in cases {
        process.configure(&text);
        let (status, problem) = reload(server, "old").await;
        assert!(status == 422 && problem["code"] == "configuration_invalid", "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(words.iter().all(|word| detail.contains(word)), "{detail}");
        assert_eq!((publish(server, "old").await, publish(server, "new").await), (202, 401));
        let before = process.logged("the configuration stays as it is");
        process.signal(Signal::HUP);
        logs(&process, "the configuration stays as it is", before + 1).await;
    }
    process.configure(&format!("{MEMORY}{}", key("new")));
    process.signal(Signal::HUP);
    logs(&process, "settings changed: auth.keys", 1).await;
    assert_eq!((publish(server, "old").await, publish(server, "new").await), (401, 202));
}

#[tokio::test]
async fn a_policy_that_was_refused_for_its_settings_serves_once_they_are_there() {
    let dir = folder(&[("surge.wasm", &picky()), ("bad.wasm", b"never good"), ("p.wasm", &teller())]);
    let process = ServerProcess::start(dir.path(), &format!("{MEMORY}on_bad = \"skip\"\n"));
    let server = &process.server;
    let names = async || {
        let policies = server.get("/policies").await["policies"].clone();
        policies.as_array().unwrap().iter().map(|policy| policy["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["p"]);
    let with = |settings: &str| process.configure(&format!("{MEMORY}on_bad = \"skip\"\n[policies.surge]\n{settings}\n"));
    with("order = 1");
    let (status, problem) = reload(server, "").await;
    assert!(status == 422 && problem["detail"].as_str().unwrap().contains("surge: refuses its settings"), "{problem}");
    with("settings = { factor_min = 1.5 }");
    let (status, answer) = reload(server, "").await;
    assert_eq!((status, &answer["changed"]), (200, &json!(["surge"])), "a file that was bad before blocks nothing: {answer}");
    assert_eq!(names().await, ["p", "surge"]);
    let calls = server.get("/policies").await["policies"][0]["counters"]["calls"].clone();
    assert_eq!(calls, 0);
    // Settings that the serving policy refuses change nothing; taking the policy out does.
    with("");
    assert_eq!(reload(server, "").await.0, 422);
    assert_eq!(names().await, ["p", "surge"]);
    with("enabled = false");
    assert_eq!(reload(server, "").await.1["changed"], json!(["surge"]));
    assert_eq!(names().await, ["p"]);
}

fn token(secret: &str, user: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({ "sub": user, "exp": now + 600 });
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

async fn connect(server: &TestServer, token: &str) -> Option<Client> {
    let offer = format!("signalpost.v1, signalpost.token.{token}");
    let mut request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(server.socket_url("1")).unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", offer.parse().unwrap());
    Client::ask(request).await.ok()
}

#[tokio::test]
async fn sockets_of_a_key_that_is_taken_out_stay_and_new_ones_are_refused() {
    let (dir, secrets) = (folder(&[]), tempfile::tempdir().unwrap());
    let secret = |name: &str| format!("{name}-cKq8Zr2mW5xT1vB9nJ4hL7pD3fG6sA0yE");
    let users = |name: &str| {
        let file: &Path = &secrets.path().join(name);
        std::fs::write(file, secret(name)).unwrap();
        format!("{MEMORY}[auth.users]\nalgorithms = [\"HS256\"]\nkey_files = [{file:?}]\n")
    };
    let process = ServerProcess::start(dir.path(), &users("one"));
    let server = &process.server;
    let (one, two) = (token(&secret("one"), "1"), token(&secret("two"), "1"));
    let mut user = connect(server, &one).await.expect("its key is there");
    assert_eq!(user.json().await["type"], "hello");
    assert!(connect(server, &two).await.is_none());
    process.configure(&users("two"));
    assert_eq!(reload(server, "").await.1["settings"]["changed"], json!(["auth.users.key_files"]));
    assert!(connect(server, &one).await.is_none());
    let mut next = connect(server, &two).await.expect("its key is there now");
    assert_eq!(next.json().await["type"], "hello");
    server.post("/users/1/messages", json!("to both")).await;
    assert_eq!((user.json().await["data"].clone(), next.json().await["data"].clone()), (json!("to both"), json!("to both")));
    // The old session can't be renewed with the old key, and goes on under the token that it had.
    user.send_json(json!({ "type": "auth", "token": one })).await;
    assert_eq!(user.json().await["data"]["code"], "unauthorized");
    user.send_json(json!({ "type": "auth", "token": two })).await;
    assert_eq!(user.json().await["type"], "auth");
}
