//! What can happen in a state, and how it does.

use twinblock_core::block::{Action, Completion, Transfer};
use twinblock_core::node::{Input as Told, Output as Wish};
use twinblock_core::primary::{self, Command as Mirror};
use twinblock_core::secondary::{self, Command, Port};
use twinblock_core::{
    BufferIndex, CommandId, ConnectionId, Data, Device, Errno, Event, Extent, Micros, Notice, Op, Outcome,
    Output, Refused, Request, RequestId, Stage,
};

use super::super::disk::{BLOCK, Disk, End, POISON, WINDOW_BLOCKS, is_modification, range};
use super::super::walk::note;
use super::{BLOCKS, Control, Flying, GUEST, IDENTITY, Incoming, MEMBER, Message, Question, State, VOLUME};

/// More outputs than an input can lead to.
const OUTPUTS_MAX: usize = 200;

/// The first block, and the one after the last.
type Blocks = (u8, u8);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// The guest of the primary writes.
    Write(Blocks),
    /// The manager wants a checkpoint of the pair.
    Checkpoint,
    /// The same, at once, as the buffer is full.
    UrgentCheckpoint,
    /// The data link breaks.
    Cut,
    /// The primary connects anew.
    Connect,
    /// The coordinator has waited too long.
    GiveUp,
    /// The primary is given up for dead, and the secondary takes over.
    Failover,
}

/// Something that can happen.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Somebody asks something.
    Act(Act),
    /// A transfer of the primary disk ends.
    Primary(usize),
    /// A transfer of the secondary disk ends.
    Disk(usize, End),
    /// A transfer of the buffer ends.
    Buffer(usize, End),
    /// The secondary receives what was sent next.
    Receive,
    /// The secondary hears that the connection is gone.
    Gone,
    /// The primary receives the next answer.
    Return,
    /// The secondary receives the coordinator's next question.
    Question,
    /// The coordinator receives the next answer.
    Answer,
    /// The secondary's time-out.
    Time,
}

impl Step {
    /// Whether it comes by itself if only one waits.
    pub(super) const fn is_inevitable(self) -> bool {
        match self {
            Self::Act(_) => false,
            Self::Disk(_, end) | Self::Buffer(_, end) => matches!(end, End::Done),
            _ => true,
        }
    }
}

