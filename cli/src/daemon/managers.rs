//! Managers' connections: bytes in, messages out, and the other way round.
//!
//! What a message means is `core`'s to say and the daemon's to do; here it is only carried. Nothing that a manager sends
//! ends the daemon: a message that is too long or no JSON gets an error, a manager that does not read is let go, and one
//! that has not begun its session makes room for another.
//!
//! # Invariants
//! * M1: a manager takes at most [`MESSAGE_BYTES_MAX`] twice, while a message of it is being read, and
//!   [`OUTPUT_BYTES_MAX`] besides.

use std::fmt;
use std::io::{self, IoSlice};

use tracing::{debug, warn};
use twinblock_core::Micros;
use twinblock_core::control::EventReport;
use twinblock_core::control::json::{self, ErrorClass, Framer, Negotiation};
use twinblock_io_posix::poller::{Interest, Poller, Ready, Registration};
use twinblock_io_posix::socket::{Listener, Stream};

use super::throttle::Throttle;
use super::token::{Kind, token};

/// Managers at a time.
pub(super) const MANAGERS_MAX: usize = 16;
/// Longest message of a manager.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Most that waits for a manager that does not read.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// What a manager's buffers may keep when they are empty; commands and most answers are shorter.
pub(super) const KEPT_BYTES_MAX: usize = 64 << 10;
/// Connections that are taken before others have their turn.
const ACCEPTS_MAX: usize = MANAGERS_MAX;
/// A manager that has not begun its session is left alone for so long.
const GRACE: Micros = Micros::from_ms(20);
/// How long nothing is accepted after the system has refused to.
const PAUSE: Micros = Micros::from_ms(250);

/// One manager's connection, never confused with a later one in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ManagerId {
    index: usize,
    serial: u64,
}

#[derive(Debug)]
struct Manager {
    serial: u64,
    since: Micros,
    stream: Stream,
    registration: Registration,
    framer: Framer,
    negotiation: Negotiation,
    input: Vec<u8>,
    scanned: usize,
    /// The rest of a message that is too long is thrown away.
    is_skipping: bool,
    output: Vec<u8>,
    /// It has closed its side; it gets its answers and is let go.
    is_ending: bool,
    /// Commands that are not answered yet.
    unanswered: usize,
}

/// All managers' connections.
#[derive(Debug)]
pub(super) struct Managers {
    places: Vec<Option<Manager>>,
    /// Absent until the daemon serves.
    listener: Option<Registration>,
    /// Nothing is accepted before then.
    rests_until: Option<Micros>,
    serial: u64,
    told_full: Throttle,
    told_failed: Throttle,
    told_deaf: Throttle,
}

/// What a manager has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Text,
    TooLong,
}

/// Text for a manager's or a secondary's connection, written where it is sent from.
pub(super) struct Outgoing<'a>(pub(super) &'a mut Vec<u8>);

impl fmt::Write for Outgoing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Forgets the first bytes, and keeps room for more of them only up to a bound.
pub(super) fn drop_first(bytes: &mut Vec<u8>, count: usize) {
    bytes.drain(..count);
    if bytes.is_empty() && bytes.capacity() > KEPT_BYTES_MAX {
        *bytes = Vec::new();
    }
}

