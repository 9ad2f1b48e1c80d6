//! What the disk failed to take, and who has it (P3).

use super::*;

const PAGE: u64 = GRANULE as u64;

/// A write of which some legs fail.
fn write(bench: &mut Bench, start: u64, end: u64, failing: &[Device]) -> Option<Result<Outcome, Errno>> {
    let id = bench.write(start, end - start);
    while let Some(device) = bench.devices().first().copied() {
        bench.end(device, if failing.contains(&device) { IO } else { Ok(Outcome::Done) });
    }
    bench.reply(id)
}

/// The device that is asked first.
fn reads_from(bench: &mut Bench, start: u64) -> Vec<Device> {
    let id = bench.read(start, 512);
    let devices = bench.devices();
    while let Some(device) = bench.devices().first().copied() {
        bench.ok(device);
    }
    assert!(bench.reply(id).is_some());
    devices
}

#[test]
fn it_is_read_from_the_disk_again_once_that_took_the_whole_granule() {
    let mut bench = Bench::running();
    write(&mut bench, 0, 3 * PAGE, &[Device::Disk]);
    write(&mut bench, SIZE - 512, SIZE, &[Device::Disk]);
    write(&mut bench, 512, 2 * PAGE + 512, &[]);
    let devices = [0, PAGE, 2 * PAGE].map(|start| reads_from(&mut bench, start));
    assert_eq!(devices, [[FIRST], [Device::Disk], [FIRST]], "it covers the second of three");
    write(&mut bench, 9 * PAGE, SIZE - 512, &[]);
    assert_eq!(reads_from(&mut bench, SIZE - 512), [FIRST]);
    write(&mut bench, SIZE - 512, SIZE, &[]);
    assert_eq!(reads_from(&mut bench, SIZE - 512), [Device::Disk], "the last granule is shorter");
}

#[test]
fn a_write_that_only_a_replica_took_that_lacks_an_earlier_one_of_these_fails() {
    let mut bench = Bench::running();
    assert_eq!(write(&mut bench, 0, 512, &[Device::Disk, SECOND]), DONE);
    assert_eq!(write(&mut bench, PAGE, PAGE + 512, &[Device::Disk, FIRST]), Some(IO));
    assert_eq!(reads_from(&mut bench, 0), [FIRST], "what it has is still read from the first");
}

#[test]
fn a_replica_that_is_away_while_something_else_is_written_still_has_it() {
    let mut bench = Bench::running();
    write(&mut bench, 0, 512, &[Device::Disk, SECOND]);
    bench.offer(Input::Disconnected(0)).unwrap();
    write(&mut bench, 5 * PAGE, 6 * PAGE, &[]);
    bench.offer(Input::Connected(0, geometry())).unwrap();
    assert_eq!(reads_from(&mut bench, 0), [FIRST]);
    bench.offer(Input::Disconnected(0)).unwrap();
    write(&mut bench, 512, 1024, &[]);
    bench.offer(Input::Connected(0, geometry())).unwrap();
    assert_eq!(reads_from(&mut bench, 0), [], "this one it would have needed");
}

#[test]
fn a_replica_that_has_it_and_lacks_a_granule_beside_it_does_not_have_both() {
    let mut bench = Bench::running();
    bench.offer(Input::Disconnected(1)).unwrap();
    assert_eq!(write(&mut bench, 0, 512, &[Device::Disk]), DONE);
    assert_eq!(write(&mut bench, PAGE, PAGE + 512, &[FIRST]), DONE);
    assert_eq!(write(&mut bench, PAGE - 512, PAGE + 512, &[Device::Disk]), Some(IO));
}
