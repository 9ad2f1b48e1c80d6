//! The worlds: who may ask what in each of them.

use twinblock_core::secondary::WhenFull;

use super::{BLOCKS, SLOT_BLOCKS};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// The primary.
    Primary,
    /// The guest.
    Guest,
    /// The same primary, over a new connection.
    Again,
    /// Another primary.
    Rival,
}

/// The first block, and the one after the last.
type Blocks = (u8, u8);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// A client reads.
    Read(Client, Blocks),
    /// A client writes.
    Write(Client, Blocks),
    /// A client writes, durably.
    WriteDurably(Client, Blocks),
    /// A client writes zeroes, which may become a hole.
    Trim(Client, Blocks),
    /// A client writes zeroes if that is fast.
    FastZeroes(Client, Blocks),
    /// A client flushes.
    Flush(Client),
    /// A client asks for holes.
    Status(Client, Blocks),
    /// A client goes, with a disconnect if nothing of its is unanswered.
    Close(Client),
    /// A client's connection breaks.
    Break(Client),
    /// The manager starts replication.
    Start,
    /// The manager takes a checkpoint.
    Checkpoint,
    /// The manager takes a checkpoint whatever is missing.
    ForceCheckpoint,
    /// The primary prepares a checkpoint, with as many modifications as it has sent.
    Prepare,
    /// The same, with one more than it has sent.
    PrepareAhead,
    /// The primary commits its checkpoint.
    Commit,
    /// The manager lets the secondary take over with its guest.
    Failover,
    /// The manager stops replication.
    Stop,
    /// The manager stops replication whatever is missing.
    ForceStop,
}

/// A world.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What happens when the buffer is full.
    pub when_full: WhenFull,
    /// Whether the disk tells holes from data.
    pub has_status: bool,
    /// Buffers of the machine.
    pub scratch: u8,
    /// Places for the requests of either port, and the rest.
    pub places: (u16, u16, usize),
    /// Blocks of the disk that are no holes.
    pub data: [bool; BLOCKS],
    /// Happens first, one after the other and each but the last to its end.
    pub prologue: &'static [Act],
    /// What can be asked then.
    pub acts: &'static [Act],
    /// How often.
    pub inputs: u8,
    /// How often in a large run.
    pub inputs_large: u8,
    /// How many transfers fail at most.
    pub faults: u8,
    /// There are at least as many states: a walk that finds fewer has lost something.
    pub states_min: u64,
}

const _: () = assert!(SLOT_BLOCKS == 4, "two slots of two blocks");

use Act::{
    Break, Checkpoint, Close, Commit, Failover, FastZeroes, Flush, ForceCheckpoint, ForceStop, Prepare,
    PrepareAhead, Read, Start, Status, Stop, Trim, Write, WriteDurably,
};
use Client::{Again, Guest, Primary, Rival};

const BASE: Setting = Setting {
    name: "",
    when_full: WhenFull::Stall,
    has_status: false,
    scratch: 2,
    places: (3, 2, 1),
    data: [true; BLOCKS],
    prologue: &[Start],
    acts: &[],
    inputs: 4,
    inputs_large: 5,
    faults: 1,
    states_min: 0,
};

