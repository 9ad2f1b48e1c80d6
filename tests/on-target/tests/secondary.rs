//! A secondary over two disks in RAM, on the target: what its primary writes, what its guest sees, a checkpoint and a
//! failover.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::block::{BlockDevice, Blocking};
    use twinblock_core::buffer::index::{Index, Node as IndexNode};
    use twinblock_core::driver::{Driver, Emitted, SecondaryDevices};
    use twinblock_core::order::Slot;
    use twinblock_core::secondary::Connection;
    use twinblock_core::secondary::{Command, Config, Input, Port, Secondary, Storage, WhenFull, Work};
    use twinblock_core::{
        BufferIndex, CommandId, ConnectionId, Data, Errno, Extent, Memory, Micros, Notice, Op, Refused,
        Reply, Request, RequestId, Stage, Windows,
    };
    use twinblock_on_target::RamDisk;

    const GRANULE: u32 = 512;
    const WINDOW: u32 = 2048;
    const DISK_BYTES: usize = 16 * 1024;
    const SLOTS: usize = 12;
    const BUFFER_BYTES: usize = SLOTS * GRANULE as usize;
    const SCRATCH: u8 = 2;
    const WINDOWS: usize = SCRATCH as usize + 1;
    const MEMORY_BYTES: usize = WINDOWS * WINDOW as usize;
    const REQUESTS: u16 = 4;

    static DISK: ConstStaticCell<[u8; DISK_BYTES]> = ConstStaticCell::new([1; DISK_BYTES]);
    static BUFFER: ConstStaticCell<[u8; BUFFER_BYTES]> = ConstStaticCell::new([0; BUFFER_BYTES]);
    static MEMORY: ConstStaticCell<[u8; MEMORY_BYTES]> = ConstStaticCell::new([0; MEMORY_BYTES]);
    static TABLE: ConstStaticCell<[Slot<Work>; 2 * REQUESTS as usize + 1]> =
        ConstStaticCell::new([Slot::FREE; 2 * REQUESTS as usize + 1]);
    static NODES: ConstStaticCell<[IndexNode; Index::nodes_for(SLOTS)]> =
        ConstStaticCell::new([IndexNode::EMPTY; Index::nodes_for(SLOTS)]);
    static CONNECTIONS: ConstStaticCell<[Connection; 2]> = ConstStaticCell::new([Connection::FREE; 2]);

    const PRIMARY: ConnectionId = ConnectionId(1);
    const GUEST: ConnectionId = ConnectionId(2);
    const NOW: Micros = Micros(0);

    type Disk = Blocking<RamDisk<'static>>;

    struct Node {
        driver: Driver<Secondary<'static>, SecondaryDevices<Disk, Disk>>,
        memory: Windows<'static>,
        next_id: u32,
    }

    impl Node {
        fn offer(&mut self, input: Input) -> Option<Emitted> {
            self.driver.offer(NOW, input).unwrap();
            let mut last = None;
            while let Some(emitted) = self.driver.poll(NOW, &mut self.memory) {
                if !matches!(emitted, Emitted::Notice(Notice::Event(_))) {
                    assert!(last.is_none(), "more than one answer");
                    last = Some(emitted);
                }
            }
            last
        }

        fn command(&mut self, command: Command) -> Result<(), Refused> {
            self.next_id += 1;
            let id = CommandId(self.next_id);
            match self.offer(Input::Command(id, command)) {
                Some(Emitted::Notice(Notice::Answer(answered, result))) if answered == id => result,
                other => panic!("no answer but {other:?}"),
            }
        }

        fn request(
            &mut self,
            connection: ConnectionId,
            op: Op,
            offset: u64,
            length: u32,
        ) -> Result<(), Errno> {
            self.next_id += 1;
            let id = RequestId(self.next_id);
            let extent = Extent { offset, length: length.into() };
            match self.offer(Input::Request(connection, Request::whole(id, op, extent))) {
                Some(Emitted::Reply(Reply { id: answered, result })) if answered == id => result.map(|_| ()),
                other => panic!("no reply but {other:?}"),
            }
        }

        fn write(
            &mut self,
            connection: ConnectionId,
            offset: u64,
            length: u32,
            byte: u8,
        ) -> Result<(), Errno> {
            let data = client_data(length);
            self.memory.bytes(data).unwrap().fill(byte);
            self.request(connection, Op::Write { data, fua: false }, offset, length)
        }

        /// Whether a client reads this byte all over the range.
        fn reads(&mut self, connection: ConnectionId, offset: u64, length: u32, byte: u8) -> bool {
            let data = client_data(length);
            self.memory.bytes(data).unwrap().fill(!byte);
            self.request(connection, Op::Read(data), offset, length).unwrap();
            self.memory.bytes(data).unwrap().iter().all(|read| *read == byte)
        }

        fn disk_holds(&self, offset: usize, length: usize, byte: u8) -> bool {
            self.driver.devices().disk.disk().content()[offset..offset + length]
                .iter()
                .all(|held| *held == byte)
        }

        fn start(&mut self) {
            self.command(Command::Start { primary: false }).unwrap();
        }
    }

    /// The window that is left to clients; the others are the machine's.
    fn client_data(length: u32) -> Data {
        Data { buffer: BufferIndex(SCRATCH.into()), offset: 0, length }
    }

    #[init]
    fn init() -> Node {
        twinblock_on_target::guard_stack();
        let (disk, buffer) =
            (Blocking::new(RamDisk::new(DISK.take())), Blocking::new(RamDisk::new(BUFFER.take())));
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
        let geometry = |device: &Disk| BlockDevice::<Windows<'_>>::geometry(device);
        let storage = Storage { table: TABLE.take(), nodes: NODES.take(), connections: CONNECTIONS.take() };
        let machine = Secondary::new(config, geometry(&disk), geometry(&buffer), storage).unwrap();
        let mut node =
            Node { driver: Driver::new(machine, SecondaryDevices { disk, buffer }), memory, next_id: 0 };
        let opened = |connection, port| Input::Opened { connection, port, identity: None };
        assert_eq!(node.offer(opened(PRIMARY, Port::Replication)), None);
        assert_eq!(node.offer(opened(GUEST, Port::Guest)), None);
        node
    }

    #[test]
    fn the_guest_can_do_nothing_before_the_start(mut node: Node) {
        assert_eq!(node.write(GUEST, 0, 512, 9), Err(Errno::Io));
        assert_eq!(node.request(GUEST, Op::Read(client_data(512)), 0, 512), Err(Errno::Io));
    }

    #[test]
    fn write_guest_view_checkpoint_and_failover(mut node: Node) {
        node.start();
        // The primary's write goes to the disk and not into the view, whatever part of a granule it is.
        node.write(PRIMARY, 100, 1500, 2).unwrap();
        assert!(node.disk_holds(100, 1500, 2));
        assert!(node.reads(GUEST, 0, 2048, 1));
        assert!(node.reads(PRIMARY, 100, 1500, 2));
        // The guest's writes go into the view and not to the disk.
        node.write(GUEST, 4096, 600, 3).unwrap();
        assert!(node.reads(GUEST, 4096, 600, 3));
        assert!(node.reads(GUEST, 4696, 500, 1));
        assert!(node.disk_holds(4096, 1100, 1));
        // A checkpoint makes the disk the view.
        node.command(Command::Checkpoint { force: false }).unwrap();
        assert!(node.reads(GUEST, 100, 1500, 2));
        assert!(node.reads(GUEST, 4096, 1100, 1));
        assert_eq!(node.driver.machine().buffer().used_bytes(), 0);
        // A failover leaves the checkpoint and what the guest has written since.
        node.write(PRIMARY, 0, 1024, 4).unwrap();
        node.write(GUEST, 8192, 512, 5).unwrap();
        node.command(Command::Stop { failover: true, force: false }).unwrap();
        assert_eq!(node.driver.machine().stage(), Stage::Done);
        assert!(node.disk_holds(0, 100, 1) && node.disk_holds(100, 924, 2));
        assert!(node.disk_holds(8192, 512, 5));
        assert!(node.reads(GUEST, 8192, 512, 5));
        assert_eq!(node.write(PRIMARY, 0, 512, 6), Err(Errno::Shutdown));

        let stack = twinblock_on_target::stack_use();
        semihosting::println!("stack: {} of {} bytes", stack.used_bytes, stack.total_bytes);
    }

    #[test]
    fn a_stop_without_failover_leaves_what_the_primary_wrote(mut node: Node) {
        node.start();
        node.write(PRIMARY, 0, 1024, 4).unwrap();
        node.write(GUEST, 0, 2048, 5).unwrap();
        node.command(Command::Stop { failover: false, force: false }).unwrap();
        assert_eq!(node.driver.machine().stage(), Stage::Done);
        assert!(node.disk_holds(0, 1024, 4) && node.disk_holds(1024, 1024, 1));
        assert!(node.reads(GUEST, 0, 1024, 4));
    }

    #[test]
    fn a_disk_that_fails_in_the_commit_can_be_tried_again(mut node: Node) {
        node.start();
        node.write(GUEST, 1024, 512, 7).unwrap();
        node.driver.devices_mut().disk.disk_mut().next_write = Some(Errno::Io);
        // Whether the answer comes before or after the commit has met the error, the stage tells.
        let _ = node.command(Command::Stop { failover: true, force: false });
        assert_eq!(node.driver.machine().stage(), Stage::FailoverFailed);
        assert!(node.reads(GUEST, 1024, 512, 7));
        node.command(Command::Stop { failover: true, force: false }).unwrap();
        assert_eq!(node.driver.machine().stage(), Stage::Done);
        assert!(node.disk_holds(1024, 512, 7));
    }
}
