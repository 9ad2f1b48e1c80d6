//! The coordinator of checkpoints, and the way its questions and the answers to them take: late, lost, or overtaken by
//! what goes over the data link. The n-th replicas of all volumes are on one node, and share a way.
//!
//! As in the daemon, an answer is known by the name of its question. A question of which a checkpoint has ended without an
//! answer is forgotten: the answer that comes late is none to the questions of the next checkpoint.

use std::rc::Rc;
use twinblock_core::node::{Coordinator, Failure, Input, MemberIndex, NodeIndex, Output, VolumeIndex};
use twinblock_core::{CommandId, Micros, Refused, ReplicaState};

use super::settings::{REPLICAS, VOLUMES};
use super::standby::Snapshot;
use super::world::Place;

/// Replicas of all volumes.
const PLACES: usize = VOLUMES * REPLICAS;

/// What a secondary is asked.
#[derive(Clone, Debug)]
pub(super) enum Question {
    Epoch,
    Prepare {
        epoch: u64,
        modifications: u64,
        snapshot: Rc<Snapshot>,
    },
    /// With how many volumes of the node commit together.
    Commit {
        epoch: u64,
        together: u16,
    },
}

/// A question or an answer under way.
#[derive(Clone, Debug)]
pub(super) struct Message<T> {
    pub(super) name: u64,
    pub(super) place: Place,
    pub(super) what: T,
}

/// Where a checkpoint stands, as far as its questions tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Barrier,
    Ask,
    Prepare,
    Commit,
}

/// The coordinator and its control links.
#[derive(Debug)]
pub(super) struct Control<'m> {
    coordinator: Coordinator<'m>,
    members: [Option<MemberIndex>; PLACES],
    pub(super) phase: Phase,
    pub(super) questions: Vec<Message<Question>>,
    /// Epochs, or 0 where nothing is told.
    pub(super) answers: Vec<Message<Result<u64, Refused>>>,
    /// Questions whose answers are listened to, with a copy.
    listened: Vec<Message<Question>>,
    names_used: u64,
    /// Replicas that were asked to prepare for this checkpoint, and whether they have.
    prepared: [Option<bool>; PLACES],
    /// A commit was sent and no answer has come: the epoch must be asked for.
    is_unknown: [bool; PLACES],
    pub(super) states: [ReplicaState; PLACES],
    pub(super) left_out: Vec<Place>,
    pub(super) results: Vec<Result<(), Failure>>,
    /// Volumes that take part, and whether each had replicas when the barriers were reached.
    enrolled: [bool; VOLUMES],
    pub(super) is_known: [bool; VOLUMES],
    /// Replicas that were attached then.
    attached: [bool; PLACES],
    /// A message or a link was lost at some time.
    pub(super) has_lost: bool,
}

/// What only the world can do.
#[derive(Debug)]
pub(super) enum Wish {
    Barrier {
        volume: usize,
        is_urgent: bool,
    },
    Hurry(usize),
    Release {
        volume: usize,
        is_checkpoint: bool,
    },
    /// With the number of modifications that were sent.
    Prepare {
        place: Place,
        epoch: u64,
    },
    Missing(Place),
}

