//! A set of descriptors that the system watches: what a wait costs depends on how many are ready, not on how many there
//! are.
//!
//! The loop changes its mind often about whether it wants to receive: it does not while a connection is full. The system
//! is not told each time. It goes on watching for what is not wanted any more until it reports that, and only then is
//! told to stop. Room to send is different: there nearly always is some, so that it would be reported at once.
//!
//! # Invariants
//! * W1: the system watches a descriptor for all that is wanted of it.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::{Interest, Ready, Registration, Waker};
use crate::errno::io_error;
use crate::raw;

#[derive(Clone, Copy, Debug)]
struct Entry {
    fd: RawFd,
    token: u32,
    wanted: Interest,
    /// What the system watches it for.
    watched: Interest,
    /// The system has refused to watch it for what is wanted; a wait tells.
    failed: Option<Errno>,
}

const UNUSED: Entry =
    Entry { fd: -1, token: 0, wanted: Interest::NONE, watched: Interest::NONE, failed: None };
/// What the bell is reported as; no place has this number.
const BELL: u64 = u64::MAX;
/// How many reports one wait takes; the others come with the next one.
const EVENTS_MAX: usize = 256;

/// See the module.
pub(super) struct Set {
    epoll: OwnedFd,
    entries: Box<[Entry]>,
    events: Vec<Event>,
    ready: Vec<Ready>,
    waker: Waker,
    /// Some descriptor may have failed: the next wait looks.
    has_failed: bool,
}

impl fmt::Debug for Set {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.entries.iter().filter(|entry| entry.fd != UNUSED.fd).count();
        to.debug_struct("Set").field("used", &used).field("ready", &self.ready).finish_non_exhaustive()
    }
}

impl Interest {
    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

impl Set {
    pub(super) fn new(capacity: u16) -> io::Result<Self> {
        let waker = Waker::new()?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(io_error)?;
        epoll::add(&epoll, waker.fd(), EventData::new_u64(BELL), EventFlags::IN).map_err(io_error)?;
        Ok(Self {
            epoll,
            entries: vec![UNUSED; usize::from(capacity)].into_boxed_slice(),
            events: Vec::with_capacity(EVENTS_MAX),
            ready: Vec::with_capacity(EVENTS_MAX),
            waker,
            has_failed: false,
        })
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn register(
        &mut self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        token: u32,
    ) -> Option<Registration> {
        let free = self.entries.iter().position(|entry| entry.fd == UNUSED.fd)?;
        let registration = Registration(u16::try_from(free).ok()?);
        self.entries[free] = Entry { fd: fd.as_raw_fd(), token, ..UNUSED };
        self.set_interest(registration, interest);
        if self.entries[free].failed.is_some() {
            self.entries[free] = UNUSED;
            return None;
        }
        Some(registration)
    }

    pub(super) fn set_interest(&mut self, registration: Registration, interest: Interest) {
        let place = usize::from(registration.0);
        let Some(entry) = self.entries.get_mut(place).filter(|entry| entry.fd != UNUSED.fd) else { return };
        entry.wanted = interest;
        let watched = entry.watched;
        let is_missing = interest.read && !watched.read;
        if is_missing || interest.write != watched.write {
            self.watch(place, interest);
        }
    }

    /// Has the system watch a descriptor for just this.
    fn watch(&mut self, place: usize, interest: Interest) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let change = match (entry.watched, interest) {
            (before, after) if before == after => return,
            (Interest::NONE, _) => raw::Watching::Begin,
            (_, Interest::NONE) => raw::Watching::End,
            _ => raw::Watching::Change,
        };
        match raw::watch(&self.epoll, change, entry.fd, interest.flags().bits(), place as u64) {
            Ok(()) => (entry.watched, entry.failed) = (interest, None),
            Err(error) if interest == Interest::NONE => {
                // It was closed, and with that taken out.
                debug_assert!(matches!(error, Errno::BADF | Errno::NOENT), "{error}");
                entry.watched = interest;
            }
            Err(error) => {
                entry.failed = Some(error);
                self.has_failed = true;
            }
        }
    }

    pub(super) fn deregister(&mut self, registration: Registration) {
        let place = usize::from(registration.0);
        self.watch(place, Interest::NONE);
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = UNUSED;
        }
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.ready.clear();
        self.events.clear();
        if self.has_failed {
            if let Some(error) = self.entries.iter_mut().find_map(|entry| entry.failed.take()) {
                return Err(io_error(error));
            }
            self.has_failed = false;
        }
        // What does not fit is longer than anybody waits.
        let timeout =
            timeout.map(|time| Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io_error(error)),
        }
        for at in 0..self.events.len() {
            let Event { flags, data } = self.events[at];
            if data.u64() == BELL {
                self.waker.hear();
            } else {
                self.report(data.u64() as usize, flags);
            }
        }
        Ok(())
    }

    fn report(&mut self, place: usize, flags: EventFlags) {
        let Some(entry) = self.entries.get(place) else { return };
        let (wanted, token) = (entry.wanted, entry.token);
        let is_broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let read = flags.contains(EventFlags::IN) || is_broken;
        let write = flags.contains(EventFlags::OUT) || is_broken;
        if wanted != Interest::NONE && (is_broken || (read && wanted.read) || (write && wanted.write)) {
            self.ready.push(Ready {
                token,
                read: is_broken || (read && wanted.read),
                write: is_broken || (write && wanted.write),
            });
        }
        if (read && !wanted.read) || (write && !wanted.write) {
            self.watch(place, wanted);
        }
    }

    pub(super) fn ready(&self) -> &[Ready] {
        &self.ready
    }
}
