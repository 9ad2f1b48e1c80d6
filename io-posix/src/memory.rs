//! The pool of buffers that requests travel in.
//!
//! Two sizes: small ones for the many small requests, large ones of one window for pieces of long requests and for
//! the machines' own use. All lie in one mapping, page-aligned so that `O_DIRECT` works, at addresses that stay put;
//! pages that were never used cost nothing. Helper threads get leases of parts of it (see the private module `raw`);
//! what is lent cannot be reached through the pool until it has come back.
//!
//! Connections share the pool by holding it to account ([`HostPool::act_for`]). Each has one buffer of either size for
//! itself; beyond that nobody takes another one unless more are free than it holds already. One alone gets half of them,
//! two get a third each, and however long they keep theirs, everybody else goes on: a client that reads no replies stops
//! itself. Besides, some are kept for holders that must not wait for others ([`HostPool::keep`]).

mod idle;

use std::io;
use std::ops::Range;

use twinblock_core::buffer::index::Node;
use twinblock_core::{BufferIndex, Data, Memory, Pool};

use crate::errno::io_error;
use crate::raw::{self, Arena};
pub use crate::raw::{Lease, Lend};
use idle::Use;

/// Length of a small buffer in bytes.
pub const SMALL_BYTES: u32 = 16 << 10;
/// Length of a large buffer in bytes unless another window is configured.
pub const WINDOW_BYTES: u32 = 256 << 10;
/// How many parts of buffers can be with helper threads at a time. When that many are, a disk says that its queue is
/// full and the transfer waits.
const LEASES_MAX: u16 = 4096;
/// Buffers begin at multiples of this.
const PAGE_BYTES: u32 = 4096;

/// How many buffers of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// How many small buffers: one serves one read or write of up to 16 KiB. None is free: the connection that asked
    /// is not read for a while.
    pub small_count: u16,
    /// How many large buffers, those reserved for machines included.
    pub large_count: u16,
    /// Length of a large buffer in bytes: the window. Rounded up to whole pages.
    pub large_bytes: u32,
}

impl Default for PoolSizes {
    /// 1,024 small and 256 large ones of 256 KiB: at most 80 MiB.
    fn default() -> Self {
        Self { small_count: 1024, large_count: 256, large_bytes: WINDOW_BYTES }
    }
}

/// Nodes for the index of a disk buffer. They take memory as they are used: a buffer that stays empty costs none for
/// its index.
///
/// # Errors
/// The system refuses that much address space.
pub fn index_nodes(count: usize) -> io::Result<Box<[Node]>> {
    raw::unused_nodes(count).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// The pool of the host.
///
/// ```
/// use twinblock_core::{Data, Memory, Pool};
/// use twinblock_io_posix::memory::{HostPool, PoolSizes};
///
/// let mut pool = HostPool::new(PoolSizes::default())?;
/// let buffer = pool.acquire(4096).unwrap();
/// let data = Data { buffer, offset: 0, length: 4096 };
/// pool.bytes(data).unwrap().fill(7);
/// assert_eq!(pool.shared(data).unwrap()[4095], 7);
/// pool.release(buffer);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct HostPool {
    arena: Arena,
    small: Class,
    large: Class,
    states: Box<[State]>,
    /// Large buffers below this index are reserved.
    reserved_end: u16,
    /// Who has each buffer that is taken on account.
    owners: Box<[Option<Owner>]>,
    accounts: Vec<Account>,
    acting: Option<Holder>,
    /// What one holder with a guarantee may take of the buffers that are kept.
    guarantee: Counts,
    /// Of what is not for everybody, the buffers that are free: those of single accounts, those with a guarantee.
    own: Counts,
    kept: Counts,
}

/// A number of small and one of large buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Small ones.
    pub small: usize,
    /// Large ones.
    pub large: usize,
}

impl Counts {
    const fn of(&mut self, large: bool) -> &mut usize {
        if large { &mut self.large } else { &mut self.small }
    }
}

/// On whose account buffers are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Number of the account, from 0 on.
    pub account: u16,
    /// It may take of the buffers that are kept.
    pub is_guaranteed: bool,
}

/// By which right a buffer is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// The one that each account has for itself.
    Own,
    /// One of those that are kept.
    Kept,
    /// One of those that all share.
    Shared,
}

/// What one holder has, by right.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    own: Counts,
    kept: Counts,
    shared: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    account: u16,
    right: Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Taken,
    /// Given back while a part of it was still lent; free when that part comes back.
    Leaving,
    Reserved,
}

