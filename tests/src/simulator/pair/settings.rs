//! What a seed chooses for a primary and its secondaries.

use fastrand::Rng;
use twinblock_core::block::{Capabilities, Geometry};
use twinblock_core::buffer::index::Index;
use twinblock_core::secondary::WhenFull;
use twinblock_core::{BufferIndex, Micros, primary, secondary};

use crate::simulator::disk::Faults;
use crate::simulator::settings::pick;

/// Places for replicas of one volume.
pub(super) const REPLICAS: usize = 2;
/// Most volumes of a node.
pub(super) const VOLUMES: usize = 3;

/// How much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One volume and its replica.
    Pair,
    /// One volume and two replicas.
    Trio,
    /// Two or three volumes, with one barrier for all.
    Volumes,
}

/// The choices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) size_bytes: u64,
    pub(super) primary: primary::Config,
    pub(super) primary_places: usize,
    pub(super) secondary: secondary::Config,
    pub(super) slots: u64,
    pub(super) nodes: usize,
    /// Places of a secondary's table beyond those promised to its ports.
    pub(super) spare_places: usize,
    /// How many transfers each disk takes at a time.
    pub(super) depth: usize,
    /// How many volumes there are.
    pub(super) volumes: usize,
    /// How many replicas each of them has.
    pub(super) replicas: usize,
    pub(super) primary_faults: Faults,
    pub(super) secondary_faults: Faults,
    /// How long the coordinator waits.
    pub(super) timeout: Micros,
    /// Questions and answers of the coordinator move on in one of so many steps.
    pub(super) control_every: u64,
    /// Steps of the random part.
    pub(super) steps: u64,
    /// Per thousand steps: how often a link is cut, and how often a question or an answer of the coordinator is lost.
    pub(super) cuts: u32,
    pub(super) losses: u32,
    /// Per thousand steps: how often a manager does something.
    pub(super) managers: u32,
    /// Of these, percent that end replication on a secondary.
    pub(super) takeovers_percent: u32,
    /// Per thousand steps: how often the machine of a replica crashes.
    pub(super) crashes: u32,
    /// Per thousand steps: how often a clock jumps.
    pub(super) jumps: u32,
    /// The primary takes a checkpoint when it hears that a buffer is full.
    pub(super) heeds_full: bool,
    /// Percent of the requests that aim at one small region.
    pub(super) focus_percent: u32,
}

impl Settings {
    /// For scripts: everything succeeds, and there is room.
    pub(super) fn plain(replicas: usize) -> Self {
        let size_bytes = 24 * 1024 + 300;
        Self {
            size_bytes,
            primary: primary::Config { window_bytes: 4096, dirty_granule_bytes: 2048, block_bytes: 1 },
            primary_places: 16,
            secondary: secondary::Config {
                granule_bytes: 512,
                window_bytes: 2048,
                when_full: WhenFull::Stall,
                stall_max: Micros::from_ms(500),
                replication_requests: 8,
                guest_requests: 8,
                scratch_first: BufferIndex(0),
                scratch_count: 2,
            },
            slots: 128,
            nodes: Index::nodes_for(128),
            spare_places: 2,
            depth: usize::MAX,
            volumes: 1,
            replicas,
            primary_faults: Faults::NONE,
            secondary_faults: Faults::NONE,
            timeout: Micros::from_ms(50),
            control_every: 1,
            steps: 0,
            cuts: 0,
            losses: 0,
            managers: 0,
            takeovers_percent: 0,
            crashes: 0,
            jumps: 0,
            heeds_full: false,
            focus_percent: 30,
        }
    }

