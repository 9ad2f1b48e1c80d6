//! Writes and zeroes: to the disk and to every replica that is reachable, all at the same time.
//!
//! Which replicas are asked is decided when the request begins. A replica that is not asked, or fails, has its granules
//! marked dirty at that moment: before the guest hears of the write (P1).

use super::entry::{Phase, Work};
use super::{Primary, Step};
use crate::block::Action;
use crate::order::EntryIndex;
use crate::{Device, Errno, ErrorKind, Op, Outcome, Stage};

/// The disk and the replicas of a request, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Legs(u64);

impl Legs {
    pub(super) const NONE: Self = Self(0);
    pub(super) const DISK: Self = Self(1);

    pub(super) const fn replica(index: usize) -> Self {
        Self(2 << index)
    }

    /// Of one of the machine's devices.
    pub(super) const fn of(device: Device) -> Self {
        match device {
            Device::Replica(index) => Self::replica(index as usize),
            Device::Disk | Device::Buffer => Self::DISK,
        }
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The first of them, and the rest.
    const fn split(self) -> Option<(Device, Self)> {
        if self.0 == 0 {
            return None;
        }
        let rest = Self(self.0 & (self.0 - 1));
        match self.0.trailing_zeros() {
            0 => Some((Device::Disk, rest)),
            bit => Some((Device::Replica((bit - 1) as u8), rest)),
        }
    }
}

/// A request that every leg is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mirror {
    /// Still to be asked.
    next: Legs,
    /// Refused to write zeroes fast, and are asked without.
    slow: Legs,
    asked: Legs,
    succeeded: Legs,
    disk_failure: Option<Errno>,
    /// Of a flush: replicas whose success makes durable what they are asked to flush.
    pub(super) covers: Legs,
}

impl Mirror {
    pub(super) const fn of(legs: Legs) -> Self {
        let none = Legs::NONE;
        Self { next: legs, slow: none, asked: legs, succeeded: none, disk_failure: None, covers: legs }
    }
}

