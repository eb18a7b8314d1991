//! Settings of a candidate: another version of a policy, on trial beside the one that serves.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::traces::Ratio;

/// `[policies.NAME.candidate]`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Candidate {
    /// The component, relative to `plugins.dir`.
    pub file: PathBuf,
    pub mode: Mode,
    /// The part of the calls that it makes too, or of the events that it decides.
    pub share: Ratio,
    /// Where an event without a `subject` has the value that decides whether it is the candidate's, as in `data.pool_id`.
    pub key: String,
    /// The part of the compared calls that may differ for a promotion.
    pub differences_max: Ratio,
    /// Faults that are no obstacle to a promotion.
    pub faults_max: u64,
    /// Calls that it must have made for a promotion.
    pub calls_min: NonZeroU64,
}

/// Ten percent: enough to see what is common within minutes.
const SHARE: Ratio = Ratio::new(0.1);

/// A thousand calls: what one of a hundred events does is seen ten times.
const CALLS_MIN: NonZeroU64 = NonZeroU64::MIN.saturating_add(999);

impl Default for Candidate {
    fn default() -> Candidate {
        Candidate {
            file: PathBuf::new(),
            mode: Mode::Shadow,
            share: SHARE,
            key: String::new(),
            differences_max: Ratio::new(0.0),
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
