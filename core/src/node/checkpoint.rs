//! The checkpoint of a pair as one act, over all volumes of a primary node.
//!
//! Source: SEMANTICS.md of this project, "The checkpoint of a pair".
//!
//! ```text
//!   Idle ──▶ Barrier ──────▶ Ask ───────▶ Prepare ──────▶ Commit ──────▶ Idle
//!            every volume    epochs that  every replica   every one      barriers released,
//!            stands still    are unknown  that is fit     that prepared  the manager answered
//! ```
//!
//! A replica that is behind is left out, and with it all replicas of its node ([`NodeIndex`]): a database whose data and log
//! lie on two volumes must find both at the same moment there. A volume that has replicas must keep one in the
//! checkpoint; without it the others would go on alone.
//!
//! Any refusal before the first commit, and no answer within the time-out, ends it without a checkpoint: the barriers
//! are released and writes go on. A commit without an answer leaves that replica's epoch unknown: it is asked for
//! before the next checkpoint, never guessed.
//!
//! Writes of all clients wait while a barrier waits for the rest of a long request. A client may send that slowly, or never:
//! after a [`HURRY_SHARE`]th of the time-out the barrier is made urgent and falls between the pieces that have come and
//! those that have not.
//!
//! # Invariants
//! * C1: no commit is sent before every fit replica has prepared.
//! * C2: every barrier that was raised is released exactly once.
//! * C3: a command is answered exactly once.
//! * C4: of the replicas of one node, all whose volumes take part are told to commit, or none.

mod choice;
#[cfg(feature = "inspect")]
mod inspect;
mod words;

pub use words::{Failure, Input, MemberIndex, NodeIndex, Output, VolumeIndex};

use crate::{CommandId, Micros, Refused, ReplicaState};

/// Which part of the time-out a barrier may wait for the rest of long requests: with 2 s it is 125 ms, in which a client
/// over a slow link sends some megabytes.
pub const HURRY_SHARE: u64 = 16;

/// A place for one of the node's volumes; an array of these is borrowed.
///
/// Capacity: unit volumes; one place each; a machine with two disks takes 2; further volumes cannot be enrolled; more
/// places let more volumes share a barrier.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub struct Volume(VolumeStep);

impl Volume {
    /// A free place.
    pub const FREE: Self = Self(VolumeStep::Out);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
enum VolumeStep {
    /// Takes no part.
    #[default]
    Out,
    /// Its barrier is to be raised.
    Raise,
    /// Its barrier was asked for.
    Raised,
    /// Its barrier was asked for and is to wait no longer.
    Hurry,
    /// Its barrier is reached.
    Reached {
        /// Replicas of it are known: one at least must take part.
        is_replicated: bool,
    },
    /// Its barrier is to be released.
    Release { is_checkpoint: bool },
}

/// A place for one replica whose control address is known; an array of these is borrowed.
///
/// Capacity: unit replicas over all volumes; one place each; two disks with one standby take 2; further replicas take no
/// part in checkpoints; more places let more take part.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub struct Member(Option<MemberState>);

impl Member {
    /// A free place.
    pub const FREE: Self = Self(None);
}

#[derive(Clone, Copy, Debug, Hash)]
struct MemberState {
    volume: VolumeIndex,
    node: NodeIndex,
    replica: ReplicaState,
    /// The replica's epoch, if it is known.
    epoch: Option<u64>,
    /// It must be asked for before the next checkpoint, while this one goes on with what is known.
    is_epoch_doubtful: bool,
    step: MemberStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum MemberStep {
    /// Takes no part.
    Out,
    /// It, or another one of its node, is behind or not reachable; the manager is to hear of it.
    LeftOut,
    /// The question of this phase is to be sent.
    Send,
    /// The question was sent.
    Sent,
    /// The question was answered well.
    Answered,
}

impl MemberState {
    const fn forget_unanswered(&mut self) {
        if matches!(self.step, MemberStep::Sent) {
            self.epoch = None;
        }
    }
}

impl MemberStep {
    const fn takes_part(self) -> bool {
        matches!(self, Self::Send | Self::Sent | Self::Answered)
    }
}

/// Where a checkpoint stands.
#[derive(Clone, Copy, Debug, Hash)]
enum State {
    Idle,
    Barrier(Running),
    Ask(Running),
    Prepare(Running),
    Commit(Running),
    /// Barriers are being released; the answer comes last.
    Ending {
        command: CommandId,
        result: Result<(), Failure>,
    },
}

#[derive(Clone, Copy, Debug, Hash)]
struct Running {
    command: CommandId,
    is_urgent: bool,
    /// When it becomes urgent.
    hurry_at: Micros,
    deadline: Micros,
}

/// Takes checkpoints of pairs. Offer inputs, poll outputs until `None`.
#[derive(Debug)]
pub struct Coordinator<'m> {
    volumes: &'m mut [Volume],
    members: &'m mut [Member],
    state: State,
    timeout: Micros,
    missing: Option<MemberIndex>,
    /// It was told something since it had nothing more to do: most polls find nothing, and need not look at every place.
    has_news: bool,
}

impl<'m> Coordinator<'m> {
    /// A coordinator that gives a checkpoint up after `timeout`.
    #[must_use]
    pub fn new(volumes: &'m mut [Volume], members: &'m mut [Member], timeout: Micros) -> Self {
        volumes.fill(Volume::FREE);
        members.fill(Member::FREE);
        Self { volumes, members, state: State::Idle, timeout, missing: None, has_news: false }
    }

