//! Settings of a primary, and what must hold between them.

use super::{Replica, Work};
use crate::Connection;
use crate::block::{Capabilities, Geometry};
use crate::order::Slot;

/// Settings of a [`Primary`](super::Primary).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of the longest piece: a power of two.
    pub window_bytes: u32,
    /// Bytes of one dirty granule: a power of two, at least 512. One bit stands for one.
    pub dirty_granule_bytes: u32,
    /// Bytes of the blocks that clients may address; replicas with larger ones are refused. At least those of the disk.
    pub block_bytes: u32,
}

/// Why a [`Primary`](super::Primary) cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The window is not a power of two.
    Window,
    /// The dirty granule is not a power of two, or smaller than 512 bytes.
    DirtyGranule,
    /// The block is not a power of two, or smaller than that of the disk.
    Block,
    /// The table has no place.
    Table,
    /// A bitmap has too few words; [`Primary::bitmap_words`](super::Primary::bitmap_words) and
    /// [`Primary::replica_words`](super::Primary::replica_words) tell how many are needed.
    Bitmap,
    /// There are more replicas than [`REPLICAS_MAX`](super::REPLICAS_MAX).
    Replicas,
    /// The disk is empty, or takes no modifications.
    Disk,
}

/// Borrowed memory of a [`Primary`](super::Primary).
#[derive(Debug)]
pub struct Storage<'m> {
    /// Requests in flight.
    pub table: &'m mut [Slot<Work>],
    /// Connections of the guest.
    pub connections: &'m mut [Connection<()>],
    /// What was written since the disk was opened: [`Primary::bitmap_words`](super::Primary::bitmap_words).
    pub written: &'m mut [u64],
    /// What the primary disk failed to take: [`Primary::bitmap_words`](super::Primary::bitmap_words).
    pub lost: &'m mut [u64],
    /// Replicas, each with its bitmaps.
    pub replicas: &'m mut [Replica<'m>],
}

/// Whether the settings, the disk and the memory fit each other.
pub(super) fn check(config: &Config, disk: &Geometry, storage: &Storage<'_>) -> Result<(), ConfigError> {
    if !config.window_bytes.is_power_of_two() {
        return Err(ConfigError::Window);
    }
    if !config.dirty_granule_bytes.is_power_of_two() || config.dirty_granule_bytes < 512 {
        return Err(ConfigError::DirtyGranule);
    }
    if !config.block_bytes.is_power_of_two() || config.block_bytes < disk.block_bytes {
        return Err(ConfigError::Block);
    }
    if storage.table.is_empty() {
        return Err(ConfigError::Table);
    }
    if storage.replicas.len() > super::REPLICAS_MAX {
        return Err(ConfigError::Replicas);
    }
    if disk.size_bytes == 0 || disk.capabilities.contains(Capabilities::READ_ONLY) {
        return Err(ConfigError::Disk);
    }
    Ok(())
}
