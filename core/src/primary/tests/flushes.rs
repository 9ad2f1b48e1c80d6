//! What a flush leaves uncovered on a replica that is not reachable.

use super::*;

impl Bench {
    fn write_everywhere(&mut self, op: Op) {
        self.request(op, 0, 512);
        for device in [Device::Disk, FIRST, SECOND] {
            self.ok(device);
        }
    }

    /// A flush that every leg which is asked carries out.
    fn flush(&mut self) {
        let id = self.request(Op::Flush, 0, 0);
        for device in self.devices() {
            self.ok(device);
        }
        assert_eq!(self.reply(id), DONE);
    }

    fn lose(&mut self, replica: u8) {
        self.offer(Input::Disconnected(replica)).unwrap();
    }
}

const WRITE: Op = Op::Write { data: Data { buffer: BufferIndex(0), offset: 0, length: 512 }, fua: false };

#[test]
fn a_flush_without_a_replica_that_holds_what_no_flush_has_covered_makes_it_behind() {
    let zeroes = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
    for op in [WRITE, zeroes] {
        let mut bench = Bench::running();
        bench.write_everywhere(op);
        bench.lose(0);
        assert!(!bench.is_behind(0), "it may come back with all of it");
        bench.flush();
        assert!(bench.is_behind(0) && !bench.is_behind(1));
    }
}

#[test]
fn a_flush_without_a_replica_that_holds_nothing_else_leaves_it_current() {
    let fua = Op::Write { data: data(512), fua: true };
    for op in [None, Some(fua), Some(WRITE)] {
        let mut bench = Bench::running();
        if let Some(op) = op {
            bench.write_everywhere(op);
        }
        if op == Some(WRITE) {
            bench.flush();
        }
        bench.lose(0);
        bench.flush();
        assert!(!bench.is_behind(0), "{op:?}");
    }
}

#[test]
fn a_flush_does_not_cover_what_a_replica_takes_while_it_is_under_way() {
    let mut bench = Bench::running();
    bench.write_everywhere(WRITE);
    let id = bench.request(Op::Flush, 0, 0);
    bench.request(WRITE, 8192, 512);
    let is_write = |(_, transfer): &(Device, Transfer)| matches!(transfer.action, Action::Write { .. });
    for (device, transfer) in bench.transfers.iter().copied().filter(is_write).collect::<Vec<_>>() {
        let completion = Completion { tag: transfer.tag, result: Ok(Outcome::Done) };
        bench.offer(Input::Completed(device, completion)).unwrap();
    }
    bench.transfers.retain(|transfer| !is_write(transfer));
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    assert_eq!(bench.reply(id), DONE);
    bench.lose(0);
    bench.flush();
    assert!(bench.is_behind(0));
}

#[test]
fn a_flush_before_the_start_or_after_a_stop_says_nothing_of_replicas() {
    let mut bench = Bench::running();
    bench.write_everywhere(WRITE);
    bench.command(Command::Stop).unwrap();
    bench.lose(0);
    bench.flush();
    assert!(!bench.is_behind(0));
    bench.command(Command::Start { primary: true }).unwrap();
    bench.flush();
    assert!(bench.is_behind(0));
}

/// Which of the first granules a replica misses.
fn missing(bench: &Bench, replica: u8) -> Vec<u64> {
    let granule = u64::from(GRANULE);
    let misses =
        |index: &u64| bench.machine.misses(replica, Extent { offset: index * granule, length: granule });
    (0..8).filter(misses).collect()
}

/// A write to a granule that every leg takes, whatever else is under way.
fn take(bench: &mut Bench, granule: u64, fua: bool) {
    let before: Vec<_> = bench.transfers.drain(..).collect();
    bench.request(Op::Write { data: data(512), fua }, granule * u64::from(GRANULE), 512);
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    bench.transfers = before;
}

#[test]
fn a_replica_that_was_started_anew_misses_what_no_flush_has_covered() {
    let mut bench = Bench::running();
    take(&mut bench, 0, false);
    bench.flush();
    take(&mut bench, 1, true);
    take(&mut bench, 2, false);
    bench.request(Op::WriteZeroes { may_unmap: true, fast: false, fua: false }, 4 * u64::from(GRANULE), 512);
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    bench.lose(0);
    bench.offer(Input::Restarted(0)).unwrap();
    bench.offer(Input::Connected(0, geometry())).unwrap();
    assert!(bench.is_behind(0) && !bench.is_behind(1));
    assert_eq!((missing(&bench, 0), missing(&bench, 1)), (vec![2, 4], vec![]));
    assert_eq!(bench.events.last(), Some(&Event::Replica(0, crate::ReplicaState::Behind)));
}

#[test]
fn a_replica_that_was_only_away_or_has_flushed_everything_misses_nothing() {
    let mut bench = Bench::running();
    take(&mut bench, 3, false);
    bench.lose(0);
    bench.offer(Input::Connected(0, geometry())).unwrap();
    assert!(!bench.is_behind(0), "it was never gone");
    bench.flush();
    bench.lose(0);
    bench.offer(Input::Restarted(0)).unwrap();
    assert!(!bench.is_behind(0));
    assert!(missing(&bench, 0).is_empty());
}

