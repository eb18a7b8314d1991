//! What a request has written to the policies' state, over what the model has.

use std::collections::HashMap;
use std::sync::Arc;

use super::{add, signed};
use crate::model::Stamp;
use crate::model::record::{Change, Changes};
use crate::model::state::{Quota, States, Usage, Value, entry_bytes};

/// The writes and reads of all policies.
#[derive(Debug, Default)]
pub struct Writes {
    policies: Vec<PolicyWrites>,
    /// How to undo what the current call did.
    undo: Vec<Undo>,
}

#[derive(Debug)]
struct PolicyWrites {
    policy: Arc<str>,
    quota: Quota,
    /// `None` means removed.
    written: HashMap<String, Option<Value>>,
    /// The keys that were read from the model, and their stamps; 0 for a key that did not exist.
    read: HashMap<String, Stamp>,
    keys: isize,
    bytes: isize,
    /// What is live of the policy's state, and when that was counted: counting looks at every entry.
    live: Option<(u64, Usage)>,
}

/// One policy's state as its request sees it, at the time of the current call.
pub struct Own<'a> {
    index: usize,
    policy: &'a mut PolicyWrites,
    undo: &'a mut Vec<Undo>,
    now_ms: u64,
}

#[derive(Debug)]
struct Undo {
    index: usize,
    key: String,
    before: Option<Option<Value>>,
    keys: isize,
    bytes: isize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    Quota,
    NotANumber,
}

impl Writes {
    pub fn is_untouched(&self) -> bool {
        self.policies.is_empty()
    }

    pub fn begin_call(&mut self) {
        self.undo.clear();
    }

    pub fn drop_call(&mut self) {
        for Undo { index, key, before, keys, bytes } in self.undo.drain(..).rev() {
            let Some(policy) = self.policies.get_mut(index) else { continue };
            match before {
                Some(before) => policy.written.insert(key, before),
                None => policy.written.remove(&key),
            };
            (policy.keys, policy.bytes) = (keys, bytes);
        }
    }

    /// Returns one policy's state.
    #[expect(clippy::indexing_slicing, reason = "the index was found, or the policy was just added")]
    pub fn of(&mut self, policy: &Arc<str>, quota: Quota, now_ms: u64) -> Own<'_> {
        let known = self.policies.iter().position(|known| known.policy == *policy);
        let index = known.unwrap_or(self.policies.len());
        if known.is_none() {
            let (written, read) = (HashMap::new(), HashMap::new());
            self.policies.push(PolicyWrites { policy: policy.clone(), quota, written, read, keys: 0, bytes: 0, live: None });
        }
        Own { index, policy: &mut self.policies[index], undo: &mut self.undo, now_ms }
    }

    /// Returns whether the keys that were read are unchanged, and what is written still fits.
    pub fn stands(&self, states: &mut States, now_ms: u64) -> bool {
        self.policies.iter().all(|policy| policy.is_unchanged(states) && policy.fits(states, now_ms))
    }

    pub fn write_into(&self, states: &mut States, stamp: &mut impl FnMut() -> Stamp, changes: &mut Changes) {
        for PolicyWrites { policy, written, .. } in &self.policies {
            for (key, value) in written {
                let stamp = stamp();
                states.write(policy, key, value.clone(), stamp);
                changes.note(|| Change::state(stamp, policy, key, value.as_ref()));
            }
        }
    }
}

