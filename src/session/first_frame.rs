//! The token of a socket whose handshake had none: its first frame has to bring one.

use std::io::ErrorKind;

use bytes::BytesMut;
use serde::Deserialize;
use tokio::time::timeout;

use super::conversation::End;
use crate::auth::{Auth, Identity, Reason};
use crate::net::websocket::{Decoder, Incoming};
use crate::net::wire::Wire;
use crate::types::close::Close;
use crate::types::event::UserId;

/// Bytes asked of the socket at a time; enough for a client's usual message.
pub const READ_BYTES: usize = 2048;

#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    token: String,
}

/// Returns the token in a frame `{"type":"auth","token":"…"}`, or `None` if the frame is another.
pub fn shown(frame: &[u8]) -> Option<String> {
    // serde would read a list as the members in their order.
    let is_object = frame.trim_ascii_start().starts_with(b"{");
    let frame = is_object.then(|| serde_json::from_slice::<Frame>(frame).ok()).flatten()?;
    (frame.kind == "auth").then_some(frame.token)
}

/// Waits for the first frame, and returns what its token says of this user. What follows the frame stays in `input`.
///
/// # Errors
/// The frame did not come in time, was not a token, or its token is not valid for this user; or the client went away.
pub async fn identify(auth: &Auth, user: &UserId, wire: &mut Wire, input: &mut BytesMut) -> Result<Identity, End> {
    let (deadline, bytes_max) = auth.first_frame();
    let refuse = |reason| {
        auth.refused(reason);
        End::Close(Close::Unauthorized)
    };
    match timeout(deadline, first(wire, input, bytes_max)).await {
        Ok(Ok(Some(token))) => auth.token(user, &token).map_err(|_| End::Close(Close::Unauthorized)),
        Ok(Ok(None)) => Err(refuse(Reason::FirstFrame)),
        Ok(Err(ended)) => Err(ended),
        Err(_) => Err(refuse(Reason::FirstFrameLate)),
    }
}

/// Reads the first frame, and returns its token, or `None` if it has none.
async fn first(wire: &mut Wire, input: &mut BytesMut, bytes_max: usize) -> Result<Option<String>, End> {
    let mut decoder = Decoder::new(bytes_max);
    loop {
        match decoder.decode(input) {
            Ok(None) => {}
            // Nothing is answered yet, and RFC 6455 lets a pong take its time.
            Ok(Some(Incoming::Ping(_) | Incoming::Pong(_))) => continue,
            Ok(Some(Incoming::Text(text))) => return Ok(shown(&text)),
            Ok(Some(Incoming::Binary(_))) => return Ok(None),
            Ok(Some(Incoming::Close { code, .. })) => return Err(End::Closed(code)),
            Err(error) => return Err(End::Close(Close::Protocol { code: error.close_code(), reason: error.reason() })),
        }
        wire.readable().await.map_err(|_| End::Lost)?;
        input.reserve(READ_BYTES);
        match wire.try_read_buf(input) {
            Ok(0) => return Err(End::Lost),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(End::Lost),
            Ok(_) | Err(_) => {}
        }
    }
}
