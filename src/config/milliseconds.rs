//! A time as a setting gives it.

use std::num::NonZeroU64;
use std::ops::Deref;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest duration that a setting takes: 100 years. Far longer ones can't be added to the time of day.
pub const MILLISECONDS_MAX: u64 = 3_155_760_000_000;

/// A duration that a setting gives in whole milliseconds, at least `MIN` (0 or 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milliseconds<const MIN: u64 = 1>(Duration);

impl<const MIN: u64> Deref for Milliseconds<MIN> {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl<const MIN: u64> Milliseconds<MIN> {
    /// Makes a time for tests and tools, which change single settings.
    pub const fn new(milliseconds: u64) -> Milliseconds<MIN> {
        assert!(milliseconds >= MIN);
        Milliseconds(Duration::from_millis(milliseconds))
    }

    pub fn get(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl<'de, const MIN: u64> Deserialize<'de> for Milliseconds<MIN> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own types, so that a wrong value is reported like that of any other number.
        let milliseconds = if MIN == 0 { u64::deserialize(deserializer)? } else { NonZeroU64::deserialize(deserializer)?.get() };
        if milliseconds > MILLISECONDS_MAX {
            return Err(D::Error::custom(format!("expected at most {MILLISECONDS_MAX}, which is 100 years")));
        }
        Ok(Milliseconds(Duration::from_millis(milliseconds)))
    }
}

impl<const MIN: u64> Serialize for Milliseconds<MIN> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}
