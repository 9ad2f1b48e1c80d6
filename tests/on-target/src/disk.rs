//! Disks in borrowed memory.

use twinblock_core::block::BlockingDisk;
use twinblock_core::{Errno, Extent};

/// A disk in borrowed memory that can be told to fail.
#[derive(Debug)]
pub struct RamDisk<'a> {
    bytes: &'a mut [u8],
    /// What the next write brings, if it shall fail.
    pub next_write: Option<Errno>,
    /// How often it was flushed.
    pub flush_count: u32,
}

impl<'a> RamDisk<'a> {
    /// A disk as long as the slice.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, next_write: None, flush_count: 0 }
    }

    /// What is on it.
    #[must_use]
    pub const fn content(&self) -> &[u8] {
        self.bytes
    }

    fn part(&mut self, offset: u64, length: usize) -> Result<&mut [u8], Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::Invalid)?;
        let end = start.checked_add(length).ok_or(Errno::Invalid)?;
        self.bytes.get_mut(start..end).ok_or(Errno::Invalid)
    }
}

impl BlockingDisk for RamDisk<'_> {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        bytes.copy_from_slice(self.part(offset, bytes.len())?);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        if let Some(error) = self.next_write.take() {
            return Err(error);
        }
        self.part(offset, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        self.flush_count += 1;
        Ok(())
    }
}

/// Bytes of what a [`FarDisk`] keeps together.
const BLOCK: u64 = 512;

/// A block of a [`FarDisk`].
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Its number on the disk, if it is used.
    number: Option<u64>,
    bytes: [u8; BLOCK as usize],
}

impl Block {
    /// What the memory is filled with at first.
    pub const UNUSED: Self = Self { number: None, bytes: [0; BLOCK as usize] };
}

/// A disk of any length that keeps only what is not zero, which cannot be much.
#[derive(Debug)]
pub struct FarDisk<'a> {
    size_bytes: u64,
    blocks: &'a mut [Block],
}

impl<'a> FarDisk<'a> {
    /// A disk of zeroes.
    pub const fn new(size_bytes: u64, blocks: &'a mut [Block]) -> Self {
        Self { size_bytes, blocks }
    }

    /// How many blocks are kept.
    #[must_use]
    pub fn used_blocks(&self) -> usize {
        self.blocks.iter().filter(|block| block.number.is_some()).count()
    }

    /// A block; one that is not kept yet is from now on if it `is_kept`.
    fn find(&mut self, number: u64, is_kept: bool) -> Result<Option<&mut Block>, Errno> {
        if let Some(at) = self.blocks.iter().position(|block| block.number == Some(number)) {
            return Ok(self.blocks.get_mut(at));
        }
        if !is_kept {
            return Ok(None);
        }
        let unused = self.blocks.iter_mut().find(|block| block.number.is_none()).ok_or(Errno::NoSpace)?;
        *unused = Block { number: Some(number), ..Block::UNUSED };
        Ok(Some(unused))
    }
}

/// Goes through a range block by block: the block's number, where in it, and where in the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, core::ops::Range<usize>, usize)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let (at, left) = (offset + done as u64, length - done);
        let within = (at % BLOCK) as usize;
        let count = left.min(BLOCK as usize - within);
        let part = (at / BLOCK, within..within + count, done);
        done += count;
        (count != 0).then_some(part)
    })
}

impl BlockingDisk for FarDisk<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        for (number, within, at) in parts(offset, bytes.len()) {
            let place = &mut bytes[at..at + within.len()];
            match self.find(number, false)? {
                Some(block) => place.copy_from_slice(&block.bytes[within]),
                None => place.fill(0),
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        for (number, within, at) in parts(offset, bytes.len()) {
            let content = &bytes[at..at + within.len()];
            let is_kept = content.iter().any(|byte| *byte != 0);
            if let Some(block) = self.find(number, is_kept)? {
                block.bytes[within].copy_from_slice(content);
                if block.bytes.iter().all(|byte| *byte == 0) {
                    block.number = None;
                }
            }
        }
        Ok(())
    }

    fn write_zeroes(&mut self, extent: Extent) -> Result<(), Errno> {
        let inner = extent.offset.div_ceil(BLOCK)..extent.end() / BLOCK;
        if inner.is_empty() {
            return self.write(extent.offset, &[0; 2 * BLOCK as usize][..extent.length as usize]);
        }
        for block in
            self.blocks.iter_mut().filter(|block| block.number.is_some_and(|number| inner.contains(&number)))
        {
            block.number = None;
        }
        let (head, tail) = (inner.start * BLOCK - extent.offset, extent.end() - inner.end * BLOCK);
        self.write(extent.offset, &[0; BLOCK as usize][..head as usize])?;
        self.write(inner.end * BLOCK, &[0; BLOCK as usize][..tail as usize])
    }

    fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}
