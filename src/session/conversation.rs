//! The conversation of one session: the frames that it sends unasked, its answers, and the messages that it reads from the mailbox. It
//! decides and formats; [`super::socket`] reads and writes the socket.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use tokio::time::Instant;

use super::clock::Clock;
use super::framing::{Framing, Hello, Limits};
use super::leaving::Leaving;
use super::outbox::Outbox;
use super::protocol::{ClientFrame, Want};
use super::sse::Position;
use super::taken::Taken;
use super::{Sessions, first_frame};
use crate::model::mailbox::{Batch, Head, Page, Reader, Resumed};
use crate::net::rate::Bucket;
use crate::net::turns::Turns;
use crate::net::websocket::{Incoming, Opcode, encode, encode_close};
use crate::types::close::Close;
use crate::types::event::Body;

/// The burst that a client may send, in seconds of its rates: for messages that were typed while it was not connected.
pub const BURST_S: u32 = 10;

/// RFC 6455's code for a close frame without a code. It is never sent.
const NO_CODE: u16 = 1005;

/// RFC 6455's code for a connection that ended without a close frame. It is never sent.
pub const LOST: u16 = 1006;

/// The codes of a client's close frame that the metrics know by number. A client may send any code, also one of ours.
const CLIENT_CODES: [u16; 3] = [1000, 1001, NO_CODE];

/// One session, without its socket.
#[derive(Debug)]
pub struct Conversation {
    pub sessions: Arc<Sessions>,
    pub reader: Reader,
    pub outbox: Outbox,
    pub clock: Clock,
    pub taken: Taken,
    leaving: Leaving,
    /// The client's allowance of messages.
    allowance: Bucket,
}

/// A session's end.
#[derive(Debug)]
pub enum End {
    /// The server closes, and tells the client why.
    Close(Close),
    /// The client closed, with this code if it gave one.
    Closed(Option<u16>),
    /// The connection is gone.
    Lost,
}

impl End {
    pub fn code(&self) -> u16 {
        match self {
            End::Close(close) => close.code(),
            End::Closed(code) => code.unwrap_or(NO_CODE),
            End::Lost => LOST,
        }
    }

    /// Returns the server's reason, or the connection's.
    pub fn reason(&self) -> String {
        match self {
            End::Close(close) => close.reason().into_owned(),
            End::Closed(_) => "the client closed".to_owned(),
            End::Lost => "the connection was lost".to_owned(),
        }
    }

    /// Appends the end. Nothing is to be sent if the connection is gone. `after_ms`: when to come back after a restart, if that is said.
    pub fn encode(&self, framing: Framing, after_ms: Option<u32>, out: &mut Vec<u8>) {
        match self {
            End::Close(close) => framing.end(close.code(), &close.reason(), after_ms.filter(|_| *close == Close::Restart), out),
            // The closing handshake echoes the client's code.
            End::Closed(Some(code)) => encode_close(*code, "", out),
            End::Closed(None) => encode(Opcode::Close, &[], out),
            End::Lost => {}
        }
    }

    /// Returns the code as the metrics have it.
    pub fn label(&self) -> String {
        match self {
            End::Closed(Some(code)) if !CLIENT_CODES.contains(code) => "other".to_owned(),
            _ => self.code().to_string(),
        }
    }
}

impl Conversation {
    /// `ends`: when the client's token expires.
    pub fn new(sessions: Arc<Sessions>, reader: Reader, framing: Framing, ends: Option<SystemTime>) -> Conversation {
        let now = Instant::now();
        let epoch = if framing == Framing::Sse { reader.epoch().into() } else { Box::default() };
        Conversation {
            outbox: Outbox::new(framing, epoch),
            reader,
            clock: Clock::new(now, on_the_clock(ends)),
            taken: Taken::default(),
            leaving: Leaving::new(now.into_std()),
            allowance: Bucket::full(sessions.sockets.messages_per_second_max.get().saturating_mul(BURST_S)),
            sessions,
        }
    }

    /// Says hello, and waits for a resume if there is something to resume from. A stream's client can only resume by its request, so that
    /// it is answered at once. `head`: the position of the mailbox when the client connected. `since`: what the request says about a
    /// resume.
    pub fn greet(&mut self, head: Head, since: Option<Position>) {
        if !self.outbox.framing.resumes() {
            return;
        }
        let is_stream = self.outbox.framing == Framing::Sse;
        let Sessions { sockets, limits, .. } = &*self.sessions;
        let waits = head.is_resumable && !is_stream;
        if waits {
            self.clock.held = Some(Instant::now() + *sockets.resume_wait_ms);
        }
        let epoch = self.reader.epoch();
        let hello = Hello {
            session: &self.reader.handle().id,
            user: self.reader.handle().user.as_str(),
            epoch: &epoch,
            seq: head.seq,
            limits: Limits {
                message_bytes_max: sockets.message_bytes_max,
                ping_interval_ms: sockets.ping_interval_ms,
                pong_deadline_ms: sockets.pong_deadline_ms,
                mailbox_messages_max: limits.messages_max,
                mailbox_bytes_max: limits.bytes_max,
                keep_ms: limits.keep_ms,
            },
            resume_within_ms: waits.then_some(sockets.resume_wait_ms),
            token_ends_in_ms: self.token_ends_in_ms(),
        };
        let (framing, out) = self.outbox.frames();
        framing.hello(&hello, out);
        if is_stream {
            self.go_on(since, &epoch);
        }
    }

