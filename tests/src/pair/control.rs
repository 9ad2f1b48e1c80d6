//! The coordinator of checkpoints, and the way its questions and the answers to them take: late, lost, or overtaken by
//! what goes over the data link.

use std::rc::Rc;
use twinblock_core::node::{Coordinator, Failure, Input, MemberIndex, Output, VolumeIndex};
use twinblock_core::{CommandId, Micros, Refused, ReplicaState};

use super::settings::REPLICAS;
use super::standby::Snapshot;

/// The only volume.
pub(super) const VOLUME: VolumeIndex = VolumeIndex(0);

/// What a secondary is asked.
#[derive(Clone, Debug)]
pub(super) enum Question {
    Epoch,
    Prepare { epoch: u64, modifications: u64, snapshot: Rc<Snapshot> },
    Commit { epoch: u64 },
}

/// A question or an answer under way.
#[derive(Clone, Debug)]
pub(super) struct Message<T> {
    pub(super) name: u64,
    pub(super) replica: usize,
    pub(super) what: T,
}

/// The coordinator and its control links.
#[derive(Debug)]
pub(super) struct Control<'m> {
    coordinator: Coordinator<'m>,
    members: [Option<MemberIndex>; REPLICAS],
    pub(super) questions: Vec<Message<Question>>,
    /// Epochs, or 0 where nothing is told.
    pub(super) answers: Vec<Message<Result<u64, Refused>>>,
    /// Questions whose answers are listened to: name, replica, round and a copy.
    listened: Vec<(u64, usize, u64, Question)>,
    names_used: u64,
    round: u64,
    /// Replicas that have prepared in this round, and that were asked to.
    prepared: [Option<bool>; REPLICAS],
    /// A commit was sent and no answer has come: the epoch must be asked for.
    is_unknown: [bool; REPLICAS],
    pub(super) states: [ReplicaState; REPLICAS],
    pub(super) left_out: Vec<usize>,
    pub(super) results: Vec<Result<(), Failure>>,
    /// There were replicas when the barrier was reached.
    pub(super) is_known: bool,
}

/// What only the world can do.
#[derive(Debug)]
pub(super) enum Wish {
    Barrier {
        is_urgent: bool,
    },
    Release {
        is_checkpoint: bool,
    },
    /// With the number of modifications that were sent.
    Prepare {
        replica: usize,
        epoch: u64,
    },
    Missing(usize),
}

