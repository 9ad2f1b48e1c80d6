//! The guests of both sides, and what each must see.

use std::collections::VecDeque;
use twinblock_core::secondary::{self};
use twinblock_core::{
    ConnectionId, Data, Errno, Extent, Memory, Op, Pool, Refused, Reply, Request, RequestId, Stage, View,
    primary,
};

use super::super::disk::range;
use super::{GUEST, Pair};

/// A request that was taken and not answered.
#[derive(Clone, Debug)]
pub(super) struct Flying {
    pub(super) request: Request,
    data: Option<Data>,
    /// What a modification writes.
    pub(super) new: Vec<u8>,
    /// The view was broken at some time since.
    was_broken: bool,
}

/// A guest: what it has asked, and what it should see.
#[derive(Debug)]
pub(super) struct Guest {
    /// Every modification that was answered, in order, over what was there.
    pub(super) content: Vec<u8>,
    pub(super) flying: Vec<Flying>,
    /// Pieces that were not taken yet, by connection.
    outboxes: [VecDeque<(Op, Extent, bool, bool)>; 2],
}

/// Which guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Primary,
    Secondary,
}

const NO_DATA: Data = Data { buffer: twinblock_core::BufferIndex(0), offset: 0, length: 0 };

impl Guest {
    pub(super) fn new(content: Vec<u8>) -> Self {
        Self { content, flying: Vec::new(), outboxes: Default::default() }
    }

    /// Whether a byte may be this now: as it should be, or as a request in flight makes it.
    pub(super) fn may_be(&self, byte: usize, is: u8) -> bool {
        self.content[byte] == is || may_make(&self.flying, byte, is)
    }
}

/// Whether one of these may have made a byte what it is.
pub(super) fn may_make(flying: &[Flying], byte: usize, is: u8) -> bool {
    flying.iter().any(|flying| {
        let place = range(flying.request.extent);
        !flying.new.is_empty() && place.contains(&byte) && flying.new[byte - place.start] == is
    })
}

