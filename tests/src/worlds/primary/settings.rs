//! The worlds: who may ask what in each of them.

/// The first block, and the one after the last.
type Blocks = (u8, u8);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// The guest reads.
    Read(Blocks),
    /// The guest writes.
    Write(Blocks),
    /// The guest writes, durably.
    WriteDurably(Blocks),
    /// The guest writes zeroes, which may become a hole.
    Trim(Blocks),
    /// The guest writes zeroes if that is fast.
    FastZeroes(Blocks),
    /// The guest flushes.
    Flush,
    /// The guest goes.
    Close,
    /// The link to a replica breaks.
    Cut(u8),
    /// The machine of a replica crashes: what is not durable there is gone, and so is its link.
    Crash(u8),
    /// The link to a replica is up; after a crash the primary hears that it was started anew.
    Connect(u8),
    /// A replica says that it misses something.
    Missing(u8),
    /// The manager starts replication.
    Start,
    /// The manager stops replication.
    Stop,
    /// The manager attaches a replica that has what the disk had when it was opened.
    Attach(u8),
    /// The manager attaches a replica again, or one that has nothing.
    AttachEmpty(u8),
    /// The manager detaches a replica.
    Detach(u8),
    /// The coordinator wants modifications to stand still.
    Barrier,
    /// The coordinator wants them to stand still at once.
    UrgentBarrier,
    /// It can wait no longer for the barrier that it has raised.
    Hurry,
    /// The coordinator lets them go on.
    Release,
}

/// A world.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Places of the table.
    pub places: usize,
    /// Happens first, one after the other and each but the last to its end.
    pub prologue: &'static [Act],
    /// What can be asked then.
    pub acts: &'static [Act],
    /// How often.
    pub inputs: u8,
    /// How often in a large run.
    pub inputs_large: u8,
    /// How many transfers fail at most, those of links that are cut aside.
    pub faults: u8,
    /// There are at least as many states: a walk that finds fewer has lost something.
    pub states_min: u64,
}

use Act::{
    Attach, AttachEmpty, Barrier, Close, Connect, Crash, Cut, Detach, FastZeroes, Flush, Hurry, Missing,
    Read, Release, Start, Stop, Trim, UrgentBarrier, Write, WriteDurably,
};

const BASE: Setting = Setting {
    name: "",
    places: 5,
    prologue: &[Start, Attach(0), Connect(0)],
    acts: &[],
    inputs: 4,
    inputs_large: 5,
    faults: 2,
    states_min: 0,
};

/// All of them. Blocks 0 and 1 are the first dirty granule, 2 and 3 the second, 4 is the third, which ends with the
/// disk. A window is two of them.
pub const SETTINGS: [Setting; 6] = [
    Setting {
        name: "mirror",
        acts: &[Write((0, 1)), Write((1, 4)), Trim((3, 5)), Read((0, 4)), Flush, Cut(0), Connect(0)],
        inputs: 3,
        inputs_large: 4,
        faults: 2,
        states_min: 1_150_000,
        ..BASE
    },
    Setting {
        name: "two",
        prologue: &[Start, Attach(0), Connect(0), Attach(1), Connect(1)],
        acts: &[Write((0, 2)), Write((1, 3)), Read((0, 4)), Flush, Cut(0), Connect(0)],
        inputs: 3,
        inputs_large: 4,
        states_min: 470_000,
        ..BASE
    },
    Setting {
        name: "lost",
        prologue: &[Start, Attach(0), Connect(0), Attach(1), Connect(1), Write((0, 3))],
        acts: &[Write((0, 2)), Write((1, 2)), Read((0, 4)), Cut(0), Cut(1), Missing(0), Detach(1)],
        inputs: 3,
        inputs_large: 4,
        states_min: 160_000,
        ..BASE
    },
    Setting {
        name: "crash",
        acts: &[Write((0, 1)), Flush, Cut(0), Crash(0), Connect(0)],
        inputs: 5,
        inputs_large: 6,
        faults: 0,
        states_min: 360_000,
        ..BASE
    },
    Setting {
        name: "barrier",
        places: 3,
        acts: &[
            Write((0, 1)),
            Write((3, 5)),
            FastZeroes((0, 2)),
            Read((0, 1)),
            Barrier,
            UrgentBarrier,
            Hurry,
            Release,
            Close,
        ],
        faults: 0,
        states_min: 290_000,
        ..BASE
    },
    Setting {
        name: "attach",
        prologue: &[Write((0, 1))],
        acts: &[
            Write((1, 3)),
            WriteDurably((4, 5)),
            Read((0, 4)),
            Start,
            Stop,
            Attach(0),
            AttachEmpty(0),
            Detach(0),
            Connect(0),
            Cut(0),
        ],
        inputs: 5,
        inputs_large: 6,
        faults: 1,
        states_min: 760_000,
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
