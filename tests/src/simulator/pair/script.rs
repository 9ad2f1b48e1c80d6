//! Seeded runs: guests on both sides, links that are cut and come back, disks that fail, clocks that jump, checkpoints and
//! managers.

use fastrand::Rng;
use twinblock_core::primary::Command;
use twinblock_core::secondary::{self, Port};
use twinblock_core::{Extent, Op, Stage};

use super::client::{Clients, NO_DATA};
use super::settings::{Settings, Shape};
use super::world::{Place, World, with_world};
use crate::simulator::coverage::Coverage;
use crate::simulator::settings::pick;

/// Runs the script of a seed for a primary with one replica.
///
/// # Panics
/// If a machine, or all of them together, break a rule; so do the others.
#[must_use]
pub fn run_pair(seed: u64, is_traced: bool) -> Coverage {
    run(Shape::Pair, seed, is_traced)
}

/// Runs the script of a seed for a primary with two replicas.
#[must_use]
pub fn run_trio(seed: u64, is_traced: bool) -> Coverage {
    run(Shape::Trio, seed, is_traced)
}

/// Runs the script of a seed for several volumes of a node.
#[must_use]
pub fn run_volumes(seed: u64, is_traced: bool) -> Coverage {
    run(Shape::Volumes, seed, is_traced)
}

fn run(shape: Shape, seed: u64, is_traced: bool) -> Coverage {
    let mut rng = Rng::with_seed(seed);
    let settings = Settings::choose(&mut rng, shape);
    with_world(settings, rng, is_traced, |world| {
        world.begin();
        for _ in 0..world.settings.steps {
            world.interfere();
            world.advance(true);
        }
        match world.rng.u8(..4) {
            0 => world.fail_over(),
            1 => world.stop_over(),
            _ => world.come_to_rest(),
        }
        let acknowledged = world.volumes.iter().any(|volume| volume.active.acknowledged != 0);
        let text = if acknowledged { "some" } else { "none" };
        world.coverage.count("answered writes", Stage::Running, text);
        std::mem::take(&mut world.coverage)
    })
}

/// A client asks for something.
pub(super) fn ask(clients: &mut Clients, client: usize, op: Op, extent: Extent, rng: &mut Rng) {
    let mut new = Vec::new();
    match op {
        Op::Write { .. } => {
            new = vec![0; extent.length as usize];
            rng.fill(&mut new);
        }
        Op::WriteZeroes { .. } => new = vec![0; extent.length as usize],
        _ => {}
    }
    let group = u64::from(clients.name());
    clients.ask(client, group, op, extent, &new);
}

