//! The HTTP/1.1 client of one backend: its connections, and one request. It goes to the address that the configuration names, and to no other:
//! redirections are not followed, and nothing that an event or a response says is part of the address.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{HOST, RETRY_AFTER};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::net::tls;
use crate::net::wire::Wire;

/// Bytes of a response's body that are read, so that its connection can be used again. Nobody looks at them.
const RESPONSE_BYTES_MAX: usize = 65_536;

/// How long that may take. The response's head has decided already.
const RESPONSE_BODY_DEADLINE: Duration = Duration::from_secs(1);

/// How long a connection is kept that nobody uses. What is between here and the backend forgets it soon after.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// The connections to one backend.
#[derive(Debug)]
pub struct Client {
    uri: Uri,
    /// The host without brackets, and the port.
    address: (String, u16),
    tls: Option<Arc<rustls::ClientConfig>>,
    idle: Mutex<Vec<(SendRequest<Full<Bytes>>, Instant)>>,
}

/// The head of a response, as far as it counts.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: StatusCode,
    pub retry_after: Option<String>,
}

impl Client {
    /// Returns a client without connections.
    ///
    /// # Errors
    /// It is not the URL of a host, or no certificate authorities are known.
    pub fn new(url: &str) -> anyhow::Result<Client> {
        let uri: Uri = url.parse()?;
        let is_tls = uri.scheme_str() == Some("https");
        let host = uri.host().context("the URL names no host")?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tls = is_tls.then(tls::client).transpose()?;
        Ok(Client { uri, address: (host, port), tls, idle: Mutex::default() })
    }

    /// Posts a body, and returns the response. Its caller bounds the time. A connection that was idle may have been closed by the backend
    /// meanwhile, so what fails on one is tried on a new one at once.
    ///
    /// # Errors
    /// There was no answer: a sentence without a subject, as in "can't be reached: …".
    pub async fn post(&self, headers: &HeaderMap, body: &Bytes) -> Result<Response, String> {
        if let Some(sender) = self.take_idle()
            && let Ok(response) = self.exchange(sender, headers, body).await
        {
            return Ok(response);
        }
        let sender = self.connect().await.map_err(|error| format!("can't be reached: {error:#}"))?;
        self.exchange(sender, headers, body).await.map_err(|error| format!("didn't answer: {error:#}"))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let (host, port) = &self.address;
        let tcp = TcpStream::connect((host.as_str(), *port)).await?;
        tcp.set_nodelay(true)?;
        let tls = self.tls.as_ref().map(|config| tls::connect_with(config, host)).transpose()?;
        let (sender, connection) = handshake(TokioIo::new(Wire::new(tcp, tls))).await?;
        // It ends when its sender is dropped; its errors show in the exchange.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn exchange(&self, mut sender: SendRequest<Full<Bytes>>, headers: &HeaderMap, body: &Bytes) -> anyhow::Result<Response> {
        let host = self.uri.authority().map_or("", |authority| authority.as_str());
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::post(path).header(HOST, host).body(Full::new(body.clone()))?;
        request.headers_mut().extend(headers.clone());
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if is_whole(body).await {
            self.idle.lock().push((sender, Instant::now()));
        }
        Ok(Response { status: head.status, retry_after })
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock();
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_MAX);
        idle.pop().map(|(sender, _)| sender)
    }
}

/// Reads the rest of a response, and returns whether that succeeded.
async fn is_whole(body: Incoming) -> bool {
    matches!(timeout(RESPONSE_BODY_DEADLINE, Limited::new(body, RESPONSE_BYTES_MAX).collect()).await, Ok(Ok(_)))
}
