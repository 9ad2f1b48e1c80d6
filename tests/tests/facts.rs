//! What QEMU's unit test of block replication states, as facts of both machines over plain disks in memory.

use twinblock_core::block::{BlockDevice, Blocking, BlockingDisk};
use twinblock_core::buffer::index::{Index, Node};
use twinblock_core::driver::{Driver, Emitted, PrimaryDevices, SecondaryDevices};
use twinblock_core::node::{Managed, Operation, Trouble};
use twinblock_core::order::Slot;
use twinblock_core::primary::{self, Primary, Replica};
use twinblock_core::secondary::{self, Port, Secondary, WhenFull};
use twinblock_core::{
    BufferIndex, CommandId, Connection, ConnectionId, Data, Errno, Extent, Identity, Memory, Micros, Notice,
    Op, Outcome, Refused, Request, RequestId, Stage, Windows,
};

const SIZE: usize = 64 << 10;
const HALF: usize = SIZE / 2;
const WINDOW: usize = 4096;
const NOW: Micros = Micros(0);
const PRIMARY: ConnectionId = ConnectionId(1);
const GUEST: ConnectionId = ConnectionId(2);

struct Ram(Vec<u8>);

impl BlockingDisk for Ram {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        bytes.copy_from_slice(&self.0[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

fn disk(byte: u8, size: usize) -> Blocking<Ram> {
    Blocking::new(Ram(vec![byte; size]))
}

type PrimaryDriver = Driver<Primary<'static>, PrimaryDevices<Blocking<Ram>, [Blocking<Ram>; 1]>>;
type SecondaryDriver = Driver<Secondary<'static>, SecondaryDevices<Blocking<Ram>, Blocking<Ram>>>;

fn leak<T: Clone>(value: T, count: usize) -> &'static mut [T] {
    vec![value; count].leak()
}

fn windows() -> Windows<'static> {
    let mut windows = Windows::new(leak(0, 4 * WINDOW), WINDOW as u32);
    windows.reserve(2);
    windows
}

/// A primary whose disk holds `p`, with a replica that holds `r`.
fn a_primary() -> PrimaryDriver {
    let words = Primary::bitmap_words(SIZE as u64, 4096);
    let storage = primary::Storage {
        table: leak(Slot::FREE, 8),
        connections: leak(Connection::FREE, 2),
        written: leak(0, words),
        lost: leak(0, words),
        replicas: vec![Replica::new(leak(0, Primary::replica_words(SIZE as u64, 4096)))].leak(),
    };
    let config = primary::Config { window_bytes: WINDOW as u32, dirty_granule_bytes: 4096, block_bytes: 1 };
    let (disk, replica) = (disk(b'p', SIZE), disk(b'r', SIZE));
    let geometry = BlockDevice::<Windows<'_>>::geometry(&disk);
    let machine = Primary::new(config, geometry, storage).expect("it fits");
    let mut driver = Driver::new(machine, PrimaryDevices::new(disk, [replica]));
    let attach = primary::Command::Attach { replica: 0, is_empty: false, is_new: true };
    for input in [
        primary::Input::Opened(PRIMARY),
        primary::Input::Command(CommandId(0), attach),
        primary::Input::Connected(0, geometry),
    ] {
        driver.offer(NOW, input).expect("it is taken");
    }
    driver
}

/// A secondary whose disk holds `s`.
fn a_secondary() -> SecondaryDriver {
    let slots = SIZE / 512;
    let storage = secondary::Storage {
        table: leak(Slot::FREE, 9),
        nodes: leak(Node::EMPTY, Index::nodes_for(slots)),
        connections: leak(secondary::Connection::FREE, 2),
    };
    let config = secondary::Config {
        granule_bytes: 512,
        window_bytes: WINDOW as u32,
        when_full: WhenFull::Stall,
        stall_max: Micros::from_ms(500),
        replication_requests: 4,
        guest_requests: 4,
        scratch_first: BufferIndex(0),
        scratch_count: 2,
    };
    let (disk, buffer) = (disk(b's', SIZE), disk(0, SIZE));
    let geometry = |device: &Blocking<Ram>| BlockDevice::<Windows<'_>>::geometry(device);
    let machine = Secondary::new(config, geometry(&disk), geometry(&buffer), storage).expect("it fits");
    let mut driver = Driver::new(machine, SecondaryDevices { disk, buffer });
    for (connection, port, identity) in
        [(PRIMARY, Port::Replication, Some(Identity([1; 16]))), (GUEST, Port::Guest, None)]
    {
        driver.offer(NOW, secondary::Input::Opened { connection, port, identity }).expect("it is taken");
    }
    driver
}

/// One piece, start to end.
macro_rules! transfer {
    ($driver:expr, $machine:ident, $connection:expr, $op:expr, $offset:expr, $memory:expr) => {{
        let extent = Extent { offset: $offset as u64, length: WINDOW as u64 };
        let request = Request::whole(RequestId(7), $op, extent);
        $driver.offer(NOW, $machine::Input::Request($connection, request)).expect("it is taken");
        let mut result = None;
        while let Some(emitted) = $driver.poll(NOW, $memory) {
            if let Emitted::Reply(reply) = emitted {
                result = Some(reply.result);
            }
        }
        result.expect("it is answered")
    }};
}

/// An operation, start to end.
macro_rules! operate {
    ($driver:expr, $machine:ident, $wanted:expr) => {{
        let mut result = $driver.offer(NOW, $machine::Input::Command(CommandId(1), $wanted));
        let mut memory = windows();
        while let Some(emitted) = $driver.poll(NOW, &mut memory) {
            if let Emitted::Notice(Notice::Answer(CommandId(1), answer)) = emitted {
                result = answer;
            }
        }
        result
    }};
}

const DATA: Data = Data { buffer: BufferIndex(2), offset: 0, length: WINDOW as u32 };

/// Writes one byte everywhere from `from` to `to`.
macro_rules! fill {
    ($driver:expr, $machine:ident, $connection:expr, $from:expr, $to:expr, $byte:expr) => {{
        let mut memory = windows();
        let mut result = Ok(Outcome::Done);
        for offset in ($from..$to).step_by(WINDOW) {
            memory.bytes(DATA).expect("it is there").fill($byte);
            let op = Op::Write { data: DATA, fua: false };
            result = result.and(transfer!($driver, $machine, $connection, op, offset, &mut memory));
        }
        result
    }};
}

/// What the guest of a secondary reads everywhere.
fn view(driver: &mut SecondaryDriver) -> Result<Vec<u8>, Errno> {
    let mut memory = windows();
    let mut view = Vec::new();
    for offset in (0..SIZE).step_by(WINDOW) {
        transfer!(driver, secondary, GUEST, Op::Read(DATA), offset, &mut memory)?;
        view.extend_from_slice(memory.bytes(DATA).expect("it is there"));
    }
    Ok(view)
}

/// Both halves.
fn halves(lower: u8, upper: u8) -> Vec<u8> {
    [vec![lower; HALF], vec![upper; HALF]].concat()
}

const START_PRIMARY: Operation = Operation::Start { primary: true };
const START_SECONDARY: Operation = Operation::Start { primary: false };
const CHECKPOINT: Operation = Operation::Checkpoint { force: false };
const STOP: Operation = Operation::Stop { failover: false, force: false };
const FAILOVER: Operation = Operation::Stop { failover: true, force: false };

/// A secondary that runs, with a speculative write of the primary in the upper half and its guest's in the lower.
fn a_running_secondary() -> SecondaryDriver {
    let mut driver = a_secondary();
    assert_eq!(operate!(driver, secondary, START_SECONDARY.into()), Ok(()));
    assert_eq!(fill!(driver, secondary, PRIMARY, HALF, SIZE, b'p'), Ok(Outcome::Done));
    assert_eq!(fill!(driver, secondary, GUEST, 0, HALF, b'g'), Ok(Outcome::Done));
    driver
}

#[test]
fn before_the_start_a_primary_forwards_nothing() {
    let mut driver = a_primary();
    assert_eq!(fill!(driver, primary, PRIMARY, 0, SIZE, b'x'), Ok(Outcome::Done));
    assert!(driver.devices().disk.disk().0.iter().all(|byte| *byte == b'x'));
    assert!(driver.devices().replicas[0].disk().0.iter().all(|byte| *byte == b'r'));
    assert!(driver.machine().is_behind(), "and knows it");
}

#[test]
fn on_a_primary_start_checkpoint_get_error_and_stop_succeed() {
    let mut driver = a_primary();
    assert_eq!(operate!(driver, primary, primary::Command::Start { primary: true }), Ok(()));
    assert_eq!(fill!(driver, primary, PRIMARY, 0, HALF, b'x'), Ok(Outcome::Done));
    assert_eq!(driver.devices().replicas[0].disk().0, halves(b'x', b'r'), "forwarded");
    assert_eq!(driver.machine().trouble(), Ok(None));
    assert_eq!(driver.machine().check(CHECKPOINT), Ok(()));
    assert_eq!(operate!(driver, primary, primary::Command::Barrier { is_urgent: false }), Ok(()));
    assert_eq!(operate!(driver, primary, primary::Command::Release { is_checkpoint: true }), Ok(()));
    assert_eq!(driver.machine().trouble(), Ok(None));
    assert_eq!(operate!(driver, primary, primary::Command::Stop), Ok(()));
    assert_eq!(driver.machine().stage(), Stage::Done);
    assert_eq!(driver.machine().trouble(), Ok(None));
}

#[test]
fn a_primary_that_has_stopped_forwards_nothing() {
    let mut driver = a_primary();
    assert_eq!(operate!(driver, primary, primary::Command::Start { primary: true }), Ok(()));
    assert_eq!(operate!(driver, primary, primary::Command::Stop), Ok(()));
    assert_eq!(fill!(driver, primary, PRIMARY, 0, HALF, b'x'), Ok(Outcome::Done));
    assert_eq!(driver.devices().disk.disk().0, halves(b'x', b'p'));
    assert_eq!(driver.devices().replicas[0].disk().0, halves(b'r', b'r'));
    assert_eq!(driver.machine().trouble(), Ok(Some(Trouble::Behind)));
}

#[test]
fn before_the_start_the_guest_of_a_secondary_can_neither_read_nor_write() {
    let mut driver = a_secondary();
    assert_eq!(view(&mut driver), Err(Errno::Io));
    assert_eq!(fill!(driver, secondary, GUEST, 0, HALF, b'g'), Err(Errno::Io));
    assert_eq!(driver.machine().trouble(), Err(Refused::NotRunning));
}

#[test]
fn after_the_start_the_guest_of_a_secondary_reads_the_secondary_disk() {
    let mut driver = a_secondary();
    assert_eq!(fill!(driver, secondary, PRIMARY, HALF, SIZE, b'1'), Ok(Outcome::Done), "a first full copy");
    assert_eq!(operate!(driver, secondary, START_SECONDARY.into()), Ok(()));
    assert_eq!(view(&mut driver), Ok(halves(b's', b'1')));
}

#[test]
fn a_write_of_the_upper_half_by_the_primary_is_on_the_disk_and_not_in_the_view() {
    let mut driver = a_secondary();
    assert_eq!(operate!(driver, secondary, START_SECONDARY.into()), Ok(()));
    assert_eq!(fill!(driver, secondary, PRIMARY, HALF, SIZE, b'p'), Ok(Outcome::Done));
    assert_eq!(view(&mut driver), Ok(halves(b's', b's')));
    assert_eq!(driver.devices().disk.disk().0, halves(b's', b'p'));
}

#[test]
fn a_guest_write_of_the_lower_half_is_read_back_and_not_on_the_disk() {
    let mut driver = a_running_secondary();
    assert_eq!(view(&mut driver), Ok(halves(b'g', b's')));
    assert_eq!(driver.devices().disk.disk().0, halves(b's', b'p'));
}

#[test]
fn after_a_checkpoint_the_guest_reads_what_the_primary_wrote_and_its_own_writes_are_gone() {
    let mut driver = a_running_secondary();
    assert_eq!(operate!(driver, secondary, CHECKPOINT.into()), Ok(()));
    assert_eq!(view(&mut driver), Ok(halves(b's', b'p')));
    assert_eq!(driver.machine().trouble(), Ok(None));
}

#[test]
fn after_a_failover_the_guest_reads_its_own_lower_half_and_the_old_upper_half() {
    let mut driver = a_running_secondary();
    assert_eq!(operate!(driver, secondary, FAILOVER.into()), Ok(()));
    assert_eq!(driver.machine().stage(), Stage::Done);
    assert_eq!(view(&mut driver), Ok(halves(b'g', b's')));
    assert_eq!(driver.devices().disk.disk().0, halves(b'g', b's'));
}

#[test]
fn after_a_stop_without_failover_the_disk_has_every_write_of_the_primary() {
    let mut driver = a_running_secondary();
    assert_eq!(operate!(driver, secondary, STOP.into()), Ok(()));
    assert_eq!(view(&mut driver), Ok(halves(b's', b'p')));
}

#[test]
fn on_a_secondary_that_runs_get_error_succeeds_and_a_second_start_does_not() {
    let mut driver = a_running_secondary();
    assert_eq!(driver.machine().trouble(), Ok(None));
    assert_eq!(operate!(driver, secondary, START_SECONDARY.into()), Err(Refused::Running));
    assert_eq!(view(&mut driver), Ok(halves(b'g', b's')));
}

#[test]
fn after_a_failover_start_checkpoint_and_stop_are_ignored_with_success_and_the_view_stays() {
    let mut driver = a_running_secondary();
    assert_eq!(operate!(driver, secondary, FAILOVER.into()), Ok(()));
    for ignored in [START_PRIMARY, CHECKPOINT, STOP, FAILOVER] {
        assert_eq!(operate!(driver, secondary, ignored.into()), Ok(()), "{ignored:?}");
        assert_eq!(driver.machine().stage(), Stage::Done, "{ignored:?}");
        assert_eq!(view(&mut driver), Ok(halves(b'g', b's')), "{ignored:?}");
    }
    assert_eq!(driver.machine().trouble(), Ok(None), "a healthy failover shows no error");
    assert_eq!(fill!(driver, secondary, GUEST, HALF, SIZE, b'h'), Ok(Outcome::Done));
    assert_eq!(driver.devices().disk.disk().0, halves(b'g', b'h'));
}

#[test]
fn after_a_failover_writes_of_the_old_primary_are_refused() {
    let mut driver = a_running_secondary();
    assert_eq!(operate!(driver, secondary, FAILOVER.into()), Ok(()));
    assert_eq!(fill!(driver, secondary, PRIMARY, 0, SIZE, b'p'), Err(Errno::Shutdown));
    assert_eq!(view(&mut driver), Ok(halves(b'g', b's')));
}

#[test]
fn operations_in_the_wrong_stage_or_mode_are_refused_and_change_nothing() {
    let mut secondary = a_secondary();
    for (wanted, refused) in [
        (START_PRIMARY, Refused::WrongMode { primary_wanted: true }),
        (CHECKPOINT, Refused::NotRunning),
        (STOP, Refused::NotRunning),
        (FAILOVER, Refused::NotRunning),
    ] {
        assert_eq!(operate!(secondary, secondary, wanted.into()), Err(refused), "{wanted:?}");
        assert_eq!(secondary.machine().stage(), Stage::None);
    }
    let mut primary = a_primary();
    for (wanted, refused) in [
        (primary::Command::Start { primary: false }, Refused::WrongMode { primary_wanted: false }),
        (primary::Command::Barrier { is_urgent: false }, Refused::NotRunning),
        (primary::Command::Stop, Refused::NotRunning),
    ] {
        assert_eq!(operate!(primary, primary, wanted), Err(refused), "{wanted:?}");
        assert_eq!(primary.machine().stage(), Stage::None);
    }
}