    /// Begins a stream after what its client has read, which is an ack too.
    fn go_on(&mut self, since: Option<Position>, epoch: &str) {
        let resumed = match &since {
            None => self.reader.begin(),
            Some(since) => self.reader.resume(&since.epoch, since.seq),
        };
        if let Some(since) = since.filter(|since| since.epoch == epoch) {
            self.reader.acked(since.seq);
        }
        self.answer_resume(epoch, &resumed);
    }

    /// Returns whether messages wait for the client's resume.
    pub fn is_held(&self) -> bool {
        self.clock.held.is_some()
    }

    /// Reads a page of the mailbox into the outbox, and returns whether there may be more.
    ///
    /// # Errors
    /// The session has fallen behind too far.
    pub async fn fill(&mut self) -> Result<bool, End> {
        let bytes_max = self.sessions.sockets.write_bytes_max.get();
        let mut batch = Batch::new();
        let (upto, has_more) = match self.reader.page(bytes_max, &mut batch) {
            Page::Missed => return Err(End::Close(Close::SlowConsumer)),
            Page::More { upto } => (upto, true),
            Page::End { upto } => (upto, false),
        };
        let mut turns = Turns::default();
        for (index, (seq, message)) in batch.into_iter().enumerate() {
            if index > 0 {
                // The size after formatting counts, not the one before.
                if self.outbox.len() >= bytes_max {
                    return Ok(true);
                }
                turns.take().await;
            }
            match self.sessions.format.shape(&message, self.reader.handle()).await {
                Ok(body) => {
                    self.outbox.message(seq, Some(&body));
                    self.leaving.takes(seq, &message);
                }
                Err(reason) => {
                    self.reader.dropped(seq, reason);
                    self.outbox.message(seq, None);
                }
            }
            self.reader.advance(seq);
        }
        self.reader.advance(upto);
        Ok(has_more)
    }

    /// Notes that everything in the outbox is written.
    pub fn written(&mut self) {
        let sent = self.outbox.finish();
        if sent.messages > 0 {
            let now = Instant::now();
            self.sessions.metrics.sent.inc_by(sent.messages);
            self.clock.message = now;
            self.leaving.written(now.into_std(), &self.sessions, self.reader.handle());
        }
        if sent.is_any {
            self.reader.written();
        }
    }

    /// Handles what the client sent.
    ///
    /// # Errors
    /// The session is over.
    pub async fn hear(&mut self, incoming: Incoming) -> Result<(), End> {
        match incoming {
            // The decoder has validated it. If it had not, replacement characters would show that.
            Incoming::Text(text) => self.hear_text(String::from_utf8_lossy(&text).into_owned()).await,
            Incoming::Binary(bytes) => self.hear_message(&Body::Binary(bytes.to_vec()), Want::Refusal).await,
            Incoming::Ping(payload) => {
                encode(Opcode::Pong, &payload, self.outbox.frames().1);
                Ok(())
            }
            Incoming::Pong(_) => Ok(()),
            Incoming::Close { code, .. } => Err(End::Closed(code)),
        }
    }

    /// Looks at the clocks.
    ///
    /// # Errors
    /// Why to give up on the client.
    pub fn tick(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.clock.tick(&self.sessions.sockets, now).map_err(End::Close)? {
            let (framing, out) = self.outbox.frames();
            if !framing.heartbeat(out) {
                self.clock.hear(now);
            }
        }
        Ok(())
    }

    /// Appends the last frames. Nothing is to be sent if the connection is gone.
    pub fn take_leave(&mut self, end: &End) {
        // A random number, since the session's id is random.
        let random = self.reader.handle().id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let after_ms = self.sessions.return_after_ms(random.unwrap_or_default());
        let (framing, out) = self.outbox.frames();
        end.encode(framing, Some(after_ms), out);
    }

    async fn hear_text(&mut self, text: String) -> Result<(), End> {
        match self.outbox.framing {
            Framing::V1 | Framing::Sse => self.hear_frame(ClientFrame::parse(&text)).await,
            Framing::Plain => {
                // If the server asks for tokens, a frame with a token is for the server, and policies don't see it.
                match self.clock.ends.and_then(|_| first_frame::shown(text.as_bytes())) {
                    Some(token) => self.authorize(&token),
                    None => self.hear_message(&Body::sniff(text), Want::Refusal).await,
                }
            }
        }
    }