    /// The choices of a seed.
    pub(super) fn choose(rng: &mut Rng, shape: Shape) -> Self {
        let granule_bytes = pick(rng, &[512_u32, 512, 1024]);
        let size_bytes = match shape {
            Shape::Volumes => rng.u64(1_024..6_000),
            // More granules than a word of a bitmap has bits.
            Shape::Pair | Shape::Trio if rng.u8(..16) == 0 => rng.u64(34_000..70_000),
            Shape::Pair | Shape::Trio => rng.u64(2_048..12_000),
        };
        let granules = size_bytes.div_ceil(granule_bytes.into());
        let (volumes, replicas) = match shape {
            Shape::Pair => (1, 1),
            Shape::Trio => (1, REPLICAS),
            Shape::Volumes => (rng.usize(2..=VOLUMES), pick(rng, &[1, 1, REPLICAS])),
        };
        let is_calm = rng.u8(..4) == 0;
        let rate = |rng: &mut Rng, rates: &[u32]| if is_calm { 0 } else { pick(rng, rates) };
        let faults = |rng: &mut Rng, rates: &[u32]| Faults {
            per_million: rate(rng, rates),
            slow_zeroes_percent: pick(rng, &[0, 0, 50]),
        };
        Self {
            size_bytes,
            primary: primary::Config {
                window_bytes: pick(rng, &[1024, 2048, 4096]),
                dirty_granule_bytes: pick(rng, &[512, 1024, 2048]),
                block_bytes: 1,
            },
            primary_places: pick(rng, &[1, 2, 3, 8, 24]),
            secondary: Self::choose_secondary(rng, granule_bytes),
            slots: match rng.u8(..5) {
                0 => 1,
                1 => rng.u64(2..=4),
                2 => granules / 2 + 1,
                _ => granules * 3,
            },
            nodes: Index::nodes_for(2 * granules as usize + 2),
            spare_places: pick(rng, &[1, 2, 2, 5]),
            depth: pick(rng, &[1, 2, usize::MAX, usize::MAX]),
            volumes,
            replicas,
            primary_faults: faults(rng, &[0, 0, 20_000, 200_000]),
            secondary_faults: faults(rng, &[0, 0, 500, 10_000]),
            timeout: Micros(pick(rng, &[2_000, 20_000, 200_000])),
            control_every: pick(rng, &[1, 1, 20, 50]),
            steps: rng.u64(100..350),
            cuts: rate(rng, &[0, 3, 15, 40]),
            losses: rate(rng, &[0, 0, 10, 40]),
            managers: rate(rng, &[0, 5, 20]),
            takeovers_percent: pick(rng, &[0, 10]),
            crashes: rate(rng, &[0, 0, 3, 10]),
            jumps: rate(rng, &[0, 0, 10]),
            heeds_full: rng.bool(),
            focus_percent: pick(rng, &[0, 50, 90]),
        }
    }

    fn choose_secondary(rng: &mut Rng, granule_bytes: u32) -> secondary::Config {
        secondary::Config {
            granule_bytes,
            window_bytes: granule_bytes * pick(rng, &[1, 2, 4]),
            when_full: if rng.u8(..4) == 0 { WhenFull::Break } else { WhenFull::Stall },
            stall_max: Micros(pick(rng, &[0, 500, 20_000, 100_000])),
            replication_requests: pick(rng, &[1, 3, 8]),
            guest_requests: pick(rng, &[1, 4]),
            scratch_first: BufferIndex(0),
            scratch_count: pick(rng, &[1, 2]),
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        let capabilities =
            Capabilities::FLUSH | Capabilities::WRITE_ZEROES | Capabilities::FAST_ZERO | Capabilities::STATUS;
        Geometry { size_bytes: self.size_bytes, block_bytes: 1, capabilities }
    }

    pub(super) fn buffer(&self) -> Geometry {
        let size_bytes = self.slots * u64::from(self.secondary.granule_bytes);
        Geometry { size_bytes, ..self.geometry() }
    }

    pub(super) fn secondary_places(&self) -> usize {
        usize::from(self.secondary.replication_requests)
            + usize::from(self.secondary.guest_requests)
            + self.spare_places
    }

    /// Content of the disks: data with holes in it.
    pub(super) fn content(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = vec![0; self.size_bytes as usize];
        for sector in bytes.chunks_mut(512) {
            if rng.u8(..3) != 0 {
                rng.fill(sector);
            }
        }
        bytes
    }
}
