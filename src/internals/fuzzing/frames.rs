//! Frames that clients send over a WebSocket.

use std::iter::{repeat, successors};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::BytesMut;
use serde_json::value::RawValue;

use crate::net::websocket::{Decoder, Incoming, Opcode, ProtocolError, encode, encode_close};
use crate::session::framing::Framing;
use crate::session::protocol::{ClientFrame, Want};
use crate::types::event::Body;

/// Bytes that the decoder may leave unread while it waits for more: a header, and a control frame's payload without its last byte.
const UNREAD_BYTES_MAX: usize = 130;

/// Decodes a connection. The input is half of the limit on a message's bytes, a seed for how the network cuts the stream, and the stream.
pub fn frames(input: &[u8]) {
    let [most, seed, stream @ ..] = input else { return };
    let most = 2 * usize::from(*most);
    let whole = understood(stream, most, repeat(usize::MAX));
    assert_eq!(whole, understood(stream, most, repeat(1)), "a byte at a time");
    assert_eq!(whole, understood(stream, most, cuts(*seed)), "in pieces");
    for incoming in &whole.0 {
        sane(incoming, most);
        assert_eq!(understood(&masked(incoming), most, repeat(usize::MAX)), (vec![incoming.clone()], None), "written and read again");
        if let Incoming::Text(text) = incoming {
            // UTF-8, as was proven just now.
            client_frame(std::str::from_utf8(text).unwrap_or_default());
        }
    }
}

/// Returns the sizes of pieces, of 1 to 16 bytes each.
fn cuts(seed: u8) -> impl Iterator<Item = usize> {
    let states = successors(Some(u32::from(seed)), |state| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)));
    states.map(|state| 1 + (state >> 28) as usize)
}

/// Decodes a stream that arrives in pieces of these sizes.
fn understood(stream: &[u8], most: usize, mut sizes: impl Iterator<Item = usize>) -> (Vec<Incoming>, Option<ProtocolError>) {
    let (mut decoder, mut input, mut seen) = (Decoder::new(most), BytesMut::new(), Vec::new());
    let mut rest = stream;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(sizes.next().unwrap_or(usize::MAX).min(rest.len()));
        rest = later;
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Err(error) => return (seen, Some(error)),
                Ok(None) => break,
                Ok(Some(incoming)) => seen.push(incoming),
            }
            // Bytes after a close frame have no meaning.
            if let Some(Incoming::Close { .. }) = seen.last() {
                return (seen, None);
            }
        }
        assert!(input.len() <= UNREAD_BYTES_MAX, "{} bytes are left unread", input.len());
    }
    (seen, None)
}

fn sane(incoming: &Incoming, most: usize) {
    match incoming {
        Incoming::Text(text) => assert!(text.len() <= most && std::str::from_utf8(text).is_ok()),
        Incoming::Binary(bytes) => assert!(bytes.len() <= most),
        Incoming::Ping(payload) | Incoming::Pong(payload) => assert!(payload.len() <= 125),
        Incoming::Close { code, reason } => {
            assert!(reason.len() <= 123 && std::str::from_utf8(reason).is_ok());
            assert!(code.is_some() || reason.is_empty());
        }
    }
}

/// Returns a message as a client sends it: the server's own frame, with a mask of zeros.
fn masked(incoming: &Incoming) -> Vec<u8> {
    let mut frame = Vec::new();
    match incoming {
        Incoming::Text(text) => encode(Opcode::Text, text, &mut frame),
        Incoming::Binary(bytes) => encode(Opcode::Binary, bytes, &mut frame),
        Incoming::Ping(payload) => encode(Opcode::Ping, payload, &mut frame),
        Incoming::Pong(payload) => encode(Opcode::Pong, payload, &mut frame),
        Incoming::Close { code: None, .. } => encode(Opcode::Close, &[], &mut frame),
        Incoming::Close { code: Some(code), reason } => encode_close(*code, std::str::from_utf8(reason).unwrap_or_default(), &mut frame),
    }
    let end = header_len(&frame);
    if let Some(length) = frame.get_mut(1) {
        *length |= 0x80;
    }
    frame.splice(end..end, [0; 4]);
    frame
}

