//! A second reading of what goes over a connection.

use std::collections::VecDeque;

use twinblock_core::nbd::server::Export;
use twinblock_core::nbd::wire::{
    CHUNK_BYTES, CHUNK_MAGIC, ChunkHeader, CommandFlags, EXPORT_NAME_PADDING, Fields, GREETING_BYTES,
    Greeting, OPTION_BYTES, OPTION_REPLY_BYTES, OptionHeader, OptionReply, REQUEST_BYTES, RequestHeader,
    SIMPLE_REPLY_BYTES, SimpleReply, TransmissionFlags, chunk, command, info, option, option_reply,
};
use twinblock_core::{Extent, Memory, Op, Request};

use crate::buffers::Buffers;

/// What the disk holds at this byte.
pub(super) const fn pattern(at: u64) -> u8 {
    (at ^ (at >> 8) ^ 0x5a) as u8
}

/// Where the client's bytes stand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Saying {
    #[default]
    Flags,
    Options,
    Requests,
    /// Nothing more matters.
    Over,
}

/// Where the server's bytes stand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Hearing {
    #[default]
    Greeting,
    Options,
    Replies,
}

/// A request of the client.
#[derive(Debug)]
struct Asked {
    header: RequestHeader,
    payload: Vec<u8>,
    /// Its payload has been taken.
    is_whole: bool,
    /// A server must refuse it.
    is_wrong: bool,
    /// Where its next piece starts.
    next: u64,
    is_issued: bool,
    /// Bytes whose pieces were answered with success.
    done: u64,
    has_failed: bool,
    is_answered: bool,
    /// Data that its reply brought so far, and an error in it.
    parts: Vec<Extent>,
    has_error: bool,
}

impl Asked {
    fn extent(&self) -> Extent {
        Extent { offset: self.header.offset, length: u64::from(self.header.length) }
    }

    /// Whether pieces of it must come.
    const fn has_pieces(&self) -> bool {
        let is_empty = self.header.length == 0 && self.header.command != command::FLUSH;
        !self.is_wrong && !is_empty && self.header.command != command::CACHE
    }
}

/// What is known from the bytes alone.
#[derive(Debug, Default)]
pub(super) struct Peer {
    saying: Saying,
    said: Vec<u8>,
    hearing: Hearing,
    heard: Vec<u8>,
    options: VecDeque<u32>,
    has_no_zeroes: bool,
    is_structured: bool,
    is_opened: bool,
    size: u64,
    block_min: u32,
    payload_max: u32,
    /// What the export can do, as the server has told.
    flags: TransmissionFlags,
    asked: Vec<Asked>,
    /// The request whose pieces come now.
    current: usize,
    /// Two requests of one name are in flight: which one a reply is for, and so how long it is, cannot be told.
    is_ambiguous: bool,
}

impl Peer {
    /// The server has taken these bytes.
    pub(super) fn consumed(&mut self, bytes: &[u8]) {
        self.said.extend(bytes);
        while self.understand() {}
    }

    fn understand(&mut self) -> bool {
        match self.saying {
            Saying::Flags => {
                let Some(flags) = self.said.first_chunk::<4>() else { return false };
                self.has_no_zeroes = flags[3] & 2 != 0;
                self.said.drain(..4);
                self.saying = Saying::Options;
            }
            Saying::Options => {
                let Some(header) = self.said.first_chunk::<OPTION_BYTES>() else { return false };
                let Some(OptionHeader { option, length }) = OptionHeader::decode(header) else {
                    self.saying = Saying::Over;
                    return false;
                };
                let end = OPTION_BYTES + length as usize;
                if self.said.len() < end {
                    return false;
                }
                self.said.drain(..end);
                self.is_structured |= option == option::STRUCTURED_REPLY && length == 0;
                self.options.push_back(option);
            }
            Saying::Requests => return self.understand_request(),
            Saying::Over => return false,
        }
        true
    }

    fn understand_request(&mut self) -> bool {
        if let Some(asked) = self.asked.last_mut()
            && !asked.is_whole
        {
            let missing = asked.header.length as usize - asked.payload.len();
            let now = missing.min(self.said.len());
            asked.payload.extend(self.said.drain(..now));
            asked.is_whole = now == missing;
            return asked.is_whole;
        }
        let Some(header) = self.said.first_chunk::<REQUEST_BYTES>() else { return false };
        let header = RequestHeader::decode(header);
        self.said.drain(..REQUEST_BYTES);
        let Some(header) = header.filter(|header| header.command != command::DISC) else {
            self.saying = Saying::Over;
            return false;
        };
        let is_twin = self.unanswered().any(|asked| asked.header.cookie == header.cookie);
        self.is_ambiguous |= is_twin;
        self.asked.push(Asked {
            header,
            payload: Vec::new(),
            is_whole: header.command != command::WRITE || header.length == 0,
            is_wrong: self.is_wrong(&header),
            next: header.offset,
            is_issued: false,
            done: 0,
            has_failed: false,
            is_answered: false,
            parts: Vec::new(),
            has_error: false,
        });
        true
    }

