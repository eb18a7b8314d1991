//! Translates wasmtime's errors into faults.

use std::sync::Arc;

use tokio::sync::broadcast;
use wasmtime::{Trap, WasmBacktrace};

use super::host::{Host, TooManyHostCalls};
use super::stubs;
use crate::types::fault::{Defect, FAULT_DETAIL_BYTES_MAX, Fault, FaultKind, cut};

/// Bytes of a function's name in a backtrace. A name in a name section may have 100,000 bytes.
const FUNCTION_BYTES_MAX: usize = 128;

/// Faults that wait for a slow observer. There are few, and each has a few KiB.
const FAULTS_MAX: usize = 64;

/// Where the faults of a node's policies are seen at once. Policies share it.
#[derive(Clone, Debug)]
pub struct Faults(broadcast::Sender<Arc<Fault>>);

impl Faults {
    pub fn new() -> Faults {
        Faults(broadcast::channel(FAULTS_MAX).0)
    }

    /// Returns all further faults.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Fault>> {
        self.0.subscribe()
    }

    /// Shows a fault to those who look.
    pub fn show(&self, fault: &Fault) {
        if self.0.receiver_count() > 0 {
            // An error means that the last of them has just left.
            let _ = self.0.send(Arc::new(fault.clone()));
        }
    }
}

/// Explains why a guest stopped.
pub fn defect(error: &wasmtime::Error, host: &Host) -> Defect {
    let kind = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => FaultKind::Deadline,
        Some(Trap::StackOverflow) => FaultKind::Stack,
        _ if host.growth.refused.is_some() => FaultKind::Memory,
        Some(_) if host.panic().is_some() => FaultKind::Panic,
        Some(_) => FaultKind::Trap,
        None if error.is::<TooManyHostCalls>() => FaultKind::Host,
        // Not a trap: the guest's output could not be read.
        None => FaultKind::Output,
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
    let instead = frames.first().filter(|_| kind == FaultKind::Trap).and_then(stubs::instead);
    let mut detail = match host.panic().or(instead) {
        Some(said) => format!("{said} ({})", error.root_cause()),
        None => error.root_cause().to_string(),
    };
    if let Some(setting) = exceeded(kind, error, host) {
        detail = format!("{}; {setting} bounds that", cut(&detail, FAULT_DETAIL_BYTES_MAX / 2));
    }
    let backtrace =
        frames.iter().filter_map(|frame| frame.func_name()).map(|name| cut(rustc_name(name), FUNCTION_BYTES_MAX).to_owned()).collect();
    Defect { backtrace, ..Defect::new(kind, &detail) }
}

/// Explains why an instance could not be made. An error that is not a trap means that a limit was too small: there is no output yet.
pub fn creation_defect(error: &wasmtime::Error, host: &Host) -> Defect {
    let defect = defect(error, host);
    if defect.kind == FaultKind::Output { Defect { kind: FaultKind::Memory, ..defect } } else { defect }
}

/// Returns the setting whose bound was exceeded, for an operator who wants to raise it.
fn exceeded(kind: FaultKind, error: &wasmtime::Error, host: &Host) -> Option<&'static str> {
    match kind {
        FaultKind::Deadline => Some(host.deadline.setting),
        FaultKind::Memory => host.growth.refused,
        FaultKind::Output if is_too_much(error) => Some("limits.output_bytes_max"),
        _ => None,
    }
}

/// Returns whether the guest's output was larger than the store's hostcall fuel. wasmtime keeps the error's type private, so this compares
/// its name, which its derived `Debug` writes.
fn is_too_much(error: &wasmtime::Error) -> bool {
    format!("{:?}", error.root_cause()) == "HostcallFuelExhausted"
}

/// Returns a function's name without the hash that rustc appends.
fn rustc_name(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => path,
        _ => name,
    }
}

/// Returns an error with its causes, on one line.
pub fn chain(error: &wasmtime::Error) -> String {
    format!("{error:#}")
}
