//! The ends of the engine that connections, disks and the loop hold.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use twinblock_io_posix::disk::{Job, Queue, Queues, Returned};
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::poller::{Interest, Ready, Registration, Waiting, Waker};
use twinblock_io_posix::socket::Stream;
use twinblock_io_posix::wire::{Carrier, Outbox, Room};

use crate::engine::Shared;

/// Nobody else's: tokens have fewer bits.
const BELL: u32 = u32::MAX;

/// Waiting on the ring.
pub(crate) struct RingWaiting {
    engine: Shared,
    waker: Waker,
    ready: Vec<Ready>,
}

impl fmt::Debug for RingWaiting {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("RingWaiting").finish_non_exhaustive()
    }
}

impl RingWaiting {
    /// Also listens to a bell that other threads ring.
    pub(crate) fn new(engine: Shared, capacity: u16) -> io::Result<Self> {
        let waker = Waker::new()?;
        let bell = engine.borrow_mut().register(waker.fd().as_raw_fd(), Interest::READ, false, BELL);
        bell.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { engine, waker, ready: Vec::with_capacity(usize::from(capacity)) })
    }
}

impl Waiting for RingWaiting {
    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn register(&mut self, fd: BorrowedFd<'_>, interest: Interest, token: u32) -> Option<Registration> {
        self.engine.borrow_mut().register(fd.as_raw_fd(), interest, false, token).map(Registration)
    }

    fn listen(&mut self, fd: BorrowedFd<'_>, token: u32) -> Option<Registration> {
        self.engine.borrow_mut().register(fd.as_raw_fd(), Interest::READ, true, token).map(Registration)
    }

    fn accept(&mut self, registration: Registration) -> Option<io::Result<OwnedFd>> {
        self.engine.borrow_mut().accepted(registration.0)
    }

    fn set_interest(&mut self, registration: Registration, interest: Interest) {
        self.engine.borrow_mut().set_interest(registration.0, interest);
    }

    fn deregister(&mut self, registration: Registration) {
        self.engine.borrow_mut().deregister(registration.0);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let mut engine = self.engine.borrow_mut();
        self.ready.clear();
        engine.wait(timeout)?;
        self.ready.extend_from_slice(engine.ready());
        let before = self.ready.len();
        self.ready.retain(|ready| ready.token != BELL);
        if self.ready.len() != before {
            self.waker.hear();
        }
        Ok(())
    }

    fn ready(&self) -> &[Ready] {
        &self.ready
    }

    fn carry(&mut self, stream: Stream, token: u32) -> Result<Box<dyn Carrier>, Stream> {
        let place = self.engine.borrow_mut().adopt(OwnedFd::from(stream), token);
        Ok(Box::new(RingCarrier { engine: Rc::clone(&self.engine), place }))
    }

    fn take_back(&mut self, pool: &mut HostPool) {
        self.engine.borrow_mut().take_back(pool);
    }
}

/// A stream on the ring.
struct RingCarrier {
    engine: Shared,
    place: usize,
}

impl fmt::Debug for RingCarrier {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("RingCarrier").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Carrier for RingCarrier {
    fn receive(&mut self, room: Room) {
        self.engine.borrow_mut().receive(self.place, room);
    }

    fn is_receiving(&self) -> bool {
        self.engine.borrow().is_receiving(self.place)
    }

    fn received(&mut self) -> Option<(Room, io::Result<usize>)> {
        self.engine.borrow_mut().received(self.place)
    }

    fn send(&mut self, message: Box<Outbox>) {
        self.engine.borrow_mut().send(self.place, message);
    }

    fn socket(&self) -> Option<Rc<OwnedFd>> {
        self.engine.borrow().socket(self.place)
    }

    fn hurry(&mut self) {
        self.engine.borrow_mut().hurry(self.place);
    }

    fn sent(&mut self) -> Option<(Box<Outbox>, io::Result<()>)> {
        self.engine.borrow_mut().sent(self.place)
    }
}

impl Drop for RingCarrier {
    fn drop(&mut self) {
        self.engine.borrow_mut().hang_up(self.place);
    }
}

/// Queues on the ring.
pub(crate) struct RingQueues(pub(crate) Shared);

impl fmt::Debug for RingQueues {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("RingQueues").finish_non_exhaustive()
    }
}

impl Queues for RingQueues {
    fn queue(&self, capacity: u16) -> Box<dyn Queue> {
        let place = self.0.borrow_mut().add_disk(capacity);
        Box::new(RingQueue { engine: Rc::clone(&self.0), place })
    }
}

/// A disk on the ring.
struct RingQueue {
    engine: Shared,
    place: usize,
}

impl fmt::Debug for RingQueue {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("RingQueue").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Queue for RingQueue {
    fn submit(&mut self, job: Job) -> Result<(), Job> {
        self.engine.borrow_mut().submit(self.place, job)
    }

    fn poll(&mut self) -> Option<Returned> {
        self.engine.borrow_mut().returned(self.place)
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        self.engine.borrow_mut().remove_disk(self.place);
    }
}
