//! The frames of a WebSocket as a server sees them ([RFC 6455]): bytes in, messages out, and back.
//!
//! Nothing here reads or writes a socket, answers a ping or decides when to close: the task that owns the connection
//! does, with what [`Decoder::decode`] returns. No extension is negotiated, so there is no compression. An idle
//! connection costs its [`Decoder`] and nothing on the heap, because only an incomplete message is kept.
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455

use std::fmt;
use std::str;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes, BytesMut};
use sha1::{Digest as _, Sha1};

/// The most payload bytes of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: u8 = 125;
/// The most bytes of a close frame's reason, after the two bytes of its code.
const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX as usize - 2;
/// A length of 126 means that the real length follows in two bytes, and 127 that it follows in eight.
const LENGTH_IN_TWO_BYTES: u8 = 126;
const LENGTH_IN_EIGHT_BYTES: u8 = 127;
/// Bytes of the header of an unmasked frame.
const HEADER_BYTES_MAX: usize = 10;
const FINAL_BIT: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0F;
const MASK_BIT: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7F;
/// The server hashes the client's key and this, to prove that it speaks WebSocket (RFC 6455 section 1.3).
const HANDSHAKE_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// One message or control frame from the client: reassembled and unmasked.
///
/// The bytes may share the buffer they were read into. Copy what is kept for long, or it keeps the whole buffer alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A text message, validated as UTF-8.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// A ping, to be answered by a pong with the same payload. It may arrive in the middle of a fragmented message.
    Ping(Bytes),
    /// A pong, solicited or not.
    Pong(Bytes),
    /// The client's last frame; what follows it on the connection has no meaning and must not be decoded.
    Close {
        /// One of the codes that RFC 6455 section 7.4 lets an endpoint send; `None` when the client gave none.
        code: Option<u16>,
        /// Valid UTF-8 of at most 123 bytes, empty without a code.
        reason: Bytes,
    },
}

/// Why a connection must be closed, with the code and reason of the close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// RFC 6455 section 5.1.
    FrameNotMasked,
    /// RFC 6455 section 5.2: no extension that uses the bits was negotiated.
    ReservedBitSet,
    /// RFC 6455 section 5.2.
    OpcodeReserved,
    /// RFC 6455 section 5.5.
    ControlFrameFragmented,
    /// RFC 6455 section 5.5.
    ControlFrameTooLong,
    /// RFC 6455 section 5.2.
    LengthNotMinimal,
    /// RFC 6455 section 5.2: the top bit of a length of eight bytes is 0.
    LengthTopBitSet,
    /// RFC 6455 section 5.4.
    ContinuationWithoutStart,
    /// RFC 6455 section 5.4.
    MessageInsideMessage,
    /// RFC 6455 section 5.5.1: a close frame's payload is empty or starts with a code of two bytes.
    CloseCodeCutShort,
    /// RFC 6455 section 7.4: the code is unassigned or must not be sent.
    CloseCodeInvalid,
    /// RFC 6455 section 8.1.
    TextNotUtf8,
    /// RFC 6455 section 7.4.1: longer than the bound given to [`Decoder::new`].
    MessageTooBig,
}

impl ProtocolError {
    /// Returns the status code for the close frame (RFC 6455 section 7.4.1).
    pub fn close_code(&self) -> u16 {
        match self {
            Self::TextNotUtf8 => 1007,
            Self::MessageTooBig => 1009,
            Self::FrameNotMasked
            | Self::ReservedBitSet
            | Self::OpcodeReserved
            | Self::ControlFrameFragmented
            | Self::ControlFrameTooLong
            | Self::LengthNotMinimal
            | Self::LengthTopBitSet
            | Self::ContinuationWithoutStart
            | Self::MessageInsideMessage
            | Self::CloseCodeCutShort
            | Self::CloseCodeInvalid => 1002,
        }
    }

