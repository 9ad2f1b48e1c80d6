//! The workload: records that are appended to the disk, flushed at intervals and then read back.
//!
//! At the start the disk is read from the front until the end of the records is found. Then several records are written at
//! a time, each as one request in pieces. A record is *acknowledged* when it and all before it were answered, *durable* when a
//! flush that began after that has succeeded. One that fails is told and written anew after a pause: nothing of what is
//! replicated, or where, is known here.

mod pieces;

use core::fmt::Write as _;

use heapless::Deque;
use twinblock_core::{Errno, Micros, Refused, Reply};
use twinblock_riscv_virt::console::Console;

use crate::record::{self, BLOCK, Head};
use crate::volume::Volume;
use pieces::{Pieces, Purpose};

pub(crate) use crate::record::RECORD_BYTES_MAX;

/// Records that are written at a time.
const IN_FLIGHT: usize = 8;
/// Records that are acknowledged between two flushes.
const FLUSH_EVERY: u64 = 32;
/// Durable records that may wait to be read back; those beyond are not.
const RECENT: usize = 64;
/// How long before what has failed is tried again.
const PAUSE: Micros = Micros::from_ms(100);

/// A record on its way.
#[derive(Clone, Copy, Debug)]
struct Append {
    sequence: u64,
    position: u64,
    bytes: usize,
    state: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To be written, not before then.
    Wanted(Micros),
    /// So many pieces are not answered, and what the first that failed was answered with.
    Written(u8, Option<Errno>),
    Done,
}

/// What is being read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    purpose: Looking,
    position: u64,
    bytes: usize,
    /// So many pieces are not answered.
    outstanding: u8,
    failure: Option<Errno>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looking {
    /// At the start: is there a header, and a record behind it?
    ForHead,
    ForRecord(u64),
    /// Is this record what it was?
    Back(u64),
}

/// What the store has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) acknowledged: u64,
    pub(crate) durable: u64,
    /// Records that were read back.
    pub(crate) read: u64,
    /// Requests that failed.
    pub(crate) failed: u64,
}

/// The store.
pub(crate) struct Store {
    pieces: Pieces,
    made: &'static mut [u8; RECORD_BYTES_MAX],
    read: &'static mut [u8; RECORD_BYTES_MAX],
    appends: Deque<Append, IN_FLIGHT>,
    recent: Deque<(u64, u64, usize), RECENT>,
    reading: Option<Reading>,
    /// The end of the records was found.
    is_scanned: bool,
    /// Nothing is looked for before then.
    scan_at: Micros,
    /// What a flush under way covers.
    flushing: Option<u64>,
    /// Not before then.
    flush_at: Micros,
    counts: Counts,
    next_sequence: u64,
    next_position: u64,
    rate: u64,
    /// Since when records are appended, and how many were begun since; `None` while the end is looked for.
    since: Option<(Micros, u64)>,
    limit: u64,
    is_full: bool,
}

impl Store {
    pub(crate) fn new(
        made: &'static mut [u8; RECORD_BYTES_MAX],
        read: &'static mut [u8; RECORD_BYTES_MAX],
        rate: u64,
        limit: u64,
    ) -> Self {
        Self {
            pieces: Pieces::default(),
            made,
            read,
            appends: Deque::new(),
            recent: Deque::new(),
            reading: None,
            is_scanned: false,
            scan_at: Micros(0),
            flushing: None,
            flush_at: Micros(0),
            counts: Counts::default(),
            next_sequence: 1,
            next_position: 0,
            rate,
            since: None,
            limit,
            is_full: false,
        }
    }

    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    /// Where the next record will lie.
    pub(crate) const fn end(&self) -> u64 {
        self.next_position
    }

    /// Whether all the records that were wanted are durable.
    pub(crate) const fn is_over(&self) -> bool {
        self.counts.durable >= self.limit
    }

    /// Looks for the end of the records, from the front. `true` once it is found.
    pub(crate) fn scan(&mut self, now: Micros, volume: &mut Volume) -> bool {
        if self.is_scanned || self.next_position + BLOCK as u64 > volume.size_bytes() {
            return true;
        }
        if self.reading.is_none() && self.scan_at <= now {
            self.begin_reading(Looking::ForHead, self.next_position, BLOCK, volume);
        }
        self.pieces.offer(now, volume);
        false
    }