impl Managers {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            places: (0..MANAGERS_MAX).map(|_| None).collect(),
            listener: None,
            rests_until: None,
            serial: 0,
            told_full: Throttle::default(),
            told_failed: Throttle::default(),
            told_deaf: Throttle::default(),
        }
    }

    /// From now on some may come, by the listener that is registered as this.
    pub(super) const fn listen(&mut self, listener: Registration) {
        self.listener = Some(listener);
    }

    /// Takes the connections that wait.
    pub(super) fn accept(&mut self, listener: &Listener, now: Micros, poller: &mut Poller) {
        for _ in 0..ACCEPTS_MAX {
            let place = self.place(now);
            if let Err(Some(until)) = place {
                return self.rest(until, poller);
            }
            let Some(registration) = self.listener else { return };
            let stream = match poller.accept(listener, registration) {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(error) => {
                    if let Some(left_out) = self.told_failed.pass(now) {
                        warn!(left_out, "cannot accept managers for a while: {error}");
                    }
                    return self.rest(now.after(PAUSE), poller);
                }
            };
            match place {
                Ok(index) => self.open(index, stream, now, poller),
                Err(_) => self.turn_away(&stream, now),
            }
        }
    }

    /// Where the next one goes: a free place, or that of one that has not begun its session. `Err`: nowhere, or not
    /// before then.
    fn place(&self, now: Micros) -> Result<usize, Option<Micros>> {
        if let Some(free) = self.places.iter().position(Option::is_none) {
            return Ok(free);
        }
        let idle = self.places.iter().enumerate().filter_map(|(index, manager)| {
            let manager = manager.as_ref().filter(|manager| !manager.negotiation.is_done())?;
            Some((manager.since.after(GRACE), index))
        });
        match idle.min() {
            None => Err(None),
            Some((due, index)) if due <= now => Ok(index),
            Some((due, _)) => Err(Some(due)),
        }
    }

    fn open(&mut self, index: usize, stream: Stream, now: Micros, poller: &mut Poller) {
        self.drop_one(index, poller);
        let registration = poller.register(&stream, Interest::READ, token(Kind::Manager, index));
        let Some(registration) = registration else { return };
        self.serial += 1;
        let mut output = Vec::with_capacity(4096);
        let _ = json::write_greeting(&mut Outgoing(&mut output));
        self.places[index] = Some(Manager {
            serial: self.serial,
            since: now,
            stream,
            registration,
            framer: Framer::new(),
            negotiation: Negotiation::new(),
            input: Vec::with_capacity(4096),
            scanned: 0,
            is_skipping: false,
            output,
            is_ending: false,
            unanswered: 0,
        });
        self.flush_one(index, now, poller);
    }

    /// There is no place: the manager is told and let go.
    fn turn_away(&mut self, stream: &Stream, now: Micros) {
        if let Some(left_out) = self.told_full.pass(now) {
            warn!(left_out, "a manager was turned away: {MANAGERS_MAX} are connected");
        }
        let mut text = String::new();
        let reason = format!("{MANAGERS_MAX} managers are connected already; try again when one has left");
        let _ = json::write_error(&mut text, ErrorClass::GenericError, &reason, None);
        // Into an empty socket it fits, or the manager has gone.
        let _ = stream.send(&[IoSlice::new(text.as_bytes())]);
    }

    fn rest(&mut self, until: Micros, poller: &mut Poller) {
        self.rests_until = Some(until);
        if let Some(listener) = self.listener {
            poller.set_interest(listener, Interest::NONE);
        }
    }

    /// When [`Self::flush`] must be called at the latest.
    pub(super) const fn next_deadline(&self) -> Option<Micros> {
        self.rests_until
    }

    /// Reads what is there.
    pub(super) fn on_ready(&mut self, index: usize, ready: Ready, now: Micros, poller: &mut Poller) {
        let Some(manager) = self.places.get_mut(index).and_then(Option::as_mut) else { return };
        let result = if ready.read { manager.receive() } else { Ok(()) };
        if let Err(error) = result {
            debug!("a manager's connection has failed: {error}");
            return self.drop_one(index, poller);
        }
        self.flush_one(index, now, poller);
    }

    /// The next complete message of the manager at `index`; its text replaces what `text` held.
    pub(super) fn next_message(&mut self, index: usize, text: &mut Vec<u8>) -> Option<(ManagerId, Message)> {
        let manager = self.places.get_mut(index)?.as_mut()?;
        let message = manager.next_message(text)?;
        manager.unanswered += 1;
        Some((ManagerId { index, serial: manager.serial }, message))
    }

    pub(super) fn negotiation(&mut self, id: ManagerId) -> Option<&mut Negotiation> {
        Some(&mut self.find(id)?.negotiation)
    }

    fn find(&mut self, id: ManagerId) -> Option<&mut Manager> {
        self.places.get_mut(id.index)?.as_mut().filter(|manager| manager.serial == id.serial)
    }

    /// Whether nothing more comes from a manager.
    pub(super) fn has_ended(&self, id: ManagerId) -> bool {
        let manager = self.places.get(id.index).and_then(Option::as_ref);
        manager.is_none_or(|manager| manager.serial != id.serial || manager.is_ending)
    }

    /// Answers one message, if its manager is still there.
    pub(super) fn answer(&mut self, id: ManagerId, write: impl FnOnce(&mut Outgoing<'_>) -> fmt::Result) {
        if let Some(manager) = self.find(id) {
            manager.unanswered = manager.unanswered.saturating_sub(1);
            // Memory takes whatever is written.
            let _ = write(&mut Outgoing(&mut manager.output));
        }
    }

    /// Tells every manager that has negotiated.
    pub(super) fn tell(&mut self, report: &EventReport<'_>) {
        for manager in self.places.iter_mut().flatten().filter(|manager| manager.negotiation.is_done()) {
            let _ = json::write_event(&mut Outgoing(&mut manager.output), report);
        }
    }

    /// Sends what waits, and lets go of those that have ended or do not read.
    pub(super) fn flush(&mut self, listener: Option<&Listener>, now: Micros, poller: &mut Poller) {
        for index in 0..self.places.len() {
            self.flush_one(index, now, poller);
        }
        if self.rests_until.is_some_and(|until| until <= now)
            && let (Some(listener), Some(registration)) = (listener, self.listener)
        {
            self.rests_until = None;
            poller.set_interest(registration, Interest::READ);
            self.accept(listener, now, poller);
        }
    }

    fn flush_one(&mut self, index: usize, now: Micros, poller: &mut Poller) {
        let Some(manager) = self.places.get_mut(index).and_then(Option::as_mut) else { return };
        let result = manager.send();
        let has_ended = manager.is_ending && manager.output.is_empty() && manager.unanswered == 0;
        if let Err(error) = &result {
            debug!("a manager's connection has failed: {error}");
        }
        let is_deaf = manager.output.len() > OUTPUT_BYTES_MAX;
        if is_deaf && let Some(left_out) = self.told_deaf.pass(now) {
            warn!(left_out, "a manager does not read its answers and is let go");
        }
        if result.is_err() || has_ended || is_deaf {
            return self.drop_one(index, poller);
        }
        let interest = Interest { read: !manager.is_ending, write: !manager.output.is_empty() };
        poller.set_interest(manager.registration, interest);
    }

    fn drop_one(&mut self, index: usize, poller: &mut Poller) {
        if let Some(manager) = self.places.get_mut(index).and_then(Option::take) {
            poller.deregister(manager.registration);
        }
    }
}

