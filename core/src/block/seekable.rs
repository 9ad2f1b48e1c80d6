//! Anything with `embedded-io` read, write and seek as a simple disk.

use embedded_io::{Read, ReadExactError, Seek, SeekFrom, Write};

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

impl<T: Read + Write + Seek> BlockingDisk for Seekable<T> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.seek(offset)?;
        self.stream.read_exact(bytes).map_err(|error| match error {
            ReadExactError::UnexpectedEof | ReadExactError::Other(_) => Errno::Io,
        })
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.seek(offset)?;
        self.stream.write_all(bytes).map_err(|_| Errno::Io)
    }

    fn flush(&mut self) -> Result<(), Errno> {
        self.stream.flush().map_err(|_| Errno::Io)
    }
}
