use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// The slow, obvious bitmap.
#[derive(Clone)]
struct Oracle(Vec<bool>);

impl Oracle {
    fn range(&mut self, first: u64, count: u64) -> &mut [bool] {
        let len = self.0.len() as u64;
        let end = first.saturating_add(count).min(len);
        &mut self.0[first.min(len) as usize..end as usize]
    }

    fn fill(&mut self, first: u64, count: u64, value: bool) -> u64 {
        let mut changed = 0;
        for bit in self.range(first, count) {
            changed += u64::from(*bit != value);
            *bit = value;
        }
        changed
    }

    fn next_set(&self, from: u64, count_max: u64) -> Option<Run> {
        let first = (from as usize..self.0.len()).find(|bit| self.0[*bit])?;
        let count = self.0[first..].iter().take_while(|bit| **bit).count() as u64;
        (count_max > 0).then_some(Run { first: first as u64, count: count.min(count_max) })
    }
}

fn check_invariants(bitmap: &Bitmap<'_>) {
    let mut below: Vec<u64> = bitmap.words[..bitmap.starts[1]].to_vec();
    assert_eq!(below.iter().map(|word| u64::from(word.count_ones())).sum::<u64>(), bitmap.count(), "M3");
    if let Some(last) = below.last().filter(|_| !bitmap.bits.is_multiple_of(64)) {
        assert_eq!(last >> (bitmap.bits % 64), 0, "M2");
    }
    for level in 1..LEVELS_MAX {
        let words = &bitmap.words[bitmap.starts[level]..bitmap.starts[level + 1]];
        if words.is_empty() {
            assert!(below.len() <= 1);
            return;
        }
        for (index, word) in below.iter().enumerate() {
            assert_eq!(words[index / 64] >> (index % 64) & 1 == 1, *word != 0, "M1");
        }
        below = words.to_vec();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u64),
    Clear(u64, u64),
    SetAll,
    ClearAll,
    Union(Vec<(u64, u64)>),
}

fn ranges(bits: u64) -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        4 => (0..bits + 70, 0_u64..10),
        2 => (0..bits + 70, 0..bits + 70),
        // Whole words.
        2 => (0..bits / 64 + 2, 0..bits / 64 + 2).prop_map(|(first, count)| (first * 64, count * 64)),
        1 => (0..bits, Just(u64::MAX)),
    ]
}

fn steps(bits: u64) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => ranges(bits).prop_map(|(first, count)| Step::Set(first, count)),
        8 => ranges(bits).prop_map(|(first, count)| Step::Clear(first, count)),
        1 => Just(Step::SetAll),
        2 => Just(Step::ClearAll),
        2 => proptest::collection::vec(ranges(bits), 0..4).prop_map(Step::Union),
    ];
    proptest::collection::vec(step, 0..30)
}

fn apply(step: &Step, bitmap: &mut Bitmap<'_>, oracle: &mut Oracle) {
    let bits = bitmap.bits();
    match step {
        Step::Set(first, count) => {
            assert_eq!(bitmap.set_range(*first, *count), oracle.fill(*first, *count, true));
        }
        Step::Clear(first, count) => {
            assert_eq!(bitmap.clear_range(*first, *count), oracle.fill(*first, *count, false));
        }
        Step::SetAll => {
            bitmap.set_all();
            oracle.fill(0, bits, true);
        }
        Step::ClearAll => {
            bitmap.clear_all();
            oracle.fill(0, bits, false);
        }
        Step::Union(ranges) => {
            let mut words = vec![0; Bitmap::words_for(bits + 100)];
            let mut other = Bitmap::new(&mut words, bits + 100).unwrap();
            let mut added = 0;
            for (first, count) in ranges {
                other.set_range(*first, *count);
                added += oracle.fill(*first, *count, true);
            }
            assert_eq!(bitmap.union_with(&other), added);
        }
    }
}

