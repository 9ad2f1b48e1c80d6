//! The mirror: the primary disk and its replicas.
//!
//! Sources: SEMANTICS.md of this project ("Stages", "Order and acknowledgement", "The checkpoint of a pair",
//! "Attaching, returning, changing roles").
//!
//! ```text
//!            start              stop
//!   None ────────────▶ Running ──────▶ Done
//!                         ▲              │ start
//!                         └──────────────┘
//!
//!   a replica:   current ──▶ behind          a failed transfer, or a write while it was not reachable
//!                behind  ──▶ current         only by resynchronisation or by detaching
//! ```
//!
//! A write goes to the primary disk and, in stage Running, to every replica that is reachable; it is answered when each
//! of these has answered. What a replica misses is marked in its dirty bitmap before the guest hears of the write. A
//! failing replica never reaches the guest.
//!
//! # Invariants
//! * P1: when a write is answered with success, each attached replica has it or its granules are marked dirty.
//! * P2: a replica with a dirty granule is behind; nothing in this machine ends that but detaching.
//! * P3: a read never gives older bytes than the last answered write: what the primary disk failed to take is read from
//!   a replica that took it, or not at all.
//! * P4: while a barrier is up, no modification begins that came after it.
//! * P5: what a replica took is durable there, unflushed or dirty.

mod config;
mod entry;
mod flush;
#[cfg(feature = "inspect")]
mod inspect;
mod operation;
mod read;
mod replica;
#[cfg(test)]
mod tests;
mod unflushed;
mod write;

pub use config::{Config, ConfigError, Storage};
pub use entry::Work;
pub use replica::{Replica, ReplicaStatus};

use crate::bitmap::Bitmap;
use crate::block::{Action, Completion, Geometry, Transfer};
use crate::connection::Connections;
use crate::operation::Notices;
use crate::order::{Access, EntryIndex, Table};
use crate::{
    CommandId, ConnectionId, Device, Errno, ErrorCounters, ErrorKind, Event, Extent, Micros, Outcome, Output,
    Refused, Reply, Request, Stage,
};
use entry::Phase;

/// The most replicas of one primary.
pub const REPLICAS_MAX: usize = 32;

/// What a manager, or the coordinator of checkpoints, asks of a [`Primary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Command {
    /// Start forwarding.
    Start {
        /// The mode that the manager named; true is the right one here.
        primary: bool,
    },
    /// Answered when every modification that came before has been passed on; later ones wait until
    /// [`Command::Release`].
    Barrier {
        /// Also in the middle of a request that is longer than the window. For a buffer that is full, and which that
        /// very request may wait for.
        is_urgent: bool,
    },
    /// Makes the barrier that is up an urgent one, if it is not reached.
    Hurry,
    /// Ends the barrier.
    Release {
        /// A checkpoint was taken in it.
        is_checkpoint: bool,
    },
    /// Stop forwarding. A barrier that is reached stays up until [`Command::Release`].
    Stop,
    /// Mirror to the replica with this index from now on.
    Attach {
        /// Index into the replicas.
        replica: u8,
        /// Everything is missing there, not just what was written since the disk was opened.
        is_empty: bool,
        /// It is another replica than the one that had this index before: forget what that one missed.
        is_new: bool,
    },
    /// Mirror no longer; what it misses stays marked.
    Detach {
        /// Index into the replicas.
        replica: u8,
    },
}

/// What is offered to a [`Primary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A client has opened the export.
    Opened(ConnectionId),
    /// A connection has ended; nothing more comes from it.
    Closed(ConnectionId),
    /// A piece of a request.
    Request(ConnectionId, Request),
    /// A transfer has ended.
    Completed(Device, Completion),
    /// An operation.
    Command(CommandId, Command),
    /// The link to an attached replica is up, and this is what the replica presents. Unless the replica is known to have
    /// run without a break since it was last connected, [`Input::Restarted`] is offered before.
    Connected(u8, Geometry),
    /// An attached replica was started anew, or may have been: what no flush has covered may be gone there.
    Restarted(u8),
    /// The link is down; its transfers have failed or will.
    Disconnected(u8),
    /// The replica says that it misses something, or is unfit for another reason.
    Missing(u8),
}

