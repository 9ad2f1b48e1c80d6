//! What must hold in every state.

use twinblock_core::block::{Action, Transfer};
use twinblock_core::buffer::Spot;
use twinblock_core::secondary::Port;
use twinblock_core::{Extent, Stage, View};

use super::super::disk::{BLOCK, is_modification, mask, range};
use super::{BLOCKS, GRANULE_BLOCKS, State};

impl State<'_> {
    /// What the guest would read now: the buffer first, then the disk.
    pub(super) fn view(&self) -> [u8; BLOCKS] {
        std::array::from_fn(|block| match self.spot(block) {
            Spot::Slot(at) => self.around.buffer.content[(at / BLOCK) as usize],
            Spot::Zeroes => 0,
            Spot::Absent => self.around.disk.content[block],
        })
    }

    fn spot(&self, block: usize) -> Spot {
        self.machine.buffer().find(Extent { offset: block as u64 * BLOCK, length: BLOCK }).spot
    }

    /// Everything that must hold between two steps.
    pub(super) fn check(&mut self) {
        assert_eq!(self.machine.broken_invariant(), None);
        let model = &self.around.model;
        assert_eq!(self.machine.stage(), model.stage);
        assert_eq!(self.machine.epoch(), model.epoch);
        let is_broken = model.is_broken && model.stage == Stage::Running;
        assert_eq!(self.machine.view() == View::Broken, is_broken);
        assert!(self.machine.in_flight() >= self.around.flying.len(), "S3: a request was forgotten");
        let disk = self.around.disk.content;
        match model.stage {
            Stage::None => self.compare(Port::Replication, disk, model.disk),
            Stage::Running => {
                self.compare(Port::Replication, disk, model.disk);
                if !is_broken {
                    self.compare(Port::Guest, self.view(), model.view);
                }
                self.check_behind();
            }
            Stage::Failover | Stage::FailoverFailed => self.compare(Port::Guest, self.view(), model.view),
            Stage::Done => self.compare(Port::Guest, disk, model.view),
        }
        for in_flight in &self.around.disk.in_flight {
            self.check_kept(&in_flight.transfer);
        }
        self.check_held();
        self.look_around();
    }

    fn compare(&self, port: Port, is: [u8; BLOCKS], should: [u8; BLOCKS]) {
        for block in 0..BLOCKS {
            assert!(
                is[block] == should[block] || self.may_be_in_flight(port, block, is[block]),
                "block {block} of {port:?} is {:#x} instead of {:#x} in {:?}",
                is[block],
                should[block],
                self.around.model.stage
            );
        }
    }

    fn check_behind(&self) {
        let model = &self.around.model;
        let must_be = model.has_missed || model.is_in_doubt;
        let may_be = must_be || model.may_be_in_doubt;
        assert!(self.machine.is_behind() || !must_be, "something is missing and nobody knows");
        assert!(may_be || !self.machine.is_behind(), "nothing is missing");
    }

    /// A transfer is given to the disk.
    pub(super) fn check_submitted(&self, transfer: &Transfer) {
        self.check_kept(transfer);
    }

    /// S1: as long as the view is whole, a granule is overwritten only if the buffer stands for it.
    fn check_kept(&self, transfer: &Transfer) {
        let is_running = self.machine.stage() == Stage::Running && self.machine.view() == View::Whole;
        if !is_running || !is_modification(transfer) {
            return;
        }
        for block in range(transfer.extent) {
            let is_same =
                matches!(transfer.action, Action::WriteZeroes { .. }) && self.around.disk.content[block] == 0;
            assert!(is_same || self.spot(block) != Spot::Absent, "S1: {transfer:?}");
        }
    }

    /// S6: nothing of a held write has touched the disk.
    fn check_held(&self) {
        let mut held = 0;
        for flying in &self.around.flying {
            if self.machine.is_held(flying.request.id) {
                held += 1;
                let blocks = range(flying.request.extent);
                let is_there = |block: usize| self.around.disk.content[block] == flying.name;
                assert!(!blocks.into_iter().any(is_there), "S6: {:?}", flying.request);
            }
        }
        assert_eq!(held, self.machine.held(), "a held write that nobody asked for");
        assert!(held == 0 || self.machine.stage() == Stage::Running, "held in {:?}", self.machine.stage());
    }

    /// A port that refuses a request has as many in flight as it takes, or waits for a barrier's pieces.
    pub(super) fn check_busy(&self, port: Port) {
        let count = self.around.flying.iter().filter(|flying| flying.client.port() == port).count();
        let config = self.machine.config();
        let limit = match port {
            Port::Replication => config.replication_requests,
            Port::Guest => config.guest_requests,
        };
        assert!(count >= usize::from(limit), "{port:?} is busy with {count} requests of {limit}");
    }

    /// Notes what the requests in flight see now.
    pub(super) fn look_around(&mut self) {
        let model = &self.around.model;
        let (stage, is_served) = (1 << model.stage as u8, model.serves_guest());
        let has_held = self.machine.held() != 0;
        let free_slots = self.machine.buffer().free_slots() as u8;
        let mut rivals = model.owner.map_or(0, |owner| 1_u8 << owner as u8);
        for flying in &self.around.flying {
            if flying.client.port() == Port::Replication && flying.request.op.is_modification() {
                rivals |= 1 << flying.client as u8;
            }
        }
        for flying in &mut self.around.flying {
            flying.stages |= stage;
            flying.was_served |= is_served;
            flying.was_unserved |= !is_served;
            flying.saw_held |= has_held;
            flying.was_held |= has_held && self.machine.is_held(flying.request.id);
            flying.free_slots_min = flying.free_slots_min.min(free_slots);
            flying.saw_rival |= rivals & !(1 << flying.client as u8) != 0;
        }
    }

    /// The failover is over: what was committed is durable.
    pub(super) fn check_committed(&self, commit_errors: u64) {
        let model = &self.around.model;
        assert_eq!(commit_errors, model.commit_errors, "done after an error");
        let progress = self.machine.progress();
        assert_eq!(progress.done_bytes, progress.total_bytes);
        let guests = self.around.flying.iter().filter(|flying| flying.client.port() == Port::Guest);
        let guests = guests.fold(model.guests, |guests, flying| guests | mask(flying.granules()));
        let lost = self.around.disk.volatile & !guests;
        assert_eq!(lost, 0, "blocks were committed and are not durable");
    }

    /// Everything that was asked is answered, and nothing is left anywhere.
    pub(super) fn check_rest(&self) {
        let around = &self.around;
        assert!(around.flying.is_empty(), "never answered: {:?}", around.flying);
        assert!(
            around.asked.iter().all(|asked| self.is_waiting_rightly(asked)),
            "never answered: {:?}",
            around.asked
        );
        assert_eq!(self.machine.in_flight(), 0);
        assert_eq!(self.machine.held(), 0);
        assert_eq!(self.machine.free_scratch(), u32::from(self.machine.config().scratch_count));
        assert!(around.disk.in_flight.is_empty() && around.buffer.in_flight.is_empty());
        assert!(!matches!(around.model.stage, Stage::Failover), "the failover does not end");
        const { assert!(GRANULE_BLOCKS * 2 <= BLOCKS) }
    }
}
