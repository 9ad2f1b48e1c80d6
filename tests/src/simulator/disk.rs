//! A disk that does what it is asked late, in another order, in part or not at all, and that enforces the rules of
//! [`BlockDevice`] itself.

use fastrand::Rng;
use std::collections::VecDeque;
use twinblock_core::block::{Action, BlockDevice, Capabilities, Completion, Geometry, QueueFull, Transfer};
use twinblock_core::{Data, Errno, Extent, Memory, Outcome};

use super::arena::Arena;
use super::trace;

/// Bytes of which a failing write leaves some groups written and others not; also the unit of holes.
const SECTOR: usize = 512;

/// How a disk misbehaves.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Transfers of a million that fail.
    pub per_million: u32,
    /// Of the requests for fast zeroes, how many of a hundred are refused.
    pub slow_zeroes_percent: u32,
}

impl Faults {
    /// Everything succeeds.
    pub const NONE: Self = Self { per_million: 0, slow_zeroes_percent: 0 };
}

/// A failure that was injected.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// At which step of the simulation.
    pub step: u64,
    /// Of which transfer.
    pub transfer: Transfer,
}

#[derive(Debug)]
struct InFlight {
    transfer: Transfer,
    performed: Option<Result<Outcome, Errno>>,
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    name: &'static str,
    geometry: Geometry,
    bytes: Vec<u8>,
    /// By sectors.
    is_hole: Vec<bool>,
    /// When each byte was written last; 0 once it is durable.
    written_at: Vec<u64>,
    /// What is left if the power goes: the content at the last flush.
    durable: Vec<u8>,
    in_flight: Vec<InFlight>,
    done: VecDeque<Completion>,
    depth: usize,
    /// A transfer was refused and not submitted again.
    is_overfull: bool,
    window: usize,
    /// How it misbehaves now.
    pub faults: Faults,
    /// What was injected so far.
    pub injected: Vec<Fault>,
    /// The step of the simulation.
    pub step: u64,
    /// Whether transfers are told to the trace.
    pub is_traced: bool,
}

impl Disk {
    /// A disk with this content; sectors of zeroes are holes. Transfers are at most `window` long.
    #[must_use]
    pub fn new(name: &'static str, geometry: Geometry, bytes: Vec<u8>, depth: usize, window: usize) -> Self {
        assert_eq!(geometry.size_bytes, bytes.len() as u64);
        let is_hole = bytes.chunks(SECTOR).map(|sector| sector.iter().all(|byte| *byte == 0)).collect();
        Self {
            name,
            geometry,
            is_hole,
            written_at: vec![0; bytes.len()],
            durable: bytes.clone(),
            bytes,
            in_flight: Vec::new(),
            done: VecDeque::new(),
            depth,
            is_overfull: false,
            window,
            faults: Faults::NONE,
            injected: Vec::new(),
            step: 1,
            is_traced: false,
        }
    }

    /// What is on it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// When each byte was written last; 0 if it is durable.
    #[must_use]
    pub fn written_at(&self) -> &[u64] {
        &self.written_at
    }

    /// How many transfers have not been completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether a driver waits for this disk with a transfer in its hands.
    #[must_use]
    pub fn is_overfull(&self) -> bool {
        self.is_overfull
    }

