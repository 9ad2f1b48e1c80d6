//! Requests and pieces in flight, in borrowed slots.

use crate::nbd::wire::CommandFlags;
use crate::{Data, Errno, Extent};

/// What a request asks for, once it is known to be something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    Status,
    /// Only ever answered with an error.
    Unknown,
}

/// Why a request failed, for the number and for the text of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) errno: Errno,
    pub(super) text: &'static str,
}

/// One request of the client that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) cookie: u64,
    pub(super) extent: Extent,
    /// Pieces that exist and have neither been answered nor, if they read, put into the output.
    pub(super) outstanding: u16,
    /// No further piece will be made.
    pub(super) is_issued: bool,
    /// The first error.
    pub(super) failure: Option<Failure>,
    /// Of a read that is answered in order: up to here its data is in the output.
    pub(super) emitted_to: u64,
    /// Of a read that is answered in order: its header is in the output, so it can no longer fail politely.
    pub(super) is_header_out: bool,
}

/// Room for one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestSlot(pub(super) Option<Open>);

impl RequestSlot {
    /// What the memory for a session is filled with at first.
    pub const EMPTY: Self = Self(None);
}

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    /// Its payload is coming in, or is there and the piece waits to be polled.
    Filling,
    /// With the machine.
    Issued,
    /// A read whose data waits for room in the output.
    Answered,
}

/// Room for one piece.
#[derive(Clone, Copy, Debug)]
pub struct PieceSlot {
    pub(super) stage: Stage,
    pub(super) request: u16,
    pub(super) extent: Extent,
    pub(super) data: Option<Data>,
}

impl PieceSlot {
    /// What the memory for a session is filled with at first.
    pub const EMPTY: Self =
        Self { stage: Stage::Free, request: 0, extent: Extent { offset: 0, length: 0 }, data: None };
}

/// The requests.
#[derive(Debug)]
pub(super) struct Requests<'m> {
    slots: &'m mut [RequestSlot],
    count: usize,
    next: usize,
}

impl<'m> Requests<'m> {
    pub(super) fn new(slots: &'m mut [RequestSlot]) -> Self {
        let mut requests = Self { slots, count: 0, next: 0 };
        requests.clear();
        requests
    }

    pub(super) fn clear(&mut self) {
        self.slots.fill(RequestSlot::EMPTY);
        self.count = 0;
    }

    /// How many slots a number of 16 bits reaches.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len().min(usize::from(u16::MAX))
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= self.capacity()
    }

    /// Puts a request into a free slot. The search goes on from the last one, so that it is short.
    pub(super) fn open(&mut self, open: Open) -> Option<u16> {
        let capacity = self.capacity();
        let index = (self.next..capacity).chain(0..self.next.min(capacity));
        let index =
            index.into_iter().find(|index| matches!(self.slots.get(*index), Some(RequestSlot(None))))?;
        *self.slots.get_mut(index)? = RequestSlot(Some(open));
        self.next = index + 1;
        self.count += 1;
        u16::try_from(index).ok()
    }

    pub(super) fn get(&mut self, index: u16) -> Option<&mut Open> {
        self.slots.get_mut(usize::from(index))?.0.as_mut()
    }

    pub(super) fn close(&mut self, index: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(index))
            && slot.0.take().is_some()
        {
            self.count -= 1;
        }
    }
}

/// The pieces.
#[derive(Debug)]
pub(super) struct Pieces<'m> {
    slots: &'m mut [PieceSlot],
    count: usize,
    next: usize,
}

impl<'m> Pieces<'m> {
    pub(super) fn new(slots: &'m mut [PieceSlot]) -> Self {
        slots.fill(PieceSlot::EMPTY);
        Self { slots, count: 0, next: 0 }
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len().min(usize::from(u16::MAX))
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= self.capacity()
    }

    /// Puts a piece into a free slot.
    pub(super) fn open(&mut self, piece: PieceSlot) -> Option<u16> {
        let capacity = self.capacity();
        let mut index = (self.next..capacity).chain(0..self.next.min(capacity));
        let index =
            index.find(|index| self.slots.get(*index).is_some_and(|slot| slot.stage == Stage::Free))?;
        *self.slots.get_mut(index)? = piece;
        self.next = index + 1;
        self.count += 1;
        u16::try_from(index).ok()
    }

    /// A piece that is not free.
    pub(super) fn get(&mut self, index: u16) -> Option<&mut PieceSlot> {
        self.slots.get_mut(usize::from(index)).filter(|slot| slot.stage != Stage::Free)
    }

    /// Frees a slot; tells what data it had.
    pub(super) fn close(&mut self, index: u16) -> Option<Data> {
        let slot = self.slots.get_mut(usize::from(index)).filter(|slot| slot.stage != Stage::Free)?;
        let data = slot.data.take();
        slot.stage = Stage::Free;
        self.count -= 1;
        data
    }

    /// The answered piece of a request that starts at `offset`.
    pub(super) fn answered_at(&self, request: u16, offset: u64) -> Option<u16> {
        let found = self.slots.iter().position(|slot| {
            slot.stage == Stage::Answered && slot.request == request && slot.extent.offset == offset
        });
        found.and_then(|index| u16::try_from(index).ok())
    }

    /// The data of a piece.
    pub(super) fn data(&self, index: u16) -> Option<Data> {
        self.slots.get(usize::from(index))?.data
    }

    /// Frees every slot whose piece is not with the machine; hears of their data.
    pub(super) fn close_unissued(&mut self, mut release: impl FnMut(Data)) {
        for slot in self.slots.iter_mut() {
            if matches!(slot.stage, Stage::Filling | Stage::Answered) {
                slot.stage = Stage::Free;
                self.count -= 1;
                if let Some(data) = slot.data.take() {
                    release(data);
                }
            }
        }
    }

    /// Frees the answered pieces of one request; hears of their data, and tells how many they were.
    pub(super) fn close_answered(&mut self, request: u16, mut release: impl FnMut(Data)) -> u16 {
        let mut count = 0;
        for slot in self.slots.iter_mut() {
            if slot.stage == Stage::Answered && slot.request == request {
                slot.stage = Stage::Free;
                self.count -= 1;
                count += 1;
                if let Some(data) = slot.data.take() {
                    release(data);
                }
            }
        }
        count
    }

    /// The request of a piece that is answered.
    pub(super) fn answered(&self, index: u16) -> Option<u16> {
        let slot = self.slots.get(usize::from(index)).filter(|slot| slot.stage == Stage::Answered)?;
        Some(slot.request)
    }
}
