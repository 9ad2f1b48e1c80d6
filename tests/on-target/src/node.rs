//! A secondary over two disks in RAM, with all its memory in statics.

use static_cell::ConstStaticCell;
use twinblock_core::block::{BlockDevice, Blocking, BlockingDisk};
use twinblock_core::buffer::index::{Index, Node as IndexNode};
use twinblock_core::driver::{Driver, Emitted, SecondaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::secondary::{
    Command, Config, Connection, Input, Port, Secondary, Storage, WhenFull, Work,
};
use twinblock_core::{
    BufferIndex, CommandId, ConnectionId, Data, Errno, Extent, Memory, Micros, Notice, Op, Refused, Reply,
    Request, RequestId, Windows,
};

use crate::RamDisk;

/// Bytes of the longest piece.
pub const WINDOW: u32 = 2048;
/// Length of the secondary disk, which holds nothing but 1 at first.
pub const DISK_BYTES: usize = 16 * 1024;
/// The primary's connection.
pub const PRIMARY: ConnectionId = ConnectionId(1);
/// The guest's connection.
pub const GUEST: ConnectionId = ConnectionId(2);

const GRANULE: u32 = 512;
const SLOTS: usize = 12;
const BUFFER_BYTES: usize = SLOTS * GRANULE as usize;
const SCRATCH: u8 = 2;
const CLIENT_WINDOWS: usize = 2;
const MEMORY_BYTES: usize = (SCRATCH as usize + CLIENT_WINDOWS) * WINDOW as usize;
const REQUESTS: u16 = 4;
const PLACES: usize = 2 * REQUESTS as usize + 1;
const NODES: usize = Index::nodes_for(SLOTS);
/// No test here lets time pass.
const NOW: Micros = Micros(0);

static DISK: ConstStaticCell<[u8; DISK_BYTES]> = ConstStaticCell::new([1; DISK_BYTES]);
static BUFFER: ConstStaticCell<[u8; BUFFER_BYTES]> = ConstStaticCell::new([0; BUFFER_BYTES]);
static MEMORY: ConstStaticCell<[u8; MEMORY_BYTES]> = ConstStaticCell::new([0; MEMORY_BYTES]);
static TABLE: ConstStaticCell<[Slot<Work>; PLACES]> = ConstStaticCell::new([Slot::FREE; PLACES]);
static INDEX: ConstStaticCell<[IndexNode; NODES]> = ConstStaticCell::new([IndexNode::EMPTY; NODES]);
static CONNECTIONS: ConstStaticCell<[Connection; 2]> = ConstStaticCell::new([Connection::FREE; 2]);

type Disk = Blocking<RamDisk<'static>>;

/// The secondary, its devices and its memory, with both clients connected.
#[derive(Debug)]
pub struct Node<D = RamDisk<'static>> {
    /// The machine and its devices.
    pub driver: Driver<Secondary<'static>, SecondaryDevices<Blocking<D>, Disk>>,
    /// Windows of the machine, and after them those of the clients.
    pub memory: Windows<'static>,
    next_id: u32,
}

impl Node {
    /// The only one; a test gets a fresh emulator.
    ///
    /// # Panics
    /// If it was taken already.
    #[must_use]
    pub fn take() -> Self {
        Self::over(RamDisk::new(DISK.take()))
    }

    /// Whether the secondary disk holds this byte all over a range.
    #[must_use]
    pub fn disk_holds(&self, offset: usize, length: usize, byte: u8) -> bool {
        let content = self.driver.devices().disk.disk().content();
        content[offset..offset + length].iter().all(|held| *held == byte)
    }
}

