//! Settings of traces.

use std::num::NonZeroUsize;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Milliseconds;

/// Where spans of requests are sent, and of which.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// The collector's http or https URL; empty for no traces.
    pub endpoint: String,
    /// The share of requests without a parent that are sampled.
    pub sample_ratio: Ratio,
    /// Whether the parent of a request that has one decides, and not the share.
    pub follow_parent: bool,
    /// Deliveries of one event that have a span.
    pub deliveries_max: usize,
    /// Spans that wait.
    pub queue_max: NonZeroUsize,
    /// Spans in one request to the collector.
    pub batch_max: NonZeroUsize,
    /// The longest that a span waits for others.
    pub interval_ms: Milliseconds,
    /// How long the collector may take to answer.
    pub deadline_ms: Milliseconds,
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

impl Ratio {
    pub(super) const fn new(number: f64) -> Ratio {
        Ratio(number)
    }

    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ratio, D::Error> {
        let number = f64::deserialize(deserializer)?;
        // Not a number is not in the range either.
        if (0.0..=1.0).contains(&number) { Ok(Ratio(number)) } else { Err(D::Error::custom("expected a number from 0 to 1")) }
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
