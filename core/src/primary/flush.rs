//! Flushes: the disk and every replica that is reachable.
//!
//! A flush covers every write that was answered before it. A replica whose flush fails is behind.

use super::entry::Phase;
use super::write::{Legs, Mirror};
use super::{Primary, Step};
use crate::Stage;
use crate::order::EntryIndex;

impl Primary<'_> {
    pub(super) fn begin_flush(&mut self, index: EntryIndex) -> Step {
        let mut legs = Legs::DISK;
        for replica in 0..self.replicas.len() {
            if self.stage == Stage::Running && self.is_reachable(replica) {
                legs = legs.with(Legs::replica(replica));
            }
        }
        self.enter(index, Phase::Mirror(Mirror::of(legs)));
        Step::Again
    }
}
