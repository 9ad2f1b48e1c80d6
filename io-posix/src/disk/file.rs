//! What a disk does with its file, in the loop or on a helper thread; every call here may block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fcntl_getfl, fcntl_setfl, fdatasync, seek};
use rustix::io::{Errno as Os, IoSlice, ReadWriteFlags, pwritev2};
use twinblock_core::{Errno, Extent, Outcome};

use crate::errno::errno_of;
use crate::raw::Lease;

/// Zeroes to write where nothing better can be had, aligned for `O_DIRECT`.
#[repr(align(4096))]
struct Zeroes([u8; ZEROES_BYTES]);

const ZEROES_BYTES: usize = 64 << 10;
/// How often the zeroes are written by one call at most.
const ZEROES_REPEAT: usize = 16;
static ZEROES: Zeroes = Zeroes([0; ZEROES_BYTES]);

/// Holes in a file system that is memory are whole pages, of this size or a multiple.
const PAGE_BYTES: u64 = 4096;
/// Up to this length pages are looked at one by one: a window.
const STEPS_BYTES_MAX: u64 = 256 << 10;

/// An open disk as its helpers see it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) fd: OwnedFd,
    /// A block device, not a regular file.
    pub(super) is_device: bool,
    /// Unit in which the system can zero parts of a device; 1 for files.
    pub(super) sector_bytes: u64,
    pub(super) size_bytes: u64,
}

/// How zeroes shall be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZeroWays {
    pub(super) may_unmap: bool,
    pub(super) fast: bool,
}

impl File {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Tells a queue, of a file in memory, that nothing done with it ever waits, so that it is done in the call that
    /// submits it and not handed to a thread of the system. There the two flags mean nothing else. Whether the system
    /// takes them (Linux from 6.6 on).
    pub(super) fn let_queues_work_at_once(&self) -> bool {
        let quick = OFlags::DIRECT | OFlags::NONBLOCK;
        fcntl_getfl(&self.fd).and_then(|flags| fcntl_setfl(&self.fd, flags | quick)).is_ok()
    }

    /// Reads what is missing of the lease's bytes, the first `done` of which are there.
    pub(super) fn read(&self, lease: &mut Lease, offset: u64, mut done: usize) -> Result<(), Errno> {
        while done < lease.len() {
            match lease.fill(done, self.fd(), offset + done as u64) {
                // The file was made shorter by someone else.
                Ok(0) => return Err(Errno::Io),
                Ok(count) => done += count,
                Err(Os::INTR) => {}
                Err(error) => return Err(errno_of(error)),
            }
        }
        Ok(())
    }

