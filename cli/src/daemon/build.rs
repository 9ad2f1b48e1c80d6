//! What volumes are made of: opens disks, takes memory, makes machines.

use std::mem;
use std::ops::Range;
use std::path::Path;

use twinblock_core::block::BlockDevice;
use twinblock_core::buffer::index::{Index, Node};
use twinblock_core::driver::{Driver, PrimaryDevices, SecondaryDevices};
use twinblock_core::primary::{self, Primary};
use twinblock_core::secondary::{self, Secondary};
use twinblock_core::{BufferIndex, Micros};
use twinblock_io_posix::disk::{Disk, Options};
use twinblock_io_posix::memory::{HostPool, WINDOW_BYTES, index_nodes};
use twinblock_io_posix::nbd_disk::NbdDisk;
use twinblock_io_posix::poller::Poller;
use twinblock_io_posix::ram::Ram;
use twinblock_io_posix::workers::Workers;

use super::cells::{PrimaryCell, PrimaryMemory, SecondaryCell, SecondaryMemory};
use super::devices::{AnyBuffer, AnyDisk};
use super::token::{self, Kind, token};
use super::volume::{Machine, ReplicaLinks, Volume};
use crate::spec::{self, BufferPlace, BufferSettings, WhenFull};
use crate::units::Size;

/// Requests in flight of a primary, and of a secondary's replication port: a prepare waits for all that the primary has
/// sent, held writes or not, so the one must take what the other can have sent.
pub(super) const REPLICATION_REQUESTS: u16 = 256;
/// Requests in flight of a secondary's guest; the table has places for a commit besides.
const GUEST_REQUESTS: u16 = 128;
const COMMIT_PLACES: u16 = 8;
/// Transfers that a disk takes at a time: as many as the largest table has entries, so that a machine never waits.
const DISK_QUEUE: u16 = REPLICATION_REQUESTS + GUEST_REQUESTS + COMMIT_PLACES;
/// Buffers for what a secondary copies.
pub(super) const SCRATCH: u16 = 16;
/// Room in the index beyond one run for each slot: for what is remembered as zeroes.
const SPARE_RUNS: usize = 4096;
/// Replicas that can be attached to a primary, detached ones that are remembered included.
const REPLICAS: usize = spec::REPLICAS_MAX;
/// Whether the system would give that much memory; it is given back at once. Sizes that come from a disk or a manager are
/// asked for like this first: memory that is refused in earnest ends the process.
fn check_memory(what: &str, bytes: u128) -> Result<(), String> {
    let too_much = || format!("{what} needs {bytes} bytes of memory, more than there are; make it smaller");
    let count = usize::try_from(bytes).map_err(|_| too_much())?;
    Vec::<u8>::new().try_reserve_exact(count).map_err(|_| too_much())
}

/// What volumes are made of, beside their disks, and what comes back from them.
#[derive(Debug)]
pub(super) struct Stores {
    workers: Workers,
    connections_max: u16,
    /// Buffers of the pool for what secondaries copy.
    scratch: Vec<Range<u16>>,
    /// Links that nobody uses; some are still being closed. They are used again, as their sessions' memory is kept for ever.
    spare: Vec<NbdDisk>,
    /// Which volume, and which replica of it, a link's token means.
    owners: Vec<Option<(usize, Option<u8>)>>,
}

impl Stores {
    /// For so many secondaries at a time.
    pub(super) fn new(
        pool: &mut HostPool,
        workers: Workers,
        secondaries: usize,
        connections_max: u16,
    ) -> Result<Self, String> {
        let scratch: Option<Vec<_>> = (0..secondaries).map(|_| pool.reserve(SCRATCH)).collect();
        let mut scratch = scratch.ok_or("out of buffers")?;
        scratch.reverse();
        Ok(Self { workers, connections_max, scratch, spare: Vec::new(), owners: Vec::new() })
    }

    pub(super) fn open_file(&self, path: &Path, direct: bool) -> Result<AnyDisk, String> {
        let options = Options { direct, queue_capacity: DISK_QUEUE, ..Options::default() };
        let disk = Disk::open(path, options, &self.workers).map_err(|error| error.to_string())?;
        Ok(AnyDisk::File(Box::new(disk)))
    }

