//! The bitmap against an array of flags, on the target.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::bitmap::{Bitmap, Run};
    use twinblock_on_target::Random;

    /// Three levels, and no whole number of words.
    const BITS: usize = 64 * 64 * 2 + 37;
    const WORDS: usize = Bitmap::words_for(BITS as u64);
    static MEMORY: ConstStaticCell<[u64; WORDS]> = ConstStaticCell::new([0; WORDS]);
    static FLAGS: ConstStaticCell<[bool; BITS]> = ConstStaticCell::new([false; BITS]);

    #[init]
    fn init() -> Bitmap<'static> {
        twinblock_on_target::guard_stack();
        Bitmap::new(MEMORY.take(), BITS as u64).unwrap()
    }

    #[test]
    fn every_answer_is_that_of_an_array(mut bitmap: Bitmap<'static>) {
        let flags = FLAGS.take();
        let mut random = Random::new(7);
        for step in 0..400 {
            let first = random.below(BITS as u64 + 10);
            let longest = if random.below(3) == 0 { BITS as u64 } else { 90 };
            let count = random.below(longest);
            let range = (first as usize).min(BITS)..((first + count) as usize).min(BITS);
            let part = &mut flags[range];
            let set = part.iter().filter(|flag| **flag).count() as u64;
            assert_eq!(bitmap.is_any_set(first, count), set != 0, "step {step}");
            assert_eq!(bitmap.is_all_set(first, count), set == part.len() as u64, "step {step}");
            if random.below(2) == 0 {
                assert_eq!(bitmap.set_range(first, count), part.len() as u64 - set, "step {step}");
                part.fill(true);
            } else {
                assert_eq!(bitmap.clear_range(first, count), set, "step {step}");
                part.fill(false);
            }
            let from = random.below(BITS as u64);
            let next = (from as usize..BITS).find(|at| flags[*at]).map(|first| {
                let count = flags[first..].iter().take_while(|flag| **flag).count();
                Run { first: first as u64, count: count as u64 }
            });
            assert_eq!(bitmap.next_set(from, u64::MAX), next, "step {step}");
        }
        assert_eq!(bitmap.count(), flags.iter().filter(|flag| **flag).count() as u64);
    }

    /// Numbers of bits do not end where the processor's addresses do.
    #[test]
    fn ranges_beyond_32_bits_are_cut_and_not_wrapped(mut bitmap: Bitmap<'static>) {
        for first in [1 << 32, (1 << 32) + 5, u64::MAX] {
            assert_eq!(bitmap.set_range(first, 9), 0);
            assert!(!bitmap.is_any_set(first, 9));
            assert_eq!(bitmap.next_set(first, 9), None);
        }
        assert_eq!(bitmap.set_range(3, 1 << 32), BITS as u64 - 3);
        assert_eq!(bitmap.next_set(0, u64::MAX), Some(Run { first: 3, count: BITS as u64 - 3 }));
        assert_eq!(bitmap.clear_range(0, u64::MAX), BITS as u64 - 3);
    }

    #[test]
    fn one_that_no_memory_can_hold_is_refused(_bitmap: Bitmap<'static>) {
        for bits in [(1 << 38) + 64, (1 << 43) + 1, u64::MAX] {
            assert!(Bitmap::words_for(bits) as u64 >= (bits / 64).min(u32::MAX.into()));
            assert!(Bitmap::new(&mut [0; 4], bits).is_none());
        }
    }
}
