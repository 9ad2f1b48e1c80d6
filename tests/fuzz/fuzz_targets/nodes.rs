//! See `twinblock_fuzz::nodes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| twinblock_fuzz::nodes::run(bytes));
