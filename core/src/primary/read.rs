//! Reads: the primary disk, then a replica that misses nothing.
//!
//! What the disk failed to take is never read from it (P3): such a read is gathered in parts.

use super::entry::{Phase, Work};
use super::write::Legs;
use super::{Primary, Step};
use crate::block::{Action, Capabilities};
use crate::order::EntryIndex;
use crate::{Device, Errno, ErrorKind, Extent, Op, Outcome, Stage};

/// One leg is asked, and another one if it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Read {
    /// Legs that have failed.
    failed: Legs,
    failure: Option<Errno>,
}

/// Parts from different legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Gather {
    cursor: u64,
    failure: Option<Errno>,
}

impl Primary<'_> {
    pub(super) fn begin_read(&mut self, index: EntryIndex, work: &Work) -> Step {
        let (first, count) = self.granules(work.request.extent);
        let is_lost = self.lost.count() != 0 && self.lost.is_any_set(first, count);
        let phase = match work.request.op {
            // Nothing is claimed of content that is elsewhere.
            Op::Status if is_lost || !self.disk.capabilities.contains(Capabilities::STATUS) => {
                Phase::Finished(Ok(Outcome::Status { is_hole: false, length: work.request.extent.length }))
            }
            Op::Read(_) if is_lost => {
                Phase::Gather(Gather { cursor: work.request.extent.offset, failure: None })
            }
            _ => Phase::Read(Read { failed: Legs::NONE, failure: None }),
        };
        self.enter(index, phase);
        Step::Again
    }

    pub(super) fn step_read(&mut self, index: EntryIndex, work: &Work, read: Read) -> Step {
        if work.outstanding != 0 {
            return Step::Sleep;
        }
        let (device, action) = match work.request.op {
            Op::Read(data) => (self.leg_to_read(read.failed), Action::Read(data)),
            // Where the holes are is not worth a second try.
            _ => ((!read.failed.has(Legs::DISK)).then_some(Device::Disk), Action::Status),
        };
        let Some(device) = device else {
            self.end(index, Err(read.failure.unwrap_or(Errno::Io)));
            return Step::Again;
        };
        Step::EmitAndSleep(self.transfer(index, device, action, work.request.extent))
    }

    /// The disk first, then any replica that is current.
    fn leg_to_read(&self, failed: Legs) -> Option<Device> {
        if !failed.has(Legs::DISK) {
            return Some(Device::Disk);
        }
        let is_fit = |replica: &usize| {
            self.stage == Stage::Running
                && self.is_reachable(*replica)
                && !self.replicas[*replica].is_behind()
                && !failed.has(Legs::replica(*replica))
        };
        (0..self.replicas.len()).find(is_fit).map(|replica| Device::Replica(replica as u8))
    }

    pub(super) fn completed_read(
        &mut self,
        index: EntryIndex,
        work: &Work,
        read: Read,
        device: Device,
        result: Result<Outcome, Errno>,
    ) {
        match (result, device) {
            (Ok(outcome), _) => return self.end(index, Ok(outcome.within(work.request.extent.length))),
            (Err(_), Device::Disk) => self.record(ErrorKind::PrimaryDisk),
            (Err(errno), _) => self.replica_failed(device, errno),
        }
        let failure = read.failure.or(result.err());
        self.enter(index, Phase::Read(Read { failed: read.failed.with(Legs::of(device)), failure }));
        self.table.wake(index);
    }

    pub(super) fn step_gather(&mut self, index: EntryIndex, work: &Work, gather: Gather) -> Step {
        let rest = Extent::between(gather.cursor, work.request.extent.end());
        if rest.is_empty() || gather.failure.is_some() {
            if work.outstanding == 0 {
                self.end(index, gather.failure.map_or(Ok(Outcome::Done), Err));
                return Step::Again;
            }
            return Step::Sleep;
        }
        let granule = u64::from(self.config.dirty_granule_bytes);
        let (first, count) = self.granules(rest);
        let lost = self.lost.next_set(first, count);
        let (is_lost, end) = match lost {
            Some(run) if run.first == first => (true, run.end() * granule),
            Some(run) => (false, run.first * granule),
            None => (false, rest.end()),
        };
        let part = rest.intersection(&Extent::between(rest.offset, end));
        let device = if is_lost { self.holder() } else { Some(Device::Disk) };
        let (Op::Read(data), Some(device)) = (work.request.op, device) else {
            self.enter(index, Phase::Gather(Gather { failure: Some(Errno::Io), ..gather }));
            return Step::Again;
        };
        self.enter(index, Phase::Gather(Gather { cursor: part.end(), ..gather }));
        let data = data.part((part.offset - work.request.extent.offset) as u32, part.length as u32);
        Step::Emit(self.transfer(index, device, Action::Read(data), part))
    }

    /// A replica that has everything that the disk has lost. When stopped there is none: it may have taken over since, and
    /// have rolled back.
    fn holder(&self) -> Option<Device> {
        let is_holder = |replica: &usize| {
            self.stage == Stage::Running
                && self.lost_holders.has(Legs::replica(*replica))
                && self.is_reachable(*replica)
        };
        (0..self.replicas.len()).find(is_holder).map(|replica| Device::Replica(replica as u8))
    }

    pub(super) fn completed_gather(
        &mut self,
        index: EntryIndex,
        work: &Work,
        gather: Gather,
        device: Device,
        result: Result<Outcome, Errno>,
    ) {
        if let Err(errno) = result {
            match device {
                Device::Disk => self.record(ErrorKind::PrimaryDisk),
                _ => self.replica_failed(device, errno),
            }
            self.enter(index, Phase::Gather(Gather { failure: Some(errno), ..gather }));
        }
        if work.outstanding == 0 {
            self.table.wake(index);
        }
    }
}
