//! Seeded runs of a pair: guests on both sides, links that are cut and come back, disks that fail, checkpoints, managers.

use fastrand::Rng;
use twinblock_core::primary::Command;
use twinblock_core::secondary::{self, Port};
use twinblock_core::{Extent, Op, Stage, View};

use super::client::{Clients, NO_DATA};
use super::settings::Settings;
use super::world::{Barrier, World, with_world};
use crate::simulator::coverage::Coverage;
use crate::simulator::disk::Faults;
use crate::simulator::settings::pick;

/// Runs the script of a seed.
///
/// # Panics
/// If a machine, or the two together, break a rule.
pub fn run(seed: u64, is_traced: bool) -> Coverage {
    let mut rng = Rng::with_seed(seed);
    let settings = Settings::choose(&mut rng);
    with_world(settings, rng, is_traced, |world| {
        let mut coverage = Coverage::default();
        world.begin();
        for _ in 0..world.settings.steps {
            world.interfere(&mut coverage);
            world.advance(true);
        }
        match world.rng.u8(..4) {
            0 => world.fail_over(&mut coverage),
            1 => world.stop_over(&mut coverage),
            _ => world.come_to_rest(&mut coverage),
        }
        coverage.count(
            "answered writes",
            Stage::Running,
            if world.active.acknowledged == 0 { "none" } else { "some" },
        );
        coverage
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
        for _ in 0..self.rng.usize(1..=3) {
            self.active.open(self.now);
        }
        for replica in 0..self.standbys.len() {
            for _ in 0..self.rng.usize(0..=2) {
                self.standbys[replica].open(self.now, None);
            }
        }
        if self.rng.u8(..6) == 0 {
            self.begin_early();
        }
        let is_late = self.rng.u8(..8) == 0;
        if is_late {
            self.write_some();
        }
        if self.active.machine().replica(0).is_some_and(|status| !status.is_attached) {
            self.start_all();
        }
    }

    /// Attached, connected and written to before the start.
    fn begin_early(&mut self) {
        for replica in 0..self.settings.replicas {
            self.order(Command::Attach { replica: replica as u8, is_empty: false, is_new: true });
            self.connect(replica);
        }
        if self.rng.bool() {
            self.write_some();
        }
        for replica in 0..self.settings.replicas {
            self.manage(replica, secondary::Command::Start { primary: false }).expect("it starts");
        }
        self.order(Command::Start { primary: true });
    }

    fn write_some(&mut self) {
        for _ in 0..3 {
            self.ask_primary();
        }
        self.run_until_idle();
    }

    /// Something from outside may happen before the next step.
    fn interfere(&mut self, coverage: &mut Coverage) {
        match self.rng.u8(..40) {
            0..=9 => self.ask_primary(),
            10..=12 => self.ask_secondary(),
            13 if self.rng.u8(..2) == 0 => {
                let is_urgent = self.rng.u8(..4) == 0;
                self.begin_checkpoint(is_urgent);
            }
            _ => {}
        }
        let Settings { cuts, losses, managers, .. } = self.settings;
        if self.rng.u32(..1000) < cuts {
            self.shake_a_link(coverage);
        }
        if self.rng.u32(..1000) < losses {
            self.lose_a_message();
        }
        if self.rng.u32(..1000) < managers {
            self.manager_acts(coverage);
        }
        for replica in 0..self.standbys.len() {
            if self.rng.u8(..20) == 0 {
                self.connect(replica);
            }
            if self.is_frozen[replica] && self.rng.u8(..50) == 0 {
                self.is_frozen[replica] = false;
            }
        }
        for result in std::mem::take(&mut self.control.results) {
            let text = match result {
                Ok(()) => "done".to_owned(),
                Err(failure) => format!("{:?}", failure.refused).chars().take(12).collect(),
            };
            coverage.count("checkpoint of the pair", self.active.machine().stage(), &text);
        }
    }

    fn shake_a_link(&mut self, coverage: &mut Coverage) {
        let replica = self.rng.usize(..self.standbys.len());
        match self.rng.u8(..6) {
            0..=2 => self.cut(replica),
            3 => self.disconnect(replica),
            4 => self.is_frozen[replica] = true,
            _ => {
                self.trace(|_| format!("control link {replica} is lost"));
                self.control.lose_link(self.now, replica);
                self.settle();
            }
        }
        coverage.count("links shaken", Stage::Running, "");
    }

    fn lose_a_message(&mut self) {
        let (questions, answers) = (self.control.questions.len(), self.control.answers.len());
        if questions + answers == 0 {
            return;
        }
        let lost = self.rng.usize(..questions + answers);
        self.trace(|_| "a message of the coordinator is lost".to_owned());
        if lost < questions {
            self.control.questions.remove(lost);
        } else {
            self.control.answers.remove(lost - questions);
        }
    }

    fn manager_acts(&mut self, coverage: &mut Coverage) {
        let replica = self.rng.usize(..self.standbys.len());
        let place = replica as u8;
        match self.rng.u8(..5) {
            0..=1 => {
                let force = self.rng.bool();
                let _ = self.manage(replica, secondary::Command::Checkpoint { force });
            }
            2 if self.active.is_running() => {
                self.order(Command::Stop);
                self.barrier = Barrier::Down;
            }
            2 => {
                self.order(Command::Start { primary: true });
            }
            3 if self.active.machine().replica(place).is_some_and(|status| status.is_attached) => {
                self.order(Command::Detach { replica: place });
                self.cut(replica);
            }
            3 => {
                let (is_new, is_empty) = (self.rng.bool(), self.rng.u8(..4) == 0);
                self.order(Command::Attach { replica: place, is_empty, is_new });
            }
            _ if self.active.clients.open.len() > 1 => {
                let client = self.rng.usize(..self.active.clients.open.len());
                self.active.close(self.now, client);
                self.settle();
                self.active.open(self.now);
            }
            _ => {}
        }
        coverage.count("managers", self.active.machine().stage(), "");
    }

    fn ask_primary(&mut self) {
        let client = self.rng.usize(..self.active.clients.open.len());
        if self.active.clients.open[client].outbox.len() > 8 {
            return;
        }
        let (op, extent) = (self.any_op(Port::Replication), self.any_extent());
        let extent = if op == Op::Flush { Extent::default() } else { extent };
        ask(&mut self.active.clients, client, op, extent, &mut self.rng);
    }

    pub(super) fn ask_secondary(&mut self) {
        let replica = self.rng.usize(..self.standbys.len());
        let clients = &self.standbys[replica].clients.open;
        let guests: Vec<_> = (0..clients.len()).filter(|place| !clients[*place].is_replication).collect();
        if guests.is_empty() {
            return;
        }
        let client = pick(&mut self.rng, &guests);
        if clients[client].outbox.len() > 8 {
            return;
        }
        let (op, extent) = (self.any_op(Port::Guest), self.any_extent());
        let extent = if op == Op::Flush { Extent::default() } else { extent };
        ask(&mut self.standbys[replica].clients, client, op, extent, &mut self.rng);
    }

    fn any_op(&mut self, port: Port) -> Op {
        let reads = if port == Port::Guest { 40 } else { 20 };
        let fua = self.rng.u8(..8) == 0;
        match self.rng.u8(..100) {
            roll if roll < reads => Op::Read(NO_DATA),
            roll if roll < 76 => Op::Write { data: NO_DATA, fua },
            roll if roll < 90 => {
                Op::WriteZeroes { may_unmap: self.rng.bool(), fast: self.rng.u8(..4) == 0, fua }
            }
            roll if roll < 98 => Op::Flush,
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
        Extent { offset, length: length.min(size - offset) }
    }

    /// Nothing fails any more and every link is up.
    fn heal(&mut self) {
        self.settings.control_every = 1;
        self.active.disk_mut().faults = Faults::NONE;
        for replica in 0..self.standbys.len() {
            self.heal_secondary(replica);
        }
        for _ in 0..4 {
            self.run_until_idle();
            for replica in 0..self.standbys.len() {
                self.connect(replica);
            }
        }
    }

    fn heal_secondary(&mut self, replica: usize) {
        self.is_frozen[replica] = false;
        let devices = self.standbys[replica].driver.devices_mut();
        devices.disk.faults = Faults::NONE;
        devices.buffer.faults = Faults::NONE;
    }

    /// In the end: twins are equal unless known not to be, checkpoints succeed unless something is missing.
    fn come_to_rest(&mut self, coverage: &mut Coverage) {
        self.heal();
        let client = self.rng.usize(..self.active.clients.open.len());
        ask(&mut self.active.clients, client, Op::Flush, Extent::default(), &mut self.rng);
        self.run_until_idle();
        let (mut current, mut healthy) = (0, 0);
        for replica in 0..self.standbys.len() {
            let status = self.active.machine().replica(replica as u8).expect("there is such a place");
            let is_current = status.is_attached && status.is_connected && !status.is_behind;
            assert_eq!(is_current, self.is_current(replica), "the coordinator was not told");
            if is_current && self.active.is_running() {
                current += 1;
                healthy += u32::from(!self.standbys[replica].machine().is_behind());
                if self.active.failures == 0 {
                    assert!(
                        self.standbys[replica].device().bytes() == self.active.model.value(),
                        "twins differ and nobody is behind"
                    );
                    assert!(self.standbys[replica].device().written_at().iter().all(|at| *at == 0));
                }
            }
        }
        self.read_all();
        let result = if self.active.is_running() { self.try_checkpoints() } else { None };
        if let Some(result) = result {
            assert!(result || healthy < current || current == 0, "a checkpoint fails and nothing is missing");
            assert!(!result || current > 0 || !self.control.is_known, "a checkpoint of nobody");
        }
        let text = format!("{healthy} healthy of {}", self.standbys.len());
        coverage.count("at rest", self.active.machine().stage(), &text);
    }

    /// The guest sees all that it counts on.
    fn read_all(&mut self) {
        let extent = Extent { offset: 0, length: self.settings.size_bytes };
        ask(&mut self.active.clients, 0, Op::Read(NO_DATA), extent, &mut self.rng);
        self.run_until_idle();
    }

    /// A manager's checkpoint may have moved the epoch on: the first attempt finds that out.
    fn try_checkpoints(&mut self) -> Option<bool> {
        let mut result = None;
        for _ in 0..3 {
            self.begin_checkpoint(false);
            self.run_until_idle();
            result = self.control.results.pop().map(|result| result.is_ok());
            if result == Some(true) {
                break;
            }
        }
        result
    }

    fn fail_over(&mut self, coverage: &mut Coverage) {
        self.kill_primary();
        for replica in 0..self.standbys.len() {
            for _ in 0..self.rng.u32(..20) {
                self.advance(false);
            }
            let is_broken = self.standbys[replica].machine().view() == View::Broken;
            let stop = secondary::Command::Stop { failover: true, force: false };
            let result = self.manage(replica, stop);
            assert_eq!(result.is_err(), is_broken, "{result:?}");
            if is_broken {
                self.manage(replica, secondary::Command::Stop { failover: false, force: true })
                    .expect("that is possible");
            }
        }
        for _ in 0..self.rng.u32(..60) {
            self.ask_secondary();
            self.advance(true);
        }
        for replica in 0..self.standbys.len() {
            self.heal_secondary(replica);
        }
        self.run_until_idle();
        for replica in 0..self.standbys.len() {
            if self.standbys[replica].machine().stage() == Stage::FailoverFailed {
                self.manage(replica, secondary::Command::Stop { failover: true, force: false })
                    .expect("it can be tried again");
                self.run_until_idle();
            }
            self.check_done(replica);
        }
        coverage.count("took over", Stage::Failover, "failover");
    }

    /// It has taken over: the disk is the view.
    pub(super) fn check_done(&self, replica: usize) {
        let standby = &self.standbys[replica];
        assert_eq!(standby.machine().stage(), Stage::Done);
        let wrong = standby.view.first_wrong(0, standby.device().bytes(), |_, _| false);
        assert_eq!(wrong, None, "after the end the disk is not what the guest saw");
    }

    fn stop_over(&mut self, coverage: &mut Coverage) {
        self.kill_primary();
        for replica in 0..self.standbys.len() {
            for _ in 0..self.rng.u32(..20) {
                self.advance(false);
            }
            let stop = |force| secondary::Command::Stop { failover: false, force };
            if self.manage(replica, stop(false)).is_err() {
                assert!(self.standbys[replica].machine().is_behind());
                self.manage(replica, stop(true)).expect("it is forced");
            }
        }
        self.run_until_idle();
        for replica in 0..self.standbys.len() {
            self.check_done(replica);
            let taken = self.standbys[replica].taken.as_ref().expect("it was stopped");
            self.active.check_replica(replica, taken);
        }
        coverage.count("took over", Stage::Running, "stop");
    }
}
