//! A disk in memory, for buffers that need not outlive the process.

use std::collections::VecDeque;
use std::io;

use twinblock_core::block::{Action, BlockDevice, Capabilities, Completion, Geometry, QueueFull, Transfer};
use twinblock_core::{Errno, Extent, Memory, Outcome};

use crate::errno::{errno_of, io_error};
use crate::memory::HostPool;
use crate::raw::{Growing, Mapping};
use crate::workers::{Handle, Workers};

/// Completions held until they are polled.
const QUEUE_MAX: usize = 128;
const PAGE_BYTES: usize = 4096;
/// Zeroing shorter ranges by hand is quicker than a system call and the page faults that follow it.
const DISCARD_BYTES_MIN: usize = 4 * PAGE_BYTES;
/// A large page; memory is taken in such parts.
const PART_BYTES: usize = 2 << 20;
/// Memory for the next part is taken when less than so much of the present one is left: at 60,000 writes of 4 KiB in a
/// second that is 4 ms before, and taking it lasts 0.1 to 3 ms.
const AHEAD_BYTES: usize = PART_BYTES / 2;

/// A disk in anonymous memory. Parts that were never written take no space, and zeroed pages are given back. Every
/// transfer completes at once.
#[derive(Debug)]
pub struct Ram {
    mapping: Growing,
    size_bytes: u64,
    done: VecDeque<Completion>,
    helpers: Option<Handle>,
    /// From here on nobody was asked to take the memory.
    unasked: usize,
}

impl Ram {
    /// A disk of that many zeroes. The system's memory is needed only as it is written; writing more than there is
    /// has the system kill the process, so do not make it larger than what can be spared.
    ///
    /// # Errors
    /// The system refuses that much address space.
    pub fn new(size_bytes: u64) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::OutOfMemory, "larger than the address space");
        let length =
            usize::try_from(size_bytes).ok().and_then(|length| length.checked_next_multiple_of(PAGE_BYTES));
        let mut mapping = Mapping::new(length.ok_or_else(too_large)?).map_err(io_error)?;
        // A buffer fills up from its start on: one fault for 2 MiB instead of one for each 4 KiB that is kept.
        mapping.prefer_large_pages();
        let mapping = Growing::new(mapping);
        // The first part is taken as it is written: an idle buffer shall occupy nothing.
        let unasked = match mapping.to_multiple_of(PART_BYTES, 0) {
            0 => PART_BYTES,
            rest => rest,
        };
        let done = VecDeque::with_capacity(QUEUE_MAX);
        Ok(Self { mapping, size_bytes, done, helpers: None, unasked })
    }

    /// Has a helper thread take the memory shortly before it is written for the first time: the system zeroes it, and on a
    /// virtual machine may have to get it from its host, and every request in flight would wait for that.
    #[must_use]
    pub fn beside(mut self, workers: &Workers) -> Self {
        self.helpers = Some(workers.handle());
        self
    }

    /// Something was written up to `end`; what is written next lies behind it.
    fn look_ahead(&mut self, end: usize) {
        if end + AHEAD_BYTES <= self.unasked || self.unasked as u64 >= self.size_bytes {
            return;
        }
        if let Some(helpers) = &self.helpers {
            helpers.occupy(self.mapping.part(self.unasked, PART_BYTES));
        }
        self.unasked += PART_BYTES;
    }

    fn run(&mut self, transfer: &Transfer, memory: &mut HostPool) -> Result<Outcome, Errno> {
        let Extent { offset, length } = transfer.extent;
        if offset.checked_add(length).is_none_or(|end| end > self.size_bytes) {
            return Err(Errno::Invalid);
        }
        // It was checked against a length that fits.
        let (start, end) = (offset as usize, (offset + length) as usize);
        let here = self.mapping.bytes_mut().get_mut(start..end).ok_or(Errno::Invalid)?;
        match transfer.action {
            Action::Read(data) => {
                let bytes =
                    memory.bytes(data).filter(|bytes| bytes.len() == here.len()).ok_or(Errno::Invalid)?;
                bytes.copy_from_slice(here);
            }
            Action::Write { data, .. } => {
                let bytes =
                    memory.shared(data).filter(|bytes| bytes.len() == here.len()).ok_or(Errno::Invalid)?;
                here.copy_from_slice(bytes);
                self.look_ahead(end);
            }
            Action::WriteZeroes { .. } => self.zero(start, end)?,
            Action::Flush => {}
            Action::Status => return Err(Errno::Unsupported),
        }
        Ok(Outcome::Done)
    }

    fn zero(&mut self, start: usize, end: usize) -> Result<(), Errno> {
        let (page_start, page_end) = (start.next_multiple_of(PAGE_BYTES), end - end % PAGE_BYTES);
        if page_start + DISCARD_BYTES_MIN > page_end {
            self.mapping.bytes_mut().get_mut(start..end).ok_or(Errno::Invalid)?.fill(0);
            return Ok(());
        }
        let bytes = self.mapping.bytes_mut();
        bytes.get_mut(start..page_start).ok_or(Errno::Invalid)?.fill(0);
        bytes.get_mut(page_end..end).ok_or(Errno::Invalid)?.fill(0);
        self.mapping.discard(page_start, page_end - page_start).map_err(errno_of)
    }
}

impl BlockDevice<HostPool> for Ram {
    fn geometry(&self) -> Geometry {
        let capabilities = Capabilities::FLUSH | Capabilities::WRITE_ZEROES | Capabilities::FAST_ZERO;
        Geometry { size_bytes: self.size_bytes, block_bytes: 1, capabilities }
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut HostPool) -> Result<(), QueueFull> {
        if self.done.len() >= QUEUE_MAX {
            return Err(QueueFull);
        }
        let result = self.run(&transfer, memory);
        self.done.push_back(Completion { tag: transfer.tag, result });
        Ok(())
    }

    fn poll(&mut self, _memory: &mut HostPool) -> Option<Completion> {
        self.done.pop_front()
    }
}

#[cfg(test)]
mod tests;
