//! Shared by the commands that ask a server: its address, requests to it, its answers and errors.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::terminal::plain;
use crate::net::tls;
use crate::net::wire::Wire;

/// Deadline of a request or a handshake. A person gives up by then.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// The end of `--help` of the commands that show an API key.
pub(super) const ENVIRONMENT: &str = "\
Environment variables:
  SIGNALPOST_KEY  the API key, if the server asks for one
  SSL_CERT_FILE   certificate authorities that are trusted instead of the machine's";

/// An explanation of an event for many readers is long; a longer answer is not from this server.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Characters of an answer that are shown if it is not a problem document.
const EXCERPT_CHARS_MAX: usize = 200;

/// RFC 3986's unreserved characters stay as they are.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The server that a command asks one thing, and the form in which it prints the answer.
#[derive(Args, Debug)]
pub(super) struct Server {
    /// The server's URL, with its base path.
    #[arg(long, default_value = "http://127.0.0.1:8080/api/pool")]
    url: String,
    /// Print the answer as the server sent it.
    #[arg(long)]
    pub json: bool,
}

impl Server {
    pub fn address(&self) -> anyhow::Result<Address> {
        Address::parse(&self.url)
    }

    /// Prints an answer: as it is with `--json`, and otherwise as this function words it.
    ///
    /// # Errors
    /// The function's, or the answer can't be written.
    pub fn print(&self, answer: &str, for_people: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<()> {
        let text = if self.json { format!("{answer}\n") } else { for_people(answer)? };
        Ok(io::stdout().write_all(text.as_bytes())?)
    }
}

/// Reads an answer.
///
/// # Errors
/// It has another form.
pub(super) fn parsed<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer).context("the server's answer has an unknown format")
}

/// A server's address, with its base path.
#[derive(Debug, PartialEq)]
pub(super) struct Address {
    /// Host and port.
    pub authority: String,
    /// The host's name, if the connection uses TLS.
    pub tls: Option<String>,
    pub base_path: String,
}

impl Address {
    /// Parses a URL. `http://` and `ws://` mean the same server, and so do `https://` and `wss://`.
    pub fn parse(url: &str) -> anyhow::Result<Address> {
        let uri: Uri = url.parse().with_context(|| format!("\"{url}\" isn't a URL"))?;
        let (is_tls, port) = match uri.scheme_str() {
            Some("http" | "ws") => (false, 80),
            Some("https" | "wss") => (true, 443),
            _ => bail!("\"{url}\" isn't a URL; it starts with http://, https://, ws:// or wss://, as in http://127.0.0.1:8080/api/pool"),
        };
        let host = uri.host().filter(|host| !host.is_empty()).with_context(|| format!("\"{url}\" names no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(port));
        Ok(Address { authority, tls: is_tls.then(|| host.to_owned()), base_path: uri.path().trim_end_matches('/').to_owned() })
    }

    pub async fn connect(&self) -> anyhow::Result<Wire> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|error| {
            let sentence = match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    format!("no server at {}: start one with `signalpost serve`", self.authority)
                }
                _ => format!("can't connect to {}: {error}", self.authority),
            };
            anyhow::Error::msg(sentence)
        })?;
        stream.set_nodelay(true).context("can't set up the connection")?;
        Ok(Wire::new(stream, self.tls.as_deref().map(tls::connect).transpose()?))
    }

    /// Posts JSON to a path below the base path, and returns the body of a successful answer. Any other answer is an error.
    pub fn ask(&self, path: &str, body: String) -> anyhow::Result<String> {
        self.request(Method::POST, path, body)
    }

    /// Gets this path below the base path, and returns the body of the answer. Blocks.
    ///
    /// # Errors
    /// There is no answer in time, or it is a problem.
    pub fn get(&self, path: &str) -> anyhow::Result<String> {
        self.request(Method::GET, path, String::new())
    }

    /// Sends a request without a body to a path below the base path, and returns the body of a successful answer. Blocks.
    ///
    /// # Errors
    /// There is no answer in time, or it is a problem.
    pub fn call(&self, method: Method, path: &str) -> anyhow::Result<String> {
        self.request(method, path, String::new())
    }

    fn request(&self, method: Method, path: &str, body: String) -> anyhow::Result<String> {
        super::client_runtime()?.block_on(async {
            let answered = timeout(DEADLINE, self.send(method, path, body)).await;
            answered.with_context(|| format!("no answer from {} within {} s", self.authority, DEADLINE.as_secs()))?
        })
    }

    async fn send(&self, method: Method, path: &str, body: String) -> anyhow::Result<String> {
        let answer = self.answer(method, path, body).await?;
        Ok(String::from_utf8_lossy(&self.whole(answer).await?).into_owned())
    }

    /// Opens a stream below the base path, and returns its body.
    ///
    /// # Errors
    /// There is no answer in time, or it is a problem.
    pub async fn open(&self, method: Method, path: &str) -> anyhow::Result<Incoming> {
        let answered = timeout(DEADLINE, self.answer(method, path, String::new())).await;
        Ok(answered.with_context(|| format!("no answer from {} within {} s", self.authority, DEADLINE.as_secs()))??.into_body())
    }

    /// Returns a successful answer. Any other is an error.
    async fn answer(&self, method: Method, path: &str, body: String) -> anyhow::Result<Response<Incoming>> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The task ends with the runtime at the latest; its errors show in the answer.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base_path))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, concat!("signalpost/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))?;
        if let Some(credentials) = credentials("SIGNALPOST_KEY")? {
            request.headers_mut().insert(header::AUTHORIZATION, credentials);
        }
        let answer = sender.send_request(request).await.with_context(|| format!("{} didn't answer", self.authority))?;
        let status = answer.status();
        if !status.is_success() {
            bail!(problem(status, &self.whole(answer).await?));
        }
        Ok(answer)
    }

    async fn whole(&self, answer: Response<Incoming>) -> anyhow::Result<Bytes> {
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(anyhow::Error::from_boxed);
        Ok(body.with_context(|| format!("{} didn't answer", self.authority))?.to_bytes())
    }
}

