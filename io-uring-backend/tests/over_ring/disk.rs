//! What the tests of this name find in their own crate, and the tests.

pub(crate) use twinblock_io_posix::disk::*;

#[path = "../../../io-posix/src/disk/tests.rs"]
mod tests;
