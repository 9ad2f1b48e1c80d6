//! Transfers in flight, and the requests that are made of them.
//!
//! # Invariants
//! * T1: a slot is in exactly one list if it is free, waits to be sent or has ended, unless a payload of it is still in
//!   the output; in none otherwise.

use super::{ServerInfo, Session, State};
use crate::block::{Action, Completion, QueueFull, Tag, Transfer};
use crate::nbd::wire::{CommandFlags, REQUEST_BYTES, RequestHeader, TransmissionFlags, command};
use crate::{Data, Errno, Extent, Micros, Outcome};

/// Most zeroes in one request. The protocol has no limit but the field's width; this keeps one request short of it and
/// aligned to any block.
const ZEROES_MAX: u64 = 1 << 31;
/// Most zeroes sent as data in one request, to a server that cannot write zeroes.
const ZERO_PAYLOAD_MAX: u64 = 1 << 18;
/// How many separate parts of a read are kept track of.
const PARTS_MAX: usize = 8;

/// Which parts of a read have come, in order and not touching each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(heapless::Vec<(u32, u32), PARTS_MAX>);

/// What is wrong with another part of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadPart {
    Overlaps,
    TooMany,
}

impl Parts {
    const NONE: Self = Self(heapless::Vec::new());

    /// Adds the part from `start` up to `end`.
    pub(super) fn add(&mut self, start: u32, end: u32) -> Result<(), BadPart> {
        let at = self.0.iter().position(|part| part.0 >= start).unwrap_or(self.0.len());
        let before = at.checked_sub(1).and_then(|at| self.0.get(at)).copied();
        let after = self.0.get(at).copied();
        if before.is_some_and(|part| part.1 > start) || after.is_some_and(|part| part.0 < end) {
            return Err(BadPart::Overlaps);
        }
        let joins_before = before.is_some_and(|part| part.1 == start);
        let joins_after = after.is_some_and(|part| part.0 == end);
        match (joins_before, joins_after) {
            (true, true) => {
                let (_, after_end) = self.0.remove(at);
                self.set(at - 1, |part| part.1 = after_end);
            }
            (true, false) => self.set(at - 1, |part| part.1 = end),
            (false, true) => self.set(at, |part| part.0 = start),
            (false, false) => self.0.insert(at, (start, end)).map_err(|_| BadPart::TooMany)?,
        }
        Ok(())
    }

    fn set(&mut self, at: usize, change: impl FnOnce(&mut (u32, u32))) {
        if let Some(part) = self.0.get_mut(at) {
            change(part);
        }
    }

    /// Whether all of `length` bytes have come.
    pub(super) fn is_whole(&self, length: u32) -> bool {
        self.0.first() == Some(&(0, length))
    }
}

/// No slot.
const NONE: u16 = u16::MAX;

/// Where a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    /// Its next request waits for room in the output.
    Queued,
    /// A request of it is with the server.
    Sent,
    Ended(Result<Outcome, Errno>),
}

/// How the request that is with the server has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Status { is_hole: bool, length: u64 },
    Failed(Errno),
}

/// Room for one transfer.
#[derive(Clone, Debug)]
pub struct TransferSlot {
    stage: Stage,
    tag: Tag,
    action: Action,
    extent: Extent,
    submitted: Micros,
    /// Which request of this slot is with the server; part of its cookie.
    generation: u32,
    /// How much of the extent is done.
    done: u64,
    /// How much of it the request with the server covers.
    now: u32,
    /// The server cannot write durably: a flush follows.
    needs_flush: bool,
    /// That flush is on its way.
    is_flushing: bool,
    /// A payload of it is in the output.
    is_payload_out: bool,
    parts: Parts,
    /// What the chunks so far have brought.
    failure: Option<Errno>,
    status: Option<(bool, u64)>,
    /// The next of the list that it is in.
    next: u16,
}

impl TransferSlot {
    /// What the memory for a session is filled with at first.
    pub const EMPTY: Self = Self {
        stage: Stage::Free,
        tag: Tag { entry: 0, generation: 0 },
        action: Action::Flush,
        extent: Extent { offset: 0, length: 0 },
        submitted: Micros(0),
        generation: 0,
        done: 0,
        now: 0,
        needs_flush: false,
        is_flushing: false,
        is_payload_out: false,
        parts: Parts::NONE,
        failure: None,
        status: None,
        next: NONE,
    };

