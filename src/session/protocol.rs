//! The `signalpost.v1` subprotocol: envelopes and control frames as JSON. Pure; docs/protocol.md describes it for clients.

use std::io::Write as _;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::net::websocket::{self, Opcode};
use crate::types::event::Body;

/// The subprotocol's name in `Sec-WebSocket-Protocol`.
pub const V1: &str = "signalpost.v1";

/// What a client of this subprotocol sends.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Everything up to this seq has been dealt with.
    Ack {
        seq: u64,
    },
    /// Go on after this seq; without one, go on from where the server would.
    Resume {
        epoch: String,
        seq: u64,
    },
    Begin,
    /// Another token, before the last one is over.
    Auth {
        token: String,
    },
    Message(Body),
    Invalid(&'static str),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: String,
    seq: Option<u64>,
    epoch: Option<String>,
    token: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl ClientFrame {
    pub fn parse(text: &str) -> ClientFrame {
        let Ok(envelope) = serde_json::from_str::<Envelope<'_>>(text) else {
            return ClientFrame::Invalid("a frame is a JSON object with a `type`: ack, resume or message");
        };
        match (envelope.kind.as_str(), envelope.seq, envelope.epoch, envelope.data) {
            ("auth", ..) => match envelope.token {
                Some(token) => ClientFrame::Auth { token },
                None => ClientFrame::Invalid("an auth needs a `token`"),
            },
            ("ack", Some(seq), _, _) => ClientFrame::Ack { seq },
            ("ack", None, ..) => ClientFrame::Invalid("an ack needs a `seq`"),
            ("resume", Some(seq), Some(epoch), _) => ClientFrame::Resume { epoch, seq },
            ("resume", None, None, _) => ClientFrame::Begin,
            ("resume", ..) => ClientFrame::Invalid("a resume needs `seq` and `epoch`, or neither"),
            ("message", _, _, Some(data)) => ClientFrame::Message(Body::Json(data.get().to_owned())),
            ("message", ..) => ClientFrame::Invalid("a message needs `data`"),
            _ => ClientFrame::Invalid("unknown `type`; a client sends ack, auth, resume or message"),
        }
    }
}

/// The first frame of a session.
#[derive(Debug, Serialize)]
pub struct Hello<'a> {
    pub session: &'a str,
    pub user: &'a str,
    pub epoch: &'a str,
    /// The newest seq of the mailbox.
    pub seq: u64,
    pub limits: Limits,
    /// Present where there is something to resume from: messages wait so long for the client's resume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_within_ms: Option<u64>,
    /// Present where the session ends unless the client sends another token before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ends_in_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Limits {
    pub message_bytes_max: usize,
    pub ping_interval_ms: u64,
    pub pong_deadline_ms: u64,
    pub mailbox_messages_max: usize,
    pub mailbox_bytes_max: usize,
    pub keep_ms: u64,
}

#[derive(Serialize)]
struct Control<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    data: T,
}

#[derive(Serialize)]
struct Resumed {
    recovered: bool,
    from: u64,
}

#[derive(Serialize)]
struct Problem<'a> {
    code: &'a str,
    detail: &'a str,
}

/// Appends a hello frame.
pub fn hello(hello: &Hello<'_>, out: &mut Vec<u8>) {
    control("hello", hello, out);
}

/// Appends the answer to a resume: whether all that is still wanted after `from` follows.
pub fn resumed(recovered: bool, from: u64, out: &mut Vec<u8>) {
    control("resume", Resumed { recovered, from }, out);
}

/// Appends the answer to a new token: how long the session may go on with it.
pub fn authorized(token_ends_in_ms: Option<u64>, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Authorized {
        #[serde(skip_serializing_if = "Option::is_none")]
        token_ends_in_ms: Option<u64>,
    }
    control("auth", Authorized { token_ends_in_ms }, out);
}

/// Appends the frame that says when to come back after a restart.
pub fn reconnect(after_ms: u32, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Reconnect {
        after_ms: u32,
    }
    control("reconnect", Reconnect { after_ms }, out);
}

/// Appends an error frame. Without the subprotocol it is a message that says `"type":"error"`.
pub fn error(v1: bool, code: &str, detail: &str, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Plain<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        code: &'a str,
        detail: &'a str,
    }
    if v1 {
        control("error", Problem { code, detail }, out);
    } else {
        json_frame(&Plain { kind: "error", code, detail }, out);
    }
}

/// Appends a message frame: as it is, or in an envelope with its seq.
pub fn message(v1: bool, seq: u64, body: &Body, out: &mut Vec<u8>) {
    if !v1 {
        let opcode = if matches!(body, Body::Binary(_)) { Opcode::Binary } else { Opcode::Text };
        websocket::encode(opcode, body.as_bytes(), out);
        return;
    }
    let (name, data): (&str, std::borrow::Cow<'_, [u8]>) = match body {
        Body::Json(text) => ("data", text.as_bytes().into()),
        Body::Text(text) => ("data", serde_json::Value::from(text.as_str()).to_string().into_bytes().into()),
        Body::Binary(bytes) => ("data_base64", format!("\"{}\"", base64::prelude::BASE64_STANDARD.encode(bytes)).into_bytes().into()),
    };
    let mut head = [0; 64];
    let mut rest = &mut head[..];
    // The head is at most 55 bytes: twenty digits and the names.
    let _ = write!(rest, "{{\"seq\":{seq},\"type\":\"message\",\"{name}\":");
    let unused = rest.len();
    let head = head.get(..64 - unused).unwrap_or_default();
    websocket::encode_header(Opcode::Text, head.len() + data.len() + 1, out);
    out.extend_from_slice(head);
    out.extend_from_slice(&data);
    out.push(b'}');
}

fn control<T: Serialize>(kind: &'static str, data: T, out: &mut Vec<u8>) {
    json_frame(&Control { kind, data }, out);
}

fn json_frame<T: Serialize>(frame: &T, out: &mut Vec<u8>) {
    // Our own structs of strings and numbers: serializing them can't fail.
    let text = serde_json::to_vec(frame).unwrap_or_default();
    websocket::encode(Opcode::Text, &text, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_frames_are_read_or_explained() {
        assert_eq!(ClientFrame::parse(r#"{"type":"ack","seq":7}"#), ClientFrame::Ack { seq: 7 });
        assert_eq!(ClientFrame::parse(r#"{"type":"resume","seq":7,"epoch":"e"}"#), ClientFrame::Resume { epoch: "e".into(), seq: 7 });
        assert_eq!(ClientFrame::parse(r#"{"type":"resume"}"#), ClientFrame::Begin);
        let body = Body::Json(r#"{"n": 1.0}"#.into());
        assert_eq!(ClientFrame::parse(r#"{"type":"message","data":{"n": 1.0}}"#), ClientFrame::Message(body));
        for text in [
            "",
            "[]",
            "7",
            r#"{"type":"ack"}"#,
            r#"{"type":"ack","seq":-1}"#,
            r#"{"type":"resume","seq":1}"#,
            r#"{"type":"x"}"#,
            r#"{"type":"message"}"#,
        ] {
            assert!(matches!(ClientFrame::parse(text), ClientFrame::Invalid(_)), "{text}");
        }
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
            message(true, u64::MAX, &body, &mut out);
            assert_eq!(std::str::from_utf8(&out[2..]).unwrap(), expected);
            assert_eq!(usize::from(out[1]), out.len() - 2);
        }
    }
}
