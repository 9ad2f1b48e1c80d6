//! Every parser of NBD, of both sides.
//!
//! Headers alone: what decodes encodes to the same. Sessions: the same bytes in one piece and in fragments make the same
//! output, however they are cut.

use twinblock_core::nbd::client::{ClientConfig, ClientMemory, Session as Client, TransferSlot};
use twinblock_core::nbd::wire::{
    AllocationFlags, ChunkHeader, CommandFlags, Fields, GREETING_BYTES, Greeting, HandshakeFlags,
    OptionHeader, OptionReply, REQUEST_BYTES, RequestHeader, SimpleReply, TransmissionFlags,
};
use twinblock_core::nbd::{OutputEntry, Segment, Segments};
use twinblock_core::{Errno, Identity, Pool};

use crate::buffers::Buffers;
use crate::server;

/// Reads bytes: the first chooses the parser, the second how the rest is cut.
///
/// # Panics
/// On a finding.
pub fn run(bytes: &[u8]) {
    let [choice, cut, rest @ ..] = bytes else { return };
    let cut = usize::from(*cut) + 1;
    match choice % 4 {
        0 => headers(rest),
        1 => fields(rest),
        2 => assert_eq!(server_output(rest, usize::MAX), server_output(rest, cut), "fragments of {cut}"),
        _ => assert_eq!(client_output(rest, usize::MAX), client_output(rest, cut), "fragments of {cut}"),
    }
}

/// What decodes is what was sent.
fn headers(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<GREETING_BYTES>()
        && let Some(header) = Greeting::decode(bytes)
    {
        assert_eq!(header.encode()[..16], bytes[..16]);
        assert_eq!(Greeting::decode(&header.encode()), Some(header));
    }
    if let Some(bytes) = bytes.first_chunk()
        && let Some(header) = OptionHeader::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
    }
    if let Some(bytes) = bytes.first_chunk()
        && let Some(header) = OptionReply::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
    }
    if let Some(bytes) = bytes.first_chunk::<REQUEST_BYTES>()
        && let Some(header) = RequestHeader::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
    }
    if let Some(bytes) = bytes.first_chunk()
        && let Some(header) = SimpleReply::decode(bytes)
    {
        assert_eq!(&header.encode(), bytes);
    }
    if let Some(bytes) = bytes.first_chunk::<20>()
        && let Some(header) = ChunkHeader::decode(bytes)
    {
        let encoded = header.encode();
        assert_eq!((&encoded[..4], &encoded[6..]), (&bytes[..4], &bytes[6..]));
        assert_eq!(ChunkHeader::decode(&encoded), Some(header));
    }
}

/// What is encoded decodes to the same.
fn fields(bytes: &[u8]) {
    let mut fields = Fields(bytes);
    let before = fields.0.len();
    if let Some(text) = fields.string() {
        assert_eq!(text.len() + 4, before - fields.0.len());
    }
    fields = Fields(bytes);
    let (Some(long), Some(other), Some(word), Some(short)) =
        (fields.u64(), fields.u64(), fields.u32(), fields.u16())
    else {
        return;
    };
    let flags = HandshakeFlags::from_bits_truncate(word);
    assert_eq!(Greeting::decode(&Greeting { flags }.encode()), Some(Greeting { flags }));
    let option = OptionHeader { option: word, length: other as u32 };
    assert_eq!(OptionHeader::decode(&option.encode()), Some(option));
    let reply = OptionReply { option: word, kind: other as u32, length: (other >> 32) as u32 };
    assert_eq!(OptionReply::decode(&reply.encode()), Some(reply));
    let flags = CommandFlags::from_bits_retain(short);
    let command = (other >> 16) as u16;
    let request = RequestHeader { flags, command, cookie: long, offset: other, length: word };
    assert_eq!(RequestHeader::decode(&request.encode()), Some(request));
    let simple = SimpleReply { error: word, cookie: long };
    assert_eq!(SimpleReply::decode(&simple.encode()), Some(simple));
    let chunk = ChunkHeader { is_done: word & 1 == 1, kind: short, cookie: long, length: word };
    assert_eq!(ChunkHeader::decode(&chunk.encode()), Some(chunk));
    let errno = Errno::from_number(word);
    assert_eq!(Errno::from_number(errno.number()), errno);
    let _ = (AllocationFlags::from_bits_truncate(word), TransmissionFlags::from_bits_truncate(short));
}

/// What a server with a disk that answers at once says to these bytes.
fn server_output(bytes: &[u8], cut: usize) -> Vec<u8> {
    let mut output = Vec::new();
    server::with_session(&server::Settings::LARGE, |world| {
        for part in bytes.chunks(cut) {
            world.talk(part, &mut output);
        }
    });
    output
}

/// What a client says to these bytes.
fn client_output(bytes: &[u8], cut: usize) -> Vec<u8> {
    let (mut ring, mut entries) = ([0; 1024], [OutputEntry::EMPTY; 16]);
    let mut transfers: [TransferSlot; 2] = std::array::from_fn(|_| TransferSlot::EMPTY);
    let memory =
        ClientMemory { transfers: &mut transfers, output_bytes: &mut ring, output_entries: &mut entries };
    let config = ClientConfig { export: "disk", identity: Some(Identity([7; 16])), want_allocation: true };
    let mut session = Client::new(config, memory).expect("it fits");
    let mut buffers = Buffers::new(1, 512);
    buffers.acquire(512);
    let mut output = Vec::new();
    for part in bytes.chunks(cut) {
        session.receive(part, &mut buffers);
        take(session.segments(), usize::MAX, &mut buffers, &mut output);
        session.sent(usize::MAX);
    }
    // What waits to be sent when the session fails is dropped, however much of it was sent in between.
    if session.error().is_some() {
        output.clear();
    }
    output.extend(format!("{:?} {:?} {:?}", session.error(), session.info(), session.error_text()).bytes());
    output
}

/// The first `max` bytes of an output; tells how many there were.
pub(crate) fn take(segments: Segments<'_>, max: usize, pool: &mut impl Pool, output: &mut Vec<u8>) -> usize {
    let before = output.len();
    for segment in segments {
        match segment {
            Segment::Bytes(some) => output.extend_from_slice(some),
            Segment::Pool(data) => output.extend_from_slice(pool.bytes(data).expect("it is a buffer")),
        }
        if output.len() - before >= max {
            output.truncate(before.saturating_add(max));
            break;
        }
    }
    output.len() - before
}
