//! What clients of the `signalpost.v1` subprotocol send: envelopes and control frames as JSON. Pure; docs/protocol.md describes them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::types::event::Body;

pub use crate::registry::V1;

/// Bytes of the id that a client gives a message: enough for a UUID with a prefix, and little, since each answer repeats it.
const ID_BYTES_MAX: usize = 64;

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
    Message(Body, Want),
    /// Is the server there?
    Ping,
    /// Not a frame of this subprotocol, in a sentence for the client.
    Invalid {
        detail: &'static str,
        id: Option<Box<str>>,
    },
}

/// How a client wants its message answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Want {
    /// Only if the message is refused.
    #[default]
    Refusal,
    /// The same, with the id that the client gave the message.
    RefusalOf(Box<str>),
    /// With this id also when what followed from the message is stored.
    Taken(Box<str>),
}

impl Want {
    pub fn id(&self) -> Option<&str> {
        match self {
            Want::Refusal => None,
            Want::RefusalOf(id) | Want::Taken(id) => Some(id),
        }
    }
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
    #[serde(borrow, default, deserialize_with = "written")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "written")]
    want: Option<&'a RawValue>,
}

fn written<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl ClientFrame {
    /// Reads a text frame.
    pub fn parse(text: &str) -> ClientFrame {
        const FRAME: &str = "a frame is one JSON object, whose members are there once, with a `type`: ack, auth, message, ping or resume";
        // serde would read a list as the members in their order.
        let is_object = text.trim_ascii_start().starts_with('{');
        let Some(envelope) = is_object.then(|| serde_json::from_str::<Envelope<'_>>(text).ok()).flatten() else {
            return ClientFrame::Invalid { detail: FRAME, id: None };
        };
        let frame = envelope.kind().and_then(|kind| envelope.frame(&kind.ok_or(FRAME)?));
        frame.unwrap_or_else(|detail| ClientFrame::Invalid { detail, id: envelope.id().ok().flatten() })
    }
}

impl Envelope<'_> {
    fn kind(&self) -> Result<Option<Cow<'_, str>>, &'static str> {
        member(self.kind, "`type` must be a string: ack, auth, message, ping or resume")
    }

    fn frame(&self, kind: &str) -> Result<ClientFrame, &'static str> {
        const SEQ: &str = "`seq` must be a whole number from 0 to 18446744073709551615, as the server sent it";
        const EPOCH: &str = "`epoch` must be a string, as the hello has it";
        const TOKEN: &str = "`token` must be a string";
        let seq = || member::<u64>(self.seq, SEQ);
        match kind {
            "ack" => Ok(ClientFrame::Ack { seq: seq()?.ok_or("an ack needs a `seq`")? }),
            "auth" => Ok(ClientFrame::Auth { token: member(self.token, TOKEN)?.ok_or("an auth needs a `token`")? }),
            "ping" => Ok(ClientFrame::Ping),
            "resume" => match (seq()?, member(self.epoch, EPOCH)?) {
                (Some(seq), Some(epoch)) => Ok(ClientFrame::Resume { epoch, seq }),
                (None, None) => Ok(ClientFrame::Begin),
                _ => Err("a resume needs `seq` and `epoch`, or neither"),
            },
            "message" => {
                let want = self.want()?;
                let data = self.data.ok_or("a message needs `data`")?.get().to_owned();
                let unreadable = |_| "`data` holds half of a surrogate pair, as in \"\\ud800\", which is not Unicode text";
                Body::json(data).map(|body| ClientFrame::Message(body, want)).map_err(unreadable)
            }
            _ => Err("unknown `type`; a client sends ack, auth, message, ping or resume"),
        }
    }

    /// Returns the id that the client gives its message.
    fn id(&self) -> Result<Option<Box<str>>, &'static str> {
        const ID: &str = "`id` must be a string of 1 to 64 bytes";
        let id: Option<Box<str>> = member(self.id, ID)?;
        let is_good = id.as_ref().is_none_or(|id| (1..=ID_BYTES_MAX).contains(&id.len()));
        if is_good { Ok(id) } else { Err(ID) }
    }

    fn want(&self) -> Result<Want, &'static str> {
        const WANT: &str = "`want` must be \"taken\"";
        match (self.id()?, member::<Cow<'_, str>>(self.want, WANT)?.as_deref()) {
            (None, None) => Ok(Want::Refusal),
            (Some(id), None) => Ok(Want::RefusalOf(id)),
            (Some(id), Some("taken")) => Ok(Want::Taken(id)),
            (None, Some("taken")) => Err("a message that wants \"taken\" needs an `id`"),
            (_, Some(_)) => Err(WANT),
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
        let message = |data: &str| ClientFrame::Message(Body::Json(data.into()), Want::Refusal);
        let wanting = |want| ClientFrame::Message(Body::Json("1".into()), want);
        let longest = "x".repeat(ID_BYTES_MAX);
        let with_longest = format!(r#"{{"type":"message","data":1,"id":"{longest}"}}"#);
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
            (r#"{"type":"message","data":1,"id":null,"want":null}"#, wanting(Want::Refusal)),
            (r#"{"type":"message","data":1,"id":"\u0061"}"#, wanting(Want::RefusalOf("a".into()))),
            (&with_longest, wanting(Want::RefusalOf(longest.as_str().into()))),
            (r#"{"type":"message","data":1,"want":"taken","id":"7"}"#, wanting(Want::Taken("7".into()))),
            (r#"{"type":"ping"}"#, ClientFrame::Ping),
            (r#"{"type":"ping","id":7,"data":[]}"#, ClientFrame::Ping),
        ] {
            assert_eq!(ClientFrame::parse(text), frame, "{text}");
        }
    }

    #[test]
    fn an_invalid_frame_is_answered_with_what_is_wrong() {
        let too_long = format!(r#"{{"type":"message","data":1,"id":"{}"}}"#, "é".repeat(ID_BYTES_MAX / 2) + "x");
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
            (r#"{"type":"message","data":1,"id":7}"#, "`id` must be a string of 1 to 64 bytes"),
            (r#"{"type":"message","data":1,"id":""}"#, "`id` must be a string of 1 to 64 bytes"),
            (&too_long, "`id` must be a string of 1 to 64 bytes"),
            (r#"{"type":"message","data":1,"id":"7","want":"stored"}"#, "`want` must be \"taken\""),
            (r#"{"type":"message","data":1,"id":"7","want":true}"#, "`want` must be \"taken\""),
            (r#"{"type":"message","data":1,"want":"taken"}"#, "needs an `id`"),
            (r#"{"type":"pong"}"#, "unknown `type`"),
            (r#"{"type":"message","data":"\ud800"}"#, "half of a surrogate pair"),
        ] {
            match ClientFrame::parse(text) {
                ClientFrame::Invalid { detail, .. } => assert!(detail.contains(says), "{text}: {detail}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_answer_to_an_invalid_message_has_its_id_if_that_is_one() {
        for (text, expected) in [
            (r#"{"type":"message","id":"7"}"#, Some("7")),
            (r#"{"type":"message","id":"7","data":1,"want":"more"}"#, Some("7")),
            (r#"{"id":"7"}"#, Some("7")),
            (r#"{"type":"message","id":7}"#, None),
            (r#"{"type":"message","id":"7","id":"7"}"#, None),
            ("7", None),
        ] {
            match ClientFrame::parse(text) {
                ClientFrame::Invalid { id, .. } => assert_eq!(id.as_deref(), expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
