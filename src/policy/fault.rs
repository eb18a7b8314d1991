//! Faults: defects of a policy, reported as its author needs them. A refusal is none.

use std::time::SystemTime;

use serde::Serialize;
use wasmtime::{Trap, WasmBacktrace};

use super::host::{Host, TooManyHostCalls, cut};

/// Bytes of a fault's detail that are kept.
pub const FAULT_DETAIL_BYTES_MAX: usize = 4096;

/// Bytes of a function's name in a backtrace. A name section may hold names of 100,000.
const FUNCTION_BYTES_MAX: usize = 128;

/// A defect of a policy, as its author needs it.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    pub policy: String,
    pub version: String,
    pub digest: String,
    pub function: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    #[serde(flatten)]
    pub defect: Defect,
    #[serde(serialize_with = "crate::types::time::time")]
    pub at: SystemTime,
}

/// Why a guest stopped.
#[derive(Clone, Debug, Serialize)]
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
    pub fn new(kind: FaultKind, detail: String) -> Defect {
        Defect { kind, detail: cut(&detail, FAULT_DETAIL_BYTES_MAX).to_owned(), backtrace: Vec::new() }
    }

    pub fn of(error: &wasmtime::Error, host: &Host) -> Defect {
        let kind = match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => FaultKind::Deadline,
            Some(Trap::StackOverflow) => FaultKind::Stack,
            _ if host.growth.refused.is_some() => FaultKind::Memory,
            Some(_) if host.panic().is_some() => FaultKind::Panic,
            Some(_) => FaultKind::Trap,
            None if error.is::<TooManyHostCalls>() => FaultKind::Host,
            // Not a trap: what it handed over could not be read.
            None => FaultKind::Output,
        };
        let mut detail = match host.panic() {
            Some(said) => format!("{said} ({})", error.root_cause()),
            None => error.root_cause().to_string(),
        };
        if let Some(setting) = exceeded(kind, &detail, host) {
            detail = format!("{}; {setting} bounds that", cut(&detail, FAULT_DETAIL_BYTES_MAX / 2));
        }
        let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
        let backtrace =
            frames.iter().filter_map(|frame| frame.func_name()).map(|name| cut(rustc_name(name), FUNCTION_BYTES_MAX).to_owned()).collect();
        Defect { backtrace, ..Defect::new(kind, detail) }
    }

    /// Of an instance that could not be made: what is no trap there is a lack of room, since nothing has been handed over yet.
    pub fn of_creation(error: &wasmtime::Error, host: &Host) -> Defect {
        let defect = Defect::of(error, host);
        if defect.kind == FaultKind::Output { Defect { kind: FaultKind::Memory, ..defect } } else { defect }
    }

    /// Says what else than the called function failed.
    pub fn during(self, what: &str) -> Defect {
        let detail = cut(&format!("{what}: {}", self.detail), FAULT_DETAIL_BYTES_MAX).to_owned();
        Defect { detail, ..self }
    }
}

/// The setting whose bound was in the way, for who means to allow more.
fn exceeded(kind: FaultKind, detail: &str, host: &Host) -> Option<&'static str> {
    match kind {
        FaultKind::Deadline => Some(host.deadline.setting),
        FaultKind::Memory => host.growth.refused,
        // wasmtime has no type for it.
        FaultKind::Output if detail.contains("fuel") => Some("limits.output_bytes_max"),
        _ => None,
    }
}

/// A function's name without the hash that rustc puts at its end.
fn rustc_name(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => path,
        _ => name,
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &wasmtime::Error) -> String {
    format!("{error:#}")
}
