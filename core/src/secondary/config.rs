//! Settings of a secondary, and what must hold between them.

use super::Connection;
use super::entry::Work;
use crate::block::{Capabilities, Geometry};
use crate::buffer::index::{Index, Node};
use crate::order::Slot;
use crate::{BufferIndex, Micros};

/// What a [`Secondary`](super::Secondary) does when a primary write finds no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// Hold it until the next checkpoint, or refuse it: the view is preserved.
    #[default]
    Stall,
    /// Let it through: the view breaks until the next checkpoint.
    Break,
}

/// Settings of a [`Secondary`](super::Secondary).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of one granule of the buffer: a power of two, at least 512 and the block size of both devices.
    pub granule_bytes: u32,
    /// Bytes of the longest piece: a power of two, at least one granule. Scratch buffers are this long.
    pub window_bytes: u32,
    /// What to do when the buffer is full.
    pub when_full: WhenFull,
    /// How long a write may be held.
    pub stall_max: Micros,
    /// How many requests of the primary may be in flight; the rest of the table is for the guest and the commit.
    pub replication_requests: u16,
    /// How many requests of the guest may be in flight.
    pub guest_requests: u16,
    /// First of the embedder's buffers that belong to the machine.
    pub scratch_first: BufferIndex,
    /// How many buffers belong to the machine; at least 1, at most 64. A keep and a step of the commit take one each
    /// while they copy; more of them let more copies overlap.
    pub scratch_count: u8,
}

/// Why a [`Secondary`](super::Secondary) cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The granule is not a power of two, or smaller than 512 bytes or a device's block.
    Granule,
    /// The window is not a power of two, or smaller than the granule.
    Window,
    /// The table is too small for what the settings promise plus one place for the commit, or one of them is 0.
    Table,
    /// There is no scratch buffer, or more than 64.
    Scratch,
    /// The disk is empty, or takes no modifications, or ends within a block of the buffer's device.
    Disk,
    /// The buffer's device is smaller than one granule, or takes no modifications.
    Buffer,
    /// The index has no room for one granule.
    Index,
}

/// Borrowed memory of a [`Secondary`](super::Secondary).
#[derive(Debug)]
pub struct Storage<'m> {
    /// Requests in flight: `replication_requests + guest_requests` places and at least one more for the commit.
    pub table: &'m mut [Slot<Work>],
    /// Index of the buffer: [`crate::buffer::index::Index::nodes_for`] the number of slots.
    pub nodes: &'m mut [Node],
    /// Connections of both ports.
    pub connections: &'m mut [Connection],
}

/// Whether the settings, the devices and the memory fit each other.
pub(super) fn check(
    config: &Config,
    disk: &Geometry,
    buffer: &Geometry,
    storage: &Storage<'_>,
) -> Result<(), ConfigError> {
    let granule = config.granule_bytes;
    if !granule.is_power_of_two() || granule < 512 || granule < disk.block_bytes.max(buffer.block_bytes) {
        return Err(ConfigError::Granule);
    }
    if !config.window_bytes.is_power_of_two() || config.window_bytes < granule {
        return Err(ConfigError::Window);
    }
    let promised = usize::from(config.replication_requests) + usize::from(config.guest_requests);
    let has_both = config.replication_requests != 0 && config.guest_requests != 0;
    if storage.table.len() <= promised || storage.table.len() > usize::from(u16::MAX) || !has_both {
        return Err(ConfigError::Table);
    }
    if config.scratch_count == 0 || config.scratch_count > 64 {
        return Err(ConfigError::Scratch);
    }
    let block = u64::from(buffer.block_bytes.max(1));
    let is_whole = disk.size_bytes != 0 && disk.size_bytes.is_multiple_of(block);
    if !is_whole || disk.capabilities.contains(Capabilities::READ_ONLY) {
        return Err(ConfigError::Disk);
    }
    if buffer.size_bytes < u64::from(granule) || buffer.capabilities.contains(Capabilities::READ_ONLY) {
        return Err(ConfigError::Buffer);
    }
    if Index::entries_for(storage.nodes.len()) == 0 {
        return Err(ConfigError::Index);
    }
    Ok(())
}
