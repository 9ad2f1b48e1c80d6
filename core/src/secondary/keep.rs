//! Keeping: the content of whole granules is copied into the buffer before it is overwritten.
//!
//! ```text
//!   Find ──▶ Ask (hole or data?) ──▶ Load ──▶ Store ──▶ Find …
//!    │             │ a hole: remembered as zeroes, nothing is copied
//!    │             └──▶ Find …
//!    └──▶ nothing left: a primary write is written through, a guest write goes to its slots
//! ```
//!
//! A primary modification keeps every granule that it touches. A guest modification keeps only the granules that it
//! covers in part, so that the rest of them stays right; where such a granule is remembered as zeroes it gets a slot of
//! zeroes (*Blank*). While an entry keeps, no other modification begins on its granules.
//!
//! After a failover began, nothing is kept any more. A guest modification then takes the zeroes it meets out of the
//! buffer first (*Unzero*), so that it can go to the disk.
//!
//! One large write of neighbouring granules costs one read, one store and one write through. A flush of the buffer can
//! go between the last store and the write through, in [`Secondary::kept`].

use super::entry::{Origin, Phase, Work};
use super::{Secondary, Step};
use crate::block::Action;
use crate::buffer::{Full, Spot};
use crate::order::EntryIndex;
use crate::{BufferIndex, Data, Device, Errno, ErrorKind, Event, Extent, Outcome, Stage};

/// Where a keep stands. Extents are whole granules, but for the end of the disk. A step is to be done while nothing is
/// outstanding, and under way while its transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Keep {
    /// What is left to look at.
    rest: Extent,
    /// Everything that is locked.
    pub(super) all: Extent,
    step: KeepStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum KeepStep {
    /// Look for the next part.
    Find,
    /// Ask the disk whether this is a hole.
    Ask(Extent),
    /// Read this from the disk into scratch.
    Load(Extent),
    /// Write this from scratch into the slots from here.
    Store(Extent, u32),
    /// Write zeroes into the slot of this granule.
    Blank(Extent, u32),
    /// Write zeroes to the disk instead of remembering them.
    Unzero(Extent),
    /// There was no slot, or no room in the index.
    Full,
}

impl Keep {
    pub(super) const fn of_all(extent: Extent) -> Self {
        Self { rest: extent, all: extent, step: KeepStep::Find }
    }

    const fn at(self, step: KeepStep) -> Phase {
        Phase::Keep(Self { step, ..self })
    }

    /// Done with everything up to `offset`.
    const fn past(self, offset: u64) -> Phase {
        Phase::Keep(Self { rest: Extent::between(offset, self.all.end()), step: KeepStep::Find, ..self })
    }

    /// Whether its next transfer goes into a scratch buffer.
    pub(super) const fn wants_scratch(&self) -> bool {
        matches!(self.step, KeepStep::Load(_))
    }
}

