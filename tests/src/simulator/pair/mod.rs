//! A primary and its secondary: a guest on each side, the link between them, and the checkpoints of the pair.
//!
//! The primary may die at any step; then the secondary takes over, in either way.

mod checkpoint;
mod client;
mod link;
mod replica;
mod script;

use fastrand::Rng;
use twinblock_core::block::{Capabilities, Geometry};
use twinblock_core::buffer::index::{Index, Node};
use twinblock_core::driver::{Driver, Emitted, PrimaryDevices, SecondaryDevices};
use twinblock_core::node::{Coordinator, Member, MemberIndex, Volume, VolumeIndex};
use twinblock_core::order::Slot;
use twinblock_core::primary::{self, Primary, Replica};
use twinblock_core::secondary::{self, Secondary, WhenFull};
use twinblock_core::{BufferIndex, Connection, ConnectionId, Event, Identity, Micros, Notice};

use super::arena::Arena;
use super::coverage::Coverage;
use super::disk::{Disk, Faults};
use super::settings::pick;
use super::trace;
use checkpoint::Control;
use client::Guest;
use link::Link;
use replica::Remote;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The secondary goes on from the last checkpoint and its guest's own writes.
    Failover,
    /// The secondary goes on from its disk as it is.
    Stop,
    /// As the seed chooses.
    Any,
}

/// What a run is about.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything else.
    pub seed: u64,
    /// The primary dies after so many steps.
    pub steps_max: u64,
    /// And then.
    pub ending: Ending,
    /// Links are cut, devices of the secondary fail, control messages are lost.
    pub has_faults: bool,
    /// Whether steps are told to the trace.
    pub is_traced: bool,
}

/// The identity of the primary.
const PRIMARY: Identity = Identity([9; 16]);
/// The connection of the secondary's guest.
const GUEST: ConnectionId = ConnectionId(1);
const MEMBER: MemberIndex = MemberIndex(0);
const VOLUME: VolumeIndex = VolumeIndex(0);
const PLACES: usize = 8;
const SCRATCH: u16 = 2;
const BUFFERS: u16 = 24;

type PrimaryDriver<'m> = Driver<Primary<'m>, PrimaryDevices<Disk, [Link; 1]>>;

struct Pair<'m> {
    plan: Plan,
    rng: Rng,
    now: Micros,
    step: u64,
    window: u64,
    size: u64,
    primary: PrimaryDriver<'m>,
    primary_arena: Arena,
    secondary: Driver<Secondary<'m>, SecondaryDevices<Disk, Disk>>,
    secondary_arena: Arena,
    coordinator: Coordinator<'m>,
    control: Control,
    remote: Remote,
    /// The guest of the primary, and what it was told.
    guest: Guest,
    /// The guest of the secondary, and what it should see.
    twin: Guest,
    is_dead: bool,
    names_used: u32,
    coverage: Coverage,
}

/// Runs a plan. Gives how many steps the primary took, and what was met.
///
/// # Panics
/// If a rule is broken.
pub fn run(plan: Plan) -> (u64, Coverage) {
    let mut rng = Rng::with_seed(plan.seed);
    let granule = pick(&mut rng, &[512_u32, 1024]);
    let window = granule * pick(&mut rng, &[1, 2, 4]);
    let size_bytes = rng.u64(2_048..12_000);
    let mut content = vec![0; size_bytes as usize];
    rng.fill(&mut content);
    let words = Primary::bitmap_words(size_bytes, 512);
    let (mut written, mut lost, mut dirty) = (vec![0; words], vec![0; words], vec![0; words]);
    let (mut primary_table, mut guests) = (vec![Slot::FREE; PLACES], vec![Connection::FREE; 4]);
    let mut replicas = [Replica::new(&mut dirty)];
    let storage = primary::Storage {
        table: &mut primary_table,
        connections: &mut guests,
        written: &mut written,
        lost: &mut lost,
        replicas: &mut replicas,
    };
    let config = primary::Config { window_bytes: window, dirty_granule_bytes: 512, block_bytes: 1 };
    let geometry = Geometry {
        size_bytes,
        block_bytes: 1,
        capabilities: Capabilities::FLUSH | Capabilities::WRITE_ZEROES,
    };
    let primary = Primary::new(config, geometry, storage).expect("it fits");
    let slots = pick(&mut rng, &[2_u64, 6, 40]);
    let buffer = Geometry { size_bytes: slots * u64::from(granule), ..geometry };
    let config = secondary_config(&mut rng, granule, window);
    let (mut table, mut nodes) = (vec![Slot::FREE; 10], vec![Node::EMPTY; Index::nodes_for(80)]);
    let mut connections = vec![Connection::FREE; 4];
    let storage = secondary::Storage { table: &mut table, nodes: &mut nodes, connections: &mut connections };
    let secondary = Secondary::new(config, geometry, buffer, storage).expect("it fits");
    let (mut volumes, mut members) = ([Volume::FREE; 1], [Member::FREE; 1]);
    let mut coordinator = Coordinator::new(&mut volumes, &mut members, Micros(3_000));
    coordinator.add_member(VOLUME).expect("there is a place");
    let disk = |name, geometry, bytes| Disk::new(name, geometry, bytes, usize::MAX, window as usize);
    let mut pair = Pair {
        plan,
        now: Micros(0),
        step: 1,
        window: u64::from(window),
        size: size_bytes,
        primary: Driver::new(
            primary,
            PrimaryDevices::new(disk("primary disk", geometry, content.clone()), [Link::new(geometry)]),
        ),
        primary_arena: Arena::new(0, BUFFERS, window as usize),
        secondary: Driver::new(
            secondary,
            SecondaryDevices {
                disk: disk("secondary disk", geometry, content.clone()),
                buffer: disk("buffer", buffer, vec![0xEE; buffer.size_bytes as usize]),
            },
        ),
        secondary_arena: Arena::new(SCRATCH, BUFFERS, window as usize),
        coordinator,
        control: Control::default(),
        remote: Remote::default(),
        guest: Guest::new(content.clone()),
        twin: Guest::new(content),
        is_dead: false,
        names_used: 10,
        coverage: Coverage::default(),
        rng,
    };
    pair.play();
    (pair.step, pair.coverage)
}

