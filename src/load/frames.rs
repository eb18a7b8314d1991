//! WebSocket frames from the client's side: a server's frames in, masked ones out.
//!
//! Not `websocket.rs`, which is the server's side and takes masked frames only.

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const LENGTH_IN_TWO_BYTES: u8 = 126;
const LENGTH_IN_EIGHT_BYTES: u8 = 127;

/// Opcode, payload, and how many bytes of the input it takes.
pub type Frame<'a> = (u8, &'a [u8], usize);

/// The opcode and payload of the first frame in `input`, and how many bytes it takes; `None` asks for more. This server sends its
/// messages in one frame each, so anything else is an error.
///
/// # Errors
/// A fragment, a masked frame or a reserved bit.
pub fn first_frame(input: &[u8]) -> Result<Option<Frame<'_>>, &'static str> {
    let [first, second, rest @ ..] = input else { return Ok(None) };
    if first & 0xF0 != FINAL || second & MASKED != 0 {
        return Err("the server sent a frame that is a fragment, masked, or of an unknown extension");
    }
    let (length, rest) = match *second {
        LENGTH_IN_TWO_BYTES => match rest.split_first_chunk() {
            Some((length, rest)) => (usize::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        LENGTH_IN_EIGHT_BYTES => match rest.split_first_chunk() {
            Some((length, rest)) => (usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX), rest),
            None => return Ok(None),
        },
        length => (usize::from(length), rest),
    };
    let header = input.len() - rest.len();
    Ok(rest.get(..length).map(|payload| (first & 0x0F, payload, header + length)))
}

/// Appends a whole message, or a control frame, as a client sends it.
pub fn client_frame(opcode: u8, payload: &[u8], mask: u32, out: &mut Vec<u8>) {
    out.push(FINAL | opcode);
    match payload.len() {
        // The arms' bounds make the casts exact.
        length @ ..126 => out.push(MASKED | length as u8),
        length @ ..65_536 => {
            out.push(MASKED | LENGTH_IN_TWO_BYTES);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(MASKED | LENGTH_IN_EIGHT_BYTES);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = mask.to_be_bytes();
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::websocket::{Decoder, Incoming, Opcode, encode};

    #[test]
    fn a_servers_frames_are_read_however_they_are_cut() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let mut bytes = Vec::new();
            encode(Opcode::Text, &payload, &mut bytes);
            let whole = bytes.len();
            assert_eq!(first_frame(&bytes[..whole - 1]), Ok(None));
            assert_eq!(first_frame(&bytes[..1]), Ok(None));
            bytes.push(0x81);
            assert_eq!(first_frame(&bytes), Ok(Some((TEXT, &payload[..], whole))));
        }
        assert!(first_frame(&[0x01, 0]).is_err(), "a fragment");
        assert!(first_frame(&[0x81, 0x80]).is_err(), "a masked frame");
    }

    #[test]
    fn the_server_understands_a_clients_frames() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let mut bytes = Vec::new();
            client_frame(TEXT, &payload, 0x1234_5678, &mut bytes);
            let decoded = Decoder::new(70_000).decode(&mut bytes::BytesMut::from(&bytes[..]));
            assert_eq!(decoded, Ok(Some(Incoming::Text(payload.into()))));
        }
    }
}
