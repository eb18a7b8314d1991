//! How a session's messages look to its client: unchanged, or in `signalpost.v1` envelopes, each a frame of a WebSocket or an event of a
//! stream. Pure; docs/protocol.md describes it for clients.

use std::borrow::Cow;
use std::io::Write as _;
use std::num::NonZeroUsize;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use memchr::memchr2;
use serde::Serialize;

use super::protocol::V1;
use crate::config::Milliseconds;
use crate::net::websocket::{self, Opcode};
use crate::types::event::Body;

/// How a session's messages are framed. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A frame is exactly the message.
    Plain,
    /// Each frame is an envelope, and there are control frames.
    V1,
    /// The same as server-sent events. The connection begins with the head of an HTTP response.
    Sse,
}

/// How long an EventSource waits before it connects again, if the server doesn't say so at the end.
const RETRY_MS: u32 = 2000;

/// Bytes of the reason in the event that ends a stream: those of a close frame (RFC 6455, section 5.5).
const REASON_BYTES_MAX: usize = 123;

/// The first frame of a session.
#[derive(Debug, Serialize)]
pub struct Hello<'a> {
    pub session: &'a str,
    pub user: &'a str,
    pub epoch: &'a str,
    /// The newest seq of the mailbox.
    pub seq: u64,
    pub limits: Limits,
    /// Present if there is something to resume from: messages wait this long for the client's resume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_within_ms: Option<Milliseconds<0>>,
    /// Present if the session ends unless the client sends another token before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ends_in_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Limits {
    pub message_bytes_max: NonZeroUsize,
    pub ping_interval_ms: Milliseconds,
    pub pong_deadline_ms: Milliseconds,
    pub mailbox_messages_max: NonZeroUsize,
    pub mailbox_bytes_max: NonZeroUsize,
    pub keep_ms: Milliseconds,
}

#[derive(Serialize)]
struct Control<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    /// The client's message that is answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
}

impl Framing {
    pub fn of(subprotocol: Option<&str>) -> Framing {
        if subprotocol == Some(V1) { Framing::V1 } else { Framing::Plain }
    }

    /// Returns the protocol of its frames, as policies and operators know it.
    pub fn subprotocol(self) -> Option<&'static str> {
        match self {
            Framing::Plain => None,
            Framing::V1 | Framing::Sse => Some(V1),
        }
    }

    /// Returns whether its clients can resume, and ack what they have read.
    pub fn resumes(self) -> bool {
        match self {
            Framing::Plain => false,
            Framing::V1 | Framing::Sse => true,
        }
    }

    /// Appends what shows that the server is there, and returns whether clients answer it.
    pub fn heartbeat(self, out: &mut Vec<u8>) -> bool {
        match self {
            Framing::Plain | Framing::V1 => {
                websocket::encode(Opcode::Ping, &[], out);
                true
            }
            Framing::Sse => {
                // A comment, which is not an event.
                out.extend_from_slice(b":\n\n");
                false
            }
        }
    }

    /// Appends the end: why the server closes, and when to come back after a restart.
    pub fn end(self, code: u16, reason: &str, after_ms: Option<u32>, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Closed<'a> {
            code: u16,
            reason: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            after_ms: Option<u32>,
        }
        match self {
            Framing::Plain | Framing::V1 => {
                if let Some(after_ms) = after_ms {
                    self.reconnect(after_ms, out);
                }
                websocket::encode_close(code, reason, out);
            }
            Framing::Sse => {
                let reason = reason.get(..reason.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default();
                retry(after_ms.unwrap_or(RETRY_MS), out);
                event("close", &json(&Closed { code, reason, after_ms }), out);
            }
        }
    }

    /// Appends a hello, if this framing has one.
    pub fn hello(self, hello: &Hello<'_>, out: &mut Vec<u8>) {
        if self == Framing::Sse {
            retry(RETRY_MS, out);
        }
        self.control("hello", None, Some(hello), out);
    }

    /// Appends the answer to a resume: whether all that is still wanted after `from` follows in this epoch.
    pub fn resumed(self, epoch: &str, recovered: bool, from: u64, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Resumed {
            recovered: bool,
            from: u64,
        }
        if self == Framing::Sse {
            // A client that gets no message resumes from here.
            id(epoch, from, out);
        }
        self.control("resume", None, Some(Resumed { recovered, from }), out);
    }

    /// Appends the answer to a new token: how long the session may go on with it.
    pub fn authorized(self, token_ends_in_ms: Option<u64>, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Authorized {
            #[serde(skip_serializing_if = "Option::is_none")]
            token_ends_in_ms: Option<u64>,
        }
        self.control("auth", None, Some(Authorized { token_ends_in_ms }), out);
    }

    /// Appends the frame that says when to come back after a restart.
    fn reconnect(self, after_ms: u32, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Reconnect {
            after_ms: u32,
        }
        self.control("reconnect", None, Some(Reconnect { after_ms }), out);
    }

    /// Appends the answer to a client's ping.
    pub fn pong(self, out: &mut Vec<u8>) {
        self.control("pong", None, None::<()>, out);
    }

    /// Appends the answer to a client's message whose events are stored.
    pub fn taken(self, id: &str, out: &mut Vec<u8>) {
        self.control("taken", Some(id), None::<()>, out);
    }

    /// Appends an error, with the id of the client's message that it answers. Without envelopes it is a message that says `"type":"error"`.
    pub fn error(self, id: Option<&str>, code: &str, detail: &str, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Problem<'a> {
            code: &'a str,
            detail: &'a str,
        }
        #[derive(Serialize)]
        struct Plain<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            #[serde(flatten)]
            problem: Problem<'a>,
        }
        let problem = Problem { code, detail };
        match self {
            Framing::Plain => websocket::encode(Opcode::Text, &json(&Plain { kind: "error", problem }), out),
            Framing::V1 | Framing::Sse => self.control("error", id, Some(problem), out),
        }
    }

    /// Appends a message: as it is, or in an envelope with its seq. `epoch`: that of the mailbox, for events.
    pub fn message(self, epoch: &str, seq: u64, body: &Body, out: &mut Vec<u8>) {
        match self {
            Framing::Plain => {
                let opcode = if matches!(body, Body::Binary(_)) { Opcode::Binary } else { Opcode::Text };
                websocket::encode(opcode, body.as_bytes(), out);
            }
            Framing::V1 => envelope(seq, body, |head, data| {
                websocket::encode_header(Opcode::Text, head.len() + data.len() + 1, out);
                out.extend_from_slice(head);
                out.extend_from_slice(data);
                out.push(b'}');
            }),
            Framing::Sse => envelope(seq, body, |head, data| {
                id(epoch, seq, out);
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(head);
                one_line(data, out);
                out.extend_from_slice(b"}\n\n");
            }),
        }
    }

    fn control<T: Serialize>(self, kind: &'static str, id: Option<&str>, data: Option<T>, out: &mut Vec<u8>) {
        let frame = &Control { kind, id, data };
        match self {
            Framing::Plain => {}
            Framing::V1 => websocket::encode(Opcode::Text, &json(frame), out),
            // An EventSource calls the loss of its connection `error`.
            Framing::Sse => event(if kind == "error" { "problem" } else { kind }, &json(frame), out),
        }
    }
}

