//! What a policy may ask of the host. Each module is an import that appears in the component when it is used, and must then be
//! granted in the server's configuration.

#[cfg(target_arch = "wasm32")]
use crate::bindings::host::signalpost::policy as host;
// Anywhere else there is no host but the one of the tests.
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::fake as host;

/// Lines for the server's log, under the policy's name. The grant is `log`.
pub mod log {
    use super::host::log::write;
    use crate::bindings::host::signalpost::policy::log::Level;

    /// Details for finding a defect.
    pub fn debug(message: &str) {
        write(Level::Debug, message);
    }

    /// What happens, when all is well.
    pub fn info(message: &str) {
        write(Level::Info, message);
    }

    /// Something is wrong, and the policy can go on.
    pub fn warn(message: &str) {
        write(Level::Warn, message);
    }

    /// Somebody should act.
    pub fn error(message: &str) {
        write(Level::Error, message);
    }
}

/// The time. The grant is `clock`.
pub mod clock {
    /// Milliseconds since the Unix epoch when the current call began: the same throughout a call.
    pub fn now_ms() -> u64 {
        super::host::clock::now_ms()
    }
}

/// The policy's own key-value store, which outlives instances, reloads and restarts of the server. The grant is `state`.
///
/// `get`, `set` and `compare_and_swap` keep values as JSON; `get_bytes` and `set_bytes` leave the form to the policy. `ttl_ms`
/// is the time after which a key is gone; without it, the key stays until it is deleted.
pub mod state {
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::host::state as host;
    use crate::Refusal;
    use crate::json::text_of;

    pub use crate::bindings::host::signalpost::policy::state::Error;

    /// Returns the value of a key; `None` if the key is absent, or its value is not a `T`: an older version of the policy may have
    /// written it.
    pub fn get<T: DeserializeOwned>(key: &str) -> Option<T> {
        // As text, like all other JSON: `from_slice` would bring a second reader into the component.
        serde_json::from_str(std::str::from_utf8(&get_bytes(key)?).ok()?).ok()
    }

    /// Sets a value as JSON. Panics if `value` can't be JSON.
    pub fn set<T: Serialize>(key: &str, value: &T, ttl_ms: Option<u32>) -> Result<(), Error> {
        set_bytes(key, text_of(value).as_bytes(), ttl_ms)
    }

    /// The value as it was set.
    pub fn get_bytes(key: &str) -> Option<Vec<u8>> {
        host::get(key)
    }

    /// Sets a value of any form.
    pub fn set_bytes(key: &str, value: &[u8], ttl_ms: Option<u32>) -> Result<(), Error> {
        host::set(key, value, ttl_ms)
    }

    /// Says whether the key was there.
    pub fn delete(key: &str) -> bool {
        host::delete(key)
    }

    /// Adds to a whole number, which is 0 if the key is absent, and returns the sum. `ttl_ms` counts from the first increment.
    pub fn increment(key: &str, by: i64, ttl_ms: Option<u32>) -> Result<i64, Error> {
        host::increment(key, by, ttl_ms)
    }

    /// Sets the value if the current one is `expected` (`None`: absent), and says whether it did. Values are equal when their
    /// JSON is, byte by byte. Panics if a value can't be JSON.
    pub fn compare_and_swap<T: Serialize>(key: &str, expected: Option<&T>, value: &T, ttl_ms: Option<u32>) -> Result<bool, Error> {
        let expected = expected.map(text_of);
        host::compare_and_swap(key, expected.as_ref().map(|json| json.as_bytes()), text_of(value).as_bytes(), ttl_ms)
    }

    /// For a policy that needs its store: `state::increment("rides", 1, None)?`.
    impl From<Error> for Refusal {
        fn from(error: Error) -> Refusal {
            match error {
                Error::Quota => Refusal::new("state_quota", "the policy's store has no room for this key or value"),
                Error::NotANumber => {
                    Refusal::new("state_not_a_number", "the value to add to is not a whole number, or the sum is out of range")
                }
            }
        }
    }
}

/// Who is connected. The grant is `presence`.
pub mod presence {
    /// The number of open sessions of a user.
    pub fn sessions(user: &str) -> u32 {
        super::host::presence::sessions(user)
    }
}

/// Groups of users, shared by all policies. Decisions change them. The grant is `groups`.
pub mod groups {
    use super::host::groups as host;

    /// Whether the user is a member.
    pub fn contains(group: &str, user: &str) -> bool {
        host::contains(group, user)
    }

    /// The number of members; 0 for a group that nobody knows.
    pub fn size(group: &str) -> u32 {
        host::size(group)
    }

    /// In the order in which they joined, and no more than one call may return; `size` tells how many there are.
    pub fn members(group: &str) -> Vec<String> {
        host::members(group)
    }
}

/// The policy's own counters in `/metrics`. The grant is `metrics`.
pub mod metrics {
    /// Names are ASCII letters, digits and `_`.
    pub fn count(name: &str, by: u64) {
        super::host::metrics::count(name, by);
    }
}
