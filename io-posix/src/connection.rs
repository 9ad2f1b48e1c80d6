//! One client of an export that is served here: a stream, the core's server session, and what was received and not yet
//! understood.
//!
//! ```text
//!   Free ──open──▶ Open ──DISC, violation──▶ Closing ──all sent──▶ Draining ──last piece replied──▶ Free
//!                   └──────────lost, kicked, late──────────────────▶┘     Open ──given up in the handshake──▶ Free
//! ```
//!
//! Slots are made at start and used again, so that a new connection allocates nothing.
//!
//! # Invariants
//! * K1: for each connection opened, [`ServerEvent::Closed`] is told once, unless it was given up in its handshake.
//! * K2: a piece that the machine refused is offered again before anything that came after it.
//! * K3: at most one buffer of bytes is read ahead of what the session can take.

use std::io;
use std::mem;

use twinblock_core::nbd::server::{
    Exports, OPTION_BYTES_MIN, OUTPUT_BYTES_MIN, OUTPUT_ENTRIES_MIN, PieceSlot, RequestSlot, ServerConfig,
    ServerEvent, ServerMemory, Session,
};
use twinblock_core::nbd::{BadSetup, OutputEntry};
use twinblock_core::{Errno, Micros, Reply, Request};

use crate::memory::HostPool;
use crate::poller::{Interest, Poller, Ready};
use crate::socket::Stream;
use crate::wire::{Received, Wire};

/// What is received at once: with 4 KiB writes, 15 requests. Payloads of a window go straight to their buffers.
const RECEIVE_BYTES: usize = 64 << 10;
/// Payloads of which at least so much is still to come are received into their buffers; for shorter ones a copy costs
/// less than a call.
const DIRECT_BYTES: u32 = 16 << 10;
/// Option data: any name and any list of queries that a known client sends.
const OPTION_BYTES: usize = if OPTION_BYTES_MIN > 8 << 10 { OPTION_BYTES_MIN } else { 8 << 10 };
/// Bytes of the longest header of a reply, and a little.
const REPLY_BYTES: usize = 32;
/// From the end of a session until its last replies are sent.
const PATIENCE: Micros = Micros::from_ms(10_000);

/// How much one connection may have in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionSizes {
    /// Requests not answered yet. When all are taken, the connection is not read: more let one client keep more
    /// in flight. Each takes about 100 bytes.
    pub requests: u16,
    /// Pieces with the machine or waiting to be sent. Each takes about 100 bytes.
    pub pieces: u16,
    /// From accepting to the end of the handshake; a client that takes longer is dropped.
    pub handshake_max: Micros,
}

impl Default for ConnectionSizes {
    /// 64 requests, 96 pieces, 10 s; with the buffers about 96 KiB a connection.
    fn default() -> Self {
        Self { requests: 64, pieces: 96, handshake_max: Micros::from_ms(10_000) }
    }
}

#[derive(Debug)]
enum State {
    Free,
    Open {
        wire: Wire,
        /// When it was accepted.
        since: Micros,
    },
    /// The session is over and has said so; its last replies are being sent.
    Closing {
        wire: Wire,
        deadline: Option<Micros>,
    },
    /// The socket is unusable; it is taken out of the poll set by the next [`Connection::finish`].
    Lost {
        wire: Wire,
        /// The embedder has heard.
        is_told: bool,
    },
    /// The socket is closed; pieces are still with the machine.
    Draining,
}

/// A slot for one connection.
///
/// What the embedder does in each turn of its loop: pass on what the poller found ([`Self::ready`]); take
/// [`Self::next`] until `None`, offer requests to the machine and give back what it refuses ([`Self::put_back`]); pass
/// on the machine's replies ([`Self::reply`]); and at last [`Self::finish`], which sends all replies together.
#[derive(Debug)]
pub struct Connection {
    session: Session<'static>,
    state: State,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    kept: Option<Request>,
    token: u32,
    handshake_max: Micros,
}

