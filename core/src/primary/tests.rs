mod bounds;
mod flushes;
mod hurried;
mod legs;
mod lost;
mod managed;
mod reads;
mod stopped;
mod zeroes;

use std::vec;
use std::vec::Vec;

use super::{Command, Config, Input, Primary, Replica, Storage};
use crate::block::{Action, Capabilities, Completion, Geometry, Transfer};
use crate::driver::Machine;
use crate::order::Slot;
use crate::{
    BufferIndex, CommandId, Connection, ConnectionId, Data, Device, Errno, ErrorKind, Event, Extent, Micros,
    Notice, Op, Outcome, Output, Refused, Reply, Request, RequestId, Stage,
};

const NOW: Micros = Micros(0);
const GRANULE: u32 = 4096;
const SIZE: u64 = 10 * GRANULE as u64 + 512;
const GUEST: ConnectionId = ConnectionId(1);
const FIRST: Device = Device::Replica(0);
const SECOND: Device = Device::Replica(1);

fn geometry() -> Geometry {
    let capabilities = Capabilities::FLUSH | Capabilities::WRITE_ZEROES | Capabilities::STATUS;
    Geometry { size_bytes: SIZE, block_bytes: 1, capabilities }
}

fn leak<T: Clone>(value: T, count: usize) -> &'static mut [T] {
    vec![value; count].leak()
}

/// A primary whose transfers wait until the test lets them end.
struct Bench {
    machine: Primary<'static>,
    transfers: Vec<(Device, Transfer)>,
    replies: Vec<Reply>,
    answers: Vec<(CommandId, Result<(), Refused>)>,
    events: Vec<Event>,
    next: u32,
}

impl Bench {
    fn new() -> Self {
        Self::over(geometry())
    }

    fn over(disk: Geometry) -> Self {
        let config = Config { window_bytes: 16384, dirty_granule_bytes: GRANULE, block_bytes: 1 };
        let words = Primary::bitmap_words(SIZE, GRANULE);
        let each = Primary::replica_words(SIZE, GRANULE);
        let storage = Storage {
            table: leak(Slot::FREE, 8),
            connections: leak(Connection::FREE, 2),
            written: leak(0, words),
            lost: leak(0, words),
            replicas: vec![Replica::new(leak(0, each)), Replica::new(leak(0, each))].leak(),
        };
        let mut bench = Self {
            machine: Primary::new(config, disk, storage).unwrap(),
            transfers: Vec::new(),
            replies: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            next: 0,
        };
        bench.offer(Input::Opened(GUEST)).unwrap();
        bench
    }

    /// Running with two replicas that are reachable.
    fn running() -> Self {
        let mut bench = Self::new();
        for replica in [0, 1] {
            bench.command(Command::Attach { replica, is_empty: false, is_new: true }).unwrap();
            bench.offer(Input::Connected(replica, geometry())).unwrap();
        }
        bench.command(Command::Start { primary: true }).unwrap();
        bench
    }

    fn offer(&mut self, input: Input) -> Result<(), Refused> {
        let result = Machine::handle_input(&mut self.machine, NOW, input);
        self.poll();
        result
    }

    fn poll(&mut self) {
        while let Some(output) = Machine::poll_output(&mut self.machine) {
            match output {
                Output::Transfer(device, transfer) => self.transfers.push((device, transfer)),
                Output::Reply(reply) => self.replies.push(reply),
                Output::Notice(Notice::Answer(command, result)) => self.answers.push((command, result)),
                Output::Notice(Notice::Event(event)) => self.events.push(event),
                Output::Notice(_) | Output::Fill(_) => {}
            }
        }
    }

    fn command(&mut self, command: Command) -> Result<(), Refused> {
        self.offer(Input::Command(CommandId(7), command))
    }

