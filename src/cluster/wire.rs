//! What nodes say to each other beside the stream: requests to the node that leads, and beats. Nodes of one version or of neighbouring ones read
//! each other's; variants are only appended.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::model::mailbox::Read;
use crate::model::record::Change;
use crate::registry::SessionInfo;
use crate::store::codec;
use crate::types::event::{Body, UserId};

/// A request to the node that leads.
#[derive(Debug, Deserialize, Serialize)]
pub enum Ask {
    /// A producer's or an operator's request, as it was received. Who sent it was checked.
    Http(HttpAsk),
    /// A session is to be admitted: its records.
    Open(ByteBuf),
    /// A client's message.
    Received { user: String, session: String, body: Spoken },
    /// What has happened on a node, in order.
    Reports(Vec<Report>),
    /// Frames of a producers' stream, in order.
    Frames(Vec<ByteBuf>),
    /// All nodes are to have these policies: the records of the set.
    Agree(ByteBuf),
}

#[derive(Debug, Deserialize, Serialize)]
pub struct HttpAsk {
    pub method: String,
    pub uri: String,
    pub headers: Vec<(String, ByteBuf)>,
    pub body: ByteBuf,
}

/// A client's message: 0 for JSON, 1 for text, 2 for bytes, and what it is.
#[derive(Debug, Deserialize, Serialize)]
pub struct Spoken(u8, ByteBuf);

/// Something that has happened on a node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Report {
    Read {
        user: String,
        birth: u64,
        delivered: Vec<(u64, u64)>,
        is_acked: bool,
        sessions: Vec<(String, u64, u64)>,
    },
    /// A session is over, with this code: its records.
    Closed(ByteBuf, u16),
    /// A formatting policy failed for a reader: the records of the letter.
    Letter(ByteBuf),
}

/// The answer of the node that leads.
#[derive(Debug, Deserialize, Serialize)]
pub enum Told {
    /// It doesn't lead any more.
    NotMe,
    /// It is done, and stored.
    Done,
    /// The session is closed with this code and a policy's text.
    Close(u16, String),
    /// The message is refused, with a code and a sentence.
    Refused(String, String),
    /// It may have been done.
    Unavailable(String),
    Http {
        status: u16,
        headers: Vec<(String, ByteBuf)>,
        body: ByteBuf,
    },
    /// The answers to frames, in their order.
    Frames(Vec<ByteBuf>),
}

/// What a node says of itself each second.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Beat {
    /// The run of the node, and what it is called.
    pub instance: String,
    pub node: String,
    pub version: String,
    /// The last frame that it has absorbed.
    pub absorbed: u64,
    pub term: u64,
    pub leads: bool,
    pub policies: String,
    pub sessions: u64,
    /// Why it does not have the policies on which the nodes have agreed, if it does not. Behind the rest: older nodes don't say it.
    #[serde(skip)]
    pub lack: Option<String>,
}

impl Spoken {
    pub fn of(body: &Body) -> Spoken {
        match body {
            Body::Json(text) => Spoken(0, ByteBuf::from(text.as_bytes())),
            Body::Text(text) => Spoken(1, ByteBuf::from(text.as_bytes())),
            Body::Binary(bytes) => Spoken(2, ByteBuf::from(bytes.as_slice())),
        }
    }

    /// Returns the message, or `None` if it is not what it says.
    pub fn read(self) -> Option<Body> {
        let Spoken(kind, bytes) = self;
        let bytes = bytes.into_vec();
        match kind {
            0 => String::from_utf8(bytes).ok().map(Body::Json),
            1 => String::from_utf8(bytes).ok().map(Body::Text),
            2 => Some(Body::Binary(bytes)),
            _ => None,
        }
    }
}

impl Report {
    pub fn read(read: Read) -> Report {
        let Read { user, birth, delivered, is_acked, sessions } = read;
        let sessions = sessions.into_iter().map(|(session, start, written)| (session.to_string(), start, written)).collect();
        Report::Read { user: user.to_string(), birth, delivered, is_acked, sessions }
    }