    const fn is_fua(&self) -> bool {
        matches!(self.action, Action::Write { fua: true, .. } | Action::WriteZeroes { fua: true, .. })
    }
}

/// A request that is with the server.
pub(super) struct Sent<'a> {
    /// What was asked for.
    pub(super) extent: Extent,
    /// Where its data goes, if it reads.
    pub(super) read: Option<Data>,
    pub(super) is_status: bool,
    pub(super) parts: &'a mut Parts,
    pub(super) failure: &'a mut Option<Errno>,
    pub(super) status: &'a mut Option<(bool, u64)>,
}

/// Slots in the order in which they came; the links are in the slots.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u16,
    last: u16,
}

impl List {
    const EMPTY: Self = Self { first: NONE, last: NONE };

    fn push(&mut self, slots: &mut [TransferSlot], index: u16) {
        let Some(slot) = slots.get_mut(usize::from(index)) else { return };
        slot.next = NONE;
        match slots.get_mut(usize::from(self.last)) {
            Some(last) => last.next = index,
            None => self.first = index,
        }
        self.last = index;
    }

    fn pop(&mut self, slots: &[TransferSlot]) -> Option<u16> {
        let index = self.first;
        self.first = slots.get(usize::from(index))?.next;
        if self.first == NONE {
            self.last = NONE;
        }
        Some(index)
    }
}

/// The transfers.
#[derive(Debug)]
pub(super) struct Transfers<'m> {
    slots: &'m mut [TransferSlot],
    count: usize,
    /// How many have ended and were not polled, in the list or not.
    ended_count: usize,
    free: List,
    /// Whose next request can be made: one payload of each is in the output at a time.
    sendable: List,
    /// Whose completion can be polled: the payload of none of them is looked at any more.
    ended: List,
}

impl<'m> Transfers<'m> {
    pub(super) fn new(slots: &'m mut [TransferSlot]) -> Self {
        slots.fill(TransferSlot::EMPTY);
        let usable = slots.len().min(usize::from(NONE));
        let slots = slots.get_mut(..usable).unwrap_or_default();
        let mut free = List::EMPTY;
        (0..usable as u16).for_each(|index| free.push(slots, index));
        Self { slots, count: 0, ended_count: 0, free, sendable: List::EMPTY, ended: List::EMPTY }
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Puts a slot into the list of its stage (T1).
    fn file(&mut self, index: u16) {
        let Some(slot) = self.slots.get(usize::from(index)).filter(|slot| !slot.is_payload_out) else {
            return;
        };
        let list = match slot.stage {
            Stage::Free => &mut self.free,
            Stage::Queued => &mut self.sendable,
            Stage::Sent => return,
            Stage::Ended(_) => &mut self.ended,
        };
        list.push(self.slots, index);
    }

    fn open(&mut self, transfer: Transfer, submitted: Micros, ended: Option<Result<Outcome, Errno>>) -> bool {
        let Some(index) = self.free.pop(self.slots) else { return false };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return false };
        let Transfer { tag, action, extent } = transfer;
        let stage = ended.map_or(Stage::Queued, Stage::Ended);
        let generation = slot.generation;
        *slot = TransferSlot { stage, tag, action, extent, submitted, generation, ..TransferSlot::EMPTY };
        self.count += 1;
        self.ended_count += usize::from(ended.is_some());
        self.file(index);
        true
    }

    pub(super) fn oldest(&self) -> Option<Micros> {
        let waiting = self.slots.iter().filter(|slot| matches!(slot.stage, Stage::Queued | Stage::Sent));
        waiting.map(|slot| slot.submitted).min()
    }

    pub(super) fn poll(&mut self) -> Option<Completion> {
        let index = self.ended.pop(self.slots)?;
        let slot = self.slots.get_mut(usize::from(index))?;
        let Stage::Ended(result) = slot.stage else { return None };
        slot.stage = Stage::Free;
        let tag = slot.tag;
        self.ended_count -= 1;
        self.count -= 1;
        self.file(index);
        Some(Completion { tag, result })
    }

