//! The types that all modules share. Values in these types are checked when they are made, and nothing past that checks again.

pub mod clock;
pub mod close;
pub mod delivery;
pub mod drop_reason;
pub mod event;
pub mod fault;
pub mod file;
pub mod json;
pub mod origin;
pub mod page;
pub mod pattern;
pub mod private_folder;
pub mod time;
pub mod timestamp;
