//! The disk buffer: where replaced content and the guest's writes are kept until the next checkpoint.
//!
//! It is a log of granule slots on any block device ([`Buffer`]) with an index from granule to slot in borrowed memory
//! ([`index`]). Both take memory in proportion to the buffer, never to the disk.

pub mod index;
#[cfg(all(feature = "inspect", feature = "secondary"))]
mod inspect;
mod log;
#[cfg(test)]
mod tests;

pub use log::{Buffer, Found, Full, Spot};