impl<'m> Control<'m> {
    pub(super) fn new(coordinator: Coordinator<'m>) -> Self {
        Self {
            coordinator,
            members: [None; REPLICAS],
            questions: Vec::new(),
            answers: Vec::new(),
            listened: Vec::new(),
            names_used: 0,
            round: 0,
            prepared: [None; REPLICAS],
            is_unknown: [false; REPLICAS],
            states: [ReplicaState::Disconnected; REPLICAS],
            left_out: Vec::new(),
            results: Vec::new(),
            is_known: false,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.coordinator.is_busy()
    }

    pub(super) fn poll_timeout(&self) -> Option<Micros> {
        self.coordinator.poll_timeout()
    }

    fn name(&mut self) -> u64 {
        self.names_used += 1;
        self.names_used
    }

    fn replica(&self, member: MemberIndex) -> usize {
        self.members.iter().position(|known| *known == Some(member)).expect("it was added")
    }

    /// A replica is attached.
    pub(super) fn add(&mut self, replica: usize) {
        self.members[replica] = Some(self.coordinator.add_member(VOLUME).expect("there is room"));
        self.states[replica] = ReplicaState::Disconnected;
    }

    /// A replica is detached: its control link is closed.
    pub(super) fn remove(&mut self, replica: usize) {
        let member = self.members[replica].take().expect("it was added");
        self.forget(replica);
        self.coordinator.remove_member(member);
        self.prepared[replica] = None;
        self.is_unknown[replica] = false;
        self.states[replica] = ReplicaState::Disconnected;
    }

    pub(super) fn begin(&mut self, now: Micros, is_urgent: bool) {
        self.coordinator.enrol(VOLUME, true).expect("it is idle");
        let command = CommandId(0);
        self.coordinator.handle_input(now, Input::Begin { command, is_urgent }).expect("it is idle");
        self.round += 1;
        self.prepared = [None; REPLICAS];
        self.left_out.clear();
    }

    pub(super) fn barrier(&mut self, now: Micros, result: Result<(), Refused>) {
        self.is_known = self.members.iter().any(Option::is_some);
        // One that comes after the time-out is stale.
        let _ = self.coordinator.handle_input(now, Input::Barrier(VOLUME, result));
    }

    pub(super) fn replica_changed(&mut self, now: Micros, replica: usize, state: ReplicaState) {
        let Some(member) = self.members[replica] else { return };
        self.states[replica] = state;
        self.coordinator.handle_input(now, Input::Replica(member, state)).expect("it was added");
    }

    /// What has taken too long is given up, and no answer to it is listened to.
    pub(super) fn handle_timeout(&mut self, now: Micros) -> bool {
        if self.coordinator.poll_timeout().is_none_or(|due| due > now) {
            return false;
        }
        self.coordinator.handle_timeout(now);
        self.listened.clear();
        true
    }

    /// The control link to a replica is lost, with what is under way on it.
    pub(super) fn lose_link(&mut self, now: Micros, replica: usize) {
        let Some(member) = self.members[replica] else { return };
        self.forget(replica);
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

    fn forget(&mut self, replica: usize) {
        self.questions.retain(|message| message.replica != replica);
        self.answers.retain(|message| message.replica != replica);
        self.listened.retain(|(_, of, ..)| *of != replica);
    }

    /// An answer has arrived.
    pub(super) fn hear(&mut self, now: Micros, answer: &Message<Result<u64, Refused>>) {
        let is_it = |(name, ..): &(u64, usize, u64, Question)| *name == answer.name;
        let Some(place) = self.listened.iter().position(is_it) else { return };
        let (_, replica, round, question) = self.listened.remove(place);
        let member = self.members[replica].expect("it is there");
        let is_now = round == self.round;
        let unit = answer.what.map(|_| ());
        let input = match question {
            Question::Epoch => Input::Epoch(member, answer.what),
            Question::Prepare { .. } => {
                if is_now && self.prepared[replica].is_some() {
                    self.prepared[replica] = Some(answer.what.is_ok());
                }
                Input::Prepared(member, unit)
            }
            Question::Commit { .. } => Input::Committed(member, unit),
        };
        let is_commit = matches!(question, Question::Commit { .. });
        let is_heard = self.coordinator.handle_input(now, input).is_ok();
        if is_heard && is_commit && is_now && answer.what.is_ok() {
            self.is_unknown[replica] = false;
        }
    }

    fn ask(&mut self, replica: usize, question: Question) {
        let name = self.name();
        self.listened.push((name, replica, self.round, question.clone()));
        self.questions.push(Message { name, replica, what: question });
    }

    pub(super) fn ask_prepare(
        &mut self,
        replica: usize,
        epoch: u64,
        modifications: u64,
        snapshot: Rc<Snapshot>,
    ) {
        self.prepared[replica] = Some(false);
        self.ask(replica, Question::Prepare { epoch, modifications, snapshot });
    }

    /// The next thing that only the world can do.
    pub(super) fn next_wish(&mut self) -> Option<Wish> {
        loop {
            match self.coordinator.poll_output()? {
                Output::Barrier { is_urgent, .. } => return Some(Wish::Barrier { is_urgent }),
                Output::Release { is_checkpoint, .. } => return Some(Wish::Release { is_checkpoint }),
                Output::AskEpoch(member) => {
                    let replica = self.replica(member);
                    self.is_unknown[replica] = false;
                    self.ask(replica, Question::Epoch);
                }
                Output::Prepare { member, epoch } => {
                    let replica = self.replica(member);
                    assert!(!self.is_unknown[replica], "the epoch after a lost commit is guessed");
                    assert_eq!(
                        self.states[replica],
                        ReplicaState::Current,
                        "a replica that misses something takes part"
                    );
                    return Some(Wish::Prepare { replica, epoch });
                }
                Output::Commit { member, epoch } => {
                    let replica = self.replica(member);
                    let is_ready = |prepared: &Option<bool>| *prepared != Some(false);
                    assert!(
                        self.prepared.iter().all(is_ready) && self.prepared[replica] == Some(true),
                        "C1: a commit before all have prepared: {:?}",
                        self.prepared
                    );
                    self.is_unknown[replica] = true;
                    self.ask(replica, Question::Commit { epoch });
                }
                Output::LeftOut(member) => {
                    let replica = self.replica(member);
                    self.prepared[replica] = None;
                    self.left_out.push(replica);
                }
                Output::Missing(member) => return Some(Wish::Missing(self.replica(member))),
                Output::Answer(_, result) => {
                    if result.is_ok() {
                        assert!(
                            !self.is_known || self.prepared.contains(&Some(true)),
                            "a checkpoint of nobody"
                        );
                        assert!(
                            self.is_unknown
                                .iter()
                                .zip(self.prepared)
                                .all(|(unknown, prepared)| { prepared.is_none() || !unknown }),
                            "a checkpoint succeeds and one that prepared has not committed"
                        );
                    }
                    self.results.push(result);
                }
            }
        }
    }
}
