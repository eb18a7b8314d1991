//! Bodies of requests, within their bounds: the bytes of one, those of all that are under way, and a deadline.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config;
use crate::net::problem::{CONTENT_ENCODING, Problem};

/// Reads bodies.
#[derive(Debug)]
pub struct Bodies {
    /// A permit is a byte of `http.bodies_bytes_max`.
    room: Semaphore,
    bytes_max: NonZeroUsize,
    deadline: Duration,
}

/// A request's body, which holds its room until it is dropped.
#[derive(Debug)]
pub struct Whole<'a> {
    pub body: Bytes,
    _room: Option<SemaphorePermit<'a>>,
}

impl Bodies {
    pub fn new(http: &config::Http) -> Bodies {
        Bodies {
            room: Semaphore::new(http.bodies_bytes_max.get().min(Semaphore::MAX_PERMITS)),
            bytes_max: http.bodies_bytes_max,
            deadline: *http.body_deadline_ms,
        }
    }

    /// Reads a whole body within three bounds: its own limit, which is the setting `name`; the limit on all bodies; and the deadline.
    ///
    /// # Errors
    /// It is compressed, over a limit, late, or broken.
    pub async fn read<B>(&self, headers: &HeaderMap, body: B, limit: (usize, &str)) -> Result<Whole<'_>, Problem>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        check_encoding(headers)?;
        let mut collected = pin!(self.collect(body, limit));
        // Most bodies have come with their heads, and need no timer.
        let read = match poll_fn(|context| Poll::Ready(collected.as_mut().poll(context))).await {
            Poll::Ready(read) => read,
            Poll::Pending => tokio::time::timeout(self.deadline, collected).await.map_err(|_| {
                let detail = format!("the body did not arrive within {} ms (http.body_deadline_ms)", self.deadline.as_millis());
                Problem::new(StatusCode::REQUEST_TIMEOUT, "body_deadline", detail)
            })?,
        };
        let (body, room) = read?;
        Ok(Whole { body, _room: room })
    }

    /// Reads a body part by part. Each part but the first, which the connection's own buffer had room for, takes room before the next one
    /// is waited for, so that small bodies are not refused because of large ones.
    async fn collect<B>(&self, body: B, (bytes_max, name): (usize, &str)) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Problem>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut body = Limited::new(body, bytes_max);
        let (mut first, mut rest, mut room) = (Bytes::new(), BytesMut::new(), None::<SemaphorePermit>);
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else { break };
            let frame = frame.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    let detail = format!("the body is over the limit of {bytes_max} bytes ({name})");
                    return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
                }
                Problem::new(StatusCode::BAD_REQUEST, "body", format!("the body can't be read: {error}"))
            })?;
            let Ok(part) = frame.into_data() else { continue };
            if first.is_empty() {
                first = part;
                continue;
            }
            let permit = self.room.try_acquire_many(u32::try_from(part.len()).unwrap_or(u32::MAX)).map_err(|_| {
                let detail = format!("more than {} bytes of bodies are under way (http.bodies_bytes_max); come back later", self.bytes_max);
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_bodies", detail)
            })?;
            match &mut room {
                Some(room) => room.merge(permit),
                None => {
                    room = Some(permit);
                    rest.extend_from_slice(&first);
                }
            }
            rest.extend_from_slice(&part);
        }
        Ok((if rest.is_empty() { first } else { rest.freeze() }, room))
    }
}

/// Checks that a body is not compressed: its bytes are the message.
fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    // A walk over a request's few names costs less than a look-up.
    if !headers.keys().any(|name| *name == http::header::CONTENT_ENCODING) {
        return Ok(());
    }
    let values = headers.get_all(http::header::CONTENT_ENCODING).iter().map(|value| value.to_str().unwrap_or("an unreadable name"));
    let coding = values.flat_map(|value| value.split(',')).map(str::trim).find(|coding| !is_identity(coding));
    let Some(coding) = coding else { return Ok(()) };
    let detail = format!("the content coding {coding:?} is not served: send the body as it is, without Content-Encoding");
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, CONTENT_ENCODING, detail))
}

fn is_identity(coding: &str) -> bool {
    coding.is_empty() || coding.eq_ignore_ascii_case("identity")
}