impl Primary<'_> {
    pub(super) fn begin_write(&mut self, index: EntryIndex, work: &Work) -> Step {
        let (first, count) = self.granules(work.request.extent);
        self.written.set_range(first, count);
        let touches_lost = !self.lost_holders.is_empty() && self.lost.is_any_set(first, count);
        let mut legs = Legs::DISK;
        for replica in 0..self.replicas.len() {
            let leg = Legs::replica(replica);
            let must_have = touches_lost && self.lost_holders.has(leg);
            let is_wanted = must_have || !self.misses_all(replica, first, count);
            if self.stage == Stage::Running && self.is_reachable(replica) && is_wanted {
                legs = legs.with(leg);
            } else {
                self.mark(replica, first, count);
                if touches_lost {
                    self.lost_holders = self.lost_holders.without(leg);
                }
            }
        }
        self.enter(index, Phase::Mirror(Mirror::of(legs)));
        Step::Again
    }

    pub(super) fn step_mirror(&mut self, index: EntryIndex, work: &Work, mirror: Mirror) -> Step {
        let Some((device, next)) = mirror.next.split() else {
            if work.outstanding == 0 {
                let result = self.mirrored(work, &mirror);
                self.end(index, result);
                return Step::Again;
            }
            return Step::Sleep;
        };
        if device != Device::Disk && mirror.slow.has(Legs::of(device)) && self.must_stand_still(index) {
            return Step::Sleep;
        }
        let action = match work.request.op {
            Op::Write { data, fua } => Action::Write { data, fua },
            Op::WriteZeroes { may_unmap, fast, fua } => {
                let fast = fast && !mirror.slow.has(Legs::of(device));
                Action::WriteZeroes { may_unmap, fast, fua }
            }
            Op::Read(_) | Op::Status | Op::Flush => Action::Flush,
        };
        self.enter(index, Phase::Mirror(Mirror { next, ..mirror }));
        let output = self.transfer(index, device, action, work.request.extent);
        if next.is_empty() { Step::EmitAndSleep(output) } else { Step::Emit(output) }
    }

    pub(super) fn completed_mirror(
        &mut self,
        index: EntryIndex,
        work: &Work,
        mut mirror: Mirror,
        device: Device,
        result: Result<Outcome, Errno>,
    ) {
        let leg = Legs::of(device);
        let was_fast = matches!(work.request.op, Op::WriteZeroes { fast: true, .. }) && !mirror.slow.has(leg);
        match result {
            Ok(_) => {
                mirror.succeeded = mirror.succeeded.with(leg);
                self.leg_succeeded(work, &mirror, device);
            }
            Err(Errno::Unsupported) if was_fast => {
                mirror.slow = mirror.slow.with(leg);
                mirror.next = mirror.next.with(leg);
            }
            Err(errno) => match device {
                Device::Replica(replica) => {
                    self.replica_failed(device, errno);
                    self.forward_failed(work, usize::from(replica));
                }
                Device::Disk | Device::Buffer => {
                    self.record(ErrorKind::PrimaryDisk);
                    mirror.disk_failure = Some(errno);
                }
            },
        }
        self.enter(index, Phase::Mirror(mirror));
        if work.outstanding == 0 || !mirror.next.is_empty() {
            self.table.wake(index);
        }
    }

    fn leg_succeeded(&mut self, work: &Work, mirror: &Mirror, device: Device) {
        let Device::Replica(replica) = device else { return };
        match work.request.op {
            Op::Flush => self.flushed(replica, mirror.covers.has(Legs::of(device))),
            Op::Write { fua: false, .. } | Op::WriteZeroes { fua: false, .. } => {
                let (first, count) = self.granules(work.request.extent);
                self.note_unflushed(replica, first, count);
            }
            _ => {}
        }
    }

    /// A replica did not take what was forwarded.
    fn forward_failed(&mut self, work: &Work, replica: usize) {
        let (first, count) = self.granules(work.request.extent);
        if work.request.op.is_modification() {
            self.mark(replica, first, count);
            if self.lost.is_any_set(first, count) {
                self.lost_holders = self.lost_holders.without(Legs::replica(replica));
            }
        } else {
            self.flush_failed(replica);
        }
    }

    /// Every leg has answered.
    fn mirrored(&mut self, work: &Work, mirror: &Mirror) -> Result<Outcome, Errno> {
        let is_modification = work.request.op.is_modification();
        let Some(errno) = mirror.disk_failure else {
            if self.lost.count() != 0 {
                self.overwritten(work);
            }
            return Ok(Outcome::Done);
        };
        if !is_modification {
            return self.flushed_elsewhere(mirror, errno);
        }
        let (first, count) = self.granules(work.request.extent);
        let took = self.with_all_of(mirror.succeeded.without(Legs::DISK), first, count);
        // The twins differ now, whoever took it.
        for replica in 0..self.replicas.len() {
            if mirror.asked.has(Legs::replica(replica)) {
                self.mark(replica, first, count);
            }
        }
        let holders = if self.lost.count() == 0 { took } else { self.lost_holders.common(took) };
        if holders.is_empty() {
            // Nobody took it, or nobody who has all that was lost before: it could not be read back.
            return Err(errno);
        }
        self.lost_holders = holders;
        self.lost.set_range(first, count);
        Ok(Outcome::Done)
    }

    /// Those of the legs that miss nothing else of these granules: another write to them may have failed there.
    fn with_all_of(&self, legs: Legs, first: u64, count: u64) -> Legs {
        let mut all = legs;
        for replica in 0..self.replicas.len() {
            let leg = Legs::replica(replica);
            let is_holder = self.lost_holders.has(leg);
            let lacks = |granule| {
                self.misses_all(replica, granule, 1) && !(is_holder && self.lost.is_any_set(granule, 1))
            };
            if legs.has(leg) && (first..first + count).any(lacks) {
                all = all.without(leg);
            }
        }
        all
    }

    /// A flush that failed on the disk counts if a replica that misses nothing has flushed.
    fn flushed_elsewhere(&self, mirror: &Mirror, errno: Errno) -> Result<Outcome, Errno> {
        let is_safe = |replica: usize| {
            mirror.succeeded.has(Legs::replica(replica)) && !self.replicas[replica].is_behind()
        };
        if (0..self.replicas.len()).any(is_safe) { Ok(Outcome::Done) } else { Err(errno) }
    }

    /// The disk took this: granules that it covers whole are no longer lost.
    fn overwritten(&mut self, work: &Work) {
        let (first, count) = self.covered_granules(work.request.extent);
        self.lost.clear_range(first, count);
        if self.lost.count() == 0 {
            self.lost_holders = Legs::NONE;
        }
    }
}
