//! A whole server session under a client that sends anything, in any fragments.
//!
//! A second reading of both directions ([`peer`]) says what must come: every reply is well formed and answers one
//! request, and tells the truth about its pieces; pieces come in order, with the payload that was sent, and never beyond
//! the export; when the connection is gone all buffers are back.

mod peer;

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Result, Unstructured};
use twinblock_core::nbd::OutputEntry;
use twinblock_core::nbd::server::{
    Export, Exports, PieceSlot, RequestSlot, ServerConfig, ServerEvent, ServerMemory, Session,
};
use twinblock_core::nbd::wire::{
    CommandFlags, OptionHeader, RequestHeader, TransmissionFlags, command, option,
};
use twinblock_core::{Errno, Extent, Memory, Op, Outcome, Reply, Request, RequestId};

use crate::buffers::Buffers;
use crate::parsers::take;
use crate::script::{below, one_of, rarely, steps, text};
use peer::{Peer, pattern};

/// How much memory a session has, and what it serves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    window: u32,
    zero_windows: u32,
    pieces_max: u16,
    requests: usize,
    pieces: usize,
    buffers: usize,
    output_bytes: usize,
    output_entries: usize,
    block_min: u32,
    payload_max: u32,
    flags: TransmissionFlags,
    size: u64,
    /// The options of a client that behaves come first.
    is_opened: bool,
    is_structured: bool,
}

impl Settings {
    /// Room for everything.
    pub(crate) const LARGE: Self = Self {
        window: 4096,
        zero_windows: 4,
        pieces_max: 8,
        requests: 16,
        pieces: 16,
        buffers: 16,
        output_bytes: 4096,
        output_entries: 64,
        block_min: 1,
        payload_max: 1 << 16,
        flags: TransmissionFlags::all().difference(TransmissionFlags::READ_ONLY),
        size: 17_001,
        is_opened: false,
        is_structured: false,
    };
}

impl<'a> Arbitrary<'a> for Settings {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let size = one_of(bytes, &[1_u8, 2, 3, 4, 16])?;
        let few = usize::from(size);
        let block_min = 1 << one_of(bytes, &[0, 0, 9, 12])?;
        let mut flags = TransmissionFlags::all();
        if !rarely(bytes, 8)? {
            flags.remove(TransmissionFlags::READ_ONLY);
        }
        if rarely(bytes, 4)? {
            flags &= TransmissionFlags::from_bits_retain(u16::arbitrary(bytes)?);
        }
        let opening = u8::arbitrary(bytes)?;
        Ok(Self {
            window: 512 << below(bytes, 4)?,
            zero_windows: 1 << below(bytes, 4)?,
            pieces_max: one_of(bytes, &[1, 2, 8])?,
            requests: few,
            pieces: one_of(bytes, &[1, 2, few, 16])?,
            buffers: one_of(bytes, &[1, 2, few, 16])?,
            output_bytes: one_of(bytes, &[512, 513, 700, 4096])?,
            output_entries: one_of(bytes, &[4, 5, 16])?,
            block_min,
            payload_max: one_of(bytes, &[1 << 16, 1 << 13, 1 << 12])?,
            flags,
            size: if block_min == 1 { 17_001 } else { 16_384 },
            is_opened: opening & 3 != 0,
            is_structured: opening & 4 != 0,
        })
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The client sends these bytes.
    Raw(Vec<u8>),
    /// The client sends an option; `lie` is added to the length that it claims.
    Option { option: u32, data: Vec<u8>, lie: u32 },
    /// The client sends a request and its payload.
    Ask { flags: u16, command: u16, offset: u64, length: u32, is_twin: bool },
    /// So many bytes arrive.
    Deliver(usize),
    /// So many bytes of payload are received where they belong.
    DeliverInto(u32),
    /// So many bytes leave.
    Send(usize),
    /// Events are polled, at most so many.
    Poll(u8),
    /// The machine answers one of its pieces.
    Answer { which: u8, result: std::result::Result<Outcome, Errno> },
    /// The machine answers what it was never asked.
    Forge(u32),
    /// The connection is gone, and another one comes.
    Abandon,
}

