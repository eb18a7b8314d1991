//! The sandbox: one engine, and the bounds of one instance. Nothing else may touch wasmtime's configuration.

use std::time::Duration;

use wasmtime::{Config, Engine, ResourceLimiter, UpdateDeadline};

use super::ticker::{EpochTicker, TICK};
use crate::config::Limits;

/// Stack of a guest. Half of wasmtime's default: policies don't recurse deeply, and a worker's own stack is 2 MiB.
const STACK_BYTES_MAX: usize = 256 << 10;

/// Core instances, memories and tables of one component: those of JavaScript and Python have several.
const PARTS_MAX: usize = 100;

/// Resource handles of one instance. Only a plugin's own resources need them: the contract defines none.
pub const HANDLES_MAX: usize = 1000;

/// Frames of a guest's backtrace in a fault report.
const BACKTRACE_FRAMES_MAX: usize = 20;

/// Returns the engine of the serving process, with the thread that interrupts calls past their deadline.
///
/// # Errors
/// This machine can't run compiled WebAssembly, or can't start a thread.
pub fn serving() -> anyhow::Result<EpochTicker> {
    Ok(EpochTicker::new(compiling()?)?)
}

/// Returns the engine of a process that only compiles. Its configuration is the same, so that the serving process can load the result.
///
/// # Errors
/// wasmtime was built without a feature that the configuration needs.
pub fn compiling() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    // Deadlines: a call checks its deadline when the epoch has passed the store's.
    config.epoch_interruption(true);
    config.max_wasm_stack(STACK_BYTES_MAX);
    // Calls are plain function calls on the caller's stack.
    config.concurrency_support(false);
    // Each proposal enlarges the sandbox that has to be trusted, so those that no policy needs are off. Multiple memories stay on:
    // wasmtime joins the modules of a JavaScript component with adapters that use them.
    config.wasm_memory64(false);
    config.wasm_relaxed_simd(false);
    config.wasm_tail_call(false);
    config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    // Registering unwind information of many modules is slow, and no native debugger looks at them.
    config.native_unwind_info(false);
    Engine::new(&config)
}

/// When a call is over. CPU time counts, not wall-clock time: a call whose thread had to wait for a processor is not a fault. The
/// epoch is checked first, since that is cheap; CPU time is read only for a call that is still running by then.
#[derive(Debug, Default)]
pub struct Deadline {
    budget: Duration,
    /// The setting that sets the budget.
    pub setting: &'static str,
    /// The thread's CPU time at the first check.
    first_look: Option<Duration>,
}

impl Deadline {
    /// Ticks after which a call is first checked: one, and one more because the current tick is partly over.
    pub const FIRST_LOOK_TICKS: u64 = 2;

    /// Returns the deadline of a role function.
    pub fn call(limits: &Limits) -> Deadline {
        Deadline { budget: *limits.call_deadline_ms, setting: "limits.call_deadline_ms", first_look: None }
    }

    /// Returns the deadline of instantiation, `describe`, `configure` and `vary`.
    pub fn configure(limits: &Limits) -> Deadline {
        Deadline { budget: *limits.configure_deadline_ms, setting: "limits.configure_deadline_ms", first_look: None }
    }

    /// Decides at the end of a tick whether the call may continue.
    pub fn look(&mut self) -> UpdateDeadline {
        let now = processor_time();
        let first_look = *self.first_look.get_or_insert(now);
        // By the first check the call has run for about one tick.
        if now.saturating_sub(first_look) + TICK >= self.budget { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(1) }
    }
}

/// Returns the CPU time that this thread has used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Keeps one instance within its memory and table limits, and records whether it was refused more.
#[derive(Debug)]
pub struct StoreLimits {
    memory_bytes_max: usize,
    table_elements_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    /// The setting because of which growth was refused.
    pub refused: Option<&'static str>,
}

impl StoreLimits {
    pub fn new(limits: &Limits) -> StoreLimits {
        let (memory_bytes_max, table_elements_max) = (limits.memory_bytes_max.get(), limits.table_elements_max.get());
        StoreLimits { memory_bytes_max, table_elements_max, memory_bytes: 0, table_elements: 0, refused: None }
    }

    /// Returns the bytes of the instance's linear memories.
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

/// Returns whether one memory or table may grow, and counts it. The bound is on the component's total.
fn grows(total: &mut usize, current: usize, desired: usize, most: usize) -> bool {
    let next = total.saturating_sub(current).saturating_add(desired);
    let fits = next <= most;
    if fits {
        *total = next;
    }
    fits
}
