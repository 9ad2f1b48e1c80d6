//! Numbers for scripts.

/// A xorshift generator (Marsaglia, "Xorshift RNGs", 2003): the same numbers from the same seed on every machine.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of this seed, which is not 0.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`, which is not 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % limit
    }

    /// A range of numbers below `limit`, `count_max` at most, that crosses no multiple of `window`.
    pub fn run_within(&mut self, window: usize, limit: usize, count_max: usize) -> core::ops::Range<usize> {
        let first = self.below(limit as u64) as usize;
        let left = window - first % window;
        first..first + 1 + self.below(count_max.min(left) as u64) as usize
    }
}
