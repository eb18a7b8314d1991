//! The conversation of one session: one task that owns one socket, from hello to the close frame.
//!
//! The loop reads the mailbox through its cursor, formats, writes, and reads what the client sends. It never waits for one
//! side alone: while the client doesn't read, the session takes nothing more from the mailbox, whose bounds then apply.
//!
//! Ten thousand of these are idle at a time, so the task holds a pointer to its session and a timer, and buffers only while there
//! is something in them.

use std::future::{Future as _, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::time::{Instant, Sleep, sleep_until};

use super::clock::Clock;
use super::protocol::{self, ClientFrame};
use super::{Sessions, entry};
use crate::auth::Refused;
use crate::dispatch::session_policies;
use crate::model::mailbox::Reader;
use crate::net::permits::{ConnectionPermit, SessionPermit};
use crate::net::rate::Bucket;
use crate::net::websocket::{Decoder, Incoming, Opcode, encode, encode_close};
use crate::net::wire::Wire;
use crate::types::close::Close;
use crate::types::event::Body;

/// Bytes asked of the socket at a time; enough for a client's usual message.
const READ_BYTES: usize = 2048;

/// RFC 6455's code for a connection that went away without a word. It is never sent.
const LOST: u16 = 1006;

/// What a client may send at once, in seconds of its rates: what it typed ahead while it was away.
const BURST_S: u32 = 10;

/// A session that has its permit in the mailbox.
#[derive(Debug)]
pub struct Session {
    sessions: Arc<Sessions>,
    wire: Wire,
    reader: Reader,
    v1: bool,
    decoder: Decoder,
    input: BytesMut,
    output: Vec<u8>,
    /// How much of `output` is written.
    written: usize,
    /// The last message that `output` deals with, 0 where there is none, and how many are in it.
    sending: (u64, u64),
    clock: Clock,
    /// Of messages, and of bytes.
    allowance: Bucket,
    bytes: Bucket,
    _permits: (ConnectionPermit, SessionPermit),
}

/// A session's end.
enum End {
    /// We close: the client is told why.
    Close(Close),
    /// The client closed, with this code if it gave one.
    Closed(Option<u16>),
    /// The connection is gone.
    Lost,
}

impl End {
    fn code(&self) -> u16 {
        match self {
            End::Close(close) => close.code(),
            End::Closed(code) => code.unwrap_or(1005),
            End::Lost => LOST,
        }
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Lost
    }
}

/// What a session waits for.
enum Next {
    /// A post, or the end that somebody wants.
    Woken,
    Readable,
    Writable,
    /// [`Clock::due`].
    Due,
}

impl Session {
    /// `input`: what the client has sent behind its handshake. `ends`: when its token is over.
    pub fn new(
        sessions: Arc<Sessions>,
        reader: Reader,
        wire: Wire,
        input: BytesMut,
        ends: Option<SystemTime>,
        permits: (ConnectionPermit, SessionPermit),
    ) -> Box<Session> {
        let sockets = &sessions.sockets;
        Box::new(Session {
            wire,
            v1: reader.handle().subprotocol.is_some(),
            reader,
            decoder: Decoder::new(sockets.message_bytes_max),
            input,
            output: Vec::new(),
            written: 0,
            sending: (0, 0),
            clock: Clock::new(Instant::now(), on_the_clock(ends)),
            allowance: Bucket::full(sockets.messages_per_second_max.saturating_mul(BURST_S)),
            bytes: Bucket::full(sockets.bytes_per_second_max.saturating_mul(BURST_S)),
            _permits: permits,
            sessions,
        })
    }

    /// From hello to close.
    pub async fn run(mut self: Box<Session>) {
        let handle = self.reader.handle().clone();
        self.sessions.metrics.sessions_opened.inc();
        tracing::debug!(user = %handle.user, session = %handle.id, subprotocol = handle.subprotocol, "session opened");
        self.greet();
        let end = match session_policies::opened(&self.sessions.dispatch, &handle) {
            Err(close) => End::Close(close),
            Ok(()) => {
                let end = self.converse().await;
                session_policies::closed(&self.sessions.dispatch, &handle, end.code());
                end
            }
        };
        // The client's half of the closing handshake takes its time, in which this session reads nothing: whoever comes back
        // meanwhile is no second device.
        self.reader.leave();
        let code = end.code();
        // Boxed, so that its state is no part of every idle session.
        Box::pin(self.take_leave(end)).await;
        self.sessions.metrics.sessions_closed.with_label_values(&[&code.to_string()]).inc();
        tracing::debug!(user = %handle.user, session = %handle.id, code, "session closed");
    }

    /// The closing handshake.
    async fn take_leave(&mut self, end: End) {
        match end {
            End::Close(close) => {
                if self.v1 && close == Close::Restart {
                    protocol::reconnect(self.return_after_ms(), &mut self.output);
                }
                encode_close(close.code(), &close.reason(), &mut self.output);
            }
            // The closing handshake echoes the client's code.
            End::Closed(Some(code)) => encode_close(code, "", &mut self.output),
            End::Closed(None) => encode(Opcode::Close, &[], &mut self.output),
            End::Lost => return,
        }
        let rest = self.output.get(self.written..).unwrap_or_default();
        self.wire.part(rest, Duration::from_millis(self.sessions.sockets.close_deadline_ms)).await;
    }

    /// When to come back after a restart: the session's id is random.
    fn return_after_ms(&self) -> u32 {
        let random = self.reader.handle().id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        random.unwrap_or_default().checked_rem(self.sessions.return_within_ms).unwrap_or_default()
    }

    /// Says hello, and waits for a resume where there is something to resume from.
    fn greet(&mut self) {
        if !self.v1 {
            return;
        }
        let (seq, resumable) = self.reader.position();
        let sockets = &self.sessions.sockets;
        let limits = &self.sessions.limits;
        if resumable {
            self.clock.held = Some(Instant::now() + Duration::from_millis(sockets.resume_wait_ms));
        }
        let hello = protocol::Hello {
            session: &self.reader.handle().id,
            user: self.reader.handle().user.as_str(),
            epoch: self.reader.epoch(),
            seq,
            limits: protocol::Limits {
                message_bytes_max: sockets.message_bytes_max,
                ping_interval_ms: sockets.ping_interval_ms,
                pong_deadline_ms: sockets.pong_deadline_ms,
                mailbox_messages_max: limits.messages_max,
                mailbox_bytes_max: limits.bytes_max,
                keep_ms: limits.keep_ms,
            },
            resume_within_ms: resumable.then_some(sockets.resume_wait_ms),
            token_ends_in_ms: self.token_ends_in_ms(),
        };
        protocol::hello(&hello, &mut self.output);
    }

    /// The loop. One round does what can be done without waiting, then waits for whatever comes first.
    async fn converse(&mut self) -> End {
        let handle = self.reader.handle().clone();
        let timer = sleep_until(self.clock.due(&self.sessions.sockets));
        tokio::pin!(timer);
        loop {
            // What the client sent with the handshake, and what one read brought, is taken before anything waits.
            if let Err(end) = self.receive() {
                return end;
            }
            // Looked at before the mailbox: what was posted before the session was to end is sent.
            let ending = handle.ending();
            if ending.is_some() {
                // There is no time left to wait for a resume.
                self.clock.held = None;
            }
            match self.send().await {
                Err(end) => return end,
                Ok(true) => {
                    // However much there is, others have their turn.
                    tokio::task::consume_budget().await;
                    continue;
                }
                Ok(false) => {}
            }
            if let Some(close) = ending
                && (!matches!(close, Close::Restart | Close::ClosedByPolicy(_)) || self.output.is_empty())
            {
                return End::Close(close.clone());
            }
            let due = self.clock.due(&self.sessions.sockets);
            // A timer that is early is cheaper than one that is moved whenever the client is heard.
            if due < timer.deadline() {
                timer.as_mut().reset(due);
            }
            match poll_fn(|context| self.poll_next(timer.as_mut(), context)).await {
                Ok(Next::Woken | Next::Writable) => {}
                Ok(Next::Readable) => {
                    if let Err(end) = self.read() {
                        return end;
                    }
                }
                Ok(Next::Due) => {
                    match self.clock.tick(&self.sessions.sockets, Instant::now()) {
                        Ok(false) => {}
                        Ok(true) => encode(Opcode::Ping, &[], &mut self.output),
                        Err(close) => return End::Close(close),
                    }
                    timer.as_mut().reset(self.clock.due(&self.sessions.sockets));
                }
                Err(error) => return error.into(),
            }
        }
    }

    /// What comes first. All of it is cancel safe: it only tells that something is ready.
    fn poll_next(&mut self, timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<io::Result<Next>> {
        if self.reader.handle().poll_woken(context).is_ready() {
            return Poll::Ready(Ok(Next::Woken));
        }
        // While the client doesn't read, it isn't read from: what it asks for would pile up.
        let ready = if self.output.is_empty() {
            self.wire.poll_readable(context).map_ok(|()| Next::Readable)
        } else {
            self.wire.poll_writable(context).map_ok(|()| Next::Writable)
        };
        match ready {
            Poll::Pending => timer.poll(context).map(|()| Ok(Next::Due)),
            ready => ready,
        }
    }

    /// Takes from the mailbox and writes. Says whether there may be more to do at once.
    async fn send(&mut self) -> Result<bool, End> {
        // What an earlier round has left over is written first; the mailbox is looked at in the next one.
        let mut more = !self.output.is_empty() || !self.input.is_empty();
        if self.output.is_empty() && self.clock.held.is_none() {
            more |= self.fill().await;
        }
        // What the formatting dropped leaves no output, but it is dealt with.
        if self.output.is_empty() && self.sending.0 == 0 {
            return Ok(false);
        }
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.wire.try_write(rest) {
                Ok(0) => return Err(End::Lost),
                Ok(count) => {
                    self.written += count;
                    self.clock.blocked = None;
                    self.sessions.metrics.sent_bytes.inc_by(count as u64);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.clock.blocked.get_or_insert_with(Instant::now);
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        // An idle session holds no buffer.
        self.output = Vec::new();
        self.written = 0;
        let (seq, count) = std::mem::take(&mut self.sending);
        if count > 0 {
            self.sessions.metrics.sent.inc_by(count);
            self.clock.message = Instant::now();
        }
        if seq > 0 && !self.v1 {
            self.reader.delivered(seq);
        }
        Ok(more)
    }

    /// Reads on in the mailbox and writes frames into `output`. Says whether there is more.
    async fn fill(&mut self) -> bool {
        let mut batch = Vec::new();
        let more = self.reader.take(self.sessions.sockets.write_bytes_max, &mut batch);
        for (seq, message) in batch {
            self.sending.0 = seq;
            match self.sessions.format.shape(&message, self.reader.handle()).await {
                Ok(body) => {
                    self.sending.1 += 1;
                    protocol::message(self.v1, seq, &body, &mut self.output);
                }
                Err(reason) => self.sessions.metrics.dropped(reason, 1),
            }
        }
        more
    }

    /// Reads what the socket has, once.
    fn read(&mut self) -> Result<(), End> {
        self.input.reserve(READ_BYTES);
        match self.wire.try_read_buf(&mut self.input) {
            Ok(0) => Err(End::Lost),
            Ok(count) => {
                let per_second = self.sessions.sockets.bytes_per_second_max;
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                if !self.bytes.take(count, per_second, per_second.saturating_mul(BURST_S)) {
                    return Err(End::Close(Close::TooManyMessages));
                }
                self.clock.hear(Instant::now());
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Handles what has been read.
    fn receive(&mut self) -> Result<(), End> {
        while !self.input.is_empty() && self.output.len() < READ_BYTES {
            let incoming = self.decoder.decode(&mut self.input);
            let invalid =
                |error: crate::net::websocket::ProtocolError| Close::Protocol { code: error.close_code(), reason: error.reason() };
            let Some(incoming) = incoming.map_err(|error| End::Close(invalid(error)))? else { break };
            match incoming {
                Incoming::Text(text) => {
                    // The decoder has proven it; if it had not, this would show.
                    let text = String::from_utf8_lossy(&text).into_owned();
                    self.text(text)?;
                }
                Incoming::Binary(bytes) => self.message(Body::Binary(bytes.to_vec()))?,
                Incoming::Ping(payload) => encode(Opcode::Pong, &payload, &mut self.output),
                Incoming::Pong(_) => {}
                Incoming::Close { code, .. } => return Err(End::Closed(code)),
            }
        }
        if self.input.is_empty() {
            // An idle session holds no buffer.
            self.input = BytesMut::new();
        }
        Ok(())
    }

    fn text(&mut self, text: String) -> Result<(), End> {
        if !self.v1 {
            // Where tokens are asked for, one in a frame is for the doors, and no policy sees it.
            if self.clock.ends.is_some()
                && let Some(token) = entry::shown(text.as_bytes())
            {
                self.allow()?;
                self.authorize(&token);
                return Ok(());
            }
            return self.message(Body::sniff(text));
        }
        self.clock.held = None;
        match ClientFrame::parse(&text) {
            ClientFrame::Ack { seq } => self.reader.delivered(seq),
            ClientFrame::Begin => {}
            ClientFrame::Auth { token } => {
                self.allow()?;
                self.authorize(&token);
            }
            ClientFrame::Resume { epoch, seq } => {
                self.allow()?;
                self.resume(&epoch, seq);
            }
            ClientFrame::Message(body) => self.message(body)?,
            ClientFrame::Invalid(detail) => {
                self.allow()?;
                self.sessions.metrics.client_messages.with_label_values(&["invalid"]).inc();
                protocol::error(true, "invalid_frame", detail, &mut self.output);
            }
        }
        Ok(())
    }

    /// Counts something that a client may do so often only. Acks are free: there are as many as messages.
    fn allow(&mut self) -> Result<(), End> {
        let per_second = self.sessions.sockets.messages_per_second_max;
        let is_allowed = self.allowance.take(1, per_second, per_second.saturating_mul(BURST_S));
        if is_allowed { Ok(()) } else { Err(End::Close(Close::TooManyMessages)) }
    }

    /// Another token: the session goes on as long as that one is good.
    fn authorize(&mut self, token: &str) {
        match self.sessions.auth.token(&self.reader.handle().user, token) {
            Ok(pass) => {
                self.clock.ends = on_the_clock(pass.ends);
                if self.v1 {
                    protocol::authorized(self.token_ends_in_ms(), &mut self.output);
                }
            }
            Err(Refused) => protocol::error(self.v1, "unauthorized", "the token is not valid for this user", &mut self.output),
        }
    }

    fn token_ends_in_ms(&self) -> Option<u64> {
        let left = self.clock.ends?.saturating_duration_since(Instant::now());
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }

    fn resume(&mut self, epoch: &str, seq: u64) {
        let resumed = self.reader.resume(epoch, seq);
        self.sessions.metrics.resumes.with_label_values(&[if resumed.recovered { "true" } else { "false" }]).inc();
        protocol::resumed(resumed.recovered, resumed.from, &mut self.output);
    }

    fn message(&mut self, body: Body) -> Result<(), End> {
        self.allow()?;
        self.clock.message = Instant::now();
        if let Err(refusal) = session_policies::received(&self.sessions.dispatch, self.reader.handle(), &body) {
            protocol::error(self.v1, &refusal.code, &refusal.detail, &mut self.output);
        }
        Ok(())
    }
}

/// When a session ends by its token, on the clock that timers follow.
fn on_the_clock(ends: Option<SystemTime>) -> Option<Instant> {
    Some(Instant::now() + ends?.duration_since(SystemTime::now()).unwrap_or_default())
}
