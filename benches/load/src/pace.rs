//! Ticks at a fixed rate. tokio's timer rounds to a millisecond, which is longer than a message takes.

use std::io;
use std::time::Duration;

/// Ticks at a fixed interval. A late tick keeps its due time, so a latency that is measured from it includes the delay.
#[derive(Debug)]
pub struct Pace {
    ticks: platform::Ticks,
    interval: Duration,
    /// Ticks whose time has come.
    passed: u64,
    /// Ticks that [`Pace::tick`] has returned.
    given: u64,
}

impl Pace {
    /// Starts; the first tick is due in one interval.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(interval: Duration) -> io::Result<Pace> {
        Ok(Pace { ticks: platform::Ticks::new(interval)?, interval, passed: 0, given: 0 })
    }

    /// Waits until the next tick is due, and returns its due time since [`Pace::new`]. Returns at once if it is overdue.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn tick(&mut self) -> io::Result<Duration> {
        while self.given == self.passed {
            self.passed += self.ticks.wait().await?;
        }
        self.given += 1;
        Ok(Duration::from_secs_f64(self.interval.as_secs_f64() * self.given as f64))
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
    use tokio::io::unix::AsyncFd;

    #[derive(Debug)]
    pub struct Ticks(AsyncFd<OwnedFd>);

    impl Ticks {
        pub fn new(interval: Duration) -> io::Result<Ticks> {
            let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
            let every: Timespec = interval.try_into().map_err(out_of_range)?;
            timerfd_settime(&fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: every, it_value: every })?;
            // SAFETY: the descriptor is moved in, so it is open for as long as it is registered.
            #[allow(unsafe_code, reason = "tokio has no other way to wait for a descriptor that is not a socket")]
            let ticks = unsafe { AsyncFd::register(fd) }?;
            Ok(Ticks(ticks))
        }

        /// Waits for at least one tick, and returns the number of ticks since the last call.
        pub async fn wait(&mut self) -> io::Result<u64> {
            loop {
                let mut ready = self.0.readable().await?;
                let mut count = [0; 8];
                match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut count)?)) {
                    Ok(read) => {
                        read?;
                        return Ok(u64::from_ne_bytes(count));
                    }
                    // A spurious wake-up.
                    Err(_) => continue,
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::io;
    use std::time::Duration;

    use tokio::time::{Instant, Interval, interval_at};

    #[derive(Debug)]
    pub struct Ticks(Interval);

    impl Ticks {
        pub fn new(interval: Duration) -> io::Result<Ticks> {
            Ok(Ticks(interval_at(Instant::now() + interval, interval)))
        }

        pub async fn wait(&mut self) -> io::Result<u64> {
            self.0.tick().await;
            Ok(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ticks_during_a_sleep_are_returned_after_it() {
        let began = std::time::Instant::now();
        let mut pace = Pace::new(Duration::from_millis(2)).unwrap();
        assert_eq!(pace.tick().await.unwrap(), Duration::from_millis(2));
        std::thread::sleep(Duration::from_millis(20));
        for number in 2..=20 {
            assert_eq!(pace.tick().await.unwrap(), Duration::from_millis(2) * number);
        }
        assert!(began.elapsed() >= Duration::from_millis(39), "{:?}", began.elapsed());
    }
}
