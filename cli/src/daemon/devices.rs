//! The devices of a volume, whatever they are: each is chosen by what the user wrote.

use twinblock_core::block::{BlockDevice, Capabilities, Completion, Geometry, QueueFull, Transfer};
use twinblock_io_posix::disk::Disk;
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::nbd_disk::NbdDisk;
use twinblock_io_posix::ram::Ram;

/// A primary or secondary disk.
#[derive(Debug, Default)]
pub(super) enum AnyDisk {
    /// It was given to somebody else; nothing is submitted any more.
    #[default]
    Gone,
    File(Box<Disk>),
    Nbd(Box<NbdDisk>),
}

impl AnyDisk {
    pub(super) fn nbd_mut(&mut self) -> Option<&mut NbdDisk> {
        match self {
            Self::File(_) | Self::Gone => None,
            Self::Nbd(disk) => Some(disk),
        }
    }
}

impl BlockDevice<HostPool> for AnyDisk {
    fn geometry(&self) -> Geometry {
        match self {
            Self::File(disk) => disk.geometry(),
            Self::Nbd(disk) => disk.geometry(),
            Self::Gone => Geometry { size_bytes: 0, block_bytes: 1, capabilities: Capabilities::READ_ONLY },
        }
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut HostPool) -> Result<(), QueueFull> {
        match self {
            Self::File(disk) => disk.submit(transfer, memory),
            Self::Nbd(disk) => disk.submit(transfer, memory),
            Self::Gone => Err(QueueFull),
        }
    }

    fn poll(&mut self, memory: &mut HostPool) -> Option<Completion> {
        match self {
            Self::File(disk) => disk.poll(memory),
            Self::Nbd(disk) => disk.poll(memory),
            Self::Gone => None,
        }
    }
}

/// Where a disk buffer lives.
#[derive(Debug)]
pub(super) enum AnyBuffer {
    Memory(Box<Ram>),
    File(Box<Disk>),
}

impl BlockDevice<HostPool> for AnyBuffer {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Memory(ram) => BlockDevice::<HostPool>::geometry(&**ram),
            Self::File(disk) => disk.geometry(),
        }
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut HostPool) -> Result<(), QueueFull> {
        match self {
            Self::Memory(ram) => ram.submit(transfer, memory),
            Self::File(disk) => disk.submit(transfer, memory),
        }
    }

    fn poll(&mut self, memory: &mut HostPool) -> Option<Completion> {
        match self {
            Self::Memory(ram) => ram.poll(memory),
            Self::File(disk) => disk.poll(memory),
        }
    }
}

/// One place for a link to a replica. It is closed while no replica is attached there; the machine then submits nothing,
/// and what were submitted would fail.
#[derive(Debug)]
pub(super) struct ReplicaLink(Box<NbdDisk>);

impl ReplicaLink {
    pub(super) fn new(disk: NbdDisk) -> Self {
        Self(Box::new(disk))
    }

    pub(super) fn disk_mut(&mut self) -> &mut NbdDisk {
        &mut self.0
    }

    pub(super) fn into_disk(self) -> NbdDisk {
        *self.0
    }
}

impl BlockDevice<HostPool> for ReplicaLink {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut HostPool) -> Result<(), QueueFull> {
        self.0.submit(transfer, memory)
    }

    fn poll(&mut self, memory: &mut HostPool) -> Option<Completion> {
        self.0.poll(memory)
    }
}