    fn request(&mut self, op: Op, offset: u64, length: u64) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        let request = Request::whole(id, op, Extent { offset, length });
        self.offer(Input::Request(GUEST, request)).unwrap();
        id
    }

    fn write(&mut self, offset: u64, length: u64) -> RequestId {
        self.request(Op::Write { data: data(length), fua: false }, offset, length)
    }

    fn read(&mut self, offset: u64, length: u64) -> RequestId {
        self.request(Op::Read(data(length)), offset, length)
    }

    /// Ends the oldest transfer on a device.
    fn end(&mut self, device: Device, result: Result<Outcome, Errno>) -> Transfer {
        let place =
            self.transfers.iter().position(|(on, _)| *on == device).expect("a transfer on this device");
        let (_, transfer) = self.transfers.remove(place);
        let completion = Completion { tag: transfer.tag, result };
        Machine::handle_completion(&mut self.machine, NOW, device, completion).unwrap();
        self.poll();
        transfer
    }

    fn ok(&mut self, device: Device) -> Transfer {
        self.end(device, Ok(Outcome::Done))
    }

    fn devices(&self) -> Vec<Device> {
        self.transfers.iter().map(|(device, _)| *device).collect()
    }

    fn reply(&mut self, id: RequestId) -> Option<Result<Outcome, Errno>> {
        let place = self.replies.iter().position(|reply| reply.id == id)?;
        Some(self.replies.remove(place).result)
    }

    fn is_behind(&self, replica: u8) -> bool {
        self.machine.replica(replica).unwrap().is_behind
    }

    fn dirty_bytes(&self, replica: u8) -> u64 {
        self.machine.replica(replica).unwrap().dirty_bytes
    }
}

fn data(length: u64) -> Data {
    Data { buffer: BufferIndex(0), offset: 0, length: length as u32 }
}

const DONE: Option<Result<Outcome, Errno>> = Some(Ok(Outcome::Done));
const IO: Result<Outcome, Errno> = Err(Errno::Io);

#[test]
fn nothing_is_forwarded_before_the_start_and_what_was_written_is_marked() {
    let mut bench = Bench::new();
    bench.command(Command::Attach { replica: 0, is_empty: false, is_new: true }).unwrap();
    bench.offer(Input::Connected(0, geometry())).unwrap();
    let id = bench.write(0, 512);
    assert_eq!(bench.devices(), [Device::Disk]);
    assert!(bench.is_behind(0), "marked before the guest hears of it");
    bench.ok(Device::Disk);
    assert_eq!(bench.reply(id), DONE);
    bench.command(Command::Start { primary: true }).unwrap();
    assert!(bench.is_behind(0));
    assert_eq!(bench.dirty_bytes(0), u64::from(GRANULE));
}

#[test]
fn a_write_is_answered_after_the_disk_and_every_replica() {
    let mut bench = Bench::running();
    let id = bench.write(100, 1000);
    assert_eq!(bench.devices(), [Device::Disk, FIRST, SECOND]);
    bench.ok(FIRST);
    bench.ok(Device::Disk);
    assert_eq!(bench.reply(id), None);
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
    assert!(!bench.machine.is_behind());
}

#[test]
fn a_replica_that_fails_is_behind_and_the_guest_is_not_disturbed() {
    let mut bench = Bench::running();
    let id = bench.write(GRANULE.into(), 1);
    bench.ok(Device::Disk);
    bench.end(FIRST, IO);
    assert!(bench.is_behind(0));
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
    assert!(!bench.is_behind(1));
    assert_eq!(bench.machine.errors().count(ErrorKind::Forward), 1);
    assert_eq!(bench.dirty_bytes(0), u64::from(GRANULE));
}

#[test]
fn a_granule_that_a_replica_misses_anyway_is_not_forwarded_and_others_still_are() {
    let mut bench = Bench::running();
    bench.write(0, 512);
    bench.ok(Device::Disk);
    bench.end(FIRST, IO);
    bench.ok(SECOND);
    bench.write(1024, 512);
    assert_eq!(bench.devices(), [Device::Disk, SECOND]);
    bench.write(2 * u64::from(GRANULE), 512);
    assert!(bench.devices().contains(&FIRST));
}

