//! The policies' key-value stores: one for each policy name, shared by all its versions. Pure: time is an argument, and `World` controls
//! changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Stamp;
use super::record::Change;

/// Bytes of an entry beside its key and value: the map's slot and the allocations' overhead.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// Every policy's entries.
#[derive(Debug, Default)]
pub struct States {
    tables: HashMap<Arc<str>, Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Arc<str>, Entry>,
    /// When entries expire, the first ones first, so that nobody looks through all entries for those that have.
    expiries: BTreeSet<(u64, Arc<str>)>,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: Value,
    /// The stamp of the write.
    pub stamp: Stamp,
}

/// A value and when it expires, in milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub bytes: Arc<[u8]>,
    pub expires_ms: Option<u64>,
}

impl Value {
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|expires| expires > now_ms)
    }
}

/// Bounds of one policy's store.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub keys_max: usize,
    pub bytes_max: usize,
    pub value_bytes_max: usize,
}

/// How much of its quota a policy uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub keys: usize,
    pub bytes: usize,
}

impl Quota {
    pub fn allows(&self, usage: Usage) -> bool {
        usage.keys <= self.keys_max && usage.bytes <= self.bytes_max
    }
}

impl States {
    /// Returns the entry, expired or not.
    pub fn entry(&self, policy: &str, key: &str) -> Option<&Entry> {
        self.tables.get(policy)?.entries.get(key)
    }

    /// Returns what the policy's entries use, including expired ones.
    pub fn usage(&self, policy: &str) -> Usage {
        self.tables.get(policy).map_or(Usage::default(), |table| Usage { keys: table.entries.len(), bytes: table.bytes })
    }

    /// Returns what the policy's entries use that have not expired. Reads those that have, until they are swept.
    pub fn live_usage(&self, policy: &str, now_ms: u64) -> Usage {
        let Some(table) = self.tables.get(policy) else { return Usage::default() };
        let expired = table.expiries.iter().take_while(|(expires_ms, _)| *expires_ms <= now_ms);
        expired.fold(Usage { keys: table.entries.len(), bytes: table.bytes }, |usage, (_, key)| {
            let bytes = table.entries.get(key).map_or(0, |entry| entry_bytes(key, &entry.value.bytes));
            Usage { keys: usage.keys - 1, bytes: usage.bytes - bytes }
        })
    }

    /// Writes an entry, or removes it.
    pub fn write(&mut self, policy: &Arc<str>, key: &str, value: Option<Value>, stamp: Stamp) {
        let table = self.tables.entry(policy.clone()).or_default();
        table.remove(key);
        if let Some(value) = value {
            let key: Arc<str> = key.into();
            table.bytes += entry_bytes(&key, &value.bytes);
            table.expiries.extend(value.expires_ms.map(|expires_ms| (expires_ms, key.clone())));
            table.entries.insert(key, Entry { value, stamp });
        }
    }

    /// Returns the policies that have or had entries.
    pub fn policies(&self) -> Vec<Arc<str>> {
        self.tables.keys().cloned().collect()
    }

    /// Removes a policy's expired entries.
    pub fn sweep(&mut self, policy: &str, now_ms: u64) {
        let Some(table) = self.tables.get_mut(policy) else { return };
        while let Some((expires_ms, key)) = table.expiries.pop_first() {
            if expires_ms > now_ms {
                table.expiries.insert((expires_ms, key));
                break;
            }
            table.remove(&key);
        }
    }

    /// Returns the entries of one policy that have not expired.
    pub fn live(&self, policy: &str, now_ms: u64) -> BTreeMap<String, Arc<[u8]>> {
        let entries = self.tables.get(policy).into_iter().flat_map(|table| &table.entries);
        let live = entries.filter(|(_, entry)| entry.value.is_live(now_ms));
        live.map(|(key, entry)| (key.to_string(), entry.value.bytes.clone())).collect()
    }

    /// Returns the changes that make it, in the order of their stamps.
    pub fn changes(&self) -> Vec<Change> {
        let mut all: Vec<_> = self.all().collect();
        all.sort_unstable_by_key(|(.., entry)| entry.stamp);
        all.into_iter().map(|(policy, key, entry)| Change::state(entry.stamp, policy, key, Some(&entry.value))).collect()
    }

    /// Returns every entry with its policy and key.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &Entry)> {
        self.tables.iter().flat_map(|(policy, table)| table.entries.iter().map(move |(key, entry)| (policy, key, entry)))
    }
}

impl Table {
    fn remove(&mut self, key: &str) {
        let Some((key, old)) = self.entries.remove_entry(key) else { return };
        self.bytes -= entry_bytes(&key, &old.value.bytes);
        if let Some(expires_ms) = old.value.expires_ms {
            self.expiries.remove(&(expires_ms, key));
        }
    }
}

/// Returns the bytes that an entry counts.
pub fn entry_bytes(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_expired_is_known_without_a_look_at_the_rest() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut states, policy) = (States::default(), Arc::<str>::from("p"));
        for now_ms in 0..3000 {
            let key = random.u8(..50).to_string();
            let value = random.bool().then(|| Value {
                bytes: vec![b'x'; random.usize(..20)].into(),
                expires_ms: random.bool().then(|| now_ms + random.u64(..100)),
            });
            states.write(&policy, &key, value, now_ms);
            if random.u8(..20) == 0 {
                states.sweep(&policy, now_ms);
                assert_eq!(states.usage(&policy), states.live_usage(&policy, now_ms));
            }
            let live = states.all().filter(|(.., entry)| entry.value.is_live(now_ms));
            let counted = live.fold(Usage::default(), |usage, (_, key, entry)| Usage {
                keys: usage.keys + 1,
                bytes: usage.bytes + entry_bytes(key, &entry.value.bytes),
            });
            assert_eq!(states.live_usage(&policy, now_ms), counted);
            let table = &states.tables[&policy];
            assert_eq!(table.expiries.len(), table.entries.values().filter(|entry| entry.value.expires_ms.is_some()).count());
        }
        states.sweep(&policy, u64::MAX);
        assert!(states.all().all(|(.., entry)| entry.value.expires_ms.is_none()) && states.usage(&policy).keys > 0);
    }
}
