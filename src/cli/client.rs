//! What `send` and `listen` share: where the server is, and what it means when it says no.

use std::io;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::net::TcpStream;

use super::terminal::plain;

/// A request or a handshake. A person has given up by then.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Characters of somebody else's answer that are worth a line.
const EXCERPT_CHARS_MAX: usize = 200;

/// RFC 3986's unreserved characters stay as they are.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The server, up to its base path.
#[derive(Debug, PartialEq)]
pub(super) struct Address {
    /// Host and port.
    pub authority: String,
    pub base_path: String,
}

impl Address {
    /// From `http://` or `ws://`, which are the same server.
    pub fn parse(url: &str) -> anyhow::Result<Address> {
        let uri: Uri = url.parse().with_context(|| format!("\"{url}\" isn't a URL"))?;
        match uri.scheme_str() {
            Some("http" | "ws") => {}
            Some(scheme @ ("https" | "wss")) => {
                bail!(
                    "{scheme} is not supported yet; use {}:// to the server itself, or through a tunnel",
                    scheme.strip_suffix('s').unwrap_or(scheme)
                )
            }
            _ => bail!("\"{url}\" isn't a URL; it starts with http:// or ws://, as in http://127.0.0.1:8080/api/pool"),
        }
        let host = uri.host().filter(|host| !host.is_empty()).with_context(|| format!("\"{url}\" names no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        Ok(Address { authority, base_path: uri.path().trim_end_matches('/').to_owned() })
    }

    pub async fn connect(&self) -> anyhow::Result<TcpStream> {
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
        Ok(stream)
    }
}

/// One segment of a path, or one word of a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The sentence in a problem document (RFC 9457), or what can be said of an answer that is none.
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
    use super::*;

    #[test]
    fn a_url_gives_the_address_and_the_base_path() {
        let address = |url: &str| Address::parse(url).map(|a| (a.authority, a.base_path)).map_err(|e| e.to_string());
        assert_eq!(address("http://127.0.0.1:8080/api/pool/"), Ok(("127.0.0.1:8080".into(), "/api/pool".into())));
        assert_eq!(address("ws://example.org"), Ok(("example.org:80".into(), "".into())));
        assert_eq!(address("http://[::1]:9/x"), Ok(("[::1]:9".into(), "/x".into())));
        assert!(address("https://example.org").unwrap_err().contains("https is not supported yet; use http://"));
        assert!(address("wss://example.org").unwrap_err().contains("use ws://"));
        assert!(address("127.0.0.1:8080").is_err());
    }

    #[test]
    fn a_problem_document_becomes_one_line() {
        let body = br#"{"type":"about:blank","title":"Not an event","status":400,"detail":"type is missing","code":"event.type"}"#;
        assert_eq!(problem(StatusCode::BAD_REQUEST, body), "Not an event: type is missing (event.type, status 400)");
        assert_eq!(problem(StatusCode::NOT_FOUND, b""), "the server answered 404 Not Found");
        assert_eq!(problem(StatusCode::BAD_GATEWAY, b"<h1>\nno"), r"the server answered 502 Bad Gateway: <h1>\nno");
    }
}
