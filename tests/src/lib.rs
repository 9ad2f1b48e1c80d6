//! Simulator, interop and benchmarks.
