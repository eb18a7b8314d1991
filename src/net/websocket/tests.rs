use super::*;

const LIMIT: usize = 100_000;
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
const FINAL_TEXT: u8 = 0x81;
const FIRST_TEXT: u8 = 0x01;
const FIRST_BINARY: u8 = 0x02;
const FINAL_BINARY: u8 = 0x82;
const NEXT: u8 = 0x00;
const LAST: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

/// Returns a frame as a client sends it, with any first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_header(Opcode::Binary, payload.len(), &mut frame);
    frame[0] = first;
    frame[1] |= MASK_BIT;
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn text(text: &str) -> Incoming {
    Incoming::Text(Bytes::copy_from_slice(text.as_bytes()))
}

fn binary(payload: &[u8]) -> Incoming {
    Incoming::Binary(Bytes::copy_from_slice(payload))
}

/// What was understood, the error it ended in, and after how many bytes.
type Outcome = (Vec<Incoming>, Option<(ProtocolError, usize)>);

/// Decodes `input` in chunks of the given lengths, repeated.
fn decode_chunks(input: &[u8], mut chunk_len: impl FnMut() -> usize) -> Outcome {
    let (mut decoder, mut buffer, mut seen, mut fed) = (Decoder::new(LIMIT), BytesMut::new(), Vec::new(), 0);
    while fed < input.len() {
        let end = input.len().min(fed + chunk_len());
        buffer.extend_from_slice(&input[fed..end]);
        fed = end;
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(incoming)) => seen.push(incoming),
                Ok(None) => break,
                Err(error) => return (seen, Some((error, fed))),
            }
        }
        assert!(buffer.len() < 131, "{} bytes are left behind", buffer.len());
    }
    (seen, None)
}

/// Returns the outcome of feeding byte by byte, after checking that every other way to cut `input` gives the same.
fn outcome(input: &[u8]) -> Outcome {
    let fine = decode_chunks(input, || 1);
    // Seeded, so that the chunks are the same in every run.
    let mut random = fastrand::Rng::with_seed(6455);
    for round in 0..50 {
        let longest = [input.len().max(1), 3, 20, 4096][round % 4];
        let coarse = decode_chunks(input, || if round == 0 { longest } else { random.usize(1..=longest) });
        assert_eq!(coarse.0, fine.0, "round {round}");
        assert_eq!(coarse.1.map(|(error, _)| error), fine.1.map(|(error, _)| error), "round {round}");
    }
    fine
}

fn understood(frames: &[Vec<u8>]) -> Vec<Incoming> {
    let (seen, error) = outcome(&frames.concat());
    assert_eq!(error, None);
    seen
}

fn refused(frames: &[Vec<u8>]) -> ProtocolError {
    let (_, error) = outcome(&frames.concat());
    error.expect("the input was accepted").0
}

#[test]
fn the_examples_of_the_rfc_are_understood() {
    let hello = vec![0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58];
    assert_eq!(understood(&[hello]), [text("Hello")]);
    assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn messages_of_every_length_form_arrive_whole() {
    for len in [0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, LIMIT] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let seen = understood(&[frame(FINAL_BINARY, &payload), frame(FINAL_TEXT, b"next")]);
        assert!(seen == [binary(&payload), text("next")], "{len} bytes");
    }
}

#[test]
fn fragments_become_one_message_and_control_frames_may_come_between() {
    let frames = [
        frame(FIRST_TEXT, "a κό".as_bytes()),
        frame(PING, b"still there?"),
        frame(NEXT, b""),
        frame(NEXT, "σμε".as_bytes()),
        frame(PONG, b""),
        frame(LAST, b"!"),
        frame(FIRST_BINARY, &[0xFF]),
        frame(LAST, &[0xFE]),
    ];
    let ping = Incoming::Ping(Bytes::from_static(b"still there?"));
    let pong = Incoming::Pong(Bytes::new());
    assert_eq!(understood(&frames), [ping, pong, text("a κόσμε!"), binary(&[0xFF, 0xFE])]);
}

#[test]
fn a_character_may_be_cut_by_a_fragment_boundary() {
    let [a, b, c, d] = "𝄞".as_bytes() else { panic!("four bytes") };
    let frames = [frame(FIRST_TEXT, &[*a]), frame(NEXT, &[*b, *c]), frame(LAST, &[*d])];
    assert_eq!(understood(&frames), [text("𝄞")]);
}

#[test]
fn text_fails_at_the_byte_that_proves_it_wrong() {
    let endless = frame(FINAL_TEXT, b"ok \xF4\x90 and much more to come");
    assert_eq!(outcome(&endless).1, Some((ProtocolError::TextNotUtf8, 6 + 5)));
    let fragments = [frame(FIRST_TEXT, b"ok \xED"), frame(NEXT, b"\xA0 and more"), frame(LAST, b"")].concat();
    assert_eq!(outcome(&fragments).1, Some((ProtocolError::TextNotUtf8, 6 + 4 + 6 + 1)));
}

#[test]
fn text_that_ends_inside_a_character_is_refused() {
    assert_eq!(refused(&[frame(FINAL_TEXT, b"\xCE")]), ProtocolError::TextNotUtf8);
    assert_eq!(refused(&[frame(FIRST_TEXT, b"\xCE"), frame(LAST, b"")]), ProtocolError::TextNotUtf8);
}

