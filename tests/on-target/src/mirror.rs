//! A primary with one replica, with all its memory in statics.

use static_cell::{ConstStaticCell, StaticCell};
use twinblock_core::block::{BlockDevice, Blocking, BlockingDisk};
use twinblock_core::driver::{Driver, Emitted, PrimaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::primary::{Command, Config, Input, Primary, Replica, Storage, Work};
use twinblock_core::{
    BufferIndex, CommandId, Connection, ConnectionId, Data, Errno, Extent, Memory, Micros, Notice, Op, Reply,
    Request, RequestId, Windows,
};

use crate::RamDisk;

/// Bytes of the longest piece.
pub const MIRROR_WINDOW: u32 = 1024;
/// Length of both disks, which hold nothing but 1 at first.
pub const MIRROR_BYTES: usize = 8192;
/// Bytes of a dirty granule.
pub const MIRROR_GRANULE: u32 = 512;

/// What a disk of 16 TiB needs in the largest granules.
const WORDS: usize = Primary::bitmap_words(1 << 44, 1 << 31);
const GUEST: ConnectionId = ConnectionId(1);
/// No test here lets time pass.
const NOW: Micros = Micros(0);

static DISK: ConstStaticCell<[u8; MIRROR_BYTES]> = ConstStaticCell::new([1; MIRROR_BYTES]);
static TWIN: ConstStaticCell<[u8; MIRROR_BYTES]> = ConstStaticCell::new([1; MIRROR_BYTES]);
static MEMORY: ConstStaticCell<[u8; MIRROR_WINDOW as usize]> =
    ConstStaticCell::new([0; MIRROR_WINDOW as usize]);
static TABLE: ConstStaticCell<[Slot<Work>; 4]> = ConstStaticCell::new([Slot::FREE; 4]);
static CONNECTIONS: ConstStaticCell<[Connection<()>; 1]> = ConstStaticCell::new([Connection::FREE; 1]);
static WRITTEN: ConstStaticCell<[u64; WORDS]> = ConstStaticCell::new([0; WORDS]);
static LOST: ConstStaticCell<[u64; WORDS]> = ConstStaticCell::new([0; WORDS]);
static REPLICA: ConstStaticCell<[u64; 3 * WORDS]> = ConstStaticCell::new([0; 3 * WORDS]);
static REPLICAS: StaticCell<[Replica<'static>; 1]> = StaticCell::new();

/// The primary, its disk, its replica and its memory, with the guest connected and replication running.
#[derive(Debug)]
pub struct Mirror<D = RamDisk<'static>> {
    /// The machine and its devices.
    pub driver: Driver<Primary<'static>, PrimaryDevices<Blocking<D>, [Blocking<D>; 1]>>,
    memory: Windows<'static>,
}

impl Mirror {
    /// The only one; a test gets a fresh emulator.
    ///
    /// # Panics
    /// If it was taken already.
    #[must_use]
    pub fn take() -> Self {
        Self::over(RamDisk::new(DISK.take()), RamDisk::new(TWIN.take()), MIRROR_GRANULE)
    }

    /// Whether both disks hold the same.
    #[must_use]
    pub fn are_twins(&self) -> bool {
        let devices = self.driver.devices();
        devices.disk.disk().content() == devices.replicas[0].disk().content()
    }
}

impl<D: BlockingDisk> Mirror<D> {
    /// One over other disks, in place of the only one.
    ///
    /// # Panics
    /// If it was taken already.
    #[must_use]
    pub fn over(disk: D, twin: D, dirty_granule_bytes: u32) -> Self {
        crate::guard_stack();
        let (disk, twin) = (Blocking::new(disk), Blocking::new(twin));
        let geometry = BlockDevice::<Windows<'_>>::geometry(&disk);
        let config = Config { window_bytes: MIRROR_WINDOW, dirty_granule_bytes, block_bytes: 1 };
        let storage = Storage {
            table: TABLE.take(),
            connections: CONNECTIONS.take(),
            written: WRITTEN.take(),
            lost: LOST.take(),
            replicas: REPLICAS.init([Replica::new(REPLICA.take())]),
        };
        let machine = Primary::new(config, geometry, storage).expect("the settings fit each other");
        let mut mirror = Self {
            driver: Driver::new(machine, PrimaryDevices::new(disk, [twin])),
            memory: Windows::new(MEMORY.take(), MIRROR_WINDOW),
        };
        assert_eq!(mirror.offer(Input::Opened(GUEST)), None);
        mirror.command(Command::Attach { replica: 0, is_empty: false, is_new: true });
        assert_eq!(mirror.offer(Input::Connected(0, geometry)), None);
        mirror.command(Command::Start { primary: true });
        mirror
    }

    /// Offers an input, works until nothing is left to do, and tells the last answer, if there was one.
    ///
    /// # Panics
    /// If the input is refused.
    pub fn offer(&mut self, input: Input) -> Option<Emitted> {
        self.driver.offer(NOW, input).expect("the machine is idle");
        let mut answer = None;
        while let Some(emitted) = self.driver.poll(NOW, &mut self.memory) {
            if !matches!(emitted, Emitted::Notice(Notice::Event(_))) {
                answer = Some(emitted);
            }
        }
        answer
    }

    fn command(&mut self, command: Command) {
        let answer = self.offer(Input::Command(CommandId(1), command));
        assert_eq!(answer, Some(Emitted::Notice(Notice::Answer(CommandId(1), Ok(())))), "{command:?}");
    }

    fn request(&mut self, op: Op, offset: u64, length: u32) -> Result<(), Errno> {
        let extent = Extent { offset, length: length.into() };
        match self.offer(Input::Request(GUEST, Request::whole(RequestId(1), op, extent))) {
            Some(Emitted::Reply(Reply { result, .. })) => result.map(|_| ()),
            other => panic!("no reply but {other:?}"),
        }
    }

    /// Writes one byte all over a range.
    ///
    /// # Errors
    /// What the write was answered.
    pub fn write(&mut self, offset: u64, length: u32, byte: u8) -> Result<(), Errno> {
        let data = self.filled(length, byte);
        self.request(Op::Write { data, fua: false }, offset, length)
    }

    /// Makes a range zeroes.
    ///
    /// # Errors
    /// What was answered.
    pub fn zero(&mut self, offset: u64, length: u32) -> Result<(), Errno> {
        self.request(Op::WriteZeroes { may_unmap: true, fast: false, fua: false }, offset, length)
    }

    /// Whether this byte is read all over a range.
    ///
    /// # Errors
    /// What the read was answered.
    pub fn reads(&mut self, offset: u64, length: u32, byte: u8) -> Result<bool, Errno> {
        let data = self.filled(length, !byte);
        self.request(Op::Read(data), offset, length)?;
        Ok(self.memory.bytes(data).is_some_and(|bytes| bytes.iter().all(|read| *read == byte)))
    }

    /// How much the replica misses.
    ///
    /// # Panics
    /// Never: there is one.
    #[must_use]
    pub fn misses_bytes(&self) -> u64 {
        self.driver.machine().replica(0).expect("there is one").dirty_bytes
    }

    fn filled(&mut self, length: u32, byte: u8) -> Data {
        let data = Data { buffer: BufferIndex(0), offset: 0, length };
        self.memory.bytes(data).expect("no longer than a window").fill(byte);
        data
    }
}
