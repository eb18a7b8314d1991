//! A client that speaks by hand: bad bytes, half a request, no answer, no reading.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::described::Channel;
use super::{SOON, TestServer};

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0xA5, 0x5A, 0x0F, 0xF0];

/// A TCP connection with a small receive buffer, so that a client that doesn't read is soon behind.
pub struct Raw {
    pub tcp: TcpStream,
    received: Vec<u8>,
    /// How a socket's frames look.
    channel: Channel,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Raw {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let tcp = timeout(SOON, socket.connect(address)).await.expect("a connection in time").unwrap();
        Raw { tcp, received: Vec::new(), channel: Channel::PlainSocket }
    }

    /// A WebSocket; `headers` are further lines of the request.
    pub async fn open(server: &TestServer, user: &str, headers: &str) -> Raw {
        let mut raw = Raw::connect(server.address).await;
        raw.write(handshake(user, headers).as_bytes()).await;
        let head = raw.head().await;
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        raw
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        timeout(SOON, self.tcp.write_all(bytes)).await.expect("a write in time").unwrap();
    }

    /// Sends a whole message, or a control frame.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.write(&frame(opcode, true, payload)).await;
    }

    /// The head of an answer in small letters, to the empty line.
    pub async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.received.drain(..end + 4).collect();
                let head = String::from_utf8(head).unwrap().to_lowercase();
                self.channel = Channel::of(head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: ")));
                return head;
            }
            assert!(self.receive().await, "the connection ended within the head: {:?}", String::from_utf8_lossy(&self.received));
        }
    }

    /// What comes until the connection ends.
    pub async fn rest(&mut self) -> String {
        while self.receive().await {}
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    /// The next frame's opcode and payload; `None` after the last. A server's frames are whole and not masked.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((opcode, start, end)) = bounds(&self.received) {
                let payload = self.received[start..end].to_vec();
                self.received.drain(..end);
                if opcode == TEXT {
                    self.channel.frame(std::str::from_utf8(&payload).unwrap());
                }
                return Some((opcode, payload));
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// The payload of the next frame, which is text.
    pub async fn text(&mut self) -> String {
        let (opcode, payload) = self.frame().await.expect("an open socket");
        assert_eq!(opcode, TEXT, "{payload:?}");
        String::from_utf8(payload).unwrap()
    }

    /// The close frame's code and reason, after whatever comes before it.
    pub async fn closed(&mut self) -> (u16, String) {
        while let Some((opcode, payload)) = self.frame().await {
            if opcode == CLOSE {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (code, String::from_utf8(payload[2..].to_vec()).unwrap());
            }
        }
        panic!("the connection ended without a close frame");
    }

    /// Says whether something came.
    async fn receive(&mut self) -> bool {
        let reading = timeout(SOON, self.tcp.read_buf(&mut self.received)).await.expect("something, or the end, in time");
        // A reset is an end too.
        reading.is_ok_and(|count| count > 0)
    }
}

/// The request that opens a WebSocket.
pub fn handshake(user: &str, headers: &str) -> String {
    format!(
        "GET /api/pool/ws/{user} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// A frame as a client sends it.
pub fn frame(opcode: u8, is_final: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![opcode | if is_final { FINAL } else { 0 }];
    match payload.len() {
        length @ ..126 => frame.push(MASKED | length as u8),
        length @ ..65_536 => {
            frame.push(MASKED | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(MASKED | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The opcode of the first frame, and where its payload is, once all of it is here.
fn bounds(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, length) = (bytes.first()?, *bytes.get(1)?);
    let (start, length) = match length {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())).unwrap()),
        length => (2, usize::from(length)),
    };
    (bytes.len() >= start + length).then_some((first & 0x0F, start, start + length))
}