#[test]
fn a_frame_that_breaks_a_rule_is_refused() {
    use ProtocolError::*;
    let header = |first, second| vec![vec![first, second]];
    let long = |second, length: &[u8]| vec![[&[FINAL_BINARY, second], length, &MASK].concat()];
    let cases = [
        (header(FINAL_TEXT, 0), FrameNotMasked),
        (header(PING, 0), FrameNotMasked),
        (header(0xC1, 0x80), ReservedBitSet),
        (header(0xA1, 0x80), ReservedBitSet),
        (header(0x99, 0x80), ReservedBitSet),
        (header(0x83, 0x80), OpcodeReserved),
        (header(0x8F, 0x80), OpcodeReserved),
        (header(0x09, 0x80), ControlFrameFragmented),
        (header(PING, 0xFE), ControlFrameTooLong),
        (header(CLOSE, 0xFF), ControlFrameTooLong),
        (long(0xFE, &125_u16.to_be_bytes()), LengthNotMinimal),
        (long(0xFF, &65_535_u64.to_be_bytes()), LengthNotMinimal),
        (long(0xFF, &(1_u64 << 63).to_be_bytes()), LengthTopBitSet),
        (vec![frame(LAST, b"")], ContinuationWithoutStart),
        (vec![frame(NEXT, b"x")], ContinuationWithoutStart),
        (vec![frame(FIRST_TEXT, b""), frame(LAST, b""), frame(LAST, b"")], ContinuationWithoutStart),
        (vec![frame(FIRST_TEXT, b"x"), frame(FINAL_TEXT, b"y")], MessageInsideMessage),
        (vec![frame(FIRST_TEXT, b""), frame(FIRST_BINARY, b"")], MessageInsideMessage),
    ];
    for (frames, error) in cases {
        assert_eq!(refused(&frames), error, "{frames:x?}");
        assert_eq!(error.close_code(), 1002);
    }
}

#[test]
fn a_declared_length_over_the_limit_is_refused_before_the_bytes_arrive() {
    for len in [LIMIT as u64 + 1, u64::MAX >> 1] {
        let header = [&[FINAL_BINARY, 0xFF][..], &len.to_be_bytes(), &MASK].concat();
        assert_eq!(outcome(&header).1, Some((ProtocolError::MessageTooBig, header.len())));
    }
    assert_eq!(ProtocolError::MessageTooBig.close_code(), 1009);
}

#[test]
fn the_limit_counts_over_fragments() {
    let first = frame(FIRST_BINARY, &vec![7; LIMIT - 1]);
    assert_eq!(understood(&[first.clone(), frame(LAST, b"x")]).len(), 1);
    assert_eq!(refused(&[first, frame(LAST, b"xy")]), ProtocolError::MessageTooBig);
}

#[test]
fn memory_follows_what_arrived_and_not_what_was_declared() {
    assert!(size_of::<Decoder>() <= 64);
    let mut decoder = Decoder::new(usize::MAX);
    let mut input = BytesMut::from(&[FINAL_BINARY, 0xFF][..]);
    input.extend_from_slice(&(1_u64 << 40).to_be_bytes());
    input.extend_from_slice(b"maskten bytes.");
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert!(input.is_empty());
    assert!(decoder.message.is_some_and(|message| message.bytes.capacity() < 64));
}

#[test]
fn empty_fragments_take_no_memory_and_nothing_is_held_between_messages() {
    let mut decoder = Decoder::new(LIMIT);
    let mut input = BytesMut::from(&frame(FIRST_TEXT, b"")[..]);
    for _ in 0..10_000 {
        input.extend_from_slice(&frame(NEXT, b""));
        assert_eq!(decoder.decode(&mut input), Ok(None));
    }
    assert!(decoder.message.as_ref().is_some_and(|message| message.bytes.capacity() == 0));
    input.extend_from_slice(&frame(LAST, b"end"));
    assert_eq!(decoder.decode(&mut input), Ok(Some(text("end"))));
    assert!(decoder.message.is_none());
}

#[test]
fn a_close_frame_says_its_code_and_reason() {
    let close = |payload: &[u8]| understood(&[frame(CLOSE, payload)]);
    assert_eq!(close(b""), [Incoming::Close { code: None, reason: Bytes::new() }]);
    for code in [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999_u16] {
        let seen = close(&[&code.to_be_bytes()[..], "tschüß".as_bytes()].concat());
        assert_eq!(seen, [Incoming::Close { code: Some(code), reason: Bytes::from_static("tschüß".as_bytes()) }]);
    }
}

#[test]
fn a_close_frame_that_no_endpoint_may_send_is_refused() {
    let close = |payload: &[u8]| refused(&[frame(CLOSE, payload)]);
    assert_eq!(close(b"\x03"), ProtocolError::CloseCodeCutShort);
    assert_eq!(close(b"\x03\xE8\xFF"), ProtocolError::TextNotUtf8);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, u16::MAX] {
        assert_eq!(close(&code.to_be_bytes()), ProtocolError::CloseCodeInvalid, "{code}");
    }
    assert_eq!(ProtocolError::TextNotUtf8.close_code(), 1007);
}

#[test]
fn frames_are_written_with_the_shortest_length() {
    let header = |len| {
        let mut out = Vec::new();
        encode_header(Opcode::Text, len, &mut out);
        out
    };
    assert_eq!(header(125), [0x81, 125]);
    assert_eq!(header(126), [0x81, 126, 0, 126]);
    assert_eq!(header(65_535), [0x81, 126, 0xFF, 0xFF]);
    assert_eq!(header(65_536), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    let mut out = Vec::new();
    encode(Opcode::Pong, b"hi", &mut out);
    assert_eq!(out, [0x8A, 2, b'h', b'i']);
}

#[test]
fn a_close_reason_is_cut_between_characters() {
    let mut out = Vec::new();
    encode_close(1013, &"€".repeat(100), &mut out);
    assert_eq!(out, [&[0x88, 125, 0x03, 0xF5][..], "€".repeat(41).as_bytes()].concat());
    out.clear();
    encode_close(1013, &format!("a{}", "€".repeat(100)), &mut out);
    assert_eq!(out[1], 2 + 1 + 40 * 3);
}
