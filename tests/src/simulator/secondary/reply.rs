//! What replies must be, and what they make of the model.

use twinblock_core::block::Action;
use twinblock_core::buffer::Spot;
use twinblock_core::secondary::{Port, WhenFull};
use twinblock_core::{Errno, Extent, Op, Outcome, Pool, Reply, Stage};

use super::super::disk::{Disk, range};
use super::{Flying, World};

const TAKEN_OVER: [Stage; 3] = [Stage::Failover, Stage::FailoverFailed, Stage::Done];

impl World<'_> {
    pub(super) fn replied(&mut self, reply: &Reply) {
        let is_it = |flying: &Flying| flying.request.id == reply.id;
        let Some(position) = self.flying.iter().position(is_it) else {
            panic!("{reply:?} answers nothing that is in flight")
        };
        self.look_around();
        let flying = self.flying.remove(position);
        match reply.result {
            Ok(outcome) => {
                self.check_turn(&flying, position);
                self.succeeded(&flying, outcome);
            }
            Err(errno) => self.failed(&flying, errno),
        }
        if let Some(group) = self.groups.get_mut(&flying.group) {
            group.answered += 1;
            // One that has failed in part is not whole in any epoch.
            if group.answered == group.pieces || reply.result.is_err() {
                self.groups.remove(&flying.group);
            }
        }
        if let Some(data) = flying.data {
            self.arena.release(data.buffer);
        }
        let result = reply.result.map_or_else(|errno| errno.name(), |_| "done");
        let name = format!("{:?} {}", flying.port, name_of(&flying.request.op));
        self.coverage.count(&name, self.model.stage, result);
    }

    /// Overlapping requests end in the order in which they came; only a guest passes held writes.
    fn check_turn(&self, flying: &Flying, position: usize) {
        for earlier in &self.flying[..position] {
            let may_be_held = flying.saw_held || self.was_full(earlier);
            let may_pass = flying.port == Port::Guest && earlier.port == Port::Replication && may_be_held;
            assert!(
                may_pass || !earlier.conflicts(flying),
                "{:?} ended before {:?}, which came first",
                flying.request,
                earlier.request
            );
        }
    }

    fn succeeded(&mut self, flying: &Flying, outcome: Outcome) {
        match flying.port {
            Port::Guest => {
                assert!(flying.was_served, "a guest was served before the start, or a broken view");
            }
            Port::Replication if flying.request.op.is_modification() => self.check_permitted(flying),
            Port::Replication => {
                let is_followed = flying.saw(&[Stage::None, Stage::Running]);
                assert!(is_followed || !self.is_primarys(flying), "{:?} of the old primary", flying.request);
            }
        }
        match flying.request.op {
            Op::Read(_) => self.check_read(flying),
            Op::Status => self.check_status(flying, outcome),
            Op::Flush => self.check_flush(flying),
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } => {
                self.written(flying);
                // A neighbour of the same granule moves zeroes that were remembered: to a slot while the view is a
                // buffer's, which no crash outlives, and to the disk in a failover, which flushes before Done.
                let may_be_moved = flying.port == Port::Guest
                    && matches!(flying.request.op, Op::WriteZeroes { .. })
                    && self.model.stage != Stage::Done;
                if fua && !may_be_moved {
                    self.check_durable(flying.port, flying.extent(), 0..u64::MAX);
                }
            }
        }
    }

    fn check_permitted(&mut self, flying: &Flying) {
        assert!(flying.saw(&[Stage::None, Stage::Running]), "a write of the primary after the end");
        if self.model.stage != Stage::Running {
            return;
        }
        let is_open = |connection| self.clients.iter().any(|client| client.connection == connection);
        if let Some(owner) = self.model.owner
            && owner != flying.connection
        {
            assert!(!is_open(owner), "{:?} writes while {owner:?} holds the claim", flying.connection);
            let is_left = |other: &Flying| {
                other.connection == owner && other.request.op.is_modification() && !other.is_parting
            };
            assert!(!self.flying.iter().any(is_left), "requests of the old primary are still in flight");
        }
        self.model.owner = Some(flying.connection);
    }

    fn written(&mut self, flying: &Flying) {
        let range = range(flying.extent());
        match flying.port {
            Port::Replication => {
                assert!(self.disk().bytes()[range.clone()] == flying.new, "the disk does not hold the write");
                self.model.disk[range].copy_from_slice(&flying.new);
            }
            Port::Guest => {
                self.model.view[range.clone()].copy_from_slice(&flying.new);
                self.model.is_guests[range].fill(true);
            }
        }
    }

    fn check_read(&self, flying: &Flying) {
        let data = flying.data.map(|data| self.arena.copy(data)).unwrap_or_default();
        let range = range(flying.extent());
        let expected = match flying.port {
            Port::Replication => &self.disk().bytes()[range],
            Port::Guest => &self.model.view[range],
        };
        assert!(
            data == expected,
            "{:?} read {}",
            flying.port,
            differing(&data, expected, flying.extent().offset)
        );
    }

    fn check_status(&self, flying: &Flying, outcome: Outcome) {
        let Outcome::Status { is_hole, length } = outcome else { panic!("no status: {outcome:?}") };
        assert!(length >= 1 && length <= flying.extent().length, "{outcome:?}");
        let range = range(Extent { length, ..flying.extent() });
        let bytes = match flying.port {
            Port::Replication => &self.disk().bytes()[range],
            Port::Guest => &self.model.view[range],
        };
        assert!(!is_hole || bytes.iter().all(|byte| *byte == 0), "a hole with data in it");
    }

    /// Everything that was answered before the flush came is durable.
    fn check_flush(&self, flying: &Flying) {
        let before = 0..flying.taken_at;
        let is_beside = |byte: usize| flying.beside.iter().any(|extent| range(*extent).contains(&byte));
        match (flying.port, self.model.stage) {
            (Port::Replication, Stage::None | Stage::Running) => {
                let lost = |(byte, at): (usize, &u64)| *at != 0 && before.contains(at) && !is_beside(byte);
                let lost = self.disk().written_at().iter().enumerate().position(lost);
                assert_eq!(lost, None, "a byte of the disk is not durable after a flush");
            }
            (Port::Guest, Stage::Running) => {
                for (byte, is_guests) in self.model.is_guests.iter().enumerate() {
                    if *is_guests && !is_beside(byte) {
                        let extent = Extent { offset: byte as u64, length: 1 };
                        self.check_durable(Port::Guest, extent, before.clone());
                    }
                }
            }
            _ => {}
        }
    }

    /// Asserts that no byte was last written at one of these steps and is not durable.
    fn check_durable(&self, port: Port, mut rest: Extent, steps: std::ops::Range<u64>) {
        let is_bare = |device: &Disk, extent| {
            device.written_at()[range(extent)].iter().any(|at| *at != 0 && steps.contains(at))
        };
        if port == Port::Replication || self.model.stage == Stage::Done {
            assert!(!is_bare(self.disk(), rest), "{rest:?} is not durable");
            return;
        }
        while !rest.is_empty() {
            let found = self.machine().buffer().find(rest);
            let part = Extent { length: found.length, ..rest };
            let is_lost = match found.spot {
                Spot::Slot(at) => is_bare(self.buffer(), Extent { offset: at, length: part.length }),
                Spot::Zeroes => false,
                Spot::Absent => is_bare(self.disk(), part),
            };
            assert!(!is_lost, "{part:?} of the guest is not durable");
            rest = Extent::between(part.end(), rest.end());
        }
    }

    fn failed(&mut self, flying: &Flying, errno: Errno) {
        let is_expected = match flying.port {
            Port::Replication => self.may_fail_replication(flying, errno),
            Port::Guest => self.may_fail_guest(flying, errno),
        };
        assert!(is_expected, "{} for {flying:?}", errno.name());
        let changes = flying.request.op.is_modification();
        let has_begun = !matches!(errno, Errno::Shutdown | Errno::NotPermitted);
        if flying.port == Port::Replication && changes && self.model.stage == Stage::Running && has_begun {
            self.model.owner = Some(flying.connection);
        }
        if flying.port == Port::Replication
            && self.model.stage == Stage::Running
            && (changes || flying.request.op == Op::Flush)
            && matches!(errno, Errno::Io | Errno::NoSpace)
        {
            self.model.has_missed = true;
            // What was held too long is missing now, and what waited behind it may be there: no commit of that.
            self.model.prepared = None;
        }
        if changes {
            self.settle_failed(flying, errno);
        }
    }

    /// Bytes of a failed modification are old or new, and old if no write to a device failed.
    fn settle_failed(&mut self, flying: &Flying, errno: Errno) {
        let place = range(flying.extent());
        let (actual, expected) = match flying.port {
            Port::Replication if flying.saw(&TAKEN_OVER) => return,
            Port::Replication => (self.disk().bytes().to_vec(), &self.model.disk),
            Port::Guest if self.model.stage == Stage::Done => {
                (self.disk().bytes().to_vec(), &self.model.view)
            }
            Port::Guest if !self.model.serves_guest() => return,
            Port::Guest => (self.resolve_view(), &self.model.view),
        };
        let is_torn = self.has_fault(flying, true)
            || (flying.port == Port::Guest && (errno == Errno::NoSpace && !self.settings.is_index_ample));
        let mut settled = expected[place.clone()].to_vec();
        for byte in place.clone() {
            let (is, was, new) = (actual[byte], expected[byte], flying.new[byte - place.start]);
            // One that it overlaps may be under way, if this one was dropped before its turn.
            let is_anothers = || self.may_be_in_flight(flying.port, byte, is);
            if is_torn && is == new {
                settled[byte - place.start] = new;
            } else {
                assert!(is == was || is_anothers(), "byte {byte} is {is:#x}, was {was:#x}: {flying:?}");
            }
        }
        let model =
            if flying.port == Port::Replication { &mut self.model.disk } else { &mut self.model.view };
        model[place.clone()].copy_from_slice(&settled);
        if self.model.stage != Stage::Running {
            self.model.is_guests[place].fill(true);
        }
    }

    /// Whether somebody asks who presents himself as a primary.
    fn is_primarys(&self, flying: &Flying) -> bool {
        let client = self.clients.iter().find(|client| client.connection == flying.connection);
        client.is_some_and(|client| client.identity.is_some())
    }

    fn may_fail_replication(&self, flying: &Flying, errno: Errno) -> bool {
        let changes = flying.request.op.is_modification();
        let is_full = flying.saw(&[Stage::Running]) && self.was_full(flying);
        match errno {
            Errno::Shutdown => {
                flying.is_parting || ((changes || self.is_primarys(flying)) && flying.saw(&TAKEN_OVER))
            }
            Errno::NotPermitted => {
                changes && flying.saw(&[Stage::Running]) && (flying.saw_rival || flying.is_parting)
            }
            Errno::NoSpace if changes && is_full && self.settings.config.when_full == WhenFull::Stall => true,
            Errno::Io | Errno::NoSpace => self.has_fault(flying, false),
            Errno::Unsupported => {
                matches!(flying.request.op, Op::WriteZeroes { fast: true, .. })
                    && self.settings.faults.slow_zeroes_percent != 0
            }
            _ => false,
        }
    }

    fn may_fail_guest(&self, flying: &Flying, errno: Errno) -> bool {
        match errno {
            Errno::Shutdown => flying.is_parting,
            Errno::Io if flying.was_unserved => true,
            Errno::NoSpace if flying.request.op.is_modification() && self.was_full(flying) => true,
            Errno::Io | Errno::NoSpace => self.has_fault(flying, false),
            Errno::Unsupported => {
                matches!(flying.request.op, Op::WriteZeroes { fast: true, .. })
                    && flying.saw(&[Stage::Done])
                    && self.settings.faults.slow_zeroes_percent != 0
            }
            _ => false,
        }
    }

    /// Whether it may have found too few slots, or no room in the index.
    pub(super) fn was_full(&self, flying: &Flying) -> bool {
        let granule = u64::from(self.settings.config.granule_bytes);
        let granules = flying.extent().aligned_out(granule, u64::MAX).length / granule;
        !self.settings.is_index_ample || u64::from(flying.free_slots_min) < granules
    }

    /// Whether a fault may have hit a request: on the disk within its granules, on the buffer anywhere.
    pub(super) fn has_fault(&self, flying: &Flying, only_modifications: bool) -> bool {
        let granule = u64::from(self.settings.config.granule_bytes);
        let around = flying.extent().aligned_out(granule, u64::MAX);
        let is_flush = flying.request.op == Op::Flush;
        let is_it = |fault: &super::super::disk::Fault, is_near: bool| {
            let is_modification =
                matches!(fault.transfer.action, Action::Write { .. } | Action::WriteZeroes { .. });
            let is_flush_fault = fault.transfer.action == Action::Flush;
            fault.step >= flying.taken_at
                && if is_flush { is_flush_fault } else { is_near && !is_flush_fault }
                && (is_modification || !only_modifications)
        };
        let on_disk =
            |fault: &super::super::disk::Fault| is_it(fault, fault.transfer.extent.overlaps(&around));
        // A keep that fails to be stored has not touched the disk.
        let is_buffer_counted = !only_modifications || flying.port == Port::Guest;
        self.disk().injected.iter().any(on_disk)
            || (is_buffer_counted && self.buffer().injected.iter().any(|fault| is_it(fault, true)))
    }
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Read(_) => "read",
        Op::Write { .. } => "write",
        Op::WriteZeroes { may_unmap: true, .. } => "trim",
        Op::WriteZeroes { .. } => "write zeroes",
        Op::Flush => "flush",
        Op::Status => "status",
    }
}

/// Where two arrays differ first, and how.
pub(super) fn differing(is: &[u8], should: &[u8], offset: u64) -> String {
    let count = is.iter().zip(should).filter(|(is, should)| is != should).count();
    match is.iter().zip(should).position(|(is, should)| is != should) {
        Some(at) => format!(
            "{count} wrong bytes, the first at {}: {:#04x} instead of {:#04x}",
            offset + at as u64,
            is[at],
            should[at]
        ),
        None => format!("{} bytes instead of {}", is.len(), should.len()),
    }
}
