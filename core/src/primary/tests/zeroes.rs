//! Zeroes that are to be written fast or not at all.

use super::*;

#[test]
fn what_a_replica_wants_again_waits_for_the_release_of_the_barrier() {
    let mut bench = Bench::running();
    let id = bench.request(Op::WriteZeroes { may_unmap: true, fast: true, fua: false }, 0, 4096);
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    bench.ok(Device::Disk);
    bench.ok(SECOND);
    bench.end(FIRST, Err(Errno::Unsupported));
    assert_eq!(bench.devices(), [], "one more modification would be one that was not counted");
    bench.command(Command::Release { is_checkpoint: true }).unwrap();
    assert_eq!(bench.devices(), [FIRST]);
    bench.ok(FIRST);
    assert_eq!(bench.reply(id), Some(Ok(Outcome::Done)));
    assert!(!bench.is_behind(0));
}

#[test]
fn a_leg_that_refuses_fast_zeroes_gets_them_without() {
    let mut bench = Bench::running();
    let id = bench.request(Op::WriteZeroes { may_unmap: true, fast: true, fua: false }, 0, 4096);
    bench.ok(Device::Disk);
    bench.ok(SECOND);
    bench.end(FIRST, Err(Errno::Unsupported));
    let slow = bench.ok(FIRST);
    assert_eq!(slow.action, Action::WriteZeroes { may_unmap: true, fast: false, fua: false });
    assert_eq!(bench.reply(id), DONE);
    assert!(!bench.is_behind(0));
}

#[test]
fn a_leg_that_refuses_is_asked_again_at_once_and_once() {
    let mut bench = Bench::running();
    let id = bench.request(Op::WriteZeroes { may_unmap: true, fast: true, fua: false }, 0, 4096);
    bench.end(SECOND, Err(Errno::Unsupported));
    assert_eq!(bench.devices(), [Device::Disk, FIRST, SECOND], "while others are under way");
    bench.end(SECOND, Err(Errno::Unsupported));
    assert_eq!(bench.devices(), [Device::Disk, FIRST]);
    bench.ok(Device::Disk);
    bench.ok(FIRST);
    assert_eq!(bench.reply(id), DONE);
    assert!(bench.is_behind(1) && !bench.is_behind(0));
}

#[test]
fn the_disk_is_asked_again_before_the_barrier_is_released() {
    let mut bench = Bench::running();
    bench.request(Op::WriteZeroes { may_unmap: true, fast: true, fua: false }, 0, 4096);
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    bench.end(Device::Disk, Err(Errno::Unsupported));
    assert_eq!(bench.devices(), [FIRST, SECOND, Device::Disk]);
}

#[test]
fn what_is_not_asked_to_be_fast_is_refused_for_good() {
    for op in [
        Op::WriteZeroes { may_unmap: true, fast: false, fua: false },
        Op::Write { data: data(4096), fua: false },
    ] {
        let mut bench = Bench::running();
        let id = bench.request(op, 0, 4096);
        bench.end(FIRST, Err(Errno::Unsupported));
        assert_eq!(bench.devices(), [Device::Disk, SECOND]);
        bench.ok(Device::Disk);
        bench.ok(SECOND);
        assert_eq!(bench.reply(id), DONE);
        assert!(bench.is_behind(0));
    }
}