/// The free buffers of one size, as a stack.
#[derive(Debug)]
struct Class {
    length: u32,
    count: u16,
    free: Vec<u16>,
    used: Use,
}

impl Class {
    fn new(indexes: Range<u16>, length: u32) -> Self {
        let count = indexes.end - indexes.start;
        // The lowest index on top, so that a lightly used pool keeps touching the same pages.
        Self { length, count, used: Use::new(&indexes), free: indexes.rev().collect() }
    }

    fn pop(&mut self) -> Option<u16> {
        let index = self.free.pop()?;
        self.used.note(index, self.free.len());
        Some(index)
    }
}

impl HostPool {
    /// Maps the memory.
    ///
    /// # Errors
    /// There are more buffers than indexes (65,536), or the system refuses that much address space.
    pub fn new(sizes: PoolSizes) -> io::Result<Self> {
        let PoolSizes { small_count, large_count, large_bytes } = sizes;
        let too_many = || io::Error::new(io::ErrorKind::InvalidInput, "more than 65535 buffers");
        let end = small_count.checked_add(large_count).ok_or_else(too_many)?;
        let large_bytes = large_bytes.max(SMALL_BYTES).checked_next_multiple_of(PAGE_BYTES);
        let large_bytes =
            large_bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "buffers of 4 GiB"))?;
        let lengths = (0..end).map(|index| if index < small_count { SMALL_BYTES } else { large_bytes });
        Ok(Self {
            arena: Arena::new(lengths, LEASES_MAX).map_err(io_error)?,
            small: Class::new(0..small_count, SMALL_BYTES),
            large: Class::new(small_count..end, large_bytes),
            states: vec![State::Free; usize::from(end)].into_boxed_slice(),
            reserved_end: small_count,
            owners: vec![None; usize::from(end)].into_boxed_slice(),
            accounts: Vec::new(),
            acting: None,
            guarantee: Counts::default(),
            own: Counts::default(),
            kept: Counts::default(),
        })
    }

    /// Takes `count` large buffers out of what can be acquired, for a machine's own use; their indexes. `None` if that
    /// many neighbours are not free: reserve at start, before anything is acquired.
    pub fn reserve(&mut self, count: u16) -> Option<Range<u16>> {
        let start = self.reserved_end;
        let end = start.checked_add(count)?;
        let states = self.states.get_mut(usize::from(start)..usize::from(end))?;
        if states.iter().any(|state| *state != State::Free) {
            return None;
        }
        states.fill(State::Reserved);
        self.large.free.retain(|index| *index >= end);
        self.reserved_end = end;
        Some(start..end)
    }

    /// Keeps one buffer of either size for each account below `accounts`, and `count` times `guarantee` for holders with
    /// a guarantee, each of which may have `guarantee` of them. At start, before anything is acquired.
    pub fn keep(&mut self, accounts: u16, count: usize, guarantee: Counts) {
        let each = usize::from(accounts);
        self.accounts = vec![Account::default(); each];
        self.own = Counts { small: each, large: each };
        self.guarantee = guarantee;
        self.kept = Counts { small: count * guarantee.small, large: count * guarantee.large };
    }

    /// From now on [`Pool::acquire`] takes on this holder's account, which must be below what [`Self::keep`] was told; for
    /// `None`, on nobody's and whatever is free.
    pub const fn act_for(&mut self, holder: Option<Holder>) {
        self.acting = holder;
    }

    /// Length of a large buffer in bytes: the longest request that [`Pool::acquire`] can serve.
    #[must_use]
    pub const fn large_bytes(&self) -> u32 {
        self.large.length
    }

    /// How many buffers are free now: small ones, large ones.
    #[must_use]
    pub const fn free_counts(&self) -> (usize, usize) {
        (self.small.free.len(), self.large.free.len())
    }

    /// The bytes to read only; several such references may live at a time. `None` if there is no such buffer, it is
    /// too short, or a helper thread is changing these bytes.
    #[must_use]
    pub fn shared(&self, data: Data) -> Option<&[u8]> {
        self.arena.bytes(data)
    }

    /// Lends some bytes to another thread or to the system. `None` if there are no such bytes, they are lent in a way that
    /// conflicts, or too many parts are lent.
    pub fn lend(&mut self, data: Data, kind: Lend) -> Option<Lease> {
        self.arena.lend(data, kind)
    }

    pub(crate) const fn can_lend(&self) -> bool {
        self.arena.can_lend()
    }

    /// Whether the buffer is a machine's own, which may use it again as soon as a transfer has ended.
    pub(crate) fn is_reserved(&self, buffer: BufferIndex) -> bool {
        self.states.get(usize::from(buffer.0)) == Some(&State::Reserved)
    }

    /// Ends a lease; a buffer that was released meanwhile becomes free with its last one.
    pub fn take_back(&mut self, lease: Lease) {
        let buffer = lease.buffer();
        self.arena.take_back(lease);
        if self.states.get(usize::from(buffer)) == Some(&State::Leaving) && !self.arena.is_lent(buffer) {
            self.put(buffer);
        }
    }

    fn take(&mut self, large: bool) -> Option<BufferIndex> {
        let free = if large { self.large.free.len() } else { self.small.free.len() };
        let owner = match self.acting {
            None => None,
            Some(holder) => Some(self.charge(holder, large, free)?),
        };
        let class = if large { &mut self.large } else { &mut self.small };
        let index = class.pop()?;
        if let (Some(state), Some(place)) =
            (self.states.get_mut(usize::from(index)), self.owners.get_mut(usize::from(index)))
        {
            *state = State::Taken;
            *place = owner;
        }
        Some(BufferIndex(index))
    }

    /// Puts one buffer on a holder's account, if it may have one more.
    fn charge(&mut self, holder: Holder, large: bool, free: usize) -> Option<Owner> {
        let Holder { account, is_guaranteed } = holder;
        let held = self.accounts.get_mut(usize::from(account))?;
        let (own, kept) = (self.own.of(large), self.kept.of(large));
        let open = free.saturating_sub(*own + *kept);
        let right = if *held.own.of(large) == 0 && *own != 0 {
            *own -= 1;
            Right::Own
        } else if is_guaranteed && *held.kept.of(large) < *self.guarantee.of(large) && *kept != 0 {
            *kept -= 1;
            Right::Kept
        } else if *held.shared.of(large) < open {
            Right::Shared
        } else {
            return None;
        };
        *held.by(right).of(large) += 1;
        Some(Owner { account, right })
    }

    /// Takes a buffer that has come back off its holder's account.
    fn settle(&mut self, Owner { account, right }: Owner, large: bool) {
        let Some(held) = self.accounts.get_mut(usize::from(account)) else { return };
        let count = held.by(right).of(large);
        *count = count.saturating_sub(1);
        match right {
            Right::Own => *self.own.of(large) += 1,
            Right::Kept => *self.kept.of(large) += 1,
            Right::Shared => {}
        }
    }

    fn put(&mut self, index: u16) {
        let large = index >= self.small.count;
        let place = usize::from(index);
        if let Some(owner) = self.owners.get_mut(place).and_then(Option::take) {
            self.settle(owner, large);
        }
        if let Some(state) = self.states.get_mut(place) {
            *state = State::Free;
            let class = if large { &mut self.large } else { &mut self.small };
            class.free.push(index);
        }
    }
}

