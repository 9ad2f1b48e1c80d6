//! What the tests of this name find in their own crate, and the tests.

pub(crate) use twinblock_io_posix::nbd_disk::*;

#[path = "../../../io-posix/src/nbd_disk/tests.rs"]
mod tests;