impl<D: BlockingDisk> Node<D> {
    /// One over another disk, in place of the only one.
    ///
    /// # Panics
    /// If it was taken already.
    #[must_use]
    pub fn over(disk: D) -> Self {
        crate::guard_stack();
        let (disk, buffer) = (Blocking::new(disk), Blocking::new(RamDisk::new(BUFFER.take())));
        let mut memory = Windows::new(MEMORY.take(), WINDOW);
        memory.reserve(SCRATCH.into());
        let config = Config {
            granule_bytes: GRANULE,
            window_bytes: WINDOW,
            when_full: WhenFull::Stall,
            stall_max: Micros::from_ms(500),
            replication_requests: REQUESTS,
            guest_requests: REQUESTS,
            scratch_first: BufferIndex(0),
            scratch_count: SCRATCH,
        };
        let storage = Storage { table: TABLE.take(), nodes: INDEX.take(), connections: CONNECTIONS.take() };
        let geometry = BlockDevice::<Windows<'_>>::geometry(&buffer);
        let machine = Secondary::new(config, BlockDevice::<Windows<'_>>::geometry(&disk), geometry, storage)
            .expect("the settings fit each other");
        let mut node =
            Self { driver: Driver::new(machine, SecondaryDevices { disk, buffer }), memory, next_id: 0 };
        for (connection, port) in [(PRIMARY, Port::Replication), (GUEST, Port::Guest)] {
            assert_eq!(node.offer(Input::Opened { connection, port, identity: None }), None);
        }
        node
    }

    /// Offers an input, works until nothing is left to do, and tells the answer, if there was one.
    ///
    /// # Panics
    /// If the input is refused, or if there is more than one answer.
    pub fn offer(&mut self, input: Input) -> Option<Emitted> {
        self.driver.offer(NOW, input).expect("the machine is idle");
        let mut answer = None;
        while let Some(emitted) = self.driver.poll(NOW, &mut self.memory) {
            if !matches!(emitted, Emitted::Notice(Notice::Event(_))) {
                assert!(answer.is_none(), "more than one answer");
                answer = Some(emitted);
            }
        }
        answer
    }

    /// What an operation is answered.
    ///
    /// # Errors
    /// The machine's refusal.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn command(&mut self, command: Command) -> Result<(), Refused> {
        self.next_id += 1;
        let id = CommandId(self.next_id);
        match self.offer(Input::Command(id, command)) {
            Some(Emitted::Notice(Notice::Answer(answered, result))) if answered == id => result,
            other => panic!("no answer but {other:?}"),
        }
    }

    /// Starts replication.
    ///
    /// # Panics
    /// If that is refused.
    pub fn start(&mut self) {
        self.command(Command::Start { primary: false }).expect("it was not started yet");
    }

    /// What any request is replied.
    ///
    /// # Panics
    /// If there is no reply.
    pub fn run(&mut self, connection: ConnectionId, request: Request) -> Reply {
        match self.offer(Input::Request(connection, request)) {
            Some(Emitted::Reply(reply)) if reply.id == request.id => reply,
            other => panic!("no reply but {other:?}"),
        }
    }

    fn request(&mut self, connection: ConnectionId, op: Op, offset: u64, length: u32) -> Result<(), Errno> {
        self.next_id += 1;
        let extent = Extent { offset, length: length.into() };
        self.run(connection, Request::whole(RequestId(self.next_id), op, extent)).result.map(|_| ())
    }

    /// Writes one byte all over a range.
    ///
    /// # Errors
    /// What the write was answered.
    pub fn write(
        &mut self,
        connection: ConnectionId,
        offset: u64,
        length: u32,
        byte: u8,
    ) -> Result<(), Errno> {
        let data = self.filled(length, byte);
        self.request(connection, Op::Write { data, fua: false }, offset, length)
    }

    /// Makes a range zeroes.
    ///
    /// # Errors
    /// What was answered.
    pub fn zero(&mut self, connection: ConnectionId, offset: u64, length: u32) -> Result<(), Errno> {
        self.request(connection, Op::WriteZeroes { may_unmap: true, fast: false, fua: false }, offset, length)
    }

    /// Whether this byte is read all over a range.
    ///
    /// # Errors
    /// What the read was answered.
    pub fn reads(
        &mut self,
        connection: ConnectionId,
        offset: u64,
        length: u32,
        byte: u8,
    ) -> Result<bool, Errno> {
        let data = self.filled(length, !byte);
        self.request(connection, Op::Read(data), offset, length)?;
        Ok(self.memory.bytes(data).is_some_and(|bytes| bytes.iter().all(|read| *read == byte)))
    }

    /// The first of the clients' windows, filled.
    fn filled(&mut self, length: u32, byte: u8) -> Data {
        let data = Data { buffer: BufferIndex(SCRATCH.into()), offset: 0, length };
        self.memory.bytes(data).expect("no longer than a window").fill(byte);
        data
    }
}