/// All of them. Blocks 0 and 1 are the first granule, 2 and 3 the second, 4 is the third, which ends with the disk. A
/// window is two granules.
pub const SETTINGS: [Setting; 10] = [
    Setting {
        name: "keep",
        acts: &[
            Write(Primary, (0, 1)),
            Write(Primary, (1, 4)),
            Trim(Primary, (0, 4)),
            Write(Primary, (3, 5)),
            Read(Guest, (0, 4)),
            Write(Guest, (1, 3)),
            Trim(Guest, (0, 2)),
            Checkpoint,
            Failover,
        ],
        inputs: 3,
        inputs_large: 4,
        states_min: 380_000,
        ..BASE
    },
    Setting {
        name: "holes",
        has_status: true,
        scratch: 1,
        data: [false, false, true, true, false],
        acts: &[
            Write(Primary, (0, 4)),
            Trim(Primary, (2, 5)),
            Write(Guest, (1, 2)),
            Write(Guest, (3, 5)),
            FastZeroes(Guest, (1, 3)),
            Status(Guest, (0, 5)),
            Checkpoint,
            Failover,
        ],
        inputs: 3,
        inputs_large: 4,
        states_min: 640_000,
        ..BASE
    },
    Setting {
        name: "stall",
        scratch: 1,
        acts: &[
            Write(Primary, (0, 5)),
            Write(Primary, (2, 3)),
            Write(Guest, (0, 1)),
            Read(Guest, (2, 4)),
            Checkpoint,
            ForceCheckpoint,
            Close(Primary),
            Failover,
            ForceStop,
        ],
        states_min: 700_000,
        ..BASE
    },
    Setting {
        name: "break",
        when_full: WhenFull::Break,
        scratch: 1,
        acts: &[
            Write(Primary, (0, 5)),
            Write(Primary, (2, 3)),
            Trim(Primary, (4, 5)),
            Write(Guest, (0, 1)),
            Read(Guest, (2, 4)),
            Checkpoint,
            Failover,
            Stop,
        ],
        states_min: 1_180_000,
        ..BASE
    },
    Setting {
        name: "prepare",
        places: (2, 1, 1),
        acts: &[
            Write(Primary, (0, 1)),
            Write(Primary, (3, 5)),
            Write(Rival, (0, 1)),
            Prepare,
            PrepareAhead,
            Commit,
            Checkpoint,
            Write(Guest, (0, 1)),
            Break(Primary),
        ],
        inputs: 5,
        inputs_large: 6,
        faults: 0,
        states_min: 3_160_000,
        ..BASE
    },
    Setting {
        name: "long",
        places: (2, 1, 1),
        prologue: &[Start, Write(Guest, (0, 1)), Write(Primary, (2, 3))],
        acts: &[
            Write(Primary, (3, 5)),
            Write(Primary, (0, 1)),
            Flush(Primary),
            Prepare,
            PrepareAhead,
            Commit,
            Stop,
        ],
        inputs: 5,
        inputs_large: 6,
        states_min: 430_000,
        ..BASE
    },
    Setting {
        name: "claim",
        places: (2, 1, 1),
        acts: &[
            Write(Primary, (0, 3)),
            Write(Again, (1, 2)),
            Write(Rival, (0, 1)),
            Read(Rival, (0, 2)),
            Flush(Primary),
            Close(Primary),
            Break(Primary),
            Break(Again),
            Checkpoint,
            ForceCheckpoint,
            ForceStop,
        ],
        inputs: 5,
        inputs_large: 6,
        states_min: 410_000,
        ..BASE
    },
    Setting {
        name: "commit",
        scratch: 1,
        prologue: &[Start, Write(Guest, (0, 2)), Trim(Guest, (2, 4)), Write(Primary, (4, 5)), Failover],
        acts: &[
            Write(Guest, (1, 3)),
            Write(Guest, (0, 2)),
            Trim(Guest, (3, 5)),
            Read(Guest, (1, 5)),
            Read(Primary, (0, 4)),
            Flush(Guest),
            Failover,
        ],
        inputs: 3,
        inputs_large: 4,
        faults: 2,
        states_min: 1_730_000,
        ..BASE
    },
    Setting {
        name: "failover",
        has_status: true,
        data: [true, true, false, false, true],
        prologue: &[Start, Write(Guest, (0, 1))],
        acts: &[
            Write(Primary, (0, 4)),
            Trim(Primary, (3, 4)),
            Write(Guest, (1, 3)),
            WriteDurably(Guest, (3, 5)),
            Flush(Guest),
            Failover,
            Stop,
        ],
        faults: 2,
        inputs: 3,
        inputs_large: 4,
        states_min: 2_300_000,
        ..BASE
    },
    Setting {
        name: "start",
        prologue: &[],
        acts: &[
            Start,
            Write(Primary, (0, 4)),
            WriteDurably(Primary, (1, 2)),
            FastZeroes(Primary, (0, 2)),
            Flush(Primary),
            Write(Guest, (0, 1)),
            Read(Guest, (0, 4)),
            Checkpoint,
            Failover,
        ],
        inputs: 5,
        inputs_large: 6,
        states_min: 1_120_000,
        ..BASE
    },
];

impl Setting {
    /// The world of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        SETTINGS.into_iter().find(|setting| setting.name == name)
    }
}