    /// A link that is closed, for this replica of a volume or its disk.
    pub(super) fn link(&mut self, owner: Option<(usize, Option<u8>)>) -> Result<NbdDisk, String> {
        let spare = self.spare.iter().position(|disk| disk.is_closed() && disk.in_flight_count() == 0);
        let disk = match spare {
            Some(place) => {
                let mut disk = self.spare.swap_remove(place);
                while disk.poll_event().is_some() {}
                disk
            }
            None => {
                let new = NbdDisk::new(REPLICATION_REQUESTS, token(Kind::NbdDisk, self.owners.len()));
                self.owners.push(None);
                new.map_err(|error| format!("no memory for a connection: {error}"))?
            }
        };
        self.own(&disk, owner);
        Ok(disk)
    }

    /// Whose a link is from now on.
    pub(super) fn own(&mut self, disk: &NbdDisk, owner: Option<(usize, Option<u8>)>) {
        if let Some((_, index)) = token::split(disk.token())
            && let Some(place) = self.owners.get_mut(index)
        {
            *place = owner;
        }
    }

    /// A link that is not needed any more: it is closed and kept for another use.
    pub(super) fn give_back(&mut self, mut disk: NbdDisk) {
        self.own(&disk, None);
        disk.close();
        self.spare.push(disk);
    }

    pub(super) fn give_back_scratch(&mut self, scratch: Range<u16>) {
        if !scratch.is_empty() {
            self.scratch.push(scratch);
        }
    }

    /// The volume, and the replica of it, that a link's token means.
    pub(super) fn owner(&self, index: usize) -> Option<(usize, Option<u8>)> {
        self.owners.get(index).copied().flatten()
    }

    /// The spare link that a token means.
    pub(super) fn spare_mut(&mut self, token: u32) -> Option<&mut NbdDisk> {
        self.spare.iter_mut().find(|disk| disk.token() == token)
    }

