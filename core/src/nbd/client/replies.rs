//! Replies: nothing in them is believed before it was held against the request.

use super::transfers::{BadPart, Progress};
use super::{ClientError, Session, State, fill};
use crate::nbd::gather::Gather;
use crate::nbd::wire::{
    AllocationFlags, CHUNK_BYTES, CHUNK_MAGIC, ChunkHeader, Fields, SIMPLE_REPLY_BYTES, SimpleReply, chunk,
};
use crate::{Data, Errno, Extent, Memory};

/// Longest chunk that is neither data nor status.
const ERROR_CHUNK_MAX: u32 = 8192;
/// Longest status chunk: 2^20 extents and the number of the context.
const STATUS_CHUNK_MAX: u32 = 4 + (8 << 20);

/// A chunk of a structured reply that is being received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    slot: u16,
    is_done: bool,
    kind: u16,
}

/// The fixed fields at the start of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    chunk: Chunk,
    length: u32,
    gather: Gather<12>,
}

/// Data of a read that is being received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    chunk: Chunk,
    /// What is missing.
    pub(super) data: Data,
}

impl Session<'_> {
    pub(super) fn receive_reply(
        &mut self,
        mut gather: Gather<{ CHUNK_BYTES }>,
        bytes: &mut &[u8],
    ) -> Result<(), ClientError> {
        let is_simple = fill(&mut gather, bytes, SIMPLE_REPLY_BYTES);
        let magic = Fields(gather.so_far()).u32();
        let is_chunk = is_simple && magic == Some(CHUNK_MAGIC);
        if is_chunk {
            fill(&mut gather, bytes, CHUNK_BYTES);
        }
        self.enter(State::Reply(gather));
        if is_chunk {
            return gather.whole().map_or(Ok(()), |header| self.begin_chunk(header));
        }
        let Some(header) = gather.so_far().first_chunk().filter(|_| is_simple) else { return Ok(()) };
        let reply = SimpleReply::decode(header).ok_or(ClientError::BadMagic)?;
        self.take_simple(reply)
    }

    fn take_simple(&mut self, reply: SimpleReply) -> Result<(), ClientError> {
        let is_structured = self.info.is_some_and(|info| info.is_structured);
        let (slot, sent) = self.transfers.sent(reply.cookie).ok_or(ClientError::UnknownCookie)?;
        let (read, is_status, has_chunks) = (sent.read, sent.is_status, sent.failure.is_some());
        if has_chunks {
            return Err(ClientError::WrongReply);
        }
        self.enter(State::Reply(Gather::new()));
        match (reply.error, read) {
            (0, Some(data)) if !is_structured => {
                let chunk = Chunk { slot, is_done: true, kind: chunk::OFFSET_DATA };
                self.add_part(slot, 0, data.length)?;
                self.enter(State::Data(Target { chunk, data }));
            }
            (0, None) if !is_status => self.finish(slot, Progress::Done),
            // A reply without the data that was asked for.
            (0, _) => return Err(ClientError::WrongReply),
            (number, _) => self.finish(slot, Progress::Failed(Errno::from_number(number))),
        }
        Ok(())
    }

    fn begin_chunk(&mut self, header: &[u8; CHUNK_BYTES]) -> Result<(), ClientError> {
        let ChunkHeader { is_done, kind, cookie, length } =
            ChunkHeader::decode(header).ok_or(ClientError::BadMagic)?;
        if !self.info.is_some_and(|info| info.is_structured) {
            return Err(ClientError::WrongReply);
        }
        let (slot, sent) = self.transfers.sent(cookie).ok_or(ClientError::UnknownCookie)?;
        let chunk = Chunk { slot, is_done, kind };
        let asked = u32::try_from(sent.extent.length).unwrap_or(u32::MAX);
        let is_fitting = match kind {
            chunk::NONE => is_done && length == 0,
            chunk::OFFSET_DATA => sent.read.is_some() && length > 8 && length - 8 <= asked,
            chunk::OFFSET_HOLE => sent.read.is_some() && length == 12,
            chunk::BLOCK_STATUS => {
                sent.is_status && length >= 12 && length % 8 == 4 && length <= STATUS_CHUNK_MAX
            }
            chunk::ERROR_OFFSET => (14..=ERROR_CHUNK_MAX).contains(&length),
            kind => kind & chunk::ERROR_BIT != 0 && (6..=ERROR_CHUNK_MAX).contains(&length),
        };
        if !is_fitting {
            return Err(ClientError::WrongReply);
        }
        if kind == chunk::NONE {
            return self.end_chunk(chunk);
        }
        self.enter(State::Head(Head { chunk, length, gather: Gather::new() }));
        Ok(())
    }

    pub(super) fn receive_head<M: Memory + ?Sized>(
        &mut self,
        mut head: Head,
        bytes: &mut &[u8],
        memory: &mut M,
    ) -> Result<(), ClientError> {
        let chunk = head.chunk;
        let head_length = match chunk.kind {
            chunk::OFFSET_DATA => 8,
            chunk::OFFSET_HOLE | chunk::BLOCK_STATUS => 12,
            _ => 6,
        };
        let is_whole = fill(&mut head.gather, bytes, head_length as usize);
        self.enter(State::Head(head));
        if !is_whole {
            return Ok(());
        }
        let mut fields = Fields(head.gather.so_far());
        let left = head.length.saturating_sub(head_length);
        match chunk.kind {
            chunk::OFFSET_DATA => {
                let data = self.place(chunk.slot, fields.u64().unwrap_or_default(), left)?;
                self.enter(State::Data(Target { chunk, data }));
                return Ok(());
            }
            chunk::OFFSET_HOLE => {
                let (offset, length) = (fields.u64().unwrap_or_default(), fields.u32().unwrap_or_default());
                let data = self.place(chunk.slot, offset, length)?;
                memory.bytes(data).ok_or(ClientError::UnknownBuffer)?.fill(0);
            }
            chunk::BLOCK_STATUS => {
                let context = fields.u32();
                let (length, flags) = (fields.u32().unwrap_or_default(), fields.u32().unwrap_or_default());
                self.take_status(chunk.slot, context, length, flags)?;
            }
            _ => {
                let (number, text_length) =
                    (fields.u32().unwrap_or_default(), fields.u16().unwrap_or_default());
                let sent = self.transfers.sent_at(chunk.slot).ok_or(ClientError::UnknownCookie)?;
                if number == 0 || u32::from(text_length) > left {
                    return Err(ClientError::WrongReply);
                }
                sent.failure.get_or_insert(Errno::from_number(number));
            }
        }
        if left == 0 {
            return self.end_chunk(chunk);
        }
        self.enter(State::Skip { chunk, left });
        Ok(())
    }

    /// Where a part of a read goes that the server says is at `offset`.
    fn place(&mut self, slot: u16, offset: u64, length: u32) -> Result<Data, ClientError> {
        let sent = self.transfers.sent_at(slot).ok_or(ClientError::UnknownCookie)?;
        let part = Extent::new(offset, u64::from(length)).filter(|part| sent.extent.contains(part));
        let (Some(data), Some(part)) = (sent.read, part) else { return Err(ClientError::OutOfRange) };
        let from = u32::try_from(part.offset - sent.extent.offset).map_err(|_| ClientError::OutOfRange)?;
        if length == 0 {
            return Err(ClientError::WrongReply);
        }
        self.add_part(slot, from, length)?;
        Ok(data.part(from, length))
    }

    fn add_part(&mut self, slot: u16, from: u32, length: u32) -> Result<(), ClientError> {
        let sent = self.transfers.sent_at(slot).ok_or(ClientError::UnknownCookie)?;
        sent.parts.add(from, from.saturating_add(length)).map_err(|bad| match bad {
            BadPart::Overlaps => ClientError::Overlap,
            BadPart::TooMany => ClientError::Scattered,
        })
    }

    /// The first extent of a status; those after it are not needed.
    fn take_status(
        &mut self,
        slot: u16,
        context: Option<u32>,
        length: u32,
        flags: u32,
    ) -> Result<(), ClientError> {
        let is_allocation = context.is_some() && context == self.allocation_id;
        let sent = self.transfers.sent_at(slot).ok_or(ClientError::UnknownCookie)?;
        if length == 0 {
            return Err(ClientError::WrongReply);
        }
        if is_allocation && sent.status.is_none() {
            let flags = AllocationFlags::from_bits_truncate(flags);
            let is_hole = flags.contains(AllocationFlags::HOLE | AllocationFlags::ZERO);
            *sent.status = Some((is_hole, u64::from(length).min(sent.extent.length)));
        }
        Ok(())
    }

    pub(super) fn receive_data<M: Memory + ?Sized>(
        &mut self,
        target: Target,
        bytes: &mut &[u8],
        memory: &mut M,
    ) -> Result<(), ClientError> {
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(target.data.length);
        let Some((from, rest)) = bytes.split_at_checked(count as usize).filter(|_| count != 0) else {
            return Ok(());
        };
        let place = memory.bytes(target.data.part(0, count)).filter(|place| place.len() == from.len());
        place.ok_or(ClientError::UnknownBuffer)?.copy_from_slice(from);
        *bytes = rest;
        self.advance(target, count)
    }

    /// So much more of the data is in its place.
    pub(super) fn advance(&mut self, target: Target, count: u32) -> Result<(), ClientError> {
        let Target { chunk, data } = target;
        let count = count.min(data.length);
        if count == data.length {
            return self.end_chunk(chunk);
        }
        self.enter(State::Data(Target { chunk, data: data.part(count, data.length - count) }));
        Ok(())
    }

    /// A chunk is there; if it was the last, so is the reply.
    pub(super) fn end_chunk(&mut self, chunk: Chunk) -> Result<(), ClientError> {
        self.enter(State::Reply(Gather::new()));
        if !chunk.is_done {
            return Ok(());
        }
        let sent = self.transfers.sent_at(chunk.slot).ok_or(ClientError::UnknownCookie)?;
        let asked = u32::try_from(sent.extent.length).unwrap_or(u32::MAX);
        let progress = match (*sent.failure, *sent.status) {
            (Some(errno), _) => Progress::Failed(errno),
            (None, Some((is_hole, length))) => Progress::Status { is_hole, length },
            (None, None) if sent.is_status => return Err(ClientError::WrongReply),
            (None, None) if sent.read.is_some() && !sent.parts.is_whole(asked) => {
                return Err(ClientError::Incomplete);
            }
            (None, None) => Progress::Done,
        };
        self.finish(chunk.slot, progress);
        Ok(())
    }
}
