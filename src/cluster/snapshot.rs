//! Snapshots: what the stream adds up to, so that a node that comes later need not read it from its first frame, and the stream can be cut off.
//!
//! A snapshot is a row of frames in a stream of its own. The term of each is the last frame of the log that it has; its number has a random part
//! of this snapshot above, and counts up below. The last one says who led, and has the largest numbers: without it, a snapshot is not complete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{interval, sleep};

use super::link::{self, Link};
use super::member::Member;
use crate::model::{Counters, Model};
use crate::net::turns::aside;
use crate::store::codec::{self, Encoder, Lead, Said};

/// Bytes of a frame, but for the last change in it.
const FRAME_BYTES: usize = 256 << 10;

/// Bits of a frame's number that count up.
const INDEX_BITS: u32 = 32;

/// How often it is looked whether a snapshot is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A snapshot as it is written.
#[derive(Debug)]
pub struct Snapshot {
    /// The last frame of the log that it has.
    pub upto: u64,
    frames: Vec<Bytes>,
}

/// A snapshot as it was read.
#[derive(Debug)]
pub struct Restored {
    pub upto: u64,
    pub lead: Lead,
    counters: Counters,
    said: Vec<Said>,
}

impl Snapshot {
    /// Takes a snapshot of a model that has made the changes up to this frame, and no others. Blocks.
    pub fn take(model: &Model, node: &Arc<str>, lead: &Lead, upto: u64) -> Snapshot {
        let id = u64::from(fastrand::u32(..)) << INDEX_BITS;
        let (mut frames, mut records) = (Vec::new(), Vec::new());
        let counters = model.snapshot(node, |changes| {
            let mut encoder = Encoder::default();
            for change in changes {
                encoder.put(change, &mut records);
                if records.len() >= FRAME_BYTES {
                    frames.push(link::framed(&records, id | frames.len() as u64, upto));
                    records.clear();
                    encoder = Encoder::default();
                }
            }
        });
        codec::encode_lead(lead, &mut records);
        codec::encode_stop(counters, &mut records);
        frames.push(link::framed(&records, id | frames.len() as u64, upto));
        Snapshot { upto, frames }
    }

    /// Writes it, and removes older ones.
    ///
    /// # Errors
    /// JetStream's. Then it is not complete, and does not count.
    pub async fn write(self, link: &Link) -> anyhow::Result<()> {
        let mut first = None;
        for frame in self.frames {
            let sequence = link.keep(frame).await?;
            first.get_or_insert(sequence);
        }
        if let Some(first) = first {
            link.forget_snapshots_before(first).await?;
        }
        Ok(())
    }
}

impl Restored {
    /// Returns the latest snapshot that is complete among these frames, if there is one.
    pub fn latest(frames: &[Bytes]) -> Option<Restored> {
        let mut found: BTreeMap<(u64, u64), Vec<&[u8]>> = BTreeMap::new();
        for frame in frames {
            let Ok(frame) = link::read(frame) else { continue };
            let (id, index) = (frame.number >> INDEX_BITS, frame.number & u64::from(u32::MAX));
            let parts = found.entry((frame.term, id)).or_default();
            if parts.len() as u64 == index {
                parts.push(frame.records);
            }
        }
        found.into_iter().rev().find_map(|((upto, _), parts)| Restored::of(upto, &parts))
    }

    fn of(upto: u64, parts: &[&[u8]]) -> Option<Restored> {
        let (mut said, mut lead, mut counters) = (Vec::new(), None, None);
        for records in parts {
            codec::decode(records, |one| match one {
                Said::Lead(one) => lead = Some(one),
                Said::Stop(one) => counters = Some(one),
                other => said.push(other),
            })
            .ok()?;
        }
        Some(Restored { upto, lead: lead?, counters: counters?, said })
    }
}

impl Member {
    /// Begins with a snapshot.
    pub fn restore(&self, snapshot: Restored) {
        let Restored { upto, lead, counters, said } = snapshot;
        for one in &said {
            if let Said::Change(change) = one {
                self.make(change);
            }
        }
        self.model.begin_after(&counters);
        self.begin_at(upto, &lead);
        tracing::info!(upto, changes = said.len(), "a snapshot is read");
    }

