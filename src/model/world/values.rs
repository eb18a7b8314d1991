//! The state of policies, as their calls see and change it.

use std::sync::Arc;

use super::World;
use super::tape::Watch;
use super::writes::{Own, StateError};
use crate::model::state::{Quota, States, Value};

impl World {
    pub fn get(&mut self, policy: &Arc<str>, key: &str, quota: Quota) -> Option<Arc<[u8]>> {
        let states = self.below.states();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        read(&mut self.watch, &mut own, &states, key).map(|value| value.bytes)
    }

    /// # Errors
    /// The quota is used up; nothing has changed.
    pub fn set(&mut self, policy: &Arc<str>, key: String, bytes: Vec<u8>, ttl_ms: Option<u32>, quota: Quota) -> Result<(), StateError> {
        let expires_ms = self.expiry(ttl_ms);
        let states = self.below.states();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        put(&mut self.watch, &mut own, &states, key, Value { bytes: bytes.into(), expires_ms })
    }

    /// Removes a key, and returns whether it was there.
    pub fn delete(&mut self, policy: &Arc<str>, key: &str, quota: Quota) -> bool {
        let states = self.below.states();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        let is_there = read(&mut self.watch, &mut own, &states, key).is_some();
        if is_there {
            own.write(&states, key.to_owned(), None);
        }
        is_there
    }

    /// Adds to a number, which starts at 0, and returns the sum. The time to live is set only when the key is created.
    ///
    /// # Errors
    /// The value is not a decimal 64-bit integer, the sum leaves its range, or the quota is used up.
    pub fn increment(&mut self, policy: &Arc<str>, key: String, by: i64, ttl_ms: Option<u32>, quota: Quota) -> Result<i64, StateError> {
        let fresh_ms = self.expiry(ttl_ms);
        let states = self.below.states();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        let (number, expires_ms) = match read(&mut self.watch, &mut own, &states, &key) {
            Some(value) => {
                let text = std::str::from_utf8(&value.bytes).map_err(|_| StateError::NotANumber)?;
                (text.parse().map_err(|_| StateError::NotANumber)?, value.expires_ms)
            }
            None => (0_i64, fresh_ms),
        };
        let sum = number.checked_add(by).ok_or(StateError::NotANumber)?;
        put(&mut self.watch, &mut own, &states, key, Value { bytes: sum.to_string().into_bytes().into(), expires_ms })?;
        Ok(sum)
    }

    /// Sets the value if the current one is `expected`, and returns whether it did.
    ///
    /// # Errors
    /// The quota is used up; nothing has changed.
    pub fn compare_and_swap(
        &mut self,
        policy: &Arc<str>,
        key: String,
        expected: Option<&[u8]>,
        bytes: Vec<u8>,
        ttl_ms: Option<u32>,
        quota: Quota,
    ) -> Result<bool, StateError> {
        let expires_ms = self.expiry(ttl_ms);
        let states = self.below.states();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        if read(&mut self.watch, &mut own, &states, &key).as_ref().map(|value| &*value.bytes) != expected {
            return Ok(false);
        }
        put(&mut self.watch, &mut own, &states, key, Value { bytes: bytes.into(), expires_ms })?;
        Ok(true)
    }

    fn expiry(&self, ttl_ms: Option<u32>) -> Option<u64> {
        ttl_ms.map(|ttl| self.now_ms.saturating_add(ttl.into()))
    }
}

/// Reads a key of a policy's state, and tells the watch if there is one. A call's own writes are not what it read.
fn read(watch: &mut Option<Box<Watch>>, own: &mut Own<'_>, states: &States, key: &str) -> Option<Value> {
    let value = own.read(states, key);
    if let Some(watch) = watch
        && !own.is_written_by_call(key)
    {
        watch.state(key, || value.as_ref().map(|value| value.bytes.clone()));
    }
    value
}

/// Writes to a policy's state, and tells the watch if there is one.
fn put(watch: &mut Option<Box<Watch>>, own: &mut Own<'_>, states: &States, key: String, value: Value) -> Result<(), StateError> {
    let Some(watch) = watch else { return own.put(states, key, value) };
    let result = own.put(states, key.clone(), value);
    watch.write(&key, result == Err(StateError::Quota));
    result
}
