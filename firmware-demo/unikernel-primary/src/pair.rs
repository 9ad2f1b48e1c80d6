//! The checkpoint of the pair: the core's coordinator over the barrier here and the control link to there.

use core::fmt::Write as _;

use twinblock_core::control::{BufferLevel, Command};
use twinblock_core::node::{
    Coordinator, Failure, Input, Managed as _, MemberIndex, NodeIndex, Operation, Output, VolumeIndex,
};
use twinblock_core::primary::{self, Command as Order};
use twinblock_core::{CommandId, Identity, Micros, Refused, ReplicaState, Stage};
use twinblock_riscv_virt::console::Console;

use crate::control::{Control, ControlEvent, Question, Refusal};
use crate::network::Network;
use crate::volume::Volume;
use crate::{memory, settings};

/// The one volume.
const VOLUME: VolumeIndex = VolumeIndex(0);
/// The barrier's answer; the others' concern nobody.
const BARRIER: CommandId = CommandId(1);
const OTHER: CommandId = CommandId(0);

/// Checkpoints of the pair.
pub(crate) struct Pair {
    coordinator: Coordinator<'static>,
    member: MemberIndex,
    identity: Identity,
    every: Micros,
    next_at: Micros,
    /// One is wanted at once, and whether it must not wait for the rest of long requests.
    wanted: Option<bool>,
    state: ReplicaState,
    /// When the one under way began, and what the workload had acknowledged then.
    began: (Micros, u64),
    pub(crate) taken: u64,
    /// The last one has failed, and it was told.
    has_complained: bool,
}

impl Pair {
    pub(crate) fn new(identity: Identity, every: Micros) -> Result<Self, Refused> {
        let mut coordinator =
            Coordinator::new(memory::ENROLLED.take(), memory::MEMBERS.take(), settings::CHECKPOINT_MAX);
        let member = coordinator.add_member(VOLUME, NodeIndex(0))?;
        Ok(Self {
            coordinator,
            member,
            identity,
            every,
            next_at: Micros(0),
            wanted: None,
            state: ReplicaState::Disconnected,
            began: (Micros(0), 0),
            taken: 0,
            has_complained: false,
        })
    }