impl World<'_> {
    fn begin(&mut self) {
        for volume in 0..self.volumes.len() {
            for _ in 0..self.rng.usize(1..=3) {
                self.open_guest(volume);
            }
        }
        for place in self.places() {
            for _ in 0..self.rng.usize(0..=2) {
                self.open_secondary_guest(place);
            }
        }
        match self.rng.u8(..8) {
            0 => self.begin_early(),
            1 => {
                self.write_some();
                self.start_all();
            }
            _ => self.start_all(),
        }
    }

    pub(super) fn open_guest(&mut self, volume: usize) {
        self.meet_primary(volume, "guest connects");
        let now = self.primary_now();
        self.volumes[volume].active.open(now);
    }

    pub(super) fn open_secondary_guest(&mut self, place: Place) {
        self.meet_secondary(place, "guest connects");
        let now = self.secondary_now(place.replica);
        self.standby_mut(place).open(now, None);
    }

    /// Attached, connected, written to, asked and left before the start.
    fn begin_early(&mut self) {
        for place in self.places() {
            let replica = place.replica as u8;
            self.order(place.volume, Command::Attach { replica, is_empty: false, is_new: true });
            self.connect(place);
        }
        for _ in 0..self.rng.u32(..60) {
            if self.rng.u8(..4) == 0 {
                self.manager_asks_too_early();
            }
            self.interfere();
            self.advance(true);
        }
        for place in self.places() {
            if self.standby(place).machine().stage() == Stage::None {
                let _ = self.manage(place, secondary::Command::Start { primary: false });
            }
        }
        for volume in 0..self.volumes.len() {
            if !self.volumes[volume].active.is_running() {
                self.order(volume, Command::Start { primary: true });
            }
        }
    }

    fn write_some(&mut self) {
        for _ in 0..3 {
            self.ask_primary();
        }
        self.run_until_idle();
    }

    /// Something from outside may happen before the next step.
    fn interfere(&mut self) {
        match self.rng.u8(..40) {
            0..=9 => self.ask_primary(),
            10..=12 => self.ask_secondary(),
            13 if self.rng.u8(..2) == 0 => {
                let is_urgent = self.rng.u8(..4) == 0;
                self.begin_checkpoint(is_urgent);
            }
            _ => {}
        }
        let Settings { cuts, losses, managers, crashes, jumps, .. } = self.settings;
        if self.rng.u32(..1000) < cuts {
            self.shake_a_link();
        }
        if self.rng.u32(..1000) < losses {
            self.lose_a_message();
        }
        if self.rng.u32(..1000) < managers {
            self.manager_acts();
        }
        if self.rng.u32(..1000) < crashes {
            let replica = self.rng.usize(..self.settings.replicas);
            self.crash_secondaries(replica);
        }
        if self.rng.u32(..1000) < jumps {
            self.jump();
        }
        for place in self.places() {
            if self.rng.u8(..20) == 0 {
                self.connect(place);
            }
            if self.way(place).is_frozen && self.rng.u8(..50) == 0 {
                self.way_mut(place).is_frozen = false;
            }
        }
        self.count_checkpoints();
    }

    fn count_checkpoints(&mut self) {
        let stage = self.volumes[0].active.machine().stage();
        for result in std::mem::take(&mut self.control.results) {
            let text = match result {
                Ok(()) => "done".to_owned(),
                Err(failure) => format!("{:?}", failure.refused),
            };
            let text = text.split(" {").next().unwrap_or_default();
            self.coverage.count("checkpoint of the pair", stage, text);
        }
    }

    fn shake_a_link(&mut self) {
        let place = self.any_place();
        match self.rng.u8(..6) {
            0..=2 => self.cut(place),
            3 => self.disconnect(place),
            4 => self.way_mut(place).is_frozen = true,
            _ => {
                self.trace(|_| format!("the control link to node {} is lost", place.replica));
                self.meet_coordinator("link lost");
                let now = self.primary_now();
                self.commits[place.replica].clear();
                self.control.lose_link(now, place.replica);
                self.settle();
            }
        }
    }

    fn lose_a_message(&mut self) {
        let under_way = self.control.questions.len() + self.control.answers.len();
        if under_way != 0 {
            self.trace(|_| "a message of the coordinator is lost".to_owned());
            let lost = self.rng.usize(..under_way);
            self.control.lose(lost);
        }
    }

    pub(super) fn ask_primary(&mut self) {
        let volume = self.rng.usize(..self.volumes.len());
        let client = self.rng.usize(..self.volumes[volume].active.clients.open.len());
        if self.volumes[volume].active.clients.open[client].outbox.len() > 8 {
            return;
        }
        let (op, extent) = (self.any_op(Port::Replication), self.any_extent());
        let extent = if op == Op::Flush { Extent::default() } else { extent };
        ask(&mut self.volumes[volume].active.clients, client, op, extent, &mut self.rng);
    }

    pub(super) fn ask_secondary(&mut self) {
        let place = self.any_place();
        let clients = &self.standby(place).clients.open;
        let guests: Vec<_> = (0..clients.len()).filter(|guest| !clients[*guest].is_replication).collect();
        if guests.is_empty() {
            return;
        }
        let client = pick(&mut self.rng, &guests);
        if self.standby(place).clients.open[client].outbox.len() > 8 {
            return;
        }
        let (op, extent) = (self.any_op(Port::Guest), self.any_extent());
        let extent = if op == Op::Flush { Extent::default() } else { extent };
        let clients = &mut self.volumes[place.volume].standbys[place.replica].clients;
        ask(clients, client, op, extent, &mut self.rng);
    }

    fn any_op(&mut self, port: Port) -> Op {
        let reads = if port == Port::Guest { 40 } else { 20 };
        let fua = self.rng.u8(..8) == 0;
        match self.rng.u8(..100) {
            roll if roll < reads => Op::Read(NO_DATA),
            roll if roll < 76 => Op::Write { data: NO_DATA, fua },
            roll if roll < 88 => {
                Op::WriteZeroes { may_unmap: self.rng.bool(), fast: self.rng.u8(..4) == 0, fua }
            }
            roll if roll < 96 => Op::Flush,
            _ => Op::Status,
        }
    }

    fn any_extent(&mut self) -> Extent {
        let size = self.settings.size_bytes;
        let granule = u64::from(self.settings.secondary.granule_bytes);
        let window = u64::from(self.settings.primary.window_bytes);
        let rng = &mut self.rng;
        let longest = pick(rng, &[16, granule / 2, granule, granule * 2, window, window * 3]);
        let region = if rng.u32(..100) < self.settings.focus_percent { size.min(granule * 3) } else { size };
        let offset = rng.u64(..region);
        let offset = if rng.u8(..3) == 0 { offset / granule * granule } else { offset };
        let length = rng.u64(1..=longest);
        let length = if rng.u8(..3) == 0 { length.next_multiple_of(granule) } else { length };
        // Often up to the end of the disk.
        let offset = if rng.u8(..16) == 0 { size.saturating_sub(length) } else { offset };
        Extent { offset, length: length.min(size - offset) }
    }
}