/// The secondary's pieces may be shorter than the primary's.
fn secondary_config(rng: &mut Rng, granule_bytes: u32, window_bytes: u32) -> secondary::Config {
    secondary::Config {
        granule_bytes,
        window_bytes: window_bytes.min(granule_bytes * 2),
        when_full: if rng.u8(..4) == 0 { WhenFull::Break } else { WhenFull::Stall },
        stall_max: Micros(pick(rng, &[100, 5_000])),
        replication_requests: 4,
        guest_requests: 4,
        scratch_first: BufferIndex(0),
        scratch_count: SCRATCH as u8,
    }
}

impl Pair<'_> {
    fn trace(&self, line: impl FnOnce(&Self) -> String) {
        if self.plan.is_traced {
            let line = line(self);
            trace::push(format!("{:>5} {:>8}us {line}", self.step, self.now.0));
        }
    }

    fn name(&mut self) -> u32 {
        self.names_used += 1;
        self.names_used
    }

    fn link(&self) -> &Link {
        &self.primary.devices().replicas[0]
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.primary.devices_mut().replicas[0]
    }

    fn secondary_disk(&self) -> &Disk {
        &self.secondary.devices().disk
    }

    fn is_behind(&self) -> bool {
        self.primary.machine().is_behind()
    }

    /// Both machines and the coordinator do what they can.
    fn drain(&mut self) {
        if !self.is_dead {
            self.drain_primary();
        }
        self.drain_secondary();
        self.compare_view();
        self.step += 1;
        let (step, is_traced) = (self.step, self.plan.is_traced);
        let devices = self.secondary.devices_mut();
        for disk in [&mut devices.disk, &mut devices.buffer, &mut self.primary.devices_mut().disk] {
            disk.step = step;
            disk.is_traced = is_traced;
        }
    }

    fn drain_primary(&mut self) {
        loop {
            if let Some(emitted) = self.primary.poll(self.now, &mut self.primary_arena) {
                self.trace(|_| format!("  primary: {emitted:?}"));
                match emitted {
                    Emitted::Reply(reply) => self.guest_answered(&reply),
                    Emitted::Notice(Notice::Answer(command, result)) => {
                        self.primary_command_answered(command, result);
                    }
                    Emitted::Notice(Notice::Event(event)) => self.primary_event(event),
                    Emitted::Notice(Notice::Close(_)) => panic!("a primary closes nothing"),
                }
            } else if !self.coordinate() {
                break;
            }
        }
        assert_eq!(self.primary.stale_completions(), 0);
    }

    fn primary_event(&mut self, event: Event) {
        if let Event::Replica(_, state) = event {
            self.tell_coordinator(twinblock_core::node::Input::Replica(MEMBER, state));
        }
    }

    fn drain_secondary(&mut self) {
        while let Some(emitted) = self.secondary.poll(self.now, &mut self.secondary_arena) {
            self.trace(|_| format!("  secondary: {emitted:?}"));
            match emitted {
                Emitted::Reply(reply) => self.secondary_replied(&reply),
                Emitted::Notice(Notice::Answer(command, result)) => {
                    self.secondary_answered(command, result);
                }
                Emitted::Notice(Notice::Close(connection)) => self.told_to_close(connection),
                Emitted::Notice(Notice::Event(event)) => self.secondary_event(event),
            }
        }
        assert_eq!(self.secondary.stale_completions(), 0);
    }

    fn set_faults(&mut self, faults: Faults) {
        let devices = self.secondary.devices_mut();
        devices.disk.faults = faults;
        devices.buffer.faults = faults;
    }
}
