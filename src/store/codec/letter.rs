//! Dead letters as records, with the event or the message that each keeps.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::message::{BodyRecord, MessageRecord};
use super::{Unreadable, since_epoch, time, user_id};
use crate::model::dead_letters::{Content, DeadLetter, Recipient};
use crate::types::event::Event;
use crate::types::fault::{Defect, Fault, FaultKind};
use crate::types::origin::Origin;

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct LetterRecord<'a> {
    pub stamp: u64,
    id: u64,
    at_ms: u64,
    policy: &'a str,
    version: &'a str,
    attempts: u32,
    #[serde(borrow)]
    fault: Option<FaultRecord<'a>>,
    content: ContentRecord<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
struct FaultRecord<'a> {
    policy: &'a str,
    version: &'a str,
    digest: &'a str,
    function: &'a str,
    event: Option<&'a str>,
    kind: FaultKind,
    detail: &'a str,
    backtrace: Vec<&'a str>,
    at_ms: u64,
}

#[derive(Debug, Deserialize, Serialize)]
enum ContentRecord<'a> {
    #[serde(borrow)]
    Event(EventRecord<'a>),
    Message(MessageRecord<'a>, Vec<(&'a str, &'a str)>),
    Undelivered(MessageRecord<'a>, &'a str),
}

#[derive(Debug, Deserialize, Serialize)]
struct EventRecord<'a> {
    id: &'a str,
    source: &'a str,
    event_type: &'a str,
    subject: Option<&'a str>,
    time: Option<&'a str>,
    content_type: &'a str,
    extensions: Vec<(&'a str, &'a str)>,
    #[serde(borrow)]
    data: Option<BodyRecord<'a>>,
}

impl<'a> LetterRecord<'a> {
    pub fn of(stamp: u64, letter: &'a DeadLetter) -> LetterRecord<'a> {
        let DeadLetter { id, at, policy, version, attempts, fault, content } = letter;
        let fault = fault.as_ref().map(|fault| FaultRecord {
            policy: &fault.policy,
            version: &fault.version,
            digest: &fault.digest,
            function: &fault.function,
            event: fault.event.as_deref(),
            kind: fault.defect.kind,
            detail: &fault.defect.detail,
            backtrace: fault.defect.backtrace.iter().map(String::as_str).collect(),
            at_ms: since_epoch(fault.at),
        });
        let content = match content {
            Content::Event(event) => ContentRecord::Event(EventRecord::of(event)),
            Content::Message { message, recipients } => {
                let recipients = recipients.iter().map(|recipient| (recipient.user.as_str(), &*recipient.session)).collect();
                ContentRecord::Message(MessageRecord::of(message), recipients)
            }
            Content::Undelivered { message, reason } => ContentRecord::Undelivered(MessageRecord::of(message), reason),
        };
        LetterRecord { stamp, id: *id, at_ms: since_epoch(*at), policy, version, attempts: *attempts, fault, content }
    }

    pub fn read(self) -> Result<DeadLetter, Unreadable> {
        let fault = self.fault.map(|fault| {
            Box::new(Fault {
                policy: fault.policy.into(),
                version: fault.version.into(),
                digest: fault.digest.into(),
                function: fault.function.to_owned().into(),
                event: fault.event.map(str::to_owned),
                defect: Defect {
                    kind: fault.kind,
                    detail: fault.detail.to_owned(),
                    backtrace: fault.backtrace.into_iter().map(str::to_owned).collect(),
                },
                at: time(fault.at_ms),
            })
        });
        let content = match self.content {
            ContentRecord::Event(event) => Content::Event(Arc::new(event.read())),
            ContentRecord::Message(message, recipients) => {
                let recipient = |(user, session): (&str, &str)| Ok(Recipient { user: user_id(user)?, session: session.into() });
                Content::Message {
                    message: Arc::new(message.read()),
                    recipients: recipients.into_iter().map(recipient).collect::<Result<_, _>>()?,
                }
            }
            ContentRecord::Undelivered(message, reason) => {
                Content::Undelivered { message: Arc::new(message.read()), reason: reason.into() }
            }
        };
        Ok(DeadLetter {
            id: self.id,
            at: time(self.at_ms),
            policy: self.policy.into(),
            version: self.version.into(),
            attempts: self.attempts,
            fault,
            content,
        })
    }
}

impl<'a> EventRecord<'a> {
    fn of(event: &'a Event) -> EventRecord<'a> {
        EventRecord {
            id: &event.id,
            source: &event.source,
            event_type: &event.event_type,
            subject: event.subject.as_deref(),
            time: event.time.as_deref(),
            content_type: &event.content_type,
            extensions: event.extensions.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            data: event.data.as_ref().map(BodyRecord::of),
        }
    }

    fn read(self) -> Event {
        Event {
            id: self.id.to_owned(),
            source: self.source.to_owned(),
            event_type: self.event_type.to_owned(),
            subject: self.subject.map(str::to_owned),
            time: self.time.map(str::to_owned),
            content_type: self.content_type.to_owned(),
            extensions: self.extensions.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            data: self.data.map(BodyRecord::read),
            origin: Origin::default(),
        }
    }
}
