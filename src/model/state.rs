//! The policies' own key-value stores. They outlive instances and reloads, not the process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// What one entry costs beside its key and value: the map's slot and the allocations' heads.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// One store for each policy name.
#[derive(Debug, Default)]
pub struct States {
    by_policy: Mutex<HashMap<String, Arc<State>>>,
}

impl States {
    /// The store of one policy: the same for every version of it.
    pub fn of(&self, policy: &str) -> Arc<State> {
        self.by_policy.lock().entry(policy.to_owned()).or_default().clone()
    }

    /// Stores that begin as these are, and whose changes go nowhere.
    pub fn fork(&self) -> States {
        let forked = self.by_policy.lock().iter().map(|(name, state)| (name.clone(), Arc::new(state.fork()))).collect();
        States { by_policy: Mutex::new(forked) }
    }

    /// Forgets what has expired.
    pub fn sweep(&self) {
        let now = Instant::now();
        for state in self.by_policy.lock().values() {
            state.table.lock().expire(now);
        }
    }
}

/// One policy's store. Each function is atomic.
#[derive(Debug, Default)]
pub struct State {
    table: Mutex<Table>,
    /// Where a fork reads what it has not touched. Its own quota counts only what it has.
    base: Option<Arc<State>>,
}

/// Bounds of one store.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub keys_max: usize,
    pub bytes_max: usize,
    pub value_bytes_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    Quota,
    NotANumber,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<String, Entry>,
    bytes: usize,
    /// What a fork has fetched from its base, there or not.
    fetched: HashSet<String>,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Vec<u8>,
    expires: Option<Instant>,
}

impl State {
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.table(key).live(key, Instant::now()).cloned()
    }

    /// # Errors
    /// The quota is used up; nothing has changed.
    pub fn set(&self, key: String, value: Vec<u8>, time_to_live: Option<Duration>, quota: Quota) -> Result<(), StateError> {
        let now = Instant::now();
        self.table(&key).put(key, value, expiry(now, time_to_live), quota, now)
    }

    /// Says whether the key was there.
    pub fn delete(&self, key: &str) -> bool {
        let mut table = self.table(key);
        let there = table.live(key, Instant::now()).is_some();
        table.remove(key);
        there
    }

    /// # Errors
    /// The value is no decimal 64-bit integer, the sum leaves its range, or the quota is used up.
    pub fn increment(&self, key: String, by: i64, time_to_live: Option<Duration>, quota: Quota) -> Result<i64, StateError> {
        let now = Instant::now();
        let mut table = self.table(&key);
        let (current, expires) = match table.live(&key, now) {
            Some(value) => {
                let text = std::str::from_utf8(value).map_err(|_| StateError::NotANumber)?;
                let number: i64 = text.parse().map_err(|_| StateError::NotANumber)?;
                (number, table.entries.get(&key).and_then(|entry| entry.expires))
            }
            None => (0, expiry(now, time_to_live)),
        };
        let sum = current.checked_add(by).ok_or(StateError::NotANumber)?;
        table.put(key, sum.to_string().into_bytes(), expires, quota, now)?;
        Ok(sum)
    }

    /// Sets the value if the current one is `expected`, and says whether it did.
    ///
    /// # Errors
    /// The quota is used up; nothing has changed.
    pub fn compare_and_swap(
        &self,
        key: String,
        expected: Option<&[u8]>,
        value: Vec<u8>,
        time_to_live: Option<Duration>,
        quota: Quota,
    ) -> Result<bool, StateError> {
        let now = Instant::now();
        let mut table = self.table(&key);
        if table.live(&key, now).map(Vec::as_slice) != expected {
            return Ok(false);
        }
        table.put(key, value, expiry(now, time_to_live), quota, now)?;
        Ok(true)
    }

    /// All that has not expired.
    pub fn entries(&self) -> BTreeMap<String, Vec<u8>> {
        let now = Instant::now();
        let table = self.table.lock();
        table.entries.keys().filter_map(|key| Some((key.clone(), table.live(key, now)?.clone()))).collect()
    }

    fn fork(self: &Arc<State>) -> State {
        State { table: Mutex::default(), base: Some(self.clone()) }
    }

    /// The table, in which `key` is up to date.
    fn table(&self, key: &str) -> MutexGuard<'_, Table> {
        let mut table = self.table.lock();
        if let Some(base) = &self.base
            && table.fetched.insert(key.to_owned())
            && let Some(entry) = base.table(key).entries.get(key)
        {
            table.bytes += size(key, &entry.value);
            table.entries.insert(key.to_owned(), entry.clone());
        }
        table
    }
}

impl Table {
    fn live(&self, key: &str, now: Instant) -> Option<&Vec<u8>> {
        let entry = self.entries.get(key)?;
        if entry.expires.is_some_and(|expires| expires <= now) { None } else { Some(&entry.value) }
    }

