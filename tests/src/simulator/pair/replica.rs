//! The secondary's end of the link: NBD requests of the primary cut into pieces, and their answers.

use twinblock_core::block::{Action, Tag, Transfer};
use twinblock_core::secondary::{Input, Port};
use twinblock_core::{
    ConnectionId, Data, Errno, Event, Extent, Memory, Op, Outcome, Pool, Refused, Reply, Request, RequestId,
    Stage, View,
};

use super::{PRIMARY, Pair};

/// A piece that was taken and not answered.
#[derive(Debug)]
struct Piece {
    id: RequestId,
    tag: Tag,
    connection: ConnectionId,
    data: Option<Data>,
    read_into: Option<Data>,
}

/// A request of which pieces are to be answered.
#[derive(Debug)]
struct Whole {
    tag: Tag,
    pieces: usize,
    is_sent: bool,
    failure: Option<Errno>,
}

/// What the secondary's server knows.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) connection: Option<ConnectionId>,
    pieces: Vec<Piece>,
    wholes: Vec<Whole>,
    /// How far the request at the front of the link has been taken.
    cursor: Option<u64>,
}

impl Pair<'_> {
    /// The primary connects anew.
    pub(super) fn connect(&mut self) {
        let connection = ConnectionId(self.name() + 1000);
        let opened = Input::Opened { connection, port: Port::Replication, identity: Some(PRIMARY) };
        if self.secondary.offer(self.now, opened).is_err() {
            return;
        }
        self.trace(|_| format!("connect {connection:?}"));
        self.remote.connection = Some(connection);
        let geometry = twinblock_core::block::BlockDevice::<super::Arena>::geometry(self.secondary_disk());
        self.link_mut().connect();
        let connected = twinblock_core::primary::Input::Connected(0, geometry);
        self.primary.offer(self.now, connected).expect("it is attached");
        self.drain();
    }

    /// The connection is gone. The primary sees it now, or is dead.
    pub(super) fn cut(&mut self) {
        let Some(connection) = self.remote.connection.take() else { return };
        self.trace(|_| format!("cut {connection:?}"));
        self.link_mut().cut();
        self.remote.wholes.clear();
        self.remote.cursor = None;
        self.secondary.offer(self.now, Input::Closed { connection, is_clean: false }).expect("it was open");
        if !self.is_dead {
            let down = twinblock_core::primary::Input::Disconnected(0);
            self.primary.offer(self.now, down).expect("it is attached");
        }
        self.coverage.count("cut", self.secondary.machine().stage(), "");
        self.drain();
    }

    pub(super) fn told_to_close(&mut self, connection: ConnectionId) {
        panic!("{connection:?} is closed before another one is opened");
    }

    /// The next piece of the next request on the link reaches the secondary. Whether it was taken.
    pub(super) fn deliver(&mut self) -> bool {
        let (Some(connection), Some(transfer)) = (self.remote.connection, self.link().arriving()) else {
            return false;
        };
        let window = u64::from(self.secondary.machine().config().window_bytes);
        let whole = transfer.extent;
        let at = self.remote.cursor.unwrap_or(whole.offset);
        let end = ((at / window + 1) * window).min(whole.end());
        let extent = Extent::between(at, end);
        let Some((op, data)) = self.op_of(&transfer, extent) else { return false };
        let (is_first, is_last) = (at == whole.offset, end == whole.end());
        let request = Request { id: RequestId(self.name()), op, extent, is_first, is_last };
        let result = self.secondary.offer(self.now, Input::Request(connection, request));
        self.trace(|_| format!("deliver {request:?}: {result:?}"));
        if result.is_err() {
            assert_eq!(result, Err(Refused::Busy));
            if let Some(data) = data {
                self.secondary_arena.release(data.buffer);
            }
            return false;
        }
        if is_first {
            self.remote.wholes.push(Whole { tag: transfer.tag, pieces: 0, is_sent: false, failure: None });
        }
        let of_it = self.remote.wholes.iter_mut().rev().find(|of| of.tag == transfer.tag && !of.is_sent);
        let of_it = of_it.expect("its first piece was taken");
        of_it.pieces += 1;
        of_it.is_sent = is_last;
        let read_into = match transfer.action {
            Action::Read(into) => Some(into.part((at - whole.offset) as u32, extent.length as u32)),
            _ => None,
        };
        self.remote.pieces.push(Piece { id: request.id, tag: transfer.tag, connection, data, read_into });
        if is_last {
            self.link_mut().taken();
        }
        self.remote.cursor = (!is_last).then_some(end);
        self.drain();
        true
    }

    fn op_of(&mut self, transfer: &Transfer, extent: Extent) -> Option<(Op, Option<Data>)> {
        let length = extent.length as u32;
        let skip = (extent.offset - transfer.extent.offset) as u32;
        Some(match transfer.action {
            Action::Read(_) => {
                let data = Data { buffer: self.secondary_arena.acquire(length)?, offset: 0, length };
                (Op::Read(data), Some(data))
            }
            Action::Write { data: from, fua } => {
                let bytes = self.primary_arena.copy(from.part(skip, length));
                let data = Data { buffer: self.secondary_arena.acquire(length)?, offset: 0, length };
                self.secondary_arena.bytes(data)?.copy_from_slice(&bytes);
                (Op::Write { data, fua }, Some(data))
            }
            Action::WriteZeroes { may_unmap, fast, fua } => (Op::WriteZeroes { may_unmap, fast, fua }, None),
            Action::Flush => (Op::Flush, None),
            Action::Status => (Op::Status, None),
        })
    }

    pub(super) fn secondary_replied(&mut self, reply: &Reply) {
        if self.twin_answered(reply) {
            return;
        }
        let place =
            self.remote.pieces.iter().position(|piece| piece.id == reply.id).expect("it is in flight");
        let piece = self.remote.pieces.swap_remove(place);
        let is_lost = self.is_dead || self.remote.connection != Some(piece.connection);
        if let (Some(from), Some(into), false) = (piece.data, piece.read_into, is_lost) {
            let bytes = self.secondary_arena.copy(from);
            self.primary_arena.bytes(into).expect("it is in flight").copy_from_slice(&bytes);
        }
        if let Some(data) = piece.data {
            self.secondary_arena.release(data.buffer);
        }
        let stage = self.secondary.machine().stage();
        self.coverage.count("forwarded", stage, reply.result.map_or_else(Errno::name, |_| "done"));
        if is_lost {
            return;
        }
        let Some(place) = self.remote.wholes.iter().position(|of| of.tag == piece.tag) else { return };
        let of_it = &mut self.remote.wholes[place];
        of_it.pieces -= 1;
        of_it.failure = of_it.failure.or(reply.result.err());
        if of_it.pieces == 0 && of_it.is_sent {
            let result = of_it.failure.map_or(reply.result, Err);
            let result = result.map(|outcome| match piece.read_into {
                Some(_) => Outcome::Done,
                None => outcome,
            });
            self.remote.wholes.swap_remove(place);
            self.link_mut().answer(piece.tag, result);
        }
    }

    pub(super) fn secondary_event(&mut self, event: Event) {
        match event {
            Event::View(View::Broken) => self.note_broken(),
            Event::BufferFull if self.rng.bool() => self.control.wants_room = true,
            Event::Stage(Stage::Done) if !self.control.is_failing_over => {
                self.check_stopped();
                self.twin.content = self.secondary_disk().bytes().to_vec();
            }
            _ => {}
        }
    }
}
