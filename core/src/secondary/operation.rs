//! What managers and the primary ask: start, checkpoint, prepare and commit, stop.
//!
//! An operation that ends an epoch raises a barrier: requests that come later wait, those that came before go on. It is
//! carried out when none of these is active. Held writes, and what waits behind them, have touched nothing: they belong
//! to the next epoch and are not waited for.

use super::entry::Phase;
use super::state::{Claim, Running, State};
use super::{Client, Command, Port, Secondary};
use crate::connection::Open;
use crate::{CommandId, ConnectionId, Errno, Event, Identity, Refused, Stage, View};

/// The operation for which the barrier is up.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Pending {
    command: CommandId,
    purpose: Purpose,
}

#[derive(Clone, Copy, Debug, Hash)]
enum Purpose {
    Start,
    Checkpoint { force: bool },
    Prepare { claim: Identity, connection: ConnectionId, modifications: u64 },
    Commit,
    Drop,
}

impl Secondary<'_> {
    /// The stage is checked before the mode.
    pub(super) fn command(&mut self, command: CommandId, wanted: Command) -> Result<(), Refused> {
        if !self.notices.has_room() {
            return Err(Refused::Busy);
        }
        self.check_command(&wanted)?;
        match wanted {
            Command::Start { .. } if self.stage() == Stage::None => self.raise(command, Purpose::Start),
            Command::Checkpoint { force } if self.stage() == Stage::Running => {
                self.raise(command, Purpose::Checkpoint { force });
            }
            Command::Prepare { claim, modifications, .. } => {
                let connection = self.claimant(claim)?;
                self.raise(command, Purpose::Prepare { claim, connection, modifications });
            }
            Command::Commit { .. } => self.raise(command, Purpose::Commit),
            Command::Stop { failover, .. } => self.stop(command, failover),
            Command::Start { .. } | Command::Checkpoint { .. } => self.notices.answer(command, Ok(())),
        }
        Ok(())
    }

    /// Whether an operation would be taken now. Changes nothing, so that all volumes of a node can be asked before one
    /// of them acts.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn check_command(&self, wanted: &Command) -> Result<(), Refused> {
        let is_behind = self.is_behind();
        match (*wanted, self.stage()) {
            (Command::Start { .. }, Stage::Done | Stage::Failover) => Ok(()),
            (Command::Start { .. }, Stage::Running | Stage::FailoverFailed) => Err(Refused::Running),
            (Command::Start { primary: true }, Stage::None) => {
                Err(Refused::WrongMode { primary_wanted: true })
            }
            (Command::Start { .. }, Stage::None) => self.check_not_pending(),
            (Command::Checkpoint { .. }, Stage::Done | Stage::Failover) => Ok(()),
            (Command::Checkpoint { force: false }, Stage::Running) if is_behind => Err(Refused::Missing),
            (Command::Checkpoint { .. }, Stage::Running) => self.check_not_pending(),
            (Command::Prepare { epoch, claim, modifications }, Stage::Running) => {
                self.check_epoch(epoch)?;
                let connection = self.claimant(claim)?;
                if self.received(connection) > modifications {
                    return Err(Refused::WrongCount);
                }
                if is_behind { Err(Refused::Missing) } else { self.check_not_pending() }
            }
            (Command::Commit { epoch, claim }, Stage::Running) => {
                self.check_epoch(epoch)?;
                match self.prepared_by() {
                    // A write that was held at the prepare has been refused since.
                    _ if is_behind => Err(Refused::Missing),
                    Some(prepared) if prepared == claim => self.check_not_pending(),
                    _ => Err(Refused::OtherClaim),
                }
            }
            (Command::Checkpoint { .. }, Stage::None | Stage::FailoverFailed)
            | (Command::Prepare { .. } | Command::Commit { .. } | Command::Stop { .. }, Stage::None) => {
                Err(Refused::NotRunning)
            }
            (Command::Prepare { .. } | Command::Commit { .. }, _) => Err(Refused::TakenOver),
            (Command::Stop { .. }, Stage::Done | Stage::Failover) => Ok(()),
            (Command::Stop { failover: true, .. }, Stage::Running) if self.view() == View::Broken => {
                Err(Refused::ViewBroken)
            }
            (Command::Stop { failover: false, force: false }, Stage::Running) if self.has_missed() => {
                Err(Refused::Missing)
            }
            (Command::Stop { failover: false, .. }, Stage::FailoverFailed) => Err(Refused::CommitPending),
            (Command::Stop { .. }, Stage::Running | Stage::FailoverFailed) => Ok(()),
        }
    }

    /// A prepare that waits gives way to whatever comes next.
    fn check_not_pending(&self) -> Result<(), Refused> {
        match self.pending {
            None | Some(Pending { purpose: Purpose::Prepare { .. }, .. }) => Ok(()),
            Some(_) => Err(Refused::InProgress),
        }
    }

    fn check_epoch(&self, epoch: u64) -> Result<(), Refused> {
        if epoch == self.epoch { Ok(()) } else { Err(Refused::StaleEpoch { epoch: self.epoch }) }
    }

    /// An error was answered to the primary. A claim that merely ended unclean is no reason to refuse a stop: that is
    /// how it ends when the primary has died.
    fn has_missed(&self) -> bool {
        self.state.running().is_some_and(|running| running.has_missed)
    }

    /// The connection of the primary that calls itself `claim`: the holder, or one that has not modified yet.
    fn claimant(&self, claim: Identity) -> Result<ConnectionId, Refused> {
        let running = self.state.running().ok_or(Refused::NotRunning)?;
        match running.claim {
            Claim::Held { connection, identity } if identity == Some(claim) => Ok(connection),
            Claim::Free => {
                let is_it = |open: &&Open<Client>| {
                    open.about.port == Port::Replication && open.about.identity == Some(claim)
                };
                let found = self.connections.iter().find(is_it);
                found.map(|open| open.connection).ok_or(Refused::OtherClaim)
            }
            Claim::Held { .. } | Claim::Ending { .. } => Err(Refused::OtherClaim),
        }
    }

    /// Modifications received on a connection.
    fn received(&self, connection: ConnectionId) -> u64 {
        self.connections.find(connection).map_or(0, |open| open.modifications)
    }

    fn raise(&mut self, command: CommandId, purpose: Purpose) {
        self.cancel_pending(Refused::TimedOut);
        self.pending = Some(Pending { command, purpose });
    }

    fn cancel_pending(&mut self, reason: Refused) {
        if let Some(pending) = self.pending.take() {
            self.notices.answer(pending.command, Err(reason));
            self.lower_barrier();
        }
    }

    /// The claim's connection has closed: what it counts on will not come any more.
    pub(super) fn cancel_prepare_of(&mut self, connection: ConnectionId) {
        let is_it = |pending: &Pending| match pending.purpose {
            Purpose::Prepare { connection: of, .. } => of == connection,
            _ => false,
        };
        if self.pending.as_ref().is_some_and(is_it) {
            self.cancel_pending(Refused::OtherClaim);
        }
        if self.prepared_by().is_some_and(|identity| self.claimant(identity).is_err())
            && let Some(running) = self.state.running_mut()
        {
            running.prepared = None;
        }
    }

    /// Whether what comes now waits. A prepare waits for modifications that are still to come: until then it holds
    /// nothing up.
    pub(super) fn is_barrier_up(&self) -> bool {
        self.pending.is_some_and(|pending| match pending.purpose {
            Purpose::Prepare { connection, modifications, .. } => self.received(connection) >= modifications,
            _ => true,
        })
    }

    /// Whether a commit was taken and has not been carried out: the room that held writes wait for is about to come.
    pub(super) fn is_committing(&self) -> bool {
        self.pending.is_some_and(|pending| matches!(pending.purpose, Purpose::Commit))
    }

    /// A modification has come: a commit that comes later is none of what was prepared. One that will be refused, as
    /// another primary holds the claim, undoes nothing.
    pub(super) fn undo_prepare(&mut self, connection: ConnectionId) {
        let mine = self.connections.find(connection).and_then(|open| open.about.identity);
        let Some(running) = self.state.running_mut() else { return };
        match running.claim {
            Claim::Held { connection: holder, identity }
                if holder != connection && (identity.is_none() || identity != mine) => {}
            _ => running.prepared = None,
        }
    }

    /// Everything that waited for the barrier may go on.
    pub(super) fn lower_barrier(&mut self) {
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

    /// Whether an operation waits for pieces of long requests that are still to come.
    fn awaits_pieces(&self) -> bool {
        // Whoever does not hold the claim modifies nothing.
        let claim = self.state.running().map(|running| running.claim);
        let may_modify = |connection| match claim {
            Some(Claim::Held { connection: holder, .. }) => holder == connection,
            _ => true,
        };
        self.pending.is_some() && self.counts.held == 0 && self.connections.unfinished().any(may_modify)
    }

    /// Carries the pending operation out if nothing is active any more. Whether it did.
    pub(super) fn end_barrier(&mut self) -> bool {
        let Some(pending) = self.pending else { return false };
        if self.counts.active != 0 || self.awaits_pieces() {
            return false;
        }
        let result = match pending.purpose {
            Purpose::Prepare { connection, modifications, .. }
                if self.received(connection) < modifications =>
            {
                return false;
            }
            Purpose::Prepare { claim, connection, modifications } => {
                self.prepare(claim, connection, modifications)
            }
            Purpose::Start => {
                self.errors.clear();
                self.state = State::Running(Running::default());
                self.notices.event(Event::Stage(Stage::Running));
                self.next_epoch();
                Ok(())
            }
            Purpose::Checkpoint { force } => self.checkpoint(force),
            // A piece that the prepare did not wait for may have failed since.
            Purpose::Commit if self.has_missed() => Err(Refused::Missing),
            // A claim that has ended unclean since leaves the next epoch in doubt, not this one.
            Purpose::Commit => {
                self.next_epoch();
                Ok(())
            }
            Purpose::Drop => {
                self.refuse_held(Errno::Shutdown);
                self.state = State::Done;
                self.buffer.clear();
                self.notices.event(Event::Stage(Stage::Done));
                Ok(())
            }
        };
        self.pending = None;
        self.notices.answer(pending.command, result);
        self.lower_barrier();
        self.wake_waiting_modifications();
        true
    }

    fn prepare(
        &mut self,
        claim: Identity,
        connection: ConnectionId,
        modifications: u64,
    ) -> Result<(), Refused> {
        if self.is_behind() {
            return Err(Refused::Missing);
        }
        if self.claimant(claim) != Ok(connection) {
            return Err(Refused::OtherClaim);
        }
        if self.received(connection) != modifications {
            return Err(Refused::WrongCount);
        }
        let now = self.now;
        let running = self.state.running_mut().ok_or(Refused::NotRunning)?;
        running.prepared = Some((claim, now));
        Ok(())
    }

    /// Whose prepare was answered.
    fn prepared_by(&self) -> Option<Identity> {
        self.state.running()?.prepared.map(|(claim, _)| claim)
    }

    fn checkpoint(&mut self, force: bool) -> Result<(), Refused> {
        if self.is_behind() && !force {
            return Err(Refused::Missing);
        }
        if let Some(running) = self.state.running_mut() {
            running.has_missed = false;
            running.is_in_doubt = false;
        }
        self.next_epoch();
        Ok(())
    }

    /// Empties the buffer, in constant time; held writes try again.
    fn next_epoch(&mut self) {
        debug_assert!(self.counts.active == 0, "S2");
        self.epoch = self.epoch.wrapping_add(1);
        self.buffer.clear();
        if let Some(running) = self.state.running_mut() {
            running.prepared = None;
            running.has_warned_full = false;
            running.has_warned_three_quarters = false;
            if core::mem::replace(&mut running.view, View::Whole) == View::Broken {
                self.notices.event(Event::View(View::Whole));
            }
        }
        self.release_held();
    }

    fn stop(&mut self, command: CommandId, failover: bool) {
        match (self.stage(), failover) {
            (Stage::Running, true) => {
                self.cancel_pending(Refused::NotRunning);
                self.begin_failover();
                self.refuse_held(Errno::Shutdown);
                self.wake_where(|work| matches!(work.phase, Phase::Waiting { .. }));
                self.notices.answer(command, Ok(()));
            }
            (Stage::FailoverFailed, true) => {
                self.begin_failover();
                self.notices.answer(command, Ok(()));
            }
            (Stage::Running, false) => {
                self.cancel_pending(Refused::NotRunning);
                self.raise(command, Purpose::Drop);
            }
            _ => self.notices.answer(command, Ok(())),
        }
    }
}
