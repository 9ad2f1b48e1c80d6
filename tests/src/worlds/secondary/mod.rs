//! A secondary: its primary, the same primary come back, a rival, a guest and a manager, three granules and two slots.

mod check;
mod command;
mod reply;
mod settings;
mod step;

use foldhash::fast::FixedState;
use heapless::Vec as List;
use twinblock_core::block::Geometry;
use twinblock_core::buffer::index::{Index, Node};
use twinblock_core::order::Slot;
use twinblock_core::secondary::{Config, Connection, Input, Port, Secondary, Storage, Work};
use twinblock_core::{BufferIndex, ConnectionId, Data, Extent, Identity, Micros, Request, Stage};

use super::disk::{Arena, BLOCK, Disk, Mask, WINDOW_BLOCKS};
use super::walk::{World, hash_of};
use command::Asked;
pub use settings::{Act, Client, SETTINGS, Setting};
pub use step::Step;

/// Blocks of the disk: two granules, and one that ends with the disk.
pub const BLOCKS: usize = 5;
/// Blocks of the buffer: two slots.
pub const SLOT_BLOCKS: usize = 4;
/// Blocks of a granule.
const GRANULE_BLOCKS: usize = 2;
/// Clients of all kinds.
const CLIENTS: usize = 4;
/// Requests in flight at most.
const FLYING: usize = 8;
/// The machine's and the requests' buffers.
const BUFFERS: usize = SCRATCH_MAX as usize + FLYING;
/// Buffers of the machine, at most; they come first.
const SCRATCH_MAX: u16 = 2;
/// How long a write is held.
const STALL: Micros = Micros(1_000);

/// What a secondary borrows.
#[derive(Debug)]
pub struct Memory {
    table: Vec<Slot<Work>>,
    nodes: Vec<Node>,
    connections: [Connection; CLIENTS],
}

impl Memory {
    fn storage(&mut self) -> Storage<'_> {
        let Self { table, nodes, connections } = self;
        Storage { table, nodes, connections }
    }
}

/// A state: the machine, and everything around it.
#[derive(Debug)]
pub struct State<'m> {
    machine: Secondary<'m>,
    around: Around,
}

/// Everything but the machine.
#[derive(Clone, Debug, Hash)]
struct Around {
    now: Micros,
    disk: Disk<BLOCKS>,
    buffer: Disk<SLOT_BLOCKS>,
    arena: Arena<BUFFERS>,
    flying: List<Flying, FLYING>,
    open: [Option<Open>; CLIENTS],
    asked: List<Asked, 8>,
    model: Model,
    inputs_left: u8,
    faults_left: u8,
    /// Names given to requests and operations; also the symbols that they write.
    names_used: u8,
}

/// A client that is there.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Open {
    /// The second piece of its last request.
    outbox: Option<Piece>,
    /// Modifications of which the first piece was taken.
    modifications: u8,
    /// The machine wants it closed.
    is_told_to_close: bool,
    /// Of a modification in two pieces, one was answered with success.
    is_half_done: bool,
}

/// A piece that was not taken yet.
#[derive(Clone, Copy, Debug, Hash)]
struct Piece {
    /// Name of the first piece of its request; 0 for that itself.
    group: u8,
    kind: Kind,
    extent: Extent,
    is_first: bool,
    is_last: bool,
}

/// What is asked of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Read,
    Write { fua: bool },
    Zeroes { fast: bool },
    Flush,
    Status,
}

/// A piece that was taken and not answered.
#[derive(Clone, Debug, Hash)]
struct Flying {
    name: u8,
    /// Name of the first piece of its request.
    group: u8,
    client: Client,
    request: Request,
    data: Option<Data>,
    /// Stages it has seen, a bit each.
    stages: u8,
    was_served: bool,
    was_unserved: bool,
    /// There was a held write.
    saw_held: bool,
    /// It was held itself.
    was_held: bool,
    /// Another connection held the claim, or may have.
    saw_rival: bool,
    /// Its connection has closed, or was told to.
    is_parting: bool,
    /// A transfer that may have been its own has failed.
    saw_fault: bool,
    /// And was a modification.
    may_be_torn: bool,
    /// A device has called zeroes slow.
    saw_slow: bool,
    /// Fewest free slots it has seen.
    free_slots_min: u8,
    /// Of a flush: blocks that it has to make durable.
    covers: Mask,
}

/// What there should be.
#[derive(Clone, Debug, Hash)]
struct Model {
    disk: [u8; BLOCKS],
    view: [u8; BLOCKS],
    /// Blocks that the guest has written since the last checkpoint, or the failover.
    guests: Mask,
    stage: Stage,
    is_broken: bool,
    epoch: u64,
    has_missed: bool,
    is_in_doubt: bool,
    may_be_in_doubt: bool,
    /// Whose modification was carried out last.
    owner: Option<Client>,
    /// Clients that have modified, or tried to.
    suitors: u8,
    commit_errors: u64,
    prepared: Prepared,
}

