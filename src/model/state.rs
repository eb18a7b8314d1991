//! The policies' key-value stores: one for each policy name, shared by all its versions. Pure: time is an argument, and `World` controls
//! changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Stamp;

/// Bytes of an entry beside its key and value: the map's slot and the allocations' overhead.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// Every policy's entries.
#[derive(Debug, Default)]
pub struct States {
    tables: HashMap<Arc<str>, Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<String, Entry>,
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

    /// Returns what the policy's entries use that have not expired. Reads every entry.
    pub fn live_usage(&self, policy: &str, now_ms: u64) -> Usage {
        let Some(table) = self.tables.get(policy) else { return Usage::default() };
        let live = table.entries.iter().filter(|(_, entry)| entry.value.is_live(now_ms));
        live.fold(Usage::default(), |usage, (key, entry)| Usage {
            keys: usage.keys + 1,
            bytes: usage.bytes + entry_bytes(key, &entry.value.bytes),
        })
    }

    /// Writes an entry, or removes it.
    pub fn write(&mut self, policy: &Arc<str>, key: &str, value: Option<Value>, stamp: Stamp) {
        let table = self.tables.entry(policy.clone()).or_default();
        if let Some(old) = table.entries.remove(key) {
            table.bytes -= entry_bytes(key, &old.value.bytes);
        }
        if let Some(value) = value {
            table.bytes += entry_bytes(key, &value.bytes);
            table.entries.insert(key.to_owned(), Entry { value, stamp });
        }
    }

    /// Returns the policies that have or had entries.
    pub fn policies(&self) -> Vec<Arc<str>> {
        self.tables.keys().cloned().collect()
    }

    /// Removes a policy's expired entries.
    pub fn sweep(&mut self, policy: &str, now_ms: u64) {
        let Some(Table { entries, bytes }) = self.tables.get_mut(policy) else { return };
        entries.retain(|key, entry| {
            let live = entry.value.is_live(now_ms);
            if !live {
                *bytes -= entry_bytes(key, &entry.value.bytes);
            }
            live
        });
    }

    /// Returns the entries of one policy that have not expired.
    pub fn live(&self, policy: &str, now_ms: u64) -> BTreeMap<String, Arc<[u8]>> {
        let entries = self.tables.get(policy).into_iter().flat_map(|table| &table.entries);
        let live = entries.filter(|(_, entry)| entry.value.is_live(now_ms));
        live.map(|(key, entry)| (key.clone(), entry.value.bytes.clone())).collect()
    }

    /// Returns every entry with its policy and key.
    #[cfg(test)]
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, &String, &Entry)> {
        self.tables.iter().flat_map(|(policy, table)| table.entries.iter().map(move |(key, entry)| (policy, key, entry)))
    }
}

/// Returns the bytes that an entry counts.
pub fn entry_bytes(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_OVERHEAD_BYTES
}
