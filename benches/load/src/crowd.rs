//! The crowd: a socket for each user. This thread reads all of them into one shared buffer and enters each message in the ledger.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Target;
use super::dialect::Item;
use super::frames::{CLOSE, PING, PONG, TEXT, client_frame, first_frame};
use super::histogram::Histogram;
use super::ledger::Ledger;

/// Large enough for a whole write of the server, so that one read suffices.
const BUFFER_BYTES: usize = 128 << 10;

/// Frames of `signalpost.v1` for each ack.
const FRAMES_PER_ACK: u32 = 32;

/// For connecting and the handshake. A crowd of tens of thousands needs a while.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);

/// The answer to a handshake has some 200 bytes.
const HEAD_BYTES_MAX: usize = 8192;

/// RFC 6455 §7.4.1: a close frame without a code.
const NO_CODE: u16 = 1005;

/// RFC 6455 §7.4.1: a connection that ended without a close frame.
const LOST: u16 = 1006;

/// The readers.
#[derive(Clone, Debug)]
pub struct Readers {
    /// User `n` is named `RUN-n`.
    pub run: String,
    pub users: u32,
    /// See [`Ledger::new`].
    pub lanes: u32,
    /// With the subprotocol `signalpost.v1`.
    pub v1: bool,
    /// The sessions' attributes, as in `format=compact`; may be empty.
    pub query: String,
    /// All read one channel, which is named after the run, instead of one each.
    pub one_channel: bool,
    /// Handshakes under way at the same time.
    pub at_once: usize,
    pub seed: u64,
}

impl Readers {
    fn user(&self, user: u32) -> String {
        format!("{}-{user}", self.run)
    }
}

/// Receives each message and its reader.
type Look = Box<dyn FnMut(u32, &[u8]) + Send>;

/// The users with their sockets. One thread does everything, so its locks are never contended. They are needed because tasks
/// that must stay on one thread (a `LocalSet`) would cost a system call per message.
pub struct Crowd {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    target: Target,
    readers: Readers,
    began: Instant,
    ledger: Mutex<Ledger>,
    look: Mutex<Option<Look>>,
    random: Mutex<fastrand::Rng>,
    buffer: Mutex<Box<[u8]>>,
    open: AtomicU32,
    /// Sockets that the server ended, by close code.
    closed: Mutex<BTreeMap<u16, u64>>,
    failed: Mutex<Option<io::Error>>,
    connecting: Mutex<Histogram>,
    /// A waiter wants to know when at most this many deliveries are outstanding.
    waits_for: Mutex<Option<u64>>,
    arrived: Notify,
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("readers", &self.shared.readers).field("open", &self.shared.open).finish_non_exhaustive()
    }
}

impl Crowd {
    /// Makes a crowd without open sockets.
    pub fn new(target: &Target, readers: Readers) -> Crowd {
        let ledger = Ledger::new(&readers.run, readers.users, readers.lanes);
        let shared = Shared {
            target: target.clone(),
            began: Instant::now(),
            ledger: Mutex::new(ledger),
            look: Mutex::new(None),
            random: Mutex::new(fastrand::Rng::with_seed(readers.seed)),
            buffer: Mutex::new(vec![0; BUFFER_BYTES].into()),
            open: AtomicU32::new(0),
            closed: Mutex::default(),
            failed: Mutex::default(),
            connecting: Mutex::default(),
            waits_for: Mutex::new(None),
            arrived: Notify::new(),
            readers,
        };
        Crowd { shared: Arc::new(shared), tasks: Vec::new() }
    }

    /// Also passes each message and its reader to `look`.
    pub fn look_at_messages(&self, look: impl FnMut(u32, &[u8]) + Send + 'static) {
        *self.shared.look.lock() = Some(Box::new(look));
    }

