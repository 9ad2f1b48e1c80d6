//! Requests of the primary: straight to the disk, or kept and then written through.

use super::claim::Permission;
use super::entry::{Phase, Work};
use super::keep::Keep;
use super::state::State;
use super::{Secondary, Step, WhenFull};
use crate::block::Action;
use crate::order::EntryIndex;
use crate::{Device, Errno, ErrorKind, Event, Micros, Op, Outcome, Stage, View};

impl Secondary<'_> {
    pub(super) fn begin_replication(&mut self, index: EntryIndex, work: &Work) -> Step {
        if self.is_left_behind(work) {
            return self.refuse(index, Errno::Shutdown);
        }
        if !work.is_modification() {
            let takes_over = matches!(self.stage(), Stage::Failover | Stage::FailoverFailed);
            if takes_over && self.must_wait_for_keep(work) {
                self.enter(index, Phase::Waiting { for_keep: true });
                return Step::Sleep;
            }
            return self.begin_direct(index, work);
        }
        match self.state {
            State::None => self.begin_direct(index, work),
            State::Running(_) => match self.permission(work.connection) {
                Permission::Granted => self.begin_modification(index, work),
                Permission::Later => Step::Sleep,
                Permission::Refused => self.refuse(index, Errno::NotPermitted),
            },
            State::Failover(_) | State::FailoverFailed | State::Done => self.refuse(index, Errno::Shutdown),
        }
    }

    /// Whether a primary, known as one by its identity, asks a secondary that follows it no longer. What is on the disk now
    /// is not what this primary's guest has written: neither must it be read as such, nor may a flush count as one of that.
    /// Others are answered in every stage.
    fn is_left_behind(&self, work: &Work) -> bool {
        let is_over = matches!(self.stage(), Stage::Failover | Stage::FailoverFailed | Stage::Done);
        let asker = self.connections.find(work.connection);
        is_over && asker.is_some_and(|open| open.about.identity.is_some())
    }

    /// The one place where "keep, then write through" begins.
    fn begin_modification(&mut self, index: EntryIndex, work: &Work) -> Step {
        if self.must_wait_for_keep(work) {
            self.enter(index, Phase::Waiting { for_keep: true });
            return Step::Sleep;
        }
        if self.view() == View::Broken {
            return self.begin_direct(index, work);
        }
        let extent = work.request.extent.aligned_out(self.buffer.granule_bytes(), self.disk.size_bytes);
        self.enter(index, Phase::Keep(Keep::of_all(extent)));
        Step::Again
    }

    /// Everything that had to be kept is kept.
    pub(super) fn write_through(&mut self, index: EntryIndex, work: &Work) -> Step {
        if self.stage() == Stage::Running {
            self.begin_direct(index, work)
        } else {
            self.refuse(index, Errno::Shutdown)
        }
    }

    /// One transfer on the disk does it all.
    pub(super) fn begin_direct(&mut self, index: EntryIndex, work: &Work) -> Step {
        let action = match work.request.op {
            Op::Read(data) => Action::Read(data),
            Op::Write { data, fua } => Action::Write { data, fua },
            Op::WriteZeroes { may_unmap, fast, fua } => Action::WriteZeroes { may_unmap, fast, fua },
            Op::Flush => Action::Flush,
            Op::Status if self.has_status() => Action::Status,
            Op::Status => {
                let length = work.request.extent.length;
                self.end(index, Ok(Outcome::Status { is_hole: false, length }));
                return Step::Again;
            }
        };
        self.enter(index, Phase::Direct);
        Step::EmitAndSleep(self.transfer(index, Device::Disk, action, work.request.extent))
    }

    pub(super) fn completed_direct(
        &mut self,
        index: EntryIndex,
        work: &Work,
        result: Result<Outcome, Errno>,
    ) {
        let is_fast_refusal = matches!(work.request.op, Op::WriteZeroes { fast: true, .. })
            && result == Err(Errno::Unsupported);
        if result.is_err() && !is_fast_refusal {
            self.record(ErrorKind::SecondaryDisk);
            if work.origin == super::entry::Origin::Replication
                && (work.is_modification() || work.request.op == Op::Flush)
            {
                self.note_miss();
            }
        }
        self.end(index, result.map(|outcome| outcome.within(work.request.extent.length)));
        if self.counts.keeping != 0 && self.stage() != Stage::Running {
            self.wake_where(|work| matches!(work.phase, Phase::Keep(_)));
        }
    }

    pub(super) fn refuse(&mut self, index: EntryIndex, errno: Errno) -> Step {
        self.end(index, Err(errno));
        Step::Again
    }

    /// An error was answered to the primary: what it wrote is missing here.
    pub(super) fn note_miss(&mut self) {
        if let Some(running) = self.state.running_mut() {
            running.has_missed = true;
        }
        // Nobody will take a checkpoint now that would make room.
        self.refuse_held(Errno::NoSpace);
    }

    /// A primary write found no slot.
    pub(super) fn no_slot(&mut self, index: EntryIndex, work: &Work) -> Step {
        let Some(running) = self.state.running_mut() else { return self.refuse(index, Errno::Shutdown) };
        if !core::mem::replace(&mut running.has_warned_full, true) {
            self.notices.event(Event::BufferFull);
        }
        match self.config.when_full {
            WhenFull::Break => {
                if core::mem::replace(&mut running.view, View::Broken) == View::Whole {
                    self.notices.event(Event::View(View::Broken));
                }
                self.write_through(index, work)
            }
            WhenFull::Stall if running.has_missed => self.refuse(index, Errno::NoSpace),
            // Nobody waits for it, and a claim that ends waits for it to go.
            WhenFull::Stall if self.connections.find(work.connection).is_none() => {
                self.refuse(index, Errno::Shutdown)
            }
            WhenFull::Stall => {
                self.enter(index, Phase::Held { since: self.now });
                self.table.exempt(index);
                Step::Sleep
            }
        }
    }

    pub(super) fn oldest_hold(&self) -> Option<Micros> {
        if self.counts.held == 0 {
            return None;
        }
        let since = |work: &Work| match work.phase {
            Phase::Held { since } => Some(since),
            _ => None,
        };
        self.table.iter().filter_map(|(_, work)| since(work)).min()
    }

    /// Refuses every held write. What waited behind them follows, and meets the same full buffer.
    pub(super) fn refuse_held(&mut self, errno: Errno) {
        // What waits behind a held write must not get into the epoch that a commit ends, without it.
        if self.counts.held == 0 || (errno == Errno::NoSpace && self.is_committing()) {
            return;
        }
        if errno == Errno::NoSpace {
            self.record(ErrorKind::CopyBeforeWrite);
        }
        self.end_untouched_where(errno, |work| matches!(work.phase, Phase::Held { .. }));
        if errno == Errno::NoSpace
            && let Some(running) = self.state.running_mut()
        {
            running.has_missed = true;
        }
    }

    /// Lets held writes try again, in an empty buffer.
    pub(super) fn release_held(&mut self) {
        let mut next = self.table.following(None);
        while let Some(index) = next {
            next = self.table.following(Some(index));
            if self.table.get(index).is_some_and(|work| matches!(work.phase, Phase::Held { .. })) {
                self.table.unexempt(index);
                self.enter(index, Phase::Waiting { for_keep: false });
                self.table.wake(index);
            }
        }
    }

    /// Ends entries that have touched nothing.
    pub(super) fn end_untouched_where(&mut self, errno: Errno, matches: impl Fn(&Work) -> bool) {
        let mut next = self.table.following(None);
        while let Some(index) = next {
            next = self.table.following(Some(index));
            if self.table.get(index).is_some_and(|work| work.is_untouched() && matches(work)) {
                self.end(index, Err(errno));
            }
        }
    }
}
