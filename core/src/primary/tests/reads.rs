//! Reads and questions for holes.

use super::*;

const fn hole(length: u64) -> Result<Outcome, Errno> {
    Ok(Outcome::Status { is_hole: true, length })
}

const fn all_data(length: u64) -> Option<Result<Outcome, Errno>> {
    Some(Ok(Outcome::Status { is_hole: false, length }))
}

#[test]
fn where_holes_are_is_asked_of_the_disk_alone_and_cut_to_the_question() {
    let mut bench = Bench::running();
    for (told, expected) in [(300, 300), (1000, 1000), (5000, 1000), (0, 1)] {
        let id = bench.request(Op::Status, 100, 1000);
        let asked = bench.end(Device::Disk, hole(told));
        assert_eq!((asked.action, asked.extent), (Action::Status, Extent { offset: 100, length: 1000 }));
        assert_eq!(bench.reply(id), Some(hole(expected)));
    }
    let id = bench.request(Op::Status, 0, 1000);
    bench.end(Device::Disk, IO);
    assert_eq!((bench.reply(id), bench.devices()), (Some(IO), vec![]), "no replica is asked");
}

#[test]
fn nothing_is_claimed_of_what_is_not_known_to_be_a_hole() {
    let mut bench = Bench::over(Geometry { capabilities: Capabilities::FLUSH, ..geometry() });
    let id = bench.request(Op::Status, 0, 1000);
    assert_eq!((bench.reply(id), bench.devices()), (all_data(1000), vec![]));

    let mut bench = Bench::running();
    bench.write(2 * u64::from(GRANULE), 512);
    bench.end(Device::Disk, IO);
    bench.ok(FIRST);
    bench.ok(SECOND);
    let id = bench.request(Op::Status, 0, 3 * u64::from(GRANULE));
    assert_eq!((bench.reply(id), bench.devices()), (all_data(3 * u64::from(GRANULE)), vec![]));
    bench.request(Op::Status, 0, GRANULE.into());
    assert_eq!(bench.devices(), [Device::Disk], "the disk has all of this");
}

#[test]
fn what_is_read_from_different_legs_arrives_in_its_place() {
    let mut bench = Bench::running();
    let granule = u64::from(GRANULE);
    bench.write(granule + 100, 512);
    bench.end(Device::Disk, IO);
    bench.end(FIRST, IO);
    bench.ok(SECOND);
    let id = bench.read(512, 3 * granule);
    let parts: Vec<_> = bench.transfers.iter().map(|(on, part)| (*on, part.action, part.extent)).collect();
    let part = |device, start: u64, end: u64| {
        let data = data(3 * granule).part((start - 512) as u32, (end - start) as u32);
        (device, Action::Read(data), Extent::between(start, end))
    };
    let expected = [
        part(Device::Disk, 512, granule),
        part(SECOND, granule, 2 * granule),
        part(Device::Disk, 2 * granule, 512 + 3 * granule),
    ];
    assert_eq!(parts, expected);
    bench.ok(Device::Disk);
    bench.ok(Device::Disk);
    assert_eq!(bench.reply(id), None);
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
}

#[test]
fn a_part_that_cannot_be_read_fails_the_whole_once_all_parts_have_ended() {
    let mut bench = Bench::running();
    bench.write(0, 512);
    bench.end(Device::Disk, IO);
    bench.ok(FIRST);
    bench.end(SECOND, IO);
    for (failing, kind) in [(Device::Disk, ErrorKind::PrimaryDisk), (FIRST, ErrorKind::Forward)] {
        let before = bench.machine.errors().count(kind);
        let other = if failing == FIRST { Device::Disk } else { FIRST };
        let id = bench.read(0, 2 * u64::from(GRANULE));
        bench.end(failing, Err(Errno::NoMemory));
        assert_eq!(bench.reply(id), None);
        bench.ok(other);
        assert_eq!(bench.reply(id), Some(Err(Errno::NoMemory)));
        assert_eq!(bench.machine.errors().count(kind), before + 1);
    }
}

#[test]
fn a_replica_answers_a_read_only_while_it_runs_and_is_reachable() {
    let mut bench = Bench::running();
    bench.offer(Input::Disconnected(0)).unwrap();
    let id = bench.read(0, 512);
    bench.end(Device::Disk, IO);
    assert_eq!(bench.devices(), [SECOND], "the first is away");
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
    bench.command(Command::Stop).unwrap();
    let id = bench.read(0, 512);
    bench.end(Device::Disk, IO);
    assert_eq!((bench.reply(id), bench.devices()), (Some(IO), vec![]));
}

#[test]
fn a_replica_that_has_taken_over_is_behind_and_is_read_no_more() {
    let mut bench = Bench::running();
    let id = bench.read(0, 512);
    bench.end(Device::Disk, IO);
    bench.end(FIRST, Err(Errno::Shutdown));
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE, "the other one is asked");
    assert!(bench.machine.replica(0).unwrap().is_behind && !bench.machine.replica(1).unwrap().is_behind);
    bench.read(0, 512);
    bench.end(Device::Disk, IO);
    assert_eq!(bench.devices(), [SECOND]);

    // An error of another kind says nothing of what it holds.
    let mut bench = Bench::running();
    bench.read(0, 512);
    bench.end(Device::Disk, IO);
    bench.end(FIRST, IO);
    assert!(!bench.machine.replica(0).unwrap().is_behind);
}

#[test]
fn what_the_disk_has_lost_is_not_read_from_a_replica_that_has_taken_over() {
    let mut bench = Bench::running();
    bench.write(0, 512);
    bench.end(Device::Disk, IO);
    bench.ok(FIRST);
    bench.ok(SECOND);
    let id = bench.read(0, 512);
    bench.end(FIRST, Err(Errno::Shutdown));
    assert_eq!(bench.reply(id), Some(Err(Errno::Shutdown)));
    bench.read(0, 512);
    assert_eq!(bench.devices(), [SECOND]);
}

#[test]
fn a_flush_that_a_replica_refuses_as_it_has_taken_over_is_not_safe_there() {
    let mut bench = Bench::running();
    let id = bench.request(Op::Flush, 0, 0);
    bench.end(Device::Disk, IO);
    bench.end(FIRST, Err(Errno::Shutdown));
    bench.end(SECOND, Err(Errno::Shutdown));
    assert_eq!(bench.reply(id), Some(IO));
    assert!(bench.machine.is_alone());
    assert_eq!(bench.machine.errors().count(ErrorKind::Forward), 2);
}

#[test]
fn which_bytes_a_replica_misses_is_told_by_granules() {
    let mut bench = Bench::running();
    let granule = u64::from(GRANULE);
    bench.write(granule + 100, granule);
    bench.ok(Device::Disk);
    bench.end(FIRST, IO);
    bench.ok(SECOND);
    let misses = |replica, start, end| bench.machine.misses(replica, Extent::between(start, end));
    assert!(misses(0, granule, granule + 1) && misses(0, 3 * granule - 1, 4 * granule));
    assert!(
        !misses(0, 0, granule) && !misses(0, 3 * granule, SIZE) && !misses(1, 0, SIZE) && !misses(9, 0, SIZE)
    );
    assert_eq!(bench.dirty_bytes(0), 2 * granule);
}
