//! The order of overlapping bytes: a fixed table of requests in flight that knows which one waits for which.
//!
//! Two entries that overlap run one after the other in arrival order, unless both only read. An entry whose last
//! blocker has gone is put at the end of the *run queue*; the machine takes entries from its front, one step each.
//!
//! An entry can be *exempted*: later entries of the other group then no longer wait for it. The secondary does so with
//! held writes, which have touched nothing and may wait long (SEMANTICS.md, "The buffer is full").
//!
//! # Invariants
//! * O1: an entry's `blockers` is the number of earlier live entries that it conflicts with.
//! * O2: an entry is in the run queue at most once.
//! * O3: entries are linked in arrival order; free ones are linked in the free list.

#[cfg(all(feature = "inspect", any(feature = "primary", feature = "secondary")))]
mod inspect;
#[cfg(test)]
mod tests;

use crate::Extent;
use crate::block::Tag;

/// No entry.
const NONE: u16 = u16::MAX;

/// Index of an entry of a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryIndex(u16);

/// The bytes that an entry touches, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Which bytes; empty conflicts with nothing.
    pub extent: Extent,
    /// It changes nothing.
    pub is_read: bool,
    /// Of the group that does not wait for exempted entries.
    pub passes_exempt: bool,
}

impl Access {
    const fn conflicts(&self, later: &Self) -> bool {
        self.extent.overlaps(&later.extent) && !(self.is_read && later.is_read)
    }
}

/// What later entries may have to wait for.
#[derive(Clone, Copy)]
struct Blocker {
    access: Access,
    is_exempt: bool,
}

impl Blocker {
    const fn blocks(&self, later: &Access) -> bool {
        self.access.conflicts(later) && !(self.is_exempt && later.passes_exempt)
    }
}

/// One place of the table, for one request in flight.
#[derive(Clone, Copy, Debug)]
pub struct Slot<T> {
    work: Option<T>,
    access: Access,
    generation: u32,
    blockers: u16,
    previous: u16,
    next: u16,
    run_next: u16,
    is_queued: bool,
    is_exempt: bool,
}

impl<T> Slot<T> {
    /// A free place; an array of these is handed to [`Table::new`].
    pub const FREE: Self = Self {
        work: None,
        access: Access { extent: Extent { offset: 0, length: 0 }, is_read: true, passes_exempt: false },
        generation: 0,
        blockers: 0,
        previous: NONE,
        next: NONE,
        run_next: NONE,
        is_queued: false,
        is_exempt: false,
    };

    const fn blocker(&self) -> Blocker {
        Blocker { access: self.access, is_exempt: self.is_exempt }
    }
}

/// Requests in flight in arrival order. `T` is what the machine remembers of each.
#[derive(Debug)]
pub struct Table<'m, T> {
    slots: &'m mut [Slot<T>],
    free: u16,
    first: u16,
    last: u16,
    run_first: u16,
    run_last: u16,
    count: u16,
}

impl<'m, T: Copy> Table<'m, T> {
    /// An empty table over borrowed places; at most 65,535 are used.
    ///
    /// Capacity: unit requests (pieces) in flight; one place each; 32 places serve one guest at depth 32; when all are
    /// taken the machine answers [`crate::Refused::Busy`] and the connection is not read; more places let more
    /// requests overlap.
    #[must_use]
    pub fn new(slots: &'m mut [Slot<T>]) -> Self {
        let usable = slots.len().min(usize::from(NONE));
        let slots = slots.get_mut(..usable).unwrap_or_default();
        let count = slots.len();
        for (index, slot) in slots.iter_mut().enumerate() {
            let next = if index + 1 < count { (index + 1) as u16 } else { NONE };
            *slot = Slot { next, ..Slot::FREE };
        }
        let free = if count == 0 { NONE } else { 0 };
        Self { slots, free, first: NONE, last: NONE, run_first: NONE, run_last: NONE, count: 0 }
    }

