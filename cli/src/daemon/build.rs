//! From a specification to volumes: opens disks, takes memory, makes machines.

use std::collections::HashMap;
use std::time::Duration;

use tracing::subscriber::NoSubscriber;
use twinblock_core::block::{BlockDevice, Capabilities, Geometry};
use twinblock_core::buffer::index::Index;
use twinblock_core::control::Histogram;
use twinblock_core::driver::{Driver, PrimaryDevices, SecondaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::primary::{self, Primary};
use twinblock_core::secondary::{self, Port, Secondary};
use twinblock_core::{BufferIndex, Connection, Micros};
use twinblock_io_posix::disk::{Disk, Options};
use twinblock_io_posix::memory::{HostPool, WINDOW_BYTES, index_nodes};
use twinblock_io_posix::nbd_disk::{NbdDisk, NbdOptions};
use twinblock_io_posix::ram::Ram;
use twinblock_io_posix::workers::Workers;

use super::clients::Served;
use super::devices::{AnyBuffer, AnyDisk, ReplicaLink};
use super::token::{Kind, token};
use super::volume::{Machine, ReplicaLinks, Volume};
use crate::failure::Failure;
use crate::spec::{self, Address, BufferPlace, DaemonSpec, PrimarySpec, SecondarySpec, VolumeSpec, WhenFull};

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
/// How long to wait at start for a disk that another server serves.
const NBD_START_MAX: Duration = Duration::from_secs(10);

/// What all volumes share while they are made.
pub(super) struct Workshop<'a> {
    pub(super) spec: &'a DaemonSpec,
    pub(super) pool: &'a mut HostPool,
    pub(super) workers: &'a Workers,
    /// What is served at each address.
    pub(super) served: HashMap<Address, Vec<Served>>,
    /// Which volume, and which replica of it, an NBD disk's token means.
    pub(super) nbd_places: Vec<(usize, Option<u8>)>,
}

fn leak<T: Clone>(value: T, count: usize) -> &'static mut [T] {
    Box::leak(vec![value; count].into_boxed_slice())
}

/// Whether the system would give that much memory; it is given back at once. Sizes that come from a disk or a flag are
/// asked for like this first: memory that is refused in earnest ends the process.
fn check_memory(what: &str, bytes: u128) -> Result<(), Failure> {
    let too_much =
        || refused(what, format!("needs {bytes} bytes of memory, more than there are; make it smaller"));
    let count = usize::try_from(bytes).map_err(|_| too_much())?;
    Vec::<u8>::new().try_reserve_exact(count).map_err(|_| too_much())
}

fn refused(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::Refused(format!("{what}: {error}"))
}

