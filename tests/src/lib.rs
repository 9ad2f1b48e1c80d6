//! Simulator, interop and benchmarks.
#![forbid(unsafe_code)]

pub mod simulator;
pub mod worlds;
