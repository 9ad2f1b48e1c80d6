//! A primary, its secondaries, and everything between them.

use fastrand::Rng;
use std::rc::Rc;
use twinblock_core::node::{Coordinator, Member, Volume};
use twinblock_core::primary::{self, Command};
use twinblock_core::secondary;
use twinblock_core::{CommandId, Extent, Identity, Micros, Refused, ReplicaState, Stage};

use super::active::{self, Active};
use super::control::{Control, Message, Question, Wish};
use super::settings::{REPLICAS, Settings};
use super::standby::{self, Asker, Snapshot, Standby};
use crate::simulator::trace;

/// Who the primary says it is.
pub(super) const PRIMARY: Identity = Identity([7; 16]);

/// Something that can happen next by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    PrimaryDisk,
    PrimaryOffer(usize),
    SecondaryDisk(usize),
    SecondaryBuffer(usize),
    SecondaryOffer(usize, usize),
    Transmit(usize),
    Return(usize, usize),
    Question(usize),
    Answer(usize),
    /// The far end of a connection that was cut hears of it, or one that was told to close does.
    End(usize, usize),
    /// The primary hears that a link is down.
    Disconnected(usize),
    /// A time-out is due and nothing else is.
    Wait,
}

/// Where the barrier stands.
#[derive(Clone, Debug)]
pub(super) enum Barrier {
    Down,
    Raised(CommandId),
    /// With the step, and the modifications that were sent to each replica by then.
    Reached {
        step: u64,
        sent: [u64; REPLICAS],
        connections: [u64; REPLICAS],
    },
}

/// Everything.
#[derive(Debug)]
pub(super) struct World<'m> {
    pub(super) rng: Rng,
    pub(super) settings: Settings,
    pub(super) now: Micros,
    pub(super) step: u64,
    pub(super) active: Active<'m>,
    pub(super) standbys: Vec<Standby<'m>>,
    pub(super) control: Control<'m>,
    pub(super) barrier: Barrier,
    /// The link was cut and the primary does not know yet.
    is_cut: [bool; REPLICAS],
    /// Nothing passes on this link.
    pub(super) is_frozen: [bool; REPLICAS],
    /// Since which step the link is up, and how many connections there were.
    up_since: [u64; REPLICAS],
    connections: [u64; REPLICAS],
    pub(super) is_primary_dead: bool,
    /// Whether everything is compared after each step.
    pub(super) is_checking: bool,
    is_traced: bool,
}