    /// Handles a frame of `signalpost.v1`.
    ///
    /// # Errors
    /// The session is over.
    pub async fn hear_frame(&mut self, frame: ClientFrame) -> Result<(), End> {
        // A ping says nothing about where to go on.
        if frame != ClientFrame::Ping {
            self.clock.held = None;
        }
        match frame {
            // Acks don't count: a client sends one for each message.
            ClientFrame::Ack { seq } => self.reader.acked(seq),
            ClientFrame::Begin => {
                self.allow()?;
                let resumed = self.reader.begin();
                self.answer_resume("", &resumed);
            }
            ClientFrame::Auth { token } => self.authorize(&token)?,
            ClientFrame::Resume { epoch, seq } => {
                self.allow()?;
                let resumed = self.reader.resume(&epoch, seq);
                self.answer_resume(&epoch, &resumed);
            }
            ClientFrame::Message(body, want) => self.hear_message(&body, want).await?,
            ClientFrame::Ping => {
                self.allow()?;
                let (framing, out) = self.outbox.frames();
                framing.pong(out);
            }
            ClientFrame::Invalid { detail, id } => {
                self.allow()?;
                self.sessions.metrics.client_messages.with_label_values(&["invalid"]).inc();
                self.error(id.as_deref(), "invalid_frame", detail);
            }
        }
        Ok(())
    }

    async fn hear_message(&mut self, body: &Body, want: Want) -> Result<(), End> {
        self.allow()?;
        self.clock.message = Instant::now();
        match self.sessions.cluster.received(&self.sessions.dispatch, self.reader.handle(), body).await {
            Ok(ticket) => {
                if let Want::Taken(id) = want {
                    self.taken.add(id, ticket);
                }
            }
            Err(refusal) => self.error(want.id(), &refusal.code, &refusal.detail),
        }
        Ok(())
    }

    /// Resolves when there is an answer to a message whose client wants to know when it is taken, and appends it to the outbox.
    pub fn poll_taken(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut is_any = Poll::Pending;
        while let Poll::Ready((id, stored)) = self.taken.poll(context) {
            is_any = Poll::Ready(());
            match stored {
                Ok(()) => {
                    let (framing, out) = self.outbox.frames();
                    framing.taken(&id, out);
                }
                Err(why) => self.error(Some(&id), "not_stored", &format!("what followed from this message may be lost: {why}")),
            }
        }
        is_any
    }

    fn answer_resume(&mut self, epoch: &str, resumed: &Resumed) {
        self.sessions.metrics.resumes.with_label_values(&[if resumed.recovered { "true" } else { "false" }]).inc();
        let (framing, out) = self.outbox.frames();
        framing.resumed(epoch, resumed.recovered, resumed.from, out);
    }

    /// Takes another token: the session goes on as long as that one is good.
    fn authorize(&mut self, token: &str) -> Result<(), End> {
        self.allow()?;
        match self.sessions.auth.token(&self.reader.handle().user, token) {
            Ok(pass) => {
                self.clock.ends = on_the_clock(pass.ends);
                let left = self.token_ends_in_ms();
                let (framing, out) = self.outbox.frames();
                framing.authorized(left, out);
            }
            Err(_) => self.error(None, "unauthorized", "the token is not valid for this user"),
        }
        Ok(())
    }

    fn error(&mut self, id: Option<&str>, code: &str, detail: &str) {
        let (framing, out) = self.outbox.frames();
        framing.error(id, code, detail, out);
    }

    /// Counts an action whose rate is limited.
    fn allow(&mut self) -> Result<(), End> {
        let per_second = self.sessions.sockets.messages_per_second_max.get();
        let is_allowed = self.allowance.take(1, per_second, per_second.saturating_mul(BURST_S));
        if is_allowed { Ok(()) } else { Err(End::Close(Close::TooManyMessages)) }
    }

    fn token_ends_in_ms(&self) -> Option<u64> {
        let left = self.clock.ends?.saturating_duration_since(Instant::now());
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Converts the time at which a token expires to the clock of the timers.
fn on_the_clock(ends: Option<SystemTime>) -> Option<Instant> {
    Some(Instant::now() + ends?.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_makes_no_labels_and_does_not_count_as_the_server() {
        let label = |code| End::Closed(code).label();
        assert_eq!([None, Some(1000), Some(1001)].map(label), ["1005", "1000", "1001"]);
        for code in [1011, 1012, 3000, 4000, 4100, 4999] {
            assert_eq!(label(Some(code)), "other", "{code}");
        }
        assert_eq!([End::Lost, End::Close(Close::SlowConsumer)].map(|end| end.label()), ["1006", "4100"]);
    }
}
