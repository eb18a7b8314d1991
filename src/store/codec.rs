//! The records of a frame: changes as bytes.
//!
//! A record is `flags u8 · bytes u32 · content`, where `content` is postcard's encoding of [`Record`]. A reader of an earlier version skips
//! a record that it does not know if [`MAY_BE_SKIPPED`] is set, and refuses the store otherwise. A `Post` belongs to the last `Message`
//! before it, so that a message is written once for all of its recipients.

mod letter;
mod message;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use crate::model::Counters;
use crate::model::agreement::{Agreed, Component};
use crate::model::record::{Change, Mark};
use crate::model::state::Value;
use crate::registry::{SessionInfo, subprotocol};
use crate::types::close::Close;
use crate::types::delivery::{Message, PolicySetId};
use crate::types::event::UserId;
use letter::LetterRecord;
use message::MessageRecord;

/// Set for records without which the rest is still right. No record of this version is.
const MAY_BE_SKIPPED: u8 = 1;

/// Bytes of a record before its content.
const HEAD_BYTES: usize = 5;

/// What a frame's records say.
#[derive(Debug, PartialEq)]
pub enum Said {
    Change(Change),
    /// The process ended in order, and these were its last numbers.
    Stop(Counters),
    /// The segments up to this one were removed, or are about to be, since nothing in them counts.
    Cleaned(u64),
    /// A node of a cluster leads from here on.
    Lead(Lead),
    /// The node that leads is there, and has nothing else to say.
    Beat,
    /// The node that leads does so no longer: this one may.
    Yield(Arc<str>),
}

/// Who leads a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Counts up with each node that leads.
    pub term: u64,
    /// The run of a node.
    pub node: Arc<str>,
    /// The store that the cluster has made together.
    pub store: u64,
}

/// Why records can't be read, although their frame is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("a later version of Signalpost has written a record that this one doesn't know")]
    Newer,
    #[error("a record is not complete")]
    Short,
}

/// Only append variants: their positions are the format.
#[derive(Debug, Deserialize, Serialize)]
enum Record<'a> {
    #[serde(borrow)]
    Message(MessageRecord<'a>),
    Post(PostRecord<'a>),
    Mark {
        user: &'a str,
        birth: u64,
        mark: Mark,
        removed: Vec<(u64, u64)>,
    },
    Join {
        stamp: u64,
        group: &'a str,
        user: &'a str,
        policy: &'a str,
    },
    Leave {
        stamp: u64,
        group: &'a str,
        user: &'a str,
    },
    End {
        stamp: u64,
        group: &'a str,
    },
    Set {
        stamp: u64,
        policy: &'a str,
        key: &'a str,
        value: &'a Bytes,
        expires_ms: Option<u64>,
    },
    Unset {
        stamp: u64,
        policy: &'a str,
        key: &'a str,
    },
    Seen {
        key: u128,
        at_ms: u64,
        failed: bool,
    },
    Letter(Box<LetterRecord<'a>>),
    NoLetter {
        stamp: u64,
        id: u64,
    },
    Stop(Counters),
    Cleaned {
        segment: u64,
    },
    // What follows is between the nodes of a cluster.
    PostTo(PostRecord<'a>, &'a str),
    Opened(Box<OpenedRecord<'a>>),
    Closed {
        user: &'a str,
        session: &'a str,
        why: Option<(u16, &'a str)>,
    },
    Gone {
        node: &'a str,
    },
    Lead {
        term: u64,
        node: &'a str,
        store: u64,
    },
    Beat,
    Yield {
        node: &'a str,
    },
    Agreed {
        revision: u64,
        id: u128,
        /// Each policy with its component's digest.
        #[serde(borrow)]
        components: Vec<(&'a str, &'a str)>,
    },
}

#[derive(Debug, Deserialize, Serialize)]
struct PostRecord<'a> {
    user: &'a str,
    birth: u64,
    seq: u64,
    posted_ms: u64,
    lost: u64,
    removed: Vec<u64>,
}

#[derive(Debug, Deserialize, Serialize)]
struct OpenedRecord<'a> {
    birth: u64,
    at: u64,
    node: &'a str,
    session: &'a str,
    user: &'a str,
    subprotocol: Option<&'a str>,
    resumes: bool,
    attributes: Vec<(&'a str, &'a str)>,
    opened_ms: u64,
}

/// Appends the records of these changes.
pub fn encode(changes: &[Change], out: &mut Vec<u8>) {
    let mut encoder = Encoder::default();
    changes.iter().for_each(|change| encoder.put(change, out));
}

/// Appends records of changes, and a message once for the posts that follow each other.
#[derive(Debug, Default)]
pub struct Encoder<'a> {
    last: Option<&'a Arc<Message>>,
}

impl<'a> Encoder<'a> {
    /// Appends the records of a change. A new encoder begins each frame.
    pub fn put(&mut self, change: &'a Change, out: &mut Vec<u8>) {
        if let Change::Post { message, .. } = change
            && !self.last.is_some_and(|last| Arc::ptr_eq(last, message))
        {
            put(&Record::Message(MessageRecord::of(message)), out);
            self.last = Some(message);
        }
        put(&Record::of(change), out);
    }
}

/// Appends the record of an orderly stop.
pub fn encode_stop(counters: Counters, out: &mut Vec<u8>) {
    put(&Record::Stop(counters), out);
}

/// Appends the record that the segments up to this one are removed.
pub fn encode_cleaned(segment: u64, out: &mut Vec<u8>) {
    put(&Record::Cleaned { segment }, out);
}

/// Appends the record that a node leads.
pub fn encode_lead(lead: &Lead, out: &mut Vec<u8>) {
    put(&Record::Lead { term: lead.term, node: &lead.node, store: lead.store }, out);
}

/// Appends the record that the leader is there.
pub fn encode_beat(out: &mut Vec<u8>) {
    put(&Record::Beat, out);
}

/// Appends the record that another node may lead.
pub fn encode_yield(node: &str, out: &mut Vec<u8>) {
    put(&Record::Yield { node }, out);
}

fn put(record: &Record<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD_BYTES]);
    // A vector takes all bytes, and no record has a sequence of unknown length: this can't fail.
    let _ = postcard::serialize_with_flavor(record, Appended(out));
    let bytes = u32::try_from(out.len() - start - HEAD_BYTES).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start + 1..start + HEAD_BYTES) {
        place.copy_from_slice(&bytes.to_le_bytes());
    }
}

