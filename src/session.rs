//! A session: one task that owns one socket, from the handshake to the close frame.
//!
//! The loop reads the mailbox through its cursor, formats, writes, and reads what the client sends. It never waits for one
//! side alone: while the client doesn't read, the session takes nothing more from the mailbox, whose bounds then apply.

pub mod entry;
pub mod handshake;
pub mod protocol;

use std::future::pending;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep_until};

use crate::auth::{Auth, Pass, Refused};
use crate::close::Close;
use crate::config;
use crate::dialogue;
use crate::dispatch::Dispatch;
use crate::event::{Body, UserId};
use crate::format::Format;
use crate::lock;
use crate::mailbox::{Mailboxes, Reader, Seat};
use crate::metrics::Metrics;
use crate::places::{Client, Full, Place, SessionPlaces};
use crate::problem::{self, Problem};
use crate::rate::Bucket;
use crate::stream::Stream;
use crate::websocket::{Decoder, Incoming, Opcode, encode, encode_close};
use crate::wire::Wire;
use handshake::Handshake;
use protocol::ClientFrame;

/// Bytes asked of the socket at a time; enough for a client's usual message.
const READ_BYTES: usize = 2048;

/// RFC 6455's code for a connection that went away without a word. It is never sent.
const LOST: u16 = 1006;

/// What a client may send at once, in seconds of its rates: what it typed ahead while it was away.
const BURST_S: u32 = 10;

/// What all sessions share.
#[derive(Debug)]
pub struct Sessions {
    pub auth: Arc<Auth>,
    /// Whether new ones are welcome.
    pub ready: Arc<AtomicBool>,
    pub handshakes: Mutex<Bucket>,
    pub places: SessionPlaces,
    pub dispatch: Arc<Dispatch>,
    pub format: Arc<Format>,
    pub mailboxes: Arc<Mailboxes>,
    pub metrics: Arc<Metrics>,
    pub sockets: config::Sockets,
    pub limits: config::Mailboxes,
    /// The window over which a stop spreads the clients' return.
    pub return_within_ms: u32,
}

/// `GET {base}/ws/{user_id}`
///
/// # Errors
/// No WebSocket handshake, no sane user id, no valid token, too many handshakes or sessions, an attribute over its limit, or the server stops.
pub async fn connect(
    State(sessions): State<Arc<Sessions>>,
    Extension(client): Extension<Client>,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    mut request: Request<axum::body::Body>,
) -> Result<Response, Problem> {
    let user = problem::user(user, sessions.sockets.user_id_bytes_max)?;
    let handshake = Handshake::read(request.method(), request.headers())?;
    if !sessions.ready.load(Ordering::Relaxed) {
        return Err(Problem::stopping());
    }
    let per_second = sessions.sockets.handshakes_per_second_max;
    if !lock(&sessions.handshakes).take(1, per_second, per_second) {
        let detail = format!("more than {per_second} handshakes a second (sockets.handshakes_per_second_max); come back later");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_handshakes", detail));
    }
    let query = query.unwrap_or_default();
    let mut attributes = handshake::attributes(&query, &sessions.sockets)?;
    attributes.retain(|(name, _)| sessions.auth.is_for_clients(name));
    let pass = sessions.auth.admit(&user, request.headers(), &query)?;
    let seated = sessions.places.take(client).map_err(|full| sessions.crowded(full))?;
    let visitor = Visitor { user, subprotocol: handshake.subprotocol, attributes };
    // Before the 101: what is posted once the client knows that it is connected is for this session too.
    let entered = match pass {
        Some(pass) => Entry::Open(visitor.enter(&sessions, pass)),
        None => Entry::Closed(visitor),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // The client may be gone before it has read the 101; then the reader leaves its place.
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Stream>>() else { return };
        let _until_it_ends = seated;
        let (mut wire, place) = parts.io.into_inner().into_parts();
        let mut input = BytesMut::from(&parts.read_buf[..]);
        let Ok(()) = wire.take_read(&mut input) else { return };
        let entered = match entered {
            Entry::Open(entered) => entered,
            Entry::Closed(visitor) => match visitor.identify(&sessions, &mut wire, &mut input).await {
                Ok(entered) => entered,
                Err(close) => {
                    turn_away(&sessions, &mut wire, &close).await;
                    drop(place);
                    return;
                }
            },
        };
        Session::run(sessions, entered, wire, input, place).await;
    });
    Ok(handshake.response::<axum::body::Body>().into_response())
}

