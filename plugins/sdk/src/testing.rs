//! Tests of a policy on the machine where it is written: a host that a test sets up and looks into, and calls as the server makes
//! them. It is there everywhere but in components.
//!
//! ```
//! use signalpost_plugin::*;
//!
//! #[derive(serde::Deserialize)]
//! struct Greeter {}
//!
//! impl Policy for Greeter {
//!     const EVENTS: &'static [&'static str] = &["user.*"];
//! }
//!
//! impl Routing for Greeter {
//!     fn route(&self, event: &Event) -> Result<Decision, Refusal> {
//!         let user = event.fields()?.id("user")?;
//!         let visits = state::increment(&format!("visits:{user}"), 1, None)?;
//!         Ok(tell(to::user(user), json!({ "visits": visits })).into())
//!     }
//! }
//!
//! let host = testing::Host::new();
//! host.set_state("visits:7", "41");
//! let greeter: Greeter = testing::policy("{}").unwrap();
//! let decision = testing::route(&greeter, &testing::event("user.seen", json!({ "user": 7 }))).unwrap();
//! assert_eq!(decision.to_string(), r#"tell 7: {"visits":42}"#);
//! assert_eq!(host.state("visits:7").as_deref(), Some("42"));
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;

use crate::bindings::host::signalpost::policy::log::Level;
use crate::{
    Body, Decision, Delivery, Event, Formatting, Message, Policy, Priority, Reader, Recipients, Refusal, Response, Routing, Session,
    Sessions, Value, export,
};

/// The host of the current thread, and so of the current test. A new one knows nobody and nothing.
#[derive(Debug)]
pub struct Host {
    // A test that hands it to another thread would look into another host.
    of_this_thread: PhantomData<*const ()>,
}

#[derive(Default)]
struct World {
    now_ms: u64,
    state: HashMap<String, Entry>,
    state_is_full: bool,
    groups: BTreeMap<String, Vec<String>>,
    sessions: HashMap<String, u32>,
    log: Vec<String>,
    counts: BTreeMap<String, u64>,
}

struct Entry {
    value: Vec<u8>,
    ends_ms: Option<u64>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

fn world<R>(use_it: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with_borrow_mut(use_it)
}

impl Host {
    /// Forgets what an earlier host of this thread knew. It is the beginning of 1970.
    #[allow(clippy::new_without_default)] // A default would not say that it changes the thread.
    pub fn new() -> Host {
        WORLD.set(World::default());
        Host { of_this_thread: PhantomData }
    }

    /// Sets the clock, in milliseconds since the Unix epoch. State that has outlived its time is gone.
    pub fn set_now_ms(&self, now_ms: u64) {
        world(|world| world.now_ms = now_ms);
    }

    /// Sets a key of the policy's state.
    pub fn set_state(&self, key: &str, value: impl AsRef<[u8]>) {
        let entry = Entry { value: value.as_ref().to_vec(), ends_ms: None };
        world(|world| world.state.insert(key.to_owned(), entry));
    }

