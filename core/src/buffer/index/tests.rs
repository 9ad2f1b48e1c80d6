use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

/// The slow, obvious index: one entry for each granule.
#[derive(Default)]
struct Oracle(BTreeMap<u64, Place>);

impl Oracle {
    fn place(&self, granule: u64) -> Place {
        self.0.get(&granule).copied().unwrap_or(Place::Absent)
    }

    fn set(&mut self, first: u64, count: u32, place: Place) {
        for offset in 0..count {
            match place {
                Place::Absent => self.0.remove(&(first + u64::from(offset))),
                _ => self.0.insert(first + u64::from(offset), place.advanced(offset)),
            };
        }
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (&granule, &place) in &self.0 {
            match runs.last_mut() {
                Some(run) if run.end() == granule && run.place.advanced(run.count) == place => run.count += 1,
                _ => runs.push(Run { first: granule, count: 1, place }),
            }
        }
        runs
    }

    fn lookup(&self, granule: u64, count_max: u64) -> Found {
        for run in self.runs() {
            if run.end() <= granule {
                continue;
            }
            if run.first > granule {
                return Found { place: Place::Absent, count: count_max.min(run.first - granule) };
            }
            let skipped = (granule - run.first) as u32;
            let count = u64::from(run.count - skipped).min(count_max);
            return Found { place: run.place.advanced(skipped), count };
        }
        Found { place: Place::Absent, count: count_max.min(u64::MAX - granule) }
    }
}

fn runs_of(index: &Index<'_>) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut from = 0;
    while let Some(run) = index.next_present(from) {
        runs.push(run);
        from = run.end();
    }
    runs
}

/// Checks X1 to X3 below `number`; gives its leaves in order and the number of nodes.
fn check_below(index: &Index<'_>, number: u32, level: usize, leaves: &mut Vec<u32>) -> usize {
    let node = index.node(number);
    assert!(node.len >= 1 && node.len as usize <= ENTRIES_MAX);
    if number != index.root {
        assert!(node.len as usize >= ENTRIES_MIN, "X3");
    } else if level < index.height {
        assert!(node.len >= 2, "X3");
    }
    assert!(node.entries().windows(2).all(|pair| pair[0].first < pair[1].first), "X1");
    if level == index.height {
        leaves.push(number);
        return 1;
    }
    let mut total = 1;
    for entry in node.entries() {
        assert_eq!(entry.first, index.node(entry.slot).entries[0].first, "X2");
        total += check_below(index, entry.slot, level + 1, leaves);
    }
    total
}

fn check_invariants(index: &Index<'_>) {
    let runs = runs_of(index);
    assert_eq!(runs.len(), index.entry_count());
    let count = |is_wanted: fn(Place) -> bool| {
        runs.iter().filter(|run| is_wanted(run.place)).map(|run| u64::from(run.count)).sum::<u64>()
    };
    assert_eq!(count(|place| place == Place::Zeroes), index.zero_granule_count());
    assert_eq!(count(|place| place != Place::Zeroes), index.data_granule_count());
    assert!(index.entry_count() <= index.entry_capacity());
    if index.root == NONE {
        assert_eq!(index.entry_count(), 0);
        return;
    }
    let mut leaves = Vec::new();
    let nodes = check_below(index, index.root, 0, &mut leaves);
    assert!(nodes <= Index::nodes_for(index.entry_count()), "X3");
    let mut free_count = 0;
    let mut free = index.free;
    while free != NONE {
        free_count += 1;
        free = index.node(free).next;
    }
    assert_eq!(nodes + free_count, index.untouched as usize);
    for (position, leaf) in leaves.iter().enumerate() {
        assert_eq!(index.node(*leaf).next, leaves.get(position + 1).copied().unwrap_or(NONE), "X1");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u32, Place),
    Clear,
}

fn steps(universe: u64, longest: u32) -> impl Strategy<Value = Vec<Step>> {
    let place = prop_oneof![
        4 => (0..universe as u32).prop_map(Place::Slot),
        2 => Just(Place::Zeroes),
        2 => Just(Place::Absent),
    ];
    let step = prop_oneof![
        60 => (0..universe, 0..=longest, place).prop_map(|(first, count, place)| Step::Set(first, count, place)),
        // Slots that follow the granules, so that neighbours join.
        60 => (0..universe, 0..=longest).prop_map(|(first, count)| Step::Set(first, count, Place::Slot(first as u32))),
        1 => Just(Step::Clear),
    ];
    proptest::collection::vec(step, 0..120)
}

