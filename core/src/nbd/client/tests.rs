use std::{vec, vec::Vec};

use super::*;
use crate::block::{Action, QueueFull, Tag, Transfer};
use crate::nbd::testing::{Buffers, leak, take};
use crate::nbd::wire::{
    CommandFlags, Greeting, HandshakeFlags, OptionReply, RequestHeader, info, option, option_reply,
};
use crate::{BufferIndex, Extent, Outcome, Pool};

mod handshake;
mod hostile;
mod transfers;

const SIZE: u64 = 1 << 20;
const CONFIG: ClientConfig<'static> = ClientConfig { export: "disk", identity: None, want_allocation: true };

/// A client session and the buffers that its transfers name.
struct Client {
    session: Session<'static>,
    memory: Buffers,
}

impl Client {
    fn new(config: ClientConfig<'static>) -> Self {
        let memory = ClientMemory {
            transfers: leak(TransferSlot::EMPTY, 4),
            output_bytes: leak(0, 300),
            output_entries: leak(OutputEntry::EMPTY, 8),
        };
        let session = Session::new(config, memory).unwrap();
        let mut memory = Buffers::new(4, 64 << 10);
        for _ in 0..4 {
            memory.acquire(1);
        }
        Self { session, memory }
    }

    fn output(&mut self) -> Vec<u8> {
        let bytes = take(self.session.segments(), usize::MAX, &mut self.memory);
        self.session.sent(bytes.len());
        bytes
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.session.receive(bytes, &mut self.memory);
    }

    /// Hands in bytes and takes what is sent then.
    fn talk(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.receive(bytes);
        self.output()
    }

    fn submit(&mut self, action: Action, extent: Extent) {
        self.session.submit(Transfer { tag: Tag::default(), action, extent }, Micros(0)).unwrap();
    }

    /// The next request on the wire, and its payload.
    fn request(&mut self) -> (RequestHeader, Vec<u8>) {
        let bytes = self.output();
        let header = RequestHeader::decode(bytes.first_chunk().unwrap()).unwrap();
        let payload = bytes[wire::REQUEST_BYTES..].to_vec();
        let expected = if header.command == wire::command::WRITE { header.length as usize } else { 0 };
        assert_eq!(payload.len(), expected);
        (header, payload)
    }

    fn result(&mut self) -> Option<Result<Outcome, Errno>> {
        self.session.poll().map(|completion| completion.result)
    }

    fn assert_failed(&mut self, error: ClientError) {
        assert_eq!(self.session.poll_event(), Some(ClientEvent::Failed(error)));
        assert_eq!(self.session.error(), Some(error));
        assert!(self.session.is_closed() && !self.session.has_output());
    }
}

fn greeting() -> [u8; wire::GREETING_BYTES] {
    Greeting { flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES }.encode()
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OptionReply { option, kind, length: data.len() as u32 }.encode().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

fn info_export(size: u64, flags: TransmissionFlags) -> Vec<u8> {
    let mut data = info::EXPORT.to_be_bytes().to_vec();
    data.extend(size.to_be_bytes());
    data.extend(flags.bits().to_be_bytes());
    option_reply(option::GO, option_reply::INFO, &data)
}

fn info_blocks(min: u32, preferred: u32, payload_max: u32) -> Vec<u8> {
    let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
    data.extend([min, preferred, payload_max].iter().flat_map(|field| field.to_be_bytes()));
    option_reply(option::GO, option_reply::INFO, &data)
}

/// A client that has come as far as asking GO; `base:allocation` has number 9.
fn going(is_structured: bool) -> Client {
    let mut client = Client::new(CONFIG);
    client.talk(&greeting());
    let kind = if is_structured { option_reply::ACK } else { option_reply::ERR_UNSUP };
    client.talk(&option_reply(option::STRUCTURED_REPLY, kind, &[]));
    if is_structured {
        let context =
            option_reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, b"\0\0\0\x09base:allocation");
        client.talk(&context);
        client.talk(&option_reply(option::SET_META_CONTEXT, option_reply::ACK, &[]));
    }
    client
}

/// A client of such an export.
fn ready(flags: TransmissionFlags, is_structured: bool, payload_max: u32) -> Client {
    let mut client = going(is_structured);
    client.talk(&info_export(SIZE, flags | TransmissionFlags::HAS_FLAGS));
    client.talk(&info_blocks(1, 4096, payload_max));
    client.talk(&option_reply(option::GO, option_reply::ACK, &[]));
    assert!(matches!(client.session.poll_event(), Some(ClientEvent::Ready(_))));
    client
}

/// A client of an export that can do everything.
fn capable() -> Client {
    ready(TransmissionFlags::all().difference(TransmissionFlags::READ_ONLY), true, 32 << 20)
}

fn data(buffer: u16, length: u32) -> Data {
    Data { buffer: BufferIndex(buffer), offset: 0, length }
}

fn extent(offset: u64, length: u64) -> Extent {
    Extent { offset, length }
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    wire::SimpleReply { error, cookie }.encode().to_vec()
}

fn chunk(is_done: bool, kind: u16, cookie: u64, data: &[&[u8]]) -> Vec<u8> {
    let data = data.concat();
    let mut bytes = wire::ChunkHeader { is_done, kind, cookie, length: data.len() as u32 }.encode().to_vec();
    bytes.extend(data);
    bytes
}

fn data_chunk(is_done: bool, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(is_done, wire::chunk::OFFSET_DATA, cookie, &[&offset.to_be_bytes(), bytes])
}

fn hole_chunk(is_done: bool, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    chunk(is_done, wire::chunk::OFFSET_HOLE, cookie, &[&offset.to_be_bytes(), &length.to_be_bytes()])
}

fn error_chunk(is_done: bool, cookie: u64, number: u32, text: &[u8]) -> Vec<u8> {
    let length = (text.len() as u16).to_be_bytes();
    chunk(is_done, wire::chunk::ERROR, cookie, &[&number.to_be_bytes(), &length, text])
}
