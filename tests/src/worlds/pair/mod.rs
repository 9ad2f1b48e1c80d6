//! A primary, its secondary and the coordinator of their checkpoints, with a link for data and one for control.
//!
//! Both links keep the order of what is sent, like connections. When the data link is cut, everything in flight has
//! failed for the primary at once, while a first part of what it had sent may still arrive.

mod check;
mod step;

use foldhash::fast::FixedState;
use heapless::Vec as List;
use twinblock_core::block::Transfer;
use twinblock_core::buffer::index::{Index, Node};
use twinblock_core::node::{Coordinator, Member, MemberIndex, NodeIndex, Volume, VolumeIndex};
use twinblock_core::order::Slot;
use twinblock_core::primary::{self, Primary, Replica};
use twinblock_core::secondary::{self, Secondary, WhenFull};
use twinblock_core::{
    BufferIndex, Connection, ConnectionId, Data, Errno, Identity, Micros, Refused, Request, Stage,
};

use super::disk::{Arena, BLOCK, Disk, Mask, WINDOW_BLOCKS};
use super::walk::{World, hash_of};
pub use step::{Act, Step};

/// Blocks of either disk: two granules.
pub const BLOCKS: usize = 4;
/// Blocks of the buffer: one slot.
const SLOT_BLOCKS: usize = 2;
const GRANULE_BYTES: u32 = 2 * BLOCK as u32;
const WINDOW_BYTES: u32 = WINDOW_BLOCKS as u32 * BLOCK as u32;
/// Requests in flight at most.
const FLYING: usize = 6;
/// Checkpoints at most, and one.
const ROUNDS: usize = 6;
/// The guest of the primary.
const GUEST: ConnectionId = ConnectionId(0);
/// Who the primary is.
const IDENTITY: Identity = Identity([1; 16]);
const VOLUME: VolumeIndex = VolumeIndex(0);
const MEMBER: MemberIndex = MemberIndex(0);
const WORDS: usize = Primary::bitmap_words(BLOCKS as u64 * BLOCK, GRANULE_BYTES);
const REPLICA_WORDS: usize = Primary::replica_words(BLOCKS as u64 * BLOCK, GRANULE_BYTES);

/// A world.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What can be asked.
    pub acts: &'static [Act],
    /// How often.
    pub inputs: u8,
    /// How often in a large run.
    pub inputs_large: u8,
    /// How many transfers of the secondary's devices fail at most.
    pub faults: u8,
    /// There are at least as many states: a walk that finds fewer has lost something.
    pub states_min: u64,
}

/// All of them. Blocks 0 and 1 are the first granule, 2 and 3 the second.
pub const SETTINGS: [Setting; 2] = [
    Setting {
        name: "cut",
        acts: &[Act::Write((0, 1)), Act::Write((1, 3)), Act::Checkpoint, Act::Cut, Act::Connect, Act::GiveUp],
        inputs: 5,
        inputs_large: 6,
        faults: 0,
        states_min: 830_000,
    },
    Setting {
        name: "full",
        acts: &[
            Act::Write((0, 1)),
            Act::Write((2, 3)),
            Act::Checkpoint,
            Act::UrgentCheckpoint,
            Act::Failover,
        ],
        inputs: 4,
        inputs_large: 5,
        faults: 1,
        states_min: 470_000,
    },
];

/// What the machines borrow.
#[derive(Debug)]
pub struct Memory {
    primary_table: [Slot<primary::Work>; 3],
    guests: [Connection<()>; 1],
    words: [[u64; WORDS]; 2],
    replica_words: [u64; REPLICA_WORDS],
    table: [Slot<secondary::Work>; 5],
    nodes: Vec<Node>,
    connections: [secondary::Connection; 2],
    volumes: [Volume; 1],
    members: [Member; 1],
}

/// A state: the machines, and everything around them.
#[derive(Debug)]
pub struct State<'m> {
    primary: Primary<'m>,
    secondary: Secondary<'m>,
    coordinator: Coordinator<'m>,
    around: Around,
}

