//! NBD on the target: a client's session and a server's, byte by byte, in front of a secondary.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::block::{Action, BlockingDisk, Capabilities, Tag, Transfer};
    use twinblock_core::nbd::client::{self, ClientConfig, ClientEvent, ClientMemory, TransferSlot};
    use twinblock_core::nbd::server::{
        self, Export, Exports, PieceSlot, RequestSlot, ServerConfig, ServerEvent, ServerMemory,
    };
    use twinblock_core::nbd::{OutputEntry, Segment};
    use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Micros, Outcome, Windows};
    use twinblock_on_target::{Block, DISK_BYTES, FarDisk, GUEST, Node, WINDOW};

    const CLIENT_BYTES: usize = 2 * WINDOW as usize;
    static CLIENT_MEMORY: ConstStaticCell<[u8; CLIENT_BYTES]> = ConstStaticCell::new([0; CLIENT_BYTES]);
    static TRANSFERS: ConstStaticCell<[TransferSlot; 2]> = ConstStaticCell::new([TransferSlot::EMPTY; 2]);
    static CLIENT_OUTPUT: ConstStaticCell<[u8; 512]> = ConstStaticCell::new([0; 512]);
    static CLIENT_ENTRIES: ConstStaticCell<[OutputEntry; 4]> = ConstStaticCell::new([OutputEntry::EMPTY; 4]);
    static REQUESTS: ConstStaticCell<[RequestSlot; 2]> = ConstStaticCell::new([RequestSlot::EMPTY; 2]);
    static PIECES: ConstStaticCell<[PieceSlot; 2]> = ConstStaticCell::new([PieceSlot::EMPTY; 2]);
    static OPTION: ConstStaticCell<[u8; 512]> = ConstStaticCell::new([0; 512]);
    static SERVER_OUTPUT: ConstStaticCell<[u8; 512]> = ConstStaticCell::new([0; 512]);
    static SERVER_ENTRIES: ConstStaticCell<[OutputEntry; 4]> = ConstStaticCell::new([OutputEntry::EMPTY; 4]);

    /// The guest's view, of this length.
    struct View(u64);

    impl Exports for View {
        fn count(&self) -> usize {
            1
        }

        fn export(&self, index: usize) -> Option<Export<'_>> {
            (index == 0).then_some(Export::new("view", self.0))
        }
    }

    struct Wired<D> {
        node: Node<D>,
        server: server::Session<'static>,
        client: client::Session<'static>,
        memory: Windows<'static>,
    }

    impl<D: BlockingDisk> Wired<D> {
        /// Moves a byte from the client to the server and one back, and lets the machine work; false if there was
        /// nothing to do.
        fn turn(&mut self) -> bool {
            let sending = first_byte(self.client.segments().next(), &mut self.memory);
            // Also without a byte: the server may have something to answer that had no room before.
            let taken = self.server.receive(
                sending.as_slice(),
                &View(self.node.driver.machine().size_bytes()),
                &mut self.node.memory,
            );
            self.client.sent(taken);
            let mut is_busy = taken != 0;
            while let Some(event) = self.server.poll_event(&mut self.node.memory) {
                is_busy = true;
                if let ServerEvent::Request(request) = event {
                    let reply = self.node.run(GUEST, request);
                    self.server.handle_reply(reply, &mut self.node.memory);
                }
            }
            if let Some(byte) = first_byte(self.server.segments().next(), &mut self.node.memory) {
                self.server.sent(1, &mut self.node.memory);
                self.client.receive(&[byte], &mut self.memory);
                is_busy = true;
            }
            is_busy
        }

        fn run(&mut self, action: Action, extent: Extent) -> Result<Outcome, Errno> {
            self.client.submit(Transfer { tag: Tag::default(), action, extent }, Micros(0)).unwrap();
            while self.turn() {}
            self.client.poll().unwrap().result
        }
    }

    fn first_byte(segment: Option<Segment<'_>>, memory: &mut Windows<'_>) -> Option<u8> {
        match segment? {
            Segment::Bytes(bytes) => bytes.first().copied(),
            Segment::Pool(data) => memory.bytes(data)?.first().copied(),
        }
    }

    fn data(buffer: u16, length: u32) -> Data {
        Data { buffer: BufferIndex(buffer), offset: 0, length }
    }

    #[init]
    fn init() {
        twinblock_on_target::guard_stack();
    }

    /// A client before a secondary, with replication running.
    fn wire<D: BlockingDisk>(mut node: Node<D>) -> Wired<D> {
        node.start();
        let server = server::Session::new(
            ServerConfig::new(WINDOW, 1),
            ServerMemory {
                requests: REQUESTS.take(),
                pieces: PIECES.take(),
                option_data: OPTION.take(),
                output_bytes: SERVER_OUTPUT.take(),
                output_entries: SERVER_ENTRIES.take(),
            },
        );
        let client = client::Session::new(
            ClientConfig { export: "view", identity: None, want_allocation: false },
            ClientMemory {
                transfers: TRANSFERS.take(),
                output_bytes: CLIENT_OUTPUT.take(),
                output_entries: CLIENT_ENTRIES.take(),
            },
        );
        let memory = Windows::new(CLIENT_MEMORY.take(), WINDOW);
        Wired { node, server: server.unwrap(), client: client.unwrap(), memory }
    }

    #[test]
    fn what_is_written_over_the_wire_is_read_back_from_the_view() {
        let mut wired = wire(Node::take());
        while wired.turn() {}
        let Some(ClientEvent::Ready(info)) = wired.client.poll_event() else {
            panic!("not ready: {:?}", wired.client.error());
        };
        assert_eq!(info.size_bytes, DISK_BYTES as u64);
        assert!(info.geometry().capabilities.contains(Capabilities::FLUSH | Capabilities::WRITE_ZEROES));

        let place = Extent { offset: 1000, length: 1500 };
        wired.memory.bytes(data(0, 1500)).unwrap().fill(0x5a);
        assert_eq!(wired.run(Action::Write { data: data(0, 1500), fua: true }, place), Ok(Outcome::Done));
        assert_eq!(wired.run(Action::Read(data(1, 1500)), place), Ok(Outcome::Done));
        assert!(wired.memory.bytes(data(1, 1500)).unwrap().iter().all(|byte| *byte == 0x5a));
        assert!(wired.node.disk_holds(0, DISK_BYTES, 1), "a guest's write stays in the buffer");

        let beyond = Extent { offset: DISK_BYTES as u64, length: 512 };
        assert_eq!(wired.run(Action::Read(data(1, 512)), beyond), Err(Errno::Invalid));
        twinblock_on_target::print_stack_use();
    }

    /// Offsets, sizes and lengths cross the wire whole, however short the processor's addresses are.
    #[test]
    fn requests_beyond_4_gib_reach_where_they_name() {
        // What the guest writes stays in the buffer.
        static BLOCKS: ConstStaticCell<[Block; 1]> = ConstStaticCell::new([Block::UNUSED; 1]);
        const SIZE: u64 = i64::MAX as u64 / 512 * 512;
        let mut wired = wire(Node::over(FarDisk::new(SIZE, BLOCKS.take())));
        while wired.turn() {}
        let Some(ClientEvent::Ready(info)) = wired.client.poll_event() else {
            panic!("not ready: {:?}", wired.client.error());
        };
        assert_eq!(info.size_bytes, SIZE);
        let places = [0, (1 << 32) - 512, 1 << 32, SIZE - 512];
        for (offset, byte) in places.into_iter().zip(1..) {
            wired.memory.bytes(data(0, 512)).unwrap().fill(byte);
            let write = Action::Write { data: data(0, 512), fua: false };
            assert_eq!(wired.run(write, Extent { offset, length: 512 }), Ok(Outcome::Done));
        }
        for (offset, byte) in places.into_iter().zip(1..) {
            assert_eq!(
                wired.run(Action::Read(data(1, 512)), Extent { offset, length: 512 }),
                Ok(Outcome::Done)
            );
            assert!(
                wired.memory.bytes(data(1, 512)).unwrap().iter().all(|read| *read == byte),
                "at {offset}"
            );
        }
        // Zeroes that end there; what lies around them stays.
        let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: false };
        let extent = Extent { offset: (1 << 32) - (1 << 18), length: 1 << 18 };
        assert_eq!(wired.run(zeroes, extent), Ok(Outcome::Done));
        for (offset, byte) in [(0, 1), ((1 << 32) - 512, 0), (1 << 32, 3), (SIZE - 512, 4)] {
            assert_eq!(
                wired.run(Action::Read(data(1, 512)), Extent { offset, length: 512 }),
                Ok(Outcome::Done)
            );
            assert!(
                wired.memory.bytes(data(1, 512)).unwrap().iter().all(|read| *read == byte),
                "at {offset}"
            );
        }
    }
}
