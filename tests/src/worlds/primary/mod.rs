//! A primary: its disk, two replicas, a guest and a manager, three dirty granules.

mod check;
mod settings;
mod step;

use foldhash::fast::FixedState;
use heapless::Vec as List;
use twinblock_core::order::Slot;
use twinblock_core::primary::{Config, Input, Primary, Replica, Storage, Work};
use twinblock_core::{Connection, ConnectionId, Data, Extent, Micros, Request, Stage};

use super::disk::{Arena, BLOCK, Disk, Mask, WINDOW_BLOCKS};
use super::walk::{World, hash_of};
pub use settings::{Act, SETTINGS, Setting};
pub use step::Step;

/// Blocks of the disk: two dirty granules, and one that ends with the disk.
pub const BLOCKS: usize = 5;
/// Blocks of a dirty granule.
const GRANULE_BLOCKS: u64 = 2;
/// Replicas that there can be.
const REPLICAS: usize = 2;
/// Requests in flight at most.
const FLYING: usize = 8;
/// The only connection.
const GUEST: ConnectionId = ConnectionId(0);
const GRANULE_BYTES: u32 = (GRANULE_BLOCKS * BLOCK) as u32;
const WORDS: usize = Primary::bitmap_words(BLOCKS as u64 * BLOCK, GRANULE_BYTES);
const REPLICA_WORDS: usize = Primary::replica_words(BLOCKS as u64 * BLOCK, GRANULE_BYTES);

/// What a primary borrows.
#[derive(Debug)]
pub struct Memory {
    table: Vec<Slot<Work>>,
    connections: [Connection<()>; 1],
    words: [[u64; WORDS]; 2],
    replica_words: [[u64; REPLICA_WORDS]; REPLICAS],
}

/// A state: the machine, and everything around it.
#[derive(Debug)]
pub struct State<'m> {
    machine: Primary<'m>,
    around: Around,
    places: usize,
    /// A barrier that must be answered before anything else happens.
    given_up: Option<u8>,
}

/// Everything but the machine.
#[derive(Clone, Debug, Hash)]
struct Around {
    disk: Disk<BLOCKS>,
    replicas: [Disk<BLOCKS>; REPLICAS],
    /// What a crash leaves of the replicas, where they can crash.
    durable: Option<[[u8; BLOCKS]; REPLICAS]>,
    links: [Link; REPLICAS],
    arena: Arena<FLYING>,
    flying: List<Flying, FLYING>,
    is_open: bool,
    /// The second piece of the guest's last request.
    outbox: Option<Piece>,
    model: Model,
    inputs_left: u8,
    faults_left: u8,
    /// Names given to requests and operations; also the symbols that they write.
    names_used: u8,
}

/// What the manager and the links have done.
#[derive(Clone, Copy, Debug, Default, Hash)]
struct Link {
    is_attached: bool,
    is_up: bool,
    /// It was behind.
    was_behind: bool,
    /// It has crashed and the primary was not told.
    has_crashed: bool,
}

/// A piece that was not taken yet.
#[derive(Clone, Copy, Debug, Hash)]
struct Piece {
    kind: Kind,
    extent: Extent,
    is_first: bool,
    is_last: bool,
}

/// What is asked of the guest's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Read,
    Write { fua: bool },
    Zeroes { fast: bool },
    Flush,
}

/// A piece that was taken and not answered.
#[derive(Clone, Debug, Hash)]
struct Flying {
    name: u8,
    request: Request,
    data: Option<Data>,
    /// Place of the table that its transfers name, once one was given to a leg.
    entry: Option<u16>,
    /// It came while a barrier was up, and is not the rest of something that came before.
    is_after_barrier: bool,
    /// The disk has failed it.
    has_disk_failed: bool,
    /// Of a flush: blocks that it has to make durable.
    covers: Mask,
    /// Of a flush: replicas that were attached all the time, a bit each.
    attached: u8,
}

/// What there should be.
#[derive(Clone, Debug, Hash)]
struct Model {
    /// Symbols that a block may have, a bit each: one, and those of writes that failed since.
    may_be: [Mask; BLOCKS],
    stage: Stage,
    barrier: Option<Barrier>,
    /// The disk has failed a modification at some time.
    has_disk_failed: bool,
    /// A barrier has fallen before the second piece of the guest's last modification: none waits for that any more.
    is_rest_cut: bool,
    /// The second piece of the guest's last modification came, or will come, after a barrier.
    is_rest_after_barrier: bool,
}

/// A barrier that is up.
#[derive(Clone, Copy, Debug, Hash)]
struct Barrier {
    name: u8,
    is_urgent: bool,
    is_reached: bool,
}

/// Symbol of what was there from the start.
const OLD: u8 = 15;

/// The set of one symbol.
const fn set_of(symbol: u8) -> Mask {
    1 << symbol
}

impl Setting {
    const fn config() -> Config {
        Config {
            window_bytes: (WINDOW_BLOCKS as u64 * BLOCK) as u32,
            dirty_granule_bytes: (GRANULE_BLOCKS * BLOCK) as u32,
            block_bytes: BLOCK as u32,
        }
    }

    fn inputs(&self) -> u8 {
        if super::is_large() { self.inputs_large } else { self.inputs }
    }
}

impl Around {
    fn new(setting: &Setting) -> Self {
        Self {
            disk: Disk::new([OLD; BLOCKS]),
            replicas: std::array::from_fn(|_| Disk::new([OLD; BLOCKS])),
            durable: setting
                .acts
                .iter()
                .any(|act| matches!(act, Act::Crash(_)))
                .then_some([[OLD; BLOCKS]; REPLICAS]),
            links: [Link::default(); REPLICAS],
            arena: Arena::new(),
            flying: List::new(),
            is_open: true,
            outbox: None,
            model: Model {
                may_be: [set_of(OLD); BLOCKS],
                stage: Stage::None,
                barrier: None,
                has_disk_failed: false,
                is_rest_cut: false,
                is_rest_after_barrier: false,
            },
            inputs_left: setting.inputs() + setting.prologue.len() as u8,
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
            table: vec![Slot::FREE; self.places],
            connections: [Connection::FREE],
            words: [[0; WORDS]; 2],
            replica_words: [[0; REPLICA_WORDS]; REPLICAS],
        }
    }

    fn start<R>(&self, memory: &mut Memory, go_on: impl FnOnce(&mut State<'_>) -> R) -> R {
        let Memory { table, connections, words, replica_words } = memory;
        let [written, lost] = words;
        let mut replicas = replica_words.each_mut().map(|words| Replica::new(words));
        let storage = Storage { table, connections, written, lost, replicas: &mut replicas };
        let geometry = Disk::<BLOCKS>::geometry(false);
        let machine = Primary::new(Self::config(), geometry, storage).expect("it fits");
        let mut state = State { machine, around: Around::new(self), places: self.places, given_up: None };
        state.machine.handle_input(Micros(0), Input::Opened(GUEST)).expect("there is room");
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
        let Memory { table, connections, words, replica_words } = memory;
        let [written, lost] = words;
        let mut replicas = replica_words.each_mut().map(|words| Replica::new(words));
        let storage = Storage { table, connections, written, lost, replicas: &mut replicas };
        let machine = state.machine.copied_into(storage).expect("memory of one shape");
        go_on(&mut State { machine, around: state.around.clone(), places: self.places, given_up: None })
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