/// Everything but the machines.
#[derive(Clone, Debug, Hash)]
struct Around {
    now: Micros,
    primary_disk: Disk<BLOCKS>,
    disk: Disk<BLOCKS>,
    buffer: Disk<SLOT_BLOCKS>,
    primary_arena: Arena<FLYING>,
    arena: Arena<{ FLYING + 1 }>,
    link: Link,
    control: Control,
    flying: List<Flying, FLYING>,
    model: Model,
    inputs_left: u8,
    faults_left: u8,
    /// Names given to writes; also the symbols that they write.
    names_used: u8,
}

/// The data link.
#[derive(Clone, Debug, Hash, Default)]
struct Link {
    /// The connection, while the primary has it.
    session: Option<ConnectionId>,
    sessions_used: u8,
    /// A connection that is gone for the primary, and not yet for the secondary.
    old: Option<ConnectionId>,
    /// Sent and not received, on whichever connection is not gone for the secondary.
    wire: List<Message, FLYING>,
    /// What the primary waits for.
    unanswered: List<Message, FLYING>,
    /// Received by the secondary and not answered.
    incoming: List<Incoming, FLYING>,
    /// Answers on their way back.
    returning: List<(Message, Result<(), Errno>), FLYING>,
    /// Modifications sent on this connection.
    modifications: u64,
}

/// A transfer on the wire.
#[derive(Clone, Copy, Debug)]
struct Message {
    transfer: Transfer,
    /// What it writes.
    symbols: [u8; WINDOW_BLOCKS],
}

impl core::hash::Hash for Message {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        (self.transfer.tag.entry, self.transfer.action, self.transfer.extent, self.symbols).hash(state);
    }
}

/// A request of the primary at the secondary.
#[derive(Clone, Copy, Debug, Hash)]
struct Incoming {
    name: u8,
    session: ConnectionId,
    message: Message,
    data: Option<Data>,
}

/// A question of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    Epoch,
    Prepare { epoch: u64, modifications: u64 },
    Commit { epoch: u64 },
}

/// The control link.
#[derive(Clone, Debug, Hash, Default)]
struct Control {
    /// On their way to the secondary, with the number of the checkpoint that they belong to.
    questions: List<(u8, Question), 6>,
    /// Taken by the secondary.
    asked: List<(u8, Question, u8), 6>,
    /// On their way back.
    answers: List<(u8, Question, Result<u64, Refused>), 6>,
    /// Number of the checkpoint that is under way, or was last.
    round: u8,
    /// The manager's command, until it is answered.
    begun: Option<u8>,
    barrier: Option<u8>,
    has_failed_over: bool,
}

/// A request of the guest that was taken and not answered.
#[derive(Clone, Debug, Hash)]
struct Flying {
    name: u8,
    request: Request,
    data: Data,
}

/// What there should be.
#[derive(Clone, Debug, Hash)]
struct Model {
    /// What the guest of the primary counts on.
    content: [u8; BLOCKS],
    /// What the guest of the secondary sees: the last checkpoint.
    view: [u8; BLOCKS],
    epoch: u64,
    stage: Stage,
    /// When the prepare of a checkpoint was sent: for each block what may be in it, a bit for each symbol.
    snapshots: [[Mask; BLOCKS]; ROUNDS],
    /// Number of the checkpoint that was taken last.
    taken: u8,
    /// Something has happened that is a reason for a checkpoint to fail.
    is_disturbed: bool,
}

/// Symbol of what was there from the start.
const OLD: u8 = 15;

impl Setting {
    /// The world of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        SETTINGS.into_iter().find(|setting| setting.name == name)
    }

    fn inputs(&self) -> u8 {
        if super::is_large() { self.inputs_large } else { self.inputs }
    }

    const fn secondary() -> secondary::Config {
        secondary::Config {
            granule_bytes: GRANULE_BYTES,
            window_bytes: WINDOW_BYTES,
            when_full: WhenFull::Stall,
            stall_max: Micros(1_000),
            replication_requests: 3,
            guest_requests: 1,
            scratch_first: BufferIndex(0),
            scratch_count: 1,
        }
    }
}