    /// Returns about how many bytes it has.
    pub fn size(&self) -> usize {
        match self {
            Report::Read { user, delivered, sessions, .. } => 32 + user.len() + delivered.len() * 16 + sessions.len() * 56,
            Report::Closed(records, _) | Report::Letter(records) => 16 + records.len(),
        }
    }
}

/// Returns what a report of reading says, or `None` if its user is not one.
pub fn read(user: &str, birth: u64, delivered: Vec<(u64, u64)>, is_acked: bool, sessions: Vec<(String, u64, u64)>) -> Option<Read> {
    let sessions = sessions.into_iter().map(|(session, start, written)| (session.into(), start, written)).collect();
    Some(Read { user: UserId::stored(user).ok()?, birth, delivered, is_acked, sessions })
}

/// Returns the records of a session.
pub fn session(info: SessionInfo) -> ByteBuf {
    records(&Change::Opened { birth: 0, at: 0, info: Arc::new(info) })
}

/// Returns the session of these records.
pub fn session_of(records: &[u8]) -> Option<Arc<SessionInfo>> {
    match change(records)? {
        Change::Opened { info, .. } => Some(info),
        _ => None,
    }
}

/// Returns the records of a change.
pub fn records(change: &Change) -> ByteBuf {
    let mut records = Vec::new();
    codec::encode(std::slice::from_ref(change), &mut records);
    ByteBuf::from(records)
}

/// Returns the change of these records, or `None` if they are not one.
pub fn change(records: &[u8]) -> Option<Change> {
    let mut found = None;
    codec::decode(records, |said| {
        if let codec::Said::Change(change) = said {
            found = Some(change);
        }
    })
    .ok()?;
    found
}

/// Returns a beat's bytes.
pub fn encode_beat(beat: &Beat) -> Vec<u8> {
    encode(&(beat, &beat.lack))
}

/// Returns a beat, or `None` if the bytes are not one.
pub fn decode_beat(bytes: &[u8]) -> Option<Beat> {
    let (beat, rest) = postcard::take_from_bytes::<Beat>(bytes).ok()?;
    Some(Beat { lack: postcard::from_bytes(rest).unwrap_or_default(), ..beat })
}

/// Returns a message's bytes.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // A vector takes all bytes, and no message has a sequence of unknown length: this can't fail.
    postcard::to_allocvec(message).unwrap_or_default()
}

/// Returns a message, or `None` if the bytes are not one.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        for body in [Body::Json("{}".into()), Body::Text("ü".into()), Body::Binary(vec![0, 255])] {
            let ask = Ask::Received { user: "1".into(), session: "s".into(), body: Spoken::of(&body) };
            let Some(Ask::Received { body: again, .. }) = decode(&encode(&ask)) else { panic!("another message") };
            assert_eq!(again.read(), Some(body));
        }
        assert!(Spoken(1, ByteBuf::from([255])).read().is_none() && Spoken(9, ByteBuf::new()).read().is_none());
        assert!(decode::<Ask>(&[99]).is_none());
    }

    #[test]
    fn a_beat_is_read_as_it_was_written_also_one_of_a_node_that_says_less() {
        let lack = Some("chat can't be fetched".to_owned());
        let (node, version) = ("a".to_owned(), "1".to_owned());
        let beat =
            Beat { instance: "a-1".into(), node, version, absorbed: 7, term: 2, leads: true, policies: "p".into(), sessions: 3, lack };
        let read = decode_beat(&encode_beat(&beat)).unwrap();
        assert_eq!((read.instance, read.sessions, read.lack), (beat.instance.clone(), 3, beat.lack.clone()));
        let read = decode_beat(&encode(&beat)).unwrap();
        assert_eq!((read.instance, read.sessions, read.lack), (beat.instance, 3, None));
    }

    #[test]
    fn a_session_is_described_as_it_is() {
        let handle = crate::registry::SessionHandle::new(
            UserId::new("1001", 128).unwrap(),
            Some(crate::registry::V1),
            true,
            vec![("locale".into(), "de".into())],
        );
        let given = handle.info(&"a".into());
        let read = session_of(&session(given.clone())).unwrap();
        // To the millisecond.
        assert_eq!(SessionInfo { opened: given.opened, ..(*read).clone() }, given);
        assert!(session_of(b"x").is_none());
    }
}
