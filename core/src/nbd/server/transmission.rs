//! Requests: what is wrong with them, and how they become pieces.

use super::tables::{Command, Failure, Open, PieceSlot, Stage};
use super::{Payload, Session, State, Step, piece_at};
use crate::nbd::gather::Gather;
use crate::nbd::wire::{self, CommandFlags, RequestHeader, TransmissionFlags, command};
use crate::{Data, Errno, Extent, Op, Pool, Request, RequestId};

const fn invalid(text: &'static str) -> Failure {
    Failure { errno: Errno::Invalid, text }
}

impl Payload {
    /// With so many more bytes, of `room` that were missing.
    pub(super) const fn filled_by(self, count: u32, room: u32) -> Self {
        Self {
            filled: self.filled.saturating_add(count),
            is_ready: self.piece.is_some() && count == room,
            ..self
        }
    }
}

impl Session<'_> {
    pub(super) fn receive_header<P: Pool + ?Sized>(
        &mut self,
        mut gather: Gather<{ wire::REQUEST_BYTES }>,
        bytes: &[u8],
        pool: &mut P,
    ) -> Step {
        let taken = gather.take(bytes);
        self.enter(State::Header(gather));
        let Some(header) = gather.whole() else {
            return if taken == 0 { Step::Wait } else { Step::Took(taken) };
        };
        match RequestHeader::decode(header) {
            None => self.close(false, pool),
            Some(RequestHeader { command: command::DISC, .. }) => {
                // A reply that is still on its way does not matter: what was asked for has been done.
                if self.requests.count() == 0 {
                    self.close(true, pool);
                } else {
                    self.enter(State::Leaving);
                }
            }
            Some(header) => {
                let is_status = header.command == command::BLOCK_STATUS;
                if self.requests.is_full() || (is_status && self.status.is_taken()) {
                    return if taken == 0 { Step::Wait } else { Step::Took(taken) };
                }
                self.begin(header, pool);
            }
        }
        Step::Took(taken)
    }

    fn begin<P: Pool + ?Sized>(&mut self, header: RequestHeader, pool: &mut P) {
        let RequestHeader { flags, command, cookie, offset, length } = header;
        let command = match command {
            command::READ => Command::Read,
            command::WRITE => Command::Write,
            command::FLUSH => Command::Flush,
            command::TRIM => Command::Trim,
            command::CACHE => Command::Cache,
            command::WRITE_ZEROES => Command::WriteZeroes,
            command::BLOCK_STATUS => Command::Status,
            _ => Command::Unknown,
        };
        let extent = match command {
            Command::Flush => Extent::default(),
            _ => Extent { offset, length: u64::from(length) },
        };
        let failure = self.check(command, flags, extent).err();
        let is_idle = command != Command::Flush && extent.is_empty() || command == Command::Cache;
        let is_drained = command == Command::Write && length != 0;
        let is_issued = is_idle || (failure.is_some() && !is_drained);
        let (outstanding, emitted_to, is_header_out) = (0, extent.offset, false);
        let open = Open {
            command,
            flags,
            cookie,
            extent,
            outstanding,
            is_issued,
            failure,
            emitted_to,
            is_header_out,
        };
        let Some(request) = self.requests.open(open) else { return };
        if is_issued {
            self.enter(State::Header(Gather::new()));
            self.finish(request);
        } else if failure.is_some() {
            self.enter(State::Drain { request, left: length });
        } else if command == Command::Write {
            let payload = Payload { request, next: offset, piece: None, filled: 0, is_ready: false };
            self.enter(State::Payload(payload));
            self.start_piece(payload, pool);
        } else {
            if command == Command::Status {
                self.status.take(request);
            }
            self.enter(State::Issue { request, next: extent.offset });
        }
    }

    fn check(&self, command: Command, flags: CommandFlags, extent: Extent) -> Result<(), Failure> {
        let chosen = &self.chosen;
        let has = |flag| chosen.flags.contains(flag);
        let (is_known, extra) = match command {
            Command::Read => (true, CommandFlags::DF),
            Command::Write => (true, CommandFlags::empty()),
            Command::Flush => (has(TransmissionFlags::SEND_FLUSH), CommandFlags::empty()),
            Command::Trim => (has(TransmissionFlags::SEND_TRIM), CommandFlags::empty()),
            Command::Cache => (has(TransmissionFlags::SEND_CACHE), CommandFlags::empty()),
            Command::WriteZeroes => {
                (has(TransmissionFlags::SEND_WRITE_ZEROES), CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO)
            }
            Command::Status => (chosen.has_allocation, CommandFlags::REQ_ONE),
            Command::Unknown => (false, CommandFlags::empty()),
        };
        if !is_known {
            return Err(invalid("this command was not offered"));
        }
        let mut allowed = extra | CommandFlags::FUA;
        allowed.set(CommandFlags::FUA, has(TransmissionFlags::SEND_FUA));
        allowed.set(CommandFlags::DF, extra.contains(CommandFlags::DF) && has(TransmissionFlags::SEND_DF));
        if !has(TransmissionFlags::SEND_FAST_ZERO) {
            allowed.remove(CommandFlags::FAST_ZERO);
        }
        if !allowed.contains(flags) {
            return Err(invalid("this command flag was not offered"));
        }
        let modifies = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if modifies && has(TransmissionFlags::READ_ONLY) {
            return Err(Failure { errno: Errno::NotPermitted, text: "the export is read-only" });
        }
        let is_inside = extent.offset.checked_add(extent.length).is_some_and(|end| end <= chosen.size_bytes);
        if !is_inside {
            let is_write = matches!(command, Command::Write | Command::WriteZeroes);
            let errno = if is_write { Errno::NoSpace } else { Errno::Invalid };
            return Err(Failure { errno, text: "beyond the end of the export" });
        }
        let block = u64::from(chosen.block_min);
        if !extent.offset.is_multiple_of(block) || !extent.length.is_multiple_of(block) {
            return Err(invalid("not a multiple of the minimum block size"));
        }
        let has_payload = matches!(command, Command::Read | Command::Write);
        if has_payload && extent.length > u64::from(chosen.payload_max) {
            return Err(invalid("longer than the maximum payload"));
        }
        Ok(())
    }

    /// Drops the payload of a write that was refused; then it can be answered.
    pub(super) fn drain_payload(&mut self, request: u16, left: u32, bytes: &[u8]) -> Step {
        let taken = bytes.len().min(left as usize);
        let left = left - u32::try_from(taken).unwrap_or(left);
        if left != 0 {
            self.enter(State::Drain { request, left });
            return if taken == 0 { Step::Wait } else { Step::Took(taken) };
        }
        if let Some(open) = self.requests.get(request) {
            open.is_issued = true;
        }
        self.enter(State::Header(Gather::new()));
        self.finish(request);
        self.pump();
        Step::Took(taken)
    }

    /// Finds a slot and a buffer for the next piece of a write, or leaves it for later.
    fn start_piece<P: Pool + ?Sized>(&mut self, payload: Payload, pool: &mut P) -> bool {
        let Payload { request, next, .. } = payload;
        let Some(open) = self.requests.get(request) else { return false };
        let extent = piece_at(open.extent, next, self.config.window_bytes);
        let Ok(length) = u32::try_from(extent.length) else { return false };
        if self.pieces.is_full() {
            return false;
        }
        let Some(buffer) = pool.acquire(length) else { return false };
        let data = Some(Data { buffer, offset: 0, length });
        let Some(piece) = self.pieces.open(PieceSlot { stage: Stage::Filling, request, extent, data }) else {
            pool.release(buffer);
            return false;
        };
        open.outstanding += 1;
        self.enter(State::Payload(Payload { piece: Some(piece), filled: 0, ..payload }));
        true
    }

    pub(super) fn receive_payload<P: Pool + ?Sized>(
        &mut self,
        payload: Payload,
        bytes: &[u8],
        pool: &mut P,
    ) -> Step {
        if payload.is_ready {
            return Step::Wait;
        }
        let Some(piece) = payload.piece else {
            return if self.start_piece(payload, pool) { Step::Took(0) } else { Step::Wait };
        };
        let Some(data) = self.pieces.data(piece) else { return Step::Wait };
        let room = data.length.saturating_sub(payload.filled);
        let count = room.min(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        if count == 0 {
            return Step::Wait;
        }
        match (pool.bytes(data.part(payload.filled, count)), bytes.get(..count as usize)) {
            (Some(place), Some(bytes)) if place.len() == bytes.len() => place.copy_from_slice(bytes),
            // The pool does not know its own buffer: nothing that came could be kept.
            _ => {
                self.close(false, pool);
                return Step::Wait;
            }
        }
        self.enter(State::Payload(payload.filled_by(count, room)));
        Step::Took(count as usize)
    }

    /// Hands out the piece whose payload is there.
    pub(super) fn hand_out<P: Pool + ?Sized>(&mut self, payload: Payload, pool: &mut P) -> Option<Request> {
        let index = payload.piece?;
        let piece = self.pieces.get(index)?;
        piece.stage = Stage::Issued;
        let (extent, data) = (piece.extent, piece.data?);
        let open = self.requests.get(payload.request)?;
        let is_last = extent.end() == open.extent.end();
        open.is_issued = is_last;
        let fua = open.flags.contains(CommandFlags::FUA);
        let is_first = extent.offset == open.extent.offset;
        if is_last {
            self.enter(State::Header(Gather::new()));
        } else {
            let next = extent.end();
            let payload = Payload { next, piece: None, is_ready: false, ..payload };
            self.enter(State::Payload(payload));
            self.start_piece(payload, pool);
        }
        self.in_flight += 1;
        let id = self.request_id(index);
        Some(Request { id, op: Op::Write { data, fua }, extent, is_first, is_last })
    }

    fn request_id(&self, piece: u16) -> RequestId {
        RequestId(u32::from(self.config.connection) << 16 | u32::from(piece))
    }

    /// Makes the next piece of a request without payload.
    pub(super) fn issue<P: Pool + ?Sized>(
        &mut self,
        request: u16,
        next: u64,
        pool: &mut P,
    ) -> Option<Request> {
        let open = self.requests.get(request)?;
        let (pieces_max, unit) = match open.command {
            Command::Status => (1, self.config.window_bytes),
            Command::Trim | Command::WriteZeroes => {
                (self.config.request_pieces_max, self.config.zero_piece_bytes)
            }
            _ => (self.config.request_pieces_max, self.config.window_bytes),
        };
        if open.outstanding >= pieces_max || self.pieces.is_full() {
            return None;
        }
        // Once a piece has failed only the last one follows, by which the machine sees the request end.
        let last = open.extent.end().saturating_sub(1) & !(u64::from(unit) - 1);
        let next = if open.failure.is_some() { next.max(last) } else { next };
        let extent = piece_at(open.extent, next, unit);
        let fua = open.flags.contains(CommandFlags::FUA);
        let (op, data) = match open.command {
            Command::Read => {
                let length = u32::try_from(extent.length).ok()?;
                let data = Data { buffer: pool.acquire(length)?, offset: 0, length };
                (Op::Read(data), Some(data))
            }
            Command::Flush => (Op::Flush, None),
            Command::Status => (Op::Status, None),
            // A trim has neither of these two flags.
            _ => {
                let may_unmap = !open.flags.contains(CommandFlags::NO_HOLE);
                (Op::WriteZeroes { may_unmap, fast: open.flags.contains(CommandFlags::FAST_ZERO), fua }, None)
            }
        };
        let piece = self.pieces.open(PieceSlot { stage: Stage::Issued, request, extent, data })?;
        open.outstanding += 1;
        let (mut is_first, mut is_last) =
            (extent.offset == open.extent.offset, extent.end() == open.extent.end());
        match open.command {
            // How many pieces a status takes shows only as they are answered: each stands for itself.
            Command::Status => (is_first, is_last) = (true, true),
            _ => open.is_issued = is_last,
        }
        let state = if open.is_issued {
            State::Header(Gather::new())
        } else {
            State::Issue { request, next: extent.end() }
        };
        self.enter(state);
        self.in_flight += 1;
        Some(Request { id: self.request_id(piece), op, extent, is_first, is_last })
    }
}
