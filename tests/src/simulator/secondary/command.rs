//! A manager, and a primary that takes checkpoints: what they ask, and what they must be answered.

use twinblock_core::secondary::{Command, Input, Port};
use twinblock_core::{CommandId, Identity, Refused, Stage};

use super::super::pair::name_of_command as name_of;
use super::super::settings::pick;
use super::World;

/// An operation that was taken and not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    command: CommandId,
    wanted: Command,
    /// It waits for earlier requests.
    is_pending: bool,
}

impl Asked {
    /// A prepare that was told of more modifications than have come.
    pub(super) fn is_waiting_for_more(&self) -> bool {
        self.is_pending && matches!(self.wanted, Command::Prepare { .. })
    }
}

type Taken = Result<(), Refused>;

impl World<'_> {
    /// Some operation, right or wrong.
    pub(super) fn any_command(&mut self) {
        // Who has prepared often goes on with it.
        let is_over = !matches!(self.model.stage, Stage::None | Stage::Running);
        let roll = match self.model.prepared {
            Some(_) => self.rng.u8(50..100),
            None if is_over => pick(&mut self.rng, &[30, 34, 60, 78, 94]),
            None => self.rng.u8(..100),
        };
        let rare = self.rng.u8(..12) == 0;
        let (force, failover) = (self.rng.u8(..3) == 0, self.rng.bool());
        let is_started = self.model.stage != Stage::None;
        let wanted = match roll {
            0..30 if !is_started => Command::Start { primary: rare },
            30..34 => Command::Start { primary: rare },
            34..60 => Command::Checkpoint { force },
            60..78 => self.any_prepare(rare),
            78..94 => Command::Commit { epoch: self.any_epoch(rare), claim: self.any_claim(rare) },
            94..97 if self.model.stage != Stage::Running || rare => Command::Stop { failover, force },
            _ => return,
        };
        self.command(wanted);
    }

    fn any_epoch(&mut self, is_wrong: bool) -> u64 {
        if is_wrong { self.rng.u64(..4) } else { self.model.epoch }
    }

    fn any_claim(&mut self, is_wrong: bool) -> Identity {
        let of_owner = self.clients.iter().find(|client| Some(client.connection) == self.model.owner);
        match (self.model.prepared, of_owner.and_then(|client| client.identity)) {
            (Some(identity), _) | (None, Some(identity)) if !is_wrong => identity,
            _ => Identity([self.rng.u8(1..4); 16]),
        }
    }

    fn any_prepare(&mut self, is_wrong: bool) -> Command {
        let claim = self.any_claim(is_wrong);
        let sent = self.clients.iter().find(|client| client.identity == Some(claim));
        let sent = sent.map_or(0, |client| client.modifications);
        let modifications = match self.rng.u8(..6) {
            0 => sent.saturating_sub(1),
            1 => sent + 1,
            _ => sent,
        };
        Command::Prepare { epoch: self.any_epoch(is_wrong), claim, modifications }
    }

    /// Offers an operation and checks whether it was right to take it.
    pub(super) fn command(&mut self, wanted: Command) -> bool {
        let command = self.command_name();
        let allowed = self.expected(wanted);
        self.meet(name_of(&wanted));
        let result = self.driver.offer(self.now, Input::Command(command, wanted));
        self.trace(|_| format!("{wanted:?}: {result:?}"));
        assert!(allowed.contains(&result), "{wanted:?}: {result:?}, not one of {allowed:?}");
        let verdict = result.map_or_else(|refused| format!("refused {refused:?}"), |()| "taken".into());
        let verdict = verdict.split(" {").next().unwrap_or_default().to_owned();
        self.coverage.count(name_of(&wanted), self.model.stage, &verdict);
        if result.is_ok() {
            let is_pending = match wanted {
                Command::Start { .. } => self.model.stage == Stage::None,
                Command::Checkpoint { .. } | Command::Prepare { .. } | Command::Commit { .. } => {
                    self.model.stage == Stage::Running
                }
                Command::Stop { failover, .. } => self.model.stage == Stage::Running && !failover,
            };
            self.asked.push(Asked { command, wanted, is_pending });
        }
        self.drain();
        result.is_ok()
    }

    /// The table of SEMANTICS.md, "Operations".
    fn expected(&self, wanted: Command) -> Vec<Taken> {
        let stage = self.model.stage;
        let is_busy = |asked: &Asked| asked.is_pending && !matches!(asked.wanted, Command::Prepare { .. });
        let unless_busy = if self.asked.iter().any(is_busy) { Err(Refused::InProgress) } else { Ok(()) };
        let is_behind = self.machine().is_behind();
        let one = |result: Taken| vec![result];
        match (wanted, stage) {
            (Command::Start { .. } | Command::Checkpoint { .. }, Stage::Done | Stage::Failover) => {
                one(Ok(()))
            }
            (Command::Start { .. }, Stage::Running | Stage::FailoverFailed) => one(Err(Refused::Running)),
            (Command::Start { primary: true }, Stage::None) => {
                one(Err(Refused::WrongMode { primary_wanted: true }))
            }
            (Command::Start { .. }, Stage::None) => one(unless_busy),
            (Command::Checkpoint { force: false }, Stage::Running) if is_behind => one(Err(Refused::Missing)),
            (Command::Checkpoint { .. }, Stage::Running) => one(unless_busy),
            (Command::Prepare { epoch, .. } | Command::Commit { epoch, .. }, Stage::Running)
                if epoch != self.model.epoch =>
            {
                one(Err(Refused::StaleEpoch { epoch: self.model.epoch }))
            }
            (Command::Prepare { claim, modifications, .. }, Stage::Running) => {
                self.expected_prepare(claim, modifications, is_behind, unless_busy)
            }
            (Command::Commit { .. }, Stage::Running) if is_behind => one(Err(Refused::Missing)),
            (Command::Commit { claim, .. }, Stage::Running) if self.model.prepared == Some(claim) => {
                let undone = self.may_be_undone(claim).then_some(Err(Refused::OtherClaim));
                undone.into_iter().chain([unless_busy]).collect()
            }
            (Command::Commit { .. }, Stage::Running) => vec![Err(Refused::OtherClaim), unless_busy],
            (Command::Prepare { .. } | Command::Commit { .. }, Stage::None) => one(Err(Refused::NotRunning)),
            (Command::Prepare { .. } | Command::Commit { .. }, _) => one(Err(Refused::TakenOver)),
            (Command::Checkpoint { .. }, Stage::None | Stage::FailoverFailed)
            | (Command::Stop { .. }, Stage::None) => one(Err(Refused::NotRunning)),
            (Command::Stop { .. }, Stage::Done | Stage::Failover) => one(Ok(())),
            (Command::Stop { failover: true, .. }, Stage::Running) if self.model.is_broken => {
                one(Err(Refused::ViewBroken))
            }
            (Command::Stop { failover: false, force: false }, Stage::Running) if self.model.has_missed => {
                one(Err(Refused::Missing))
            }
            (Command::Stop { failover: false, .. }, Stage::FailoverFailed) => {
                one(Err(Refused::CommitPending))
            }
            (Command::Stop { .. }, Stage::Running | Stage::FailoverFailed) => one(Ok(())),
        }
    }

    /// A write of another primary that has waited for a prepare takes the claim, if nobody holds it any more, as soon as
    /// that is answered, and undoes it. Only the write's reply tells.
    fn may_be_undone(&self, claim: Identity) -> bool {
        let primary = |connection| {
            let client = self.clients.iter().find(|client| client.connection == connection)?;
            client.identity.filter(|_| !client.is_told_to_close)
        };
        let is_held = self.model.owner.and_then(primary) == Some(claim);
        let is_rival = |flying: &super::Flying| {
            flying.port == Port::Replication
                && flying.request.op.is_modification()
                && primary(flying.connection) != Some(claim)
        };
        !is_held && self.flying.iter().any(is_rival)
    }

    /// Who holds the claim is known only from replies, so that several answers may be right.
    fn expected_prepare(
        &self,
        claim: Identity,
        modifications: u64,
        is_behind: bool,
        or: Taken,
    ) -> Vec<Taken> {
        let mine = || {
            let is_mine = |client: &&super::Client| client.identity == Some(claim);
            self.clients.iter().filter(is_mine).filter(|client| client.port == Port::Replication)
        };
        let owner = mine().find(|client| Some(client.connection) == self.model.owner);
        let is_certain = owner.is_some_and(|client| !client.is_told_to_close)
            && self.clients.iter().all(|client| !client.is_told_to_close);
        let mut allowed = Vec::new();
        if !is_certain {
            allowed.push(Err(Refused::OtherClaim));
        }
        if mine().any(|client| client.modifications > modifications) {
            allowed.push(Err(Refused::WrongCount));
        }
        let is_right = |count: u64| count <= modifications;
        let may_go_on = match owner {
            Some(owner) if is_certain => is_right(owner.modifications),
            _ => mine().any(|client| is_right(client.modifications)),
        };
        if may_go_on {
            allowed.push(if is_behind { Err(Refused::Missing) } else { or });
        }
        allowed
    }

    pub(super) fn answered(&mut self, command: CommandId, result: Taken) {
        let Some(position) = self.asked.iter().position(|asked| asked.command == command) else {
            panic!("{command:?} was answered, and is not asked")
        };
        let asked = self.asked.remove(position);
        let verdict = result.map_or_else(|refused| format!("answered {refused:?}"), |()| "answered".into());
        self.coverage.count(name_of(&asked.wanted), self.model.stage, &verdict);
        let is_running = self.model.stage == Stage::Running && asked.is_pending;
        match (asked.wanted, result) {
            (Command::Start { .. }, Ok(())) if is_running => self.epoch_ended(),
            (Command::Checkpoint { force }, Ok(())) if is_running => {
                let is_missing = self.model.has_missed || self.model.is_in_doubt;
                assert!(force || !is_missing, "a checkpoint while something is missing");
                self.model.forgive();
                self.epoch_ended();
            }
            (Command::Commit { .. }, Ok(())) if is_running => {
                // A claim that has ended since the commit was taken puts the next epoch in doubt.
                assert!(!self.model.has_missed, "a checkpoint of the pair while something is missing");
                self.epoch_ended();
            }
            (Command::Prepare { claim, modifications, .. }, Ok(())) => self.prepared(claim, modifications),
            (_, Ok(())) => assert!(!asked.is_pending || self.model.stage == Stage::Done, "{asked:?}"),
            (Command::Prepare { .. }, Err(refused)) => assert!(
                matches!(
                    refused,
                    Refused::Missing
                        | Refused::WrongCount
                        | Refused::TimedOut
                        | Refused::NotRunning
                        | Refused::OtherClaim
                ),
                "{refused:?}"
            ),
            (Command::Checkpoint { force: false } | Command::Commit { .. }, Err(Refused::Missing)) => {
                assert!(self.machine().is_behind());
            }
            (Command::Checkpoint { .. } | Command::Commit { .. }, Err(Refused::NotRunning)) => {
                assert!(self.asked.iter().any(|other| matches!(other.wanted, Command::Stop { .. })));
            }
            (Command::Stop { failover: false, .. }, Err(Refused::NotRunning)) => {}
            (_, Err(refused)) => panic!("{asked:?}: {refused:?}"),
        }
    }

    /// All that the primary sent is on the disk, or held.
    fn prepared(&mut self, claim: Identity, modifications: u64) {
        assert!(!self.model.has_missed && !self.model.is_in_doubt, "prepared while something is missing");
        let is_it =
            |client: &&super::Client| client.identity == Some(claim) && client.modifications == modifications;
        let candidates: Vec<_> = self.clients.iter().filter(is_it).map(|client| client.connection).collect();
        assert!(!candidates.is_empty(), "prepared with a wrong count");
        if self.machine().held() == 0 {
            let is_left = |connection| {
                let is_its = |flying: &super::Flying| {
                    flying.connection == connection && flying.request.op.is_modification()
                };
                self.flying.iter().any(is_its)
            };
            let are_all_left = candidates.into_iter().all(is_left);
            assert!(!are_all_left, "prepared with a write neither finished nor held");
        }
        self.model.prepared = Some(claim);
    }
}