    fn put(&mut self, key: String, value: Vec<u8>, expires: Option<Instant>, quota: Quota, now: Instant) -> Result<(), StateError> {
        if value.len() > quota.value_bytes_max || key.len() > quota.value_bytes_max {
            return Err(StateError::Quota);
        }
        if !self.fits(&key, &value, quota) {
            self.expire(now);
            if !self.fits(&key, &value, quota) {
                return Err(StateError::Quota);
            }
        }
        self.remove(&key);
        self.bytes += size(&key, &value);
        self.entries.insert(key, Entry { value, expires });
        Ok(())
    }

    fn fits(&self, key: &str, value: &[u8], quota: Quota) -> bool {
        let old = self.entries.get(key).map(|entry| size(key, &entry.value));
        let keys = self.entries.len() + usize::from(old.is_none());
        keys <= quota.keys_max && self.bytes - old.unwrap_or(0) + size(key, value) <= quota.bytes_max
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= size(key, &entry.value);
        }
    }

    fn expire(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.entries.retain(|key, entry| {
            let live = entry.expires.is_none_or(|expires| expires > now);
            if !live {
                *bytes -= size(key, &entry.value);
            }
            live
        });
    }
}

fn size(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_OVERHEAD_BYTES
}

fn expiry(now: Instant, time_to_live: Option<Duration>) -> Option<Instant> {
    time_to_live.map(|time| now + time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { keys_max: 2, bytes_max: 1000, value_bytes_max: 100 };
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_value_is_gone_after_its_time_to_live_and_makes_room() {
        let state = State::default();
        state.set("a".into(), b"1".to_vec(), Some(SECOND), QUOTA).unwrap();
        state.set("b".into(), b"2".to_vec(), None, QUOTA).unwrap();
        assert_eq!(state.set("c".into(), b"3".to_vec(), None, QUOTA), Err(StateError::Quota));
        tokio::time::advance(SECOND).await;
        assert_eq!(state.get("a"), None);
        state.set("c".into(), b"3".to_vec(), None, QUOTA).unwrap();
        assert!(!state.delete("a"));
        assert!(state.delete("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn increments_count_from_zero_and_expire_with_the_first() {
        let state = State::default();
        assert_eq!(state.increment("n".into(), 2, Some(SECOND), QUOTA), Ok(2));
        assert_eq!(state.increment("n".into(), -5, Some(10 * SECOND), QUOTA), Ok(-3));
        tokio::time::advance(SECOND).await;
        assert_eq!(state.increment("n".into(), 1, None, QUOTA), Ok(1));
        state.set("n".into(), b"x".to_vec(), None, QUOTA).unwrap();
        assert_eq!(state.increment("n".into(), 1, None, QUOTA), Err(StateError::NotANumber));
        state.set("n".into(), i64::MAX.to_string().into_bytes(), None, QUOTA).unwrap();
        assert_eq!(state.increment("n".into(), 1, None, QUOTA), Err(StateError::NotANumber));
    }

    #[test]
    fn compare_and_swap_needs_what_is_there() {
        let state = State::default();
        assert_eq!(state.compare_and_swap("k".into(), Some(b"x"), b"y".to_vec(), None, QUOTA), Ok(false));
        assert_eq!(state.compare_and_swap("k".into(), None, b"y".to_vec(), None, QUOTA), Ok(true));
        assert_eq!(state.compare_and_swap("k".into(), Some(b"y"), b"z".to_vec(), None, QUOTA), Ok(true));
        assert_eq!(state.get("k"), Some(b"z".to_vec()));
    }

    #[test]
    fn a_fork_sees_what_there_is_and_keeps_its_changes_to_itself() {
        let states = States::default();
        let state = states.of("p");
        state.set("n".into(), b"1".to_vec(), None, QUOTA).unwrap();
        state.set("gone".into(), b"x".to_vec(), None, QUOTA).unwrap();
        let fork = states.fork().of("p");
        assert_eq!(fork.increment("n".into(), 1, None, QUOTA), Ok(2));
        assert!(fork.delete("gone") && fork.get("gone").is_none());
        assert_eq!(fork.increment("n".into(), 1, None, QUOTA), Ok(3));
        assert_eq!((state.get("n"), state.get("gone")), (Some(b"1".to_vec()), Some(b"x".to_vec())));
    }

    #[test]
    fn bytes_are_given_back() {
        let state = State::default();
        for round in 0..100 {
            state.set("k".into(), vec![0; round], None, QUOTA).unwrap();
        }
        assert_eq!(state.set("k".into(), vec![0; 101], None, QUOTA), Err(StateError::Quota));
        state.delete("k");
        assert_eq!(state.table.lock().bytes, 0);
    }
}
