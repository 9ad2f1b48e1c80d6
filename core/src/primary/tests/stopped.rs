//! SEMANTICS.md, "Stages": a primary that was stopped has its disk alone.

use super::*;

#[test]
fn a_second_stop_changes_nothing() {
    let mut bench = Bench::running();
    bench.command(Command::Stop).unwrap();
    bench.write(0, 512);
    bench.end(Device::Disk, IO);
    bench.events.clear();
    bench.command(Command::Stop).unwrap();
    assert_eq!(bench.machine.errors().count(ErrorKind::PrimaryDisk), 1, "it happened since");
    assert_eq!(bench.events, []);
}

#[test]
fn a_stopped_primary_does_not_read_from_a_replica_that_may_have_taken_over() {
    let mut bench = Bench::running();
    let id = bench.write(0, 512);
    bench.end(Device::Disk, IO);
    bench.ok(FIRST);
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
    bench.command(Command::Stop).unwrap();
    let id = bench.read(0, 512);
    assert_eq!(bench.devices(), [], "its failover has rolled this write back");
    assert_eq!(bench.reply(id), Some(IO));
    bench.command(Command::Start { primary: true }).unwrap();
    bench.read(0, 512);
    assert_eq!(bench.devices(), [FIRST]);
}
