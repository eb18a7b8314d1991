//! The policies of all nodes: which they are is in the stream, and their components are in a stream of their own, `{name}_PLUGINS`, by their digests.
//!
//! A component is a row of frames under `{name}.plugin.{digest}`. The number of each has a random part of this copy above, and counts up below; the
//! term is how many there are. The components of a set are there before the set is in the stream. The leader removes those that no set names.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use anyhow::Context as _;
use async_nats::jetstream::consumer::push;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::ask::NotTold;
use super::link::{self, API_DEADLINE, Link};
use super::member::{ASK_PAUSE, Member};
use super::wire::{self, Ask, Told};
use crate::dispatch::Dispatch;
use crate::model::agreement::{Agreed, Component};
use crate::model::record::Change;
use crate::policy::source;
use crate::types::delivery::PolicySetId;

/// Bytes of a component in one frame.
const FRAME_BYTES: usize = 256 << 10;

/// Bits of a frame's number that count up.
const INDEX_BITS: u32 = 32;

/// Returns the frames of a component.
fn frames(bytes: &[u8]) -> Vec<Bytes> {
    let id = u64::from(fastrand::u32(..)) << INDEX_BITS;
    let pieces: Vec<&[u8]> = bytes.chunks(FRAME_BYTES).collect();
    let count = pieces.len() as u64;
    pieces.into_iter().enumerate().map(|(index, piece)| link::framed(piece, id | index as u64, count)).collect()
}

/// Returns the component with this digest that is whole among these frames, if there is one.
fn whole(frames: &[Bytes], digest: &str) -> Option<Vec<u8>> {
    let mut copies: BTreeMap<u64, (u64, Vec<&[u8]>)> = BTreeMap::new();
    for frame in frames {
        let Ok(frame) = link::read(frame) else { continue };
        let (id, index) = (frame.number >> INDEX_BITS, frame.number & u64::from(u32::MAX));
        let (count, pieces) = copies.entry(id).or_insert((frame.term, Vec::new()));
        if *count == frame.term && pieces.len() as u64 == index {
            pieces.push(frame.records);
        }
    }
    let complete = copies.into_values().filter(|(count, pieces)| *count == pieces.len() as u64);
    complete.map(|(_, pieces)| pieces.concat()).find(|bytes| source::digest(bytes) == digest)
}

impl Link {
    /// Returns the name of the stream with the components.
    pub(super) fn components(&self) -> String {
        format!("{}_PLUGINS", self.name)
    }

    fn component_subject(&self, digest: &str) -> String {
        self.subject(&format!("plugin.{digest}"))
    }

    /// Writes a component.
    ///
    /// # Errors
    /// JetStream's. Then it is not complete, and does not count.
    async fn keep_component(&self, digest: &str, bytes: &[u8]) -> anyhow::Result<()> {
        for frame in frames(bytes) {
            self.context.publish(self.component_subject(digest), frame).await?.await?;
        }
        Ok(())
    }

    /// Returns whether a component is there. Whoever wrote it wrote its last frame last.
    ///
    /// # Errors
    /// JetStream's.
    async fn has_component(&self, digest: &str) -> anyhow::Result<bool> {
        Ok(self.last_frame(digest).await?.is_some_and(|(_, is_last)| is_last))
    }