#[test]
fn what_is_written_while_a_replica_is_away_is_marked_and_reconnecting_does_not_end_that() {
    let mut bench = Bench::running();
    bench.offer(Input::Disconnected(0)).unwrap();
    assert!(!bench.is_behind(0), "it misses nothing yet");
    let id = bench.write(SIZE - 1, 1);
    assert!(bench.is_behind(0));
    bench.ok(Device::Disk);
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
    bench.offer(Input::Connected(0, geometry())).unwrap();
    assert!(bench.is_behind(0));
    assert_eq!(bench.dirty_bytes(0), u64::from(GRANULE));
}

#[test]
fn stopping_and_starting_again_leaves_behind_what_missed_something() {
    let mut bench = Bench::running();
    bench.command(Command::Stop).unwrap();
    assert_eq!(bench.machine.stage(), Stage::Done);
    bench.write(0, 1);
    assert_eq!(bench.devices(), [Device::Disk]);
    bench.ok(Device::Disk);
    bench.command(Command::Start { primary: true }).unwrap();
    assert!(bench.is_behind(0) && bench.is_behind(1));
}

#[test]
fn what_only_a_replica_took_is_read_from_it_until_the_disk_has_it_again() {
    let mut bench = Bench::running();
    let id = bench.write(0, 512);
    bench.end(Device::Disk, IO);
    bench.ok(FIRST);
    bench.end(SECOND, IO);
    assert_eq!(bench.reply(id), DONE, "one leg is enough");
    assert!(bench.is_behind(0) && bench.is_behind(1), "the twins differ");

    let id = bench.read(256, 2 * u64::from(GRANULE));
    assert_eq!(bench.devices(), [FIRST, Device::Disk]);
    assert_eq!(bench.ok(FIRST).extent, Extent::between(256, GRANULE.into()));
    bench.ok(Device::Disk);
    assert_eq!(bench.reply(id), DONE);

    // A part of the granule: the replica must get it too, although it is dirty there.
    bench.write(512, 512);
    assert_eq!(bench.devices(), [Device::Disk, FIRST]);
    bench.ok(Device::Disk);
    bench.ok(FIRST);
    bench.read(0, 1);
    assert_eq!(bench.devices(), [FIRST]);
    bench.ok(FIRST);

    bench.write(0, GRANULE.into());
    bench.ok(Device::Disk);
    bench.ok(FIRST);
    bench.read(0, 1);
    assert_eq!(bench.devices(), [Device::Disk]);
}

#[test]
fn what_no_leg_has_any_more_is_not_read_from_an_older_copy() {
    let mut bench = Bench::running();
    bench.write(0, 512);
    bench.end(Device::Disk, IO);
    bench.ok(FIRST);
    bench.end(SECOND, IO);
    bench.offer(Input::Disconnected(0)).unwrap();
    let id = bench.read(0, 512);
    assert_eq!(bench.devices(), []);
    assert_eq!(bench.reply(id), Some(IO));
    // It misses a write to that granule, so it no longer has the newest bytes of it.
    bench.write(512, 512);
    bench.ok(Device::Disk);
    bench.offer(Input::Connected(0, geometry())).unwrap();
    let id = bench.read(0, 512);
    assert_eq!(bench.reply(id), Some(IO));
}

#[test]
fn a_replica_that_lacks_another_write_to_the_granule_does_not_stand_in_for_the_disk() {
    let mut bench = Bench::running();
    let first = bench.write(0, 512);
    bench.write(512, 512);
    let end = |bench: &mut Bench, id: u64, device, result| {
        let is_it = |entry: &(Device, Transfer)| entry.0 == device && entry.1.extent.offset == id;
        let place = bench.transfers.iter().position(is_it).unwrap();
        let (_, transfer) = bench.transfers.remove(place);
        bench.offer(Input::Completed(device, Completion { tag: transfer.tag, result })).unwrap();
    };
    end(&mut bench, 512, FIRST, IO);
    end(&mut bench, 512, SECOND, IO);
    end(&mut bench, 512, Device::Disk, Ok(Outcome::Done));
    end(&mut bench, 0, FIRST, Ok(Outcome::Done));
    end(&mut bench, 0, SECOND, Ok(Outcome::Done));
    end(&mut bench, 0, Device::Disk, IO);
    assert_eq!(bench.reply(first), Some(IO), "from no leg both could be read back");
    bench.read(512, 512);
    assert_eq!(bench.devices(), [Device::Disk]);
}