    /// What the policy's state has under a key, as text.
    pub fn state(&self, key: &str) -> Option<String> {
        fake::state::get(key).map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    /// From now on the policy's state has no room.
    pub fn fill_state(&self) {
        world(|world| world.state_is_full = true);
    }

    /// Makes users members of a group.
    pub fn join(&self, group: &str, users: &[&str]) {
        world(|world| world.groups.entry(group.to_owned()).or_default().extend(users.iter().map(|user| (*user).to_owned())));
    }

    /// Sets the number of open sessions of a user.
    pub fn connect(&self, user: &str, sessions: u32) {
        world(|world| world.sessions.insert(user.to_owned(), sessions));
    }

    /// The lines that were logged, as in `warn: no such ride`.
    pub fn log(&self) -> Vec<String> {
        world(|world| world.log.clone())
    }

    /// What the policy has counted under a name.
    pub fn counted(&self, name: &str) -> u64 {
        world(|world| world.counts.get(name).copied().unwrap_or(0))
    }
}

/// The policy with these settings (a JSON object), or the words in which it refuses them.
pub fn policy<P: Policy>(settings: &str) -> Result<P, String> {
    let name = std::any::type_name::<P>();
    export::read(name.rsplit("::").next().unwrap_or(name), settings)
}

/// An event with these data.
pub fn event(event_type: &str, data: Value) -> Event {
    event_of_json(event_type, &data.to_string())
}

/// An event whose data are exactly this text.
pub fn event_of_json(event_type: &str, data: &str) -> Event {
    Event {
        id: "1".to_owned(),
        source: "/test".to_owned(),
        type_: event_type.to_owned(),
        subject: None,
        time: None,
        content_type: "application/json".to_owned(),
        extensions: Vec::new(),
        data: Some(Body::Json(data.to_owned())),
    }
}

/// A session of a user with these attributes.
pub fn session(user: &str, attributes: &[(&str, &str)]) -> Session {
    Session { id: "session-1".to_owned(), user: user.to_owned(), subprotocol: None, attributes: owned(attributes) }
}

/// Routes an event. Panics if the policy doesn't want events of this type, for which the server never calls it.
pub fn route(policy: &impl Routing, event: &Event) -> Result<Decision, Refusal> {
    wanted(policy, &event.type_);
    policy.route(event)
}

/// Formats the message of an event for a reader with these attributes. Panics if the policy doesn't want events of this type.
///
/// The reader has those attributes only that `VARY` names, as on the server.
pub fn format<P: Formatting>(
    policy: &P,
    event_type: &str,
    body: impl Into<Body>,
    reader: &[(&str, &str)],
) -> Result<Option<Body>, Refusal> {
    wanted(policy, event_type);
    let varied: Vec<_> = reader.iter().copied().filter(|(name, _)| P::VARY.contains(name)).collect();
    let message = Message { id: "1".to_owned(), event_type: event_type.to_owned(), body: body.into() };
    policy.format(message, &Reader(owned(&varied)))
}

/// Gives a client's message to a policy.
pub fn receive(policy: &impl Sessions, session: &Session, message: impl Into<Body>) -> Result<Option<Response>, Refusal> {
    policy.received(session, message.into())
}

fn wanted<P: Policy>(_: &P, event_type: &str) {
    let matches = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(prefix) => event_type.starts_with(prefix),
        None => *pattern == event_type,
    };
    assert!(P::EVENTS.iter().any(matches), "the server never calls the policy for {event_type}: it wants {:?}", P::EVENTS);
}

fn owned(attributes: &[(&str, &str)]) -> Vec<(String, String)> {
    attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What a decision does, in the order in which it is done: a line for each join, delivery, leave and end.
///
/// ```text
/// join pool:7: 1001
/// tell group pool:7 but 3 (low, ttl 10000 ms, keep 0 ms, collapse location:7): {"type":"driver_location"}
/// leave pool:7: 1001
/// end pool:7
/// ```
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let joins = self.joins.iter().map(|join| format!("join {}: {}", join.group, join.user));
        let deliveries = self.deliveries.iter().map(line);
        let leaves = self.leaves.iter().map(|leave| format!("leave {}: {}", leave.group, leave.user));
        let ends = self.ends.iter().map(|group| format!("end {group}"));
        f.write_str(&joins.chain(deliveries).chain(leaves).chain(ends).collect::<Vec<_>>().join("\n"))
    }
}

fn line(delivery: &Delivery) -> String {
    let to = match &delivery.to {
        Recipients::User(user) => user.clone(),
        Recipients::Users(users) => users.join(", "),
        Recipients::Group(group) => format!("group {group}"),
        Recipients::Everyone => "everyone".to_owned(),
        Recipients::Session(address) => format!("session {} of {}", address.session, address.user),
    };
    let except = if delivery.except.is_empty() { String::new() } else { format!(" but {}", delivery.except.join(", ")) };
    let priority = match delivery.priority {
        Priority::Low => Some("low".to_owned()),
        Priority::Normal => None,
        Priority::High => Some("high".to_owned()),
    };
    let ttl = delivery.ttl_ms.map(|ms| format!("ttl {ms} ms"));
    let keep = delivery.keep_ms.map(|ms| format!("keep {ms} ms"));
    let collapse = delivery.collapse_key.as_ref().map(|key| format!("collapse {key}"));
    let how: Vec<String> = [priority, ttl, keep, collapse].into_iter().flatten().collect();
    let how = if how.is_empty() { String::new() } else { format!(" ({})", how.join(", ")) };
    let message = match &delivery.message {
        Some(Body::Json(text) | Body::Text(text)) => text.clone(),
        Some(Body::Binary(bytes)) => format!("{bytes:02x?}"),
        None => "the event's data".to_owned(),
    };
    format!("tell {to}{except}{how}: {message}")
}

