use std::vec::Vec;

use proptest::prelude::*;

use super::{Access, EntryIndex, Slot, Table};
use crate::Extent;

fn write(offset: u64, length: u64) -> Access {
    Access { extent: Extent { offset, length }, is_read: false, passes_exempt: false }
}

fn read(offset: u64, length: u64) -> Access {
    Access { is_read: true, ..write(offset, length) }
}

fn runnable(table: &mut Table<'_, u32>) -> Vec<u32> {
    let mut found = Vec::new();
    while let Some(index) = table.pop_front() {
        found.push(*table.get(index).unwrap());
    }
    found
}

#[test]
fn overlapping_writes_run_one_after_the_other_in_arrival_order() {
    let mut slots = [Slot::FREE; 4];
    let mut table = Table::new(&mut slots);
    let first = table.insert(write(0, 10), 1).unwrap();
    let second = table.insert(write(5, 10), 2).unwrap();
    table.insert(write(0, 20), 3).unwrap();
    table.insert(write(20, 5), 4).unwrap();
    assert_eq!(runnable(&mut table), [1, 4]);
    table.remove(first);
    assert_eq!(runnable(&mut table), [2]);
    table.remove(second);
    assert_eq!(runnable(&mut table), [3]);
}

#[test]
fn reads_share_but_wait_for_writes_and_writes_wait_for_reads() {
    let mut slots = [Slot::FREE; 4];
    let mut table = Table::new(&mut slots);
    let first = table.insert(read(0, 10), 1).unwrap();
    let second = table.insert(read(0, 10), 2).unwrap();
    let third = table.insert(write(9, 1), 3).unwrap();
    table.insert(read(0, 10), 4).unwrap();
    assert_eq!(runnable(&mut table), [1, 2]);
    table.remove(first);
    assert!(runnable(&mut table).is_empty());
    table.remove(second);
    assert_eq!(runnable(&mut table), [3]);
    table.remove(third);
    assert_eq!(runnable(&mut table), [4]);
}

#[test]
fn a_full_table_takes_nothing_and_a_stale_tag_finds_nothing() {
    let mut slots = [Slot::FREE; 1];
    let mut table = Table::new(&mut slots);
    assert!(table.is_empty() && !table.is_full());
    let only = table.insert(write(0, 1), 1).unwrap();
    assert!(!table.is_empty() && table.is_full());
    let tag = table.tag(only);
    assert!(table.insert(write(5, 1), 2).is_none());
    runnable(&mut table);
    table.remove(only);
    assert!(table.find(tag).is_none());
    let again = table.insert(write(0, 1), 3).unwrap();
    assert_eq!(again, only);
    assert!(table.find(tag).is_none());
}

#[test]
fn an_exempted_entry_is_passed_by_the_group_that_may_and_waited_for_again_later() {
    let mut slots = [Slot::FREE; 8];
    let mut table = Table::new(&mut slots);
    let passes = |access| Access { passes_exempt: true, ..access };
    let held = table.insert(write(0, 10), 1).unwrap();
    table.insert(passes(write(0, 10)), 2).unwrap();
    table.insert(write(0, 10), 3).unwrap();
    assert_eq!(runnable(&mut table), [1]);
    table.exempt(held);
    assert_eq!(runnable(&mut table), [2]);
    let fourth = table.insert(passes(read(20, 10)), 4).unwrap();
    assert_eq!(runnable(&mut table), [4]);
    table.remove(fourth);
    let fifth = table.insert(passes(read(0, 1)), 5).unwrap();
    assert!(table.is_blocked(fifth));
    table.unexempt(held);
    table.remove(held);
    assert!(table.is_blocked(fifth));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Access),
    Remove(usize),
    Exempt(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u64..16, 0u64..6, any::<bool>(), any::<bool>()).prop_map(|(offset, length, is_read, passes_exempt)| {
            Step::Insert(Access { extent: Extent { offset, length }, is_read, passes_exempt })
        }),
        2 => any::<usize>().prop_map(Step::Remove),
        1 => any::<usize>().prop_map(Step::Exempt),
    ]
}

proptest! {
    /// O1 against a list that is searched anew each time.
    #[test]
    fn an_entry_is_blocked_exactly_while_an_earlier_conflicting_one_lives(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let mut slots = [Slot::FREE; 12];
        let mut table = Table::new(&mut slots);
        let mut oracle: Vec<(EntryIndex, Access, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(access) => {
                    let inserted = table.insert(access, ());
                    prop_assert_eq!(inserted.is_some(), oracle.len() < 12);
                    oracle.extend(inserted.map(|index| (index, access, false)));
                }
                Step::Remove(choice) if !oracle.is_empty() => {
                    while table.pop_front().is_some() {}
                    let (index, ..) = oracle.remove(choice % oracle.len());
                    table.remove(index);
                }
                Step::Exempt(choice) if !oracle.is_empty() => {
                    let choice = choice % oracle.len();
                    let entry = &mut oracle[choice];
                    if entry.2 {
                        table.unexempt(entry.0);
                    } else {
                        table.exempt(entry.0);
                    }
                    entry.2 = !entry.2;
                }
                _ => {}
            }
            prop_assert_eq!(table.len(), oracle.len());
            for (place, (index, access, _)) in oracle.iter().enumerate() {
                let blocked = oracle[..place].iter().any(|(_, earlier, is_exempt)| {
                    earlier.conflicts(access) && !(*is_exempt && access.passes_exempt)
                });
                prop_assert_eq!(table.is_blocked(*index), blocked);
            }
            let order: Vec<_> = table.iter().map(|(index, ())| index).collect();
            prop_assert_eq!(order, oracle.iter().map(|entry| entry.0).collect::<Vec<_>>());
        }
    }
}
