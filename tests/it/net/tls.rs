//! TLS, as its clients meet it: the same sockets and requests, by a certificate that can be replaced.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rcgen::generate_simple_self_signed;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::process::signalpost;
use crate::support::{SOON, TestServer};

/// A folder with a new certificate for localhost, and its key.
fn certified() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path());
    dir
}

fn certify(dir: &Path) {
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("certificate.pem"), made.cert.pem()).unwrap();
}

fn certificate(dir: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(dir.join("certificate.pem")).unwrap()
}

fn settings(dir: &Path) -> String {
    let dir = dir.display();
    format!("plugins.watch_interval_ms = 20\n[tls]\ncertificate_file = \"{dir}/certificate.pem\"\nkey_file = \"{dir}/key.pem\"\n")
}

/// A connection of somebody who trusts this certificate alone.
async fn dial(server: &TestServer, trusted: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let connector = TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()));
    let tcp = TcpStream::connect(server.address).await.unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await
}

async fn connect(server: &TestServer, trusted: &CertificateDer<'static>, user: &str) -> WebSocketStream<TlsStream<TcpStream>> {
    let stream = dial(server, trusted).await.unwrap();
    tokio_tungstenite::client_async(format!("wss://localhost/api/pool/ws/{user}"), stream).await.unwrap().0
}

