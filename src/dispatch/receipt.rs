//! Receipts: the answer to a producer, as a view of the event's plan and its outcome.
//!
//! The command line reads receipts too, perhaps those of a server of another version: unknown members are ignored, missing members
//! have their defaults, and unknown words stay as they are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::apply::Applied;
use super::plan::{Answer, Plan, Step};
use crate::model::mailbox::Posted;
use crate::types::delivery::Refusal;
use crate::types::drop_reason::DropReason;
use crate::types::event::UserId;
use crate::types::fault::Fault;

/// Users that a receipt names for each reason; `count` covers all.
const NAMED_USERS_MAX: usize = 10;

/// The answer to a producer: what happened to one event.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Receipt {
    pub id: String,
    pub source: String,
    /// Whether the same source and id was published before; if so, nothing was done this time.
    pub duplicate: bool,
    /// The policies that wanted the event, in the order in which they were called.
    pub policies: Vec<Consulted>,
    /// Number of users that deliveries reached, each counted once.
    pub recipients: usize,
    /// Messages appended to mailboxes: one for each delivery and recipient.
    pub posted: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
    /// Where the event's outcome is: "disk" or "system" (the operating system). Absent if it is in memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<Cow<'static, str>>,
    /// Number of joins that a limit refused.
    #[serde(skip_serializing_if = "is_zero")]
    pub joins_refused: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Cow<'static, str>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Consulted {
    pub name: Arc<str>,
    #[serde(default)]
    pub version: Arc<str>,
    pub outcome: Outcome,
    #[serde(default)]
    pub deliveries: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Box<FaultReport>>,
    /// Id of the dead letter in which the event is kept for this policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<u64>,
}

