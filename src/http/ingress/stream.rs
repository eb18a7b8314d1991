//! The producers' stream, `GET {base}/publish`: many events under way over one WebSocket, and their receipts in the same order.
//!
//! A frame holds what the body of a POST would ([`frame`]), and its answer is a frame that holds what the body of the answer would. What has
//! arrived together is published together, as a batch is: one read, one wait for the store, one write. A producer may have `publish.credit`
//! frames under way; beyond that it has stopped counting, and the stream ends. While it doesn't read its answers, nothing more is read from it.

mod passed_on;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::BytesMut;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::cloudevents::Parsed;
use super::frame::{self, Frame};
use super::sampled::{Sampled, Traced};
use super::{Ingress, Item, PublishQuery};
use crate::config::{Config, Scope};
use crate::explain::Budget;
use crate::metrics::Metrics;
use crate::net::permits::ConnectionPermit;
use crate::net::problem::{Document, Problem};
use crate::net::turns::Turns;
use crate::net::websocket::{self, Decoder, Incoming, Opcode, ProtocolError};
use crate::net::wire::Wire;
use crate::session::Connection;
use crate::session::clock::Clock;
use crate::session::handshake::Handshake;
use crate::store::{NotStored, Ticket};
use crate::types::close::Close;
use crate::types::origin::Origin;

/// The subprotocol of a producers' stream.
pub const SUBPROTOCOL: &str = "signalpost.publish.v1";

/// Bytes asked of the socket at a time: some hundred events, which take a few milliseconds together.
const READ_BYTES: usize = 32_768;

/// Bytes of answers whose buffer is kept for the next ones.
const KEPT_BYTES: usize = 262_144;

/// What all streams share.
#[derive(Debug)]
pub struct Streams {
    permits: Arc<Semaphore>,
    /// Set when streams have to end.
    ending: watch::Receiver<bool>,
}

/// One producer's stream.
struct Stream {
    ingress: Arc<Ingress>,
    wire: Wire,
    decoder: Decoder,
    input: BytesMut,
    /// What is still to be written.
    out: Vec<u8>,
    clock: Clock,
    ending: watch::Receiver<bool>,
    /// The API key, which may be withdrawn while the stream is open.
    key: HeaderMap,
    _held: (ConnectionPermit, OwnedSemaphorePermit, Counted),
}

/// A stream in the gauge.
struct Counted(Arc<Metrics>);

/// Why a stream is over.
enum End {
    Close(Close),
    /// The producer closed, with this code if it gave one.
    Closed(Option<u16>),
    /// The connection is gone.
    Lost,
}

/// The answer to one frame.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    One(Item),
    Each(Vec<Item>),
}

/// The frames of one read, until they are answered.
#[derive(Default)]
struct Round<'a> {
    answers: Vec<Answer>,
    /// The ticket of what was handed to the store last.
    ticket: Option<Ticket>,
    sampled: Vec<Sampled<'a>>,
}

impl Streams {
    /// `ending`: set when streams have to end.
    pub fn new(config: &Config, ending: watch::Receiver<bool>) -> Streams {
        Streams { permits: Arc::new(Semaphore::new(config.publish.streams_max.get().min(Semaphore::MAX_PERMITS))), ending }
    }
}

/// `GET {base}/publish`
///
/// # Errors
/// The key lacks the scope, it is no handshake for this subprotocol, there are too many streams, or the server stops.
pub async fn open(State(ingress): State<Arc<Ingress>>, mut request: Request<Body>) -> Result<Response, Problem> {
    ingress.auth.permits(request.headers(), Scope::Publish)?;
    let handshake = Handshake::read(&request, SUBPROTOCOL)?;
    if handshake.subprotocol.is_none() {
        let detail = format!("offer the subprotocol {SUBPROTOCOL}, by Sec-WebSocket-Protocol");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "subprotocol", detail));
    }
    if request.uri().query().is_some() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "query", "a stream takes no query"));
    }
    ingress.node.policies.check()?;
    if *ingress.streams.ending.borrow() {
        return Err(Problem::stopping());
    }
    let max = ingress.node.config.publish.streams_max;
    let permit = ingress.streams.permits.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("there are {max} producers' streams (publish.streams_max); close one, come back later, or POST");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", detail)
    })?;
    let key = request.headers().get(AUTHORIZATION).map(|key| (AUTHORIZATION, key.clone()));
    let (key, upgrade) = (HeaderMap::from_iter(key), hyper::upgrade::on(&mut request));
    tokio::spawn(async move {
        if let Some(connection) = Connection::upgraded(upgrade).await {
            Stream::new(ingress, connection, key, permit).run().await;
        }
    });
    Ok(handshake.response())
}

