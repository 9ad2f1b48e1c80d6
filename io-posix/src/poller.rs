//! Waiting: one `epoll` set of everything that the loop listens to, and a bell that other threads ring. Another way to
//! wait can stand behind the same [`Poller`]: see [`Waiting`].

mod set;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::errno::io_error;
use crate::memory::HostPool;
use crate::socket::{Listener, Stream};
use crate::wire::Carrier;
use set::Set;

/// What a registered descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interest {
    /// Something to receive, or to accept.
    pub read: bool,
    /// Room to send, or a connection attempt that has ended.
    pub write: bool,
}

impl Interest {
    /// Nothing: the descriptor is not looked at, not even for a hang-up.
    pub const NONE: Self = Self { read: false, write: false };
    /// Something to receive.
    pub const READ: Self = Self { read: true, write: false };
    /// Room to send.
    pub const WRITE: Self = Self { read: false, write: true };
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// As given at registration.
    pub token: u32,
    /// Reading will not block; also set at an error or a hang-up, which the next read or write reports.
    pub read: bool,
    /// Writing will not block; also set at an error or a hang-up.
    pub write: bool,
}

/// Names a registered descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Registration(pub u16);

/// Another way to wait than `epoll`: one that also moves the bytes of streams meanwhile. Its methods are those of
/// [`Poller`].
pub trait Waiting: fmt::Debug {
    /// See [`Poller::waker`].
    fn waker(&self) -> Waker;
    /// See [`Poller::register`].
    fn register(&mut self, fd: BorrowedFd<'_>, interest: Interest, token: u32) -> Option<Registration>;
    /// See [`Poller::listen`].
    fn listen(&mut self, fd: BorrowedFd<'_>, token: u32) -> Option<Registration>;
    /// The next connection that was accepted for a listener, neither blocking nor inherited.
    fn accept(&mut self, registration: Registration) -> Option<io::Result<OwnedFd>>;
    /// See [`Poller::set_interest`].
    fn set_interest(&mut self, registration: Registration, interest: Interest);
    /// See [`Poller::deregister`].
    fn deregister(&mut self, registration: Registration);
    /// See [`Poller::wait`].
    ///
    /// # Errors
    /// What the system reports.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// What the last wait found.
    fn ready(&self) -> &[Ready];
    /// Takes a connected stream and moves its bytes while the loop waits. What has come and what has left is told under
    /// this token, and once at the beginning.
    ///
    /// # Errors
    /// There is no place; the stream is given back.
    fn carry(&mut self, stream: Stream, token: u32) -> Result<Box<dyn Carrier>, Stream>;
    /// See [`Poller::take_back`].
    fn take_back(&mut self, pool: &mut HostPool);
}

/// What the loop waits with. Memory is taken at construction; waiting allocates nothing.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::io::Write;
/// use twinblock_io_posix::poller::{Interest, Poller};
///
/// let (mut here, there) = UnixStream::pair()?;
/// let mut poller = Poller::new(16)?;
/// poller.register(&there, Interest::READ, 7).unwrap();
/// here.write_all(b"x")?;
/// poller.wait(None)?;
/// assert!(poller.ready().any(|ready| ready.token == 7 && ready.read));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Poller(Kind);

#[derive(Debug)]
enum Kind {
    Watch(Set),
    Other(Box<dyn Waiting>),
}

impl Poller {
    /// Waits with `epoll`. Room for `capacity` descriptors: listeners, connections, NBD disks, signals. Each takes 16
    /// bytes here and some 200 of the system's, and time in a wait only when it is ready.
    ///
    /// # Errors
    /// The system refuses another descriptor.
    pub fn new(capacity: u16) -> io::Result<Self> {
        Set::new(capacity).map(|set| Self(Kind::Watch(set)))
    }

    /// Waits in another way.
    #[must_use]
    pub fn over(waiting: Box<dyn Waiting>) -> Self {
        Self(Kind::Other(waiting))
    }

    /// A handle with which any thread ends a wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        match &self.0 {
            Kind::Watch(set) => set.waker(),
            Kind::Other(other) => other.waker(),
        }
    }

    /// Adds a descriptor. Take it out with [`Self::deregister`] before it is closed; until then its number would be
    /// looked at, whatever it stands for. `None` if the set is full.
    pub fn register(&mut self, fd: impl AsFd, interest: Interest, token: u32) -> Option<Registration> {
        match &mut self.0 {
            Kind::Watch(set) => set.register(fd.as_fd(), interest, token),
            Kind::Other(other) => other.register(fd.as_fd(), interest, token),
        }
    }

