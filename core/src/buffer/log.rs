//! The log of granule slots.
//!
//! Slots are handed out one after the other and come back all at once, when the buffer is emptied: that takes constant
//! time however much it held. Neighbouring granules that are kept together take neighbouring slots.
//!
//! # Invariants
//! * B1: no two granules share a slot; slots at and after `slot_next` belong to none.
//! * B2: a granule is in the index only if its slot holds what the view shows, or if the view shows zeroes there.

use super::index::{Index, Node, Place};
use crate::Extent;

/// No slot is left, or no room in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Where the bytes of a part of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// In the buffer, at this byte of its device.
    Slot(u64),
    /// Nowhere: they are zeroes.
    Zeroes,
    /// Not in the buffer.
    Absent,
}

/// A part of the disk whose bytes lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where they are.
    pub spot: Spot,
    /// How many.
    pub length: u64,
}

/// The buffer's bookkeeping. It moves no bytes.
#[derive(Debug)]
pub struct Buffer<'m> {
    pub(super) index: Index<'m>,
    pub(super) granule_shift: u32,
    pub(super) disk_bytes: u64,
    pub(super) slot_count: u32,
    pub(super) slot_next: u32,
}

impl<'m> Buffer<'m> {
    /// An empty buffer of `slot_count` slots for a disk of `disk_bytes`; `granule_bytes` must be a power of two.
    #[must_use]
    pub fn new(nodes: &'m mut [Node], granule_bytes: u32, disk_bytes: u64, slot_count: u32) -> Self {
        debug_assert!(granule_bytes.is_power_of_two());
        let granule_shift = granule_bytes.trailing_zeros();
        Self { index: Index::new(nodes), granule_shift, disk_bytes, slot_count, slot_next: 0 }
    }

    /// Bytes of one granule.
    #[must_use]
    pub const fn granule_bytes(&self) -> u64 {
        1 << self.granule_shift
    }

    /// Bytes of all slots.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        (self.slot_count as u64) << self.granule_shift
    }

    /// Bytes of the slots that are taken.
    #[must_use]
    pub const fn used_bytes(&self) -> u64 {
        (self.slot_next as u64) << self.granule_shift
    }

    /// Bytes of the disk that the buffer stands for, zeroes included.
    #[must_use]
    pub const fn present_bytes(&self) -> u64 {
        self.index.granule_count() << self.granule_shift
    }

    /// How many slots are free.
    #[must_use]
    pub const fn free_slots(&self) -> u32 {
        self.slot_count - self.slot_next
    }

    /// Runs that the index holds, of [`Buffer::index_runs_max`]: granules that lie neither in neighbouring places nor in
    /// neighbouring slots take one each.
    #[must_use]
    pub const fn index_runs(&self) -> usize {
        self.index.entry_count()
    }

    /// Runs that always fit into the index.
    #[must_use]
    pub const fn index_runs_max(&self) -> usize {
        self.index.entry_capacity()
    }

    /// Whether three quarters of the slots are taken, or three quarters of the index: whichever is full first makes writes
    /// wait.
    #[must_use]
    pub const fn is_three_quarters_full(&self) -> bool {
        let (runs, runs_max) = (self.index_runs() as u64, self.index_runs_max() as u64);
        self.slot_next as u64 * 4 >= self.slot_count as u64 * 3 || runs * 4 >= runs_max * 3
    }

    /// Forgets everything, in constant time.
    pub const fn clear(&mut self) {
        self.index.clear();
        self.slot_next = 0;
    }

    /// Where the bytes from the start of `extent` are, as far as they lie together within it.
    #[must_use]
    pub fn find(&self, extent: Extent) -> Found {
        let granule = extent.offset >> self.granule_shift;
        let within = extent.offset & (self.granule_bytes() - 1);
        let last = extent.end().saturating_sub(1) >> self.granule_shift;
        let found = self.index.lookup(granule, last.saturating_sub(granule) + 1);
        let length = (found.count << self.granule_shift).saturating_sub(within).min(extent.length);
        let spot = match found.place {
            Place::Slot(slot) => Spot::Slot(self.slot_offset(slot) + within),
            Place::Zeroes => Spot::Zeroes,
            Place::Absent => Spot::Absent,
        };
        Found { spot, length }
    }

    /// The first part at or after `offset` that the buffer holds, cut at the end of the disk.
    #[must_use]
    pub fn next_present(&self, offset: u64) -> Option<Extent> {
        let run = self.index.next_present(offset >> self.granule_shift)?;
        Some(self.extent_of(run.first, u64::from(run.count)))
    }

    /// How many granules of `extent`, grown to whole granules, have no slot.
    #[must_use]
    pub fn slots_needed(&self, extent: Extent) -> u64 {
        let mut rest = extent.aligned_out(self.granule_bytes(), self.disk_bytes);
        let mut needed = 0;
        while !rest.is_empty() {
            let found = self.find(rest);
            if !matches!(found.spot, Spot::Slot(_)) {
                needed += found.length.div_ceil(self.granule_bytes());
            }
            rest = Extent::between(rest.offset + found.length, rest.end());
        }
        needed
    }

    /// Takes up to `count` slots side by side; none of them is in the index yet. Gives the first and how many.
    ///
    /// # Errors
    /// [`Full`] if there is none.
    pub fn allocate(&mut self, count: u64) -> Result<(u32, u32), Full> {
        let taken = u32::try_from(count).unwrap_or(u32::MAX).min(self.free_slots());
        if taken == 0 {
            return Err(Full);
        }
        let first = self.slot_next;
        self.slot_next += taken;
        Ok((first, taken))
    }

    /// The byte of the buffer's device where a slot begins.
    #[must_use]
    pub const fn slot_offset(&self, slot: u32) -> u64 {
        (slot as u64) << self.granule_shift
    }

    /// Notes that the granules of `extent` are in the slots from `slot`.
    ///
    /// # Errors
    /// [`Full`] if the index has no room; nothing has changed.
    pub fn remember(&mut self, extent: Extent, slot: u32) -> Result<(), Full> {
        self.set(extent, Place::Slot(slot))
    }

    /// Notes that the granules of `extent` are zeroes.
    ///
    /// # Errors
    /// [`Full`] if the index has no room; nothing has changed.
    pub fn remember_zeroes(&mut self, extent: Extent) -> Result<(), Full> {
        self.set(extent, Place::Zeroes)
    }

    /// Notes that the granules of `extent` are on the disk.
    ///
    /// # Errors
    /// [`Full`] if a run must be split and the index has no room for that; nothing has changed.
    pub fn forget(&mut self, extent: Extent) -> Result<(), Full> {
        self.set(extent, Place::Absent)
    }

    fn set(&mut self, extent: Extent, place: Place) -> Result<(), Full> {
        let first = extent.offset >> self.granule_shift;
        let end = extent.end().div_ceil(self.granule_bytes());
        let count = u32::try_from(end.saturating_sub(first)).map_err(|_| Full)?;
        if count == 0 {
            return Ok(());
        }
        self.index.set(first, count, place).map_err(|_| Full)
    }

    /// The bytes of `count` granules from `first`, cut at the end of the disk.
    const fn extent_of(&self, first: u64, count: u64) -> Extent {
        let end = (first + count) << self.granule_shift;
        let end = if end > self.disk_bytes { self.disk_bytes } else { end };
        Extent::between(first << self.granule_shift, end)
    }
}
