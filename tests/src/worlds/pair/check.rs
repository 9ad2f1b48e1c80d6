//! What must hold in every state, of every reply and of every checkpoint.

use twinblock_core::buffer::Spot;
use twinblock_core::{Extent, Reply, Stage, View};

use super::super::disk::{BLOCK, Mask, POISON, WINDOW_BLOCKS, range};
use super::{BLOCKS, Flying, State};

impl State<'_> {
    pub(super) fn replied(&mut self, reply: &Reply) {
        let is_it = |flying: &Flying| flying.request.id == reply.id;
        let place = self.around.flying.iter().position(is_it).expect("a reply to what is in flight");
        let flying = self.around.flying.remove(place);
        assert!(reply.result.is_ok(), "the replica disturbs the guest: {reply:?}");
        self.around.model.content[range(flying.request.extent)].fill(flying.name);
        self.around.primary_arena.0[usize::from(flying.data.buffer.0)] = [POISON; WINDOW_BLOCKS];
    }

    /// What may be in the checkpoint: what was answered, and what is being written.
    pub(super) fn take_snapshot(&mut self) {
        self.around.model.snapshots[usize::from(self.around.control.round)] =
            std::array::from_fn(|block| self.explains(block));
    }

    /// What a block may be: as was answered, or as a request in flight makes it.
    fn explains(&self, block: usize) -> Mask {
        let flying = self.around.flying.iter().filter(|flying| range(flying.request.extent).contains(&block));
        flying.fold(1 << self.around.model.content[block], |may_be, flying| may_be | 1 << flying.name)
    }

    /// The secondary has taken the checkpoint of the pair: the disk is what the primary's guest counted on.
    pub(super) fn committed(&mut self, round: u8) {
        let around = &mut self.around;
        assert!(around.disk.in_flight.is_empty() && around.buffer.in_flight.is_empty(), "S2");
        for block in 0..BLOCKS {
            let is = around.disk.content[block];
            let is_right = around.model.snapshots[usize::from(round)][block] & 1 << is != 0;
            assert!(is_right, "a checkpoint while something is missing: block {block} is {is:#x}");
        }
        around.model.view = around.disk.content;
        around.model.epoch += 1;
        around.model.taken = round;
    }

    /// The manager was told how its checkpoint went.
    pub(super) fn checkpointed(&self, is_taken: bool) {
        let is_there = self.around.model.taken == self.around.control.round;
        assert!(!is_taken || is_there, "a checkpoint that was not taken is reported");
        assert!(is_taken || self.around.model.is_disturbed, "a checkpoint fails for nothing");
    }

    /// Everything that must hold between two steps.
    pub(super) fn check(&self) {
        assert_eq!(self.primary.broken_invariant(), None);
        assert_eq!(self.secondary.broken_invariant(), None);
        let model = &self.around.model;
        assert_eq!((self.secondary.stage(), self.secondary.epoch()), (model.stage, model.epoch));
        assert_eq!(self.secondary.view(), View::Whole);
        let view = self.view();
        assert_eq!(view, model.view, "the secondary shows something else than the last checkpoint");
        let misses = |block: usize| {
            self.primary.misses(0, Extent { offset: block as u64 * BLOCK, length: BLOCK })
                && self.primary.is_behind()
        };
        for block in 0..BLOCKS {
            let may_be = self.explains(block);
            let here = self.around.primary_disk.content[block];
            assert!(may_be & 1 << here != 0, "block {block} of the primary disk is {here:#x}");
            let there = self.around.disk.content[block];
            let is_its = matches!(model.stage, Stage::Running) && !misses(block);
            assert!(
                !is_its || may_be & 1 << there != 0,
                "P1: block {block} of the secondary disk is {there:#x}"
            );
        }
    }

    /// What the guest of the secondary would read.
    fn view(&self) -> [u8; BLOCKS] {
        std::array::from_fn(|block| {
            let extent = Extent { offset: block as u64 * BLOCK, length: BLOCK };
            match self.secondary.buffer().find(extent).spot {
                Spot::Slot(at) => self.around.buffer.content[(at / BLOCK) as usize],
                Spot::Zeroes => 0,
                Spot::Absent => self.around.disk.content[block],
            }
        })
    }

    /// Everything that was asked is answered.
    pub(super) fn check_rest(&self) {
        let around = &self.around;
        let is_waiting = self.coordinator.is_busy();
        assert!(is_waiting || around.flying.is_empty(), "never answered: {:?}", around.flying);
        assert!(is_waiting || around.control.begun.is_none(), "the checkpoint is never answered");
        assert!(around.link.incoming.is_empty(), "never answered: {:?}", around.link.incoming);
        assert_eq!(self.secondary.in_flight(), 0);
        assert_ne!(around.model.stage, Stage::Failover, "the failover does not end");
        if is_waiting {
            // Only a cut lets an answer wait for the coordinator's time-out.
            assert!(
                around.link.sessions_used > 1
                    || around.link.session.is_none()
                    || around.control.has_failed_over
            );
        }
    }
}
