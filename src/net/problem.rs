//! Errors over HTTP: RFC 9457 problem documents with a stable `code`, and a sentence that says what to do.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

use crate::types::event::UserId;

/// Bytes of `detail`. It may quote the request, which can be longer.
pub const DETAIL_BYTES_MAX: usize = 1024;

/// `Retry-After` in seconds, for requests that can't be served now.
const RETRY_AFTER_S: &str = "2";

/// The code of a body in a content coding that is not served.
pub const CONTENT_ENCODING: &str = "content_encoding";

/// Every code, in the order of the alphabet. They are stable, and explained in docs/protocol.md and docs/openapi.yaml.
const CODES: &[&str] = &[
    "attribute",
    "attribute_too_long",
    "batch_too_large",
    "body",
    "body_deadline",
    "body_too_large",
    "candidate_not_written",
    "candidate_unfit",
    "candidate_unknown",
    "catching_up",
    "collapse_key",
    "configuration_invalid",
    "content_encoding",
    "data",
    "dead_letter",
    "event_format",
    "event_id",
    "event_too_large",
    "frame",
    "group",
    "host",
    "idempotency_key",
    "json",
    "media_type",
    "method_not_allowed",
    "metrics",
    "missing_attribute",
    "nats_unreachable",
    "no_leader",
    "not_found",
    "origin",
    "plugins_unreadable",
    "policy_missing",
    "policy_refused",
    "policy_unknown",
    "query",
    "session",
    "several_events",
    "sink_missing",
    "specversion",
    "stopping",
    "store_behind",
    "store_failed",
    "store_full",
    "store_late",
    "subprotocol",
    "text",
    "too_many_bodies",
    "too_many_frames",
    "too_many_handshakes",
    "too_many_observers",
    "too_many_recordings",
    "too_many_sessions",
    "too_many_sessions_of_address",
    "too_many_streams",
    "unauthorized",
    "under_way",
    "unknown_event",
    "unknown_group",
    "user_id",
    "websocket_key",
    "websocket_required",
    "websocket_version",
];

/// Why a request can't be served.
#[derive(Clone, Debug)]
pub struct Problem {
    pub status: StatusCode,
    /// A stable name, for programs.
    pub code: &'static str,
    /// A sentence for people: what is wrong and what to do.
    pub detail: String,
}

/// The code of a response's problem, in the response's extensions: it is counted outside the routes.
#[derive(Clone, Copy, Debug)]
pub struct ProblemCode(pub &'static str);

/// The document. `title` is the status's reason phrase.
#[derive(Debug, Serialize)]
pub struct Document {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: String,
}

impl Document {
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns whether the server is to blame, and not the request.
    pub fn is_of_server(&self) -> bool {
        self.status >= 500
    }
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        debug_assert!(CODES.contains(&code), "{code} is not in CODES: add it there, to docs/protocol.md and to docs/openapi.yaml");
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Problem { status, code, detail }
    }

    /// Returns the problem of a server that is stopping.
    pub fn stopping() -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is stopping")
    }

    pub fn into_document(self) -> Document {
        Document {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
        }
    }
}

/// Returns the user that a path names.
///
/// # Errors
/// The path is not UTF-8, or the user's id is invalid.
pub fn user(path: Result<Path<String>, PathRejection>, bytes_max: usize) -> Result<UserId, Problem> {
    path.map_err(|error| error.body_text()).and_then(|Path(user)| UserId::new(&user, bytes_max)).map_err(invalid_user)
}

/// Returns the problem of an invalid user id.
pub fn invalid_user(reason: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "user_id", reason)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // A struct of strings and a number: serializing it can't fail.
        let (status, code) = (self.status, self.code);
        let body = serde_json::to_vec(&self.into_document()).unwrap_or_default();
        let mut response = (status, body).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in headers(status, code) {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response.extensions_mut().insert(ProblemCode(code));
        response
    }
}

/// Returns the headers that say what would be served instead, or when.
fn headers(status: StatusCode, code: &str) -> &'static [(&'static str, &'static str)] {
    match status {
        // RFC 9110, section 15.5.22, and RFC 6455, section 4.2.2.
        StatusCode::UPGRADE_REQUIRED => &[("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13")],
        // RFC 9110, section 15.5.16.
        StatusCode::UNSUPPORTED_MEDIA_TYPE if code == CONTENT_ENCODING => &[("accept-encoding", "identity")],
        StatusCode::UNAUTHORIZED => &[("www-authenticate", "Bearer")],
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => &[("retry-after", RETRY_AFTER_S)],
        _ => &[],
    }
}
