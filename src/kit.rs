//! The plugin kit: what a plugin's author does before a server sees the work. Everything here runs on the server's own parts, so
//! that what passes here passes there.

pub mod dev;
pub mod fixture;
mod json;
pub mod workbench;

pub use workbench::Workbench;
