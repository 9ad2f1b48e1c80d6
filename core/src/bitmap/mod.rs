//! What is marked: a hierarchical bitmap over borrowed words (DESIGN.md, "Bitmaps").
//!
//! Level 0 has one bit for each unit that can be marked. A bit of each level above says whether one word of the level
//! below has any bit set, up to a level of a single word. So a search skips 64 empty words with one look, 4096 with two.
//!
//! # Invariants
//! * M1: a bit above level 0 is set exactly if the word below that it stands for is not zero.
//! * M2: no bit is set past the number of bits.
//! * M3: the count is the number of bits set on level 0.

#[cfg(all(feature = "inspect", feature = "primary"))]
mod inspect;
#[cfg(test)]
mod tests;

const WORD_BITS: usize = u64::BITS as usize;
/// Levels, at most: each has a 64th of the words of the one below, and the words are counted in 64 bits.
const LEVELS_MAX: usize = 11;

/// A range of neighbouring bits that are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Run {
    /// The first bit.
    pub first: u64,
    /// How many; at least 1.
    pub count: u64,
}

impl Run {
    /// The first bit after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// A hierarchical bitmap.
///
/// Its capacity, in bits, is fixed by the memory that it is given:
/// * unit: bits, one for each granule of whatever is tracked;
/// * formula: [`Bitmap::words_for`]`(bits)` words of 8 bytes, that is `bits / 8` bytes and a 63rd of that for the levels
///   above;
/// * example: 1 TiB in dirty granules of 64 KiB is 2^24 bits: 2.04 MiB;
/// * when full: nothing; it has a bit for everything that it tracks from the start;
/// * a larger one buys smaller granules: less is copied again for a small write that a replica missed.
///
/// Ranges that reach past the last bit are cut there.
///
/// ```
/// use twinblock_core::bitmap::{Bitmap, Run};
/// let mut words = [0; Bitmap::words_for(1000)];
/// let mut dirty = Bitmap::new(&mut words, 1000).unwrap();
/// assert_eq!(dirty.set_range(100, 50), 50);
/// assert_eq!(dirty.next_set(0, u64::MAX), Some(Run { first: 100, count: 50 }));
/// dirty.clear_range(100, 50);
/// assert_eq!(dirty.count(), 0);
/// ```
#[derive(Debug)]
pub struct Bitmap<'m> {
    words: &'m mut [u64],
    bits: u64,
    count: u64,
    /// Where each level begins in `words`; equal to the end for levels that there are not.
    starts: [usize; LEVELS_MAX + 1],
}

impl<'m> Bitmap<'m> {
    /// How many words of memory a bitmap of `bits` bits needs; `usize::MAX` if that is more than there can be.
    #[must_use]
    pub const fn words_for(bits: u64) -> usize {
        let mut level = bits.div_ceil(WORD_BITS as u64);
        let mut total = level;
        while level > 1 {
            level = level.div_ceil(WORD_BITS as u64);
            total += level;
        }
        if total > usize::MAX as u64 { usize::MAX } else { total as usize }
    }

    /// A bitmap with no bit set; the words are cleared. `None` if there are fewer than [`Bitmap::words_for`]`(bits)`
    /// words; what is more is left alone.
    #[must_use]
    pub fn new(words: &'m mut [u64], bits: u64) -> Option<Self> {
        let words = words.get_mut(..Self::words_for(bits))?;
        // Memory that is zero already is only read: a host's untouched pages then stay untouched.
        words.iter_mut().filter(|word| **word != 0).for_each(|word| *word = 0);
        let mut starts = [words.len(); LEVELS_MAX + 1];
        let (mut start, mut level_words) = (0, bits.div_ceil(WORD_BITS as u64) as usize);
        for level_start in &mut starts {
            *level_start = start;
            start += level_words;
            level_words = if level_words > 1 { level_words.div_ceil(WORD_BITS) } else { 0 };
        }
        Some(Self { words, bits, count: 0, starts })
    }