    /// Does what is due, and what the coordinator wants. Whether anything was done. `acknowledged` is what a checkpoint that
    /// begins now will hold at least.
    pub(crate) fn work(
        &mut self,
        now: Micros,
        acknowledged: u64,
        volume: &mut Volume,
        control: &mut Control,
        network: &mut Network,
    ) -> bool {
        let mut has_worked = self.note_replica(now, volume);
        while let Some(event) = control.poll_event() {
            self.heard(event, now, volume);
            has_worked = true;
        }
        if self.coordinator.poll_timeout().is_some_and(|due| due <= now) {
            self.coordinator.handle_timeout(now);
            control.drop_unanswered(now, network);
        }
        self.begin_if_due(now, acknowledged, volume, control);
        while let Some(output) = self.coordinator.poll_output() {
            self.carry_out(output, now, volume, control, network);
            has_worked = true;
        }
        has_worked
    }

    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        self.coordinator.poll_timeout().into_iter().chain([self.next_at]).min()
    }

    fn note_replica(&mut self, now: Micros, volume: &Volume) -> bool {
        let Some((state, _)) = volume.replica() else { return false };
        if state == self.state {
            return false;
        }
        self.state = state;
        let _ = self.coordinator.handle_input(now, Input::Replica(self.member, state));
        true
    }

    /// Late ones are not made up for.
    fn begin_if_due(&mut self, now: Micros, acknowledged: u64, volume: &Volume, control: &Control) {
        let is_due = self.next_at <= now && volume.machine().stage() == Stage::Running;
        if is_due {
            self.next_at = now.after(self.every);
        }
        let is_current = self.state == ReplicaState::Current && control.is_there();
        if self.coordinator.is_busy() || !is_current || !(is_due || self.wanted.is_some()) {
            return;
        }
        let is_urgent = self.wanted.take().unwrap_or(false);
        if volume.machine().check(Operation::Checkpoint { force: false }).is_err() {
            return;
        }
        self.began = (now, acknowledged);
        let _ = self.coordinator.enrol(VOLUME, true);
        let _ = self.coordinator.handle_input(now, Input::Begin { command: OTHER, is_urgent });
    }

    /// The machine has answered a command.
    pub(crate) fn answered(&mut self, command: CommandId, result: Result<(), Refused>, now: Micros) {
        if command == BARRIER {
            let _ = self.coordinator.handle_input(now, Input::Barrier(VOLUME, result));
        }
    }

    fn heard(&mut self, event: ControlEvent, now: Micros, volume: &mut Volume) {
        let inputs = match event {
            ControlEvent::Lost => {
                self.coordinator.forget_epoch(self.member);
                // Only the one that is waited for is taken.
                [Question::Epoch, Question::Prepare, Question::Commit]
                    .map(|question| Some(self.answer(question, Err(Refused::TimedOut))))
            }
            ControlEvent::Answer(question, answer) => {
                let answer = answer.map_err(|refusal| match refusal {
                    Refusal::NoLink => Refused::NoControl,
                    Refusal::Said { is_missing: true } => Refused::Missing,
                    Refusal::Said { is_missing: false } => Refused::Failed,
                });
                [Some(self.answer(question, answer)), None, None]
            }
            ControlEvent::BufferFull(level) => {
                let is_urgent = level == BufferLevel::Full;
                if is_urgent && self.coordinator.is_busy() {
                    let _ = volume.command(now, OTHER, Order::Hurry);
                }
                self.wanted = Some(is_urgent || self.wanted == Some(true));
                [None; 3]
            }
        };
        for input in inputs.into_iter().flatten() {
            let _ = self.coordinator.handle_input(now, input);
        }
    }

    fn answer(&self, question: Question, answer: Result<Option<u64>, Refused>) -> Input {
        match question {
            Question::Epoch => {
                Input::Epoch(self.member, answer.and_then(|epoch| epoch.ok_or(Refused::Failed)))
            }
            Question::Prepare => Input::Prepared(self.member, answer.map(|_| ())),
            Question::Commit => Input::Committed(self.member, answer.map(|_| ())),
        }
    }

    fn carry_out(
        &mut self,
        output: Output,
        now: Micros,
        volume: &mut Volume,
        control: &mut Control,
        network: &mut Network,
    ) {
        let (export, claim) = (settings::EXPORT, self.identity);
        match output {
            Output::Barrier { is_urgent, .. } => {
                if let Err(refused) = volume.command(now, BARRIER, Order::Barrier { is_urgent }) {
                    self.answered(BARRIER, Err(refused), now);
                }
            }
            Output::Hurry(_) => {
                let _ = volume.command(now, OTHER, Order::Hurry);
            }
            Output::Release { is_checkpoint, .. } => {
                let _ = volume.command(now, OTHER, Order::Release { is_checkpoint });
            }
            Output::AskEpoch(_) => {
                control.ask(Question::Epoch, &Command::CheckpointOutcome { volume: export }, network);
            }
            Output::Prepare { epoch, .. } => {
                let modifications = volume.link().modifications_sent();
                let prepare = Command::CheckpointPrepare { volume: export, epoch, claim, modifications };
                control.ask(Question::Prepare, &prepare, network);
            }
            Output::Commit { epoch, together, .. } => {
                let commit = Command::CheckpointCommit { volume: export, epoch, claim, together };
                control.ask(Question::Commit, &commit, network);
            }
            Output::Missing(_) => {
                let _ = volume.offer(now, primary::Input::Missing(0));
            }
            Output::LeftOut(_) => {}
            Output::Answer(_, result) => self.ended(result, now, volume, control),
        }
    }

    fn ended(&mut self, result: Result<(), Failure>, now: Micros, volume: &Volume, control: &mut Control) {
        control.forget_question();
        let (began, acknowledged) = self.began;
        let _ = match result {
            Ok(()) => {
                self.taken += 1;
                self.has_complained = false;
                let (epoch, micros) = (volume.machine().epoch(), now.since(began).0);
                writeln!(
                    Console::open(),
                    "checkpoint: epoch={epoch} acknowledged={acknowledged} micros={micros}"
                )
            }
            Err(_) if self.has_complained => Ok(()),
            Err(failure) => {
                self.has_complained = true;
                writeln!(Console::open(), "no checkpoint: {:?}", failure.refused)
            }
        };
    }
}
