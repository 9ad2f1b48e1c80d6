//! What is known from outside about when each epoch began: the secondary is asked for its epoch again and again.

use std::ops::RangeInclusive;

use super::Bounds;
use crate::demo::clock::Moment;

/// One question and its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Poll {
    /// Just before it was asked.
    pub(crate) sent: Moment,
    /// Just after the answer came.
    pub(crate) received: Moment,
    /// The secondary's epoch somewhere in between.
    pub(crate) epoch: u64,
}

/// All answers, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epochs(Vec<Poll>);

impl Epochs {
    /// Notes an answer. Epochs only grow; one that shrank is not noted, and given back.
    pub(crate) fn add(&mut self, poll: Poll) -> Result<(), Poll> {
        if self.0.last().is_some_and(|last| last.epoch > poll.epoch) {
            return Err(poll);
        }
        self.0.push(poll);
        Ok(())
    }

    /// How many epochs ended while they were watched.
    pub(crate) fn passed(&self) -> u64 {
        match (self.0.first(), self.0.last()) {
            (Some(first), Some(last)) => last.epoch - first.epoch,
            _ => 0,
        }
    }

    /// The epoch surely had not begun.
    fn not_yet(&self, epoch: u64) -> Moment {
        let earlier = self.0.partition_point(|poll| poll.epoch < epoch);
        earlier.checked_sub(1).and_then(|last| self.0.get(last)).map_or(Moment::START, |poll| poll.sent)
    }

    /// The epoch surely had begun.
    fn by_then(&self, epoch: u64) -> Moment {
        let earlier = self.0.partition_point(|poll| poll.epoch < epoch);
        self.0.get(earlier).map_or(Moment::NEVER, |poll| poll.received)
    }

    /// When the checkpoint was that an epoch begins with. Its barrier is never before the commit of the one before.
    pub(crate) fn bounds(&self, epoch: u64) -> Bounds {
        Bounds {
            begin_after: self.not_yet(epoch.saturating_sub(1)),
            begin_until: self.by_then(epoch),
            commit_from: self.not_yet(epoch),
            commit_before: self.by_then(epoch),
        }
    }

    /// Which epochs a read may have seen that was sent and answered then.
    pub(crate) fn candidates(&self, submitted: Moment, answered: Moment) -> RangeInclusive<u64> {
        let known = self.0.partition_point(|poll| poll.received <= submitted);
        let first = self.0.get(known.saturating_sub(1)).map_or(0, |poll| poll.epoch);
        let after = self.0.partition_point(|poll| poll.sent < answered);
        let last = self.0.get(after).or(self.0.last()).map_or(0, |poll| poll.epoch);
        first..=last
    }
}