#[test]
fn the_guest_hears_of_a_write_that_no_leg_took_and_the_replicas_are_marked() {
    let mut bench = Bench::running();
    let id = bench.write(0, 512);
    bench.end(Device::Disk, Err(Errno::NoSpace));
    bench.end(FIRST, IO);
    bench.end(SECOND, IO);
    assert_eq!(bench.reply(id), Some(Err(Errno::NoSpace)));
    assert!(bench.is_behind(0) && bench.is_behind(1));
    assert_eq!(bench.machine.errors().count(ErrorKind::PrimaryDisk), 1);
}

#[test]
fn a_read_that_fails_goes_to_a_replica_that_misses_nothing() {
    let mut bench = Bench::running();
    bench.write(0, 1);
    bench.ok(Device::Disk);
    bench.end(FIRST, IO);
    bench.ok(SECOND);
    let id = bench.read(u64::from(GRANULE), 512);
    bench.end(Device::Disk, IO);
    assert_eq!(bench.devices(), [SECOND], "the first is behind");
    bench.end(SECOND, Err(Errno::Shutdown));
    assert_eq!(bench.reply(id), Some(IO), "the first error is told");
}

#[test]
fn with_every_replica_behind_there_is_no_checkpoint() {
    use crate::node::{Managed, Operation};
    let checkpoint = Operation::Checkpoint { force: false };
    let mut bench = Bench::running();
    bench.offer(Input::Missing(0)).unwrap();
    assert_eq!(bench.machine.check(checkpoint), Ok(()));
    bench.offer(Input::Missing(1)).unwrap();
    assert_eq!(bench.machine.check(checkpoint), Err(Refused::NoReplica));
    for replica in [0, 1] {
        bench.command(Command::Detach { replica }).unwrap();
    }
    assert_eq!(bench.machine.check(checkpoint), Ok(()), "with none there is only the barrier");
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    assert_eq!(bench.machine.check(checkpoint), Ok(()), "one that finds another under way waits for it");
}

#[test]
fn a_flush_covers_the_replicas_and_one_that_fails_is_behind() {
    let mut bench = Bench::running();
    let id = bench.request(Op::Flush, 0, 0);
    assert_eq!(bench.devices(), [Device::Disk, FIRST, SECOND]);
    bench.ok(Device::Disk);
    bench.end(FIRST, IO);
    assert_eq!(bench.reply(id), None);
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
    assert!(bench.is_behind(0) && !bench.is_behind(1));

    let id = bench.request(Op::Flush, 0, 0);
    bench.end(Device::Disk, IO);
    bench.ok(FIRST);
    bench.end(SECOND, IO);
    assert_eq!(bench.reply(id), Some(IO), "the one that flushed misses something");
}

#[test]
fn overlapping_writes_reach_every_leg_in_one_order() {
    let mut bench = Bench::running();
    let first = bench.write(0, 1000);
    let second = bench.write(999, 1000);
    assert_eq!(bench.transfers.len(), 3);
    bench.ok(Device::Disk);
    bench.ok(FIRST);
    assert_eq!(bench.transfers.len(), 1, "the second waits for the slowest leg of the first");
    bench.ok(SECOND);
    assert_eq!(bench.reply(first), DONE);
    assert_eq!(bench.devices(), [Device::Disk, FIRST, SECOND]);
    assert_eq!(bench.reply(second), None);
}

