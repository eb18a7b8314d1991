//! Settings of recordings: how much may be recorded of policies' calls.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use serde::{Deserialize, Serialize};

/// Limits on recordings of policies' calls.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recordings {
    /// Recordings at a time.
    pub recorders_max: NonZeroUsize,
    /// Calls that one recording may have.
    pub calls_max: NonZeroU64,
    /// Minutes that one recording may take.
    pub minutes_max: NonZeroU32,
    /// Calls that are kept until the slowest recorder has read them.
    pub entries_max: NonZeroUsize,
    /// Bytes of these calls.
    pub bytes_max: NonZeroUsize,
}
