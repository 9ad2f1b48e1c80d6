//! The commit of a failover: the buffer goes into the disk, in disk order, while the guest goes on.
//!
//! Each step is an entry of the table like any request, so that it takes its place in the order of overlapping bytes.
//! A step copies neighbouring granules, up to a window, with one write; zeroes are written as zeroes. What is on the
//! disk leaves the buffer at once, so that a commit that failed goes on from where it stopped. Done follows a flush.

use super::entry::{Origin, Phase, Work};
use super::state::{Failover, State};
use super::{Progress, Secondary, Step};
use crate::block::Action;
use crate::buffer::Spot;
use crate::order::EntryIndex;
use crate::{
    BufferIndex, ConnectionId, Data, Device, Errno, ErrorKind, Event, Extent, Op, Outcome, Request,
    RequestId, Stage,
};

/// Steps in flight while the guest asks nothing. With guest requests in flight there is one, so that the guest's
/// requests wait for at most one window.
const STEPS_MAX: u16 = 4;

/// Where a step of the commit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum CommitStep {
    /// Parts of this up to `cursor` are being read into scratch.
    Load { part: Extent, cursor: u64, has_failed: bool },
    /// Written from scratch to the disk.
    Store { part: Extent },
    /// Zeroes written to the disk.
    Zero { part: Extent },
    /// The flush at the end.
    Flush,
}

