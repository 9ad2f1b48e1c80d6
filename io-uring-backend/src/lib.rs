//! Disks, sockets and waiting on one io_uring (Linux 6.0 or newer).
//!
//! It takes the place of three things in `twinblock-io-posix`, and of nothing else: how the loop waits
//! ([`Waiting`](twinblock_io_posix::poller::Waiting)), how the bytes of a stream go
//! ([`Carrier`](twinblock_io_posix::wire::Carrier)), and how a disk's file is worked on
//! ([`Queue`](twinblock_io_posix::disk::Queue)). Connections, disks, errors and limits are the same code over either.
//!
//! Whatever one turn of the loop has begun (reads and writes of disks, receiving, messages that a socket has no room for) is
//! put on the ring and handed to the system in the call that then waits for what ends first: one call for as many requests as
//! the turn has served.
//! After start nothing allocates per request; nothing is locked, since one thread has the ring for itself.
//!
//! | module | what it is |
//! |---|---|
//! | `raw` | the ring and the memory in flight: all `unsafe` is there |
//! | `engine` | who has begun what, and what has come of it |
//! | `ends` | what connections, disks and the loop hold of it |
//!
//! ```no_run
//! use twinblock_io_posix::workers::{HELPERS, Workers};
//! use twinblock_io_uring::Ring;
//!
//! let ring = Ring::new(512)?;
//! let poller = ring.poller()?;
//! let workers = Workers::start(HELPERS, &poller.waker())?.beside(ring.queues());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod ends;
mod engine;
#[expect(unsafe_code, reason = "the one module that may: the ring, and memory that the system works on")]
mod raw;

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::io;
use std::rc::Rc;

use io_uring::opcode;
use twinblock_io_posix::disk::Queues;
use twinblock_io_posix::poller::Poller;

use ends::{RingQueues, RingWaiting};
use engine::{Engine, Shared};
use raw::Raw;

/// What is used of the ring. The last one is not, but came with Linux 6.0, from which on a message is sent whole.
const NEEDED: [(u8, &str); 10] = [
    (opcode::Read::CODE, "reading"),
    (opcode::Write::CODE, "writing"),
    (opcode::Fsync::CODE, "flushing"),
    (opcode::Fallocate::CODE, "allocating"),
    (opcode::Recv::CODE, "receiving"),
    (opcode::SendMsg::CODE, "sending"),
    (opcode::Accept::CODE, "accepting"),
    (opcode::PollAdd::CODE, "polling"),
    (opcode::AsyncCancel::CODE, "cancelling"),
    (opcode::SendZc::CODE, "sending whole messages"),
];

/// Why there is no ring, by who must act.
#[derive(Debug)]
#[non_exhaustive]
pub enum NoRing {
    /// The kernel has none: it is older than 5.1, or was built without.
    Missing,
    /// It is forbidden: by `kernel.io_uring_disabled`, or by the filter of a container.
    Forbidden,
    /// The kernel's ring cannot do this: it is older than 6.0.
    TooOld(&'static str),
    /// What the system says to it.
    System(io::Error),
}

impl fmt::Display for NoRing {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(to, "this kernel has no io_uring; Linux 6.0 or newer is needed"),
            Self::Forbidden => write!(
                to,
                "io_uring is forbidden here; allow it with sysctl kernel.io_uring_disabled=0, or in the container's \
                 seccomp profile"
            ),
            Self::TooOld(what) => {
                write!(to, "io_uring of this kernel lacks {what}; Linux 6.0 or newer is needed")
            }
            Self::System(error) => write!(to, "the system gives no io_uring: {error}"),
        }
    }
}

impl Error for NoRing {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::System(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for NoRing {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
            _ => Self::System(error),
        }
    }
}

/// A ring, for the thread that makes it.
pub struct Ring {
    engine: Shared,
    capacity: u16,
}

impl fmt::Debug for Ring {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Ring").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl Ring {
    /// Makes one, if the system has all that is needed. `capacity`: as for [`Poller::new`].
    ///
    /// # Errors
    /// There is none here; the text says what to do.
    pub fn new(capacity: u16) -> Result<Self, NoRing> {
        let raw = Raw::new()?;
        if !raw.knows_timeouts() {
            return Err(NoRing::TooOld("timeouts"));
        }
        if let Some(what) = raw.lacks(&NEEDED)? {
            return Err(NoRing::TooOld(what));
        }
        // One more for the bell.
        let engine = Engine::new(raw, capacity.saturating_add(1));
        Ok(Self { engine: Rc::new(RefCell::new(engine)), capacity })
    }

    /// Waits on the ring, and has it move the bytes of streams. Make one of each ring.
    ///
    /// # Errors
    /// The system refuses another descriptor.
    pub fn poller(&self) -> io::Result<Poller> {
        Ok(Poller::over(Box::new(RingWaiting::new(Rc::clone(&self.engine), self.capacity)?)))
    }

    /// Has disks work on the ring: for [`Workers::beside`](twinblock_io_posix::workers::Workers::beside).
    #[must_use]
    pub fn queues(&self) -> Box<dyn Queues> {
        Box::new(RingQueues(Rc::clone(&self.engine)))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::NoRing;

    #[test]
    fn whoever_has_no_ring_is_told_what_to_do() {
        for (number, hint) in [
            (libc::ENOSYS, "Linux 6.0"),
            (libc::EPERM, "kernel.io_uring_disabled=0"),
            (libc::EACCES, "seccomp"),
            (libc::ENOMEM, "memory"),
        ] {
            let text = NoRing::from(io::Error::from_raw_os_error(number)).to_string();
            assert!(text.contains(hint) && !text.contains('\n'), "{text}");
        }
        assert!(NoRing::TooOld("receiving").to_string().contains("lacks receiving"));
    }
}
