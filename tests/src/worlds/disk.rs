//! Disks of a few blocks. A block is one symbol: who wrote it.

use heapless::Vec as List;
use std::hash::{Hash, Hasher};
use twinblock_core::block::{Action, Capabilities, Completion, Geometry, Transfer};
use twinblock_core::{Data, Errno, Extent, Outcome};

/// Bytes of a block.
pub const BLOCK: u64 = 256;
/// Blocks of a window, and of one of the embedder's buffers.
pub const WINDOW_BLOCKS: usize = 4;
/// What is found in a buffer that nobody owns.
pub const POISON: u8 = 0xDB;
/// What a failed read leaves.
const GARBAGE: u8 = 0xBA;
/// Transfers in flight.
const DEPTH: usize = 12;

/// Which blocks, a bit each.
pub type Mask = u16;

/// The embedder's buffers.
#[derive(Clone, Debug, Hash)]
pub struct Arena<const BUFFERS: usize>(pub [[u8; WINDOW_BLOCKS]; BUFFERS]);

impl<const BUFFERS: usize> Arena<BUFFERS> {
    /// All poisoned.
    #[must_use]
    pub const fn new() -> Self {
        Self([[POISON; WINDOW_BLOCKS]; BUFFERS])
    }

    /// The symbols behind a name.
    pub fn blocks(&mut self, data: Data) -> &mut [u8] {
        let from = u64::from(data.offset) / BLOCK;
        let count = u64::from(data.length) / BLOCK;
        &mut self.0[usize::from(data.buffer.0)][from as usize..(from + count) as usize]
    }
}

impl<const BUFFERS: usize> Default for Arena<BUFFERS> {
    fn default() -> Self {
        Self::new()
    }
}

/// How a transfer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Well.
    Done,
    /// With an error and no effect.
    Failed,
    /// With an error and its whole effect.
    FailedLate,
    /// Writing zeroes would not be fast.
    NotFast,
}

/// A transfer that has not been completed.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// What is to be done.
    pub transfer: Transfer,
    /// Blocks that were written and not durable when a flush began.
    covers: Mask,
}

/// Without the generation of the tag, which tells nothing of an entry that is in flight.
impl Hash for InFlight {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Transfer { tag, action, extent } = self.transfer;
        (tag.entry, action, extent, self.covers).hash(state);
    }
}

/// The disk.
#[derive(Clone, Debug, Hash)]
pub struct Disk<const BLOCKS: usize> {
    /// A symbol for each block; 0 is a hole.
    pub content: [u8; BLOCKS],
    /// Blocks that were written and are not durable.
    pub volatile: Mask,
    /// In the order of their tags.
    pub in_flight: List<InFlight, DEPTH>,
}

impl<const BLOCKS: usize> Disk<BLOCKS> {
    /// A disk with this content, all of it durable.
    #[must_use]
    pub const fn new(content: [u8; BLOCKS]) -> Self {
        Self { content, volatile: 0, in_flight: List::new() }
    }

    /// Its shape.
    #[must_use]
    pub fn geometry(has_status: bool) -> Geometry {
        let status = if has_status { Capabilities::STATUS } else { Capabilities::empty() };
        Geometry {
            size_bytes: BLOCKS as u64 * BLOCK,
            block_bytes: BLOCK as u32,
            capabilities: Capabilities::FLUSH | Capabilities::WRITE_ZEROES | Capabilities::FAST_ZERO | status,
        }
    }

