//! Who shares a ride: its group, and who of it drives.

use signalpost_plugin::{Fields, Id, Refusal, groups, presence, state};

/// How long it is remembered who drives, after the last match of the pool. No ride takes a day.
const DRIVER_KEPT_MS: u32 = 86_400_000;

/// A pool by its id.
pub struct Pool {
    pub id: Id,
    /// The `chat` plugin knows this name too: it asks whether a user is a member.
    pub group: String,
}

impl Pool {
    /// Reads the pool that an event is about.
    pub fn of(data: &Fields) -> Result<Pool, Refusal> {
        let id = data.id("pool_id")?;
        let group = id.prefixed("pool:", "pool_id")?;
        Ok(Pool { id, group })
    }

    /// Remembers who drives.
    pub fn is_driven_by(&self, driver: &Id) {
        // Without room for it the match counts all the same: `ends_without` says what is done if nobody knows the driver.
        let _ = state::set_bytes(&self.driver_key(), driver.as_str().as_bytes(), Some(DRIVER_KEPT_MS));
    }

    /// Forgets who drives, since the pool ends.
    pub fn is_over(&self) {
        state::delete(&self.driver_key());
    }

    /// Says whether the ride is over if this user cancels: it is the driver, or no rider is left.
    pub fn ends_without(&self, user: &Id) -> bool {
        let driver = state::get_bytes(&self.driver_key());
        let is_driver = |member: &str| driver.as_deref() == Some(member.as_bytes());
        let others = groups::members(&self.group).into_iter().filter(|member| member != user.as_str() && !is_driver(member)).count();
        // If nobody knows the driver, it may be the one who is left.
        is_driver(user.as_str()) || others == 0 || (driver.is_none() && others == 1)
    }

    /// Says whether anybody but this user is there to read now.
    pub fn is_read_without(&self, user: &Id) -> bool {
        groups::members(&self.group).iter().any(|member| member != user.as_str() && presence::sessions(member) > 0)
    }

    fn driver_key(&self) -> String {
        format!("driver:{}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::Host;

    fn pool() -> Pool {
        Pool::of(&Fields::parse(r#"{"pool_id":7}"#).unwrap()).unwrap()
    }

    fn id(text: &str) -> Id {
        Fields::parse(&format!(r#"{{"id":"{text}"}}"#)).unwrap().id("id").unwrap()
    }

    #[test]
    fn a_pool_ends_with_its_driver_or_its_last_rider() {
        for (members, user, ends) in [
            (&["1", "2", "d"][..], "1", false),
            (&["1", "2", "d"], "d", true),
            (&["1", "d"], "1", true),
            (&["1", "d"], "stranger", false),
            (&["1", "2"], "1", false),
            (&[], "1", true),
        ] {
            let host = Host::new();
            host.join("pool:7", members);
            pool().is_driven_by(&id("d"));
            assert_eq!(pool().ends_without(&id(user)), ends, "{members:?} {user}");
        }
    }

    #[test]
    fn a_pool_without_a_known_driver_ends_with_the_last_but_one() {
        for (members, user, ends) in
            [(&["1", "2", "d"][..], "1", false), (&["1", "2", "d"], "d", false), (&["1", "d"], "1", true), (&["1"], "1", true)]
        {
            let host = Host::new();
            host.join("pool:7", members);
            assert_eq!(pool().ends_without(&id(user)), ends, "{members:?} {user}");
        }
    }

    #[test]
    fn a_driver_is_forgotten_with_the_pool_and_after_a_day() {
        let host = Host::new();
        pool().is_driven_by(&id("d"));
        assert_eq!(host.state("driver:7").as_deref(), Some("d"));
        pool().is_over();
        assert_eq!(host.state("driver:7"), None);
        pool().is_driven_by(&id("d"));
        host.set_now_ms(86_400_000);
        assert_eq!(host.state("driver:7"), None);
    }

    #[test]
    fn a_pool_is_read_when_another_one_of_it_is_connected() {
        let host = Host::new();
        host.connect("d", 1);
        host.connect("stranger", 1);
        assert!(!pool().is_read_without(&id("d")), "nobody belongs to it");
        host.join("pool:7", &["1", "2", "d"]);
        assert!(!pool().is_read_without(&id("d")), "only the driver is there");
        host.connect("2", 2);
        assert!(pool().is_read_without(&id("d")));
    }
}
