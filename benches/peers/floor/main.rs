//! The floor: what any server must do that takes messages over HTTP and hands them to WebSockets, and nothing else. One thread, epoll, one
//! write per message; no policies, mailboxes, receipts, deadlines, limits or authentication. Not for use: it trusts its clients.
//!
//!     floor 127.0.0.1:8080
//!
//! It speaks as much of Signalpost's outside contract as `signalpost-load` uses: sockets, direct messages, and the pooling events.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha1::{Digest as _, Sha1};
use socket2::{Domain, Socket, Type};

const LISTENER: Token = Token(usize::MAX);
const BASE: &str = "/api/pool/";
const HEAD_BYTES_MAX: usize = 32 * 1024;
const BACKLOG: i32 = 4096;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Pool<'a> {
    pool_id: &'a str,
    rider_id: Option<&'a str>,
    driver_id: Option<&'a str>,
}

struct Connection {
    tcp: TcpStream,
    /// The user of a WebSocket; nobody while it speaks HTTP.
    user: Option<String>,
    input: Vec<u8>,
    /// What the socket had no room for.
    output: Vec<u8>,
}

impl Connection {
    fn write(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.output.is_empty() {
            while !rest.is_empty() {
                match self.tcp.write(rest) {
                    Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // A broken one is noticed when it is read.
                    Err(_) => break,
                }
            }
        }
        self.output.extend_from_slice(rest);
    }

    fn flush(&mut self) {
        let output = std::mem::take(&mut self.output);
        self.write(&output);
    }
}

struct Server {
    poll: Poll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    users: HashMap<String, Vec<usize>>,
    pools: HashMap<String, BTreeSet<String>>,
    frame: Vec<u8>,
}

fn main() -> io::Result<()> {
    let address: SocketAddr =
        std::env::args().nth(1).and_then(|text| text.parse().ok()).ok_or_else(|| io::Error::other("floor ADDRESS"))?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(socket.into());
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut server =
        Server { poll, connections: Vec::new(), free: Vec::new(), users: HashMap::new(), pools: HashMap::new(), frame: Vec::new() };
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        server.poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => server.accept(&listener)?,
                Token(index) => {
                    if event.is_writable()
                        && let Some(connection) = server.connection(index)
                        && !connection.output.is_empty()
                    {
                        connection.flush();
                    }
                    // A short read isn't tried again, so an end that came with the last bytes is only told here.
                    if (event.is_readable() && !server.read(index, &mut buffer)) || event.is_read_closed() {
                        server.close(index);
                    }
                }
            }
        }
    }
}

impl Server {
    fn connection(&mut self, index: usize) -> Option<&mut Connection> {
        self.connections.get_mut(index)?.as_mut()
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut tcp = match listener.accept() {
                Ok((tcp, _)) => tcp,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            tcp.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or(self.connections.len());
            self.poll.registry().register(&mut tcp, Token(index), Interest::READABLE | Interest::WRITABLE)?;
            let connection = Some(Connection { tcp, user: None, input: Vec::new(), output: Vec::new() });
            match self.connections.get_mut(index) {
                Some(place) => *place = connection,
                None => self.connections.push(connection),
            }
        }
    }

