//! A session's connection: the loop that reads, writes and waits. [`super::conversation`] decides what the bytes mean.
//!
//! The loop never waits for one side alone. While the client doesn't read, the session takes nothing more from the mailbox, whose bounds then
//! apply, and reads nothing more from the client.
//!
//! Ten thousand of these may be idle at a time, so the task holds only a pointer to its session and a timer, and keeps no empty buffers.

use std::future::{Future as _, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::time::{Instant, Sleep, sleep_until};

use super::conversation::{BURST_S, Conversation, End};
use super::framing::Framing;
use super::protocol::ClientFrame;
use super::upward::Place;
use crate::dispatch::observers::Trace;
use crate::net::permits::{ConnectionPermit, SessionPermit};
use crate::net::rate::Bucket;
use crate::net::turns::Turns;
use crate::net::websocket::{Decoder, Incoming};
use crate::net::wire::Wire;
use crate::types::close::Close;

/// Bytes asked of the socket at a time; enough for a client's usual message.
const READ_BYTES: usize = 2048;

/// Rounds in which a session only looks at its mailbox, one after the other.
const WOKEN_IN_A_ROW_MAX: u8 = 8;

/// A session that the policies have admitted, with its socket.
#[derive(Debug)]
pub struct Session {
    conversation: Conversation,
    /// Rounds since the client and the clock were last looked at.
    woken_in_a_row: u8,
    wire: Wire,
    decoder: Decoder,
    input: BytesMut,
    /// The way up of a session that writes a stream.
    posted: Option<Place>,
    /// The client's allowance of bytes.
    allowance: Bucket,
    _permits: (ConnectionPermit, SessionPermit),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Lost
    }
}

/// What a client said.
enum Heard {
    OnSocket(Incoming),
    Posted(ClientFrame),
}

impl Heard {
    /// Returns whether policies may be called.
    fn is_for_policies(&self) -> bool {
        matches!(self, Heard::OnSocket(Incoming::Text(_) | Incoming::Binary(_)) | Heard::Posted(ClientFrame::Message(..)))
    }
}

/// What a session waits for.
enum Next {
    /// A message was posted, or the session is to end.
    Woken,
    Readable,
    Writable,
    /// `Clock::due`.
    Due,
}

impl Session {
    /// `input`: the bytes that the client sent after its handshake.
    pub fn new(conversation: Conversation, wire: Wire, input: BytesMut, permits: (ConnectionPermit, SessionPermit)) -> Box<Session> {
        let sockets = &conversation.sessions.sockets;
        let is_stream = conversation.outbox.framing == Framing::Sse;
        if is_stream {
            // It answers no heartbeat, but its system does.
            wire.give_up_after(*sockets.pong_deadline_ms);
        }
        Box::new(Session {
            posted: is_stream.then(|| Place::new(&conversation.sessions, conversation.reader.handle())),
            decoder: Decoder::new(sockets.message_bytes_max.get()),
            allowance: Bucket::full(sockets.bytes_per_second_max.get().saturating_mul(BURST_S)),
            wire,
            input,
            woken_in_a_row: 0,
            conversation,
            _permits: permits,
        })
    }

    /// Runs the session from hello to close.
    pub async fn run(mut self: Box<Session>) {
        let handle = self.conversation.reader.handle().clone();
        let sessions = self.conversation.sessions.clone();
        sessions.metrics.sessions_opened.inc();
        tracing::debug!(user = %handle.user, session = %handle.id, subprotocol = handle.subprotocol, "session opened");
        sessions.cluster.begun(&sessions.dispatch, &handle);
        sessions.dispatch.observers.show(|| Trace::Opened(handle.clone()));
        let end = self.converse().await;
        // Nothing more is accepted for it.
        self.posted = None;
        // The session leaves before the closing handshake, which may take a while: a client that comes back meanwhile is not a second
        // device.
        sessions.cluster.closed(&sessions.dispatch, &self.conversation.reader, end.code());
        sessions.dispatch.observers.show(|| Trace::Closed { session: handle.clone(), code: end.code(), reason: end.reason() });
        // Boxed, so that its state is not part of every idle session.
        Box::pin(self.part(&end)).await;
        sessions.metrics.sessions_closed.with_label_values(&[&end.label()]).inc();
        tracing::debug!(user = %handle.user, session = %handle.id, code = end.code(), "session closed");
    }

