//! The entry of a socket whose handshake had no token: its first frame has to bring one.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::BytesMut;
use serde::Deserialize;
use tokio::time::timeout;

use crate::net::websocket::{Decoder, Incoming};
use crate::net::wire::Wire;
use crate::types::close::Close;

const READ_BYTES: usize = 2048;

#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    token: String,
}

/// The token in a frame `{"type":"auth","token":"…"}`; `None` where it is another.
pub fn shown(frame: &[u8]) -> Option<String> {
    serde_json::from_slice::<Frame>(frame).ok().filter(|frame| frame.kind == "auth").map(|frame| frame.token)
}

/// The token in the first frame, within its deadline and its bytes. What follows it stays in `input`.
///
/// # Errors
/// It didn't come in time, or something else did.
pub async fn token(wire: &mut Wire, input: &mut BytesMut, (deadline, bytes_max): (Duration, usize)) -> Result<String, Close> {
    timeout(deadline, first(wire, input, bytes_max)).await.unwrap_or(Err(Close::Unauthorized))
}

async fn first(wire: &mut Wire, input: &mut BytesMut, bytes_max: usize) -> Result<String, Close> {
    let mut decoder = Decoder::new(bytes_max);
    loop {
        match decoder.decode(input) {
            Ok(None) => {}
            // Nothing is answered yet, and RFC 6455 lets a pong take its time.
            Ok(Some(Incoming::Ping(_) | Incoming::Pong(_))) => continue,
            Ok(Some(Incoming::Text(text))) => return shown(&text).ok_or(Close::Unauthorized),
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