impl Sessions {
    fn crowded(&self, full: Full) -> Problem {
        let config::Sockets { sessions_max, per_address_max, .. } = self.sockets;
        match full {
            Full::All => {
                let detail = format!("there are {sessions_max} sessions (sockets.sessions_max); come back later");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", detail)
            }
            Full::Client => {
                let detail =
                    format!("this address has {per_address_max} sessions (sockets.per_address_max); close one, or come back later");
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_sessions_of_address", detail)
            }
        }
    }
}

/// Who asks for a socket, as far as the handshake says.
struct Visitor {
    user: UserId,
    subprotocol: Option<&'static str>,
    attributes: Vec<(String, String)>,
}

/// Whether the handshake was enough.
enum Entry {
    Open(Entered),
    /// The first frame has to bring a token.
    Closed(Visitor),
}

/// A visitor with a place in the mailbox, or without.
struct Entered {
    seat: Arc<Seat>,
    reader: Result<Reader, Close>,
    ends: Option<SystemTime>,
}

impl Visitor {
    fn enter(mut self, sessions: &Sessions, pass: Pass) -> Entered {
        self.attributes.extend(pass.attributes);
        let seat = Seat::new(self.user, self.subprotocol, self.attributes);
        let reader = sessions.mailboxes.open(seat.clone());
        Entered { seat, reader, ends: pass.ends }
    }

    /// Waits for the token in the first frame.
    async fn identify(self, sessions: &Sessions, wire: &mut Wire, input: &mut BytesMut) -> Result<Entered, Close> {
        let token = entry::token(wire, input, sessions.auth.first_frame()).await?;
        let pass = sessions.auth.token(&self.user, &token).map_err(|Refused| Close::Unauthorized)?;
        Ok(self.enter(sessions, pass))
    }
}

/// Closes a socket that became no session.
async fn turn_away(sessions: &Sessions, wire: &mut Wire, close: &Close) {
    let mut out = Vec::new();
    encode_close(close.code(), &close.reason(), &mut out);
    farewell(wire, &out, sessions.sockets.close_deadline_ms).await;
    sessions.metrics.sessions_closed.with_label_values(&[&close.code().to_string()]).inc();
}