fn compare_with_oracle(steps: &[Step], universe: u64, node_count: usize) {
    let mut nodes = vec![Node::EMPTY; node_count];
    let mut index = Index::new(&mut nodes);
    let mut oracle = Oracle::default();
    for step in steps {
        match *step {
            Step::Clear => {
                index.clear();
                oracle.0.clear();
            }
            Step::Set(first, count, place) => {
                let could = index.can_set(1);
                let before = runs_of(&index);
                match index.set(first, count, place) {
                    Ok(()) => oracle.set(first, count, place),
                    Err(Full) => {
                        assert!(!could);
                        assert_eq!(runs_of(&index), before);
                        let mut would_be = Oracle(oracle.0.clone());
                        would_be.set(first, count, place);
                        assert!(would_be.runs().len() > index.entry_capacity());
                    }
                }
            }
        }
        check_invariants(&index);
        assert_eq!(runs_of(&index), oracle.runs());
    }
    for granule in 0..universe + 8 {
        for count_max in [0, 1, 3, u64::MAX] {
            assert_eq!(index.lookup(granule, count_max), oracle.lookup(granule, count_max));
        }
        assert_eq!(index.lookup(granule, 1).count, 1);
        assert_eq!(index.lookup(granule, 1).place, oracle.place(granule));
        let next = index.next_present(granule);
        assert_eq!(next.map(|run| run.first), oracle.0.range(granule..).next().map(|(first, _)| *first));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_sets_give_what_a_map_of_granules_gives(steps in steps(300, 12)) {
        compare_with_oracle(&steps, 300, Index::nodes_for(700));
    }

    #[test]
    fn a_full_index_refuses_and_changes_nothing(steps in steps(120, 4), node_count in 0_usize..6) {
        compare_with_oracle(&steps, 120, node_count);
    }

    #[test]
    fn long_ranges_replace_many_runs_at_once(steps in steps(400, 200)) {
        compare_with_oracle(&steps, 400, Index::nodes_for(900));
    }
}

/// A pseudo-random order of `0..count` that visits each number once.
fn shuffled(count: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..count).collect();
    let mut state = seed | 1;
    for last in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    order
}

fn orders(count: u64) -> Vec<Vec<u64>> {
    let ascending: Vec<u64> = (0..count).collect();
    let descending: Vec<u64> = ascending.iter().rev().copied().collect();
    let outside_in: Vec<u64> =
        ascending.iter().map(|i| if i % 2 == 0 { i / 2 } else { count - 1 - i / 2 }).collect();
    let inside_out: Vec<u64> = outside_in.iter().rev().copied().collect();
    // Fills the right end of each leaf in turn, so that each is split as soon as it can be.
    let mut strided: Vec<u64> = ascending.clone();
    strided.sort_by_key(|i| (i % 8, *i));
    vec![ascending, descending, outside_in, inside_out, strided, shuffled(count, 7), shuffled(count, 8)]
}

#[test]
fn as_many_single_granules_as_promised_fit_in_every_order_and_leave_in_every_order() {
    for count in [1, 15, 16, 17, 127, 128, 136, 1000, 4096] {
        let mut nodes = vec![Node::EMPTY; Index::nodes_for(count as usize)];
        let mut index = Index::new(&mut nodes);
        assert!(index.entry_capacity() >= count as usize);
        for (order, leaving) in orders(count).iter().zip(orders(count).iter().rev()) {
            for granule in order {
                assert_eq!(index.set(granule * 2, 1, Place::Slot(*granule as u32)), Ok(()));
            }
            check_invariants(&index);
            assert_eq!(index.entry_count() as u64, count);
            for (left, granule) in (0..count).rev().zip(leaving) {
                assert_eq!(index.lookup(granule * 2, 9).place, Place::Slot(*granule as u32));
                assert_eq!(index.set(granule * 2, 1, Place::Absent), Ok(()));
                assert_eq!(index.entry_count() as u64, left);
                if left % 64 == 0 {
                    check_invariants(&index);
                }
            }
        }
    }
}

#[test]
fn an_index_filled_to_the_last_run_still_forgets_replaces_and_appends() {
    let mut nodes = vec![Node::EMPTY; Index::nodes_for(200)];
    let mut index = Index::new(&mut nodes);
    let capacity = index.entry_capacity() as u64;
    for granule in shuffled(capacity, 3) {
        assert_eq!(index.set(granule * 4, 2, Place::Slot(granule as u32 * 2)), Ok(()));
    }
    assert!(!index.can_set(1));
    assert_eq!(index.set(capacity * 4, 1, Place::Zeroes), Err(Full));
    assert_eq!(index.set(40, 1, Place::Zeroes), Err(Full), "a part of a run would need one more");
    assert_eq!(index.set(40, 2, Place::Zeroes), Ok(()), "a whole run is replaced");
    assert_eq!(index.set(42, 1, Place::Zeroes), Ok(()), "a run is continued");
    assert_eq!(index.set(40, 3, Place::Absent), Ok(()), "a whole run is forgotten");
    assert!(!index.can_set(1));
    assert_eq!(index.set(36, 1, Place::Absent), Ok(()), "the head of a run is forgotten");
    assert_eq!(index.set(37, 1, Place::Absent), Ok(()));
    assert!(index.can_set(1));
    check_invariants(&index);
}

