//! WebSocket frames as a client sees them: it reads a server's frames and writes masked ones (RFC 6455 §5).
//!
//! This is not the server's codec, so that a mistake in one is noticed by the other.

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const LENGTH_IN_TWO_BYTES: u8 = 126;
const LENGTH_IN_EIGHT_BYTES: u8 = 127;

/// A frame's opcode and payload, and its length with the header.
pub type Frame<'a> = (u8, &'a [u8], usize);

/// Reads the first frame in `input`. Returns `None` if it is incomplete. The servers under test send each message in one
/// frame, so a fragment is an error.
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

/// Appends a message or a control frame in one masked frame.
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

    /// The lengths at which the header changes, each with the header that RFC 6455 §5.2 prescribes for an unmasked text frame.
    const HEADERS: [(usize, &[u8]); 5] = [
        (0, &[0x81, 0]),
        (125, &[0x81, 125]),
        (126, &[0x81, 126, 0, 126]),
        (65_535, &[0x81, 126, 0xFF, 0xFF]),
        (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ];

    #[test]
    fn a_servers_frame_is_read_once_it_is_complete() {
        for (length, header) in HEADERS {
            let payload = vec![b'x'; length];
            let mut bytes = [header, &payload[..]].concat();
            let whole = bytes.len();
            assert_eq!(first_frame(&bytes[..whole - 1]), Ok(None), "{length}");
            assert_eq!(first_frame(&bytes[..1]), Ok(None), "{length}");
            bytes.push(0x81);
            assert_eq!(first_frame(&bytes), Ok(Some((TEXT, &payload[..], whole))), "{length}");
        }
        assert!(first_frame(&[0x01, 0]).is_err(), "a fragment");
        assert!(first_frame(&[0x81, 0x80]).is_err(), "a masked frame");
        assert!(first_frame(&[0xC1, 0]).is_err(), "a reserved bit");
    }

    #[test]
    fn a_clients_frame_is_masked() {
        // RFC 6455 §5.7: a masked text frame that contains "Hello".
        let mut bytes = Vec::new();
        client_frame(TEXT, b"Hello", 0x37fa_213d, &mut bytes);
        assert_eq!(bytes, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        for (length, header) in HEADERS {
            let mut bytes = Vec::new();
            client_frame(TEXT, &vec![b'x'; length], 0x1234_5678, &mut bytes);
            let mut expected = header.to_vec();
            expected[1] |= MASKED;
            expected.extend([0x12, 0x34, 0x56, 0x78]);
            expected.extend([b'x' ^ 0x12, b'x' ^ 0x34, b'x' ^ 0x56, b'x' ^ 0x78].iter().cycle().take(length));
            assert!(bytes == expected, "{length}");
        }
    }
}
