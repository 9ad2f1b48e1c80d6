//! The index of the disk buffer against an array, on the target, with granules around and beyond 4 GiB.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::buffer::index::{Index, Node, Place};
    use twinblock_on_target::Random;

    const GRANULES: usize = 256;
    const NODES: usize = Index::nodes_for(GRANULES);
    static MEMORY: ConstStaticCell<[Node; NODES]> = ConstStaticCell::new([Node::EMPTY; NODES]);
    static PLACES: ConstStaticCell<[Place; GRANULES]> = ConstStaticCell::new([Place::Absent; GRANULES]);

    #[init]
    fn init() -> Index<'static> {
        twinblock_on_target::guard_stack();
        Index::new(MEMORY.take())
    }

    fn is_as_the_array(mut index: Index<'static>, base: u64, seed: u64) {
        let places = PLACES.take();
        let mut random = Random::new(seed);
        for step in 0..500 {
            let first = random.below(GRANULES as u64);
            let longest = if random.below(4) == 0 { 64 } else { 4 };
            let count = (1 + random.below(longest)).min(GRANULES as u64 - first) as u32;
            let place = match random.below(6) {
                0 => Place::Zeroes,
                1 => Place::Absent,
                // As a log would have it: granules that are kept together lie side by side, wherever that is.
                _ => Place::Slot(random.below(1 << 31) as u32),
            };
            index.set(base + first, count, place).unwrap();
            for at in 0..count {
                places[first as usize + at as usize] = place.advanced(at);
            }
            let asked = random.below(GRANULES as u64);
            let found = index.lookup(base + asked, 1);
            assert_eq!(
                (found.place, found.count),
                (places[asked as usize], 1),
                "step {step}, granule {asked}"
            );
            let next = (asked as usize..GRANULES).find(|at| places[*at] != Place::Absent);
            let present = index.next_present(base + asked);
            assert_eq!(present.map(|run| run.first), next.map(|at| base + at as u64), "step {step}");
        }
        let held = places.iter().filter(|place| **place != Place::Absent).count() as u64;
        assert_eq!(index.granule_count(), held);
        index.clear();
        assert_eq!(index.next_present(0), None);
    }

    #[test]
    fn every_answer_is_that_of_an_array(index: Index<'static>) {
        is_as_the_array(index, 0, 5);
    }

    #[test]
    fn so_it_is_across_the_end_of_32_bits(index: Index<'static>) {
        is_as_the_array(index, (1 << 32) - 100, 6);
    }

    #[test]
    fn and_far_beyond(index: Index<'static>) {
        is_as_the_array(index, (1 << 54) - 300, 7);
    }
}