#[test]
fn clearing_forgets_everything_and_gives_all_nodes_back() {
    let mut nodes = vec![Node::EMPTY; Index::nodes_for(500)];
    let mut index = Index::new(&mut nodes);
    for round in 0..5 {
        for granule in shuffled(500, round) {
            assert_eq!(index.set(granule * 3, 1, Place::Zeroes), Ok(()));
        }
        assert_eq!(index.zero_granule_count(), 500);
        index.clear();
        assert_eq!((index.entry_count(), index.granule_count()), (0, 0));
        assert_eq!(index.lookup(3, 10), Found { place: Place::Absent, count: 10 });
        assert_eq!(index.next_present(0), None);
    }
}

#[test]
fn a_long_write_kept_piece_by_piece_is_one_run() {
    let mut nodes = [Node::EMPTY; 1];
    let mut index = Index::new(&mut nodes);
    for piece in 0..1000_u32 {
        assert_eq!(index.set(u64::from(piece) * 64, 64, Place::Slot(piece * 64)), Ok(()));
    }
    assert_eq!(index.entry_count(), 1);
    assert_eq!(index.lookup(63_999, 5), Found { place: Place::Slot(63_999), count: 1 });
}

#[test]
fn counts_beyond_32_bits_become_several_runs() {
    let mut nodes = [Node::EMPTY; 1];
    let mut index = Index::new(&mut nodes);
    let half = u64::from(u32::MAX);
    assert_eq!(index.set(0, u32::MAX, Place::Zeroes), Ok(()));
    assert_eq!(index.set(half, u32::MAX, Place::Zeroes), Ok(()));
    assert_eq!(index.zero_granule_count(), 2 * half);
    assert_eq!(index.lookup(1, u64::MAX).count, half - 1);
    assert_eq!(index.lookup(half, u64::MAX).count, half);
}

#[test]
fn granules_and_slots_beyond_their_range_are_refused() {
    let mut nodes = [Node::EMPTY; 1];
    let mut index = Index::new(&mut nodes);
    assert_eq!(index.set(u64::MAX, 1, Place::Zeroes), Err(Full));
    assert_eq!(index.set(0, 1, Place::Slot(u32::MAX)), Err(Full));
    assert_eq!(index.set(0, 2, Place::Slot(u32::MAX - 1)), Err(Full));
    assert_eq!(index.set(u64::MAX - 1, 1, Place::Slot(u32::MAX - 1)), Ok(()));
    assert_eq!(index.lookup(u64::MAX - 2, 7), Found { place: Place::Absent, count: 1 });
    assert_eq!(index.lookup(u64::MAX - 1, 7).count, 1);
    assert_eq!(index.lookup(u64::MAX, 7).place, Place::Absent);
}

#[test]
fn the_documented_sizes_hold() {
    assert_eq!(size_of::<Node>(), 248);
    assert_eq!(Index::nodes_for(1024), 147);
    for nodes in 0..2000 {
        let entries = Index::entries_for(nodes);
        assert!(Index::nodes_for(entries) <= nodes && Index::nodes_for(entries + 1) > nodes);
    }
    let most = Index::entries_for(u32::MAX as usize - 1);
    assert_eq!(
        Index::entries_for(usize::MAX),
        most,
        "nodes have numbers of 32 bits, of which one means none"
    );
    assert!(most > Index::entries_for((u32::MAX as usize - 1) / 2));
    let entries = 1 << 24;
    let bytes = Index::nodes_for(entries) * size_of::<Node>();
    assert!(bytes * 10 <= entries * 355);
}

/// Nodes are made elsewhere from memory of zeroes, which is right as long as this compiles.
#[test]
fn a_node_is_numbers_and_nothing_else() {
    let Node { entries, len, next } = Node::EMPTY;
    let numbers: ([Entry; ENTRIES_MAX], u32, u32) = (entries, len, next);
    for Entry { first, count, slot } in numbers.0 {
        let numbers: (u64, u32, u32) = (first, count, slot);
        assert_eq!(numbers, (0, 0, 0));
    }
}
