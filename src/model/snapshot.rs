//! A model as changes that add up to it when they are absorbed in their order: for a node that comes later.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::record::Change;
use super::{Counters, Model};

impl Model {
    /// Calls `each` with all that the model holds, a piece at a time, and returns its numbers. Nothing may change it meanwhile, but for what its
    /// readers read. `node`: what this node is called to others.
    pub fn snapshot(&self, node: &Arc<str>, mut each: impl FnMut(&[Change])) -> Counters {
        each(&self.agreement.now().map(Change::Agreed).into_iter().collect::<Vec<_>>());
        let states = self.states.read().changes();
        each(&states);
        drop(states);
        let groups = self.groups.read().changes();
        each(&groups);
        drop(groups);
        each(&self.dedup.lock().changes());
        each(&self.dead_letters.changes());
        self.mailboxes.snapshot(|handle| handle.info_at(node), &mut each);
        let (letter, letter_stamp) = self.dead_letters.counters();
        let (stamp, birth) = (self.last_stamp.load(Ordering::Relaxed), self.mailboxes.last_birth());
        Counters { stamp, birth, letter, letter_stamp, crashes: 0 }
    }
}
