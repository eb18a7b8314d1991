//! One request of a sink: what it carries, how it is signed, and what the response means.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use super::lanes::{Batch, Pending};
use super::setup::Setup;
use super::{Sink, pace};
use crate::net::client::Response;

/// The outcome of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted,
    /// The response says that these events will never be taken.
    Refused(Arc<str>),
    /// The response says that nothing will be taken any more.
    Gone,
    Failed {
        why: Arc<str>,
        retry_after: Option<Duration>,
    },
}

impl Sink {
    /// Sends a batch once.
    pub(super) async fn attempt(&self, batch: &Batch) -> Outcome {
        let began = Instant::now();
        let setup = self.setup.load_full();
        let (headers, body) = setup.request(batch);
        let deadline = *setup.limits.attempt_deadline_ms;
        let responded = match timeout(deadline, setup.client.post(&headers, &body)).await {
            Ok(responded) => responded,
            Err(_) => Err(format!("didn't answer within {} ms (attempt_deadline_ms)", deadline.as_millis())),
        };
        self.counters.seconds.observe(began.elapsed().as_secs_f64());
        let outcome = match responded {
            Ok(response) => judge(&response, self.model.clock.now_ms()),
            Err(why) => Outcome::Failed { why: format!("it {why}").into(), retry_after: None },
        };
        self.counters.attempt(&outcome);
        outcome
    }
}

impl Setup {
    /// Returns the headers and the body of a request. The time, and so the signature, is another one in each attempt.
    fn request(&self, batch: &Batch) -> (HeaderMap, Bytes) {
        let (media_type, body) = match (self.limits.batch_max.get(), batch.events.as_slice()) {
            (1, [event]) => ("application/cloudevents+json", event.message.body.as_bytes().to_vec()),
            (_, events) => {
                let texts: Vec<&[u8]> = events.iter().map(|event| event.message.body.as_bytes()).collect();
                ("application/cloudevents-batch+json", [b"[", texts.join(&b","[..]).as_slice(), b"]"].concat())
            }
        };
        let id = webhook_id(&batch.events);
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = self.secrets.sign(&id, now_s, &body);
        let mut headers = HeaderMap::with_capacity(5);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("signalpost/", env!("CARGO_PKG_VERSION"))));
        headers.insert("webhook-timestamp", HeaderValue::from(now_s));
        // Letters, digits and signs that are all allowed in a header.
        for (name, value) in [("webhook-id", id), ("webhook-signature", signature)] {
            headers.extend(HeaderValue::try_from(value).ok().map(|value| (http::HeaderName::from_static(name), value)));
        }
        (headers, body.into())
    }
}

/// Returns what a response means.
fn judge(response: &Response, now_ms: u64) -> Outcome {
    let status = response.status;
    let why = |note: &str| -> Arc<str> { format!("it answered {status}{note}").into() };
    let failed = |note: &str| {
        let retry_after = response.retry_after.as_deref().and_then(|value| pace::retry_after(value, now_ms));
        Outcome::Failed { why: why(note), retry_after }
    };
    match status {
        StatusCode::GONE => Outcome::Gone,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => failed(""),
        _ if status.is_success() => Outcome::Accepted,
        _ if status.is_client_error() => Outcome::Refused(why("")),
        _ if status.is_redirection() => failed("; redirections are not followed"),
        _ => failed(""),
    }
}

/// Returns the id of a request: the same for the same events, and different for others. It is a digest of their sources and ids, since an id
/// of a producer's may have characters that a header can't.
fn webhook_id(events: &[Pending]) -> String {
    let mut digest = Sha256::new();
    for event in events {
        for text in [&*event.source, event.message.event_id.as_str()] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
    }
    let digest: [u8; 32] = digest.finalize().into();
    let (half, _) = digest.split_at(digest.len() / 2);
    format!("msg_{}", HEXLOWER.encode(half))
}
