//! What clients of the `signalpost.v1` subprotocol send: envelopes and control frames as JSON. Pure; docs/protocol.md describes them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::types::event::Body;

/// The subprotocol's name in `Sec-WebSocket-Protocol`.
pub const V1: &str = "signalpost.v1";

/// What a client of this subprotocol sends.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// The client has processed everything up to this seq.
    Ack {
        seq: u64,
    },
    /// Go on after this seq.
    Resume {
        epoch: String,
        seq: u64,
    },
    /// Go on from where the server would: a resume without a seq.
    Begin,
    /// Another token, before the last one is over.
    Auth {
        token: String,
    },
    Message(Body),
    /// Not a frame of this subprotocol, in a sentence for the client.
    Invalid(&'static str),
}

/// A frame's members as they were written; null is there, and is not absent.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, rename = "type", deserialize_with = "written")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "written")]
    seq: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "written")]
    epoch: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "written")]
    token: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "written")]
    data: Option<&'a RawValue>,
}

fn written<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl ClientFrame {
    /// Reads a text frame.
    pub fn parse(text: &str) -> ClientFrame {
        ClientFrame::read(text).unwrap_or_else(ClientFrame::Invalid)
    }

    fn read(text: &str) -> Result<ClientFrame, &'static str> {
        const FRAME: &str = "a frame is one JSON object, whose members are there once, with a `type`: ack, auth, resume or message";
        const KIND: &str = "`type` must be a string: ack, auth, resume or message";
        const SEQ: &str = "`seq` must be a whole number from 0 to 18446744073709551615, as the server sent it";
        const EPOCH: &str = "`epoch` must be a string, as the hello has it";
        const TOKEN: &str = "`token` must be a string";
        // serde would read a list as the members in their order.
        let is_object = text.trim_ascii_start().starts_with('{');
        let frame: Envelope<'_> = is_object.then(|| serde_json::from_str(text).ok()).flatten().ok_or(FRAME)?;
        let kind: Cow<'_, str> = member(frame.kind, KIND)?.ok_or(FRAME)?;
        let seq = || member::<u64>(frame.seq, SEQ);
        match &*kind {
            "ack" => Ok(ClientFrame::Ack { seq: seq()?.ok_or("an ack needs a `seq`")? }),
            "auth" => Ok(ClientFrame::Auth { token: member(frame.token, TOKEN)?.ok_or("an auth needs a `token`")? }),
            "resume" => match (seq()?, member(frame.epoch, EPOCH)?) {
                (Some(seq), Some(epoch)) => Ok(ClientFrame::Resume { epoch, seq }),
                (None, None) => Ok(ClientFrame::Begin),
                _ => Err("a resume needs `seq` and `epoch`, or neither"),
            },
            "message" => {
                let data = frame.data.ok_or("a message needs `data`")?.get().to_owned();
                let unreadable = |_| "`data` holds half of a surrogate pair, as in \"\\ud800\", which is not Unicode text";
                Body::json(data).map(ClientFrame::Message).map_err(unreadable)
            }
            _ => Err("unknown `type`; a client sends ack, auth, resume or message"),
        }
    }
}

/// Reads a member that may be absent or null.
fn member<'a, T: Deserialize<'a>>(written: Option<&'a RawValue>, wrong: &'static str) -> Result<Option<T>, &'static str> {
    written.map_or(Ok(None), |written| serde_json::from_str(written.get()).map_err(|_| wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_frame_is_what_its_type_says() {
        let resume = || ClientFrame::Resume { epoch: "e".into(), seq: 7 };
        let message = |data: &str| ClientFrame::Message(Body::Json(data.into()));
        for (text, frame) in [
            (r#"{"type":"ack","seq":7}"#, ClientFrame::Ack { seq: 7 }),
            (r#"{"type":"ack","seq":18446744073709551615}"#, ClientFrame::Ack { seq: u64::MAX }),
            (r#"{"\u0074ype":"\u0061ck","seq":0,"epoch":7,"more":[1]}"#, ClientFrame::Ack { seq: 0 }),
            (r#" { "type" : "resume", "seq" : 7, "epoch" : "e" } "#, resume()),
            (r#"{"type":"resume"}"#, ClientFrame::Begin),
            (r#"{"type":"resume","seq":null,"epoch":null}"#, ClientFrame::Begin),
            (r#"{"type":"auth","token":"\u0061"}"#, ClientFrame::Auth { token: "a".into() }),
            (r#"{"type":"message","data":{"n": 1.0}}"#, message(r#"{"n": 1.0}"#)),
            (r#"{"type":"message","data":null}"#, message("null")),
            (r#"{"type":"message","data":"","seq":"x"}"#, message(r#""""#)),
        ] {
            assert_eq!(ClientFrame::parse(text), frame, "{text}");
        }
    }

    #[test]
    fn an_invalid_frame_is_answered_with_what_is_wrong() {
        for (text, says) in [
            ("", "one JSON object"),
            ("hello", "one JSON object"),
            ("[]", "one JSON object"),
            (r#"["ack",7]"#, "one JSON object"),
            ("7", "one JSON object"),
            ("{}", "with a `type`"),
            (r#"{"type":null}"#, "with a `type`"),
            (r#"{"type":"ack","type":"ack","seq":1}"#, "are there once"),
            (r#"{"type":7}"#, "`type` must be a string"),
            (r#"{"type":"x"}"#, "unknown `type`"),
            (r#"{"type":"ack"}"#, "an ack needs a `seq`"),
            (r#"{"type":"ack","seq":null}"#, "an ack needs a `seq`"),
            (r#"{"type":"ack","seq":-1}"#, "`seq` must be a whole number"),
            (r#"{"type":"ack","seq":"7"}"#, "`seq` must be a whole number"),
            (r#"{"type":"ack","seq":7.5}"#, "`seq` must be a whole number"),
            (r#"{"type":"ack","seq":[7]}"#, "`seq` must be a whole number"),
            (r#"{"type":"ack","seq":true}"#, "`seq` must be a whole number"),
            (r#"{"type":"ack","seq":18446744073709551616}"#, "`seq` must be a whole number"),
            (r#"{"type":"resume","seq":"7","epoch":"e"}"#, "`seq` must be a whole number"),
            (r#"{"type":"resume","seq":7,"epoch":8}"#, "`epoch` must be a string"),
            (r#"{"type":"resume","seq":1}"#, "a resume needs `seq` and `epoch`"),
            (r#"{"type":"resume","epoch":"e"}"#, "a resume needs `seq` and `epoch`"),
            (r#"{"type":"auth"}"#, "an auth needs a `token`"),
            (r#"{"type":"auth","token":7}"#, "`token` must be a string"),
            (r#"{"type":"message"}"#, "a message needs `data`"),
            (r#"{"type":"message","data":"\ud800"}"#, "half of a surrogate pair"),
        ] {
            match ClientFrame::parse(text) {
                ClientFrame::Invalid(detail) => assert!(detail.contains(says), "{text}: {detail}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
