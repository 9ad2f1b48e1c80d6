//! What a [`Coordinator`] is told, and what it wants done.

#[cfg(doc)]
use super::Coordinator;
use crate::{CommandId, Refused, ReplicaState};

/// One of the node's volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct VolumeIndex(pub u16);

/// One replica with a control address: a place among the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MemberIndex(pub u16);

/// A node that keeps replicas: what one control address names. Its volumes take a checkpoint together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NodeIndex(pub u16);

/// What is offered to a [`Coordinator`]. Answers to the questions of a checkpoint that has ended ([`Output::Answer`]) are not
/// offered: a replica may answer what the next one asks sooner. Those that were lost with a control link are offered as
/// refused with [`Refused::TimedOut`], or not at all; a question that no control link could take with
/// [`Refused::NoControl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Take a checkpoint of the volumes that are enrolled.
    Begin {
        /// Comes back in the answer.
        command: CommandId,
        /// A buffer is full: do not wait for the rest of long requests.
        is_urgent: bool,
    },
    /// A barrier is reached, or was refused.
    Barrier(VolumeIndex, Result<(), Refused>),
    /// A replica's epoch.
    Epoch(MemberIndex, Result<u64, Refused>),
    /// A replica has prepared, or refused.
    Prepared(MemberIndex, Result<(), Refused>),
    /// A replica has committed, or refused.
    Committed(MemberIndex, Result<(), Refused>),
    /// A replica's state has changed.
    Replica(MemberIndex, ReplicaState),
}

/// What a [`Coordinator`] wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Raise the barrier of a volume; offer its answer.
    Barrier {
        /// Which volume.
        volume: VolumeIndex,
        /// Without waiting for the rest of long requests.
        is_urgent: bool,
    },
    /// The barrier of a volume, if it is not reached yet, must not wait for the rest of long requests.
    Hurry(VolumeIndex),
    /// Release the barrier of a volume.
    Release {
        /// Which volume.
        volume: VolumeIndex,
        /// A checkpoint was taken.
        is_checkpoint: bool,
    },
    /// Ask a replica for its epoch; offer the answer.
    AskEpoch(MemberIndex),
    /// Ask a replica to prepare, with the number of modifications sent to it; offer the answer.
    Prepare {
        /// Which replica.
        member: MemberIndex,
        /// Its epoch that shall end.
        epoch: u64,
    },
    /// Tell a replica to commit; offer the answer.
    Commit {
        /// Which replica.
        member: MemberIndex,
        /// As prepared.
        epoch: u64,
        /// How many replicas of its node are told to commit, it included: they do so together or not at all.
        together: u16,
    },
    /// This replica, or another one of its node, is behind or not reachable: it is left out.
    LeftOut(MemberIndex),
    /// This replica says that it misses something: it is behind.
    Missing(MemberIndex),
    /// The checkpoint was taken, or why not.
    Answer(CommandId, Result<(), Failure>),
}

/// Why a checkpoint was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// What was refused.
    pub refused: Refused,
    /// By which replica, if it was one.
    pub member: Option<MemberIndex>,
    /// By which volume, if it was one; with [`Refused::NoReplica`] the one that no replica is left of.
    pub volume: Option<VolumeIndex>,
}
