//! Simulator, interop and benchmarks.
#![forbid(unsafe_code)]

pub mod pair;
pub mod simulator;