    fn unanswered(&self) -> impl Iterator<Item = &Asked> {
        self.asked.iter().filter(|asked| !asked.is_answered)
    }

    /// Whether the protocol demands an error (NBD protocol document, "Request types").
    fn is_wrong(&self, header: &RequestHeader) -> bool {
        let has = |flag| self.flags.contains(flag);
        let (is_offered, own_flags) = match header.command {
            command::READ if has(TransmissionFlags::SEND_DF) => (true, CommandFlags::DF),
            command::READ | command::WRITE => (true, CommandFlags::empty()),
            command::FLUSH => (has(TransmissionFlags::SEND_FLUSH), CommandFlags::empty()),
            command::TRIM => (has(TransmissionFlags::SEND_TRIM), CommandFlags::empty()),
            command::CACHE => (has(TransmissionFlags::SEND_CACHE), CommandFlags::empty()),
            command::WRITE_ZEROES if has(TransmissionFlags::SEND_FAST_ZERO) => {
                (has(TransmissionFlags::SEND_WRITE_ZEROES), CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO)
            }
            command::WRITE_ZEROES => (has(TransmissionFlags::SEND_WRITE_ZEROES), CommandFlags::NO_HOLE),
            command::BLOCK_STATUS => (true, CommandFlags::REQ_ONE),
            _ => (false, CommandFlags::empty()),
        };
        let fua = if has(TransmissionFlags::SEND_FUA) { CommandFlags::FUA } else { CommandFlags::empty() };
        let is_change = matches!(header.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        let is_long =
            matches!(header.command, command::READ | command::WRITE) && header.length > self.payload_max;
        let (offset, length) = match header.command {
            command::FLUSH => (0, 0),
            _ => (u128::from(header.offset), u128::from(header.length)),
        };
        let block = u128::from(self.block_min);
        !is_offered
            || !(own_flags | fua).contains(header.flags)
            || is_change && has(TransmissionFlags::READ_ONLY)
            || is_long
            || offset + length > u128::from(self.size)
            || offset % block != 0
            || length % block != 0
    }

    /// The server says that an export was chosen.
    pub(super) fn opened(&mut self, export: &Export<'_>) {
        assert!(!self.is_opened && self.said.is_empty(), "an export is chosen once, by a whole option");
        self.is_opened = true;
        self.saying = Saying::Requests;
        (self.size, self.block_min, self.payload_max) =
            (export.size_bytes, export.block_min, export.payload_max);
        self.flags = export.flags | TransmissionFlags::HAS_FLAGS;
        // Without structured replies there is nothing that DF could ask for.
        self.flags.set(TransmissionFlags::SEND_DF, self.is_structured);
    }

    /// The server says that it is over.
    pub(super) fn closed(&self, clean: bool) {
        if clean {
            let is_over = self.saying == Saying::Over || !self.is_opened;
            let is_left = |asked: &Asked| pieced(asked) && !asked.is_issued;
            assert!(is_over && !self.asked.iter().any(is_left), "a clean end with something left to do");
        }
    }

    /// A piece was handed out; tells which request it belongs to.
    pub(super) fn issued(&mut self, request: &Request, pool: &mut Buffers) -> Option<usize> {
        assert!(self.is_opened, "a piece of nothing");
        assert!(request.extent.end() <= self.size, "{request:?} goes beyond the export");
        if request.op == Op::Status {
            return None;
        }
        if request.is_first {
            while self.asked.get(self.current).is_some_and(|asked| !pieced(asked) || asked.is_issued) {
                self.current += 1;
            }
        }
        let index = self.current;
        let asked = self.asked.get_mut(index).expect("a piece of a request");
        assert!(pieced(asked) && !asked.is_issued, "{request:?} is no piece of {:?}", asked.header);
        let (extent, flags) = (asked.extent(), asked.header.flags);
        let is_fua = flags.contains(CommandFlags::FUA);
        let is_zeroes = asked.header.command == command::WRITE_ZEROES;
        let is_right = match (request.op, asked.header.command) {
            (Op::Read(_), command::READ) | (Op::Flush, command::FLUSH) => true,
            (Op::Write { data, fua }, command::WRITE) => {
                let start = (request.extent.offset - extent.offset) as usize;
                let sent = asked.payload.get(start..start + data.length as usize);
                assert_eq!(sent, pool.bytes(data).map(|bytes| &*bytes), "payload of {request:?}");
                fua == is_fua
            }
            (Op::WriteZeroes { may_unmap, fast, fua }, command::TRIM | command::WRITE_ZEROES) => {
                may_unmap != (is_zeroes && flags.contains(CommandFlags::NO_HOLE))
                    && fast == (is_zeroes && flags.contains(CommandFlags::FAST_ZERO))
                    && fua == is_fua
            }
            _ => false,
        };
        assert!(is_right, "{request:?} is no piece of {:?}", asked.header);
        if request.op == Op::Flush {
            assert!(request.is_first && request.is_last);
            asked.is_issued = true;
            return Some(index);
        }
        assert!(extent.contains(&request.extent));
        assert_eq!(request.is_first, request.extent.offset == extent.offset);
        assert_eq!(request.is_last, request.extent.end() == extent.end());
        // What follows a failed piece is of no use, but for the last.
        assert!(request.extent.offset == asked.next || asked.has_failed && request.is_last, "{request:?}");
        asked.next = request.extent.end();
        asked.is_issued = request.is_last;
        Some(index)
    }

    /// A piece was answered.
    pub(super) fn answered(&mut self, index: Option<usize>, request: &Request, is_ok: bool) {
        if let Some(asked) = index.and_then(|index| self.asked.get_mut(index)) {
            asked.done += if is_ok { request.extent.length } else { 0 };
            asked.has_failed |= !is_ok;
        }
    }

    /// The server says this.
    pub(super) fn heard(&mut self, bytes: &[u8]) {
        if self.is_ambiguous {
            return;
        }
        self.heard.extend(bytes);
        while let Some(count) = self.hear() {
            self.heard.drain(..count);
        }
    }

    /// Reads one message off the front; tells how long it was, or `None` if it is not whole.
    fn hear(&mut self) -> Option<usize> {
        match self.hearing {
            Hearing::Greeting => {
                let greeting = self.heard.first_chunk::<GREETING_BYTES>()?;
                Greeting::decode(greeting).expect("a greeting");
                self.hearing = Hearing::Options;
                Some(GREETING_BYTES)
            }
            Hearing::Options if self.options.front() == Some(&option::EXPORT_NAME) => {
                let padding = if self.has_no_zeroes { 0 } else { EXPORT_NAME_PADDING as usize };
                let count = 10 + padding;
                self.heard.get(..count)?;
                self.hearing = Hearing::Replies;
                Some(count)
            }
            Hearing::Options => self.hear_option(),
            Hearing::Replies => {
                let magic = Fields(&self.heard).u32()?;
                if magic == CHUNK_MAGIC { self.hear_chunk() } else { self.hear_simple() }
            }
        }
    }

    fn hear_option(&mut self) -> Option<usize> {
        let reply = OptionReply::decode(self.heard.first_chunk::<OPTION_REPLY_BYTES>()?);
        let OptionReply { option, kind, length } = reply.expect("a reply to an option");
        assert!(length <= 4096 + 64, "{length} bytes in a reply to an option");
        let data = self.heard.get(OPTION_REPLY_BYTES..OPTION_REPLY_BYTES + length as usize)?;
        assert_eq!(self.options.front(), Some(&option), "a reply to what was not asked");
        let count = OPTION_REPLY_BYTES + data.len();
        let mut fields = Fields(data);
        let is_error = kind & option_reply::ERROR_BIT != 0;
        let is_fitting = match kind {
            option_reply::ACK => data.is_empty(),
            option_reply::SERVER => option == option::LIST && fields.string().is_some(),
            option_reply::META_CONTEXT => {
                matches!(option, option::LIST_META_CONTEXT | option::SET_META_CONTEXT)
                    && fields.u32().is_some()
                    && !fields.0.is_empty()
            }
            option_reply::INFO => {
                let length = match fields.u16() {
                    Some(info::EXPORT) => 12,
                    Some(info::BLOCK_SIZE) => 14,
                    _ => data.len(),
                };
                matches!(option, option::INFO | option::GO) && data.len() == length
            }
            _ => is_error,
        };
        assert!(is_fitting, "reply {kind:#x} to option {option}: {data:?}");
        if is_error || kind == option_reply::ACK {
            self.options.pop_front();
        }
        if kind == option_reply::ACK {
            assert!(option != option::STRUCTURED_REPLY || self.is_structured);
            self.hearing = if option == option::GO { Hearing::Replies } else { Hearing::Options };
        }
        Some(count)
    }

    /// The request that a reply names.
    fn find(&mut self, cookie: u64) -> usize {
        let is_it = |asked: &Asked| !asked.is_answered && asked.is_whole && asked.header.cookie == cookie;
        self.asked.iter().position(is_it).expect("a reply to what is not in flight")
    }

    fn hear_simple(&mut self) -> Option<usize> {
        let reply = SimpleReply::decode(self.heard.first_chunk::<SIMPLE_REPLY_BYTES>()?);
        let SimpleReply { error, cookie } = reply.expect("a reply");
        let index = self.find(cookie);
        let asked = &mut self.asked[index];
        let is_data = error == 0 && asked.header.command == command::READ;
        assert!(!(self.is_structured && is_data), "data in a simple reply");
        let count = SIMPLE_REPLY_BYTES + if is_data { asked.header.length as usize } else { 0 };
        let data = self.heard.get(SIMPLE_REPLY_BYTES..count)?;
        check_data(data, asked.header.offset);
        asked.parts.push(asked.extent());
        self.ended(index, error == 0);
        Some(count)
    }

    fn hear_chunk(&mut self) -> Option<usize> {
        let header = ChunkHeader::decode(self.heard.first_chunk::<CHUNK_BYTES>()?);
        let ChunkHeader { is_done, kind, cookie, length } = header.expect("a chunk");
        assert!(self.is_structured, "a chunk without structured replies");
        assert!(length <= self.payload_max.max(4096) + 8, "a chunk of {length} bytes");
        let count = CHUNK_BYTES + length as usize;
        let index = self.find(cookie);
        let data = self.heard.get(CHUNK_BYTES..count)?;
        let asked = &mut self.asked[index];
        let mut fields = Fields(data);
        match kind {
            chunk::NONE => assert!(is_done && length == 0),
            chunk::OFFSET_DATA => {
                let offset = fields.u64().expect("an offset");
                let part = Extent::new(offset, u64::from(length) - 8).expect("an end");
                assert!(!part.is_empty());
                assert_eq!(asked.header.command, command::READ, "data nobody asked for");
                assert!(asked.extent().contains(&part), "data outside of what was asked for");
                assert!(asked.parts.iter().all(|other| !other.overlaps(&part)), "data twice");
                let is_whole = !asked.header.flags.contains(CommandFlags::DF) || part == asked.extent();
                assert!(is_whole, "fragments in spite of DF");
                check_data(fields.0, offset);
                asked.parts.push(part);
            }
            chunk::BLOCK_STATUS => {
                assert_eq!(fields.u32(), Some(1), "the context that was chosen");
                let mut total = 0;
                while let (Some(length), Some(flags)) = (fields.u32(), fields.u32()) {
                    assert!(length != 0 && flags <= 3);
                    total += u64::from(length);
                }
                assert!(fields.0.is_empty() && total != 0);
                assert!(total <= u64::from(asked.header.length));
                assert_eq!(asked.header.command, command::BLOCK_STATUS);
            }
            _ => {
                assert!(kind & chunk::ERROR_BIT != 0 && fields.u32().is_some_and(|number| number != 0));
                let length = usize::from(fields.u16().expect("a length"));
                assert!(std::str::from_utf8(&fields.0[..length]).is_ok());
                asked.has_error = true;
            }
        }
        if is_done {
            let is_ok = !asked.has_error;
            self.ended(index, is_ok);
        }
        Some(count)
    }

    /// A reply is complete: does it say what has happened?
    fn ended(&mut self, index: usize, is_ok: bool) {
        let asked = &mut self.asked[index];
        asked.is_answered = true;
        let header = asked.header;
        if header.command == command::BLOCK_STATUS {
            assert!(!(is_ok && asked.is_wrong));
            return;
        }
        if !is_ok {
            assert!(asked.is_wrong || asked.has_failed, "an error for nothing: {header:?}");
            return;
        }
        assert!(!asked.is_wrong, "success for {header:?}");
        if !asked.has_pieces() {
            return;
        }
        assert!(asked.is_issued && !asked.has_failed, "success for {header:?}");
        if header.command != command::FLUSH {
            assert_eq!(asked.done, u64::from(header.length), "success for {header:?}");
        }
        if header.command == command::READ {
            let came: u64 = asked.parts.iter().map(|part| part.length).sum();
            assert_eq!(came, u64::from(header.length), "data of {header:?}");
        }
    }

    /// Every request that came whole has its answer.
    pub(super) fn assert_answered(&self) {
        if self.is_ambiguous {
            return;
        }
        let forgotten = self.unanswered().find(|asked| asked.is_whole);
        assert!(forgotten.is_none(), "no answer to {:?}", forgotten.map(|asked| asked.header));
        assert!(self.heard.is_empty(), "half a message: {:?}", self.heard);
    }
}

/// Whether pieces of it must come, and can be told from those of others.
fn pieced(asked: &Asked) -> bool {
    asked.has_pieces() && asked.header.command != command::BLOCK_STATUS
}

fn check_data(data: &[u8], offset: u64) {
    let wrong = data.iter().zip(offset..).find(|(byte, at)| **byte != pattern(*at));
    assert!(wrong.is_none(), "not what the disk holds: {wrong:?}");
}
