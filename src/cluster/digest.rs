//! A digest of what this node holds: two nodes that have absorbed the same frames have the same one. For operators and tests who want to know
//! whether the nodes have drifted apart.
//!
//! It is made of the changes that a snapshot has. Each is hashed by itself, and the hashes are added up, so their order is of no account.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::member::Member;
use crate::model::Model;
use crate::model::record::{Change, Mark};
use crate::net::turns::aside;
use crate::store::codec;
use crate::types::delivery::Message;

/// What a node holds, as one number for each kind. What each node counts by itself, as how much of a mailbox was read, is not part of it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Digest {
    /// The last frame that this node had absorbed.
    pub frame: u64,
    pub messages: Sum,
    /// The epochs and the newest seqs.
    pub mailboxes: Sum,
    pub sessions: Sum,
    pub groups: Sum,
    pub state: Sum,
    /// Ids of events that would be duplicates.
    pub events: Sum,
    pub letters: Sum,
}

/// How many there are, and the sum of their hashes.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    pub count: u64,
    #[serde(serialize_with = "as_hex")]
    digest: u128,
}

fn as_hex<S: serde::Serializer>(digest: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{digest:032x}"))
}

impl Sum {
    fn add(&mut self, records: &[u8]) {
        let hash = Sha256::digest(records);
        let first = hash.first_chunk().copied().unwrap_or_default();
        self.count += 1;
        self.digest = self.digest.wrapping_add(u128::from_be_bytes(first));
    }
}

impl Digest {
    /// Makes the digest of a model that has absorbed the stream up to this frame. Nothing may change the model meanwhile. Blocks.
    pub fn of(model: &Model, node: &Arc<str>, frame: u64) -> Digest {
        let mut digest = Digest { frame, ..Digest::default() };
        let mut records = Vec::new();
        model.snapshot(node, |changes| {
            for change in changes {
                records.clear();
                digest.add(change, &mut records);
            }
        });
        digest
    }

    fn add(&mut self, change: &Change, records: &mut Vec<u8>) {
        let (sum, is_as_it_is) = match change {
            // Nodes remove it by themselves as soon as it was read.
            Change::Post { message, .. } if is_only_for_now(message) => return,
            Change::Post { .. } => (&mut self.messages, false),
            Change::Mark { .. } => (&mut self.mailboxes, false),
            Change::Opened { .. } => (&mut self.sessions, false),
            Change::Join { .. } | Change::Leave { .. } | Change::End { .. } => (&mut self.groups, true),
            Change::Set { .. } | Change::Unset { .. } => (&mut self.state, true),
            Change::Seen { .. } => (&mut self.events, true),
            Change::Letter { .. } | Change::NoLetter { .. } => (&mut self.letters, true),
            Change::Closed { .. } | Change::Gone { .. } => return,
            // Operators see it in the same answer.
            Change::Agreed(_) => return,
        };
        if is_as_it_is {
            codec::encode(std::slice::from_ref(change), records);
        } else {
            codec::encode(&[comparable(change)], records);
        }
        sum.add(records);
    }
}

fn is_only_for_now(message: &Message) -> bool {
    message.terms.keep == Some(std::time::Duration::ZERO)
}

/// Returns a change without what each node counts by itself.
fn comparable(change: &Change) -> Change {
    match change.clone() {
        Change::Post { user, birth, seq, posted_ms, message, session, .. } => {
            Change::Post { user, birth, seq, posted_ms, message, session, lost: 0, removed: Vec::new() }
        }
        Change::Mark { user, birth, mark, .. } => {
            Change::Mark { user, birth, mark: Mark { last: mark.last, ..Mark::default() }, removed: Vec::new() }
        }
        Change::Opened { birth, info, .. } => Change::Opened { birth, at: 0, info },
        other => other,
    }
}

impl Member {
    /// Makes the digest of what this node holds, between two frames. One at a time: nothing is decided or absorbed here meanwhile. `None` if what
    /// this node has decided is not stored within a short time.
    pub(super) async fn digest(&self) -> Option<Digest> {
        let _one_at_a_time = self.digesting.lock().await;
        aside(|| {
            self.stream.at_rest(|| {
                let _absorbing = self.absorbing.lock();
                Digest::of(&self.model, self.name(), self.absorbed.load(Ordering::Acquire))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::model::order::Order;
    use crate::model::record::Changes;
    use crate::types::clock::Clock;
    use crate::types::delivery::PolicySetId;
    use crate::types::event::{Body, UserId};

    fn model() -> Arc<Model> {
        let config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
        Model::new(&config, Clock::Machine, 1, true, &Arc::new(Metrics::new().unwrap()))
    }

    fn post(model: &Model, user: &str, text: &str) -> Vec<Change> {
        let mut changes = Changes::in_turn(Arc::<Order>::default().turn());
        let message = Arc::new(Message::new(text.to_owned(), "a".into(), Body::Text(text.to_owned()), PolicySetId(1)));
        model.mailboxes.post(&UserId::new(user, 16).unwrap(), None, &message, &mut changes);
        changes.into_changes()
    }

    #[test]
    fn models_with_the_same_changes_have_the_same_digest_and_one_message_more_is_another() {
        let (leader, follower, node) = (model(), model(), Arc::<str>::from("a"));
        follower.mailboxes.decide(false);
        let digest = |model: &Model| Digest::of(model, &node, 7);
        assert_eq!(digest(&leader), Digest { frame: 7, ..Digest::default() });
        let mut missing = Vec::new();
        for number in 0..40 {
            let changes = post(&leader, &(number % 4).to_string(), &number.to_string());
            assert_ne!(digest(&leader), digest(&follower));
            missing.extend(changes);
        }
        // Two users' messages may be absorbed in either order.
        missing.sort_by_key(|change| if let Change::Post { user, .. } = change { user.to_string() } else { String::new() });
        for change in &missing {
            follower.absorb(change, |_| None, &Arc::default());
        }
        assert_eq!(digest(&leader), digest(&follower));
        assert_eq!((digest(&leader).messages.count, digest(&leader).mailboxes.count), (40, 4));
        // The same number of messages, of which one says something else.
        post(&leader, "1", "this");
        post(&follower, "1", "that");
        assert_eq!(digest(&leader).messages.count, digest(&follower).messages.count);
        assert_ne!(digest(&leader).messages, digest(&follower).messages);
        assert_eq!(digest(&leader).mailboxes, digest(&follower).mailboxes);
    }
}
