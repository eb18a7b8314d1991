//! Limits the notices for each user in a period. One above the limit is refused, and the receipt says so.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Policy, Refusal, Routing, export, forward, state, to};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Throttle {
    notices_max: i64,
    window_ms: u32,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle { notices_max: 5, window_ms: 60_000 }
    }
}

#[derive(Deserialize)]
struct Notice {
    user_id: Id,
}

impl Policy for Throttle {
    const EVENTS: &'static [&'static str] = &["notice.posted"];
}

impl Routing for Throttle {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let Notice { user_id } = event.data()?;
        // The count is gone a window after the first of them.
        let count = state::increment(&format!("notices:{user_id}"), 1, Some(self.window_ms))?;
        if count > self.notices_max {
            let most = format!("user {user_id} has had {} notices: the most in {} ms", self.notices_max, self.window_ms);
            return Err(Refusal::new("throttled", most));
        }
        Ok(forward(to::user(user_id)).into())
    }
}

export!(Throttle: routing);