    /// Opens a socket for each user.
    ///
    /// # Errors
    /// A user can't connect; the other sockets stay open.
    pub async fn open(&mut self) -> io::Result<()> {
        let gate = Arc::new(Semaphore::new(self.shared.readers.at_once.clamp(1, Semaphore::MAX_PERMITS)));
        *self.shared.connecting.lock() = Histogram::default();
        let opening = (0..self.shared.readers.users).map(|user| {
            let (shared, gate) = (self.shared.clone(), gate.clone());
            let (opened, is_open) = tokio::sync::oneshot::channel();
            let task = tokio::spawn(async move {
                let permit = gate.acquire().await;
                let connected = timeout(OPEN_DEADLINE, shared.connect(user)).await;
                drop(permit);
                match connected.map_err(io::Error::from).flatten() {
                    Ok((tcp, partial)) => {
                        shared.open.fetch_add(1, Ordering::Relaxed);
                        let _ = opened.send(());
                        let code = Socket { shared: &shared, user, tcp, partial, unacked: 0 }.run().await;
                        shared.open.fetch_sub(1, Ordering::Relaxed);
                        *shared.closed.lock().entry(code).or_default() += 1;
                    }
                    Err(error) => {
                        shared.failed.lock().get_or_insert(error);
                    }
                }
            });
            self.tasks.push(task);
            is_open
        });
        let opening: Vec<_> = opening.collect();
        for is_open in opening {
            if is_open.await.is_err() {
                let first = self.shared.failed.lock().take();
                return Err(first.unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into()));
            }
        }
        Ok(())
    }

    /// Drops all sockets at once, without close frames.
    pub async fn drop_all(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for task in self.tasks.drain(..) {
            // An error means that the task was aborted.
            let _ = task.await;
        }
        self.shared.open.store(0, Ordering::Relaxed);
    }

    /// Returns a user's name.
    pub fn user(&self, user: u32) -> String {
        self.shared.readers.user(user)
    }

    pub fn readers(&self) -> &Readers {
        &self.shared.readers
    }

    /// Returns the age of this crowd, which is the clock of markers.
    pub fn now(&self) -> Duration {
        self.shared.began.elapsed()
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared.ledger.lock()
    }

    pub fn open_sockets(&self) -> u32 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Returns the number of sockets that the server ended, by close code; 1006 for a lost connection.
    pub fn closed(&self) -> BTreeMap<u16, u64> {
        self.shared.closed.lock().clone()
    }

    /// Returns how long each connection took, including the handshake.
    pub fn connecting(&self) -> Histogram {
        self.shared.connecting.lock().clone()
    }

    /// Waits until at most `outstanding` deliveries are outstanding, and returns true; or returns false if nothing has arrived
    /// for `patience`.
    pub async fn drained_to(&self, outstanding: u64, patience: Duration) -> bool {
        loop {
            let arrived = self.ledger().arrived();
            if self.ledger().outstanding() <= outstanding {
                return true;
            }
            // All waiters are woken at the highest mark; those with a lower one wait again.
            self.shared.wait_for(outstanding);
            let notified = timeout(patience, self.shared.arrived.notified()).await;
            if notified.is_err() && self.ledger().arrived() == arrived {
                return false;
            }
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    /// Opens a user's socket. Returns it with the bytes that followed the handshake or the subscription.
    async fn connect(&self, user: u32) -> io::Result<(TcpStream, Vec<u8>)> {
        let began = Instant::now();
        let mut tcp = self.target.connect(user).await?;
        let Target { authority, base_path, credentials, dialect, .. } = &self.target;
        let name = self.readers.user(user);
        let channel = if self.readers.one_channel { &self.readers.run } else { &name };
        let path = dialect.socket_path(channel);
        let query = if self.readers.query.is_empty() { String::new() } else { format!("?{}", self.readers.query) };
        let subprotocol = if self.readers.v1 { "Sec-WebSocket-Protocol: signalpost.v1\r\n" } else { "" };
        let token = credentials.token.as_ref().map(|token| format!("Authorization: Bearer {}\r\n", token(&name)));
        let token = token.unwrap_or_default();
        // RFC 6455's example key. The server's own tests check its answer.
        let request = format!(
            "GET {base_path}{path}{query} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{subprotocol}{token}\r\n"
        );
        tcp.write_all(request.as_bytes()).await?;
        let mut head = Vec::with_capacity(512);
        loop {
            if tcp.read_buf(&mut head).await? == 0 || head.len() > HEAD_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the connection in the handshake"));
            }
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                if !head.starts_with(b"HTTP/1.1 101 ") {
                    let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                    return Err(io::Error::other(format!("the server refused a socket: {line}")));
                }
                head.drain(..end + 4);
                if let Some(subscription) = dialect.subscription(channel) {
                    self.subscribe(&subscription, &mut tcp, &mut head).await?;
                }
                self.connecting.lock().record(began.elapsed());
                return Ok((tcp, head));
            }
        }
    }

    /// Sends the subscription and reads until it is confirmed. `bytes` holds what was read before; on return, it holds what
    /// followed the confirmation.
    async fn subscribe(&self, subscription: &str, tcp: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut frame = Vec::with_capacity(subscription.len() + 14);
        client_frame(TEXT, subscription.as_bytes(), self.mask(), &mut frame);
        tcp.write_all(&frame).await?;
        loop {
            while let Some((opcode, payload, size)) = first_frame(bytes).map_err(io::Error::other)? {
                if opcode == CLOSE {
                    return Err(io::Error::other("the server closed a socket that subscribed"));
                }
                let mut rest = payload;
                let mut subscribed = false;
                while !rest.is_empty() && opcode < CLOSE {
                    let (item, after) = self.target.dialect.first(rest).map_err(io::Error::other)?;
                    subscribed |= item == Item::Subscribed;
                    rest = after;
                }
                bytes.drain(..size);
                if subscribed {
                    return Ok(());
                }
            }
            if tcp.read_buf(bytes).await? == 0 || bytes.len() > HEAD_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended a socket that subscribed"));
            }
        }
    }

    fn mask(&self) -> u32 {
        self.random.lock().u32(..)
    }

    fn message(&self, user: u32, payload: &[u8], now: Duration) {
        self.ledger.lock().read(user, payload, now);
        if let Some(look) = &mut *self.look.lock() {
            look(user, payload);
        }
    }

    fn wait_for(&self, outstanding: u64) {
        let mut waits_for = self.waits_for.lock();
        *waits_for = Some(waits_for.unwrap_or_default().max(outstanding));
    }

    fn wake(&self) {
        let mut waits_for = self.waits_for.lock();
        if waits_for.is_some_and(|mark| self.ledger.lock().outstanding() <= mark) {
            *waits_for = None;
            self.arrived.notify_waiters();
        }
    }
}