    /// Whether a checkpoint is under way.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Adds a replica of a volume on a node; its state is offered by [`Input::Replica`].
    ///
    /// # Errors
    /// [`Refused::NoRoom`].
    pub fn add_member(&mut self, volume: VolumeIndex, node: NodeIndex) -> Result<MemberIndex, Refused> {
        let free = self.members.iter().position(|member| member.0.is_none()).ok_or(Refused::NoRoom)?;
        self.has_news = true;
        let state = MemberState {
            volume,
            node,
            replica: ReplicaState::Disconnected,
            epoch: None,
            is_epoch_doubtful: false,
            step: MemberStep::Out,
        };
        self.members[free].0 = Some(state);
        Ok(MemberIndex(free as u16))
    }

    /// Takes a replica out.
    pub fn remove_member(&mut self, member: MemberIndex) {
        self.has_news = true;
        if let Some(place) = self.members.get_mut(usize::from(member.0)) {
            place.0 = None;
        }
    }

    /// The control link to a replica was lost: its epoch is asked for anew, before the next checkpoint if it takes part in
    /// one: what it has prepared it is told to commit.
    pub fn forget_epoch(&mut self, member: MemberIndex) {
        self.has_news = true;
        if let Some(state) = self.member_mut(member) {
            if state.step.takes_part() {
                state.is_epoch_doubtful = true;
            } else {
                state.epoch = None;
            }
        }
    }

    /// Lets a volume take part in the next checkpoint, or not.
    ///
    /// # Errors
    /// [`Refused::NoRoom`] if there is no such place, [`Refused::InProgress`] while a checkpoint is under way.
    pub fn enrol(&mut self, volume: VolumeIndex, is_in: bool) -> Result<(), Refused> {
        if self.is_busy() {
            return Err(Refused::InProgress);
        }
        self.has_news = true;
        let place = self.volumes.get_mut(usize::from(volume.0)).ok_or(Refused::NoRoom)?;
        place.0 = if is_in { VolumeStep::Raise } else { VolumeStep::Out };
        Ok(())
    }

    fn member_mut(&mut self, member: MemberIndex) -> Option<&mut MemberState> {
        self.members.get_mut(usize::from(member.0))?.0.as_mut()
    }

    /// When [`Coordinator::handle_timeout`] is due.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Micros> {
        match self.state {
            State::Barrier(running) if !running.is_urgent => Some(running.hurry_at),
            State::Barrier(running)
            | State::Ask(running)
            | State::Prepare(running)
            | State::Commit(running) => Some(running.deadline),
            State::Idle | State::Ending { .. } => None,
        }
    }

    /// Gives up what has taken too long, or hurries it. Work is bounded by the number of volumes and members.
    pub fn handle_timeout(&mut self, now: Micros) {
        self.has_news = true;
        if let State::Barrier(running) = &mut self.state
            && !running.is_urgent
            && running.hurry_at <= now
        {
            running.is_urgent = true;
            for volume in self.volumes.iter_mut().filter(|volume| volume.0 == VolumeStep::Raised) {
                volume.0 = VolumeStep::Hurry;
            }
        }
        if self.poll_timeout().is_some_and(|due| due <= now) {
            self.fail(Refused::TimedOut, None, None);
        }
    }