impl Secondary<'_> {
    /// Begins a failover, or goes on with one that failed.
    pub(super) fn begin_failover(&mut self) {
        if self.stage() != Stage::FailoverFailed {
            self.progress = Progress { total_bytes: self.buffer.present_bytes(), done_bytes: 0 };
        }
        self.state = State::Failover(Failover::default());
        self.notices.event(Event::Stage(Stage::Failover));
    }

    /// Puts the next step of the commit into the table. Whether anything changed.
    pub(super) fn start_commit(&mut self) -> bool {
        let State::Failover(failover) = self.state else { return false };
        if failover.has_failed {
            return self.counts.commit == 0 && self.enter_ended(State::FailoverFailed);
        }
        let steps_max = if self.counts.guest == 0 { STEPS_MAX } else { 1 };
        // One may still be lent to the rest of a request that a checkpoint has waited for; the ports' own are not taken.
        let lent = self.counts.replication.saturating_sub(self.config.replication_requests);
        let steps_max = steps_max.min((self.spare_places() as u16).saturating_sub(lent));
        if self.counts.commit >= steps_max || self.table.is_full() {
            return false;
        }
        // The cursor may stand at the end of a disk that ends within a granule.
        let ahead = self.buffer.next_present(failover.cursor).filter(|ahead| ahead.end() > failover.cursor);
        match ahead {
            Some(present) => {
                let start = present.offset.max(failover.cursor);
                let window = u64::from(self.config.window_bytes).max(1);
                let end = (start / window + 1).saturating_mul(window).min(self.disk.size_bytes);
                self.state = State::Failover(Failover { cursor: end, ..failover });
                self.insert_commit(Extent::between(start, end))
            }
            None if self.counts.commit != 0 || self.may_fill_buffer() => false,
            None if self.buffer.present_bytes() != 0 => {
                self.state = State::Failover(Failover { cursor: 0, ..failover });
                true
            }
            None => self.insert_commit(Extent::default()),
        }
    }

    /// Whether an entry that began before the failover may still put something into the buffer.
    fn may_fill_buffer(&self) -> bool {
        self.counts.active != 0
            && self.table.iter().any(|(_, work)| match work.phase {
                Phase::Keep(_) => true,
                Phase::Walk(walk) => walk.may_fill_buffer(),
                _ => false,
            })
    }

    /// An empty extent stands for the flush.
    fn insert_commit(&mut self, extent: Extent) -> bool {
        let op = Op::WriteZeroes { may_unmap: true, fast: false, fua: false };
        let op = if extent.is_empty() { Op::Flush } else { op };
        let request = Request::whole(RequestId::default(), op, extent);
        self.insert(Work::new(Origin::Commit, ConnectionId(u32::MAX), request)).is_some()
    }

    /// Its turn has come: what of its extent is in the buffer now?
    pub(super) fn begin_commit(&mut self, index: EntryIndex, work: &Work) -> Step {
        let State::Failover(failover) = self.state else { return self.refuse(index, Errno::Io) };
        if failover.has_failed {
            return self.refuse(index, Errno::Io);
        }
        if work.request.extent.is_empty() {
            self.enter(index, Phase::Commit(CommitStep::Flush));
            return Step::Again;
        }
        let extent = work.request.extent;
        let Some(present) = self.buffer.next_present(extent.offset) else { return self.committed(index) };
        let rest = extent.intersection(&Extent::between(present.offset.max(extent.offset), u64::MAX));
        if rest.is_empty() {
            return self.committed(index);
        }
        let found = self.buffer.find(rest);
        let step = match found.spot {
            Spot::Zeroes => CommitStep::Zero { part: Extent { length: found.length, ..rest } },
            _ => {
                let part = self.data_from(rest);
                CommitStep::Load { part, cursor: part.offset, has_failed: false }
            }
        };
        self.go_back_after(&step, extent);
        self.enter(index, Phase::Commit(step));
        Step::Again
    }

    /// A step that takes only a part of its extent leaves the rest to a later one.
    fn go_back_after(&mut self, step: &CommitStep, extent: Extent) {
        let (CommitStep::Load { part, .. } | CommitStep::Zero { part }) = *step else { return };
        if part.end() < extent.end()
            && let State::Failover(failover) = &mut self.state
        {
            failover.cursor = failover.cursor.min(part.end());
        }
    }

    /// From the start of `rest`, everything that has slots without a gap.
    fn data_from(&self, rest: Extent) -> Extent {
        let mut end = rest.offset;
        while end < rest.end() {
            let found = self.buffer.find(Extent::between(end, rest.end()));
            if !matches!(found.spot, Spot::Slot(_)) {
                break;
            }
            end += found.length;
        }
        Extent::between(rest.offset, end)
    }

    pub(super) fn step_commit(&mut self, index: EntryIndex, work: &Work, step: CommitStep) -> Step {
        match step {
            CommitStep::Load { part, cursor, has_failed } => {
                self.step_load(index, work, part, cursor, has_failed)
            }
            _ if work.outstanding != 0 => Step::Sleep,
            CommitStep::Store { part } => {
                let Some(scratch) = work.scratch else { return self.refuse(index, Errno::Io) };
                let data = Data { buffer: scratch, offset: 0, length: part.length as u32 };
                let action = Action::Write { data, fua: false };
                Step::EmitAndSleep(self.transfer(index, Device::Disk, action, part))
            }
            CommitStep::Zero { part } => {
                let action = Action::WriteZeroes { may_unmap: true, fast: false, fua: false };
                Step::EmitAndSleep(self.transfer(index, Device::Disk, action, part))
            }
            CommitStep::Flush => {
                Step::EmitAndSleep(self.transfer(index, Device::Disk, Action::Flush, Extent::default()))
            }
        }
    }

    fn step_load(
        &mut self,
        index: EntryIndex,
        work: &Work,
        part: Extent,
        cursor: u64,
        has_failed: bool,
    ) -> Step {
        if cursor >= part.end() || has_failed {
            if work.outstanding != 0 {
                return Step::Sleep;
            }
            if has_failed {
                self.drop_scratch(index);
                return self.refuse(index, Errno::Io);
            }
            self.enter(index, Phase::Commit(CommitStep::Store { part }));
            return Step::Again;
        }
        let Some(scratch) = work.scratch.or_else(|| self.take_scratch()) else { return Step::Sleep };
        self.lend_scratch(index, scratch);
        let found = self.buffer.find(Extent::between(cursor, part.end()));
        let Spot::Slot(at) = found.spot else {
            debug_assert!(false, "nothing else moves these granules");
            self.drop_scratch(index);
            return self.refuse(index, Errno::Io);
        };
        let cursor_next = cursor + found.length;
        self.enter(index, Phase::Commit(CommitStep::Load { part, cursor: cursor_next, has_failed }));
        let data = scratch_part(scratch, cursor - part.offset, found.length);
        let extent = Extent { offset: at, length: found.length };
        Step::Emit(self.transfer(index, Device::Buffer, Action::Read(data), extent))
    }

    pub(super) fn completed_commit(
        &mut self,
        index: EntryIndex,
        work: &Work,
        step: CommitStep,
        result: Result<Outcome, Errno>,
    ) {
        if result.is_err() {
            self.commit_failed();
        }
        match step {
            CommitStep::Load { part, cursor, has_failed } => {
                let has_failed = has_failed || result.is_err();
                self.enter(index, Phase::Commit(CommitStep::Load { part, cursor, has_failed }));
                if work.outstanding == 0 {
                    self.table.wake(index);
                }
            }
            CommitStep::Store { part } | CommitStep::Zero { part } => {
                self.drop_scratch(index);
                if result.is_ok() {
                    // If a run would have to be split and there is no room, the part is committed once more later.
                    let _ = self.buffer.forget(part);
                    self.tell_progress();
                }
                self.end(index, result);
            }
            CommitStep::Flush => {
                self.end(index, result);
                if result.is_ok() {
                    self.enter_ended(State::Done);
                }
            }
        }
    }

    fn commit_failed(&mut self) {
        self.record(ErrorKind::Commit);
        if let State::Failover(failover) = &mut self.state {
            failover.has_failed = true;
        }
    }

    fn committed(&mut self, index: EntryIndex) -> Step {
        self.end(index, Ok(Outcome::Done));
        Step::Again
    }

    fn tell_progress(&mut self) {
        let total_bytes = self.progress.total_bytes;
        let done_bytes = total_bytes.saturating_sub(self.buffer.present_bytes());
        self.progress.done_bytes = done_bytes;
        let State::Failover(failover) = &mut self.state else { return };
        let sixteenths = (u128::from(done_bytes) * 16 / u128::from(total_bytes.max(1))) as u8;
        if sixteenths > failover.told {
            failover.told = sixteenths;
            self.notices.event(Event::CommitProgress { total_bytes, done_bytes });
        }
    }

    /// The failover has ended, one way or the other.
    fn enter_ended(&mut self, state: State) -> bool {
        self.state = state;
        if self.stage() == Stage::Done {
            self.progress.done_bytes = self.progress.total_bytes;
            self.buffer.clear();
        }
        self.notices.event(Event::Stage(self.state.stage()));
        true
    }
}

const fn scratch_part(scratch: BufferIndex, offset: u64, length: u64) -> Data {
    Data { buffer: scratch, offset: offset as u32, length: length as u32 }
}
