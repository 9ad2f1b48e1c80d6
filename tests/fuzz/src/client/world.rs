//! A client session, its transfers and the server that it speaks to.

use std::collections::VecDeque;

use twinblock_core::block::{Action, Completion, Tag, Transfer};
use twinblock_core::nbd::Segment;
use twinblock_core::nbd::client::{ClientError, ClientEvent, ServerInfo, Session};
use twinblock_core::nbd::wire::{
    CHUNK_MAGIC, ChunkHeader, Fields, Greeting, HandshakeFlags, OptionReply, REQUEST_BYTES, RequestHeader,
    SimpleReply, TransmissionFlags, chunk, command, info, option, option_reply,
};
use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Micros, Outcome};

use super::{Settings, Step};

/// Bytes of a transfer's buffer.
const BUFFER_BYTES: usize = 1 << 13;

/// A transfer that has not ended.
#[derive(Debug)]
struct Flying {
    transfer: Transfer,
    data: Option<Data>,
    /// Which bytes of a read were put into their place.
    came: Vec<bool>,
}

/// The buffers of the transfers in flight; what is asked for is written to.
struct Buffers {
    bytes: Vec<u8>,
    flying: Vec<Flying>,
}

impl Buffers {
    fn range(data: Data) -> std::ops::Range<usize> {
        let start = usize::from(data.buffer.0) * BUFFER_BYTES + data.offset as usize;
        start..start + data.length as usize
    }
}

impl Memory for Buffers {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        let is_it = |flying: &&mut Flying| flying.data.is_some_and(|own| own.buffer == data.buffer);
        let flying = self.flying.iter_mut().find(is_it).expect("a buffer of a transfer in flight");
        assert!(matches!(flying.transfer.action, Action::Read(_)), "{data:?} belongs to no read");
        let part = data.offset as usize..(data.offset + data.length) as usize;
        let came = flying.came.get_mut(part).expect("within the read's data");
        assert!(came.iter().all(|came| !came), "{data:?} is written twice");
        came.fill(true);
        self.bytes.get_mut(Self::range(data))
    }
}

pub(super) struct World<'m> {
    settings: Settings,
    session: Session<'m>,
    buffers: Buffers,
    /// Sent by the server and not taken yet.
    outbox: VecDeque<u8>,
    /// All that the client has sent on this connection.
    sent: Vec<u8>,
    /// Where in this the requests begin.
    opened_at: Option<usize>,
    /// How much of it the server has looked at.
    heard: usize,
    /// Requests that the server has.
    requests: Vec<RequestHeader>,
    names: u32,
}

impl<'m> World<'m> {
    pub(super) fn new(settings: Settings, session: Session<'m>) -> Self {
        Self {
            settings,
            session,
            buffers: Buffers { bytes: vec![0; BUFFER_BYTES * (settings.transfers + 1)], flying: Vec::new() },
            outbox: VecDeque::new(),
            sent: Vec::new(),
            opened_at: None,
            heard: 0,
            requests: Vec::new(),
            names: 0,
        }
    }
}

