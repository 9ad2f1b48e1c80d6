//! Waiting: one `poll` set over everything that the loop listens to, and a bell that other threads ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::errno::io_error;
use crate::raw::{self, Polled};

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

    const fn events(self) -> i16 {
        (if self.read { libc::POLLIN } else { 0 }) | (if self.write { libc::POLLOUT } else { 0 })
    }
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
pub struct Registration(u16);

#[derive(Clone, Copy, Debug)]
struct Entry {
    fd: RawFd,
    token: u32,
}

const UNUSED: RawFd = -1;
/// The first place in the set is the bell's.
const BELL: usize = 0;

/// The set. Memory is taken at construction; waiting allocates nothing.
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
pub struct Poller {
    set: Box<[Polled]>,
    entries: Box<[Entry]>,
    /// Places from here on were never used since the last time the set was empty above them.
    used_end: usize,
    /// Ends the walk over the set early; how many places are ready, the bell not counted.
    ready_count: usize,
    waker: Waker,
}

impl Poller {
    /// Room for `capacity` descriptors, at most 65,534: listeners, connections, NBD disks, signals. Each takes 16
    /// bytes, and time in every wait only once used.
    ///
    /// # Errors
    /// The system refuses another descriptor.
    pub fn new(capacity: u16) -> io::Result<Self> {
        let places = usize::from(capacity) + 1;
        let waker = Waker::new()?;
        let mut set = vec![Polled::NONE; places].into_boxed_slice();
        if let Some(bell) = set.get_mut(BELL) {
            bell.set(waker.0.eventfd.as_raw_fd(), Interest::READ.events());
        }
        let entries = vec![Entry { fd: UNUSED, token: 0 }; places].into_boxed_slice();
        Ok(Self { set, entries, used_end: 1, ready_count: 0, waker })
    }

    /// A handle with which any thread ends a wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Adds a descriptor. Take it out with [`Self::deregister`] before it is closed; until then its number would be
    /// looked at, whatever it stands for. `None` if the set is full.
    pub fn register(&mut self, fd: impl AsFd, interest: Interest, token: u32) -> Option<Registration> {
        let fd = fd.as_fd().as_raw_fd();
        let free = (1..self.entries.len()).find(|place| self.entries[*place].fd == UNUSED)?;
        let registration = Registration(u16::try_from(free).ok()?);
        self.entries[free] = Entry { fd, token };
        self.used_end = self.used_end.max(free + 1);
        self.set_interest(registration, interest);
        Some(registration)
    }

    /// Changes what is waited for.
    pub fn set_interest(&mut self, registration: Registration, interest: Interest) {
        let place = usize::from(registration.0);
        if let (Some(entry), Some(polled)) = (self.entries.get(place), self.set.get_mut(place))
            && entry.fd != UNUSED
        {
            polled.set(entry.fd, interest.events());
        }
    }

    /// Takes a descriptor out; the registration is void afterwards.
    pub fn deregister(&mut self, registration: Registration) {
        let place = usize::from(registration.0);
        if place == BELL || place >= self.entries.len() {
            return;
        }
        self.entries[place].fd = UNUSED;
        self.set[place] = Polled::NONE;
        while self.used_end > 1 && self.entries[self.used_end - 1].fd == UNUSED {
            self.used_end -= 1;
        }
    }

    /// Waits until something is ready, the bell is rung or the time is up. A signal ends it too.
    ///
    /// # Errors
    /// What `poll` reports: out of memory, in practice.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.ready_count = 0;
        let set = self.set.get_mut(..self.used_end).unwrap_or_default();
        match raw::poll(set, timeout) {
            Ok(ready) => {
                let rung = set.first().is_some_and(|bell| bell.returned() != 0);
                self.ready_count = ready - usize::from(rung);
                if rung {
                    self.waker.0.hear();
                }
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(error) => Err(io_error(error)),
        }
    }

    /// What the last wait found, in order of registration.
    pub fn ready(&self) -> impl Iterator<Item = Ready> + '_ {
        let used = self.entries.iter().zip(&self.set).take(self.used_end).skip(1);
        used.filter(|(_, polled)| polled.returned() != 0)
            .map(|(entry, polled)| {
                let events = polled.returned();
                let broken = events & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
                Ready {
                    token: entry.token,
                    read: broken || events & libc::POLLIN != 0,
                    write: broken || events & libc::POLLOUT != 0,
                }
            })
            .take(self.ready_count)
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
    fn new() -> io::Result<Self> {
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