impl Account {
    const fn by(&mut self, right: Right) -> &mut Counts {
        match right {
            Right::Own => &mut self.own,
            Right::Kept => &mut self.kept,
            Right::Shared => &mut self.shared,
        }
    }
}

impl Memory for HostPool {
    /// Also `None` while a helper thread uses these bytes.
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        self.arena.bytes_mut(data)
    }
}

impl Pool for HostPool {
    /// The smallest that fits. A small request gets a large buffer only if no small one and more than half of the
    /// large ones are free, so that small requests cannot starve large ones.
    fn acquire(&mut self, length: u32) -> Option<BufferIndex> {
        if length > self.large.length {
            return None;
        }
        if length > self.small.length {
            return self.take(true);
        }
        let large_are_plenty = self.large.free.len() > usize::from(self.large.count / 2);
        self.take(false).or_else(|| if large_are_plenty { self.take(true) } else { None })
    }

    fn release(&mut self, buffer: BufferIndex) {
        let Some(state) = self.states.get_mut(usize::from(buffer.0)) else { return };
        if *state != State::Taken {
            return;
        }
        if self.arena.is_lent(buffer.0) {
            *state = State::Leaving;
        } else {
            self.put(buffer.0);
        }
    }
}

#[cfg(test)]
mod tests;
