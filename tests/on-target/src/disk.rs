//! A disk in borrowed memory.

use twinblock_core::Errno;
use twinblock_core::block::BlockingDisk;

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
