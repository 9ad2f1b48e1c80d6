//! The checkpoint of the pair: the coordinator, and the control messages between the two sides.

use std::collections::VecDeque;
use twinblock_core::node::{Input, Output};
use twinblock_core::secondary::{Command, Input as SecondaryInput};
use twinblock_core::{CommandId, Refused, primary};

use super::client::{Flying, may_make};
use super::{MEMBER, PRIMARY, Pair, VOLUME};

/// What the primary's guest had been told when the barrier was reached, and what was in flight then.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    content: Vec<u8>,
    flying: Vec<Flying>,
}

/// A message to the secondary.
#[derive(Clone, Debug)]
enum Question {
    Epoch,
    Prepare { epoch: u64, modifications: u64 },
    Commit { epoch: u64, moment: Box<Moment> },
}

/// Everything that is under way about operations.
#[derive(Debug, Default)]
pub(super) struct Control {
    questions: VecDeque<Question>,
    answers: VecDeque<Input>,
    /// The question that the secondary works on.
    asked: Option<(CommandId, Question)>,
    moment: Option<Moment>,
    /// Commands to the primary that the coordinator waits for.
    barrier: Option<CommandId>,
    pub(super) wants_room: bool,
    pub(super) is_failing_over: bool,
    /// Operations of the manager on the secondary.
    pub(super) manager: Option<(CommandId, Command)>,
    pub(super) manager_result: Option<Result<(), Refused>>,
}

