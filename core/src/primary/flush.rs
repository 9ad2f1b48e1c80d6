//! Flushes: the disk and every replica that is reachable.
//!
//! A flush covers every write that was answered before it. A replica whose flush fails is behind, and so is one that is
//! not reachable and holds what no flush has covered.

use super::entry::Phase;
use super::write::{Legs, Mirror};
use super::{Primary, Step};
use crate::Stage;
use crate::order::EntryIndex;

impl Primary<'_> {
    pub(super) fn begin_flush(&mut self, index: EntryIndex) -> Step {
        let mut legs = Legs::DISK;
        for replica in 0..self.replicas.len() {
            if self.stage != Stage::Running {
                continue;
            }
            if self.is_reachable(replica) {
                self.ask_flush(replica);
                legs = legs.with(Legs::replica(replica));
            } else {
                self.leave_out_of_flush(replica);
            }
        }
        self.enter(index, Phase::Mirror(Mirror::of(legs)));
        Step::Again
    }
}
