//! Turns: a task with much work lets other tasks run in between, or beside it.

use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{consume_budget, yield_now};
use tokio::time::Instant;

/// How long a task works before it lets others run. A policy may take milliseconds for each piece of work.
const TURN: Duration = Duration::from_millis(1);

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

/// Runs something long on this thread, after moving the thread's other tasks to another thread.
pub fn aside<R>(long: impl FnOnce() -> R) -> R {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(long),
        _ => long(),
    }
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
}
