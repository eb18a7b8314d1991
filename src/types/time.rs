//! Times in JSON.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

/// Serializes a time as RFC 3339 in UTC, with milliseconds.
///
/// # Errors
/// The serializer's.
pub fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    rfc3339(*time).serialize(serializer)
}

/// Returns a time as RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => "9999-12-31T23:59:59.999Z".into(),
    }
}
