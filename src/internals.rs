//! Access to private parts for the fuzzers (`fuzz/`), the benchmarks (`benches/`) and the tests. Only with the feature `internals`: this
//! is not part of the public interface, and a released server is built without it.

pub mod benching;
pub mod fuzzing;