/// Appends how long an EventSource waits before it connects again.
fn retry(after_ms: u32, out: &mut Vec<u8>) {
    // Writing to a vector can't fail.
    let _ = writeln!(out, "retry: {after_ms}");
}

/// Begins an event with its id.
fn id(epoch: &str, seq: u64, out: &mut Vec<u8>) {
    let _ = writeln!(out, "id: {epoch}.{seq}");
}

/// Appends an event with a name. Those of messages have none.
fn event(name: &str, data: &[u8], out: &mut Vec<u8>) {
    let _ = write!(out, "event: {name}\ndata: ");
    one_line(data, out);
    out.extend_from_slice(b"\n\n");
}

/// Appends JSON. A line break in JSON is only space, and would end the line of an event.
fn one_line(json: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(json);
    if memchr2(b'\n', b'\r', json).is_some() {
        let line = out.get_mut(begin..).unwrap_or_default();
        line.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    }
}

/// Passes on a message's envelope: its beginning and its data. A brace ends it.
fn envelope(seq: u64, body: &Body, take: impl FnOnce(&[u8], &[u8])) {
    let (name, data): (&str, Cow<'_, [u8]>) = match body {
        Body::Json(text) => ("data", text.as_bytes().into()),
        Body::Text(text) => ("data", serde_json::Value::from(text.as_str()).to_string().into_bytes().into()),
        Body::Binary(bytes) => ("data_base64", format!("\"{}\"", BASE64_STANDARD.encode(bytes)).into_bytes().into()),
    };
    /// Twenty digits and the names are at most 55 bytes.
    const HEAD_BYTES_MAX: usize = 64;
    let mut head = [0; HEAD_BYTES_MAX];
    let mut rest = &mut head[..];
    // It fits, so it can't fail.
    let _ = write!(rest, "{{\"seq\":{seq},\"type\":\"message\",\"{name}\":");
    let unused = rest.len();
    take(head.get(..HEAD_BYTES_MAX - unused).unwrap_or_default(), &data);
}

