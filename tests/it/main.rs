//! The whole product, driven from outside: a real server on a free port, real WebSocket clients, the bundled plugins.

mod bundled;
mod events;
mod line;
mod mailboxes;
mod policies;
mod sessions;
mod support;
mod tidy;