#[test]
fn what_is_lost_at_a_restart_is_lost_for_good_and_not_again_at_the_next() {
    let mut bench = Bench::running();
    take(&mut bench, 3, false);
    bench.offer(Input::Restarted(0)).unwrap();
    let dirty = bench.dirty_bytes(0);
    bench.offer(Input::Connected(0, geometry())).unwrap();
    bench.flush();
    bench.offer(Input::Restarted(0)).unwrap();
    assert_eq!((bench.dirty_bytes(0), missing(&bench, 0)), (dirty, vec![3]));
}

#[test]
fn a_detached_replica_is_not_started_anew_and_one_that_is_new_has_nothing_unflushed() {
    let mut bench = Bench::running();
    take(&mut bench, 3, false);
    bench.command(Command::Detach { replica: 0 }).unwrap();
    assert_eq!(bench.offer(Input::Restarted(0)), Err(Refused::Stale));
    assert_eq!(bench.offer(Input::Restarted(9)), Err(Refused::Stale));
    bench.command(Command::Attach { replica: 0, is_empty: false, is_new: false }).unwrap();
    bench.offer(Input::Restarted(0)).unwrap();
    assert_eq!(missing(&bench, 0), [3], "the same replica as before");
    bench.command(Command::Detach { replica: 1 }).unwrap();
    bench.command(Command::Attach { replica: 1, is_empty: false, is_new: true }).unwrap();
    let dirty = bench.dirty_bytes(1);
    bench.offer(Input::Restarted(1)).unwrap();
    assert_eq!(bench.dirty_bytes(1), dirty, "what was written at all");
}

#[test]
fn a_flush_that_fails_or_leaves_a_replica_out_marks_what_it_does_not_cover() {
    let mut bench = Bench::running();
    take(&mut bench, 1, false);
    bench.flush();
    take(&mut bench, 2, false);
    let id = bench.request(Op::Flush, 0, 0);
    take(&mut bench, 5, false);
    for (device, result) in [(Device::Disk, Ok(Outcome::Done)), (FIRST, IO), (SECOND, Ok(Outcome::Done))] {
        bench.end(device, result);
    }
    assert_eq!(bench.reply(id), DONE);
    assert_eq!((missing(&bench, 0), missing(&bench, 1)), (vec![2, 5], vec![]));
    bench.lose(1);
    bench.flush();
    assert_eq!(missing(&bench, 1), [5]);
}

#[test]
fn of_flushes_that_overlap_each_covers_what_came_before_it() {
    let mut bench = Bench::running();
    take(&mut bench, 1, false);
    bench.request(Op::Flush, 0, 0);
    let early: Vec<_> = bench.transfers.drain(..).collect();
    take(&mut bench, 2, false);
    bench.request(Op::Flush, 0, 0);
    // The later one is first to end, and covers the first write at least.
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    take(&mut bench, 3, false);
    bench.request(Op::Flush, 0, 0);
    let late: Vec<_> = bench.transfers.drain(..).collect();
    bench.transfers = early;
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    bench.offer(Input::Restarted(1)).unwrap();
    assert_eq!(missing(&bench, 1), [2, 3], "the earliest says nothing of what came after it");
    bench.transfers = late;
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    bench.offer(Input::Restarted(0)).unwrap();
    assert!(missing(&bench, 0).is_empty());
}

#[test]
fn a_replica_that_was_started_anew_has_no_longer_what_the_disk_has_lost_unless_it_has_flushed_it() {
    for has_flushed in [false, true] {
        let mut bench = Bench::running();
        let id = bench.write(0, 512);
        for (device, result) in [(Device::Disk, IO), (FIRST, Ok(Outcome::Done)), (SECOND, IO)] {
            bench.end(device, result);
        }
        assert_eq!(bench.reply(id), DONE);
        if has_flushed {
            bench.flush();
        }
        take(&mut bench, 4, false);
        bench.lose(0);
        bench.offer(Input::Restarted(0)).unwrap();
        bench.offer(Input::Connected(0, geometry())).unwrap();
        let id = bench.read(0, 512);
        assert_eq!(bench.devices(), if has_flushed { vec![FIRST] } else { vec![] });
        assert_eq!(bench.reply(id), if has_flushed { None } else { Some(IO) });
    }
}

#[test]
fn a_flush_after_a_replica_was_started_anew_covers_what_it_has_taken_since() {
    let mut bench = Bench::running();
    take(&mut bench, 3, false);
    let id = bench.request(Op::Flush, 0, 0);
    for (device, result) in [(Device::Disk, Ok(Outcome::Done)), (FIRST, IO), (SECOND, Ok(Outcome::Done))] {
        bench.end(device, result);
    }
    assert_eq!(bench.reply(id), DONE);
    bench.offer(Input::Restarted(0)).unwrap();
    take(&mut bench, 5, false);
    bench.flush();
    bench.lose(0);
    bench.flush();
    assert_eq!(missing(&bench, 0), [3]);
}
