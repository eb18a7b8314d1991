//! The plugin kit: developing, testing and timing a plugin. It runs the server's own code, so that a plugin that passes here works in
//! the server too.

pub mod dev;
pub mod fixture;
pub mod replay;
pub mod workbench;

pub use workbench::Workbench;
