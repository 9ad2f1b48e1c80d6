//! Where a disk's reads, writes, flushes and changes of allocation go instead of to helper threads: to a queue of the
//! system that does them while the loop waits.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::fs::FallocateFlags;
use rustix::io::Errno as Os;
use twinblock_core::block::Completion;
use twinblock_core::{Errno, Outcome};

use super::{Done, Job, Work};
use crate::errno::errno_of;
use crate::memory::{Lease, Lend};
use crate::workers::Class;

/// A queue of one disk. Dropped, it forgets the disk; what the system still works on is kept until the system has let go
/// of it.
pub trait Queue: fmt::Debug {
    /// Takes a job whose [`Job::call`] is something.
    ///
    /// # Errors
    /// There is no room now; the job is given back.
    fn submit(&mut self, job: Job) -> Result<(), Job>;

    /// What has become of a job.
    fn poll(&mut self) -> Option<Returned>;
}

/// Makes queues.
pub trait Queues: fmt::Debug {
    /// A queue for a disk that has so many transfers in flight at most.
    fn queue(&self, capacity: u16) -> Box<dyn Queue>;
}

/// A call of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// pread(2).
    Read {
        /// The first byte of the job's lease that is to be filled.
        into: NonNull<u8>,
        /// How many bytes.
        length: usize,
        /// Where in the file.
        offset: u64,
    },
    /// pwritev2(2).
    Write {
        /// The first byte of the job's lease that is to be written.
        from: NonNull<u8>,
        /// How many bytes.
        length: usize,
        /// Where in the file.
        offset: u64,
        /// With `RWF_DSYNC`.
        is_forced: bool,
    },
    /// fdatasync(2).
    Sync,
    /// fallocate(2).
    Allocate {
        /// As the system has it.
        mode: i32,
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

/// What a job needs next.
#[derive(Debug)]
pub enum Next {
    /// Its next [`Job::call`].
    Again(Job),
    /// Nothing more, here.
    Returned(Returned),
}

/// What has become of a job.
#[derive(Debug)]
pub enum Returned {
    /// It has ended.
    Ended(Done),
    /// The system cannot do it in this way: a helper thread finds another one.
    Help(Job),
}

impl Returned {
    /// The lease, where nobody waits for the outcome any more.
    #[must_use]
    pub fn into_lease(self) -> Option<Lease> {
        match self {
            Self::Ended(done) => done.lease,
            Self::Help(job) => job.lease,
        }
    }
}

impl Job {
    /// The file that is worked on; it stays open as long as the job exists.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.shared.file.fd()
    }

    /// Whether it may take seconds: a queue has only a few of these with the system at a time, so that they leave room for
    /// others.
    #[must_use]
    pub const fn is_slow(&self) -> bool {
        matches!(self.work.class(), Class::Slow)
    }

    /// The call that is to be made next; `None` if no single call does it.
    #[must_use]
    pub fn call(&self) -> Option<Call> {
        match (self.work, &self.lease) {
            (Work::Read { offset, done, .. }, Some(lease)) if lease.kind() == Lend::Writing => {
                let (into, length) = lease.place(done);
                Some(Call::Read { into, length, offset: offset + done as u64 })
            }
            (Work::Write { offset, done, fua, .. }, Some(lease)) => {
                let (from, length) = lease.place(done);
                Some(Call::Write { from, length, offset: offset + done as u64, is_forced: fua })
            }
            (Work::Flush, _) => Some(Call::Sync),
            (Work::Zero { extent, ways, fua: false }, _) => {
                let file = &self.shared.file;
                let is_whole = (extent.offset | extent.length) % file.sector_bytes == 0;
                let way = if ways.may_unmap {
                    FallocateFlags::PUNCH_HOLE
                } else if file.is_device && ways.fast {
                    return None;
                } else {
                    FallocateFlags::ZERO_RANGE
                };
                let mode = i32::try_from((way | FallocateFlags::KEEP_SIZE).bits()).ok()?;
                let (offset, length) = (extent.offset, extent.length);
                is_whole.then_some(Call::Allocate { mode, offset, length })
            }
            _ => None,
        }
    }

    /// Takes what the call has returned.
    #[must_use]
    pub fn returned(self, result: Result<usize, Os>) -> Next {
        let errno = match result {
            Ok(count) => return self.advanced(count),
            Err(Os::INTR) => return Next::Again(self),
            Err(Os::CANCELED) => Errno::Shutdown,
            Err(error) => {
                let is_unknown = matches!(error, Os::OPNOTSUPP | Os::NOSYS | Os::NODEV | Os::NOTTY);
                let has_other_way = match self.work {
                    // Linux before 4.7, or a file system without forced writes.
                    Work::Write { fua, .. } => error == Os::AGAIN || (fua && is_unknown),
                    Work::Read { .. } => error == Os::AGAIN,
                    Work::Zero { .. } => is_unknown,
                    Work::Flush | Work::Status { .. } => false,
                };
                if has_other_way {
                    return Next::Returned(Returned::Help(self));
                }
                errno_of(error)
            }
        };
        self.end(Err(errno))
    }

    fn advanced(mut self, count: usize) -> Next {
        match &mut self.work {
            Work::Read { data, done, .. } | Work::Write { data, done, .. } => {
                *done += count;
                match data.length as usize {
                    // The file was made shorter by someone else.
                    _ if count == 0 => self.end(Err(Errno::Io)),
                    length if *done < length => Next::Again(self),
                    _ => self.end(Ok(Outcome::Done)),
                }
            }
            Work::Zero { .. } | Work::Flush | Work::Status { .. } => self.end(Ok(Outcome::Done)),
        }
    }

    fn end(self, result: Result<Outcome, Errno>) -> Next {
        let Self { tag, work, lease, .. } = self;
        Next::Returned(Returned::Ended(Done { completion: Completion { tag, result }, lease, work }))
    }
}
