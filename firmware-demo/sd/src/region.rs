//! A range of a card as a disk.

use embedded_sdmmc::{Block, BlockDevice, BlockIdx};
use twinblock_core::block::BlockingDisk;
use twinblock_core::{Errno, Extent};

use crate::Partition;

const BLOCK_BYTES: usize = Block::LEN;

/// A range of a card's blocks as a disk of its own.
///
/// Any byte can be addressed, as a primary on a plain file wants it: of a block of which a part is written, the rest is
/// read before and written again. A card writes a block whole or not at all, so that nothing beside the written range is
/// lost when the power is. What is written is durable when the call returns, since the card has by then left its busy
/// state; a flush has nothing to do.
///
/// What the card refuses is [`Errno::Io`] here, and the card is asked again by the next request.
#[derive(Debug)]
pub struct Region<'c, D> {
    card: &'c D,
    first_block: u32,
    block_count: u32,
}

impl<'c, D: BlockDevice> Region<'c, D> {
    /// The blocks of `partition` on `card`.
    #[must_use]
    pub const fn new(card: &'c D, partition: Partition) -> Self {
        let Partition { first_block, block_count, .. } = partition;
        Self { card, first_block, block_count }
    }

    /// The block that holds byte `offset`, where in it, and how many of `length` bytes lie in it.
    fn place(&self, offset: u64, length: usize) -> Result<(BlockIdx, usize, usize), Errno> {
        let within = (offset % BLOCK_BYTES as u64) as usize;
        let index = u32::try_from(offset / BLOCK_BYTES as u64).map_err(|_| Errno::Invalid)?;
        if index >= self.block_count {
            return Err(Errno::Invalid);
        }
        let block = self.first_block.checked_add(index).ok_or(Errno::Invalid)?;
        Ok((BlockIdx(block), within, length.min(BLOCK_BYTES - within)))
    }

    fn load(&self, at: BlockIdx) -> Result<Block, Errno> {
        let mut block = Block::new();
        self.card.read(core::slice::from_mut(&mut block), at).map_err(|_| Errno::Io)?;
        Ok(block)
    }

    /// Changes `count` bytes from `within` on in a block.
    fn patch(
        &self,
        at: BlockIdx,
        within: usize,
        count: usize,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), Errno> {
        let mut block = if count == BLOCK_BYTES { Block::new() } else { self.load(at)? };
        change(block.contents.get_mut(within..within + count).ok_or(Errno::Invalid)?);
        self.card.write(core::slice::from_ref(&block), at).map_err(|_| Errno::Io)
    }
}

impl<D: BlockDevice> BlockingDisk for Region<'_, D> {
    fn size_bytes(&self) -> u64 {
        u64::from(self.block_count) * BLOCK_BYTES as u64
    }

    fn read(&mut self, mut offset: u64, mut bytes: &mut [u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let (at, within, count) = self.place(offset, bytes.len())?;
            let block = self.load(at)?;
            let (now, rest) = bytes.split_at_mut(count);
            now.copy_from_slice(block.contents.get(within..within + count).ok_or(Errno::Invalid)?);
            (offset, bytes) = (offset + count as u64, rest);
        }
        Ok(())
    }

    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let (at, within, count) = self.place(offset, bytes.len())?;
            let (now, rest) = bytes.split_at(count);
            self.patch(at, within, count, |place| place.copy_from_slice(now))?;
            (offset, bytes) = (offset + count as u64, rest);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    fn write_zeroes(&mut self, extent: Extent) -> Result<(), Errno> {
        let mut offset = extent.offset;
        while offset < extent.end() {
            let left = usize::try_from(extent.end() - offset).unwrap_or(usize::MAX);
            let (at, within, count) = self.place(offset, left)?;
            self.patch(at, within, count, |place| place.fill(0))?;
            offset += count as u64;
        }
        Ok(())
    }
}
