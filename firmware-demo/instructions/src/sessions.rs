//! The wire: a write of 4 KiB as the NBD client sends it, and as the server takes it; the bytes themselves go past both.

use static_cell::ConstStaticCell;
use twinblock_core::block::{Action, Tag, Transfer};
use twinblock_core::nbd::client::{self, ClientConfig, ClientMemory, TransferSlot};
use twinblock_core::nbd::server::{
    self, Export, Exports, OPTION_BYTES_MIN, PieceSlot, RequestSlot, ServerConfig, ServerEvent, ServerMemory,
};
use twinblock_core::nbd::{OutputEntry, Segment};
use twinblock_core::{BufferIndex, Data, Extent, Micros, Outcome, Reply, Windows};

use crate::{BLOCK, Count, TIMES};

const NOW: Micros = Micros(0);
/// Bytes of a request's header, and more than those of a reply to a write.
const HEADER_BYTES: usize = 28;
const REPLY_BYTES_MAX: usize = 32;

struct One;

impl Exports for One {
    fn count(&self) -> usize {
        1
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        (index == 0).then(|| Export::new("disk", 1 << 30))
    }
}

static TRANSFERS: ConstStaticCell<[TransferSlot; 4]> = ConstStaticCell::new([TransferSlot::EMPTY; 4]);
static REQUESTS: ConstStaticCell<[RequestSlot; 4]> = ConstStaticCell::new([RequestSlot::EMPTY; 4]);
static PIECES: ConstStaticCell<[PieceSlot; 4]> = ConstStaticCell::new([PieceSlot::EMPTY; 4]);
static OPTION: ConstStaticCell<[u8; OPTION_BYTES_MIN]> = ConstStaticCell::new([0; OPTION_BYTES_MIN]);
static OUTPUT: ConstStaticCell<[[u8; 1024]; 2]> = ConstStaticCell::new([[0; 1024]; 2]);
static ENTRIES: ConstStaticCell<[[OutputEntry; 16]; 2]> = ConstStaticCell::new([[OutputEntry::EMPTY; 16]; 2]);
static BYTES: ConstStaticCell<[u8; 4 * BLOCK as usize]> = ConstStaticCell::new([0; 4 * BLOCK as usize]);

/// Both ends of a connection.
struct Pair {
    client: client::Session<'static>,
    server: server::Session<'static>,
    /// The server's; the client's buffer is not one of them.
    memory: Windows<'static>,
}

impl Pair {
    /// Carries headers between the two, and nothing else.
    fn carry(&mut self) -> bool {
        let mut has_carried = false;
        while let Some(Segment::Bytes(bytes)) = self.client.segments().next() {
            let taken = self.server.receive(bytes, &One, &mut self.memory);
            if taken == 0 {
                break;
            }
            self.client.sent(taken);
            has_carried = true;
        }
        while let Some(Segment::Bytes(bytes)) = self.server.segments().next() {
            let length = bytes.len();
            self.client.receive(bytes, &mut self.memory);
            self.server.sent(length, &mut self.memory);
            has_carried = true;
        }
        has_carried
    }
}

/// Both ends, with the handshake done.
fn open() -> Pair {
    let [client_output, server_output] = OUTPUT.take();
    let [client_entries, server_entries] = ENTRIES.take();
    let memory = ClientMemory {
        transfers: TRANSFERS.take(),
        output_bytes: client_output,
        output_entries: client_entries,
    };
    let config = ClientConfig { export: "disk", identity: None, want_allocation: false };
    let Ok(client) = client::Session::new(config, memory) else { panic!("the client does not fit") };
    let memory = ServerMemory {
        requests: REQUESTS.take(),
        pieces: PIECES.take(),
        option_data: OPTION.take(),
        output_bytes: server_output,
        output_entries: server_entries,
    };
    let Ok(server) = server::Session::new(ServerConfig::new(BLOCK, 0), memory) else {
        panic!("the server does not fit")
    };
    let mut memory = Windows::new(BYTES.take(), BLOCK);
    // The client's own.
    memory.reserve(1);
    let mut pair = Pair { client, server, memory };
    while pair.carry()
        || pair.server.poll_event(&mut pair.memory).is_some()
        || pair.client.poll_event().is_some()
    {}
    assert!(pair.client.is_ready());
    pair
}

pub(crate) fn count() {
    let mut pair = open();
    let (mut sends, mut takes) = (Count::new("NBD client, write"), Count::new("NBD server, write"));
    let data = Data { buffer: BufferIndex(0), offset: 0, length: BLOCK };
    for times in 0..TIMES {
        let extent = Extent { offset: u64::from(times) * u64::from(BLOCK), length: BLOCK.into() };
        let tag = Tag { entry: 0, generation: times };
        let transfer = Transfer { tag, action: Action::Write { data, fua: false }, extent };
        let Pair { client, server, memory } = &mut pair;
        // The header, the bytes that go past, and the reply's header.
        let header = sends.once(|| {
            assert!(client.submit(transfer, NOW).is_ok());
            let mut header = [0; HEADER_BYTES];
            let mut filled = 0;
            while let Some(Segment::Bytes(bytes)) = client.segments().next() {
                let length = bytes.len();
                header[filled..filled + length].copy_from_slice(bytes);
                filled += length;
                client.sent(length);
            }
            client.sent(BLOCK as usize);
            header
        });
        let request = takes.once(|| {
            server.receive(&header, &One, memory);
            server.received_into(BLOCK);
            server.poll_event(memory)
        });
        let Some(ServerEvent::Request(request)) = request else { panic!("no request came") };
        let mut reply = [0; REPLY_BYTES_MAX];
        let length = takes.once_more(|| {
            server.handle_reply(Reply { id: request.id, result: Ok(Outcome::Done) }, memory);
            let mut filled = 0;
            while let Some(Segment::Bytes(bytes)) = server.segments().next() {
                let length = bytes.len();
                reply[filled..filled + length].copy_from_slice(bytes);
                filled += length;
                server.sent(length, memory);
            }
            filled
        });
        let is_done = sends.once_more(|| {
            client.receive(&reply[..length], memory);
            client.poll().is_some_and(|completion| completion.result.is_ok())
        });
        assert!(is_done);
    }
    sends.tell();
    takes.tell();
}
