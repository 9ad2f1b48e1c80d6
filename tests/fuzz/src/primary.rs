//! The primary by inputs in any order.
//!
//! An array of bytes says what was answered; after each step it is held against the disk and every replica: whatever
//! differs must be marked as missing there, or as lost. What the embedder is asked to keep is kept: names are new, a
//! connection's pieces do not mix, completions are of transfers that were started, and those of a link that went down
//! fail. Everything else is not.

mod world;

use arbitrary::{Arbitrary, Result, Unstructured};
use twinblock_core::Connection;
use twinblock_core::block::{Capabilities, Geometry};
use twinblock_core::order::Slot;
use twinblock_core::primary::{Command, Config, Primary, Replica, Storage};

use crate::disk::Ending;
use crate::requests::{Wanted, connection};
use crate::script::{below, one_of, rarely, steps};
use world::World;

/// Replicas that there is room for.
const REPLICAS: usize = 3;
/// Connections that there is room for.
const CONNECTIONS: usize = 3;

/// Sizes and capacities.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    config: Config,
    disk: Geometry,
    places: usize,
    /// Two replicas are attached and connected, replication runs, a guest is connected.
    is_started: bool,
    /// After a refusal the machine is compared with what it was.
    is_strict: bool,
}

impl<'a> Arbitrary<'a> for Settings {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let bits = u8::arbitrary(bytes)?;
        let mut capabilities = Capabilities::FLUSH | Capabilities::WRITE_ZEROES;
        capabilities.set(Capabilities::STATUS, bits & 1 != 0);
        let (block_bytes, size_bytes) = one_of(bytes, &[(1, 4000), (1, 4096), (512, 4096)])?;
        Ok(Self {
            config: Config {
                window_bytes: 512 << below(bytes, 4)?,
                dirty_granule_bytes: 512 << below(bytes, 3)?,
                block_bytes: if bits & 2 != 0 { 512 } else { block_bytes },
            },
            disk: Geometry { size_bytes, block_bytes, capabilities },
            places: one_of(bytes, &[1, 2, 3, 8])?,
            is_started: bits & 4 != 0,
            is_strict: bits & 0x18 == 0x18,
        })
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open {
        place: u8,
        is_again: bool,
    },
    Close {
        place: u8,
    },
    Request(Wanted),
    /// One of the transfers of a leg ends: 0 is the disk.
    End {
        leg: u8,
        which: u8,
        ending: Ending,
    },
    /// A completion of what is not in flight.
    Forge {
        leg: u8,
        entry: u16,
        generation: u32,
    },
    Command(Command),
    Connect {
        replica: u8,
        is_unfit: bool,
        is_short: bool,
    },
    Disconnect {
        replica: u8,
    },
    Missing {
        replica: u8,
    },
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let replica = |bytes: &mut Unstructured<'a>| -> Result<u8> {
            if rarely(bytes, 64)? { u8::arbitrary(bytes) } else { Ok(below(bytes, REPLICAS as u32)? as u8) }
        };
        Ok(match below(bytes, 32)? {
            0 => Self::Open { place: below(bytes, 4)? as u8, is_again: rarely(bytes, 8)? },
            1 => Self::Close { place: connection(bytes)? },
            2..14 => Self::Request(Wanted::arbitrary(bytes)?),
            14..25 => Self::End {
                leg: below(bytes, REPLICAS as u32 + 1)? as u8,
                which: u8::arbitrary(bytes)?,
                ending: Ending::arbitrary(bytes)?,
            },
            25 => Self::Forge {
                leg: below(bytes, REPLICAS as u32 + 2)? as u8,
                entry: below(bytes, 10)? as u16,
                generation: below(bytes, 8)?,
            },
            26..29 => Self::Command(match below(bytes, 16)? {
                0 | 1 => Command::Start { primary: !rarely(bytes, 8)? },
                2..5 => Command::Barrier { is_urgent: bool::arbitrary(bytes)? },
                5 => Command::Hurry,
                6..10 => Command::Release { is_checkpoint: bool::arbitrary(bytes)? },
                10 => Command::Stop,
                11..14 => Command::Attach {
                    replica: replica(bytes)?,
                    is_empty: rarely(bytes, 4)?,
                    is_new: rarely(bytes, 4)?,
                },
                _ => Command::Detach { replica: replica(bytes)? },
            }),
            29 => Self::Connect {
                replica: replica(bytes)?,
                is_unfit: rarely(bytes, 16)?,
                is_short: rarely(bytes, 16)?,
            },
            30 => Self::Disconnect { replica: replica(bytes)? },
            _ if rarely(bytes, 4)? => Self::Missing { replica: replica(bytes)? },
            _ => Self::Connect { replica: replica(bytes)?, is_unfit: false, is_short: false },
        })
    }
}

/// A primary's life.
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
    let Settings { config, disk, places, .. } = script.settings;
    let words = Primary::bitmap_words(disk.size_bytes, config.dirty_granule_bytes);
    let mut table = vec![Slot::FREE; places];
    let mut connections = vec![Connection::FREE; CONNECTIONS];
    let (mut written, mut lost) = (vec![0; words], vec![0; words]);
    let each = Primary::replica_words(disk.size_bytes, config.dirty_granule_bytes);
    let mut bitmaps = vec![vec![0; each]; REPLICAS];
    let mut replicas: Vec<Replica<'_>> = bitmaps.iter_mut().map(|words| Replica::new(words)).collect();
    let storage = Storage {
        table: &mut table,
        connections: &mut connections,
        written: &mut written,
        lost: &mut lost,
        replicas: &mut replicas,
    };
    let Ok(machine) = Primary::new(config, disk, storage) else { return };
    let mut world = World::new(script.settings, machine);
    if script.settings.is_started {
        for replica in [0, 1] {
            world.play(Step::Command(Command::Attach { replica, is_empty: false, is_new: false }));
            world.play(Step::Connect { replica, is_unfit: false, is_short: false });
        }
        world.play(Step::Command(Command::Start { primary: true }));
        world.play(Step::Open { place: 0, is_again: false });
    }
    for step in &script.steps {
        world.play(*step);
    }
    world.finish();
}
