//! Requests of the secondary's guest: the buffer first, then the disk.
//!
//! A request walks over its extent in parts that lie together, one transfer each, several at a time. A write in stage
//! Running takes fresh slots for the granules that have none; they enter the index when the data is in them, so that a
//! failed write leaves the view as it was.

use super::entry::{Phase, Work};
use super::keep::Keep;
use super::state::State;
use super::{Secondary, Step};
use crate::block::Action;
use crate::buffer::Spot;
use crate::order::EntryIndex;
use crate::{Data, Device, Errno, ErrorKind, Extent, Op, Outcome, Output, Stage, View};

/// Where a walk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Walk {
    /// Everything before this byte is under way or done.
    cursor: u64,
    /// The first of the fresh slots.
    fresh: Option<u32>,
    /// How many of them have been used.
    used: u32,
    failure: Option<Errno>,
    outcome: Outcome,
}

/// Which flushes of a guest's flush are to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GuestFlush {
    buffer: bool,
    disk: bool,
    failure: Option<Errno>,
}

impl Walk {
    const fn from(offset: u64) -> Self {
        Self { cursor: offset, fresh: None, used: 0, failure: None, outcome: Outcome::Done }
    }

    /// Whether it may still put something into the buffer.
    pub(super) const fn may_fill_buffer(&self) -> bool {
        self.fresh.is_some()
    }
}

