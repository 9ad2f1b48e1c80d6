//! What a seed chooses: geometry, capacities, policy and faults, from the least that works to the comfortable.

use fastrand::Rng;
use twinblock_core::block::{Capabilities, Geometry};
use twinblock_core::buffer::index::Index;
use twinblock_core::secondary::{Config, WhenFull};
use twinblock_core::{BufferIndex, Micros};

use super::disk::Faults;

/// The choices for a secondary.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Settings of the machine.
    pub config: Config,
    /// The secondary disk.
    pub disk: Geometry,
    /// Where the buffer's slots are.
    pub buffer: Geometry,
    /// Places of the table beyond those promised to the ports.
    pub spare_places: usize,
    /// Nodes of the buffer's index.
    pub nodes: usize,
    /// Whether the index has room for whatever the slots can hold.
    pub is_index_ample: bool,
    /// Connections at a time.
    pub connections: usize,
    /// How many transfers each device takes at a time.
    pub depth: usize,
    /// How the devices misbehave.
    pub faults: Faults,
    /// How many steps the script has.
    pub steps: u64,
    /// Percent of the requests that aim at one small region.
    pub focus_percent: u32,
    /// Nothing goes wrong: what happens without any trouble is worth as many tries as the rest.
    pub is_calm: bool,
}

/// Any of these.
pub fn pick<T: Copy>(rng: &mut Rng, among: &[T]) -> T {
    among[rng.usize(..among.len())]
}

impl Settings {
    /// The choices of a seed.
    pub fn choose(rng: &mut Rng) -> Self {
        let granule_bytes = pick(rng, &[512_u32, 512, 1024, 2048]);
        let window_bytes = granule_bytes * pick(rng, &[1, 2, 4]);
        let block_bytes = pick(rng, &[1_u32, 1, 1, 512]);
        let disk = Self::disk(rng, block_bytes);
        let granules = disk.size_bytes.div_ceil(u64::from(granule_bytes));
        let slots = match rng.u8(..4) {
            0 => 1,
            1 => rng.u64(1..=4),
            2 => granules / 2 + 1,
            _ => granules * 3,
        };
        let buffer = Geometry {
            size_bytes: slots * u64::from(granule_bytes),
            block_bytes: if rng.bool() { block_bytes } else { 1 },
            capabilities: Capabilities::FLUSH | Capabilities::WRITE_ZEROES,
        };
        let is_index_ample = rng.u8(..5) != 0;
        let nodes = if is_index_ample { Index::nodes_for(2 * granules as usize + 2) } else { 1 };
        let config = Config {
            granule_bytes,
            window_bytes,
            when_full: if rng.u8(..3) == 0 { WhenFull::Break } else { WhenFull::Stall },
            stall_max: Micros(pick(rng, &[0, 100, 2_000, 20_000])),
            replication_requests: pick(rng, &[1, 2, 4, 8]),
            guest_requests: pick(rng, &[1, 2, 4, 8]),
            scratch_first: BufferIndex(0),
            scratch_count: pick(rng, &[1, 1, 2, 4]),
        };
        let faults = match rng.u8(..2) {
            0 => Faults::NONE,
            _ => Faults {
                per_million: pick(rng, &[2_000, 20_000, 100_000]),
                slow_zeroes_percent: pick(rng, &[0, 50]),
            },
        };
        Self {
            config,
            disk,
            buffer,
            spare_places: pick(rng, &[1, 1, 2, 5]),
            nodes,
            is_index_ample,
            connections: rng.usize(2..=6),
            depth: pick(rng, &[1, 2, 4, usize::MAX, usize::MAX]),
            faults,
            steps: rng.u64(200..600),
            focus_percent: pick(rng, &[0, 50, 90]),
            is_calm: false,
        }
    }

    /// The same without any trouble, as far as settings are a cause of it.
    #[must_use]
    pub fn calmed(mut self) -> Self {
        let granule_bytes = u64::from(self.config.granule_bytes);
        let granules = self.disk.size_bytes.div_ceil(granule_bytes);
        self.buffer.size_bytes = 3 * granules * granule_bytes;
        self.nodes = Index::nodes_for(2 * granules as usize + 2);
        Self { is_index_ample: true, depth: usize::MAX, faults: Faults::NONE, is_calm: true, ..self }
    }

    /// A disk whose end may lie within a granule.
    fn disk(rng: &mut Rng, block_bytes: u32) -> Geometry {
        let blocks = rng.u64(2_048..14_000) / u64::from(block_bytes);
        let size_bytes = match rng.u8(..3) {
            0 => blocks * u64::from(block_bytes) / 4096 * 4096 + 4096,
            _ => blocks * u64::from(block_bytes),
        };
        let status = if rng.bool() { Capabilities::STATUS } else { Capabilities::empty() };
        let capabilities =
            Capabilities::FLUSH | Capabilities::WRITE_ZEROES | Capabilities::FAST_ZERO | status;
        Geometry { size_bytes, block_bytes, capabilities }
    }

    /// Content of the disk: data with holes in it.
    pub fn content(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = vec![0; self.disk.size_bytes as usize];
        let holes_percent = pick(rng, &[0, 30, 80]);
        for sector in bytes.chunks_mut(512) {
            if rng.u32(..100) >= holes_percent {
                rng.fill(sector);
            }
        }
        bytes
    }
}
