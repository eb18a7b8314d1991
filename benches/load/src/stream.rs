//! A producer that sends frames over a producers' stream, many before it reads their answers.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Target;
use super::frames::{CLOSE, PING, PONG, TEXT, client_frame, first_frame};
use super::producer::Answer;
use super::traffic::Request;

/// A longer wait for an answer is a failure.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

const HEAD_BYTES_MAX: usize = 8 << 10;

/// Bytes per read: room for the receipts of some hundred events.
const READ_BYTES: usize = 64 << 10;

/// One stream.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    /// Frames that are to be written together.
    out: Vec<u8>,
    input: Vec<u8>,
    /// The deliveries and events that each answer must report, in order.
    under_way: VecDeque<(u64, u64)>,
    mask: fastrand::Rng,
}

impl Stream {
    /// Connects, and reads the server's hello.
    ///
    /// # Errors
    /// The operating system's, or the server opens no stream.
    pub async fn connect(target: &Target) -> io::Result<Stream> {
        let mut tcp = TcpStream::connect(target.producers).await?;
        tcp.set_nodelay(true)?;
        let key = target.credentials.key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let Target { authority, base_path, .. } = target;
        let request = format!(
            "GET {base_path}/publish HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: signalpost.publish.v1\r\n{key}\r\n"
        );
        tcp.write_all(request.as_bytes()).await?;
        let mut input = Vec::with_capacity(READ_BYTES);
        let end = loop {
            if tcp.read_buf(&mut input).await? == 0 || input.len() > HEAD_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the connection in the handshake"));
            }
            if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        if !input.starts_with(b"HTTP/1.1 101 ") {
            let line = String::from_utf8_lossy(&input).lines().next().unwrap_or_default().to_owned();
            return Err(io::Error::other(format!("the server refused a stream: {line}")));
        }
        input.drain(..end);
        let mut stream = Stream { tcp, out: Vec::new(), input, under_way: VecDeque::from([(0, 0)]), mask: fastrand::Rng::new() };
        stream.answers(|_, _, _| ()).await?;
        Ok(stream)
    }

    /// Returns how many frames have no answer yet.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Adds a request to those that are written next. A message to one user is a frame with the user's name.
    pub fn add(&mut self, request: &Request) {
        let mask = self.mask.u32(..);
        let user = request.path.strip_prefix("/users/").and_then(|rest| rest.strip_suffix("/messages"));
        match user {
            Some(user) => {
                let message = String::from_utf8_lossy(&request.body);
                client_frame(TEXT, format!(r#"{{"user":"{user}","message":{message}}}"#).as_bytes(), mask, &mut self.out);
            }
            None => client_frame(TEXT, &request.body, mask, &mut self.out),
        }
        self.under_way.push_back((request.deliveries, request.events));
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.tcp.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Waits for answers, and passes all that have come to `take`, each with the deliveries and events that it must report.
    ///
    /// # Errors
    /// The connection ended, or no answer came in time.
    pub async fn answers(&mut self, mut take: impl FnMut(Answer<'_>, u64, u64)) -> io::Result<()> {
        let (mut used, mut is_any) = (0, false);
        while !is_any {
            while let Some((opcode, payload, length)) = first_frame(self.input.get(used..).unwrap_or_default()).map_err(io::Error::other)? {
                match opcode {
                    PING => client_frame(PONG, payload, 0, &mut self.out),
                    CLOSE => {
                        let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                        return Err(io::Error::other(format!("the server closed the stream with {code}")));
                    }
                    _ => {
                        let (deliveries, events) = self.under_way.pop_front().ok_or_else(|| io::Error::other("an answer to nothing"))?;
                        // Only problem documents have a status.
                        let status = if payload.starts_with(br#"{"type":"about:blank""#) { 400 } else { 202 };
                        take(Answer { status, body: payload }, deliveries, events);
                        is_any = true;
                    }
                }
                used += length;
            }
            if !is_any {
                self.input.drain(..used);
                used = 0;
                self.input.reserve(READ_BYTES);
                if timeout(ANSWER_DEADLINE, self.tcp.read_buf(&mut self.input)).await?? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        self.input.drain(..used);
        Ok(())
    }
}
