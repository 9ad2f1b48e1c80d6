//! A client's side of one connection: options, transfers as requests, replies of a server that is not trusted.
//!
//! ```text
//! Greeting ──▶ Option (STRUCTURED_REPLY, SET_META_CONTEXT, GO) ──▶ Reply ◀──▶ Head | Data | Skip
//!                 │ GO is not known                                  ▲
//!                 └──▶ ExportName ───────────────────────────────────┘     any ──▶ Closed (violation, the end)
//! ```
//!
//! What the embedder does: hand in what came ([`Session::receive`], or directly into a buffer with
//! [`Session::receive_into`]); take [`Session::poll_event`]; start transfers ([`Session::submit`]) and take their
//! completions ([`Session::poll`]); send [`Session::segments`] and say so ([`Session::sent`]).
//!
//! What the server lacks is done here: without FUA a write is followed by a flush; without FLUSH a flush is done at
//! once; without WRITE_ZEROES zeroes are sent; what is longer than the server takes is sent in parts, one after the
//! other. [`Errno::Unsupported`] is left for zeroes that shall be fast on a server that does not tell.
//!
//! # Invariants
//! * C1: each transfer that was taken completes once, also when the connection is lost.
//! * C2: a transfer completes only when no byte of it is still to be sent or received.
//! * C3: no byte is written outside the part of a buffer that belongs to the read being answered, and none twice.

mod handshake;
mod replies;
mod transfers;

pub use transfers::TransferSlot;

use super::BadSetup;
use super::gather::Gather;
use super::output::{Output, OutputEntry, Segments};
use super::wire::{self, STRING_MAX, TransmissionFlags};
use crate::block::{Capabilities, Completion, Geometry};
use crate::{Data, Errno, Identity, Memory, Micros, Refused};
use handshake::Handshake;
use replies::{Chunk, Head, Target};
use transfers::{Progress, Transfers};

/// Least room for header bytes in the output, on top of twice the length of the export's name.
pub const OUTPUT_BYTES_MIN: usize = 256;
/// Least number of entries of the output.
pub const OUTPUT_ENTRIES_MIN: usize = 4;
/// Longest text of a server that is kept, in bytes.
pub const TEXT_MAX: usize = 128;

/// What to ask the server for.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig<'a> {
    /// Name of the export, at most 4096 bytes; empty for the server's default.
    pub export: &'a str,
    /// Who this client says it is; ignored by servers that do not know it.
    pub identity: Option<Identity>,
    /// Ask for `base:allocation`, which tells holes from data.
    pub want_allocation: bool,
}

/// Memory of a session.
#[derive(Debug)]
pub struct ClientMemory<'m> {
    /// Transfers in flight: one slot each, at least 1. When all are taken, a transfer is refused as for any full queue.
    pub transfers: &'m mut [TransferSlot],
    /// Headers to send, at least [`OUTPUT_BYTES_MIN`] and twice the name's length: 28 bytes for each request. When
    /// full, transfers wait in their slots; more lets more requests leave together.
    pub output_bytes: &'m mut [u8],
    /// Payloads and runs of headers to send, at least [`OUTPUT_ENTRIES_MIN`]: two for each write. When full, transfers
    /// wait in their slots.
    pub output_entries: &'m mut [OutputEntry],
}

