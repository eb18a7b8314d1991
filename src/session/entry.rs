//! The entry of a socket whose handshake had no token: its first frame has to bring one.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::BytesMut;
use serde::Deserialize;
use tokio::time::timeout;

use crate::close::Close;
use crate::websocket::{Decoder, Incoming};
use crate::wire::Wire;

/// Bytes of the first frame. Tokens have one or two KiB; nobody is known yet who could ask for more.
const FRAME_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES: usize = 2048;

#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    token: String,
}

/// The token in the first frame, `{"type":"auth","token":"…"}`. What follows it stays in `input`.
///
/// # Errors
/// It didn't come in time, or something else did.
pub async fn token(wire: &mut Wire, input: &mut BytesMut, deadline: Duration) -> Result<String, Close> {
    timeout(deadline, first(wire, input)).await.unwrap_or(Err(Close::Unauthorized))
}

async fn first(wire: &mut Wire, input: &mut BytesMut) -> Result<String, Close> {
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    loop {
        match decoder.decode(input) {
            Ok(None) => {}
            // Nothing is answered yet, and RFC 6455 lets a pong take its time.
            Ok(Some(Incoming::Ping(_) | Incoming::Pong(_))) => continue,
            Ok(Some(Incoming::Text(text))) => {
                return match serde_json::from_slice::<Frame>(&text) {
                    Ok(frame) if frame.kind == "auth" => Ok(frame.token),
                    _ => Err(Close::Unauthorized),
                };
            }
            Ok(Some(Incoming::Binary(_) | Incoming::Close { .. })) => return Err(Close::Unauthorized),
            Err(error) => return Err(Close::Protocol { code: error.close_code(), reason: error.reason() }),
        }
        wire.readable().await.map_err(|_| Close::Unauthorized)?;
        input.reserve(READ_BYTES);
        match wire.try_read_buf(input) {
            Ok(0) => return Err(Close::Unauthorized),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(Close::Unauthorized),
            Ok(_) | Err(_) => {}
        }
    }
}