impl Manager {
    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        // One buffer at a time: a manager that sends without end does not keep the others waiting.
        match self.stream.recv(&mut bytes)? {
            Some(0) => self.is_ending = true,
            Some(count) => self.input.extend_from_slice(&bytes[..count]),
            None => {}
        }
        Ok(())
    }

    fn next_message(&mut self, text: &mut Vec<u8>) -> Option<Message> {
        loop {
            let found = self.framer.find_end(self.input.get(self.scanned..)?);
            let Some(end) = found else {
                self.scanned = self.input.len();
                if self.input.len() > MESSAGE_BYTES_MAX {
                    let length = self.input.len();
                    drop_first(&mut self.input, length);
                    self.scanned = 0;
                    let was_skipping = std::mem::replace(&mut self.is_skipping, true);
                    if !was_skipping {
                        return Some(Message::TooLong);
                    }
                }
                return None;
            };
            text.clear();
            text.extend_from_slice(&self.input[..self.scanned + end]);
            drop_first(&mut self.input, self.scanned + end);
            self.scanned = 0;
            if std::mem::replace(&mut self.is_skipping, false) {
                continue;
            }
            if !text.iter().all(u8::is_ascii_whitespace) {
                return Some(Message::Text);
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.send(&[IoSlice::new(&self.output)])? {
                Some(count) => drop_first(&mut self.output, count),
                None => break,
            }
        }
        Ok(())
    }
}
