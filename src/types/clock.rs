//! The time of day, which fixtures set and tests pause.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    #[default]
    Machine,
    /// Starts at the given moment and advances with the runtime's time, so it stands still while that is paused.
    Since(SystemTime, Instant),
}

impl Clock {
    pub fn now(self) -> SystemTime {
        match self {
            Clock::Machine => SystemTime::now(),
            Clock::Since(start, since) => start + since.elapsed(),
        }
    }

    /// Returns the time in milliseconds since the Unix epoch.
    pub fn now_ms(self) -> u64 {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