impl<'m> Control<'m> {
    pub(super) fn new(coordinator: Coordinator<'m>) -> Self {
        Self {
            coordinator,
            members: [None; PLACES],
            phase: Phase::Idle,
            questions: Vec::new(),
            answers: Vec::new(),
            listened: Vec::new(),
            names_used: 0,
            prepared: [None; PLACES],
            is_unknown: [false; PLACES],
            states: [ReplicaState::Disconnected; PLACES],
            left_out: Vec::new(),
            results: Vec::new(),
            enrolled: [false; VOLUMES],
            is_known: [false; VOLUMES],
            attached: [false; PLACES],
            has_lost: false,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.coordinator.is_busy()
    }

    pub(super) fn is_current(&self, place: Place) -> bool {
        self.states[place.flat()] == ReplicaState::Current
    }

    /// Whether something is on its way.
    pub(super) fn is_under_way(&self) -> bool {
        !self.questions.is_empty() || !self.answers.is_empty()
    }

    pub(super) fn poll_timeout(&self) -> Option<Micros> {
        self.coordinator.poll_timeout()
    }

    fn place(&self, member: MemberIndex) -> Place {
        Place::at(self.members.iter().position(|known| *known == Some(member)).expect("it was added"))
    }

    /// A replica is attached.
    pub(super) fn add(&mut self, place: Place) {
        let volume = VolumeIndex(place.volume as u16);
        let member =
            self.coordinator.add_member(volume, NodeIndex(place.replica as u16)).expect("there is room");
        self.members[place.flat()] = Some(member);
        self.states[place.flat()] = ReplicaState::Disconnected;
    }

    /// A replica is detached: its control link is closed.
    pub(super) fn remove(&mut self, place: Place) {
        let member = self.members[place.flat()].take().expect("it was added");
        self.forget(place);
        self.coordinator.remove_member(member);
        self.prepared[place.flat()] = None;
        self.is_unknown[place.flat()] = false;
        self.states[place.flat()] = ReplicaState::Disconnected;
        self.attached[place.flat()] = false;
        if self.phase == Phase::Commit {
            // What is told to commit goes on without it.
            self.is_known[place.volume] &= self.takes_part(place.volume);
        }
    }

    pub(super) fn begin(&mut self, now: Micros, is_urgent: bool, running: &[bool]) {
        for (volume, is_in) in running.iter().enumerate() {
            self.enrolled[volume] = *is_in;
            self.coordinator.enrol(VolumeIndex(volume as u16), *is_in).expect("it is idle");
        }
        let command = CommandId(0);
        self.coordinator.handle_input(now, Input::Begin { command, is_urgent }).expect("it is idle");
        self.prepared = [None; PLACES];
        self.is_known = [false; VOLUMES];
        self.attached = [false; PLACES];
        self.left_out.clear();
        self.phase = Phase::Barrier;
    }

    pub(super) fn barrier(&mut self, now: Micros, volume: usize, result: Result<(), Refused>) {
        // One that comes after the time-out is stale.
        let _ = self.coordinator.handle_input(now, Input::Barrier(VolumeIndex(volume as u16), result));
        self.is_known = [false; VOLUMES];
        for (flat, member) in self.members.iter().enumerate() {
            let of = Place::at(flat).volume;
            self.attached[flat] = member.is_some() && self.enrolled[of];
            self.is_known[of] |= self.attached[flat];
        }
    }

    pub(super) fn replica_changed(&mut self, now: Micros, place: Place, state: ReplicaState) {
        let Some(member) = self.members[place.flat()] else { return };
        self.states[place.flat()] = state;
        self.coordinator.handle_input(now, Input::Replica(member, state)).expect("it was added");
    }

    /// What has taken too long is given up.
    pub(super) fn handle_timeout(&mut self, now: Micros) {
        self.coordinator.handle_timeout(now);
    }

    /// A question or an answer is lost.
    pub(super) fn lose(&mut self, which: usize) {
        self.has_lost = true;
        if which < self.questions.len() {
            self.questions.remove(which);
        } else {
            self.answers.remove(which - self.questions.len());
        }
    }

    /// The control link to a node is lost, with what is under way on it.
    pub(super) fn lose_link(&mut self, now: Micros, node: usize) {
        for volume in 0..VOLUMES {
            self.lose_link_of(now, Place { volume, replica: node });
        }
    }

    fn lose_link_of(&mut self, now: Micros, place: Place) {
        let Some(member) = self.members[place.flat()] else { return };
        self.has_lost = true;
        self.forget(place);
        self.coordinator.forget_epoch(member);
        for input in [
            Input::Epoch(member, Err(Refused::TimedOut)),
            Input::Prepared(member, Err(Refused::TimedOut)),
            Input::Committed(member, Err(Refused::TimedOut)),
        ] {
            // Only the one that is waited for is taken.
            let _ = self.coordinator.handle_input(now, input);
        }
    }

    fn forget(&mut self, place: Place) {
        self.questions.retain(|message| message.place != place);
        self.answers.retain(|message| message.place != place);
        self.listened.retain(|message| message.place != place);
    }

    fn question_of(&self, name: u64) -> Option<usize> {
        self.listened.iter().position(|asked| asked.name == name)
    }

    /// What the coverage table calls an answer that is listened to.
    pub(super) fn name_of(&self, answer: &Message<Result<u64, Refused>>) -> Option<&'static str> {
        let asked = &self.listened[self.question_of(answer.name)?];
        Some(match (&asked.what, answer.what.is_ok()) {
            (Question::Epoch, true) => "epoch",
            (Question::Epoch, false) => "epoch refused",
            (Question::Prepare { .. }, true) => "prepared",
            (Question::Prepare { .. }, false) => "prepare refused",
            (Question::Commit { .. }, true) => "committed",
            (Question::Commit { .. }, false) => "commit refused",
        })
    }

