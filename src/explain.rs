//! Explanations: what became of an event, or would become of it, down to what each class of readers sees.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::dispatch::{Account, Asked, Dispatch, Receipt, Told};
use crate::format::{Class, Format};
use crate::model::mailbox::Posted;
use crate::types::delivery::{Membership, Priority, Recipients, Terms};
use crate::types::drop_reason::DropReason;
use crate::types::event::{Body, Event, UserId};

/// A receipt, and the whole story behind it.
#[derive(Debug, Serialize)]
pub struct Explained {
    #[serde(flatten)]
    receipt: Receipt,
    explanation: Explanation,
}

#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// Nothing was sent, and nothing has changed.
    dry_run: bool,
    /// Of the policy set.
    revision: u64,
    /// As in the receipt, one for each; there are the outcome, the refusal and the fault.
    policies: Vec<PolicyView>,
}

#[derive(Debug, Serialize)]
struct PolicyView {
    name: String,
    version: String,
    digest: String,
    /// Microseconds.
    took_us: u64,
    joins: Vec<Membership>,
    deliveries: Vec<DeliveryView>,
    leaves: Vec<Membership>,
    ends: Vec<String>,
}

#[derive(Debug, Serialize)]
struct DeliveryView {
    to: Recipients,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<UserId>,
    /// Before any formatting.
    message: Arc<Body>,
    terms: TermsView,
    recipients: Vec<RecipientView>,
    /// Recipients beyond those that are named.
    more: usize,
    /// Formatting policies, in order.
    formatting: Vec<String>,
    /// What the open sessions of the named recipients see.
    classes: Vec<ClassView>,
}

#[derive(Debug, Serialize)]
struct TermsView {
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse_key: Option<Arc<str>>,
    priority: Priority,
}

#[derive(Debug, Serialize)]
struct RecipientView {
    user: UserId,
    /// In the user's mailbox; absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<DropReason>,
    /// Open ones. Without any, the message waits in the mailbox.
    sessions: Vec<SessionView>,
}

#[derive(Debug, Serialize)]
struct SessionView {
    id: Arc<str>,
    subprotocol: Option<&'static str>,
    /// Index in `classes`.
    class: usize,
}

#[derive(Debug, Serialize)]
struct ClassView {
    attributes: Class,
    #[serde(skip_serializing_if = "Option::is_none")]
    sees: Option<Arc<Body>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<DropReason>,
    /// Of the formatting policies that were asked, as far as that is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    took: Vec<TookView>,
}

#[derive(Debug, Serialize)]
struct TookView {
    name: String,
    /// Microseconds.
    took_us: u64,
}

/// Explains events.
#[derive(Debug)]
pub struct Explain {
    pub dispatch: Arc<Dispatch>,
    pub format: Arc<Format>,
    pub config: Arc<Config>,
}

impl Explain {
    /// Publishes the event and tells what became of it. `once`: as [`Dispatch::publish_once`].
    pub async fn publish(&self, event: Event, once: bool) -> Explained {
        explain(&self.dispatch, &self.format, event, once, false).await
    }

    /// Tells what would become of the event.
    ///
    /// # Errors
    /// Those of [`Dispatch::rehearsal`].
    pub async fn rehearse(&self, event: Event) -> prometheus::Result<Explained> {
        let dispatch = self.dispatch.rehearsal(&self.config)?;
        let format = Format::new(dispatch.policies.clone(), dispatch.dead_letters.clone(), self.config.mailboxes.shapes_bytes_max);
        format.watch();
        Ok(explain(&dispatch, &format, event, false, true).await)
    }
}

async fn explain(dispatch: &Dispatch, format: &Format, event: Event, once: bool, dry_run: bool) -> Explained {
    let mut account = Account::default();
    let publish = if once { Dispatch::publish_once } else { Dispatch::publish };
    let receipt = publish(dispatch, event, Some(&mut account));
    Explained { receipt, explanation: told(dispatch, format, account, dry_run).await }
}

/// The story of what was done, down to what each class of readers sees.
pub(crate) async fn told(dispatch: &Dispatch, format: &Format, account: Account, dry_run: bool) -> Explanation {
    let mut policies = Vec::new();
    for asked in account.policies {
        let Asked { name, version, digest, took, joins, told, leaves, ends } = asked;
        let mut deliveries = Vec::new();
        for told in told {
            deliveries.push(delivery(dispatch, format, told, dry_run).await);
        }
        policies.push(PolicyView { name, version, digest, took_us: microseconds(took), joins, deliveries, leaves, ends });
    }
    Explanation { dry_run, revision: account.revision, policies }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

async fn delivery(dispatch: &Dispatch, format: &Format, told: Told, dry_run: bool) -> DeliveryView {
    let Told { to, except, message, terms, users, more } = told;
    let mut classes: Vec<ClassView> = Vec::new();
    let mut formatting = Vec::new();
    let mut recipients = Vec::new();
    for (user, only, posted) in users {
        let mut sessions = Vec::new();
        for (handle, _) in dispatch.services.mailboxes.presence(&user).sessions {
            if only.as_ref().is_some_and(|only| *only != handle.id) {
                continue;
            }
            let (policies, attributes) = format.class(&message, &handle);
            formatting = policies;
            let class = match classes.iter().position(|class| class.attributes == attributes) {
                Some(known) => known,
                None => {
                    let (sees, dropped) = match format.view(&message, &handle).await {
                        Ok(body) => (Some(body), None),
                        Err(reason) => (None, Some(reason)),
                    };
                    let took = format.took(&message, &handle).into_iter();
                    let took = took.map(|(name, took)| TookView { name, took_us: microseconds(took) }).collect();
                    classes.push(ClassView { attributes, sees, dropped, took });
                    classes.len() - 1
                }
            };
            sessions.push(SessionView { id: handle.id.clone(), subprotocol: handle.subprotocol, class });
        }
        let (seq, dropped) = match posted {
            Posted::Posted { seq } => ((!dry_run).then_some(seq), None),
            Posted::Dropped(reason) => (None, Some(reason)),
        };
        recipients.push(RecipientView { user, seq, dropped, sessions });
    }
    let Terms { time_to_live, keep, collapse_key, priority } = terms;
    let terms =
        TermsView { ttl_ms: time_to_live.map(|time| time.as_millis()), keep_ms: keep.map(|time| time.as_millis()), collapse_key, priority };
    DeliveryView { to, except, message: message.body.clone(), terms, recipients, more, formatting, classes }
}
