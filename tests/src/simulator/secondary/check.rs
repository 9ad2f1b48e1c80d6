//! What must hold after every step.

use twinblock_core::buffer::Spot;
use twinblock_core::secondary::Port;
use twinblock_core::{ErrorKind, Extent, Stage, View};

use super::super::coverage::{Side, Troubles, stage_of};
use super::super::disk::range;
use super::reply::differing;
use super::{Flying, World, size_of};

impl World<'_> {
    /// An input is about to be offered, or was.
    pub(super) fn meet(&mut self, input: &str) {
        let side = Side::Secondary;
        let machine = self.machine();
        let is_full = machine.held() != 0 || machine.buffer().free_slots() == 0;
        let links = self.clients.iter().filter(|client| client.port == Port::Replication).count();
        let troubles = Troubles::default()
            .with(side, "disk", !self.disk().injected.is_empty())
            .with(side, "buffer", !self.buffer().injected.is_empty())
            .with(side, "full", is_full)
            .with(side, "broken", machine.view() == View::Broken)
            .with(side, "behind", machine.is_behind())
            .with(side, "cut", self.was_cut)
            .with(side, "stale", links > 1)
            .with(side, "slow", self.settings.depth == 1)
            .with(side, "clock", self.has_jumped);
        let stage = stage_of(side, machine.stage());
        self.coverage.meet(side, input, stage, troubles);
    }

    /// A device has made progress.
    pub(super) fn meet_completion(&mut self, is_disk: bool, is_done: Option<bool>) {
        match (is_disk, is_done) {
            (_, None) => {}
            (true, Some(true)) => self.meet("disk done"),
            (true, Some(false)) => self.meet("disk failed"),
            (false, Some(true)) => self.meet("buffer done"),
            (false, Some(false)) => self.meet("buffer failed"),
        }
    }

    /// What the guest would read now: the buffer first, then the disk.
    pub(super) fn resolve_view(&self) -> Vec<u8> {
        let mut view = self.disk().bytes().to_vec();
        let size = size_of(self.disk());
        let mut rest = Extent { offset: 0, length: size };
        while !rest.is_empty() {
            let found = self.machine().buffer().find(rest);
            let part = Extent { length: found.length, ..rest };
            match found.spot {
                Spot::Slot(at) => {
                    let slots = range(Extent { offset: at, length: part.length });
                    view[range(part)].copy_from_slice(&self.buffer().bytes()[slots]);
                }
                Spot::Zeroes => view[range(part)].fill(0),
                Spot::Absent => {}
            }
            rest = Extent::between(part.end(), rest.end());
        }
        view
    }

    /// Disk and view are what the model says, but for what requests in flight may have done already.
    pub(super) fn compare(&mut self) {
        let machine = self.machine();
        assert_eq!(machine.stage(), self.model.stage);
        assert_eq!(machine.epoch(), self.model.epoch);
        assert_eq!(
            machine.view() == View::Broken,
            self.model.is_broken && self.model.stage == Stage::Running
        );
        assert!(machine.in_flight() >= self.flying.len());
        match self.model.stage {
            Stage::None => self.compare_one(self.disk().bytes(), &self.model.disk, Port::Replication),
            Stage::Running => {
                self.compare_one(self.disk().bytes(), &self.model.disk, Port::Replication);
                if !self.model.is_broken {
                    self.compare_one(&self.resolve_view(), &self.model.view, Port::Guest);
                }
                self.check_behind();
            }
            Stage::Failover | Stage::FailoverFailed => {
                self.compare_one(&self.resolve_view(), &self.model.view, Port::Guest);
            }
            Stage::Done => self.compare_one(self.disk().bytes(), &self.model.view, Port::Guest),
        }
        self.look_around();
    }

    fn compare_one(&self, is: &[u8], should: &[u8], port: Port) {
        if is == should {
            return;
        }
        for byte in 0..is.len() {
            if is[byte] != should[byte] && !self.may_be_in_flight(port, byte, is[byte]) {
                panic!("{port:?} in {:?}: {}", self.model.stage, differing(is, should, 0));
            }
        }
    }

    /// Whether a request in flight may have made a byte what it is.
    pub(super) fn may_be_in_flight(&self, port: Port, byte: usize, is: u8) -> bool {
        self.flying.iter().any(|flying| {
            let place = range(flying.extent());
            flying.port == port
                && flying.request.op.is_modification()
                && place.contains(&byte)
                && flying.new[byte - place.start] == is
        })
    }

    fn check_behind(&self) {
        let is_behind = self.machine().is_behind();
        let must_be = self.model.has_missed || self.model.is_in_doubt;
        let may_be = must_be || self.model.may_be_in_doubt;
        assert!(is_behind || !must_be, "something is missing and nobody knows");
        assert!(may_be || !is_behind, "nothing is missing");
    }

    /// A port that refuses a request has as many in flight as it takes.
    pub(super) fn check_busy(&self, port: Port) {
        let count = self.flying.iter().filter(|flying| flying.port == port).count();
        let config = &self.settings.config;
        let limit = match port {
            Port::Replication => config.replication_requests,
            Port::Guest => config.guest_requests,
        };
        assert!(count >= usize::from(limit), "{port:?} is busy with {count} requests of {limit}");
    }

    /// Everything is answered: nothing is left anywhere.
    pub(super) fn check_idle(&self) {
        assert!(self.flying.is_empty());
        assert_eq!(self.machine().in_flight(), 0);
        assert_eq!(self.machine().held(), 0);
        assert_eq!(self.disk().in_flight() + self.buffer().in_flight(), 0);
        let was_perfect = self.disk().injected.is_empty() && self.buffer().injected.is_empty();
        if was_perfect {
            let errors = self.machine().errors();
            for kind in [ErrorKind::SecondaryDisk, ErrorKind::Buffer, ErrorKind::Empty, ErrorKind::Commit] {
                assert_eq!(errors.count(kind), 0, "{kind:?} without a fault");
            }
        }
    }

    /// An epoch has ended: nothing of it is in flight, and no request is half in it.
    pub(super) fn epoch_ended(&mut self) {
        assert_eq!(self.disk().in_flight() + self.buffer().in_flight(), 0, "S2");
        let disk = self.disk().bytes();
        assert!(disk == self.model.disk, "at the checkpoint: {}", differing(disk, &self.model.disk, 0));
        // Writes that are held, or wait for the claim, and what waits behind them, belong to the next epoch even if a
        // part of their request does not.
        let waits = |flying: &Flying| flying.saw_held || flying.saw_rival || self.was_full(flying);
        if !self.flying.iter().any(waits) {
            let torn = self.groups.iter().find(|(_, group)| group.is_modification && group.answered != 0);
            assert!(torn.is_none(), "a checkpoint within a request: {torn:?}");
        }
        self.model.begin_epoch();
    }

    pub(super) fn entered(&mut self, stage: Stage) {
        let from = self.model.stage;
        let is_legal = matches!(
            (from, stage),
            (Stage::None, Stage::Running)
                | (Stage::Running | Stage::FailoverFailed, Stage::Failover)
                | (Stage::Running, Stage::Done)
                | (Stage::Failover, Stage::Done | Stage::FailoverFailed)
        );
        assert!(is_legal, "{from:?} to {stage:?}");
        self.coverage.count("stage: from here to", from, stage.name());
        self.model.stage = stage;
        self.model.prepared = None;
        let commit_errors = self.machine().errors().count(ErrorKind::Commit);
        match stage {
            Stage::Failover => self.model.commit_errors = commit_errors,
            Stage::FailoverFailed => assert!(commit_errors > self.model.commit_errors, "nothing has failed"),
            Stage::Done if from == Stage::Failover => {
                assert_eq!(commit_errors, self.model.commit_errors, "done after an error");
            }
            _ => {}
        }
        match (from, stage) {
            (Stage::None, _) => {
                self.model.owner = None;
                self.model.forgive();
            }
            (Stage::Running, Stage::Failover) => self.model.is_guests.fill(false),
            (Stage::Running, Stage::Done) => {
                assert_eq!(self.disk().in_flight() + self.buffer().in_flight(), 0, "S2");
                self.model.view.copy_from_slice(&self.model.disk);
            }
            (Stage::Failover, Stage::Done) => self.check_committed(),
            _ => {}
        }
        self.look_around();
    }

    /// The failover is over: what was committed is durable.
    fn check_committed(&self) {
        let progress = self.machine().progress();
        assert_eq!(progress.done_bytes, progress.total_bytes);
        let is_guests_now = |byte: usize| {
            let is_flying =
                |flying: &Flying| flying.port == Port::Guest && range(flying.extent()).contains(&byte);
            self.flying.iter().any(is_flying)
        };
        for (byte, at) in self.disk().written_at().iter().enumerate() {
            let is_guests = self.model.is_guests[byte] || is_guests_now(byte);
            assert!(*at == 0 || is_guests, "byte {byte} was committed and is not durable");
        }
    }
}