impl Around {
    fn new(inputs_left: u8) -> Self {
        Self {
            now: Micros(0),
            primary_disk: Disk::new([OLD; BLOCKS]),
            disk: Disk::new([OLD; BLOCKS]),
            buffer: Disk::new([0xEE; SLOT_BLOCKS]),
            primary_arena: Arena::new(),
            arena: Arena::new(),
            link: Link::default(),
            control: Control::default(),
            flying: List::new(),
            model: Model {
                content: [OLD; BLOCKS],
                view: [OLD; BLOCKS],
                epoch: 1,
                stage: Stage::Running,
                snapshots: [[0; BLOCKS]; ROUNDS],
                taken: 0,
                is_disturbed: false,
            },
            inputs_left,
            faults_left: 0,
            names_used: 0,
        }
    }
}

impl World for Setting {
    type Memory = Memory;
    type State<'m> = State<'m>;
    type Step = Step;

    fn name(&self) -> &str {
        self.name
    }

    fn memory(&self) -> Memory {
        Memory {
            primary_table: [Slot::FREE; 3],
            guests: [Connection::FREE],
            words: [[0; WORDS]; 2],
            replica_words: [0; REPLICA_WORDS],
            table: [Slot::FREE; 5],
            nodes: vec![Node::EMPTY; Index::nodes_for(4)],
            connections: [secondary::Connection::FREE; 2],
            volumes: [Volume::FREE],
            members: [Member::FREE],
        }
    }

    fn start<R>(&self, memory: &mut Memory, go_on: impl FnOnce(&mut State<'_>) -> R) -> R {
        let Memory {
            primary_table,
            guests,
            words,
            replica_words,
            table,
            nodes,
            connections,
            volumes,
            members,
        } = memory;
        let [written, lost] = words;
        let mut replicas = [Replica::new(replica_words)];
        let storage = primary::Storage {
            table: primary_table,
            connections: guests,
            written,
            lost,
            replicas: &mut replicas,
        };
        let geometry = Disk::<BLOCKS>::geometry(false);
        let config = primary::Config {
            window_bytes: WINDOW_BYTES,
            dirty_granule_bytes: GRANULE_BYTES,
            block_bytes: BLOCK as u32,
        };
        let primary = Primary::new(config, geometry, storage).expect("it fits");
        let buffer = Disk::<SLOT_BLOCKS>::geometry(false);
        let storage = secondary::Storage { table, nodes, connections };
        let secondary = Secondary::new(Self::secondary(), geometry, buffer, storage).expect("it fits");
        let mut coordinator = Coordinator::new(volumes, members, Micros(u64::MAX));
        coordinator.add_member(VOLUME, NodeIndex(0)).expect("there is room");
        let mut state = State { primary, secondary, coordinator, around: Around::new(self.inputs()) };
        state.begin();
        state.around.faults_left = self.faults;
        go_on(&mut state)
    }

    fn fork<R>(&self, state: &State<'_>, memory: &mut Memory, go_on: impl FnOnce(&mut State<'_>) -> R) -> R {
        let Memory {
            primary_table,
            guests,
            words,
            replica_words,
            table,
            nodes,
            connections,
            volumes,
            members,
        } = memory;
        let [written, lost] = words;
        let mut replicas = [Replica::new(replica_words)];
        let storage = primary::Storage {
            table: primary_table,
            connections: guests,
            written,
            lost,
            replicas: &mut replicas,
        };
        let primary = state.primary.copied_into(storage).expect("memory of one shape");
        let storage = secondary::Storage { table, nodes, connections };
        let secondary = state.secondary.copied_into(storage).expect("memory of one shape");
        let coordinator = state.coordinator.copied_into(volumes, members).expect("memory of one shape");
        go_on(&mut State { primary, secondary, coordinator, around: state.around.clone() })
    }

    fn steps(&self, state: &State<'_>) -> Vec<Step> {
        state.steps(self.acts)
    }

    fn take(&self, state: &mut State<'_>, step: Step) {
        state.take(step);
    }

    fn hash(&self, state: &State<'_>, hasher: &FixedState) -> u64 {
        hash_of(hasher, (&state.primary, &state.secondary, &state.coordinator, &state.around))
    }

    fn is_inevitable(&self, step: Step) -> bool {
        step.is_inevitable()
    }

    fn check_rest(&self, state: &State<'_>) {
        state.check_rest();
    }

    fn describe(&self, state: &State<'_>, step: Step) -> String {
        state.describe(step)
    }
}
