//! The standby side: takes what the primary forwards, keeps what it replaces, and takes over.
//!
//! Sources: SEMANTICS.md of this project ("Stages", "Operations", "The buffer is full", "Failover"); the scheme is that
//! of QEMU's `docs/block-replication.txt`.
//!
//! ```text
//!            start            stop(failover)             all on the disk
//!   None ────────────▶ Running ────────────▶ Failover ────────────────────▶ Done
//!                         │                   ▲     │ a transfer failed       ▲
//!                         │             again │     ▼                         │
//!                         │                 FailoverFailed                    │
//!                         └───────────────────────────────────────────────────┘
//!                                        stop without failover
//! ```
//!
//! A request goes through phases (`entry::Phase`): it waits for its turn; a modification by the primary keeps what
//! it replaces (`keep`) and is written through; a guest request walks over the parts of its extent that lie together
//! (`guest`). An operation that ends an epoch raises a *barrier* (`operation`): later requests wait until the
//! earlier ones have ended.
//!
//! # Invariants
//! * S1: while the view is whole, a granule of the secondary disk is overwritten only if the buffer stands for it, or
//!   if its content does not change.
//! * S2: an epoch ends only when no request of it is in flight.
//! * S3: a request is answered exactly once, after the completion of the last transfer that it speaks of.
//! * S4: at most one entry at a time keeps a granule.
//! * S5: a scratch buffer belongs to one entry from its loading until its store has ended.
//! * S6: nothing of a held write has touched the disk.

mod claim;
mod commit;
mod config;
mod entry;
mod guest;
#[cfg(feature = "inspect")]
mod inspect;
mod keep;
mod operation;
mod replication;
mod state;
#[cfg(test)]
mod tests;

pub use claim::{Client, Connection};
pub use config::{Config, ConfigError, Storage, WhenFull};
pub use entry::Work;

use crate::block::{Capabilities, Completion, Geometry, Transfer};
use crate::buffer::Buffer;
use crate::connection::Connections;
use crate::operation::Notices;
use crate::order::{Access, EntryIndex, Table};
use crate::{
    BufferIndex, CommandId, ConnectionId, Device, Errno, ErrorCounters, ErrorKind, Event, Extent, Identity,
    Micros, Outcome, Output, Refused, Reply, Request, Stage, View,
};
use entry::{Origin, Phase};
use state::State;

/// The two exports of a secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Port {
    /// The secondary disk, for the primary.
    Replication,
    /// The guest view.
    Guest,
}

/// What a manager, or the primary, asks of a [`Secondary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Command {
    /// Start replication as `primary` or as secondary; the latter is the right one here.
    Start {
        /// The mode that the manager named.
        primary: bool,
    },
    /// Empty the buffer: the secondary disk as it is becomes the view.
    Checkpoint {
        /// Also while something is known to be missing.
        force: bool,
    },
    /// First half of the checkpoint of a pair: answered when everything that was forwarded has been received and is
    /// finished or held.
    Prepare {
        /// The epoch that shall end.
        epoch: u64,
        /// Who asks.
        claim: Identity,
        /// Modifications sent on the connection that holds the claim.
        modifications: u64,
    },
    /// Second half: empty the buffer.
    Commit {
        /// As prepared.
        epoch: u64,
        /// As prepared.
        claim: Identity,
    },
    /// Take over.
    Stop {
        /// Go on from the last checkpoint and the guest's own writes; otherwise from the disk as it is.
        failover: bool,
        /// Without failover also while something is known to be missing.
        force: bool,
    },
}

/// What is offered to a [`Secondary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A client has opened one of the exports.
    Opened {
        /// A name never used before.
        connection: ConnectionId,
        /// Which export.
        port: Port,
        /// Who the client says it is.
        identity: Option<Identity>,
    },
    /// A connection has ended; nothing more comes from it.
    Closed {
        /// Which one.
        connection: ConnectionId,
        /// By a disconnect request with nothing unanswered.
        is_clean: bool,
    },
    /// A piece of a request.
    Request(ConnectionId, Request),
    /// A transfer has ended.
    Completed(Device, Completion),
    /// An operation.
    Command(CommandId, Command),
}

/// How far a failover's commit has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Progress {
    /// Bytes that the buffer stood for when the failover began.
    pub total_bytes: u64,
    /// Bytes of these that are on the disk.
    pub done_bytes: u64,
}

