//! Blocks that say what they are: each carries its number, the write that made it, and a checksum, and the rest of it
//! follows from these. A block is a sector of 512 bytes, so that writes need not be aligned to the granules of the
//! disk buffer.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | a word that marks blocks of this run |
//! | 8..16 | number of the block, little-endian |
//! | 16..24 | version: which write made it, little-endian |
//! | 24..28 | CRC-32 of everything else, little-endian |
//! | 28..512 | filler that follows from the first three |

#[cfg(test)]
mod tests;

use super::random::Random;

/// Bytes of one block.
pub(crate) const BLOCK_BYTES: usize = 512;

const CHECKSUM: std::ops::Range<usize> = 24..28;
const HEAD: usize = 28;

/// The bytes of one block.
pub(crate) type Block = [u8; BLOCK_BYTES];

/// Which write made a block: the connection that sent it, and the how-manyth write of that connection it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version {
    /// Index of the connection.
    pub(crate) connection: u16,
    /// Index among the writes of the connection.
    pub(crate) index: u32,
}

impl Version {
    /// Of blocks that were on the disk before the first write.
    pub(crate) const INITIAL: Self = Self { connection: u16::MAX, index: 0 };

    const fn word(self) -> u64 {
        (self.connection as u64) << 32 | self.index as u64
    }

    const fn from_word(word: u64) -> Option<Self> {
        if word >> 48 != 0 {
            return None;
        }
        Some(Self { connection: (word >> 32) as u16, index: word as u32 })
    }
}

/// What the bytes of a block turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// All zero.
    Zero,
    /// A whole block of this number.
    Version(Version),
    /// A whole block, but of another number.
    Misplaced,
    /// It bears the mark of this run, and is damaged.
    Damaged,
    /// Nothing that this run has written.
    Foreign,
}

/// Makes and recognises the blocks of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    mark: u64,
}

impl Stamp {
    /// `mark` tells this run's blocks from those of other runs that may be on the disk already.
    pub(crate) const fn new(mark: u64) -> Self {
        Self { mark }
    }

    /// Makes a block.
    pub(crate) fn write(self, block: &mut Block, number: u64, version: Version) {
        let words = [self.mark, number, version.word()];
        for (place, word) in block.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let mut filler = Random::new(self.mark ^ number.rotate_left(32) ^ version.word());
        for place in block[HEAD..].chunks_mut(8) {
            let word = filler.next().to_le_bytes();
            place.copy_from_slice(&word[..place.len()]);
        }
        let checksum = checksum(block);
        block[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Recognises a block that was read as number `number`.
    pub(crate) fn read(self, block: &Block, number: u64) -> Content {
        if *block == [0; BLOCK_BYTES] {
            return Content::Zero;
        }
        let word = |index: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&block[index * 8..index * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        if word(0) != self.mark {
            return Content::Foreign;
        }
        let Some(version) = Version::from_word(word(2)) else { return Content::Damaged };
        let mut expected = [0; BLOCK_BYTES];
        self.write(&mut expected, word(1), version);
        match (expected == *block, word(1) == number) {
            (false, _) => Content::Damaged,
            (true, false) => Content::Misplaced,
            (true, true) => Content::Version(version),
        }
    }
}

fn checksum(block: &Block) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..CHECKSUM.start]);
    hasher.update(&block[CHECKSUM.end..]);
    hasher.finalize()
}
