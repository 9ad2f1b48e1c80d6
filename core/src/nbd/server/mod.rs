//! A server's side of one connection: options, requests cut into pieces for a machine, replies made out of pieces.
//!
//! ```text
//! Flags ──▶ OptionHeader ◀──▶ OptionData | OptionDrain ──▶ Answer
//!                                                            │ GO, EXPORT_NAME
//!            ┌───────────────────────────────────────────────┘
//!            ▼
//!         Header ──▶ Payload (write) ──▶ Header          any ──▶ Closed (DISC, violation, late failure)
//!            │   ──▶ Issue (read, zeroes, flush, status) ──▶ Header
//!            └─────▶ Drain (payload of a refused write) ──▶ Header
//! ```
//!
//! What the embedder does, in any order and as often as it likes: hand in what came ([`Session::receive`], or directly
//! into a buffer with [`Session::receive_into`]); take events and pieces ([`Session::poll_event`]); hand in replies
//! ([`Session::handle_reply`]); send [`Session::segments`] and say so ([`Session::sent`]). Whenever room was made by
//! any of these, or a buffer of the pool became free, `receive` and `poll_event` may get further than before, also
//! with no new bytes.
//!
//! # Invariants
//! * N1: pieces are handed out in the order in which their requests came, and within a request in disk order.
//! * N2: a buffer is released once: with the reply to its write, with the sending of its read, or when the connection
//!   is given up.
//! * N3: a request is answered once, after each of its pieces was.
//! * N4: nothing else is put between the parts of a reply that is sent in order.

mod options;
mod reply;
mod tables;
mod transmission;

pub use tables::{PieceSlot, RequestSlot};

use super::BadSetup;
use super::gather::Gather;
use super::output::{Output, OutputEntry, Segments};
use super::wire::{self, DEFAULT_PAYLOAD_MAX, HandshakeFlags, TransmissionFlags};
use crate::{Data, Extent, Identity, Pool, Refused, Reply, Request};
use options::Answer;
use reply::StatusAnswer;
use tables::{Pieces, Requests};

/// Least room for header bytes in the output: any one message with a name of 256 bytes fits.
pub const OUTPUT_BYTES_MIN: usize = 512;
/// Least number of entries of the output: a header, a payload, and a header behind it.
pub const OUTPUT_ENTRIES_MIN: usize = 4;
/// Least room for the data of an option: a SET_META_CONTEXT or GO with a name of 256 bytes fits.
pub const OPTION_BYTES_MIN: usize = 512;
/// Longest name and longest description of an export that is told to clients, in bytes; what is longer is kept back.
pub const EXPORT_TEXT_MAX: usize = 256;

/// One export, as clients see it.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// Its name, at most [`EXPORT_TEXT_MAX`] bytes.
    pub name: &'a str,
    /// For people; may be empty.
    pub description: &'a str,
    /// Length of the disk.
    pub size_bytes: u64,
    /// Offsets and lengths must be multiples of this power of two, 1 to 65536.
    pub block_min: u32,
    /// Best size of a request, a power of two of at least 512 and `block_min`.
    pub block_preferred: u32,
    /// Longest payload of a read or write that is taken.
    pub payload_max: u32,
    /// What it can do. HAS_FLAGS and SEND_DF are seen to by the session.
    pub flags: TransmissionFlags,
}

impl<'a> Export<'a> {
    /// An export of any byte length that takes everything the session knows and lets several connections share it.
    #[must_use]
    pub const fn new(name: &'a str, size_bytes: u64) -> Self {
        let flags = TransmissionFlags::SEND_FLUSH
            .union(TransmissionFlags::SEND_FUA)
            .union(TransmissionFlags::SEND_TRIM)
            .union(TransmissionFlags::SEND_WRITE_ZEROES)
            .union(TransmissionFlags::SEND_FAST_ZERO)
            .union(TransmissionFlags::SEND_CACHE)
            .union(TransmissionFlags::CAN_MULTI_CONN);
        Self {
            name,
            description: "",
            size_bytes,
            block_min: 1,
            block_preferred: 4096,
            payload_max: DEFAULT_PAYLOAD_MAX,
            flags,
        }
    }
}

