//! The policies of a node in a cluster. It takes what all nodes have agreed on, from its folder or from NATS. Its own folder counts when an operator
//! reloads this node, or when the folder changes while this node leads: then the node proposes what is there to all.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::Node;
use crate::cluster::{Cluster, Member};
use crate::config::Config;
use crate::model::agreement::{Agreed, Component};
use crate::policy::Rejected;
use crate::policy::load::{Again, Reload};

/// How long to wait before what all nodes have agreed on, or what this one proposes, is tried again: the first time and at most.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// How often a node that starts looks whether it has caught up with the others.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What this node knows of its folder.
#[derive(Debug, Default)]
pub struct Sharing {
    /// The folder as it was looked at last.
    seen: Mutex<Option<Listing>>,
}

/// Each policy of a folder with its digest, if its file can be read.
type Listing = Vec<(String, Option<String>)>;

/// Takes what the nodes have agreed on, again and again. If they have not and this node leads, it proposes what its folder has. A server that is
/// alone has nothing to do here.
pub async fn keep(node: Arc<Node>) {
    let Cluster::Member(member) = &node.cluster else { return };
    // What a snapshot says may be over, and its components may be gone.
    while !member.has_caught_up() {
        sleep(LOOK_INTERVAL).await;
    }
    let mut agreed = node.model.agreement.follow();
    let (first, last) = RETRY_PAUSES;
    let mut pause = first;
    loop {
        let now = agreed.borrow_and_update().clone();
        let is_there = node.policies.lack(now.as_deref()).is_none();
        // Cancel safe, as all that is selected here.
        match &now {
            _ if is_there => {
                // The sender lives as long as the model.
                let _ = agreed.changed().await;
            }
            None if !node.store.decides() => tokio::select! {
                _ = agreed.changed() => {}
                () = node.store.until(true) => {}
            },
            _ => {
                let again = if now.is_some() { Again::Passing } else { Again::All };
                drop(node.reload(again, None).await);
                // What was refused is refused again, unless the reason may pass: until there is another set, or an operator reloads.
                let is_refused = now.as_ref().is_some_and(|now| is_refused(&node, now));
                tokio::select! {
                    _ = agreed.changed() => {}
                    () = sleep(pause), if !is_refused && node.policies.lack(now.as_deref()).is_some() => {
                        pause = (pause * 2).min(last);
                        continue;
                    }
                }
            }
        }
        pause = first;
    }
}

/// Returns whether a component of these is refused for good.
fn is_refused(node: &Node, agreed: &Agreed) -> bool {
    let is_of_it = |digest: &Option<String>| agreed.components.iter().any(|component| Some(&component.digest) == digest.as_ref());
    node.policies.rejected().iter().any(|rejected| !rejected.is_retried && is_of_it(&rejected.digest))
}

/// Brings the policies of a node up to date with what the nodes have agreed on, and with the next configuration if there is one. Proposes what the
/// folder has before that, if an operator asks for it or the folder has changed.
pub(super) async fn reload(node: &Arc<Node>, member: &Arc<Member>, again: Again, next: Option<Arc<Config>>) -> Reload {
    let agreed = node.model.agreement.now();
    if again == Again::No && !(has_changed(node).await && leads(member)) {
        return Reload::Unchanged;
    }
    if again != Again::Passing
        && let Some(outcome) = propose(node, member, agreed.as_deref(), again, next.as_ref()).await
    {
        return outcome;
    }
    match node.model.agreement.now() {
        Some(agreed) => take(node, member, &agreed, next).await,
        None => Reload::Unchanged,
    }
}

/// Has all nodes go back with this one, which leads and whose new policies have faulted.
pub(super) async fn go_back(node: &Arc<Node>, member: &Arc<Member>) {
    if member.follows() {
        return;
    }
    let current = node.policies.current();
    let components = current.policies.iter().map(|policy| policy.component()).collect();
    if let Err(why) = member.agree(&node.dispatch, current.id, components).await {
        tracing::error!("the other nodes don't go back: {why}");
    }
}

/// Returns whether the folder has changed since this node looked at it last.
async fn has_changed(node: &Arc<Node>) -> bool {
    let loader = node.loader.clone();
    let Ok(Some(now)) = tokio::task::spawn_blocking(move || loader.folder()).await else { return false };
    let before = node.sharing.seen.lock().replace(now.clone());
    before.is_some_and(|before| before != now)
}

