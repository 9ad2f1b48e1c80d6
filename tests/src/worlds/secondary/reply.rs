//! What replies must be, and what they make of the model.

use twinblock_core::buffer::Spot;
use twinblock_core::secondary::{Port, WhenFull};
use twinblock_core::{BufferIndex, Data, Errno, Extent, Op, Outcome, Reply, Request, Stage};

use super::super::disk::{BLOCK, Mask, mask, range};
use super::{Client, Flying, GRANULE_BLOCKS, State};

const TAKEN_OVER: [Stage; 3] = [Stage::Failover, Stage::FailoverFailed, Stage::Done];

impl Flying {
    pub(super) const fn new(
        client: Client,
        name: u8,
        request: Request,
        data: Option<Data>,
        is_parting: bool,
    ) -> Self {
        Self {
            name,
            group: name,
            client,
            request,
            data,
            stages: 0,
            was_served: false,
            was_unserved: false,
            saw_held: false,
            was_held: false,
            saw_rival: false,
            is_parting,
            saw_fault: false,
            may_be_torn: false,
            saw_slow: false,
            free_slots_min: u8::MAX,
            covers: 0,
        }
    }

    pub(super) fn owns(&self, buffer: BufferIndex) -> bool {
        self.data.is_some_and(|data| data.buffer == buffer)
    }

    pub(super) fn granules(&self) -> Extent {
        self.request.extent.aligned_out(GRANULE_BLOCKS as u64 * BLOCK, u64::MAX)
    }

    fn saw(&self, stages: &[Stage]) -> bool {
        stages.iter().any(|stage| self.stages & (1 << *stage as u8) != 0)
    }

    /// Whether it may have found too few slots.
    pub(super) fn was_full(&self) -> bool {
        u64::from(self.free_slots_min) < self.granules().length / (GRANULE_BLOCKS as u64 * BLOCK)
    }

    /// The symbol that it writes.
    fn symbol(&self) -> u8 {
        if matches!(self.request.op, Op::WriteZeroes { .. }) { 0 } else { self.name }
    }

    fn conflicts(&self, other: &Self) -> bool {
        let changes = self.request.op.is_modification() || other.request.op.is_modification();
        changes && self.request.extent.overlaps(&other.request.extent)
    }
}