impl World<'_> {
    /// What a server that behaves says until the handshake is over.
    pub(super) fn connect(&mut self) {
        if !self.settings.is_opened {
            return;
        }
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        self.outbox.extend(Greeting { flags }.encode());
        let Settings { is_structured, want_allocation, has_identity, .. } = self.settings;
        let kind = if is_structured { option_reply::ACK } else { option_reply::ERR_UNSUP };
        self.option_reply(option::STRUCTURED_REPLY, kind, &[], 0);
        if is_structured && (want_allocation || has_identity) {
            let data = b"\0\0\0\x09base:allocation";
            self.option_reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, data, 0);
            self.option_reply(option::SET_META_CONTEXT, option_reply::ACK, &[], 0);
        }
        self.info();
        self.option_reply(option::GO, option_reply::ACK, &[], 0);
        while !self.outbox.is_empty() {
            self.deliver(25);
            self.send(usize::MAX);
        }
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8], lie: u32) {
        let length = (data.len() as u32).wrapping_add(lie);
        self.outbox.extend(OptionReply { option, kind, length }.encode());
        self.outbox.extend(data);
    }

    fn info(&mut self) {
        let Settings { flags, size, block_min, payload_max, .. } = self.settings;
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend(size.to_be_bytes());
        data.extend(flags.to_be_bytes());
        self.option_reply(option::GO, option_reply::INFO, &data, 0);
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        data.extend([block_min, 4096, payload_max].iter().flat_map(|field| field.to_be_bytes()));
        self.option_reply(option::GO, option_reply::INFO, &data, 0);
    }

    pub(super) fn play(&mut self, step: &Step) {
        match step {
            Step::Raw(bytes) => self.outbox.extend(bytes),
            Step::Greet(flags) => {
                let flags = HandshakeFlags::from_bits_retain(u32::from(*flags));
                self.outbox.extend(Greeting { flags }.encode());
            }
            Step::OptionReply { option, kind, data, lie } => {
                let asked = self.asked_option();
                self.option_reply(option.unwrap_or(asked), *kind, data, *lie);
            }
            Step::Info => self.info(),
            Step::Simple { which, error, has_data } => self.simple(*which, *error, *has_data),
            Step::Chunk { which, kind, is_done, from, length, lie, extra } => {
                let extent = Extent { offset: u64::from(*from), length: u64::from(*length) };
                self.chunk(*which, (*kind, *is_done), extent, (*lie, *extra));
            }
            Step::Submit { kind, offset, length } => {
                self.submit(*kind, Extent { offset: *offset, length: u64::from(*length) });
            }
            Step::Deliver(count) => self.deliver(*count),
            Step::DeliverInto(count) => self.deliver_into(*count),
            Step::Send(count) => self.send(*count),
            Step::Poll => self.poll(),
            Step::Disconnect => self.session.disconnect(),
            Step::FailAll => self.session.fail_all(Errno::Shutdown),
            Step::Reset => self.reset(),
        }
        self.check();
    }

    /// The option that the client has asked last.
    fn asked_option(&self) -> u32 {
        let mut fields = Fields(self.sent.get(4..).unwrap_or_default());
        let mut last = 0;
        while let (Some(_), Some(option), Some(_)) = (fields.u64(), fields.u32(), fields.string()) {
            last = option;
        }
        last
    }

    /// The server looks at what the client has sent.
    fn hear(&mut self) {
        let Some(start) = self.opened_at else { return };
        self.heard = self.heard.max(start);
        while let Some(header) = self.sent.get(self.heard..).and_then(|rest| rest.first_chunk()) {
            let header = RequestHeader::decode(header).expect("a client sends requests");
            let has_payload = header.command == command::WRITE;
            let length = if has_payload { header.length as usize } else { 0 };
            let start = self.heard + REQUEST_BYTES;
            let Some(payload) = self.sent.get(start..start + length) else { return };
            self.check_request(&header, payload);
            self.heard = start + length;
            if header.command != command::DISC {
                self.requests.push(header);
            }
        }
    }

    /// A request is of a transfer in flight, within the export, and of no more than the server takes.
    fn check_request(&self, header: &RequestHeader, payload: &[u8]) {
        let Some(info) = self.session.info() else { return };
        assert!(self.requests.iter().all(|other| other.cookie != header.cookie), "a name twice");
        let (offset, length) = (header.offset, u64::from(header.length));
        let end = offset.checked_add(length).expect("an end");
        assert!(end <= info.size_bytes, "{header:?} goes beyond the export");
        let block = u64::from(info.block_min);
        assert!(offset % block == 0 && length % block == 0, "{header:?} is not aligned");
        let has = |flag| info.flags.contains(flag);
        match header.command {
            command::READ => assert!(header.length <= info.payload_max),
            command::WRITE => {
                assert!(header.length <= info.payload_max && !has(TransmissionFlags::READ_ONLY));
                assert!(payload.iter().zip(offset..).all(|(byte, at)| *byte == 0 || *byte == content(at)));
            }
            command::WRITE_ZEROES => assert!(has(TransmissionFlags::SEND_WRITE_ZEROES)),
            command::FLUSH => assert!(has(TransmissionFlags::SEND_FLUSH)),
            command::BLOCK_STATUS => assert!(info.has_allocation),
            other => assert_eq!(other, command::DISC),
        }
    }

    fn simple(&mut self, which: u8, error: u32, has_data: bool) {
        let Some(request) = self.pick(which) else { return };
        self.outbox.extend(SimpleReply { error, cookie: request.cookie }.encode());
        if has_data && error == 0 && request.command == command::READ {
            self.data(request.offset, u64::from(request.length).min(1 << 14));
        }
        self.requests.retain(|other| other.cookie != request.cookie);
    }

    fn pick(&self, which: u8) -> Option<RequestHeader> {
        self.requests.get(usize::from(which) % self.requests.len().max(1)).copied()
    }

    fn data(&mut self, offset: u64, length: u64) {
        self.outbox.extend((offset..offset + length).map(content));
    }

    fn chunk(&mut self, which: u8, (kind, is_done): (u16, bool), part: Extent, (lie, extra): (u32, u32)) {
        let Some(request) = self.pick(which) else { return };
        // All of it if the part is beyond.
        let whole = Extent { offset: 0, length: u64::from(request.length) };
        let part = if part.is_empty() || !whole.contains(&part) && extra == 0 { whole } else { part };
        let offset = request.offset.wrapping_add(part.offset);
        let (head, length): (Vec<u8>, u64) = match kind {
            chunk::OFFSET_DATA => (offset.to_be_bytes().to_vec(), part.length.min(1 << 14)),
            chunk::OFFSET_HOLE => {
                let mut head = offset.to_be_bytes().to_vec();
                head.extend((part.length as u32).to_be_bytes());
                (head, 0)
            }
            chunk::BLOCK_STATUS => {
                let mut head = 9_u32.to_be_bytes().to_vec();
                head.extend((part.length as u32).to_be_bytes());
                head.extend(extra.to_be_bytes());
                (head, 0)
            }
            _ if kind & chunk::ERROR_BIT != 0 => (b"\0\0\0\x05\0\0".to_vec(), u64::from(extra)),
            _ => (Vec::new(), 0),
        };
        let claimed = (head.len() as u32 + length as u32).wrapping_add(lie);
        let header = ChunkHeader { is_done, kind, cookie: request.cookie, length: claimed };
        self.outbox.extend(header.encode());
        self.outbox.extend(head);
        self.data(offset, length);
        if is_done {
            self.requests.retain(|other| other.cookie != request.cookie);
        }
    }

    fn submit(&mut self, kind: u8, extent: Extent) {
        let buffers = 0..=self.settings.transfers as u16;
        let is_used = |buffer: &u16| {
            let mut own = self.buffers.flying.iter().filter_map(|flying| flying.data);
            own.any(|data| data.buffer.0 == *buffer)
        };
        let Some(buffer) = buffers.clone().find(|buffer| !is_used(buffer)) else { return };
        let length = extent.length.min(BUFFER_BYTES as u64);
        let extent = Extent { length, ..extent };
        let data = Data { buffer: BufferIndex(buffer), offset: 0, length: length as u32 };
        let (fua, may_unmap) = (kind & 0x80 != 0, kind & 0x40 != 0);
        let (action, data) = match kind % 8 {
            0..=2 => (Action::Read(data), Some(data)),
            3 | 4 => (Action::Write { data, fua }, Some(data)),
            5 => (Action::WriteZeroes { may_unmap, fast: kind & 0x20 != 0, fua }, None),
            6 => (Action::Flush, None),
            _ => (Action::Status, None),
        };
        if let (Action::Write { .. }, Some(data)) = (action, data) {
            let place = &mut self.buffers.bytes[Buffers::range(data)];
            for (byte, at) in place.iter_mut().zip(extent.offset..=u64::MAX) {
                *byte = content(at);
            }
        }
        self.names += 1;
        let tag = Tag { entry: kind.into(), generation: self.names };
        let transfer = Transfer { tag, action, extent };
        if self.session.submit(transfer, Micros(u64::from(self.names))).is_ok() {
            let came = vec![false; extent.length as usize];
            self.buffers.flying.push(Flying { transfer, data, came });
        } else {
            assert!(!self.session.is_ready() || self.session.in_flight() == self.settings.transfers);
        }
    }

    fn deliver(&mut self, count: usize) {
        let count = count.min(self.outbox.len());
        let bytes: Vec<u8> = self.outbox.drain(..count).collect();
        self.session.receive(&bytes, &mut self.buffers);
        self.notice();
    }

    fn deliver_into(&mut self, count: u32) {
        let Some(data) = self.session.receive_into() else { return };
        let count = count.min(data.length).min(self.outbox.len() as u32);
        let bytes: Vec<u8> = self.outbox.drain(..count as usize).collect();
        if count != 0 {
            self.buffers.bytes(data.part(0, count)).expect("it is a buffer").copy_from_slice(&bytes);
            self.session.received_into(count);
        }
        self.notice();
    }

    fn notice(&mut self) {
        match self.session.poll_event() {
            Some(ClientEvent::Ready(info)) => {
                self.check_info(&info);
                let waiting: usize = self.session.segments().map(|segment| segment.length()).sum();
                self.opened_at = Some(self.sent.len() + waiting);
            }
            Some(ClientEvent::Failed(error)) => {
                assert!(self.session.is_closed() && self.session.error() == Some(error));
                assert_ne!(error, ClientError::UnknownBuffer);
            }
            None => {}
        }
    }

    /// What the session believes of the export can be worked with.
    fn check_info(&self, info: &ServerInfo) {
        assert!(info.block_min.is_power_of_two() && info.block_min <= 1 << 16);
        assert!(info.payload_max != 0 && info.payload_max.is_multiple_of(info.block_min));
        assert!(i64::try_from(info.size_bytes).is_ok());
        assert_eq!(self.session.info(), Some(info));
    }

    fn send(&mut self, max: usize) {
        let mut count = 0;
        for segment in self.session.segments() {
            match segment {
                Segment::Bytes(bytes) => self.sent.extend(bytes),
                Segment::Pool(data) => {
                    let own = self
                        .buffers
                        .flying
                        .iter()
                        .find_map(|flying| flying.data.filter(|own| own.buffer == data.buffer));
                    assert!(own.is_some(), "{data:?} is sent and belongs to no transfer in flight");
                    self.sent.extend(&self.buffers.bytes[Buffers::range(data)]);
                }
            }
            count += segment.length();
            if count >= max {
                break;
            }
        }
        self.sent.truncate(self.sent.len() - count.saturating_sub(max));
        self.session.sent(count.min(max));
        self.hear();
    }

    fn poll(&mut self) {
        while let Some(Completion { tag, result }) = self.session.poll() {
            let place = self.buffers.flying.iter().position(|flying| flying.transfer.tag == tag);
            let flying = self.buffers.flying.remove(place.expect("a transfer in flight ends, once"));
            self.check_end(&flying, result);
        }
    }

    fn check_end(&self, flying: &Flying, result: std::result::Result<Outcome, Errno>) {
        let Transfer { action, extent, .. } = flying.transfer;
        match (action, result) {
            (_, Err(_)) => {}
            (Action::Read(_), Ok(_)) => {
                assert!(flying.came.iter().all(|came| *came), "a read without its bytes");
            }
            (Action::Status, Ok(Outcome::Status { length, .. })) => {
                assert!((1..=extent.length).contains(&length));
            }
            (Action::Status, Ok(Outcome::Done)) => panic!("a status without an answer"),
            (Action::Write { .. } | Action::WriteZeroes { .. } | Action::Flush, Ok(outcome)) => {
                assert_eq!(outcome, Outcome::Done);
                assert!(self.was_sent(&flying.transfer), "success for what was never sent");
            }
        }
    }

    /// Whether requests for all of a modification have left.
    fn was_sent(&self, transfer: &Transfer) -> bool {
        let is_change =
            |header: &RequestHeader| matches!(header.command, command::WRITE | command::WRITE_ZEROES);
        if transfer.extent.is_empty() || transfer.action == Action::Flush {
            return true;
        }
        let mut cursor = self.opened_at.unwrap_or_default();
        // Others may write to the same place.
        let mut reached = vec![transfer.extent.offset];
        while let Some(header) = self.sent.get(cursor..).and_then(|rest| rest.first_chunk()) {
            let header = RequestHeader::decode(header).expect("a client sends requests");
            cursor += REQUEST_BYTES;
            cursor += if header.command == command::WRITE { header.length as usize } else { 0 };
            let is_sent = cursor <= self.sent.len();
            if is_change(&header) && is_sent && reached.contains(&header.offset) {
                reached.push(header.offset + u64::from(header.length));
            }
        }
        reached.contains(&transfer.extent.end())
    }

    fn check(&self) {
        assert!(self.session.in_flight() == self.buffers.flying.len());
        assert!(!self.session.is_ready() || self.opened_at.is_some());
    }

    fn reset(&mut self) {
        let is_over = self.session.is_closed() && self.session.in_flight() == 0;
        assert_eq!(self.session.reset().is_ok(), is_over);
        if is_over {
            self.outbox.clear();
            self.sent.clear();
            self.requests.clear();
            (self.opened_at, self.heard) = (None, 0);
            self.connect();
        }
    }

    pub(super) fn finish(&mut self) {
        // A magic that is none, in the middle of whatever: the session has to bear it.
        self.outbox.extend(CHUNK_MAGIC.to_be_bytes());
        self.deliver(usize::MAX);
        self.send(usize::MAX);
        self.poll();
        self.session.fail_all(Errno::Io);
        self.poll();
        assert!(self.buffers.flying.is_empty() && self.session.in_flight() == 0, "a transfer never ends");
        assert!(!self.session.has_output() && self.session.oldest_in_flight().is_none());
        self.session.reset().expect("nothing is left");
    }
}

/// What a disk holds at this byte; never 0, which is what holes have.
const fn content(at: u64) -> u8 {
    (at ^ (at >> 8)) as u8 | 1
}