/// What can be connected to.
pub trait Exports {
    /// How many exports there are.
    fn count(&self) -> usize;
    /// One of them; `None` from `count` on.
    fn export(&self, index: usize) -> Option<Export<'_>>;
}

/// Settings of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Longest piece of a read or write, a power of two; no piece crosses a multiple of it.
    pub window_bytes: u32,
    /// Longest piece of a TRIM or WRITE_ZEROES, a power-of-two multiple of the window.
    pub zero_piece_bytes: u32,
    /// How many pieces of one read, trim or zeroes may be with the machine at a time; at least 1.
    pub request_pieces_max: u16,
    /// Upper half of each [`RequestId`](crate::RequestId) of this session: unique among the sessions of a machine.
    pub connection: u16,
    /// Told to primaries: a number, from [`RUN_MIN`](crate::nbd::RUN_MIN) on, that no other run of this server has had,
    /// a random one. A primary that meets another one, or none (0), takes what it had not flushed for lost.
    pub run: u32,
}

impl ServerConfig {
    /// Zeroes in pieces of the window, 8 pieces at a time; the run has no number.
    #[must_use]
    pub const fn new(window_bytes: u32, connection: u16) -> Self {
        Self { window_bytes, zero_piece_bytes: window_bytes, request_pieces_max: 8, connection, run: 0 }
    }
}

/// Memory of a session.
#[derive(Debug)]
pub struct ServerMemory<'m> {
    /// Requests that are not answered yet: one slot each, at least 1. When all are taken, nothing is read from this
    /// connection. More let a client keep more requests in flight.
    pub requests: &'m mut [RequestSlot],
    /// Pieces with the machine, or answered and waiting for room in the output: one slot each, at least 1. When all are
    /// taken, nothing is read from this connection. A request of 1 MiB with a window of 256 KiB has 4. What is in the
    /// output keeps its buffer until it is sent, but no slot: only the pool bounds what a client that does not read holds.
    pub pieces: &'m mut [PieceSlot],
    /// Data of one option, at least [`OPTION_BYTES_MIN`]; an option with more is refused. 8 KiB take any name.
    pub option_data: &'m mut [u8],
    /// Headers to send, at least [`OUTPUT_BYTES_MIN`]: 16 to 28 bytes for each reply. When full, replies wait in their
    /// slots; more lets more replies leave together.
    pub output_bytes: &'m mut [u8],
    /// Payloads and runs of headers to send, at least [`OUTPUT_ENTRIES_MIN`]: two for each read. When full, replies
    /// wait in their slots.
    pub output_entries: &'m mut [OutputEntry],
}

/// What a session tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// The client has chosen an export; requests follow.
    Opened {
        /// Its index in [`Exports`].
        export: usize,
        /// Who the client says it is.
        identity: Option<Identity>,
    },
    /// A piece for the machine. If the machine is busy, keep it, do not poll again, and offer it later. Whatever becomes
    /// of the connection, each piece is to be replied once: one that the machine never took, by its holder.
    Request(Request),
    /// The session has ended; send what is left to send, then close the connection and call [`Session::abandon`].
    /// Pieces with the machine are still to be replied.
    Closed {
        /// The client has said goodbye with nothing unanswered. Otherwise it may miss something it has sent.
        clean: bool,
    },
}