/// Makes everything and lets `play` have it.
pub(super) fn with_world<T>(
    settings: Settings,
    mut rng: Rng,
    is_traced: bool,
    play: impl FnOnce(&mut World<'_>) -> T,
) -> T {
    let content = settings.content(&mut rng);
    let mut room = active::Room::new(&settings);
    let mut rooms: Vec<_> = (0..settings.replicas).map(|_| standby::Room::new(&settings)).collect();
    let (mut volumes, mut members) = ([Volume::FREE; 1], [Member::FREE; REPLICAS]);
    let coordinator = Coordinator::new(&mut volumes, &mut members, settings.timeout);
    let (mut replicas, rest) = room.replicas();
    let active = Active::new(&settings, content.clone(), &mut replicas, rest);
    let standbys = rooms.iter_mut().map(|room| Standby::new(&settings, content.clone(), room)).collect();
    let mut world = World {
        rng,
        settings,
        now: Micros(0),
        step: 1,
        active,
        standbys,
        control: Control::new(coordinator),
        barrier: Barrier::Down,
        is_cut: [false; REPLICAS],
        is_frozen: [false; REPLICAS],
        up_since: [0; REPLICAS],
        connections: [0; REPLICAS],
        is_primary_dead: false,
        is_checking: true,
        is_traced,
    };
    world.trace(|world| format!("{:?}", world.settings));
    play(&mut world)
}

impl World<'_> {
    pub(super) fn trace(&self, line: impl FnOnce(&Self) -> String) {
        if self.is_traced {
            let line = line(self);
            trace::push(format!("{:>5} {:>8}us {line}", self.step, self.now.0));
        }
    }

    /// An order to the primary that must be taken.
    pub(super) fn order(&mut self, wanted: Command) -> CommandId {
        self.trace(|_| format!("primary: {wanted:?}"));
        match wanted {
            Command::Attach { replica, .. } => self.control.add(replica.into()),
            Command::Detach { replica } => self.control.remove(replica.into()),
            _ => {}
        }
        let command = self.active.command(self.now, wanted);
        self.settle();
        command.unwrap_or_else(|refused| panic!("{wanted:?} is refused: {refused:?}"))
    }

    /// An order of a manager to a secondary.
    pub(super) fn manage(
        &mut self,
        replica: usize,
        wanted: secondary::Command,
    ) -> Result<CommandId, Refused> {
        let asker = match wanted {
            secondary::Command::Checkpoint { force: true } => Asker::Force,
            _ => Asker::Manager,
        };
        let command = self.standbys[replica].command(self.now, asker, wanted);
        self.trace(|_| format!("secondary {replica}: {wanted:?} {command:?}"));
        self.settle();
        command
    }

    /// Attaches all replicas, connects them and starts everything, as an operator does.
    pub(super) fn start_all(&mut self) {
        for replica in 0..self.settings.replicas {
            self.order(Command::Attach { replica: replica as u8, is_empty: false, is_new: true });
            self.connect(replica);
            self.manage(replica, secondary::Command::Start { primary: false }).expect("it starts");
        }
        self.order(Command::Start { primary: true });
    }

    /// The link to a replica comes up, if it may.
    pub(super) fn connect(&mut self, replica: usize) {
        if !self.active.link(replica).may_connect() || self.is_cut[replica] || self.is_primary_dead {
            return;
        }
        let Some(session) = self.standbys[replica].open(self.now, Some(PRIMARY)) else { return };
        self.trace(|_| format!("link {replica} is up as {session:?}"));
        self.standbys[replica].session = Some(session);
        self.active.link_mut(replica).connect();
        self.up_since[replica] = self.step;
        self.connections[replica] += 1;
        let geometry = self.active.geometry();
        let connected = primary::Input::Connected(replica as u8, geometry);
        // A detached replica is not listened to.
        let _ = self.active.driver.offer(self.now, connected);
        self.settle();
    }

    /// The link is cut: some of what was sent arrives yet.
    pub(super) fn cut(&mut self, replica: usize) {
        if !self.active.link(replica).is_up() {
            return;
        }
        let mut wire = self.active.link_mut(replica).cut();
        let kept = self.rng.usize(..=wire.len());
        self.trace(|_| format!("link {replica} is cut; {kept} of {} arrive yet", wire.len()));
        wire.truncate(kept);
        self.standbys[replica].cut(wire);
        self.is_cut[replica] = true;
        self.settle();
    }

    /// The primary leaves a connection on which nothing is in flight.
    pub(super) fn disconnect(&mut self, replica: usize) {
        let link = self.active.link(replica);
        let Some(session) = self.standbys[replica].session.filter(|_| link.is_up() && link.is_idle()) else {
            return;
        };
        self.trace(|_| format!("link {replica} is left"));
        self.active.link_mut(replica).cut();
        if let Some(client) = self.standbys[replica].clients.find(session) {
            self.standbys[replica].close(self.now, client, true);
        }
        self.is_cut[replica] = true;
        self.settle();
    }

    /// Everything that the primary was is gone.
    pub(super) fn kill_primary(&mut self) {
        self.trace(|_| "the primary dies".to_owned());
        self.is_primary_dead = true;
        self.is_checking = true;
        for replica in 0..self.settings.replicas {
            self.cut(replica);
        }
        self.standbys.iter_mut().for_each(|standby| standby.returning.clear());
        // What was asked may arrive yet.
        let kept = self.rng.usize(..=self.control.questions.len());
        self.control.questions.truncate(kept);
        self.control.answers.clear();
    }

    /// Begins a checkpoint of the pair.
    pub(super) fn begin_checkpoint(&mut self, is_urgent: bool) {
        if !self.control.is_busy() {
            self.trace(|_| format!("a checkpoint begins, urgent: {is_urgent}"));
            self.control.begin(self.now, is_urgent);
            self.settle();
        }
    }

    /// Lets the machines do all that they can do now.
    pub(super) fn settle(&mut self) {
        if !self.is_primary_dead {
            self.settle_primary();
        }
        for replica in 0..self.standbys.len() {
            self.standbys[replica].pump(self.now, self.step);
            for (name, result) in std::mem::take(&mut self.standbys[replica].answered) {
                self.trace(|_| format!("secondary {replica} answers question {name}: {result:?}"));
                self.control.answers.push(Message { name, replica, what: result.map(|()| 0) });
            }
            if self.standbys[replica].has_committed() {
                self.check_commit(replica);
            }
        }
    }

    fn settle_primary(&mut self) {
        loop {
            self.active.pump(self.now, self.step);
            for (replica, state) in std::mem::take(&mut self.active.changes) {
                self.trace(|_| format!("replica {replica} is {state:?}"));
                self.control.replica_changed(self.now, replica, state);
            }
            for (command, result) in std::mem::take(&mut self.active.answers) {
                self.primary_answered(command, result);
            }
            let Some(wish) = self.control.next_wish() else { break };
            self.trace(|_| format!("coordinator: {wish:?}"));
            self.fulfil(&wish);
        }
        for taken_at in std::mem::take(&mut self.active.flushed) {
            self.check_flush(taken_at);
        }
    }

    fn primary_answered(&mut self, command: CommandId, result: Result<(), Refused>) {
        let Barrier::Raised(raised) = self.barrier else { return };
        if raised != command {
            return;
        }
        self.trace(|_| format!("the barrier is reached: {result:?}"));
        self.barrier = match result {
            Ok(()) => Barrier::Reached { step: self.step, sent: self.sent(), connections: self.connections },
            Err(_) => Barrier::Down,
        };
        self.control.barrier(self.now, result);
    }

    fn sent(&self) -> [u64; REPLICAS] {
        std::array::from_fn(|replica| self.active.link(replica).modifications)
    }

    fn fulfil(&mut self, wish: &Wish) {
        match *wish {
            Wish::Barrier { is_urgent } => {
                match self.active.command(self.now, Command::Barrier { is_urgent }) {
                    Ok(command) => self.barrier = Barrier::Raised(command),
                    Err(refused) => self.control.barrier(self.now, Err(refused)),
                }
            }
            Wish::Release { is_checkpoint } => {
                self.barrier = Barrier::Down;
                // Without an answer in time a prepare holds nobody to anything.
                self.standbys.iter_mut().for_each(|standby| standby.is_prepared = false);
                let command = self.active.command(self.now, Command::Release { is_checkpoint });
                command.expect("a barrier is released");
            }
            Wish::Prepare { replica, epoch } => {
                let modifications = self.active.link(replica).modifications;
                let snapshot = Rc::new(self.snapshot());
                self.control.ask_prepare(replica, epoch, modifications, snapshot);
            }
            Wish::Missing(replica) => {
                let missing = primary::Input::Missing(replica as u8);
                let _ = self.active.driver.offer(self.now, missing);
            }
        }
    }

    /// What the guest counts on, and what was in flight when the barrier was reached and still is.
    fn snapshot(&self) -> Snapshot {
        let reached = match self.barrier {
            Barrier::Reached { step, .. } => step,
            _ => self.step,
        };
        let flying = self.active.clients.flying.iter();
        let flying = flying.filter(|flying| flying.is_modification() && flying.taken_at <= reached);
        let flying = flying.map(|flying| (flying.request.extent, flying.new.clone())).collect();
        Snapshot { bytes: self.active.model.clone(), flying }
    }

    /// What can happen by itself.
    pub(super) fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        if !self.is_primary_dead {
            self.primary_acts(&mut acts);
        }
        for (replica, standby) in self.standbys.iter().enumerate() {
            let is_silent = self.is_frozen[replica] || self.is_primary_dead;
            let is_up = standby.session.is_some();
            if !is_silent && is_up && !self.active.link(replica).wire.is_empty() {
                acts.push(Act::Transmit(replica));
            }
            if !is_silent {
                acts.extend((0..standby.returning.len().min(3)).map(|place| Act::Return(replica, place)));
            }
            for (place, client) in standby.clients.open.iter().enumerate() {
                if !client.outbox.is_empty() {
                    acts.push(Act::SecondaryOffer(replica, place));
                }
                if client.is_ending {
                    acts.push(Act::End(replica, place));
                }
            }
            if standby.device().in_flight() != 0 {
                acts.extend([Act::SecondaryDisk(replica); 2]);
            }
            if standby.buffer().in_flight() != 0 {
                acts.extend([Act::SecondaryBuffer(replica); 2]);
            }
        }
        let is_turn = self.step.is_multiple_of(self.settings.control_every);
        for replica in (0..REPLICAS).filter(|replica| is_turn && !self.is_frozen[*replica]) {
            let question = self.control.questions.iter().position(|one| one.replica == replica);
            acts.extend(question.map(Act::Question));
            let answer = self.control.answers.iter().position(|one| one.replica == replica);
            acts.extend(answer.map(Act::Answer));
        }
        acts
    }

    fn primary_acts(&self, acts: &mut Vec<Act>) {
        if self.active.disk().in_flight() != 0 {
            acts.extend([Act::PrimaryDisk; 2]);
        }
        for (place, client) in self.active.clients.open.iter().enumerate() {
            if !client.outbox.is_empty() {
                acts.push(Act::PrimaryOffer(place));
            }
        }
        acts.extend((0..REPLICAS).filter(|replica| self.is_cut[*replica]).map(Act::Disconnected));
    }

    /// The next time at which something happens by itself.
    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let of_control = self.control.poll_timeout().filter(|_| !self.is_primary_dead);
        let standbys = self.standbys.iter().filter_map(|standby| standby.driver.poll_timeout());
        standbys.chain(of_control).min()
    }

    /// One thing happens by itself, if anything can. Whether it did. With `may_wait`, time passes up to the next time-out
    /// when nothing else is left.
    pub(super) fn advance(&mut self, may_wait: bool) -> bool {
        let acts = self.acts();
        // Whoever only offers what is not taken waits too.
        let is_offer = |act: &Act| matches!(act, Act::PrimaryOffer(_) | Act::SecondaryOffer(..));
        let has_time = may_wait && acts.iter().all(is_offer) && self.rng.u8(..4) == 0;
        let due = self.next_timeout().filter(|_| may_wait && (acts.is_empty() || has_time));
        let act = match due {
            Some(due) => {
                self.now = self.now.max(due);
                Act::Wait
            }
            None if acts.is_empty() => return false,
            None => acts[self.rng.usize(..acts.len())],
        };
        self.step += 1;
        self.now = self.now.after(Micros(self.rng.u64(..40)));
        self.perform(act);
        if !self.is_primary_dead && self.control.handle_timeout(self.now) {
            self.trace(|_| "the coordinator gives up".to_owned());
        }
        self.settle();
        if self.is_checking {
            self.check(act);
        }
        true
    }

    fn perform(&mut self, act: Act) {
        self.trace(|_| format!("{act:?}"));
        let (now, step) = (self.now, self.step);
        match act {
            Act::Wait => {}
            Act::PrimaryDisk => {
                let Active { driver, clients, .. } = &mut self.active;
                driver.devices_mut().disk.step = step;
                driver.devices_mut().disk.progress(&mut self.rng, &mut clients.arena);
            }
            Act::PrimaryOffer(client) => {
                self.active.offer(now, step, client);
            }
            Act::SecondaryDisk(replica) | Act::SecondaryBuffer(replica) => {
                let Standby { driver, clients, .. } = &mut self.standbys[replica];
                let devices = driver.devices_mut();
                let is_disk = matches!(act, Act::SecondaryDisk(_));
                let device = if is_disk { &mut devices.disk } else { &mut devices.buffer };
                device.step = step;
                device.progress(&mut self.rng, &mut clients.arena);
            }
            Act::SecondaryOffer(replica, client) => {
                self.standbys[replica].offer(now, step, client);
            }
            Act::Transmit(replica) => {
                let message = self.active.link_mut(replica).wire.pop_front().expect("it is there");
                let standby = &mut self.standbys[replica];
                standby.receive(standby.session.expect("the link is up"), &message);
            }
            Act::Return(replica, place) => {
                let standby = &mut self.standbys[replica];
                let answer = standby.returning.swap_remove(place);
                if standby.session == Some(answer.session) {
                    let Active { driver, clients, .. } = &mut self.active;
                    let link = &mut driver.devices_mut().replicas[replica];
                    link.answered(answer.name, answer.result, &answer.read, &mut clients.arena);
                }
            }
            Act::Question(at) => self.deliver_question(at),
            Act::Answer(at) => {
                let answer = self.control.answers.remove(at);
                self.control.hear(now, &answer);
            }
            Act::End(replica, client) => self.end_session(replica, client),
            Act::Disconnected(replica) => {
                self.is_cut[replica] = false;
                let _ = self.active.driver.offer(now, primary::Input::Disconnected(replica as u8));
            }
        }
    }

    /// A secondary closes a connection; if the primary still uses it, it is cut there too.
    fn end_session(&mut self, replica: usize, client: usize) {
        let connection = self.standbys[replica].clients.open[client].connection;
        if self.standbys[replica].session == Some(connection) {
            self.active.link_mut(replica).cut();
            self.is_cut[replica] = true;
        }
        self.standbys[replica].close(self.now, client, false);
    }

    fn deliver_question(&mut self, at: usize) {
        let Message { name, replica, what } = self.control.questions.remove(at);
        let standby = &mut self.standbys[replica];
        let _ = match what {
            Question::Epoch => {
                let epoch = standby.machine().epoch();
                self.control.answers.push(Message { name, replica, what: Ok(epoch) });
                return;
            }
            Question::Prepare { epoch, modifications, snapshot } => {
                let wanted = secondary::Command::Prepare { epoch, claim: PRIMARY, modifications };
                standby.command(self.now, Asker::Prepare(name, snapshot), wanted)
            }
            Question::Commit { epoch } => {
                let wanted = secondary::Command::Commit { epoch, claim: PRIMARY };
                standby.command(self.now, Asker::Commit(name), wanted)
            }
        };
    }

    /// Everything ends that can; held writes, barriers and questions by their time-outs.
    pub(super) fn run_until_idle(&mut self) {
        for _ in 0..20_000 {
            let is_waiting = self.control.is_busy() && !self.is_primary_dead;
            let is_holding = self.standbys.iter().any(|standby| standby.machine().held() != 0);
            if self.acts().is_empty() && !is_waiting && !is_holding {
                self.check_idle();
                return;
            }
            assert!(self.advance(true), "nothing can happen any more, and not everything is answered");
        }
        panic!("no end: {:?}", self.acts());
    }

    fn check_idle(&self) {
        assert!(self.is_primary_dead || self.active.is_idle(), "the primary has left requests unanswered");
        for standby in &self.standbys {
            assert!(standby.is_idle(), "a secondary has left requests unanswered");
        }
        assert!(self.is_primary_dead || matches!(self.barrier, Barrier::Down), "C2: a barrier is still up");
    }

    /// After every step: what it can have changed.
    fn check(&self, act: Act) {
        let (touched, is_primarys) = match act {
            Act::PrimaryDisk | Act::PrimaryOffer(_) | Act::Answer(_) | Act::Wait => (None, true),
            Act::Return(replica, _) | Act::Disconnected(replica) => (Some(replica), true),
            Act::SecondaryDisk(replica)
            | Act::SecondaryBuffer(replica)
            | Act::SecondaryOffer(replica, _)
            | Act::Transmit(replica)
            | Act::End(replica, _) => (Some(replica), false),
            Act::Question(_) => (None, false),
        };
        for (replica, standby) in self.standbys.iter().enumerate() {
            if touched.is_none_or(|touched| touched == replica) {
                standby.check();
            }
        }
        if self.is_primary_dead {
            return;
        }
        if is_primarys {
            self.active.check_disk();
        }
        for (replica, standby) in self.standbys.iter().enumerate() {
            let has_changed = is_primarys || touched == Some(replica);
            if has_changed && matches!(standby.machine().stage(), Stage::None | Stage::Running) {
                self.active.check_replica(replica, standby.device().bytes());
            }
        }
        self.check_barrier();
    }

    fn check_barrier(&self) {
        if let Barrier::Reached { sent, connections, .. } = &self.barrier {
            for replica in 0..REPLICAS {
                let is_same = connections[replica] == self.connections[replica];
                assert!(
                    !is_same || self.active.link(replica).modifications == sent[replica],
                    "P4: a modification passes the barrier"
                );
            }
        }
    }

    fn check_flush(&self, taken_at: u64) {
        if self.active.disk().injected.is_empty() {
            self.active.check_flushed(self.active.disk(), taken_at);
        }
        for (replica, standby) in self.standbys.iter().enumerate() {
            let status = self.active.machine().replica(replica as u8).expect("there is such a place");
            let was_there = self.up_since[replica] < taken_at && self.active.is_running();
            if status.is_attached && status.is_connected && !status.is_behind && was_there {
                self.active.check_flushed(standby.device(), taken_at);
            }
        }
    }

    /// While the barrier is up, a checkpoint holds everything that was answered.
    fn check_commit(&self, replica: usize) {
        if self.is_primary_dead || !matches!(self.barrier, Barrier::Reached { .. }) {
            return;
        }
        let now = self.snapshot();
        let flew = |at: usize, byte: u8| {
            let explains = |(extent, new): &(Extent, Vec<u8>)| {
                let range = crate::simulator::disk::range(*extent);
                range.contains(&at) && new[at - range.start] == byte
            };
            now.flying.iter().any(explains)
        };
        let wrong = now.bytes.first_wrong(0, self.standbys[replica].device().bytes(), flew);
        assert_eq!(wrong, None, "a checkpoint while something that was answered is missing");
    }

    pub(super) fn is_current(&self, replica: usize) -> bool {
        self.control.states[replica] == ReplicaState::Current
    }
}