fn leads(member: &Member) -> bool {
    if member.follows() {
        tracing::warn!(
            "the plugins' folder has changed, and does not count while another node leads: a reload of this node gives it to all"
        );
    }
    !member.follows()
}

/// Proposes what the folder has. Returns the outcome if all nodes stay with what they have.
async fn propose(
    node: &Arc<Node>,
    member: &Arc<Member>,
    agreed: Option<&Agreed>,
    again: Again,
    next: Option<&Arc<Config>>,
) -> Option<Reload> {
    let (loader, policies, next, is_first) = (node.loader.clone(), node.policies.clone(), next.cloned(), agreed.is_none());
    let proposal = match tokio::task::spawn_blocking(move || loader.propose(&policies, again, next.as_ref(), is_first)).await {
        Ok(Ok(proposal)) => proposal?,
        Ok(Err(outcome)) => {
            note(node, agreed, &outcome);
            return Some(outcome);
        }
        Err(error) => return Some(Reload::Unreadable(format!("the plugins can't be loaded: {error}"))),
    };
    if agreed.is_some_and(|agreed| proposal.is(agreed) || proposal.components.is_empty()) {
        return None;
    }
    for (component, file) in &proposal.components {
        if let Err(error) = give(node, member, component, file).await {
            return Some(Reload::Unreadable(format!("{} can't be given to the other nodes: {error:#}", component.name)));
        }
    }
    let components = proposal.components.into_iter().map(|(component, _)| component).collect();
    let why = member.agree(&node.dispatch, proposal.id, components).await.err()?;
    Some(Reload::Unreadable(format!("the nodes have not agreed on these policies: {why}")))
}

/// Makes a component available to all nodes, if it is not.
async fn give(node: &Arc<Node>, member: &Arc<Member>, component: &Component, file: &Path) -> anyhow::Result<()> {
    if member.has(component).await? {
        return Ok(());
    }
    let (loader, digest, file) = (node.loader.clone(), component.digest.clone(), file.to_owned());
    let read = tokio::task::spawn_blocking(move || loader.component(&digest, &file)).await?;
    member.give(component, &read.context("its file has changed meanwhile, or can't be read")?).await
}

/// Says why the nodes have not agreed on anything yet.
fn note(node: &Node, agreed: Option<&Agreed>, outcome: &Reload) {
    if agreed.is_some() {
        return;
    }
    let why = match outcome {
        Reload::Refused(rejected) => rejected.iter().map(Rejected::sentence).collect::<Vec<_>>().join("; "),
        Reload::Unreadable(why) => why.clone(),
        Reload::Unchanged | Reload::Swapped { .. } => return,
    };
    node.policies.note_trouble(Some(format!("no policies are agreed on yet, since this node, which leads, can't load its own: {why}")));
}

/// Takes what the nodes have agreed on.
async fn take(node: &Arc<Node>, member: &Arc<Member>, agreed: &Arc<Agreed>, next: Option<Arc<Config>>) -> Reload {
    let (loader, policies, wanted) = (node.loader.clone(), node.policies.clone(), agreed.clone());
    let missing = match tokio::task::spawn_blocking(move || loader.missing(&policies, &wanted)).await {
        Ok(missing) => missing,
        Err(error) => return Reload::Unreadable(format!("the plugins can't be read: {error}")),
    };
    let mut fetched = HashMap::new();
    for component in missing {
        match member.fetch(&component).await {
            Ok(bytes) => drop(fetched.insert(component.digest, bytes)),
            Err(error) => {
                let why = format!("{} can't be fetched: {error:#}", component.name);
                node.policies.note_trouble(Some(why.clone()));
                return Reload::Unreadable(why);
            }
        }
    }
    let (loader, policies, wanted) = (node.loader.clone(), node.policies.clone(), agreed.clone());
    let outcome = match tokio::task::spawn_blocking(move || loader.take(&policies, &wanted, fetched, next)).await {
        Ok(outcome) => outcome,
        Err(error) => return Reload::Unreadable(format!("the plugins can't be loaded: {error}")),
    };
    if matches!(outcome, Reload::Unchanged | Reload::Swapped { .. }) {
        node.policies.begin();
        node.policies.note_trouble(None);
        let current = node.policies.current();
        if !agreed.is(&current) {
            node.policies.note_trouble(Some("this node's configuration disables one of them".to_owned()));
        } else if agreed.id != current.id {
            tracing::warn!("this node has other settings of the policies than the one that has proposed them: see `signalpost cluster`");
        }
    }
    outcome
}