/// Returns the API key or token in an environment variable. On the command line everybody on the machine could read it.
pub(super) fn credentials(variable: &str) -> anyhow::Result<Option<HeaderValue>> {
    let Some(secret) = std::env::var_os(variable).filter(|secret| !secret.is_empty()) else { return Ok(None) };
    let secret = secret.into_string().ok().and_then(|secret| HeaderValue::from_str(&format!("Bearer {}", secret.trim())).ok());
    let mut header = secret.with_context(|| format!("{variable} holds no key or token"))?;
    header.set_sensitive(true);
    Ok(Some(header))
}

/// Reads a file; `-` is the standard input.
pub(super) fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        return io::read_to_string(io::stdin().lock()).context("can't read the standard input");
    }
    fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))
}

/// Encodes one segment of a path, or one value of a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Returns the sentence in a problem document (RFC 9457), or an excerpt of any other answer.
pub(super) fn problem(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        title: Option<String>,
        detail: Option<String>,
        code: Option<String>,
    }
    let said = match serde_json::from_slice(body) {
        Ok(Problem { title: None, detail: None, .. }) | Err(_) => {
            let text = String::from_utf8_lossy(body);
            let excerpt: String = text.trim().chars().take(EXCERPT_CHARS_MAX).collect();
            let gap = if excerpt.is_empty() { "" } else { ": " };
            format!("the server answered {status}{gap}{excerpt}")
        }
        Ok(Problem { title, detail, code }) => {
            let code = code.map(|code| format!("{code}, ")).unwrap_or_default();
            let sentence = [title, detail].into_iter().flatten().collect::<Vec<_>>().join(": ");
            format!("{sentence} ({code}status {})", status.as_u16())
        }
    };
    plain(&said)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_url_gives_the_address_and_the_base_path() {
        let address = |url: &str| Address::parse(url).map(|a| (a.authority, a.base_path)).map_err(|e| e.to_string());
        assert_eq!(address("http://127.0.0.1:8080/api/pool/"), Ok(("127.0.0.1:8080".into(), "/api/pool".into())));
        assert_eq!(address("ws://example.org"), Ok(("example.org:80".into(), "".into())));
        assert_eq!(address("http://[::1]:9/x"), Ok(("[::1]:9".into(), "/x".into())));
        let secure = Address::parse("wss://example.org/api").unwrap();
        assert_eq!((secure.authority.as_str(), secure.tls.as_deref()), ("example.org:443", Some("example.org")));
        assert!(address("127.0.0.1:8080").is_err());
    }

    #[test]
    fn a_problem_document_becomes_one_line() {
        let body = br#"{"type":"about:blank","title":"Not an event","status":400,"detail":"type is missing","code":"event.type"}"#;
        assert_eq!(problem(StatusCode::BAD_REQUEST, body), "Not an event: type is missing (event.type, status 400)");
        assert_eq!(problem(StatusCode::NOT_FOUND, b""), "the server answered 404 Not Found");
        assert_eq!(problem(StatusCode::BAD_GATEWAY, b"<h1>\nno"), r"the server answered 502 Bad Gateway: <h1>\nno");
    }

    /// Starts a server that answers once and returns the request that it received.
    async fn answering(answer: &'static str) -> (Address, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let mut length = 0;
            while !asked[..length].ends_with(b"}") {
                length += stream.read(&mut asked[length..]).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked[..length].to_vec()).unwrap()
        });
        (Address { authority, tls: None, base_path: "/api/pool".into() }, asked)
    }

    #[tokio::test]
    async fn the_receipt_is_the_answer() {
        let (address, asked) = answering("HTTP/1.1 202 Accepted\r\ncontent-length: 13\r\n\r\n{\"posted\": 2}").await;
        assert_eq!(address.send(Method::POST, "/events", r#"{"type":"t"}"#.into()).await.unwrap(), r#"{"posted": 2}"#);
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("POST /api/pool/events HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {}\r\n", address.authority)), "{asked}");
        assert!(asked.ends_with("\r\n\r\n{\"type\":\"t\"}"), "{asked}");
    }

    #[tokio::test]
    async fn a_problem_is_an_error_in_its_own_words() {
        let (address, _asked) = answering(
            "HTTP/1.1 413 Content Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\r\n\
             {\"title\":\"Too large\",\"detail\":\"at most 4 MiB\",\"code\":\"body-too-large\"}",
        )
        .await;
        let error = address.send(Method::POST, "/events", "{}".into()).await.unwrap_err();
        assert_eq!(error.to_string(), "Too large: at most 4 MiB (body-too-large, status 413)");
    }

    #[tokio::test]
    async fn no_server_is_told_how_to_get_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address { authority: listener.local_addr().unwrap().to_string(), tls: None, base_path: String::new() };
        drop(listener);
        let error = address.send(Method::POST, "/events", "{}".into()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("no server at {}: start one with `signalpost serve`", address.authority));
    }
}
