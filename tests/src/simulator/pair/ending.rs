//! How runs end: the faults are healed and everything must come to rest, or the primary dies and the secondaries take over.

use twinblock_core::secondary;
use twinblock_core::{Extent, Identity, Op, Stage, View};

use super::client::{Client, NO_DATA};
use super::script::ask;
use super::world::{Place, World};
use crate::simulator::disk::Faults;

impl World<'_> {
    /// Nothing fails any more and every link is up.
    fn heal(&mut self) {
        self.settings.control_every = 1;
        for volume in &mut self.volumes {
            volume.active.disk_mut().faults = Faults::NONE;
        }
        for place in self.places() {
            self.heal_secondary(place);
        }
        for _ in 0..4 {
            self.run_until_idle();
            for place in self.places() {
                self.connect(place);
            }
        }
    }

    fn heal_secondary(&mut self, place: Place) {
        self.way_mut(place).is_frozen = false;
        let devices = self.standby_mut(place).driver.devices_mut();
        devices.disk.faults = Faults::NONE;
        devices.buffer.faults = Faults::NONE;
    }

    /// In the end: twins are equal unless known not to be, checkpoints succeed unless something is missing.
    pub(super) fn come_to_rest(&mut self) {
        self.heal();
        for volume in 0..self.volumes.len() {
            let client = self.rng.usize(..self.volumes[volume].active.clients.open.len());
            let clients = &mut self.volumes[volume].active.clients;
            ask(clients, client, Op::Flush, Extent::default(), &mut self.rng);
        }
        self.run_until_idle();
        let (mut current, mut healthy) = (0, 0);
        for place in self.places() {
            if self.is_twin(place) {
                current += 1;
                let machine = self.standby(place).machine();
                healthy += usize::from(!machine.is_behind() && machine.stage() == Stage::Running);
            }
        }
        if !self.volumes.iter().any(|volume| volume.active.failures != 0) {
            for volume in &mut self.volumes {
                volume.active.disk_mut().lose_power(&mut self.rng);
            }
        }
        self.read_all();
        let running: Vec<_> = self.volumes.iter().map(|volume| volume.active.is_running()).collect();
        if running.contains(&true) {
            let is_possible = healthy == current && self.control.is_possible(&running);
            let result = self.try_checkpoints();
            assert!(result || !is_possible, "a checkpoint fails and nothing is missing");
            assert!(!result || self.control.is_possible(&running), "a checkpoint while something is missing");
        }
        let text = format!("{healthy} healthy of {}", self.places().count());
        self.coverage.count("at rest", self.volumes[0].active.machine().stage(), &text);
    }

    /// Whether a replica misses nothing; if so, it is equal.
    fn is_twin(&self, place: Place) -> bool {
        let Place { volume, replica } = place;
        let active = &self.volumes[volume].active;
        let standby = self.standby(place);
        let status = active.machine().replica(replica as u8).expect("there is such a place");
        let is_current = status.is_attached && status.is_connected && !status.is_behind;
        assert_eq!(is_current, self.control.is_current(place), "the coordinator was not told");
        if !is_current || !active.is_running() {
            return false;
        }
        if matches!(standby.machine().stage(), Stage::None | Stage::Running) {
            let bytes = standby.device().bytes();
            assert!(bytes == active.disk().bytes(), "twins differ and nobody is behind");
            let wrong = active.model.first_wrong(0, bytes, |_, _| false);
            assert_eq!(wrong, None, "a twin lacks what was answered");
            assert!(standby.device().written_at().iter().all(|at| *at == 0), "it was flushed");
        }
        true
    }

    /// The guests see all that they count on.
    fn read_all(&mut self) {
        let extent = Extent { offset: 0, length: self.settings.size_bytes };
        for volume in &mut self.volumes {
            ask(&mut volume.active.clients, 0, Op::Read(NO_DATA), extent, &mut self.rng);
        }
        self.run_until_idle();
    }

    /// A manager's checkpoint may have moved the epoch on: the first attempt finds that out.
    fn try_checkpoints(&mut self) -> bool {
        for _ in 0..2 + self.places().count() {
            self.begin_checkpoint(false);
            self.run_until_idle();
            if self.control.results.pop().is_some_and(|result| result.is_ok()) {
                return true;
            }
        }
        false
    }

    pub(super) fn fail_over(&mut self) {
        self.kill_primary();
        for place in self.places() {
            self.wait_a_little();
            if self.rng.u8(..4) == 0 {
                self.manager_of_dead_primary();
                self.wait_a_little();
            }
            let stop = |failover, force| secondary::Command::Stop { failover, force };
            match self.standby(place).machine().stage() {
                Stage::None => assert!(self.manage(place, stop(true, false)).is_err()),
                Stage::Running if self.standby(place).machine().view() == View::Broken => {
                    assert!(self.manage(place, stop(true, true)).is_err());
                    self.manage(place, stop(false, true)).expect("that is possible");
                }
                _ => {
                    self.manage(place, stop(true, false)).expect("the view is whole");
                }
            }
        }
        for _ in 0..self.rng.u32(..60) {
            self.ask_secondary();
            if self.rng.u8(..6) == 0 {
                self.manager_of_dead_primary();
            }
            self.advance(true);
        }
        self.end_takeover();
        self.coverage.count("took over", Stage::Failover, "failover");
    }

    /// Managers go on asking the secondaries, and guests come and go.
    fn manager_of_dead_primary(&mut self) {
        let place = self.any_place();
        let (force, failover) = (self.rng.bool(), self.rng.bool());
        let (epoch, claim) = (self.rng.u64(..4), Identity([8; 16]));
        let wanted = match self.rng.u8(..6) {
            0 => secondary::Command::Start { primary: self.rng.bool() },
            1 => secondary::Command::Checkpoint { force },
            2 => secondary::Command::Stop { failover, force },
            3 => secondary::Command::Prepare { epoch, claim, modifications: 0 },
            4 => secondary::Command::Commit { epoch, claim },
            _ => return self.secondary_guests_change(),
        };
        let is_stop = matches!(wanted, secondary::Command::Stop { .. });
        if !is_stop || self.standby(place).machine().stage() != Stage::Running {
            self.ask_secondary_to(place, wanted);
        }
    }

    fn end_takeover(&mut self) {
        for place in self.places() {
            self.heal_secondary(place);
        }
        self.run_until_idle();
        for place in self.places() {
            if self.standby(place).machine().stage() == Stage::FailoverFailed {
                for _ in 0..self.rng.u32(..40) {
                    self.ask_secondary();
                    self.manager_of_dead_primary();
                    self.advance(false);
                }
                self.run_until_idle();
            }
            if self.standby(place).machine().stage() == Stage::FailoverFailed {
                let stop = secondary::Command::Stop { failover: true, force: false };
                self.manage(place, stop).expect("it can be tried again");
                self.run_until_idle();
            }
            if self.standby(place).machine().stage() != Stage::None {
                self.check_done(place);
            }
        }
        self.lose_power();
    }

    /// The guests flush, the power goes, and everything is there.
    fn lose_power(&mut self) {
        for place in self.places() {
            let is_guest = |client: &Client| !client.is_replication && !client.is_ending;
            let clients = &mut self.volumes[place.volume].standbys[place.replica].clients;
            if let Some(guest) = clients.open.iter().position(is_guest) {
                ask(clients, guest, Op::Flush, Extent::default(), &mut self.rng);
            }
        }
        self.run_until_idle();
        for place in self.places() {
            let standby = &mut self.volumes[place.volume].standbys[place.replica];
            let has_guest = standby.clients.open.iter().any(|client| !client.is_replication);
            if has_guest && standby.machine().stage() == Stage::Done {
                standby.driver.devices_mut().disk.lose_power(&mut self.rng);
                self.check_done(place);
            }
        }
    }

    /// It has taken over: the disk is the view.
    pub(super) fn check_done(&self, place: Place) {
        let standby = self.standby(place);
        assert_eq!(standby.machine().stage(), Stage::Done);
        let wrong = standby.view.first_wrong(0, standby.device().bytes(), |_, _| false);
        assert_eq!(wrong, None, "after the end the disk is not what the guest saw");
    }

    /// What the primary has sent last may arrive before the manager acts, or after.
    pub(super) fn wait_a_little(&mut self) {
        for _ in 0..self.rng.u32(..20) {
            self.advance(false);
        }
    }

    pub(super) fn stop_over(&mut self) {
        self.kill_primary();
        for place in self.places() {
            self.wait_a_little();
            let stop = |force| secondary::Command::Stop { failover: false, force };
            if self.standby(place).machine().stage() != Stage::Running {
                continue;
            }
            if self.manage(place, stop(false)).is_err() {
                assert!(self.standby(place).machine().is_behind());
                self.manage(place, stop(true)).expect("it is forced");
            }
        }
        self.run_until_idle();
        for place in self.places() {
            // What a primary sends to one that was stopped before its death is not taken, and known to be missing. Of one that
            // was started anew the primary may have died without knowing.
            let may_know = !self.way(place).was_restarted;
            if let Some(taken) = self.standby(place).taken.as_ref().filter(|_| may_know) {
                self.volumes[place.volume].active.check_replica(place.replica, taken);
            }
        }
        self.end_takeover();
        self.coverage.count("took over", Stage::Running, "stop");
    }
}
