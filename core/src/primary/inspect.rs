//! A primary as programs see it that walk through every state.

use core::hash::{Hash, Hasher};

use super::unflushed::Unflushed;
use super::{Primary, Replica, Storage};
use crate::bitmap::Bitmap;

impl Primary<'_> {
    /// This machine once more, in other memory; the two then go their own ways. `None` if that memory has not the shape
    /// of the one which this machine was made with.
    #[must_use]
    pub fn copied_into<'n>(&self, storage: Storage<'n>) -> Option<Primary<'n>> {
        let Storage { table, connections, written, lost, replicas } = storage;
        if replicas.len() != self.replicas.len() {
            return None;
        }
        for (from, to) in self.replicas.iter().zip(replicas.iter_mut()) {
            to.copy_from(from)?;
        }
        Some(Primary {
            config: self.config,
            disk: self.disk,
            table: self.table.copied_into(table)?,
            connections: self.connections.copied_into(connections)?,
            written: self.written.copied_into(written)?,
            lost: self.lost.copied_into(lost)?,
            lost_holders: self.lost_holders,
            replicas,
            stage: self.stage,
            barrier: self.barrier,
            epoch: self.epoch,
            errors: self.errors,
            notices: self.notices.copied(),
        })
    }

    /// The invariant that does not hold now, by its number in the documentation of this machine, its table or its
    /// bitmaps. What it has done, and the disks, it cannot see: that is for the caller to check.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        let bitmaps = [&self.written, &self.lost].into_iter();
        let mut bitmaps = bitmaps.chain(self.replicas.iter().flat_map(Replica::bitmaps));
        let mut checks = [
            (self.replicas.iter().all(|replica| replica.is_behind || !replica.has_dirty()), "P2"),
            (self.lost.count() != 0 || self.lost_holders.is_empty(), "P3"),
        ]
        .into_iter();
        let broken =
            self.table.broken_invariant().or_else(|| bitmaps.find_map(|bits| bits.broken_invariant()));
        broken.or_else(|| checks.find(|(holds, _)| !holds).map(|(_, name)| name))
    }
}

impl Replica<'_> {
    fn bitmaps(&self) -> impl Iterator<Item = &Bitmap<'_>> {
        let unflushed = self.unflushed.iter().flat_map(|unflushed| [&unflushed.recent, &unflushed.asked]);
        self.dirty.iter().chain(unflushed)
    }

    fn has_dirty(&self) -> bool {
        self.dirty.as_ref().is_some_and(|dirty| dirty.count() != 0)
    }
}

/// Settings are left out, as they do not change. Machines with equal hashes that were made alike go on alike.
impl Hash for Primary<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            config: _,
            disk: _,
            table,
            connections,
            written,
            lost,
            lost_holders,
            replicas,
            stage,
            barrier,
            epoch,
            errors,
            notices,
        } = self;
        (table, connections, written, lost).hash(state);
        for Replica { words: _, dirty, link, is_behind, unflushed, in_flight, told } in replicas.iter() {
            (dirty, link, is_behind, in_flight, told).hash(state);
            if let Some(Unflushed { recent, asked }) = unflushed {
                (recent, asked).hash(state);
            }
        }
        (lost_holders, stage, barrier, epoch, errors, notices).hash(state);
    }
}