/// A fault of which the server knows everything, or the part that a receipt's reader shows.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum FaultReport {
    #[serde(skip_deserializing)]
    Whole(Fault),
    Read {
        kind: String,
        detail: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Routed,
    Refused,
    Faulted,
    /// The policy faulted too often in a row, and was not called.
    CircuitOpen,
    /// An outcome that only a server of another version knows.
    #[serde(untagged)]
    Other(String),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Dropped {
    pub reason: DroppedBecause,
    #[serde(default)]
    pub count: usize,
    /// The first of these users.
    #[serde(default)]
    pub users: Vec<UserId>,
}

/// A reason, or one that only a server of another version knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum DroppedBecause {
    Known(DropReason),
    Other(String),
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Receipt {
    /// Returns the receipt of a message to one user.
    pub fn direct(id: String, user: &UserId, outcome: Posted) -> Receipt {
        let receipt = Receipt { id, recipients: 1, ..Receipt::default() };
        match outcome {
            Posted::Posted { .. } => Receipt { posted: 1, ..receipt },
            Posted::Dropped(reason) => {
                Receipt { dropped: vec![Dropped { reason: DroppedBecause::Known(reason), count: 1, users: vec![user.clone()] }], ..receipt }
            }
        }
    }

    /// Returns it as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // A receipt is a struct of strings and numbers: serializing it can't fail.
        self.plain_json().unwrap_or_else(|| serde_json::to_vec(self).unwrap_or_default())
    }

    /// Returns the JSON of a message that reached its user, as nearly all do: nothing is written but what differs.
    fn plain_json(&self) -> Option<Vec<u8>> {
        const REST: &str = r#"","source":"","duplicate":false,"policies":[],"recipients":1,"posted":1"#;
        let Receipt { id, source, duplicate: false, policies, recipients: 1, posted: 1, dropped, stored, joins_refused: 0, note: None } =
            self
        else {
            return None;
        };
        // All of them, without an end before, so that the compiler takes several bytes at a time.
        let is_escaped = id.bytes().fold(false, |is_any, byte| is_any | (byte < b' ') | (byte == b'"') | (byte == b'\\'));
        if is_escaped || !source.is_empty() || !policies.is_empty() || !dropped.is_empty() {
            return None;
        }
        let stored = match stored.as_deref() {
            None => "}",
            Some("system") => r#","stored":"system"}"#,
            Some("disk") => r#","stored":"disk"}"#,
            Some(_) => return None,
        };
        Some([r#"{"id":""#, id, REST, stored].concat().into_bytes())
    }

    /// Returns the receipt of an event that was posted to its sink again.
    pub fn to_sink(id: String, outcome: Posted) -> Receipt {
        let receipt = Receipt { id, note: Some("it was posted to its sink again".into()), ..Receipt::default() };
        match outcome {
            Posted::Posted { .. } => Receipt { posted: 1, ..receipt },
            Posted::Dropped(reason) => {
                let dropped = vec![Dropped { reason: DroppedBecause::Known(reason), count: 1, users: Vec::new() }];
                Receipt { dropped, note: Some("its sink has no room, and it is a dead letter again".into()), ..receipt }
            }
        }
    }

    /// Returns the receipt of a plan and its outcome.
    pub fn of(id: String, source: String, plan: &Plan, applied: &Applied) -> Receipt {
        let policies: Vec<Consulted> = plan
            .steps
            .iter()
            .enumerate()
            .filter_map(|(index, step)| Consulted::of(step, applied.letters.get(index).copied().flatten()))
            .collect();
        let (posted, dropped) = count(plan, applied);
        Receipt {
            id,
            source,
            duplicate: false,
            recipients: distinct(plan),
            posted,
            dropped,
            stored: None,
            joins_refused: plan.steps.iter().map(Step::joins_refused).sum(),
            note: plan.steps.is_empty().then_some("no policy wanted this event type".into()),
            policies,
        }
    }
}

impl Consulted {
    fn of(step: &Step, dead_letter: Option<u64>) -> Option<Consulted> {
        let policy = step.policy.as_ref()?;
        let (name, version) = (policy.name.clone(), policy.version.clone());
        let consulted = Consulted { name, version, outcome: Outcome::Routed, deliveries: 0, refusal: None, fault: None, dead_letter };
        Some(match &step.answer {
            Answer::Decided(decided) => Consulted { deliveries: decided.deliveries.len(), ..consulted },
            Answer::Refused(refusal) => Consulted { outcome: Outcome::Refused, refusal: Some(refusal.clone()), ..consulted },
            Answer::Faulted(fault) => {
                Consulted { outcome: Outcome::Faulted, fault: Some(Box::new(FaultReport::Whole((**fault).clone()))), ..consulted }
            }
            Answer::CircuitOpen => Consulted { outcome: Outcome::CircuitOpen, ..consulted },
        })
    }
}

impl Outcome {
    pub fn is_failure(&self) -> bool {
        matches!(self, Outcome::Faulted | Outcome::CircuitOpen)
    }

    /// Returns the word that a receipt has for it.
    pub fn name(&self) -> &str {
        match self {
            Outcome::Routed => "routed",
            Outcome::Refused => "refused",
            Outcome::Faulted => "faulted",
            Outcome::CircuitOpen => "circuit_open",
            Outcome::Other(name) => name,
        }
    }
}

impl DroppedBecause {
    /// Returns the word that a receipt has for it.
    pub fn name(&self) -> &str {
        match self {
            DroppedBecause::Known(reason) => reason.name(),
            DroppedBecause::Other(name) => name,
        }
    }
}

impl FaultReport {
    pub fn kind_and_detail(&self) -> (&str, &str) {
        match self {
            FaultReport::Whole(fault) => (fault.defect.kind.name(), &fault.defect.detail),
            FaultReport::Read { kind, detail } => (kind, detail),
        }
    }
}

/// Returns the number of users that deliveries reach. Several deliveries may reach the same user.
fn distinct(plan: &Plan) -> usize {
    let mut deliveries = plan.deliveries();
    let (Some(first), second) = (deliveries.next(), deliveries.next()) else { return 0 };
    if second.is_none() {
        return first.audience.len();
    }
    let mut users: Vec<&UserId> = plan.deliveries().flat_map(|planned| &planned.audience).collect();
    users.sort_unstable();
    users.dedup();
    users.len()
}

/// Counts the messages that were posted, and those that were dropped, by reason.
fn count(plan: &Plan, applied: &Applied) -> (usize, Vec<Dropped>) {
    let mut posted = 0;
    let mut dropped: BTreeMap<DropReason, Dropped> = BTreeMap::new();
    let mut drop = |reason, count, users: &[UserId]| {
        let dropped =
            dropped.entry(reason).or_insert_with(|| Dropped { reason: DroppedBecause::Known(reason), count: 0, users: Vec::new() });
        dropped.count += count;
        dropped.users.extend(users.iter().take(NAMED_USERS_MAX - dropped.users.len()).cloned());
    };
    for (user, outcome) in plan.deliveries().flat_map(|planned| &planned.audience).zip(&applied.posted) {
        match outcome {
            Posted::Posted { .. } => posted += 1,
            Posted::Dropped(reason) => drop(*reason, 1, std::slice::from_ref(user)),
        }
    }
    for planned in plan.deliveries().filter(|planned| planned.beyond > 0) {
        drop(DropReason::TooManyRecipients, planned.beyond, &planned.beyond_users);
    }
    (posted, dropped.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_of_another_version_is_read_with_its_own_words() {
        let answer = r#"{"id":"e1","new":{"a":1},"policies":[
            {"name":"a","outcome":"postponed","until":"2030"},
            {"name":"b","version":"2","outcome":"circuit_open","dead_letter":7},
            {"name":"c","version":"2","outcome":"faulted","fault":{"kind":"melted","detail":"it is gone","policy":"c","digest":7}}],
            "dropped":[{"reason":"unread","count":3,"users":["1"],"more":2},{"reason":"away","count":1,"users":[]}]}"#;
        let receipt: Receipt = serde_json::from_str(answer).unwrap();
        let outcomes: Vec<&str> = receipt.policies.iter().map(|consulted| consulted.outcome.name()).collect();
        assert_eq!(outcomes, ["postponed", "circuit_open", "faulted"]);
        assert_eq!(receipt.policies[1].outcome, Outcome::CircuitOpen);
        assert_eq!(receipt.policies[2].fault.as_ref().unwrap().kind_and_detail(), ("melted", "it is gone"));
        assert_eq!(receipt.dropped[0].reason, DroppedBecause::Other("unread".into()));
        assert_eq!(receipt.dropped[1].reason, DroppedBecause::Known(DropReason::Away));
        assert_eq!((receipt.recipients, receipt.duplicate, receipt.note), (0, false, None));
    }

    #[test]
    fn a_receipt_that_is_written_out_is_the_one_that_is_serialized() {
        let user = UserId::new("1001", 64).unwrap();
        let posted = Receipt::direct("018f-\u{e9}".into(), &user, Posted::Posted { birth: 1, seq: 1 });
        let plain = [None, Some("system".into()), Some("disk".into())].map(|stored| Receipt { stored, ..posted.clone() });
        let others = [
            Receipt { id: "a\"b\\c\u{1}".into(), ..posted.clone() },
            Receipt { source: "/s".into(), ..posted.clone() },
            Receipt { duplicate: true, ..posted.clone() },
            Receipt { note: Some("n".into()), joins_refused: 1, ..posted.clone() },
            Receipt { stored: Some("elsewhere".into()), ..posted.clone() },
            Receipt { recipients: 2, posted: 2, ..posted },
            Receipt::direct("1".into(), &user, Posted::Dropped(DropReason::MailboxFull)),
        ];
        assert!(plain.iter().all(|receipt| receipt.plain_json().is_some()));
        assert!(others.iter().all(|receipt| receipt.plain_json().is_none()));
        for receipt in plain.iter().chain(&others) {
            assert_eq!(String::from_utf8(receipt.to_json()).unwrap(), serde_json::to_string(receipt).unwrap());
        }
    }

    #[test]
    fn an_outcome_is_written_as_it_is_named() {
        for outcome in [Outcome::Routed, Outcome::Refused, Outcome::Faulted, Outcome::CircuitOpen, Outcome::Other("new".into())] {
            assert_eq!(serde_json::to_value(&outcome).unwrap(), outcome.name());
        }
        for reason in DropReason::ALL {
            assert_eq!(serde_json::to_value(DroppedBecause::Known(reason)).unwrap(), reason.name());
        }
    }
}