impl Ingress {
    /// Publishes what a frame holds.
    async fn take<'a>(&'a self, bytes: &[u8], began: Instant, round: &mut Round<'a>) {
        let began = began.into_std();
        let (answer, ticket) = match self.node.policies.check().map_err(Problem::from).and_then(|()| frame::read(bytes, &self.node.config))
        {
            Ok(Frame::One(mut parsed)) => {
                let sampled = self.sample(&mut parsed, began);
                let published = self.dispatch(parsed, PublishQuery::default(), &mut Budget::default()).await;
                round.one(sampled, published)
            }
            Ok(Frame::Batch(mut events)) => {
                let mut sample = |event: &mut Result<Parsed, Problem>| event.as_mut().ok().and_then(|parsed| self.sample(parsed, began));
                let sampled: Vec<Traced<'a>> =
                    if self.node.traces.is_some() { events.iter_mut().map(&mut sample).collect() } else { Vec::new() };
                let (items, ticket) = self.publish_each(events, PublishQuery::default()).await;
                sampled.into_iter().zip(&items).for_each(|(sampled, item)| round.note(sampled, item));
                (Answer::Each(items), ticket)
            }
            Ok(Frame::Tell(tell)) => {
                let sampled = self.node.traces.as_ref().and_then(|traces| Sampled::of_tell(traces, &tell, began));
                let origin = origin(began, sampled.as_deref());
                let told = self.tell_one(tell.user, tell.body, tell.query, tell.id.as_deref(), origin);
                round.one(sampled, told.map(|(receipt, ticket)| (Item::Receipt(Box::new(receipt)), Some(ticket))))
            }
            Err(problem) => {
                self.rejected();
                (Answer::One(Item::Problem(problem.into_document())), None)
            }
        };
        // What was handed over last is stored last.
        round.ticket = ticket.or(round.ticket.take());
        round.answers.push(answer);
    }

    /// Gives an event its origin, and returns it as one that is sampled, if it is.
    fn sample(&self, parsed: &mut Parsed, began: std::time::Instant) -> Traced<'_> {
        let sampled = self.node.traces.as_ref().and_then(|traces| Sampled::of_event(traces, &parsed.event, began));
        parsed.event.origin = origin(began, sampled.as_deref());
        sampled
    }
}

fn origin(began: std::time::Instant, sampled: Option<&Sampled<'_>>) -> Origin {
    Origin { accepted: Some(began), trace: sampled.map(|sampled| sampled.root.context.clone()) }
}

impl<'a> Round<'a> {
    /// Returns the answer to a frame with one part.
    fn one(&mut self, sampled: Traced<'a>, done: Result<(Item, Option<Ticket>), Problem>) -> (Answer, Option<Ticket>) {
        let (item, ticket) = done.unwrap_or_else(|problem| (Item::Problem(problem.into_document()), None));
        self.note(sampled, &item);
        (Answer::One(item), ticket)
    }

    /// Keeps what is sampled until it is answered.
    fn note(&mut self, sampled: Traced<'a>, item: &Item) {
        self.sampled.extend(sampled.map(|mut sampled| {
            sampled.answer(item);
            *sampled
        }));
    }

    /// Waits until everything is stored, counts, and appends the answers.
    async fn answer(self, began: Instant, metrics: &Metrics, out: &mut Vec<u8>) {
        self.answers(began, metrics, |text| websocket::encode(Opcode::Text, text, out)).await;
    }