impl Pair<'_> {
    /// The primary takes a checkpoint.
    pub(super) fn begin_checkpoint(&mut self) {
        let is_urgent = std::mem::take(&mut self.control.wants_room);
        if self.coordinator.is_busy() {
            if is_urgent {
                self.primary_command(primary::Command::Hurry);
            }
            return;
        }
        self.coordinator.enrol(VOLUME, true).expect("nothing is under way");
        let command = CommandId(self.name());
        self.trace(|_| format!("checkpoint, urgent={is_urgent}"));
        self.tell_coordinator(Input::Begin { command, is_urgent });
        self.drain();
    }

    /// An answer that comes too late is refused and forgotten.
    pub(super) fn tell_coordinator(&mut self, input: Input) {
        let result = self.coordinator.handle_input(self.now, input);
        self.trace(|_| format!("  coordinator: {input:?}: {result:?}"));
    }

    /// What the coordinator wants. Whether it wanted something.
    pub(super) fn coordinate(&mut self) -> bool {
        if self.coordinator.poll_timeout().is_some_and(|due| due <= self.now) {
            self.coordinator.handle_timeout(self.now);
        }
        let Some(output) = self.coordinator.poll_output() else { return false };
        self.trace(|_| format!("  coordinator wants {output:?}"));
        match output {
            Output::Barrier { is_urgent, .. } => {
                let command = CommandId(self.name());
                self.control.barrier = Some(command);
                let raise = primary::Command::Barrier { is_urgent };
                if let Err(refused) = self.primary.offer(self.now, primary::Input::Command(command, raise)) {
                    self.control.barrier = None;
                    self.tell_coordinator(Input::Barrier(VOLUME, Err(refused)));
                }
            }
            Output::Release { is_checkpoint, .. } => {
                let release = primary::Command::Release { is_checkpoint };
                let command = CommandId(self.name());
                self.primary
                    .offer(self.now, primary::Input::Command(command, release))
                    .expect("always taken");
            }
            Output::AskEpoch(_) => self.control.questions.push_back(Question::Epoch),
            Output::Prepare { epoch, .. } => {
                let modifications = self.link().modifications;
                self.control.questions.push_back(Question::Prepare { epoch, modifications });
            }
            Output::Commit { epoch, .. } => {
                let moment = self.control.moment.clone().expect("the barrier was reached");
                self.control.questions.push_back(Question::Commit { epoch, moment: Box::new(moment) });
            }
            Output::LeftOut(_) => {}
            Output::Missing(_) => {
                self.primary.offer(self.now, primary::Input::Missing(0)).expect("it is attached");
            }
            Output::Answer(_, result) => {
                let result = result.map_or_else(|failure| failure.refused, |()| Refused::Busy);
                let result = if result == Refused::Busy { "done".into() } else { format!("{result:?}") };
                let result = result.split(" {").next().unwrap_or_default().to_owned();
                self.coverage.count("checkpoint of the pair", self.primary.machine().stage(), &result);
            }
        }
        true
    }

    pub(super) fn primary_command_answered(&mut self, command: CommandId, result: Result<(), Refused>) {
        if self.control.barrier.take_if(|barrier| *barrier == command).is_some() {
            if result.is_ok() {
                let Self { guest, .. } = self;
                let moment = Moment { content: guest.content.clone(), flying: guest.flying.clone() };
                self.control.moment = Some(moment);
            }
            self.tell_coordinator(Input::Barrier(VOLUME, result));
        } else {
            assert_eq!(result, Ok(()));
        }
    }

    /// A control message arrives, if there is one. Whether there was.
    pub(super) fn control(&mut self) -> bool {
        if self.plan.has_faults && self.rng.u8(..30) == 0 {
            // The control link breaks.
            self.control.questions.clear();
            self.control.answers.clear();
            self.coordinator.forget_epoch(MEMBER);
            self.trace(|_| "control messages are lost".into());
        }
        let is_for_primary =
            !self.control.answers.is_empty() && (self.rng.bool() || self.control.asked.is_some());
        if is_for_primary && let Some(answer) = self.control.answers.pop_front() {
            if !self.is_dead {
                self.tell_coordinator(answer);
            }
            self.drain();
            return true;
        }
        if self.control.asked.is_some() {
            return false;
        }
        let Some(question) = self.control.questions.pop_front() else {
            return !self.control.answers.is_empty();
        };
        let command = CommandId(self.name());
        let wanted = match &question {
            Question::Epoch => {
                let epoch = self.secondary.machine().epoch();
                self.control.answers.push_back(Input::Epoch(MEMBER, Ok(epoch)));
                return true;
            }
            Question::Prepare { epoch, modifications } => {
                Command::Prepare { epoch: *epoch, claim: PRIMARY, modifications: *modifications }
            }
            Question::Commit { epoch, .. } => Command::Commit { epoch: *epoch, claim: PRIMARY },
        };
        let result = self.secondary.offer(self.now, SecondaryInput::Command(command, wanted));
        self.trace(|_| format!("control: {wanted:?}: {result:?}"));
        match result {
            Ok(()) => self.control.asked = Some((command, question)),
            Err(refused) => self.control.answers.push_back(answer_to(&question, Err(refused))),
        }
        self.drain();
        true
    }

    pub(super) fn secondary_answered(&mut self, command: CommandId, result: Result<(), Refused>) {
        if let Some((_, wanted)) = self.control.manager.take_if(|(of, _)| *of == command) {
            self.control.manager_result = Some(result);
            if matches!(wanted, Command::Checkpoint { .. } | Command::Start { .. }) && result.is_ok() {
                self.twin.content = self.secondary_disk().bytes().to_vec();
            }
            return;
        }
        let Some((_, question)) = self.control.asked.take_if(|(of, _)| *of == command) else {
            panic!("{command:?} was not asked")
        };
        if let (Question::Commit { moment, .. }, Ok(())) = (&question, result) {
            self.committed(moment);
        }
        self.control.answers.push_back(answer_to(&question, result));
    }

    /// The secondary's view is what the primary's guest had been told at the barrier, and of what was in flight then it
    /// may have this or that.
    fn committed(&mut self, moment: &Moment) {
        let disk = self.secondary_disk().bytes().to_vec();
        for (byte, is) in disk.iter().enumerate() {
            let is_right = *is == moment.content[byte] || may_make(&moment.flying, byte, *is);
            assert!(is_right, "byte {byte} of the checkpoint is {is:#x}, not {:#x}", moment.content[byte]);
        }
        self.twin.content = disk;
    }

    /// Nothing is asked or answered any more.
    pub(super) fn is_control_idle(&self) -> bool {
        self.control.questions.is_empty() && self.control.answers.is_empty() && self.control.asked.is_none()
    }

    /// The primary has died with all it had asked.
    pub(super) fn drop_control(&mut self) {
        self.control.questions.clear();
        self.control.answers.clear();
    }
}

fn answer_to(question: &Question, result: Result<(), Refused>) -> Input {
    match question {
        Question::Epoch => Input::Epoch(MEMBER, result.map(|()| 0)),
        Question::Prepare { .. } => Input::Prepared(MEMBER, result),
        Question::Commit { .. } => Input::Committed(MEMBER, result),
    }
}
