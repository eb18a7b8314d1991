//! Signalpost: a WebSocket message router whose routing and formatting policies are WebAssembly plugins.
//!
//! ```text
//! producer ── POST events ──▶ ingress ▶ plan ▶ apply ▶ store ▶ session ▶ format ▶ socket
//!                                       (WASM) (model)                   (WASM, once per class)
//! ```
//!
//! A producer *publishes* an event. Routing policies *route* it: they decide who is told, and what. That decision is a *plan*, a value;
//! applying it *posts* messages to mailboxes, where each has a *seq*, and the *store* makes it last. Each open socket is a *session*, a
//! cursor in its user's mailbox, which *formats* a message for its reader and *sends* it. The core never knows what an event means; the
//! policies do.
//!
//! The way back is a *sink*: events that policies made of clients' messages are posted to its mailbox (`dispatch::sinks`), which its task
//! reads as a session reads a user's, and posts to a backend (`sink`).
//!
//! Follow one event through six files, in call order: `http/ingress.rs` (`publish`) → `dispatch.rs` (`Dispatch::publish`) →
//! `dispatch/plan.rs` (`plan`, where guests run) → `dispatch/apply.rs` (`post`) → `model/mailbox.rs` (`Mailboxes::post_at`) ‖
//! `session/socket.rs` (`Session::run`), which reads, formats and writes. The only hand-over between tasks is the mailbox.
//!
//! # Invariants
//!
//! 1. *One path.* A message is appended to the user's log when its plan is applied, and sessions are woken. Live, slow, resumed and
//!    replayed messages are read by the same code (`model::mailbox`). A full log has a stated outcome (`model::mailbox::log`). Who is
//!    connected and what a user is owed are two things (`registry`, `model::mailbox::log`): a slow reader is found by its own reading.
//! 2. *Deciding changes nothing*: a plan is a value (`dispatch::plan`), made against a world (`model::world`), and committed whole or made
//!    again. What was answered is stored (`store`), whole or not at all, and the next start has it again (`model::restore`). Only answers
//!    wait for that, and readers don't. A call can be recorded with what it read, and made again on that by another version, which decides
//!    nothing (`model::world`, `recording`).
//! 3. *A policy call is bounded, and a transaction*: deadline, memory, table, stack and output size (`policy::engine`, `policy::plugin`).
//!    A fault drops the instance and all that the call wrote, counts, and follows the policy's failure rule. A stream of bad events never
//!    keeps good ones from a policy that answers them well (`policy::plugin::samples`). What is kept is a dead letter, never tried again
//!    by itself.
//! 4. *Policies are values.* An event takes one immutable policy set for its whole journey; a reload swaps the set or keeps the
//!    old one and says why (`policy`, `policy::load`).
//! 5. *Refusal is not fault.* An `err` from a guest is its answer; a trap is a defect. They are counted apart.
//! 6. *Nothing waits on a stranger.* A session waits only for its own socket, and dispatch waits for nobody; every queue, list,
//!    body and wait has a named bound in `config/default.toml`.
//! 7. *Nothing is silent.* A message that is not read is in a counter under its reason (`types::drop_reason`), and a receipt or
//!    a close code (`types::close`) tells whoever can act on it.
//! 8. *Formatting never runs twice* for one message and class (`format::shapes`), unless a policy's circuit was open.
//!
//! Several servers may serve together (`cluster`): one leads, which plans, applies and stores, and all absorb what it has stored and serve
//! their own sockets. Nothing else asks whether there are others: the store says who decides (`Store::decides`), and what only the leader may
//! do is passed on to it where requests and sessions come in (`cluster::Cluster`). They have the same policies: which, is in the model
//! (`model::agreement`), and a node takes them as it would take those of its folder (`node::sharing`, `policy::source`).
//!
//! What is absent: `registry` knows no messages, and `model::mailbox::log` no sessions; nothing but cleaning reads the store while the
//! server runs, and `store` knows no sessions and no policies; `session` and `model` know no event type; nothing outside `policy` knows
//! WebAssembly or the types generated from the WIT; nothing below `session` and `http` knows HTTP, except for `auth` and `net::problem`,
//! which read and answer requests for them, `cluster`, which passes requests on to the node that leads, and what makes requests itself
//! (`net::client`, `sink`, `traces`); nothing outside `traces` knows OpenTelemetry's SDK.

// In reading order. Each module imports only modules above it, which a test checks. The blank lines keep rustfmt from sorting them.

pub mod config;

mod types;

mod log;

mod metrics;

mod net;

mod registry;

mod traces;

mod auth;

mod model;

mod policy;

mod store;

mod dispatch;

mod format;

mod explain;

mod recording;

mod sink;

mod cluster;

mod node;

mod session;

mod http;

pub mod server;

// Around the server: its tools.

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;

mod kit;

pub mod cli;
