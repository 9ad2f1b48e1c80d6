//! See `twinblock_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| twinblock_fuzz::config::run(bytes));
