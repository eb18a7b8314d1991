//! Messages as records.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use super::milliseconds;
use crate::types::delivery::{Message, PolicySetId, Priority, Terms};
use crate::types::event::Body;
use crate::types::origin::Origin;

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct MessageRecord<'a> {
    event_id: &'a str,
    event_type: &'a str,
    #[serde(borrow)]
    body: BodyRecord<'a>,
    policies: u128,
    is_for_session: bool,
    attempt: u32,
    ttl_ms: Option<u64>,
    keep_ms: Option<u64>,
    collapse_key: Option<&'a str>,
    priority: u8,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) enum BodyRecord<'a> {
    Json(&'a str),
    Text(&'a str),
    Binary(&'a Bytes),
}

impl<'a> MessageRecord<'a> {
    pub fn of(message: &'a Message) -> MessageRecord<'a> {
        let Message { event_id, event_type, body, policies, terms, is_for_session, attempt, origin: _ } = message;
        MessageRecord {
            event_id,
            event_type,
            body: BodyRecord::of(body),
            policies: policies.0,
            is_for_session: *is_for_session,
            attempt: *attempt,
            ttl_ms: terms.time_to_live.map(milliseconds),
            keep_ms: terms.keep.map(milliseconds),
            collapse_key: terms.collapse_key.as_deref(),
            priority: terms.priority as u8,
        }
    }

    pub fn read(self) -> Message {
        Message {
            event_id: self.event_id.to_owned(),
            event_type: self.event_type.to_owned(),
            body: Arc::new(self.body.read()),
            policies: PolicySetId(self.policies),
            terms: Terms {
                time_to_live: self.ttl_ms.map(Duration::from_millis),
                keep: self.keep_ms.map(Duration::from_millis),
                collapse_key: self.collapse_key.map(Arc::from),
                priority: match self.priority {
                    0 => Priority::Low,
                    1 => Priority::Normal,
                    _ => Priority::High,
                },
            },
            is_for_session: self.is_for_session,
            attempt: self.attempt,
            origin: Origin::default(),
        }
    }
}

impl<'a> BodyRecord<'a> {
    pub fn of(body: &'a Body) -> BodyRecord<'a> {
        match body {
            Body::Json(text) => BodyRecord::Json(text),
            Body::Text(text) => BodyRecord::Text(text),
            Body::Binary(bytes) => BodyRecord::Binary(Bytes::new(bytes)),
        }
    }

    pub fn read(self) -> Body {
        match self {
            BodyRecord::Json(text) => Body::Json(text.to_owned()),
            BodyRecord::Text(text) => Body::Text(text.to_owned()),
            BodyRecord::Binary(bytes) => Body::Binary(bytes.to_vec()),
        }
    }
}
