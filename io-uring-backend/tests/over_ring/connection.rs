//! What the tests of this name find in their own crate, and the tests.

pub(crate) use twinblock_io_posix::connection::*;

#[path = "../../../io-posix/src/connection/tests.rs"]
mod tests;
