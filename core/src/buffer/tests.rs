use std::{assert, assert_eq, vec};

use super::index::{Index, Node};
use super::{Buffer, Found, Full, Spot};
use crate::Extent;

const GRANULE: u64 = 512;
/// Ends within its eleventh granule.
const DISK: u64 = 10 * GRANULE + 100;

fn buffer(slots: u32) -> Buffer<'static> {
    Buffer::new(vec![Node::EMPTY; Index::nodes_for(16)].leak(), GRANULE as u32, DISK, slots)
}

const fn granules(first: u64, end: u64) -> Extent {
    Extent::between(first * GRANULE, end * GRANULE)
}

const fn found(spot: Spot, length: u64) -> Found {
    Found { spot, length }
}

#[test]
fn slots_are_handed_out_side_by_side_until_there_is_none() {
    let mut buffer = buffer(5);
    assert_eq!((buffer.granule_bytes(), buffer.size_bytes(), buffer.used_bytes()), (512, 2560, 0));
    assert_eq!(buffer.allocate(0), Err(Full), "nothing was asked for");
    assert_eq!(buffer.allocate(3), Ok((0, 3)));
    assert_eq!((buffer.free_slots(), buffer.used_bytes(), buffer.is_three_quarters_full()), (2, 1536, false));
    assert_eq!(buffer.allocate(1), Ok((3, 1)));
    assert!(buffer.is_three_quarters_full(), "four of five");
    assert_eq!(buffer.allocate(u64::MAX), Ok((4, 1)), "as many as there are");
    assert_eq!(buffer.allocate(1), Err(Full));
    assert_eq!((buffer.slot_offset(0), buffer.slot_offset(4)), (0, 2048));
    buffer.clear();
    assert_eq!((buffer.free_slots(), buffer.allocate(5)), (5, Ok((0, 5))));
}

#[test]
fn three_quarters_are_counted_exactly() {
    let mut buffer = buffer(4);
    buffer.allocate(2).unwrap();
    assert!(!buffer.is_three_quarters_full());
    buffer.allocate(1).unwrap();
    assert!(buffer.is_three_quarters_full());
}

#[test]
fn an_index_that_is_fuller_than_the_slots_counts() {
    let mut buffer = Buffer::new(vec![Node::EMPTY; 1].leak(), GRANULE as u32, 64 * GRANULE, 64);
    assert_eq!(buffer.index_runs_max(), 15);
    for run in 0..12 {
        assert_eq!((buffer.index_runs(), buffer.is_three_quarters_full()), (run, false));
        let granule = 2 * run as u64;
        buffer.remember_zeroes(granules(granule, granule + 1)).unwrap();
    }
    assert!(buffer.is_three_quarters_full(), "twelve of fifteen");
    buffer.clear();
    assert!(!buffer.is_three_quarters_full());
}

#[test]
fn bytes_are_found_where_their_granule_is_and_as_far_as_they_lie_together() {
    let mut buffer = buffer(8);
    buffer.remember(granules(2, 4), 5).unwrap();
    buffer.remember_zeroes(granules(4, 6)).unwrap();
    let find = |offset, length| buffer.find(Extent { offset, length });
    assert_eq!(find(0, DISK), found(Spot::Absent, 1024));
    assert_eq!(find(1000, 10), found(Spot::Absent, 10));
    assert_eq!(find(1000, 100), found(Spot::Absent, 24));
    assert_eq!(find(1024, DISK), found(Spot::Slot(5 * 512), 1024));
    assert_eq!(find(1025, 1000), found(Spot::Slot(5 * 512 + 1), 1000));
    assert_eq!(find(1536 + 7, 600), found(Spot::Slot(6 * 512 + 7), 505));
    assert_eq!(find(2048 + 500, 600), found(Spot::Zeroes, 524));
    assert_eq!(find(3072, DISK - 3072), found(Spot::Absent, DISK - 3072));
    assert_eq!(buffer.present_bytes(), 2048);
    assert_eq!(buffer.next_present(0), Some(granules(2, 4)));
    assert_eq!(buffer.next_present(1535), Some(granules(2, 4)), "the granule that the byte lies in, whole");
    assert_eq!(buffer.next_present(1536), Some(granules(3, 4)));
    assert_eq!(buffer.next_present(2048), Some(granules(4, 6)));
    assert_eq!(buffer.next_present(3072), None);
}

#[test]
fn bytes_are_found_at_the_far_end_of_the_largest_disk() {
    let disk_bytes = (i64::MAX as u64).next_multiple_of(GRANULE);
    let mut buffer = Buffer::new(vec![Node::EMPTY; 1].leak(), GRANULE as u32, disk_bytes, 8);
    let last = Extent::between(disk_bytes - 4 * GRANULE, disk_bytes);
    assert_eq!(buffer.find(last), found(Spot::Absent, 2048));
    buffer.remember(last, 2).unwrap();
    assert_eq!(buffer.find(last), found(Spot::Slot(1024), 2048));
    assert_eq!(buffer.next_present(0), Some(last));
    let middle = Extent { offset: 1 << 55, length: 4 * GRANULE };
    assert_eq!(buffer.find(middle), found(Spot::Absent, 2048));
}

#[test]
fn the_last_granule_ends_with_the_disk() {
    let mut buffer = buffer(2);
    let last = Extent::between(10 * GRANULE, DISK);
    assert_eq!(buffer.slots_needed(last), 1);
    buffer.remember(last, 1).unwrap();
    assert_eq!(buffer.next_present(0), Some(last));
    assert_eq!(buffer.find(last), found(Spot::Slot(512), 100));
    assert_eq!(buffer.present_bytes(), 512, "it takes a slot like any other");
    buffer.forget(last).unwrap();
    assert_eq!((buffer.present_bytes(), buffer.next_present(0)), (0, None));
}

#[test]
fn what_has_no_slot_needs_one_zeroes_too() {
    let mut buffer = buffer(8);
    buffer.remember(granules(1, 3), 0).unwrap();
    buffer.remember_zeroes(granules(4, 5)).unwrap();
    for (start, end, expected) in [
        (0, DISK, 9),
        (600, 1400, 0),
        (511, 513, 1),
        (1535, 1537, 1),
        (2048, 2049, 1),
        (1000, 2600, 3),
        (DISK - 1, DISK, 1),
        (700, 700, 0),
    ] {
        assert_eq!(buffer.slots_needed(Extent::between(start, end)), expected, "{start}..{end}");
    }
}

#[test]
fn a_full_index_refuses_and_nothing_of_no_length_is_remembered() {
    let mut buffer = Buffer::new(vec![Node::EMPTY; 1].leak(), GRANULE as u32, 1 << 30, 8);
    assert_eq!(buffer.remember(Extent { offset: 1024, length: 0 }, 0), Ok(()));
    assert_eq!(buffer.next_present(0), None);
    let taken =
        (0..).take_while(|place| buffer.remember_zeroes(granules(2 * place, 2 * place + 1)).is_ok()).count();
    assert_eq!(taken, 15);
    assert_eq!(buffer.remember(granules(100, 101), 0), Err(Full));
    assert_eq!(
        buffer.remember_zeroes(Extent { offset: 0, length: u64::MAX }),
        Err(Full),
        "more than 32 bits count"
    );
    buffer.remember(granules(0, 1), 3).unwrap();
    assert_eq!(buffer.find(granules(0, 1)), found(Spot::Slot(3 * 512), 512));
}