/// Appends what postcard writes, most of which is single bytes.
struct Appended<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Appended<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Reads the records of a frame.
///
/// # Errors
/// They can't be read.
pub fn decode(mut records: &[u8], mut each: impl FnMut(Said)) -> Result<(), Unreadable> {
    let mut message = None;
    while let Some((flags, rest)) = records.split_first() {
        let (bytes, rest) = rest.split_first_chunk().ok_or(Unreadable::Short)?;
        let (content, rest) = rest.split_at_checked(u32::from_le_bytes(*bytes) as usize).ok_or(Unreadable::Short)?;
        records = rest;
        match postcard::from_bytes::<Record>(content) {
            Ok(record) => record.said(&mut message)?.into_iter().for_each(&mut each),
            Err(_) if flags & MAY_BE_SKIPPED != 0 => {}
            Err(_) => return Err(Unreadable::Newer),
        }
    }
    Ok(())
}

impl<'a> Record<'a> {
    fn of(change: &'a Change) -> Record<'a> {
        match change {
            Change::Post { user, birth, seq, posted_ms, message: _, session, lost, removed } => {
                let (birth, seq, posted_ms, lost) = (*birth, *seq, *posted_ms, *lost);
                let post = PostRecord { user: user.as_str(), birth, seq, posted_ms, lost, removed: removed.clone() };
                match session {
                    None => Record::Post(post),
                    Some(session) => Record::PostTo(post, session),
                }
            }
            Change::Mark { user, birth, mark, removed } => {
                Record::Mark { user: user.as_str(), birth: *birth, mark: *mark, removed: removed.clone() }
            }
            Change::Join { stamp, group, user, policy } => Record::Join { stamp: *stamp, group, user: user.as_str(), policy },
            Change::Leave { stamp, group, user } => Record::Leave { stamp: *stamp, group, user: user.as_str() },
            Change::End { stamp, group } => Record::End { stamp: *stamp, group },
            Change::Set { stamp, policy, key, value } => {
                Record::Set { stamp: *stamp, policy, key, value: Bytes::new(&value.bytes), expires_ms: value.expires_ms }
            }
            Change::Unset { stamp, policy, key } => Record::Unset { stamp: *stamp, policy, key },
            Change::Seen { key, at_ms, failed } => Record::Seen { key: *key, at_ms: *at_ms, failed: *failed },
            Change::Letter { stamp, letter } => Record::Letter(Box::new(LetterRecord::of(*stamp, letter))),
            Change::NoLetter { stamp, id } => Record::NoLetter { stamp: *stamp, id: *id },
            Change::Opened { birth, at, info } => Record::Opened(Box::new(OpenedRecord::of(*birth, *at, info))),
            Change::Closed { user, session, why } => {
                let why = why.as_ref().map(|why| (why.code(), why.text()));
                Record::Closed { user: user.as_str(), session, why }
            }
            Change::Gone { node } => Record::Gone { node },
            Change::Agreed(agreed) => {
                let component = |component: &'a Component| (component.name.as_str(), component.digest.as_str());
                Record::Agreed { revision: agreed.revision, id: agreed.id.0, components: agreed.components.iter().map(component).collect() }
            }
        }
    }

    /// Returns what the record says. `message`: the last one before it.
    fn said(self, message: &mut Option<Arc<Message>>) -> Result<Option<Said>, Unreadable> {
        let change = match self {
            Record::Message(record) => {
                *message = Some(Arc::new(record.read()));
                return Ok(None);
            }
            Record::Stop(counters) => return Ok(Some(Said::Stop(counters))),
            Record::Cleaned { segment } => return Ok(Some(Said::Cleaned(segment))),
            Record::Post(post) => post.read(message, None)?,
            Record::PostTo(post, session) => post.read(message, Some(session.into()))?,
            Record::Opened(record) => Change::Opened { birth: record.birth, at: record.at, info: Arc::new(record.read()?) },
            Record::Closed { user, session, why } => {
                let why = why.map(|(code, text)| Close::of(code, text).ok_or(Unreadable::Newer)).transpose()?;
                Change::Closed { user: user_id(user)?, session: session.into(), why }
            }
            Record::Gone { node } => Change::Gone { node: node.into() },
            Record::Agreed { revision, id, components } => {
                let component = |(name, digest): (&str, &str)| Component { name: name.to_owned(), digest: digest.to_owned() };
                let components = components.into_iter().map(component).collect();
                Change::Agreed(Arc::new(Agreed { revision, id: PolicySetId(id), components }))
            }
            Record::Lead { term, node, store } => return Ok(Some(Said::Lead(Lead { term, node: node.into(), store }))),
            Record::Beat => return Ok(Some(Said::Beat)),
            Record::Yield { node } => return Ok(Some(Said::Yield(node.into()))),
            Record::Mark { user, birth, mark, removed } => Change::Mark { user: user_id(user)?, birth, mark, removed },
            Record::Join { stamp, group, user, policy } => {
                Change::Join { stamp, group: group.to_owned(), user: user_id(user)?, policy: policy.into() }
            }
            Record::Leave { stamp, group, user } => Change::Leave { stamp, group: group.to_owned(), user: user_id(user)? },
            Record::End { stamp, group } => Change::End { stamp, group: group.to_owned() },
            Record::Set { stamp, policy, key, value, expires_ms } => {
                let value = Value { bytes: value.as_ref().into(), expires_ms };
                Change::Set { stamp, policy: policy.into(), key: key.to_owned(), value }
            }
            Record::Unset { stamp, policy, key } => Change::Unset { stamp, policy: policy.into(), key: key.to_owned() },
            Record::Seen { key, at_ms, failed } => Change::Seen { key, at_ms, failed },
            Record::Letter(record) => Change::Letter { stamp: record.stamp, letter: Arc::new(record.read()?) },
            Record::NoLetter { stamp, id } => Change::NoLetter { stamp, id },
        };
        Ok(Some(Said::Change(change)))
    }
}

impl PostRecord<'_> {
    /// `message`: the last one before it.
    fn read(self, message: &Option<Arc<Message>>, session: Option<Arc<str>>) -> Result<Change, Unreadable> {
        let PostRecord { user, birth, seq, posted_ms, lost, removed } = self;
        let message = message.clone().ok_or(Unreadable::Short)?;
        Ok(Change::Post { user: user_id(user)?, birth, seq, posted_ms, message, session, lost, removed })
    }
}

impl<'a> OpenedRecord<'a> {
    fn of(birth: u64, at: u64, info: &'a SessionInfo) -> OpenedRecord<'a> {
        OpenedRecord {
            birth,
            at,
            node: &info.node,
            session: &info.session,
            user: info.user.as_str(),
            subprotocol: info.subprotocol,
            resumes: info.resumes,
            attributes: info.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            opened_ms: since_epoch(info.opened),
        }
    }

    fn read(self) -> Result<SessionInfo, Unreadable> {
        let subprotocol = self.subprotocol.map(|name| subprotocol(name).ok_or(Unreadable::Newer)).transpose()?;
        Ok(SessionInfo {
            node: self.node.into(),
            session: self.session.into(),
            user: user_id(self.user)?,
            subprotocol,
            resumes: self.resumes,
            attributes: self.attributes.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            opened: time(self.opened_ms),
        })
    }
}

fn user_id(text: &str) -> Result<UserId, Unreadable> {
    UserId::stored(text).map_err(|_| Unreadable::Newer)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn since_epoch(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn time(at_ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(at_ms)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
