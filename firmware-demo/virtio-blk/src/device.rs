//! The disk: transfers as requests of the queue.
//!
//! ```text
//!            ┌──────── more zeroes ───────┐
//!   Free ──▶ Data ──▶ done ──▶ (durable?) Flushing ──▶ Ended ──polled──▶ Free
//!                └──── failed ──────────────────────────▶┘
//! ```
//!
//! # Invariants
//! * B1: each transfer that was taken completes once.
//! * B2: each place has its share of the queue, so that what follows the first request of a transfer always finds room.

use twinblock_core::block::{
    Action, BlockDevice, Capabilities, Completion, Geometry, QueueFull, Tag, Transfer,
};
use twinblock_core::{Errno, Extent, Outcome};
use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceType, Transport};

use crate::dma::{DmaWindows, Payload, Place, Ring, Untaken, ZEROES};
use crate::wire::{self, Features, Kind, SECTOR_BYTES};

/// Descriptors that a request takes: header, data, status.
const DESCRIPTORS: usize = 3;
/// Sectors of zeroes in one request to a device that does not say how many it takes.
const ZEROES_SECTORS_MAX: u32 = 1 << 15;

/// How many places a queue of `descriptors` has room for.
#[must_use]
pub const fn places_max(descriptors: usize) -> usize {
    descriptors / DESCRIPTORS
}

/// Why there is no disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Whoever built the machine: this is another kind of device.
    OtherDevice(DeviceType),
    /// Caller: there is no place for requests, or more than [`places_max`] of the queue.
    Places,
    /// The device: it is in use, has no queue of this length, or no capacity.
    Device,
}

/// Where a transfer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    /// The device is at it.
    Data,
    /// All is written; the device is making it durable.
    Flushing,
    Ended(Result<Outcome, Errno>),
}

#[derive(Clone, Copy, Debug)]
struct Job {
    stage: Stage,
    tag: Tag,
    action: Action,
    extent: Extent,
    /// Bytes of the extent that are done, and that the request with the device covers.
    done: u64,
    now: u64,
    /// What the device calls the request.
    token: u16,
}

impl Job {
    const FREE: Self = Self {
        stage: Stage::Free,
        tag: Tag { entry: 0, generation: 0 },
        action: Action::Flush,
        extent: Extent { offset: 0, length: 0 },
        done: 0,
        now: 0,
        token: 0,
    };

    const fn is_durable(&self) -> bool {
        matches!(self.action, Action::Write { fua: true, .. } | Action::WriteZeroes { fua: true, .. })
    }

    const fn is_with_device(&self) -> bool {
        matches!(self.stage, Stage::Data | Stage::Flushing)
    }
}

/// A virtio block device as a disk. `N` is the length of its queue, a power of two; blocks are 512 bytes.
///
/// What the device lacks is done here: without a flush it has no cache, and one is answered at once; after a write that
/// must be durable a flush follows; zeroes are written out where it has no request for them. Whether it is fast at that it
/// does not tell, so that zeroes which must be fast are refused ([`Errno::Unsupported`]). What it reports as failed is
/// [`Errno::Io`]. A device that breaks the rules is reset; everything fails from then on.
///
/// Give it as many places as the machine's table has, or [`places_max`] of the queue.
pub struct VirtioBlk<H: Hal, T: Transport, const N: usize> {
    ring: Ring<H, T, N>,
    jobs: [Job; N],
    /// Jobs that have ended and were not polled.
    ended: usize,
    size_bytes: u64,
    features: Features,
    zeroes_sectors_max: u32,
    may_unmap: bool,
    is_broken: bool,
}

impl<H: Hal, T: Transport, const N: usize> core::fmt::Debug for VirtioBlk<H, T, N> {
    fn fmt(&self, to: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut fields = to.debug_struct("VirtioBlk");
        fields.field("size_bytes", &self.size_bytes).field("features", &self.features);
        fields.field("is_broken", &self.is_broken).finish_non_exhaustive()
    }
}

