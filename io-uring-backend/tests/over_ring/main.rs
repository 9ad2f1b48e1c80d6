//! The tests of disks, connections, NBD disks and waiting that `twinblock-io-posix` has, over a ring.
//!
//! Where there is no ring, nothing is tested; the tests say so.

// Where the tests look for them.
use twinblock_io_posix::{address, memory, socket, uri, workers};

/// What the tests wait with.
mod edge {
    use twinblock_io_posix::poller::Poller;
    use twinblock_io_posix::workers::Workers;
    use twinblock_io_uring::Ring;

    pub(crate) fn poller(capacity: u16) -> Poller {
        Ring::new(capacity).unwrap().poller().unwrap()
    }

    pub(crate) fn both(capacity: u16, helpers: usize) -> (Poller, Workers) {
        let ring = Ring::new(capacity).unwrap();
        let poller = ring.poller().unwrap();
        let workers = Workers::start(helpers, &poller.waker()).unwrap().beside(ring.queues());
        (poller, workers)
    }
}

mod connection;
mod disk;
mod nbd_disk;
mod poller;
