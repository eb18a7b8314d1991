//! What the fuzzers have kept, once more: inputs that reach each part of the code, and those that once broke something.

use std::path::Path;

use signalpost::internals::fuzzing::{self, Guest};

use crate::support;
use crate::support::wat::component;

/// Runs a target on each file of its corpus.
fn each(target: &str, run: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let file = entry.unwrap().path();
        let input = std::fs::read(&file).unwrap();
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&input)));
        assert!(held.is_ok(), "{} breaks a property", file.display());
        files += 1;
    }
    assert!(files > 0, "{} is empty", dir.display());
}

#[test]
fn the_fuzzers_requests_are_events_within_their_limits_or_explained() {
    each("events", fuzzing::event);
}

#[test]
fn the_fuzzers_frames_are_the_same_however_the_network_cuts_them() {
    each("frames", fuzzing::frames);
}

#[test]
fn the_fuzzers_guests_answer_within_their_bounds_or_are_at_fault() {
    let guest = component(&["routing", "formatting", "sessions"], &[], include_str!("../../fuzz/guest.wat"));
    let guest = Guest::new(&guest, &support::config("")).unwrap();
    each("guests", |input| guest.answer(input));
}

#[test]
fn the_fuzzers_queries_and_settings_are_the_same_when_written_again() {
    each("queries", fuzzing::query);
    each("settings", fuzzing::settings);
}

#[test]
fn the_fuzzers_records_of_a_store_are_the_same_when_written_again() {
    each("records", fuzzing::records);
}
