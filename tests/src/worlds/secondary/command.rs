//! Operations: which must be taken, and what must be answered.

use twinblock_core::secondary::{Command, Input, Port};
use twinblock_core::{CommandId, Identity, Refused, Stage};

use super::{Act, Client, Flying, Prepared, State};

/// An operation that was taken and not answered.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Asked {
    name: u8,
    act: Act,
    /// It waits for earlier requests.
    is_pending: bool,
    /// Of a prepare: how many modifications it waits for.
    modifications: u8,
    /// Requests that were in flight when it was taken, by their names.
    earlier: u32,
}

type Taken = Result<(), Refused>;

impl State<'_> {
    pub(super) fn operate(&mut self, act: Act) {
        let wanted = self.command_of(act);
        let allowed = self.expected(wanted);
        let name = self.around.names_used + 1;
        let before = self.machine_hash();
        let command = CommandId(name.into());
        let checked = self.machine.check_command(&wanted);
        let result = self.machine.handle_input(self.around.now, Input::Command(command, wanted));
        assert!(allowed.contains(&Some(result)), "{wanted:?}: {result:?}, not one of {allowed:?}");
        assert_eq!(checked, result, "what would be taken is not");
        if result.is_err() {
            assert_eq!(before, self.machine_hash(), "an operation that was refused has changed something");
            return;
        }
        self.around.name();
        self.around.inputs_left -= 1;
        let stage = self.around.model.stage;
        let is_pending = match wanted {
            Command::Start { .. } => stage == Stage::None,
            Command::Checkpoint { .. } | Command::Prepare { .. } | Command::Commit { .. } => {
                stage == Stage::Running
            }
            Command::Stop { failover, .. } => stage == Stage::Running && !failover,
        };
        let earlier = self.around.flying.iter().fold(0, |earlier, flying| earlier | 1 << flying.name);
        let modifications = match wanted {
            Command::Prepare { modifications, .. } => modifications as u8,
            _ => 0,
        };
        let asked = Asked { name, act, is_pending, modifications, earlier };
        self.around.asked.push(asked).expect("few operations");
    }

    fn command_of(&self, act: Act) -> Command {
        let claim = Identity([1; 16]);
        let epoch = self.around.model.epoch;
        let sent = self.sent();
        match act {
            Act::Start => Command::Start { primary: false },
            Act::Checkpoint => Command::Checkpoint { force: false },
            Act::ForceCheckpoint => Command::Checkpoint { force: true },
            Act::Prepare => Command::Prepare { epoch, claim, modifications: sent },
            Act::PrepareAhead => Command::Prepare { epoch, claim, modifications: sent + 1 },
            Act::Commit => Command::Commit { epoch, claim },
            Act::Failover => Command::Stop { failover: true, force: false },
            Act::ForceStop => Command::Stop { failover: false, force: true },
            _ => Command::Stop { failover: false, force: false },
        }
    }

    /// Modifications that the primary has sent.
    fn sent(&self) -> u64 {
        self.around.open[Client::Primary as usize].map_or(0, |open| u64::from(open.modifications))
    }

    /// The table of SEMANTICS.md, "Operations": one or two answers.
    fn expected(&self, wanted: Command) -> [Option<Taken>; 3] {
        let model = &self.around.model;
        let is_busy =
            |asked: &Asked| asked.is_pending && !matches!(asked.act, Act::Prepare | Act::PrepareAhead);
        let unless_busy =
            if self.around.asked.iter().any(is_busy) { Err(Refused::InProgress) } else { Ok(()) };
        let is_behind = self.machine.is_behind();
        let one = |result: Taken| [Some(result), None, None];
        match (wanted, model.stage) {
            (Command::Start { .. } | Command::Checkpoint { .. }, Stage::Done | Stage::Failover) => {
                one(Ok(()))
            }
            (Command::Start { .. }, Stage::Running | Stage::FailoverFailed) => one(Err(Refused::Running)),
            (Command::Start { .. }, Stage::None) => one(unless_busy),
            (Command::Checkpoint { force: false }, Stage::Running) if is_behind => one(Err(Refused::Missing)),
            (Command::Checkpoint { .. }, Stage::Running) => one(unless_busy),
            (Command::Prepare { .. }, Stage::Running) => self.expected_prepare(is_behind, unless_busy),
            (Command::Commit { .. }, Stage::Running) if is_behind => one(Err(Refused::Missing)),
            (Command::Commit { .. }, Stage::Running) => match model.prepared {
                Prepared::Yes => one(unless_busy),
                Prepared::No => one(Err(Refused::OtherClaim)),
                Prepared::Maybe => [Some(Err(Refused::OtherClaim)), Some(unless_busy), None],
            },
            (Command::Prepare { .. } | Command::Commit { .. } | Command::Stop { .. }, Stage::None)
            | (Command::Checkpoint { .. }, Stage::None | Stage::FailoverFailed) => {
                one(Err(Refused::NotRunning))
            }
            (Command::Prepare { .. } | Command::Commit { .. }, _) => one(Err(Refused::TakenOver)),
            (Command::Stop { .. }, Stage::Done | Stage::Failover) => one(Ok(())),
            (Command::Stop { failover: true, .. }, Stage::Running) if model.is_broken => {
                one(Err(Refused::ViewBroken))
            }
            (Command::Stop { failover: false, force: false }, Stage::Running) if model.has_missed => {
                one(Err(Refused::Missing))
            }
            (Command::Stop { failover: false, .. }, Stage::FailoverFailed) => {
                one(Err(Refused::CommitPending))
            }
            (Command::Stop { .. }, Stage::Running | Stage::FailoverFailed) => one(Ok(())),
        }
    }

    /// Who holds the claim is known only from replies, so that several answers may be right.
    fn expected_prepare(&self, is_behind: bool, unless_busy: Taken) -> [Option<Taken>; 3] {
        let model = &self.around.model;
        let is_alone = model.suitors & !(1 << Client::Primary as u8) == 0;
        let is_told = Client::ALL
            .iter()
            .any(|client| self.around.open[*client as usize].is_some_and(|open| open.is_told_to_close));
        let other = (!is_alone || is_told).then_some(Err(Refused::OtherClaim));
        let taken = if is_behind { Err(Refused::Missing) } else { unless_busy };
        [Some(taken), other, other.map(|_| Err(Refused::WrongCount))]
    }

    pub(super) fn answered(&mut self, command: CommandId, result: Taken) {
        let is_it = |asked: &Asked| u32::from(asked.name) == command.0;
        let place = self.around.asked.iter().position(is_it).expect("an answer to what was asked");
        let asked = self.around.asked.remove(place);
        let model = &self.around.model;
        let is_running = model.stage == Stage::Running && asked.is_pending;
        match (asked.act, result) {
            (Act::Start | Act::Commit, Ok(())) if is_running => self.epoch_ended(&asked),
            (Act::Checkpoint | Act::ForceCheckpoint, Ok(())) if is_running => {
                let is_missing = model.has_missed || model.is_in_doubt;
                assert!(
                    asked.act == Act::ForceCheckpoint || !is_missing,
                    "a checkpoint while something is missing"
                );
                self.around.model.forgive();
                self.epoch_ended(&asked);
            }
            (Act::Prepare | Act::PrepareAhead, Ok(())) => self.prepared(&asked),
            (_, Ok(())) => assert!(!asked.is_pending || model.stage == Stage::Done, "{asked:?}"),
            (Act::Prepare | Act::PrepareAhead, Err(refused)) => assert!(
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
            (Act::Checkpoint, Err(Refused::Missing)) => assert!(self.machine.is_behind()),
            // Not as the claim has ended since: that puts the next epoch in doubt.
            (Act::Commit, Err(Refused::Missing)) => assert!(model.has_missed, "a commit fails for nothing"),
            (Act::Checkpoint | Act::ForceCheckpoint | Act::Commit, Err(Refused::NotRunning)) => {
                let is_stop = |other: &Asked| matches!(other.act, Act::Stop | Act::ForceStop | Act::Failover);
                assert!(self.around.asked.iter().any(is_stop), "nobody stops it");
            }
            (Act::Stop | Act::ForceStop, Err(Refused::NotRunning)) => {}
            (_, Err(refused)) => panic!("{asked:?}: {refused:?}"),
        }
    }

    /// All that the primary has sent is on the disk, or held.
    fn prepared(&mut self, asked: &Asked) {
        let model = &self.around.model;
        assert!(!model.has_missed && !model.is_in_doubt, "prepared while something is missing");
        assert_eq!(u64::from(asked.modifications), self.sent(), "prepared with a wrong count");
        let is_left = self
            .around
            .flying
            .iter()
            .any(|flying| flying.client == Client::Primary && flying.request.op.is_modification());
        assert!(!is_left || self.machine.held() != 0, "prepared with a write neither finished nor held");
        // Another primary's write that waited for the prepare may take a free claim now.
        let is_rivals = |flying: &Flying| {
            flying.client.port() == Port::Replication
                && flying.client.identity() != Client::Primary.identity()
                && flying.request.op.is_modification()
        };
        let may_be_undone = self.around.flying.iter().any(is_rivals);
        self.around.model.prepared = if may_be_undone { Prepared::Maybe } else { Prepared::Yes };
    }

    /// An epoch has ended: nothing of it is in flight, no request is half in it, and what came before the operation
    /// is in it or waits for room, or for the claim.
    fn epoch_ended(&mut self, asked: &Asked) {
        let around = &self.around;
        assert!(around.disk.in_flight.is_empty() && around.buffer.in_flight.is_empty(), "S2");
        assert_eq!(around.disk.content, around.model.disk, "the disk at the checkpoint");
        let waits = |flying: &super::Flying| flying.saw_held || flying.saw_rival || flying.was_full();
        let is_anyone_waiting = around.flying.iter().any(waits);
        let is_modification = |flying: &&super::Flying| {
            flying.client.port() == Port::Replication && flying.request.op.is_modification()
        };
        if !is_anyone_waiting {
            let is_late = |flying: &super::Flying| asked.earlier & 1 << flying.name != 0;
            assert!(!around.flying.iter().filter(is_modification).any(is_late), "it did not wait");
            assert!(
                !around.open.iter().flatten().any(|open| open.is_half_done),
                "a checkpoint within a request"
            );
        }
        self.around.model.begin_epoch();
    }

    pub(super) fn entered(&mut self, stage: Stage) {
        let from = self.around.model.stage;
        let is_legal = matches!(
            (from, stage),
            (Stage::None, Stage::Running)
                | (Stage::Running | Stage::FailoverFailed, Stage::Failover)
                | (Stage::Running, Stage::Done)
                | (Stage::Failover, Stage::Done | Stage::FailoverFailed)
        );
        assert!(is_legal, "{from:?} to {stage:?}");
        let commit_errors = self.machine.errors().count(twinblock_core::ErrorKind::Commit);
        let around = &mut self.around;
        around.model.stage = stage;
        around.model.prepared = Prepared::No;
        let is_still = around.disk.in_flight.is_empty() && around.buffer.in_flight.is_empty();
        match (from, stage) {
            (Stage::None, _) => {
                around.model.owner = None;
                around.model.suitors = 0;
                for flying in &around.flying {
                    if flying.request.op.is_modification() && flying.client.port() == Port::Replication {
                        around.model.suitors |= 1 << flying.client as u8;
                    }
                }
                around.model.forgive();
            }
            (_, Stage::Failover) => {
                around.model.commit_errors = commit_errors;
                around.model.guests = if from == Stage::Running { 0 } else { around.model.guests };
            }
            (Stage::Running, Stage::Done) => {
                assert!(is_still, "S2");
                around.model.view = around.model.disk;
            }
            (_, Stage::FailoverFailed) => {
                assert!(commit_errors > around.model.commit_errors, "nothing has failed");
            }
            (Stage::Failover, Stage::Done) => self.check_committed(commit_errors),
            _ => {}
        }
        self.look_around();
    }

    /// A prepare may wait for what is still to come; nothing else waits for ever.
    pub(super) fn is_waiting_rightly(&self, asked: &Asked) -> bool {
        asked.act == Act::PrepareAhead && u64::from(asked.modifications) > self.sent()
    }
}