impl Own<'_> {
    /// Returns a key's value: this request's own write, else the model's entry, which must be unchanged at the commit.
    pub fn read(&mut self, states: &States, key: &str) -> Option<Value> {
        let live = |value: &Value| value.is_live(self.now_ms);
        if let Some(written) = self.policy.written.get(key) {
            return written.clone().filter(live);
        }
        let entry = states.entry(&self.policy.policy, key);
        if !self.policy.read.contains_key(key) {
            self.policy.read.insert(key.to_owned(), entry.map_or(0, |entry| entry.stamp));
        }
        entry.map(|entry| entry.value.clone()).filter(live)
    }

    /// Returns whether the current call has written a key.
    pub fn is_written_by_call(&self, key: &str) -> bool {
        self.undo.iter().any(|undo| undo.index == self.index && undo.key == key)
    }

    /// # Errors
    /// The quota is used up; nothing has changed.
    pub fn put(&mut self, states: &States, key: String, value: Value) -> Result<(), StateError> {
        let PolicyWrites { quota, keys, bytes, .. } = &*self.policy;
        if value.bytes.len() > quota.value_bytes_max || key.len() > quota.value_bytes_max {
            return Err(StateError::Quota);
        }
        let before = self.visible_bytes(states, &key);
        let keys = keys + isize::from(before.is_none());
        let bytes = bytes + signed(entry_bytes(&key, &value.bytes)) - signed(before.unwrap_or(0));
        let quota = *quota;
        let fits = |usage: Usage| quota.allows(Usage { keys: add(usage.keys, keys), bytes: add(usage.bytes, bytes) });
        // Expired entries are subtracted only if the quota would be exceeded otherwise.
        if !fits(states.usage(&self.policy.policy)) && !fits(self.live_usage(states)) {
            return Err(StateError::Quota);
        }
        self.write(states, key, Some(value));
        Ok(())
    }

    /// Returns what is live of the policy's state, counted once at a time: a policy whose state is full may try again and again.
    fn live_usage(&mut self, states: &States) -> Usage {
        let now_ms = self.now_ms;
        match self.policy.live {
            Some((at_ms, live)) if at_ms == now_ms => live,
            _ => {
                let live = states.live_usage(&self.policy.policy, now_ms);
                self.policy.live = Some((now_ms, live));
                live
            }
        }
    }

    /// Writes an entry, or removes it.
    pub fn write(&mut self, states: &States, key: String, value: Option<Value>) {
        let before = self.visible_bytes(states, &key);
        let after = value.as_ref().map(|value| entry_bytes(&key, &value.bytes));
        let (keys, bytes) = (self.policy.keys, self.policy.bytes);
        self.policy.keys += isize::from(after.is_some()) - isize::from(before.is_some());
        self.policy.bytes += signed(after.unwrap_or(0)) - signed(before.unwrap_or(0));
        let before = self.policy.written.insert(key.clone(), value);
        self.undo.push(Undo { index: self.index, key, before, keys, bytes });
    }

    /// Returns what an entry uses of the quota as this request sees it; `None` if there is no such entry.
    fn visible_bytes(&self, states: &States, key: &str) -> Option<usize> {
        if let Some(written) = self.policy.written.get(key) {
            return written.as_ref().map(|value| entry_bytes(key, &value.bytes));
        }
        let entry = states.entry(&self.policy.policy, key).filter(|entry| entry.value.is_live(self.now_ms))?;
        Some(entry_bytes(key, &entry.value.bytes))
    }
}

impl PolicyWrites {
    fn is_unchanged(&self, states: &States) -> bool {
        self.read.iter().all(|(key, stamp)| states.entry(&self.policy, key).map_or(0, |entry| entry.stamp) == *stamp)
    }

    fn fits(&self, states: &mut States, now_ms: u64) -> bool {
        let (mut keys, mut bytes) = (0_isize, 0_isize);
        for (key, value) in &self.written {
            let before = states.entry(&self.policy, key).filter(|entry| entry.value.is_live(now_ms));
            let before = before.map(|entry| entry_bytes(key, &entry.value.bytes));
            let after = value.as_ref().map(|value| entry_bytes(key, &value.bytes));
            keys += isize::from(after.is_some()) - isize::from(before.is_some());
            bytes += signed(after.unwrap_or(0)) - signed(before.unwrap_or(0));
        }
        let fits = |usage: Usage| self.quota.allows(Usage { keys: add(usage.keys, keys), bytes: add(usage.bytes, bytes) });
        if (keys <= 0 && bytes <= 0) || fits(states.usage(&self.policy)) {
            return true;
        }
        // Removed and not only subtracted, so that the next commit doesn't find them again.
        states.sweep(&self.policy, now_ms);
        fits(states.usage(&self.policy))
    }
}
