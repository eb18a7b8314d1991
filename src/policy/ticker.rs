//! The epoch ticker: a thread that advances the engine's epoch, so that calls past their deadline are interrupted. It rests while no
//! instance is in use, so that an idle server has no thread that wakes a thousand times a second.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// The unit of deadlines.
pub const TICK: Duration = Duration::from_millis(1);

/// Ticks without a call after which the ticker rests. Waking it costs a call a few microseconds.
const REST_AFTER_TICKS: u32 = 100;

/// An engine whose epoch advances while instances are in use. Its thread ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct EpochTicker {
    pub engine: Engine,
    ticker: Arc<Ticker>,
}

/// A guard for an instance in use: the epoch advances for as long as one exists.
#[derive(Debug)]
pub struct InUse(Arc<Ticker>);

#[derive(Debug, Default)]
struct Ticker {
    in_use: AtomicUsize,
    rests: AtomicBool,
    thread: OnceLock<Thread>,
}

impl EpochTicker {
    /// # Errors
    /// The operating system can't start a thread.
    pub fn new(engine: Engine) -> std::io::Result<EpochTicker> {
        Ok(EpochTicker::start(engine)?.0)
    }

    fn start(engine: Engine) -> std::io::Result<(EpochTicker, JoinHandle<()>)> {
        let ticker = Arc::new(Ticker::default());
        let (weak, engine_of_thread) = (Arc::downgrade(&ticker), engine.weak());
        let running = thread::Builder::new().name("epoch-ticker".into()).spawn(move || {
            let mut idle_ticks = 0;
            while let (Some(ticker), Some(engine)) = (weak.upgrade(), engine_of_thread.upgrade()) {
                engine.increment_epoch();
                idle_ticks = if ticker.in_use.load(Ordering::SeqCst) > 0 { 0 } else { idle_ticks + 1 };
                let rests = idle_ticks >= REST_AFTER_TICKS && ticker.may_rest();
                drop((ticker, engine));
                if rests {
                    // Until an instance is used or the ticker is dropped; a spurious wake-up does no harm.
                    thread::park();
                    idle_ticks = 0;
                } else {
                    thread::sleep(TICK);
                }
            }
        })?;
        // Set before any instance can be used, and long before the thread rests.
        let _ = ticker.thread.set(running.thread().clone());
        Ok((EpochTicker { engine, ticker }, running))
    }

    /// Returns the guard for an instance in use, and wakes the ticker if it rests.
    pub fn in_use(&self) -> InUse {
        self.ticker.in_use.fetch_add(1, Ordering::SeqCst);
        if self.ticker.rests.load(Ordering::SeqCst) {
            self.ticker.wake();
        }
        InUse(self.ticker.clone())
    }
}

impl Ticker {
    /// Announces that the thread is about to rest, then checks the count again: either a new guard sees that the thread rests, or
    /// the thread sees the guard.
    fn may_rest(&self) -> bool {
        self.rests.store(true, Ordering::SeqCst);
        let rests = self.in_use.load(Ordering::SeqCst) == 0;
        if !rests {
            self.rests.store(false, Ordering::SeqCst);
        }
        rests
    }

    fn wake(&self) {
        self.rests.store(false, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_until(what: impl Fn() -> bool) {
        let since = std::time::Instant::now();
        while !what() {
            assert!(since.elapsed() < Duration::from_secs(10), "it takes too long");
            thread::sleep(TICK);
        }
    }

    #[test]
    fn it_rests_without_calls_and_is_there_for_the_next_one() {
        let ticker = EpochTicker::new(Engine::default()).unwrap();
        for _ in 0..3 {
            wait_until(|| ticker.ticker.rests.load(Ordering::SeqCst));
            let in_use = ticker.in_use();
            assert!(!ticker.ticker.rests.load(Ordering::SeqCst));
            thread::sleep(3 * TICK * REST_AFTER_TICKS);
            assert!(!ticker.ticker.rests.load(Ordering::SeqCst), "while an instance is in use");
            drop(in_use);
        }
    }

    #[test]
    fn its_thread_ends_with_it() {
        let (ticker, running) = EpochTicker::start(Engine::default()).unwrap();
        wait_until(|| ticker.ticker.rests.load(Ordering::SeqCst));
        drop(ticker);
        wait_until(|| running.is_finished());
    }
}
