//! Receipts: what a producer is told of an event, added up while it is dispatched.

use std::collections::BTreeMap;

use serde::Serialize;

use super::account::Account;
use crate::policy::{Fault, Policy};
use crate::types::delivery::Refusal;
use crate::types::drop_reason::DropReason;
use crate::types::event::UserId;

/// Users that a receipt names for each reason; the count is of all.
const NAMED_USERS_MAX: usize = 10;

/// The answer to a producer: what became of one event.
#[derive(Debug, Default, Serialize)]
pub struct Receipt {
    pub id: String,
    pub source: String,
    /// The same source and id was published before, and nothing was done this time.
    pub duplicate: bool,
    /// The policies that wanted the event, in the order in which they were asked.
    pub policies: Vec<Consulted>,
    /// Users that deliveries named, each once.
    pub recipients: usize,
    /// Messages appended to mailboxes: one for each delivery and recipient.
    pub posted: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
    /// Joins that a limit refused.
    #[serde(skip_serializing_if = "is_zero")]
    pub joins_refused: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct Consulted {
    pub name: String,
    pub version: String,
    pub outcome: Outcome,
    pub deliveries: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Box<Fault>>,
    /// Where the event is kept for this policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Routed,
    Refused,
    Faulted,
    /// The policy faulted too often in a row, and was not called.
    #[serde(rename = "circuit_open")]
    CircuitOpen,
}

#[derive(Debug, Serialize)]
pub struct Dropped {
    pub reason: DropReason,
    pub count: usize,
    /// Some of them.
    pub users: Vec<UserId>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Consulted {
    pub(super) fn of(policy: &Policy) -> Consulted {
        let (name, version) = (policy.name.clone(), policy.version.clone());
        Consulted { name, version, outcome: Outcome::Routed, deliveries: 0, refusal: None, fault: None, dead_letter: None }
    }
}

impl Outcome {
    pub fn is_failure(self) -> bool {
        matches!(self, Outcome::Faulted | Outcome::CircuitOpen)
    }
}

/// What was done for one event, added up.
#[derive(Debug, Default)]
pub(crate) struct Tally<'a> {
    pub(super) account: Option<&'a mut Account>,
    /// One for each delivery and user: several deliveries may name the same ones.
    recipients: Vec<UserId>,
    pub(super) deliveries: usize,
    pub(super) posted: usize,
    dropped: BTreeMap<DropReason, (usize, Vec<UserId>)>,
    pub(super) joins_refused: usize,
}

impl<'a> Tally<'a> {
    pub(super) fn with(account: Option<&'a mut Account>) -> Tally<'a> {
        Tally { account, ..Tally::default() }
    }

    pub(super) fn name(&mut self, user: &UserId) {
        self.recipients.push(user.clone());
    }

    /// One who is told twice counts twice.
    pub(super) fn told(&self) -> usize {
        self.recipients.len()
    }

    pub(super) fn drop(&mut self, reason: DropReason, user: &UserId) {
        let (count, users) = self.dropped.entry(reason).or_default();
        *count += 1;
        if users.len() < NAMED_USERS_MAX {
            users.push(user.clone());
        }
    }

    pub(super) fn into_receipt(mut self, receipt: Receipt) -> Receipt {
        if self.deliveries > 1 {
            self.recipients.sort_unstable();
            self.recipients.dedup();
        }
        let dropped = self.dropped.into_iter().map(|(reason, (count, users))| Dropped { reason, count, users });
        Receipt {
            recipients: self.recipients.len(),
            posted: self.posted,
            dropped: dropped.collect(),
            joins_refused: self.joins_refused,
            ..receipt
        }
    }
}
