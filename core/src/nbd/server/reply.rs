//! Replies: what becomes of a piece's, and how a request's is put together.

use super::tables::{Command, Failure, Open, Stage};
use super::{Session, State, options::ALLOCATION_ID};
use crate::nbd::gather::Gather;
use crate::nbd::wire::{
    AllocationFlags, CHUNK_BYTES, ChunkHeader, CommandFlags, SIMPLE_REPLY_BYTES, SimpleReply, chunk,
};
use crate::{Data, Errno, Extent, Outcome, Pool, Reply};

/// Most extents of an answer to BLOCK_STATUS.
const EXTENTS_MAX: usize = 16;
/// Most pieces that one BLOCK_STATUS asks for: what is beyond the client asks for next.
const STATUS_PIECES_MAX: u16 = 256;
/// Longest text of a structured error.
const TEXT_MAX: usize = 64;
/// Room for any reply but the data of a read.
const REPLY_BYTES_MAX: usize = CHUNK_BYTES + 4 + 8 * EXTENTS_MAX;
const _: () = assert!(REPLY_BYTES_MAX <= super::OUTPUT_BYTES_MIN, "a reply fits into an empty output");
const _: () = assert!(CHUNK_BYTES + 6 + TEXT_MAX <= REPLY_BYTES_MAX, "so does an error");

/// The answer to the one BLOCK_STATUS that is being worked on.
#[derive(Debug, Default)]
pub(super) struct StatusAnswer {
    request: Option<u16>,
    extents: heapless::Vec<(AllocationFlags, u32), EXTENTS_MAX>,
    pieces: u16,
}

impl StatusAnswer {
    pub(super) const fn is_taken(&self) -> bool {
        self.request.is_some()
    }

    pub(super) fn take(&mut self, request: u16) {
        *self = Self { request: Some(request), ..Self::default() };
    }

    /// Adds an extent; tells whether another one may follow.
    fn add(&mut self, flags: AllocationFlags, length: u32, one_only: bool) -> bool {
        self.pieces += 1;
        if let Some((last, so_far)) = self.extents.last_mut() {
            if *last == flags {
                *so_far = so_far.saturating_add(length);
                return self.pieces < STATUS_PIECES_MAX;
            }
            if one_only {
                return false;
            }
        }
        self.extents.push((flags, length)).is_ok() && self.pieces < STATUS_PIECES_MAX
    }
}

/// What a client is told about an error of the machine.
const fn text_of(errno: Errno, command: Command) -> &'static str {
    match (errno, command) {
        (Errno::NotPermitted, Command::Read | Command::Flush | Command::Status) => "not permitted now",
        (Errno::NotPermitted, _) => "another primary holds the claim",
        (Errno::Io, Command::Read | Command::Status) => "the disk could not be read",
        (Errno::Io, Command::Flush) => "the disk could not be flushed",
        (Errno::Io, _) => "the disk could not be written",
        (Errno::NoMemory, _) => "no memory for this request now",
        (Errno::Invalid, _) => "the request does not fit the disk",
        (Errno::NoSpace, _) => "no space is left in the disk buffer or on the disk",
        (Errno::Overflow, _) => "the length is too large",
        (Errno::Unsupported, Command::WriteZeroes) => "zeroes cannot be written fast here",
        (Errno::Unsupported, _) => "the disk cannot do this",
        (Errno::Shutdown, _) => "the export takes no such requests any more",
    }
}

impl Open {
    /// Whether its data leaves in disk order behind one header.
    fn is_in_order(&self, is_structured: bool) -> bool {
        self.command == Command::Read && (!is_structured || self.flags.contains(CommandFlags::DF))
    }

    const fn is_finished(&self) -> bool {
        self.is_issued && self.outstanding == 0
    }
}

