//! One helper for all tests: a server with its own settings, its clients, and a folder of plugins that a test may change.

pub mod backend;
pub mod described;
pub mod process;
pub mod raw;
pub mod wat;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use signalpost::config::Config;
use signalpost::server::Server;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use described::{Channel, Http};

/// What must come comes within this time, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// How long a test looks for what must not come.
pub const QUIET: Duration = Duration::from_millis(200);

/// A running server. Dropping it stops it.
pub struct TestServer {
    pub address: std::net::SocketAddr,
    /// The same, unless the operators have an address of their own.
    pub operators: std::net::SocketAddr,
    pub http: Http,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<anyhow::Result<()>>>,
}

/// The bundled plugins: those of the repository, or those that SIGNALPOST_TEST_PLUGINS names.
pub fn bundled() -> PathBuf {
    if let Some(dir) = std::env::var_os("SIGNALPOST_TEST_PLUGINS") {
        return dir.into();
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins")
}

/// A folder of its own with copies of the named bundled plugins.
pub fn plugins(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        let file = format!("{name}.wasm");
        std::fs::copy(bundled().join(&file), dir.path().join(&file)).unwrap();
    }
    dir
}

/// The settings of a test server: a free port, the bundled plugins, patience, and what `toml` says.
pub fn config(toml: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), toml).unwrap();
    let mut flags = toml::Table::new();
    flags.insert("listen".into(), "127.0.0.1:0".into());
    let mut plugins = toml::Table::new();
    if !toml.contains("\ncompiler =") {
        plugins.insert("compiler".into(), env!("CARGO_BIN_EXE_signalpost").into());
    }
    if !toml.contains("cache_dir") {
        plugins.insert("cache_dir".into(), concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled-plugins").into());
    }
    if !toml.contains("\ndir =") {
        plugins.insert("dir".into(), bundled().to_str().unwrap().into());
    }
    flags.insert("plugins".into(), plugins.into());
    if !toml.contains("[store]") {
        flags.insert("store".into(), toml::Table::from_iter([("durability".to_owned(), "memory".into())]).into());
    }
    let (config, _) = Config::load(Some(file.path()), flags, std::iter::empty()).unwrap();
    config
}

impl TestServer {
    pub async fn start() -> TestServer {
        TestServer::with("").await
    }

    /// With these settings over the defaults.
    pub async fn with(toml: &str) -> TestServer {
        TestServer::run(Server::new(config(toml)).await.unwrap())
    }

    /// Runs a server that has loaded its policies.
    pub fn run(server: Server) -> TestServer {
        let addresses = server.addresses().unwrap();
        let (address, operators) = (addresses[0], *addresses.last().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        TestServer { address, operators, http: Http::new(), stop: Some(stop), running: Some(running) }
    }

    /// One that somebody else runs.
    pub fn elsewhere(address: std::net::SocketAddr) -> TestServer {
        TestServer { address, operators: address, http: Http::new(), stop: None, running: None }
    }

    /// Stops the server and waits until it is down.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        timeout(SOON, self.running.take().unwrap()).await.expect("it stops in time").unwrap().unwrap();
    }

    /// Begins to stop; the server goes on draining.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/api/pool{path}", self.address)
    }

    /// Publishes in the short form; the receipt.
    pub async fn publish(&self, kind: &str, data: Value) -> Value {
        self.post("/events", json!({ "type": kind, "data": data })).await
    }

    /// Posts JSON that must be accepted.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        let response = self.http.post(self.url(path)).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    /// `POST policies/reload`: status and answer.
    pub async fn reload(&self) -> (u16, Value) {
        let response = self.http.post(self.url("/policies/reload")).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> Value {
        self.http.get(self.url(path)).send().await.unwrap().json().await.unwrap()
    }

    /// Connects without a subprotocol.
    pub async fn connect(&self, user: &str) -> Client {
        Client::open(&self.socket_url(user), None).await
    }

    /// Connects with `signalpost.v1`; the hello is still to be read.
    pub async fn connect_v1(&self, user: &str) -> Client {
        Client::open(&self.socket_url(user), Some("signalpost.v1")).await
    }

    pub fn socket_url(&self, user_and_query: &str) -> String {
        format!("ws://{}/api/pool/ws/{user_and_query}", self.address)
    }

    /// The value of a metric with exactly these labels, as written in the exposition; 0 when it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.http.get(format!("http://{}/metrics", self.address)).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has this value.
    pub async fn metric_reaches(&self, series: &str, value: f64) {
        let waiting = async {
            while self.metric(series).await != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SOON, waiting).await.is_err() {
            panic!("{series} is {} and not {value}", self.metric(series).await);
        }
    }
}

/// A WebSocket client.
pub struct Client {
    pub socket: WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>,
    channel: Channel,
}

impl Client {
    pub async fn open(url: &str, subprotocol: Option<&str>) -> Client {
        let mut request = url.into_client_request().unwrap();
        if let Some(subprotocol) = subprotocol {
            request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol.parse().unwrap());
        }
        Client::ask(request).await.unwrap()
    }

    /// Asks for a socket. A refusal is `Error::Http`.
    pub async fn ask(request: http::Request<()>) -> Result<Client, Error> {
        let path = request.uri().path().to_owned();
        let asked = timeout(SOON, tokio_tungstenite::connect_async(request)).await.expect("a handshake in time");
        if let Err(Error::Http(answer)) = &asked {
            described::handshake(&path, answer);
        }
        let (socket, answer) = asked?;
        Ok(Client::of(&path, socket, &answer))
    }

    /// What a handshake at this path has opened.
    pub fn of(
        path: &str,
        socket: WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>,
        answer: &http::Response<Option<Vec<u8>>>,
    ) -> Client {
        described::handshake(path, answer);
        let subprotocol = answer.headers().get("sec-websocket-protocol").map(|name| name.to_str().unwrap());
        let channel = Channel::of(subprotocol);
        Client { socket, channel }
    }

    pub async fn send(&mut self, message: impl Into<Message>) {
        self.socket.send(message.into()).await.unwrap();
    }

    pub async fn send_json(&mut self, value: Value) {
        self.send(value.to_string()).await;
    }

    /// The next text message, exactly as it was sent.
    pub async fn text(&mut self) -> String {
        match self.message().await {
            Message::Text(text) => text.to_string(),
            other => panic!("a text message, not {other:?}"),
        }
    }

    /// The next message as JSON.
    pub async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// What comes next, of which text is as described.
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        let next = self.socket.next().await;
        if let Some(Ok(Message::Text(text))) = &next {
            self.channel.frame(text);
        }
        next
    }

    /// The next message that is no ping.
    pub async fn message(&mut self) -> Message {
        loop {
            let message = timeout(SOON, self.next()).await.expect("a message in time").expect("an open socket").unwrap();
            if !message.is_ping() {
                return message;
            }
        }
    }

    /// The close code and reason; what comes before is skipped.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match timeout(SOON, self.next()).await.expect("a close in time") {
                Some(Ok(Message::Close(Some(frame)))) => {
                    described::close_code(frame.code.into());
                    return (frame.code.into(), frame.reason.to_string());
                }
                Some(Ok(Message::Close(None))) => return (1005, String::new()),
                Some(Ok(_)) => {}
                None | Some(Err(Error::ConnectionClosed | Error::Protocol(_) | Error::Io(_))) => return (1006, String::new()),
                Some(Err(other)) => panic!("{other}"),
            }
        }
    }

    /// Nothing comes for a while.
    pub async fn quiet(&mut self) {
        if let Ok(message) = timeout(QUIET, self.next()).await {
            panic!("nothing was to come, and {message:?} did");
        }
    }
}