    /// Performs the closing handshake.
    async fn part(&mut self, end: &End) {
        self.conversation.take_leave(end);
        if !matches!(end, End::Lost) {
            let deadline = *self.conversation.sessions.sockets.close_deadline_ms;
            self.wire.part(self.conversation.outbox.rest(), deadline).await;
        }
    }

    /// Runs the loop. Each round does everything that needs no waiting, then waits for what comes first.
    async fn converse(&mut self) -> End {
        let handle = self.conversation.reader.handle().clone();
        let timer = sleep_until(self.due());
        tokio::pin!(timer);
        loop {
            // What the client sent with the handshake, and what one read brought, is taken before anything waits.
            if let Err(end) = self.receive().await {
                return end;
            }
            // Read before the mailbox, so that messages that were posted before the end are sent.
            let ending = handle.ending();
            if ending.is_some() {
                // There is no time left to wait for a resume.
                self.conversation.clock.held = None;
            }
            let has_more = match self.send().await {
                Err(end) => return end,
                Ok(has_more) => has_more,
            };
            if let Some(close) = ending
                && !has_more
                && (!matches!(close, Close::Restart | Close::ClosedByPolicy(_)) || self.is_all_answered())
            {
                return End::Close(close.clone());
            }
            let due = self.due();
            // A timer that fires too early costs less than one that is moved whenever the client sends something.
            if due < timer.deadline() {
                timer.as_mut().reset(due);
            }
            if has_more {
                // However much there is, others have their turn, and the client and the clock have theirs.
                tokio::task::consume_budget().await;
            }
            match poll_fn(|context| self.poll_next(has_more, timer.as_mut(), context)).await {
                Ok(Next::Woken | Next::Writable) => {}
                Ok(Next::Readable) => {
                    if let Err(end) = self.read() {
                        return end;
                    }
                }
                Ok(Next::Due) => {
                    if let Err(end) = self.conversation.tick() {
                        return end;
                    }
                    timer.as_mut().reset(self.due());
                }
                Err(error) => return error.into(),
            }
        }
    }

    /// Returns whether what the client sent is handled now: not while too many of its messages wait for the store. One that is to leave can't
    /// stay by asking for more answers.
    fn hears(&self) -> bool {
        let Conversation { taken, reader, .. } = &self.conversation;
        taken.is_empty() || (!taken.is_full() && reader.handle().ending().is_none())
    }

    fn is_all_answered(&self) -> bool {
        self.conversation.outbox.is_empty() && self.conversation.taken.is_empty()
    }

    fn due(&self) -> Instant {
        self.conversation.clock.due(&self.conversation.sessions.sockets)
    }

