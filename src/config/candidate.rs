//! Settings of a candidate: another version of a policy, on trial beside the one that serves.

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// `[policies.NAME.candidate]`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Candidate {
    /// The component, relative to `plugins.dir`.
    pub file: PathBuf,
    pub mode: Mode,
    /// The part of the calls that it makes too, or of the events that it decides.
    pub share: Share,
    /// Where an event without a `subject` has the value that decides whether it is the candidate's, as in `data.pool_id`.
    pub key: String,
    /// The part of the compared calls that may differ for a promotion.
    pub differences_max: Share,
    /// Faults that are no obstacle to a promotion.
    pub faults_max: u64,
    /// Calls that it must have made for a promotion.
    pub calls_min: NonZeroU64,
}

/// Ten percent: enough to see what is common within minutes.
const SHARE: Share = Share(0.1);

/// A thousand calls: what one of a hundred events does is seen ten times.
const CALLS_MIN: NonZeroU64 = NonZeroU64::MIN.saturating_add(999);

impl Default for Candidate {
    fn default() -> Candidate {
        Candidate {
            file: PathBuf::new(),
            mode: Mode::Shadow,
            share: SHARE,
            key: String::new(),
            differences_max: Share(0.0),
            faults_max: 0,
            calls_min: CALLS_MIN,
        }
    }
}

/// Limits on calls that candidates make again.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Candidates {
    /// Calls that wait for candidates.
    pub entries_max: NonZeroUsize,
    /// Bytes of these calls.
    pub bytes_max: NonZeroUsize,
}

/// What a candidate does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It makes calls again that the live policy has made, and is compared with it. Its answers go nowhere.
    #[default]
    Shadow,
    /// It decides in place of the live policy.
    Canary,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Shadow => "shadow",
            Mode::Canary => "canary",
        }
    }
}

/// A part of a whole, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Share(f64);

impl Share {
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Share, D::Error> {
        struct Part;
        impl Visitor<'_> for Part {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 1, as in 0.1")
            }

            fn visit_f64<E: serde::de::Error>(self, part: f64) -> Result<Share, E> {
                if (0.0..=1.0).contains(&part) { Ok(Share(part)) } else { Err(E::invalid_value(Unexpected::Float(part), &self)) }
            }

            fn visit_i64<E: serde::de::Error>(self, part: i64) -> Result<Share, E> {
                match part {
                    0 => Ok(Share(0.0)),
                    1 => Ok(Share(1.0)),
                    _ => Err(E::invalid_value(Unexpected::Signed(part), &self)),
                }
            }

            fn visit_u64<E: serde::de::Error>(self, part: u64) -> Result<Share, E> {
                self.visit_i64(i64::try_from(part).unwrap_or(i64::MAX))
            }
        }
        deserializer.deserialize_any(Part)
    }
}
