//! Bitmaps as programs see them that walk through every state.

use core::hash::{Hash, Hasher};

use super::{Bitmap, WORD_BITS};

impl Bitmap<'_> {
    /// The same in other memory; `None` if that has fewer words.
    pub(crate) fn copied_into<'n>(&self, words: &'n mut [u64]) -> Option<Bitmap<'n>> {
        let words = words.get_mut(..self.words.len())?;
        words.copy_from_slice(self.words);
        Some(Bitmap { words, bits: self.bits, count: self.count, starts: self.starts })
    }

    /// The invariant that does not hold.
    pub(crate) fn broken_invariant(&self) -> Option<&'static str> {
        let level_of = |level: usize| &self.words[self.starts[level]..self.starts[level + 1]];
        for level in 1..super::LEVELS_MAX {
            let below = level_of(level - 1);
            let is_set = |index: usize| level_of(level)[index / WORD_BITS] >> (index % WORD_BITS) & 1 != 0;
            if !level_of(level).is_empty()
                && below.iter().enumerate().any(|(index, word)| is_set(index) != (*word != 0))
            {
                return Some("M1");
            }
        }
        let last_bits = (self.bits % WORD_BITS as u64) as u32;
        if last_bits != 0 && level_of(0).last().is_some_and(|word| word >> last_bits != 0) {
            return Some("M2");
        }
        let count = level_of(0).iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        (count != self.count).then_some("M3")
    }
}

/// Of the bits alone, as the levels above follow from them.
impl Hash for Bitmap<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words[..self.starts[1]].hash(state);
    }
}