    /// Writes a snapshot whenever the stream has grown by enough, and cuts the stream off.
    pub(super) async fn keep_short(self: Arc<Member>) {
        let bytes_max = self.config.snapshot_bytes.get();
        let mut tick = interval(LOOK_INTERVAL);
        loop {
            tick.tick().await;
            if self.follows() {
                continue;
            }
            let Ok(extent) = self.link.extent().await else { continue };
            if extent.bytes < bytes_max {
                continue;
            }
            let Some(snapshot) = aside(|| self.snapshot()) else { continue };
            let (upto, frames) = (snapshot.upto, snapshot.frames.len());
            match snapshot.write(&self.link).await {
                Ok(()) => tracing::info!(upto, frames, "a snapshot is written"),
                Err(error) => {
                    tracing::warn!("a snapshot can't be written, and is tried again: {error:#}");
                    continue;
                }
            }
            sleep(*self.config.cut_after_ms).await;
            match self.link.cut_off(upto).await {
                Ok(()) => tracing::info!(upto, "the stream is cut off"),
                Err(error) => tracing::warn!("the stream can't be cut off yet: {error:#}"),
            }
            self.tend().await;
        }
    }

    /// Takes a snapshot between two frames, while nothing waits to be stored. `None` if something does, or if this node does not lead.
    fn snapshot(&self) -> Option<Snapshot> {
        self.stream.while_idle(|| {
            let lead = self.lead_now()?;
            Some(Snapshot::take(&self.model, self.name(), &lead, self.absorbed.load(Ordering::Acquire)))
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::model::agreement::{Agreed, Component};
    use crate::model::mailbox::Posted;
    use crate::model::order::Order;
    use crate::model::record::{Change, Changes};
    use crate::types::clock::Clock;
    use crate::types::delivery::{Message, PolicySetId};
    use crate::types::event::{Body, UserId};

    fn model() -> Arc<Model> {
        let config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
        Model::new(&config, Clock::Machine, 1, true, &Arc::new(Metrics::new().unwrap()))
    }

    fn user(number: usize) -> UserId {
        UserId::new(&number.to_string(), 16).unwrap()
    }

    #[test]
    fn what_is_restored_from_the_latest_complete_snapshot_is_what_was_there() {
        let (model, order) = (model(), Arc::<Order>::default());
        let mut changes = Changes::in_turn(order.turn());
        for number in 0..2_000 {
            let body = Body::Text(format!("{number} {}", "x".repeat(500)));
            let message = Arc::new(Message::new(number.to_string(), "a".into(), body, PolicySetId(1)));
            let posted = model.mailboxes.post(&user(number % 40), None, &message, &mut changes);
            assert!(matches!(posted, Posted::Posted { .. }));
        }
        drop(changes);
        let components = vec![Component { name: "p".into(), digest: "0".repeat(64) }];
        model.agreement.absorb(&Arc::new(Agreed { revision: 4, id: PolicySetId(5), components }));
        let lead = Lead { term: 3, node: "a".into(), store: 9 };
        let whole = Snapshot::take(&model, &"a".into(), &lead, 70);
        let later = Snapshot::take(&model, &"a".into(), &lead, 71);
        assert!(whole.frames.len() > 3, "{}", whole.frames.len());
        // The later one was not finished, and another one was written at the same time.
        let unfinished = later.frames[..later.frames.len() - 1].iter();
        let mixed: Vec<Bytes> =
            whole.frames.iter().zip(unfinished.chain(&later.frames)).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
        let restored = Restored::latest(&mixed).unwrap();
        assert_eq!((restored.upto, &restored.lead, restored.counters.birth), (70, &lead, 40));
        let other = self::model();
        other.mailboxes.decide(false);
        for one in &restored.said {
            let Said::Change(change) = one else { panic!("{one:?}") };
            assert!(!matches!(change, Change::Gone { .. }));
            other.absorb(change, |_| None, &Arc::default());
        }
        assert_eq!(other.mailboxes.all(), model.mailboxes.all());
        assert_eq!(other.agreement.now().map(|agreed| agreed.revision), Some(4));
        assert_eq!(other.agreement.now(), model.agreement.now());
        assert_eq!(other.mailboxes.totals(), model.mailboxes.totals());
        assert!(Restored::latest(&whole.frames[1..]).is_none(), "its beginning is missing");
    }
}
