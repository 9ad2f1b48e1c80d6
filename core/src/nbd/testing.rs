//! What the tests of both sessions share: a pool that notices misuse, a machine over bytes, a source of chance.

use std::{boxed::Box, vec, vec::Vec};

use super::output::OutputEntry;
use super::server::{
    Export, Exports, PieceSlot, RequestSlot, ServerConfig, ServerEvent, ServerMemory, Session,
};
use super::{Segment, Segments};
use crate::{BufferIndex, Data, Errno, Extent, Memory, Op, Outcome, Pool, Reply, Request};

/// A slice that lives for ever, as a session's memory on a host does.
pub(super) fn leak<T: Clone>(value: T, count: usize) -> &'static mut [T] {
    Box::leak(vec![value; count].into_boxed_slice())
}

/// Numbers from a seed.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

/// Buffers of one size; a buffer that is released twice, or used while free, fails the test.
pub(super) struct Buffers {
    buffers: Vec<Vec<u8>>,
    taken: Vec<bool>,
}

impl Buffers {
    pub(super) fn new(count: usize, length: usize) -> Self {
        Self { buffers: vec![vec![0xee; length]; count], taken: vec![false; count] }
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.iter().filter(|taken| **taken).count()
    }
}

impl Memory for Buffers {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        let index = usize::from(data.buffer.0);
        assert!(self.taken[index], "buffer {index} is used while it is free");
        self.buffers[index].get_mut(data.offset as usize..(data.offset + data.length) as usize)
    }
}

impl Pool for Buffers {
    fn acquire(&mut self, length: u32) -> Option<BufferIndex> {
        let free = self.taken.iter().position(|taken| !taken)?;
        assert!(length as usize <= self.buffers[free].len(), "a piece is longer than the window");
        self.taken[free] = true;
        Some(BufferIndex(free as u16))
    }

    fn release(&mut self, buffer: BufferIndex) {
        let taken = &mut self.taken[usize::from(buffer.0)];
        assert!(*taken, "buffer {} is released twice", buffer.0);
        *taken = false;
    }
}

/// A disk that does what a request says, and checks that it is a proper piece.
pub(super) struct Ram {
    pub(super) disk: Vec<u8>,
    pub(super) window: u64,
    pub(super) zero_piece: u64,
    /// What touches this byte fails.
    pub(super) bad: Option<(u64, Errno)>,
    pub(super) has_status: bool,
    pub(super) ran: Vec<Request>,
}

impl Ram {
    pub(super) fn new(size: usize, window: u64) -> Self {
        let disk = (0..size).map(|at| (at / 7 + at) as u8).collect();
        Self { disk, window, zero_piece: window, bad: None, has_status: true, ran: Vec::new() }
    }

    pub(super) fn run(&mut self, request: Request, pool: &mut Buffers) -> Reply {
        self.ran.push(request);
        Reply { id: request.id, result: self.result(request, pool) }
    }

    fn result(&mut self, request: Request, pool: &mut Buffers) -> Result<Outcome, Errno> {
        let Extent { offset, length } = request.extent;
        let unit = if matches!(request.op, Op::WriteZeroes { .. }) { self.zero_piece } else { self.window };
        if request.op != Op::Flush {
            assert!(length != 0 && offset / unit == (offset + length - 1) / unit, "{request:?} is no piece");
        }
        if let Some((bad, errno)) = self.bad
            && request.extent.contains(&Extent { offset: bad, length: 1 })
        {
            return Err(errno);
        }
        let range = offset as usize..(offset + length) as usize;
        match request.op {
            Op::Read(data) => pool.bytes(data).unwrap().copy_from_slice(&self.disk[range]),
            Op::Write { data, .. } => self.disk[range].copy_from_slice(pool.bytes(data).unwrap()),
            Op::WriteZeroes { .. } => self.disk[range].fill(0),
            Op::Flush => {}
            Op::Status if !self.has_status => return Err(Errno::Unsupported),
            Op::Status => {
                let is_hole = self.disk[range.start] == 0;
                let alike = self.disk[range].iter().take_while(|byte| (**byte == 0) == is_hole).count();
                return Ok(Outcome::Status { is_hole, length: alike as u64 });
            }
        }
        Ok(Outcome::Done)
    }
}

/// Some exports.
pub(super) struct List(pub(super) Vec<Export<'static>>);

impl Exports for List {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        self.0.get(index).copied()
    }
}

/// How much memory a server has.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) window: u32,
    pub(super) requests: usize,
    pub(super) pieces: usize,
    pub(super) buffers: usize,
    pub(super) output_bytes: usize,
    pub(super) output_entries: usize,
}

