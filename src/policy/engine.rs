//! The sandbox: one engine, and the bounds of one instance. Who else touches wasmtime's configuration is wrong.

use std::time::Duration;

use wasmtime::{Config, Engine, ResourceLimiter, UpdateDeadline};

use super::ticker::{EpochTicker, TICK};
use crate::config::Limits;

/// Stack of a guest. Half of wasmtime's default: policies don't recurse deeply, and a worker's own stack is 2 MiB.
const STACK_BYTES_MAX: usize = 256 << 10;

/// Core instances, memories and tables of one component: those of JavaScript and Python have several.
const PARTS_MAX: usize = 100;

/// Handles of one instance. Only resources of its own have them; the contract has none.
pub const HANDLES_MAX: usize = 1000;

/// Frames of a guest's backtrace in a fault report.
const BACKTRACE_FRAMES_MAX: usize = 20;

/// The engine of the serving process, with the thread that ends calls which are over their deadline.
///
/// # Errors
/// This machine can't run compiled WebAssembly, or refuses a thread.
pub fn serving() -> anyhow::Result<EpochTicker> {
    Ok(EpochTicker::new(compiling()?)?)
}

/// The engine of a process that only compiles: the same, so that what it makes fits.
///
/// # Errors
/// wasmtime was built without something that the configuration names.
pub fn compiling() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    // Deadlines: a call traps when the epoch has passed its own.
    config.epoch_interruption(true);
    config.max_wasm_stack(STACK_BYTES_MAX);
    // Calls are plain function calls on the caller's stack.
    config.concurrency_support(false);
    // Proposals that no policy needs are a larger sandbox to trust. Several memories are needed: wasmtime joins the parts of a
    // JavaScript component by modules that have them.
    config.wasm_memory64(false);
    config.wasm_relaxed_simd(false);
    config.wasm_tail_call(false);
    config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    // Registering unwind information of many modules is slow, and no native debugger looks at them.
    config.native_unwind_info(false);
    Engine::new(&config)
}

/// When a call is over. The processor's time counts, not the clock's: a thread that other work holds up does not make a policy
/// faulty. The clock is looked at first, since it is cheap; the processor's time only for a call that is still there then.
#[derive(Debug, Default)]
pub struct Deadline {
    budget: Duration,
    /// The setting that says so.
    pub setting: &'static str,
    /// The thread's processor time at the first look.
    first_look: Option<Duration>,
}

impl Deadline {
    /// Ticks after which a call is looked at for the first time. The current tick is partly over, so one more.
    pub const FIRST_LOOK_TICKS: u64 = 2;

    /// Of a call.
    pub fn call(limits: &Limits) -> Deadline {
        Deadline { budget: Duration::from_millis(limits.call_deadline_ms), setting: "limits.call_deadline_ms", first_look: None }
    }

    /// Of what comes before the first call.
    pub fn configure(limits: &Limits) -> Deadline {
        Deadline { budget: Duration::from_millis(limits.configure_deadline_ms), setting: "limits.configure_deadline_ms", first_look: None }
    }

    /// Decides at the end of a tick whether the call may go on.
    pub fn look(&mut self) -> UpdateDeadline {
        let now = processor_time();
        let first_look = *self.first_look.get_or_insert(now);
        // Up to the first look the call has spent a tick, more or less.
        if now.saturating_sub(first_look) + TICK >= self.budget { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(1) }
    }
}

/// What this thread has spent so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Keeps one instance within its memory and tables, and remembers that it was refused some.
#[derive(Debug)]
pub struct StoreLimits {
    memory_bytes_max: usize,
    table_elements_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    /// The setting because of which.
    pub refused: Option<&'static str>,
}

impl StoreLimits {
    pub fn new(limits: &Limits) -> StoreLimits {
        let (memory_bytes_max, table_elements_max) = (limits.memory_bytes_max, limits.table_elements_max);
        StoreLimits { memory_bytes_max, table_elements_max, memory_bytes: 0, table_elements: 0, refused: None }
    }

    /// Linear memory of the instance.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }
}

impl ResourceLimiter for StoreLimits {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let fits = grows(&mut self.memory_bytes, current, desired, self.memory_bytes_max);
        if !fits {
            self.refused = Some("limits.memory_bytes_max");
        }
        Ok(fits)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let fits = grows(&mut self.table_elements, current, desired, self.table_elements_max);
        if !fits {
            self.refused = Some("limits.table_elements_max");
        }
        Ok(fits)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

/// Whether one part may grow: the bound is for all memories, or all tables, of the component together.
fn grows(total: &mut usize, current: usize, desired: usize, most: usize) -> bool {
    let next = total.saturating_sub(current).saturating_add(desired);
    let fits = next <= most;
    if fits {
        *total = next;
    }
    fits
}