/// The standby side of one volume.
///
/// Call order: offer inputs with [`Secondary::handle_input`]; after each, call [`Secondary::poll_output`] until it
/// gives `None`; when the time of [`Secondary::poll_timeout`] has come, call [`Secondary::handle_timeout`].
#[derive(Debug)]
pub struct Secondary<'m> {
    config: Config,
    disk: Geometry,
    /// Of both devices, the larger.
    block_bytes: u32,
    table: Table<'m, Work>,
    buffer: Buffer<'m>,
    connections: Connections<'m, Client>,
    state: State,
    pending: Option<operation::Pending>,
    epoch: u64,
    errors: ErrorCounters,
    counts: Counts,
    scratch_free: u64,
    /// An entry may be waiting for a scratch buffer.
    is_short_of_scratch: bool,
    progress: Progress,
    notices: Notices,
    now: Micros,
}

/// Entries by what they do, so that no decision needs a walk over the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Counts {
    replication: u16,
    guest: u16,
    commit: u16,
    /// Begun and not ended; held ones are not.
    active: u16,
    keeping: u16,
    /// Began nothing because another one keeps a granule of theirs, or for want of a scratch buffer.
    waiting_for_keep: u16,
    held: u16,
}

/// What a step of an entry came to.
enum Step {
    /// This is to be done; the entry stays at the front of the run queue.
    Emit(Output),
    /// This is to be done; the entry has nothing more to do until a completion.
    EmitAndSleep(Output),
    /// Nothing to do until something wakes it.
    Sleep,
    /// It has moved on to another phase: step it again.
    Again,
}

impl<'m> Secondary<'m> {
    /// A secondary in stage None. `disk` and `buffer` are the shapes of its two devices.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting that does not fit.
    pub fn new(
        config: Config,
        disk: Geometry,
        buffer: Geometry,
        storage: Storage<'m>,
    ) -> Result<Self, ConfigError> {
        config::check(&config, &disk, &buffer, &storage)?;
        let Storage { table, nodes, connections } = storage;
        let slots = (buffer.size_bytes / u64::from(config.granule_bytes)).min(u64::from(u32::MAX - 1)) as u32;
        Ok(Self {
            config,
            disk,
            block_bytes: disk.block_bytes.max(buffer.block_bytes),
            table: Table::new(table),
            buffer: Buffer::new(nodes, config.granule_bytes, disk.size_bytes, slots),
            connections: Connections::new(connections),
            state: State::None,
            pending: None,
            epoch: 0,
            errors: ErrorCounters::default(),
            counts: Counts::default(),
            scratch_free: u64::MAX >> (64 - u32::from(config.scratch_count)),
            is_short_of_scratch: false,
            progress: Progress::default(),
            notices: Notices::default(),
            now: Micros::default(),
        })
    }

