//! A primary node with its volumes, their secondaries, and everything between them.

use fastrand::Rng;
use std::rc::Rc;
use twinblock_core::node::{Coordinator, Member, Volume as Enrolled};
use twinblock_core::primary::{self, Command};
use twinblock_core::secondary;
use twinblock_core::{CommandId, Extent, Identity, Micros, Refused, ReplicaState, Stage};

use super::active::{self, Active};
use super::control::{Control, Message, Wish};
use super::settings::{REPLICAS, Settings, VOLUMES};
use super::standby::{self, Asker, Snapshot, Standby};
use crate::simulator::coverage::Coverage;
use crate::simulator::trace;

/// Who the primary says it is.
pub(super) const PRIMARY: Identity = Identity([7; 16]);

/// A replica of one of the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) volume: usize,
    pub(super) replica: usize,
}

impl Place {
    /// Where it stands among all.
    pub(super) const fn flat(self) -> usize {
        self.volume * REPLICAS + self.replica
    }

    pub(super) const fn at(flat: usize) -> Self {
        Self { volume: flat / REPLICAS, replica: flat % REPLICAS }
    }
}

/// Where a barrier stands.
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

/// What is known of the way to a replica.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    /// It was cut and the primary does not know yet.
    pub(super) is_cut: bool,
    /// Nothing passes.
    pub(super) is_frozen: bool,
    /// Since which step it is up.
    pub(super) up_since: u64,
    /// How many connections there were.
    pub(super) connections: u64,
    /// The replica was started anew and the primary does not know yet.
    pub(super) was_restarted: bool,
}

/// One volume of the primary node.
#[derive(Debug)]
pub(super) struct Volume<'m> {
    pub(super) active: Active<'m>,
    pub(super) standbys: Vec<Standby<'m>>,
    pub(super) ways: Vec<Way>,
    pub(super) barrier: Barrier,
    /// A manager has stopped it since the checkpoint under way has begun.
    pub(super) was_stopped: bool,
}

/// Everything.
#[derive(Debug)]
pub(super) struct World<'m> {
    pub(super) rng: Rng,
    pub(super) settings: Settings,
    pub(super) now: Micros,
    /// How far ahead each clock is: the primary's, and those of the nodes with the first and the second replicas.
    pub(super) skew: [u64; 1 + REPLICAS],
    pub(super) step: u64,
    pub(super) volumes: Vec<Volume<'m>>,
    pub(super) control: Control<'m>,
    /// Commits that wait on each node for those of other volumes, with the names of their questions.
    pub(super) commits: [Vec<(u64, Place, u64)>; REPLICAS],
    pub(super) is_primary_dead: bool,
    /// Whether everything is compared after each step.
    pub(super) is_checking: bool,
    pub(super) coverage: Coverage,
    /// By places: what a secondary borrows that is started anew, once.
    spare_rooms: [Option<&'m mut standby::Room>; VOLUMES * REPLICAS],
    is_traced: bool,
}