impl Secondary<'_> {
    /// Whether another entry keeps one of the granules that this modification touches.
    pub(super) fn must_wait_for_keep(&self, work: &Work) -> bool {
        if self.counts.keeping == 0 {
            return false;
        }
        let granules = work.request.extent.aligned_out(self.buffer.granule_bytes(), self.disk.size_bytes);
        self.table.iter().any(|(_, other)| match other.phase {
            Phase::Keep(keep) => keep.all.overlaps(&granules),
            _ => false,
        })
    }

    pub(super) fn step_keep(&mut self, index: EntryIndex, work: &Work, keep: Keep) -> Step {
        if work.outstanding != 0 {
            return Step::Sleep;
        }
        let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: false };
        let (device, action, extent) = match keep.step {
            KeepStep::Find => {
                return match self.stage() {
                    Stage::Running => self.find_to_keep(index, work, keep),
                    _ if work.origin == Origin::Replication => self.kept(index, work),
                    _ => self.find_to_unzero(index, work, keep),
                };
            }
            KeepStep::Full if work.origin == Origin::Guest => return self.refuse(index, Errno::NoSpace),
            KeepStep::Full => return self.no_slot(index, work),
            KeepStep::Load(part) => return self.load(index, keep, part),
            KeepStep::Ask(part) => (Device::Disk, Action::Status, part),
            KeepStep::Unzero(part) => (Device::Disk, zeroes, part),
            KeepStep::Blank(part, slot) => (Device::Buffer, zeroes, self.slots_extent(slot, part.length)),
            KeepStep::Store(part, slot) => {
                let Some(scratch) = work.scratch else { return self.refuse(index, Errno::Io) };
                let data = Data { buffer: scratch, offset: 0, length: part.length as u32 };
                let store = Action::Write { data, fua: false };
                (Device::Buffer, store, self.slots_extent(slot, part.length))
            }
        };
        Step::EmitAndSleep(self.transfer(index, device, action, extent))
    }

    const fn slots_extent(&self, slot: u32, length: u64) -> Extent {
        Extent { offset: self.buffer.slot_offset(slot), length }
    }

    /// Looks for the next part that must be kept.
    fn find_to_keep(&mut self, index: EntryIndex, work: &Work, keep: Keep) -> Step {
        let rest = if work.origin == Origin::Guest { self.next_edge(work, keep.rest) } else { keep.rest };
        if rest.is_empty() {
            return self.kept(index, work);
        }
        let found = self.buffer.find(rest);
        let part = Extent { offset: rest.offset, length: found.length };
        let phase = match found.spot {
            Spot::Zeroes if work.origin == Origin::Guest && !work.is_zeroes() => self.blank(keep, part),
            Spot::Slot(_) | Spot::Zeroes => keep.past(part.end()),
            Spot::Absent if self.has_status() => keep.at(KeepStep::Ask(part)),
            Spot::Absent => keep.at(KeepStep::Load(part)),
        };
        self.enter(index, phase);
        Step::Again
    }

    /// The next granule from the start of `rest` that a guest modification covers in part; empty if there is none.
    fn next_edge(&self, work: &Work, rest: Extent) -> Extent {
        let written = work.request.extent;
        let granule = self.buffer.granule_bytes();
        let around = |offset| Extent { offset, length: 1 }.aligned_out(granule, self.disk.size_bytes);
        [around(written.offset), around(written.end() - 1)]
            .into_iter()
            .find(|edge| rest.contains(edge) && !rest.is_empty() && !written.contains(edge))
            .unwrap_or_default()
    }

    /// Gives a granule of zeroes a slot of zeroes.
    fn blank(&mut self, keep: Keep, part: Extent) -> Phase {
        match self.allocate(1) {
            Some((slot, _)) => keep.at(KeepStep::Blank(part, slot)),
            None => keep.at(KeepStep::Full),
        }
    }

    /// Looks for zeroes in the buffer that are in the way of a guest write that goes to the disk.
    fn find_to_unzero(&mut self, index: EntryIndex, work: &Work, keep: Keep) -> Step {
        if keep.rest.is_empty() || work.is_zeroes() {
            return self.kept(index, work);
        }
        let found = self.buffer.find(keep.rest);
        let part = Extent { offset: keep.rest.offset, length: found.length };
        // More is written than the guest asked for: requests of others beside it are not in the order of bytes.
        let is_direct = |(_, other): (EntryIndex, &Work)| {
            other.phase == Phase::Direct && other.request.extent.overlaps(&part)
        };
        let phase = match found.spot {
            Spot::Zeroes if self.table.iter().any(is_direct) => return Step::Sleep,
            Spot::Zeroes => keep.at(KeepStep::Unzero(part)),
            Spot::Slot(_) | Spot::Absent => keep.past(part.end()),
        };
        self.enter(index, phase);
        Step::Again
    }

    /// Nothing is left to keep. A flush of the buffer that makes the old content durable belongs here.
    fn kept(&mut self, index: EntryIndex, work: &Work) -> Step {
        match work.origin {
            Origin::Replication => self.write_through(index, work),
            Origin::Guest | Origin::Commit => self.begin_walk(index, work),
        }
    }

    /// Starts to copy; sleeps if no scratch buffer is free.
    fn load(&mut self, index: EntryIndex, keep: Keep, part: Extent) -> Step {
        if self.buffer.free_slots() == 0 {
            self.enter(index, keep.at(KeepStep::Full));
            return Step::Again;
        }
        let Some(scratch) = self.take_scratch() else { return Step::Sleep };
        let part = Extent { length: part.length.min(u64::from(self.config.window_bytes)), ..part };
        self.lend_scratch(index, scratch);
        self.enter(index, keep.at(KeepStep::Load(part)));
        let data = Data { buffer: scratch, offset: 0, length: part.length as u32 };
        Step::EmitAndSleep(self.transfer(index, Device::Disk, Action::Read(data), part))
    }

    /// A transfer of a keep has ended.
    pub(super) fn completed_keep(
        &mut self,
        index: EntryIndex,
        work: &Work,
        keep: Keep,
        device: Device,
        result: Result<Outcome, Errno>,
    ) {
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(errno) => return self.keep_failed(index, work, device, errno),
        };
        let phase = match keep.step {
            // A failover began: nothing is kept any more.
            KeepStep::Ask(_) | KeepStep::Load(_) if self.stage() != Stage::Running => {
                self.drop_scratch(index);
                keep.at(KeepStep::Find)
            }
            KeepStep::Ask(part) => self.asked(work, keep, part, outcome),
            KeepStep::Load(part) => self.loaded(index, keep, part),
            KeepStep::Store(part, slot) | KeepStep::Blank(part, slot) => {
                self.drop_scratch(index);
                match self.remember(part, slot) {
                    Ok(()) => keep.past(part.end()),
                    Err(_) => keep.at(KeepStep::Full),
                }
            }
            KeepStep::Unzero(part) => match self.buffer.forget(part) {
                Ok(()) => keep.past(part.end()),
                Err(_) => keep.at(KeepStep::Full),
            },
            KeepStep::Find | KeepStep::Full => return,
        };
        self.enter(index, phase);
        self.table.wake(index);
    }

    /// The disk has told whether a part is a hole.
    fn asked(&mut self, work: &Work, keep: Keep, part: Extent, outcome: Outcome) -> Phase {
        let granule = self.buffer.granule_bytes();
        let (is_hole, length) = match outcome {
            Outcome::Status { is_hole, length } => (is_hole, length.min(part.length).max(1)),
            Outcome::Done => (false, part.length),
        };
        // A hole counts only as far as it fills granules; data counts up to the end of its last granule.
        let filled = if length == part.length { length } else { length & !(granule - 1) };
        if !is_hole || filled == 0 {
            let length = length.next_multiple_of(granule).min(part.length);
            return keep.at(KeepStep::Load(Extent { length, ..part }));
        }
        let part = Extent { length: filled, ..part };
        match (work.origin, work.is_zeroes()) {
            // It will hold data in a moment; a part is one granule here.
            (Origin::Guest, false) => self.blank(keep, part),
            _ => match self.remember_zeroes(part) {
                Ok(()) => keep.past(part.end()),
                Err(_) => keep.at(KeepStep::Full),
            },
        }
    }

    /// The old content is in scratch: it gets slots now, so that neighbours lie side by side.
    fn loaded(&mut self, index: EntryIndex, keep: Keep, part: Extent) -> Phase {
        let granule = self.buffer.granule_bytes();
        let Some((slot, count)) = self.allocate(part.length.div_ceil(granule)) else {
            self.drop_scratch(index);
            return keep.at(KeepStep::Full);
        };
        keep.at(KeepStep::Store(Extent { length: part.length.min(u64::from(count) * granule), ..part }, slot))
    }

    fn keep_failed(&mut self, index: EntryIndex, work: &Work, device: Device, errno: Errno) {
        self.drop_scratch(index);
        let errno = if work.origin == Origin::Guest { super::guest::told(device, errno) } else { errno };
        self.end(index, Err(errno));
        match (work.origin, device) {
            (Origin::Replication, _) => {
                self.record(ErrorKind::CopyBeforeWrite);
                self.note_miss();
            }
            (_, Device::Buffer) => self.record(ErrorKind::Buffer),
            _ => self.record(ErrorKind::SecondaryDisk),
        }
    }

    /// Slots side by side, as many as there are up to `count`.
    pub(super) fn allocate(&mut self, count: u64) -> Option<(u32, u32)> {
        let taken = self.buffer.allocate(count).ok()?;
        self.warn_of_filling();
        Some(taken)
    }

    /// Notes where granules are, now that they are there.
    pub(super) fn remember(&mut self, part: Extent, slot: u32) -> Result<(), Full> {
        self.buffer.remember(part, slot)?;
        self.warn_of_filling();
        Ok(())
    }

    /// Notes that granules are zeroes.
    pub(super) fn remember_zeroes(&mut self, part: Extent) -> Result<(), Full> {
        self.buffer.remember_zeroes(part)?;
        self.warn_of_filling();
        Ok(())
    }

    /// Tells the manager, once in an epoch, that the buffer fills: its slots or its index.
    fn warn_of_filling(&mut self) {
        if self.buffer.is_three_quarters_full()
            && let Some(running) = self.state.running_mut()
            && !core::mem::replace(&mut running.has_warned_three_quarters, true)
        {
            self.notices.event(Event::BufferThreeQuarters);
        }
    }

    pub(super) fn take_scratch(&mut self) -> Option<BufferIndex> {
        let free = self.scratch_free.trailing_zeros();
        if free >= 64 {
            self.is_short_of_scratch = true;
            return None;
        }
        self.scratch_free &= !(1 << free);
        Some(BufferIndex(self.config.scratch_first.0 + free as u16))
    }

    /// Lets the first entry that waits for a scratch buffer take one. Those that had something to do have done it, so
    /// that one is woken for each buffer and not all for the first.
    pub(super) fn wake_for_scratch(&mut self) -> bool {
        if !self.is_short_of_scratch || self.scratch_free == 0 {
            return false;
        }
        let waiting = self.table.iter().find(|(_, work)| work.wants_scratch()).map(|(index, _)| index);
        self.is_short_of_scratch = waiting.is_some();
        if let Some(index) = waiting {
            self.table.wake(index);
        }
        waiting.is_some()
    }

    /// Gives an entry's scratch buffer back, if it has one. Whoever waits for one is woken when the run queue is empty.
    pub(super) fn drop_scratch(&mut self, index: EntryIndex) {
        if let Some(scratch) = self.table.get_mut(index).and_then(|work| work.scratch.take()) {
            self.scratch_free |= 1 << (scratch.0 - self.config.scratch_first.0);
        }
    }
}
