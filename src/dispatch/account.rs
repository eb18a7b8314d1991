//! Accounts: all that was done for one event, for whoever wants it explained.

use std::sync::Arc;
use std::time::Duration;

use crate::model::mailbox::Posted;
use crate::policy::Policy;
use crate::types::delivery::{Decision, Membership, Message, Recipients, Terms};
use crate::types::event::UserId;

/// Recipients of one delivery that are named; the others are counted.
const NAMED_MAX: usize = 100;

#[derive(Debug, Default)]
pub struct Account {
    pub revision: u64,
    /// In the order in which they were asked.
    pub policies: Vec<Asked>,
}

/// A policy's call, and what came of it.
#[derive(Debug, Default)]
pub struct Asked {
    pub name: String,
    pub version: String,
    pub digest: String,
    pub took: Duration,
    pub joins: Vec<Membership>,
    pub told: Vec<Told>,
    pub leaves: Vec<Membership>,
    pub ends: Vec<String>,
}

/// A delivery, and what became of it.
#[derive(Debug)]
pub struct Told {
    pub to: Recipients,
    pub except: Vec<UserId>,
    pub message: Arc<Message>,
    pub terms: Terms,
    /// User, session where only that one was meant, and whether it is in the mailbox.
    pub users: Vec<(UserId, Option<Arc<str>>, Posted)>,
    /// Further ones.
    pub more: usize,
}

impl Asked {
    pub fn new(policy: &Policy, took: Duration, decision: Option<&Decision>) -> Asked {
        let (joins, leaves, ends) = match decision {
            Some(decision) => (decision.joins.clone(), decision.leaves.clone(), decision.ends.clone()),
            None => Default::default(),
        };
        let (name, version, digest) = (policy.name.clone(), policy.version.clone(), policy.digest.clone());
        Asked { name, version, digest, took, joins, told: Vec::new(), leaves, ends }
    }
}

impl Account {
    /// No policy was asked whom to tell.
    pub fn of_a_direct_message(user: &UserId, message: &Arc<Message>, terms: &Terms) -> Account {
        let asked = Asked { name: "sent directly".to_owned(), ..Asked::default() };
        let mut account = Account { revision: message.revision, policies: vec![asked] };
        account.tell(&Recipients::Users(vec![user.clone()]), &[], message, terms);
        account
    }

    pub fn tell(&mut self, to: &Recipients, except: &[UserId], message: &Arc<Message>, terms: &Terms) {
        let (to, except, message, terms) = (to.clone(), except.to_vec(), message.clone(), terms.clone());
        if let Some(asked) = self.policies.last_mut() {
            asked.told.push(Told { to, except, message, terms, users: Vec::new(), more: 0 });
        }
    }

    pub fn posted(&mut self, user: &UserId, session: Option<&Arc<str>>, posted: Posted) {
        let Some(told) = self.policies.last_mut().and_then(|asked| asked.told.last_mut()) else { return };
        if told.users.len() < NAMED_MAX {
            told.users.push((user.clone(), session.cloned(), posted));
        } else {
            told.more += 1;
        }
    }
}