struct Socket<'a> {
    shared: &'a Shared,
    user: u32,
    tcp: TcpStream,
    /// The beginning of a frame that is incomplete.
    partial: Vec<u8>,
    unacked: u32,
}

impl Socket<'_> {
    /// Reads until the socket ends, and returns the close code.
    async fn run(mut self) -> u16 {
        let early = std::mem::take(&mut self.partial);
        match self.take(&early) {
            Ok(()) => poll_fn(|context| self.poll(context)).await,
            Err(code) => code,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<u16> {
        let shared = self.shared;
        loop {
            let mut buffer = shared.buffer.lock();
            let mut reading = ReadBuf::new(&mut buffer);
            let outcome = ready!(Pin::new(&mut self.tcp).poll_read(context, &mut reading));
            let bytes = reading.filled();
            if outcome.is_err() || bytes.is_empty() {
                return Poll::Ready(LOST);
            }
            let taken = if self.partial.is_empty() {
                self.take(bytes)
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(bytes);
                self.take(&whole)
            };
            shared.wake();
            if let Err(code) = taken {
                return Poll::Ready(code);
            }
        }
    }

    /// Handles the complete frames in `bytes`, and keeps the rest.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), u16> {
        let now = self.shared.began.elapsed();
        let mut answers = Vec::new();
        loop {
            let (opcode, payload, size) = match first_frame(bytes) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return Err(LOST),
            };
            match opcode {
                CLOSE => return Err(payload.first_chunk().map_or(NO_CODE, |code| u16::from_be_bytes(*code))),
                PING => client_frame(PONG, payload, self.shared.mask(), &mut answers),
                PONG => {}
                _ if self.shared.readers.v1 => self.envelope(payload, now, &mut answers),
                _ => self.messages(payload, now, &mut answers)?,
            }
            bytes = bytes.get(size..).unwrap_or_default();
        }
        if !bytes.is_empty() {
            self.partial.extend_from_slice(bytes);
        }
        // These are a few bytes now and then. If the socket has no room for them, the server is gone or hopelessly behind.
        if !answers.is_empty() && self.tcp.try_write(&answers).is_ok_and(|count| count < answers.len()) {
            return Err(LOST);
        }
        Ok(())
    }

    /// Handles a frame without an envelope.
    fn messages(&self, mut payload: &[u8], now: Duration, answers: &mut Vec<u8>) -> Result<(), u16> {
        while !payload.is_empty() {
            let (item, rest) = self.shared.target.dialect.first(payload).map_err(|_| LOST)?;
            match item {
                Item::Message(message) => self.shared.message(self.user, &message, now),
                Item::Ping(answer) => client_frame(TEXT, answer.as_bytes(), self.shared.mask(), answers),
                Item::Subscribed | Item::Other => {}
            }
            payload = rest;
        }
        Ok(())
    }

    /// Handles a frame of `signalpost.v1`: an envelope that begins with a seq is a message, and any other concerns the connection.
    fn envelope(&mut self, payload: &[u8], now: Duration, answers: &mut Vec<u8>) {
        const SEQ: &[u8] = br#"{"seq":"#;
        let Some(rest) = payload.strip_prefix(SEQ) else { return };
        self.shared.message(self.user, payload, now);
        self.unacked += 1;
        if self.unacked >= FRAMES_PER_ACK {
            self.unacked = 0;
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let seq = String::from_utf8_lossy(rest.get(..digits).unwrap_or_default()).into_owned();
            client_frame(TEXT, format!(r#"{{"type":"ack","seq":{seq}}}"#).as_bytes(), self.shared.mask(), answers);
        }
    }
}
