//! Words that both machines share: stages, errors by kind, events, refusals, outputs.

#[cfg(test)]
mod tests;

use crate::block::Transfer;
use crate::{ConnectionId, Data, Reply};

/// Where a volume stands. The moves are `None → Running → Failover → Done`, `Failover → FailoverFailed → Failover`
/// and `Running → Done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Stage {
    /// Replication has not been started.
    #[default]
    None,
    /// Replicating.
    Running,
    /// The secondary takes over; its buffer is being committed.
    Failover,
    /// The commit met an error; it can be tried again.
    FailoverFailed,
    /// Replication has ended.
    Done,
}

impl Stage {
    /// As managers read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Running => "running",
            Self::Failover => "failover",
            Self::FailoverFailed => "failover-failed",
            Self::Done => "done",
        }
    }
}

/// Whether the secondary's guest can still see the last checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum View {
    /// The last checkpoint and the guest's own writes.
    #[default]
    Whole,
    /// Something was overwritten without being kept; the next checkpoint mends it.
    Broken,
}

/// The seven failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ErrorKind {
    /// 1: the primary disk failed.
    PrimaryDisk,
    /// 2: a replica did not take what was forwarded.
    Forward,
    /// 3: old content could not be kept.
    CopyBeforeWrite,
    /// 4: the secondary disk failed.
    SecondaryDisk,
    /// 5: the buffer failed under a guest request.
    Buffer,
    /// 6: the buffer could not be emptied.
    Empty,
    /// 7: the commit of a failover failed.
    Commit,
}

/// How often each failure was seen since the last start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ErrorCounters([u64; 7]);

impl ErrorCounters {
    /// How often this one.
    #[must_use]
    pub const fn count(&self, kind: ErrorKind) -> u64 {
        self.0[kind as usize]
    }

    /// The first kind that was seen, in the order of the seven failures.
    #[must_use]
    pub fn first(&self) -> Option<ErrorKind> {
        use ErrorKind::{Buffer, Commit, CopyBeforeWrite, Empty, Forward, PrimaryDisk, SecondaryDisk};
        [PrimaryDisk, Forward, CopyBeforeWrite, SecondaryDisk, Buffer, Empty, Commit]
            .into_iter()
            .find(|kind| self.count(*kind) != 0)
    }

    /// One more of this kind.
    pub const fn record(&mut self, kind: ErrorKind) {
        let counter = &mut self.0[kind as usize];
        *counter = counter.saturating_add(1);
    }

    /// Forgets all.
    pub const fn clear(&mut self) {
        self.0 = [0; 7];
    }
}

/// What a replica is to its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ReplicaState {
    /// Reachable, and misses nothing.
    Current,
    /// Known to miss something.
    Behind,
    /// Not reachable now.
    Disconnected,
}

/// What a machine tells its manager unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Event {
    /// The stage has changed.
    Stage(Stage),
    /// A failure of this kind was met; sent at the first of its kind since the last start.
    Error(ErrorKind),
    /// Three quarters of the buffer's slots are taken, or three quarters of its index.
    BufferThreeQuarters,
    /// No slot is left, or no room in the index; writes of the primary are held, or the view has broken.
    BufferFull,
    /// The guest's view has broken or was mended.
    View(View),
    /// The commit of a failover has come this far.
    CommitProgress {
        /// Bytes that the buffer held when the failover began.
        total_bytes: u64,
        /// Bytes of these now on the disk.
        done_bytes: u64,
    },
    /// A replica, by its index, has changed its state.
    Replica(u8, ReplicaState),
}