/// The functions that a component imports, with the same signatures.
pub(crate) mod fake {
    use super::{Level, world};

    pub(crate) mod log {
        use super::{Level, world};

        pub(crate) fn write(level: Level, message: &str) {
            let level = match level {
                Level::Debug => "debug",
                Level::Info => "info",
                Level::Warn => "warn",
                Level::Error => "error",
            };
            world(|world| world.log.push(format!("{level}: {message}")));
        }
    }

    pub(crate) mod clock {
        pub(crate) fn now_ms() -> u64 {
            super::world(|world| world.now_ms)
        }
    }

    pub(crate) mod state {
        use super::super::{Entry, World};
        use super::world;
        use crate::state::Error;

        pub(crate) fn get(key: &str) -> Option<Vec<u8>> {
            world(|world| world.live(key).map(|entry| entry.value.clone()))
        }

        pub(crate) fn set(key: &str, value: &[u8], ttl_ms: Option<u32>) -> Result<(), Error> {
            world(|world| world.put(key, value.to_vec(), world.ends(ttl_ms)))
        }

        pub(crate) fn delete(key: &str) -> bool {
            world(|world| {
                let was_there = world.live(key).is_some();
                world.state.remove(key);
                was_there
            })
        }

        pub(crate) fn increment(key: &str, by: i64, ttl_ms: Option<u32>) -> Result<i64, Error> {
            world(|world| {
                let (old, ends_ms) = match world.live(key) {
                    Some(entry) => (std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok()), entry.ends_ms),
                    None => (Some(0), world.ends(ttl_ms)),
                };
                let sum: i64 = old.and_then(|old: i64| old.checked_add(by)).ok_or(Error::NotANumber)?;
                world.put(key, sum.to_string().into_bytes(), ends_ms)?;
                Ok(sum)
            })
        }

        pub(crate) fn compare_and_swap(key: &str, expected: Option<&[u8]>, value: &[u8], ttl_ms: Option<u32>) -> Result<bool, Error> {
            world(|world| {
                let fits = world.live(key).map(|entry| entry.value.as_slice()) == expected;
                if fits {
                    world.put(key, value.to_vec(), world.ends(ttl_ms))?;
                }
                Ok(fits)
            })
        }

        impl World {
            fn live(&self, key: &str) -> Option<&Entry> {
                self.state.get(key).filter(|entry| entry.ends_ms.is_none_or(|ends| self.now_ms < ends))
            }

            fn ends(&self, ttl_ms: Option<u32>) -> Option<u64> {
                ttl_ms.map(|ttl| self.now_ms + u64::from(ttl))
            }

            fn put(&mut self, key: &str, value: Vec<u8>, ends_ms: Option<u64>) -> Result<(), Error> {
                if self.state_is_full {
                    return Err(Error::Quota);
                }
                self.state.insert(key.to_owned(), Entry { value, ends_ms });
                Ok(())
            }
        }
    }

    pub(crate) mod presence {
        pub(crate) fn sessions(user: &str) -> u32 {
            super::world(|world| world.sessions.get(user).copied().unwrap_or(0))
        }
    }

    pub(crate) mod groups {
        use super::world;

        pub(crate) fn contains(group: &str, user: &str) -> bool {
            members(group).iter().any(|member| member == user)
        }

        pub(crate) fn size(group: &str) -> u32 {
            members(group).len() as u32
        }

        pub(crate) fn members(group: &str) -> Vec<String> {
            world(|world| world.groups.get(group).cloned().unwrap_or_default())
        }
    }

    pub(crate) mod metrics {
        pub(crate) fn count(name: &str, by: u64) {
            super::world(|world| *world.counts.entry(name.to_owned()).or_default() += by);
        }
    }
}