impl Sizes {
    pub(super) const SMALL: Self =
        Self { window: 512, requests: 4, pieces: 4, buffers: 3, output_bytes: 512, output_entries: 4 };
    pub(super) const LARGE: Self =
        Self { window: 4096, requests: 32, pieces: 32, buffers: 32, output_bytes: 4096, output_entries: 64 };
}

/// A server session with all that belongs to it.
pub(super) struct Server {
    pub(super) session: Session<'static>,
    pub(super) pool: Buffers,
    pub(super) ram: Ram,
    pub(super) exports: List,
    pub(super) events: Vec<ServerEvent>,
    /// Requests that are with the machine.
    pub(super) held: Vec<Request>,
    /// The machine answers nothing by itself.
    pub(super) is_holding: bool,
}

impl Server {
    pub(super) fn new(sizes: Sizes, export: Export<'static>) -> Self {
        let config = ServerConfig::new(sizes.window, 5);
        Self::with(sizes, config, std::vec![export])
    }

    pub(super) fn with(sizes: Sizes, config: ServerConfig, exports: Vec<Export<'static>>) -> Self {
        let memory = ServerMemory {
            requests: leak(RequestSlot::EMPTY, sizes.requests),
            pieces: leak(PieceSlot::EMPTY, sizes.pieces),
            option_data: leak(0, 512),
            output_bytes: leak(0, sizes.output_bytes),
            output_entries: leak(OutputEntry::EMPTY, sizes.output_entries),
        };
        let size = exports.first().map_or(0, |export| export.size_bytes.min(1 << 20)) as usize;
        let mut ram = Ram::new(size, u64::from(sizes.window));
        ram.zero_piece = u64::from(config.zero_piece_bytes);
        Self {
            session: Session::new(config, memory).unwrap(),
            pool: Buffers::new(sizes.buffers, sizes.window as usize),
            ram,
            exports: List(exports),
            events: Vec::new(),
            held: Vec::new(),
            is_holding: false,
        }
    }

    /// Hands in bytes once, and does what is then to be done; tells how many were taken.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.session.receive(bytes, &self.exports, &mut self.pool);
        while let Some(event) = self.session.poll_event(&mut self.pool) {
            match event {
                ServerEvent::Request(request) => self.held.push(request),
                event => self.events.push(event),
            }
            self.answer_all();
        }
        self.answer_all();
        taken
    }

    fn answer_all(&mut self) {
        while !self.is_holding && !self.held.is_empty() {
            self.answer(0);
        }
    }

    /// The machine answers one of the requests that it has.
    pub(super) fn answer(&mut self, which: usize) {
        let request = self.held.remove(which);
        let reply = self.ram.run(request, &mut self.pool);
        self.session.handle_reply(reply, &mut self.pool);
    }

    /// Takes up to `max` bytes of the output.
    pub(super) fn send(&mut self, max: usize) -> Vec<u8> {
        let bytes = take(self.session.segments(), max, &mut self.pool);
        self.session.sent(bytes.len(), &mut self.pool);
        bytes
    }

    /// Hands in all bytes and takes all output until nothing moves any more; all bytes must have been taken.
    pub(super) fn talk(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (output, taken) = self.talk_by(bytes, usize::MAX);
        assert!(taken == bytes.len() || self.session.is_closed(), "only {taken} of {} bytes", bytes.len());
        output
    }

    /// Same, so many bytes at a time in and out; not all bytes need to be taken.
    pub(super) fn talk_by(&mut self, bytes: &[u8], step: usize) -> (Vec<u8>, usize) {
        let (mut output, mut at, mut idle) = (Vec::new(), 0usize, 0);
        while idle < 3 {
            let end = bytes.len().min(at.saturating_add(step));
            let taken = self.receive(&bytes[at..end]);
            at += taken;
            let sent = self.send(step);
            idle = if taken == 0 && sent.is_empty() { idle + 1 } else { 0 };
            output.extend(sent);
        }
        (output, at)
    }

    /// Nothing is in use when nothing is going on.
    pub(super) fn assert_idle(&mut self) {
        assert_eq!((self.session.in_flight(), self.session.unanswered(), self.pool.taken()), (0, 0, 0));
    }
}

/// The first `max` bytes of an output.
pub(super) fn take(segments: Segments<'_>, max: usize, pool: &mut Buffers) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Bytes(some) => bytes.extend_from_slice(some),
            Segment::Pool(data) => bytes.extend_from_slice(pool.bytes(data).unwrap()),
        }
        if bytes.len() >= max {
            bytes.truncate(max);
            break;
        }
    }
    bytes
}
