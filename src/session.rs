//! A session: one task that owns one connection, from the handshake to the close. This file opens it, and [`sse`] does so for streams; its
//! loop is in [`socket`], its messages and answers are in [`conversation`].

pub mod clock;
mod conversation;
pub mod first_frame;
pub mod framing;
pub mod handshake;
mod leaving;
mod outbox;
pub mod protocol;
mod socket;
pub mod sse;
mod taken;
mod upward;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http::{HeaderMap, Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::auth::{Auth, Identity};
use crate::cluster::{Cluster, NotAdmitted};
use crate::config;
use crate::dispatch::Dispatch;
use crate::format::Format;
use crate::metrics::Metrics;
use crate::model::mailbox::{Head, Reader};
use crate::net::bodies::Bodies;
use crate::net::permits::{Client, ConnectionPermit, Exhausted, SessionPermit, SessionPermits};
use crate::net::problem::{self, Problem};
use crate::net::rate::Bucket;
use crate::net::stream::Stream;
use crate::net::wire::Wire;
use crate::registry::SessionHandle;
use crate::traces::Traces;
use crate::types::close::Close;
use crate::types::event::UserId;
use conversation::{Conversation, End};
use framing::Framing;
use handshake::Handshake;
use protocol::V1;
use socket::Session;
use sse::Position;
pub use upward::Streams;

/// What all sessions share.
#[derive(Debug)]
pub struct Sessions {
    pub auth: Arc<Auth>,
    pub bodies: Arc<Bodies>,
    /// Where clients of streams post what they send.
    pub streams: Streams,
    /// Whether the server accepts new sessions.
    pub ready: Arc<AtomicBool>,
    /// Notified when it no longer does.
    pub stopping: Arc<Notify>,
    pub handshakes: Mutex<Bucket>,
    pub permits: SessionPermits,
    pub dispatch: Arc<Dispatch>,
    pub cluster: Cluster,
    pub format: Arc<Format>,
    pub metrics: Arc<Metrics>,
    /// `None` if nothing is traced.
    pub traces: Option<Arc<Traces>>,
    pub sockets: config::Sockets,
    pub limits: config::Mailboxes,
    /// The window over which a stop spreads the clients' return.
    pub return_within_ms: u32,
}

/// `GET {base}/ws/{user_id}`
///
/// # Errors
/// The request is not a WebSocket handshake, its user id or token is invalid, an attribute is over its limit, there are too many
/// handshakes or sessions, or the server stops.
pub async fn connect(
    State(sessions): State<Arc<Sessions>>,
    Extension(client): Extension<Client>,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    mut request: Request<axum::body::Body>,
) -> Result<Response, Problem> {
    let user = problem::user(user, sessions.sockets.user_id_bytes_max.get())?;
    let handshake = Handshake::read(&request, V1)?;
    if !sessions.ready.load(Ordering::Relaxed) {
        return Err(Problem::stopping());
    }
    let query = query.unwrap_or_default();
    let framing = Framing::of(handshake.subprotocol);
    let (visitor, pass, session_permit) = sessions.visit(client, user, framing, &query, request.headers())?;
    // Entered before the 101, so that the session gets every message that is posted after the client knows that it is connected.
    let result = match pass {
        Some(pass) => match visitor.enter(&sessions, pass).await {
            Err(NotAdmitted::NotNow(why)) => return Err(why.into()),
            Err(NotAdmitted::Close(close)) => HandshakeResult::Decided(Err(close)),
            Ok(entered) => HandshakeResult::Decided(Ok(entered)),
        },
        None => HandshakeResult::Asked(visitor),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    Opening { result, framing, since: None, before: Vec::new(), session_permit }.spawn(sessions, Connection::upgraded(upgrade));
    Ok(handshake.response::<axum::body::Body>().into_response())
}

impl Sessions {
    /// Checks what a session has to pass before policies are asked. Returns its client, what the request's token says, if there is one or none
    /// is asked for, and a permit.
    fn visit(
        &self,
        client: Client,
        user: UserId,
        framing: Framing,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<(Visitor, Option<Identity>, SessionPermit), Problem> {
        self.dispatch.policies.check()?;
        let per_second = self.sockets.handshakes_per_second_max.get();
        if !self.handshakes.lock().take(1, per_second, per_second) {
            let detail = format!("more than {per_second} handshakes a second (sockets.handshakes_per_second_max); come back later");
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_handshakes", detail));
        }
        let mut attributes = handshake::attributes(query, &self.sockets)?;
        attributes.retain(|(name, _)| self.auth.is_for_clients(name));
        let pass = self.auth.admit(&user, headers, query)?;
        let session_permit = self.permits.take(client).map_err(|full| self.crowded(full))?;
        Ok((Visitor { user, framing, attributes }, pass, session_permit))
    }

    /// Returns when a client comes back after a restart.
    fn return_after_ms(&self, random: u32) -> u32 {
        random.checked_rem(self.return_within_ms).unwrap_or_default()
    }

    /// # Errors
    /// The server is stopping.
    fn welcome(&self) -> Result<(), Close> {
        if self.ready.load(Ordering::Relaxed) { Ok(()) } else { Err(Close::Restart) }
    }

    fn crowded(&self, exhausted: Exhausted) -> Problem {
        let config::Sockets { sessions_max, per_address_max, .. } = self.sockets;
        match exhausted {
            Exhausted::All => {
                let detail = format!("there are {sessions_max} sessions (sockets.sessions_max); come back later");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", detail)
            }
            Exhausted::Client => {
                let detail =
                    format!("this address has {per_address_max} sessions (sockets.per_address_max); close one, or come back later");
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_sessions_of_address", detail)
            }
        }
    }
}

/// A client that asks for a session, as its request describes it.
struct Visitor {
    user: UserId,
    framing: Framing,
    attributes: Vec<(String, String)>,
}

/// The result of a handshake.
enum HandshakeResult {
    Decided(Result<Entered, Close>),
    /// The first frame has to bring a token.
    Asked(Visitor),
}

/// A session that the policies have admitted and that has no socket yet.
struct Entered {
    reader: Reader,
    /// The position of the mailbox when the client connected.
    head: Head,
    ends: Option<SystemTime>,
}

impl Visitor {
    /// Opens a session, asks the policies, and makes it one of the user's sessions. A client that is refused replaces no other session.
    async fn enter(mut self, sessions: &Sessions, pass: Identity) -> Result<Entered, NotAdmitted> {
        self.attributes.extend(pass.attributes);
        let handle = SessionHandle::new(self.user, self.framing.subprotocol(), self.framing.resumes(), self.attributes);
        let (reader, head) = sessions.cluster.open(&sessions.dispatch, &handle).await?;
        // Checked once a stop can find the session: a stop that did not find it made the server unready before this check.
        match sessions.welcome() {
            Ok(()) => Ok(Entered { reader, head, ends: pass.ends }),
            Err(close) => {
                sessions.cluster.closed(&sessions.dispatch, &reader, close.code());
                Err(close.into())
            }
        }
    }

    /// Waits for the token in the first frame, but not while the server stops.
    async fn identify(self, sessions: &Sessions, wire: &mut Wire, input: &mut BytesMut) -> Result<Entered, End> {
        let stopping = sessions.stopping.notified();
        tokio::pin!(stopping);
        stopping.as_mut().enable();
        sessions.welcome().map_err(End::Close)?;
        let identity = tokio::select! {
            biased;
            () = stopping => return Err(End::Close(Close::Restart)),
            // Dropped together with the socket if the stop comes first.
            identity = first_frame::identify(&sessions.auth, &self.user, wire, input) => identity?,
        };
        self.enter(sessions, identity).await.map_err(|refused| match refused {
            NotAdmitted::Close(close) => End::Close(close),
            NotAdmitted::NotNow(_) => End::Close(Close::Restart),
        })
    }
}

/// A connection that HTTP has handed over.
pub struct Connection {
    pub wire: Wire,
    pub permit: ConnectionPermit,
    /// The bytes that the client sent after its request.
    pub input: BytesMut,
}

impl Connection {
    fn of(stream: Stream, mut input: BytesMut) -> Option<Connection> {
        let (mut wire, permit) = stream.into_parts();
        wire.take_read(&mut input).ok()?;
        Some(Connection { wire, permit, input })
    }

    pub async fn upgraded(upgrade: OnUpgrade) -> Option<Connection> {
        let parts = upgrade.await.ok()?.downcast::<TokioIo<Stream>>().ok()?;
        Connection::of(parts.io.into_inner(), BytesMut::from(&parts.read_buf[..]))
    }
}

/// A session that is about to begin.
struct Opening {
    result: HandshakeResult,
    framing: Framing,
    /// The last message that the client has read, if its request says so.
    since: Option<Position>,
    /// What is written before anything else.
    before: Vec<u8>,
    session_permit: SessionPermit,
}

impl Opening {
    /// Begins and runs the session. `connection`: what HTTP hands over.
    fn spawn(self, sessions: Arc<Sessions>, connection: impl Future<Output = Option<Connection>> + Send + 'static) {
        // Boxed, so that its state is not part of every idle session.
        let beginning = Box::pin(self.begin(sessions, connection));
        tokio::spawn(async move {
            if let Some(session) = beginning.await {
                session.run().await;
            }
        });
    }

    /// Takes the connection over from HTTP. Returns `None` if it did not become a session; it is closed then.
    async fn begin(self, sessions: Arc<Sessions>, connection: impl Future<Output = Option<Connection>>) -> Option<Box<Session>> {
        let Opening { result, framing, since, before, session_permit } = self;
        let Some(Connection { mut wire, permit, mut input }) = connection.await else {
            // The client left before it read the answer, but the policies have admitted it, so they are told.
            if let HandshakeResult::Decided(Ok(Entered { reader, .. })) = result {
                sessions.cluster.closed(&sessions.dispatch, &reader, conversation::LOST);
            }
            return None;
        };
        let entered = match result {
            HandshakeResult::Decided(entered) => entered.map_err(End::Close),
            HandshakeResult::Asked(visitor) => visitor.identify(&sessions, &mut wire, &mut input).await,
        };
        match entered {
            Ok(Entered { reader, head, ends }) => {
                let mut conversation = Conversation::new(sessions, reader, framing, ends);
                conversation.outbox.frames().1.extend_from_slice(&before);
                conversation.greet(head, since);
                Some(Session::new(conversation, wire, input, (permit, session_permit)))
            }
            Err(end) => {
                if !matches!(end, End::Lost) {
                    let mut out = before;
                    // If there is no session, only the close code says why.
                    let after_ms = (framing == Framing::Sse).then(|| sessions.return_after_ms(fastrand::u32(..)));
                    end.encode(framing, after_ms, &mut out);
                    wire.part(&out, *sessions.sockets.close_deadline_ms).await;
                }
                sessions.metrics.sessions_closed.with_label_values(&[&end.label()]).inc();
                None
            }
        }
    }
}