    /// Adds a listener, whose connections are to be taken with [`Self::accept`]; otherwise as [`Self::register`] with an
    /// interest to read.
    pub fn listen(&mut self, listener: &Listener, token: u32) -> Option<Registration> {
        match &mut self.0 {
            Kind::Watch(set) => set.register(listener.as_fd(), Interest::READ, token),
            Kind::Other(other) => other.listen(listener.as_fd(), token),
        }
    }

    /// The next connection of a listener that was added with [`Self::listen`], or `None` if none is waiting.
    ///
    /// # Errors
    /// As for [`Listener::accept`].
    pub fn accept(&mut self, listener: &Listener, registration: Registration) -> io::Result<Option<Stream>> {
        match &mut self.0 {
            Kind::Watch(_) => listener.accept(),
            Kind::Other(other) => {
                other.accept(registration).map(|socket| Ok(listener.welcome(socket?))).transpose()
            }
        }
    }

    /// Changes what is waited for.
    pub fn set_interest(&mut self, registration: Registration, interest: Interest) {
        match &mut self.0 {
            Kind::Watch(set) => set.set_interest(registration, interest),
            Kind::Other(other) => other.set_interest(registration, interest),
        }
    }

    /// Takes a descriptor out; the registration is void afterwards.
    pub fn deregister(&mut self, registration: Registration) {
        match &mut self.0 {
            Kind::Watch(set) => set.deregister(registration),
            Kind::Other(other) => other.deregister(registration),
        }
    }

    /// Waits until something is ready, the bell is rung or the time is up. A signal ends it too.
    ///
    /// # Errors
    /// What the system reports: out of memory, or of what a user may have watched (`fs.epoll.max_user_watches`).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match &mut self.0 {
            Kind::Watch(set) => set.wait(timeout),
            Kind::Other(other) => other.wait(timeout),
        }
    }

    /// What the last wait found.
    pub fn ready(&self) -> impl Iterator<Item = Ready> + '_ {
        let ready = match &self.0 {
            Kind::Watch(set) => set.ready(),
            Kind::Other(other) => other.ready(),
        };
        ready.iter().copied()
    }

    /// Whether it moves the bytes of streams itself ([`Waiting::carry`]).
    #[must_use]
    pub const fn carries(&self) -> bool {
        matches!(self.0, Kind::Other(_))
    }

    /// Hands a connected stream over to the queue that moves bytes while the loop waits. What has come and what has left
    /// is told under this token, and once at the beginning.
    ///
    /// # Errors
    /// There is no place; the stream is given back.
    pub(crate) fn carry(&mut self, stream: Stream, token: u32) -> Result<Box<dyn Carrier>, Stream> {
        match &mut self.0 {
            Kind::Watch(_) => Err(stream),
            Kind::Other(other) => other.carry(stream, token),
        }
    }

    /// Gives the pool what streams and disks that are no more had lent from it, as far as the system has let go of it. Call
    /// it after each wait.
    pub fn take_back(&mut self, pool: &mut HostPool) {
        if let Kind::Other(other) = &mut self.0 {
            other.take_back(pool);
        }
    }
}

/// The bell: ends a wait from any thread. Ringing it many times before the loop has heard costs one system call.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Bell>);

#[derive(Debug)]
struct Bell {
    eventfd: OwnedFd,
    is_rung: AtomicBool,
}

impl Waker {
    /// A bell of its own, for another way to wait.
    ///
    /// # Errors
    /// The system refuses another descriptor.
    pub fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io_error)?;
        Ok(Self(Arc::new(Bell { eventfd, is_rung: AtomicBool::new(false) })))
    }

    /// Ends the wait that is going on, or the next one.
    pub fn wake(&self) {
        if !self.0.is_rung.swap(true, Ordering::AcqRel) {
            // It can fail only if the counter is at its end, and then the bell rings anyway.
            let _ = rustix::io::write(&self.0.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// For an event loop of another kind, which waits for this descriptor to become readable and then calls
    /// [`Self::hear`].
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }

    /// Silences the bell. Whoever rang it before has done all that it rang for.
    pub fn hear(&self) {
        self.0.hear();
    }
}

impl Bell {
    /// The order matters: a ring between the two writes nothing, but what it stands for is seen by the loop, which
    /// looks for work only after this.
    fn hear(&self) {
        let _ = rustix::io::read(&self.eventfd, &mut [0u8; 8]);
        self.is_rung.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
