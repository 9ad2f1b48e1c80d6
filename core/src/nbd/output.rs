//! What is to be sent: headers in a ring of bytes, payloads as names of buffers, in one order.

use crate::Data;

/// Zeroes that a payload of zeroes is sent from.
static ZEROES: [u8; 4096] = [0; 4096];

/// Some bytes to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// These.
    Bytes(&'a [u8]),
    /// Those of a buffer.
    Pool(Data),
}

impl Segment<'_> {
    /// How many bytes.
    #[must_use]
    pub const fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Pool(data) => data.length as usize,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The next bytes of the ring.
    Ring,
    Zeroes,
    /// A buffer, and the slot that wants to hear when it was sent.
    Data(Data, u16),
}

/// Room for one entry of the output queue: a run of header bytes or one payload.
#[derive(Clone, Copy, Debug)]
pub struct OutputEntry {
    kind: Kind,
    length: u32,
}

impl OutputEntry {
    /// What the memory for a session is filled with at first.
    pub const EMPTY: Self = Self { kind: Kind::Ring, length: 0 };
}

/// The queue. Neighbouring headers become one entry, so that many small replies are one run of bytes.
#[derive(Debug)]
pub(super) struct Output<'m> {
    ring: &'m mut [u8],
    ring_start: usize,
    ring_length: usize,
    entries: &'m mut [OutputEntry],
    entry_start: usize,
    entry_count: usize,
    /// How much of the first entry is sent already.
    sent: u32,
}

impl<'m> Output<'m> {
    pub(super) const fn new(ring: &'m mut [u8], entries: &'m mut [OutputEntry]) -> Self {
        Self { ring, ring_start: 0, ring_length: 0, entries, entry_start: 0, entry_count: 0, sent: 0 }
    }

    #[cfg(feature = "nbd-client")]
    pub(super) const fn capacity_bytes(&self) -> usize {
        self.ring.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.entry_count == 0
    }

    /// Whether that many header bytes fit, and as many entries.
    pub(super) const fn has_room(&self, bytes: usize, entries: usize) -> bool {
        self.ring.len() - self.ring_length >= bytes && self.entries.len() - self.entry_count >= entries
    }

    fn entry_index(&self, at: usize) -> usize {
        (self.entry_start + at) % self.entries.len().max(1)
    }

    fn push(&mut self, entry: OutputEntry) {
        debug_assert!(self.entry_count < self.entries.len(), "room was checked");
        let index = self.entry_index(self.entry_count);
        if let Some(place) = self.entries.get_mut(index) {
            *place = entry;
            self.entry_count += 1;
        }
    }

    /// Queues header bytes; the caller has made sure of room for them and one entry.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        debug_assert!(self.has_room(bytes.len(), 0), "room was checked");
        let end = (self.ring_start + self.ring_length) % self.ring.len().max(1);
        let (before_wrap, after_wrap) = bytes.split_at(bytes.len().min(self.ring.len() - end));
        if let Some(place) = self.ring.get_mut(end..end + before_wrap.len()) {
            place.copy_from_slice(before_wrap);
        }
        if let Some(place) = self.ring.get_mut(..after_wrap.len()) {
            place.copy_from_slice(after_wrap);
        }
        self.ring_length += bytes.len();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let last = self.entry_index(self.entry_count.saturating_sub(1));
        match self.entries.get_mut(last) {
            Some(OutputEntry { kind: Kind::Ring, length: run }) if self.entry_count != 0 => *run += length,
            _ => self.push(OutputEntry { kind: Kind::Ring, length }),
        }
    }

    /// Queues zeroes; the caller has made sure of one entry.
    pub(super) fn push_zeroes(&mut self, length: u32) {
        self.push(OutputEntry { kind: Kind::Zeroes, length });
    }

    /// Queues a payload; the caller has made sure of one entry.
    pub(super) fn push_data(&mut self, data: Data, owner: u16) {
        self.push(OutputEntry { kind: Kind::Data(data, owner), length: data.length });
    }

    pub(super) const fn segments(&self) -> Segments<'_> {
        Segments {
            ring: self.ring,
            ring_at: self.ring_start,
            entries: self.entries,
            entry_at: self.entry_start,
            left: self.entry_count,
            skip: self.sent,
        }
    }

    /// Takes `count` bytes off the front; hears of each payload that is sent whole.
    pub(super) fn sent(&mut self, count: usize, mut finished: impl FnMut(Data, u16)) {
        let mut count = u32::try_from(count).unwrap_or(u32::MAX);
        while self.entry_count != 0 {
            let Some(entry) = self.entries.get(self.entry_start).copied() else { return };
            let now = count.min(entry.length.saturating_sub(self.sent));
            count -= now;
            self.sent += now;
            if matches!(entry.kind, Kind::Ring) {
                self.ring_start = (self.ring_start + now as usize) % self.ring.len().max(1);
                self.ring_length = self.ring_length.saturating_sub(now as usize);
            }
            if self.sent < entry.length {
                return;
            }
            self.sent = 0;
            self.entry_start = self.entry_index(1);
            self.entry_count -= 1;
            if let Kind::Data(data, owner) = entry.kind {
                finished(data, owner);
            }
        }
    }

    /// Drops everything; hears of each payload.
    pub(super) fn clear(&mut self, mut finished: impl FnMut(Data, u16)) {
        for at in 0..self.entry_count {
            if let Some(OutputEntry { kind: Kind::Data(data, owner), .. }) =
                self.entries.get(self.entry_index(at))
            {
                finished(*data, *owner);
            }
        }
        (self.ring_start, self.ring_length) = (0, 0);
        (self.entry_start, self.entry_count, self.sent) = (0, 0, 0);
    }
}

/// The bytes to send, in order; see `segments` of a session. Nothing is taken off before `sent`.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    ring: &'a [u8],
    ring_at: usize,
    entries: &'a [OutputEntry],
    entry_at: usize,
    left: usize,
    skip: u32,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        while self.left != 0 {
            let entry = self.entries.get(self.entry_at)?;
            let rest = entry.length.saturating_sub(self.skip);
            let segment = match entry.kind {
                _ if rest == 0 => None,
                Kind::Data(data, _) => Some(Segment::Pool(data.part(self.skip, rest))),
                Kind::Zeroes => ZEROES.get(..ZEROES.len().min(rest as usize)).map(Segment::Bytes),
                Kind::Ring => {
                    let run = self.ring.get(self.ring_at..)?;
                    run.get(..run.len().min(rest as usize)).map(Segment::Bytes)
                }
            };
            let length = segment.as_ref().map_or(0, Segment::length);
            if matches!(entry.kind, Kind::Ring) {
                self.ring_at = (self.ring_at + length) % self.ring.len().max(1);
            }
            self.skip = self.skip.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
            if self.skip >= entry.length {
                self.skip = 0;
                self.left -= 1;
                self.entry_at = (self.entry_at + 1) % self.entries.len().max(1);
            }
            if segment.is_some() {
                return segment;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
