#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| signalpost::internals::fuzzing::records(input));
