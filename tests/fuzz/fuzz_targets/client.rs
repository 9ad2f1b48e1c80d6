//! See `twinblock_fuzz::client`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: twinblock_fuzz::client::Script| twinblock_fuzz::client::run(&script));
