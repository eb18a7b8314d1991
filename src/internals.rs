//! What the fuzzers (`fuzz/`) and the benchmarks (`benches/`) reach of the inside. No interface: nothing here is promised, and the
//! server uses none of it.

pub mod benching;
pub mod fuzzing;
