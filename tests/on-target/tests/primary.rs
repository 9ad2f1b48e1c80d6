//! A primary over a disk in RAM with a replica in RAM, on the target.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::{ConstStaticCell, StaticCell};
    use twinblock_core::block::{BlockDevice, Blocking};
    use twinblock_core::driver::{Driver, Emitted, PrimaryDevices};
    use twinblock_core::order::Slot;
    use twinblock_core::primary::{Command, Config, Input, Primary, Replica, Storage, Work};
    use twinblock_core::{
        BufferIndex, CommandId, Connection, ConnectionId, Data, Errno, Extent, Memory, Micros, Notice, Op,
        Reply, Request, RequestId, Windows,
    };
    use twinblock_on_target::RamDisk;

    const WINDOW: u32 = 1024;
    const DISK_BYTES: usize = 8192;
    const DIRTY_GRANULE: u32 = 512;
    const WORDS: usize = Primary::bitmap_words(DISK_BYTES as u64, DIRTY_GRANULE);
    const REPLICA_WORDS: usize = Primary::replica_words(DISK_BYTES as u64, DIRTY_GRANULE);
    const MEMORY_BYTES: usize = WINDOW as usize;
    const GUEST: ConnectionId = ConnectionId(1);
    const NOW: Micros = Micros(0);

    static DISK: ConstStaticCell<[u8; DISK_BYTES]> = ConstStaticCell::new([1; DISK_BYTES]);
    static TWIN: ConstStaticCell<[u8; DISK_BYTES]> = ConstStaticCell::new([1; DISK_BYTES]);
    static MEMORY: ConstStaticCell<[u8; MEMORY_BYTES]> = ConstStaticCell::new([0; MEMORY_BYTES]);
    static TABLE: ConstStaticCell<[Slot<Work>; 4]> = ConstStaticCell::new([Slot::FREE; 4]);
    static CONNECTIONS: ConstStaticCell<[Connection<()>; 1]> = ConstStaticCell::new([Connection::FREE; 1]);
    static WRITTEN: ConstStaticCell<[u64; WORDS]> = ConstStaticCell::new([0; WORDS]);
    static LOST: ConstStaticCell<[u64; WORDS]> = ConstStaticCell::new([0; WORDS]);
    static REPLICA: ConstStaticCell<[u64; REPLICA_WORDS]> = ConstStaticCell::new([0; REPLICA_WORDS]);
    static REPLICAS: StaticCell<[Replica<'static>; 1]> = StaticCell::new();

    type Disk = Blocking<RamDisk<'static>>;

    struct Mirror {
        driver: Driver<Primary<'static>, PrimaryDevices<Disk, [Disk; 1]>>,
        memory: Windows<'static>,
    }

    impl Mirror {
        fn offer(&mut self, input: Input) -> Option<Emitted> {
            self.driver.offer(NOW, input).unwrap();
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

        fn write(&mut self, offset: u64, length: u32, byte: u8) -> Result<(), Errno> {
            let data = Data { buffer: BufferIndex(0), offset: 0, length };
            self.memory.bytes(data).unwrap().fill(byte);
            let extent = Extent { offset, length: length.into() };
            let request = Request::whole(RequestId(1), Op::Write { data, fua: false }, extent);
            match self.offer(Input::Request(GUEST, request)) {
                Some(Emitted::Reply(Reply { result, .. })) => result.map(|_| ()),
                other => panic!("no reply but {other:?}"),
            }
        }

        fn are_twins(&self) -> bool {
            let devices = self.driver.devices();
            devices.disk.disk().content() == devices.replicas[0].disk().content()
        }

        fn misses_bytes(&self) -> u64 {
            self.driver.machine().replica(0).unwrap().dirty_bytes
        }
    }

    #[init]
    fn init() -> Mirror {
        twinblock_on_target::guard_stack();
        let (disk, twin) =
            (Blocking::new(RamDisk::new(DISK.take())), Blocking::new(RamDisk::new(TWIN.take())));
        let geometry = BlockDevice::<Windows<'_>>::geometry(&disk);
        let config = Config { window_bytes: WINDOW, dirty_granule_bytes: DIRTY_GRANULE, block_bytes: 1 };
        let storage = Storage {
            table: TABLE.take(),
            connections: CONNECTIONS.take(),
            written: WRITTEN.take(),
            lost: LOST.take(),
            replicas: REPLICAS.init([Replica::new(REPLICA.take())]),
        };
        let machine = Primary::new(config, geometry, storage).unwrap();
        let mut mirror = Mirror {
            driver: Driver::new(machine, PrimaryDevices::new(disk, [twin])),
            memory: Windows::new(MEMORY.take(), WINDOW),
        };
        assert_eq!(mirror.offer(Input::Opened(GUEST)), None);
        mirror.command(Command::Attach { replica: 0, is_empty: false, is_new: true });
        assert_eq!(mirror.offer(Input::Connected(0, geometry)), None);
        mirror.command(Command::Start { primary: true });
        mirror
    }

    #[test]
    fn a_write_reaches_both_disks(mut mirror: Mirror) {
        mirror.write(1024, 1000, 2).unwrap();
        assert!(mirror.are_twins());
        assert_eq!(mirror.driver.devices().disk.disk().content()[1024], 2);
        assert_eq!(mirror.misses_bytes(), 0);
    }

    #[test]
    fn a_replica_that_fails_is_behind_and_the_guest_does_not_notice(mut mirror: Mirror) {
        mirror.driver.devices_mut().replicas[0].disk_mut().next_write = Some(Errno::Io);
        mirror.write(1024, 600, 3).unwrap();
        assert!(!mirror.are_twins());
        assert_eq!(mirror.misses_bytes(), 1024);
    }
}
