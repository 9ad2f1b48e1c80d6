//! The primary: a write to the disk and one replica, a read, and its part of a checkpoint.

use static_cell::ConstStaticCell;
use twinblock_core::driver::{Driver, Emitted, PrimaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::primary::{Command, Config, Input, Primary, Replica, Storage, Work};
use twinblock_core::{
    BufferIndex, CommandId, Connection, ConnectionId, Data, Extent, Micros, Notice, Op, Request, RequestId,
    Windows,
};

use crate::null::Null;
use crate::{BLOCK, Count, TIMES};

const DISK_BYTES: u64 = 1 << 30;
const DIRTY_GRANULE: u32 = 64 << 10;
const TABLE: usize = 8;
const CONFIG: Config = Config { window_bytes: BLOCK, dirty_granule_bytes: DIRTY_GRANULE, block_bytes: 1 };
const GUEST: ConnectionId = ConnectionId(1);
const NOW: Micros = Micros(0);
const WORDS: usize = Primary::bitmap_words(DISK_BYTES, DIRTY_GRANULE);
const REPLICA_WORDS: usize = Primary::replica_words(DISK_BYTES, DIRTY_GRANULE);

static SLOTS: ConstStaticCell<[Slot<Work>; TABLE]> = ConstStaticCell::new([Slot::FREE; TABLE]);
static CONNECTIONS: ConstStaticCell<[Connection<()>; 1]> = ConstStaticCell::new([Connection::FREE; 1]);
static WRITTEN: ConstStaticCell<[u64; WORDS]> = ConstStaticCell::new([0; WORDS]);
static LOST: ConstStaticCell<[u64; WORDS]> = ConstStaticCell::new([0; WORDS]);
static OF_REPLICA: ConstStaticCell<[u64; REPLICA_WORDS]> = ConstStaticCell::new([0; REPLICA_WORDS]);

type Volume<'m> = Driver<Primary<'m>, PrimaryDevices<Null, [Null; 1]>>;

/// Offers an input and polls until nothing is left: how many replies came, and how many commands were answered.
fn run(volume: &mut Volume<'_>, input: Input, memory: &mut Windows<'_>) -> (u32, u32) {
    let (mut replies, mut answers) = (0, 0);
    if volume.offer(NOW, input).is_err() {
        return (u32::MAX, u32::MAX);
    }
    while let Some(emitted) = volume.poll(NOW, memory) {
        match emitted {
            Emitted::Reply(reply) => replies += u32::from(reply.result.is_ok()),
            Emitted::Notice(Notice::Answer(_, result)) => answers += u32::from(result.is_ok()),
            Emitted::Notice(_) => {}
        }
    }
    (replies, answers)
}

fn at(times: u32) -> Extent {
    // Far apart, and not in order.
    let granules = DISK_BYTES / u64::from(BLOCK);
    let granule = u64::from(times).wrapping_mul(7919 * 31) % granules;
    Extent { offset: granule * u64::from(BLOCK), length: BLOCK.into() }
}

pub(crate) fn count() {
    let mut replicas = [Replica::new(OF_REPLICA.take())];
    let storage = Storage {
        table: SLOTS.take(),
        connections: CONNECTIONS.take(),
        written: WRITTEN.take(),
        lost: LOST.take(),
        replicas: &mut replicas,
    };
    let disk = Null::new(DISK_BYTES);
    let shape = disk.shape();
    let Ok(machine) = Primary::new(CONFIG, shape, storage) else { panic!("the settings do not fit") };
    let mut volume = Driver::new(machine, PrimaryDevices::new(disk, [Null::new(DISK_BYTES)]));
    let mut bytes = [0; BLOCK as usize];
    let memory = &mut Windows::new(&mut bytes, BLOCK);
    let data = Data { buffer: BufferIndex(0), offset: 0, length: BLOCK };
    let command = |command| Input::Command(CommandId(1), command);
    let attach = Command::Attach { replica: 0, is_empty: false, is_new: true };
    for input in [
        Input::Opened(GUEST),
        command(attach),
        Input::Connected(0, shape),
        command(Command::Start { primary: true }),
    ] {
        run(&mut volume, input, memory);
    }
    let request = |op, times| Input::Request(GUEST, Request::whole(RequestId(times), op, at(times)));

    let mut writes = Count::new("forwarded write");
    for times in 0..TIMES {
        let write = request(Op::Write { data, fua: false }, times);
        assert_eq!(writes.once(|| run(&mut volume, write, memory)), (1, 0));
    }
    writes.tell();
    let mut reads = Count::new("read of the primary");
    for times in 0..TIMES {
        let read = request(Op::Read(data), times);
        assert_eq!(reads.once(|| run(&mut volume, read, memory)), (1, 0));
    }
    reads.tell();
    let mut checkpoints = Count::new("barrier and release");
    for _ in 0..TIMES {
        let reached = checkpoints.once(|| {
            let (_, reached) = run(&mut volume, command(Command::Barrier { is_urgent: false }), memory);
            let (_, released) = run(&mut volume, command(Command::Release { is_checkpoint: true }), memory);
            (reached, released)
        });
        assert_eq!(reached, (1, 1));
    }
    checkpoints.tell();
}