impl<H: Hal, T: Transport, const N: usize> VirtioBlk<H, T, N> {
    /// Makes the device behind a transport ready for use.
    ///
    /// # Errors
    /// [`OpenError`] says who must act.
    pub fn new(mut transport: T, places: &'static [Place]) -> Result<Self, OpenError> {
        if transport.device_type() != DeviceType::Block {
            return Err(OpenError::OtherDevice(transport.device_type()));
        }
        if places.is_empty() || places.len() > places_max(N) {
            return Err(OpenError::Places);
        }
        let features = transport.begin_init(Features::all());
        let has_zeroes = features.contains(Features::WRITE_ZEROES);
        let config = transport.read_consistent(|| {
            let low: u32 = transport.read_config_space(wire::CONFIG_CAPACITY)?;
            let high: u32 = transport.read_config_space(wire::CONFIG_CAPACITY + 4)?;
            let (mut zeroes, mut may_unmap) = (0, 0u8);
            if has_zeroes {
                zeroes = transport.read_config_space(wire::CONFIG_ZEROES_SECTORS_MAX)?;
                may_unmap = transport.read_config_space(wire::CONFIG_ZEROES_MAY_UNMAP)?;
            }
            Ok((u64::from(low) | u64::from(high) << 32, zeroes, may_unmap))
        });
        let (sectors, zeroes_sectors_max, may_unmap) = config.map_err(|_| OpenError::Device)?;
        let size_bytes = sectors.checked_mul(SECTOR_BYTES).ok_or(OpenError::Device)?;
        let ring = Ring::open(transport, places).map_err(|_| OpenError::Device)?;
        Ok(Self {
            ring,
            jobs: [Job::FREE; N],
            ended: 0,
            size_bytes,
            features,
            zeroes_sectors_max: if zeroes_sectors_max == 0 { ZEROES_SECTORS_MAX } else { zeroes_sectors_max },
            may_unmap: may_unmap != 0,
            is_broken: false,
        })
    }

    /// Tells the device that its interrupt was seen; call it after a sleep that the interrupt may have ended. Whether it
    /// had one.
    pub fn acknowledge_interrupt(&mut self) -> bool {
        !self.ring.transport().ack_interrupt().is_empty()
    }

    /// Whether the device has broken the rules and was reset.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// How a transfer ends without the device, if it does.
    fn check(&self, transfer: &Transfer) -> Option<Result<Outcome, Errno>> {
        let Transfer { action, extent, .. } = transfer;
        let is_inside = extent.offset.checked_add(extent.length).is_some_and(|end| end <= self.size_bytes);
        let is_aligned =
            extent.offset.is_multiple_of(SECTOR_BYTES) && extent.length.is_multiple_of(SECTOR_BYTES);
        let is_fitting = match action {
            Action::Read(data) | Action::Write { data, .. } => u64::from(data.length) == extent.length,
            _ => true,
        };
        let modifies = matches!(action, Action::Write { .. } | Action::WriteZeroes { .. });
        match action {
            _ if self.is_broken => Some(Err(Errno::Io)),
            Action::Flush if self.features.contains(Features::FLUSH) => None,
            Action::Flush => Some(Ok(Outcome::Done)),
            Action::Status | Action::WriteZeroes { fast: true, .. } => Some(Err(Errno::Unsupported)),
            _ if !is_inside || !is_aligned || !is_fitting => Some(Err(Errno::Invalid)),
            _ if modifies && self.features.contains(Features::READ_ONLY) => Some(Err(Errno::NotPermitted)),
            _ if extent.is_empty() => Some(Ok(Outcome::Done)),
            _ => None,
        }
    }

    /// Gives the device the next request of a job.
    fn put(&mut self, place: usize, memory: &mut DmaWindows) -> Result<(), Untaken> {
        let Some(job) = self.jobs.get_mut(place) else { return Err(Untaken::Full) };
        let sector = (job.extent.offset + job.done) / SECTOR_BYTES;
        let left = job.extent.length - job.done;
        job.now = left;
        let (kind, payload) = match job.action {
            _ if job.stage == Stage::Flushing => (Kind::Flush, Payload::None),
            Action::Read(data) => (Kind::In, Payload::In(data)),
            Action::Write { data, .. } => (Kind::Out, Payload::Out(data)),
            Action::WriteZeroes { may_unmap, .. } if self.features.contains(Features::WRITE_ZEROES) => {
                job.now = left.min(u64::from(self.zeroes_sectors_max) * SECTOR_BYTES);
                let count = (job.now / SECTOR_BYTES) as u32;
                let range = wire::range(sector, count, may_unmap && self.may_unmap);
                (Kind::WriteZeroes, Payload::Range(range))
            }
            Action::WriteZeroes { .. } => {
                job.now = left.min(ZEROES.len() as u64);
                (Kind::Out, Payload::Zeroes(job.now as usize))
            }
            Action::Flush | Action::Status => (Kind::Flush, Payload::None),
        };
        // The header of these two names no sector (5.2.6).
        let sector = if matches!(kind, Kind::Flush | Kind::WriteZeroes) { 0 } else { sector };
        job.token = self.ring.put(place, wire::header(kind, sector), payload, memory)?;
        Ok(())
    }

