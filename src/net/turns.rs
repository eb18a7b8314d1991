//! Turns: a task with much work lets other tasks run in between, or beside it.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{consume_budget, yield_now};
use tokio::time::Instant;

/// How long a task works before it lets others run, which costs about a microsecond. A message passes through several tasks, and before each
/// it waits for a turn of all who have much to do. A policy may take milliseconds for each piece of work.
const TURN: Duration = Duration::from_micros(250);

/// One task's turns.
#[derive(Debug, Default)]
pub struct Turns {
    began: Option<Instant>,
}

impl Turns {
    /// Lets other tasks run if this one has worked for long enough. Call it between two pieces of work.
    pub async fn take(&mut self) {
        let now = Instant::now();
        if now.duration_since(*self.began.get_or_insert(now)) >= TURN {
            self.began = None;
            yield_now().await;
        } else {
            consume_budget().await;
        }
    }
}

/// How long a thread waits for a lock before its other tasks move to another thread, which takes some 20 µs.
const SHORT_WAIT: Duration = Duration::from_micros(50);

/// Locks a mutex that others may hold for milliseconds: this thread's other tasks don't wait with it.
pub fn patiently<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.try_lock_for(SHORT_WAIT).unwrap_or_else(|| aside(|| mutex.lock()))
}

/// Runs something long on this thread, after moving the thread's other tasks to another thread.
pub fn aside<R>(long: impl FnOnce() -> R) -> R {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(long),
        _ => long(),
    }
}

/// Does something on this thread, as [`aside`] if it takes long.
pub fn aside_if<R>(is_long: bool, work: impl FnOnce() -> R) -> R {
    if is_long { aside(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_once_a_task_has_had_its_own() {
        let worked = Arc::new(AtomicU32::new(0));
        let counted = worked.clone();
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        });
        let mut turns = Turns::default();
        turns.take().await;
        assert_eq!((worked.load(Ordering::Relaxed), turns.began.is_some()), (0, true), "it has just begun");
        turns.began = Instant::now().checked_sub(TURN);
        turns.take().await;
        assert_eq!((worked.load(Ordering::Relaxed), turns.began), (1, None));
        other.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_wait_for_a_lock_holds_up_no_other_task() {
        let lock = Arc::new(Mutex::new(()));
        let held = lock.clone();
        let (taken, is_taken) = std::sync::mpsc::channel();
        let (release, is_released) = std::sync::mpsc::channel::<()>();
        let holder = std::thread::spawn(move || {
            let _held = held.lock();
            taken.send(()).unwrap();
            is_released.recv().unwrap();
        });
        is_taken.recv().unwrap();
        let waits = tokio::spawn(async move { drop(patiently(&lock)) });
        // Both tasks are of the only serving thread: this one runs while the other one waits.
        let other = tokio::spawn(async { yield_now().await });
        tokio::time::timeout(Duration::from_secs(10), other).await.expect("the other task does not wait").unwrap();
        assert!(!waits.is_finished());
        release.send(()).unwrap();
        waits.await.unwrap();
        holder.join().unwrap();
    }
}
