//! Requests of clients, for both machines.

use arbitrary::{Arbitrary, Result, Unstructured};
use twinblock_core::{ConnectionId, Data, Extent, Memory, Op, Outcome, Pool, Reply, Request, RequestId};

use crate::buffers::Buffers;
use crate::script::{below, one_of, rarely};

/// A request that a script asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) connection: u8,
    pub(crate) kind: u8,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// More pieces of it follow.
    pub(crate) goes_on: bool,
    /// Its data is shorter than its extent.
    pub(crate) is_short: bool,
    pub(crate) fill: u8,
}

impl<'a> Arbitrary<'a> for Wanted {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let unit = one_of(bytes, &[512, 512, 512, 100])?;
        let (mut offset, mut length) =
            (unit * u64::from(below(bytes, 8)?), unit * u64::from(1 + below(bytes, 6)?));
        let wild = u8::arbitrary(bytes)?;
        match wild {
            0 => offset = u64::arbitrary(bytes)?,
            1 => length = u64::arbitrary(bytes)?,
            2 => length = 0,
            _ => {}
        }
        Ok(Self {
            connection: below(bytes, 4)? as u8,
            kind: u8::arbitrary(bytes)?,
            offset,
            length,
            goes_on: wild & 0x70 == 0x70,
            is_short: wild == 3,
            fill: u8::arbitrary(bytes)?,
        })
    }
}

/// A connection as its client sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link<T> {
    pub(crate) id: ConnectionId,
    pub(crate) about: T,
    /// Modifications begun.
    pub(crate) modifications: u64,
    /// The last piece of a modification is still to come.
    pub(crate) is_unfinished: bool,
}

/// A request that was taken and not answered.
#[derive(Clone, Debug)]
pub(crate) struct Flying<T> {
    pub(crate) request: Request,
    pub(crate) about: T,
    pub(crate) data: Option<Data>,
    /// What a modification writes.
    pub(crate) new: Vec<u8>,
    /// Nothing happened that makes more than one answer right.
    pub(crate) is_certain: bool,
}

impl<T> Flying<T> {
    pub(crate) fn is_change(&self) -> bool {
        self.request.op.is_modification()
    }

    /// Whether a byte may be as this leaves it, or not yet.
    pub(crate) fn touches(&self, byte: u64) -> bool {
        self.is_change() && self.request.extent.contains(&Extent { offset: byte, length: 1 })
    }

    /// A reply says no more than was asked.
    pub(crate) fn check_reply(&self, reply: &Reply) {
        match (self.request.op, reply.result) {
            (Op::Status, Ok(Outcome::Status { length, .. })) => {
                assert!(
                    (1..=self.request.extent.length).contains(&length),
                    "{reply:?} to {:?}",
                    self.request
                );
            }
            (Op::Status, Ok(Outcome::Done)) | (_, Ok(Outcome::Status { .. })) => {
                panic!("{reply:?} to {:?}", self.request);
            }
            _ => {}
        }
    }
}

/// Makes the request that is wanted, with a buffer; `None` if there is no buffer.
pub(crate) fn request(
    wanted: &Wanted,
    name: u32,
    (size, window): (u64, u64),
    is_unfinished: bool,
    memory: &mut Buffers,
) -> Option<(Request, Option<Data>, Vec<u8>)> {
    let Wanted { kind, offset, mut length, .. } = *wanted;
    // Most are cut so that they fit.
    if offset < size && length != 0 && length < 4 * window {
        length = length.min(size - offset).min(window - offset % window);
    }
    let data_length = if wanted.is_short { length / 2 } else { length };
    let (fua, may_unmap, fast) = (kind & 0x80 != 0, kind & 0x40 != 0, kind & 0x20 != 0);
    let mut data = None;
    let mut new = Vec::new();
    let mut extent = Extent { offset, length };
    let op = match kind % 8 {
        kind @ 0..=4 => {
            let length = u32::try_from(data_length).ok().filter(|length| u64::from(*length) <= window)?;
            let place = Data { buffer: memory.acquire(length)?, offset: 0, length };
            data = Some(place);
            if kind < 2 {
                Op::Read(place)
            } else {
                let bytes = memory.bytes(place)?;
                bytes.fill(wanted.fill);
                new = bytes.to_vec();
                Op::Write { data: place, fua }
            }
        }
        5 => {
            new = vec![0; usize::try_from(length).unwrap_or_default().min(1 << 16)];
            Op::WriteZeroes { may_unmap, fast, fua }
        }
        6 if !wanted.is_short => {
            extent = Extent::default();
            Op::Flush
        }
        6 => Op::Flush,
        _ => Op::Status,
    };
    let is_change = op.is_modification();
    let is_first = !(is_change && is_unfinished);
    let is_last = !(is_change && wanted.goes_on);
    Some((Request { id: RequestId(name), op, extent, is_first, is_last }, data, new))
}

/// Whether a machine may take it: one piece, aligned, within the disk, with as much data.
pub(crate) fn is_sound(request: &Request, size: u64, block: u64, window: u64) -> bool {
    let Extent { offset, length } = request.extent;
    let Some(end) = offset.checked_add(length) else { return false };
    let is_piece = length != 0 && length <= window && offset / window == (end - 1) / window;
    let is_fitting = match request.op {
        Op::Read(data) | Op::Write { data, .. } => is_piece && u64::from(data.length) == length,
        Op::WriteZeroes { .. } => is_piece,
        Op::Flush => length == 0,
        Op::Status => length != 0,
    };
    is_fitting && end <= size && offset % block == 0 && length % block == 0
}

/// Once in a while, of all.
pub(crate) fn connection(bytes: &mut Unstructured<'_>) -> Result<u8> {
    if rarely(bytes, 64)? { Ok(9) } else { Ok(below(bytes, 4)? as u8) }
}
