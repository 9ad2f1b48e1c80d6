//! What the tests wait with: `epoll` here. The crate of the ring runs the same tests over its own.

use crate::poller::Poller;
use crate::workers::Workers;

pub(crate) fn poller(capacity: u16) -> Poller {
    Poller::new(capacity).unwrap()
}

/// And helper threads, for disks.
pub(crate) fn both(capacity: u16, helpers: usize) -> (Poller, Workers) {
    let poller = poller(capacity);
    let workers = Workers::start(helpers, &poller.waker()).unwrap();
    (poller, workers)
}