/// Whether a commit must be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Prepared {
    /// It must not.
    No,
    /// It may.
    Maybe,
    /// It must.
    Yes,
}

impl Client {
    const ALL: [Self; CLIENTS] = [Self::Primary, Self::Guest, Self::Again, Self::Rival];

    const fn connection(self) -> ConnectionId {
        ConnectionId(self as u32)
    }

    const fn port(self) -> Port {
        match self {
            Self::Guest => Port::Guest,
            _ => Port::Replication,
        }
    }

    pub(super) const fn identity(self) -> Option<Identity> {
        match self {
            Self::Primary | Self::Again => Some(Identity([1; 16])),
            Self::Rival => Some(Identity([2; 16])),
            Self::Guest => None,
        }
    }

    fn of(connection: ConnectionId) -> Self {
        Self::ALL[connection.0 as usize]
    }
}

impl Setting {
    fn config(&self) -> Config {
        Config {
            granule_bytes: (GRANULE_BLOCKS as u64 * BLOCK) as u32,
            window_bytes: (WINDOW_BLOCKS as u64 * BLOCK) as u32,
            when_full: self.when_full,
            stall_max: STALL,
            replication_requests: self.places.0,
            guest_requests: self.places.1,
            scratch_first: BufferIndex(0),
            scratch_count: self.scratch,
        }
    }

    fn disk(&self) -> Geometry {
        Disk::<BLOCKS>::geometry(self.has_status)
    }

    /// Whether a large run was asked for.
    fn inputs(&self) -> u8 {
        if super::is_large() { self.inputs_large } else { self.inputs }
    }
}

impl Around {
    fn new(setting: &Setting) -> Self {
        let content = std::array::from_fn(|block| if setting.data[block] { 0xA0 + block as u8 } else { 0 });
        Self {
            now: Micros(0),
            disk: Disk::new(content),
            buffer: Disk::new([0xEE; SLOT_BLOCKS]),
            arena: Arena::new(),
            flying: List::new(),
            open: [Some(Open::default()); CLIENTS],
            asked: List::new(),
            model: Model::new(content),
            inputs_left: setting.inputs() + setting.prologue.len() as u8,
            faults_left: 0,
            names_used: 0,
        }
    }

    fn name(&mut self) -> u8 {
        self.names_used += 1;
        self.names_used
    }
}

impl Model {
    const fn new(disk: [u8; BLOCKS]) -> Self {
        Self {
            disk,
            view: disk,
            guests: 0,
            stage: Stage::None,
            is_broken: false,
            epoch: 0,
            has_missed: false,
            is_in_doubt: false,
            may_be_in_doubt: false,
            owner: None,
            suitors: 0,
            commit_errors: 0,
            prepared: Prepared::No,
        }
    }

    fn begin_epoch(&mut self) {
        self.view = self.disk;
        self.guests = 0;
        self.is_broken = false;
        self.prepared = Prepared::No;
        self.epoch += 1;
    }

    fn forgive(&mut self) {
        self.has_missed = false;
        self.is_in_doubt = false;
        self.may_be_in_doubt = false;
    }

    fn serves_guest(&self) -> bool {
        self.stage != Stage::None && !(self.stage == Stage::Running && self.is_broken)
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
        let places = usize::from(self.places.0 + self.places.1) + self.places.2;
        Memory {
            table: vec![Slot::FREE; places],
            nodes: vec![Node::EMPTY; Index::nodes_for(BLOCKS * 2)],
            connections: [Connection::FREE; CLIENTS],
        }
    }

    fn start<R>(&self, memory: &mut Memory, go_on: impl FnOnce(&mut State<'_>) -> R) -> R {
        let buffer = Disk::<SLOT_BLOCKS>::geometry(false);
        let machine = Secondary::new(self.config(), self.disk(), buffer, memory.storage()).expect("it fits");
        let mut state = State { machine, around: Around::new(self) };
        for client in Client::ALL {
            let (connection, port, identity) = (client.connection(), client.port(), client.identity());
            let opened = Input::Opened { connection, port, identity };
            state.machine.handle_input(Micros(0), opened).expect("there is room");
        }
        for act in self.prologue {
            while let Some(step) = state.steps(&[]).into_iter().find(|step| step.is_inevitable()) {
                state.take(step);
            }
            state.take(Step::Act(*act));
        }
        state.around.faults_left = self.faults;
        go_on(&mut state)
    }

    fn fork<R>(&self, state: &State<'_>, memory: &mut Memory, go_on: impl FnOnce(&mut State<'_>) -> R) -> R {
        let machine = state.machine.copied_into(memory.storage()).expect("memory of one shape");
        go_on(&mut State { machine, around: state.around.clone() })
    }

    fn steps(&self, state: &State<'_>) -> Vec<Step> {
        state.steps(self.acts)
    }

    fn take(&self, state: &mut State<'_>, step: Step) {
        state.take(step);
    }

    fn hash(&self, state: &State<'_>, hasher: &FixedState) -> u64 {
        hash_of(hasher, (&state.machine, &state.around))
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
