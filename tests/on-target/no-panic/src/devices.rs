//! Disks that do anything, and the adapters for simple ones.

use embedded_io::{ErrorKind, ErrorType, Read, Seek, SeekFrom, Write};
use twinblock_core::block::{
    Action, BlockDevice, Blocking, BlockingDisk, Capabilities, Completion, Geometry, QueueFull, Seekable,
    Tag, Transfer,
};
use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Pool, Windows};

use crate::{any, lent, see};

/// A device whose answers are anything.
pub(crate) struct AnyDevice;

pub(crate) fn any_geometry() -> Geometry {
    any(Geometry { size_bytes: 0, block_bytes: 0, capabilities: Capabilities::empty() })
}

pub(crate) fn any_data() -> Data {
    any(Data { buffer: BufferIndex(0), offset: 0, length: 0 })
}

pub(crate) fn any_completion() -> Completion {
    any(Completion { tag: Tag::default(), result: Err(Errno::Io) })
}

pub(crate) fn any_transfer() -> Transfer {
    any(Transfer { tag: Tag::default(), action: Action::Flush, extent: Extent { offset: 0, length: 0 } })
}

impl<M: Memory + ?Sized> BlockDevice<M> for AnyDevice {
    fn geometry(&self) -> Geometry {
        any_geometry()
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut M) -> Result<(), QueueFull> {
        see(transfer);
        see(memory);
        any(Ok(()))
    }

    fn poll(&mut self, memory: &mut M) -> Option<Completion> {
        see(memory);
        any(None)
    }
}

struct AnyDisk;

impl BlockingDisk for AnyDisk {
    fn size_bytes(&self) -> u64 {
        any(0)
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        see((offset, bytes));
        any(Ok(()))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        see((offset, bytes));
        any(Ok(()))
    }

    fn flush(&mut self) -> Result<(), Errno> {
        any(Ok(()))
    }

    fn block_bytes(&self) -> u32 {
        any(0)
    }
}

struct AnyStream;

impl ErrorType for AnyStream {
    type Error = ErrorKind;
}

impl Read for AnyStream {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ErrorKind> {
        see(bytes);
        any(Ok(0))
    }
}

impl Write for AnyStream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, ErrorKind> {
        see(bytes);
        any(Ok(0))
    }

    fn flush(&mut self) -> Result<(), ErrorKind> {
        any(Ok(()))
    }
}

impl Seek for AnyStream {
    fn seek(&mut self, to: SeekFrom) -> Result<u64, ErrorKind> {
        see(to);
        any(Ok(0))
    }
}

fn run(disk: impl BlockingDisk, memory: &mut Windows<'_>) {
    let mut disk = Blocking::new(disk);
    let disk = any(&mut disk);
    see(BlockDevice::<Windows<'_>>::geometry(disk));
    see(disk.submit(any_transfer(), memory));
    see(BlockDevice::<Windows<'_>>::poll(disk, memory));
}

/// The adapters, and the windows that transfers name.
pub(crate) fn blocking() {
    let mut windows = Windows::new(lent(), any(0));
    let windows = any(&mut windows);
    windows.reserve(any(0));
    see(windows.bytes(any_data()));
    see(windows.acquire(any(0)));
    windows.release(any(BufferIndex(0)));
    run(AnyDisk, windows);
    if let Ok(seekable) = Seekable::new(AnyStream) {
        run(seekable, windows);
    }
}