    /// Offers one input. Work is bounded by the number of volumes and members.
    ///
    /// # Errors
    /// [`Refused::InProgress`] to another begin, [`Refused::Stale`] to an answer that nothing was asked for.
    pub fn handle_input(&mut self, now: Micros, input: Input) -> Result<(), Refused> {
        self.has_news = true;
        match (input, self.state) {
            (Input::Begin { .. }, state) if !matches!(state, State::Idle) => Err(Refused::InProgress),
            (Input::Begin { command, is_urgent }, _) => {
                let hurry_at = now.after(Micros(self.timeout.0 / HURRY_SHARE));
                let deadline = now.after(self.timeout);
                self.state = State::Barrier(Running { command, is_urgent, hurry_at, deadline });
                Ok(())
            }
            (Input::Replica(member, replica), _) => self.replica_changed(member, replica),
            (Input::Barrier(volume, result), State::Barrier(_)) => self.barrier(volume, result),
            (Input::Epoch(member, result), State::Ask(_)) => {
                let epoch = result.ok();
                self.member_mut(member).ok_or(Refused::Stale)?.epoch = epoch;
                self.answered(member, result.map(|_| ()))
            }
            (Input::Prepared(member, result), State::Prepare(_)) => self.answered(member, result),
            (Input::Committed(member, result), State::Commit(_)) => {
                let state = self.member_mut(member).ok_or(Refused::Stale)?;
                state.epoch = state.epoch.filter(|_| result.is_ok()).map(|epoch| epoch.wrapping_add(1));
                self.answered(member, result)
            }
            _ => Err(Refused::Stale),
        }
    }

    /// Whoever falls behind or goes away before the commit is left out, with its node: its answer, over a new connection
    /// perhaps, would say nothing of what it has missed.
    fn replica_changed(&mut self, member: MemberIndex, replica: ReplicaState) -> Result<(), Refused> {
        let is_undecided = matches!(self.state, State::Ask(_) | State::Prepare(_));
        let state = self.member_mut(member).ok_or(Refused::Stale)?;
        state.replica = replica;
        if is_undecided && replica != ReplicaState::Current && state.step.takes_part() {
            let node = state.node;
            self.leave_out(node);
        }
        Ok(())
    }

    fn barrier(&mut self, volume: VolumeIndex, result: Result<(), Refused>) -> Result<(), Refused> {
        let place = self.volumes.get_mut(usize::from(volume.0)).ok_or(Refused::Stale)?;
        if !matches!(place.0, VolumeStep::Raised | VolumeStep::Hurry) {
            return Err(Refused::Stale);
        }
        match result {
            Ok(()) => place.0 = VolumeStep::Reached { is_replicated: false },
            Err(refused) => {
                place.0 = VolumeStep::Out;
                self.fail(refused, None, Some(volume));
            }
        }
        Ok(())
    }

    fn answered(&mut self, member: MemberIndex, result: Result<(), Refused>) -> Result<(), Refused> {
        let state = self.member_mut(member).ok_or(Refused::Stale)?;
        if state.step != MemberStep::Sent {
            return Err(Refused::Stale);
        }
        match result {
            Ok(()) => state.step = MemberStep::Answered,
            Err(refused) => {
                // Whatever the reason: what was believed of its epoch may be wrong, so it is asked for anew.
                state.epoch = None;
                if matches!(refused, Refused::Missing | Refused::TakenOver) {
                    self.missing = Some(member);
                }
                self.fail(refused, Some(member), None);
            }
        }
        Ok(())
    }

    /// Ends it without a checkpoint. Whoever has not answered has an unknown epoch: after a commit it may have moved on;
    /// after a prepare the question for it comes between the late answer and the next prepare.
    fn fail(&mut self, refused: Refused, member: Option<MemberIndex>, volume: Option<VolumeIndex>) {
        for state in self.members.iter_mut().filter_map(|member| member.0.as_mut()) {
            state.forget_unanswered();
        }
        self.end(Err(Failure { refused, member, volume }));
    }

    fn end(&mut self, result: Result<(), Failure>) {
        let (State::Barrier(running)
        | State::Ask(running)
        | State::Prepare(running)
        | State::Commit(running)) = self.state
        else {
            return;
        };
        for volume in self.volumes.iter_mut() {
            volume.0 = match volume.0 {
                VolumeStep::Raised | VolumeStep::Hurry | VolumeStep::Reached { .. } => {
                    VolumeStep::Release { is_checkpoint: result.is_ok() }
                }
                _ => VolumeStep::Out,
            };
        }
        for state in self.members.iter_mut().filter_map(|member| member.0.as_mut()) {
            state.step = MemberStep::Out;
            if core::mem::replace(&mut state.is_epoch_doubtful, false) {
                state.epoch = None;
            }
        }
        self.state = State::Ending { command: running.command, result };
    }

