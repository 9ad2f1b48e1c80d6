//! The crate's only `unsafe`: the ring itself, and the memory that the system works on.
//!
//! Why it is sound: each operation in flight has a slot, and whatever the system may touch for it (the bytes to read or
//! write, the parts of a message and their list, the file) belongs to that slot from before the operation is put on the
//! ring until its completion was taken off it. Nobody else has a reference to any of it meanwhile: buffers come in by
//! value, parts of the pool come as leases, which the pool gives nobody access to. A slot that is dropped otherwise, with
//! the ring or in a panic, is leaked and not freed: memory that is lost is no harm, memory that is used again is.
//!
//! # Invariants
//! * U1: what an operation refers to is owned by its slot until the operation's last completion.
//! * U2: a completion ends the operation that its slot has now, and no other: numbers that the ring hands back are
//!   compared with the slot's generation, which grows with each use.
//! * U3: no slot drops what it owns; it is taken out by a completion, or leaked.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::io::Errno;
use twinblock_io_posix::disk::{Call, Job};
use twinblock_io_posix::wire::{Outbox, Room};

/// Operations that are put on the ring before the system is called; more in one turn of the loop take one call more.
const SUBMISSIONS: u32 = 256;
/// Completions that the ring holds; more are kept by the system until there is room.
const COMPLETIONS: u32 = 4096;
/// Operations and messages in flight at a time before their tables have to grow.
const SLOTS: usize = 2048;
const MESSAGES: usize = 64;
/// What the ring was not asked for by a slot: cancellations.
const NOBODY: u64 = u64::MAX;
/// How long the end of a ring waits for the system to let go of memory before that is leaked.
const END_MAX: Duration = Duration::from_secs(2);

/// A socket that operations refer to: open until the last of them has ended.
pub(crate) type Socket = Rc<OwnedFd>;

/// What can be begun.
pub(crate) enum Work {
    /// The job's next call.
    Job(Job, Call),
    /// Receives into the room: what there is, or for part of the pool all of it.
    Receive(Socket, Room),
    /// Sends all of the message.
    Send(Socket, Box<Outbox>),
    /// Waits once for any of these events (poll(2)); the descriptor is only looked at.
    Poll(RawFd, i16),
    /// Accepts one connection.
    Accept(RawFd),
}

/// What has ended.
pub(crate) enum Ended {
    Job(Job, Result<usize, Errno>),
    Receive(Room, Result<usize, Errno>),
    Send(Box<Outbox>, Result<usize, Errno>),
    Poll(Result<i16, Errno>),
    Accept(Result<OwnedFd, Errno>),
}

/// Names an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    const fn number(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }
}

/// What a slot owns (U1).
enum Held {
    Job(Job),
    /// A buffer that was a box: the system writes to it, so that no box may claim it meanwhile.
    Receive {
        _socket: Socket,
        buffer: NonNull<[u8]>,
    },
    ReceivePool {
        _socket: Socket,
        room: Room,
    },
    Send {
        _socket: Socket,
        outbox: Box<Outbox>,
        message: Box<Message>,
    },
    Poll,
    Accept,
}

/// A message as the system wants it described.
struct Message {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
}

impl Message {
    fn new() -> Box<Self> {
        // SAFETY: a message header is numbers and pointers, for which all zeroes is a value: no name, no control data.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self { header, parts: Vec::with_capacity(Outbox::PARTS_MAX) })
    }
}

struct Slot {
    generation: u32,
    /// Who is told.
    owner: u32,
    held: Option<ManuallyDrop<Held>>,
    next_free: Option<u32>,
}

/// The ring with its slots.
pub(crate) struct Raw {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Option<u32>,
    in_flight: usize,
    /// Descriptions of messages that were sent.
    #[expect(
        clippy::vec_box,
        reason = "the system knows a message by its place, which a list's would not be"
    )]
    spare: Vec<Box<Message>>,
    /// How many descriptions there are, those in use included.
    message_count: usize,
}