/// Why a connection cannot be used. Sorted by who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ClientError {
    /// Caller: the memory has no such buffer as a transfer named.
    UnknownBuffer,
    /// Server's operator: there is no export of that name.
    UnknownExport,
    /// Server's operator: the server's policy forbids it.
    Forbidden,
    /// Server's operator: the server wants TLS, which is not spoken here.
    TlsRequired,
    /// Server's operator, later: the server is going down.
    ShuttingDown,
    /// Server's operator: the export was refused with this reply type (NBD protocol document, "Option reply types").
    Refused(u32),
    /// Peer: the greeting is not NBD.
    NotNbd,
    /// Peer: the server speaks only the oldstyle handshake.
    OldServer,
    /// Peer: a reply to an option is malformed, or to another option than was asked.
    BadOptionReply,
    /// Peer: an option is answered without end, or before it was asked.
    EndlessReplies,
    /// Peer: size or block sizes that the protocol forbids.
    BadGeometry,
    /// Peer: something that is not a reply.
    BadMagic,
    /// Peer: a reply to what is not in flight.
    UnknownCookie,
    /// Peer: a reply that does not fit its request.
    WrongReply,
    /// Peer: data outside the range that was asked for.
    OutOfRange,
    /// Peer: data that was sent before.
    Overlap,
    /// Peer: data in more scattered pieces than are kept track of (8 gaps).
    Scattered,
    /// Peer: a read was declared done with bytes missing.
    Incomplete,
}

/// What the server has said about the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// Length of the disk.
    pub size_bytes: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Offsets and lengths are multiples of this power of two.
    pub block_min: u32,
    /// Best size of a request.
    pub block_preferred: u32,
    /// Longest payload of a read or write; a multiple of `block_min`.
    pub payload_max: u32,
    /// Holes can be told from data.
    pub has_allocation: bool,
    /// Replies are structured.
    pub is_structured: bool,
    /// Which run of the server this is, if it tells; only those are told who present an identity.
    pub run: Option<u32>,
}

impl ServerInfo {
    /// The export as a block device.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let mut capabilities = Capabilities::empty();
        let has = |flag| self.flags.contains(flag);
        capabilities.set(Capabilities::FLUSH, has(TransmissionFlags::SEND_FLUSH));
        capabilities.set(Capabilities::WRITE_ZEROES, has(TransmissionFlags::SEND_WRITE_ZEROES));
        capabilities.set(Capabilities::FAST_ZERO, has(TransmissionFlags::SEND_FAST_ZERO));
        capabilities.set(Capabilities::STATUS, self.has_allocation);
        capabilities.set(Capabilities::READ_ONLY, has(TransmissionFlags::READ_ONLY));
        Geometry { size_bytes: self.size_bytes, block_bytes: self.block_min, capabilities }
    }
}

/// What a session tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The handshake is over; transfers are taken.
    Ready(ServerInfo),
    /// The connection cannot be used: close it. Everything in flight completes with [`Errno::Io`].
    Failed(ClientError),
}

/// What is received next.
#[derive(Clone, Copy, Debug)]
enum State {
    Greeting(Gather<{ wire::GREETING_BYTES }>),
    /// A reply to the option that was asked last.
    OptionReply(Gather<{ wire::OPTION_REPLY_BYTES }>),
    OptionData {
        kind: u32,
        left: u32,
    },
    ExportName(Gather<10>),
    Padding {
        left: u32,
    },
    Reply(Gather<{ wire::CHUNK_BYTES }>),
    Head(Head),
    Data(Target),
    Skip {
        chunk: Chunk,
        left: u32,
    },
    Closed,
}

/// A client's side of one connection.
#[derive(Debug)]
pub struct Session<'m> {
    config: ClientConfig<'m>,
    state: State,
    handshake: Handshake,
    info: Option<ServerInfo>,
    allocation_id: Option<u32>,
    transfers: Transfers<'m>,
    output: Output<'m>,
    event: Option<ClientEvent>,
    error: Option<ClientError>,
    modifications_sent: u64,
    /// DISC follows when nothing is in flight.
    is_leaving: bool,
}

