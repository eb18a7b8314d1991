//! The whole product, driven from outside: a real server on a free port, real WebSocket clients, the bundled plugins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod admission;
mod authentication;
mod bounds;
mod bundled;
mod commands;
mod dead_letters;
mod events;
mod explain;
mod faults;
mod fuzzed;
mod hostile;
mod issuers;
mod kit;
mod line;
mod mailboxes;
mod policies;
mod reloads;
mod sessions;
mod stops;
mod support;
mod tidy;
mod tls;
