//! See `twinblock_fuzz::json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: twinblock_fuzz::json::Script| twinblock_fuzz::json::run(&script));
