//! What is the same on every board that a Twinblock node runs on.
//!
//! | module | what is there |
//! |---|---|
//! | [`stack`] | how much of the stack was used |
//! | `frames` | what the network devices tell smoltcp |
//! | `network` | TCP over a board's network device |
#![no_std]

#[cfg(feature = "network")]
pub mod frames;
#[cfg(feature = "network")]
pub mod network;
pub mod stack;
