//! The open sessions of each user, which the host doesn't list: they are remembered as they come and go.

use signalpost_plugin::{Session, state};

/// Sessions that are remembered of one user, the newest. More than a server lets a user have by default (`sockets.per_user_max`).
const DEVICES_MAX: usize = 32;

/// How long they are remembered after the last one came or went. What a server that broke off left behind is gone then; a device that
/// has been open for longer, while no other came or went, gets no copies until it connects again.
const KEPT_MS: u32 = 7 * 86_400_000;

/// Attempts to change the list while other sessions of the user change it too.
const ATTEMPTS_MAX: usize = 8;

/// Remembers a session that was opened.
pub fn add(session: &Session) {
    change(&session.user, |devices| {
        devices.retain(|device| *device != session.id);
        devices.push(session.id.clone());
        devices.drain(..devices.len().saturating_sub(DEVICES_MAX));
    });
}

/// Forgets a session that was closed.
pub fn remove(session: &Session) {
    change(&session.user, |devices| devices.retain(|device| *device != session.id));
}

/// Returns the other sessions of a session's user.
pub fn others(session: &Session) -> Vec<String> {
    let mut devices = of(&session.user);
    devices.retain(|device| *device != session.id);
    devices
}

fn of(user: &str) -> Vec<String> {
    state::get(&key(user)).unwrap_or_default()
}

/// If the store has no room, or others are always faster, the list stays as it is: some device gets no copies, or one that is gone gets
/// some, and nobody is kept from writing.
fn change(user: &str, change: impl Fn(&mut Vec<String>)) {
    let key = key(user);
    for _ in 0..ATTEMPTS_MAX {
        let before: Option<Vec<String>> = state::get(&key);
        let mut after = before.clone().unwrap_or_default();
        change(&mut after);
        if before.as_ref() == Some(&after) || (before.is_none() && after.is_empty()) {
            return;
        }
        // Deleting an empty list could not tell whether another session has come meanwhile, so it is left to its end.
        let kept_ms = if after.is_empty() { 1 } else { KEPT_MS };
        match state::compare_and_swap(&key, before.as_ref(), &after, Some(kept_ms)) {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
    }
}

fn key(user: &str) -> String {
    format!("devices:{user}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::{self, Host};

    fn device(id: usize) -> Session {
        Session { id: id.to_string(), ..testing::session("1", &[]) }
    }

    #[test]
    fn the_newest_devices_are_remembered() {
        let _host = Host::new();
        (0..40).for_each(|id| add(&device(id)));
        let expected: Vec<String> = (8..39).map(|id| id.to_string()).collect();
        assert_eq!(others(&device(39)), expected);
        add(&device(38));
        assert_eq!(others(&device(39)), expected, "a session comes once");
    }

    #[test]
    fn a_user_without_devices_leaves_nothing_behind() {
        let host = Host::new();
        remove(&device(1));
        assert_eq!(host.state("devices:1"), None);
        add(&device(1));
        remove(&device(1));
        host.set_now_ms(1);
        assert_eq!(host.state("devices:1"), None);
    }

    #[test]
    fn a_list_is_forgotten_a_week_after_its_last_change() {
        let host = Host::new();
        add(&device(1));
        host.set_now_ms(u64::from(KEPT_MS) - 1);
        assert_eq!(others(&device(2)), ["1"]);
        add(&device(2));
        host.set_now_ms(2 * u64::from(KEPT_MS) - 2);
        assert_eq!(others(&device(2)), ["1"]);
        host.set_now_ms(2 * u64::from(KEPT_MS));
        assert_eq!(others(&device(2)), [""; 0]);
    }

    #[test]
    fn a_store_without_room_keeps_nobody_out() {
        let host = Host::new();
        host.fill_state();
        add(&device(1));
        remove(&device(1));
        assert_eq!(others(&device(2)), [""; 0]);
    }
}