impl Session<'_> {
    pub(super) fn take_reply<P: Pool + ?Sized>(&mut self, reply: Reply, pool: &mut P) {
        let Ok(connection) = u16::try_from(reply.id.0 >> 16) else { return };
        let index = u16::try_from(reply.id.0 & 0xffff).unwrap_or(u16::MAX);
        let piece = self.pieces.get(index).filter(|piece| piece.stage == Stage::Issued);
        let Some(piece) = piece.filter(|_| connection == self.config.connection) else { return };
        self.in_flight = self.in_flight.saturating_sub(1);
        let (request, extent) = (piece.request, piece.extent);
        let Some(open) = self.requests.get(request) else { return self.drop_piece(index, pool) };
        let command = open.command;
        if command == Command::Read && reply.result.is_ok() && open.failure.is_none() {
            piece.stage = Stage::Answered;
            return self.emit(request, index);
        }
        open.outstanding -= 1;
        if command == Command::Status {
            self.take_status(request, extent, reply.result);
        } else if let Err(errno) = reply.result
            && open.failure.is_none()
        {
            open.failure = Some(Failure { errno, text: text_of(errno, command) });
        }
        self.drop_piece(index, pool);
        if command == Command::Read {
            self.give_up(request, pool);
        }
        self.finish(request);
    }

    fn drop_piece<P: Pool + ?Sized>(&mut self, index: u16, pool: &mut P) {
        if let Some(data) = self.pieces.close(index) {
            pool.release(data.buffer);
        }
    }

    /// One piece of a status is answered: the next one follows, or the request is complete.
    fn take_status(&mut self, request: u16, extent: Extent, result: Result<Outcome, Errno>) {
        let Some(open) = self.requests.get(request) else { return };
        let whole = extent.length.max(1);
        let (flags, length) = match result {
            Ok(Outcome::Status { is_hole: true, length }) => {
                (AllocationFlags::HOLE | AllocationFlags::ZERO, length.clamp(1, whole))
            }
            Ok(Outcome::Status { is_hole: false, length }) => {
                (AllocationFlags::empty(), length.clamp(1, whole))
            }
            // "All of it is data" is always a true answer.
            Ok(Outcome::Done) | Err(Errno::Unsupported) => (AllocationFlags::empty(), whole),
            Err(errno) => {
                // What is known so far is an answer; an error only if nothing is.
                if open.emitted_to == open.extent.offset {
                    open.failure = Some(Failure { errno, text: text_of(errno, Command::Status) });
                }
                open.is_issued = true;
                return self.enter(State::Header(Gather::new()));
            }
        };
        let one_only = open.flags.contains(CommandFlags::REQ_ONE);
        let next = extent.offset.saturating_add(length);
        open.emitted_to = next;
        let goes_on = self.status.add(flags, u32::try_from(length).unwrap_or(u32::MAX), one_only);
        open.is_issued = !goes_on || next >= open.extent.end();
        let state =
            if open.is_issued { State::Header(Gather::new()) } else { State::Issue { request, next } };
        self.enter(state);
    }

    /// A read has failed: data of it that waits for room is dropped, and if its header is out, so is the connection.
    fn give_up<P: Pool + ?Sized>(&mut self, request: u16, pool: &mut P) {
        let Some(open) = self.requests.get(request) else { return };
        if open.is_header_out {
            return self.close(false, pool);
        }
        let dropped = self.pieces.close_answered(request, |data| pool.release(data.buffer));
        open.outstanding = open.outstanding.saturating_sub(dropped);
    }

    /// Puts an answered piece of a read into the output, or leaves it waiting.
    fn emit(&mut self, request: u16, piece: u16) {
        let is_structured = self.agreed.is_structured;
        let Some(open) = self.requests.get(request) else { return };
        if open.is_in_order(is_structured) {
            return self.emit_in_order(request);
        }
        if self.in_order.is_some() || !self.output.has_room(CHUNK_BYTES + 8, 2) {
            self.has_backlog = true;
            return;
        }
        let Some(Data { buffer, offset, length }) = self.pieces.data(piece) else { return };
        let at = self.pieces.get(piece).map_or(0, |piece| piece.extent.offset);
        self.pieces.close(piece);
        open.outstanding -= 1;
        let is_done = open.is_finished();
        let length_all = length.saturating_add(8);
        let header =
            ChunkHeader { is_done, kind: chunk::OFFSET_DATA, cookie: open.cookie, length: length_all };
        self.output.push_bytes(&header.encode());
        self.output.push_bytes(&at.to_be_bytes());
        self.output.push_data(Data { buffer, offset, length }, piece);
        if is_done {
            self.requests.close(request);
        }
    }

    /// Puts as much of a read that is answered in order into the output as there is.
    fn emit_in_order(&mut self, request: u16) {
        let is_structured = self.agreed.is_structured;
        let is_alone = self.requests.count() == 1;
        while let Some(open) = self.requests.get(request) {
            let Some(piece) = self.pieces.answered_at(request, open.emitted_to) else { return };
            let Some(data) = self.pieces.data(piece) else { return };
            // The first part goes out only if the rest can follow without waiting for what waits for this: either all
            // pieces exist already, or no other request holds slots and buffers.
            let may_start = self.in_order.is_none() && (open.is_issued || is_alone);
            if !(open.is_header_out || may_start) || !self.output.has_room(CHUNK_BYTES + 8, 2) {
                self.has_backlog = true;
                return;
            }
            if !open.is_header_out {
                open.is_header_out = true;
                self.in_order = Some(request);
                let cookie = open.cookie;
                if is_structured {
                    let length = u32::try_from(open.extent.length).unwrap_or(u32::MAX).saturating_add(8);
                    let header = ChunkHeader { is_done: true, kind: chunk::OFFSET_DATA, cookie, length };
                    self.output.push_bytes(&header.encode());
                    self.output.push_bytes(&open.extent.offset.to_be_bytes());
                } else {
                    self.output.push_bytes(&SimpleReply { error: 0, cookie }.encode());
                }
            }
            self.output.push_data(data, piece);
            self.pieces.close(piece);
            open.outstanding -= 1;
            open.emitted_to = open.emitted_to.saturating_add(u64::from(data.length));
            if open.is_finished() {
                self.in_order = None;
                self.requests.close(request);
            }
        }
    }

    /// Answers a request all of whose pieces are answered, or leaves it waiting.
    pub(super) fn finish(&mut self, request: u16) {
        let is_structured = self.agreed.is_structured;
        let Some(open) = self.requests.get(request).filter(|open| open.is_finished()).copied() else {
            return;
        };
        if self.in_order.is_some() || !self.output.has_room(REPLY_BYTES_MAX, 1) {
            self.has_backlog = true;
            return;
        }
        let cookie = open.cookie;
        match open.failure {
            Some(failure) if is_structured => self.reply_error(cookie, failure),
            Some(Failure { errno, .. }) => {
                self.output.push_bytes(&SimpleReply { error: errno.number(), cookie }.encode());
            }
            // Only an empty one comes here: any other is done with its last data.
            None if open.command == Command::Read && is_structured => {
                let header = ChunkHeader { is_done: true, kind: chunk::NONE, cookie, length: 0 };
                self.output.push_bytes(&header.encode());
            }
            None if open.command == Command::Status && !open.extent.is_empty() => self.reply_status(cookie),
            None => self.output.push_bytes(&SimpleReply { error: 0, cookie }.encode()),
        }
        if self.status.request == Some(request) {
            self.status = StatusAnswer::default();
        }
        self.requests.close(request);
    }

    fn reply_error(&mut self, cookie: u64, Failure { errno, text }: Failure) {
        let text = text.as_bytes().get(..text.len().min(TEXT_MAX)).unwrap_or_default();
        let text_length = u16::try_from(text.len()).unwrap_or_default();
        let length = 6 + u32::from(text_length);
        let header = ChunkHeader { is_done: true, kind: chunk::ERROR, cookie, length };
        self.output.push_bytes(&header.encode());
        self.output.push_bytes(&errno.number().to_be_bytes());
        self.output.push_bytes(&text_length.to_be_bytes());
        self.output.push_bytes(text);
    }

    fn reply_status(&mut self, cookie: u64) {
        let count = u32::try_from(self.status.extents.len()).unwrap_or_default();
        let length = 4 + 8 * count;
        let header = ChunkHeader { is_done: true, kind: chunk::BLOCK_STATUS, cookie, length };
        self.output.push_bytes(&header.encode());
        self.output.push_bytes(&ALLOCATION_ID.to_be_bytes());
        for (flags, length) in &self.status.extents {
            self.output.push_bytes(&length.to_be_bytes());
            self.output.push_bytes(&flags.bits().to_be_bytes());
        }
    }

    /// Puts into the output what waited for room there.
    pub(super) fn pump(&mut self) {
        if !self.has_backlog || !self.output.has_room(SIMPLE_REPLY_BYTES, 1) {
            return;
        }
        self.has_backlog = false;
        if let Some(request) = self.in_order {
            self.emit_in_order(request);
        }
        for piece in 0..self.pieces.capacity() {
            let Ok(index) = u16::try_from(piece) else { return };
            if let Some(request) = self.pieces.answered(index) {
                self.emit(request, index);
            }
        }
        for request in 0..self.requests.capacity() {
            let Ok(index) = u16::try_from(request) else { return };
            self.finish(index);
        }
    }
}
