//! The transfers of an NBD disk: which wait for a connection, which are with the server.

use std::collections::VecDeque;

use twinblock_core::Micros;
use twinblock_core::block::{Action, Tag, Transfer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    Waiting,
    Sent,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    stage: Stage,
    transfer: Transfer,
    /// When it was last given to a connection, or, waiting for the first time, when it came.
    since: Micros,
    /// Which came first.
    sequence: u64,
}

/// A fixed table. The session knows a transfer by its place here.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    waiting: VecDeque<u16>,
    next_sequence: u64,
}

impl Table {
    pub(super) fn new(capacity: u16) -> Self {
        let transfer = Transfer { tag: Tag::default(), action: Action::Flush, extent: Default::default() };
        let slot = Slot { stage: Stage::Free, transfer, since: Micros(0), sequence: 0 };
        Self {
            slots: vec![slot; usize::from(capacity)].into_boxed_slice(),
            free: (0..capacity).rev().collect(),
            waiting: VecDeque::with_capacity(usize::from(capacity)),
            next_sequence: 0,
        }
    }

    pub(super) const fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a transfer, to wait behind those that wait already; `false` if there is no place.
    pub(super) fn add(&mut self, transfer: Transfer, now: Micros) -> bool {
        let Some(index) = self.free.pop() else { return false };
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            *slot = Slot { stage: Stage::Waiting, transfer, since: now, sequence: self.next_sequence };
        }
        self.next_sequence += 1;
        self.waiting.push_back(index);
        true
    }

    /// The one that has waited longest, under its place as the tag.
    pub(super) fn first_waiting(&self) -> Option<Transfer> {
        let index = *self.waiting.front()?;
        let slot = self.slots.get(usize::from(index))?;
        Some(Transfer { tag: Tag { entry: index, generation: 0 }, ..slot.transfer })
    }

    /// The first one that waits is with the server now.
    pub(super) fn sent(&mut self, now: Micros) {
        let slot = self.waiting.pop_front().and_then(|index| self.slots.get_mut(usize::from(index)));
        if let Some(slot) = slot {
            (slot.stage, slot.since) = (Stage::Sent, now);
        }
    }

    /// Ends the transfer at a place; the tag it came with.
    pub(super) fn end(&mut self, index: u16) -> Option<Tag> {
        let slot = self.slots.get_mut(usize::from(index)).filter(|slot| slot.stage != Stage::Free)?;
        slot.stage = Stage::Free;
        self.free.push(index);
        Some(slot.transfer.tag)
    }

    /// Ends the first one that waits.
    pub(super) fn end_waiting(&mut self) -> Option<Tag> {
        let index = self.waiting.pop_front()?;
        self.end(index)
    }

    /// All that are with the server wait again, in the order in which they came, before those that came later.
    pub(super) fn wait_again(&mut self) {
        for (index, slot) in (0..).zip(&mut self.slots) {
            if slot.stage == Stage::Sent {
                slot.stage = Stage::Waiting;
                self.waiting.push_back(index);
            }
        }
        let slots = &self.slots;
        let sequence = |index: &u16| slots.get(usize::from(*index)).map(|slot| slot.sequence);
        self.waiting.make_contiguous().sort_unstable_by_key(sequence);
    }

    /// Since when the one that is longest with the server is there. Visits each place.
    pub(super) fn oldest_sent(&self) -> Option<Micros> {
        self.slots.iter().filter(|slot| slot.stage == Stage::Sent).map(|slot| slot.since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinblock_core::Extent;

    fn transfer(entry: u16) -> Transfer {
        let extent = Extent { offset: u64::from(entry), length: 1 };
        Transfer { tag: Tag { entry: entry + 1000, generation: 9 }, action: Action::Flush, extent }
    }

    #[test]
    fn what_was_with_the_server_waits_again_in_its_first_order_and_before_later_ones() {
        let mut table = Table::new(8);
        (0..6).for_each(|entry| assert!(table.add(transfer(entry), Micros(1))));
        (0..5).for_each(|_| table.sent(Micros(2)));
        // Places 0 and 2 are used again by later ones.
        for index in [0, 2] {
            assert_eq!(table.end(index), Some(transfer(index).tag));
        }
        (6..8).for_each(|entry| assert!(table.add(transfer(entry), Micros(3))));
        assert_eq!(table.oldest_sent(), Some(Micros(2)));
        table.wait_again();
        assert_eq!(table.oldest_sent(), None);
        let mut order = Vec::new();
        while let Some(first) = table.first_waiting() {
            order.push(first.extent.offset);
            assert_eq!(table.end_waiting(), Some(transfer(first.extent.offset as u16).tag));
        }
        assert_eq!(order, [1, 3, 4, 5, 6, 7]);
        assert_eq!(table.count(), 0);
    }

    #[test]
    fn a_full_table_refuses_and_a_free_place_ends_nothing() {
        let mut table = Table::new(1);
        assert!(table.add(transfer(0), Micros(0)));
        assert!(!table.add(transfer(1), Micros(0)));
        assert!(table.end(0).is_some() && table.end(0).is_none() && table.end(9).is_none());
    }
}
