//! Signalpost: a WebSocket message router whose routing and formatting policies are WebAssembly plugins.
//!
//! ```text
//! producer ── POST events ──▶ ingress ▶ dispatch ▶ policy ▶ mailbox ▶ session ▶ format ▶ socket
//!                                                 (route)                     (format)
//! ```
//!
//! A producer *publishes* an event. Routing policies *route* it: they decide who is told, and what. A delivery is *posted* to its
//! users' mailboxes, where it has a *seq*. Each open socket is a *session*, a cursor in its user's mailbox, which *formats* a
//! message for its reader and *sends* it. The core never knows what an event means; the policies do.
//!
//! Follow one event: `ingress::publish` → `Dispatch::publish` → `Policy::route` → `Mailboxes::post` ‖ `Session::converse` →
//! `Reader::take` → `Format::shape` → `protocol::message`. The only hand-over between tasks is the mailbox.
//!
//! # Invariants
//!
//! 1. *One path.* A delivery is appended to the user's log and sessions are woken. Live, slow, resumed and replayed messages are
//!    read by the same code (`mailbox`). A full log has a stated outcome (`mailbox::log`).
//! 2. *A policy call is bounded*: deadline, memory, table, stack and output size (`policy::engine`, `policy::plugin`). A trap
//!    drops the instance, counts, and follows the policy's failure rule; what is kept is a dead letter, never tried again by itself.
//! 3. *Policies are values.* An event takes one immutable policy set for its whole journey; a reload swaps the set or keeps the
//!    old one and says why (`policy`, `policy::load`).
//! 4. *Refusal is not fault.* An `err` from a guest is its answer; a trap is a defect. They are counted apart.
//! 5. *Nothing waits on a stranger.* A session waits only for its own socket, and dispatch waits for nobody; every queue, list,
//!    body and wait has a named bound in `config/default.toml`.
//! 6. *Nothing is silent.* A message that is not read is in a counter under its reason (`metrics::DropReason`), and a receipt or
//!    a close code (`close`) tells whoever can act on it.
//! 7. *Formatting never runs twice* for one message and class (`delivery::Message::shape`).
//!
//! What is absent: `session` and `mailbox` know no event type; nothing below `policy` knows WebAssembly; nothing below
//! `ingress`, `session` and `operate` knows HTTP, but `auth` and `problem`, which read and answer requests for them. Each module imports only lower ones, which a test checks.

// In reading order; each room imports only rooms above it, which a test checks. The blank lines keep rustfmt from sorting them.

pub mod config;

mod types;

mod metrics;

mod net;

mod auth;

mod model;

mod policy;

mod store;

mod dispatch;

mod format;

mod explain;

mod node;

mod session;

mod http;

pub mod server;

// Around the server: its tools.

pub mod load;

#[doc(hidden)]
pub mod internals;

mod kit;

pub mod cli;
