use super::Extent;

const fn extent(offset: u64, length: u64) -> Extent {
    Extent { offset, length }
}

#[test]
fn a_range_ends_within_64_bits() {
    assert_eq!(Extent::new(1, 2), Some(extent(1, 2)));
    assert_eq!(Extent::new(u64::MAX, 0), Some(extent(u64::MAX, 0)));
    assert_eq!(Extent::new(u64::MAX, 1), None);
    assert_eq!(Extent::between(3, 7), extent(3, 4));
    assert_eq!(Extent::between(7, 3), extent(7, 0));
    assert_eq!((extent(3, 4).end(), extent(u64::MAX, 4).end()), (7, u64::MAX));
    assert!(extent(3, 0).is_empty());
    assert!(!extent(3, 1).is_empty());
}

/// Every pair of ranges within six bytes, against the sets of their bytes.
#[test]
fn what_two_ranges_have_in_common_is_what_sets_of_bytes_have() {
    let all = || (0..6_u64).flat_map(|start| (start..7).map(move |end| Extent::between(start, end)));
    for (one, other) in all().flat_map(|one| all().map(move |other| (one, other))) {
        let has = |range: &Extent, byte| (range.offset..range.end()).contains(&byte);
        let is_common = (0..7).any(|byte| has(&one, byte) && has(&other, byte));
        assert_eq!(one.overlaps(&other), is_common, "{one:?} {other:?}");
        let common = one.intersection(&other);
        assert_eq!(common.is_empty(), !is_common, "{one:?} {other:?}");
        for byte in 0..7 {
            assert_eq!(has(&common, byte), has(&one, byte) && has(&other, byte), "{one:?} {other:?} {byte}");
        }
        if !other.is_empty() {
            let is_within = (0..7).all(|byte| has(&one, byte) || !has(&other, byte));
            assert_eq!(one.contains(&other), is_within, "{one:?} {other:?}");
        }
    }
}

#[test]
fn growing_to_whole_units_stops_at_the_end_of_the_disk() {
    assert_eq!(extent(513, 1).aligned_out(512, 4096), extent(512, 512));
    assert_eq!(extent(512, 512).aligned_out(512, 4096), extent(512, 512));
    assert_eq!(extent(511, 2).aligned_out(512, 4096), extent(0, 1024));
    assert_eq!(extent(4097, 1).aligned_out(512, 4196), extent(4096, 100), "a granule that the end cuts");
    assert_eq!(extent(4096, 100).aligned_out(512, 4608), extent(4096, 512));
    assert_eq!(extent(u64::MAX - 1, 1).aligned_out(512, u64::MAX), Extent::between(u64::MAX - 511, u64::MAX));
}