/// A message to a user over HTTPS; the answer's first line.
async fn tell(server: &TestServer, trusted: &CertificateDer<'static>, user: &str, message: &Value) -> String {
    let mut stream = dial(server, trusted).await.unwrap();
    let body = message.to_string();
    let head = format!(
        "POST /api/pool/users/{user}/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap().to_owned()
}

async fn next(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> Message {
    timeout(SOON, socket.next()).await.expect("a message in time").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_and_requests_go_over_tls_whole_and_in_order() {
    let dir = certified();
    let trusted = certificate(dir.path());
    let mut server = TestServer::with(&settings(dir.path())).await;
    let mut socket = connect(&server, &trusted, "1").await;
    // More than the socket's buffers hold, so that records are cut anywhere.
    for number in 0..4 {
        let message = json!({ "number": number, "filling": "x".repeat(250_000) });
        assert!(tell(&server, &trusted, "1", &message).await.contains("202"));
    }
    for number in 0..4 {
        let Message::Text(text) = next(&mut socket).await else { panic!("text is expected") };
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((message["number"].as_u64(), message["filling"].as_str().unwrap().len()), (Some(number), 250_000));
    }
    socket.send(Message::Ping("still there".into())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong("still there".into()));
    server.begin_stop();
    let Message::Close(Some(frame)) = next(&mut socket).await else { panic!("a close frame is expected") };
    assert_eq!(u16::from(frame.code), 1012);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_over_tls_whole_and_its_end_is_one_of_tls() {
    let dir = certified();
    let trusted = certificate(dir.path());
    let mut server = TestServer::with(&settings(dir.path())).await;
    let mut stream = dial(&server, &trusted).await.unwrap();
    stream.write_all(b"GET /api/pool/sse/1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    for number in 0..3 {
        let message = json!({ "number": number, "filling": "x".repeat(250_000) });
        assert!(tell(&server, &trusted, "1", &message).await.contains("202"));
    }
    server.begin_stop();
    let mut text = String::new();
    // Without TLS's close_notify this is an error.
    timeout(SOON, stream.read_to_string(&mut text)).await.expect("the end in time").unwrap();
    let data: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert_eq!(data.len(), 6, "hello, resume, three messages and the close");
    for (number, envelope) in data[2..5].iter().enumerate() {
        assert_eq!((&envelope["data"]["number"], envelope["data"]["filling"].as_str().unwrap().len()), (&json!(number), 250_000));
    }
    assert_eq!(data[5]["code"], 1012);
    server.stop().await;
}

/// What comes with the request's own bytes waits in TLS while HTTP answers.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_come_with_the_handshake_are_not_lost() {
    let dir = certified();
    let server = TestServer::with(&settings(dir.path())).await;
    let mut stream = dial(&server, &certificate(dir.path())).await.unwrap();
    let mut bytes = b"GET /api/pool/ws/1 HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    // A message of 60,000 bytes that asks for nothing, and a ping behind it; both masked by zeros.
    bytes.extend([0x82, 0xFE]);
    bytes.extend(60_000_u16.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.resize(bytes.len() + 60_000, 0);
    bytes.extend([0x89, 0x84, 0, 0, 0, 0]);
    bytes.extend(b"done");
    stream.write_all(&bytes).await.unwrap();
    let answered = async {
        let mut answer = Vec::new();
        while !answer.ends_with(&[0x8A, 4, b'd', b'o', b'n', b'e']) {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
        }
    };
    timeout(SOON, answered).await.expect("a pong in time");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_or_trusts_somebody_else_gets_nothing() {
    let dir = certified();
    let trusted = certificate(dir.path());
    let server = TestServer::with(&settings(dir.path())).await;
    let mut socket = connect(&server, &trusted, "1").await;
    assert!(dial(&server, &certificate(certified().path())).await.is_err());
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, or nothing: no HTTP.
    let _ = timeout(SOON, plain.read_to_end(&mut answer)).await.expect("the connection ends");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert!(tell(&server, &trusted, "1", &json!({})).await.contains("202"));
    assert_eq!(next(&mut socket).await, Message::Text("{}".into()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_go_on_ends_the_connection() {
    let dir = certified();
    let server = TestServer::with(&format!("http.header_deadline_ms = 200\n{}", settings(dir.path()))).await;
    // Nothing; the beginning of a ClientHello; and TLS without a request.
    for begun in [&b""[..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("the connection ends");
    }
    let mut silent = dial(&server, &certificate(dir.path())).await.unwrap();
    let _ = timeout(SOON, silent.read_to_end(&mut Vec::new())).await.expect("the connection ends");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_taken_and_a_broken_one_is_not() {
    let dir = certified();
    let first = certificate(dir.path());
    let server = TestServer::with(&settings(dir.path())).await;
    let mut socket = connect(&server, &first, "1").await;
    std::fs::write(dir.path().join("certificate.pem"), "no certificate").unwrap();
    sleep(Duration::from_millis(200)).await;
    assert!(dial(&server, &first).await.is_ok());
    certify(dir.path());
    let second = certificate(dir.path());
    let taken = async {
        while dial(&server, &second).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, taken).await.expect("the certificate is taken in time");
    assert!(dial(&server, &first).await.is_err());
    assert!(tell(&server, &second, "1", &json!({})).await.contains("202"));
    assert_eq!(next(&mut socket).await, Message::Text("{}".into()), "a socket outlives the certificate that it began with");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_speak_tls_and_trust_whom_they_are_told_to() {
    let dir = certified();
    let server = TestServer::with(&settings(dir.path())).await;
    let mut socket = connect(&server, &certificate(dir.path()), "1").await;
    let url = format!("https://localhost:{}/api/pool", server.address.port());
    let send = |authorities: std::path::PathBuf| {
        let mut command = signalpost();
        command.args(["send", "--url", &url, "--user", "1", "{\"hello\":1}"]).env("SSL_CERT_FILE", authorities);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let refused = send(certified().path().join("certificate.pem")).await.unwrap();
    assert!(!refused.status.success());
    let sent = send(dir.path().join("certificate.pem")).await.unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    assert_eq!(next(&mut socket).await, Message::Text("{\"hello\":1}".into()));
    server.stop().await;
}

#[test]
fn a_certificate_without_its_key_is_refused_with_what_to_do() {
    let dir = certified();
    let other = certified();
    let check = |key: &Path| {
        let file = dir.path().join("signalpost.toml");
        let settings = settings(dir.path()).replace(&dir.path().join("key.pem").display().to_string(), &key.display().to_string());
        std::fs::write(&file, settings).unwrap();
        let output = signalpost().args(["check", "--config"]).arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_good, said) = check(&other.path().join("key.pem"));
    assert!(!is_good && said.contains("is not for tls.certificate_file"), "{said}");
    let (is_good, said) = check(Path::new(""));
    assert!(!is_good && said.contains("\"tls.key_file\" is empty; set both"), "{said}");
    let (is_good, said) = check(&dir.path().join("nowhere.pem"));
    assert!(!is_good && said.contains("tls.key_file"), "{said}");
}
