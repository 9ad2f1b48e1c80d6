//! Tests that look inside a disk; the others are in `tests.rs`.

use twinblock_core::block::{Action, BlockDevice, Tag, Transfer};
use twinblock_core::{Errno, Extent};

use super::tests::{Bench, data, folders};

#[test]
fn a_flush_is_not_answered_before_one_that_is_under_way() {
    let folder = folders().swap_remove(0);
    let mut bench = Bench::sparse(&folder);
    bench.write(0, 512, 1, false).unwrap();
    bench.submit(1, Action::Flush, 0, 0).unwrap();
    bench.submit(2, Action::Flush, 0, 0).unwrap();
    assert_eq!(bench.disk.begin_waiting(&mut bench.pool), None);
    assert_eq!(bench.disk.flushing_count, 2);
    bench.completion();
    bench.completion();
    assert!(!bench.disk.is_dirty);
}

#[test]
fn after_a_failed_flush_none_succeeds_though_reads_and_writes_do() {
    let folder = folders().swap_remove(0);
    let mut bench = Bench::sparse(&folder);
    bench.disk.note_flush(Some(Errno::NoSpace));
    bench.disk.note_flush(None);
    assert_eq!(bench.run(Action::Flush, 0, 0), Err(Errno::NoSpace));
    bench.write(0, 512, 1, false).unwrap();
    assert_eq!(bench.run(Action::Flush, 0, 0), Err(Errno::NoSpace));
    assert_eq!(bench.read(0, 1), [1]);
}

#[test]
fn work_given_to_the_helpers_is_finished_before_they_end_and_later_work_fails() {
    let folder = folders().swap_remove(0);
    let Bench { mut disk, mut pool, poller: _poller, _workers: workers } = Bench::sparse(&folder);
    for entry in 0..20u16 {
        let action = Action::Write { data: data(0, 4096), fua: true };
        let extent = Extent { offset: u64::from(entry) * 4096, length: 4096 };
        disk.submit(Transfer { tag: Tag { entry, generation: 0 }, action, extent }, &mut pool).unwrap();
    }
    assert_eq!(disk.begin_waiting(&mut pool), None);
    drop(workers);
    let completed = std::iter::from_fn(|| disk.poll(&mut pool)).filter(|done| done.result.is_ok()).count();
    assert_eq!(completed, 20);
    let action = Action::Write { data: data(0, 4096), fua: true };
    let transfer = Transfer { tag: Tag::default(), action, extent: Extent { offset: 0, length: 4096 } };
    disk.submit(transfer, &mut pool).unwrap();
    assert_eq!(disk.poll(&mut pool).unwrap().result, Err(Errno::Shutdown));
}
