//! What must be true of any input, as functions that take any bytes and panic if it isn't. `fuzz/` searches for such bytes, and the tests
//! repeat those that it has kept.

mod events;
mod frames;
mod guests;
mod records;
mod settings;

pub use events::event;
pub use frames::frames;
pub use guests::Guest;
pub use records::records;
pub use settings::{query, settings};

/// Returns whether a text is one JSON value and nothing around it.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok_and(|value| value.get().len() == text.len())
}
