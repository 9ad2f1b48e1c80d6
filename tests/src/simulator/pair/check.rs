//! What must hold after every step, and what the coverage table is told.

use twinblock_core::node::{Managed, Trouble};
use twinblock_core::{ErrorKind, Extent, Op, Refused, ReplicaState, Stage, View};

use super::acts::{self, Act};
use super::settings::Settings;
use super::world::{Barrier, Place, World};
use crate::simulator::coverage::{Side, Troubles, stage_of};
use crate::simulator::disk::range;

impl World<'_> {
    /// Nothing is left to happen: everything must have been answered.
    pub(super) fn check_idle(&self) {
        for volume in self.volumes.iter().filter(|_| !self.is_primary_dead) {
            assert!(volume.active.is_idle(), "the primary has left requests unanswered");
            assert!(matches!(volume.barrier, Barrier::Down), "C2: a barrier is still up");
        }
        for place in self.places() {
            let standby = self.standby(place);
            assert!(standby.is_idle(), "a secondary has left requests unanswered: {}", standby.left());
        }
    }

    /// After every step: what it can have changed.
    pub(super) fn check(&self, act: Act) {
        for place in self.places().filter(|place| act.may_change_secondary(*place)) {
            self.standby(place).check();
        }
        if self.is_primary_dead {
            return;
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            let is_primarys = act.may_change_primary(index);
            if is_primarys {
                volume.active.check_disk();
            }
            for (replica, standby) in volume.standbys.iter().enumerate() {
                let place = Place { volume: index, replica };
                let has_changed = is_primarys || act.may_change_secondary(place);
                // Until it is told that a replica was started anew, the primary cannot know what that has lost.
                let may_know = !volume.ways[replica].was_restarted;
                if has_changed
                    && may_know
                    && matches!(standby.machine().stage(), Stage::None | Stage::Running)
                {
                    volume.active.check_replica(replica, standby.device().bytes());
                }
            }
        }
        self.check_barriers();
    }

    fn check_barriers(&self) {
        for volume in &self.volumes {
            let Barrier::Reached { sent, connections, .. } = &volume.barrier else { continue };
            for (replica, way) in volume.ways.iter().enumerate() {
                let is_same = connections[replica] == way.connections;
                assert!(
                    !is_same || volume.active.link(replica).modifications == sent[replica],
                    "P4: a modification passes the barrier"
                );
            }
        }
    }

    /// A replica is about to be asked to prepare: all volumes stand still, but those that a manager has stopped meanwhile.
    pub(super) fn check_stillness(&self) {
        for (index, volume) in self.volumes.iter().enumerate() {
            let stands_still = matches!(volume.barrier, Barrier::Reached { .. });
            let must = self.control.is_enrolled(index) && !volume.was_stopped;
            assert!(stands_still || !must, "a volume goes on while another one's replica prepares");
        }
    }

    /// What a manager hears of a volume's health.
    pub(super) fn check_trouble(&self, volume: usize) {
        let this = &self.volumes[volume];
        let machine = this.active.machine();
        let is_behind = this.standbys.iter().enumerate().any(|(replica, _)| {
            machine.replica(replica as u8).is_some_and(|status| status.is_attached && status.is_behind)
        });
        match (machine.stage(), machine.trouble()) {
            (Stage::None, told) => assert_eq!(told, Err(Refused::NotRunning)),
            (_, Ok(None)) => assert!(!is_behind, "a replica is behind and nobody is told"),
            (_, Ok(Some(Trouble::Behind))) => assert!(is_behind, "nobody is behind"),
            (_, Ok(Some(Trouble::Error(kind)))) => {
                let may_be = match kind {
                    ErrorKind::PrimaryDisk => !this.active.disk().injected.is_empty(),
                    ErrorKind::Forward => true,
                    _ => false,
                };
                assert!(may_be, "{kind:?} of a primary, and nothing has failed");
            }
            (stage, Err(refused)) => panic!("in stage {stage:?} a manager hears {refused:?}"),
        }
    }

    /// A flush was answered to a guest of the primary.
    pub(super) fn check_flush(&self, volume: usize, taken_at: u64) {
        let this = &self.volumes[volume];
        if this.active.disk().injected.is_empty() {
            this.active.check_flushed(this.active.disk(), taken_at);
        }
        for (replica, standby) in this.standbys.iter().enumerate() {
            let status = this.active.machine().replica(replica as u8).expect("there is such a place");
            let has_run = this.active.is_running() && this.active.running_since < taken_at;
            let was_there = this.ways[replica].up_since < taken_at && has_run;
            let is_twin = matches!(standby.machine().stage(), Stage::None | Stage::Running);
            // One that was left out is behind.
            if status.is_attached && !status.is_behind && was_there && is_twin {
                this.active.check_flushed(standby.device(), taken_at);
            }
        }
    }

    /// A guest's read fails only if no replica that is reachable and misses nothing could answer it.
    pub(super) fn check_failed_read(&self, volume: usize, taken_at: u64) {
        let this = &self.volumes[volume];
        if !this.active.is_running() || this.active.running_since >= taken_at {
            return;
        }
        for (replica, standby) in this.standbys.iter().enumerate() {
            let status = this.active.machine().replica(replica as u8).expect("there is such a place");
            let is_fit = status.is_attached && status.is_connected && !status.is_behind;
            let was_there = this.ways[replica].up_since < taken_at && !this.ways[replica].is_cut;
            // A replica that has taken over is none, and tells when it is asked.
            let has_left = !matches!(standby.machine().stage(), Stage::None | Stage::Running);
            let may_fail = has_left || !standby.device().injected.is_empty();
            assert!(!is_fit || !was_there || may_fail, "a read fails although a twin could answer it");
        }
    }

    /// While the barrier is up, a checkpoint holds everything that was answered. Once the link is cut the primary answers
    /// without the replica, while a commit may be on its way: that checkpoint is the moment before.
    pub(super) fn check_commit(&self, place: Place) {
        let this = &self.volumes[place.volume];
        let Barrier::Reached { connections, .. } = &this.barrier else { return };
        let is_same = connections[place.replica] == this.ways[place.replica].connections;
        let is_up =
            this.active.machine().replica(place.replica as u8).is_some_and(|status| status.is_connected);
        if self.is_primary_dead || !is_same || !is_up || self.standby(place).session.is_none() {
            return;
        }
        let now = self.snapshot(place.volume);
        let flew = |at: usize, byte: u8| {
            let explains = |(extent, new): &(Extent, Vec<u8>)| {
                let range = range(*extent);
                range.contains(&at) && new[at - range.start] == byte
            };
            now.flying.iter().any(explains)
        };
        let wrong = now.bytes.first_wrong(0, self.standby(place).device().bytes(), flew);
        assert_eq!(wrong, None, "a checkpoint while something that was answered is missing");
    }

    /// An input is about to be offered to a primary.
    pub(super) fn meet_primary(&mut self, volume: usize, input: &str) {
        let side = Side::Primary;
        let this = &self.volumes[volume];
        let statuses =
            (0..this.standbys.len()).filter_map(|place| this.active.machine().replica(place as u8));
        let attached = statuses.filter(|status| status.is_attached);
        let (mut is_down, mut is_behind) = (false, false);
        for status in attached {
            is_down |= !status.is_connected;
            is_behind |= status.is_behind;
        }
        let is_full = this.standbys.iter().any(|standby| standby.machine().held() != 0);
        let is_slow = this.ways.iter().any(|way| way.is_frozen) || this.active.disk().is_overfull();
        let troubles = Troubles::default()
            .with(side, "disk", !this.active.disk().injected.is_empty())
            .with(side, "down", is_down)
            .with(side, "behind", is_behind)
            .with(side, "full", is_full)
            .with(side, "slow", is_slow)
            .with(side, "clock", self.skew[0] != 0);
        let stage = stage_of(side, this.active.machine().stage());
        self.coverage.meet(side, input, stage, troubles);
    }

    /// An input is about to be offered to a secondary, or was.
    pub(super) fn meet_secondary(&mut self, place: Place, input: &str) {
        let side = Side::Secondary;
        let standby = self.standby(place);
        let machine = standby.machine();
        let is_full = machine.held() != 0 || machine.buffer().free_slots() == 0;
        let devices = [standby.device(), standby.buffer()];
        let is_slow = self.way(place).is_frozen || devices.iter().any(|device| device.is_overfull());
        let links = standby.clients.open.iter().filter(|client| client.is_replication).count();
        let troubles = Troubles::default()
            .with(side, "disk", !standby.device().injected.is_empty())
            .with(side, "buffer", !standby.buffer().injected.is_empty())
            .with(side, "full", is_full)
            .with(side, "broken", machine.view() == View::Broken)
            .with(side, "behind", machine.is_behind())
            .with(side, "cut", standby.was_cut)
            .with(side, "stale", links > 1)
            .with(side, "slow", is_slow)
            .with(side, "clock", self.skew[1 + place.replica] != 0)
            .with(side, "dead", self.is_primary_dead);
        let stage = stage_of(side, machine.stage());
        self.coverage.meet(side, input, stage, troubles);
    }

    /// A piece of a request was taken by a secondary.
    pub(super) fn meet_request(&mut self, place: Place, is_primarys: bool, op: &Op) {
        let name = name_of(is_primarys, op);
        self.meet_secondary(place, name);
    }

    /// The coordinator is about to hear something.
    pub(super) fn meet_coordinator(&mut self, input: &str) {
        let side = Side::Coordinator;
        let states = self.places().map(|place| self.control.states[place.flat()]);
        let (mut is_down, mut is_behind) = (false, false);
        for state in states {
            is_down |= state == ReplicaState::Disconnected;
            is_behind |= state == ReplicaState::Behind;
        }
        let Settings { control_every, .. } = self.settings;
        let troubles = Troubles::default()
            .with(side, "lost", self.control.has_lost)
            .with(side, "down", is_down)
            .with(side, "behind", is_behind)
            .with(side, "slow", control_every > 1)
            .with(side, "clock", self.skew[0] != 0);
        let phase = self.control.phase;
        self.coverage.meet(side, input, phase as usize, troubles);
    }
}

