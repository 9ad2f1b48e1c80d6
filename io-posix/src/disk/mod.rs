//! Files and block devices as disks.
//!
//! What the page cache can answer at once is done in the loop (`RWF_NOWAIT`); everything that may wait for a disk goes
//! to the helper threads, so that one slow flush freezes nobody. On file systems that are memory everything short is
//! done in the loop. Where there is a [`Queue`], what it can do goes there instead of either.
//!
//! Nothing is begun before the disk is polled: what a machine asks of other devices in the same turn, the legs to its
//! replicas above all, is then on its way while this disk works.
//!
//! # Invariants
//! * D1: transfers not yet begun, those at the helpers and completions not yet polled together are at most the queue's
//!   capacity.
//! * D3: transfers begin in the order in which they were submitted.
//! * D2: after a flush has failed, none succeeds: the system forgets which data it could not write.

mod file;
mod open;
mod queue;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::{Errno as Os, IoSlice, IoSliceMut, ReadWriteFlags, preadv2, pwritev2};
use twinblock_core::block::{
    Action, BlockDevice, Capabilities, Completion, Geometry, QueueFull, Tag, Transfer,
};
use twinblock_core::{Data, Errno, Extent, Memory, Outcome};

use crate::errno::errno_of;
use crate::memory::HostPool;
use crate::raw::{Lease, Lend};
use crate::workers::{Class, Handle, NotTaken, Workers};
use file::{File, ZeroWays};
pub use open::{OpenError, OpenReason};
pub use queue::{Call, Next, Queue, Queues, Returned};

/// The longest change that is made in the loop on a file system that is memory.
const INLINE_BYTES: u64 = 256 << 10;

/// How to open a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Take no modifications.
    pub read_only: bool,
    /// Past the page cache (`O_DIRECT`): transfers are then multiples of the disk's block size.
    pub direct: bool,
    /// Refuse a disk that somebody else writes, and be refused by others (see [`crate::lock`]).
    pub lock: bool,
    /// How many transfers may be in flight. More: the queue is full and the machine offers it again. 128 keep the
    /// helpers busy; each takes 200 bytes.
    pub queue_capacity: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { read_only: false, direct: false, lock: true, queue_capacity: 128 }
    }
}

/// A file or a block device as a disk.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    shared: Arc<Shared>,
    helpers: Handle,
    queue: Option<Box<dyn Queue>>,
    geometry: Geometry,
    capacity: usize,
    is_memory: bool,
    is_dense: bool,
    reads_now: bool,
    writes_now: bool,
    /// Transfers that were not begun, in order.
    waiting: VecDeque<Transfer>,
    /// What helpers have finished, taken over in one go.
    returned: VecDeque<Done>,
    /// Transfers at the helpers, in the queue or in `returned`.
    helped_count: usize,
    /// Something may be in the system's cache only.
    is_dirty: bool,
    flushing_count: usize,
    /// What the first failed flush said.
    flush_failed: Option<Errno>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    /// Never longer than the queue's capacity, which it was made for.
    finished: Mutex<VecDeque<Done>>,
    finished_count: AtomicUsize,
}

/// A transfer that is not done in the loop.
#[derive(Debug)]
pub struct Job {
    shared: Arc<Shared>,
    tag: Tag,
    work: Work,
    /// The bytes to read or write.
    lease: Option<Lease>,
}

/// What is to be done; the first `done` bytes of a read or write were done in the loop.
#[derive(Clone, Copy, Debug)]
enum Work {
    Read { data: Data, offset: u64, done: usize },
    Write { data: Data, offset: u64, done: usize, fua: bool },
    Zero { extent: Extent, ways: ZeroWays, fua: bool },
    Flush,
    Status { extent: Extent },
}

impl Work {
    const fn class(&self) -> Class {
        match self {
            Self::Read { .. } | Self::Status { .. } => Class::Read,
            Self::Write { fua: false, .. } => Class::Write,
            Self::Write { .. } | Self::Zero { .. } | Self::Flush => Class::Slow,
        }
    }

    /// The bytes it needs, and for what.
    const fn needs(&self) -> Option<(Data, Lend)> {
        match self {
            Self::Read { data, .. } => Some((*data, Lend::Writing)),
            Self::Write { data, .. } => Some((*data, Lend::Reading)),
            _ => None,
        }
    }
}

/// A transfer that has ended.
#[derive(Debug)]
pub struct Done {
    completion: Completion,
    lease: Option<Lease>,
    work: Work,
}

impl Job {
    /// Does it for the disk, waiting as long as that takes.
    pub(crate) fn run(self) {
        let (shared, done) = self.done();
        let mut finished = shared.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.push_back(done);
        shared.finished_count.store(finished.len(), Ordering::Release);
    }