impl Connection {
    /// A free slot. The memory of its session is kept for ever: make the slots at start.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub fn new(config: ServerConfig, sizes: ConnectionSizes, token: u32) -> Result<Self, BadSetup> {
        let (requests, pieces) = (usize::from(sizes.requests), usize::from(sizes.pieces));
        let output_bytes = OUTPUT_BYTES_MIN + REPLY_BYTES * pieces.max(requests);
        let output_entries = OUTPUT_ENTRIES_MIN + 2 * pieces;
        let memory = ServerMemory {
            requests: Box::leak(vec![RequestSlot::EMPTY; requests].into_boxed_slice()),
            pieces: Box::leak(vec![PieceSlot::EMPTY; pieces].into_boxed_slice()),
            option_data: Box::leak(vec![0; OPTION_BYTES].into_boxed_slice()),
            output_bytes: Box::leak(vec![0; output_bytes].into_boxed_slice()),
            output_entries: Box::leak(vec![OutputEntry::EMPTY; output_entries].into_boxed_slice()),
        };
        Ok(Self {
            session: Session::new(config, memory)?,
            state: State::Free,
            buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            kept: None,
            token,
            handshake_max: sizes.handshake_max,
        })
    }

    /// Takes over an accepted stream.
    ///
    /// # Errors
    /// The slot is not free; the stream is closed.
    pub fn open(&mut self, stream: Stream, now: Micros, pool: &mut HostPool) -> io::Result<()> {
        if !self.is_free() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.session.abandon(pool);
        self.session.reset().map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
        (self.start, self.end) = (0, 0);
        if self.buffer.is_empty() {
            // The system may still have that of the last connection.
            self.buffer = vec![0; RECEIVE_BYTES].into_boxed_slice();
        }
        self.state = State::Open { wire: Wire::server(stream), since: now };
        Ok(())
    }

    /// Whether a stream can be taken over.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        matches!(self.state, State::Free)
    }

    /// Whether [`Self::next`] may have something, or gets further once a buffer or a place in the machine is free. An
    /// idle connection has no work.
    #[must_use]
    pub const fn has_work(&self) -> bool {
        match &self.state {
            State::Open { wire, .. } => {
                (wire.is_readable() && !self.session.is_leaving())
                    || self.session.has_event()
                    || self.start < self.end
                    || self.kept.is_some()
                    || self.session.unanswered() != 0
            }
            State::Lost { is_told, .. } => !*is_told,
            State::Closing { .. } => self.kept.is_some(),
            State::Free | State::Draining => false,
        }
    }

    /// Whether something that the client has sent waits for a slot, a buffer or a place in the machine, or the end of
    /// the connection was not told yet. Nothing on the socket tells when there is one: call [`Self::next`] again when
    /// [`Self::finish`] tells that something has changed.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        match &self.state {
            State::Open { .. } => {
                self.start < self.end
                    || self.kept.is_some()
                    || self.session.is_waiting()
                    || self.session.has_event()
            }
            State::Closing { .. } => self.kept.is_some(),
            State::Lost { is_told, .. } => !*is_told,
            State::Free | State::Draining => false,
        }
    }

    /// How many requests are not answered.
    #[must_use]
    pub const fn unanswered(&self) -> usize {
        self.session.unanswered()
    }

    /// The upper half of the identifiers of its requests.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.session.connection()
    }

    /// What was registered with the poller under this connection's token is ready.
    pub const fn ready(&mut self, ready: Ready) {
        if let State::Open { wire, .. } | State::Closing { wire, .. } = &mut self.state {
            wire.ready(ready);
        }
    }

    /// The next event or piece, or `None` if there is none now. Receives what is needed for it.
    pub fn next<E: Exports + ?Sized>(&mut self, exports: &E, pool: &mut HostPool) -> Option<ServerEvent> {
        if let Some(request) = self.kept.take() {
            return Some(ServerEvent::Request(request));
        }
        while let State::Open { .. } = self.state {
            if let Some(event) = self.session.poll_event(pool) {
                return Some(self.pass_on(event));
            }
            let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
            let taken = self.session.receive(bytes, exports, pool);
            self.start += taken;
            if taken != 0 {
                continue;
            }
            if let Some(event) = self.session.poll_event(pool) {
                return Some(self.pass_on(event));
            }
            // K3: what is there waits for a slot, a buffer or room.
            if self.start < self.end || !self.receive(pool) {
                break;
            }
        }
        match &mut self.state {
            State::Lost { is_told: is_told @ false, .. } => {
                *is_told = true;
                Some(ServerEvent::Closed { clean: false })
            }
            _ => None,
        }
    }

    /// The machine has no place for this piece now: it is the next that [`Self::next`] gives.
    pub fn put_back(&mut self, request: Request) {
        debug_assert!(self.kept.is_none(), "nothing is taken before what was put back");
        self.kept = Some(request);
    }

    /// Takes the reply to a piece.
    pub fn reply(&mut self, reply: Reply, pool: &mut HostPool) {
        self.session.handle_reply(reply, pool);
    }

    /// Ends the connection without a word; [`Self::next`] tells.
    pub fn kick(&mut self, pool: &mut HostPool) {
        self.lose(pool);
    }

    /// Since when the client has been owing the rest of its handshake; `None` if it owes nothing.
    #[must_use]
    pub const fn handshake_since(&self) -> Option<Micros> {
        match &self.state {
            State::Open { since, .. } if self.session.is_handshake() => Some(*since),
            _ => None,
        }
    }

    /// Whether the client has not even answered the greeting.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        matches!(self.state, State::Open { .. }) && self.session.is_greeting()
    }

    /// Drops a client that has not finished its handshake; the slot is free at once. Of such a client nobody has heard,
    /// so no event tells its end. Any other is left alone.
    pub fn give_up_handshake(&mut self, pool: &mut HostPool, poller: &mut Poller) {
        if self.handshake_since().is_none() {
            return;
        }
        self.lose(pool);
        if let State::Lost { wire, .. } = &mut self.state {
            wire.detach(poller);
        }
        self.state = State::Free;
    }

    /// Sends what there is to send, and does what is due. At the end of each turn of the loop. Whether that may
    /// have freed slots and buffers, of this connection or of others, or has ended the connection.
    pub fn finish(&mut self, now: Micros, pool: &mut HostPool, poller: &mut Poller) -> bool {
        let mut has_changed = self.send(pool);
        let is_late = match &mut self.state {
            State::Open { since, .. } => {
                self.session.is_handshake() && since.after(self.handshake_max) <= now
            }
            State::Closing { wire, deadline } => {
                (!self.session.has_output() && !wire.is_sending())
                    || *deadline.get_or_insert(now.after(PATIENCE)) <= now
            }
            _ => false,
        };
        if is_late {
            self.lose(pool);
            has_changed = true;
        }
        match &mut self.state {
            State::Lost { wire, is_told } => {
                wire.detach(poller);
                if *is_told {
                    self.state = State::Draining;
                }
            }
            State::Open { .. } | State::Closing { .. } => self.register(pool, poller),
            State::Free | State::Draining => {}
        }
        if matches!(self.state, State::Draining) && self.session.in_flight() == 0 {
            self.state = State::Free;
        }
        has_changed
    }

    /// When [`Self::finish`] must be called at the latest.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<Micros> {
        match &self.state {
            State::Open { since, .. } if self.session.is_handshake() => Some(since.after(self.handshake_max)),
            State::Closing { deadline, .. } => *deadline,
            _ => None,
        }
    }

    fn pass_on(&mut self, event: ServerEvent) -> ServerEvent {
        if let ServerEvent::Closed { .. } = event {
            self.state = match mem::replace(&mut self.state, State::Draining) {
                State::Open { wire, .. } => State::Closing { wire, deadline: None },
                other => other,
            };
        }
        event
    }

    /// Receives once; whether something came.
    fn receive(&mut self, pool: &mut HostPool) -> bool {
        let State::Open { wire, .. } = &mut self.state else { return false };
        if !wire.is_readable() || self.session.is_leaving() {
            return false;
        }
        let direct = self.session.receive_into().filter(|data| data.length >= DIRECT_BYTES);
        match wire.receive(direct, &mut self.buffer, pool) {
            Ok(Some(Received::Own(count))) if count != 0 => {
                (self.start, self.end) = (0, count);
                true
            }
            Ok(Some(Received::Pool(count))) if count != 0 => {
                self.session.received_into(u32::try_from(count).unwrap_or(u32::MAX));
                true
            }
            Ok(None) => false,
            // The client has gone without a word, or the connection has failed.
            Ok(Some(_)) | Err(_) => {
                self.lose(pool);
                false
            }
        }
    }

    /// Sends what there is to send; whether anything was sent, or the connection was lost.
    fn send(&mut self, pool: &mut HostPool) -> bool {
        let (State::Open { wire, .. } | State::Closing { wire, .. }) = &mut self.state else { return false };
        let mut has_sent = match wire.settle(pool) {
            Ok(has_sent) => has_sent,
            Err(_) => {
                self.lose(pool);
                return true;
            }
        };
        while wire.is_writable() && self.session.has_output() {
            match wire.send(self.session.segments(), pool) {
                Ok(Some(count)) => {
                    has_sent = true;
                    self.session.sent(count, pool);
                }
                Ok(None) => {}
                Err(_) => {
                    self.lose(pool);
                    return true;
                }
            }
        }
        has_sent
    }

    /// The connection cannot be used any more.
    fn lose(&mut self, pool: &mut HostPool) {
        self.state = match mem::replace(&mut self.state, State::Draining) {
            State::Open { wire, .. } => State::Lost { wire, is_told: false },
            State::Closing { wire, .. } => State::Lost { wire, is_told: true },
            other => {
                self.state = other;
                return;
            }
        };
        // The machine never had it.
        if let Some(request) = self.kept.take() {
            self.session.handle_reply(Reply { id: request.id, result: Err(Errno::Shutdown) }, pool);
        }
        self.session.abandon(pool);
        (self.start, self.end) = (0, 0);
    }

    fn register(&mut self, pool: &mut HostPool, poller: &mut Poller) {
        let has_output = self.session.has_output();
        let is_blocked = self.start < self.end || self.kept.is_some();
        let (wire, reads) = match &mut self.state {
            State::Open { wire, .. } => (wire, true),
            State::Closing { wire, .. } => (wire, false),
            _ => return,
        };
        // What is known to be readable need not be asked for again; it is read when there is room.
        let read = reads && !is_blocked && !wire.is_readable() && !self.session.is_leaving();
        let interest = Interest { read, write: has_output && !wire.is_writable() };
        if !wire.attend(interest, false, self.token, poller) {
            self.lose(pool);
        }
    }
}

#[cfg(test)]
mod tests;
