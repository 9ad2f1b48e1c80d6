//! See `twinblock_fuzz::primary`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: twinblock_fuzz::primary::Script| twinblock_fuzz::primary::run(&script));