    /// Returns what comes first. Cancel safe: it only tells that something is ready.
    fn poll_next(&mut self, has_more: bool, timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<io::Result<Next>> {
        // Not always first: a mailbox to which somebody posts all the time would keep the client and the clock waiting.
        if self.woken_in_a_row < WOKEN_IN_A_ROW_MAX && self.conversation.reader.handle().poll_woken(context).is_ready() {
            self.woken_in_a_row += 1;
            return Poll::Ready(Ok(Next::Woken));
        }
        let has_more = has_more || self.woken_in_a_row == WOKEN_IN_A_ROW_MAX;
        self.woken_in_a_row = 0;
        if self.conversation.poll_taken(context).is_ready() {
            return Poll::Ready(Ok(Next::Woken));
        }
        // While the client doesn't read, it isn't read from: what it asks for would pile up.
        let ready = if !self.conversation.outbox.is_empty() {
            self.wire.poll_writable(context).map_ok(|()| Next::Writable)
        } else if self.hears() {
            self.wire.poll_readable(context).map_ok(|()| Next::Readable)
        } else {
            Poll::Pending
        };
        if ready.is_ready() {
            return ready;
        }
        if timer.poll(context).is_ready() {
            return Poll::Ready(Ok(Next::Due));
        }
        if has_more { Poll::Ready(Ok(Next::Woken)) } else { Poll::Pending }
    }

    /// Takes from the mailbox and writes. Returns whether there may be more to do at once. Not cancel safe, and never cancelled.
    async fn send(&mut self) -> Result<bool, End> {
        let is_heard = self.hears() && (!self.input.is_empty() || self.posted.as_ref().is_some_and(|posted| !posted.is_empty()));
        let conversation = &mut self.conversation;
        // The rest of an earlier round is written first; the mailbox is read in the next one.
        let mut has_more = !conversation.outbox.is_empty() || is_heard;
        if conversation.outbox.is_empty() && !conversation.is_held() {
            has_more |= conversation.fill().await?;
        }
        // A message that formatting dropped leaves no output, but its seq has to be noted.
        if conversation.outbox.is_idle() {
            // Seqs that were not for this session are behind it too.
            conversation.reader.passed();
            return Ok(false);
        }
        if !self.write()? {
            // A session that can't write reads no page, so it looks here whether it has missed a message.
            let has_missed = self.conversation.reader.has_missed();
            return if has_missed { Err(End::Close(Close::SlowConsumer)) } else { Ok(false) };
        }
        self.conversation.written();
        Ok(has_more)
    }

    /// Writes as much as the socket accepts, and returns whether that was everything.
    fn write(&mut self) -> Result<bool, End> {
        let Conversation { outbox, clock, sessions, .. } = &mut self.conversation;
        while !outbox.rest().is_empty() {
            match self.wire.try_write(outbox.rest()) {
                Ok(0) => return Err(End::Lost),
                Ok(count) => {
                    outbox.wrote(count);
                    clock.blocked = None;
                    sessions.metrics.sent_bytes.inc_by(count as u64);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    clock.blocked.get_or_insert_with(Instant::now);
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Reads what the socket has, once.
    fn read(&mut self) -> Result<(), End> {
        self.input.reserve(READ_BYTES);
        match self.wire.try_read_buf(&mut self.input) {
            Ok(0) => Err(End::Lost),
            Ok(count) => {
                self.conversation.clock.hear(Instant::now());
                self.allow(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts bytes of the client.
    fn allow(&mut self, count: usize) -> Result<(), End> {
        let per_second = self.conversation.sessions.sockets.bytes_per_second_max.get();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let is_allowed = self.allowance.take(count, per_second, per_second.saturating_mul(BURST_S));
        if is_allowed { Ok(()) } else { Err(End::Close(Close::TooManyMessages)) }
    }

    /// Returns what the client said next, if it has.
    fn heard(&mut self) -> Result<Option<Heard>, End> {
        if let Some(posted) = &self.posted {
            // What follows the request of a stream means nothing.
            self.input.clear();
            let Some((frame, bytes)) = posted.take() else { return Ok(None) };
            self.allow(bytes)?;
            return Ok(Some(Heard::Posted(frame)));
        }
        if self.input.is_empty() {
            return Ok(None);
        }
        let incoming = self.decoder.decode(&mut self.input);
        let incoming = incoming.map_err(|error| End::Close(Close::Protocol { code: error.close_code(), reason: error.reason() }))?;
        Ok(incoming.map(Heard::OnSocket))
    }

    /// Handles what has been read.
    async fn receive(&mut self) -> Result<(), End> {
        let mut turns = Turns::default();
        while self.hears() && self.conversation.outbox.len() < READ_BYTES {
            let Some(heard) = self.heard()? else { break };
            let policies = &self.conversation.sessions.dispatch.policies.clone();
            let _permit = if heard.is_for_policies() { policies.permit(policies.current().sessions()).await } else { None };
            match heard {
                Heard::OnSocket(incoming) => self.conversation.hear(incoming).await?,
                Heard::Posted(frame) => self.conversation.hear_frame(frame).await?,
            }
            // A policy is called for each of a few hundred tiny frames.
            turns.take().await;
        }
        if self.input.is_empty() {
            // An idle session holds no buffer.
            self.input = BytesMut::new();
        }
        Ok(())
    }
}