    /// Begins to append.
    pub(crate) fn start(&mut self, now: Micros) {
        self.since = Some((now, 0));
        let found = self.next_sequence - 1;
        (self.counts.acknowledged, self.counts.durable) = (found, found);
    }

    /// Begins whatever can be begun. Whether anything was.
    pub(crate) fn work(&mut self, now: Micros, volume: &mut Volume) -> bool {
        let mut has_worked = self.append(now, volume);
        has_worked |= self.write_wanted(now, volume);
        if self.reading.is_none()
            && let Some((sequence, position, bytes)) = self.recent.front().copied()
            && sequence <= self.counts.durable
        {
            has_worked |= self.begin_reading(Looking::Back(sequence), position, bytes, volume);
        }
        let is_behind = self.counts.acknowledged >= self.counts.durable + FLUSH_EVERY
            || (self.counts.acknowledged >= self.limit && !self.is_over());
        if is_behind && self.flushing.is_none() && self.flush_at <= now && self.pieces.flush() {
            self.flushing = Some(self.counts.acknowledged);
            has_worked = true;
        }
        self.pieces.offer(now, volume) || has_worked
    }

    /// When there may be another record to append, or one to write anew.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let Some((since, begun)) = self.since else {
            return (self.scan_at != Micros(0)).then_some(self.scan_at);
        };
        let is_held = self.is_full || self.appends.is_full() || self.next_sequence > self.limit;
        let next = since.after(Micros((begun + 1).saturating_mul(1_000_000) / self.rate));
        let again = self.appends.iter().filter_map(|append| match append.state {
            Way::Wanted(at) => Some(at),
            _ => None,
        });
        let flush = (self.flushing.is_none() && self.flush_at != Micros(0)).then_some(self.flush_at);
        again.chain(flush).chain((!is_held).then_some(next)).min()
    }

    fn append(&mut self, now: Micros, volume: &Volume) -> bool {
        let Some((since, mut begun)) = self.since else { return false };
        let due = now.since(since).0.saturating_mul(self.rate) / 1_000_000;
        let mut has_worked = false;
        while begun < due && !self.appends.is_full() && !self.is_full && self.next_sequence <= self.limit {
            let bytes = record::make(self.next_sequence, self.made);
            if self.next_position + bytes as u64 > volume.size_bytes() {
                self.is_full = true;
                let _ = writeln!(Console::open(), "store: the disk is full");
                break;
            }
            let (sequence, position) = (self.next_sequence, self.next_position);
            let _ = self.appends.push_back(Append { sequence, position, bytes, state: Way::Wanted(now) });
            self.next_sequence += 1;
            self.next_position += bytes as u64;
            begun += 1;
            has_worked = true;
        }
        self.since = Some((since, begun));
        has_worked
    }

    fn write_wanted(&mut self, now: Micros, volume: &mut Volume) -> bool {
        let mut has_worked = false;
        for append in &mut self.appends {
            if !matches!(append.state, Way::Wanted(at) if at <= now) {
                continue;
            }
            let bytes = record::make(append.sequence, self.made);
            let purpose = Purpose::Append(append.sequence);
            let content = self.made.get(..bytes).unwrap_or_default();
            let Some(count) = self.pieces.write(purpose, append.position, content, volume) else { break };
            append.state = Way::Written(count, None);
            has_worked = true;
        }
        has_worked
    }

    fn begin_reading(&mut self, purpose: Looking, position: u64, bytes: usize, volume: &mut Volume) -> bool {
        let outstanding = self.pieces.read(position, bytes, volume);
        if let Some(outstanding) = outstanding {
            self.reading = Some(Reading { purpose, position, bytes, outstanding, failure: None });
        }
        outstanding.is_some()
    }

    /// The machine has answered a piece.
    pub(crate) fn answered(&mut self, reply: Reply, now: Micros, volume: &mut Volume) {
        let Some(piece) = self.pieces.take(reply.id) else { return };
        let failure = reply.result.err();
        self.counts.failed += u64::from(failure.is_some());
        match piece.purpose {
            Purpose::Flush => self.flushed(failure, now),
            Purpose::Append(sequence) => self.written(sequence, failure, now),
            Purpose::Read(offset) => {
                let place = self.read.get_mut(offset..offset + piece.data.length as usize);
                if let (Some(place), Some(bytes)) = (place, volume.bytes(piece.data)) {
                    place.copy_from_slice(bytes);
                }
            }
        }
        volume.release(piece.data);
        if matches!(piece.purpose, Purpose::Read(_)) {
            self.read_on(failure, now, volume);
        }
    }

    fn written(&mut self, sequence: u64, failure: Option<Errno>, now: Micros) {
        let Some(append) = self.appends.iter_mut().find(|append| append.sequence == sequence) else { return };
        let Way::Written(outstanding, earlier) = append.state else { return };
        append.state = match (outstanding - 1, earlier.or(failure)) {
            (0, None) => Way::Done,
            (0, Some(errno)) => {
                let name = errno.name();
                let _ =
                    writeln!(Console::open(), "store: record {sequence}: write failed: {name}; once more");
                Way::Wanted(now.after(PAUSE))
            }
            (left, failure) => Way::Written(left, failure),
        };
        while let Some(append) = self.appends.front().copied().filter(|append| append.state == Way::Done) {
            self.appends.pop_front();
            self.counts.acknowledged = append.sequence;
            if self.recent.is_full() {
                self.recent.pop_front();
            }
            let _ = self.recent.push_back((append.sequence, append.position, append.bytes));
        }
    }

    fn flushed(&mut self, failure: Option<Errno>, now: Micros) {
        let covered = self.flushing.take();
        if let Some(errno) = failure {
            let _ = writeln!(Console::open(), "store: flush failed: {}; once more", errno.name());
            self.flush_at = now.after(PAUSE);
            return;
        }
        self.flush_at = Micros(0);
        self.counts.durable = covered.unwrap_or(self.counts.durable);
    }

    fn read_on(&mut self, failure: Option<Errno>, now: Micros, volume: &mut Volume) {
        let Some(reading) = &mut self.reading else { return };
        reading.outstanding -= 1;
        reading.failure = reading.failure.or(failure);
        if reading.outstanding != 0 {
            return;
        }
        let Reading { purpose, position, bytes, failure, .. } = *reading;
        self.reading = None;
        let content = self.read.get(..bytes).unwrap_or_default();
        let head = Head::read(content);
        if let Looking::Back(sequence) = purpose {
            let is_it = head.is_some_and(|head| head.sequence == sequence) && Head::is_whole(content);
            return self.read_back(sequence, failure.map_or(Ok(is_it), Err));
        }
        if let Some(errno) = failure {
            // What cannot be read is not the end.
            let _ =
                writeln!(Console::open(), "store: at {position}: read failed: {}; once more", errno.name());
            self.scan_at = now.after(PAUSE);
            return;
        }
        match (purpose, head) {
            (Looking::ForHead, Some(head))
                if head.sequence == self.next_sequence
                    && position + head.bytes as u64 <= volume.size_bytes() =>
            {
                self.begin_reading(Looking::ForRecord(head.sequence), position, head.bytes, volume);
            }
            (Looking::ForRecord(sequence), Some(_)) if Head::is_whole(content) => {
                self.next_sequence = sequence + 1;
                self.next_position = position + bytes as u64;
            }
            // The end.
            _ => self.is_scanned = true,
        }
    }

    /// A record was read back: whether it is what it was.
    fn read_back(&mut self, sequence: u64, result: Result<bool, Errno>) {
        self.counts.read += u64::from(result == Ok(true));
        self.recent.pop_front_if(|(first, ..)| *first == sequence);
        let _ = match result {
            Ok(true) => Ok(()),
            Ok(false) => writeln!(Console::open(), "store: record {sequence}: IS NOT WHAT IT WAS"),
            Err(errno) => {
                writeln!(Console::open(), "store: record {sequence}: read failed: {}", errno.name())
            }
        };
    }
}

/// What the machine had no place for is offered again; anything else is a mistake of this program.
const fn is_busy(refused: Refused) -> bool {
    matches!(refused, Refused::Busy)
}
