//! What a manager or a primary can ask, and what it is told.

use super::report::{MemoryReport, StatusText};
use crate::Identity;

/// A command. Names, arguments and their defaults are those of QMP (QEMU Machine Protocol) where QEMU has the command;
/// what it does is said in SEMANTICS.md, "Operations".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `qmp_capabilities`: ends the negotiation that a QMP session begins with.
    Capabilities,
    /// `query-commands`: the names of all commands.
    Commands,
    /// `xen-set-replication`: start or stop.
    SetReplication {
        /// Start, or stop.
        enable: bool,
        /// The role that the volumes must have.
        primary: bool,
        /// With a stop of a secondary: go on from the last checkpoint and the guest's own writes (`true`), or from the
        /// secondary disk as it is (`false`). Never present with a start.
        failover: Option<bool>,
        /// Stop even though something is known to be missing.
        force: bool,
        /// Only this volume; all if absent.
        volume: Option<&'a str>,
    },
    /// `xen-colo-do-checkpoint`: a checkpoint now.
    Checkpoint {
        /// Even though something is known to be missing.
        force: bool,
        /// Only this volume; all if absent.
        volume: Option<&'a str>,
    },
    /// `query-xen-replication-status`: whether an error was recorded since the start.
    QueryReplicationStatus {
        /// Only this volume; all if absent.
        volume: Option<&'a str>,
    },
    /// `query-replication`: everything about every volume.
    QueryReplication,
    /// `x-query-memory`: what the process has allocated and occupies.
    QueryMemory,
    /// `attach`: another replica for a primary.
    Attach {
        /// Of which volume; may be absent if there is only one primary.
        volume: Option<&'a str>,
        /// NBD URI of the replica's replication export.
        uri: &'a str,
        /// What to call it.
        name: Option<&'a str>,
        /// Its control address, for checkpoints of the pair.
        control: Option<&'a str>,
        /// `sync` is `full`: everything is missing there at first. Otherwise `none`: what was written since the disk was
        /// opened.
        sync_full: bool,
    },
    /// `detach`: forget a replica.
    Detach {
        /// Of which volume; may be absent if there is only one primary.
        volume: Option<&'a str>,
        /// Its name.
        name: &'a str,
    },
    /// `quit`: end the daemon, requests finished and disks flushed.
    Quit,
    /// `checkpoint-prepare`: from a primary, first half of the checkpoint of a pair.
    CheckpointPrepare {
        /// Name of the replication export.
        volume: &'a str,
        /// The epoch of the secondary that shall end.
        epoch: u64,
        /// Who asks.
        claim: Identity,
        /// How many modification requests were sent on the present NBD connection.
        modifications: u64,
    },
    /// `checkpoint-commit`: from a primary, second half.
    CheckpointCommit {
        /// Name of the replication export.
        volume: &'a str,
        /// The epoch of the secondary that shall end.
        epoch: u64,
        /// Who asks.
        claim: Identity,
        /// How many volumes of the node commit together, this one included: none before the last of these commands has
        /// come, and none unless all can. 1 if absent.
        together: u16,
    },
    /// `checkpoint-outcome`: from a primary: which epoch it is now.
    CheckpointOutcome {
        /// Name of the replication export.
        volume: &'a str,
    },
}

impl Command<'_> {
    /// The names of all commands, in the order of the variants.
    pub const NAMES: [&'static str; 13] = [
        "qmp_capabilities",
        "query-commands",
        "xen-set-replication",
        "xen-colo-do-checkpoint",
        "query-xen-replication-status",
        "query-replication",
        "x-query-memory",
        "attach",
        "detach",
        "quit",
        "checkpoint-prepare",
        "checkpoint-commit",
        "checkpoint-outcome",
    ];

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        Self::NAMES[match self {
            Self::Capabilities => 0,
            Self::Commands => 1,
            Self::SetReplication { .. } => 2,
            Self::Checkpoint { .. } => 3,
            Self::QueryReplicationStatus { .. } => 4,
            Self::QueryReplication => 5,
            Self::QueryMemory => 6,
            Self::Attach { .. } => 7,
            Self::Detach { .. } => 8,
            Self::Quit => 9,
            Self::CheckpointPrepare { .. } => 10,
            Self::CheckpointCommit { .. } => 11,
            Self::CheckpointOutcome { .. } => 12,
        }]
    }
}

/// The answer to a command that succeeded. What `query-replication` returns is too long for a value of its own: see
/// [`VolumeReport`](super::VolumeReport).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It is done; there is nothing to tell.
    Done,
    /// `query-xen-replication-status`: what is wrong, or nothing.
    Status(Option<StatusText<'a>>),
    /// `checkpoint-prepare`, `checkpoint-commit` and `checkpoint-outcome`: the epoch now.
    Epoch(u64),
    /// `query-commands`: all names.
    Commands,
    /// `x-query-memory`: how the process stands.
    Memory(MemoryReport),
    /// `xen-colo-do-checkpoint`: it was taken, without these replicas, which are behind or not connected.
    Checkpoint {
        /// Their names; with none the answer is that of [`Answer::Done`].
        left_out: &'a [&'a str],
    },
}
