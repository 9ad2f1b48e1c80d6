//! A range of bytes on a disk.

#[cfg(test)]
mod tests;

/// A range of bytes on a disk. May be empty; `offset + length` never overflows if it was made by [`Extent::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Extent {
    /// First byte, from the start of the disk.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl Extent {
    /// The range, or `None` if its end is beyond `u64`.
    #[must_use]
    pub const fn new(offset: u64, length: u64) -> Option<Self> {
        match offset.checked_add(length) {
            Some(_) => Some(Self { offset, length }),
            None => None,
        }
    }

    /// The range from `start` up to, not including, `end`; empty if `end` is before `start`.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self { offset: start, length: end.saturating_sub(start) }
    }

    /// The first byte after the range.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end() && self.length != 0 && other.length != 0
    }

    /// Whether `other` lies within.
    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }

    /// What the two have in common; empty if nothing.
    #[must_use]
    pub const fn intersection(&self, other: &Self) -> Self {
        let start = if self.offset > other.offset { self.offset } else { other.offset };
        let end = if self.end() < other.end() { self.end() } else { other.end() };
        Self::between(start, end)
    }

    /// Grown outwards to multiples of `unit` (a power of two) and cut at `limit`, the size of the disk.
    #[must_use]
    pub const fn aligned_out(&self, unit: u64, limit: u64) -> Self {
        let start = self.offset & !(unit - 1);
        let end = match self.end().checked_add(unit - 1) {
            Some(end) => end & !(unit - 1),
            None => u64::MAX,
        };
        Self::between(start, if end > limit { limit } else { end })
    }
}