impl<'m> Session<'m> {
    /// A session for a new connection: it waits for the server's greeting.
    ///
    /// # Errors
    /// What is wrong with the settings or the memory.
    pub fn new(config: ClientConfig<'m>, memory: ClientMemory<'m>) -> Result<Self, BadSetup> {
        let ClientMemory { transfers, output_bytes, output_entries } = memory;
        let name = config.export.len();
        if name > STRING_MAX || output_bytes.len() < OUTPUT_BYTES_MIN + 2 * name {
            return Err(BadSetup::Name);
        }
        if transfers.is_empty() {
            return Err(BadSetup::Slots);
        }
        if output_entries.len() < OUTPUT_ENTRIES_MIN {
            return Err(BadSetup::Room);
        }
        Ok(Self {
            config,
            state: State::Greeting(Gather::new()),
            handshake: Handshake::default(),
            info: None,
            allocation_id: None,
            transfers: Transfers::new(transfers),
            output: Output::new(output_bytes, output_entries),
            event: None,
            error: None,
            modifications_sent: 0,
            is_leaving: false,
        })
    }

    /// Makes it ready for the next connection.
    ///
    /// # Errors
    /// [`Refused::Busy`]: it is not closed (see [`Session::fail_all`]), or completions were not polled. Nothing was
    /// changed.
    pub fn reset(&mut self) -> Result<(), Refused> {
        if !self.is_closed() || self.in_flight() != 0 {
            return Err(Refused::Busy);
        }
        self.output.clear(|_, _| ());
        self.handshake = Handshake::default();
        (self.info, self.allocation_id, self.event, self.error) = (None, None, None, None);
        self.modifications_sent = 0;
        self.is_leaving = false;
        self.enter(State::Greeting(Gather::new()));
        Ok(())
    }

    /// Makes it ready for a connection to another export, or as another client.
    ///
    /// # Errors
    /// [`Refused::Busy`] as for [`Session::reset`]; [`Refused::NoRoom`] if the name is too long for the output. Nothing
    /// was changed.
    pub fn reset_for(&mut self, config: ClientConfig<'m>) -> Result<(), Refused> {
        let name = config.export.len();
        if name > STRING_MAX || self.output.capacity_bytes() < OUTPUT_BYTES_MIN + 2 * name {
            return Err(Refused::NoRoom);
        }
        self.reset()?;
        self.config = config;
        Ok(())
    }

    /// What the server has said, once the handshake is over.
    #[must_use]
    pub const fn info(&self) -> Option<&ServerInfo> {
        self.info.as_ref()
    }

    /// Why the connection cannot be used.
    #[must_use]
    pub const fn error(&self) -> Option<ClientError> {
        self.error
    }

    /// What the server gave as the reason of a refusal: the start of its text, for people; empty if there is none.
    /// What is not printable was replaced.
    #[must_use]
    pub fn error_text(&self) -> &str {
        &self.handshake.text
    }

    /// How many NBD requests that modify (WRITE, WRITE_ZEROES) were put on this connection.
    #[must_use]
    pub const fn modifications_sent(&self) -> u64 {
        self.modifications_sent
    }