    /// Returns the reason for the close frame, short enough to fit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::FrameNotMasked => "a client masks its frames",
            Self::ReservedBitSet => "a reserved bit is set and no extension is negotiated",
            Self::OpcodeReserved => "the opcode is reserved",
            Self::ControlFrameFragmented => "a control frame is not fragmented",
            Self::ControlFrameTooLong => "a control frame carries at most 125 bytes",
            Self::LengthNotMinimal => "a length is written in as few bytes as possible",
            Self::LengthTopBitSet => "the top bit of a length is 0",
            Self::ContinuationWithoutStart => "there is no message to continue",
            Self::MessageInsideMessage => "a message starts before the last one ended",
            Self::CloseCodeCutShort => "a close code has two bytes",
            Self::CloseCodeInvalid => "the close code is not one to send",
            Self::TextNotUtf8 => "text is UTF-8",
            Self::MessageTooBig => "the message is too big",
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for ProtocolError {}

/// The type of a frame (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// The next fragment of a message.
    Continuation,
    /// A text message, or its first fragment.
    Text,
    /// A binary message, or its first fragment.
    Binary,
    /// The sender's last frame.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Opcode, ProtocolError> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return Err(ProtocolError::OpcodeReserved),
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Decodes the bytes of one client. Lives as long as the connection.
#[derive(Debug)]
pub struct Decoder {
    /// The most bytes of a message, over all its fragments.
    message_bytes_max: usize,
    message: Option<PartialMessage>,
}

impl Decoder {
    /// Returns a decoder for a new connection that refuses messages of more than `message_bytes_max` bytes.
    pub fn new(message_bytes_max: usize) -> Decoder {
        Decoder { message_bytes_max, message: None }
    }

    /// Takes the next complete message or control frame off the front of `input`; `Ok(None)` asks for more bytes.
    ///
    /// `input` keeps only an incomplete header or control frame, fewer than 131 bytes. Payload of an incomplete
    /// message moves into the decoder as it arrives, so that invalid text fails before its frame is complete. Memory is at
    /// most twice what has arrived: a declared length is only compared with the limit. Fragments without payload take no
    /// memory, so their number is not bounded.
    ///
    /// # Errors
    ///
    /// The connection must be closed with the error's code, and neither it nor this decoder may be read again.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Incoming>, ProtocolError> {
        loop {
            if let Some(message) = &mut self.message {
                message.take_payload(input)?;
                if message.frame_bytes_left > 0 {
                    return Ok(None);
                }
            }
            if let Some(message) = self.message.take_if(|message| message.frame_is_final) {
                return message.finish().map(Some);
            }
            let Some(header) = Header::parse(input)? else {
                return Ok(None);
            };
            self.admit(&header)?;
            let frame_is_whole = input.len() - header.header_len >= header.payload_len;
            if header.opcode.is_control() && !frame_is_whole {
                return Ok(None);
            }
            // Neither call below panics: the header was parsed from the front of `input`, and a whole frame is in it.
            input.advance(header.header_len);
            let is_all = header.opcode.is_control() || (header.is_final && self.message.is_none());
            if is_all && frame_is_whole {
                let mut payload = input.split_to(header.payload_len);
                unmask(&mut payload, header.mask);
                return incoming(header.opcode, payload.freeze()).map(Some);
            }
            self.message.get_or_insert_with(|| PartialMessage::new(header.opcode == Opcode::Text)).open_frame(&header);
        }
    }

    /// Checks whether a frame of this type and length may come now.
    fn admit(&self, header: &Header) -> Result<(), ProtocolError> {
        match (header.opcode, &self.message) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(()),
            (Opcode::Continuation, None) => return Err(ProtocolError::ContinuationWithoutStart),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::MessageInsideMessage);
            }
            (Opcode::Continuation, Some(_)) | (Opcode::Text | Opcode::Binary, None) => {}
        }
        let taken = self.message.as_ref().map_or(0, |message| message.bytes.len());
        if header.payload_len > self.message_bytes_max.saturating_sub(taken) {
            return Err(ProtocolError::MessageTooBig);
        }
        Ok(())
    }
}

/// A message whose end has not arrived.
#[derive(Debug)]
struct PartialMessage {
    is_text: bool,
    bytes: Vec<u8>,
    /// The length of the beginning of `bytes` that is valid UTF-8; only used for text.
    utf8_len: usize,
    /// Payload bytes of the current frame that have not arrived; 0 between two frames.
    frame_bytes_left: usize,
    frame_is_final: bool,
    /// The current frame's mask, rotated so that its first byte applies to the next byte to arrive.
    frame_mask: [u8; 4],
}