fn outcome(bytes: &mut Unstructured<'_>) -> Result<std::result::Result<Outcome, Errno>> {
    Ok(match below(bytes, 12)? {
        0 => Err(Errno::Io),
        1 => Err(Errno::from_number(u32::arbitrary(bytes)?)),
        2 => Ok(Outcome::Status { is_hole: bool::arbitrary(bytes)?, length: u64::arbitrary(bytes)? }),
        3..6 => Ok(Outcome::Status {
            is_hole: bool::arbitrary(bytes)?,
            length: 512 * u64::from(below(bytes, 8)?),
        }),
        _ => Ok(Outcome::Done),
    })
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match below(bytes, 32)? {
            0 => Self::Raw(text(bytes, 64)?),
            1..4 => {
                let lie = if rarely(bytes, 16)? { u32::arbitrary(bytes)? } else { 0 };
                let option = if rarely(bytes, 8)? { u32::arbitrary(bytes)? } else { below(bytes, 12)? };
                Self::Option { option, data: option_data(option, bytes)?, lie }
            }
            4..14 => {
                let flags = if rarely(bytes, 4)? { u16::arbitrary(bytes)? } else { 0 };
                let command = one_of(bytes, &[0, 0, 0, 1, 1, 1, 3, 4, 5, 6, 6, 7, 2, 9])?;
                let (offset, length) = place(bytes)?;
                Self::Ask { flags, command, offset, length, is_twin: rarely(bytes, 64)? }
            }
            14..18 => Self::Deliver(one_of(bytes, &[1, 4, 27, 28, 100, 1000, 1 << 20, 1 << 20])?),
            18..20 => Self::DeliverInto(one_of(bytes, &[0, 1, 511, 512, 4096, u32::MAX])?),
            20..23 => Self::Send(one_of(bytes, &[1, 15, 16, 600, 1 << 20, 1 << 20])?),
            23..26 => Self::Poll(u8::arbitrary(bytes)?),
            26..30 => Self::Answer { which: u8::arbitrary(bytes)?, result: outcome(bytes)? },
            30 => Self::Forge(u32::arbitrary(bytes)?),
            _ => Self::Abandon,
        })
    }
}

fn place(bytes: &mut Unstructured<'_>) -> Result<(u64, u32)> {
    let unit = one_of(bytes, &[512, 512, 4096, 1, 333])?;
    let offset = match below(bytes, 32)? {
        0 => u64::arbitrary(bytes)?,
        1 => 16_384 - unit,
        _ => unit * u64::from(below(bytes, 32)?),
    };
    let length = match below(bytes, 32)? {
        0 => u32::arbitrary(bytes)?,
        1 => 0,
        _ => unit as u32 * (1 + below(bytes, 12)?),
    };
    Ok((offset, length))
}

/// The data of an option, mostly of the right form.
fn option_data(option: u32, bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if rarely(bytes, 4)? {
        return text(bytes, 80);
    }
    let name = one_of(bytes, &["disk", "", "other", "none", "twinblock"])?.as_bytes();
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    match option {
        option::EXPORT_NAME => return Ok(name.to_vec()),
        option::INFO | option::GO => {
            let count = below(bytes, 5)? as u16;
            data.extend(count.to_be_bytes());
            data.extend((0..count).flat_map(u16::to_be_bytes));
        }
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            let count = below(bytes, 4)?;
            data.extend(count.to_be_bytes());
            let identity = "twinblock:primary=00112233445566778899aabbccddeeff";
            for _ in 0..count {
                let query =
                    one_of(bytes, &["base:allocation", "base:", identity, "twinblock:", "qemu:x", ""])?;
                data.extend((query.len() as u32).to_be_bytes());
                data.extend(query.as_bytes());
            }
        }
        _ => data.clear(),
    }
    Ok(data)
}

/// A session's life.
#[derive(Debug)]
pub struct Script {
    settings: Settings,
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Script {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self { settings: bytes.arbitrary()?, steps: steps(bytes)? })
    }
}

/// Plays a script.
///
/// # Panics
/// On a finding.
pub fn run(script: &Script) {
    with_session(&script.settings, |world| {
        world.connect();
        for step in &script.steps {
            world.play(step);
        }
        world.finish();
    });
}

/// Two exports that differ in length.
struct Two(Settings);

impl Exports for Two {
    fn count(&self) -> usize {
        2
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        let Settings { size, block_min, payload_max, flags, .. } = self.0;
        let (name, size_bytes) = *[("disk", size), ("other", 8192)].get(index)?;
        let mut export = Export::new(name, size_bytes);
        (export.block_min, export.block_preferred, export.payload_max) = (block_min, 4096, payload_max);
        export.flags = flags;
        export.description = "what it is";
        Some(export)
    }
}

