//! The secondary by inputs in any order.
//!
//! Two arrays of bytes say what the disk and the guest's view hold; after each step the real disk and the view, put
//! together from buffer and disk, are held against them, but for bytes that a request in flight may have changed. What
//! the embedder is asked to keep is kept: names are new, a connection's pieces do not mix, completions are of transfers
//! that were started. Everything else is not.

mod check;
mod world;

use arbitrary::{Arbitrary, Result, Unstructured};
use twinblock_core::block::{Capabilities, Geometry};
use twinblock_core::buffer::index::{Index, Node};
use twinblock_core::order::Slot;
use twinblock_core::secondary::{Config, Connection, Port, Secondary, Storage, WhenFull};
use twinblock_core::{BufferIndex, Device, Identity, Micros};

use crate::disk::Ending;
use crate::requests::{Wanted, connection};
use crate::script::{below, one_of, rarely, steps};
use world::World;

/// Bytes of a granule.
const GRANULE: u32 = 512;

/// Sizes and capacities.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    config: Config,
    disk: Geometry,
    buffer: Geometry,
    spare_places: u16,
    nodes: usize,
    connections: usize,
    /// Replication runs, a primary and a guest are connected.
    is_started: bool,
    /// After a refusal the machine is compared with what it was.
    is_strict: bool,
}

impl<'a> Arbitrary<'a> for Settings {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let slots = one_of(bytes, &[1, 2, 4, 12])?;
        let bits = u8::arbitrary(bytes)?;
        let mut capabilities = Capabilities::FLUSH;
        capabilities.set(Capabilities::STATUS, bits & 1 != 0);
        capabilities.set(Capabilities::WRITE_ZEROES, bits & 2 != 0);
        capabilities.set(Capabilities::FAST_ZERO, bits & 6 == 6);
        let (block_bytes, size_bytes) = one_of(bytes, &[(1, 4000), (1, 4096), (512, 4096)])?;
        let buffer_block = if bits & 8 != 0 { 1 } else { block_bytes };
        let config = Config {
            granule_bytes: GRANULE,
            window_bytes: GRANULE << below(bytes, 4)?,
            when_full: if bits & 16 != 0 { WhenFull::Break } else { WhenFull::Stall },
            stall_max: Micros(500),
            replication_requests: one_of(bytes, &[1, 2, 4])?,
            guest_requests: one_of(bytes, &[1, 2, 4])?,
            scratch_first: BufferIndex(0),
            scratch_count: one_of(bytes, &[1, 2, 3])?,
        };
        let nodes = Index::nodes_for(slots as usize);
        Ok(Self {
            config,
            disk: Geometry { size_bytes, block_bytes, capabilities },
            buffer: Geometry {
                size_bytes: slots * u64::from(GRANULE),
                block_bytes: buffer_block,
                capabilities: Capabilities::FLUSH,
            },
            spare_places: one_of(bytes, &[1, 2])?,
            nodes: if bits & 32 != 0 { Index::nodes_for(1) } else { nodes },
            connections: one_of(bytes, &[1, 2, 4])?,
            is_started: bits & 64 != 0,
            is_strict: bits & 0x90 == 0x90,
        })
    }
}

/// An operation that a script asks for; its numbers are taken relative to what is right.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Start { primary: bool },
    Checkpoint { force: bool },
    Prepare { epoch: u64, claim: u8, modifications: i8 },
    Commit { epoch: u64, claim: u8 },
    Stop { failover: bool, force: bool },
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open {
        place: u8,
        port: Port,
        identity: Option<u8>,
        is_again: bool,
    },
    Close {
        place: u8,
        is_clean: bool,
    },
    Request(Wanted),
    /// One of the transfers of a device ends.
    End {
        device: Device,
        which: u8,
        ending: Ending,
    },
    /// A completion of what is not in flight.
    Forge {
        device: Device,
        entry: u16,
        generation: u32,
    },
    Command(Asked),
    Wait(u64),
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let device = |bytes: &mut Unstructured<'a>| one_of(bytes, &[Device::Disk, Device::Buffer]);
        Ok(match below(bytes, 32)? {
            0 | 1 => Self::Open {
                place: below(bytes, 4)? as u8,
                port: one_of(bytes, &[Port::Replication, Port::Replication, Port::Guest])?,
                identity: one_of(bytes, &[None, Some(1), Some(1), Some(2)])?,
                is_again: rarely(bytes, 16)?,
            },
            2 => Self::Close { place: connection(bytes)?, is_clean: bool::arbitrary(bytes)? },
            3..15 => Self::Request(Wanted::arbitrary(bytes)?),
            15..26 => Self::End {
                device: device(bytes)?,
                which: u8::arbitrary(bytes)?,
                ending: Ending::arbitrary(bytes)?,
            },
            26 => Self::Forge {
                device: device(bytes)?,
                entry: below(bytes, 12)? as u16,
                generation: below(bytes, 8)?,
            },
            27..31 => Self::Command(asked(bytes)?),
            _ => Self::Wait(u64::from(u8::arbitrary(bytes)?) * 4),
        })
    }
}

fn asked(bytes: &mut Unstructured<'_>) -> Result<Asked> {
    let epoch = |bytes: &mut Unstructured<'_>| one_of(bytes, &[0, 0, 0, 0, 0, 0, 1, u64::MAX]);
    Ok(match below(bytes, 12)? {
        0 => Asked::Start { primary: rarely(bytes, 8)? },
        1 | 2 => Asked::Checkpoint { force: bool::arbitrary(bytes)? },
        3..6 => Asked::Prepare {
            epoch: epoch(bytes)?,
            claim: one_of(bytes, &[1, 1, 2])?,
            modifications: one_of(bytes, &[0, 0, 0, 0, 1, 1, 2, -1])?,
        },
        6..9 => Asked::Commit { epoch: epoch(bytes)?, claim: one_of(bytes, &[1, 1, 2])? },
        9 | 10 => Asked::Stop { failover: true, force: false },
        _ => Asked::Stop { failover: false, force: bool::arbitrary(bytes)? },
    })
}

/// A secondary's life.
#[derive(Debug)]
pub struct Script {
    settings: Settings,
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Script {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self { settings: bytes.arbitrary()?, steps: steps(bytes)? })
    }
}

/// Plays a script.
///
/// # Panics
/// On a finding.
pub fn run(script: &Script) {
    let Settings { config, disk, buffer, spare_places, nodes, connections, .. } = script.settings;
    let places = config.replication_requests + config.guest_requests + spare_places;
    let mut table = vec![Slot::FREE; usize::from(places)];
    let mut nodes = vec![Node::EMPTY; nodes];
    let mut connections = vec![Connection::FREE; connections];
    let storage = Storage { table: &mut table, nodes: &mut nodes, connections: &mut connections };
    let Ok(machine) = Secondary::new(config, disk, buffer, storage) else { return };
    let mut world = World::new(script.settings, machine, usize::from(places));
    if script.settings.is_started {
        world.play(Step::Command(Asked::Start { primary: false }));
        let (identity, is_again) = (Some(1), false);
        world.play(Step::Open { place: 0, port: Port::Replication, identity, is_again });
        world.play(Step::Open { place: 1, port: Port::Guest, identity: None, is_again });
    }
    for step in &script.steps {
        world.play(*step);
    }
    world.finish();
}

const fn identity(number: u8) -> Identity {
    Identity([number; 16])
}