    /// Writes the lease's bytes but for the first `done`, which are written.
    pub(super) fn write(&self, lease: &Lease, offset: u64, mut done: usize, fua: bool) -> Result<(), Errno> {
        let forced = if fua { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let mut flags = forced;
        while done < lease.len() {
            match lease.store(done, self.fd(), offset + done as u64, flags) {
                Ok(0) => return Err(Errno::Io),
                Ok(count) => done += count,
                Err(Os::INTR) => {}
                // Linux before 4.7, or a file system without it.
                Err(Os::OPNOTSUPP | Os::NOSYS) if !flags.is_empty() => flags = ReadWriteFlags::empty(),
                Err(error) => return Err(errno_of(error)),
            }
        }
        if flags == forced { Ok(()) } else { self.flush() }
    }

    pub(super) fn flush(&self) -> Result<(), Errno> {
        loop {
            match fdatasync(&self.fd) {
                Ok(()) => return Ok(()),
                Err(Os::INTR) => {}
                Err(error) => return Err(errno_of(error)),
            }
        }
    }

    /// Makes the extent read as zeroes. The edges of it that a device cannot zero by itself are written out.
    pub(super) fn write_zeroes(&self, extent: Extent, ways: ZeroWays) -> Result<(), Errno> {
        let start = extent.offset.next_multiple_of(self.sector_bytes);
        let end = extent.end() - extent.end() % self.sector_bytes;
        if start >= end {
            return self.write_out(extent);
        }
        self.write_out(Extent::between(extent.offset, start))?;
        self.zero_sectors(Extent::between(start, end), ways)?;
        self.write_out(Extent::between(end, extent.end()))
    }

    fn zero_sectors(&self, extent: Extent, ways: ZeroWays) -> Result<(), Errno> {
        let keep = FallocateFlags::KEEP_SIZE;
        let punch = FallocateFlags::PUNCH_HOLE | keep;
        let zero = FallocateFlags::ZERO_RANGE | keep;
        if ways.may_unmap && self.allocate(punch, extent)? {
            return Ok(());
        }
        // A device that cannot do it by itself has the kernel write the zeroes here, which is not fast.
        if !(self.is_device && ways.fast) && self.allocate(zero, extent)? {
            return Ok(());
        }
        // On tmpfs, which has no ZERO_RANGE: a hole, and then room for it.
        if !self.is_device
            && self.allocate(punch, extent)?
            && self.allocate(FallocateFlags::empty(), extent)?
        {
            return Ok(());
        }
        if ways.fast { Err(Errno::Unsupported) } else { self.write_out(extent) }
    }

    /// Whether the system knows how to do this here.
    fn allocate(&self, mode: FallocateFlags, extent: Extent) -> Result<bool, Errno> {
        loop {
            match fallocate(&self.fd, mode, extent.offset, extent.length) {
                Ok(()) => return Ok(true),
                Err(Os::INTR) => {}
                Err(Os::OPNOTSUPP | Os::NOSYS | Os::NODEV | Os::NOTTY) => return Ok(false),
                Err(error) => return Err(errno_of(error)),
            }
        }
    }

    fn write_out(&self, extent: Extent) -> Result<(), Errno> {
        let mut offset = extent.offset;
        while offset < extent.end() {
            let mut left = extent.end() - offset;
            let slices: [IoSlice<'_>; ZEROES_REPEAT] = std::array::from_fn(|_| {
                let length = left.min(ZEROES_BYTES as u64);
                left -= length;
                IoSlice::new(ZEROES.0.get(..length as usize).unwrap_or_default())
            });
            match pwritev2(&self.fd, &slices, offset, ReadWriteFlags::empty()) {
                Ok(0) => return Err(Errno::Io),
                Ok(count) => offset += count as u64,
                Err(Os::INTR) => {}
                Err(error) => return Err(errno_of(error)),
            }
        }
        Ok(())
    }

    /// Whether the extent begins with a hole, and how far that goes. `is_memory` says that the file system is memory.
    pub(super) fn status(&self, extent: Extent, is_memory: bool) -> Result<Outcome, Errno> {
        let data = match seek(&self.fd, SeekFrom::Data(extent.offset)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Os::NXIO) => match seek(&self.fd, SeekFrom::End(0)).map_err(errno_of)? {
                // The file was made shorter by someone else: what is missing is no hole.
                end if end <= extent.offset => return Err(Errno::Io),
                end => end.min(self.size_bytes),
            },
            // A file system that cannot tell: all is data.
            Err(_) => return Ok(Outcome::Status { is_hole: false, length: extent.length }),
        };
        if data > extent.offset {
            return Ok(Outcome::Status { is_hole: true, length: data.min(extent.end()) - extent.offset });
        }
        let end = if is_memory && extent.length <= STEPS_BYTES_MAX {
            self.end_of_pages(extent)
        } else {
            let hole = seek(&self.fd, SeekFrom::Hole(extent.offset)).unwrap_or(extent.end());
            hole.clamp(extent.offset + 1, extent.end())
        };
        Ok(Outcome::Status { is_hole: false, length: end - extent.offset })
    }

    /// Where the data that a short extent begins with ends, page by page. Asked for the next hole, tmpfs looks at every page
    /// up to there, however far beyond the extent that is: 1 ms and more for each write that something is kept for.
    fn end_of_pages(&self, extent: Extent) -> u64 {
        let mut end = extent.offset - extent.offset % PAGE_BYTES + PAGE_BYTES;
        while end < extent.end() && seek(&self.fd, SeekFrom::Data(end)) == Ok(end) {
            end += PAGE_BYTES;
        }
        end.min(extent.end())
    }
}
