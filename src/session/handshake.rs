//! The opening handshake of RFC 6455, section 4.2: what the request must say, and what the session learns from it.

use http::header::{
    CONNECTION, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, Response, StatusCode};

use super::protocol::V1;
use crate::config::Sockets;
use crate::problem::Problem;
use crate::websocket;

/// A request that may become a session.
#[derive(Debug)]
pub struct Handshake {
    accept: String,
    pub subprotocol: Option<&'static str>,
}

impl Handshake {
    /// # Errors
    /// What the request lacks.
    pub fn read(method: &Method, headers: &HeaderMap) -> Result<Handshake, Problem> {
        if method != Method::GET || !has_token(headers, UPGRADE, "websocket") || !has_token(headers, CONNECTION, "upgrade") {
            return Err(Problem::new(
                StatusCode::UPGRADE_REQUIRED,
                "websocket_required",
                "this is a WebSocket address: connect with a WebSocket client, as `Connection: Upgrade` and `Upgrade: websocket` say",
            ));
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
            let detail = "Sec-WebSocket-Version must be 13";
            return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket_version", detail));
        }
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24) else {
            let detail = "Sec-WebSocket-Key must be 16 bytes in base64";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "websocket_key", detail));
        };
        let subprotocol = has_token(headers, SEC_WEBSOCKET_PROTOCOL, V1).then_some(V1);
        Ok(Handshake { accept: websocket::accept_key(key.as_bytes()), subprotocol })
    }

    /// The 101 that makes it a WebSocket.
    pub fn response<B: Default>(&self) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(subprotocol) = self.subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
        }
        response
    }
}

/// The session attributes in a query string: those that the configuration names; the first of each.
///
/// # Errors
/// A value is over its limit.
pub fn attributes(query: &str, sockets: &Sockets) -> Result<Vec<(String, String)>, Problem> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let known = sockets.attributes.iter().any(|known| known == name) && !attributes.iter().any(|(seen, _)| seen == name);
        if !known {
            continue;
        }
        let value = value.replace('+', " ");
        let value = percent_encoding::percent_decode_str(&value).decode_utf8_lossy().into_owned();
        if value.len() > sockets.attribute_bytes_max {
            let detail = format!("the attribute {name} has {} bytes, over the limit of {}", value.len(), sockets.attribute_bytes_max);
            return Err(Problem::new(StatusCode::BAD_REQUEST, "attribute_too_long", detail));
        }
        attributes.push((name.to_owned(), value));
    }
    Ok(attributes)
}

/// Whether a comma-separated header names this token.
fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name);
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}
