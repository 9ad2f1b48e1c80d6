//! Requests in pieces: none is longer than a window or crosses a multiple of one.

use core::fmt::Write as _;

use heapless::Deque;
use twinblock_core::{Data, Extent, Micros, Op, Request, RequestId};
use twinblock_riscv_virt::console::Console;

use super::is_busy;
use crate::settings::{WINDOW, WINDOWS};
use crate::volume::Volume;

/// Pieces that are with the machine, or on their way there: one for each window, and a flush.
const PIECES: usize = WINDOWS + 1;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Of the record with this number.
    Append(u64),
    /// To be put at this place of what is being read.
    Read(usize),
    Flush,
}

/// A piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) purpose: Purpose,
    /// Where its bytes are; none for a flush.
    pub(super) data: Data,
}

/// All pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    known: [Option<Piece>; PIECES],
    /// To be offered to the machine, in this order: the pieces of one modification follow each other.
    waiting: Deque<Request, PIECES>,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { known: [None; PIECES], waiting: Deque::new() }
    }
}

/// The part of a request from `position` on that is one piece.
const fn step(position: u64, left: usize) -> usize {
    let until = WINDOW - (position % WINDOW as u64) as usize;
    if left < until { left } else { until }
}

impl Pieces {
    /// Writes `content` at `position`: how many pieces that takes. `None` if there are no windows for them now.
    pub(super) fn write(
        &mut self,
        purpose: Purpose,
        position: u64,
        content: &[u8],
        volume: &mut Volume,
    ) -> Option<u8> {
        self.begin(position, content.len(), volume, |volume, data, from| {
            if let (Some(place), Some(bytes)) =
                (volume.bytes(data), content.get(from..from + data.length as usize))
            {
                place.copy_from_slice(bytes);
            }
            (purpose, Op::Write { data, fua: false })
        })
    }

    /// Reads `bytes` from `position` on: how many pieces that takes. `None` if there are no windows for them now.
    pub(super) fn read(&mut self, position: u64, bytes: usize, volume: &mut Volume) -> Option<u8> {
        self.begin(position, bytes, volume, |_, data, from| (Purpose::Read(from), Op::Read(data)))
    }

    /// Flushes; `false` if there is no place for it now.
    pub(super) fn flush(&mut self) -> bool {
        let Some(place) = self.known.iter().position(Option::is_none) else { return false };
        self.known[place] = Some(Piece { purpose: Purpose::Flush, data: Data::default() });
        let request = Request::whole(RequestId(place as u32), Op::Flush, Extent { offset: 0, length: 0 });
        self.waiting.push_back(request).is_ok()
    }

    fn begin(
        &mut self,
        position: u64,
        bytes: usize,
        volume: &mut Volume,
        mut make: impl FnMut(&mut Volume, Data, usize) -> (Purpose, Op),
    ) -> Option<u8> {
        let first = (position / WINDOW as u64, (position + bytes as u64 - 1) / WINDOW as u64);
        let count = (first.1 - first.0 + 1) as usize;
        let free = self.known.iter().filter(|place| place.is_none()).count();
        if volume.free_windows() < count || free < count {
            return None;
        }
        let mut from = 0;
        while from < bytes {
            let offset = position + from as u64;
            let length = step(offset, bytes - from);
            let data = volume.acquire(length as u32)?;
            let (purpose, op) = make(volume, data, from);
            let place = self.known.iter().position(Option::is_none)?;
            self.known[place] = Some(Piece { purpose, data });
            let request = Request {
                id: RequestId(place as u32),
                op,
                extent: Extent { offset, length: length as u64 },
                is_first: from == 0,
                is_last: from + length == bytes,
            };
            let _ = self.waiting.push_back(request);
            from += length;
        }
        u8::try_from(count).ok()
    }

    /// Offers what waits to the machine, as far as it has places. Whether it took any.
    pub(super) fn offer(&mut self, now: Micros, volume: &mut Volume) -> bool {
        let mut has_worked = false;
        while let Some(request) = self.waiting.front().copied() {
            match volume.request(now, request) {
                Err(refused) if is_busy(refused) => break,
                Err(refused) => {
                    let _ = writeln!(Console::open(), "store: refused: {refused:?}");
                }
                Ok(()) => {}
            }
            self.waiting.pop_front();
            has_worked = true;
        }
        has_worked
    }

    /// The piece that was answered.
    pub(super) fn take(&mut self, id: RequestId) -> Option<Piece> {
        self.known.get_mut(id.0 as usize)?.take()
    }
}
