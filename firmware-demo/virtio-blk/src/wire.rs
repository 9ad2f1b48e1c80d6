//! What goes over the queue.
//!
//! Source: "Virtual I/O Device (VIRTIO) Version 1.2", section 5.2 "Block Device".

use twinblock_core::Errno;

/// Bytes of a sector, whatever the device's own blocks are (5.2.4).
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Bytes of a request's header (5.2.6).
pub(crate) const HEADER_BYTES: usize = 16;
/// Bytes that say which sectors to write zeroes to (5.2.6).
pub(crate) const RANGE_BYTES: usize = 16;
/// Where in the configuration space the fields lie that are looked at (5.2.4).
pub(crate) const CONFIG_CAPACITY: usize = 0;
pub(crate) const CONFIG_ZEROES_SECTORS_MAX: usize = 48;
pub(crate) const CONFIG_ZEROES_MAY_UNMAP: usize = 56;

bitflags::bitflags! {
    /// Feature bits (5.2.3 and 6). Only these are taken, whatever else is offered: above all no event index, with which
    /// a driver that is ahead of the device must compare numbers that wrap.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Features: u64 {
        /// It takes no modifications.
        const READ_ONLY = 1 << 5;
        /// It has a cache, and a request to flush it.
        const FLUSH = 1 << 9;
        /// It writes zeroes by itself.
        const WRITE_ZEROES = 1 << 14;
        /// It is no legacy device.
        const VERSION_1 = 1 << 32;
    }
}

/// What the device is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    In = 0,
    Out = 1,
    Flush = 4,
    WriteZeroes = 13,
}

/// A request's header.
pub(crate) fn header(kind: Kind, sector: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&(kind as u32).to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// Which sectors shall read as zeroes.
pub(crate) fn range(sector: u64, count: u32, may_unmap: bool) -> [u8; RANGE_BYTES] {
    let mut bytes = [0; RANGE_BYTES];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&u32::from(may_unmap).to_le_bytes());
    bytes
}

/// What a status byte says; what the specification does not know is a failure.
pub(crate) const fn result(status: u8) -> Result<(), Errno> {
    match status {
        0 => Ok(()),
        2 => Err(Errno::Unsupported),
        _ => Err(Errno::Io),
    }
}