    /// How many bits there are.
    #[must_use]
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    /// How many bits are set. Takes constant time.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Sets `count` bits from `first` on; tells how many of them were not set before. Visits each word of the range.
    pub fn set_range(&mut self, first: u64, count: u64) -> u64 {
        let Some(range) = self.range(first, count) else { return 0 };
        let mut added = 0;
        for index in range.first_word..=range.last_word {
            added += self.set_in_word(index, range.mask(index));
        }
        added
    }

    /// Clears `count` bits from `first` on; tells how many of them were set. Visits only words of the range that have a
    /// bit set.
    pub fn clear_range(&mut self, first: u64, count: u64) -> u64 {
        let Some(range) = self.range(first, count) else { return 0 };
        let mut removed = 0;
        let mut next = self.next_word(range.first_word);
        while let Some(index) = next.filter(|index| *index <= range.last_word) {
            let Some(word) = self.words.get_mut(index) else { break };
            let gone = *word & range.mask(index);
            *word &= !gone;
            removed += u64::from(gone.count_ones());
            if *word == 0 {
                self.publish_empty(index);
            }
            next = self.next_word(index + 1);
        }
        self.count -= removed;
        removed
    }

    /// Sets every bit. Visits each word.
    pub fn set_all(&mut self) {
        self.set_range(0, self.bits);
    }

    /// Clears every bit, in time proportional to the number of words that have one set.
    pub fn clear_all(&mut self) {
        self.clear_range(0, self.bits);
    }

    /// Sets every bit that is set in `other`; tells how many of them were not set before. Visits only words of `other`
    /// that have a bit set. Bits that this bitmap has not got are left out.
    pub fn union_with(&mut self, other: &Bitmap<'_>) -> u64 {
        let Some(range) = self.range(0, other.bits) else { return 0 };
        let mut added = 0;
        let mut next = other.next_word(0);
        while let Some(index) = next.filter(|index| *index <= range.last_word) {
            added += self.set_in_word(index, other.word(index) & range.mask(index));
            next = other.next_word(index + 1);
        }
        added
    }

    /// Whether any of `count` bits from `first` on is set. One search up and down the levels.
    #[must_use]
    pub fn is_any_set(&self, first: u64, count: u64) -> bool {
        let Some(range) = self.range(first, count) else { return false };
        if self.word(range.first_word) & range.mask(range.first_word) != 0 {
            return true;
        }
        match self.next_word(range.first_word + 1) {
            Some(index) if index <= range.last_word => self.word(index) & range.mask(index) != 0,
            _ => false,
        }
    }

    /// Whether each of `count` bits from `first` on is set; also true of none. Visits each word of the range, up to the
    /// first that is not full.
    #[must_use]
    pub fn is_all_set(&self, first: u64, count: u64) -> bool {
        let Some(range) = self.range(first, count) else { return true };
        (range.first_word..=range.last_word).all(|index| !self.word(index) & range.mask(index) == 0)
    }

    /// The first bit set at or after `from`, and how many more follow it without a gap, `count_max` at most. One search
    /// up and down the levels, then each word of the run.
    #[must_use]
    pub fn next_set(&self, from: u64, count_max: u64) -> Option<Run> {
        if from >= self.bits || count_max == 0 {
            return None;
        }
        let (word, bit) = split(from);
        let rest = self.word(word) & (u64::MAX << bit);
        let (index, set) = if rest == 0 {
            let index = self.next_word(word + 1)?;
            (index, self.word(index))
        } else {
            (word, rest)
        };
        let bit = set.trailing_zeros();
        let first = (index * WORD_BITS) as u64 + u64::from(bit);
        let mut count = u64::from((set >> bit).trailing_ones());
        let mut following = index + 1;
        let mut reaches_end = u64::from(bit) + count == WORD_BITS as u64;
        while reaches_end && count < count_max && following < self.starts[1] {
            let ones = self.word(following).trailing_ones();
            count += u64::from(ones);
            reaches_end = ones == u64::BITS;
            following += 1;
        }
        Some(Run { first, count: count.min(count_max) })
    }