/// What was agreed during the handshake.
#[derive(Clone, Copy, Debug, Default)]
struct Agreed {
    no_zeroes: bool,
    is_structured: bool,
    /// Metadata contexts, for this export only.
    contexts: Contexts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Contexts {
    export: Option<usize>,
    allocation: bool,
    identity: Option<Identity>,
}

/// The export that was chosen.
#[derive(Clone, Copy, Debug, Default)]
struct Chosen {
    size_bytes: u64,
    block_min: u32,
    payload_max: u32,
    flags: TransmissionFlags,
    has_allocation: bool,
}

/// What is received next.
#[derive(Clone, Copy, Debug)]
enum State {
    Flags(Gather<4>),
    OptionHeader(Gather<{ wire::OPTION_BYTES }>),
    OptionData {
        option: u32,
        length: usize,
        filled: usize,
    },
    OptionDrain {
        option: u32,
        left: u32,
    },
    Answer {
        option: u32,
        answer: Answer,
    },
    Header(Gather<{ wire::REQUEST_BYTES }>),
    Payload(Payload),
    Issue {
        request: u16,
        next: u64,
    },
    Drain {
        request: u16,
        left: u32,
    },
    /// The client has said goodbye, and what it asked for before is still being done.
    Leaving,
    Closed,
}

/// Where the payload of a write stands.
#[derive(Clone, Copy, Debug)]
struct Payload {
    request: u16,
    /// Where the present piece starts.
    next: u64,
    /// The present piece, once there was a slot and a buffer for it.
    piece: Option<u16>,
    /// How much of the present piece is there.
    filled: u32,
    /// The present piece is there and waits to be polled.
    is_ready: bool,
}

/// What came of a step.
enum Step {
    /// So many bytes were taken, and there may be more to do.
    Took(usize),
    /// Nothing can be done without more bytes, room, slots or buffers, or before an event is polled.
    Wait,
}

/// A server's side of one connection.
///
/// ```
/// use twinblock_core::Windows;
/// use twinblock_core::nbd::server::{
///     Export, Exports, PieceSlot, RequestSlot, ServerConfig, ServerMemory, Session,
/// };
/// use twinblock_core::nbd::{OutputEntry, Segment};
///
/// struct One;
///
/// impl Exports for One {
///     fn count(&self) -> usize {
///         1
///     }
///     fn export(&self, index: usize) -> Option<Export<'_>> {
///         (index == 0).then(|| Export::new("disk", 1 << 20))
///     }
/// }
///
/// let memory = ServerMemory {
///     requests: &mut [RequestSlot::EMPTY; 4],
///     pieces: &mut [PieceSlot::EMPTY; 4],
///     option_data: &mut [0; 512],
///     output_bytes: &mut [0; 512],
///     output_entries: &mut [OutputEntry::EMPTY; 8],
/// };
/// let mut session = Session::new(ServerConfig::new(4096, 0), memory).unwrap();
/// let mut buffers = [0; 4 * 4096];
/// let mut pool = Windows::new(&mut buffers, 4096);
/// // The greeting waits to be sent; then the client's flags come in.
/// assert_eq!(session.segments().next(), Some(Segment::Bytes(b"NBDMAGICIHAVEOPT\0\x03")));
/// session.sent(18, &mut pool);
/// assert_eq!(session.receive(&[0, 0, 0, 3], &One, &mut pool), 4);
/// assert_eq!(session.poll_event(&mut pool), None);
/// ```
#[derive(Debug)]
pub struct Session<'m> {
    config: ServerConfig,
    state: State,
    agreed: Agreed,
    chosen: Chosen,
    requests: Requests<'m>,
    pieces: Pieces<'m>,
    option_data: &'m mut [u8],
    output: Output<'m>,
    /// Waits to be polled.
    event: Option<ServerEvent>,
    /// Pieces with the machine.
    in_flight: usize,
    /// The request whose reply is in the output in part (N4).
    in_order: Option<u16>,
    /// Something waits for room in the output.
    has_backlog: bool,
    status: StatusAnswer,
}

impl<'m> Session<'m> {
    /// A session for a new connection; its greeting waits to be sent.
    ///
    /// # Errors
    /// What is wrong with the settings or the memory.
    pub fn new(config: ServerConfig, memory: ServerMemory<'m>) -> Result<Self, BadSetup> {
        let ServerMemory { requests, pieces, option_data, output_bytes, output_entries } = memory;
        let windows = config.zero_piece_bytes.checked_div(config.window_bytes).unwrap_or_default();
        if !config.window_bytes.is_power_of_two()
            || !windows.is_power_of_two()
            || !config.zero_piece_bytes.is_multiple_of(config.window_bytes)
        {
            return Err(BadSetup::Window);
        }
        if requests.is_empty() || pieces.is_empty() || config.request_pieces_max == 0 {
            return Err(BadSetup::Slots);
        }
        if output_bytes.len() < OUTPUT_BYTES_MIN
            || output_entries.len() < OUTPUT_ENTRIES_MIN
            || option_data.len() < OPTION_BYTES_MIN
        {
            return Err(BadSetup::Room);
        }
        let mut session = Self {
            config,
            state: State::Closed,
            agreed: Agreed::default(),
            chosen: Chosen::default(),
            requests: Requests::new(requests),
            pieces: Pieces::new(pieces),
            option_data,
            output: Output::new(output_bytes, output_entries),
            event: None,
            in_flight: 0,
            in_order: None,
            has_backlog: false,
            status: StatusAnswer::default(),
        };
        session.greet();
        Ok(session)
    }

