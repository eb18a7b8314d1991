//! Server-sent events (WHATWG HTML, section 9.2): a session whose frames are events of an HTTP response, for networks that block
//! WebSockets. Its client posts what it sends.
//!
//! The response has no end while the session is open, so its connection is taken over from HTTP, as that of a WebSocket is: one task owns
//! the wire, with the same reader and the same bounds.

use std::io::Write as _;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use bytes::BytesMut;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL,
    CONNECTION, CONTENT_TYPE, DATE, HeaderMap, VARY,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};

use super::framing::Framing;
use super::protocol::ClientFrame;
use super::{Connection, HandshakeResult, Opening, Sessions};
use crate::auth::Reason;
use crate::cluster::NotAdmitted;
use crate::net::permits::Client;
use crate::net::problem::{self, Problem};
use crate::net::stream::Takeover;

/// The header that names the last event which a client has read, to go on after it.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The same for clients that set no header on their first request, as browsers' EventSource.
const LAST_EVENT_ID_PARAMETER: &str = "last_event_id";

/// How long a browser may take an answer to a preflight for good: as long as browsers keep one at all.
const PREFLIGHT_S: &str = "7200";

/// The last message that a client read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub epoch: String,
    pub seq: u64,
}

impl Position {
    /// Reads an event's id. What isn't one of this server's is from an epoch that is over.
    fn of(id: &str) -> Position {
        let parts = id.rsplit_once('.').and_then(|(epoch, seq)| Some(Position { epoch: epoch.to_owned(), seq: seq.parse().ok()? }));
        parts.unwrap_or_default()
    }

    /// Returns the position that a request names. The header is newer than the query string, which a browser repeats as it was.
    fn asked(headers: &HeaderMap, query: &str) -> Option<Position> {
        let header = headers.get(LAST_EVENT_ID).map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
        let parameter = || form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == LAST_EVENT_ID_PARAMETER);
        let id = header.or_else(|| parameter().map(|(_, id)| id.into_owned()))?;
        (!id.is_empty()).then(|| Position::of(&id))
    }
}

/// `GET {base}/sse/{user_id}`: a stream of events. It is 200 also if the session ends at once, with the reason in an event: an EventSource
/// gives up at any other status.
pub async fn stream(
    State(sessions): State<Arc<Sessions>>,
    Extension(client): Extension<Client>,
    Extension(takeover): Extension<Takeover>,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    request: Request<axum::body::Body>,
) -> Response {
    let page = Page::of(&sessions, request.headers());
    let query = query.unwrap_or_default();
    let (head, _) = request.into_parts();
    match open(&sessions, client, user, &query, &head).await {
        Err(problem) => {
            let mut response = page.answer(problem.into_response());
            if response.status() == StatusCode::METHOD_NOT_ALLOWED {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET,OPTIONS"));
            }
            response
        }
        Ok(opening) => {
            let opening = Opening { before: page.head(), ..opening };
            let taken = takeover.ask();
            let connection = async move {
                // If the client has not read an earlier answer, the stream would begin within that.
                let (stream, read) = taken.await.ok().filter(|(stream, _)| !stream.is_blocked())?;
                Connection::of(stream, BytesMut::from(read))
            };
            opening.spawn(sessions, connection);
            // The session answers. This future is dropped when the connection is taken over.
            std::future::pending().await
        }
    }
}

/// Opens the session of a stream.
async fn open(
    sessions: &Arc<Sessions>,
    client: Client,
    user: Result<Path<String>, PathRejection>,
    query: &str,
    request: &Parts,
) -> Result<Opening, Problem> {
    let user = problem::user(user, sessions.sockets.user_id_bytes_max.get())?;
    // A HEAD request comes here too, and has no use for events.
    if request.method != Method::GET {
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address takes GET, and then sends events"));
    }
    let (visitor, pass, session_permit) = sessions.visit(client, user, Framing::Sse, query, &request.headers)?;
    let Some(pass) = pass else { return Err(sessions.auth.refused(Reason::NoToken).into()) };
    let entered = match sessions.welcome() {
        Ok(()) => visitor.enter(sessions, pass).await,
        Err(close) => Err(close.into()),
    };
    let entered = match entered {
        Ok(entered) => Ok(entered),
        Err(NotAdmitted::Close(close)) => Err(close),
        Err(NotAdmitted::NotNow(why)) => return Err(why.into()),
    };
    let since = Position::asked(&request.headers, query);
    Ok(Opening { result: HandshakeResult::Decided(entered), framing: Framing::Sse, since, before: Vec::new(), session_permit })
}

/// `POST {base}/sse/{user_id}/{session}`: takes one frame of `signalpost.v1` for a stream. What it leads to comes over the stream.
pub async fn post(
    State(sessions): State<Arc<Sessions>>,
    path: Result<Path<(String, String)>, PathRejection>,
    RawQuery(query): RawQuery,
    request: Request<axum::body::Body>,
) -> Response {
    let page = Page::of(&sessions, request.headers());
    let response = match take(&sessions, path, &query.unwrap_or_default(), request).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(problem) => problem.into_response(),
    };
    page.answer(response)
}

