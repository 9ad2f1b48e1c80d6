//! The crate's only `unsafe`: memory mappings, the arena that lends parts of one to other threads, and the system
//! calls that have no safe wrapper.
//!
//! Why lending is sound: an [`Arena`] knows every part of its mapping that is lent, and in which direction. It gives
//! out no reference to a part whose bytes another thread may be changing, no `&mut` to a part that another thread may
//! be reading, and makes no lease that conflicts with one. References borrow the arena, and leases are made through
//! `&mut`, so no reference is alive when a lease begins. A lease keeps the mapping alive by itself.
//!
//! # Invariants
//! * R1: leases in both directions never overlap, nor do two whose bytes are being changed.
//! * R2: a mapping is unmapped only after the last lease of it is gone.

use std::alloc::{Layout, alloc_zeroed};
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use rustix::io::{Errno, IoSlice, IoSliceMut, ReadWriteFlags, preadv2, pwritev2};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use twinblock_core::Data;
use twinblock_core::buffer::index::Node;

/// Anonymous memory, page-aligned and zeroed; pages that were never touched take no space.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and `Mapping` has no interior access of its own: whoever
// makes references to its bytes answers for them (`Growing` by `&mut self`, `Arena` by its leases).
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` alone gives access to no byte.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes, at least one.
    pub(crate) fn new(length: usize) -> Result<Self, Errno> {
        // Without MAP_NORESERVE a pool larger than what is free now would be refused though most of it stays unused.
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let length = length.max(1);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags)?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, length })
    }

    /// Asks the system for large pages. It may know none, and then all is as before.
    pub(crate) fn prefer_large_pages(&mut self) {
        // SAFETY: the range is the mapping, and the advice changes neither what its bytes are nor who may use them.
        let _ = unsafe { madvise(self.base.as_ptr().cast::<c_void>(), self.length, Advice::LinuxHugepage) };
    }
}

/// A mapping of one owner, parts of which other threads may take the memory for.
#[derive(Debug)]
pub(crate) struct Growing(Arc<Mapping>);

impl Growing {
    pub(crate) fn new(mapping: Mapping) -> Self {
        Self(Arc::new(mapping))
    }

    /// All bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `length` bytes long, readable and writable, initialised by the kernel, and `&mut self` is
        // the only way to its bytes: it was handed in whole, and parts of it give access to none.
        unsafe { slice::from_raw_parts_mut(self.0.base.as_ptr(), self.0.length) }
    }

    /// Gives whole pages back: they read as zeroes afterwards and take no space.
    pub(crate) fn discard(&mut self, start: usize, length: usize) -> Result<(), Errno> {
        if start.checked_add(length).is_none_or(|end| end > self.0.length) {
            return Err(Errno::INVAL);
        }
        // SAFETY: the range lies within the mapping, `&mut self` excludes references to it, and a private anonymous
        // mapping reads as zeroes after MADV_DONTNEED.
        unsafe { madvise(self.0.base.as_ptr().add(start).cast::<c_void>(), length, Advice::LinuxDontNeed) }
    }

    /// Whole pages of it, to take the memory for.
    pub(crate) fn part(&self, start: usize, length: usize) -> Part {
        let start = start.min(self.0.length);
        Part { mapping: Arc::clone(&self.0), start, length: length.min(self.0.length - start) }
    }

    /// How far it is from `start` to the next address that is a multiple of `unit`, a power of two; 0 if that is one.
    pub(crate) fn to_multiple_of(&self, unit: usize, start: usize) -> usize {
        (self.0.base.as_ptr() as usize).wrapping_add(start).wrapping_neg() & (unit - 1)
    }
}

/// Pages that the owner of their mapping will use soon.
#[derive(Debug)]
pub(crate) struct Part {
    mapping: Arc<Mapping>,
    start: usize,
    length: usize,
}

impl Part {
    /// Has the system take the memory now, which changes no byte, so that the owner need not wait for it later.
    pub(crate) fn occupy(&self) -> Result<(), Errno> {
        // SAFETY: the part lies within the mapping, which lives; no byte is read or changed.
        unsafe {
            let first = self.mapping.base.as_ptr().add(self.start).cast::<c_void>();
            madvise(first, self.length, Advice::LinuxPopulateWrite)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `length` are what mmap gave, and nothing can refer to it any more (R2).
        let unmapped = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// What the borrower does with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lend {
    /// It reads them; several may.
    Reading,
    /// It changes them.
    Writing,
}

/// Where a buffer lies in the mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) start: usize,
    pub(crate) length: u32,
}

#[derive(Debug)]
struct Slot {
    place: Place,
    /// First of its leases in the table.
    leases: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
struct LeaseEntry {
    data: Data,
    kind: Lend,
    next: Option<u16>,
}

/// Buffers in one mapping, parts of which can be lent to other threads.
#[derive(Debug)]
pub(crate) struct Arena {
    mapping: Arc<Mapping>,
    slots: Box<[Slot]>,
    leases: Box<[LeaseEntry]>,
    free_lease: Option<u16>,
}

impl Arena {
    /// Maps room for all buffers, placed one after the other; lends at most `leases` parts at a time.
    pub(crate) fn new(lengths: impl Iterator<Item = u32>, leases: u16) -> Result<Self, Errno> {
        let mut start = 0usize;
        let slots: Box<[Slot]> = lengths
            .map(|length| {
                let place = Place { start, length };
                start += length as usize;
                Slot { place, leases: None }
            })
            .collect();
        let mapping = Arc::new(Mapping::new(start)?);
        let none = Data::default();
        let entries: Box<[LeaseEntry]> = (0..leases)
            .map(|index| {
                let next = if index + 1 < leases { Some(index + 1) } else { None };
                LeaseEntry { data: none, kind: Lend::Reading, next }
            })
            .collect();
        let free_lease = if leases == 0 { None } else { Some(0) };
        Ok(Self { mapping, slots, leases: entries, free_lease })
    }

    /// Gives the whole pages of a buffer back to the system, unless a part of it is lent; its content is lost.
    pub(crate) fn discard(&mut self, buffer: u16) {
        if self.is_lent(buffer) {
            return;
        }
        let Some(Place { start, length }) = self.slots.get(usize::from(buffer)).map(|slot| slot.place) else {
            return;
        };
        // SAFETY: the buffer lies within the mapping; no other thread has a lease of it (R1), `&mut self` excludes
        // references made by this arena, and a private anonymous mapping reads as zeroes after MADV_DONTNEED.
        let given = unsafe {
            let base = self.mapping.base.as_ptr().add(start).cast::<c_void>();
            madvise(base, length as usize, Advice::LinuxDontNeed)
        };
        debug_assert!(given.is_ok(), "buffers are whole pages");
    }

    /// Whether any part of the buffer is lent.
    pub(crate) fn is_lent(&self, buffer: u16) -> bool {
        self.slots.get(usize::from(buffer)).is_some_and(|slot| slot.leases.is_some())
    }

    /// The bytes, unless they are lent or there are none such.
    pub(crate) fn bytes_mut(&mut self, data: Data) -> Option<&mut [u8]> {
        let start = self.locate(data)?;
        if self.conflicts(data, Lend::Writing) {
            return None;
        }
        // SAFETY: `locate` checked the range; no other thread has a conflicting lease of it (R1); `&mut self` excludes
        // other references made by this arena and the beginning of a lease while this one lives.
        Some(unsafe {
            slice::from_raw_parts_mut(self.mapping.base.as_ptr().add(start), data.length as usize)
        })
    }

    /// The bytes to read, unless another thread may be changing them.
    pub(crate) fn bytes(&self, data: Data) -> Option<&[u8]> {
        let start = self.locate(data)?;
        if self.conflicts(data, Lend::Reading) {
            return None;
        }
        // SAFETY: as in `bytes_mut`; whoever has a lease of these bytes only reads them.
        Some(unsafe { slice::from_raw_parts(self.mapping.base.as_ptr().add(start), data.length as usize) })
    }

    /// Lends some bytes to another thread, until the lease is given back with [`Self::take_back`]. `None` if the table
    /// of leases is full, the bytes do not exist, or it conflicts with another lease.
    pub(crate) fn lend(&mut self, data: Data, kind: Lend) -> Option<Lease> {
        let start = self.locate(data)?;
        if self.conflicts(data, kind) {
            return None;
        }
        let index = self.free_lease?;
        let slot = self.slots.get_mut(usize::from(data.buffer.0))?;
        let entry = self.leases.get_mut(usize::from(index))?;
        self.free_lease = entry.next;
        *entry = LeaseEntry { data, kind, next: slot.leases };
        slot.leases = Some(index);
        Some(Lease { mapping: Arc::clone(&self.mapping), start, data, kind, index })
    }

    /// Whether another lease can be made.
    pub(crate) const fn can_lend(&self) -> bool {
        self.free_lease.is_some()
    }

    /// Ends a lease; the bytes can be used again.
    pub(crate) fn take_back(&mut self, lease: Lease) {
        let Lease { mapping, data, index, .. } = lease;
        if !Arc::ptr_eq(&mapping, &self.mapping) {
            return;
        }
        let Some(slot) = self.slots.get_mut(usize::from(data.buffer.0)) else { return };
        // The list is as long as the buffer has leases at the moment: one for each device it is going to.
        let mut previous = None;
        let mut current = slot.leases;
        while let Some(entry) = current {
            let next = self.leases[usize::from(entry)].next;
            if entry == index {
                match previous {
                    Some(previous) => self.leases[usize::from(previous)].next = next,
                    None => slot.leases = next,
                }
                self.leases[usize::from(index)].next = self.free_lease;
                self.free_lease = Some(index);
                return;
            }
            previous = Some(entry);
            current = next;
        }
    }

    fn locate(&self, data: Data) -> Option<usize> {
        let place = self.slots.get(usize::from(data.buffer.0))?.place;
        if data.offset.checked_add(data.length)? > place.length {
            return None;
        }
        Some(place.start + data.offset as usize)
    }

    fn conflicts(&self, data: Data, kind: Lend) -> bool {
        let mut next = self.slots.get(usize::from(data.buffer.0)).and_then(|slot| slot.leases);
        while let Some(index) = next {
            let Some(entry) = self.leases.get(usize::from(index)) else { return true };
            let overlaps = data.offset < entry.data.offset + entry.data.length
                && entry.data.offset < data.offset + data.length;
            if overlaps && (kind == Lend::Writing || entry.kind == Lend::Writing) {
                return true;
            }
            next = entry.next;
        }
        false
    }
}

/// Some bytes of a pool, in the hands of another thread or of the system. Not given back, they stay lent for ever; their
/// memory stays mapped as long as the lease exists.
#[derive(Debug)]
#[must_use = "bytes that are not given back stay lent for ever"]
pub struct Lease {
    mapping: Arc<Mapping>,
    start: usize,
    data: Data,
    kind: Lend,
    index: u16,
}

impl Lease {
    pub(crate) const fn len(&self) -> usize {
        self.data.length as usize
    }

    pub(crate) const fn buffer(&self) -> u16 {
        self.data.buffer.0
    }

    /// Where the bytes from `from` on lie, and how many there are, for a call that the system carries out later. They may
    /// be read, and changed if they were lent for [`Lend::Writing`], until this lease is given back or dropped.
    #[must_use]
    pub fn place(&self, from: usize) -> (NonNull<u8>, usize) {
        let from = from.min(self.len());
        // SAFETY: the arena checked the range, which lies within the mapping, and the mapping lives (R2).
        let first = unsafe { self.mapping.base.add(self.start + from) };
        (first, self.len() - from)
    }

    /// What they were lent for.
    #[must_use]
    pub const fn kind(&self) -> Lend {
        self.kind
    }

    /// Reads from `offset` of a file into the bytes from `from` on; how many came.
    pub(crate) fn fill(&mut self, from: usize, file: BorrowedFd<'_>, offset: u64) -> Result<usize, Errno> {
        if self.kind != Lend::Writing || from > self.len() {
            return Err(Errno::INVAL);
        }
        // SAFETY: the arena checked the range and gives these bytes to nobody else (R1); the mapping lives (R2).
        let bytes = unsafe {
            let base = self.mapping.base.as_ptr().add(self.start + from);
            slice::from_raw_parts_mut(base, self.len() - from)
        };
        preadv2(file, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::empty())
    }

    /// Writes the bytes from `from` on to `offset` of a file; how many went.
    pub(crate) fn store(
        &self,
        from: usize,
        file: BorrowedFd<'_>,
        offset: u64,
        flags: ReadWriteFlags,
    ) -> Result<usize, Errno> {
        if from > self.len() {
            return Err(Errno::INVAL);
        }
        // SAFETY: the arena checked the range and gives nobody a way to change these bytes (R1); the mapping lives (R2).
        let bytes = unsafe {
            let base = self.mapping.base.as_ptr().add(self.start + from);
            slice::from_raw_parts(base, self.len() - from)
        };
        pwritev2(file, &[IoSlice::new(bytes)], offset, flags)
    }
}

/// Nodes of an index, in memory that is taken page by page as they are used; `None` if there is none.
pub(crate) fn unused_nodes(count: usize) -> Option<Box<[Node]>> {
    let layout = Layout::array::<Node>(count).ok()?;
    if layout.size() == 0 {
        return Some(Box::default());
    }
    // SAFETY: the layout is not empty.
    let base = NonNull::new(unsafe { alloc_zeroed(layout) }.cast::<Node>())?;
    // SAFETY: the memory is fresh, aligned and long enough for `count` nodes; zeroes are a value of a node, which is
    // numbers only; it came from the allocator that a box gives it back to, with the layout that a box computes.
    Some(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(base.as_ptr(), count)) })
}

/// A shared open file description lock on one byte; fails with `EAGAIN` if somebody has an exclusive one.
pub(crate) fn ofd_lock_shared(file: BorrowedFd<'_>, byte: u64) -> Result<(), Errno> {
    ofd(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(drop)
}

/// Takes this description's lock off one byte.
pub(crate) fn ofd_unlock(file: BorrowedFd<'_>, byte: u64) -> Result<(), Errno> {
    ofd(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
}

/// Whether another description has any lock on one byte.
pub(crate) fn ofd_is_locked(file: BorrowedFd<'_>, byte: u64) -> Result<bool, Errno> {
    Ok(i32::from(ofd(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?.l_type) != libc::F_UNLCK)
}

fn ofd(file: BorrowedFd<'_>, command: i32, kind: i32, byte: u64) -> Result<libc::flock, Errno> {
    // SAFETY: `flock` is plain numbers, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).map_err(|_| Errno::INVAL)?;
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::INVAL)?;
    lock.l_start = libc::off_t::try_from(byte).map_err(|_| Errno::INVAL)?;
    lock.l_len = 1;
    // l_pid stays 0, as these commands demand.
    loop {
        // SAFETY: the descriptor is open for the length of the borrow, and `lock` is a valid `flock` that the kernel
        // may change.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
            return Ok(lock);
        }
        match last_error() {
            Errno::INTR => {}
            error => return Err(error),
        }
    }
}

/// What is to be changed about a descriptor that the system watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watching {
    Begin,
    Change,
    End,
}

/// Has the system watch a descriptor for these events of epoll(7), or for none any more, and report it as this number. One
/// that was closed meanwhile, or whose number now stands for another file, is only looked at: the worst that comes of it is
/// a false report.
pub(crate) fn watch(
    epoll: &OwnedFd,
    change: Watching,
    fd: RawFd,
    events: u32,
    number: u64,
) -> Result<(), Errno> {
    let change = match change {
        Watching::Begin => libc::EPOLL_CTL_ADD,
        Watching::Change => libc::EPOLL_CTL_MOD,
        Watching::End => libc::EPOLL_CTL_DEL,
    };
    let mut event = libc::epoll_event { events, u64: number };
    // SAFETY: the event outlives the call, which is all that the system wants with it.
    let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), change, fd, &raw mut event) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests;