    /// Makes it ready for the next connection.
    ///
    /// # Errors
    /// [`Refused::Busy`]: it was not abandoned, or pieces of the last connection are still with the machine. Nothing
    /// was changed.
    pub fn reset(&mut self) -> Result<(), Refused> {
        if !self.is_closed() || self.in_flight != 0 || !self.output.is_empty() {
            return Err(Refused::Busy);
        }
        self.agreed = Agreed::default();
        self.chosen = Chosen::default();
        self.event = None;
        self.greet();
        Ok(())
    }

    fn greet(&mut self) {
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        self.output.push_bytes(&wire::Greeting { flags }.encode());
        self.enter(State::Flags(Gather::new()));
    }

    /// The upper half of its request identifiers.
    #[must_use]
    pub const fn connection(&self) -> u16 {
        self.config.connection
    }

    /// How many pieces are with the machine. Their buffers are in use until they are replied.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many requests of the client are not answered yet; an answer in the output does not count.
    #[must_use]
    pub const fn unanswered(&self) -> usize {
        self.requests.count()
    }

    /// Whether a request that came in waits for a slot, a buffer or an answer before the rest of it can be handed out.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        matches!(self.state, State::Issue { .. } | State::Payload(Payload { piece: None, .. }))
    }

    /// Whether it takes no more bytes.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether the handshake is still going on.
    #[must_use]
    pub const fn is_handshake(&self) -> bool {
        matches!(
            self.state,
            State::Flags(_)
                | State::OptionHeader(_)
                | State::OptionData { .. }
                | State::OptionDrain { .. }
                | State::Answer { .. }
        )
    }

    /// Whether the client has not answered the greeting yet.
    #[must_use]
    pub const fn is_greeting(&self) -> bool {
        matches!(self.state, State::Flags(_))
    }

    /// Takes bytes that came from the client and tells how many. Takes fewer when an event or a piece waits to be
    /// polled, or when there is no slot, no buffer or no room in the output: the rest is to be handed in again later.
    /// Work is bounded by the number of bytes, and without bytes by one answer to an option.
    pub fn receive<E: Exports + ?Sized, P: Pool + ?Sized>(
        &mut self,
        bytes: &[u8],
        exports: &E,
        pool: &mut P,
    ) -> usize {
        let mut taken = 0;
        while self.event.is_none() {
            match self.step(bytes.get(taken..).unwrap_or_default(), exports, pool) {
                Step::Took(count) => taken += count,
                Step::Wait => break,
            }
        }
        taken
    }

    fn step<E: Exports + ?Sized, P: Pool + ?Sized>(
        &mut self,
        bytes: &[u8],
        exports: &E,
        pool: &mut P,
    ) -> Step {
        match self.state {
            State::Flags(gather) => self.receive_flags(gather, bytes, pool),
            State::OptionHeader(gather) => self.receive_option(gather, bytes, pool),
            State::OptionData { option, length, filled } => {
                self.receive_option_data(option, length, filled, bytes, exports, pool)
            }
            State::OptionDrain { option, left } => self.drain_option(option, left, bytes, pool),
            State::Answer { option, answer } => self.answer(option, answer, exports, pool),
            State::Header(gather) => self.receive_header(gather, bytes, pool),
            State::Payload(payload) => self.receive_payload(payload, bytes, pool),
            State::Drain { request, left } => self.drain_payload(request, left, bytes),
            State::Issue { .. } | State::Leaving | State::Closed => Step::Wait,
        }
    }

    /// Where the next bytes of the connection belong if they are payload: a caller that receives them there needs no
    /// copy. Followed by [`Session::received_into`]. `None` while a piece waits to be polled.
    #[must_use]
    pub fn receive_into(&self) -> Option<Data> {
        let State::Payload(Payload { piece: Some(piece), filled, is_ready: false, .. }) = self.state else {
            return None;
        };
        let data = self.pieces.data(piece)?;
        Some(data.part(filled, data.length.saturating_sub(filled))).filter(|_| self.event.is_none())
    }

    /// So many bytes were received where [`Session::receive_into`] said.
    pub fn received_into(&mut self, count: u32) {
        let room = self.receive_into().map_or(0, |data| data.length);
        if let State::Payload(payload) = self.state {
            self.enter(State::Payload(payload.filled_by(count.min(room), room)));
        }
    }

    /// The next event or piece, or `None` until something else has happened. Visits one request; may take a buffer.
    pub fn poll_event<P: Pool + ?Sized>(&mut self, pool: &mut P) -> Option<ServerEvent> {
        if let Some(event) = self.event.take() {
            return Some(event);
        }
        match self.state {
            State::Payload(payload) if payload.is_ready => self.hand_out(payload, pool),
            State::Issue { request, next } => self.issue(request, next, pool),
            _ => None,
        }
        .map(ServerEvent::Request)
    }

    /// Takes the reply to a piece. A reply to what is not with the machine does nothing. Work is bounded by the number
    /// of slots.
    pub fn handle_reply<P: Pool + ?Sized>(&mut self, reply: Reply, pool: &mut P) {
        self.take_reply(reply, pool);
        self.pump();
        self.leave(pool);
    }

    /// The bytes to send, in order, for one vectored send. Nothing is taken off before [`Session::sent`].
    #[must_use]
    pub const fn segments(&self) -> Segments<'_> {
        self.output.segments()
    }

    /// Whether there is something to send.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The first `count` bytes of [`Session::segments`] were sent: buffers of reads that are sent are released.
    pub fn sent<P: Pool + ?Sized>(&mut self, count: usize, pool: &mut P) {
        self.output.sent(count, |data, _| pool.release(data.buffer));
        self.pump();
        self.leave(pool);
    }

    /// The connection is gone: what was not sent is dropped and buffers are released, except those of pieces that are
    /// with the machine, which are released as they are replied. A request of which only some pieces were handed out
    /// stays incomplete: the machine is told by whoever tells it that the connection has closed. No event follows. What
    /// the client sent before the end is to be handed in first, as far as it still matters.
    pub fn abandon<P: Pool + ?Sized>(&mut self, pool: &mut P) {
        self.output.clear(|data, _| pool.release(data.buffer));
        if !self.is_closed() {
            self.close(false, pool);
        }
        self.event = None;
    }

    /// Whether the client has said goodbye and waits for what it asked for before. Nothing that it sends matters.
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving)
    }

    /// Whether an event waits to be polled.
    #[must_use]
    pub const fn has_event(&self) -> bool {
        self.event.is_some()
    }

    /// Ends the session of a client that has said goodbye, once everything is answered. Not clean: it did not wait for
    /// these answers, and may take them for lost.
    fn leave<P: Pool + ?Sized>(&mut self, pool: &mut P) {
        if self.is_leaving() && self.requests.count() == 0 {
            self.close(false, pool);
        }
    }

    /// Ends the session; what is in the output may still be sent.
    fn close<P: Pool + ?Sized>(&mut self, clean: bool, pool: &mut P) {
        self.pieces.close_unissued(|data| pool.release(data.buffer));
        self.requests.clear();
        self.in_order = None;
        self.has_backlog = false;
        self.status = StatusAnswer::default();
        self.event = Some(ServerEvent::Closed { clean });
        self.enter(State::Closed);
    }

    const fn enter(&mut self, state: State) {
        self.state = state;
    }
}

/// The piece of `extent` that starts at `start`, in pieces that do not cross a multiple of `unit`, a power of two.
const fn piece_at(extent: Extent, start: u64, unit: u32) -> Extent {
    let boundary = (start | (unit as u64 - 1)).saturating_add(1);
    let end = extent.end();
    Extent::between(start, if boundary < end { boundary } else { end })
}

#[cfg(test)]
mod tests;