    /// Lets links that are being closed get on with it.
    pub(super) fn service(&mut self, now: Micros, pool: &mut HostPool, poller: &mut Poller) {
        for disk in self.spare.iter_mut().filter(|disk| !disk.is_closed()) {
            disk.service(now, pool, poller);
            while disk.poll_event().is_some() {}
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Micros> {
        self.spare.iter().filter_map(NbdDisk::next_deadline).min()
    }

    /// A primary over a disk, called `of` by people, which is taken only if that succeeds.
    pub(super) fn make_primary(
        &self,
        name: &str,
        dirty_granule: Size,
        of: &str,
        disk: &mut AnyDisk,
    ) -> Result<Volume, String> {
        let geometry = disk.geometry();
        let granule = dirty_granule.0 as u32;
        let words = Primary::bitmap_words(geometry.size_bytes, granule);
        let size = geometry.size_bytes;
        let what = format!("volume '{name}', disk {of}: the record of what replicas miss of {size} bytes");
        check_memory(&what, size_of::<u64>() as u128 * words as u128 * (2 + 3 * REPLICAS) as u128)?;
        let config = primary::Config {
            window_bytes: WINDOW_BYTES,
            dirty_granule_bytes: granule,
            block_bytes: geometry.block_bytes,
        };
        let places = usize::from(self.connections_max) + 1;
        let memory = PrimaryMemory::new(words, REPLICAS, usize::from(REPLICATION_REQUESTS), places);
        let cell = PrimaryCell::try_new(memory, |memory| {
            let machine = Primary::new(config, geometry, memory.storage())?;
            let devices = PrimaryDevices::new(mem::take(disk), ReplicaLinks(Vec::with_capacity(REPLICAS)));
            Ok(Driver::new(machine, devices))
        });
        let cell = cell.map_err(|error| format!("volume '{name}', disk {of}: {}", primary_text(error)))?;
        Ok(Volume::new(name.into(), name.into(), Machine::Primary(cell)))
    }

    /// A secondary over a disk, called `of` by people, which is taken only if that succeeds.
    pub(super) fn make_secondary(
        &mut self,
        name: &str,
        node: &str,
        settings: &BufferSettings,
        of: &str,
        disk: &mut AnyDisk,
    ) -> Result<Volume, String> {
        let (size, granule) = (settings.size, settings.granule);
        let slots = (size.0 / granule.0) as usize;
        let nodes = index_nodes(Index::nodes_for(slots.saturating_add(SPARE_RUNS))).map_err(|error| {
            format!(
                "volume '{name}': no memory for the index of a buffer of {size} in granules of {granule}: {error}; make \
                 the buffer smaller or the granule larger"
            )
        })?;
        let scratch = self.scratch.pop().ok_or_else(|| {
            format!(
                "volume '{name}': there are as many secondaries as one daemon can have; start another daemon"
            )
        })?;
        let made = self.secondary_cell(name, nodes, scratch.clone(), settings, of, disk);
        match made {
            Ok(cell) => {
                let volume = Volume::new(name.into(), node.into(), Machine::Secondary(cell));
                Ok(Volume { scratch, ..volume })
            }
            Err(error) => {
                self.scratch.push(scratch);
                Err(error)
            }
        }
    }

    fn secondary_cell(
        &self,
        name: &str,
        nodes: Box<[Node]>,
        scratch: Range<u16>,
        settings: &BufferSettings,
        of: &str,
        disk: &mut AnyDisk,
    ) -> Result<SecondaryCell, String> {
        let buffer = self.open_buffer(name, settings)?;
        let config = secondary::Config {
            granule_bytes: settings.granule.0 as u32,
            window_bytes: WINDOW_BYTES,
            when_full: match settings.when_full {
                WhenFull::Stall => secondary::WhenFull::Stall,
                WhenFull::Break => secondary::WhenFull::Break,
            },
            stall_max: Micros(settings.stall_max.0.as_micros() as u64),
            replication_requests: REPLICATION_REQUESTS,
            guest_requests: GUEST_REQUESTS,
            scratch_first: BufferIndex(scratch.start),
            scratch_count: SCRATCH as u8,
        };
        let places = usize::from(self.connections_max) + 1;
        let memory = SecondaryMemory::new(nodes, usize::from(DISK_QUEUE), places);
        let cell = SecondaryCell::try_new(memory, |memory| {
            let machine = Secondary::new(config, disk.geometry(), buffer.geometry(), memory.storage())?;
            Ok(Driver::new(machine, SecondaryDevices { disk: mem::take(disk), buffer }))
        });
        cell.map_err(|error| format!("volume '{name}', disk {of}: {}", secondary_text(error)))
    }

    fn open_buffer(&self, name: &str, settings: &BufferSettings) -> Result<AnyBuffer, String> {
        let size = settings.size;
        match &settings.place {
            BufferPlace::Memory => {
                let ram = Ram::new(size.0).map_err(|error| {
                    format!(
                        "volume '{name}': cannot take memory for a buffer of {size}: {error}; make it smaller, or give it \
                         a file"
                    )
                })?;
                Ok(AnyBuffer::Memory(Box::new(ram.beside(&self.workers))))
            }
            BufferPlace::Path(path) => {
                let options =
                    Options { direct: settings.direct, queue_capacity: DISK_QUEUE, ..Options::default() };
                let file = Disk::create(path, size.0, options, &self.workers);
                Ok(AnyBuffer::File(Box::new(file.map_err(|error| error.to_string())?)))
            }
        }
    }
}

const fn primary_text(error: primary::ConfigError) -> &'static str {
    match error {
        primary::ConfigError::Disk => {
            "the disk is empty or read-only; give it one with bytes that may be written"
        }
        primary::ConfigError::DirtyGranule => "the dirty granule is no power of two from 512 on",
        primary::ConfigError::Block => "the disk's blocks are too large",
        primary::ConfigError::Window
        | primary::ConfigError::Table
        | primary::ConfigError::Bitmap
        | primary::ConfigError::Replicas => "the daemon's own tables are too small; report this as a bug",
    }
}

const fn secondary_text(error: secondary::ConfigError) -> &'static str {
    match error {
        secondary::ConfigError::Disk => {
            "the disk is empty, read-only or no multiple of the buffer's blocks; give it one with whole blocks that may be written"
        }
        secondary::ConfigError::Buffer => {
            "the buffer is read-only or smaller than one granule; make it larger"
        }
        secondary::ConfigError::Granule => {
            "the granule is smaller than a block of the disk or the buffer; double it"
        }
        secondary::ConfigError::Window
        | secondary::ConfigError::Table
        | secondary::ConfigError::Scratch
        | secondary::ConfigError::Index => "the daemon's own tables are too small; report this as a bug",
    }
}
