//! The coordinator of checkpoints by inputs in any order.
//!
//! No commit is sent before each replica that takes part has prepared, each barrier is released once, and each command
//! is answered once, with success only if all that were told to commit have done so. What nobody asked for is refused.

use arbitrary::{Arbitrary, Result, Unstructured};
use twinblock_core::node::{Coordinator, Input, Member, MemberIndex, NodeIndex, Output, Volume, VolumeIndex};
use twinblock_core::{CommandId, Micros, Refused, ReplicaState};

use crate::script::{below, one_of, rarely, steps};

/// Volumes and replicas of the node.
const PLACES: u16 = 3;
/// A checkpoint is given up after this time.
const TIMEOUT: Micros = Micros(1000);

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Begin {
        is_urgent: bool,
    },
    Barrier {
        volume: u16,
        is_ok: bool,
    },
    /// A replica answers its question; `None` refuses.
    Answer {
        member: u16,
        answer: Option<u64>,
        refused: Refused,
    },
    /// The question's answer never comes.
    Lose {
        member: u16,
    },
    /// An answer that nothing was asked for.
    Forge {
        member: u16,
        kind: u8,
    },
    Replica {
        member: u16,
        state: ReplicaState,
    },
    Enrol {
        volume: u16,
        is_in: bool,
    },
    Add {
        volume: u16,
    },
    Remove {
        member: u16,
    },
    Wait(u64),
    /// So many outputs are taken, and no more.
    Poll(u8),
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let index = |bytes: &mut Unstructured<'a>| -> Result<u16> {
            if rarely(bytes, 64)? { u16::arbitrary(bytes) } else { Ok(below(bytes, PLACES.into())? as u16) }
        };
        Ok(match below(bytes, 24)? {
            0..3 => Self::Begin { is_urgent: bool::arbitrary(bytes)? },
            3..6 => Self::Barrier { volume: index(bytes)?, is_ok: !rarely(bytes, 8)? },
            6..13 => {
                let answer = if rarely(bytes, 8)? { None } else { Some(u64::from(below(bytes, 4)?)) };
                let refused = one_of(bytes, &[Refused::Missing, Refused::TimedOut, Refused::OtherClaim])?;
                Self::Answer { member: index(bytes)?, answer, refused }
            }
            13 => Self::Lose { member: index(bytes)? },
            14 => Self::Forge { member: index(bytes)?, kind: u8::arbitrary(bytes)? },
            15..18 => {
                let states = [
                    ReplicaState::Current,
                    ReplicaState::Current,
                    ReplicaState::Behind,
                    ReplicaState::Disconnected,
                ];
                Self::Replica { member: index(bytes)?, state: one_of(bytes, &states)? }
            }
            18 => Self::Enrol { volume: index(bytes)?, is_in: !rarely(bytes, 4)? },
            19 => Self::Add { volume: index(bytes)? },
            20 => Self::Remove { member: index(bytes)? },
            21 => Self::Wait(u64::from(u8::arbitrary(bytes)?) * 8),
            _ => Self::Poll(below(bytes, 8)? as u8),
        })
    }
}

/// A node's life.
#[derive(Debug)]
pub struct Script {
    /// Each volume takes part and has a replica that is current.
    is_ready: bool,
    /// Outputs are taken only where the script says so.
    is_slow: bool,
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Script {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let bits = u8::arbitrary(bytes)?;
        Ok(Self { is_ready: bits & 1 == 0, is_slow: bits & 6 == 6, steps: steps(bytes)? })
    }
}

/// Plays a script.
///
/// # Panics
/// On a finding.
pub fn run(script: &Script) {
    let mut volumes = [Volume::FREE; PLACES as usize];
    let mut members = [Member::FREE; PLACES as usize];
    let mut world = World {
        machine: Coordinator::new(&mut volumes, &mut members, TIMEOUT),
        now: Micros(0),
        command: None,
        names: 0,
        raised: [false; PLACES as usize],
        asked: [None; PLACES as usize],
        members: [None; PLACES as usize],
    };
    if script.is_ready {
        for place in 0..PLACES {
            world.play(Step::Enrol { volume: place, is_in: true });
            world.play(Step::Add { volume: place });
            world.play(Step::Replica { member: place, state: ReplicaState::Current });
        }
    }
    for step in &script.steps {
        world.play(*step);
        if !script.is_slow {
            world.poll(u8::MAX);
        }
    }
    world.finish();
}