#[test]
fn a_barrier_lets_reads_pass_and_holds_later_writes_until_it_is_released() {
    let mut bench = Bench::running();
    bench.write(0, 512);
    bench.answers.clear();
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    assert_eq!(bench.answers, [(CommandId(7), Ok(()))], "what came before was passed on");
    let id = bench.write(4096, 512);
    bench.read(8192, 512);
    assert_eq!(bench.devices(), [Device::Disk, FIRST, SECOND, Device::Disk]);
    assert_eq!(bench.command(Command::Barrier { is_urgent: true }), Err(Refused::InProgress));
    bench.transfers.clear();
    let epoch = bench.machine.epoch();
    bench.command(Command::Release { is_checkpoint: true }).unwrap();
    assert_eq!(bench.machine.epoch(), epoch + 1);
    assert_eq!(bench.devices(), [Device::Disk, FIRST, SECOND]);
    assert_eq!(bench.reply(id), None);
}

#[test]
fn a_barrier_waits_for_the_rest_of_a_long_request_unless_it_is_urgent() {
    for is_urgent in [false, true] {
        let mut bench = Bench::running();
        let piece = |number: u64, is_first, is_last| {
            let extent = Extent { offset: 16384 * number, length: 16384 };
            let op = Op::Write { data: data(16384), fua: false };
            Input::Request(GUEST, Request { id: RequestId(number as u32), op, extent, is_first, is_last })
        };
        bench.offer(piece(0, true, false)).unwrap();
        bench.answers.clear();
        bench.command(Command::Barrier { is_urgent }).unwrap();
        assert_eq!(!bench.answers.is_empty(), is_urgent);
        bench.offer(piece(1, false, true)).unwrap();
        assert_eq!(bench.answers.len(), 1);
        let is_passed_on = bench.transfers.len() == 6;
        assert_eq!(is_passed_on, !is_urgent);
    }
}

#[test]
fn a_barrier_that_is_hurried_no_longer_waits_and_one_that_is_reached_stays_so() {
    let mut bench = Bench::running();
    let op = Op::Write { data: data(16384), fua: false };
    let extent = Extent { offset: 0, length: 16384 };
    let first = Request { id: RequestId(1), op, extent, is_first: true, is_last: false };
    bench.offer(Input::Opened(ConnectionId(77))).unwrap();
    bench.offer(Input::Request(ConnectionId(77), first)).unwrap();
    bench.write(0, 512);
    bench.answers.clear();
    bench.offer(Input::Command(CommandId(8), Command::Barrier { is_urgent: false })).unwrap();
    assert_eq!((bench.answers.len(), bench.machine.awaits_pieces()), (0, true));
    bench.command(Command::Hurry).unwrap();
    assert_eq!(bench.answers, [(CommandId(7), Ok(())), (CommandId(8), Ok(()))]);
    assert!(!bench.machine.awaits_pieces());
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    assert_eq!(bench.transfers.len(), 0, "what had not begun comes after the barrier");
    bench.command(Command::Hurry).unwrap();
    bench.command(Command::Release { is_checkpoint: true }).unwrap();
    assert_eq!(bench.transfers.len(), 3);
    bench.command(Command::Hurry).unwrap();
    assert_eq!(bench.answers.len(), 5);
}

#[test]
fn a_barrier_gets_the_piece_that_it_waits_for_whatever_else_is_offered_meanwhile() {
    let mut bench = Bench::running();
    let other = ConnectionId(77);
    bench.offer(Input::Opened(other)).unwrap();
    let piece = |connection, id, number: u64, is_first| {
        let extent = Extent { offset: 4096 * number, length: 4096 };
        let op = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
        Input::Request(connection, Request { id: RequestId(id), op, extent, is_first, is_last: !is_first })
    };
    bench.offer(piece(GUEST, 1, 0, true)).unwrap();
    bench.answers.clear();
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    // What begins to modify meanwhile stays outside, and others leave the last place free.
    assert_eq!(bench.offer(piece(other, 2, 1, true)), Err(Refused::Busy));
    let flush = |id| Request::whole(RequestId(id), Op::Flush, Extent::default());
    let taken = (4..).take_while(|id| bench.offer(Input::Request(other, flush(*id))).is_ok()).count();
    assert_eq!((taken, bench.answers.len()), (6, 0));
    bench.offer(piece(GUEST, 1000, 1, false)).unwrap();
    while let Some(device) = bench.devices().first().copied() {
        bench.ok(device);
    }
    assert_eq!(bench.reply(RequestId(1000)), DONE);
    assert_eq!(bench.answers, [(CommandId(7), Ok(()))]);
}

