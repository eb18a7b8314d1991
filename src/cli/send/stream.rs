//! `signalpost send --stream`: publishes each line of the standard input over a producers' stream, with as many under way as the server lets.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, Write};

use anyhow::{Context, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::Error as SocketError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::receipt;
use crate::cli::client::{Address, DEADLINE, credentials, problem};
use crate::cli::terminal::plain;
use crate::http::ingress::stream::SUBPROTOCOL;
use crate::net::wire::Wire;

/// Lines that are read ahead while the credit is used up.
const LINES_MAX: usize = 256;

/// A line of the input, with its number.
type Line = (usize, String);

/// What the server says first.
#[derive(Deserialize)]
struct Hello {
    credit: usize,
}

/// What the answers have said.
#[derive(Debug, Default)]
struct Told {
    lines: usize,
    refused: usize,
}

/// Publishes every line, and prints its answer.
///
/// # Errors
/// The stream can't be opened, it ended before every line was answered, or the server has refused a line.
pub(super) fn run(address: &Address, json: bool) -> anyhow::Result<()> {
    let told = crate::cli::client_runtime()?.block_on(async {
        let socket = open(address).await?;
        publish(socket, lines(), &mut io::stdout().lock(), json).await
    })?;
    if told.refused > 0 {
        bail!("{} of {} lines were refused", told.refused, told.lines);
    }
    Ok(())
}

async fn open(address: &Address) -> anyhow::Result<WebSocketStream<Wire>> {
    let mut request = format!("ws://{}{}/publish", address.authority, address.base_path)
        .into_client_request()
        .context("can't make a request from this URL")?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    if let Some(key) = credentials("SIGNALPOST_KEY")? {
        request.headers_mut().insert(AUTHORIZATION, key);
    }
    let opening = async {
        match client_async(request, address.connect().await?).await {
            Ok((socket, _)) => Ok(socket),
            Err(SocketError::Http(answer)) => bail!(problem(answer.status(), answer.body().as_deref().unwrap_or_default())),
            Err(error) => Err(error).with_context(|| format!("{} doesn't open a stream", address.authority)),
        }
    };
    timeout(DEADLINE, opening).await.with_context(|| format!("no answer from {} within {} s", address.authority, DEADLINE.as_secs()))?
}

/// Sends lines while there is credit, and prints the answers, which come in the same order.
async fn publish(
    mut socket: WebSocketStream<Wire>,
    mut lines: mpsc::Receiver<Line>,
    out: &mut impl Write,
    json: bool,
) -> anyhow::Result<Told> {
    let mut told = Told::default();
    // The numbers of the lines that have no answer yet.
    let mut under_way = VecDeque::new();
    let hello = next(&mut socket, &under_way).await?;
    let Hello { credit } = serde_json::from_str(&hello).context("the server's first frame is no hello")?;
    let mut is_more = true;
    while is_more || !under_way.is_empty() {
        tokio::select! {
            // Answers first: what is printed is not held up by what is read.
            biased;
            answer = next(&mut socket, &under_way), if !under_way.is_empty() => {
                let line = under_way.pop_front().unwrap_or_default();
                told.lines += 1;
                told.refused += usize::from(!tell(line, &answer?, out, json)?);
            }
            line = lines.recv(), if is_more && under_way.len() < credit => match line {
                Some((number, text)) => {
                    under_way.push_back(number);
                    // tungstenite writes several lines together if they are there.
                    socket.feed(Message::text(text)).await?;
                    if lines.is_empty() || under_way.len() == credit {
                        socket.flush().await?;
                    }
                }
                None => {
                    is_more = false;
                    socket.flush().await?;
                }
            }
        }
    }
    // The last answer is here, so nothing is lost if the server does not say goodbye.
    let _ = timeout(DEADLINE, socket.close(None)).await;
    Ok(told)
}

/// Returns the next text of the server. Cancel safe: a frame that was not taken is there the next time.
async fn next(socket: &mut WebSocketStream<Wire>, under_way: &VecDeque<usize>) -> anyhow::Result<Utf8Bytes> {
    loop {
        let why = match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text),
            Some(Ok(Message::Close(frame))) => closed(frame),
            Some(Ok(_)) => continue,
            Some(Err(error)) => error.to_string(),
            None => "the connection ended".to_owned(),
        };
        match (under_way.front(), under_way.back()) {
            (Some(first), Some(last)) => {
                bail!("{why}; lines {first} to {last} have no answer: send them again, with the same ids if they have any")
            }
            _ => bail!(why),
        }
    }
}

fn closed(frame: Option<CloseFrame>) -> String {
    let (code, reason) = frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
    let gap = if reason.is_empty() { "" } else { ": " };
    format!("the server closed with {code}{gap}{}", plain(&reason))
}

/// Prints the answer to a line, and returns whether nothing of it was refused.
fn tell(line: usize, answer: &str, out: &mut impl Write, json: bool) -> io::Result<bool> {
    #[derive(Deserialize)]
    struct Refused {
        status: u16,
    }
    let each: Vec<&RawValue> =
        serde_json::from_str(answer).or_else(|_| serde_json::from_str(answer).map(|one| vec![one])).unwrap_or_default();
    let mut is_taken = true;
    for item in each {
        let refused = serde_json::from_str::<Refused>(item.get()).ok();
        is_taken &= refused.is_none();
        if json {
            continue;
        }
        match refused.and_then(|refused| http::StatusCode::from_u16(refused.status).ok()) {
            Some(status) => writeln!(out, "line {line} refused: {}", problem(status, item.get().as_bytes()))?,
            None => out.write_all(receipt::for_people(item.get()).as_bytes())?,
        }
    }
    if json {
        writeln!(out, "{answer}")?;
    }
    Ok(is_taken)
}

/// Reads lines in a thread of its own: a read can't be cancelled, and must not keep the process alive.
fn lines() -> mpsc::Receiver<Line> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        let lines = io::stdin().lock().lines().map_while(Result::ok).zip(1..);
        for (line, number) in lines.filter(|(line, _)| !line.trim().is_empty()) {
            if sender.blocking_send((number, line)).is_err() {
                break;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: &str, json: bool) -> (bool, String) {
        let mut out = Vec::new();
        let is_taken = tell(7, answer, &mut out, json).unwrap();
        (is_taken, String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_receipt_is_told_and_a_refusal_names_its_line() {
        let receipt = r#"{"id":"e1","source":"/","duplicate":false,"policies":[],"recipients":1,"posted":1}"#;
        assert_eq!(told(receipt, false), (true, "published e1 → 1 recipient, 1 posted\n".to_owned()));
        let problem = r#"{"type":"about:blank","title":"Bad Request","status":400,"code":"json","detail":"it is not JSON"}"#;
        assert_eq!(told(problem, false), (false, "line 7 refused: Bad Request: it is not JSON (json, status 400)\n".to_owned()));
        let both = format!("[{receipt},{problem}]");
        let (is_taken, text) = told(&both, false);
        assert!(!is_taken && text.lines().count() == 2, "{text}");
        assert_eq!(told(&both, true), (false, format!("{both}\n")));
    }
}
