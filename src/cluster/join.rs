//! Joining: a node connects to NATS, and finds out with what it begins.

use std::sync::Arc;

use tokio::time::sleep;

use super::link::{self, Link};
use super::member::NATS_PAUSE;
use super::snapshot::Restored;
use crate::config::{self, Config};
use crate::store::codec::{self, Lead, Said};
use crate::store::stream::Stream;

/// A link to a cluster, before the node's memory is made.
#[derive(Debug)]
pub struct Joined {
    pub(super) link: Link,
    pub stream: Arc<Stream>,
    /// Distinguishes the cluster's mailboxes from those of others.
    pub store: u64,
    pub(super) me: Arc<str>,
    pub(super) snapshot: Option<Restored>,
}
impl Joined {
    /// Connects to NATS, and waits for it. Makes the stream if it is not there.
    ///
    /// # Errors
    /// The settings can't be used, or the stream is not one of this version.
    pub async fn open(config: &Config) -> anyhow::Result<Joined> {
        let link = Link::open(&config.cluster).await?;
        let node = node_name(&config.cluster);
        let me: Arc<str> = format!("{node}-{:08x}", uuid::Uuid::new_v4().as_fields().0).into();
        loop {
            match found(&link, &me, &config.cluster).await {
                Ok(Some((store, snapshot))) => return Ok(Joined { link, stream: Stream::new(&config.store), store, me, snapshot }),
                Ok(None) => {}
                Err(error) => tracing::warn!("the stream {} can't be read yet: {error:#}", link.stream()),
            }
            sleep(NATS_PAUSE).await;
        }
    }
}

/// Returns the store of the latest snapshot, or of the stream's first frame. Writes that frame if the stream is empty.
async fn found(link: &Link, me: &Arc<str>, config: &config::Cluster) -> anyhow::Result<Option<(u64, Option<Restored>)>> {
    let extent = link.extent().await?;
    if extent.last == 0 {
        let mut records = Vec::new();
        codec::encode_lead(&Lead { term: 1, node: me.clone(), store: uuid::Uuid::new_v4().as_u64_pair().0 }, &mut records);
        // If it is stored, or another node's is, the next look finds it.
        link.write(link::framed(&records, 1, 1), 0, &format!("1-{me}-lead"), *config.attempt_deadline_ms).await;
        return Ok(None);
    }
    let first = if extent.first == 1 { store_of(&link.frame(1).await?)? } else { None };
    // There may be snapshots of an earlier stream of this name.
    let fits = |snapshot: &Restored| {
        (extent.first..=extent.last + 1).contains(&(snapshot.upto + 1)) && first.is_none_or(|first| first == snapshot.lead.store)
    };
    match Restored::latest(&link.snapshot_frames().await?).filter(fits) {
        Some(snapshot) => Ok(Some((snapshot.lead.store, Some(snapshot)))),
        None => match first {
            Some(store) => Ok(Some((store, None))),
            None => anyhow::bail!("it begins at frame {}, and no snapshot goes that far: make it anew (docs/cluster.md)", extent.first),
        },
    }
}

/// Returns the store that a frame names.
fn store_of(frame: &[u8]) -> anyhow::Result<Option<u64>> {
    let mut store = None;
    codec::decode(link::read(frame)?.records, |said| {
        if let Said::Lead(lead) = said {
            store = Some(lead.store);
        }
    })?;
    Ok(store)
}

/// Returns what the node is called.
pub(super) fn node_name(config: &config::Cluster) -> String {
    if !config.node.is_empty() {
        return config.node.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "node".to_owned() } else { host.to_owned() }
}