#[test]
fn a_barrier_waits_for_a_write_that_waits_for_its_turn() {
    let mut bench = Bench::running();
    bench.write(0, 512);
    bench.write(0, 512);
    bench.answers.clear();
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    assert_eq!(bench.answers, []);
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    assert_eq!(bench.answers, [(CommandId(7), Ok(()))]);
    assert_eq!(bench.transfers.len(), 3);
}

#[test]
fn a_replica_attached_late_misses_what_was_written_and_keeps_that_when_it_is_detached() {
    let mut bench = Bench::new();
    bench.write(0, 1);
    bench.ok(Device::Disk);
    bench.command(Command::Attach { replica: 0, is_empty: false, is_new: true }).unwrap();
    assert_eq!((bench.is_behind(0), bench.dirty_bytes(0)), (true, GRANULE.into()));
    bench.command(Command::Detach { replica: 0 }).unwrap();
    assert!(!bench.machine.is_behind(), "it is no longer this primary's concern");
    bench.write(SIZE - 1, 1);
    bench.command(Command::Attach { replica: 0, is_empty: false, is_new: false }).unwrap();
    assert_eq!(bench.dirty_bytes(0), 2 * u64::from(GRANULE));
    bench.command(Command::Attach { replica: 1, is_empty: true, is_new: true }).unwrap();
    assert_eq!(bench.dirty_bytes(1), SIZE);
}

#[test]
fn a_replica_of_another_size_or_unfit_otherwise_is_refused_at_every_connection() {
    let mut bench = Bench::running();
    bench.offer(Input::Disconnected(0)).unwrap();
    let longer = Geometry { size_bytes: SIZE + 1, ..geometry() };
    let differs = Refused::SizeDiffers { here_bytes: SIZE, there_bytes: SIZE + 1 };
    assert_eq!(bench.offer(Input::Connected(0, longer)), Err(differs));
    let read_only = Geometry { capabilities: Capabilities::READ_ONLY, ..geometry() };
    assert_eq!(bench.offer(Input::Connected(0, read_only)), Err(Refused::Unsuitable));
    let coarse = Geometry { block_bytes: 512, ..geometry() };
    assert_eq!(bench.offer(Input::Connected(0, coarse)), Err(Refused::Unsuitable));
    bench.write(0, 1);
    assert_eq!(bench.devices(), [Device::Disk, SECOND]);
}

#[test]
fn every_operation_in_every_stage_does_what_the_table_says() {
    let start = Command::Start { primary: true };
    let wrong = Command::Start { primary: false };
    let barrier = Command::Barrier { is_urgent: false };
    let mut bench = Bench::new();
    assert_eq!(bench.command(wrong), Err(Refused::WrongMode { primary_wanted: false }));
    assert_eq!(bench.command(barrier), Err(Refused::NotRunning));
    assert_eq!(bench.command(Command::Stop), Err(Refused::NotRunning));
    assert_eq!(bench.machine.stage(), Stage::None);
    bench.command(start).unwrap();
    assert_eq!(bench.command(start), Err(Refused::Running));
    assert_eq!(bench.command(wrong), Err(Refused::Running), "the stage is checked before the mode");
    bench.command(Command::Stop).unwrap();
    assert_eq!(bench.machine.stage(), Stage::Done);
    bench.command(Command::Stop).unwrap();
    assert_eq!(bench.command(barrier), Err(Refused::NotRunning));
    bench.command(start).unwrap();
    assert_eq!(bench.machine.stage(), Stage::Running);
    assert_eq!(bench.command(Command::Detach { replica: 1 }), Err(Refused::Unknown));
    let attach = Command::Attach { replica: 9, is_empty: false, is_new: true };
    assert_eq!(bench.command(attach), Err(Refused::NoRoom));
}