async fn take(
    sessions: &Sessions,
    path: Result<Path<(String, String)>, PathRejection>,
    query: &str,
    request: Request<axum::body::Body>,
) -> Result<(), Problem> {
    let (user, session) = match path {
        Ok(Path((user, session))) => (Ok(Path(user)), session),
        Err(error) => (Err(error), String::new()),
    };
    let user = problem::user(user, sessions.sockets.user_id_bytes_max.get())?;
    // Before the body is read: nobody can guess an id, so only clients whose streams are open can send one.
    let upward = sessions.streams.find(&user, &session).ok_or_else(|| {
        let detail = "there is no open stream of this user with this session; connect again, and take the id from its hello";
        Problem::new(StatusCode::NOT_FOUND, "session", detail)
    })?;
    let (head, body) = request.into_parts();
    let bytes_max = sessions.sockets.message_bytes_max.get();
    let whole = sessions.bodies.read(&head.headers, body, (bytes_max, "sockets.message_bytes_max")).await?;
    let frame = frame(&whole.body)?;
    match &frame {
        // The token that a frame brings takes the place of an older one, which may be over.
        ClientFrame::Auth { token } => drop(sessions.auth.token(&user, token)?),
        _ if sessions.auth.admit(&user, &head.headers, query)?.is_none() => return Err(sessions.auth.refused(Reason::NoToken).into()),
        _ => {}
    }
    upward.push(frame, whole.body.len(), bytes_max).map_err(|_| {
        let detail = "the session has not handled what was posted before: is the stream read? Send the frame again later";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_frames", detail)
    })
}

/// Reads a frame that may go up.
fn frame(body: &[u8]) -> Result<ClientFrame, Problem> {
    let wrong = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, "frame", detail);
    let text = std::str::from_utf8(body).map_err(|_| wrong("a frame is JSON in UTF-8"))?;
    match ClientFrame::parse(text) {
        ClientFrame::Invalid { detail, .. } => Err(wrong(detail)),
        ClientFrame::Resume { .. } | ClientFrame::Begin => {
            Err(wrong("a stream resumes when it begins: by Last-Event-ID, or ?last_event_id= in its address"))
        }
        frame => Ok(frame),
    }
}

/// `OPTIONS` of both addresses: a browser asks before a page of another origin may send a token.
pub async fn preflight(State(sessions): State<Arc<Sessions>>, headers: HeaderMap) -> Response {
    let mut response = Page::of(&sessions, &headers).answer(StatusCode::NO_CONTENT.into_response());
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, last-event-id"),
        (ACCESS_CONTROL_MAX_AGE, PREFLIGHT_S),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The origin of a page, if it is listed: WebSockets need no leave to be read by other origins, and HTTP does. The front has refused the
/// origins that may not use the server at all.
struct Page(Option<HeaderValue>);

impl Page {
    fn of(sessions: &Sessions, headers: &HeaderMap) -> Page {
        Page(sessions.auth.listed(headers).cloned())
    }

    /// Lets the page read an answer.
    fn answer(self, mut response: Response) -> Response {
        self.allow(response.headers_mut());
        response
    }

    fn allow(self, headers: &mut HeaderMap) {
        headers.insert(VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = self.0 {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
    }

    /// Returns the head of a response that ends with its connection (RFC 9112, section 6.3).
    fn head(self) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (CONTENT_TYPE, "text/event-stream"),
            (CACHE_CONTROL, "no-store, no-transform"),
            // nginx passes on each event at once.
            (HeaderName::from_static("x-accel-buffering"), "no"),
            (CONNECTION, "close"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let now = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now());
        if let Some(now) = now.ok().and_then(|now| HeaderValue::try_from(now).ok()) {
            headers.insert(DATE, now);
        }
        self.allow(&mut headers);
        let mut head = b"HTTP/1.1 200 OK\r\n".to_vec();
        for (name, value) in &headers {
            // Writing to a vector can't fail.
            let _ = write!(head, "{name}: ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(epoch: &str, seq: u64) -> Position {
        Position { epoch: epoch.into(), seq }
    }

    #[test]
    fn an_id_is_an_epoch_and_a_seq_and_anything_else_is_of_no_epoch() {
        assert_eq!(Position::of("a-b.42"), position("a-b", 42));
        assert_eq!(Position::of("a.b.0"), position("a.b", 0));
        for other in ["42", "a-b.", "a-b.-1", "a-b.x", ".", "a-b.18446744073709551616", "\u{FFFD}"] {
            assert_eq!(Position::of(other), position("", 0), "{other}");
        }
    }

    #[test]
    fn the_header_is_newer_than_the_query_string_and_nothing_is_no_position() {
        let mut headers = HeaderMap::new();
        assert_eq!(Position::asked(&headers, "locale=de"), None);
        assert_eq!(Position::asked(&headers, "last_event_id="), None);
        assert_eq!(Position::asked(&headers, "last_event_id=e%2D.7"), Some(position("e-", 7)));
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static("e.8"));
        assert_eq!(Position::asked(&headers, "last_event_id=e.7"), Some(position("e", 8)));
    }

    #[test]
    fn the_head_is_whole() {
        let head = String::from_utf8(Page(Some(HeaderValue::from_static("https://app.example.com"))).head()).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n") && !head.contains("\n\n"), "{head}");
        for line in ["content-type: text/event-stream", "access-control-allow-origin: https://app.example.com", "vary: origin"] {
            assert!(head.lines().any(|known| known == line), "{head}");
        }
        let date = head.lines().find_map(|line| line.strip_prefix("date: ")).unwrap();
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    }

    #[test]
    fn what_goes_up_is_a_frame_but_no_resume() {
        assert_eq!(frame(br#"{"type":"ping"}"#).unwrap(), ClientFrame::Ping);
        for (body, says) in [
            (&b"\xFF"[..], "UTF-8"),
            (b"", "JSON object"),
            (br#"{"type":"resume"}"#, "Last-Event-ID"),
            (br#"{"type":"resume","epoch":"e","seq":1}"#, "Last-Event-ID"),
        ] {
            let problem = frame(body).unwrap_err();
            assert_eq!((problem.status, problem.code), (StatusCode::BAD_REQUEST, "frame"));
            assert!(problem.detail.contains(says), "{}", problem.detail);
        }
    }
}