    pub(super) fn payload_sent(&mut self, index: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(index))
            && core::mem::replace(&mut slot.is_payload_out, false)
        {
            self.file(index);
        }
    }

    /// What has not ended does so now, and no payload is in the output any more.
    pub(super) fn fail_all(&mut self, errno: Errno) {
        self.sendable = List::EMPTY;
        for index in 0..self.slots.len() as u16 {
            let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
            let was_out = core::mem::replace(&mut slot.is_payload_out, false);
            let is_ending = matches!(slot.stage, Stage::Queued | Stage::Sent);
            if is_ending {
                slot.stage = Stage::Ended(Err(errno));
                self.ended_count += 1;
            }
            if is_ending || was_out {
                self.file(index);
            }
        }
    }

    /// The request of that cookie, if it is with the server.
    pub(super) fn sent(&mut self, cookie: u64) -> Option<(u16, Sent<'_>)> {
        let index = u16::try_from(cookie & 0xffff).ok()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        if slot.stage != Stage::Sent || cookie != cookie_of(index, slot.generation) {
            return None;
        }
        let extent =
            Extent { offset: slot.extent.offset.saturating_add(slot.done), length: u64::from(slot.now) };
        let read = match slot.action {
            Action::Read(data) => Some(data.part(u32::try_from(slot.done).ok()?, slot.now)),
            _ => None,
        };
        let is_status = slot.action == Action::Status;
        let TransferSlot { parts, failure, status, .. } = slot;
        Some((index, Sent { extent, read, is_status, parts, failure, status }))
    }

    /// Same, by the slot.
    pub(super) fn sent_at(&mut self, index: u16) -> Option<Sent<'_>> {
        let generation = self.slots.get(usize::from(index))?.generation;
        self.sent(cookie_of(index, generation)).map(|(_, sent)| sent)
    }

    /// The request that was with the server has ended.
    pub(super) fn advance(&mut self, index: u16, progress: Progress) {
        let Some(slot) = self.slots.get_mut(usize::from(index)).filter(|slot| slot.stage == Stage::Sent)
        else {
            return;
        };
        slot.stage = match progress {
            Progress::Failed(errno) => Stage::Ended(Err(errno)),
            Progress::Status { is_hole, length } => Stage::Ended(Ok(Outcome::Status { is_hole, length })),
            Progress::Done if slot.is_flushing || slot.action == Action::Flush => {
                Stage::Ended(Ok(Outcome::Done))
            }
            Progress::Done => {
                slot.done += u64::from(slot.now);
                slot.is_flushing = slot.done >= slot.extent.length && slot.needs_flush;
                if slot.done < slot.extent.length || slot.is_flushing {
                    Stage::Queued
                } else {
                    Stage::Ended(Ok(Outcome::Done))
                }
            }
        };
        self.ended_count += usize::from(slot.stage != Stage::Queued);
        self.file(index);
    }
}

const fn cookie_of(index: u16, generation: u32) -> u64 {
    (generation as u64) << 16 | index as u64
}

