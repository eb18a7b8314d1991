//! Beats: each node says each second that it is there, and how far. What operators see of the nodes comes from that.

use std::sync::Arc;

use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::time::{Instant, interval, sleep};

use super::digest::Digest;
use super::member::{Member, NATS_PAUSE};
use super::wire::{self, Beat};
use crate::dispatch::Dispatch;
use crate::metrics::ClusterGauges;
use crate::model::agreement::Agreed;

/// The nodes as operators see them: `GET {base}/cluster`.
#[derive(Debug, Default, Serialize)]
pub struct View {
    /// What this node is called; absent for a server that is alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name of the node that leads, if there is one.
    pub leader: Option<String>,
    pub term: u64,
    /// The frame of the stream that this node has absorbed last.
    pub absorbed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nats: Option<String>,
    /// The policies on which the nodes have agreed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<Arc<Agreed>>,
    pub nodes: Vec<NodeView>,
    /// What this node holds, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

#[derive(Debug, Serialize)]
pub struct NodeView {
    pub node: String,
    /// Identifies a run of the node.
    pub instance: String,
    pub version: String,
    pub leads: bool,
    pub absorbed: u64,
    /// Frames that it has not absorbed yet, as far as this node knows.
    pub behind: u64,
    /// The id of its policies, which should be the same on all nodes.
    pub policies: String,
    pub sessions: u64,
    /// Why it does not have the policies on which the nodes have agreed, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lack: Option<String>,
    /// How long ago it was heard of.
    pub heard_ms: u64,
}
impl Member {
    /// Says each second that this node is there.
    pub(super) async fn say(self: Arc<Member>, dispatch: Arc<Dispatch>) {
        let mut tick = interval(*self.config.beat_ms);
        loop {
            tick.tick().await;
            let beat = self.beat(&dispatch);
            self.beats.lock().retain(|_, (_, heard)| heard.elapsed() < *self.config.alone_ms);
            if self.link.is_connected() {
                self.link.tell(self.link.subject("beat"), wire::encode_beat(&beat).into()).await;
            }
        }
    }

    pub(super) fn beat(&self, dispatch: &Dispatch) -> Beat {
        Beat {
            instance: self.me.to_string(),
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            absorbed: self.absorbed(),
            term: self.election.lock().term(),
            leads: !self.follows(),
            policies: dispatch.policies.current().id.to_string(),
            sessions: self.model.mailboxes.totals().sessions as u64,
            lack: dispatch.policies.lack(self.model.agreement.now().as_deref()),
        }
    }

    /// Hears of the other nodes.
    pub(super) async fn listen(self: Arc<Member>) {
        loop {
            match self.link.listen(self.link.subject("beat")).await {
                Ok(mut beats) => {
                    while let Some(beat) = beats.next().await {
                        let Some(beat) = wire::decode_beat(&beat.payload) else { continue };
                        self.know(beat.absorbed);
                        self.beats.lock().insert(beat.instance.clone(), (beat, Instant::now()));
                    }
                }
                Err(error) => tracing::warn!("other nodes can't be heard: {error:#}"),
            }
            sleep(NATS_PAUSE).await;
        }
    }

    pub(super) fn view(&self) -> View {
        let leader = self.leader.borrow().clone();
        let last = self.known.lock().last.max(self.absorbed());
        let beats = self.beats.lock();
        let name_of = |instance: &str| beats.get(instance).map_or_else(|| instance.to_owned(), |(beat, _)| beat.node.clone());
        let leader = leader.map(|lead| if lead.node == self.me { self.node.clone() } else { name_of(&lead.node) });
        let mut nodes: Vec<NodeView> = beats
            .values()
            .map(|(beat, heard)| NodeView {
                node: beat.node.clone(),
                instance: beat.instance.clone(),
                version: beat.version.clone(),
                leads: beat.leads,
                absorbed: beat.absorbed,
                behind: last.saturating_sub(beat.absorbed),
                policies: beat.policies.clone(),
                sessions: beat.sessions,
                lack: beat.lack.clone(),
                heard_ms: u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
            .collect();
        nodes.sort_by(|a, b| (&a.node, &a.instance).cmp(&(&b.node, &b.instance)));
        View {
            node: Some(self.node.clone()),
            name: Some(self.config.name.clone()),
            leader,
            term: self.election.lock().term(),
            absorbed: self.absorbed(),
            nats: Some(self.link.client.server_info().version),
            policies: self.model.agreement.now(),
            nodes,
            digest: None,
        }
    }

    pub(super) fn gauges(&self) -> ClusterGauges {
        let behind = self.known.lock().last.saturating_sub(self.absorbed());
        ClusterGauges {
            leads: !self.follows(),
            term: self.election.lock().term(),
            absorbed: self.absorbed(),
            nodes: self.beats.lock().len(),
            behind,
            policies_revision: self.model.agreement.now().map_or(0, |agreed| agreed.revision),
            policies_lacking: !self.has_agreed(),
            pending_bytes: self.stream.pending_bytes(),
        }
    }
}
