//! What `query-replication` and events tell, as plain data with borrowed names.

use super::Histogram;
#[cfg(feature = "secondary")]
use crate::secondary::{Progress, Secondary, WhenFull};
use crate::{ErrorCounters, ErrorKind, Event, Micros, ReplicaState, Stage, View};

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Role {
    /// Mirrors a disk to its replicas.
    Primary,
    /// Stands by.
    Secondary,
}

impl Role {
    /// As managers read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

/// What a secondary does when its buffer is full (SEMANTICS.md, "The buffer is full").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FullPolicy {
    /// Writes of the primary are held.
    Stall,
    /// They go through and the view breaks.
    Break,
}

impl FullPolicy {
    /// As managers read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stall => "stall",
            Self::Break => "break",
        }
    }
}

/// One volume. A part that does not apply is `None`, and absent in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeReport<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub role: Role,
    /// Where it stands.
    pub stage: Stage,
    /// The epoch now.
    pub epoch: u64,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Size of a granule: of the buffer on a secondary, of the dirty bitmap on a primary.
    pub granule_bytes: u64,
    /// Something is known to be missing: here on a secondary, on a replica of a primary.
    pub is_behind: bool,
    /// A secondary's disk buffer.
    pub buffer: Option<BufferReport>,
    /// How far the commit of a failover is.
    pub commit: Option<CommitReport>,
    /// How long checkpoints took.
    pub checkpoint: Option<CheckpointReport>,
    /// Failures since the last start.
    pub errors: ErrorCounters,
}

/// The disk buffer of a secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferReport {
    /// How much it can hold.
    pub size_bytes: u64,
    /// How much of that is taken.
    pub used_bytes: u64,
    /// What happens when it is full.
    pub policy: FullPolicy,
    /// Whether the guest still sees the last checkpoint.
    pub view: View,
    /// How many writes of the primary are held for want of a slot.
    pub held_count: u64,
}

#[cfg(feature = "secondary")]
impl From<&Secondary<'_>> for BufferReport {
    fn from(machine: &Secondary<'_>) -> Self {
        let buffer = machine.buffer();
        Self {
            size_bytes: buffer.size_bytes(),
            used_bytes: buffer.used_bytes(),
            policy: match machine.config().when_full {
                WhenFull::Stall => FullPolicy::Stall,
                WhenFull::Break => FullPolicy::Break,
            },
            view: machine.view(),
            held_count: machine.held().into(),
        }
    }
}

/// A replica of a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaReport<'a> {
    /// Its name.
    pub name: &'a str,
    /// Reachable now.
    pub is_connected: bool,
    /// A control connection leads to its node now, which a checkpoint needs; `None` without a control address.
    pub is_controlled: Option<bool>,
    /// Known to miss something.
    pub is_behind: bool,
    /// How much may be missing there.
    pub dirty_bytes: u64,
    /// How many transfers to it have not been answered.
    pub in_flight_count: u64,
}

/// The commit of a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// What the buffer held when the failover began.
    pub total_bytes: u64,
    /// How much of that is on the disk.
    pub done_bytes: u64,
}

impl CommitReport {
    /// That of a secondary; `None` before a failover, and after one that had nothing to commit.
    #[cfg(feature = "secondary")]
    #[must_use]
    pub const fn of(machine: &Secondary<'_>) -> Option<Self> {
        let Progress { total_bytes, done_bytes } = machine.progress();
        match machine.stage() {
            Stage::Failover | Stage::FailoverFailed => Some(Self { total_bytes, done_bytes }),
            _ if total_bytes != 0 => Some(Self { total_bytes, done_bytes }),
            _ => None,
        }
    }
}

/// The memory of the process that runs the volumes, as its embedder counts it. All zeroes where nothing allocates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MemoryReport {
    /// How often any thread has asked for memory since the start; to make a piece larger or smaller is to ask.
    pub allocation_count: u64,
    /// How often one has given a piece back.
    pub deallocation_count: u64,
    /// Bytes that were asked for and not given back. Pages that were never touched are in it.
    pub allocated_bytes: u64,
    /// Bytes of memory that the process occupies, its program and buffers included; 0 if the system does not tell.
    pub resident_bytes: u64,
}

