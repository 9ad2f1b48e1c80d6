//! Anything with `embedded-io` read, write and seek as a simple disk.

use embedded_io::{Read, Seek, SeekFrom, Write};

use super::BlockingDisk;
use crate::Errno;

/// A byte stream that can seek (an SD card's file, a flash partition, RAM) as a [`BlockingDisk`].
#[derive(Debug)]
pub struct Seekable<T> {
    stream: T,
    size_bytes: u64,
}

impl<T: Read + Write + Seek> Seekable<T> {
    /// Wraps a stream; its length is where seeking to the end leads.
    ///
    /// # Errors
    /// What the stream reports.
    pub fn new(mut stream: T) -> Result<Self, T::Error> {
        let size_bytes = stream.seek(SeekFrom::End(0))?;
        Ok(Self { stream, size_bytes })
    }

    fn seek(&mut self, offset: u64) -> Result<(), Errno> {
        match self.stream.seek(SeekFrom::Start(offset)) {
            Ok(reached) if reached == offset => Ok(()),
            _ => Err(Errno::Io),
        }
    }
}

/// A stream that moves nothing, or more than there was room for, is an error: the trait's own loops panic at that.
impl<T: Read + Write + Seek> BlockingDisk for Seekable<T> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.seek(offset)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.stream.read(rest).map_err(|_| Errno::Io)?;
            rest = rest.get_mut(count..).filter(|_| count != 0).ok_or(Errno::Io)?;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.seek(offset)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.stream.write(rest).map_err(|_| Errno::Io)?;
            rest = rest.get(count..).filter(|_| count != 0).ok_or(Errno::Io)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        self.stream.flush().map_err(|_| Errno::Io)
    }
}