    fn done(self) -> (Arc<Shared>, Done) {
        let Self { shared, tag, work, mut lease } = self;
        let file = &shared.file;
        let result = match (work, &mut lease) {
            (Work::Read { offset, done, .. }, Some(lease)) => file.read(lease, offset, done),
            (Work::Write { offset, done, fua, .. }, Some(lease)) => file.write(lease, offset, done, fua),
            (Work::Read { .. } | Work::Write { .. }, None) => Err(Errno::Invalid),
            (Work::Zero { extent, ways, fua }, _) => {
                file.write_zeroes(extent, ways).and_then(|()| if fua { file.flush() } else { Ok(()) })
            }
            (Work::Flush, _) => file.flush(),
            (Work::Status { .. }, _) => Ok(()),
        };
        let result = match work {
            Work::Status { extent } => file.status(extent, false),
            _ => result.map(|()| Outcome::Done),
        };
        (shared, Done { completion: Completion { tag, result }, lease, work })
    }

    fn failed(self, errno: Errno) -> Done {
        let Self { tag, work, lease, .. } = self;
        Done { completion: Completion { tag, result: Err(errno) }, lease, work }
    }
}

/// What came of trying at once.
#[derive(Clone, Copy, Debug)]
enum Tried {
    Ended(Result<Outcome, Errno>),
    /// A helper must do it, or the rest of it.
    Waits(Work),
}

impl Disk {
    /// Opens a disk that exists. Its size is taken now and must not change while it is in use.
    ///
    /// # Errors
    /// It cannot be opened, is no disk, or is in use; the error's text says what to do.
    pub fn open(path: impl AsRef<Path>, options: Options, workers: &Workers) -> Result<Self, OpenError> {
        Self::start(path.as_ref(), options, None, workers)
    }

    /// Makes a file of `size_bytes` that is all hole, or empties the one that is there; of a block device the first
    /// `size_bytes` are used as they are. For buffers.
    ///
    /// # Errors
    /// As for [`Self::open`]; nothing was emptied if it is in use.
    pub fn create(
        path: impl AsRef<Path>,
        size_bytes: u64,
        options: Options,
        workers: &Workers,
    ) -> Result<Self, OpenError> {
        Self::start(path.as_ref(), options, Some(size_bytes), workers)
    }

