//! What a replica has taken and no successful flush of it has covered: a crash of its machine may take it away again.
//!
//! ```text
//!   taken ──▶ recent ──────────────────▶ asked ─────────────────────▶ durable
//!                │      a flush is asked    │    it has succeeded
//!                ╰──────────────────────────╰──▶ dirty as well: a flush has failed or left the replica out, or the
//!                                                replica was started anew
//! ```
//!
//! Flushes may overlap. What is *recent* becomes *asked* when a flush is asked and nothing else is asked; of the flushes
//! under way that one alone covers it, and those that come later do too (`Mirror::covers`). What is taken while flushes
//! overlap is covered by a later one: it is taken for unflushed longer than it is, never shorter.

use super::entry::Phase;
use super::write::Legs;
use super::{Primary, Replica};
use crate::Refused;
use crate::bitmap::Bitmap;

/// The granules of one replica.
#[derive(Debug)]
pub(super) struct Unflushed<'m> {
    /// No flush covers them.
    pub(super) recent: Bitmap<'m>,
    /// Flushes under way cover them, unless they fail.
    pub(super) asked: Bitmap<'m>,
}

impl Unflushed<'_> {
    fn is_empty(&self) -> bool {
        self.recent.count() == 0 && self.asked.count() == 0
    }

    pub(super) fn clear(&mut self) {
        self.recent.clear_all();
        self.asked.clear_all();
    }

    fn has_some_of(&self, other: &Bitmap<'_>) -> bool {
        let mut next = other.next_set(0, u64::MAX);
        while let Some(run) = next {
            if [&self.recent, &self.asked].iter().any(|bits| bits.is_any_set(run.first, run.count)) {
                return true;
            }
            next = other.next_set(run.end(), u64::MAX);
        }
        false
    }
}

impl Replica<'_> {
    fn has_unflushed(&self) -> bool {
        self.unflushed.as_ref().is_some_and(|unflushed| !unflushed.is_empty())
    }
}

impl Primary<'_> {
    /// A replica has taken what a crash may take from it again.
    pub(super) fn note_unflushed(&mut self, replica: u8, first: u64, count: u64) {
        let place = self.replicas.get_mut(usize::from(replica));
        if let Some(unflushed) = place.and_then(|place| place.unflushed.as_mut()) {
            unflushed.recent.set_range(first, count);
        }
    }

    /// A replica is asked to flush what it has taken so far.
    pub(super) fn ask_flush(&mut self, replica: usize) {
        let place = self.replicas.get_mut(replica);
        let Some(Unflushed { recent, asked }) = place.and_then(|place| place.unflushed.as_mut()) else {
            return;
        };
        if asked.count() != 0 || recent.count() == 0 {
            return;
        }
        asked.union_with(recent);
        recent.clear_all();
        let leg = Legs::replica(replica);
        let mut next = self.table.following(None);
        while let Some(index) = next {
            next = self.table.following(Some(index));
            if let Some(work) = self.table.get_mut(index)
                && let Phase::Mirror(mirror) = &mut work.phase
            {
                mirror.covers = mirror.covers.without(leg);
            }
        }
    }

    /// A flush of a replica has succeeded; `covers` tells whether it was asked after all that is.
    pub(super) fn flushed(&mut self, replica: u8, covers: bool) {
        let place = self.replicas.get_mut(usize::from(replica));
        if let Some(unflushed) = place.and_then(|place| place.unflushed.as_mut())
            && covers
        {
            unflushed.asked.clear_all();
        }
    }

    /// A replica's flush has failed: it is behind, and what it may lose is missing there.
    pub(super) fn flush_failed(&mut self, replica: usize) {
        self.miss_unflushed(replica);
        self.note_behind(replica);
    }

    /// A flush leaves a replica out that is not reachable: what it has taken, and may have lost, is not covered.
    pub(super) fn leave_out_of_flush(&mut self, replica: usize) {
        let place = self.replicas.get(replica);
        if place.is_some_and(|place| place.is_attached() && place.has_unflushed()) {
            self.flush_failed(replica);
        }
    }

    /// A replica was started anew, or may have been: what no flush has covered may be gone.
    pub(super) fn restarted(&mut self, replica: u8) -> Result<(), Refused> {
        let index = usize::from(replica);
        let place = self.replicas.get(index).filter(|place| place.is_attached()).ok_or(Refused::Stale)?;
        let Some(unflushed) = place.unflushed.as_ref().filter(|unflushed| !unflushed.is_empty()) else {
            return Ok(());
        };
        if unflushed.has_some_of(&self.lost) {
            self.lost_holders = self.lost_holders.without(Legs::replica(index));
        }
        self.flush_failed(index);
        if let Some(unflushed) = self.replicas.get_mut(index).and_then(|place| place.unflushed.as_mut()) {
            unflushed.clear();
        }
        Ok(())
    }

    fn miss_unflushed(&mut self, replica: usize) {
        let Some(place) = self.replicas.get_mut(replica) else { return };
        if let (Some(dirty), Some(Unflushed { recent, asked })) = (&mut place.dirty, &place.unflushed) {
            dirty.union_with(recent);
            dirty.union_with(asked);
        }
    }
}
