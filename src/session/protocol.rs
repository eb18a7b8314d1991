//! What clients of the `signalpost.v1` subprotocol send: envelopes and control frames as JSON. Pure; docs/protocol.md describes them.

use serde::Deserialize;
use serde_json::value::RawValue;

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
}
