//! What the ring is used for: who has begun what, and what has come of it. Waiting, streams and disks share it.
//!
//! # Invariants
//! * E1: of each stream at most one receive and one send are in flight, of each registration at most one operation counts.
//! * E2: a place in a table is used again only when nothing that was begun for its last user can still be told to it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use twinblock_io_posix::disk::{Call, Job, Next, Returned};
use twinblock_io_posix::memory::{HostPool, Lease};
use twinblock_io_posix::poller::{Interest, Ready};
use twinblock_io_posix::wire::{Outbox, Room};

use crate::raw::{Ended, Key, Raw, Socket, Work};

/// Threads of the system for files that make one wait, and how many of them may be at work on what takes seconds. The
/// others are for reads and writes.
const WORKERS: u32 = 8;
const SLOW_MAX: usize = 4;
/// How many of those may wait before their list has to grow.
const SLOW_WAITING: usize = 1024;
/// Kinds of owners, in the upper byte of their numbers.
const DISK: u32 = 0;
const STREAM: u32 = 1;
const WATCH: u32 = 2;
const KIND_SHIFT: u32 = 24;
const PLACE_MASK: u32 = (1 << KIND_SHIFT) - 1;

/// The one engine of a thread.
pub(crate) type Shared = Rc<RefCell<Engine>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    raw: Raw,
    disks: Vec<DiskEnd>,
    streams: Vec<StreamEnd>,
    watches: Vec<Watch>,
    /// Registrations that may have to be begun anew before the next wait.
    stale: Vec<u16>,
    ready: Vec<Ready>,
    /// Streams that were taken over since the last wait: their owners are told to begin.
    fresh: Vec<u32>,
    /// Jobs that take seconds, while as many as may be are with the system.
    slow: VecDeque<(u32, Job)>,
    slow_count: usize,
    /// What the owners do not want back any more.
    left: Vec<Lease>,
    /// A disk has something.
    has_news: bool,
    /// The ring has failed; the next wait tells.
    failed: Option<io::Error>,
}

#[derive(Debug, Default)]
struct DiskEnd {
    returned: VecDeque<Returned>,
    in_flight: usize,
    /// The disk is there.
    is_used: bool,
}

#[derive(Debug)]
struct StreamEnd {
    socket: Option<Socket>,
    token: u32,
    receiving: bool,
    sending: bool,
    /// Its owner wants to hear of the end of a quiet message too.
    is_hurried: bool,
    received: Option<(Room, io::Result<usize>)>,
    sent: Option<(Box<Outbox>, io::Result<()>)>,
}

/// A descriptor that is waited for.
#[derive(Debug)]
struct Watch {
    fd: RawFd,
    token: u32,
    interest: Interest,
    /// What it is being waited for.
    armed: Option<(Key, Interest)>,
    /// For a listener, what comes of it is kept here.
    accepts: Option<Accepts>,
    is_used: bool,
    is_stale: bool,
}

/// Connections that were accepted and not taken yet.
#[derive(Debug, Default)]
struct Accepts {
    taken: VecDeque<io::Result<OwnedFd>>,
    /// An operation that was cancelled, and may have accepted somebody all the same.
    fading: Option<Key>,
}

const fn owner(kind: u32, place: usize) -> u32 {
    kind << KIND_SHIFT | place as u32
}

