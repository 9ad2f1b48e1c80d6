//! What was written when, and what each block may therefore hold.
//!
//! Every write is noted with two moments of one clock: just before it was sent, and just after its answer came. The
//! write took its place in the order of the disk somewhere in between. From this follows which of two writes was
//! certainly first: one that was answered before the other was sent, or sent earlier on the same connection
//! (SEMANTICS.md, "Order and acknowledgement", 1). Everything else is open, and any outcome of it is right; so a
//! check here never accuses falsely, and misses only what no client could know.

mod epochs;
mod index;
mod pieces;
mod present;
mod view;

#[cfg(test)]
mod tests;

pub(crate) use epochs::{Epochs, Poll};
pub(crate) use index::Index;
pub(crate) use pieces::Picture;
pub(crate) use present::{check_present, check_twins};
pub(crate) use view::{Bounds, Sides, ViewCheck};

use super::block::{BLOCK_BYTES, Version};
use super::clock::Moment;

/// Blocks of one piece: requests are processed in pieces of at most a window of 256 KiB that do not cross a multiple
/// of it, and a piece is done wholly or not at all.
pub(crate) const PIECE_BLOCKS: u64 = (256 << 10) / BLOCK_BYTES as u64;

/// Whom a connection serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The guest of the primary.
    Primary,
    /// The guest of the secondary.
    Guest,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// No answer yet, or never: it may be on the disk or not.
    Open,
    /// Answered with success just before this moment.
    Done(Moment),
    /// Answered with an error just before this moment: parts of it may be on the disk.
    Failed(Moment),
}

/// One write, write of zeroes or trim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    /// First block.
    pub(crate) first: u64,
    /// How many blocks.
    pub(crate) count: u32,
    /// It left zeroes, which do not tell who wrote them.
    pub(crate) is_zeroes: bool,
    /// Just before it was sent.
    pub(crate) submitted: Moment,
    /// What came of it.
    pub(crate) end: End,
}

impl Write {
    /// Until when it may have taken its place.
    const fn answered(&self) -> Moment {
        match self.end {
            End::Open => Moment::NEVER,
            End::Done(at) | End::Failed(at) => at,
        }
    }

    /// When it certainly had taken its place: never for one without success.
    const fn certain(&self) -> Moment {
        match self.end {
            End::Done(at) => at,
            End::Open | End::Failed(_) => Moment::NEVER,
        }
    }
}

/// What a block showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Zeroes, and the block was not zero in the beginning.
    Zero,
    /// What it held in the beginning, and that was not zero.
    Initial,
    /// Zeroes, as in the beginning.
    ZeroOrInitial,
    /// The data of one write.
    Version(Version),
    /// A whole block, but of another place.
    Misplaced,
    /// A torn or damaged block.
    Damaged,
    /// Nothing that was ever here.
    Foreign,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where.
    pub(crate) block: u64,
    /// What is wrong, for people.
    pub(crate) text: String,
}

/// All writes of one side, by connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    connections: Vec<(u16, Vec<Write>)>,
}

impl Log {
    /// Adds what one connection has sent, in the order in which it was sent.
    pub(crate) fn add(&mut self, connection: u16, writes: Vec<Write>) {
        self.connections.push((connection, writes));
    }

    /// How many writes there are.
    pub(crate) fn count(&self) -> usize {
        self.connections.iter().map(|(_, writes)| writes.len()).sum()
    }

    /// Takes answers after `moment` as if they had not come: what holds for acknowledged writes is then not asked of
    /// these.
    pub(crate) fn forget_answers_after(&mut self, moment: Moment) {
        for write in self.connections.iter_mut().flat_map(|(_, writes)| writes) {
            if write.answered() > moment {
                write.end = End::Open;
            }
        }
    }

    /// How each write ended.
    pub(crate) fn iter_ends(&self) -> impl Iterator<Item = End> {
        self.iter().map(|(_, write)| write.end)
    }

    fn find(&self, version: Version) -> Option<&Write> {
        let (_, writes) =
            self.connections.iter().find(|(connection, _)| *connection == version.connection)?;
        writes.get(version.index as usize)
    }

    fn iter(&self) -> impl Iterator<Item = (Version, &Write)> {
        self.connections.iter().flat_map(|(connection, writes)| {
            writes
                .iter()
                .enumerate()
                .map(|(index, write)| (Version { connection: *connection, index: index as u32 }, write))
        })
    }
}

/// One write with its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    /// Its name.
    pub(crate) version: Version,
    /// It.
    pub(crate) write: &'a Write,
}

impl Named<'_> {
    /// Whether this took its place before `later` for certain.
    fn is_before(&self, later: &Self) -> bool {
        if self.version.connection == later.version.connection {
            return self.version.index < later.version.index;
        }
        self.write.answered() < later.write.submitted
    }
}

/// Who may have made what a block showed.
#[derive(Clone, Copy, Debug)]
enum Maker<'a> {
    /// Nobody: it was there in the beginning.
    Nobody,
    /// A write.
    Write(Named<'a>),
}

impl Maker<'_> {
    /// Whether `later` replaced what this made for certain, once `later` has taken its place.
    fn is_before(&self, later: &Named<'_>) -> bool {
        match self {
            Self::Nobody => true,
            Self::Write(named) => named.is_before(later),
        }
    }
}

/// Who of `writers` (all writes to the block) may have made what it showed.
fn makers<'a>(writers: &[Named<'a>], seen: Seen) -> Vec<Maker<'a>> {
    let zeroes = || writers.iter().filter(|named| named.write.is_zeroes).map(|named| Maker::Write(*named));
    match seen {
        Seen::Zero => zeroes().collect(),
        Seen::Initial => vec![Maker::Nobody],
        Seen::ZeroOrInitial => std::iter::once(Maker::Nobody).chain(zeroes()).collect(),
        Seen::Version(version) => writers
            .iter()
            .filter(|named| named.version == version && !named.write.is_zeroes)
            .map(|named| Maker::Write(*named))
            .collect(),
        Seen::Misplaced | Seen::Damaged | Seen::Foreign => Vec::new(),
    }
}

/// What a block showed, for people.
fn described(seen: Seen) -> String {
    match seen {
        Seen::Zero | Seen::ZeroOrInitial => "zeroes".into(),
        Seen::Initial => "its first content".into(),
        Seen::Version(version) => format!("write {}.{}", version.connection, version.index),
        Seen::Misplaced => "a block of another place".into(),
        Seen::Damaged => "a damaged block".into(),
        Seen::Foreign => "bytes that nobody wrote".into(),
    }
}