    /// An answer has arrived.
    pub(super) fn hear(&mut self, now: Micros, answer: &Message<Result<u64, Refused>>) {
        let Some(asked) = self.question_of(answer.name) else { return };
        let Message { place, what: question, .. } = self.listened.remove(asked);
        let member = self.members[place.flat()].expect("it is there");
        let unit = answer.what.map(|_| ());
        let input = match question {
            Question::Epoch => Input::Epoch(member, answer.what),
            Question::Prepare { .. } => {
                if self.prepared[place.flat()].is_some() {
                    self.prepared[place.flat()] = Some(answer.what.is_ok());
                }
                Input::Prepared(member, unit)
            }
            Question::Commit { .. } => Input::Committed(member, unit),
        };
        let is_commit = matches!(question, Question::Commit { .. });
        let is_heard = self.coordinator.handle_input(now, input).is_ok();
        if is_heard && is_commit && answer.what.is_ok() {
            self.is_unknown[place.flat()] = false;
        }
    }

    fn ask(&mut self, place: Place, question: Question) {
        self.names_used += 1;
        let name = self.names_used;
        self.listened.push(Message { name, place, what: question.clone() });
        self.questions.push(Message { name, place, what: question });
    }

    pub(super) fn ask_prepare(
        &mut self,
        place: Place,
        epoch: u64,
        modifications: u64,
        snapshot: Rc<Snapshot>,
    ) {
        self.prepared[place.flat()] = Some(false);
        self.ask(place, Question::Prepare { epoch, modifications, snapshot });
    }

    /// The next thing that only the world can do.
    pub(super) fn next_wish(&mut self) -> Option<Wish> {
        loop {
            match self.coordinator.poll_output()? {
                Output::Barrier { volume, is_urgent } => {
                    return Some(Wish::Barrier { volume: volume.0.into(), is_urgent });
                }
                Output::Hurry(volume) => return Some(Wish::Hurry(volume.0.into())),
                Output::Release { volume, is_checkpoint } => {
                    assert!(
                        !is_checkpoint || !self.awaits_commits(),
                        "a barrier goes before all have committed"
                    );
                    return Some(Wish::Release { volume: volume.0.into(), is_checkpoint });
                }
                Output::AskEpoch(member) => {
                    let place = self.place(member);
                    self.is_unknown[place.flat()] = false;
                    self.phase = Phase::Ask;
                    self.ask(place, Question::Epoch);
                }
                Output::Prepare { member, epoch } => {
                    let place = self.place(member);
                    self.phase = Phase::Prepare;
                    assert!(!self.is_unknown[place.flat()], "the epoch after a lost commit is guessed");
                    let is_current = self.states[place.flat()] == ReplicaState::Current;
                    assert!(is_current, "a replica that misses something takes part");
                    return Some(Wish::Prepare { place, epoch });
                }
                Output::Commit { member, epoch, together } => {
                    self.commit(self.place(member), epoch, together);
                }
                Output::LeftOut(member) => {
                    let place = self.place(member);
                    self.prepared[place.flat()] = None;
                    self.left_out.push(place);
                }
                Output::Missing(member) => return Some(Wish::Missing(self.place(member))),
                Output::Answer(_, result) => self.ended(result),
            }
        }
    }