    /// The settings.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Length of the disk and of both exports.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.disk.size_bytes
    }

    /// Offsets and lengths of requests are multiples of this: a guest's request goes to the disk or to the buffer.
    #[must_use]
    pub const fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Where it stands.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.state.stage()
    }

    /// How many checkpoints there were. An epoch is the time between two.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the guest can see the last checkpoint.
    #[must_use]
    pub const fn view(&self) -> View {
        self.state.view()
    }

    /// Whether something that the primary wrote is known, or must be feared, to be missing here.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.state.is_behind()
    }

    /// The disk buffer.
    #[must_use]
    pub const fn buffer(&self) -> &Buffer<'m> {
        &self.buffer
    }

    /// Primary writes that wait for a slot.
    #[must_use]
    pub const fn held(&self) -> u16 {
        self.counts.held
    }

    /// How far the commit has come; all 0 before a failover.
    #[must_use]
    pub const fn progress(&self) -> Progress {
        self.progress
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

    /// Offers one input. On `Err` the machine is exactly as it was. Work is bounded by the size of the table.
    ///
    /// # Errors
    /// [`Refused`] says why it was not taken and who must act.
    pub fn handle_input(&mut self, now: Micros, input: Input) -> Result<(), Refused> {
        self.now = self.now.max(now);
        match input {
            Input::Opened { connection, port, identity } => {
                self.connections.open(connection, Client { port, identity })
            }
            Input::Closed { connection, is_clean } => self.close(connection, is_clean),
            Input::Request(connection, request) => self.take(connection, &request),
            Input::Completed(device, completion) => self.complete(device, &completion),
            Input::Command(command, wanted) => self.command(command, wanted),
        }?;
        self.check_invariants();
        Ok(())
    }

    /// The next thing to do, or `None` until another input. Work is bounded by the size of the table.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(notice) = self.notices.pop() {
                return Some(Output::Notice(notice));
            }
            let Some(index) = self.table.front() else {
                if self.wake_for_scratch() || self.end_barrier() || self.start_commit() {
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

    /// When [`Secondary::handle_timeout`] is to be called next, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        if self.is_committing() {
            return None;
        }
        let oldest = self.oldest_hold()?;
        // After a prepare the room that they wait for is about to come; but the commit may be lost on its way.
        let prepared = self.state.running().and_then(|running| running.prepared);
        let since = prepared.map_or(oldest, |(_, prepared_at)| oldest.max(prepared_at));
        Some(since.after(self.config.stall_max))
    }

    /// Lets time pass: held writes that waited too long are refused.
    pub fn handle_timeout(&mut self, now: Micros) {
        self.now = self.now.max(now);
        if self.poll_timeout().is_some_and(|due| due <= self.now) {
            self.refuse_held(Errno::NoSpace);
        }
    }

    /// Takes a piece in.
    fn take(&mut self, connection: ConnectionId, request: &Request) -> Result<(), Refused> {
        let port = self.connections.find(connection).ok_or(Refused::Stale)?.about.port;
        request.check(self.disk.size_bytes, self.block_bytes, self.config.window_bytes)?;
        let origin = match port {
            Port::Replication => Origin::Replication,
            Port::Guest => Origin::Guest,
        };
        let is_barrier_up = self.is_barrier_up();
        // A guest's request may be cut in two by the end of an epoch: so may its whole view.
        let is_counted = request.op.is_modification() && port == Port::Replication;
        let is_awaited = is_barrier_up && is_counted && self.connections.is_awaited(connection, request);
        if !self.has_place(port, is_awaited) {
            return Err(Refused::Busy);
        }
        if is_counted {
            self.connections.count(connection, request, is_barrier_up);
            // A later piece of a request that the prepare has counted changes nothing: while the buffer is full the
            // prepare could not wait for it.
            if request.is_first {
                self.undo_prepare(connection);
            }
        }
        let is_after_barrier = is_barrier_up && !is_awaited;
        let work = Work { is_after_barrier, ..Work::new(origin, connection, *request) };
        let index = self.insert(work).ok_or(Refused::Busy)?;
        if is_awaited && self.table.is_blocked(index) {
            // What came earlier and overlaps it has to go before the barrier too.
            self.lower_barrier();
        }
        Ok(())
    }

    /// Whether a port may have one more place. A piece that a barrier waits for may have one that is kept for the
    /// commit, as those that wait for the barrier may have taken all others.
    fn has_place(&self, port: Port, is_awaited: bool) -> bool {
        let Config { replication_requests, guest_requests, .. } = self.config;
        let Counts { replication, guest, .. } = self.counts;
        let lent = if is_awaited { self.spare_places() } else { 0 };
        let has_own = match port {
            Port::Replication => usize::from(replication) < usize::from(replication_requests) + lent,
            Port::Guest => guest < guest_requests,
        };
        has_own && !self.table.is_full()
    }

    /// Places of the table that are promised to neither port.
    fn spare_places(&self) -> usize {
        let promised =
            usize::from(self.config.replication_requests) + usize::from(self.config.guest_requests);
        self.table.capacity().saturating_sub(promised)
    }

    fn insert(&mut self, work: Work) -> Option<EntryIndex> {
        let access = Access {
            extent: work.request.extent,
            is_read: !work.request.op.is_modification(),
            passes_exempt: work.origin == Origin::Guest,
        };
        let index = self.table.insert(access, work)?;
        *self.counts.of(work.origin) += 1;
        Some(index)
    }

    /// One step of the entry at the front of the run queue.
    fn step(&mut self, index: EntryIndex) -> Step {
        let Some(work) = self.table.get(index) else { return Step::Sleep };
        let work = *work;
        match work.phase {
            Phase::Waiting { .. } => self.begin(index, &work),
            Phase::Held { .. } | Phase::Direct => Step::Sleep,
            Phase::Keep(keep) => self.step_keep(index, &work, keep),
            Phase::Walk(walk) => self.step_walk(index, &work, walk),
            Phase::GuestFlush(flush) => self.step_guest_flush(index, &work, flush),
            Phase::Commit(step) => self.step_commit(index, &work, step),
            Phase::Finished(result) => self.finish(index, &work, result),
        }
    }

    /// Begins an entry whose turn may have come.
    fn begin(&mut self, index: EntryIndex, work: &Work) -> Step {
        if self.table.is_blocked(index) || (work.is_after_barrier && self.pending.is_some()) {
            return Step::Sleep;
        }
        match work.origin {
            Origin::Replication => self.begin_replication(index, work),
            Origin::Guest => self.begin_guest(index, work),
            Origin::Commit => self.begin_commit(index, work),
        }
    }

    /// Answers an entry and takes it out.
    fn finish(&mut self, index: EntryIndex, work: &Work, result: Result<Outcome, Errno>) -> Step {
        self.table.pop_front();
        self.table.remove(index);
        *self.counts.of(work.origin) -= 1;
        self.connection_entry_ended(work);
        match work.origin {
            Origin::Commit => Step::Again,
            _ => Step::Emit(Output::Reply(Reply { id: work.request.id, result })),
        }
    }

    /// A transfer has ended.
    fn complete(&mut self, device: Device, completion: &Completion) -> Result<(), Refused> {
        let index = self.table.find(completion.tag).ok_or(Refused::Stale)?;
        let Some(work) = self.table.get_mut(index) else { return Err(Refused::Stale) };
        let Some(outstanding) = work.outstanding.checked_sub(1) else { return Err(Refused::Stale) };
        work.outstanding = outstanding;
        let work = *work;
        match work.phase {
            Phase::Direct => self.completed_direct(index, &work, completion.result),
            Phase::Keep(keep) => self.completed_keep(index, &work, keep, device, completion.result),
            Phase::Walk(walk) => self.completed_walk(index, &work, walk, device, completion.result),
            Phase::GuestFlush(flush) => self.completed_guest_flush(index, flush, device, completion.result),
            Phase::Commit(step) => self.completed_commit(index, &work, step, completion.result),
            Phase::Waiting { .. } | Phase::Held { .. } | Phase::Finished(_) => return Err(Refused::Stale),
        }
        Ok(())
    }

    /// A transfer of an entry; its completion is counted on.
    fn transfer(
        &mut self,
        index: EntryIndex,
        device: Device,
        action: crate::block::Action,
        extent: Extent,
    ) -> Output {
        if let Some(work) = self.table.get_mut(index) {
            work.outstanding += 1;
        }
        Output::Transfer(device, Transfer { tag: self.table.tag(index), action, extent })
    }

    /// Moves an entry to another phase; every change of phase goes through here.
    fn enter(&mut self, index: EntryIndex, phase: Phase) {
        let Some(work) = self.table.get_mut(index) else { return };
        self.counts.leave(&work.phase);
        self.counts.enter(&phase);
        let has_unlocked = matches!(work.phase, Phase::Keep(_)) && !matches!(phase, Phase::Keep(_));
        work.phase = phase;
        if has_unlocked && self.counts.waiting_for_keep != 0 {
            self.wake_where(|work| matches!(work.phase, Phase::Waiting { for_keep: true }));
        }
    }

    /// Ends an entry's work; its reply comes out when the run queue reaches it.
    fn end(&mut self, index: EntryIndex, result: Result<Outcome, Errno>) {
        self.enter(index, Phase::Finished(result));
        self.table.wake(index);
    }

    /// Gives an entry a scratch buffer.
    fn lend_scratch(&mut self, index: EntryIndex, scratch: BufferIndex) {
        if let Some(work) = self.table.get_mut(index) {
            work.scratch = Some(scratch);
        }
    }

    fn record(&mut self, kind: ErrorKind) {
        if self.errors.count(kind) == 0 {
            self.notices.event(Event::Error(kind));
        }
        self.errors.record(kind);
    }

    /// Wakes every entry that matches.
    fn wake_where(&mut self, matches: impl Fn(&Work) -> bool) {
        let mut next = self.table.following(None);
        while let Some(index) = next {
            next = self.table.following(Some(index));
            if self.table.get(index).is_some_and(&matches) {
                self.table.wake(index);
            }
        }
    }

    fn has_status(&self) -> bool {
        self.disk.capabilities.contains(Capabilities::STATUS)
    }

    fn check_invariants(&self) {
        debug_assert!(self.counts.active + self.counts.held <= self.table.len() as u16);
        debug_assert!(
            self.table.len() == usize::from(self.counts.replication + self.counts.guest + self.counts.commit)
        );
        debug_assert!(!matches!(self.state, State::None) || self.counts.held == 0);
    }
}

impl crate::driver::Machine for Secondary<'_> {
    type Input = Input;

    fn handle_input(&mut self, now: Micros, input: Input) -> Result<(), Refused> {
        Secondary::handle_input(self, now, input)
    }

    fn handle_completion(
        &mut self,
        now: Micros,
        device: Device,
        completion: Completion,
    ) -> Result<(), Refused> {
        Secondary::handle_input(self, now, Input::Completed(device, completion))
    }

    fn poll_output(&mut self) -> Option<Output> {
        Secondary::poll_output(self)
    }

    fn poll_timeout(&self) -> Option<Micros> {
        Secondary::poll_timeout(self)
    }

    fn handle_timeout(&mut self, now: Micros) {
        Secondary::handle_timeout(self, now);
    }
}