/// The active side of one volume. Call order as for the secondary: offer inputs, after each poll outputs until `None`.
#[derive(Debug)]
pub struct Primary<'m> {
    config: Config,
    disk: Geometry,
    table: Table<'m, Work>,
    connections: Connections<'m, ()>,
    written: Bitmap<'m>,
    lost: Bitmap<'m>,
    /// Replicas that took everything that the disk has lost.
    lost_holders: write::Legs,
    replicas: &'m mut [Replica<'m>],
    stage: Stage,
    barrier: Option<operation::Barrier>,
    epoch: u64,
    errors: ErrorCounters,
    notices: Notices,
}

/// What a step of an entry came to.
enum Step {
    Emit(Output),
    EmitAndSleep(Output),
    Sleep,
    Again,
}

impl<'m> Primary<'m> {
    /// How many words each bitmap takes: 2 MiB of them for 1 TiB in granules of 64 KiB, and 1/64 more for the summary.
    #[must_use]
    pub const fn bitmap_words(size_bytes: u64, dirty_granule_bytes: u32) -> usize {
        Bitmap::words_for(size_bytes.div_ceil(dirty_granule_bytes as u64))
    }

    /// How many words a [`Replica`] takes: three bitmaps, of what it misses and of what it has not flushed.
    #[must_use]
    pub const fn replica_words(size_bytes: u64, dirty_granule_bytes: u32) -> usize {
        Self::bitmap_words(size_bytes, dirty_granule_bytes).saturating_mul(3)
    }

    /// A primary in stage None, with no replica attached.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting that does not fit.
    pub fn new(config: Config, disk: Geometry, storage: Storage<'m>) -> Result<Self, ConfigError> {
        config::check(&config, &disk, &storage)?;
        let Storage { table, connections, written, lost, replicas } = storage;
        let bits = disk.size_bytes.div_ceil(u64::from(config.dirty_granule_bytes));
        for replica in replicas.iter_mut() {
            if !replica.reset(bits) {
                return Err(ConfigError::Bitmap);
            }
        }
        Ok(Self {
            config,
            disk,
            table: Table::new(table),
            connections: Connections::new(connections),
            written: Bitmap::new(written, bits).ok_or(ConfigError::Bitmap)?,
            lost: Bitmap::new(lost, bits).ok_or(ConfigError::Bitmap)?,
            lost_holders: write::Legs::NONE,
            replicas,
            stage: Stage::None,
            barrier: None,
            epoch: 0,
            errors: ErrorCounters::default(),
            notices: Notices::default(),
        })
    }

