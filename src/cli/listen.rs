//! `signalpost listen`: reads a user's messages over a WebSocket, as a front end would, and connects again as it should.

mod reader;
mod retry;

use std::io::{self, BufRead};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, value_parser};
use futures_util::{SinkExt, StreamExt};
use http::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error as SocketError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::client::{Address, DEADLINE, credentials, encoded, problem};
use super::terminal::wants_color;
use crate::net::wire::Wire;
use crate::session::protocol::V1;
use reader::{Reader, Screen};
use retry::{After, Backoff};

/// The server's half of the closing handshake.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// The end of `listen --help`.
const ENVIRONMENT: &str = "\
Environment variables:
  SIGNALPOST_TOKEN  the user's token, if the server asks for one
  SSL_CERT_FILE     certificate authorities that are trusted instead of the machine's";
/// Lines typed ahead while there is no connection.
const LINES_MAX: usize = 16;

#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(super) struct Arguments {
    /// The user's id.
    user: String,
    /// Where the server is, with its base path.
    #[arg(long, default_value = "ws://127.0.0.1:8080/api/pool")]
    url: String,
    /// Speak signalpost.v1: numbered envelopes, and resuming after a lost connection.
    #[arg(long)]
    v1: bool,
    /// A session attribute that policies may look at, as in locale=de. Can be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = attribute)]
    attribute: Vec<(String, String)>,
    /// Print each message's frame as it was received, one on a line.
    #[arg(long)]
    json: bool,
    /// End after this many messages.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Acknowledge each message.
    #[arg(long, requires = "v1")]
    ack: bool,
}

type Socket = WebSocketStream<Wire>;

/// Why there is no connection now.
#[derive(Debug)]
struct Lost {
    reason: String,
    after: After,
}

impl Lost {
    fn network(reason: impl ToString) -> Lost {
        Lost { reason: reason.to_string(), after: After::BackOff }
    }
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let screen = Screen { output: Box::new(io::stdout()), notes: Box::new(io::stderr()), color: wants_color(), json: arguments.json };
    super::client_runtime()?.block_on(async {
        let stop = super::stop_signal()?;
        listen(&arguments, screen, typed_lines(), stop).await
    })
}

/// Returns after the last message that was asked for, or when `stop` resolves.
async fn listen(
    arguments: &Arguments,
    screen: Screen,
    mut lines: mpsc::Receiver<String>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let address = Address::parse(&arguments.url)?;
    let request = arguments.request(&address)?;
    let mut reader = Reader::new(screen, arguments.v1, arguments.ack, arguments.count);
    let mut backoff = Backoff::default();
    let mut stop = pin!(stop);
    loop {
        // Only a connection that was made can have held; a slow failure is not a good connection.
        let mut made = None;
        let lost = tokio::select! {
            () = &mut stop => return Ok(()),
            connected = connect(&address, request.clone()) => match connected {
                Err(lost) => lost,
                Ok(socket) => {
                    made = Some(Instant::now());
                    match converse(socket, &mut reader, &mut lines, stop.as_mut()).await? {
                        ControlFlow::Break(()) => return Ok(()),
                        ControlFlow::Continue(lost) => lost,
                    }
                }
            },
        };
        let held = made.map(|made| made.elapsed()).unwrap_or_default();
        let Some(pause) = backoff.pause(lost.after, held, fastrand::f64()) else { bail!(lost.reason) };
        reader.note(&format!("{}; connecting again in {:.1} s", lost.reason, pause.as_secs_f64()))?;
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = sleep(pause) => {}
        }
    }
}

impl Arguments {
    fn request(&self, address: &Address) -> anyhow::Result<Request> {
        if self.user.is_empty() {
            bail!("the user's id is empty");
        }
        let pairs: Vec<_> = self.attribute.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
        let url = format!("ws://{}{}/ws/{}{query}", address.authority, address.base_path, encoded(&self.user));
        let mut request = url.into_client_request().context("can't make a request from this URL")?;
        if self.v1 {
            request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(V1));
        }
        if let Some(credentials) = credentials("SIGNALPOST_TOKEN")? {
            request.headers_mut().insert(AUTHORIZATION, credentials);
        }
        Ok(request)
    }
}

async fn connect(address: &Address, request: Request) -> Result<Socket, Lost> {
    let connected = timeout(DEADLINE, async {
        let stream = address.connect().await.map_err(Lost::network)?;
        client_async(request, stream).await.map_err(not_upgraded)
    });
    let (socket, _) = connected.await.map_err(|_| Lost::network("no answer in time"))??;
    Ok(socket)
}

fn not_upgraded(error: SocketError) -> Lost {
    match error {
        SocketError::Http(answer) => {
            let status = answer.status();
            let later = status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS;
            let reason = problem(status, answer.body().as_deref().unwrap_or_default());
            Lost { reason, after: if later { After::BackOff } else { After::Stop } }
        }
        SocketError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            Lost { reason: format!("the server doesn't speak {V1}"), after: After::Stop }
        }
        other => Lost::network(other),
    }
}

/// Reads one connection from its first frame to its last. Breaks when nothing more is wanted.
///
/// All branches of its `select!` are cancel safe: a frame or a line that was not taken is there the next time.
async fn converse(
    mut socket: Socket,
    reader: &mut Reader,
    lines: &mut mpsc::Receiver<String>,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> io::Result<ControlFlow<(), Lost>> {
    if !reader.v1 {
        reader.note("connected")?;
    }
    loop {
        let answer = tokio::select! {
            frame = socket.next() => match frame {
                Some(Ok(Message::Text(text))) => reader.text(&text)?,
                Some(Ok(Message::Binary(bytes))) => binary(reader, &bytes)?,
                Some(Ok(Message::Close(frame))) => {
                    // Reading on sends the answer that the server waits for.
                    let _ = timeout(CLOSE_DEADLINE, socket.next()).await;
                    return Ok(ControlFlow::Continue(closed(frame)));
                }
                // tungstenite answers pings.
                Some(Ok(_)) => None,
                Some(Err(error)) => return Ok(ControlFlow::Continue(Lost::network(error))),
                None => return Ok(ControlFlow::Continue(Lost::network("the connection ended without a close"))),
            },
            // Without more lines to come, this branch is off.
            Some(line) = lines.recv() => Some(reader.typed(line)),
            () = &mut stop => {
                close(socket).await;
                return Ok(ControlFlow::Break(()));
            }
        };
        if let Some(answer) = answer {
            let sent = timeout(DEADLINE, socket.send(Message::text(answer))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return Ok(ControlFlow::Continue(Lost::network("the server accepts no more messages")));
            }
        }
        if reader.is_done() {
            close(socket).await;
            return Ok(ControlFlow::Break(()));
        }
    }
}

fn binary(reader: &mut Reader, bytes: &Bytes) -> io::Result<Option<String>> {
    reader.binary(bytes).map(|()| None)
}

fn closed(frame: Option<CloseFrame>) -> Lost {
    let (code, reason) = frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
    let gap = if reason.is_empty() { "" } else { ": " };
    Lost { reason: format!("the server closed with {code}{gap}{}", super::terminal::plain(&reason)), after: After::close(code) }
}

/// Closes the connection. When the server answers, all that was sent before has reached it.
async fn close(mut socket: Socket) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = timeout(CLOSE_DEADLINE, async {
        if socket.close(Some(frame)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    })
    .await;
}

/// Reads lines in a thread of its own: a read from a keyboard can't be cancelled, and must not keep the process alive.
fn typed_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        let lines = io::stdin().lock().lines().map_while(Result::ok);
        for line in lines.filter(|line| !line.trim().is_empty()) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests;
