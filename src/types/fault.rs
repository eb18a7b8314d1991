//! Faults: defects of a policy, reported for its author. A refusal is not a fault.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Bytes of a fault's detail that are kept.
pub const FAULT_DETAIL_BYTES_MAX: usize = 4096;

/// A defect of a policy, and the call in which it showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub policy: Arc<str>,
    pub version: Arc<str>,
    pub digest: Arc<str>,
    pub function: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    #[serde(flatten)]
    pub defect: Defect,
    #[serde(serialize_with = "crate::types::time::time")]
    pub at: SystemTime,
}

/// What was wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Defect {
    pub kind: FaultKind,
    pub detail: String,
    /// The guest's functions, innermost first, if the component names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// The call used more CPU time than its deadline allows.
    Deadline,
    /// The instance was refused more memory or a larger table, and trapped.
    Memory,
    Stack,
    /// The guest's output is over a bound or invalid.
    Output,
    /// The guest panicked and reported a message.
    Panic,
    /// The guest trapped without a message.
    Trap,
    /// The host ended the call: the guest made too many host calls.
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
    /// Returns the bytes of its texts.
    pub fn size(&self) -> usize {
        self.detail.len() + self.backtrace.iter().map(String::len).sum::<usize>()
    }

    pub fn new(kind: FaultKind, detail: &str) -> Defect {
        Defect { kind, detail: cut(detail, FAULT_DETAIL_BYTES_MAX).to_owned(), backtrace: Vec::new() }
    }

    /// Adds what the server was doing, if it was not calling a role function.
    pub fn during(self, what: &str) -> Defect {
        let detail = cut(&format!("{what}: {}", self.detail), FAULT_DETAIL_BYTES_MAX).to_owned();
        Defect { detail, ..self }
    }
}

/// Returns the longest beginning of `text` within `bytes_max` bytes.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}