impl Secondary<'_> {
    pub(super) fn begin_guest(&mut self, index: EntryIndex, work: &Work) -> Step {
        match self.state {
            State::None => return self.refuse(index, Errno::Io),
            State::Running(running) if running.view == View::Broken => return self.refuse(index, Errno::Io),
            State::Done => return self.begin_direct(index, work),
            State::Running(_) | State::Failover(_) | State::FailoverFailed => {}
        }
        let phase = match work.request.op {
            Op::Flush => {
                // While replication runs everything that the guest wrote is in the buffer.
                let disk = self.stage() != Stage::Running;
                Phase::GuestFlush(GuestFlush { buffer: true, disk, failure: None })
            }
            Op::Read(_) | Op::Status => {
                return self.step_walk(index, work, Walk::from(work.request.extent.offset));
            }
            Op::Write { .. } | Op::WriteZeroes { .. } if self.must_wait_for_keep(work) => {
                self.enter(index, Phase::Waiting { for_keep: true });
                return Step::Sleep;
            }
            Op::Write { .. } | Op::WriteZeroes { .. } => Phase::Keep(Keep::of_all(self.granules_of(work))),
        };
        self.enter(index, phase);
        Step::Again
    }

    fn granules_of(&self, work: &Work) -> Extent {
        work.request.extent.aligned_out(self.buffer.granule_bytes(), self.disk.size_bytes)
    }

    /// A modification's edges are kept.
    pub(super) fn begin_walk(&mut self, index: EntryIndex, work: &Work) -> Step {
        let mut walk = Walk::from(work.request.extent.offset);
        let granules = self.granules_of(work);
        if !work.is_zeroes() {
            if self.stage() == Stage::Running {
                let needed = self.buffer.slots_needed(granules);
                if needed != 0 {
                    if needed > u64::from(self.buffer.free_slots()) {
                        return self.refuse(index, Errno::NoSpace);
                    }
                    walk.fresh = self.allocate(needed).map(|(first, _)| first);
                }
            } else if self.has_zeroes(granules) {
                // A failover began while its edges were kept.
                self.enter(index, Phase::Keep(Keep::of_all(granules)));
                return Step::Again;
            }
        }
        self.step_walk(index, work, walk)
    }

    fn has_zeroes(&self, mut rest: Extent) -> bool {
        while !rest.is_empty() {
            let found = self.buffer.find(rest);
            if found.spot == Spot::Zeroes {
                return true;
            }
            rest = Extent::between(rest.offset + found.length, rest.end());
        }
        false
    }

    pub(super) fn step_walk(&mut self, index: EntryIndex, work: &Work, walk: Walk) -> Step {
        let rest = Extent::between(walk.cursor, work.request.extent.end());
        if rest.is_empty() || walk.failure.is_some() {
            if work.outstanding != 0 {
                return Step::Sleep;
            }
            let result = self.walked(work, &walk);
            self.enter(index, Phase::Finished(result));
            return self.finish(index, work, result);
        }
        let found = self.buffer.find(rest);
        let part = Extent { offset: rest.offset, length: found.length };
        let mut walk = Walk { cursor: part.end(), ..walk };
        let output = match work.request.op {
            Op::Read(data) => Some(self.read_part(index, part, found.spot, within(work, data, part))),
            Op::Status => self.status_part(index, &mut walk, work, part, found.spot),
            Op::Write { data, fua } => {
                self.write_part(index, &mut walk, part, found.spot, within(work, data, part), fua)
            }
            Op::WriteZeroes { may_unmap, fua, .. } => {
                let action = Action::WriteZeroes { may_unmap, fast: false, fua };
                self.zero_part(index, &mut walk, part, found.spot, action)
            }
            Op::Flush => None,
        };
        self.enter(index, Phase::Walk(walk));
        match output {
            Some(output @ Output::Transfer(..)) if walk.cursor >= work.request.extent.end() => {
                Step::EmitAndSleep(output)
            }
            Some(output) => Step::Emit(output),
            None => Step::Again,
        }
    }

    fn read_part(&mut self, index: EntryIndex, part: Extent, spot: Spot, data: Data) -> Output {
        match spot {
            Spot::Slot(at) => {
                let extent = Extent { offset: at, length: part.length };
                self.transfer(index, Device::Buffer, Action::Read(data), extent)
            }
            Spot::Zeroes => Output::Fill(data),
            Spot::Absent => self.transfer(index, Device::Disk, Action::Read(data), part),
        }
    }

    fn status_part(
        &mut self,
        index: EntryIndex,
        walk: &mut Walk,
        work: &Work,
        part: Extent,
        spot: Spot,
    ) -> Option<Output> {
        walk.cursor = work.request.extent.end();
        walk.outcome = Outcome::Status { is_hole: spot == Spot::Zeroes, length: part.length };
        let asks = spot == Spot::Absent && self.has_status();
        asks.then(|| self.transfer(index, Device::Disk, Action::Status, part))
    }

    fn write_part(
        &mut self,
        index: EntryIndex,
        walk: &mut Walk,
        part: Extent,
        spot: Spot,
        data: Data,
        fua: bool,
    ) -> Option<Output> {
        let action = Action::Write { data, fua };
        match (spot, walk.fresh) {
            (Spot::Slot(at), _) => {
                let extent = Extent { offset: at, length: part.length };
                Some(self.transfer(index, Device::Buffer, action, extent))
            }
            (_, Some(first)) => {
                let offset = self.buffer.slot_offset(first + walk.used);
                walk.used += part.length.div_ceil(self.buffer.granule_bytes()) as u32;
                let extent = Extent { offset, length: part.length };
                Some(self.transfer(index, Device::Buffer, action, extent))
            }
            (Spot::Absent, None) if self.stage() != Stage::Running => {
                Some(self.transfer(index, Device::Disk, action, part))
            }
            _ => {
                debug_assert!(false, "a part without a slot has a fresh one, or goes to the disk");
                walk.failure = Some(Errno::Io);
                None
            }
        }
    }

    fn zero_part(
        &mut self,
        index: EntryIndex,
        walk: &mut Walk,
        part: Extent,
        spot: Spot,
        action: Action,
    ) -> Option<Output> {
        match spot {
            Spot::Slot(at) => {
                let extent = Extent { offset: at, length: part.length };
                Some(self.transfer(index, Device::Buffer, action, extent))
            }
            Spot::Zeroes => None,
            Spot::Absent if self.stage() == Stage::Running => {
                if self.remember_zeroes(part).is_err() {
                    walk.failure = Some(Errno::NoSpace);
                }
                None
            }
            Spot::Absent => Some(self.transfer(index, Device::Disk, action, part)),
        }
    }

    /// Every part is done: fresh slots enter the index.
    fn walked(&mut self, work: &Work, walk: &Walk) -> Result<Outcome, Errno> {
        if let Some(errno) = walk.failure {
            return Err(errno);
        }
        let Some(mut slot) = walk.fresh else { return Ok(walk.outcome) };
        let mut rest = self.granules_of(work);
        while !rest.is_empty() {
            let found = self.buffer.find(rest);
            let part = Extent { offset: rest.offset, length: found.length };
            if !matches!(found.spot, Spot::Slot(_)) {
                self.remember(part, slot).map_err(|_| Errno::NoSpace)?;
                slot += part.length.div_ceil(self.buffer.granule_bytes()) as u32;
            }
            rest = Extent::between(part.end(), rest.end());
        }
        Ok(walk.outcome)
    }

    pub(super) fn completed_walk(
        &mut self,
        index: EntryIndex,
        work: &Work,
        mut walk: Walk,
        device: Device,
        result: Result<Outcome, Errno>,
    ) {
        match result {
            Ok(Outcome::Status { is_hole, length }) => {
                if let Outcome::Status { length: limit, .. } = walk.outcome {
                    walk.outcome = Outcome::Status { is_hole, length: length.min(limit).max(1) };
                }
                self.enter(index, Phase::Walk(walk));
            }
            Ok(Outcome::Done) => {}
            Err(errno) => {
                walk.failure = walk.failure.or(Some(told(device, errno)));
                self.record(if device == Device::Buffer {
                    ErrorKind::Buffer
                } else {
                    ErrorKind::SecondaryDisk
                });
                self.enter(index, Phase::Walk(walk));
            }
        }
        if work.outstanding == 0 {
            self.table.wake(index);
        }
    }

    pub(super) fn step_guest_flush(&mut self, index: EntryIndex, work: &Work, flush: GuestFlush) -> Step {
        let device = match flush {
            GuestFlush { buffer: true, .. } => Device::Buffer,
            GuestFlush { disk: true, .. } => Device::Disk,
            _ if work.outstanding != 0 => return Step::Sleep,
            GuestFlush { failure, .. } => {
                self.end(index, failure.map_or(Ok(Outcome::Done), Err));
                return Step::Again;
            }
        };
        let buffer = flush.buffer && device != Device::Buffer;
        let disk = flush.disk && device != Device::Disk;
        self.enter(index, Phase::GuestFlush(GuestFlush { buffer, disk, ..flush }));
        Step::Emit(self.transfer(index, device, Action::Flush, Extent::default()))
    }

    pub(super) fn completed_guest_flush(
        &mut self,
        index: EntryIndex,
        flush: GuestFlush,
        device: Device,
        result: Result<Outcome, Errno>,
    ) {
        if let Err(errno) = result {
            self.record(if device == Device::Buffer { ErrorKind::Buffer } else { ErrorKind::SecondaryDisk });
            self.enter(index, Phase::GuestFlush(GuestFlush { failure: Some(told(device, errno)), ..flush }));
        }
        self.table.wake(index);
    }
}

/// The part of a request's data that belongs to a part of its extent.
const fn within(work: &Work, data: Data, part: Extent) -> Data {
    data.part((part.offset - work.request.extent.offset) as u32, part.length as u32)
}

/// What the guest is told of a failed transfer. The buffer's device is not its disk: that it is full, say, means nothing
/// to the guest.
pub(super) const fn told(device: Device, errno: Errno) -> Errno {
    match device {
        Device::Buffer => Errno::Io,
        Device::Disk | Device::Replica(_) => errno,
    }
}
