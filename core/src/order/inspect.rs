//! Tables as programs see them that walk through every state.

use core::hash::{Hash, Hasher};

use super::{EntryIndex, NONE, Slot, Table};

impl<T: Copy> Table<'_, T> {
    /// The same in other memory; `None` if that has another number of places.
    pub(crate) fn copied_into<'n>(&self, slots: &'n mut [Slot<T>]) -> Option<Table<'n, T>> {
        if slots.len() != self.slots.len() {
            return None;
        }
        slots.copy_from_slice(self.slots);
        let Self { free, first, last, run_first, run_last, count, .. } = *self;
        Some(Table { slots, free, first, last, run_first, run_last, count })
    }

    /// The invariant that does not hold.
    pub(crate) fn broken_invariant(&self) -> Option<&'static str> {
        if !self.are_blockers_right() {
            return Some("O1");
        }
        let mut queued = 0;
        let mut index = self.run_first;
        while let Some(slot) = self.slots.get(usize::from(index)).filter(|_| queued <= self.slots.len()) {
            queued += 1;
            if !slot.is_queued || slot.work.is_none() {
                return Some("O2");
            }
            index = slot.run_next;
        }
        if queued != self.slots.iter().filter(|slot| slot.is_queued).count() {
            return Some("O2");
        }
        let is_linked =
            self.iter().count() == self.len() && self.free_count() == self.capacity() - self.len();
        (!is_linked).then_some("O3")
    }

    fn are_blockers_right(&self) -> bool {
        self.slots_in_order().enumerate().all(|(place, (_, slot))| {
            let earlier = self.slots_in_order().take(place);
            earlier.filter(|(_, earlier)| earlier.blocker().blocks(&slot.access)).count()
                == usize::from(slot.blockers)
        })
    }

    fn slots_in_order(&self) -> impl Iterator<Item = (EntryIndex, &Slot<T>)> {
        self.iter().map(|(index, _)| (index, &self.slots[usize::from(index.0)]))
    }

    /// How many places the free list has.
    fn free_count(&self) -> usize {
        let (mut count, mut index) = (0, self.free);
        while let Some(slot) = self.slots.get(usize::from(index)).filter(|_| count <= self.slots.len()) {
            count += 1;
            index = slot.next;
        }
        count
    }
}

/// Free places are left out, and so are generations: tables with equal hashes go on alike.
impl<T: Copy + Hash> Hash for Table<'_, T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (index, slot) in self.slots_in_order() {
            (index, &slot.work, slot.access, slot.blockers, slot.is_exempt).hash(state);
        }
        NONE.hash(state);
        let mut index = self.run_first;
        while let Some(slot) = self.slots.get(usize::from(index)) {
            index.hash(state);
            index = slot.run_next;
        }
    }
}