/// A session and all that belongs to it.
pub(crate) struct World<'m> {
    settings: Settings,
    session: Session<'m>,
    pool: Buffers,
    exports: Two,
    /// Sent by the client and not taken yet.
    outbox: VecDeque<u8>,
    /// Pieces with the machine, with the request that each belongs to.
    held: Vec<(Request, Option<usize>)>,
    peer: Peer,
    cookie: u64,
}

/// Makes a session for the time of some work.
pub(crate) fn with_session(settings: &Settings, work: impl FnOnce(&mut World<'_>)) {
    let mut requests = vec![RequestSlot::EMPTY; settings.requests];
    let mut pieces = vec![PieceSlot::EMPTY; settings.pieces];
    let mut option_data = vec![0; 512];
    let mut output_bytes = vec![0; settings.output_bytes];
    let mut output_entries = vec![OutputEntry::EMPTY; settings.output_entries];
    let memory = ServerMemory {
        requests: &mut requests,
        pieces: &mut pieces,
        option_data: &mut option_data,
        output_bytes: &mut output_bytes,
        output_entries: &mut output_entries,
    };
    let mut config = ServerConfig::new(settings.window, 5);
    config.zero_piece_bytes = settings.window * settings.zero_windows;
    config.request_pieces_max = settings.pieces_max;
    let mut world = World {
        settings: *settings,
        session: Session::new(config, memory).expect("it fits"),
        pool: Buffers::new(settings.buffers, settings.window as usize),
        exports: Two(*settings),
        outbox: VecDeque::new(),
        held: Vec::new(),
        peer: Peer::default(),
        cookie: 0,
    };
    work(&mut world);
}

impl World<'_> {
    /// What a client that behaves sends first.
    fn connect(&mut self) {
        if !self.settings.is_opened {
            return;
        }
        self.outbox.extend([0, 0, 0, 3]);
        if self.settings.is_structured {
            self.option(option::STRUCTURED_REPLY, &[], 0);
            let mut data = b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0f".to_vec();
            data.extend(b"base:allocation");
            self.option(option::SET_META_CONTEXT, &data, 0);
        }
        self.option(option::GO, b"\0\0\0\x04disk\0\x01\0\x03", 0);
        for _ in 0..16 {
            self.deliver(usize::MAX);
            self.poll(u8::MAX);
            self.send(usize::MAX);
        }
    }

    fn option(&mut self, option: u32, data: &[u8], lie: u32) {
        let length = (data.len() as u32).wrapping_add(lie);
        self.outbox.extend(OptionHeader { option, length }.encode());
        self.outbox.extend(data);
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Raw(bytes) => self.outbox.extend(bytes),
            Step::Option { option, data, lie } => self.option(*option, data, *lie),
            Step::Ask { flags, command, offset, length, is_twin } => {
                self.cookie += u64::from(!is_twin);
                let (flags, cookie) = (CommandFlags::from_bits_retain(*flags), self.cookie);
                let header =
                    RequestHeader { flags, command: *command, cookie, offset: *offset, length: *length };
                self.outbox.extend(header.encode());
                if *command == command::WRITE {
                    let seed = cookie.wrapping_mul(37);
                    self.outbox.extend((0..u64::from(*length).min(1 << 15)).map(|at| (at + seed) as u8));
                }
            }
            Step::Deliver(count) => self.deliver(*count),
            Step::DeliverInto(count) => self.deliver_into(*count),
            Step::Send(count) => {
                self.send(*count);
            }
            Step::Poll(count) => {
                self.poll(*count);
            }
            Step::Answer { which, result } => {
                if !self.held.is_empty() {
                    self.answer(usize::from(*which) % self.held.len(), *result);
                }
            }
            Step::Forge(id) => {
                let id = RequestId(*id);
                if !self.held.iter().any(|(request, _)| request.id == id) {
                    self.session.handle_reply(Reply { id, result: Ok(Outcome::Done) }, &mut self.pool);
                }
            }
            Step::Abandon => self.abandon(),
        }
    }

    fn deliver(&mut self, count: usize) {
        let bytes: Vec<u8> = self.outbox.iter().take(count).copied().collect();
        let taken = self.session.receive(&bytes, &self.exports, &mut self.pool);
        assert!(taken <= bytes.len());
        self.outbox.drain(..taken);
        self.peer.consumed(&bytes[..taken]);
    }

    fn deliver_into(&mut self, count: u32) {
        let Some(data) = self.session.receive_into() else { return };
        let count = count.min(data.length).min(self.outbox.len() as u32);
        if count == 0 {
            return;
        }
        let bytes: Vec<u8> = self.outbox.drain(..count as usize).collect();
        self.pool.bytes(data.part(0, count)).expect("it is a buffer").copy_from_slice(&bytes);
        self.session.received_into(count);
        self.peer.consumed(&bytes);
    }

    fn send(&mut self, count: usize) -> usize {
        let mut output = Vec::new();
        let count = take(self.session.segments(), count, &mut self.pool, &mut output);
        self.session.sent(count, &mut self.pool);
        self.peer.heard(&output);
        count
    }

    fn poll(&mut self, count: u8) -> usize {
        for polled in 0..count {
            match self.session.poll_event(&mut self.pool) {
                Some(ServerEvent::Request(request)) => {
                    self.check_piece(&request);
                    let index = self.peer.issued(&request, &mut self.pool);
                    self.held.push((request, index));
                }
                Some(ServerEvent::Opened { export, .. }) => {
                    let export = self.exports.export(export).expect("there is such an export");
                    self.peer.opened(&export);
                }
                Some(ServerEvent::Closed { clean }) => self.peer.closed(clean),
                None => return usize::from(polled),
            }
        }
        usize::from(count)
    }

    /// A piece is of the size that was agreed, and its name is no other's.
    fn check_piece(&self, request: &Request) {
        let Extent { offset, length } = request.extent;
        let unit = match request.op {
            Op::WriteZeroes { .. } => self.settings.window * self.settings.zero_windows,
            _ => self.settings.window,
        };
        let unit = u64::from(unit);
        match request.op {
            Op::Flush => assert!(request.extent.is_empty()),
            _ => assert!(length != 0 && offset / unit == (offset + length - 1) / unit, "{request:?}"),
        }
        if let Op::Read(data) | Op::Write { data, .. } = request.op {
            assert_eq!(u64::from(data.length), length);
        }
        assert!(self.held.iter().all(|(other, _)| other.id != request.id), "{request:?} has another's name");
    }

    fn answer(&mut self, which: usize, result: std::result::Result<Outcome, Errno>) {
        let (request, index) = self.held.remove(which);
        // A device tells holes only where it was asked for them.
        let result = match (request.op, result) {
            (Op::Status, result) => result,
            (_, result) => result.map(|_| Outcome::Done),
        };
        if let (Op::Read(data), Ok(_)) = (request.op, result) {
            let bytes = self.pool.bytes(data).expect("it is a buffer");
            for (byte, at) in bytes.iter_mut().zip(request.extent.offset..) {
                *byte = pattern(at);
            }
        }
        self.peer.answered(index, &request, result.is_ok());
        self.session.handle_reply(Reply { id: request.id, result }, &mut self.pool);
    }

    /// Everything that can happen happens, with a disk that is well.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let before = self.outbox.len();
            self.deliver(usize::MAX);
            let mut has_moved = self.outbox.len() != before;
            has_moved |= self.poll(u8::MAX) != 0;
            has_moved |= !self.held.is_empty();
            while !self.held.is_empty() {
                self.answer(0, Ok(Outcome::Done));
            }
            has_moved |= self.send(usize::MAX) != 0;
            if !has_moved {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn finish(&mut self) {
        self.settle();
        if !self.session.is_closed() {
            assert!(self.outbox.is_empty(), "{} bytes are never taken", self.outbox.len());
            self.peer.assert_answered();
        }
        self.abandon();
    }

    fn abandon(&mut self) {
        self.session.abandon(&mut self.pool);
        assert!(self.session.is_closed() && !self.session.has_output());
        while !self.held.is_empty() {
            self.answer(0, Ok(Outcome::Done));
        }
        assert_eq!((self.session.in_flight(), self.session.unanswered(), self.pool.taken()), (0, 0, 0));
        self.session.reset().expect("nothing is left of the last connection");
        self.outbox.clear();
        self.peer = Peer::default();
    }

    /// Hands bytes in, answers what they ask for, and takes what is said to them.
    pub(crate) fn talk(&mut self, bytes: &[u8], output: &mut Vec<u8>) {
        self.outbox.extend(bytes);
        loop {
            let before = (self.outbox.len(), output.len());
            self.deliver(usize::MAX);
            self.poll(1);
            if !self.held.is_empty() {
                self.answer(0, Ok(Outcome::Done));
            }
            let start = output.len();
            let count = take(self.session.segments(), usize::MAX, &mut self.pool, output);
            self.session.sent(count, &mut self.pool);
            self.peer.heard(&output[start..]);
            if before == (self.outbox.len(), output.len()) && self.poll(1) == 0 && self.held.is_empty() {
                return;
            }
        }
    }
}
