//! Faults: defects of a policy, reported as its author needs them. A refusal is not one.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

/// Bytes of a fault's detail that are kept.
pub const FAULT_DETAIL_BYTES_MAX: usize = 4096;

/// A defect of a policy, as its author needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub policy: Arc<str>,
    pub version: Arc<str>,
    pub digest: Arc<str>,
    pub function: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    #[serde(flatten)]
    pub defect: Defect,
    #[serde(serialize_with = "crate::types::time::time")]
    pub at: SystemTime,
}

/// Why a guest stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Defect {
    pub kind: FaultKind,
    pub detail: String,
    /// The guest's functions, innermost first, where the component names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// The call took longer than its deadline.
    Deadline,
    /// The instance was refused memory or a table, and did not get over it.
    Memory,
    Stack,
    /// What it handed over is over a bound or not what it claims to be.
    Output,
    /// It panicked, and said why.
    Panic,
    /// It trapped without a word.
    Trap,
    /// The host ended it: too many host calls.
    Host,
}

impl FaultKind {
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Deadline => "deadline",
            FaultKind::Memory => "memory",
            FaultKind::Stack => "stack",
            FaultKind::Output => "output",
            FaultKind::Panic => "panic",
            FaultKind::Trap => "trap",
            FaultKind::Host => "host",
        }
    }
}

impl Defect {
    pub fn new(kind: FaultKind, detail: &str) -> Defect {
        Defect { kind, detail: cut(detail, FAULT_DETAIL_BYTES_MAX).to_owned(), backtrace: Vec::new() }
    }

    /// Says what else than the called function failed.
    pub fn during(self, what: &str) -> Defect {
        let detail = cut(&format!("{what}: {}", self.detail), FAULT_DETAIL_BYTES_MAX).to_owned();
        Defect { detail, ..self }
    }
}

/// Returns the longest beginning of `text` within `bytes_max` bytes.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}