/// Makes everything and lets `play` have it.
pub(super) fn with_world<T>(
    settings: Settings,
    mut rng: Rng,
    is_traced: bool,
    play: impl FnOnce(&mut World<'_>) -> T,
) -> T {
    let (mut enrolled, mut members) = ([Enrolled::FREE; VOLUMES], [Member::FREE; VOLUMES * REPLICAS]);
    let coordinator = Coordinator::new(&mut enrolled, &mut members, settings.timeout);
    let mut rooms: Vec<_> = (0..settings.volumes).map(|_| active::Room::new(&settings)).collect();
    let (mut replicas, rests): (Vec<_>, Vec<_>) = rooms.iter_mut().map(active::Room::replicas).unzip();
    let standby_rooms = |_| (0..settings.replicas).map(|_| standby::Room::new(&settings)).collect();
    let mut standby_rooms: Vec<Vec<_>> = (0..settings.volumes).map(standby_rooms).collect();
    let mut spare_rooms: [_; VOLUMES * REPLICAS] = std::array::from_fn(|_| standby::Room::new(&settings));
    let mut volumes = Vec::new();
    for ((replicas, rest), rooms) in replicas.iter_mut().zip(rests).zip(&mut standby_rooms) {
        let content = settings.content(&mut rng);
        let standby = |room| {
            let mut standby = Standby::new(&settings, content.clone(), room);
            standby.set_traced(is_traced);
            standby
        };
        let standbys = rooms.iter_mut().map(standby).collect();
        let mut active = Active::new(&settings, content.clone(), replicas, rest);
        active.disk_mut().is_traced = is_traced;
        let ways = vec![Way::default(); settings.replicas];
        volumes.push(Volume { active, standbys, ways, barrier: Barrier::Down, was_stopped: false });
    }
    let mut world = World {
        rng,
        settings,
        now: Micros(0),
        skew: [0; 1 + REPLICAS],
        step: 1,
        volumes,
        control: Control::new(coordinator),
        commits: Default::default(),
        is_primary_dead: false,
        is_checking: true,
        coverage: Coverage::default(),
        spare_rooms: spare_rooms.each_mut().map(Some),
        is_traced,
    };
    world.trace(|world| format!("{:?}", world.settings));
    play(&mut world)
}

impl<'m> World<'m> {
    pub(super) fn trace(&self, line: impl FnOnce(&Self) -> String) {
        if self.is_traced {
            let line = line(self);
            trace::push(format!("{:>5} {:>8}us {line}", self.step, self.now.0));
        }
    }

    /// All replicas of all volumes.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let replicas = self.settings.replicas;
        (0..self.settings.volumes)
            .flat_map(move |volume| (0..replicas).map(move |replica| Place { volume, replica }))
    }

    pub(super) fn any_place(&mut self) -> Place {
        let volume = self.rng.usize(..self.settings.volumes);
        Place { volume, replica: self.rng.usize(..self.settings.replicas) }
    }

    pub(super) fn standby(&self, place: Place) -> &Standby<'m> {
        &self.volumes[place.volume].standbys[place.replica]
    }

    pub(super) fn standby_mut(&mut self, place: Place) -> &mut Standby<'m> {
        &mut self.volumes[place.volume].standbys[place.replica]
    }

    pub(super) fn way(&self, place: Place) -> &Way {
        &self.volumes[place.volume].ways[place.replica]
    }

    pub(super) fn way_mut(&mut self, place: Place) -> &mut Way {
        &mut self.volumes[place.volume].ways[place.replica]
    }

    /// What the primary's clock says.
    pub(super) fn primary_now(&self) -> Micros {
        Micros(self.now.0 + self.skew[0])
    }

    /// What the clock of a replica's node says.
    pub(super) fn secondary_now(&self, replica: usize) -> Micros {
        Micros(self.now.0 + self.skew[1 + replica])
    }

    /// Something is offered to a primary; whether it was taken.
    pub(super) fn tell_primary(&mut self, volume: usize, name: &str, input: primary::Input) -> bool {
        self.meet_primary(volume, name);
        let now = self.primary_now();
        self.volumes[volume].active.driver.offer(now, input).is_ok()
    }

    /// An order to a primary.
    pub(super) fn try_order(&mut self, volume: usize, wanted: Command) -> Result<CommandId, Refused> {
        self.meet_primary(volume, name_of(&wanted));
        let now = self.primary_now();
        let command = self.volumes[volume].active.command(now, wanted);
        self.trace(|_| format!("primary {volume}: {wanted:?} {command:?}"));
        if command.is_ok() {
            match wanted {
                Command::Start { .. } => self.volumes[volume].active.running_since = self.step,
                Command::Attach { replica, .. } => {
                    self.control.add(Place { volume, replica: replica.into() });
                }
                Command::Detach { replica } => {
                    self.control.remove(Place { volume, replica: replica.into() });
                }
                _ => {}
            }
        }
        self.settle();
        command
    }

    /// An order to a primary that must be taken.
    pub(super) fn order(&mut self, volume: usize, wanted: Command) -> CommandId {
        let command = self.try_order(volume, wanted);
        command.unwrap_or_else(|refused| panic!("{wanted:?} is refused: {refused:?}"))
    }

    /// An order of a manager to a secondary.
    pub(super) fn manage(&mut self, place: Place, wanted: secondary::Command) -> Result<CommandId, Refused> {
        let asker = match wanted {
            secondary::Command::Checkpoint { force: true } => Asker::Force,
            _ => Asker::Manager,
        };
        self.meet_secondary(place, standby::name_of(&wanted));
        let now = self.secondary_now(place.replica);
        let command = self.standby_mut(place).command(now, asker, wanted);
        self.trace(|_| format!("{place:?}: {wanted:?} {command:?}"));
        self.settle();
        command
    }

    /// Attaches all replicas, connects them and starts everything, as an operator does.
    pub(super) fn start_all(&mut self) {
        for place in self.places() {
            let replica = place.replica as u8;
            self.order(place.volume, Command::Attach { replica, is_empty: false, is_new: true });
            self.connect(place);
            self.manage(place, secondary::Command::Start { primary: false }).expect("it starts");
        }
        for volume in 0..self.volumes.len() {
            self.order(volume, Command::Start { primary: true });
        }
    }

    /// The link to a replica comes up, if it may.
    pub(super) fn connect(&mut self, place: Place) {
        let Place { volume, replica } = place;
        let may_connect = self.volumes[volume].active.link(replica).may_connect();
        if !may_connect || self.way(place).is_cut || self.is_primary_dead {
            return;
        }
        self.meet_secondary(place, "primary connects");
        let now = self.secondary_now(replica);
        let Some(session) = self.standby_mut(place).open(now, Some(PRIMARY)) else { return };
        self.trace(|_| format!("link {place:?} is up as {session:?}"));
        self.standby_mut(place).session = Some(session);
        let step = self.step;
        let way = self.way_mut(place);
        way.up_since = step;
        way.connections += 1;
        let active = &mut self.volumes[volume].active;
        active.link_mut(replica).connect();
        let geometry = active.geometry();
        // A detached replica is not listened to.
        if self.way(place).was_restarted
            && self.tell_primary(volume, "restarted", primary::Input::Restarted(replica as u8))
        {
            self.way_mut(place).was_restarted = false;
        }
        self.tell_primary(volume, "connected", primary::Input::Connected(replica as u8, geometry));
        self.settle();
    }

    /// The link is cut: some of what was sent arrives yet.
    pub(super) fn cut(&mut self, place: Place) {
        let Place { volume, replica } = place;
        if !self.volumes[volume].active.link(replica).is_up() {
            return;
        }
        let mut wire = self.volumes[volume].active.link_mut(replica).cut();
        let kept = self.rng.usize(..=wire.len());
        self.trace(|_| format!("link {place:?} is cut; {kept} of {} arrive yet", wire.len()));
        wire.truncate(kept);
        self.standby_mut(place).cut(wire);
        self.way_mut(place).is_cut = true;
        self.settle();
    }

    /// The primary leaves a connection on which nothing is in flight.
    pub(super) fn disconnect(&mut self, place: Place) {
        let link = self.volumes[place.volume].active.link(place.replica);
        let is_idle = link.is_up() && link.is_idle();
        let Some(session) = self.standby(place).session.filter(|_| is_idle) else { return };
        self.trace(|_| format!("link {place:?} is left"));
        self.volumes[place.volume].active.link_mut(place.replica).cut();
        if let Some(client) = self.standby(place).clients.find(session) {
            self.meet_secondary(place, "clean close");
            let now = self.secondary_now(place.replica);
            self.standby_mut(place).close(now, client, true);
        }
        self.way_mut(place).is_cut = true;
        self.settle();
    }

    /// The machine with a node's secondaries crashes, and they are started again: of what was not flushed some is gone, and
    /// so is everything that they knew.
    pub(super) fn crash_secondaries(&mut self, replica: usize) {
        for volume in 0..self.volumes.len() {
            let place = Place { volume, replica };
            if matches!(self.standby(place).machine().stage(), Stage::None | Stage::Running) {
                self.crash_secondary(place);
            }
        }
        self.commits[replica].clear();
    }

    fn crash_secondary(&mut self, place: Place) {
        let Some(room) = self.spare_rooms[place.flat()].take() else { return };
        self.trace(|_| format!("{place:?} crashes"));
        self.cut(place);
        let Self { volumes, settings, rng, is_traced, .. } = self;
        let standby = &mut volumes[place.volume].standbys[place.replica];
        let disk = &mut standby.driver.devices_mut().disk;
        disk.lose_power(rng);
        let content = disk.bytes().to_vec();
        *standby = Standby::new(settings, content, room);
        standby.set_traced(*is_traced);
        self.way_mut(place).was_restarted = true;
        self.open_secondary_guest(place);
        self.manage(place, secondary::Command::Start { primary: false }).expect("it starts");
    }

    /// Everything that the primary was is gone.
    pub(super) fn kill_primary(&mut self) {
        self.trace(|_| "the primary dies".to_owned());
        self.is_primary_dead = true;
        self.is_checking = true;
        for place in self.places() {
            self.cut(place);
            self.standby_mut(place).returning.clear();
            self.way_mut(place).is_frozen = false;
        }
        // What was asked may arrive yet.
        let kept = self.rng.usize(..=self.control.questions.len());
        self.control.questions.truncate(kept);
        self.control.answers.clear();
    }

    /// Begins a checkpoint of the pair, over all volumes that are running.
    pub(super) fn begin_checkpoint(&mut self, is_urgent: bool) {
        if !self.control.is_busy() {
            self.trace(|_| format!("a checkpoint begins, urgent: {is_urgent}"));
            self.meet_coordinator(if is_urgent { "urgent begin" } else { "begin" });
            let running: Vec<_> = self.volumes.iter().map(|volume| volume.active.is_running()).collect();
            self.volumes.iter_mut().for_each(|volume| volume.was_stopped = false);
            let now = self.primary_now();
            self.control.begin(now, is_urgent, &running);
            self.settle();
        }
    }

    /// Lets the machines do all that they can do now.
    pub(super) fn settle(&mut self) {
        loop {
            if !self.is_primary_dead {
                self.settle_primary();
            }
            let mut is_full = false;
            for place in self.places() {
                is_full |= self.settle_secondary(place);
            }
            if !is_full || !self.settings.heeds_full || self.is_primary_dead {
                return;
            }
            self.make_room();
        }
    }

    /// Whether it told that its buffer is full.
    fn settle_secondary(&mut self, place: Place) -> bool {
        let (now, step) = (self.secondary_now(place.replica), self.step);
        let standby = self.standby_mut(place);
        standby.pump(now, step);
        for (name, result) in std::mem::take(&mut standby.answered) {
            self.trace(|_| format!("{place:?} answers question {name}: {result:?}"));
            self.control.answers.push(Message { name, place, what: result.map(|()| 0) });
        }
        if self.standby_mut(place).has_committed() {
            self.check_commit(place);
        }
        std::mem::take(&mut self.standby_mut(place).is_full_told)
    }

    /// A buffer is full: the primary takes a checkpoint, or does not wait for the rest of long requests.
    fn make_room(&mut self) {
        if self.control.is_busy() {
            for volume in 0..self.volumes.len() {
                self.hurry(volume);
            }
        } else {
            self.begin_checkpoint(true);
        }
    }

    fn hurry(&mut self, volume: usize) {
        self.meet_primary(volume, "hurry");
        let now = self.primary_now();
        self.volumes[volume].active.command(now, Command::Hurry).expect("it is always taken");
    }

    fn settle_primary(&mut self) {
        loop {
            let (now, step) = (self.primary_now(), self.step);
            for volume in 0..self.volumes.len() {
                let active = &mut self.volumes[volume].active;
                active.pump(now, step);
                let (changes, answers) =
                    (std::mem::take(&mut active.changes), std::mem::take(&mut active.answers));
                for (replica, state) in changes {
                    self.replica_changed(Place { volume, replica }, state);
                }
                for (command, result) in answers {
                    self.primary_answered(volume, command, result);
                }
            }
            let Some(wish) = self.control.next_wish() else { break };
            self.trace(|_| format!("coordinator: {wish:?}"));
            self.fulfil(&wish);
        }
        for volume in 0..self.volumes.len() {
            for taken_at in std::mem::take(&mut self.volumes[volume].active.flushed) {
                self.check_flush(volume, taken_at);
            }
            for taken_at in std::mem::take(&mut self.volumes[volume].active.failed_reads) {
                self.check_failed_read(volume, taken_at);
            }
        }
    }

    fn replica_changed(&mut self, place: Place, state: ReplicaState) {
        self.trace(|_| format!("replica {place:?} is {state:?}"));
        self.meet_coordinator(match state {
            ReplicaState::Current => "current",
            ReplicaState::Behind => "behind",
            ReplicaState::Disconnected => "disconnected",
        });
        let now = self.primary_now();
        self.control.replica_changed(now, place, state);
    }

    fn primary_answered(&mut self, volume: usize, command: CommandId, result: Result<(), Refused>) {
        let Barrier::Raised(raised) = self.volumes[volume].barrier else { return };
        if raised != command {
            return;
        }
        self.trace(|_| format!("the barrier of {volume} is reached: {result:?}"));
        self.volumes[volume].barrier = match result {
            Ok(()) => {
                let this = &self.volumes[volume];
                let sent = std::array::from_fn(|replica| this.active.link(replica).modifications);
                let connections =
                    std::array::from_fn(|replica| this.ways.get(replica).map_or(0, |way| way.connections));
                Barrier::Reached { step: self.step, sent, connections }
            }
            Err(_) => Barrier::Down,
        };
        self.tell_barrier(volume, result);
    }

    fn tell_barrier(&mut self, volume: usize, result: Result<(), Refused>) {
        self.meet_coordinator(if result.is_ok() { "barrier" } else { "barrier refused" });
        let now = self.primary_now();
        self.control.barrier(now, volume, result);
    }

    fn fulfil(&mut self, wish: &Wish) {
        match *wish {
            Wish::Barrier { volume, is_urgent } => {
                self.meet_primary(volume, if is_urgent { "urgent barrier" } else { "barrier" });
                let now = self.primary_now();
                match self.volumes[volume].active.command(now, Command::Barrier { is_urgent }) {
                    Ok(command) => self.volumes[volume].barrier = Barrier::Raised(command),
                    Err(refused) => self.tell_barrier(volume, Err(refused)),
                }
            }
            Wish::Hurry(volume) => self.hurry(volume),
            Wish::Release { volume, is_checkpoint } => {
                self.meet_primary(volume, "release");
                let now = self.primary_now();
                let this = &mut self.volumes[volume];
                this.barrier = Barrier::Down;
                // Without an answer in time a prepare holds nobody to anything.
                this.standbys.iter_mut().for_each(|standby| standby.is_prepared = false);
                let command = this.active.command(now, Command::Release { is_checkpoint });
                command.expect("a barrier is released");
            }
            Wish::Prepare { place, epoch } => {
                self.check_stillness();
                let modifications = self.volumes[place.volume].active.link(place.replica).modifications;
                let snapshot = Rc::new(self.snapshot(place.volume));
                self.control.ask_prepare(place, epoch, modifications, snapshot);
            }
            Wish::Missing(place) => {
                self.tell_primary(place.volume, "missing", primary::Input::Missing(place.replica as u8));
            }
        }
    }

    /// What the guest counts on, and what was in flight when the barrier was reached and still is.
    pub(super) fn snapshot(&self, volume: usize) -> Snapshot {
        let reached = match self.volumes[volume].barrier {
            Barrier::Reached { step, .. } => step,
            _ => self.step,
        };
        let active = &self.volumes[volume].active;
        let flying = active.clients.flying.iter();
        let flying = flying.filter(|flying| flying.is_modification() && flying.taken_at <= reached);
        let flying: Vec<(Extent, Vec<u8>)> =
            flying.map(|flying| (flying.request.extent, flying.new.clone())).collect();
        Snapshot { bytes: active.model.clone(), flying }
    }
}

fn name_of(wanted: &Command) -> &'static str {
    match wanted {
        Command::Start { .. } => "start",
        Command::Barrier { is_urgent: false } => "barrier",
        Command::Barrier { is_urgent: true } => "urgent barrier",
        Command::Hurry => "hurry",
        Command::Release { .. } => "release",
        Command::Stop => "stop",
        Command::Attach { .. } => "attach",
        Command::Detach { .. } => "detach",
    }
}