    /// Takes a transfer in; checks that it may be given to a device.
    pub fn submit(&mut self, transfer: Transfer) {
        let Extent { offset, length } = transfer.extent;
        assert!(transfer.extent.end() <= BLOCKS as u64 * BLOCK, "beyond the end: {transfer:?}");
        assert!(offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK), "misaligned: {transfer:?}");
        match transfer.action {
            Action::Read(data) | Action::Write { data, .. } => {
                assert_eq!(length, u64::from(data.length), "the data has another length: {transfer:?}");
                assert!(length != 0 && length <= WINDOW_BLOCKS as u64 * BLOCK, "{transfer:?}");
            }
            Action::WriteZeroes { .. } | Action::Status => assert_ne!(length, 0, "{transfer:?}"),
            Action::Flush => assert_eq!(length, 0, "{transfer:?}"),
        }
        for InFlight { transfer: other, .. } in &self.in_flight {
            let is_harmless = !is_modification(&transfer) && !is_modification(other);
            assert!(
                is_harmless || !other.extent.overlaps(&transfer.extent),
                "{transfer:?} while {other:?} is in flight"
            );
        }
        let covers = if transfer.action == Action::Flush { self.volatile } else { 0 };
        let key = |transfer: &Transfer| (transfer.tag.entry, transfer.extent.offset);
        let place = self.in_flight.iter().position(|other| key(&other.transfer) > key(&transfer));
        let place = place.unwrap_or(self.in_flight.len());
        self.in_flight.insert(place, InFlight { transfer, covers }).expect("few are in flight");
    }

    /// One of the transfers in flight ends.
    pub fn complete<const BUFFERS: usize>(
        &mut self,
        nth: usize,
        end: End,
        arena: &mut Arena<BUFFERS>,
    ) -> Completion {
        let InFlight { transfer, covers } = self.in_flight.remove(nth);
        let range = range(transfer.extent);
        let takes_effect = matches!(end, End::Done | End::FailedLate);
        let mut outcome = Outcome::Done;
        match transfer.action {
            Action::Read(data) if end == End::Done => {
                arena.blocks(data).copy_from_slice(&self.content[range]);
            }
            Action::Read(data) => arena.blocks(data).fill(GARBAGE),
            Action::Write { data, fua } if takes_effect => {
                self.content[range].copy_from_slice(arena.blocks(data));
                self.written(transfer.extent, fua && end == End::Done);
            }
            Action::WriteZeroes { fua, .. } if takes_effect => {
                self.content[range].fill(0);
                self.written(transfer.extent, fua && end == End::Done);
            }
            Action::Flush if end == End::Done => self.volatile &= !covers,
            Action::Status => {
                let is_hole = self.content[range.start] == 0;
                let count = range.take_while(|block| (self.content[*block] == 0) == is_hole).count();
                outcome = Outcome::Status { is_hole, length: count as u64 * BLOCK };
            }
            Action::Write { .. } | Action::WriteZeroes { .. } | Action::Flush => {}
        }
        let result = match end {
            End::Done => Ok(outcome),
            End::Failed | End::FailedLate => Err(Errno::Io),
            End::NotFast => Err(Errno::Unsupported),
        };
        Completion { tag: transfer.tag, result }
    }

    fn written(&mut self, extent: Extent, is_durable: bool) {
        let mask = mask(extent);
        self.volatile = if is_durable { self.volatile & !mask } else { self.volatile | mask };
        for other in &mut self.in_flight {
            other.covers &= !mask;
        }
    }

    /// How a transfer may end. A read that fails has no effect either way.
    pub fn ends(&self, nth: usize, may_fail: bool) -> impl Iterator<Item = End> + use<BLOCKS> {
        let action = self.in_flight[nth].transfer.action;
        let changes = matches!(action, Action::Write { .. } | Action::WriteZeroes { .. });
        let ends = [
            (End::Done, true),
            (End::NotFast, matches!(action, Action::WriteZeroes { fast: true, .. })),
            (End::Failed, may_fail),
            (End::FailedLate, may_fail && changes),
        ];
        ends.into_iter().filter(|(_, may)| *may).map(|(end, _)| end)
    }
}

/// Whether a transfer changes something.
#[must_use]
pub const fn is_modification(transfer: &Transfer) -> bool {
    matches!(transfer.action, Action::Write { .. } | Action::WriteZeroes { .. })
}

/// The blocks of an extent.
#[must_use]
pub const fn range(extent: Extent) -> std::ops::Range<usize> {
    (extent.offset / BLOCK) as usize..(extent.end() / BLOCK) as usize
}

/// The same as bits.
#[must_use]
pub fn mask(extent: Extent) -> Mask {
    range(extent).map(|block| 1 << block).sum()
}