    /// Reads until there is nothing more. Says whether the connection goes on.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        loop {
            let Some(connection) = self.connection(index) else { return true };
            let count = match connection.tcp.read(buffer) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            let mut input = std::mem::take(&mut connection.input);
            input.extend_from_slice(buffer.get(..count).unwrap_or_default());
            loop {
                let is_socket = self.connection(index).is_some_and(|connection| connection.user.is_some());
                let taken = if is_socket { self.take_frame(index, &input) } else { self.take_request(index, &input) };
                match taken {
                    Some(0) => break,
                    Some(taken) => drop(input.drain(..taken)),
                    None => return false,
                }
            }
            if let Some(connection) = self.connection(index)
                && !input.is_empty()
            {
                connection.input = input;
            }
            // A short read is the last one.
            if count < buffer.len() {
                return true;
            }
        }
    }

    fn close(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::take) else { return };
        self.free.push(index);
        if let Some(user) = connection.user
            && let Some(sockets) = self.users.get_mut(&user)
        {
            sockets.retain(|other| *other != index);
            if sockets.is_empty() {
                self.users.remove(&user);
            }
        }
    }

    /// How many bytes a client's frame took, 0 where it isn't whole; `None` ends the connection.
    fn take_frame(&mut self, index: usize, input: &[u8]) -> Option<usize> {
        let [first, second, rest @ ..] = input else { return Some(0) };
        let (length, rest) = match second & 0x7F {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u16::from_be_bytes(*length).into(), rest),
                None => return Some(0),
            },
            127 => return None,
            length => (usize::from(length), rest),
        };
        let Some((mask, rest)) = rest.split_first_chunk::<4>() else { return Some(0) };
        let Some(payload) = rest.get(..length) else { return Some(0) };
        match first & 0x0F {
            0x8 => return None,
            0x9 => {
                let mut pong = vec![0x8A, u8::try_from(length).ok()?];
                pong.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
                self.connection(index)?.write(&pong);
            }
            _ => {}
        }
        Some(input.len() - rest.len() + length)
    }

    /// Likewise of an HTTP request.
    fn take_request(&mut self, index: usize, input: &[u8]) -> Option<usize> {
        let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
            return (input.len() < HEAD_BYTES_MAX).then_some(0);
        };
        let head = std::str::from_utf8(input.get(..end)?).ok()?;
        let mut lines = head.split("\r\n");
        let mut line = lines.next()?.split(' ');
        let (method, path) = (line.next()?, line.next()?.strip_prefix(BASE)?);
        let header = |name: &str| {
            let is = |line: &&str| {
                line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)) && line[name.len()..].starts_with(':')
            };
            lines.clone().find(is).map(|line| line[name.len() + 1..].trim())
        };
        if method == "GET" {
            let user = path.strip_prefix("ws/")?.to_owned();
            let accept =
                Sha1::new().chain_update(header("sec-websocket-key")?).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {}\r\n\r\n",
                BASE64_STANDARD.encode(accept)
            );
            self.users.entry(user.clone()).or_default().push(index);
            let connection = self.connection(index)?;
            connection.user = Some(user);
            connection.write(answer.as_bytes());
            return Some(end + 4);
        }
        let length: usize = header("content-length")?.parse().ok()?;
        let Some(body) = input.get(end + 4..end + 4 + length) else { return Some(0) };
        let posted = match path.strip_prefix("users/").and_then(|rest| rest.strip_suffix("/messages")) {
            Some(user) => {
                frame(body, &mut self.frame);
                self.send(user)
            }
            None => self.publish(header("content-type")?, body)?,
        };
        let receipt = format!("{{\"posted\":{posted}}}");
        let answer =
            format!("HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{receipt}", receipt.len());
        self.connection(index)?.write(answer.as_bytes());
        Some(end + 4 + length)
    }

    fn publish(&mut self, content_type: &str, body: &[u8]) -> Option<usize> {
        let events: Vec<Event> = if content_type.ends_with("batch+json") {
            serde_json::from_slice(body).ok()?
        } else {
            vec![serde_json::from_slice(body).ok()?]
        };
        let mut posted = 0;
        for event in events {
            let data = event.data.get();
            let pool: Pool = serde_json::from_str(data).ok()?;
            frame(data.as_bytes(), &mut self.frame);
            if event.kind == "pooling.match.found" {
                let [rider, driver] = [pool.rider_id?, pool.driver_id?];
                self.pools.entry(pool.pool_id.to_owned()).or_default().extend([rider.to_owned(), driver.to_owned()]);
                posted += self.send(rider) + if driver == rider { 0 } else { self.send(driver) };
                continue;
            }
            let members = self.pools.remove(pool.pool_id).unwrap_or_default();
            posted += members.iter().map(|member| self.send(member)).sum::<usize>();
            if event.kind == "pooling.chat.message" {
                self.pools.insert(pool.pool_id.to_owned(), members);
            }
        }
        Some(posted)
    }

    /// Writes the frame to a user's sockets.
    fn send(&mut self, user: &str) -> usize {
        for index in self.users.get(user).into_iter().flatten() {
            if let Some(connection) = self.connections.get_mut(*index).and_then(Option::as_mut) {
                connection.write(&self.frame);
            }
        }
        1
    }
}

/// A text frame (RFC 6455, section 5.2).
fn frame(payload: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.push(0x81);
    match payload.len() {
        length @ ..126 => out.push(length as u8),
        length @ ..=0xFFFF => {
            out.push(126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}
