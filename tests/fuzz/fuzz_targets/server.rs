//! See `twinblock_fuzz::server`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: twinblock_fuzz::server::Script| twinblock_fuzz::server::run(&script));