    /// The settings.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Length of the disk and of the export.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.disk.size_bytes
    }

    /// Where it stands: None, Running or Done.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// How many checkpoints there were, the start included.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Failures since the last start.
    #[must_use]
    pub const fn errors(&self) -> &ErrorCounters {
        &self.errors
    }

    /// Requests in flight.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.table.len()
    }

    /// Offers one input. On `Err` the machine is exactly as it was. Work is bounded by the size of the table and, for
    /// attaching, of a bitmap. Nothing here depends on the time: the checkpoint's time-out is the coordinator's.
    ///
    /// # Errors
    /// [`Refused`] says why it was not taken and who must act.
    pub fn handle_input(&mut self, _now: Micros, input: Input) -> Result<(), Refused> {
        match input {
            Input::Opened(connection) => self.connections.open(connection, ()),
            Input::Closed(connection) => self.close(connection),
            Input::Request(connection, request) => self.take(connection, &request),
            Input::Completed(device, completion) => self.complete(device, &completion),
            Input::Command(command, wanted) => self.command(command, wanted),
            Input::Connected(replica, geometry) => self.connected(replica, &geometry),
            Input::Restarted(replica) => self.restarted(replica),
            Input::Disconnected(replica) => self.disconnected(replica),
            Input::Missing(replica) => self.missing(replica),
        }
    }

    /// The next thing to do, or `None` until another input. Work is bounded by the size of the table.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(notice) = self.notices.pop() {
                return Some(Output::Notice(notice));
            }
            let Some(index) = self.table.front() else {
                if self.reach_barrier() {
                    continue;
                }
                return None;
            };
            match self.step(index) {
                Step::Emit(output) => return Some(output),
                Step::EmitAndSleep(output) => {
                    self.table.pop_front();
                    return Some(output);
                }
                Step::Sleep => {
                    self.table.pop_front();
                }
                Step::Again => {}
            }
        }
    }

    /// A connection has ended: what it asked and has not begun is dropped, and answered so that its buffers are free.
    fn close(&mut self, connection: ConnectionId) -> Result<(), Refused> {
        self.connections.remove(connection).ok_or(Refused::Stale)?;
        let mut next = self.table.following(None);
        while let Some(index) = next {
            next = self.table.following(Some(index));
            let is_untouched = |work: &Work| work.connection == connection && work.phase == Phase::Waiting;
            if self.table.get(index).is_some_and(is_untouched) {
                self.end(index, Err(Errno::Shutdown));
            }
        }
        Ok(())
    }

    /// Takes a piece in.
    fn take(&mut self, connection: ConnectionId, request: &Request) -> Result<(), Refused> {
        self.connections.find(connection).ok_or(Refused::Stale)?;
        request.check(self.disk.size_bytes, self.config.block_bytes, self.config.window_bytes)?;
        let is_modification = request.op.is_modification();
        let is_awaited = is_modification && self.is_awaited(connection, request);
        // While a barrier waits for the rest of some request, nothing takes what this rest may need: no modification that
        // begins takes a place or keeps its buffer, and the last place is left by others too.
        let stays_outside = !is_awaited && self.awaits_pieces();
        let is_last_kept = stays_outside && self.table.len() + 1 >= self.table.capacity();
        if self.table.is_full() || is_last_kept || (stays_outside && is_modification) {
            return Err(Refused::Busy);
        }
        if is_modification {
            self.connections.count(connection, request, self.barrier.is_some());
        }
        let is_after_barrier = is_modification && !is_awaited && self.barrier.is_some();
        let access = Access { extent: request.extent, is_read: !is_modification, passes_exempt: false };
        let work = Work { is_after_barrier, ..Work::new(connection, *request) };
        self.table.insert(access, work).ok_or(Refused::Busy)?;
        Ok(())
    }

    /// One step of the entry at the front of the run queue.
    fn step(&mut self, index: EntryIndex) -> Step {
        let Some(work) = self.table.get(index).copied() else { return Step::Sleep };
        match work.phase {
            Phase::Waiting => self.begin(index, &work),
            Phase::Read(read) => self.step_read(index, &work, read),
            Phase::Gather(gather) => self.step_gather(index, &work, gather),
            Phase::Mirror(mirror) => self.step_mirror(index, &work, mirror),
            Phase::Finished(result) => {
                self.table.pop_front();
                self.table.remove(index);
                Step::Emit(Output::Reply(Reply { id: work.request.id, result }))
            }
        }
    }

    /// Begins an entry whose turn may have come.
    fn begin(&mut self, index: EntryIndex, work: &Work) -> Step {
        if self.table.is_blocked(index) || (work.is_after_barrier && self.barrier.is_some()) {
            return Step::Sleep;
        }
        match work.request.op {
            crate::Op::Read(_) | crate::Op::Status => self.begin_read(index, work),
            crate::Op::Write { .. } | crate::Op::WriteZeroes { .. } => self.begin_write(index, work),
            crate::Op::Flush => self.begin_flush(index),
        }
    }

    /// A transfer has ended.
    fn complete(&mut self, device: Device, completion: &Completion) -> Result<(), Refused> {
        let is_mine = match device {
            Device::Disk => true,
            Device::Replica(replica) => usize::from(replica) < self.replicas.len(),
            Device::Buffer => false,
        };
        let index = self.table.find(completion.tag).filter(|_| is_mine).ok_or(Refused::Stale)?;
        let work = self.table.get(index).copied().ok_or(Refused::Stale)?;
        let Some(outstanding) = work.outstanding.checked_sub(1) else { return Err(Refused::Stale) };
        let work = Work { outstanding, ..work };
        if let Some(place) = self.table.get_mut(index) {
            *place = work;
        }
        self.replica_completed(device);
        match work.phase {
            Phase::Read(read) => self.completed_read(index, &work, read, device, completion.result),
            Phase::Gather(gather) => self.completed_gather(index, &work, gather, device, completion.result),
            Phase::Mirror(mirror) => self.completed_mirror(index, &work, mirror, device, completion.result),
            Phase::Waiting | Phase::Finished(_) => return Err(Refused::Stale),
        }
        Ok(())
    }

    /// A transfer of an entry; its completion is counted on.
    fn transfer(&mut self, index: EntryIndex, device: Device, action: Action, extent: Extent) -> Output {
        if let Some(work) = self.table.get_mut(index) {
            work.outstanding += 1;
        }
        self.replica_submitted(device);
        Output::Transfer(device, Transfer { tag: self.table.tag(index), action, extent })
    }

    fn enter(&mut self, index: EntryIndex, phase: Phase) {
        if let Some(work) = self.table.get_mut(index) {
            work.phase = phase;
        }
    }

    /// Ends an entry's work; its reply comes out when the run queue reaches it.
    fn end(&mut self, index: EntryIndex, result: Result<Outcome, Errno>) {
        self.enter(index, Phase::Finished(result));
        self.table.wake(index);
    }

    fn record(&mut self, kind: ErrorKind) {
        if self.errors.count(kind) == 0 {
            self.notices.event(Event::Error(kind));
        }
        self.errors.record(kind);
    }

    /// Bytes of a dirty granule; not 0, which the compiler cannot know of a setting.
    fn granule_bytes(&self) -> u64 {
        u64::from(self.config.dirty_granule_bytes).max(1)
    }

    /// The dirty granules that an extent touches: first and count.
    fn granules(&self, extent: Extent) -> (u64, u64) {
        let granule = self.granule_bytes();
        let first = extent.offset / granule;
        (first, extent.end().div_ceil(granule).saturating_sub(first))
    }

    /// The dirty granules that an extent covers whole: first and count. The last of the disk may be shorter.
    fn covered_granules(&self, extent: Extent) -> (u64, u64) {
        let granule = self.granule_bytes();
        let first = extent.offset.div_ceil(granule);
        let end = if extent.end() == self.disk.size_bytes {
            extent.end().div_ceil(granule)
        } else {
            extent.end() / granule
        };
        (first, end.saturating_sub(first))
    }
}

impl crate::driver::Machine for Primary<'_> {
    type Input = Input;

    fn handle_input(&mut self, now: Micros, input: Input) -> Result<(), Refused> {
        Primary::handle_input(self, now, input)
    }

    fn handle_completion(
        &mut self,
        now: Micros,
        device: Device,
        completion: Completion,
    ) -> Result<(), Refused> {
        Primary::handle_input(self, now, Input::Completed(device, completion))
    }

    fn poll_output(&mut self) -> Option<Output> {
        Primary::poll_output(self)
    }

    fn poll_timeout(&self) -> Option<Micros> {
        None
    }

    fn handle_timeout(&mut self, _now: Micros) {}
}