/// When a session ends by its token, on the clock that timers follow.
fn on_the_clock(ends: Option<SystemTime>) -> Option<Instant> {
    Some(Instant::now() + ends?.duration_since(SystemTime::now()).unwrap_or_default())
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

struct Session {
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
}

/// When something was last heard and said.
struct Clock {
    heard: Instant,
    pinged: Option<Instant>,
    /// Since when the client has not taken what is written.
    blocked: Option<Instant>,
    /// Until when messages wait for the client's resume.
    held: Option<Instant>,
    /// The last message in either direction.
    message: Instant,
    /// Until when the token is good, its grace included.
    ends: Option<Instant>,
}

impl Session {
    async fn run(sessions: Arc<Sessions>, entered: Entered, mut wire: Wire, input: BytesMut, place: Place) {
        let Entered { seat, reader, ends } = entered;
        let metrics = sessions.metrics.clone();
        let now = Instant::now();
        let clock = Clock { heard: now, pinged: None, blocked: None, held: None, message: now, ends: on_the_clock(ends) };
        let allowance = Bucket::full(sessions.sockets.messages_per_second_max.saturating_mul(BURST_S));
        let bytes = Bucket::full(sessions.sockets.bytes_per_second_max.saturating_mul(BURST_S));
        let code = match reader {
            Ok(reader) => {
                metrics.sessions_opened.inc();
                let v1 = seat.subprotocol.is_some();
                let decoder = Decoder::new(sessions.sockets.message_bytes_max);
                let mut session = Session {
                    sessions: sessions.clone(),
                    wire,
                    reader,
                    v1,
                    decoder,
                    input,
                    output: Vec::new(),
                    written: 0,
                    sending: (0, 0),
                    clock,
                    allowance,
                    bytes,
                };
                session.live().await
            }
            Err(close) => {
                turn_away(&sessions, &mut wire, &close).await;
                drop(place);
                return;
            }
        };
        drop(place);
        metrics.sessions_closed.with_label_values(&[&code.to_string()]).inc();
        tracing::debug!(user = %seat.user, session = %seat.id, code, "session closed");
    }

    /// From hello to close; returns the close code.
    async fn live(&mut self) -> u16 {
        let seat = self.reader.seat().clone();
        tracing::debug!(user = %seat.user, session = %seat.id, subprotocol = seat.subprotocol, "session opened");
        self.greet();
        let end = match dialogue::opened(&self.sessions.dispatch, &seat) {
            Err(close) => End::Close(close),
            Ok(()) => {
                let end = self.converse().await;
                dialogue::closed(&self.sessions.dispatch, &seat, end.code());
                end
            }
        };
        // The client's half of the closing handshake takes its time, in which this session reads nothing: whoever comes back
        // meanwhile is no second device.
        self.reader.leave();
        let code = end.code();
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
            End::Lost => return code,
        }
        let rest = self.output.get(self.written..).unwrap_or_default();
        farewell(&mut self.wire, rest, self.sessions.sockets.close_deadline_ms).await;
        code
    }

    /// When to come back after a restart: the session's id is random.
    fn return_after_ms(&self) -> u32 {
        let random = self.reader.seat().id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
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
            session: &self.reader.seat().id,
            user: self.reader.seat().user.as_str(),
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
        let seat = self.reader.seat().clone();
        let timer = sleep_until(Instant::now());
        tokio::pin!(timer);
        loop {
            // What the client sent with the handshake, and what one read brought, is taken before anything waits.
            if let Err(end) = self.receive() {
                return end;
            }
            if seat.ending().is_some() {
                // There is no time left to wait for a resume.
                self.clock.held = None;
            }
            match self.send().await {
                Err(end) => return end,
                Ok(true) => continue,
                Ok(false) => {}
            }
            if let Some(close) = seat.ending()
                && (!matches!(close, Close::Restart | Close::ClosedByPolicy(_)) || self.output.is_empty())
            {
                return End::Close(close.clone());
            }
            let due = self.due();
            if due != timer.deadline() {
                timer.as_mut().reset(due);
            }
            // All of these are cancel safe: they only tell that something is ready.
            tokio::select! {
                () = seat.woken() => {}
                // While the client doesn't read, it isn't read from: what it asks for would pile up.
                ready = self.wire.readable(), if self.output.is_empty() => {
                    if let Err(end) = ready.map_err(End::from).and_then(|()| self.read()) {
                        return end;
                    }
                }
                ready = writable(&self.wire, !self.output.is_empty()) => {
                    if let Err(error) = ready {
                        return error.into();
                    }
                }
                () = &mut timer => {
                    if let Err(close) = self.tick(Instant::now()) {
                        return End::Close(close);
                    }
                }
            }
        }
    }

    /// Takes from the mailbox and writes. Says whether there may be more to do at once.
    async fn send(&mut self) -> Result<bool, End> {
        if self.output.is_empty() && self.clock.held.is_none() {
            self.fill().await;
        }
        // What the formatting dropped leaves no output, but it is dealt with, and there may be more behind it.
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
        Ok(true)
    }

    /// Reads on in the mailbox and writes frames into `output`.
    async fn fill(&mut self) {
        let mut batch = Vec::new();
        self.reader.take(self.sessions.sockets.write_bytes_max, &mut batch);
        for (seq, message) in batch {
            self.sending.0 = seq;
            match self.sessions.format.shape(&message, self.reader.seat()).await {
                Ok(body) => {
                    self.sending.1 += 1;
                    protocol::message(self.v1, seq, &body, &mut self.output);
                }
                Err(reason) => self.sessions.metrics.dropped(reason, 1),
            }
        }
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
                self.clock.heard = Instant::now();
                self.clock.pinged = None;
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
            let invalid = |error: crate::websocket::ProtocolError| Close::Protocol { code: error.close_code(), reason: error.reason() };
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
        match self.sessions.auth.token(&self.reader.seat().user, token) {
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
        if let Err(refusal) = dialogue::received(&self.sessions.dispatch, self.reader.seat(), &body) {
            protocol::error(self.v1, &refusal.code, &refusal.detail, &mut self.output);
        }
        Ok(())
    }

    /// When [`Session::tick`] has to look again.
    fn due(&self) -> Instant {
        let sockets = &self.sessions.sockets;
        let after = |since: Instant, milliseconds: u64| since + Duration::from_millis(milliseconds);
        let mut due = match self.clock.pinged {
            Some(pinged) => after(pinged, sockets.pong_deadline_ms),
            None => after(self.clock.heard, sockets.ping_interval_ms),
        };
        if let Some(blocked) = self.clock.blocked {
            // What is blocked can't be pinged.
            due = after(blocked, sockets.write_deadline_ms);
        }
        if sockets.idle_deadline_ms > 0 {
            due = due.min(after(self.clock.message, sockets.idle_deadline_ms));
        }
        [self.clock.held, self.clock.ends].into_iter().flatten().fold(due, Instant::min)
    }

    /// Looks at the clocks: pings a silent client, and gives up on one that is gone, stuck or idle.
    fn tick(&mut self, now: Instant) -> Result<(), Close> {
        let sockets = &self.sessions.sockets;
        let over = |since: Instant, milliseconds: u64| since + Duration::from_millis(milliseconds) <= now;
        if self.clock.held.is_some_and(|held| held <= now) {
            self.clock.held = None;
        }
        if self.clock.ends.is_some_and(|ends| ends <= now) {
            return Err(Close::TokenExpired);
        }
        if let Some(blocked) = self.clock.blocked {
            return if over(blocked, sockets.write_deadline_ms) { Err(Close::SlowConsumer) } else { Ok(()) };
        }
        if sockets.idle_deadline_ms > 0 && over(self.clock.message, sockets.idle_deadline_ms) {
            return Err(Close::Idle);
        }
        match self.clock.pinged {
            Some(pinged) if over(pinged, sockets.pong_deadline_ms) => return Err(Close::NoPong),
            None if over(self.clock.heard, sockets.ping_interval_ms) => {
                encode(Opcode::Ping, &[], &mut self.output);
                self.clock.pinged = Some(now);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Resolves when the socket takes bytes again; never when there are none.
async fn writable(wire: &Wire, waiting: bool) -> io::Result<()> {
    if waiting { wire.writable().await } else { pending().await }
}

/// Writes the last bytes, a close frame at their end, and waits for the client to go, both within one deadline. Reading on is
/// what lets the close frame arrive: closing a socket with unread bytes resets it.
async fn farewell(wire: &mut Wire, bytes: &[u8], deadline_ms: u64) {
    let closing = async {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            wire.writable().await?;
            match wire.try_write(rest) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // Half-closed: the client reads the end after the close frame.
        wire.finish()?;
        let mut ignored = BytesMut::with_capacity(READ_BYTES);
        loop {
            wire.readable().await?;
            ignored.clear();
            match wire.try_read_buf(&mut ignored) {
                Ok(0) => return Ok::<(), io::Error>(()),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(deadline_ms), closing).await;
}