/// A question to a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Question {
    Epoch,
    Prepare(u64),
    Commit(u64),
}

/// What is known of a replica in this checkpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    prepared: Option<u64>,
    /// It was told to commit.
    told: bool,
    committed: bool,
    /// It was asked something since the checkpoint began.
    was_asked: bool,
    is_out: bool,
    node: u16,
}

struct World<'m> {
    machine: Coordinator<'m>,
    now: Micros,
    command: Option<CommandId>,
    names: u32,
    raised: [bool; PLACES as usize],
    /// The question that each replica has not answered.
    asked: [Option<Question>; PLACES as usize],
    members: [Option<Part>; PLACES as usize],
}

impl World<'_> {
    fn play(&mut self, step: Step) {
        match step {
            Step::Begin { is_urgent } => {
                self.names += 1;
                let command = CommandId(self.names);
                let was_busy = self.machine.is_busy();
                let result = self.offer(Input::Begin { command, is_urgent });
                assert_eq!(result.is_err(), was_busy);
                if result.is_ok() {
                    self.command = Some(command);
                    for part in self.members.iter_mut().flatten() {
                        *part = Part { node: part.node, ..Part::default() };
                    }
                }
            }
            Step::Barrier { volume, is_ok } => {
                let result = if is_ok { Ok(()) } else { Err(Refused::NotRunning) };
                let was_raised = self.raised.get(usize::from(volume)).copied().unwrap_or_default();
                let taken = self.offer(Input::Barrier(VolumeIndex(volume), result));
                assert!(was_raised || taken.is_err(), "an answer that nothing was asked for");
                if taken.is_ok() && !is_ok {
                    self.raised[usize::from(volume)] = false;
                }
            }
            Step::Answer { member, answer, refused } => self.answer(member, answer.ok_or(refused)),
            Step::Lose { member } => {
                self.machine.forget_epoch(MemberIndex(member));
                self.answer(member, Err(Refused::TimedOut));
            }
            Step::Forge { member, kind } => self.forge(member, kind),
            Step::Replica { member, state } => {
                let is_known = self.members.get(usize::from(member)).is_some_and(Option::is_some);
                let result = self.offer(Input::Replica(MemberIndex(member), state));
                assert_eq!(result.is_ok(), is_known);
            }
            Step::Enrol { volume, is_in } => {
                let was_busy = self.machine.is_busy();
                let result = self.machine.enrol(VolumeIndex(volume), is_in);
                assert_eq!(result.is_ok(), !was_busy && volume < PLACES);
            }
            Step::Add { volume } => self.add(volume),
            Step::Remove { member } => {
                self.machine.remove_member(MemberIndex(member));
                if let Some(place) = self.members.get_mut(usize::from(member)) {
                    *place = None;
                    self.asked[usize::from(member)] = None;
                }
            }
            Step::Wait(span) => {
                self.now = self.now.after(Micros(span));
                self.machine.handle_timeout(self.now);
            }
            Step::Poll(count) => self.poll(count),
        }
    }

    /// The first and the third volume have their replicas on one node.
    fn add(&mut self, volume: u16) {
        let node = volume % 2;
        match self.machine.add_member(VolumeIndex(volume), NodeIndex(node)) {
            Ok(MemberIndex(index)) => {
                let place = &mut self.members[usize::from(index)];
                assert!(place.is_none(), "a place twice");
                *place = Some(Part { node, ..Part::default() });
            }
            Err(refused) => {
                assert!(refused == Refused::NoRoom && self.members.iter().all(Option::is_some));
            }
        }
    }

    fn offer(&mut self, input: Input) -> std::result::Result<(), Refused> {
        self.machine.handle_input(self.now, input)
    }

    fn answer(&mut self, member: u16, result: std::result::Result<u64, Refused>) {
        let Some(question) = self.asked.get_mut(usize::from(member)).and_then(Option::take) else { return };
        let index = MemberIndex(member);
        let done = result.map(|_| ());
        let taken = match question {
            Question::Epoch => self.offer(Input::Epoch(index, result)),
            Question::Prepare(_) => self.offer(Input::Prepared(index, done)),
            Question::Commit(_) => self.offer(Input::Committed(index, done)),
        };
        let Some(part) = &mut self.members[usize::from(member)] else { return };
        if taken.is_ok() && result.is_ok() {
            match question {
                Question::Epoch => {}
                Question::Prepare(epoch) => part.prepared = Some(epoch),
                Question::Commit(_) => part.committed = true,
            }
        }
    }

    /// Only what was not asked is forged: an answer to a question that waits is an answer.
    fn forge(&mut self, member: u16, kind: u8) {
        let index = MemberIndex(member);
        if self.asked.get(usize::from(member)).is_some_and(Option::is_some) {
            return;
        }
        let was_busy = self.machine.is_busy();
        let result = match kind % 3 {
            0 => self.offer(Input::Epoch(index, Ok(3))),
            1 => self.offer(Input::Prepared(index, Ok(()))),
            _ => self.offer(Input::Committed(index, Ok(()))),
        };
        // The machine cannot know of an answer that was lost on its way.
        let was_asked = self.members.get(usize::from(member)).and_then(|part| *part);
        let was_asked = was_asked.is_some_and(|part| part.was_asked);
        assert!(result.is_err() || was_busy && was_asked, "an answer that nothing was asked for");
        if let (Ok(()), Some(Some(part))) = (result, self.members.get_mut(usize::from(member))) {
            match kind % 3 {
                0 => {}
                1 => part.prepared = part.prepared.or(Some(u64::MAX)),
                _ => part.committed = true,
            }
        }
    }

    fn poll(&mut self, count: u8) {
        for _ in 0..count {
            let Some(output) = self.machine.poll_output() else { return };
            self.handle(output);
        }
        assert!(count != u8::MAX, "it does not come to rest");
    }

    fn handle(&mut self, output: Output) {
        match output {
            Output::Barrier { volume, .. } => {
                let raised = &mut self.raised[usize::from(volume.0)];
                assert!(!*raised && self.command.is_some(), "a barrier is raised once");
                *raised = true;
            }
            Output::Hurry(volume) => {
                assert!(self.raised[usize::from(volume.0)], "no barrier to hurry");
            }
            Output::Release { volume, is_checkpoint } => {
                let raised = &mut self.raised[usize::from(volume.0)];
                assert!(std::mem::take(raised), "a barrier is released once");
                assert!(!is_checkpoint || self.is_committed(), "a checkpoint that was not taken");
            }
            Output::AskEpoch(member) => self.ask(member, Question::Epoch),
            Output::Prepare { member, epoch } => self.ask(member, Question::Prepare(epoch)),
            Output::Commit { member, epoch, together } => {
                let mut parts = self.members.iter().flatten();
                let is_early = |part: &Part| part.was_asked && !part.is_out && part.prepared.is_none();
                assert!(!parts.any(is_early), "a commit before all have prepared");
                let part = self.members[usize::from(member.0)].as_mut().expect("a replica");
                let prepared = part.prepared.expect("it has prepared");
                assert!(prepared == epoch || prepared == u64::MAX, "another epoch than was prepared");
                part.told = true;
                let node = part.node;
                let of_it = self.members.iter().flatten().filter(|part| part.node == node && part.was_asked);
                let (asked, out) = (of_it.clone().count(), of_it.filter(|part| part.is_out).count());
                assert_eq!(out, 0, "C4: a part of a node commits");
                assert_eq!(usize::from(together), asked);
                self.ask(member, Question::Commit(epoch));
            }
            Output::LeftOut(member) => {
                if let Some(part) = &mut self.members[usize::from(member.0)] {
                    part.is_out = true;
                }
            }
            Output::Missing(_) => {}
            Output::Answer(command, result) => {
                assert_eq!(self.command.take(), Some(command), "a command is answered once");
                assert!(self.raised.iter().all(|raised| !raised), "a barrier is left");
                assert!(result.is_err() || self.is_committed(), "success without a checkpoint");
            }
        }
    }

    fn ask(&mut self, member: MemberIndex, question: Question) {
        let part = self.members[usize::from(member.0)].as_mut().expect("a replica");
        part.was_asked = true;
        self.asked[usize::from(member.0)] = Some(question);
    }

    /// Whoever was told to commit has done so.
    fn is_committed(&self) -> bool {
        self.members.iter().flatten().all(|part| !part.told || part.committed)
    }

    fn finish(&mut self) {
        self.poll(u8::MAX);
        self.play(Step::Wait(TIMEOUT.0));
        self.poll(u8::MAX);
        assert!(!self.machine.is_busy() && self.command.is_none(), "a checkpoint never ends");
        assert!(self.raised.iter().all(|raised| !raised), "a barrier is left");
    }
}