/// How long checkpoints took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// How many there were.
    pub count: u64,
    /// The median.
    pub p50: Micros,
    /// The 99th percentile.
    pub p99: Micros,
    /// The longest.
    pub max: Micros,
}

impl From<&Histogram> for CheckpointReport {
    fn from(times: &Histogram) -> Self {
        let (p50, p99) = (times.percentile(500), times.percentile(990));
        Self { count: times.count(), p50, p99, max: times.max() }
    }
}

/// What is wrong with a volume, for `query-xen-replication-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusText<'a> {
    /// Which volume.
    pub volume: &'a str,
    /// What is wrong.
    pub trouble: Trouble<'a>,
}

/// One thing that can be wrong with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble<'a> {
    /// Replication has not been started.
    NotRunning,
    /// A failure of this kind was recorded since the start.
    Error(ErrorKind),
    /// This replica is known to miss something.
    Behind(&'a str),
    /// This volume, a secondary, is known to miss something.
    Missing,
}

/// An event of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventReport<'a> {
    /// Of which volume.
    pub volume: &'a str,
    /// What happened.
    pub event: Event,
    /// Name of the replica that the event names by its index; of no meaning for other events.
    pub replica: &'a str,
    /// Name by which the volume's primary calls it, where that is another one: that primary is to hear of a full buffer.
    /// Of no meaning for other events; empty if there is none.
    pub export: &'a str,
    /// When, since 1970-01-01 00:00 UTC, as QMP wants it; 0 where there is no calendar.
    pub at: Micros,
}

impl EventReport<'_> {
    /// The event's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.event {
            Event::Stage(_) => "REPLICATION_STAGE",
            Event::Error(_) => "REPLICATION_ERROR",
            Event::BufferThreeQuarters | Event::BufferFull => BUFFER_FULL,
            Event::View(_) => "VIEW",
            Event::CommitProgress { .. } => "COMMIT_PROGRESS",
            Event::Replica(..) => "REPLICA_STATE",
        }
    }
}

/// Name of the event that a primary listens to.
pub(super) const BUFFER_FULL: &str = "BUFFER_FULL";

/// Why a prepare was refused, where the primary must know it.
#[cfg(feature = "control")]
pub(super) const REASON_MISSING: &str = "missing";

/// How full a buffer is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum BufferLevel {
    /// Three quarters of its slots are taken: a checkpoint is due.
    ThreeQuarters,
    /// No slot is left.
    Full,
}

impl BufferLevel {
    /// As managers read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ThreeQuarters => "three-quarters",
            Self::Full => "full",
        }
    }
}

/// The name of a failure, as it is a member of `errors`.
#[must_use]
pub const fn error_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::PrimaryDisk => "primary_disk",
        ErrorKind::Forward => "forward",
        ErrorKind::CopyBeforeWrite => "copy_before_write",
        ErrorKind::SecondaryDisk => "secondary_disk",
        ErrorKind::Buffer => "buffer",
        ErrorKind::Empty => "empty",
        ErrorKind::Commit => "commit",
    }
}

/// The seven failures in their order.
pub const ERROR_KINDS: [ErrorKind; 7] = [
    ErrorKind::PrimaryDisk,
    ErrorKind::Forward,
    ErrorKind::CopyBeforeWrite,
    ErrorKind::SecondaryDisk,
    ErrorKind::Buffer,
    ErrorKind::Empty,
    ErrorKind::Commit,
];

/// As managers read it.
#[must_use]
pub const fn view_name(view: View) -> &'static str {
    match view {
        View::Whole => "whole",
        View::Broken => "broken",
    }
}

/// As managers read it.
#[must_use]
pub const fn replica_state_name(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Current => "current",
        ReplicaState::Behind => "behind",
        ReplicaState::Disconnected => "disconnected",
    }
}
