//! The tests of disks, connections, NBD disks and waiting that `twinblock-io-posix` has, over a ring.
//!
//! Where the system gives no ring they run over `epoll` once more, and say so.

// Where the tests look for them.
use twinblock_io_posix::{address, memory, socket, uri, workers};

/// What the tests wait with.
mod edge {
    use twinblock_io_posix::poller::Poller;
    use twinblock_io_posix::workers::Workers;
    use twinblock_io_uring::Ring;

    /// None where the system gives none; then it is `epoll` once more.
    fn ring(capacity: u16) -> Option<Ring> {
        Ring::new(capacity).inspect_err(|error| eprintln!("not tested over a ring: {error}")).ok()
    }

    pub(crate) fn poller(capacity: u16) -> Poller {
        ring(capacity).map_or_else(|| Poller::new(capacity).unwrap(), |ring| ring.poller().unwrap())
    }

    pub(crate) fn both(capacity: u16, helpers: usize) -> (Poller, Workers) {
        let ring = ring(capacity);
        let poller =
            ring.as_ref().map_or_else(|| Poller::new(capacity).unwrap(), |ring| ring.poller().unwrap());
        let workers = Workers::start(helpers, &poller.waker()).unwrap();
        (poller, ring.iter().fold(workers, |workers, ring| workers.beside(ring.queues())))
    }
}

mod connection;
mod disk;
mod nbd_disk;
mod poller;
