use super::*;
use proptest::prelude::*;
use std::vec::Vec;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn percentiles_are_never_too_low_and_a_sixteenth_too_high_at_most(
        mut times in proptest::collection::vec(
            prop_oneof![0_u64..40, 0_u64..5000, 0_u64..1 << TIME_BITS], 1..200),
        permille in 0_u16..=1000,
    ) {
        let mut histogram = Histogram::new();
        times.iter().for_each(|time| histogram.record(Micros(*time)));
        times.sort_unstable();
        let rank = (times.len() * usize::from(permille)).div_ceil(1000).max(1) - 1;
        let (exact, shown) = (times[rank], histogram.percentile(permille).0);
        prop_assert!(shown >= exact && shown <= exact + exact / 16, "{exact} {shown}");
        prop_assert_eq!(histogram.max().0, times[times.len() - 1]);
        prop_assert_eq!(histogram.count(), times.len() as u64);
    }
}

#[test]
fn buckets_follow_each_other_without_gap() {
    let mut lowest = 0;
    for index in 0..BUCKETS - 1 {
        let highest = highest_of(index).0;
        assert!(highest >= lowest);
        for time in [lowest, highest] {
            assert_eq!(bucket_of(time), index);
        }
        lowest = highest + 1;
    }
    assert_eq!(bucket_of(lowest), BUCKETS - 1);
    assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
}

#[test]
fn an_empty_histogram_shows_zeroes() {
    let mut histogram = Histogram::new();
    let shown = |histogram: &Histogram| (histogram.count(), histogram.percentile(990), histogram.max());
    assert_eq!(shown(&histogram), (0, Micros(0), Micros(0)));
    histogram.record(Micros(7));
    histogram.clear();
    assert_eq!(shown(&histogram), (0, Micros(0), Micros(0)));
}

#[test]
fn times_beyond_the_range_count_as_the_longest() {
    let mut histogram = Histogram::new();
    let times: Vec<u64> = (0..10).map(|i| (1 << TIME_BITS) + i).chain([5]).collect();
    times.iter().for_each(|time| histogram.record(Micros(*time)));
    assert_eq!(histogram.percentile(500), Micros((1 << TIME_BITS) + 9));
    assert_eq!(histogram.percentile(1), Micros(5));
}
