//! Calls that a policy answered without a fault. When it faults repeatedly, one of them is repeated to find out whether the policy is
//! broken or the events are bad: a stream of bad events must not open the circuit for good ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::policy::call::{Arguments, Function};

/// One call in N is kept, so that the sample is recent. Copying the event of every call would cost too much.
const SAMPLE_EVERY: u32 = 1024;

/// The latest sample of each function.
#[derive(Debug, Default)]
pub struct Samples([Kept; 5]);

#[derive(Debug, Default)]
struct Kept {
    offered: AtomicU32,
    sample: Mutex<Option<Arc<Arguments>>>,
}

impl Samples {
    /// Keeps this call if it is the function's first or N calls have passed since the last sample.
    pub fn offer(&self, function: Function, sample: impl FnOnce() -> Arguments) {
        let Some(kept) = self.0.get(function as usize) else { return };
        if kept.offered.fetch_add(1, Ordering::Relaxed) % SAMPLE_EVERY == 0 {
            *kept.sample.lock() = Some(Arc::new(sample()));
        }
    }

    pub fn of(&self, function: Function) -> Option<Arc<Arguments>> {
        self.0.get(function as usize)?.sample.lock().clone()
    }

    /// Copies the samples of another version.
    pub fn take_over(&self, old: &Samples) {
        for (kept, old) in self.0.iter().zip(&old.0) {
            kept.sample.lock().clone_from(&old.sample.lock());
        }
    }
}
