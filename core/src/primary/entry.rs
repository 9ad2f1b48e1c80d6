//! What a primary remembers of a request in flight.

use super::read::{Gather, Read};
use super::write::Mirror;
use crate::{ConnectionId, Errno, Outcome, Request};

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Not begun.
    Waiting,
    /// One leg is asked, and another one if it fails.
    Read(Read),
    /// Some of it is not on the primary disk: parts are read from different legs.
    Gather(Gather),
    /// Every leg is asked: a write, zeroes or a flush.
    Mirror(Mirror),
    /// Its reply is next.
    Finished(Result<Outcome, Errno>),
}

/// What a primary remembers of one entry of its table.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Work {
    pub(super) connection: ConnectionId,
    pub(super) request: Request,
    pub(super) phase: Phase,
    /// It came after the barrier that is up.
    pub(super) is_after_barrier: bool,
    /// Transfers started and not completed.
    pub(super) outstanding: u16,
}

impl Work {
    pub(super) const fn new(connection: ConnectionId, request: Request) -> Self {
        Self { connection, request, phase: Phase::Waiting, is_after_barrier: false, outstanding: 0 }
    }
}
