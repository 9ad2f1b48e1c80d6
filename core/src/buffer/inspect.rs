//! The buffer as programs see it that walk through every state.

use core::hash::{Hash, Hasher};

use super::index::{Index, Node, Place, Run};
use super::log::Buffer;

impl Index<'_> {
    /// All runs, by their first granule.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + Clone {
        let mut from = Some(0);
        core::iter::from_fn(move || {
            let run = self.next_present(from?)?;
            from = (run.end() > run.first).then_some(run.end());
            Some(run)
        })
    }

    /// The invariant that does not hold.
    fn broken_invariant(&self) -> Option<&'static str> {
        let (mut data, mut zeroes, mut count) = (0, 0, 0);
        for run in self.runs() {
            if run.count == 0 {
                return Some("X1");
            }
            let is_zeroes = run.place == Place::Zeroes;
            *(if is_zeroes { &mut zeroes } else { &mut data }) += u64::from(run.count);
            count += 1;
        }
        let is_counted = count == self.entry_count()
            && data == self.data_granule_count()
            && zeroes == self.zero_granule_count()
            && count <= self.entry_capacity();
        (!is_counted).then_some("X1")
    }
}

impl Buffer<'_> {
    /// The same in other memory; `None` if that has another number of nodes.
    pub(crate) fn copied_into<'n>(&self, nodes: &'n mut [Node]) -> Option<Buffer<'n>> {
        let Self { granule_shift, disk_bytes, slot_count, slot_next, .. } = *self;
        Some(Buffer {
            index: self.index.copied_into(nodes)?,
            granule_shift,
            disk_bytes,
            slot_count,
            slot_next,
        })
    }

    /// The invariant that does not hold.
    pub(crate) fn broken_invariant(&self) -> Option<&'static str> {
        let slots = |run: &Run| match run.place {
            Place::Slot(first) => first..first + run.count,
            Place::Zeroes | Place::Absent => 0..0,
        };
        let runs = self.index.runs();
        let is_shared = |(place, run): (usize, Run)| {
            let mine = slots(&run);
            let is_beyond = mine.end > self.slot_next;
            is_beyond || runs.clone().take(place).map(|other| slots(&other)).any(|other| meet(&mine, &other))
        };
        if self.slot_next > self.slot_count || self.index.runs().enumerate().any(is_shared) {
            return Some("B1");
        }
        self.index.broken_invariant()
    }
}

fn meet(one: &core::ops::Range<u32>, other: &core::ops::Range<u32>) -> bool {
    !one.is_empty() && !other.is_empty() && one.start < other.end && other.start < one.end
}

/// Of what is remembered, not of how the nodes lie: as long as there is room, buffers with equal hashes go on alike.
impl Hash for Buffer<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for run in self.index.runs() {
            (run.first, run.count, run.place).hash(state);
        }
        self.slot_next.hash(state);
    }
}