/// The name of a request, as the coverage table has it for a secondary.
pub(crate) fn name_of(is_primarys: bool, op: &Op) -> &'static str {
    match (is_primarys, acts::name_of(op)) {
        (true, "read") => "primary read",
        (true, "write") => "primary write",
        (true, "zeroes") => "primary zeroes",
        (true, "trim") => "primary trim",
        (true, "flush") => "primary flush",
        (true, _) => "primary status",
        (false, "read") => "guest read",
        (false, "write") => "guest write",
        (false, "zeroes") => "guest zeroes",
        (false, "trim") => "guest trim",
        (false, "flush") => "guest flush",
        (false, _) => "guest status",
    }
}

impl Act {
    fn may_change_primary(self, index: usize) -> bool {
        match self {
            Self::PrimaryDisk(volume) | Self::PrimaryOffer(volume, _) => volume == index,
            Self::Return(place, _) | Self::Disconnected(place) => place.volume == index,
            Self::Answer(_) | Self::Wait => true,
            _ => false,
        }
    }

    fn may_change_secondary(self, at: Place) -> bool {
        match self {
            Self::SecondaryDisk(place)
            | Self::SecondaryBuffer(place)
            | Self::SecondaryOffer(place, _)
            | Self::Transmit(place)
            | Self::End(place, _)
            | Self::Return(place, _)
            | Self::Disconnected(place) => place == at,
            Self::Question(_) | Self::Wait | Self::Answer(_) => true,
            Self::PrimaryDisk(_) | Self::PrimaryOffer(..) => false,
        }
    }
}