    /// Waits until everything is stored, counts, and calls `each` with the answers in their order.
    async fn answers(mut self, began: Instant, metrics: &Metrics, mut each: impl FnMut(&[u8])) {
        if let Some(ticket) = self.ticket.take()
            && let Err(why) = ticket.stored().await
        {
            self.take_back(&why);
        }
        let took = began.elapsed();
        let mut text = Vec::new();
        for answer in &self.answers {
            match answer {
                Answer::One(Item::Problem(document)) => metrics.problems.with_label_values(&[document.code()]).inc(),
                _ => metrics.publish_seconds.observe(took),
            }
            text.clear();
            // Receipts and problems are structs of strings and numbers: serializing them can't fail.
            let _ = serde_json::to_writer(&mut text, answer);
            each(&text);
        }
        self.sampled.into_iter().for_each(Sampled::streamed);
    }

    /// Answers every frame that something was published for with the reason why it is not known to be stored.
    fn take_back(&mut self, why: &NotStored) {
        let document = || -> Document { Problem::from(*why).into_document() };
        for answer in &mut self.answers {
            if !matches!(answer, Answer::One(Item::Problem(_))) {
                *answer = Answer::One(Item::Problem(document()));
            }
        }
        self.sampled.iter_mut().for_each(|sampled| sampled.problem(&document()));
    }
}

impl Stream {
    fn new(ingress: Arc<Ingress>, connection: Connection, key: HeaderMap, permit: OwnedSemaphorePermit) -> Stream {
        let Connection { wire, permit: connected, input } = connection;
        let metrics = ingress.node.metrics.clone();
        metrics.publish_streams.inc();
        Stream {
            wire,
            decoder: Decoder::new(ingress.limits().body_bytes_max.get()),
            input,
            out: Vec::new(),
            clock: Clock::new(Instant::now(), None),
            ending: ingress.streams.ending.clone(),
            ingress,
            key,
            _held: (connected, permit, Counted(metrics)),
        }
    }

    async fn run(mut self) {
        let Err(end) = self.converse().await;
        match end {
            End::Close(close) => websocket::encode_close(close.code(), &close.reason(), &mut self.out),
            // The closing handshake echoes the producer's code.
            End::Closed(Some(code)) => websocket::encode_close(code, "", &mut self.out),
            End::Closed(None) => websocket::encode(Opcode::Close, &[], &mut self.out),
            End::Lost => return,
        }
        let deadline = *self.ingress.node.config.sockets.close_deadline_ms;
        self.wire.part(&self.out, deadline).await;
    }

    /// Reads, publishes and answers until the stream is over.
    async fn converse(&mut self) -> Result<std::convert::Infallible, End> {
        self.hello();
        let timer = sleep_until(self.due());
        tokio::pin!(timer);
        loop {
            self.round().await?;
            self.write().await?;
            // What had arrived is answered. What is not answered is not published, and the producer sends it to the next server.
            if *self.ending.borrow() {
                return Err(End::Close(Close::Restart));
            }
            tokio::select! {
                _ = self.ending.changed() => {}
                readable = self.wire.readable() => {
                    readable.map_err(|_| End::Lost)?;
                    self.read()?;
                }
                () = &mut timer => {
                    self.tick()?;
                    timer.as_mut().reset(self.due());
                }
            }
        }
    }