impl fmt::Debug for Raw {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Raw").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Raw {
    /// A ring that only this thread may use. Newer systems let completions be worked off when the thread asks for them
    /// and not whenever it is interrupted; with older ones the plain ring does.
    pub(crate) fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(COMPLETIONS);
        let plain = builder.clone();
        builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
        let shared = builder.clone();
        builder.setup_single_issuer().setup_defer_taskrun();
        let invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
        let ring = match builder.build(SUBMISSIONS) {
            Err(error) if invalid(&error) => match shared.build(SUBMISSIONS) {
                Err(error) if invalid(&error) => plain.build(SUBMISSIONS),
                built => built,
            },
            built => built,
        }?;
        Ok(Self {
            ring,
            slots: Vec::with_capacity(SLOTS),
            free: None,
            in_flight: 0,
            spare: Vec::with_capacity(MESSAGES),
            message_count: 0,
        })
    }

    /// The first of these operations that the system does not know, if there is one.
    pub(crate) fn lacks(&self, operations: &[(u8, &'static str)]) -> io::Result<Option<&'static str>> {
        let mut probe = Probe::new();
        self.ring.submitter().register_probe(&mut probe)?;
        let missing = operations.iter().find(|(code, _)| !probe.is_supported(*code));
        Ok(missing.map(|(_, name)| *name))
    }

    /// Whether waiting can be given an end.
    pub(crate) fn knows_timeouts(&self) -> bool {
        self.ring.params().is_feature_ext_arg() && self.ring.params().is_feature_nodrop()
    }

    /// How many threads of the system may do what has to wait for files.
    pub(crate) fn limit_workers(&self, count: u32) {
        // An older system has its own limit.
        let _ = self.ring.submitter().register_iowq_max_workers(&mut [count, 0]);
    }

    /// How many operations have not completed.
    #[cfg(test)]
    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Puts an operation on the ring; the system hears of it with the next [`Self::enter`].
    pub(crate) fn start(&mut self, owner: u32, work: Work) -> io::Result<Key> {
        let (held, entry) = self.describe(work);
        let index = self.place(owner, held);
        let generation = self.slots[index as usize].generation;
        let key = Key { index, generation };
        self.in_flight += 1;
        self.push(&entry.user_data(key.number()))?;
        Ok(key)
    }

    /// Asks the system to end an operation early. It still completes, if only with an error.
    pub(crate) fn cancel(&mut self, key: Key) -> io::Result<()> {
        self.push(&opcode::AsyncCancel::new(key.number()).build().user_data(NOBODY))
    }

    fn place(&mut self, owner: u32, held: Held) -> u32 {
        let held = Some(ManuallyDrop::new(held));
        match self.free {
            Some(index) => {
                let slot = &mut self.slots[index as usize];
                self.free = slot.next_free.take();
                slot.generation = slot.generation.wrapping_add(1);
                (slot.owner, slot.held) = (owner, held);
                index
            }
            None => {
                let index = self.slots.len() as u32;
                self.slots.push(Slot { generation: 0, owner, held, next_free: None });
                index
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: whatever the entry points to belongs to its slot until its completion (U1), or it points to nothing.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn describe(&mut self, work: Work) -> (Held, squeue::Entry) {
        match work {
            Work::Job(job, call) => {
                let entry = call_entry(Fd(job.file().as_raw_fd()), call);
                (Held::Job(job), entry)
            }
            Work::Receive(socket, Room::Own(buffer)) => {
                let length = buffer.len();
                // A box is never null.
                let buffer = NonNull::from(Box::leak(buffer));
                let entry = receive_entry(&socket, buffer.cast(), length, 0);
                (Held::Receive { _socket: socket, buffer }, entry)
            }
            Work::Receive(socket, Room::Pool(lease)) => {
                let (place, length) = lease.place(0);
                let entry = receive_entry(&socket, place, length, libc::MSG_WAITALL);
                (Held::ReceivePool { _socket: socket, room: Room::Pool(lease) }, entry)
            }
            Work::Send(socket, outbox) => {
                let message = self.message(&outbox);
                let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
                let entry = opcode::SendMsg::new(Fd(socket.as_raw_fd()), &raw const message.header);
                let entry = entry.flags(flags).build();
                (Held::Send { _socket: socket, outbox, message }, entry)
            }
            Work::Poll(fd, events) => {
                (Held::Poll, opcode::PollAdd::new(Fd(fd), u32::from(events as u16)).build())
            }
            Work::Accept(fd) => {
                // Nobody asks who it is.
                let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
                let entry = opcode::Accept::new(Fd(fd), address, length);
                (Held::Accept, entry.flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build())
            }
        }
    }

    /// Makes descriptions for as many messages as can be in flight at a time, so that none is made while they are.
    pub(crate) fn prepare_messages(&mut self, count: usize) {
        while self.message_count < count {
            self.spare.push(Message::new());
            self.message_count += 1;
        }
    }

    /// Describes a message; its parts and their list stay put as long as it and the description exist.
    fn message(&mut self, outbox: &Outbox) -> Box<Message> {
        self.prepare_messages(self.message_count + usize::from(self.spare.is_empty()));
        let mut message = self.spare.pop().unwrap_or_else(Message::new);
        message.parts.clear();
        message.parts.extend(
            outbox
                .places()
                .map(|(first, length)| libc::iovec { iov_base: first.as_ptr().cast(), iov_len: length }),
        );
        message.header.msg_iov = message.parts.as_mut_ptr();
        message.header.msg_iovlen = message.parts.len();
        message
    }

    /// Tells the system of what was begun, and waits until something has ended or the time is up. Makes no system call
    /// that has nothing to do.
    pub(crate) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let is_waiting = timeout.is_none_or(|time| !time.is_zero());
        let submission = self.ring.submission();
        let is_idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if !is_waiting && is_idle {
            return Ok(());
        }
        let spec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(spec) = &spec {
            args = args.timespec(spec);
        }
        match self.ring.submitter().submit_with_args(usize::from(is_waiting), &args) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next operation that has ended, and who is to be told.
    pub(crate) fn next(&mut self) -> Option<(Key, u32, Ended)> {
        loop {
            let completion = self.ring.completion().next()?;
            let number = completion.user_data();
            let key = Key { index: number as u32, generation: (number >> 32) as u32 };
            let result = completion.result();
            // U2.
            let slot = self.slots.get_mut(key.index as usize);
            let slot = slot.filter(|slot| number != NOBODY && slot.generation == key.generation);
            let Some(slot) = slot else { continue };
            let Some(held) = slot.held.take() else { continue };
            slot.next_free = self.free.replace(key.index);
            self.in_flight -= 1;
            let owner = slot.owner;
            return Some((key, owner, self.end(ManuallyDrop::into_inner(held), result)));
        }
    }

    fn end(&mut self, held: Held, result: i32) -> Ended {
        let count = match u32::try_from(result) {
            Ok(count) => Ok(count as usize),
            Err(_) => Err(Errno::from_raw_os_error(result.wrapping_neg())),
        };
        match held {
            Held::Job(job) => Ended::Job(job, count),
            Held::Receive { buffer, .. } => {
                // SAFETY: it was a box when it came into the slot, nobody else has had it since, and the operation for
                // which the system had it has completed.
                let buffer = unsafe { Box::from_raw(buffer.as_ptr()) };
                Ended::Receive(Room::Own(buffer), count)
            }
            Held::ReceivePool { room, .. } => Ended::Receive(room, count),
            Held::Send { outbox, message, .. } => {
                self.spare.push(message);
                Ended::Send(outbox, count)
            }
            Held::Poll => Ended::Poll(count.map(|events| events as i16)),
            Held::Accept => Ended::Accept(count.map(|_| {
                // SAFETY: the system has just made this descriptor for us, and nobody else knows of it.
                unsafe { OwnedFd::from_raw_fd(result) }
            })),
        }
    }
}

impl Drop for Raw {
    /// Ends what is in flight and waits for the system to let go of it. What it keeps longer is leaked (U3).
    fn drop(&mut self) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.held.is_some() {
                let key = Key { index: index as u32, generation: slot.generation };
                if self.cancel(key).is_err() {
                    break;
                }
            }
        }
        let end = Instant::now() + END_MAX;
        while self.in_flight != 0 && Instant::now() < end {
            if self.enter(Some(Duration::from_millis(20))).is_err() {
                break;
            }
            while self.next().is_some() {}
        }
        if self.in_flight != 0 {
            tracing::warn!(
                operations = self.in_flight,
                "the system has not ended them; their memory is not used again"
            );
        }
    }
}

/// Whether the call is simply made again: interrupted, out of time, or completions must be taken off first.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN))
}

fn receive_entry(socket: &OwnedFd, place: NonNull<u8>, length: usize, flags: i32) -> squeue::Entry {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    opcode::Recv::new(Fd(socket.as_raw_fd()), place.as_ptr(), length).flags(flags).build()
}

/// As long as the job exists the pointers of its call are good.
fn call_entry(fd: Fd, call: Call) -> squeue::Entry {
    let short = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    match call {
        Call::Read { into, length, offset } => {
            opcode::Read::new(fd, into.as_ptr(), short(length)).offset(offset).build()
        }
        Call::Write { from, length, offset, is_forced } => {
            let flags = if is_forced { libc::RWF_DSYNC } else { 0 };
            opcode::Write::new(fd, from.as_ptr(), short(length)).offset(offset).rw_flags(flags).build()
        }
        Call::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, offset, length } => {
            opcode::Fallocate::new(fd, length).offset(offset).mode(mode).build()
        }
    }
}