    /// A request of a job has ended.
    fn advance(&mut self, place: usize, status: u8, memory: &mut DmaWindows) {
        let has_flush = self.features.contains(Features::FLUSH);
        let Some(job) = self.jobs.get_mut(place) else { return };
        let next = match (wire::result(status), job.stage) {
            (Err(errno), _) => Stage::Ended(Err(errno)),
            (Ok(()), Stage::Data) => {
                job.done += job.now;
                match job.done < job.extent.length {
                    true => Stage::Data,
                    false if job.is_durable() && has_flush => Stage::Flushing,
                    false => Stage::Ended(Ok(Outcome::Done)),
                }
            }
            (Ok(()), _) => Stage::Ended(Ok(Outcome::Done)),
        };
        job.stage = next;
        if matches!(next, Stage::Ended(_)) {
            self.ended += 1;
        } else if self.put(place, memory).is_err() {
            // Not in practice (B2).
            self.end(place, Err(Errno::Io));
        }
    }

    fn end(&mut self, place: usize, result: Result<Outcome, Errno>) {
        if let Some(job) = self.jobs.get_mut(place) {
            job.stage = Stage::Ended(result);
            self.ended += 1;
        }
    }

    /// Takes what the device has completed out of its queue.
    fn collect(&mut self, memory: &mut DmaWindows) {
        // Not for ever: a device may be as quick with zeroes as they are asked for.
        for _ in 0..self.ring.place_count() {
            let Some(token) = self.ring.next_token().filter(|_| !self.is_broken) else { return };
            let is_it = |job: &Job| job.is_with_device() && job.token == token;
            let place = self.jobs.iter().take(self.ring.place_count()).position(is_it);
            let status = place.and_then(|place| Some((place, self.ring.take(place, token, memory)?)));
            match status {
                Some((place, status)) => self.advance(place, status, memory),
                None => self.give_up(memory),
            }
        }
    }

    /// The device has completed what it was never asked: nothing it says can be relied upon.
    fn give_up(&mut self, memory: &mut DmaWindows) {
        self.is_broken = true;
        self.ring.stop(memory);
        for place in 0..self.jobs.len() {
            if self.jobs[place].is_with_device() {
                self.end(place, Err(Errno::Io));
            }
        }
    }
}

impl<H: Hal, T: Transport, const N: usize> BlockDevice<DmaWindows> for VirtioBlk<H, T, N> {
    fn geometry(&self) -> Geometry {
        let mut capabilities = Capabilities::empty();
        capabilities.set(Capabilities::FLUSH, self.features.contains(Features::FLUSH));
        capabilities.set(Capabilities::WRITE_ZEROES, self.features.contains(Features::WRITE_ZEROES));
        capabilities.set(Capabilities::READ_ONLY, self.features.contains(Features::READ_ONLY));
        Geometry { size_bytes: self.size_bytes, block_bytes: SECTOR_BYTES as u32, capabilities }
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut DmaWindows) -> Result<(), QueueFull> {
        let mut places = self.jobs.iter().take(self.ring.place_count());
        let place = places.position(|job| job.stage == Stage::Free).ok_or(QueueFull)?;
        let ended = self.check(&transfer);
        let Transfer { tag, action, extent } = transfer;
        self.jobs[place] = Job { stage: Stage::Data, tag, action, extent, ..Job::FREE };
        let result = match ended {
            Some(result) => result,
            None => match self.put(place, memory) {
                Ok(()) => return Ok(()),
                Err(Untaken::NoBytes) => Err(Errno::Invalid),
                Err(Untaken::Full) => {
                    self.jobs[place].stage = Stage::Free;
                    return Err(QueueFull);
                }
            },
        };
        self.end(place, result);
        Ok(())
    }

    fn poll(&mut self, memory: &mut DmaWindows) -> Option<Completion> {
        if self.ended == 0 {
            self.collect(memory);
        }
        if self.ended == 0 {
            return None;
        }
        let job = self.jobs.iter_mut().find(|job| matches!(job.stage, Stage::Ended(_)))?;
        let Stage::Ended(result) = core::mem::replace(&mut job.stage, Stage::Free) else { return None };
        self.ended -= 1;
        Some(Completion { tag: job.tag, result })
    }
}

const _: () = assert!(places_max(64) == 21, "the documentation says so");