fn failure(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

impl Engine {
    /// Over a ring; room for `capacity` registrations.
    pub(crate) fn new(raw: Raw, capacity: u16) -> Self {
        raw.limit_workers(WORKERS);
        Self {
            raw,
            disks: Vec::new(),
            streams: Vec::new(),
            watches: Vec::with_capacity(usize::from(capacity)),
            stale: Vec::with_capacity(usize::from(capacity)),
            ready: Vec::with_capacity(usize::from(capacity)),
            fresh: Vec::with_capacity(64),
            slow: VecDeque::with_capacity(SLOW_WAITING),
            slow_count: 0,
            left: Vec::with_capacity(64),
            has_news: false,
            failed: None,
        }
    }

    fn start(&mut self, owner: u32, work: Work) -> Option<Key> {
        match self.raw.start(owner, work) {
            Ok(key) => Some(key),
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }

    fn cancel(&mut self, key: Key) {
        if let Err(error) = self.raw.cancel(key) {
            self.failed.get_or_insert(error);
        }
    }

    // Waiting.

    /// Begins what is to be waited for, waits, and takes over what has ended.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.ready.clear();
        // Those that stay stale are looked at again by the next wait.
        for _ in 0..self.stale.len() {
            let place = self.stale.swap_remove(0);
            self.watch(usize::from(place));
        }
        while let Some(token) = self.fresh.pop() {
            self.ready.push(Ready { token, read: true, write: true });
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let timeout = if self.ready.is_empty() { timeout } else { Some(Duration::ZERO) };
        let until = timeout.and_then(|time| Instant::now().checked_add(time));
        loop {
            let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
            self.raw.enter(rest)?;
            let mut has_ended = false;
            while let Some((key, owner, ended)) = self.raw.next() {
                has_ended = true;
                self.take(key, owner, ended);
            }
            // What nobody waits for is no reason to stop waiting.
            if mem::take(&mut self.has_news) || !self.ready.is_empty() || !has_ended {
                return Ok(());
            }
        }
    }

    pub(crate) fn ready(&self) -> &[Ready] {
        &self.ready
    }

    pub(crate) fn take_back(&mut self, pool: &mut HostPool) {
        self.left.drain(..).for_each(|lease| pool.take_back(lease));
    }

    fn take(&mut self, key: Key, owner: u32, ended: Ended) {
        let place = (owner & PLACE_MASK) as usize;
        match ended {
            Ended::Job(job, result) => self.job_ended(place, job, result),
            Ended::Receive(room, result) => self.receive_ended(place, room, result),
            Ended::Send(message, result) => self.send_ended(place, message, result),
            Ended::Poll(result) => self.watch_ended(key, place, result),
            Ended::Accept(result) => self.accept_ended(key, place, result),
        }
    }

    // Registrations.

    pub(crate) fn register(
        &mut self,
        fd: RawFd,
        interest: Interest,
        is_listener: bool,
        token: u32,
    ) -> Option<u16> {
        let accepts = is_listener.then(Accepts::default);
        let watch = Watch { fd, token, interest, armed: None, accepts, is_used: true, is_stale: false };
        let place = match self.watches.iter().position(|watch| !watch.is_used) {
            Some(place) => {
                // An operation of the last user that still ends does not count (E2): its key is not this one's.
                self.watches[place] = Watch { is_stale: self.watches[place].is_stale, ..watch };
                place
            }
            None if self.watches.len() < self.watches.capacity() => {
                self.watches.push(watch);
                self.watches.len() - 1
            }
            None => return None,
        };
        self.look_at(place);
        u16::try_from(place).ok()
    }

    pub(crate) fn set_interest(&mut self, place: u16, interest: Interest) {
        let place = usize::from(place);
        if let Some(watch) = self.watches.get_mut(place).filter(|watch| watch.is_used)
            && watch.interest != interest
        {
            watch.interest = interest;
            self.look_at(place);
        }
    }

    pub(crate) fn deregister(&mut self, place: u16) {
        if let Some(watch) = self.watches.get_mut(usize::from(place)) {
            watch.is_used = false;
            watch.accepts = None;
            if let Some((key, _)) = watch.armed.take() {
                self.cancel(key);
            }
        }
    }

    fn look_at(&mut self, place: usize) {
        if let (Some(watch), Ok(number)) = (self.watches.get_mut(place), u16::try_from(place))
            && !watch.is_stale
        {
            watch.is_stale = true;
            self.stale.push(number);
        }
    }

    /// Has the ring wait for what a registration is interested in now.
    fn watch(&mut self, place: usize) {
        let Some(watch) = self.watches.get_mut(place) else { return };
        watch.is_stale = false;
        let (fd, interest) = (watch.fd, watch.interest);
        if !watch.is_used || watch.armed.is_some_and(|(_, armed)| armed == interest) {
            return;
        }
        let is_listener = watch.accepts.is_some();
        if interest.read && watch.accepts.as_ref().is_some_and(|accepts| !accepts.taken.is_empty()) {
            self.ready.push(Ready { token: watch.token, read: true, write: false });
            return self.look_at(place);
        }
        if let Some((key, _)) = watch.armed.take() {
            if let Some(accepts) = &mut watch.accepts {
                accepts.fading = Some(key);
            }
            self.cancel(key);
        }
        if interest != Interest::NONE {
            let events =
                if interest.read { libc::POLLIN } else { 0 } | if interest.write { libc::POLLOUT } else { 0 };
            let work = if is_listener { Work::Accept(fd) } else { Work::Poll(fd, events) };
            let key = self.start(owner(WATCH, place), work);
            self.watches[place].armed = key.map(|key| (key, interest));
        }
    }

    /// The next connection of a listener.
    pub(crate) fn accepted(&mut self, place: u16) -> Option<io::Result<OwnedFd>> {
        self.watches.get_mut(usize::from(place))?.accepts.as_mut()?.taken.pop_front()
    }

    fn accept_ended(&mut self, key: Key, place: usize, result: Result<OwnedFd, Errno>) {
        let Some(watch) = self.watches.get_mut(place) else { return };
        let Some(accepts) = &mut watch.accepts else { return };
        if watch.armed.is_some_and(|(armed, _)| armed == key) {
            watch.armed = None;
        } else if accepts.fading == Some(key) {
            accepts.fading = None;
        } else {
            return;
        }
        match result {
            // The client has gone, or nobody shall be accepted just now.
            Err(Errno::CONNABORTED | Errno::PROTO | Errno::INTR | Errno::AGAIN | Errno::CANCELED) => {}
            result => {
                accepts.taken.push_back(result.map_err(failure));
                self.ready.push(Ready { token: watch.token, read: true, write: false });
            }
        }
        self.look_at(place);
    }

    fn watch_ended(&mut self, key: Key, place: usize, result: Result<i16, Errno>) {
        let Some(watch) = self.watches.get_mut(place) else { return };
        if watch.armed.is_none_or(|(armed, _)| armed != key) {
            return;
        }
        watch.armed = None;
        // What cannot be waited for shows when it is used.
        let events = result.unwrap_or(libc::POLLERR);
        let broken = events & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
        self.ready.push(Ready {
            token: watch.token,
            read: broken || events & libc::POLLIN != 0,
            write: broken || events & libc::POLLOUT != 0,
        });
        // It is told again as long as it is so.
        self.look_at(place);
    }

    // Streams.

    pub(crate) fn adopt(&mut self, socket: OwnedFd, token: u32) -> usize {
        let stream = StreamEnd {
            socket: Some(Rc::new(socket)),
            token,
            receiving: false,
            sending: false,
            is_hurried: false,
            received: None,
            sent: None,
        };
        self.fresh.push(token);
        // One message of each at a time (E1).
        self.raw.prepare_messages(self.streams.len() + 1);
        match self.streams.iter().position(StreamEnd::is_over) {
            Some(place) => {
                self.streams[place] = stream;
                place
            }
            None => {
                self.streams.push(stream);
                self.streams.len() - 1
            }
        }
    }

    pub(crate) fn receive(&mut self, place: usize, room: Room) {
        let Some(stream) = self.streams.get_mut(place) else { return };
        debug_assert!(!stream.receiving && stream.received.is_none(), "E1");
        if let Some(socket) = stream.socket.clone() {
            stream.receiving = true;
            self.start(owner(STREAM, place), Work::Receive(socket, room));
        }
    }

    pub(crate) fn is_receiving(&self, place: usize) -> bool {
        self.streams.get(place).is_some_and(|stream| stream.receiving || stream.received.is_some())
    }

    pub(crate) fn received(&mut self, place: usize) -> Option<(Room, io::Result<usize>)> {
        self.streams.get_mut(place)?.received.take()
    }

    pub(crate) fn send(&mut self, place: usize, message: Box<Outbox>) {
        let Some(stream) = self.streams.get_mut(place) else { return };
        debug_assert!(!stream.sending && stream.sent.is_none(), "E1");
        if let Some(socket) = stream.socket.clone() {
            stream.sending = true;
            self.start(owner(STREAM, place), Work::Send(socket, message));
        }
    }

    pub(crate) fn sent(&mut self, place: usize) -> Option<(Box<Outbox>, io::Result<()>)> {
        self.streams.get_mut(place)?.sent.take()
    }

    pub(crate) fn socket(&self, place: usize) -> Option<Socket> {
        self.streams.get(place)?.socket.clone()
    }

    pub(crate) fn hurry(&mut self, place: usize) {
        let Some(stream) = self.streams.get_mut(place) else { return };
        if stream.sent.is_some() {
            self.fresh.push(stream.token);
        }
        stream.is_hurried = true;
    }

    /// Ends a stream: what is in flight ends soon, and its memory is kept until then.
    pub(crate) fn hang_up(&mut self, place: usize) {
        let Some(stream) = self.streams.get_mut(place) else { return };
        if let Some(socket) = stream.socket.take() {
            // A peer that has gone already makes it fail.
            let _ = shutdown(socket.as_fd(), Shutdown::Both);
        }
        if let Some((Room::Pool(lease), _)) = stream.received.take() {
            self.left.push(lease);
        }
        if let Some((message, _)) = stream.sent.take() {
            self.left.extend(message.into_leases());
        }
    }

    fn receive_ended(&mut self, place: usize, room: Room, result: Result<usize, Errno>) {
        let Some(stream) = self.streams.get_mut(place) else { return };
        stream.receiving = false;
        if stream.socket.is_some() {
            stream.received = Some((room, result.map_err(failure)));
            self.ready.push(Ready { token: stream.token, read: true, write: false });
        } else if let Room::Pool(lease) = room {
            self.left.push(lease);
        }
    }

    fn send_ended(&mut self, place: usize, message: Box<Outbox>, result: Result<usize, Errno>) {
        let Some(stream) = self.streams.get_mut(place) else { return };
        stream.sending = false;
        if stream.socket.is_some() {
            let is_whole = |count: usize| {
                if count == message.total() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
            };
            let result = result.map_err(failure).and_then(is_whole);
            let is_quiet = message.is_quiet() && result.is_ok() && !stream.is_hurried;
            stream.is_hurried = false;
            stream.sent = Some((message, result));
            if !is_quiet {
                self.ready.push(Ready { token: stream.token, read: false, write: true });
            }
        } else {
            self.left.extend(message.into_leases());
        }
    }

    // Disks.

    pub(crate) fn add_disk(&mut self, capacity: u16) -> usize {
        let returned = VecDeque::with_capacity(usize::from(capacity));
        let disk = DiskEnd { returned, in_flight: 0, is_used: true };
        match self.disks.iter().position(|disk| !disk.is_used && disk.in_flight == 0) {
            Some(place) => {
                self.disks[place] = disk;
                place
            }
            None => {
                self.disks.push(disk);
                self.disks.len() - 1
            }
        }
    }

    /// The disk is gone; what is in flight is kept until it has ended.
    pub(crate) fn remove_disk(&mut self, place: usize) {
        let Some(disk) = self.disks.get_mut(place) else { return };
        disk.is_used = false;
        let leases = mem::take(&mut disk.returned).into_iter().filter_map(Returned::into_lease);
        self.left.extend(leases);
    }

    pub(crate) fn submit(&mut self, place: usize, job: Job) -> Result<(), Job> {
        let (Some(disk), Some(call)) = (self.disks.get_mut(place), job.call()) else { return Err(job) };
        disk.in_flight += 1;
        if !job.is_slow() {
            self.start(owner(DISK, place), Work::Job(job, call));
        } else if self.slow_count < SLOW_MAX {
            self.slow_count += 1;
            self.start(owner(DISK, place), Work::Job(job, call));
        } else {
            self.slow.push_back((owner(DISK, place), job));
        }
        Ok(())
    }

    pub(crate) fn returned(&mut self, place: usize) -> Option<Returned> {
        self.disks.get_mut(place)?.returned.pop_front()
    }

    fn job_ended(&mut self, place: usize, job: Job, result: Result<usize, Errno>) {
        let is_slow = job.is_slow();
        let returned = match job.returned(result) {
            Next::Again(job) => match job.call() {
                Some(call) => {
                    self.start(owner(DISK, place), Work::Job(job, call));
                    return;
                }
                None => Returned::Help(job),
            },
            Next::Returned(returned) => returned,
        };
        if is_slow {
            self.slow_count -= 1;
            self.start_slow();
        }
        let Some(disk) = self.disks.get_mut(place) else { return };
        disk.in_flight -= 1;
        self.has_news = true;
        if disk.is_used {
            disk.returned.push_back(returned);
        } else {
            self.left.extend(returned.into_lease());
        }
    }

    fn start_slow(&mut self) {
        while self.slow_count < SLOW_MAX
            && let Some((owner, job)) = self.slow.pop_front()
        {
            let call: Option<Call> = job.call();
            if let Some(call) = call {
                self.slow_count += 1;
                self.start(owner, Work::Job(job, call));
            }
        }
    }
}

impl StreamEnd {
    /// Nothing is left of it, so that its place is free (E2).
    const fn is_over(&self) -> bool {
        self.socket.is_none() && !self.receiving && !self.sending
    }
}

#[cfg(test)]
mod tests;
