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
