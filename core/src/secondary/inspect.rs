//! A secondary as programs see it that walk through every state.

use core::hash::{Hash, Hasher};

use super::entry::Phase;
use super::{Counts, Secondary, Storage};
use crate::RequestId;

impl Secondary<'_> {
    /// This machine once more, in other memory; the two then go their own ways. `None` if that memory has not the shape
    /// of the one which this machine was made with.
    #[must_use]
    pub fn copied_into<'n>(&self, storage: Storage<'n>) -> Option<Secondary<'n>> {
        let Storage { table, nodes, connections } = storage;
        Some(Secondary {
            config: self.config,
            disk: self.disk,
            block_bytes: self.block_bytes,
            table: self.table.copied_into(table)?,
            buffer: self.buffer.copied_into(nodes)?,
            connections: self.connections.copied_into(connections)?,
            state: self.state,
            pending: self.pending,
            epoch: self.epoch,
            errors: self.errors,
            counts: self.counts,
            scratch_free: self.scratch_free,
            is_short_of_scratch: self.is_short_of_scratch,
            progress: self.progress,
            notices: self.notices.copied(),
            now: self.now,
        })
    }

    /// The invariant that does not hold now, by its number in the documentation of this machine, its table or its
    /// buffer. What it has done, and the disks, it cannot see: that is for the caller to check.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        self.table.broken_invariant().or_else(|| self.buffer.broken_invariant()).or_else(|| {
            let checks = [
                (self.has_one_keeper(), "S4"),
                (self.has_one_owner_of_scratch(), "S5"),
                (self.is_untouched_at_rest(), "S6"),
                (self.are_counts_right(), "counts"),
            ];
            checks.into_iter().find(|(holds, _)| !holds).map(|(_, name)| name)
        })
    }

    /// Whether this request waits for a slot.
    #[must_use]
    pub fn is_held(&self, id: RequestId) -> bool {
        self.table.iter().any(|(_, work)| work.request.id == id && matches!(work.phase, Phase::Held { .. }))
    }

    /// Scratch buffers that nobody uses.
    #[must_use]
    pub const fn free_scratch(&self) -> u32 {
        self.scratch_free.count_ones()
    }

    fn has_one_keeper(&self) -> bool {
        let locked = || {
            self.table.iter().filter_map(|(index, work)| match work.phase {
                Phase::Keep(keep) => Some((index, keep.all)),
                _ => None,
            })
        };
        locked().all(|(index, all)| !locked().any(|(other, rest)| index != other && rest.overlaps(&all)))
    }

    fn has_one_owner_of_scratch(&self) -> bool {
        let owned = || self.table.iter().filter_map(|(_, work)| work.scratch);
        let mut taken = 0_u64;
        for scratch in owned() {
            let bit = 1 << (scratch.0 - self.config.scratch_first.0);
            if taken & bit != 0 {
                return false;
            }
            taken |= bit;
        }
        taken ^ self.scratch_free == u64::MAX >> (64 - u32::from(self.config.scratch_count))
    }

    fn is_untouched_at_rest(&self) -> bool {
        let is_clean = |work: &super::Work| work.outstanding == 0 && work.scratch.is_none();
        self.table.iter().all(|(_, work)| !work.is_untouched() || is_clean(work))
    }

    fn are_counts_right(&self) -> bool {
        let mut counts = Counts::default();
        for (_, work) in self.table.iter() {
            *counts.of(work.origin) += 1;
            counts.enter(&work.phase);
        }
        counts == self.counts
    }
}

/// Settings are left out, as they do not change. Machines with equal hashes that were made alike go on alike.
impl Hash for Secondary<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            config: _,
            disk: _,
            block_bytes: _,
            table,
            buffer,
            connections,
            state: stage,
            pending,
            epoch,
            errors,
            counts,
            scratch_free,
            is_short_of_scratch,
            progress,
            notices,
            now,
        } = self;
        (table, buffer, connections).hash(state);
        (stage, pending, epoch, errors, counts).hash(state);
        (scratch_free, is_short_of_scratch, progress, notices, now).hash(state);
    }
}