    /// How many places there are.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many entries are in flight.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether another entry finds no place.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.free == NONE
    }

    /// Takes an entry in, after all that are there. It is queued to run if it waits for none. `None` if the table is
    /// full. Looks at each entry in flight once.
    pub fn insert(&mut self, access: Access, work: T) -> Option<EntryIndex> {
        let index = self.free;
        let mut blockers = 0;
        let mut earlier = self.first;
        while let Some(slot) = self.slots.get(usize::from(earlier)) {
            blockers += u16::from(slot.blocker().blocks(&access));
            earlier = slot.next;
        }
        let last = self.last;
        let slot = self.slots.get_mut(usize::from(index))?;
        self.free = slot.next;
        *slot = Slot {
            work: Some(work),
            access,
            generation: slot.generation.wrapping_add(1),
            blockers,
            previous: last,
            ..Slot::FREE
        };
        match self.slots.get_mut(usize::from(last)) {
            Some(before) => before.next = index,
            None => self.first = index,
        }
        self.last = index;
        self.count += 1;
        if blockers == 0 {
            self.wake(EntryIndex(index));
        }
        Some(EntryIndex(index))
    }

    /// Takes an entry out and queues those that waited for it alone. It must not be in the run queue.
    pub fn remove(&mut self, index: EntryIndex) {
        let Some(slot) = self.slots.get_mut(usize::from(index.0)) else { return };
        debug_assert!(!slot.is_queued, "O2");
        if slot.work.is_none() {
            return;
        }
        slot.work = None;
        let (blocker, previous, next) = (slot.blocker(), slot.previous, slot.next);
        slot.next = self.free;
        self.free = index.0;
        self.count -= 1;
        match self.slots.get_mut(usize::from(previous)) {
            Some(before) => before.next = next,
            None => self.first = next,
        }
        match self.slots.get_mut(usize::from(next)) {
            Some(after) => after.previous = previous,
            None => self.last = previous,
        }
        self.unblock(next, &blocker, |_| true);
    }

    /// Lets later entries of the group that passes no longer wait for this one.
    pub fn exempt(&mut self, index: EntryIndex) {
        let Some(slot) = self.slots.get_mut(usize::from(index.0)) else { return };
        if core::mem::replace(&mut slot.is_exempt, true) {
            return;
        }
        let (blocker, next) = (Blocker { is_exempt: false, ..slot.blocker() }, slot.next);
        self.unblock(next, &blocker, |later| later.passes_exempt);
    }

    /// Undoes [`Table::exempt`]. None of the later entries that now wait again may have started.
    pub fn unexempt(&mut self, index: EntryIndex) {
        let Some(slot) = self.slots.get_mut(usize::from(index.0)) else { return };
        if !core::mem::replace(&mut slot.is_exempt, false) {
            return;
        }
        let access = slot.access;
        let mut later = slot.next;
        while let Some(slot) = self.slots.get_mut(usize::from(later)) {
            if slot.access.passes_exempt && access.conflicts(&slot.access) {
                slot.blockers += 1;
            }
            later = slot.next;
        }
    }

    fn unblock(&mut self, from: u16, blocker: &Blocker, selected: impl Fn(&Access) -> bool) {
        let mut later = from;
        while let Some(slot) = self.slots.get_mut(usize::from(later)) {
            let index = later;
            later = slot.next;
            if selected(&slot.access) && blocker.blocks(&slot.access) {
                debug_assert!(slot.blockers > 0, "O1");
                slot.blockers = slot.blockers.saturating_sub(1);
                if slot.blockers == 0 {
                    self.wake(EntryIndex(index));
                }
            }
        }
    }

    /// Puts an entry at the end of the run queue, unless it is queued already.
    pub fn wake(&mut self, index: EntryIndex) {
        let Some(slot) = self.slots.get_mut(usize::from(index.0)) else { return };
        if slot.work.is_none() || slot.is_queued {
            return;
        }
        slot.is_queued = true;
        slot.run_next = NONE;
        match self.slots.get_mut(usize::from(self.run_last)) {
            Some(before) => before.run_next = index.0,
            None => self.run_first = index.0,
        }
        self.run_last = index.0;
    }

    /// The entry at the front of the run queue; it stays there.
    #[must_use]
    pub fn front(&self) -> Option<EntryIndex> {
        (self.run_first != NONE).then_some(EntryIndex(self.run_first))
    }

    /// Takes the front out of the run queue.
    pub fn pop_front(&mut self) -> Option<EntryIndex> {
        let index = self.run_first;
        let slot = self.slots.get_mut(usize::from(index))?;
        slot.is_queued = false;
        self.run_first = slot.run_next;
        if self.run_first == NONE {
            self.run_last = NONE;
        }
        Some(EntryIndex(index))
    }

    /// Whether the entry waits for an earlier one.
    #[must_use]
    pub fn is_blocked(&self, index: EntryIndex) -> bool {
        self.slots.get(usize::from(index.0)).is_some_and(|slot| slot.blockers != 0)
    }

    /// What is remembered of an entry.
    #[must_use]
    pub fn get(&self, index: EntryIndex) -> Option<&T> {
        self.slots.get(usize::from(index.0))?.work.as_ref()
    }

    /// What is remembered of an entry.
    pub fn get_mut(&mut self, index: EntryIndex) -> Option<&mut T> {
        self.slots.get_mut(usize::from(index.0))?.work.as_mut()
    }

    /// The tag for transfers of an entry.
    #[must_use]
    pub fn tag(&self, index: EntryIndex) -> Tag {
        let generation = self.slots.get(usize::from(index.0)).map_or(0, |slot| slot.generation);
        Tag { entry: index.0, generation }
    }

    /// The entry behind a tag; `None` if it has gone.
    #[must_use]
    pub fn find(&self, tag: Tag) -> Option<EntryIndex> {
        let slot = self.slots.get(usize::from(tag.entry))?;
        (slot.work.is_some() && slot.generation == tag.generation).then_some(EntryIndex(tag.entry))
    }

    /// All entries in arrival order.
    pub fn iter(&self) -> impl Iterator<Item = (EntryIndex, &T)> {
        let mut index = self.first;
        core::iter::from_fn(move || {
            let slot = self.slots.get(usize::from(index))?;
            let entry = EntryIndex(index);
            index = slot.next;
            Some((entry, slot.work.as_ref()?))
        })
    }

    /// The entry that arrived after this one, or the first for `None`; for walks that change entries.
    #[must_use]
    pub fn following(&self, index: Option<EntryIndex>) -> Option<EntryIndex> {
        let next = match index {
            Some(index) => self.slots.get(usize::from(index.0))?.next,
            None => self.first,
        };
        (next != NONE).then_some(EntryIndex(next))
    }
}
