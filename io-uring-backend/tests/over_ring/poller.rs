//! What the tests of this name find in their own crate, and the tests.

pub(crate) use twinblock_io_posix::poller::*;

#[path = "../../../io-posix/src/poller/tests.rs"]
mod tests;
