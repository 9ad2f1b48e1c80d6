//! The partition table in the first block of a card.
//!
//! Source: the UEFI specification, section 5.2.1 "Legacy Master Boot Record".

use embedded_sdmmc::{Block, BlockDevice, BlockIdx};

/// Where the table begins in the block, bytes of an entry, and where the mark of a valid block lies.
const TABLE_START: usize = 446;
const ENTRY_BYTES: usize = 16;
const MARK_START: usize = 510;
const MARK: [u8; 2] = [0x55, 0xaa];

/// A range of a card's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What the table says is in it; of no meaning to Twinblock.
    pub kind: u8,
    /// Its first block, of 512 bytes, from the start of the card.
    pub first_block: u32,
    /// How many blocks; at least 1.
    pub block_count: u32,
}

/// Why a card has no partitions that could be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError<E> {
    /// The card: it does not answer, or not well.
    Card(E),
    /// Whoever prepares cards: the first block holds no partition table.
    NoTable,
    /// Whoever prepares cards: a partition reaches beyond the end of the card, or two of them overlap.
    BadTable,
}

impl Partition {
    /// The four primary partitions of a card; `None` where the table has an empty entry.
    ///
    /// # Errors
    /// [`LayoutError`] says whether the card or its table is at fault.
    pub fn table<D: BlockDevice>(card: &D) -> Result<[Option<Self>; 4], LayoutError<D::Error>> {
        let mut block = Block::new();
        card.read(core::slice::from_mut(&mut block), BlockIdx(0)).map_err(LayoutError::Card)?;
        if block.contents.get(MARK_START..) != Some(&MARK[..]) {
            return Err(LayoutError::NoTable);
        }
        let blocks = card.num_blocks().map_err(LayoutError::Card)?.0;
        let mut table = [None; 4];
        let entries = block.contents.get(TABLE_START..MARK_START).unwrap_or_default();
        for (place, entry) in table.iter_mut().zip(entries.as_chunks::<ENTRY_BYTES>().0) {
            *place = Self::from_entry(entry);
        }
        let is_sound = |at: usize, partition: &Self| {
            let end = u64::from(partition.first_block) + u64::from(partition.block_count);
            let others = table.iter().take(at).flatten();
            end <= u64::from(blocks) && !others.into_iter().any(|other| other.overlaps(partition))
        };
        let mut taken = table.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)));
        if taken.all(|(at, partition)| is_sound(at, partition)) {
            Ok(table)
        } else {
            Err(LayoutError::BadTable)
        }
    }

    fn from_entry(entry: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let [_, _, _, _, kind, _, _, _, a, b, c, d, e, f, g, h] = *entry;
        let (first_block, block_count) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        (kind != 0 && block_count != 0).then_some(Self { kind, first_block, block_count })
    }

    const fn overlaps(&self, other: &Self) -> bool {
        let (start, end) = (self.first_block as u64, self.first_block as u64 + self.block_count as u64);
        let (other_start, other_end) =
            (other.first_block as u64, other.first_block as u64 + other.block_count as u64);
        start < other_end && other_start < end
    }
}
