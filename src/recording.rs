//! Recorded calls of policies: how they are written, so that they can be played again, and compared with what came of them then.
//!
//! A recording is JSON, one call on a line, each in the form of a fixture with one step (`kit::fixture`), so that a call can be kept as a test.

pub mod compare;
pub mod line;
pub mod notation;
pub mod redact;
pub mod shadow;