    /// Says what the producer may do.
    fn hello(&mut self) {
        #[derive(Serialize)]
        struct Hello<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            /// Frames that may be under way without an answer.
            credit: usize,
            limits: Limits<'a>,
        }
        #[derive(Serialize)]
        struct Limits<'a> {
            frame_bytes_max: usize,
            event_bytes_max: usize,
            batch_max: usize,
            ping_interval_ms: &'a crate::config::Milliseconds,
            pong_deadline_ms: &'a crate::config::Milliseconds,
        }
        let Config { events, sockets, publish, .. } = &*self.ingress.node.config;
        let limits = Limits {
            frame_bytes_max: events.body_bytes_max.get(),
            event_bytes_max: events.event_bytes_max.get(),
            batch_max: events.batch_max.get(),
            ping_interval_ms: &sockets.ping_interval_ms,
            pong_deadline_ms: &sockets.pong_deadline_ms,
        };
        let hello = Hello { kind: "hello", credit: publish.credit.get(), limits };
        websocket::encode(Opcode::Text, &serde_json::to_vec(&hello).unwrap_or_default(), &mut self.out);
    }

    /// Publishes what has arrived, and appends the answers.
    async fn round(&mut self) -> Result<(), End> {
        let Stream { ingress, decoder, input, out, .. } = self;
        if input.is_empty() {
            return Ok(());
        }
        let (began, credit) = (Instant::now(), ingress.node.config.publish.credit.get());
        let (mut round, mut turns) = (Round::default(), Turns::default());
        // Another node decides about them.
        let (follows, mut held) = (ingress.node.cluster.follows(), Vec::new());
        let end = loop {
            let bytes = match decoder.decode(input) {
                Ok(None) => break None,
                Ok(Some(Incoming::Text(bytes) | Incoming::Binary(bytes))) => bytes,
                Ok(Some(Incoming::Ping(payload))) => {
                    websocket::encode(Opcode::Pong, &payload, out);
                    continue;
                }
                Ok(Some(Incoming::Pong(_))) => continue,
                Ok(Some(Incoming::Close { code, .. })) => break Some(End::Closed(code)),
                Err(error) => {
                    round.answers.extend((error == ProtocolError::MessageTooBig).then(|| too_large(ingress)));
                    break Some(End::Close(Close::Protocol { code: error.close_code(), reason: error.reason() }));
                }
            };
            if round.answers.len() + held.len() == credit {
                break Some(End::Close(Close::TooManyInFlight));
            }
            if follows {
                held.push(bytes);
                continue;
            }
            ingress.take(&bytes, began, &mut round).await;
            turns.take().await;
        };
        ingress.pass_on(&held, began, out).await;
        round.answer(began, &ingress.node.metrics, out).await;
        end.map_or(Ok(()), Err)
    }

    /// Writes everything. A producer that doesn't read is given up.
    async fn write(&mut self) -> Result<(), End> {
        let deadline: Duration = *self.ingress.node.config.sockets.write_deadline_ms;
        let mut written = 0;
        while let Some(rest) = self.out.get(written..).filter(|rest| !rest.is_empty()) {
            match self.wire.try_write(rest) {
                Ok(0) => return Err(End::Lost),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => match timeout(deadline, self.wire.writable()).await {
                    Ok(writable) => writable.map_err(|_| End::Lost)?,
                    Err(_) => {
                        // Its last bytes are written after the rest of these.
                        self.out.drain(..written);
                        return Err(End::Close(Close::SlowConsumer));
                    }
                },
                Err(_) => return Err(End::Lost),
            }
        }
        self.out.clear();
        self.out.shrink_to(KEPT_BYTES);
        Ok(())
    }

    /// Reads what the socket has, once.
    fn read(&mut self) -> Result<(), End> {
        self.input.reserve(READ_BYTES);
        match self.wire.try_read_buf(&mut self.input) {
            Ok(0) => Err(End::Lost),
            Ok(_) => {
                self.clock.hear(Instant::now());
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(End::Lost),
        }
    }

    /// Looks at the clock, and whether the key is still good.
    fn tick(&mut self) -> Result<(), End> {
        if !self.ingress.auth.has(&self.key, Scope::Publish) {
            return Err(End::Close(Close::Unauthorized));
        }
        let now = Instant::now();
        // A producer that has nothing to say is not idle.
        self.clock.message = now;
        if self.clock.tick(&self.ingress.node.config.sockets, now).map_err(End::Close)? {
            websocket::encode(Opcode::Ping, &[], &mut self.out);
        }
        Ok(())
    }

    fn due(&self) -> Instant {
        self.clock.due(&self.ingress.node.config.sockets)
    }
}

/// Returns the answer to a frame that is not read any more.
fn too_large(ingress: &Ingress) -> Answer {
    let max = ingress.limits().body_bytes_max;
    let detail = format!("the frame is over the limit of {max} bytes (events.body_bytes_max)");
    Answer::One(Item::Problem(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).into_document()))
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.publish_streams.dec();
    }
}