    /// A word of any level; past the end there is nothing set.
    fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or_default()
    }

    /// Sets bits of one word of level 0; tells how many were not set before.
    fn set_in_word(&mut self, index: usize, mask: u64) -> u64 {
        let Some(word) = self.words.get_mut(index) else { return 0 };
        let before = *word;
        let added = u64::from((mask & !before).count_ones());
        *word = before | mask;
        if before == 0 && mask != 0 {
            self.publish_used(index);
        }
        self.count += added;
        added
    }

    /// Restores M1 after a word of level 0 got its first bit.
    fn publish_used(&mut self, index: usize) {
        let mut index = index;
        for level in 1..LEVELS_MAX {
            // A level that there is not begins at the end.
            let Some(word) = self.words.get_mut(self.starts[level] + index / WORD_BITS) else { return };
            let was_empty = *word == 0;
            *word |= 1 << (index % WORD_BITS);
            if !was_empty {
                return;
            }
            index /= WORD_BITS;
        }
    }

    /// Restores M1 after a word of level 0 lost its last bit.
    fn publish_empty(&mut self, index: usize) {
        let mut index = index;
        for level in 1..LEVELS_MAX {
            // A level that there is not begins at the end.
            let Some(word) = self.words.get_mut(self.starts[level] + index / WORD_BITS) else { return };
            *word &= !(1 << (index % WORD_BITS));
            if *word != 0 {
                return;
            }
            index /= WORD_BITS;
        }
    }

    /// The first word of level 0, at or after `from`, that has a bit set. Looks at two words of each level at most.
    fn next_word(&self, from: usize) -> Option<usize> {
        if from >= self.starts[1] {
            return None;
        }
        if self.word(from) != 0 {
            return Some(from);
        }
        let mut index = from + 1;
        for level in 1..LEVELS_MAX {
            let position = self.starts[level] + index / WORD_BITS;
            if position >= self.starts[level + 1] {
                return None;
            }
            let rest = self.word(position) & (u64::MAX << (index % WORD_BITS));
            if rest != 0 {
                let below = index / WORD_BITS * WORD_BITS + rest.trailing_zeros() as usize;
                return Some(self.descend(level, below));
            }
            index = index / WORD_BITS + 1;
        }
        None
    }

    /// From a word below `level` that is not empty to the first word of level 0 below it that is not.
    fn descend(&self, level: usize, index: usize) -> usize {
        (1..level).rev().fold(index, |index, level| {
            let word = self.word(self.starts[level] + index);
            index * WORD_BITS + word.trailing_zeros() as usize
        })
    }

    /// The words that a range of bits touches, or `None` if it has no bit.
    fn range(&self, first: u64, count: u64) -> Option<WordRange> {
        let end = first.saturating_add(count).min(self.bits);
        if first >= end {
            return None;
        }
        let (first_word, first_bit) = split(first);
        let (last_word, last_bit) = split(end - 1);
        Some(WordRange { first_word, first_bit, last_word, last_bit })
    }
}

/// The word that a bit lies in, and where in it.
const fn split(bit: u64) -> (usize, u32) {
    ((bit / WORD_BITS as u64) as usize, (bit % WORD_BITS as u64) as u32)
}

/// A range of bits, by words.
struct WordRange {
    first_word: usize,
    first_bit: u32,
    last_word: usize,
    last_bit: u32,
}

impl WordRange {
    /// Which bits of this word belong to the range.
    const fn mask(&self, index: usize) -> u64 {
        let mut mask = u64::MAX;
        if index == self.first_word {
            mask &= u64::MAX << self.first_bit;
        }
        if index == self.last_word {
            mask &= u64::MAX >> (WORD_BITS as u32 - 1 - self.last_bit);
        }
        mask
    }
}