impl PartialMessage {
    fn new(is_text: bool) -> PartialMessage {
        PartialMessage { is_text, bytes: Vec::new(), utf8_len: 0, frame_bytes_left: 0, frame_is_final: false, frame_mask: [0; 4] }
    }

    fn open_frame(&mut self, header: &Header) {
        self.frame_bytes_left = header.payload_len;
        self.frame_is_final = header.is_final;
        self.frame_mask = header.mask;
    }

    fn take_payload(&mut self, input: &mut BytesMut) -> Result<(), ProtocolError> {
        let arrived = input.len().min(self.frame_bytes_left);
        // Neither `split_at_mut` nor `advance` panics: `arrived` is at most the length of `input`.
        let (payload, _) = input.split_at_mut(arrived);
        unmask(payload, self.frame_mask);
        self.bytes.extend_from_slice(payload);
        input.advance(arrived);
        self.frame_bytes_left -= arrived;
        self.frame_mask.rotate_left(arrived % 4);
        if self.is_text { self.prove_utf8() } else { Ok(()) }
    }

    /// Validates the bytes after the last complete character. A character that the end cuts off may still be completed.
    fn prove_utf8(&mut self) -> Result<(), ProtocolError> {
        // In range: `utf8_len` counts bytes of `bytes`, which only grows.
        match str::from_utf8(self.bytes.get(self.utf8_len..).unwrap_or_default()) {
            Ok(_) => self.utf8_len = self.bytes.len(),
            Err(error) if error.error_len().is_none() => self.utf8_len += error.valid_up_to(),
            Err(_) => return Err(ProtocolError::TextNotUtf8),
        }
        Ok(())
    }

    fn finish(self) -> Result<Incoming, ProtocolError> {
        if !self.is_text {
            return Ok(Incoming::Binary(self.bytes.into()));
        }
        if self.utf8_len < self.bytes.len() {
            return Err(ProtocolError::TextNotUtf8);
        }
        Ok(Incoming::Text(self.bytes.into()))
    }
}

/// A frame's header, checked as far as is possible without knowing the frames before it.
struct Header {
    opcode: Opcode,
    is_final: bool,
    mask: [u8; 4],
    payload_len: usize,
    header_len: usize,
}

