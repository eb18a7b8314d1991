//! Write a Signalpost policy: a routing, formatting or session policy that the server runs as a sandboxed WebAssembly component.
//!
//! A policy is a type. Its fields are its settings, which the server's configuration gives (`serde` reads them), its roles are the
//! traits that it implements, and one line exports it. This one tells a rider about a surge price, and hides fares from
//! drivers:
//!
//! ```
//! use serde::Deserialize;
//! use signalpost_plugin::*;
//!
//! /// Settings: `settings = { factor_min = 1.5 }`.
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Surge {
//!     factor_min: f64,
//! }
//!
//! #[derive(Deserialize)]
//! struct Price {
//!     rider_id: Id,
//!     factor: f64,
//! }
//!
//! impl Policy for Surge {
//!     const EVENTS: &'static [&'static str] = &["pricing.changed"];
//! }
//!
//! impl Routing for Surge {
//!     fn route(&self, event: &Event) -> Result<Decision, Refusal> {
//!         let price: Price = event.data()?;
//!         if price.factor < self.factor_min {
//!             return Ok(Decision::nothing());
//!         }
//!         let message = json!({ "type": "surge", "factor": price.factor });
//!         Ok(tell(to::user(price.rider_id), message).ttl_ms(60_000).into())
//!     }
//! }
//!
//! export!(Surge: routing);
//! #
//! # let surge: Surge = testing::policy(r#"{"factor_min": 1.5}"#).unwrap();
//! # let event = |factor: f64| testing::event("pricing.changed", json!({ "rider_id": 1001, "factor": factor }));
//! # let decided = testing::route(&surge, &event(2.0)).unwrap();
//! # assert_eq!(decided.to_string(), r#"tell 1001 (ttl 60000 ms): {"type":"surge","factor":2.0}"#);
//! # assert_eq!(testing::route(&surge, &event(1.0)).unwrap(), Decision::nothing());
//! ```
//!
//! Its crate has `crate-type = ["cdylib"]`, and `signalpost plugin build` makes the component. The types are those of the
//! contract (`wit/`), whose comments are the specification; this crate adds what makes them short to write. It is not the
//! interface: a component that any other tool makes is as good.
//!
//! What a policy uses is what its component imports, and what the server's configuration has to grant: `log`, `clock`, `state`,
//! `presence`, `groups`, `metrics`. A policy that doesn't call `state::get` has no such import.
//!
//! Policies are tested where they are written, with `cargo test` and no WebAssembly: see `testing`.

#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub mod baseline;
#[doc(hidden)]
pub mod bindings;
pub mod bounds;
mod decision;
#[doc(hidden)]
pub mod export;
mod host;
mod id;
mod json;
mod list;
pub mod locale;
mod message;
mod misfit;
mod response;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod time;

use serde::de::DeserializeOwned;

pub use bindings::formatting::exports::signalpost::policy::formatting::Message;
pub use bindings::host::signalpost::policy::types::{
    Attributes, Body, Decision, Delivery, Event, Membership, Priority, Recipients, Refusal, SessionAddress,
};
pub use bindings::sessions::exports::signalpost::policy::sessions::{Draft, Response, Session};
pub use decision::{forward, tell, to};
pub use host::{clock, groups, log, metrics, presence, state};
pub use id::Id;
pub use json::{Fields, Object};
pub use list::List;
pub use message::Reader;
pub use serde_json::value::RawValue;
pub use serde_json::{self, Value, json};

/// A policy: its fields are its settings. One without settings is a `struct Name {}`.
///
/// Instances are reused and several run side by side. What must be remembered belongs in `state`, and who belongs together
/// in groups.
pub trait Policy: DeserializeOwned + 'static {
    /// Event types wanted: exact (`pooling.match.found`), by prefix (`pooling.*`), or all (`*`). Routing and formatting are
    /// called for these only. A message that was sent to a user directly has the type `signalpost.direct`.
    const EVENTS: &'static [&'static str] = &[];

    /// Refuses settings that can be read and make no sense. The operator reads these words.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Decides who is told about an event.
pub trait Routing: Policy {
    /// Called once for each wanted event.
    fn route(&self, event: &Event) -> Result<Decision, Refusal>;
}

/// Shapes a message for its readers.
pub trait Formatting: Policy {
    /// The session attributes that the output depends on, as HTTP's Vary names headers. `user` makes it one per user.
    const VARY: &'static [&'static str] = &[];

    /// Called once for each message and each distinct combination of the varied attributes; all readers who share them get
    /// the result. `None` drops the message for these readers.
    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal>;
}

/// Speaks with the clients themselves.
pub trait Sessions: Policy {
    /// A client has connected. A refusal closes the socket.
    fn opened(&self, session: &Session) -> Result<Response, Refusal> {
        let _ = session;
        Ok(Response::nothing())
    }

    /// The client sent a message. `None` says "not mine", and the next policy is asked. A refusal is answered with an error
    /// frame.
    fn received(&self, session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        let _ = (session, message);
        Ok(None)
    }

    /// The socket is gone. Replies and `close` have no effect here.
    fn closed(&self, session: &Session, code: u16) -> Result<Response, Refusal> {
        let _ = (session, code);
        Ok(Response::nothing())
    }
}

/// README's policy is compiled with this crate's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
