//! The timer that notices late request heads. hyper starts one for each request and drops it when the head is there, which is nearly always
//! at once. So a connection keeps one timer of the runtime and lets it fire too early, which costs less than moving it for each request. The timer
//! wakes the connection's task, which is always the same, so it is not polled again before it fires.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;
use tokio::task::unconstrained;
use tokio::time;

/// One connection's timer.
#[derive(Debug, Default)]
pub struct HeadTimer {
    timer: Arc<Mutex<Kept>>,
}

/// The timer of the runtime.
#[derive(Debug, Default)]
struct Kept {
    /// Started with the first request.
    timer: Option<Pin<Box<time::Sleep>>>,
    /// Whether it wakes the connection's task when it fires.
    is_polled: bool,
}

/// The deadline of one head, which is later than that of the one before.
struct HeadDeadline {
    deadline: time::Instant,
    timer: Arc<Mutex<Kept>>,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: std::time::Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadDeadline { deadline: deadline.into(), timer: self.timer.clone() })
    }

    fn now(&self) -> Instant {
        time::Instant::now().into_std()
    }
}

impl Future for HeadDeadline {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Kept { timer, is_polled } = &mut *self.timer.lock();
        let timer = timer.get_or_insert_with(|| Box::pin(time::sleep_until(self.deadline)));
        if *is_polled && !timer.is_elapsed() {
            return Poll::Pending;
        }
        *is_polled = true;
        loop {
            // However much the task has done: otherwise the timer would not wake it.
            ready!(Pin::new(&mut unconstrained(timer.as_mut())).poll(context));
            if timer.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            // It was an earlier request's.
            timer.as_mut().reset(self.deadline);
        }
    }
}

impl Sleep for HeadDeadline {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn is_pending(sleep: &mut Pin<Box<dyn Sleep>>) -> bool {
        time::timeout(Duration::ZERO, sleep).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn each_head_has_its_own_deadline_whatever_the_earlier_ones_had() {
        let began = time::Instant::now();
        let timer = HeadTimer::default();
        let mut first = timer.sleep(Duration::from_secs(10));
        assert!(is_pending(&mut first).await);
        time::advance(Duration::from_secs(4)).await;
        drop(first);
        let mut second = timer.sleep(Duration::from_secs(10));
        assert!(is_pending(&mut second).await);
        second.await;
        assert_eq!(began.elapsed().as_secs(), 14);
        timer.sleep(Duration::from_secs(3)).await;
        assert_eq!(began.elapsed().as_secs(), 17);
    }
}