    fn start(path: &Path, options: Options, size: Option<u64>, workers: &Workers) -> Result<Self, OpenError> {
        let opened = open::open_disk(path, options, size)?;
        let mut capabilities = Capabilities::FLUSH | Capabilities::WRITE_ZEROES | Capabilities::FAST_ZERO;
        capabilities.set(Capabilities::STATUS, !opened.file.is_device);
        capabilities.set(Capabilities::READ_ONLY, options.read_only);
        let geometry =
            Geometry { size_bytes: opened.file.size_bytes, block_bytes: opened.block_bytes, capabilities };
        let capacity = usize::from(options.queue_capacity.max(1));
        // What neither can do is done in the loop: it never waits there.
        let queue = workers
            .queue(options.queue_capacity)
            .filter(|_| !opened.is_memory || opened.file.let_queues_work_at_once());
        let shared = Shared {
            file: opened.file,
            finished: Mutex::new(VecDeque::with_capacity(capacity)),
            finished_count: AtomicUsize::new(0),
        };
        Ok(Self {
            path: path.to_owned(),
            shared: Arc::new(shared),
            helpers: workers.handle(),
            reads_now: !options.direct && queue.is_none(),
            writes_now: !options.direct && queue.is_none(),
            queue,
            geometry,
            capacity,
            is_memory: opened.is_memory,
            is_dense: opened.is_dense,
            waiting: VecDeque::with_capacity(capacity),
            returned: VecDeque::with_capacity(capacity),
            helped_count: 0,
            // An earlier user may have left something in the cache.
            is_dirty: true,
            flushing_count: 0,
            flush_failed: None,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many transfers have not been polled yet.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.helped_count + self.waiting.len()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.shared.file.fd()
    }

    fn is_sound(&self, transfer: &Transfer) -> bool {
        let Extent { offset, length } = transfer.extent;
        let unit = u64::from(self.geometry.block_bytes) - 1;
        let data_fits = match transfer.action {
            Action::Read(data) | Action::Write { data, .. } => u64::from(data.length) == length,
            _ => true,
        };
        let in_range = offset.checked_add(length).is_some_and(|end| end <= self.geometry.size_bytes);
        in_range && data_fits && (offset | length) & unit == 0
    }

    fn try_now(&mut self, transfer: &Transfer, memory: &mut HostPool) -> Tried {
        if !self.is_sound(transfer) {
            return Tried::Ended(Err(Errno::Invalid));
        }
        let extent = transfer.extent;
        let is_modification = matches!(transfer.action, Action::Write { .. } | Action::WriteZeroes { .. });
        if is_modification && self.geometry.capabilities.contains(Capabilities::READ_ONLY) {
            return Tried::Ended(Err(Errno::NotPermitted));
        }
        if extent.is_empty() && transfer.action != Action::Flush {
            return Tried::Ended(Ok(Outcome::Done));
        }
        self.is_dirty |= is_modification;
        match transfer.action {
            Action::Read(data) => self.read_now(data, extent.offset, memory),
            Action::Write { data, fua } => self.write_now(data, fua, extent.offset, memory),
            Action::WriteZeroes { may_unmap, fast, fua } => {
                self.is_dense &= !may_unmap;
                let ways = ZeroWays { may_unmap, fast };
                if self.is_memory && extent.length <= INLINE_BYTES {
                    return Tried::Ended(self.shared.file.write_zeroes(extent, ways).map(|()| Outcome::Done));
                }
                Tried::Waits(Work::Zero { extent, ways, fua })
            }
            Action::Flush => self.flush_now(),
            Action::Status if self.is_dense => {
                Tried::Ended(Ok(Outcome::Status { is_hole: false, length: extent.length }))
            }
            Action::Status if self.is_memory => Tried::Ended(self.shared.file.status(extent, true)),
            Action::Status => Tried::Waits(Work::Status { extent }),
        }
    }

    /// Whether a queue would only be a detour: of a file in memory, one transfer alone is done sooner in the loop, in the
    /// same turn; several are handed over together by one call.
    fn is_alone(&self) -> bool {
        self.is_memory && self.queue.is_some() && self.waiting.len() == 1 && self.helped_count == 0
    }

    fn read_now(&mut self, data: Data, offset: u64, memory: &mut HostPool) -> Tried {
        let Some(bytes) = memory.bytes(data) else { return Tried::Ended(Err(Errno::Invalid)) };
        let (mut done, is_alone) = (0, self.is_alone());
        while (self.reads_now || is_alone) && done < bytes.len() {
            let rest = bytes.get_mut(done..).unwrap_or_default();
            let flags = if self.is_memory { ReadWriteFlags::empty() } else { ReadWriteFlags::NOWAIT };
            match preadv2(self.fd(), &mut [IoSliceMut::new(rest)], offset + done as u64, flags) {
                // The file was made shorter by someone else.
                Ok(0) => return Tried::Ended(Err(Errno::Io)),
                Ok(count) => done += count,
                Err(Os::INTR) => {}
                Err(Os::AGAIN) => break,
                Err(Os::OPNOTSUPP | Os::NOSYS) if !self.is_memory => self.reads_now = false,
                Err(error) => return Tried::Ended(Err(errno_of(error))),
            }
        }
        if done == bytes.len() {
            return Tried::Ended(Ok(Outcome::Done));
        }
        Tried::Waits(Work::Read { data, offset, done })
    }

    fn write_now(&mut self, data: Data, fua: bool, offset: u64, memory: &HostPool) -> Tried {
        let Some(bytes) = memory.shared(data) else { return Tried::Ended(Err(Errno::Invalid)) };
        let (mut done, is_alone) = (0, self.is_alone());
        while (self.writes_now || is_alone) && (self.is_memory || !fua) && done < bytes.len() {
            let rest = bytes.get(done..).unwrap_or_default();
            let flags = if self.is_memory { ReadWriteFlags::empty() } else { ReadWriteFlags::NOWAIT };
            match pwritev2(self.fd(), &[IoSlice::new(rest)], offset + done as u64, flags) {
                Ok(0) | Err(Os::AGAIN) => break,
                Ok(count) => done += count,
                Err(Os::INTR) => {}
                Err(Os::OPNOTSUPP | Os::NOSYS) if !self.is_memory => self.writes_now = false,
                Err(error) => return Tried::Ended(Err(errno_of(error))),
            }
        }
        if done == bytes.len() {
            return Tried::Ended(Ok(Outcome::Done));
        }
        Tried::Waits(Work::Write { data, offset, done, fua })
    }

    fn flush_now(&mut self) -> Tried {
        if let Some(errno) = self.flush_failed {
            return Tried::Ended(Err(errno));
        }
        // A flush under way may not be done with what this one covers.
        if self.is_memory || (!self.is_dirty && self.flushing_count == 0) {
            return Tried::Ended(Ok(Outcome::Done));
        }
        Tried::Waits(Work::Flush)
    }

    /// Begins what waits, up to the first transfer that ends at once. Stops where the helpers take no more: one of them
    /// tells when it has finished something.
    fn begin_waiting(&mut self, memory: &mut HostPool) -> Option<Completion> {
        while let Some(transfer) = self.waiting.front().copied() {
            let tag = transfer.tag;
            let ended = match self.try_now(&transfer, memory) {
                Tried::Ended(result) => Some(result),
                Tried::Waits(_) if !memory.can_lend() => return None,
                Tried::Waits(work) => match self.hand_over(tag, work, memory) {
                    Ok(handed) => handed.err().map(Err),
                    Err(QueueFull) => return None,
                },
            };
            self.waiting.pop_front();
            if let Some(result) = ended {
                return Some(Completion { tag, result });
            }
        }
        None
    }

    fn hand_over(
        &mut self,
        tag: Tag,
        work: Work,
        memory: &mut HostPool,
    ) -> Result<Result<(), Errno>, QueueFull> {
        let lease = match work.needs().map(|(data, kind)| memory.lend(data, kind)) {
            Some(None) => return Ok(Err(Errno::Invalid)),
            lease => lease.flatten(),
        };
        let job = Job { shared: Arc::clone(&self.shared), tag, work, lease };
        let given = match &mut self.queue {
            Some(queue) if job.call().is_some() => queue.submit(job).map_err(|job| (job, NotTaken::Full)),
            _ => self.helpers.submit(work.class(), job),
        };
        if let Err((job, reason)) = given {
            if let Some(lease) = job.lease {
                memory.take_back(lease);
            }
            return match reason {
                // What was read or written of it so far is done again then.
                NotTaken::Full => Err(QueueFull),
                NotTaken::Ending => Ok(Err(Errno::Shutdown)),
            };
        }
        self.helped_count += 1;
        if let Work::Flush = work {
            self.flushing_count += 1;
            self.is_dirty = false;
        }
        Ok(Ok(()))
    }

    /// What the queue has come to an end with.
    fn poll_queue(&mut self) -> Option<Done> {
        loop {
            let job = match self.queue.as_mut()?.poll()? {
                Returned::Ended(done) => return Some(done),
                Returned::Help(job) => job,
            };
            if let Err((job, reason)) = self.helpers.submit(job.work.class(), job) {
                return Some(match reason {
                    // So many wait that one more may as well keep the loop waiting.
                    NotTaken::Full => job.done().1,
                    NotTaken::Ending => job.failed(Errno::Shutdown),
                });
            }
        }
    }

    /// Takes over what a helper or the queue has done.
    fn settle(&mut self, done: Done, memory: &mut HostPool) -> Completion {
        let Done { mut completion, lease, work } = done;
        if let Some(lease) = lease {
            memory.take_back(lease);
        }
        self.helped_count -= 1;
        match work {
            // A flush that began before this may have missed it.
            Work::Write { .. } | Work::Zero { .. } => self.is_dirty = true,
            Work::Flush => {
                self.flushing_count -= 1;
                self.note_flush(completion.result.err());
                if let Some(errno) = self.flush_failed {
                    completion.result = Err(errno);
                }
            }
            Work::Read { .. } | Work::Status { .. } => {}
        }
        completion
    }

    fn note_flush(&mut self, failed: Option<Errno>) {
        if let (None, Some(errno)) = (self.flush_failed, failed) {
            tracing::error!(
                disk = %self.path.display(),
                error = errno.name(),
                "a flush failed; what was written since the one before may be lost, so every further flush fails too"
            );
            self.flush_failed = Some(errno);
        }
    }
}

impl BlockDevice<HostPool> for Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, transfer: Transfer, _memory: &mut HostPool) -> Result<(), QueueFull> {
        if self.in_flight_count() >= self.capacity {
            return Err(QueueFull);
        }
        self.waiting.push_back(transfer);
        Ok(())
    }

    fn poll(&mut self, memory: &mut HostPool) -> Option<Completion> {
        if let Some(completion) = self.begin_waiting(memory) {
            return Some(completion);
        }
        if let Some(done) = self.poll_queue() {
            return Some(self.settle(done, memory));
        }
        if self.returned.is_empty() && self.shared.finished_count.load(Ordering::Acquire) != 0 {
            let mut finished = self.shared.finished.lock().unwrap_or_else(PoisonError::into_inner);
            // Both were made for the whole queue.
            std::mem::swap(&mut *finished, &mut self.returned);
            self.shared.finished_count.store(0, Ordering::Release);
        }
        let done = self.returned.pop_front()?;
        Some(self.settle(done, memory))
    }
}

#[cfg(test)]
mod inside_tests;
#[cfg(test)]
mod tests;
