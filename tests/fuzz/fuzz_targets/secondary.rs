//! See `twinblock_fuzz::secondary`.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: twinblock_fuzz::secondary::Script| twinblock_fuzz::secondary::run(
    &script
));
