//! The policies on which the nodes of a cluster have agreed, as data: which components, by their digests, and in which order. The components
//! themselves are where each node has them.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

use crate::types::delivery::PolicySetId;

/// A set of policies that all nodes are to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agreed {
    /// Counts up with each set.
    pub revision: u64,
    /// The id of the set at the node that has proposed it. A node has another one if it has other settings of these policies.
    pub id: PolicySetId,
    /// In the order in which the policies are called.
    pub components: Vec<Component>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Component {
    /// The policy.
    pub name: String,
    /// SHA-256, in hexadecimal.
    pub digest: String,
}

/// The set of now. There is none on a server that is alone, and before the first node of a cluster has led.
#[derive(Debug)]
pub struct Agreement {
    now: watch::Sender<Option<Arc<Agreed>>>,
}

impl Default for Agreement {
    fn default() -> Agreement {
        Agreement { now: watch::channel(None).0 }
    }
}

impl Agreement {
    pub fn now(&self) -> Option<Arc<Agreed>> {
        self.now.borrow().clone()
    }

    /// Takes a set, unless there is a later one.
    pub fn absorb(&self, agreed: &Arc<Agreed>) {
        self.now.send_if_modified(|now| {
            let is_later = now.as_ref().is_none_or(|now| now.revision < agreed.revision);
            if is_later {
                *now = Some(agreed.clone());
            }
            is_later
        });
    }

    /// Follows the set.
    pub fn follow(&self) -> watch::Receiver<Option<Arc<Agreed>>> {
        self.now.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(revision: u64, digest: &str) -> Arc<Agreed> {
        let components = vec![Component { name: "a".to_owned(), digest: digest.to_owned() }];
        Arc::new(Agreed { revision, id: PolicySetId(1), components })
    }

    #[test]
    fn the_latest_set_holds_whatever_the_order_in_which_sets_come_and_each_is_told_once() {
        let agreement = Agreement::default();
        let mut told = agreement.follow();
        assert_eq!(agreement.now(), None);
        for (revision, digest, is_told) in [(2, "b", true), (1, "a", false), (2, "b", false), (3, "c", true)] {
            agreement.absorb(&agreed(revision, digest));
            assert_eq!(told.has_changed().unwrap(), is_told, "revision {revision}");
            told.mark_unchanged();
        }
        assert_eq!(agreement.now(), Some(agreed(3, "c")));
    }
}
