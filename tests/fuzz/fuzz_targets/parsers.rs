//! See `twinblock_fuzz::parsers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| twinblock_fuzz::parsers::run(bytes));