    /// The next thing to do. Work is bounded by the number of volumes and the square of that of members.
    pub fn poll_output(&mut self) -> Option<Output> {
        if !self.has_news {
            return None;
        }
        let output = self.next_output();
        self.has_news = output.is_some();
        output
    }

    fn next_output(&mut self) -> Option<Output> {
        loop {
            if let Some(member) = self.missing.take() {
                return Some(Output::Missing(member));
            }
            if let Some(member) = self.next_member(MemberStep::LeftOut, MemberStep::Out) {
                return Some(Output::LeftOut(member));
            }
            if let Some(volume) = self.deserted() {
                self.fail(Refused::NoReplica, None, Some(volume));
            }
            match self.state {
                State::Idle => return None,
                State::Barrier(running) => {
                    if let Some(volume) = self.next_volume(VolumeStep::Raise, VolumeStep::Raised) {
                        return Some(Output::Barrier { volume, is_urgent: running.is_urgent });
                    }
                    if let Some(volume) = self.next_volume(VolumeStep::Hurry, VolumeStep::Raised) {
                        return Some(Output::Hurry(volume));
                    }
                    if self.volumes.iter().any(|volume| volume.0 == VolumeStep::Raised) {
                        return None;
                    }
                    self.choose(running);
                }
                State::Ask(running) => {
                    if let Some(member) = self.next_member(MemberStep::Send, MemberStep::Sent) {
                        if self.member_mut(member).is_some_and(|state| state.epoch.is_none()) {
                            return Some(Output::AskEpoch(member));
                        }
                        let _ = self.answered(member, Ok(()));
                        continue;
                    }
                    self.advance(running, State::Prepare)?;
                }
                State::Prepare(running) => {
                    if let Some((member, epoch)) = self.next_question() {
                        return Some(Output::Prepare { member, epoch });
                    }
                    self.advance(running, State::Commit)?;
                }
                State::Commit(_) => {
                    if let Some((member, epoch)) = self.next_question() {
                        return Some(Output::Commit { member, epoch, together: self.together(member) });
                    }
                    if self.is_waiting() {
                        return None;
                    }
                    self.end(Ok(()));
                }
                State::Ending { command, result } => {
                    let is_checkpoint = result.is_ok();
                    let release = VolumeStep::Release { is_checkpoint };
                    if let Some(volume) = self.next_volume(release, VolumeStep::Out) {
                        return Some(Output::Release { volume, is_checkpoint });
                    }
                    self.state = State::Idle;
                    return Some(Output::Answer(command, result));
                }
            }
        }
    }

    /// Goes on to the next phase when every question of this one was answered; `None` until then.
    fn advance(&mut self, running: Running, next: impl Fn(Running) -> State) -> Option<()> {
        if self.is_waiting() {
            return None;
        }
        for state in self.members.iter_mut().filter_map(|member| member.0.as_mut()) {
            if state.step == MemberStep::Answered {
                state.step = MemberStep::Send;
            }
        }
        self.state = next(running);
        Some(())
    }

    fn is_waiting(&self) -> bool {
        self.members.iter().filter_map(|member| member.0.as_ref()).any(|state| state.step == MemberStep::Sent)
    }

    fn next_volume(&mut self, from: VolumeStep, to: VolumeStep) -> Option<VolumeIndex> {
        let place = self.volumes.iter().position(|volume| volume.0 == from)?;
        self.volumes[place].0 = to;
        Some(VolumeIndex(place as u16))
    }

    fn next_member(&mut self, from: MemberStep, to: MemberStep) -> Option<MemberIndex> {
        let is_it = |member: &Member| member.0.is_some_and(|state| state.step == from);
        let place = self.members.iter().position(is_it)?;
        self.members[place].0.as_mut()?.step = to;
        Some(MemberIndex(place as u16))
    }

    fn next_question(&mut self) -> Option<(MemberIndex, u64)> {
        let member = self.next_member(MemberStep::Send, MemberStep::Sent)?;
        Some((member, self.member_mut(member)?.epoch.unwrap_or_default()))
    }
}
