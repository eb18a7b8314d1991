//! Authentication: users' tokens, API keys and origins, as clients and producers meet them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::SinkExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use signalpost_load::{Credentials, Plan, Scenario, Signer, Target, TokenOf, Traffic, run};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::{Client, SOON, TestServer};

mod floods;
mod keys;
mod origins;

const SECRET: &str = "cKq8Zr2mW5xT1vB9nJ4hL7pD3fG6sA0yE";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn good() -> Value {
    json!({ "sub": "1001", "exp": now() + 60, "iss": "https://id.example.com", "aud": "signalpost", "role": "driver" })
}

/// `good` with these members over it; null takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = good();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn signed_with(secret: &str, claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn signed(claims: &Value) -> String {
    signed_with(SECRET, claims)
}

fn base64(text: &str) -> String {
    use ::base64::Engine as _;
    ::base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text)
}

/// A token with this header, signed as HS256 would be, whatever the header says.
fn with_header(header: &str, claims: &str) -> String {
    with_header_and_secret(header, SECRET, claims)
}

fn with_header_and_secret(header: &str, secret: &str, claims: &str) -> String {
    let message = format!("{}.{}", base64(header), base64(claims));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

/// A server that asks for tokens; what `users` and `rest` say is set as well.
async fn asking(dir: &Path, users: &str, rest: &str) -> TestServer {
    let file = dir.join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let toml = format!(
        "{rest}\n[auth.users]\nalgorithms = [\"HS256\"]\nkey_files = [{:?}]\nissuers = [\"https://id.example.com\"]\naudiences = [\"signalpost\"]\n\
         leeway_s = 1\nclaims = [\"role\"]\n{users}\n",
        file.to_str().unwrap()
    );
    TestServer::with(&toml).await
}

/// Asks for a socket with these headers. A refusal is the status and the body.
async fn ask(server: &TestServer, user: &str, headers: &[(&'static str, String)]) -> Result<Client, (u16, String)> {
    let mut request = server.socket_url(user).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    match Client::ask(request).await {
        Ok(client) => Ok(client),
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            Err((response.status().as_u16(), String::from_utf8(body).unwrap()))
        }
        Err(error) => panic!("{error}"),
    }
}

fn bearer(token: &str) -> [(&'static str, String); 1] {
    [("authorization", format!("Bearer {token}"))]
}

#[tokio::test]
async fn a_token_may_come_in_the_header_in_a_subprotocol_or_in_the_first_frame() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "", "").await;
    let token = signed(&good());

    let mut by_header = ask(&server, "1001", &bearer(&token)).await.unwrap();
    let offer = [("sec-websocket-protocol", format!("signalpost.v1, signalpost.token.{token}"))];
    let mut by_subprotocol = ask(&server, "1001", &offer).await.unwrap();
    let hello = by_subprotocol.json().await;
    let ends = hello["data"]["token_ends_in_ms"].as_u64().unwrap();
    assert!((60_000..=72_000).contains(&ends), "a minute, and the grace: {hello}");
    let mut by_frame = ask(&server, "1001", &[]).await.unwrap();
    by_frame.socket.send(Message::text(json!({ "type": "auth", "token": token }).to_string())).await.unwrap();
    timeout(SOON, async {
        while server.get("/users/1001").await["sessions"].as_array().unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();

    server.post("/users/1001/messages", json!({ "n": 1 })).await;
    assert_eq!(by_header.json().await, json!({ "n": 1 }));
    assert_eq!(by_subprotocol.json().await["data"], json!({ "n": 1 }));
    assert_eq!(by_frame.json().await, json!({ "n": 1 }));
    let sessions = server.get("/users/1001").await;
    assert_eq!(sessions["sessions"][0]["attributes"]["role"], "driver", "{sessions}");
}

#[tokio::test]
async fn a_browsers_token_and_resume_go_in_one_write_with_the_subprotocol() {
    use crate::support::raw::{Raw, TEXT, frame};
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "", "[sockets]\nresume_wait_ms = 60_000").await;
    for n in 0..2 {
        server.post("/users/1001/messages", json!(n)).await;
    }
    let mut raw = Raw::open(&server, "1001", "Sec-WebSocket-Protocol: signalpost.v1\r\n").await;
    let auth = json!({ "type": "auth", "token": signed(&good()) }).to_string();
    raw.write(&[frame(TEXT, true, auth.as_bytes()), frame(TEXT, true, br#"{"type":"resume"}"#)].concat()).await;
    let hello: Value = serde_json::from_str(&raw.text().await).unwrap();
    assert_eq!(hello["type"], "hello");
    assert!(hello["data"]["token_ends_in_ms"].as_u64().is_some_and(|ends| ends > 0), "{hello}");
    assert_eq!(raw.text().await, r#"{"type":"resume","data":{"recovered":true,"from":0}}"#, "nothing comes before it");
    for seq in 1..=2 {
        assert_eq!(raw.text().await, json!({ "seq": seq, "type": "message", "data": seq - 1 }).to_string());
    }
    // A page sees that its token was refused, and not only that the connection was.
    let mut refused = Raw::open(&server, "1002", "Sec-WebSocket-Protocol: signalpost.v1\r\n").await;
    refused.write(&[frame(TEXT, true, auth.as_bytes()), frame(TEXT, true, br#"{"type":"resume"}"#)].concat()).await;
    assert_eq!(refused.closed().await.0, 4205);
}

#[tokio::test]
async fn the_query_string_is_read_only_where_the_configuration_says_so_and_cannot_set_what_a_claim_does() {
    let dir = tempfile::tempdir().unwrap();
    let token = signed(&claims(json!({ "role": null })));
    let strict = asking(dir.path(), "first_frame_deadline_ms = 100", "").await;
    let mut ignored = ask(&strict, &format!("1001?access_token={token}"), &[]).await.unwrap();
    assert_eq!(ignored.closed().await.0, 4205, "it waited for a first frame");

    let lax = asking(dir.path(), "token_in_query = true", "[sockets]\nattributes = [\"role\", \"locale\"]").await;
    let _client = ask(&lax, &format!("1001?access_token={token}&role=admin&locale=de"), &[]).await.unwrap();
    let sessions = lax.get("/users/1001").await;
    assert_eq!(sessions["sessions"][0]["attributes"], json!({ "locale": "de" }), "{sessions}");
}

/// RFC 8725's mistakes, and those that libraries have published. All get the same answer.
#[tokio::test]
async fn bad_tokens_are_refused_with_one_generic_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "", "").await;
    let good_text = good().to_string();
    let valid = signed(&good());
    let parts: Vec<&str> = valid.split('.').collect();
    let (head, body, signature) = (parts[0], parts[1], parts[2]);
    // Where a token of its own making says that its key is.
    let theirs = "Zq3Xw7Lb9Tn2Vk5Rj8Hs4Gd1Fa6Pc0MyUe";
    let lure = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = lure.local_addr().unwrap();
    let forged = |header: String, secret: &str| with_header_and_secret(&header, secret, &good_text);
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let bad: Vec<(&str, String)> = vec![
        ("a word", "token".into()),
        ("two dots", "..".into()),
        ("no signature", format!("{head}.{body}.")),
        ("two parts", format!("{head}.{body}")),
        ("four parts", format!("{valid}.{signature}")),
        ("a changed signature", format!("{head}.{body}.{flipped}{}", &signature[1..])),
        ("a cut signature", format!("{head}.{body}.{}", &signature[..20])),
        ("padding", format!("{head}.{body}.{signature}=")),
        ("another body", format!("{head}.{}.{signature}", base64(&claims(json!({"role": "admin"})).to_string()))),
        ("alg none", format!("{}.{}.", base64(r#"{"typ":"JWT","alg":"none"}"#), base64(&good_text))),
        ("alg None", with_header(r#"{"typ":"JWT","alg":"None"}"#, &good_text)),
        ("no alg", with_header(r#"{"typ":"JWT"}"#, &good_text)),
        ("alg that is not configured", with_header(r#"{"typ":"JWT","alg":"HS512"}"#, &good_text)),
        ("alg of another family", with_header(r#"{"typ":"JWT","alg":"RS256"}"#, &good_text)),
        ("alg that is a number", with_header(r#"{"typ":"JWT","alg":256}"#, &good_text)),
        ("alg twice", with_header(r#"{"typ":"JWT","alg":"none","alg":"HS256"}"#, &good_text)),
        ("a critical extension", with_header(r#"{"typ":"JWT","alg":"HS256","crit":["exp"],"exp":1}"#, &good_text)),
        ("an unencoded payload", with_header(r#"{"typ":"JWT","alg":"HS256","crit":["b64"],"b64":false}"#, &good_text)),
        ("another type", with_header(r#"{"typ":"secevent+jwt","alg":"HS256"}"#, &good_text)),
        ("another type as a media type", with_header(r#"{"typ":"application/secevent+jwt","alg":"HS256"}"#, &good_text)),
        ("a type of another family", with_header(r#"{"typ":"text/jwt","alg":"HS256"}"#, &good_text)),
        ("an empty type", with_header(r#"{"typ":"","alg":"HS256"}"#, &good_text)),
        ("a type that is null", with_header(r#"{"typ":null,"alg":"HS256"}"#, &good_text)),
        ("a type that is a number", with_header(r#"{"typ":7,"alg":"HS256"}"#, &good_text)),
        ("a key id that is a number", with_header(r#"{"alg":"HS256","kid":7}"#, &good_text)),
        ("no critical extensions", with_header(r#"{"alg":"HS256","crit":[]}"#, &good_text)),
        ("critical extensions that are null", with_header(r#"{"alg":"HS256","crit":null}"#, &good_text)),
        ("a critical extension that is a text", with_header(r#"{"alg":"HS256","crit":"exp"}"#, &good_text)),
        ("a header that is a list", with_header(r#"["HS256"]"#, &good_text)),
        ("claims that are no JSON", with_header(r#"{"typ":"JWT","alg":"HS256"}"#, "sub=1001")),
        ("claims that are a list", with_header(r#"{"typ":"JWT","alg":"HS256"}"#, "[]")),
        ("no claims", with_header(r#"{"typ":"JWT","alg":"HS256"}"#, "{}")),
        ("a key in its header", forged(json!({"typ":"JWT","alg":"HS256","jwk":{"kty":"oct","k":base64(theirs)}}).to_string(), theirs)),
        ("its key's address", forged(format!(r#"{{"typ":"JWT","alg":"HS256","jku":"http://{at}/keys"}}"#), theirs)),
        ("its certificate's address", forged(format!(r#"{{"typ":"JWT","alg":"HS256","x5u":"http://{at}/certificate"}}"#), theirs)),
        ("a key id that is an address", forged(format!(r#"{{"typ":"JWT","alg":"HS256","kid":"http://{at}/keys"}}"#), theirs)),
        ("a key id that is a path", forged(r#"{"typ":"JWT","alg":"HS256","kid":"../../../../dev/null"}"#.into(), "")),
        ("a key id that is a query", forged(r#"{"typ":"JWT","alg":"HS256","kid":"' UNION SELECT 'x"}"#.into(), "x")),
        ("another secret", signed_with(&SECRET.replace('c', "d"), &good())),
        ("an empty secret", signed_with("", &good())),
        ("another user", signed(&claims(json!({ "sub": "1002" })))),
        ("a user with a space", signed(&claims(json!({ "sub": "1001 " })))),
        ("a list of users", signed(&claims(json!({ "sub": ["1001"] })))),
        ("no user", signed(&claims(json!({ "sub": null })))),
        ("expired", signed(&claims(json!({ "exp": now() - 10 })))),
        ("no expiry", signed(&claims(json!({ "exp": null })))),
        ("an expiry that is a text", signed(&claims(json!({ "exp": (now() + 60).to_string() })))),
        ("a negative expiry", signed(&claims(json!({ "exp": -1 })))),
        ("not yet valid", signed(&claims(json!({ "nbf": now() + 60 })))),
        ("a list of issuers", signed(&claims(json!({ "iss": ["https://id.example.com"] })))),
        ("another issuer", signed(&claims(json!({ "iss": "https://id.example.com.evil.net" })))),
        ("no issuer", signed(&claims(json!({ "iss": null })))),
        ("another audience", signed(&claims(json!({ "aud": "billing" })))),
        ("an audience that is a number", signed(&claims(json!({ "aud": 7 })))),
        ("other audiences", signed(&claims(json!({ "aud": ["billing", "signalpost-admin"] })))),
        ("no audience", signed(&claims(json!({ "aud": null })))),
    ];
    assert!(bad.len() >= 30);
    let mut answers = std::collections::BTreeSet::new();
    for (what, token) in &bad {
        let refused = ask(&server, "1001", &bearer(token)).await.err();
        let (status, body) = refused.unwrap_or_else(|| panic!("{what} was let in"));
        assert_eq!(status, 401, "{what}: {body}");
        answers.insert(body);
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(timeout(crate::support::QUIET, lure.accept()).await.is_err(), "nothing that a token says is in a request");
    assert_eq!(server.metric("signalpost_sessions_opened_total").await, 0.0);
    ask(&server, "1001", &bearer(&valid)).await.unwrap();
    let twice = [bearer(&valid), bearer(&valid)].concat();
    assert!(ask(&server, "1001", &twice).await.is_ok_and(|_| true), "two headers are none: a first frame is waited for");
}

#[tokio::test]
async fn header_members_that_are_not_known_are_ignored_whatever_their_type() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "", "").await;
    for members in [
        r#""x":7,"nested":{"a":[1]},"none":null,"b64":true"#,
        r#""jku":7,"x5u":[],"x5c":{},"x5t":true,"cty":null,"jwk":"a","nonce":1,"url":{},"enc":7,"zip":[]"#,
    ] {
        let token = with_header(&format!(r#"{{"typ":"JWT","alg":"HS256",{members}}}"#), &good().to_string());
        assert!(ask(&server, "1001", &bearer(&token)).await.is_ok(), "{members}");
    }
}

#[tokio::test]
async fn a_token_has_one_of_the_configured_types() {
    let dir = tempfile::tempdir().unwrap();
    let typed = |token_type: Option<&str>| {
        let named = token_type.map(|named| format!(r#""typ":"{named}","#)).unwrap_or_default();
        with_header(&format!(r#"{{{named}"alg":"HS256"}}"#), &good().to_string())
    };
    for (setting, taken, refused) in [
        (
            "",
            &[None, Some("JWT"), Some("jwt"), Some("at+jwt"), Some("application/at+jwt"), Some("Application/AT+JWT")][..],
            &[Some("logout+jwt"), Some("application/logout+jwt")][..],
        ),
        (
            "token_types = [\"at+jwt\"]",
            &[Some("at+jwt"), Some("application/at+jwt")],
            &[None, Some("JWT"), Some("application/jwt"), Some("at+jwt2"), Some("application/application/at+jwt")],
        ),
        ("token_types = [\"application/at+jwt\"]", &[Some("AT+jwt"), Some("application/at+jwt")], &[None, Some("JWT")]),
        ("token_types = []", &[None, Some("logout+jwt")], &[]),
    ] {
        let server = asking(dir.path(), setting, "").await;
        for token_type in taken {
            assert!(ask(&server, "1001", &bearer(&typed(*token_type))).await.is_ok(), "{setting}: {token_type:?}");
        }
        for token_type in refused {
            let status = ask(&server, "1001", &bearer(&typed(*token_type))).await.err().map(|(status, _)| status);
            assert_eq!(status, Some(401), "{setting}: {token_type:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_before_its_token_is_lost_and_not_refused() {
    use crate::support::raw::{CLOSE, Raw, TEXT};
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "first_frame_deadline_ms = 3000", "").await;
    let closed = |code: &str| format!("signalpost_sessions_closed_total{{code=\"{code}\"}}");
    let refused = |reason: &str| format!("signalpost_auth_refused_total{{reason=\"{reason}\"}}");
    for count in 1..=3_u8 {
        let mut raw = Raw::open(&server, "1001", "").await;
        // At once, within a frame, and after a half of one.
        raw.write(&[0x81, 0xFE][..usize::from(count) - 1]).await;
        drop(raw);
        server.metric_reaches(&closed("1006"), f64::from(count)).await;
    }
    // A code of ours from a client is not counted as ours.
    for (code, label) in [(1001_u16, "1001"), (4205, "other")] {
        let mut polite = Raw::open(&server, "1001", "").await;
        polite.send(CLOSE, &code.to_be_bytes()).await;
        assert_eq!(polite.closed().await.0, code, "its code is echoed");
        server.metric_reaches(&closed(label), 1.0).await;
    }
    for reason in ["first_frame", "first_frame_late"] {
        assert_eq!(server.metric(&refused(reason)).await, 0.0, "{reason}");
    }
    let mut other = Raw::open(&server, "1001", "").await;
    other.send(TEXT, b"hello").await;
    assert_eq!(other.closed().await.0, 4205);
    let mut listed = Raw::open(&server, "1001", "").await;
    listed.send(TEXT, format!(r#"["auth",{:?}]"#, signed(&good())).as_bytes()).await;
    assert_eq!(listed.closed().await.0, 4205, "a list is not a frame");
    let mut silent = Raw::open(&server, "1001", "").await;
    assert_eq!(silent.closed().await.0, 4205);
    drop((other, listed, silent));
    server.metric_reaches(&closed("4205"), 3.0).await;
    assert_eq!([server.metric(&refused("first_frame")).await, server.metric(&refused("first_frame_late")).await], [2.0, 1.0]);
}

#[tokio::test]
async fn a_socket_without_a_token_is_closed_when_the_first_frame_brings_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "first_frame_deadline_ms = 300", "").await;
    for first in [r#"{"type":"message","data":1}"#, r#"{"type":"auth"}"#, r#"{"type":"auth","token":"x"}"#, "hello"] {
        let mut client = ask(&server, "1001", &[]).await.unwrap();
        client.socket.send(Message::text(first)).await.unwrap();
        assert_eq!(client.closed().await, (4205, "no valid token".into()), "{first}");
    }
    let mut long = ask(&server, "1001", &[]).await.unwrap();
    long.socket.send(Message::text("x".repeat(20_000))).await.unwrap();
    assert_eq!(long.closed().await.0, 1009);
    let mut silent = ask(&server, "1001", &[]).await.unwrap();
    assert_eq!(silent.closed().await.0, 4205);
    assert_eq!(server.get("/users/1001").await["sessions"], json!([]), "none of them was a session");
}

#[tokio::test]
async fn a_session_ends_with_its_token_unless_the_client_sends_another() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "expiry_grace_ms = 500", "").await;
    let short = signed(&claims(json!({ "exp": now() + 1 })));
    let offer = [("sec-websocket-protocol", format!("signalpost.v1, signalpost.token.{short}"))];
    let mut forgetful = ask(&server, "1001", &offer).await.unwrap();
    let mut diligent = ask(&server, "1001", &offer).await.unwrap();
    forgetful.json().await;
    diligent.json().await;
    diligent
        .socket
        .send(Message::text(json!({ "type": "auth", "token": signed(&claims(json!({ "sub": "1002" }))) }).to_string()))
        .await
        .unwrap();
    assert_eq!(diligent.json().await["data"]["code"], "unauthorized", "the session goes on under its first token");
    diligent.socket.send(Message::text(json!({ "type": "auth", "token": signed(&good()) }).to_string())).await.unwrap();
    let answer = diligent.json().await;
    assert_eq!(answer["type"], "auth", "{answer}");
    assert!(answer["data"]["token_ends_in_ms"].as_u64().unwrap() > 50_000, "{answer}");
    assert_eq!(forgetful.closed().await.0, 4001);
    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(diligent.json().await["data"], 1);
}

#[tokio::test]
async fn a_session_without_the_subprotocol_shows_another_token_too_and_no_policy_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "expiry_grace_ms = 500", "").await;
    let short = signed(&claims(json!({ "exp": now() + 1 })));
    let mut client = ask(&server, "1001", &bearer(&short)).await.unwrap();
    let shows = |token: String| json!({ "type": "auth", "token": token });
    client.send_json(shows(signed(&claims(json!({ "sub": "1002" }))))).await;
    assert_eq!(client.json().await["code"], "unauthorized");
    client.send_json(shows(signed(&good()))).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(client.json().await, 1, "it outlived its first token, and nothing was said of the second");
    for outcome in ["handled", "refused", "unhandled", "invalid"] {
        let series = format!("signalpost_client_messages_total{{outcome=\"{outcome}\"}}");
        assert_eq!(server.metric(&series).await, 0.0, "{outcome}");
    }
}

#[tokio::test]
async fn a_token_that_only_the_leeway_lets_in_gives_a_session_its_grace() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "expiry_grace_ms = 1000", "").await;
    let over = signed(&claims(json!({ "exp": now() })));
    let began = std::time::Instant::now();
    let Ok(mut client) = ask(&server, "1001", &bearer(&over)).await else { return };
    assert_eq!(client.closed().await.0, 4001);
    assert!(began.elapsed() > Duration::from_millis(800), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_load_generator_shows_keys_and_tokens_to_a_server_that_asks_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let (key, sha256) = signalpost::internals::benching::new_key();
    let keys = format!("[[auth.keys]]\nname = \"load\"\nsha256 = \"{sha256}\"\nscopes = [\"publish\"]\n");
    let server = asking(dir.path(), "", &keys).await;
    let claims = [("iss", "https://id.example.com"), ("aud", "signalpost")].map(|(name, value)| (name.to_owned(), value.into()));
    let signer = Signer::new(Algorithm::HS256, &dir.path().join("secret"), "sub", claims.into_iter().collect()).unwrap();
    let token: Arc<TokenOf> = Arc::new(move |user| signer.sign(user).unwrap());
    let load = async |key: Option<&String>, token: Option<&Arc<TokenOf>>| {
        let credentials = Credentials { key: key.cloned(), token: token.cloned() };
        let target = Target { credentials, ..Target::at(server.address) };
        let plan = Plan {
            scenario: Scenario::Publish(Traffic::Direct),
            name: "direct",
            users: 5,
            producers: 4,
            v1: false,
            query: String::new(),
            away: 0,
            requests_max: 50,
            duration_max: Duration::from_secs(30),
            rate: None,
            stream: 0,
            message_bytes: 64,
            at_once: 5,
            seed: 1,
        };
        run(&target, &plan, None, &mut |_| {}).await
    };
    let report = load(Some(&key), Some(&token)).await.unwrap();
    assert!(report.exact && report.deliveries == 50, "{report:?}");
    let report = load(Some(&key), None).await.unwrap();
    assert!(!report.exact && report.findings.lost == 50, "without tokens: {report:?}");
    let report = load(None, Some(&token)).await.unwrap();
    assert!(!report.exact && report.first_failure.as_ref().is_some_and(|failure| failure.contains("401")), "without a key: {report:?}");
}