    /// What is to be done and has not been.
    pub fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.in_flight.iter().map(|one| &one.transfer)
    }

    /// Any transfer makes progress: its effect takes place, or its completion can be polled, or both. Tells whether one was
    /// completed, and how.
    pub fn progress(&mut self, rng: &mut Rng, memory: &mut Arena) -> Option<bool> {
        if self.in_flight.is_empty() {
            return None;
        }
        let chosen = rng.usize(..self.in_flight.len());
        if self.in_flight[chosen].performed.is_none() {
            let transfer = self.in_flight[chosen].transfer;
            self.in_flight[chosen].performed = Some(self.perform(&transfer, rng, memory));
            if rng.u8(..4) == 0 {
                return None;
            }
        }
        let InFlight { transfer, performed } = self.in_flight.swap_remove(chosen);
        let result = performed?;
        self.trace("completes", &transfer, Some(result));
        self.done.push_back(Completion { tag: transfer.tag, result });
        Some(!matches!(result, Err(errno) if errno != Errno::Unsupported))
    }

    fn perform(&mut self, transfer: &Transfer, rng: &mut Rng, memory: &mut Arena) -> Result<Outcome, Errno> {
        let is_faulty = rng.u32(..1_000_000) < self.faults.per_million;
        if let Action::WriteZeroes { fast: true, .. } = transfer.action
            && rng.u32(..100) < self.faults.slow_zeroes_percent
        {
            return Err(Errno::Unsupported);
        }
        if is_faulty {
            self.injected.push(Fault { step: self.step, transfer: *transfer });
        }
        let errno = if rng.bool() { Errno::Io } else { Errno::NoSpace };
        match transfer.action {
            Action::Read(data) => {
                let part = self.bytes[range(transfer.extent)].to_vec();
                let into = memory.bytes(data).expect("a read into a buffer that exists");
                if is_faulty {
                    rng.fill(into);
                } else {
                    into.copy_from_slice(&part);
                }
            }
            Action::Write { data, fua } => {
                let from = memory.copy(data);
                self.store(transfer.extent, &from, is_faulty.then_some(rng));
                self.note_written(transfer.extent, fua && !is_faulty);
            }
            Action::WriteZeroes { may_unmap, fua, .. } => {
                let zeroes = vec![0; transfer.extent.length as usize];
                let is_torn = is_faulty;
                if !is_torn && may_unmap && rng.bool() {
                    self.unmap(transfer.extent);
                } else {
                    self.store(transfer.extent, &zeroes, is_torn.then_some(rng));
                }
                self.note_written(transfer.extent, fua && !is_faulty);
            }
            Action::Flush if !is_faulty => {
                self.written_at.fill(0);
                self.durable.copy_from_slice(&self.bytes);
            }
            Action::Flush => {}
            Action::Status if !is_faulty => return Ok(self.status(transfer.extent, rng)),
            Action::Status => {}
        }
        if is_faulty { Err(errno) } else { Ok(Outcome::Done) }
    }

    /// With `torn`, some sectors only.
    fn store(&mut self, extent: Extent, from: &[u8], mut torn: Option<&mut Rng>) {
        let mut at = extent.offset as usize;
        let end = extent.end() as usize;
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            if torn.as_mut().is_none_or(|rng| rng.bool()) {
                let start = at - extent.offset as usize;
                self.bytes[at..next].copy_from_slice(&from[start..start + next - at]);
                self.is_hole[at / SECTOR] = false;
            }
            at = next;
        }
    }

    fn unmap(&mut self, extent: Extent) {
        self.bytes[range(extent)].fill(0);
        let sectors = (extent.offset as usize).div_ceil(SECTOR)..extent.end() as usize / SECTOR;
        for sector in sectors {
            self.is_hole[sector] = true;
        }
    }

    fn note_written(&mut self, extent: Extent, is_durable: bool) {
        let stamp = if is_durable { 0 } else { self.step };
        self.written_at[range(extent)].fill(stamp);
        if is_durable {
            self.durable[range(extent)].copy_from_slice(&self.bytes[range(extent)]);
        }
    }

    /// The power goes and comes back: of what was not flushed, some sectors are new and others old.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for (new, old) in self.bytes.chunks_mut(SECTOR).zip(self.durable.chunks(SECTOR)) {
            if rng.bool() {
                new.copy_from_slice(old);
            }
        }
        self.durable.copy_from_slice(&self.bytes);
        self.written_at.fill(0);
    }

    /// Short answers are legal, and so is to call a hole data.
    fn status(&self, extent: Extent, rng: &mut Rng) -> Outcome {
        let hole_at = |byte: usize| self.is_hole[byte / SECTOR];
        let is_hole = hole_at(extent.offset as usize);
        let length = range(extent).take_while(|byte| hole_at(*byte) == is_hole).count() as u64;
        let length = if rng.u8(..4) == 0 { rng.u64(1..=length) } else { length };
        Outcome::Status { is_hole: is_hole && rng.u8(..8) != 0, length }
    }

    fn trace(&self, what: &str, transfer: &Transfer, result: Option<Result<Outcome, Errno>>) {
        if self.is_traced {
            let Self { step, name, .. } = self;
            let Transfer { tag, action, extent } = transfer;
            let result = result.map_or_else(String::new, |result| format!(" {result:?}"));
            let (tag, end) = ((tag.entry, tag.generation), extent.end());
            trace::push(format!(
                "{step:>5} {name} {what} {tag:?} {}..{end} {action:?}{result}",
                extent.offset
            ));
        }
    }

    fn check(&self, transfer: &Transfer) {
        let name = self.name;
        let Extent { offset, length } = transfer.extent;
        let block = u64::from(self.geometry.block_bytes);
        let has = |capability| self.geometry.capabilities.contains(capability);
        assert!(transfer.extent.end() <= self.geometry.size_bytes, "{name}: beyond the end: {transfer:?}");
        assert!(
            offset.is_multiple_of(block) && length.is_multiple_of(block),
            "{name}: misaligned: {transfer:?}"
        );
        match transfer.action {
            Action::Flush => assert_eq!(length, 0, "{name}: a flush of a part"),
            Action::Read(Data { length: data, .. })
            | Action::Write { data: Data { length: data, .. }, .. } => {
                assert_eq!(length, u64::from(data), "{name}: the data has another length: {transfer:?}");
                assert!(length > 0 && length <= self.window as u64, "{name}: {transfer:?}");
            }
            Action::WriteZeroes { .. } => assert!(length > 0, "{name}: {transfer:?}"),
            Action::Status => {
                assert!(length > 0 && has(Capabilities::STATUS), "{name}: {transfer:?}");
            }
        }
        for other in self.transfers() {
            let is_harmless = !changes(other) && !changes(transfer);
            assert!(
                is_harmless || !other.extent.overlaps(&transfer.extent),
                "{name}: {transfer:?} while {other:?} is in flight"
            );
        }
    }
}

fn changes(transfer: &Transfer) -> bool {
    matches!(transfer.action, Action::Write { .. } | Action::WriteZeroes { .. })
}

/// An extent as a range of an array.
#[must_use]
pub fn range(extent: Extent) -> std::ops::Range<usize> {
    extent.offset as usize..extent.end() as usize
}

impl BlockDevice<Arena> for Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, transfer: Transfer, _memory: &mut Arena) -> Result<(), QueueFull> {
        if self.in_flight.len() >= self.depth {
            self.is_overfull = true;
            return Err(QueueFull);
        }
        self.is_overfull = false;
        self.trace("starts", &transfer, None);
        self.check(&transfer);
        self.in_flight.push(InFlight { transfer, performed: None });
        Ok(())
    }

    fn poll(&mut self, _memory: &mut Arena) -> Option<Completion> {
        self.done.pop_front()
    }
}