impl Session<'_> {
    /// Starts a transfer. What does not fit the export completes with an error; on a connection that has failed
    /// everything does.
    ///
    /// # Errors
    /// [`QueueFull`]: no slot is free, or the handshake is not over. Nothing was started.
    pub fn submit(&mut self, transfer: Transfer, now: Micros) -> Result<(), QueueFull> {
        let ended = match self.info {
            _ if self.is_closed() || self.is_leaving => Some(Err(Errno::Io)),
            None => return Err(QueueFull),
            Some(info) => check(&info, &transfer),
        };
        if !self.transfers.open(transfer, now, ended) {
            return Err(QueueFull);
        }
        self.pump();
        Ok(())
    }

    /// Makes requests of transfers that wait, while there is room.
    pub(super) fn pump(&mut self) {
        let Some(info) = self.info.filter(|_| !self.is_closed()) else { return };
        while self.output.has_room(REQUEST_BYTES, 2)
            && let Some(index) = self.transfers.sendable.pop(self.transfers.slots)
        {
            self.send(&info, index);
        }
        let is_idle = self.transfers.count == self.transfers.ended_count;
        if self.is_leaving && is_idle && self.output.has_room(REQUEST_BYTES, 1) {
            let (flags, command) = (CommandFlags::empty(), command::DISC);
            let header = RequestHeader { flags, command, cookie: 0, offset: 0, length: 0 };
            self.output.push_bytes(&header.encode());
            self.enter(State::Closed);
        }
    }

    /// Sends the next request of a transfer.
    fn send(&mut self, info: &ServerInfo, owner: u16) {
        let Some(slot) = self.transfers.slots.get_mut(usize::from(owner)) else { return };
        slot.stage = Stage::Sent;
        slot.generation = slot.generation.wrapping_add(1);
        slot.parts = Parts::NONE;
        (slot.failure, slot.status) = (None, None);
        let has = |flag| info.flags.contains(flag);
        let left = slot.extent.length.saturating_sub(slot.done);
        let payload_max = u64::from(info.payload_max);
        let has_zeroes = has(TransmissionFlags::SEND_WRITE_ZEROES);
        let mut flags = CommandFlags::empty();
        let has_fua = has(TransmissionFlags::SEND_FUA);
        flags.set(CommandFlags::FUA, slot.is_fua() && has_fua);
        slot.needs_flush = slot.is_fua() && !has_fua && has(TransmissionFlags::SEND_FLUSH);
        let (command, length) = match slot.action {
            _ if slot.is_flushing => (command::FLUSH, 0),
            Action::Flush => (command::FLUSH, 0),
            Action::Read(_) => (command::READ, left.min(payload_max)),
            Action::Write { .. } => (command::WRITE, left.min(payload_max)),
            Action::WriteZeroes { may_unmap, fast, .. } if has_zeroes => {
                flags.set(CommandFlags::NO_HOLE, !may_unmap);
                flags.set(CommandFlags::FAST_ZERO, fast);
                (command::WRITE_ZEROES, left.min(ZEROES_MAX))
            }
            Action::WriteZeroes { .. } => (command::WRITE, left.min(payload_max).min(ZERO_PAYLOAD_MAX)),
            Action::Status => {
                flags |= CommandFlags::REQ_ONE;
                (command::BLOCK_STATUS, left.min(ZEROES_MAX))
            }
        };
        if command == command::FLUSH {
            flags = CommandFlags::empty();
        }
        let offset = if command == command::FLUSH { 0 } else { slot.extent.offset.saturating_add(slot.done) };
        slot.now = u32::try_from(length).unwrap_or(u32::MAX);
        let length = slot.now;
        let header =
            RequestHeader { flags, command, cookie: cookie_of(owner, slot.generation), offset, length };
        self.output.push_bytes(&header.encode());
        match (command, slot.action) {
            (command::WRITE, Action::Write { data, .. }) => {
                let from = u32::try_from(slot.done).unwrap_or(u32::MAX);
                slot.is_payload_out = true;
                self.output.push_data(data.part(from, length), owner);
            }
            (command::WRITE, _) => self.output.push_zeroes(length),
            _ => {}
        }
        if matches!(command, command::WRITE | command::WRITE_ZEROES) {
            self.modifications_sent = self.modifications_sent.saturating_add(1);
        }
    }
}

/// How a transfer ends without a request, if it does.
fn check(info: &ServerInfo, transfer: &Transfer) -> Option<Result<Outcome, Errno>> {
    let Transfer { action, extent, .. } = transfer;
    let has = |flag| info.flags.contains(flag);
    let block = u64::from(info.block_min);
    let is_inside = extent.offset.checked_add(extent.length).is_some_and(|end| end <= info.size_bytes);
    let is_aligned = extent.offset.is_multiple_of(block) && extent.length.is_multiple_of(block);
    let is_fitting = match action {
        Action::Read(data) | Action::Write { data, .. } => u64::from(data.length) == extent.length,
        _ => true,
    };
    let modifies = matches!(action, Action::Write { .. } | Action::WriteZeroes { .. });
    match action {
        Action::Flush if has(TransmissionFlags::SEND_FLUSH) => None,
        Action::Flush => Some(Ok(Outcome::Done)),
        _ if !is_inside || !is_aligned || !is_fitting => Some(Err(Errno::Invalid)),
        _ if modifies && has(TransmissionFlags::READ_ONLY) => Some(Err(Errno::NotPermitted)),
        Action::WriteZeroes { fast: true, .. }
            if !has(TransmissionFlags::SEND_FAST_ZERO | TransmissionFlags::SEND_WRITE_ZEROES) =>
        {
            Some(Err(Errno::Unsupported))
        }
        Action::Status if !info.has_allocation => Some(Err(Errno::Unsupported)),
        Action::Status if extent.is_empty() => Some(Err(Errno::Invalid)),
        _ if extent.is_empty() => Some(Ok(Outcome::Done)),
        _ => None,
    }
}
