//! See `twinblock_fuzz::coordinator`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: twinblock_fuzz::coordinator::Script| twinblock_fuzz::coordinator::run(
    &script
));
