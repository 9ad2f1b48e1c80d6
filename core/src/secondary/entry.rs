//! What a secondary remembers of a request in flight.

use super::Counts;
use super::commit::CommitStep;
use super::guest::{GuestFlush, Walk};
use super::keep::Keep;
use crate::{BufferIndex, ConnectionId, Errno, Micros, Op, Outcome, Request};

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    Replication,
    Guest,
    /// The commit of a failover.
    Commit,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Not begun.
    Waiting {
        /// It had its turn, but another entry keeps one of its granules, or no scratch buffer was free.
        for_keep: bool,
    },
    /// It found no slot; nothing of it has touched the disk.
    Held { since: Micros },
    /// It keeps old content.
    Keep(Keep),
    /// One transfer on the disk, and that is all.
    Direct,
    /// A guest request over parts that lie in different places.
    Walk(Walk),
    /// A guest's flush.
    GuestFlush(GuestFlush),
    /// A step of the commit.
    Commit(CommitStep),
    /// Its reply is next.
    Finished(Result<Outcome, Errno>),
}

/// What a secondary remembers of one entry of its table.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Work {
    pub(super) origin: Origin,
    pub(super) connection: ConnectionId,
    pub(super) request: Request,
    pub(super) phase: Phase,
    /// It came after the barrier that is up.
    pub(super) is_after_barrier: bool,
    /// Transfers started and not completed.
    pub(super) outstanding: u16,
    pub(super) scratch: Option<BufferIndex>,
}

impl Work {
    pub(super) const fn new(origin: Origin, connection: ConnectionId, request: Request) -> Self {
        Self {
            origin,
            connection,
            request,
            phase: Phase::Waiting { for_keep: false },
            is_after_barrier: false,
            outstanding: 0,
            scratch: None,
        }
    }

    /// Whether it could be dropped without a trace.
    pub(super) const fn is_untouched(&self) -> bool {
        matches!(self.phase, Phase::Waiting { .. } | Phase::Held { .. })
    }

    /// Whether it waits for a scratch buffer; it takes one as soon as it is stepped and there is one.
    pub(super) const fn wants_scratch(&self) -> bool {
        let is_loading = match self.phase {
            Phase::Keep(keep) => keep.wants_scratch(),
            Phase::Commit(CommitStep::Load { .. }) => true,
            _ => false,
        };
        is_loading && self.outstanding == 0 && self.scratch.is_none()
    }

    pub(super) const fn is_modification(&self) -> bool {
        self.request.op.is_modification()
    }

    pub(super) const fn is_zeroes(&self) -> bool {
        matches!(self.request.op, Op::WriteZeroes { .. })
    }
}

impl Phase {
    /// Whether it has begun and not ended.
    const fn is_active(&self) -> bool {
        !matches!(self, Self::Waiting { .. } | Self::Held { .. } | Self::Finished(_))
    }
}

impl Counts {
    pub(super) const fn of(&mut self, origin: Origin) -> &mut u16 {
        match origin {
            Origin::Replication => &mut self.replication,
            Origin::Guest => &mut self.guest,
            Origin::Commit => &mut self.commit,
        }
    }

    pub(super) fn leave(&mut self, phase: &Phase) {
        self.active -= u16::from(phase.is_active());
        match phase {
            Phase::Waiting { for_keep: true } => self.waiting_for_keep -= 1,
            Phase::Held { .. } => self.held -= 1,
            Phase::Keep(_) => self.keeping -= 1,
            _ => {}
        }
    }

    pub(super) fn enter(&mut self, phase: &Phase) {
        self.active += u16::from(phase.is_active());
        match phase {
            Phase::Waiting { for_keep: true } => self.waiting_for_keep += 1,
            Phase::Held { .. } => self.held += 1,
            Phase::Keep(_) => self.keeping += 1,
            _ => {}
        }
    }
}
