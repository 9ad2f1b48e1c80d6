//! Clients of a machine: what they have asked, cut into pieces, and what is in flight.

use std::collections::VecDeque;
use std::ops::Range;
use twinblock_core::{
    BufferIndex, ConnectionId, Data, Extent, Memory, Op, Pool, Refused, Reply, Request, RequestId,
};

use crate::simulator::arena::Arena;
use crate::simulator::disk::range;

/// Stands for data that is assigned when a piece is offered.
pub(super) const NO_DATA: Data = Data { buffer: BufferIndex(0), offset: 0, length: 0 };

/// A piece of a request that was not taken yet.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) op: Op,
    pub(super) extent: Extent,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
    pub(super) new: Vec<u8>,
    /// Which request it is a part of.
    pub(super) group: u64,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: ConnectionId,
    pub(super) outbox: VecDeque<Piece>,
    /// It is the primary's.
    pub(super) is_replication: bool,
    /// It will be closed.
    pub(super) is_ending: bool,
}

/// A piece that a machine has taken and not answered.
#[derive(Clone, Debug)]
pub(super) struct Flying {
    pub(super) request: Request,
    pub(super) connection: ConnectionId,
    pub(super) is_replication: bool,
    /// What a modification writes.
    pub(super) new: Vec<u8>,
    pub(super) group: u64,
    /// At which step it was taken.
    pub(super) taken_at: u64,
    data: Option<Data>,
}

impl Flying {
    pub(super) fn range(&self) -> Range<usize> {
        range(self.request.extent)
    }

    pub(super) fn is_modification(&self) -> bool {
        self.request.op.is_modification()
    }

    /// Whether it may have made a byte what it is.
    pub(super) fn explains(&self, at: usize, byte: u8) -> bool {
        let range = self.range();
        self.is_modification() && range.contains(&at) && self.new[at - range.start] == byte
    }
}

/// All clients of one machine.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) arena: Arena,
    window: u64,
    pub(super) open: Vec<Client>,
    pub(super) flying: Vec<Flying>,
    names_used: u32,
}

impl Clients {
    pub(super) fn new(scratch: u16, places: u16, window: u32) -> Self {
        Self {
            arena: Arena::new(scratch, places, window as usize),
            window: window.into(),
            open: Vec::new(),
            flying: Vec::new(),
            names_used: 0,
        }
    }

    /// A name that was never used.
    pub(super) fn name(&mut self) -> u32 {
        self.names_used += 1;
        self.names_used
    }

    pub(super) fn find(&self, connection: ConnectionId) -> Option<usize> {
        self.open.iter().position(|client| client.connection == connection)
    }

    pub(super) fn opened(&mut self, connection: ConnectionId, is_replication: bool) {
        let outbox = VecDeque::new();
        self.open.push(Client { connection, outbox, is_replication, is_ending: false });
    }

    /// A client asks for something; returns how many pieces that are.
    pub(super) fn ask(&mut self, client: usize, group: u64, op: Op, extent: Extent, new: &[u8]) -> u32 {
        let outbox = &mut self.open[client].outbox;
        let is_cut = !matches!(op, Op::Flush | Op::Status);
        let (mut at, mut count) = (extent.offset, 0);
        loop {
            let end =
                if is_cut { ((at / self.window + 1) * self.window).min(extent.end()) } else { extent.end() };
            let is_last = end >= extent.end();
            let part = (at - extent.offset) as usize..(end - extent.offset) as usize;
            let new = new.get(part).map(<[u8]>::to_vec).unwrap_or_default();
            let is_first = at == extent.offset;
            outbox.push_back(Piece { op, extent: Extent::between(at, end), is_first, is_last, new, group });
            count += 1;
            at = end;
            if is_last {
                return count;
            }
        }
    }

    /// Offers the next piece of a client. A piece that is refused as busy stays.
    pub(super) fn offer(
        &mut self,
        client: usize,
        step: u64,
        offer: impl FnOnce(ConnectionId, Request) -> Result<(), Refused>,
    ) -> Option<Result<Request, Refused>> {
        let Client { connection, is_replication, .. } = self.open[client];
        let piece = self.open[client].outbox.front()?.clone();
        let mut data = None;
        let length = piece.extent.length as u32;
        let op = match piece.op {
            Op::Read(_) | Op::Write { .. } => {
                let Some(buffer) = self.arena.acquire(length) else { return Some(Err(Refused::Busy)) };
                let place = Data { buffer, offset: 0, length };
                data = Some(place);
                match piece.op {
                    Op::Write { fua, .. } => {
                        self.arena.bytes(place).expect("it fits").copy_from_slice(&piece.new);
                        Op::Write { data: place, fua }
                    }
                    _ => Op::Read(place),
                }
            }
            other => other,
        };
        let id = RequestId(self.name());
        let request =
            Request { id, op, extent: piece.extent, is_first: piece.is_first, is_last: piece.is_last };
        if let Err(refused) = offer(connection, request) {
            if let Some(data) = data {
                self.arena.release(data.buffer);
            }
            return Some(Err(refused));
        }
        self.open[client].outbox.pop_front();
        let Piece { new, group, .. } = piece;
        self.flying.push(Flying { request, connection, is_replication, new, group, taken_at: step, data });
        Some(Ok(request))
    }

    /// A piece was answered: gives it back, with what a read has brought.
    pub(super) fn answered(&mut self, reply: &Reply) -> (Flying, Vec<u8>) {
        let place = self.flying.iter().position(|flying| flying.request.id == reply.id);
        let Some(place) = place else { panic!("{reply:?} answers nothing that is in flight") };
        let flying = self.flying.remove(place);
        let mut read = Vec::new();
        if let Some(data) = flying.data {
            read = self.arena.copy(data);
            self.arena.release(data.buffer);
        }
        (flying, read)
    }

    /// Whether a piece of one of the ports that is in flight may have made a byte what it is.
    pub(super) fn explain(&self, is_replication: bool, at: usize, byte: u8) -> bool {
        let mut flying = self.flying.iter();
        flying.any(|flying| flying.is_replication == is_replication && flying.explains(at, byte))
    }

    /// Whether nothing of a connection is unanswered.
    pub(super) fn is_idle_of(&self, connection: ConnectionId) -> bool {
        let open = self.find(connection).map(|client| &self.open[client]);
        open.is_none_or(|client| client.outbox.is_empty())
            && self.flying.iter().all(|flying| flying.connection != connection)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.open.iter().all(|client| client.outbox.is_empty())
    }
}