impl Workshop<'_> {
    /// Makes a volume.
    pub(super) fn make(&mut self, volume: usize, spec: &VolumeSpec) -> Result<Volume, Failure> {
        match spec {
            VolumeSpec::Primary(spec) => self.make_primary(volume, spec),
            VolumeSpec::Secondary(spec) => self.make_secondary(volume, spec),
        }
    }

    fn open_disk(&mut self, volume: usize, disk: &spec::Disk, direct: bool) -> Result<AnyDisk, Failure> {
        match disk {
            spec::Disk::Path(path) => {
                let options = Options { direct, queue_capacity: DISK_QUEUE, ..Options::default() };
                let disk = Disk::open(path, options, self.workers);
                Ok(AnyDisk::File(Box::new(disk.map_err(|error| Failure::Refused(error.to_string()))?)))
            }
            spec::Disk::Nbd(uri) => {
                let what = uri.to_string();
                let mut disk = self.new_nbd_disk(volume, None).map_err(|error| refused(&what, error))?;
                disk.open(uri, NbdOptions::disk(), Micros(0)).map_err(|error| refused(&what, error))?;
                // What goes wrong is told once, by the refusal.
                tracing::subscriber::with_default(NoSubscriber::default(), || {
                    disk.wait_connected(Micros(0), NBD_START_MAX, self.pool)
                })
                .map_err(|error| Failure::Refused(error.to_string()))?;
                while disk.poll_event().is_some() {}
                Ok(AnyDisk::Nbd(Box::new(disk)))
            }
        }
    }

    fn new_nbd_disk(&mut self, volume: usize, replica: Option<u8>) -> std::io::Result<NbdDisk> {
        let disk = NbdDisk::new(REPLICATION_REQUESTS, token(Kind::NbdDisk, self.nbd_places.len()))?;
        self.nbd_places.push((volume, replica));
        Ok(disk)
    }

    fn make_primary(&mut self, volume: usize, spec: &PrimarySpec) -> Result<Volume, Failure> {
        let disk = self.open_disk(volume, &spec.disk, spec.direct)?;
        let geometry = disk.geometry();
        let granule = spec.dirty_granule.0 as u32;
        let words = Primary::bitmap_words(geometry.size_bytes, granule);
        let what = format!(
            "volume '{}', disk {}: the record of what replicas miss of {} bytes",
            spec.export, spec.disk, geometry.size_bytes
        );
        check_memory(&what, size_of::<u64>() as u128 * words as u128)?;
        let config = primary::Config {
            window_bytes: WINDOW_BYTES,
            dirty_granule_bytes: granule,
            block_bytes: geometry.block_bytes,
        };
        let replicas: Vec<_> = (0..REPLICAS).map(|_| primary::Replica::new(leak(0, words))).collect();
        let storage = primary::Storage {
            table: leak(Slot::FREE, usize::from(REPLICATION_REQUESTS)),
            connections: leak(Connection::FREE, usize::from(self.spec.connections_max) + 1),
            written: leak(0, words),
            lost: leak(0, words),
            replicas: Box::leak(replicas.into_boxed_slice()),
        };
        let machine = Primary::new(config, geometry, storage).map_err(|error| {
            refused(&format!("volume '{}', disk {}", spec.export, spec.disk), primary_text(error))
        })?;
        let mut links = Vec::with_capacity(REPLICAS);
        for replica in 0..REPLICAS {
            let disk = self.new_nbd_disk(volume, Some(replica as u8));
            links.push(ReplicaLink::new(disk.map_err(|error| refused(&spec.export, error))?));
        }
        self.serve(volume, &spec.listen, &spec.export, Port::Guest, &geometry, false);
        let devices = PrimaryDevices::new(disk, ReplicaLinks(links));
        Ok(Volume {
            name: spec.export.clone(),
            machine: Machine::Primary(Box::new(Driver::new(machine, devices))),
            replicas: vec![None; REPLICAS],
            scratch: 0..0,
            is_rested: true,
            checkpoint_times: Histogram::new(),
            checkpoint_began: None,
        })
    }

    fn make_secondary(&mut self, volume: usize, spec: &SecondarySpec) -> Result<Volume, Failure> {
        let disk = self.open_disk(volume, &spec.disk, spec.direct)?;
        let name = format!("volume '{}'", spec.export);
        let slots = (spec.buffer_size.0 / spec.granule.0) as usize;
        let nodes = index_nodes(Index::nodes_for(slots.saturating_add(SPARE_RUNS))).map_err(|error| {
            let (size, granule) = (spec.buffer_size, spec.granule);
            let what =
                format!("{name}: no memory for the index of a buffer of {size} in granules of {granule}");
            refused(&what, format!("{error}; make the buffer smaller or the granule larger"))
        })?;
        let buffer = match &spec.buffer {
            BufferPlace::Memory => {
                let ram = Ram::new(spec.buffer_size.0).map_err(|error| {
                    let size = spec.buffer_size;
                    let what = format!("{name}: cannot take memory for a buffer of {size}");
                    refused(&what, format!("{error}; make it smaller, or give it a file"))
                })?;
                AnyBuffer::Memory(Box::new(ram))
            }
            BufferPlace::Path(path) => {
                let options =
                    Options { direct: spec.direct, queue_capacity: DISK_QUEUE, ..Options::default() };
                let file = Disk::create(path, spec.buffer_size.0, options, self.workers);
                AnyBuffer::File(Box::new(file.map_err(|error| Failure::Refused(error.to_string()))?))
            }
        };
        let scratch = self.pool.reserve(SCRATCH).ok_or_else(|| refused(&name, "out of buffers"))?;
        let config = secondary::Config {
            granule_bytes: spec.granule.0 as u32,
            window_bytes: WINDOW_BYTES,
            when_full: match spec.when_full {
                WhenFull::Stall => secondary::WhenFull::Stall,
                WhenFull::Break => secondary::WhenFull::Break,
            },
            stall_max: Micros(spec.stall_max.0.as_micros() as u64),
            replication_requests: REPLICATION_REQUESTS,
            guest_requests: GUEST_REQUESTS,
            scratch_first: BufferIndex(scratch.start),
            scratch_count: SCRATCH as u8,
        };
        let storage = secondary::Storage {
            table: leak(Slot::FREE, usize::from(DISK_QUEUE)),
            nodes,
            connections: leak(Connection::FREE, usize::from(self.spec.connections_max) + 1),
        };
        let geometry = disk.geometry();
        let machine = Secondary::new(config, geometry, buffer.geometry(), storage)
            .map_err(|error| refused(&format!("{name}, disk {}", spec.disk), secondary_text(error)))?;
        let geometry = Geometry { block_bytes: machine.block_bytes(), ..geometry };
        self.serve(volume, &spec.listen, &spec.export, Port::Replication, &geometry, false);
        self.serve(volume, &spec.guest, spec.guest_export(), Port::Guest, &geometry, spec.guest_read_only);
        Ok(Volume {
            name: spec.export.clone(),
            machine: Machine::Secondary(Box::new(Driver::new(machine, SecondaryDevices { disk, buffer }))),
            replicas: Vec::new(),
            scratch,
            is_rested: true,
            checkpoint_times: Histogram::new(),
            checkpoint_began: None,
        })
    }

    fn serve(
        &mut self,
        volume: usize,
        address: &Address,
        name: &str,
        port: Port,
        geometry: &Geometry,
        is_read_only: bool,
    ) {
        let is_primary = matches!(self.spec.volumes[volume], VolumeSpec::Primary(_));
        let description = match (is_primary, port) {
            (true, _) => "primary disk, mirrored to its replicas",
            (false, Port::Replication) => "secondary disk, for the primary",
            (false, Port::Guest) => "guest view: the last checkpoint and what was written here since",
        };
        self.served.entry(address.clone()).or_default().push(Served {
            name: name.into(),
            description,
            volume,
            port,
            size_bytes: geometry.size_bytes,
            block_bytes: geometry.block_bytes,
            is_read_only,
            is_fast_zero: geometry.capabilities.contains(Capabilities::FAST_ZERO),
        });
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
