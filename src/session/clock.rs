//! A session's clocks: when to ping a client, and when to give up on it. Pure: time is an argument.

use tokio::time::Instant;

use crate::config::Sockets;
use crate::types::close::Close;

/// When the client last sent something, and what the session waits for.
#[derive(Debug)]
pub struct Clock {
    pub heard: Instant,
    pub pinged: Option<Instant>,
    /// When the client stopped reading.
    pub blocked: Option<Instant>,
    /// When messages no longer wait for the client's resume.
    pub held: Option<Instant>,
    /// The last message in either direction.
    pub message: Instant,
    /// When the token ends, its grace included.
    pub ends: Option<Instant>,
}

impl Clock {
    pub fn new(now: Instant, ends: Option<Instant>) -> Clock {
        Clock { heard: now, pinged: None, blocked: None, held: None, message: now, ends }
    }

    /// Notes that the client sent something.
    pub fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    /// Returns when [`Clock::tick`] has to be called again, unless something happens before.
    pub fn due(&self, sockets: &Sockets) -> Instant {
        let mut due = match (self.blocked, self.pinged) {
            // A client that doesn't read can't be pinged.
            (Some(blocked), _) => blocked + *sockets.write_deadline_ms,
            (None, Some(pinged)) => pinged + *sockets.pong_deadline_ms,
            (None, None) => self.heard + *sockets.ping_interval_ms,
        };
        // As in `tick`: a client that is blocked is not idle.
        if self.blocked.is_none() && !sockets.idle_deadline_ms.is_zero() {
            due = due.min(self.message + *sockets.idle_deadline_ms);
        }
        [self.held, self.ends].into_iter().flatten().fold(due, Instant::min)
    }

    /// Returns whether a silent client is to be pinged now.
    ///
    /// # Errors
    /// Why to give up on the client: it is gone, doesn't read, is idle, or its token has expired.
    pub fn tick(&mut self, sockets: &Sockets, now: Instant) -> Result<bool, Close> {
        if self.held.is_some_and(|held| held <= now) {
            self.held = None;
        }
        if self.ends.is_some_and(|ends| ends <= now) {
            return Err(Close::TokenExpired);
        }
        if let Some(blocked) = self.blocked {
            return if blocked + *sockets.write_deadline_ms <= now { Err(Close::SlowConsumer) } else { Ok(false) };
        }
        if !sockets.idle_deadline_ms.is_zero() && self.message + *sockets.idle_deadline_ms <= now {
            return Err(Close::Idle);
        }
        match self.pinged {
            Some(pinged) if pinged + *sockets.pong_deadline_ms <= now => Err(Close::NoPong),
            None if self.heard + *sockets.ping_interval_ms <= now => {
                self.pinged = Some(now);
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Milliseconds};

    fn sockets() -> Sockets {
        let mut sockets = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.sockets;
        let [ping, pong, write] = [25, 10, 5].map(Milliseconds::new);
        (sockets.ping_interval_ms, sockets.pong_deadline_ms, sockets.write_deadline_ms) = (ping, pong, write);
        sockets
    }

    /// Returns a clock, and a function of the moments after its start.
    fn clock() -> (Clock, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        (Clock::new(start, None), move |milliseconds| start + Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_given_up() {
        let (sockets, (mut clock, at)) = (sockets(), clock());
        assert_eq!(clock.due(&sockets), at(25));
        assert_eq!(clock.tick(&sockets, at(24)), Ok(false));
        assert_eq!(clock.tick(&sockets, at(25)), Ok(true));
        assert_eq!((clock.due(&sockets), clock.tick(&sockets, at(34))), (at(35), Ok(false)));
        assert_eq!(clock.tick(&sockets, at(35)), Err(Close::NoPong));
        clock.hear(at(35));
        assert_eq!((clock.due(&sockets), clock.tick(&sockets, at(35))), (at(60), Ok(false)));
    }

    #[test]
    fn a_client_that_does_not_read_is_not_pinged_but_given_up() {
        let (sockets, (mut clock, at)) = (sockets(), clock());
        clock.blocked = Some(at(24));
        assert_eq!((clock.due(&sockets), clock.tick(&sockets, at(28))), (at(29), Ok(false)));
        assert_eq!(clock.tick(&sockets, at(29)), Err(Close::SlowConsumer));
    }

    #[test]
    fn a_tick_that_does_nothing_is_not_due_again_at_once() {
        let (mut sockets, (mut clock, at)) = (sockets(), clock());
        sockets.idle_deadline_ms = Milliseconds::new(20);
        clock.blocked = Some(at(18));
        assert_eq!((clock.tick(&sockets, at(20)), clock.due(&sockets)), (Ok(false), at(23)));
        assert_eq!(clock.tick(&sockets, at(23)), Err(Close::SlowConsumer));
    }

    #[test]
    fn the_earliest_end_counts() {
        let (mut sockets, (mut clock, at)) = (sockets(), clock());
        sockets.idle_deadline_ms = Milliseconds::new(20);
        assert_eq!((clock.due(&sockets), clock.tick(&sockets, at(20))), (at(20), Err(Close::Idle)));
        (clock.held, clock.ends) = (Some(at(3)), Some(at(7)));
        assert_eq!((clock.due(&sockets), clock.tick(&sockets, at(3))), (at(3), Ok(false)));
        assert_eq!((clock.held, clock.due(&sockets)), (None, at(7)));
        assert_eq!(clock.tick(&sockets, at(7)), Err(Close::TokenExpired));
    }
}