impl Pair<'_> {
    fn side(&mut self, side: Side) -> &mut Guest {
        if side == Side::Primary { &mut self.guest } else { &mut self.twin }
    }

    /// A guest thinks of something, or sends what it has thought of.
    pub(super) fn any_request(&mut self, side: Side) {
        let connection = self.rng.usize(..2);
        if self.side(side).outboxes[connection].is_empty() {
            self.think(side, connection);
        }
        while self.send(side, connection) && self.rng.bool() {}
    }

    fn think(&mut self, side: Side, connection: usize) {
        let fua = self.rng.u8(..8) == 0;
        let op = match self.rng.u8(..100) {
            0..15 => Op::Read(NO_DATA),
            15..80 => Op::Write { data: NO_DATA, fua },
            80..92 => Op::WriteZeroes { may_unmap: self.rng.bool(), fast: self.rng.u8(..4) == 0, fua },
            _ => Op::Flush,
        };
        let (window, size) = (self.piece_window(side), self.size);
        let offset = self.rng.u64(..size);
        let length = self.rng.u64(1..=window * 2).min(size - offset);
        let whole = if op == Op::Flush { Extent::default() } else { Extent { offset, length } };
        let mut at = whole.offset;
        loop {
            let end = ((at / window + 1) * window).min(whole.end());
            let is_last = end == whole.end();
            let piece = (op, Extent::between(at, end), at == whole.offset, is_last);
            self.side(side).outboxes[connection].push_back(piece);
            at = end;
            if is_last {
                break;
            }
        }
    }

    fn piece_window(&self, side: Side) -> u64 {
        match side {
            Side::Primary => self.window,
            Side::Secondary => u64::from(self.secondary.machine().config().window_bytes),
        }
    }

    /// Sends what is left of what was thought of. Whether something was taken.
    pub(super) fn send_rest(&mut self, side: Side) -> bool {
        (0..2).any(|connection| self.send(side, connection))
    }

    pub(super) fn has_rest(&self, side: Side) -> bool {
        let guest = if side == Side::Primary { &self.guest } else { &self.twin };
        guest.outboxes.iter().any(|outbox| !outbox.is_empty())
    }

    fn send(&mut self, side: Side, connection: usize) -> bool {
        let Some((op, extent, is_first, is_last)) = self.side(side).outboxes[connection].front().copied()
        else {
            return false;
        };
        let length = extent.length as u32;
        let arena = if side == Side::Primary { &mut self.primary_arena } else { &mut self.secondary_arena };
        let (mut data, mut new) = (None, Vec::new());
        if matches!(op, Op::Read(_) | Op::Write { .. }) {
            let Some(buffer) = arena.acquire(length) else { return false };
            data = Some(Data { buffer, offset: 0, length });
        }
        let op = match (op, data) {
            (Op::Read(_), Some(data)) => Op::Read(data),
            (Op::Write { fua, .. }, Some(data)) => {
                let bytes = arena.bytes(data).expect("it was acquired");
                self.rng.fill(bytes);
                new = bytes.to_vec();
                Op::Write { data, fua }
            }
            (Op::WriteZeroes { .. }, _) => {
                new = vec![0; length as usize];
                op
            }
            _ => op,
        };
        let request = Request { id: RequestId(self.name()), op, extent, is_first, is_last };
        let from = ConnectionId(GUEST.0 + connection as u32);
        let result = match side {
            Side::Primary => self.primary.offer(self.now, primary::Input::Request(from, request)),
            Side::Secondary => self.secondary.offer(self.now, secondary::Input::Request(from, request)),
        };
        self.trace(|_| format!("{side:?} guest: {request:?}: {result:?}"));
        if result.is_err() {
            assert_eq!(result, Err(Refused::Busy));
            let arena =
                if side == Side::Primary { &mut self.primary_arena } else { &mut self.secondary_arena };
            if let Some(data) = data {
                arena.release(data.buffer);
            }
        } else {
            let was_broken = self.secondary.machine().view() == View::Broken;
            let guest = self.side(side);
            guest.outboxes[connection].pop_front();
            guest.flying.push(Flying { request, data, new, was_broken });
        }
        self.drain();
        result.is_ok()
    }

    /// The primary has answered its guest.
    pub(super) fn guest_answered(&mut self, reply: &Reply) {
        let flying = take(&mut self.guest.flying, reply.id);
        assert!(reply.result.is_ok(), "the primary disk has not failed: {reply:?}");
        let place = range(flying.request.extent);
        match (flying.request.op, flying.data) {
            (Op::Read(_), Some(data)) => {
                let read = self.primary_arena.copy(data);
                assert!(read == self.guest.content[place], "the primary's guest reads something else");
            }
            (Op::Write { .. } | Op::WriteZeroes { .. }, _) => {
                self.guest.content[place.clone()].copy_from_slice(&flying.new);
                // Answered means: on each replica, or marked as missing there.
                let is_there = self.secondary_disk().bytes()[place] == flying.new;
                let is_running = self.primary.machine().stage() == Stage::Running;
                assert!(
                    is_there || self.is_behind() || !is_running,
                    "{:?} is not on the replica",
                    flying.request
                );
            }
            _ => {}
        }
        if let Some(data) = flying.data {
            self.primary_arena.release(data.buffer);
        }
        self.coverage.count("primary's guest", self.primary.machine().stage(), "done");
    }

    /// The secondary has answered its guest; `false` if the request is not its guest's.
    pub(super) fn twin_answered(&mut self, reply: &Reply) -> bool {
        if !self.twin.flying.iter().any(|flying| flying.request.id == reply.id) {
            return false;
        }
        let flying = take(&mut self.twin.flying, reply.id);
        let place = range(flying.request.extent);
        let stage = self.secondary.machine().stage();
        match (flying.request.op, flying.data, reply.result) {
            (Op::Read(_), Some(data), Ok(_)) => {
                let read = self.secondary_arena.copy(data);
                assert!(read == self.twin.content[place], "the secondary's guest reads something else");
            }
            (Op::Write { .. } | Op::WriteZeroes { .. }, _, Ok(_)) => {
                self.twin.content[place].copy_from_slice(&flying.new);
            }
            (_, _, Err(errno)) => self.twin_failed(&flying, errno),
            _ => {}
        }
        if let Some(data) = flying.data {
            self.secondary_arena.release(data.buffer);
        }
        let result = reply.result.map_or_else(Errno::name, |_| "done");
        self.coverage.count("secondary's guest", stage, result);
        true
    }

    fn twin_failed(&mut self, flying: &Flying, errno: Errno) {
        let is_full = errno == Errno::NoSpace && !flying.new.is_empty();
        assert!(is_full || flying.was_broken || self.plan.has_faults, "{} for {flying:?}", errno.name());
        if self.secondary.machine().view() == View::Broken || flying.new.is_empty() {
            return;
        }
        let place = range(flying.request.extent);
        let view = self.resolve_view();
        for byte in place.clone() {
            let is_new = self.plan.has_faults && view[byte] == flying.new[byte - place.start];
            assert!(is_new || self.twin.may_be(byte, view[byte]), "byte {byte} of a failed write");
            if is_new {
                self.twin.content[byte] = view[byte];
            }
        }
    }

    /// The view has broken or was mended.
    pub(super) fn note_broken(&mut self) {
        for flying in &mut self.twin.flying {
            flying.was_broken = true;
        }
    }
}

fn take(flying: &mut Vec<Flying>, id: RequestId) -> Flying {
    let place = flying.iter().position(|flying| flying.request.id == id).expect("it is in flight");
    flying.remove(place)
}
