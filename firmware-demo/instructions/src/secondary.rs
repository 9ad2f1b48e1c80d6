//! The secondary: writes of the primary, reads of the guest, and checkpoints.

use static_cell::ConstStaticCell;
use twinblock_core::buffer::index::{Index, Node};
use twinblock_core::driver::{Driver, Emitted, SecondaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::secondary::{
    Command, Config, Connection, Input, Port, Secondary, Storage, WhenFull, Work,
};
use twinblock_core::{
    BufferIndex, CommandId, ConnectionId, Data, Extent, Micros, Notice, Op, Request, RequestId, Windows,
};

use crate::null::Null;
use crate::{BLOCK, Count, TIMES};

const DISK_BYTES: u64 = 1 << 30;
const BUFFER_BYTES: u64 = 16 << 20;
const REQUESTS: u16 = 4;
const TABLE: usize = 2 * REQUESTS as usize + 2;
const NODES: usize = Index::nodes_for(2 * TIMES as usize);
const WINDOWS: usize = 3;
const CONFIG: Config = Config {
    granule_bytes: BLOCK,
    window_bytes: BLOCK,
    when_full: WhenFull::Stall,
    stall_max: Micros::from_ms(500),
    replication_requests: REQUESTS,
    guest_requests: REQUESTS,
    scratch_first: BufferIndex(0),
    scratch_count: 2,
};
const PRIMARY: ConnectionId = ConnectionId(1);
const GUEST: ConnectionId = ConnectionId(2);
const NOW: Micros = Micros(0);

static SLOTS: ConstStaticCell<[Slot<Work>; TABLE]> = ConstStaticCell::new([Slot::FREE; TABLE]);
static INDEX: ConstStaticCell<[Node; NODES]> = ConstStaticCell::new([Node::EMPTY; NODES]);
static CONNECTIONS: ConstStaticCell<[Connection; 2]> = ConstStaticCell::new([Connection::FREE; 2]);
static BYTES: ConstStaticCell<[u8; WINDOWS * BLOCK as usize]> =
    ConstStaticCell::new([0; WINDOWS * BLOCK as usize]);

type Volume = Driver<Secondary<'static>, SecondaryDevices<Null, Null>>;

/// Offers an input and polls until nothing is left: how many replies came, and how many commands were answered.
fn run(volume: &mut Volume, input: Input, memory: &mut Windows<'_>) -> (u32, u32) {
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

/// Every other granule, and not in order: each takes an entry of the index.
fn at(times: u32) -> Extent {
    let granule = u64::from(times * 211 % TIMES) * 2;
    Extent { offset: granule * u64::from(BLOCK), length: BLOCK.into() }
}

pub(crate) fn count() {
    let storage = Storage { table: SLOTS.take(), nodes: INDEX.take(), connections: CONNECTIONS.take() };
    let (disk, buffer) = (Null::new(DISK_BYTES), Null::new(BUFFER_BYTES));
    let Ok(machine) = Secondary::new(CONFIG, disk.shape(), buffer.shape(), storage) else {
        panic!("the settings do not fit")
    };
    let mut volume = Driver::new(machine, SecondaryDevices { disk, buffer });
    let memory = &mut Windows::new(BYTES.take(), BLOCK);
    let data = Data { buffer: BufferIndex(2), offset: 0, length: BLOCK };
    let command = |command| Input::Command(CommandId(1), command);
    for input in [
        command(Command::Start { primary: false }),
        Input::Opened { connection: PRIMARY, port: Port::Replication, identity: None },
        Input::Opened { connection: GUEST, port: Port::Guest, identity: None },
    ] {
        run(&mut volume, input, memory);
    }
    let write = |times| {
        let op = Op::Write { data, fua: false };
        Input::Request(PRIMARY, Request::whole(RequestId(times), op, at(times)))
    };
    let read = |times, beside| {
        let Extent { offset, length } = at(times);
        let extent = Extent { offset: offset + if beside { u64::from(BLOCK) } else { 0 }, length };
        Input::Request(GUEST, Request::whole(RequestId(times), Op::Read(data), extent))
    };
    let checkpoint = command(Command::Checkpoint { force: false });

    for (name, input) in [
        ("first-touch write", &write as &dyn Fn(u32) -> Input),
        ("repeated write", &write),
        ("guest read, hit", &|times| read(times, false)),
        ("guest read, miss", &|times| read(times, true)),
    ] {
        let mut count = Count::new(name);
        for times in 0..TIMES {
            let input = input(times);
            assert_eq!(count.once(|| run(&mut volume, input, memory)), (1, 0));
        }
        count.tell();
    }
    let mut full = Count::new("checkpoint, 512 granules kept");
    assert_eq!(full.once(|| run(&mut volume, checkpoint, memory)), (0, 1));
    full.tell();
    let mut empty = Count::new("checkpoint, nothing kept");
    assert_eq!(empty.once(|| run(&mut volume, checkpoint, memory)), (0, 1));
    empty.tell();
}