    /// Returns the sequence of a component's last frame, and whether that is the last one of a copy.
    async fn last_frame(&self, digest: &str) -> anyhow::Result<Option<(u64, bool)>> {
        let stream = self.context.get_stream_no_info(self.components()).await?;
        match stream.get_last_raw_message_by_subject(&self.component_subject(digest)).await {
            Ok(last) => {
                let is_last = |frame: link::Framed<'_>| frame.number & u64::from(u32::MAX) == frame.term.wrapping_sub(1);
                Ok(Some((last.sequence, link::read(&last.payload).is_ok_and(is_last))))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns a component; `None` if it is not there, or not complete.
    ///
    /// # Errors
    /// JetStream's.
    async fn component(&self, digest: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let Some((last, _)) = self.last_frame(digest).await? else { return Ok(None) };
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: self.component_subject(digest),
            ..push::OrderedConfig::default()
        };
        let stream = self.context.get_stream_no_info(self.components()).await?;
        let mut messages = stream.create_consumer(config).await?.messages().await?;
        let mut found = Vec::new();
        loop {
            let next = timeout(API_DEADLINE, messages.next()).await.context("the component does not come")?;
            let message = next.context("the component breaks off")??;
            let sequence = message.info().map_err(|error| anyhow::anyhow!("{error}"))?.stream_sequence;
            found.push(message.payload.clone());
            if sequence >= last {
                return Ok(whole(&found, digest));
            }
        }
    }

    /// Removes all components but these, and returns how many.
    async fn keep_only(&self, digests: &HashSet<String>) -> anyhow::Result<usize> {
        let stream = self.context.get_stream_no_info(self.components()).await?;
        let subjects: Vec<(String, usize)> = stream.info_with_subjects(self.component_subject("*")).await?.try_collect().await?;
        let mut removed = 0;
        for (subject, _) in subjects {
            if !subject.rsplit('.').next().is_some_and(|digest| digests.contains(digest)) {
                stream.purge().filter(subject).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl Member {
    /// Returns whether a component is available to all nodes.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn has(&self, component: &Component) -> anyhow::Result<bool> {
        self.link.has_component(&component.digest).await
    }

    /// Makes a component available to all nodes.
    ///
    /// # Errors
    /// JetStream's.
    pub async fn give(&self, component: &Component, bytes: &[u8]) -> anyhow::Result<()> {
        self.link.keep_component(&component.digest, bytes).await?;
        tracing::info!(policy = component.name, digest = component.digest, bytes = bytes.len(), "a plugin is given to all nodes");
        Ok(())
    }

    /// Fetches a component that another node has made available.
    ///
    /// # Errors
    /// JetStream's, or it is not there.
    pub async fn fetch(&self, component: &Component) -> anyhow::Result<Vec<u8>> {
        let bytes = self.link.component(&component.digest).await?;
        let bytes = bytes.with_context(|| format!("{} ({}) is not in {}", component.name, component.digest, self.link.components()))?;
        tracing::info!(policy = component.name, digest = component.digest, bytes = bytes.len(), "a plugin is fetched");
        Ok(bytes)
    }

    /// Has all nodes agree on these policies, whose components are available. Returns when this node knows that they have.
    ///
    /// # Errors
    /// A sentence that says why not. They may agree all the same.
    pub async fn agree(&self, dispatch: &Dispatch, id: PolicySetId, components: Vec<Component>) -> Result<(), String> {
        let deadline = Instant::now() + *self.config.ask_deadline_ms;
        let mut agreed = self.model.agreement.follow();
        let is_it = |agreed: &Option<Arc<Agreed>>| agreed.as_ref().is_some_and(|agreed| agreed.id == id && agreed.components == components);
        let wanted = Change::Agreed(Arc::new(Agreed { revision: 0, id, components: components.clone() }));
        loop {
            if !self.follows() {
                return self.settle(dispatch, id, components.clone()).await;
            }
            match self.ask(&Ask::Agree(wire::records(&wanted)), deadline.saturating_duration_since(Instant::now())).await {
                Ok(Told::Done) => break,
                Ok(Told::Refused(_, why) | Told::Unavailable(why)) => return Err(why),
                Err(NotTold::Mine) => sleep(ASK_PAUSE).await,
                Err(NotTold::Not(why)) => return Err(why.to_string()),
                Ok(_) => return Err("the node that leads is of another version".to_owned()),
            }
        }
        let has_heard = timeout_at(deadline, agreed.wait_for(is_it)).await.is_ok_and(|heard| heard.is_ok());
        if has_heard { Ok(()) } else { Err("this node has not heard of it yet".to_owned()) }
    }

    /// Notes what all nodes are to have, since this one leads.
    pub(super) async fn settle(&self, dispatch: &Dispatch, id: PolicySetId, components: Vec<Component>) -> Result<(), String> {
        // No component is removed meanwhile.
        let _tending = self.tending.lock().await;
        let now = self.model.agreement.now();
        if now.as_ref().is_some_and(|now| now.id == id && now.components == components) {
            return Ok(());
        }
        for Component { name, digest } in &components {
            match self.link.has_component(digest).await {
                Ok(true) => {}
                Ok(false) => return Err(format!("{name} ({digest}) is not in {}: reload again", self.link.components())),
                Err(error) => return Err(format!("NATS does not say whether {name} is there: {error:#}")),
            }
        }
        dispatch.store.admit().map_err(|why| why.to_string())?;
        let agreed = Arc::new(Agreed { revision: now.map_or(0, |now| now.revision) + 1, id, components });
        let ticket = {
            let mut changes = dispatch.store.changes();
            self.model.agreement.absorb(&agreed);
            changes.note(|| Change::Agreed(agreed.clone()));
            dispatch.store.append(changes)
        };
        ticket.stored().await.map_err(|why| why.to_string())?;
        tracing::info!(revision = agreed.revision, id = %agreed.id, "the nodes have agreed on policies");
        Ok(())
    }

    /// Answers a node that proposes policies.
    pub(super) async fn answer_agree(&self, dispatch: &Dispatch, wanted: &[u8]) -> Told {
        let Some(Change::Agreed(wanted)) = wire::change(wanted) else {
            return Told::Unavailable("policies that are not described well".to_owned());
        };
        match self.settle(dispatch, wanted.id, wanted.components.clone()).await {
            Ok(()) => Told::Done,
            Err(why) => Told::Refused("not_agreed".to_owned(), why),
        }
    }

    /// Removes the components that no set names any more, and that this node does not go back to.
    pub(super) async fn tend(&self) {
        let _tending = self.tending.lock().await;
        let (Some(agreed), Some(dispatch)) = (self.model.agreement.now(), self.dispatch.get()) else { return };
        let mut digests: HashSet<String> = agreed.components.iter().map(|component| component.digest.clone()).collect();
        for policy in &dispatch.policies.current().policies {
            digests.insert(policy.digest.to_string());
            digests.extend(policy.before().map(|before| before.digest.to_string()));
        }
        match self.link.keep_only(&digests).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "components that no node needs are removed"),
            Err(error) => tracing::warn!("components that no node needs can't be removed yet: {error:#}"),
        }
    }

    /// Returns whether this node has what the nodes have agreed on.
    pub(super) fn has_agreed(&self) -> bool {
        let agreed = self.model.agreement.now();
        self.dispatch.get().is_none_or(|dispatch| agreed.is_none() || dispatch.policies.lack(agreed.as_deref()).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_what_was_written_also_if_two_nodes_write_it_and_one_does_not_finish() {
        let bytes: Vec<u8> = (0..FRAME_BYTES * 2 + 17).map(|at| (at % 251) as u8).collect();
        let digest = source::digest(&bytes);
        let (first, second, other) = (frames(&bytes), frames(&bytes), frames(b"other"));
        assert_eq!(first.len(), 3);
        assert_eq!(whole(&first, &digest).as_ref(), Some(&bytes));
        let mixed: Vec<Bytes> = [&first[0], &second[0], &second[1], &other[0], &second[2]].into_iter().cloned().collect();
        assert_eq!(whole(&mixed, &digest).as_ref(), Some(&bytes));
        assert_eq!(whole(&mixed[..4], &digest), None, "its last frame is missing");
        assert_eq!(whole(&[first[1].clone(), first[2].clone()], &digest), None, "its first frame is missing");
        assert_eq!(whole(&first, &source::digest(b"other")), None, "it is another component");
    }
}
