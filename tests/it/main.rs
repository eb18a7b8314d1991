//! The whole product, driven from outside: a real server on a free port, real WebSocket clients, the bundled plugins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

// A room of `src` is tested from outside in the folder of its name.
mod auth {
    mod authentication;
    mod issuers;
}
mod cli {
    mod commands;
}
mod http {
    mod descriptions;
    mod events;
    mod explain;
    mod lists;
    pub mod live;
    mod publishing;
    mod receipts;
}
mod kit;
mod model {
    mod dead_letters;
    mod mailboxes;
}
mod net {
    mod bounds;
    mod tls;
}
mod plugins {
    mod bundled;
}
mod policy {
    mod attacks;
    mod faults;
    mod hostile;
    mod kept;
    mod policies;
    mod reloads;
}
mod server {
    mod first_day;
    mod reconfiguring;
    mod stops;
}
mod session {
    mod admission;
    mod answers;
    mod sessions;
    mod streams;
}
mod recording;
mod sink;
mod store {
    mod faults;
    mod folders;
    mod repairs;
    mod restarts;
}
mod traces {
    pub mod collector;
    mod failing;
    mod spans;
}

// The whole.
mod fuzzed;
mod line;
mod support;
mod tidy;