impl State<'_> {
    pub(super) fn replied(&mut self, reply: &Reply) {
        let is_it = |flying: &Flying| flying.request.id == reply.id;
        let place = self.around.flying.iter().position(is_it).expect("S3: a reply to what is in flight");
        self.look_around();
        let flying = self.around.flying.remove(place);
        self.check_nothing_of(&flying);
        match reply.result {
            Ok(outcome) => {
                self.check_turn(&flying, place);
                self.succeeded(&flying, outcome);
            }
            Err(errno) => self.failed(&flying, errno),
        }
        let is_modification =
            flying.request.op.is_modification() && flying.client.port() == Port::Replication;
        if is_modification && let Some(open) = &mut self.around.open[flying.client as usize] {
            // One that has failed in part is not whole in any epoch.
            let is_in_outbox = open.outbox.is_some_and(|piece| piece.group == flying.group);
            let is_left = is_in_outbox || self.around.flying.iter().any(|other| other.group == flying.group);
            open.is_half_done = reply.result.is_ok() && is_left;
        }
        if let Some(data) = flying.data {
            self.release(data);
        }
    }

    /// No transfer that is still in flight speaks of the data of a request that is answered.
    fn check_nothing_of(&self, flying: &Flying) {
        let Some(data) = flying.data else { return };
        let transfers = self.around.disk.in_flight.iter().chain(&self.around.buffer.in_flight);
        for transfer in transfers {
            use twinblock_core::block::Action::{Read, Write};
            if let Read(used) | Write { data: used, .. } = transfer.transfer.action {
                assert_ne!(used.buffer, data.buffer, "S3: answered before {:?}", transfer.transfer);
            }
        }
    }

    /// Overlapping requests end in the order in which they came; only a guest passes held writes.
    fn check_turn(&self, flying: &Flying, place: usize) {
        for earlier in &self.around.flying[..place] {
            let is_held = earlier.was_held || self.machine.is_held(earlier.request.id);
            let may_pass =
                flying.client.port() == Port::Guest && earlier.client.port() == Port::Replication && is_held;
            assert!(
                may_pass || !earlier.conflicts(flying),
                "{:?} ended before {:?}, which came first",
                flying.request,
                earlier.request
            );
        }
    }

    fn succeeded(&mut self, flying: &Flying, outcome: Outcome) {
        match flying.client.port() {
            Port::Guest => {
                assert!(flying.was_served, "a guest was served before the start, or a broken view");
            }
            Port::Replication if flying.request.op.is_modification() => self.check_permitted(flying),
            Port::Replication => {
                let is_followed = flying.saw(&[Stage::None, Stage::Running]);
                let is_primarys = flying.client.identity().is_some();
                assert!(is_followed || !is_primarys || flying.is_parting, "{flying:?} of the old primary");
            }
        }
        match flying.request.op {
            Op::Read(data) => {
                let range = range(flying.request.extent);
                let expected = match flying.client.port() {
                    Port::Replication => self.around.disk.content[range].to_vec(),
                    Port::Guest => self.around.model.view[range].to_vec(),
                };
                assert_eq!(self.around.arena.blocks(data), &expected[..], "read by {:?}", flying.client);
            }
            Op::Status => self.check_status(flying, outcome),
            Op::Flush => match (flying.client.port(), self.around.model.stage) {
                (Port::Replication, Stage::Failover | Stage::FailoverFailed | Stage::Done) => {}
                (port, _) => self.check_durable(port, flying.covers),
            },
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } => {
                self.written(flying);
                if fua {
                    self.check_durable(flying.client.port(), mask(flying.request.extent));
                }
            }
        }
    }

    fn check_permitted(&mut self, flying: &Flying) {
        assert!(flying.saw(&[Stage::None, Stage::Running]), "a write of the primary after the end");
        if self.around.model.stage != Stage::Running {
            return;
        }
        if let Some(owner) = self.around.model.owner
            && owner != flying.client
        {
            assert!(!self.is_open(owner), "{:?} writes while {owner:?} holds the claim", flying.client);
            let is_left = |other: &Flying| {
                other.client == owner && other.request.op.is_modification() && !other.is_parting
            };
            assert!(!self.around.flying.iter().any(is_left), "requests of the old primary are in flight");
        }
        self.around.model.owner = Some(flying.client);
    }

    fn written(&mut self, flying: &Flying) {
        let model = &mut self.around.model;
        match flying.client.port() {
            Port::Replication => {
                for block in range(flying.request.extent) {
                    assert_eq!(self.around.disk.content[block], flying.symbol(), "block {block} of the disk");
                }
                model.disk[range(flying.request.extent)].fill(flying.symbol());
            }
            Port::Guest => {
                model.view[range(flying.request.extent)].fill(flying.symbol());
                model.guests |= mask(flying.request.extent);
            }
        }
    }

    fn check_status(&self, flying: &Flying, outcome: Outcome) {
        let Outcome::Status { is_hole, length } = outcome else { panic!("no status: {outcome:?}") };
        assert!(length != 0 && length <= flying.request.extent.length, "{outcome:?}");
        let range = range(Extent { length, ..flying.request.extent });
        let blocks = match flying.client.port() {
            Port::Replication => &self.around.disk.content[range],
            Port::Guest => &self.around.model.view[range],
        };
        assert!(!is_hole || blocks.iter().all(|block| *block == 0), "a hole with data in it");
    }

    /// Blocks that a flush which comes now has to make durable: what was answered, and is not being changed.
    pub(super) fn to_be_flushed(&self, port: Port) -> Mask {
        let model = &self.around.model;
        let answered = match (port, model.stage) {
            (Port::Replication, Stage::None | Stage::Running) => (1 << super::BLOCKS) - 1,
            (Port::Guest, Stage::Running | Stage::Failover | Stage::FailoverFailed | Stage::Done) => {
                model.guests
            }
            _ => 0,
        };
        let changing = self.around.flying.iter().filter(|flying| flying.request.op.is_modification());
        changing.fold(answered, |rest, flying| rest & !mask(flying.request.extent))
    }

    /// Checks that these blocks do not wait in a cache.
    fn check_durable(&self, port: Port, blocks: Mask) {
        for block in (0..super::BLOCKS).filter(|block| blocks & 1 << block != 0) {
            let extent = Extent { offset: block as u64 * BLOCK, length: BLOCK };
            let spot = match port {
                Port::Guest if self.around.model.stage != Stage::Done => {
                    self.machine.buffer().find(extent).spot
                }
                _ => Spot::Absent,
            };
            let is_volatile = match spot {
                Spot::Slot(at) => {
                    self.around.buffer.volatile & mask(Extent { offset: at, length: BLOCK }) != 0
                }
                Spot::Zeroes => false,
                Spot::Absent => self.around.disk.volatile & mask(extent) != 0,
            };
            assert!(!is_volatile, "block {block} of {port:?} is not durable");
        }
    }

    fn failed(&mut self, flying: &Flying, errno: Errno) {
        let is_expected = match flying.client.port() {
            Port::Replication => self.may_fail_replication(flying, errno),
            Port::Guest => may_fail_guest(flying, errno),
        };
        assert!(is_expected, "{} for {flying:?}", errno.name());
        let changes = flying.request.op.is_modification();
        let model = &mut self.around.model;
        if flying.client.port() == Port::Replication && model.stage == Stage::Running {
            if changes && !matches!(errno, Errno::Shutdown | Errno::NotPermitted) {
                model.owner = Some(flying.client);
            }
            if (changes || flying.request.op == Op::Flush) && matches!(errno, Errno::Io | Errno::NoSpace) {
                model.has_missed = true;
                // What was held too long is missing now, and what waited behind it may be there: no commit of that.
                model.prepared = super::Prepared::No;
            }
        }
        if changes {
            self.settle_failed(flying);
        }
    }

    /// Blocks of a failed modification are old or new, and old if no write to a device failed.
    fn settle_failed(&mut self, flying: &Flying) {
        let range = range(flying.request.extent);
        let port = flying.client.port();
        let is_disk = match port {
            Port::Replication if flying.saw(&TAKEN_OVER) => return,
            Port::Replication => true,
            Port::Guest if !self.around.model.serves_guest() => return,
            Port::Guest => self.around.model.stage == Stage::Done,
        };
        let actual = if is_disk { self.around.disk.content } else { self.view() };
        for block in range {
            let is = actual[block];
            let model = &mut self.around.model;
            let expected = if port == Port::Replication { &mut model.disk } else { &mut model.view };
            if flying.may_be_torn && is == flying.symbol() {
                expected[block] = is;
            } else if is != expected[block] {
                // One that it overlaps may be under way, if this one was dropped before its turn.
                assert!(self.may_be_in_flight(port, block, is), "block {block} is {is:#x}: {flying:?}");
            }
        }
        if self.around.model.stage != Stage::Running && port == Port::Guest {
            self.around.model.guests |= mask(flying.request.extent);
        }
    }

    /// Whether a request in flight may have made a block what it is.
    pub(super) fn may_be_in_flight(&self, port: Port, block: usize, is: u8) -> bool {
        self.around.flying.iter().any(|flying| {
            flying.client.port() == port
                && flying.request.op.is_modification()
                && range(flying.request.extent).contains(&block)
                && flying.symbol() == is
        })
    }

    fn may_fail_replication(&self, flying: &Flying, errno: Errno) -> bool {
        let changes = flying.request.op.is_modification();
        let is_full = flying.saw(&[Stage::Running]) && flying.was_full();
        match errno {
            Errno::Shutdown => {
                let is_primarys = flying.client.identity().is_some();
                flying.is_parting || ((changes || is_primarys) && flying.saw(&TAKEN_OVER))
            }
            Errno::NotPermitted => {
                changes && flying.saw(&[Stage::Running]) && (flying.saw_rival || flying.is_parting)
            }
            Errno::NoSpace if changes && is_full => self.machine.config().when_full == WhenFull::Stall,
            Errno::Io => flying.saw_fault,
            Errno::Unsupported => flying.saw_slow,
            _ => false,
        }
    }
}

fn may_fail_guest(flying: &Flying, errno: Errno) -> bool {
    match errno {
        Errno::Shutdown => flying.is_parting,
        Errno::Io if flying.was_unserved => true,
        Errno::NoSpace => flying.request.op.is_modification() && flying.was_full(),
        Errno::Io => flying.saw_fault,
        Errno::Unsupported => flying.saw_slow && flying.saw(&[Stage::Done]),
        _ => false,
    }
}