/// Why an operation was refused; nothing was changed. Sorted by who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Refused {
    /// Caller, later: the table of requests is full. Offer it again after the next reply.
    Busy,
    /// Caller: the request is out of range, misaligned, longer than the window, or its data has another length.
    BadRequest,
    /// Caller: a completion or an identifier that names nothing in flight.
    Stale,
    /// Manager: replication is running; stop it first.
    Running,
    /// Manager: replication is not running; start it first.
    NotRunning,
    /// Manager: start was asked for the other role. `primary_wanted` tells which one was asked for.
    WrongMode {
        /// The mode that was given.
        primary_wanted: bool,
    },
    /// Manager: another operation on this volume has not finished.
    InProgress,
    /// Manager: something that was written on the primary is missing here; resynchronise, or force it.
    Missing,
    /// Manager: the guest's view is broken; only a stop without failover is possible.
    ViewBroken,
    /// Manager: the guest's data is in the buffer after a failed commit; only a failover can go on.
    CommitPending,
    /// Manager: no replica is left that a checkpoint could include.
    NoReplica,
    /// Manager: the secondary follows its primary no longer: it takes over, has taken over, or was stopped.
    TakenOver,
    /// Peer: a prepare or commit names another epoch.
    StaleEpoch {
        /// The epoch of this volume.
        epoch: u64,
    },
    /// Peer: a prepare or commit names another claim than the one held.
    OtherClaim,
    /// Peer: a prepare says fewer modifications were forwarded than have been received.
    WrongCount,
    /// Manager: the sizes of the disks differ, in bytes.
    SizeDiffers {
        /// Size of the volume.
        here_bytes: u64,
        /// Size of the other disk.
        there_bytes: u64,
    },
    /// Manager: the replica takes no modifications, or its blocks are larger than those of the primary's export.
    Unsuitable,
    /// Manager: the table of replicas is full.
    NoRoom,
    /// Manager: no replica, or no volume, of that name.
    Unknown,
    /// Manager: nothing could be asked of a replica, since no control connection leads there now.
    NoControl,
    /// The operation was given up: no answer within the time-out.
    TimedOut,
    /// Emptying the buffer failed.
    Failed,
}

/// Names an operation that a manager asked for; comes back with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct CommandId(pub u32);

/// What a machine says to others than its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Notice {
    /// An operation has ended.
    Answer(CommandId, Result<(), Refused>),
    /// Close this connection: another one of the same primary takes its place.
    Close(ConnectionId),
    /// Something that the manager may want to hear.
    Event(Event),
}

/// Which of a machine's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Device {
    /// The primary or secondary disk.
    Disk,
    /// The secondary's disk buffer.
    Buffer,
    /// One of the primary's replicas.
    Replica(u8),
}

/// What a machine wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Output {
    /// Start this transfer; offer its completion.
    Transfer(Device, Transfer),
    /// Fill this data with zeroes, now; nothing is offered in return.
    Fill(Data),
    /// Answer this request.
    Reply(Reply),
    /// Tell the manager, or close a connection.
    Notice(Notice),
}

/// Notices that wait to be polled. Answers and closings always find room; an event that finds none is dropped, as
/// what it tells can be asked for.
#[cfg(any(feature = "primary", feature = "secondary"))]
#[derive(Debug, Default)]
pub(crate) struct Notices(heapless::Deque<Notice, 32>);

#[cfg(any(feature = "primary", feature = "secondary"))]
impl Notices {
    /// Places that events leave free.
    const RESERVE: usize = 16;

    pub(crate) fn answer(&mut self, command: CommandId, result: Result<(), Refused>) {
        let kept = self.0.push_back(Notice::Answer(command, result));
        debug_assert!(kept.is_ok(), "at most one operation is pending, and none is taken while many wait");
    }

    #[cfg(feature = "secondary")]
    pub(crate) fn close(&mut self, connection: ConnectionId) {
        // One that finds no room is asked for again by the next request that waits for it.
        let _ = self.0.push_back(Notice::Close(connection));
    }

    pub(crate) fn event(&mut self, event: Event) {
        if self.0.len() + Self::RESERVE < self.0.capacity() {
            let _ = self.0.push_back(Notice::Event(event));
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Notice> {
        self.0.pop_front()
    }

    #[cfg(feature = "inspect")]
    pub(crate) fn copied(&self) -> Self {
        Self(self.0.clone())
    }

    /// Whether another operation may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() < self.0.capacity() - 4
    }
}

#[cfg(all(feature = "inspect", any(feature = "primary", feature = "secondary")))]
impl core::hash::Hash for Notices {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        for notice in &self.0 {
            notice.hash(state);
        }
    }
}