/// Returns the length of the header of a frame that isn't masked.
fn header_len(frame: &[u8]) -> usize {
    match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    }
}

/// Reads a text as a session does, with the subprotocol and without.
fn client_frame(text: &str) {
    let again = |frame: ClientFrame, text: String| assert_eq!(ClientFrame::parse(&text), frame, "{text}");
    match ClientFrame::parse(text) {
        ClientFrame::Ack { seq } => again(ClientFrame::Ack { seq }, format!(r#"{{"type":"ack","seq":{seq}}}"#)),
        ClientFrame::Auth { token } => {
            let quoted = serde_json::Value::from(token.as_str());
            again(ClientFrame::Auth { token }, format!(r#"{{"type":"auth","token":{quoted}}}"#));
        }
        ClientFrame::Begin => again(ClientFrame::Begin, r#"{"type":"resume"}"#.into()),
        ClientFrame::Resume { epoch, seq } => {
            let quoted = serde_json::Value::from(epoch.as_str());
            again(ClientFrame::Resume { epoch, seq }, format!(r#"{{"type":"resume","epoch":{quoted},"seq":{seq}}}"#));
        }
        ClientFrame::Message(body, want) => {
            enveloped(&body);
            let Body::Json(data) = &body else { panic!("{body:?} is no JSON") };
            let id = want.id().map(|id| format!(",\"id\":{}", serde_json::Value::from(id))).unwrap_or_default();
            let wanted = if matches!(want, Want::Taken(_)) { r#","want":"taken""# } else { "" };
            let text = format!(r#"{{"type":"message","data":{data}{id}{wanted}}}"#);
            again(ClientFrame::Message(body, want), text);
        }
        ClientFrame::Ping => again(ClientFrame::Ping, r#"{"type":"ping"}"#.into()),
        ClientFrame::Invalid { detail, .. } => assert!(!detail.is_empty()),
    }
    enveloped(&Body::sniff(text.to_owned()));
    enveloped(&Body::Binary(text.as_bytes().to_owned()));
}

/// Checks that a body fits into an envelope: one JSON object in one text frame, with the body unchanged.
fn enveloped(body: &Body) {
    #[derive(serde::Deserialize)]
    struct Envelope<'a> {
        seq: u64,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        data_base64: Option<String>,
    }

    let mut frame = Vec::new();
    Framing::V1.message("", 7, body, &mut frame);
    let payload = frame.get(header_len(&frame)..).unwrap_or_default();
    let envelope: Envelope<'_> = serde_json::from_slice(payload).unwrap_or_else(|error| panic!("{body:?}: {error}"));
    assert_eq!(envelope.seq, 7);
    let mut event = Vec::new();
    Framing::Sse.message("e", 7, body, &mut event);
    let event = String::from_utf8(event).unwrap_or_else(|error| panic!("{body:?}: {error}"));
    let data = event.strip_prefix("id: e.7\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
    let data = data.filter(|data| !data.contains(['\n', '\r'])).unwrap_or_else(|| panic!("not one event: {event:?}"));
    let parsed = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok();
    assert_eq!(parsed(data.as_bytes()), parsed(payload), "{event:?}");
    let data = envelope.data.map(RawValue::get).unwrap_or_default();
    match body {
        Body::Json(text) => assert!(data == text && super::is_json(text), "{text}"),
        Body::Text(text) => assert_eq!(serde_json::from_str::<String>(data).ok().as_ref(), Some(text)),
        Body::Binary(bytes) => {
            let decoded = BASE64_STANDARD.decode(envelope.data_base64.unwrap_or_default());
            assert_eq!(decoded.ok().as_ref(), Some(bytes));
        }
    }
}
