//! The ticker: the thread that moves the engine's epoch on, by which calls that are over their deadline are found. It rests while no
//! instance is in use, so that a server without work has no thread that wakes a thousand times a second.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// The unit of deadlines.
pub const TICK: Duration = Duration::from_millis(1);

/// So many ticks without a call, and the ticker rests. To wake it costs a call a few microseconds.
const REST_AFTER_TICKS: u32 = 100;

/// An engine whose epoch moves on while instances are in use. The thread ends with it.
#[derive(Clone, Debug)]
pub struct EpochTicker {
    pub engine: Engine,
    ticker: Arc<Ticker>,
}

/// An instance is in use: for as long as this is there, the epoch moves on.
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
    /// The operating system refuses a thread.
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
                    // Until an instance is used, or the ticker is dropped; waking without a reason does no harm.
                    thread::park();
                    idle_ticks = 0;
                } else {
                    thread::sleep(TICK);
                }
            }
        })?;
        // Before anybody can use an instance, and long before the thread rests.
        let _ = ticker.thread.set(running.thread().clone());
        Ok((EpochTicker { engine, ticker }, running))
    }

    /// Says that an instance is in use from now on.
    pub fn in_use(&self) -> InUse {
        self.ticker.in_use.fetch_add(1, Ordering::SeqCst);
        if self.ticker.rests.load(Ordering::SeqCst) {
            self.ticker.wake();
        }
        InUse(self.ticker.clone())
    }
}

impl Ticker {
    /// Says that the thread is about to rest, and then looks once more: either the user of an instance sees that it rests, or the
    /// thread sees the user.
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
