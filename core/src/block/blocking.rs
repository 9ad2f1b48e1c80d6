//! The adapter for simple disks whose calls block.

use super::{Action, BlockDevice, Capabilities, Completion, Geometry, QueueFull, Transfer};
use crate::{Errno, Extent, Memory, Outcome};

/// How many completions a [`Blocking`] holds until they are polled.
const QUEUE_MAX: usize = 8;
/// How many zeroes are written at a time to a disk that cannot write zeroes by itself.
const ZEROES_BYTES: usize = 512;

/// A simple disk: implement the first four and it becomes a queue pair.
///
/// ```
/// use twinblock_core::block::{Action, BlockDevice, Blocking, BlockingDisk, Tag, Transfer};
/// use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Windows};
///
/// struct Ram(Vec<u8>);
///
/// impl BlockingDisk for Ram {
///     fn size_bytes(&self) -> u64 {
///         self.0.len() as u64
///     }
///     fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
///         let start = offset as usize;
///         bytes.copy_from_slice(&self.0[start..start + bytes.len()]);
///         Ok(())
///     }
///     fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
///         let start = offset as usize;
///         self.0[start..start + bytes.len()].copy_from_slice(bytes);
///         Ok(())
///     }
///     fn flush(&mut self) -> Result<(), Errno> {
///         Ok(())
///     }
/// }
///
/// let mut disk = Blocking::new(Ram(vec![7; 4096]));
/// let mut bytes = [0; 512];
/// let mut memory = Windows::new(&mut bytes, 512);
/// let data = Data { buffer: BufferIndex(0), offset: 0, length: 512 };
/// let extent = Extent { offset: 1024, length: 512 };
/// disk.submit(Transfer { tag: Tag::default(), action: Action::Read(data), extent }, &mut memory).unwrap();
/// assert!(disk.poll(&mut memory).unwrap().result.is_ok());
/// assert_eq!(memory.bytes(data).unwrap(), [7; 512]);
/// ```
pub trait BlockingDisk {
    /// Length of the disk.
    fn size_bytes(&self) -> u64;

    /// Fills `bytes` from `offset`. The range was checked.
    ///
    /// # Errors
    /// What the disk reports.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno>;

    /// Writes `bytes` to `offset`. The range was checked.
    ///
    /// # Errors
    /// What the disk reports.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What the disk reports.
    fn flush(&mut self) -> Result<(), Errno>;

    /// Offsets and lengths are multiples of this power of two.
    fn block_bytes(&self) -> u32 {
        1
    }

    /// Whether it takes no modifications.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Makes a range read as zeroes. Unless overridden, blocks of zeroes are written, at most 512 bytes at a time or
    /// one block if that is smaller; a disk with larger blocks must override it.
    ///
    /// # Errors
    /// What the disk reports; [`Errno::Unsupported`] if its blocks are larger than 512 bytes.
    fn write_zeroes(&mut self, extent: Extent) -> Result<(), Errno> {
        const ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];
        let mut offset = extent.offset;
        while offset < extent.end() {
            let length = (extent.end() - offset).min(ZEROES_BYTES as u64);
            if !length.is_multiple_of(u64::from(self.block_bytes().max(1))) {
                return Err(Errno::Unsupported);
            }
            self.write(offset, ZEROES.get(..length as usize).unwrap_or(&ZEROES))?;
            offset += length;
        }
        Ok(())
    }
}

/// A [`BlockingDisk`] as a queue pair whose transfers complete at once.
#[derive(Debug)]
pub struct Blocking<T> {
    disk: T,
    done: heapless::Deque<Completion, QUEUE_MAX>,
}

impl<T: BlockingDisk> Blocking<T> {
    /// Wraps a disk.
    pub const fn new(disk: T) -> Self {
        Self { disk, done: heapless::Deque::new() }
    }

    /// The disk itself.
    pub const fn disk(&self) -> &T {
        &self.disk
    }

    /// The disk itself.
    pub const fn disk_mut(&mut self) -> &mut T {
        &mut self.disk
    }

    /// Unwraps it; completions that were not polled are lost.
    pub fn into_disk(self) -> T {
        self.disk
    }

    fn run<M: Memory + ?Sized>(&mut self, transfer: &Transfer, memory: &mut M) -> Result<Outcome, Errno> {
        let Extent { offset, length } = transfer.extent;
        if transfer.extent.end() > self.disk.size_bytes() || offset.checked_add(length).is_none() {
            return Err(Errno::Invalid);
        }
        match transfer.action {
            Action::Read(data) => {
                let bytes = memory.bytes(data).filter(|bytes| bytes.len() as u64 == length);
                self.disk.read(offset, bytes.ok_or(Errno::Invalid)?)?;
            }
            Action::Write { data, fua } => {
                let bytes = memory.bytes(data).filter(|bytes| bytes.len() as u64 == length);
                self.disk.write(offset, bytes.ok_or(Errno::Invalid)?)?;
                self.flush_if(fua)?;
            }
            // Never known to be fast here, so what must be fast is refused.
            Action::WriteZeroes { fast: true, .. } | Action::Status => return Err(Errno::Unsupported),
            Action::WriteZeroes { fua, .. } => {
                self.disk.write_zeroes(transfer.extent)?;
                self.flush_if(fua)?;
            }
            Action::Flush => self.disk.flush()?,
        }
        Ok(Outcome::Done)
    }

    fn flush_if(&mut self, fua: bool) -> Result<(), Errno> {
        if fua { self.disk.flush() } else { Ok(()) }
    }
}

impl<M: Memory + ?Sized, T: BlockingDisk> BlockDevice<M> for Blocking<T> {
    fn geometry(&self) -> Geometry {
        let read_only =
            if self.disk.is_read_only() { Capabilities::READ_ONLY } else { Capabilities::empty() };
        Geometry {
            size_bytes: self.disk.size_bytes(),
            block_bytes: self.disk.block_bytes(),
            capabilities: Capabilities::FLUSH | Capabilities::WRITE_ZEROES | read_only,
        }
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut M) -> Result<(), QueueFull> {
        if self.done.is_full() {
            return Err(QueueFull);
        }
        let result = self.run(&transfer, memory);
        self.done.push_back(Completion { tag: transfer.tag, result }).map_err(|_| QueueFull)
    }

    fn poll(&mut self, _memory: &mut M) -> Option<Completion> {
        self.done.pop_front()
    }
}