fn compare_with_oracle(bits: u64, steps: &[Step], questions: &[(u64, u64)]) {
    let mut words = vec![u64::MAX; Bitmap::words_for(bits)];
    let mut bitmap = Bitmap::new(&mut words, bits).unwrap();
    let mut oracle = Oracle(vec![false; bits as usize]);
    for step in steps {
        apply(step, &mut bitmap, &mut oracle);
        check_invariants(&bitmap);
        let mut from = 0;
        while let Some(run) = bitmap.next_set(from, u64::MAX) {
            assert_eq!(oracle.next_set(from, u64::MAX), Some(run));
            from = run.end();
        }
        assert_eq!(oracle.next_set(from, u64::MAX), None);
        for (first, count) in questions {
            let expected = oracle.range(*first, *count);
            assert_eq!(bitmap.is_any_set(*first, *count), expected.iter().any(|bit| *bit));
            assert_eq!(bitmap.is_all_set(*first, *count), expected.iter().all(|bit| *bit));
            assert_eq!(bitmap.next_set(*first, *count), oracle.next_set(*first, *count));
        }
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn random_ranges_give_what_a_list_of_flags_gives(
        (bits, steps, questions) in (1_u64..700).prop_flat_map(|bits| {
            (Just(bits), steps(bits), proptest::collection::vec(ranges(bits), 0..20))
        })
    ) {
        compare_with_oracle(bits, &steps, &questions);
    }
}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn random_ranges_over_three_levels_give_what_a_list_of_flags_gives(
        (bits, steps, questions) in (4096_u64..20_000).prop_flat_map(|bits| {
            (Just(bits), steps(bits), proptest::collection::vec(ranges(bits), 0..20))
        })
    ) {
        compare_with_oracle(bits, &steps, &questions);
    }
}

#[test]
fn single_bits_far_apart_are_found_one_after_the_other() {
    let bits = 64 * 64 * 64 * 3 + 5;
    let mut words = vec![0; Bitmap::words_for(bits)];
    let mut bitmap = Bitmap::new(&mut words, bits).unwrap();
    let marked = [0, 63, 64, 4095, 4096, 262_143, 262_144, 400_000, 524_288, bits - 1];
    for bit in marked {
        assert_eq!(bitmap.set_range(bit, 1), 1);
    }
    let mut from = 0;
    for run in [(0, 1), (63, 2), (4095, 2), (262_143, 2), (400_000, 1), (524_288, 1), (bits - 1, 1)] {
        assert_eq!(bitmap.next_set(from, u64::MAX), Some(Run { first: run.0, count: run.1 }));
        from = run.0 + run.1;
    }
    assert_eq!(bitmap.next_set(from, u64::MAX), None);
    bitmap.clear_all();
    check_invariants(&bitmap);
}

#[test]
fn clearing_nothing_out_of_much_looks_at_nothing() {
    let bits = 1 << 26;
    let mut words = vec![0; Bitmap::words_for(bits)];
    let mut bitmap = Bitmap::new(&mut words, bits).unwrap();
    // A million words; if each were looked at every time, this would take minutes.
    for round in 0..100_000 {
        bitmap.set_range(round * 10_007 % bits, 3);
        bitmap.clear_all();
        assert!(!bitmap.is_any_set(0, bits));
    }
    assert_eq!(bitmap.count(), 0);
}

#[test]
fn too_little_memory_is_refused() {
    let mut words = [0; 65];
    assert!(Bitmap::new(&mut words, 64 * 64).is_some());
    assert!(Bitmap::new(&mut words, 64 * 64 + 1).is_none());
    assert!(Bitmap::new(&mut words[..0], 1).is_none());
    assert!(Bitmap::new(&mut words, u64::MAX).is_none());
}

#[test]
fn a_bitmap_without_bits_needs_no_memory_and_holds_nothing() {
    let mut bitmap = Bitmap::new(&mut [], 0).unwrap();
    bitmap.set_all();
    assert_eq!(bitmap.set_range(0, 5), 0);
    assert_eq!((bitmap.count(), bitmap.next_set(0, 1)), (0, None));
    assert!(!bitmap.is_any_set(0, 1) && bitmap.is_all_set(0, 1));
}

#[test]
fn the_documented_sizes_hold() {
    assert_eq!(Bitmap::words_for(0), 0);
    assert_eq!(Bitmap::words_for(64), 1);
    assert_eq!(Bitmap::words_for(65), 3);
    let tebibyte = Bitmap::words_for(1 << 24) * 8;
    assert!(tebibyte > 2 << 20 && tebibyte * 100 < 204 * (1 << 20));
}

#[test]
fn a_run_that_reaches_the_last_bit_ends_there() {
    for bits in [1, 63, 64, 65, 128, 4096, 4160, 8192] {
        let mut words = vec![0; Bitmap::words_for(bits)];
        let mut bitmap = Bitmap::new(&mut words, bits).unwrap();
        bitmap.set_all();
        assert_eq!(bitmap.count(), bits);
        assert_eq!(bitmap.next_set(0, u64::MAX), Some(Run { first: 0, count: bits }));
        assert_eq!(bitmap.next_set(bits - 1, u64::MAX), Some(Run { first: bits - 1, count: 1 }));
        assert_eq!(bitmap.next_set(bits, u64::MAX), None);
        assert!(
            bitmap.is_all_set(0, u64::MAX) && bitmap.is_any_set(bits - 1, 9) && !bitmap.is_any_set(bits, 9)
        );
        assert_eq!((bitmap.clear_range(bits - 1, 9), bitmap.count()), (1, bits - 1));
    }
}
