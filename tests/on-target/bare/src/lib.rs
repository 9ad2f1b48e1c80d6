//! Nothing but the core: what is checked for a target is whether the core can be built for it.
#![no_std]
#![forbid(unsafe_code)]

pub use twinblock_core;