impl Header {
    /// Parses the header at the front of `input`; `None` if it is incomplete and valid so far.
    fn parse(input: &[u8]) -> Result<Option<Header>, ProtocolError> {
        let [first, second, rest @ ..] = input else {
            return Ok(None);
        };
        if first & RESERVED_BITS != 0 {
            return Err(ProtocolError::ReservedBitSet);
        }
        let opcode = Opcode::from_bits(first & OPCODE_BITS)?;
        let is_final = first & FINAL_BIT != 0;
        if opcode.is_control() && !is_final {
            return Err(ProtocolError::ControlFrameFragmented);
        }
        if second & MASK_BIT == 0 {
            return Err(ProtocolError::FrameNotMasked);
        }
        let short_len = second & LENGTH_BITS;
        if opcode.is_control() && short_len > CONTROL_BYTES_MAX {
            return Err(ProtocolError::ControlFrameTooLong);
        }
        let Some((payload_len, rest)) = parse_length(short_len, rest)? else {
            return Ok(None);
        };
        let Some((mask, rest)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let header_len = input.len() - rest.len();
        Ok(Some(Header { opcode, is_final, mask: *mask, payload_len, header_len }))
    }
}

/// Returns the payload's length and what follows it in `rest`; `None` if the length is incomplete.
fn parse_length(short_len: u8, rest: &[u8]) -> Result<Option<(usize, &[u8])>, ProtocolError> {
    let (length, shorter_form_max, rest) = match short_len {
        LENGTH_IN_TWO_BYTES => {
            let Some((length, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            (u64::from(u16::from_be_bytes(*length)), u64::from(CONTROL_BYTES_MAX), rest)
        }
        LENGTH_IN_EIGHT_BYTES => {
            let Some((length, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            (u64::from_be_bytes(*length), u64::from(u16::MAX), rest)
        }
        _ => return Ok(Some((usize::from(short_len), rest))),
    };
    if length <= shorter_form_max {
        return Err(ProtocolError::LengthNotMinimal);
    }
    if length > u64::MAX >> 1 {
        return Err(ProtocolError::LengthTopBitSet);
    }
    // Fails only on 32-bit machines.
    let length = usize::try_from(length).map_err(|_| ProtocolError::MessageTooBig)?;
    Ok(Some((length, rest)))
}

/// Returns the content of an unfragmented frame.
fn incoming(opcode: Opcode, payload: Bytes) -> Result<Incoming, ProtocolError> {
    match opcode {
        Opcode::Text if str::from_utf8(&payload).is_err() => Err(ProtocolError::TextNotUtf8),
        Opcode::Text => Ok(Incoming::Text(payload)),
        Opcode::Binary => Ok(Incoming::Binary(payload)),
        Opcode::Ping => Ok(Incoming::Ping(payload)),
        Opcode::Pong => Ok(Incoming::Pong(payload)),
        Opcode::Close => incoming_close(payload),
        // `Decoder::admit` has refused this already; the type can't express that.
        Opcode::Continuation => Err(ProtocolError::ContinuationWithoutStart),
    }
}

fn incoming_close(mut payload: Bytes) -> Result<Incoming, ProtocolError> {
    if payload.is_empty() {
        return Ok(Incoming::Close { code: None, reason: payload });
    }
    let code = payload.try_get_u16().map_err(|_| ProtocolError::CloseCodeCutShort)?;
    // The registered codes without those that must not be sent (1005, 1006, 1015) or are reserved (1004), and the
    // ranges for frameworks and applications (RFC 6455 section 7.4, IANA "WebSocket Close Code Number").
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(ProtocolError::CloseCodeInvalid);
    }
    if str::from_utf8(&payload).is_err() {
        return Err(ProtocolError::TextNotUtf8);
    }
    Ok(Incoming::Close { code: Some(code), reason: payload })
}

/// Removes the mask (RFC 6455 section 5.3), eight bytes at a time because every payload byte passes here.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let mask_twice = [a, b, c, d, a, b, c, d];
    let mask_word = u64::from_ne_bytes(mask_twice);
    let (words, rest) = payload.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ mask_word).to_ne_bytes();
    }
    for (byte, mask_byte) in rest.iter_mut().zip(mask_twice) {
        *byte ^= mask_byte;
    }
}

/// Appends one final unmasked frame to `out`. A control frame's payload is at most 125 bytes.
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    encode_header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends only the header of a final unmasked frame, for a payload whose parts the caller appends.
pub fn encode_header(opcode: Opcode, payload_len: usize, out: &mut Vec<u8>) {
    debug_assert!(!opcode.is_control() || payload_len <= usize::from(CONTROL_BYTES_MAX));
    // Reserves room for the whole frame, so that `out` grows once.
    out.reserve(HEADER_BYTES_MAX + payload_len);
    out.push(FINAL_BIT | opcode.bits());
    if let Ok(length @ ..LENGTH_IN_TWO_BYTES) = u8::try_from(payload_len) {
        out.push(length);
    } else if let Ok(length) = u16::try_from(payload_len) {
        out.push(LENGTH_IN_TWO_BYTES);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(LENGTH_IN_EIGHT_BYTES);
        out.extend_from_slice(&(payload_len as u64).to_be_bytes());
    }
}

/// Appends a close frame. The reason is cut at a character boundary to the 123 bytes that a control frame has left.
///
/// `code` must be one that an endpoint may send: for a close without a code, [`encode`] an empty payload.
pub fn encode_close(code: u16, reason: &str, out: &mut Vec<u8>) {
    // A character boundary is always a valid place to slice.
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    encode_header(Opcode::Close, 2 + reason.len(), out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Returns `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2). The handshake has to check the key.
pub fn accept_key(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(HANDSHAKE_GUID).finalize())
}

#[cfg(test)]
mod tests;