    fn commit(&mut self, place: Place, epoch: u64, together: u16) {
        if self.phase != Phase::Commit {
            self.check_nodes();
        }
        self.phase = Phase::Commit;
        let is_ready = |prepared: &Option<bool>| *prepared != Some(false);
        assert!(
            self.prepared.iter().all(is_ready) && self.prepared[place.flat()] == Some(true),
            "C1: a commit before all have prepared: {:?}",
            self.prepared
        );
        self.is_unknown[place.flat()] = true;
        self.ask(place, Question::Commit { epoch, together });
    }

    /// C4: of the replicas of a node all commit that were attached when their volumes stood still, or none.
    fn check_nodes(&self) {
        for node in 0..REPLICAS {
            let places = (0..VOLUMES).map(|volume| Place { volume, replica: node }.flat());
            let mut attached = places.filter(|place| self.attached[*place]);
            let first = attached.next().map(|place| self.prepared[place].is_some());
            assert!(
                attached.all(|place| Some(self.prepared[place].is_some()) == first),
                "C4: a part of node {node} commits: {:?}",
                self.prepared
            );
        }
    }

    /// Whether a replica of a volume was asked to prepare, has, and was not left out.
    fn takes_part(&self, volume: usize) -> bool {
        (0..REPLICAS).any(|replica| self.prepared[Place { volume, replica }.flat()] == Some(true))
    }

    /// Whether all replicas of a node that are attached are current.
    pub(super) fn is_whole(&self, node: usize, running: &[bool]) -> bool {
        running.iter().enumerate().filter(|(_, is_running)| **is_running).all(|(volume, _)| {
            let place = Place { volume, replica: node }.flat();
            self.members[place].is_none() || self.states[place] == ReplicaState::Current
        })
    }

    /// Whether nothing that the coordinator knows of is in the way of a checkpoint of the volumes that run: each of them
    /// has no replicas, or one on a node that is whole.
    pub(super) fn is_possible(&self, running: &[bool]) -> bool {
        running.iter().enumerate().filter(|(_, is_running)| **is_running).all(|(volume, _)| {
            let is_attached =
                |replica: &usize| self.members[Place { volume, replica: *replica }.flat()].is_some();
            let mut attached = (0..REPLICAS).filter(is_attached).peekable();
            attached.peek().is_none() || attached.any(|node| self.is_whole(node, running))
        })
    }

    /// Whether one that takes part to the end has not told that it has committed.
    fn awaits_commits(&self) -> bool {
        let mut replicas = self.is_unknown.iter().zip(self.prepared);
        replicas.any(|(is_unknown, prepared)| prepared.is_some() && *is_unknown)
    }

    /// Whether a volume takes part in the checkpoint under way.
    pub(super) fn is_enrolled(&self, volume: usize) -> bool {
        self.enrolled[volume]
    }

    fn ended(&mut self, result: Result<(), Failure>) {
        self.phase = Phase::Idle;
        self.listened.clear();
        if result.is_ok() {
            let is_deserted = |volume: usize| self.is_known[volume] && !self.takes_part(volume);
            assert!(!(0..VOLUMES).any(is_deserted), "a checkpoint without a volume that has replicas");
            assert!(!self.awaits_commits(), "a checkpoint succeeds and one that prepared has not committed");
        }
        self.results.push(result);
    }
}
