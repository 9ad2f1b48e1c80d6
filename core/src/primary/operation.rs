//! What managers and the coordinator of checkpoints ask: start, barrier, stop, attach, detach.
//!
//! A barrier is reached when every modification that came before it has been passed on to its legs, whole requests
//! included; it does not wait for their answers: a replica may be holding one until the very checkpoint for which the
//! barrier is up. An urgent barrier is reached at once. A request that it has fallen into the middle of is not waited for by
//! later barriers either: its client may never send the rest.

use super::entry::Phase;
use super::{Command, Primary};
use crate::order::EntryIndex;
use crate::{CommandId, ConnectionId, Event, Refused, Request, Stage};

/// A barrier that is up.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Barrier {
    command: CommandId,
    is_urgent: bool,
    is_reached: bool,
}

impl Primary<'_> {
    /// The stage is checked before the mode.
    pub(super) fn command(&mut self, command: CommandId, wanted: Command) -> Result<(), Refused> {
        if !self.notices.has_room() {
            return Err(Refused::Busy);
        }
        self.check_command(&wanted)?;
        match wanted {
            Command::Start { .. } => {
                self.errors.clear();
                self.epoch = self.epoch.wrapping_add(1);
                self.enter_stage(Stage::Running);
            }
            Command::Stop if self.stage == Stage::Running => {
                self.give_up_barrier();
                self.errors.clear();
                self.enter_stage(Stage::Done);
            }
            Command::Barrier { is_urgent } => {
                self.raise_barrier(command, is_urgent);
                return Ok(());
            }
            Command::Hurry => self.hurry_barrier(),
            Command::Release { is_checkpoint } => {
                self.lower_barrier(Refused::TimedOut);
                self.epoch = self.epoch.wrapping_add(u64::from(is_checkpoint));
            }
            Command::Attach { replica, is_empty, is_new } => self.attach(replica, is_empty, is_new),
            Command::Detach { replica } => self.detach(replica),
            Command::Stop => {}
        }
        self.notices.answer(command, Ok(()));
        Ok(())
    }

    /// Whether an operation would be taken now. Changes nothing, so that all volumes of a node can be asked before one
    /// of them acts.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn check_command(&self, wanted: &Command) -> Result<(), Refused> {
        match (*wanted, self.stage) {
            (Command::Start { .. }, Stage::Running) => Err(Refused::Running),
            (Command::Start { primary: false }, _) => Err(Refused::WrongMode { primary_wanted: false }),
            (Command::Barrier { .. }, Stage::Running) if self.barrier.is_some() => Err(Refused::InProgress),
            (Command::Stop, Stage::None) | (Command::Barrier { .. }, Stage::None) => Err(Refused::NotRunning),
            (Command::Barrier { .. }, Stage::Done) => Err(Refused::NotRunning),
            (Command::Attach { replica, .. }, _) => self.check_attach(replica),
            (Command::Detach { replica }, _) => match self.replica(replica) {
                Some(status) if status.is_attached => Ok(()),
                _ => Err(Refused::Unknown),
            },
            _ => Ok(()),
        }
    }

    fn enter_stage(&mut self, stage: Stage) {
        self.stage = stage;
        self.notices.event(Event::Stage(stage));
    }

    fn raise_barrier(&mut self, command: CommandId, is_urgent: bool) {
        self.barrier = Some(Barrier { command, is_urgent: false, is_reached: false });
        if is_urgent {
            self.hurry_barrier();
        }
    }

    /// What has not begun comes after the barrier, if it is not reached.
    fn hurry_barrier(&mut self) {
        if let Some(barrier) = &mut self.barrier
            && !barrier.is_reached
        {
            barrier.is_urgent = true;
            self.connections.cut_unfinished();
            let mut next = self.table.following(None);
            while let Some(index) = next {
                next = self.table.following(Some(index));
                if let Some(work) = self.table.get_mut(index)
                    && work.phase == Phase::Waiting
                {
                    work.is_after_barrier = work.request.op.is_modification();
                }
            }
        }
    }

    /// Whether the barrier was reached just now.
    pub(super) fn reach_barrier(&mut self) -> bool {
        let Some(barrier) = self.barrier else { return false };
        if barrier.is_reached {
            return false;
        }
        let waits = |work: &super::Work| {
            work.phase == Phase::Waiting && work.request.op.is_modification() && !work.is_after_barrier
        };
        let is_waiting =
            self.connections.unfinished().next().is_some() || self.table.iter().any(|(_, work)| waits(work));
        if !barrier.is_urgent && is_waiting {
            return false;
        }
        self.barrier = Some(Barrier { is_reached: true, ..barrier });
        self.notices.answer(barrier.command, Ok(()));
        true
    }

    /// Whether an entry that has begun must not ask a replica again: the barrier was reached, and the replicas have been
    /// told how many modifications came before it. The entry goes on after it.
    pub(super) fn must_stand_still(&mut self, index: EntryIndex) -> bool {
        let is_reached = self.barrier.is_some_and(|barrier| barrier.is_reached);
        if is_reached && let Some(work) = self.table.get_mut(index) {
            work.is_after_barrier = true;
        }
        is_reached
    }

    /// Ends a barrier that is not reached. One that is reached stays up until its release: the replicas may be about to
    /// take that moment over, and a start could bring them modifications of later before they have.
    fn give_up_barrier(&mut self) {
        if self.barrier.is_some_and(|barrier| !barrier.is_reached) {
            self.lower_barrier(Refused::NotRunning);
        }
    }

    /// Everything that waited for the barrier goes on. One that was not reached is answered with `reason`.
    fn lower_barrier(&mut self, reason: Refused) {
        let Some(barrier) = self.barrier.take() else { return };
        if !barrier.is_reached {
            self.notices.answer(barrier.command, Err(reason));
        }
        self.connections.lower_barrier();
        let mut next = self.table.following(None);
        while let Some(index) = next {
            next = self.table.following(Some(index));
            if let Some(work) = self.table.get_mut(index)
                && core::mem::replace(&mut work.is_after_barrier, false)
            {
                self.table.wake(index);
            }
        }
    }

    /// Whether a piece belongs before a barrier that is up and not urgent: its request began before.
    pub(super) fn is_awaited(&self, connection: ConnectionId, request: &Request) -> bool {
        self.barrier.is_some_and(|barrier| !barrier.is_urgent)
            && self.connections.is_awaited(connection, request)
    }

    /// Whether a barrier waits for pieces that are still to come. An embedder whose buffers are few offers no
    /// modification that begins now: waiting for the barrier, it would keep a buffer that such a piece may need.
    #[must_use]
    pub(super) fn awaits_pieces(&self) -> bool {
        // Of one that is reached, or urgent, no connection has pieces to come that it would wait for.
        self.barrier.is_some() && self.connections.unfinished().next().is_some()
    }
}
