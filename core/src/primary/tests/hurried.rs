//! Barriers that fall between the pieces of a request whose rest does not come.

use std::assert_eq;

use super::*;

fn piece(number: u64, is_first: bool, is_last: bool) -> Input {
    let extent = Extent { offset: 8192 * number, length: 8192 };
    let op = Op::Write { data: data(8192), fua: false };
    Input::Request(GUEST, Request { id: RequestId(number as u32), op, extent, is_first, is_last })
}

#[test]
fn a_request_that_a_barrier_has_cut_is_not_waited_for_by_the_next_one() {
    let mut bench = Bench::running();
    bench.offer(piece(0, true, false)).unwrap();
    for device in [Device::Disk, FIRST, SECOND] {
        bench.ok(device);
    }
    let barrier = Command::Barrier { is_urgent: false };
    bench.answers.clear();
    bench.command(barrier).unwrap();
    assert_eq!(bench.answers, []);
    bench.command(Command::Hurry).unwrap();
    assert_eq!(bench.answers.len(), 2);
    bench.command(Command::Release { is_checkpoint: true }).unwrap();

    bench.answers.clear();
    bench.command(barrier).unwrap();
    assert_eq!(bench.answers.len(), 1, "reached at once");
    bench.offer(piece(1, false, false)).unwrap();
    assert_eq!(bench.transfers.len(), 0, "what came after the barrier waits for its release");
    bench.command(Command::Release { is_checkpoint: true }).unwrap();
    assert_eq!(bench.transfers.len(), 3);

    // Whoever begins anew is waited for again.
    bench.offer(piece(2, false, true)).unwrap();
    bench.offer(piece(3, true, false)).unwrap();
    bench.answers.clear();
    bench.command(barrier).unwrap();
    assert_eq!(bench.answers, []);
    bench.offer(piece(4, false, true)).unwrap();
    assert_eq!(bench.answers.len(), 1);
}
