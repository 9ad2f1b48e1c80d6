//! How long checkpoints took: a histogram of fixed size.

#[cfg(test)]
mod tests;

use crate::Micros;

/// Buckets for each doubling; also the values that have a bucket of their own.
const PER_DOUBLING: usize = 16;
const PER_DOUBLING_BITS: u32 = PER_DOUBLING.trailing_zeros();
/// Times of this many bits and more share the last bucket: 2^26 us, 67 seconds.
const TIME_BITS: u32 = 26;
const BUCKETS: usize = (TIME_BITS - PER_DOUBLING_BITS + 1) as usize * PER_DOUBLING;

/// Counts times in buckets that are a 16th of their doubling wide: a percentile is at most 6.25% too high and never too
/// low. 1.5 KiB.
///
/// ```
/// use twinblock_core::{Micros, control::Histogram};
/// let mut times = Histogram::new();
/// for time in 1..=1000 {
///     times.record(Micros(time));
/// }
/// assert!((500..=532).contains(&times.percentile(500).0));
/// assert_eq!(times.percentile(1000), times.max());
/// ```
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: [u32; BUCKETS],
    count: u64,
    max: Micros,
}

impl Histogram {
    /// Nothing recorded.
    #[must_use]
    pub const fn new() -> Self {
        Self { buckets: [0; BUCKETS], count: 0, max: Micros(0) }
    }

    /// One more that took this long.
    pub fn record(&mut self, time: Micros) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(time.0)) {
            *bucket = bucket.saturating_add(1);
        }
        self.count = self.count.saturating_add(1);
        self.max = self.max.max(time);
    }

    /// How many were recorded.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The longest, exactly; 0 if nothing was recorded.
    #[must_use]
    pub const fn max(&self) -> Micros {
        self.max
    }

    /// The time that `permille` of 1000 did not exceed (500 is the median, 990 the 99th percentile); 0 if nothing was
    /// recorded. Looks at each of the 368 buckets at most.
    #[must_use]
    pub fn percentile(&self, permille: u16) -> Micros {
        let total: u64 = self.buckets.iter().map(|count| u64::from(*count)).sum();
        let wanted = (total * u64::from(permille.min(1000))).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return highest_of(index).min(self.max);
            }
        }
        self.max
    }

    /// Forgets all.
    pub const fn clear(&mut self) {
        *self = Self::new();
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// Values below 16 are their own bucket; above, the four bits after the leading one choose within the doubling.
const fn bucket_of(time: u64) -> usize {
    if time < PER_DOUBLING as u64 {
        return time as usize;
    }
    if time >> TIME_BITS != 0 {
        return BUCKETS - 1;
    }
    let doubling = time.ilog2() - PER_DOUBLING_BITS;
    doubling as usize * PER_DOUBLING + (time >> doubling) as usize
}

/// The longest time that belongs to a bucket.
const fn highest_of(index: usize) -> Micros {
    if index < PER_DOUBLING {
        return Micros(index as u64);
    }
    if index == BUCKETS - 1 {
        return Micros(u64::MAX);
    }
    let doubling = index / PER_DOUBLING - 1;
    let lowest = ((index - doubling * PER_DOUBLING) as u64) << doubling;
    Micros(lowest + (1 << doubling) - 1)
}