impl State<'_> {
    /// Both started, connected and current.
    pub(super) fn begin(&mut self) {
        self.primary.handle_input(Micros(0), primary::Input::Opened(GUEST)).expect("there is room");
        let start = Command::Start { primary: false };
        self.secondary_input(secondary::Input::Command(CommandId(0), start));
        for wanted in
            [Mirror::Start { primary: true }, Mirror::Attach { replica: 0, is_empty: false, is_new: true }]
        {
            self.primary_input(primary::Input::Command(CommandId(0), wanted));
        }
        self.around.model.stage = Stage::None;
        self.around.model.epoch = 0;
        self.connect();
        self.pump();
        self.around.model.epoch = 1;
    }

    pub(super) fn steps(&self, acts: &[Act]) -> Vec<Step> {
        let around = &self.around;
        let may_fail = around.faults_left != 0;
        let mut steps = Vec::with_capacity(16);
        steps.extend((0..around.primary_disk.in_flight.len()).map(Step::Primary));
        for nth in 0..around.disk.in_flight.len() {
            steps.extend(around.disk.ends(nth, may_fail).map(|end| Step::Disk(nth, end)));
        }
        for nth in 0..around.buffer.in_flight.len() {
            steps.extend(around.buffer.ends(nth, may_fail).map(|end| Step::Buffer(nth, end)));
        }
        let link = &around.link;
        let simple = [
            (Step::Receive, !link.wire.is_empty()),
            (Step::Gone, link.old.is_some()),
            (Step::Return, !link.returning.is_empty()),
            (Step::Question, !around.control.questions.is_empty()),
            (Step::Answer, !around.control.answers.is_empty()),
            (Step::Time, self.secondary.poll_timeout().is_some()),
        ];
        steps.extend(simple.into_iter().filter(|(_, is_possible)| *is_possible).map(|(step, _)| step));
        if around.inputs_left != 0 {
            steps.extend(acts.iter().filter(|act| self.is_possible(**act)).map(|act| Step::Act(*act)));
        }
        steps
    }

    fn is_possible(&self, act: Act) -> bool {
        let Self { around, coordinator, .. } = self;
        match act {
            Act::Write(_) => around.flying.len() < 3,
            Act::Checkpoint | Act::UrgentCheckpoint => {
                !coordinator.is_busy() && !around.control.has_failed_over
            }
            Act::Cut => around.link.session.is_some(),
            Act::Connect => around.link.session.is_none() && around.link.old.is_none(),
            Act::GiveUp => coordinator.is_busy(),
            Act::Failover => !around.control.has_failed_over,
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        self.around.model.is_disturbed |= match step {
            Step::Act(act) => matches!(act, Act::Cut | Act::GiveUp | Act::Failover),
            Step::Disk(_, end) | Step::Buffer(_, end) => end != End::Done,
            Step::Time => true,
            _ => false,
        };
        match step {
            Step::Act(act) => self.act(act),
            Step::Primary(nth) => {
                let completion =
                    self.around.primary_disk.complete(nth, End::Done, &mut self.around.primary_arena);
                self.primary_input(primary::Input::Completed(Device::Disk, completion));
            }
            Step::Disk(nth, end) => {
                self.around.faults_left -= u8::from(end != End::Done);
                let completion = self.around.disk.complete(nth, end, &mut self.around.arena);
                self.secondary_input(secondary::Input::Completed(Device::Disk, completion));
            }
            Step::Buffer(nth, end) => {
                self.around.faults_left -= u8::from(end != End::Done);
                let completion = self.around.buffer.complete(nth, end, &mut self.around.arena);
                self.secondary_input(secondary::Input::Completed(Device::Buffer, completion));
            }
            Step::Receive => self.receive(),
            Step::Gone => {
                let connection = self.around.link.old.take().expect("one is gone");
                self.around.link.wire.clear();
                self.secondary_input(secondary::Input::Closed { connection, is_clean: false });
            }
            Step::Return => {
                let (message, result) = self.around.link.returning.remove(0);
                let waits = |other: &Message| other.transfer.tag == message.transfer.tag;
                let place = self.around.link.unanswered.iter().position(waits).expect("it waits for it");
                self.around.link.unanswered.remove(place);
                self.completed(&message.transfer, result.map(|()| Outcome::Done));
            }
            Step::Question => self.question(),
            Step::Answer => self.answer(),
            Step::Time => {
                self.around.now = self.secondary.poll_timeout().expect("it waits for a time");
                self.secondary.handle_timeout(self.around.now);
            }
        }
        self.pump();
        self.check();
    }

    fn primary_input(&mut self, input: primary::Input) {
        let taken = self.primary.handle_input(self.around.now, input);
        assert_eq!(taken, Ok(()), "{input:?} was not taken");
    }

    fn secondary_input(&mut self, input: secondary::Input) {
        let taken = self.secondary.handle_input(self.around.now, input);
        assert_eq!(taken, Ok(()), "{input:?} was not taken");
    }

    fn completed(&mut self, transfer: &Transfer, result: Result<Outcome, Errno>) {
        let completion = Completion { tag: transfer.tag, result };
        self.primary_input(primary::Input::Completed(Device::Replica(0), completion));
    }

    /// A name that nothing else has now; those of writes are symbols too, and are never used again.
    fn name(&self) -> u8 {
        let Control { asked, begun, barrier, .. } = &self.around.control;
        let is_free = |name: &u8| {
            asked.iter().all(|asked| asked.2 != *name)
                && self.around.link.incoming.iter().all(|incoming| incoming.name != *name)
                && *begun != Some(*name)
                && *barrier != Some(*name)
        };
        (super::OLD + 1..).find(is_free).unwrap_or_default()
    }

    fn act(&mut self, act: Act) {
        self.around.inputs_left -= 1;
        match act {
            Act::Write((from, to)) => {
                self.around.names_used += 1;
                let name = self.around.names_used;
                let extent = Extent::between(u64::from(from) * BLOCK, u64::from(to) * BLOCK);
                let is_free =
                    |buffer: &u16| self.around.flying.iter().all(|flying| flying.data.buffer.0 != *buffer);
                let buffer = BufferIndex((0..).find(is_free).unwrap_or_default());
                let data = Data { buffer, offset: 0, length: extent.length as u32 };
                let request = Request::whole(RequestId(name.into()), Op::Write { data, fua: false }, extent);
                self.around.primary_arena.blocks(data).fill(name);
                self.primary_input(primary::Input::Request(GUEST, request));
                self.around.flying.push(Flying { name, request, data }).expect("few are in flight");
            }
            Act::Checkpoint | Act::UrgentCheckpoint => {
                let name = self.name();
                self.around.control.round += 1;
                self.around.control.begun = Some(name);
                self.coordinator.enrol(VOLUME, true).expect("it is idle");
                let is_urgent = act == Act::UrgentCheckpoint;
                self.tell(Told::Begin { command: CommandId(name.into()), is_urgent });
            }
            Act::Cut => self.cut(),
            Act::Connect => self.connect(),
            Act::GiveUp => self.coordinator.handle_timeout(Micros(u64::MAX)),
            Act::Failover => {
                self.around.control.has_failed_over = true;
                let stop = Command::Stop { failover: true, force: false };
                self.secondary_input(secondary::Input::Command(CommandId(0), stop));
            }
        }
    }

    /// Something that the coordinator must take.
    fn tell(&mut self, input: Told) {
        let taken = self.coordinator.handle_input(Micros(0), input);
        assert_eq!(taken, Ok(()), "{input:?} was not taken");
    }

    fn connect(&mut self) {
        let link = &mut self.around.link;
        link.sessions_used += 1;
        link.modifications = 0;
        let connection = ConnectionId(link.sessions_used.into());
        link.session = Some(connection);
        let opened =
            secondary::Input::Opened { connection, port: Port::Replication, identity: Some(IDENTITY) };
        self.secondary_input(opened);
        self.primary_input(primary::Input::Connected(0, Disk::<BLOCKS>::geometry(false)));
    }

    fn cut(&mut self) {
        let link = &mut self.around.link;
        link.old = link.session.take();
        link.returning.clear();
        let failed = core::mem::take(&mut link.unanswered);
        self.primary_input(primary::Input::Disconnected(0));
        for message in failed {
            self.completed(&message.transfer, Err(Errno::Io));
        }
    }

    /// The secondary receives what was sent next, if it has room.
    fn receive(&mut self) {
        let message = *self.around.link.wire.first().expect("something was sent");
        let session = self.around.link.session.or(self.around.link.old).expect("somebody has sent it");
        let name = self.name();
        let Transfer { action, extent, .. } = message.transfer;
        let (op, data) = match action {
            Action::Write { fua, .. } => {
                let owns = |incoming: &Incoming, buffer: u16| {
                    incoming.data.is_some_and(|data| data.buffer.0 == buffer)
                };
                let is_free =
                    |buffer: &u16| !self.around.link.incoming.iter().any(|incoming| owns(incoming, *buffer));
                let buffer = BufferIndex((1..).find(is_free).unwrap_or_default());
                let data = Data { buffer, offset: 0, length: extent.length as u32 };
                let count = range(extent).len();
                self.around.arena.blocks(data).copy_from_slice(&message.symbols[..count]);
                (Op::Write { data, fua }, Some(data))
            }
            _ => (Op::Flush, None),
        };
        let request = Request::whole(RequestId(name.into()), op, extent);
        self.secondary_input(secondary::Input::Request(session, request));
        self.around.link.wire.remove(0);
        let incoming = Incoming { name, session, message, data };
        self.around.link.incoming.push(incoming).expect("few are in flight");
    }

    /// The secondary receives a question of the coordinator.
    fn question(&mut self) {
        let (round, question) = self.around.control.questions.remove(0);
        let name = self.name();
        let wanted = match question {
            Question::Epoch => {
                let answer = Ok(self.secondary.epoch());
                return self.around.control.answers.push((round, question, answer)).expect("few answers");
            }
            Question::Prepare { epoch, modifications } => {
                Command::Prepare { epoch, claim: IDENTITY, modifications }
            }
            Question::Commit { epoch } => Command::Commit { epoch, claim: IDENTITY },
        };
        let input = secondary::Input::Command(CommandId(name.into()), wanted);
        match self.secondary.handle_input(self.around.now, input) {
            Ok(()) => self.around.control.asked.push((round, question, name)).expect("few questions"),
            Err(refused) => {
                self.around.control.answers.push((round, question, Err(refused))).expect("few answers");
            }
        }
    }

    /// The coordinator receives an answer; those of a checkpoint that was given up are of no use.
    fn answer(&mut self) {
        let (round, question, result) = self.around.control.answers.remove(0);
        if round != self.around.control.round {
            return;
        }
        let told = match question {
            Question::Epoch => Told::Epoch(MEMBER, result),
            Question::Prepare { .. } => Told::Prepared(MEMBER, result.map(|_| ())),
            Question::Commit { .. } => Told::Committed(MEMBER, result.map(|_| ())),
        };
        let taken = self.coordinator.handle_input(Micros(0), told);
        assert!(matches!(taken, Ok(()) | Err(Refused::Stale)), "{taken:?}");
    }

    /// Lets all of them do what they can, and hears what they say.
    fn pump(&mut self) {
        for _ in 0..OUTPUTS_MAX {
            if let Some(output) = self.primary.poll_output() {
                note(|| format!("        primary: {output:?}"));
                self.primary_says(output);
            } else if let Some(output) = self.secondary.poll_output() {
                note(|| format!("        secondary: {output:?}"));
                self.secondary_says(output);
            } else if let Some(wish) = self.coordinator.poll_output() {
                note(|| format!("        coordinator: {wish:?}"));
                self.coordinate(wish);
            } else {
                return;
            }
        }
        panic!("they never come to rest");
    }

    fn primary_says(&mut self, output: Output) {
        match output {
            Output::Transfer(Device::Replica(_), transfer) => self.send(transfer),
            Output::Transfer(_, transfer) => self.around.primary_disk.submit(transfer),
            Output::Reply(reply) => self.replied(&reply),
            Output::Notice(Notice::Event(Event::Replica(_, state))) => {
                self.tell(Told::Replica(MEMBER, state));
            }
            Output::Notice(Notice::Answer(command, result)) => {
                if self.around.control.barrier == Some(command.0 as u8) {
                    self.around.control.barrier = None;
                    // One that was given up is of no use.
                    let _ = self.coordinator.handle_input(Micros(0), Told::Barrier(VOLUME, result));
                }
            }
            Output::Fill(_) | Output::Notice(_) => {}
        }
    }

    fn send(&mut self, transfer: Transfer) {
        let mut symbols = [0; WINDOW_BLOCKS];
        if let Action::Write { data, .. } = transfer.action {
            let blocks = self.around.primary_arena.blocks(data);
            symbols[..blocks.len()].copy_from_slice(blocks);
        }
        let link = &mut self.around.link;
        assert!(link.session.is_some(), "nobody is there for {transfer:?}");
        link.modifications += u64::from(is_modification(&transfer));
        let message = Message { transfer, symbols };
        link.wire.push(message).expect("few are in flight");
        link.unanswered.push(message).expect("few are in flight");
    }

    fn secondary_says(&mut self, output: Output) {
        match output {
            Output::Transfer(Device::Disk, transfer) => self.around.disk.submit(transfer),
            Output::Transfer(_, transfer) => self.around.buffer.submit(transfer),
            Output::Fill(data) => self.around.arena.blocks(data).fill(0),
            Output::Reply(reply) => {
                let is_it = |incoming: &Incoming| u32::from(incoming.name) == reply.id.0;
                let place = self.around.link.incoming.iter().position(is_it).expect("it is in flight");
                let incoming = self.around.link.incoming.remove(place);
                if let Some(data) = incoming.data {
                    self.around.arena.0[usize::from(data.buffer.0)] = [POISON; WINDOW_BLOCKS];
                }
                if self.around.link.session == Some(incoming.session) {
                    let answer = (incoming.message, reply.result.map(|_| ()));
                    self.around.link.returning.push(answer).expect("few are in flight");
                }
            }
            Output::Notice(Notice::Answer(command, result)) => {
                self.secondary_answered(command.0 as u8, result);
            }
            Output::Notice(Notice::Close(connection)) => panic!("{connection:?} shall be closed"),
            Output::Notice(Notice::Event(Event::Stage(stage))) => self.around.model.stage = stage,
            Output::Notice(Notice::Event(_)) => {}
        }
    }

    fn secondary_answered(&mut self, name: u8, result: Result<(), Refused>) {
        let is_it = |asked: &(u8, Question, u8)| asked.2 == name;
        let Some(place) = self.around.control.asked.iter().position(is_it) else { return };
        let (round, question, _) = self.around.control.asked.remove(place);
        if let (Question::Commit { .. }, Ok(())) = (question, result) {
            self.committed(round);
        }
        let answer = (round, question, result.map(|()| 0));
        self.around.control.answers.push(answer).expect("few answers");
    }

    fn coordinate(&mut self, wish: Wish) {
        let round = self.around.control.round;
        let mut ask =
            |question| self.around.control.questions.push((round, question)).expect("few questions");
        match wish {
            Wish::AskEpoch(_) => ask(Question::Epoch),
            Wish::Prepare { epoch, .. } => {
                ask(Question::Prepare { epoch, modifications: self.around.link.modifications });
                self.take_snapshot();
            }
            Wish::Commit { epoch, .. } => ask(Question::Commit { epoch }),
            Wish::Barrier { is_urgent, .. } => {
                let name = self.name();
                self.around.control.barrier = Some(name);
                let barrier = Mirror::Barrier { is_urgent };
                self.primary_input(primary::Input::Command(CommandId(name.into()), barrier));
            }
            Wish::Hurry(_) => {
                let name = self.name();
                self.primary_input(primary::Input::Command(CommandId(name.into()), Mirror::Hurry));
            }
            Wish::Release { is_checkpoint, .. } => {
                let name = self.name();
                let release = Mirror::Release { is_checkpoint };
                self.primary_input(primary::Input::Command(CommandId(name.into()), release));
            }
            Wish::Missing(_) => self.primary_input(primary::Input::Missing(0)),
            Wish::LeftOut(_) => {}
            Wish::Answer(command, result) => {
                assert_eq!(self.around.control.begun, Some(command.0 as u8), "C3");
                self.around.control.begun = None;
                self.checkpointed(result.is_ok());
            }
        }
    }

    pub(super) fn describe(&self, step: Step) -> String {
        let around = &self.around;
        let what = match step {
            Step::Primary(nth) => {
                format!("the primary disk ends: {:?}", around.primary_disk.in_flight[nth].transfer)
            }
            Step::Disk(nth, end) => {
                format!("the disk ends {end:?}: {:?}", around.disk.in_flight[nth].transfer)
            }
            Step::Buffer(nth, end) => {
                format!("the buffer ends {end:?}: {:?}", around.buffer.in_flight[nth].transfer)
            }
            Step::Receive => format!("receive {:?}", around.link.wire[0].transfer),
            Step::Return => format!("return {:?}", around.link.returning[0]),
            Step::Question => format!("question {:?}", around.control.questions[0]),
            Step::Answer => format!("answer {:?}", around.control.answers[0]),
            Step::Act(_) | Step::Gone | Step::Time => format!("{step:?} (name {})", around.names_used + 1),
        };
        let disks = [around.primary_disk.content, around.disk.content, around.model.view];
        const { assert!(BLOCKS == 4) }
        format!("{:?} disks and view {disks:x?}\n    {what}", around.model.stage)
    }
}
