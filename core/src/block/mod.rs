//! What a disk is: a queue pair.
//!
//! [`BlockDevice::submit`] starts a transfer under a tag, [`BlockDevice::poll`] hands completions back in any order.
//! io_uring, virtio-blk and NVMe have this shape; anything simpler implements [`BlockingDisk`] and is wrapped in
//! [`Blocking`].

mod blocking;
mod seekable;
#[cfg(test)]
mod tests;

pub use blocking::{Blocking, BlockingDisk};
pub use seekable::Seekable;

use crate::{Data, Errno, Extent, Memory, Outcome};

bitflags::bitflags! {
    /// What a device can do beyond reading and writing.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
    pub struct Capabilities: u8 {
        /// It has a cache that a flush makes durable.
        const FLUSH = 1;
        /// It writes zeroes without data crossing to it.
        const WRITE_ZEROES = 1 << 1;
        /// It can tell whether writing zeroes would be fast, and refuses if not.
        const FAST_ZERO = 1 << 2;
        /// It tells holes from data.
        const STATUS = 1 << 3;
        /// It takes no modifications.
        const READ_ONLY = 1 << 4;
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Capabilities {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "Capabilities({=u8:#b})", self.bits());
    }
}

/// The shape of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Geometry {
    /// Length of the device.
    pub size_bytes: u64,
    /// Offsets and lengths of transfers are multiples of this power of two; 1 if any byte can be addressed.
    pub block_bytes: u32,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// Names a transfer in flight. A machine may use one tag for several transfers at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Tag {
    /// Which entry of the machine's table.
    pub entry: u16,
    /// Which use of that entry; wraps.
    pub generation: u32,
}

/// What a device shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Action {
    /// Read the extent into the data.
    Read(Data),
    /// Write the data to the extent.
    Write {
        /// As long as the extent.
        data: Data,
        /// Durable before it completes; a device without such a write flushes after it.
        fua: bool,
    },
    /// Make the extent read as zeroes; a device without [`Capabilities::WRITE_ZEROES`] writes them out. Not limited to
    /// the window in length.
    WriteZeroes {
        /// The range may become a hole.
        may_unmap: bool,
        /// Refuse with [`Errno::Unsupported`] what is not fast.
        fast: bool,
        /// Durable before it completes.
        fua: bool,
    },
    /// Make durable what has completed before. The extent is empty.
    Flush,
    /// Tell holes from data; completes with [`Outcome::Status`]. Given only to devices with [`Capabilities::STATUS`].
    Status,
}

/// One transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Transfer {
    /// Comes back in the completion.
    pub tag: Tag,
    /// What to do.
    pub action: Action,
    /// Where.
    pub extent: Extent,
}

/// The end of one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Completion {
    /// The transfer's.
    pub tag: Tag,
    /// What came of it.
    pub result: Result<Outcome, Errno>,
}

/// The device's queue takes no more until a completion was polled; the same transfer is submitted again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// A disk as a queue pair.
///
/// Transfers that overlap are never in flight together unless all of them read: the machines see to it. Completions
/// come in any order. A device never keeps a transfer for ever: what it cannot finish it fails.
///
/// A back end whose hardware has queues of its own implements this directly. Here one with two places that completes
/// the last transfer first, as a device may:
///
/// ```
/// use twinblock_core::block::{Action, BlockDevice, Capabilities, Completion, Geometry, QueueFull, Tag, Transfer};
/// use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Outcome, Windows};
///
/// struct Lifo {
///     bytes: Vec<u8>,
///     queue: Vec<Transfer>,
/// }
///
/// impl<M: Memory + ?Sized> BlockDevice<M> for Lifo {
///     fn geometry(&self) -> Geometry {
///         let size_bytes = self.bytes.len() as u64;
///         Geometry { size_bytes, block_bytes: 1, capabilities: Capabilities::FLUSH }
///     }
///     fn submit(&mut self, transfer: Transfer, _memory: &mut M) -> Result<(), QueueFull> {
///         if self.queue.len() == 2 {
///             return Err(QueueFull);
///         }
///         self.queue.push(transfer);
///         Ok(())
///     }
///     fn poll(&mut self, memory: &mut M) -> Option<Completion> {
///         let Transfer { tag, action, extent } = self.queue.pop()?;
///         let range = extent.offset as usize..extent.end() as usize;
///         let result = match action {
///             Action::Read(data) => match (self.bytes.get(range), memory.bytes(data)) {
///                 (Some(from), Some(to)) => Ok(to.copy_from_slice(from)),
///                 _ => Err(Errno::Invalid),
///             },
///             Action::Write { data, .. } => match (self.bytes.get_mut(range), memory.bytes(data)) {
///                 (Some(to), Some(from)) => Ok(to.copy_from_slice(from)),
///                 _ => Err(Errno::Invalid),
///             },
///             Action::WriteZeroes { .. } => self.bytes.get_mut(range).map(|to| to.fill(0)).ok_or(Errno::Invalid),
///             Action::Flush => Ok(()),
///             Action::Status => Err(Errno::Unsupported),
///         };
///         Some(Completion { tag, result: result.map(|()| Outcome::Done) })
///     }
/// }
///
/// let mut device = Lifo { bytes: vec![0; 4096], queue: Vec::new() };
/// let mut bytes = [7; 1024];
/// let mut memory = Windows::new(&mut bytes, 512);
/// let write = |entry: u16, offset| Transfer {
///     tag: Tag { entry, generation: 1 },
///     action: Action::Write { data: Data { buffer: BufferIndex(entry), offset: 0, length: 512 }, fua: false },
///     extent: Extent { offset, length: 512 },
/// };
/// device.submit(write(0, 0), &mut memory).unwrap();
/// device.submit(write(1, 512), &mut memory).unwrap();
/// assert_eq!(device.submit(write(0, 1024), &mut memory), Err(QueueFull));
/// assert_eq!(device.poll(&mut memory).unwrap().tag.entry, 1);
/// assert_eq!(device.poll(&mut memory).unwrap().tag.entry, 0);
/// assert_eq!(device.bytes[..1024], [7; 1024]);
/// ```
pub trait BlockDevice<M: Memory + ?Sized> {
    /// The shape of the device, now; the size must not change while a machine uses it.
    fn geometry(&self) -> Geometry;

    /// Starts a transfer.
    ///
    /// # Errors
    /// [`QueueFull`]: nothing was started.
    fn submit(&mut self, transfer: Transfer, memory: &mut M) -> Result<(), QueueFull>;

    /// The next completion, or `None` if there is none now.
    fn poll(&mut self, memory: &mut M) -> Option<Completion>;
}