    /// How many transfers were taken whose completion was not polled yet.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.transfers.count()
    }

    /// When the oldest transfer that has no completion yet was submitted. Visits each slot.
    #[must_use]
    pub fn oldest_in_flight(&self) -> Option<Micros> {
        self.transfers.oldest()
    }

    /// Whether transfers are taken.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.info.is_some() && !self.is_closed() && !self.is_leaving
    }

    /// Whether nothing more is received: the connection is to be closed as soon as what is left was sent.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Takes bytes that came from the server, all of them. Work is bounded by their number.
    pub fn receive<M: Memory + ?Sized>(&mut self, mut bytes: &[u8], memory: &mut M) {
        loop {
            let before = bytes.len();
            let result = match self.state {
                State::Greeting(gather) => self.receive_greeting(gather, &mut bytes),
                State::OptionReply(gather) => self.receive_option_reply(gather, &mut bytes),
                State::OptionData { kind, left } => self.receive_option_data(kind, left, &mut bytes),
                State::ExportName(gather) => self.receive_export_name(gather, &mut bytes),
                State::Padding { left } => {
                    let left = left - skip(&mut bytes, left);
                    self.enter(State::Padding { left });
                    if left == 0 { self.open() } else { Ok(()) }
                }
                State::Reply(gather) => self.receive_reply(gather, &mut bytes),
                State::Head(head) => self.receive_head(head, &mut bytes, memory),
                State::Data(target) => self.receive_data(target, &mut bytes, memory),
                State::Skip { chunk, left } => {
                    let left = left - skip(&mut bytes, left);
                    self.enter(State::Skip { chunk, left });
                    if left == 0 { self.end_chunk(chunk) } else { Ok(()) }
                }
                State::Closed => return,
            };
            if let Err(error) = result {
                return self.fail(error);
            }
            if bytes.is_empty() && before == 0 {
                return self.pump();
            }
        }
    }

    /// Where the next bytes of the connection belong if they are the data of a read: a caller that receives them there
    /// needs no copy. Followed by [`Session::received_into`].
    #[must_use]
    pub const fn receive_into(&self) -> Option<Data> {
        match self.state {
            State::Data(target) => Some(target.data),
            _ => None,
        }
    }

    /// So many bytes were received where [`Session::receive_into`] said.
    pub fn received_into(&mut self, count: u32) {
        if let State::Data(target) = self.state {
            if let Err(error) = self.advance(target, count) {
                self.fail(error);
            }
            self.pump();
        }
    }

    /// What has happened to the connection, or `None`.
    pub const fn poll_event(&mut self) -> Option<ClientEvent> {
        self.event.take()
    }

    /// The next completion, or `None` if there is none now.
    pub fn poll(&mut self) -> Option<Completion> {
        self.transfers.poll()
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

    /// The first `count` bytes of [`Session::segments`] were sent.
    pub fn sent(&mut self, count: usize) {
        let transfers = &mut self.transfers;
        self.output.sent(count, |_, owner| transfers.payload_sent(owner));
        self.pump();
    }

    /// Says goodbye as soon as nothing is in flight: takes no more transfers, sends DISC, is closed.
    pub fn disconnect(&mut self) {
        if self.is_closed() {
            return;
        }
        self.is_leaving = true;
        if self.info.is_none() {
            let header = wire::OptionHeader { option: wire::option::ABORT, length: 0 };
            if !matches!(self.state, State::Greeting(_)) && self.output.has_room(wire::OPTION_BYTES, 1) {
                self.output.push_bytes(&header.encode());
            }
            self.enter(State::Closed);
        }
        self.pump();
    }

    /// The connection is gone: what was not sent is dropped, everything in flight completes with `errno`, and so does,
    /// with [`Errno::Io`], what is submitted until [`Session::reset`].
    pub fn fail_all(&mut self, errno: Errno) {
        self.output.clear(|_, _| ());
        self.transfers.fail_all(errno);
        self.enter(State::Closed);
    }

    fn fail(&mut self, error: ClientError) {
        self.error = Some(error);
        self.event = Some(ClientEvent::Failed(error));
        self.fail_all(Errno::Io);
    }

    fn finish(&mut self, slot: u16, progress: Progress) {
        self.transfers.advance(slot, progress);
    }

    const fn enter(&mut self, state: State) {
        self.state = state;
    }
}

/// Drops up to `count` bytes off the front; tells how many.
fn skip(bytes: &mut &[u8], count: u32) -> u32 {
    let now = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(count);
    *bytes = bytes.get(now as usize..).unwrap_or_default();
    now
}

/// Fills a header up to `limit` bytes off the front; tells whether it is that long now.
fn fill<const N: usize>(gather: &mut Gather<N>, bytes: &mut &[u8], limit: usize) -> bool {
    let missing = limit.saturating_sub(gather.filled());
    let now = gather.take(bytes.get(..missing.min(bytes.len())).unwrap_or_default());
    *bytes = bytes.get(now..).unwrap_or_default();
    gather.filled() >= limit
}

#[cfg(all(test, feature = "nbd-server"))]
mod tests;
