//! Clients: they open, ask, and go.

use std::collections::VecDeque;
use twinblock_core::secondary::{Input, Port};
use twinblock_core::{BufferIndex, ConnectionId, Data, Extent, Identity, Op, Refused, Stage};

use super::super::settings::pick;
use super::{Group, World};

/// A piece of a request that was not taken yet.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) op: Op,
    pub(super) extent: Extent,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
    pub(super) group: u64,
}

/// A connection from outside.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: ConnectionId,
    pub(super) port: Port,
    pub(super) identity: Option<Identity>,
    pub(super) outbox: VecDeque<Piece>,
    /// Modifications of which the first piece was taken.
    pub(super) modifications: u64,
    pub(super) is_told_to_close: bool,
    /// It may have got the claim.
    pub(super) has_modified: bool,
}

/// Where the bytes of no request are: stands for data that is assigned when a piece is offered.
const NO_DATA: Data = Data { buffer: BufferIndex(0), offset: 0, length: 0 };

impl World<'_> {
    /// A client connects.
    pub(super) fn open(&mut self) {
        let connection = ConnectionId(self.name());
        let port = if self.rng.bool() { Port::Guest } else { Port::Replication };
        let who = self.rng.u8(..3);
        let identity = (who != 0 && port == Port::Replication).then_some(Identity([who; 16]));
        self.meet(if port == Port::Guest { "guest connects" } else { "primary connects" });
        let result = self.driver.offer(self.now, Input::Opened { connection, port, identity });
        self.trace(|_| format!("open {connection:?} {port:?} {who}: {result:?}"));
        if self.clients.len() < self.settings.connections {
            assert_eq!(result, Ok(()));
            self.clients.push(Client {
                connection,
                port,
                identity,
                outbox: VecDeque::new(),
                modifications: 0,
                is_told_to_close: false,
                has_modified: false,
            });
        } else {
            assert_eq!(result, Err(Refused::NoRoom));
        }
        self.drain();
    }

    /// Whether everything that a client has asked is answered.
    pub(super) fn may_leave(&self, client: usize) -> bool {
        let Client { connection, outbox, .. } = &self.clients[client];
        outbox.is_empty() && self.flying.iter().all(|flying| flying.connection != *connection)
    }

    /// A client goes: cleanly only with nothing unanswered.
    pub(super) fn close(&mut self, client: usize) {
        let is_clean = self.may_leave(client) && (self.settings.is_calm || self.rng.bool());
        let client = self.clients.swap_remove(client);
        let connection = client.connection;
        self.trace(|_| format!("close {connection:?} clean={is_clean}"));
        // What it has not sent will never come: nobody can wait for the whole of such a request.
        for piece in &client.outbox {
            self.groups.remove(&piece.group);
        }
        for flying in &mut self.flying {
            if flying.connection == connection {
                flying.is_parting = true;
                self.groups.remove(&flying.group);
            }
        }
        if self.model.stage == Stage::Running && client.port == Port::Replication {
            self.model.prepared = None;
            if !is_clean {
                self.model.is_in_doubt |= self.model.owner == Some(connection);
                self.model.may_be_in_doubt |= client.has_modified;
            }
        }
        self.meet(if is_clean { "clean close" } else { "unclean close" });
        self.was_cut |= client.port == Port::Replication && !is_clean;
        self.driver.offer(self.now, Input::Closed { connection, is_clean }).expect("it was open");
        self.coverage.count("close", self.model.stage, if is_clean { "clean" } else { "unclean" });
        self.drain();
    }

    pub(super) fn told_to_close(&mut self, connection: ConnectionId) {
        let Some(told) = self.clients.iter().position(|client| client.connection == connection) else {
            panic!("{connection:?} is not open")
        };
        let identity = self.clients[told].identity;
        let is_successor =
            |client: &super::Client| client.connection != connection && client.identity == identity;
        assert!(identity.is_some() && self.clients.iter().any(is_successor), "nobody takes its place");
        self.clients[told].is_told_to_close = true;
        for flying in &mut self.flying {
            flying.is_parting |= flying.connection == connection;
        }
        self.coverage.count("takeover", self.model.stage, "");
    }

    /// A client thinks of a request and cuts it into pieces.
    pub(super) fn ask(&mut self, client: usize) {
        let op = self.any_op(self.clients[client].port);
        let whole = match op {
            Op::Flush => Extent::default(),
            _ => self.any_extent(),
        };
        let group = u64::from(self.name());
        let window = u64::from(self.settings.config.window_bytes);
        let is_cut = !matches!(op, Op::Flush | Op::Status);
        let mut pieces = Vec::new();
        let mut at = whole.offset;
        loop {
            let end = if is_cut { ((at / window + 1) * window).min(whole.end()) } else { whole.end() };
            let is_last = end >= whole.end();
            let extent = Extent::between(at, end);
            pieces.push(Piece { op, extent, is_first: at == whole.offset, is_last, group });
            at = end;
            if is_last {
                break;
            }
        }
        let is_whole = op.is_modification() && self.clients[client].port == Port::Replication;
        let known = Group { pieces: pieces.len() as u32, answered: 0, is_modification: is_whole };
        self.groups.insert(group, known);
        let client = &mut self.clients[client];
        client.has_modified |= op.is_modification();
        client.outbox.extend(pieces);
    }

    fn any_op(&mut self, port: Port) -> Op {
        let (read, write) = if port == Port::Guest { (35, 75) } else { (15, 70) };
        let fua = self.rng.u8(..6) == 0;
        match self.rng.u8(..100) {
            roll if roll < read => Op::Read(NO_DATA),
            roll if roll < write => Op::Write { data: NO_DATA, fua },
            roll if roll < 88 => {
                Op::WriteZeroes { may_unmap: self.rng.bool(), fast: self.rng.u8(..4) == 0, fua }
            }
            roll if roll < 95 => Op::Flush,
            _ => Op::Status,
        }
    }

    /// A range of blocks, mostly short, seldom several windows, often in the region that all aim at.
    fn any_extent(&mut self) -> Extent {
        let size = self.settings.disk.size_bytes;
        let block = u64::from(self.settings.disk.block_bytes);
        let granule = u64::from(self.settings.config.granule_bytes);
        let window = u64::from(self.settings.config.window_bytes);
        let rng = &mut self.rng;
        let longest = pick(rng, &[16, granule / 2, granule, granule * 2, window, window * 3]);
        let length = rng.u64(1..=longest);
        let region = if rng.u32(..100) < self.settings.focus_percent { size.min(granule * 3) } else { size };
        let offset = rng.u64(..region);
        let offset = if rng.u8(..3) == 0 { offset / granule * granule } else { offset };
        let length = if rng.u8(..3) == 0 { length.next_multiple_of(granule) } else { length };
        let offset = offset / block * block;
        // Often up to the end of the disk.
        let offset = if rng.u8(..16) == 0 { size.saturating_sub(length) / block * block } else { offset };
        let length = length.next_multiple_of(block).min(size - offset);
        Extent { offset, length }
    }
}