fn json<T: Serialize>(frame: &T) -> Vec<u8> {
    // Our own structs of strings and numbers: serializing them can't fail.
    serde_json::to_vec(frame).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the text of the only frame, which is short.
    fn text(out: &[u8]) -> &str {
        assert_eq!(usize::from(out[1]), out.len() - 2, "one frame");
        std::str::from_utf8(&out[2..]).unwrap()
    }

    #[test]
    fn an_envelope_is_json_whatever_the_body() {
        let bodies = [
            (Body::Json(r#"{"a":1}"#.into()), r#"{"seq":18446744073709551615,"type":"message","data":{"a":1}}"#),
            (Body::Text("a\"b".into()), r#"{"seq":18446744073709551615,"type":"message","data":"a\"b"}"#),
            (Body::Binary(vec![0, 255]), r#"{"seq":18446744073709551615,"type":"message","data_base64":"AP8="}"#),
        ];
        for (body, expected) in bodies {
            let mut out = Vec::new();
            Framing::V1.message("", u64::MAX, &body, &mut out);
            assert_eq!(text(&out), expected);
            out.clear();
            Framing::Sse.message("e-1", u64::MAX, &body, &mut out);
            let event = format!("id: e-1.18446744073709551615\ndata: {expected}\n\n");
            assert_eq!(std::str::from_utf8(&out).unwrap(), event);
        }
    }

    #[test]
    fn an_event_is_one_line_of_data_whatever_the_json() {
        let mut out = Vec::new();
        Framing::Sse.message("e", 1, &Body::Json("{\r\n\"a\":\n[\"\\n\u{2028}\"]\r}".into()), &mut out);
        let expected = "id: e.1\ndata: {\"seq\":1,\"type\":\"message\",\"data\":{  \"a\": [\"\\n\u{2028}\"] }}\n\n";
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    }

    #[test]
    fn controls_are_events_of_their_type_and_an_error_is_a_problem() {
        let mut out = Vec::new();
        Framing::Sse.resumed("e", true, 3, &mut out);
        Framing::Sse.error(Some("7"), "c", "d", &mut out);
        Framing::Sse.pong(&mut out);
        assert!(!Framing::Sse.heartbeat(&mut out), "nobody answers a comment");
        Framing::Sse.end(1012, "why", Some(40), &mut out);
        Framing::Sse.end(4204, &"é".repeat(100), None, &mut out);
        let expected = [
            "id: e.3\nevent: resume\ndata: {\"type\":\"resume\",\"data\":{\"recovered\":true,\"from\":3}}\n\n",
            "event: problem\ndata: {\"type\":\"error\",\"id\":\"7\",\"data\":{\"code\":\"c\",\"detail\":\"d\"}}\n\n",
            "event: pong\ndata: {\"type\":\"pong\"}\n\n:\n\n",
            "retry: 40\nevent: close\ndata: {\"code\":1012,\"reason\":\"why\",\"after_ms\":40}\n\n",
            &format!("retry: 2000\nevent: close\ndata: {{\"code\":4204,\"reason\":\"{}\"}}\n\n", "é".repeat(61)),
        ];
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected.concat());
    }

    #[test]
    fn a_plain_frame_is_exactly_the_body_and_its_errors_are_messages() {
        let mut out = Vec::new();
        Framing::Plain.message("", 7, &Body::Text("a\"b".into()), &mut out);
        assert_eq!((out[0] & 0x0F, text(&out)), (1, "a\"b"));
        out.clear();
        Framing::Plain.message("", 7, &Body::Binary(vec![0, 255]), &mut out);
        assert_eq!(out, [0x82, 2, 0, 255]);
        out.clear();
        Framing::Plain.error(None, "c", "d", &mut out);
        assert_eq!(text(&out), r#"{"type":"error","code":"c","detail":"d"}"#);
        out.clear();
        Framing::V1.error(None, "c", "d", &mut out);
        assert_eq!(text(&out), r#"{"type":"error","data":{"code":"c","detail":"d"}}"#);
        out.clear();
        Framing::V1.error(Some("\"7"), "c", "d", &mut out);
        assert_eq!(text(&out), r#"{"type":"error","id":"\"7","data":{"code":"c","detail":"d"}}"#);
    }

    #[test]
    fn answers_without_data_have_no_data() {
        let mut out = Vec::new();
        Framing::V1.pong(&mut out);
        assert_eq!(text(&out), r#"{"type":"pong"}"#);
        out.clear();
        Framing::V1.taken("7", &mut out);
        assert_eq!(text(&out), r#"{"type":"taken","id":"7"}"#);
    }

    #[test]
    fn only_envelopes_have_control_frames() {
        let (mut plain, mut v1) = (Vec::new(), Vec::new());
        for (framing, out) in [(Framing::of(None), &mut plain), (Framing::of(Some(V1)), &mut v1)] {
            assert_eq!(framing.resumes(), framing == Framing::V1);
            framing.resumed("", true, 3, out);
        }
        assert!(plain.is_empty());
        assert_eq!(text(&v1), r#"{"type":"resume","data":{"recovered":true,"from":3}}"#);
    }
}
