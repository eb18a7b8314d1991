//! A backend to which sinks post: an HTTP server that a test has answer well, badly or not at all.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::{SOON, described};

/// What the backend does with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Then {
    Answer(u16),
    AnswerWith(u16, &'static str, String),
    /// It never answers.
    Hang,
    /// It ends the connection.
    Reset,
}

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub at: Instant,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub then: Then,
}

type Script = Arc<Mutex<Box<dyn FnMut(&Received) -> Then + Send>>>;

pub struct Backend {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    script: Script,
    serving: Option<JoinHandle<()>>,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn is_accepted(&self) -> bool {
        matches!(self.then, Then::Answer(200..300))
    }

    /// Which signatures are by this secret.
    pub fn signed_by(&self, secret: &str) -> Vec<bool> {
        let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let signed = [format!("{}.{}.", self.id(), self.header("webhook-timestamp")).as_bytes(), &self.body[..]].concat();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed);
        let expected = format!("v1,{}", BASE64_STANDARD.encode(tag));
        self.header("webhook-signature").split(' ').map(|signature| signature == expected).collect()
    }
}

impl Backend {
    /// A backend that answers 204.
    pub async fn start() -> Backend {
        Backend::with(|_| Then::Answer(204)).await
    }

    pub async fn with(script: impl FnMut(&Received) -> Then + Send + 'static) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (received, script): (_, Script) = (Arc::default(), Arc::new(Mutex::new(Box::new(script))));
        let mut backend = Backend { address, received, script, serving: None };
        backend.serve(listener);
        backend
    }

    /// From now on it does something else.
    pub fn then(&self, script: impl FnMut(&Received) -> Then + Send + 'static) {
        *self.script.lock() = Box::new(script);
    }

    /// Ends all connections, and takes none.
    pub async fn go_away(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// The requests that it has received. Those of sinks are as described.
    pub fn received(&self) -> Vec<Received> {
        let received = self.received.lock().clone();
        let of_sinks = received.iter().filter(|one| one.headers.contains_key("webhook-id"));
        of_sinks.for_each(|one| described::webhook(&one.headers, &one.body));
        received
    }

    /// The requests that it has accepted.
    pub fn accepted(&self) -> Vec<Received> {
        self.received().into_iter().filter(Received::is_accepted).collect()
    }

    /// Waits until it has received this many requests.
    pub async fn receives(&self, count: usize) -> Vec<Received> {
        self.until(|received| received.len() >= count).await
    }

    /// Waits until it has accepted this many requests.
    pub async fn accepts(&self, count: usize) -> Vec<Received> {
        self.until(|received| received.iter().filter(|one| one.is_accepted()).count() >= count).await;
        self.accepted()
    }

    pub async fn until(&self, is_enough: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let since = Instant::now();
        while !is_enough(&self.received.lock()) {
            assert!(since.elapsed() < 2 * SOON, "in time: {:?}", self.received().iter().map(|one| &one.then).collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.received()
    }

    fn serve(&mut self, listener: TcpListener) {
        let (received, script) = (self.received.clone(), self.script.clone());
        self.serving = Some(tokio::spawn(async move {
            // Its connections end with it.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (received, script) = (received.clone(), script.clone());
                let answer = move |request: Request<Incoming>| {
                    let (received, script) = (received.clone(), script.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map_err(|_| Ended)?.to_bytes();
                        let path = head.uri.path().to_owned();
                        let mut one = Received { at: Instant::now(), path, headers: head.headers, body, then: Then::Hang };
                        one.then = (script.lock())(&one);
                        received.lock().push(one.clone());
                        let response = |status: u16| Response::builder().status(status);
                        let response = match one.then {
                            Then::Answer(status) => response(status),
                            Then::AnswerWith(status, name, value) => response(status).header(name, value),
                            Then::Hang => std::future::pending::<http::response::Builder>().await,
                            Then::Reset => return Err(Ended),
                        };
                        Ok::<_, Ended>(response.body(Full::new(Bytes::from_static(b"seen"))).unwrap())
                    }
                };
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        }));
    }
}

/// The connection ends without an answer.
#[derive(Debug)]
struct Ended;

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ended")
    }
}

impl std::error::Error for Ended {}

impl From<Infallible> for Ended {
    fn from(never: Infallible) -> Ended {
        match never {}
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}
