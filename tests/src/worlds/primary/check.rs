//! What must hold in every state, and of every reply.

use twinblock_core::block::{Action, Transfer};
use twinblock_core::{Device, Errno, Extent, Op, Refused, Reply, Request, Stage};

use super::super::disk::{BLOCK, Mask, is_modification, mask, range};
use super::{BLOCKS, Flying, Link, REPLICAS, State, set_of};

impl Flying {
    /// The symbol that it writes.
    fn symbol(&self) -> u8 {
        if matches!(self.request.op, Op::WriteZeroes { .. }) { 0 } else { self.name }
    }

    /// Whether this may be done for it.
    pub(super) fn does(&self, action: &Action) -> bool {
        match (self.request.op, action) {
            (Op::Read(mine), Action::Read(data))
            | (Op::Write { data: mine, .. }, Action::Write { data, .. }) => mine.buffer == data.buffer,
            (Op::WriteZeroes { .. }, Action::WriteZeroes { .. }) | (Op::Flush, Action::Flush) => true,
            _ => false,
        }
    }

    fn conflicts(&self, other: &Self) -> bool {
        let changes = self.request.op.is_modification() || other.request.op.is_modification();
        changes && self.request.extent.overlaps(&other.request.extent)
    }
}

impl State<'_> {
    /// A transfer is given to a leg.
    pub(super) fn submitted(&mut self, device: Device, transfer: Transfer) {
        let owner = self.owner(&transfer).expect("a transfer of a request that is in flight");
        if is_modification(&transfer) {
            self.check_barrier(device, owner, &transfer);
        }
        self.around.flying[owner].entry = Some(transfer.tag.entry);
        match device {
            Device::Replica(replica) => {
                let replica = usize::from(replica);
                let link = self.around.links[replica];
                assert!(link.is_up && link.is_attached, "replica {replica} is not there: {transfer:?}");
                self.around.replicas[replica].submit(transfer);
            }
            _ => self.around.disk.submit(transfer),
        }
    }

    /// P4: what came after the barrier waits for its end; and once it is reached no replica is asked for anything more.
    fn check_barrier(&self, device: Device, owner: usize, transfer: &Transfer) {
        let Some(barrier) = self.around.model.barrier else { return };
        assert!(!self.around.flying[owner].is_after_barrier, "P4: {transfer:?}");
        let is_late = barrier.is_reached && matches!(device, Device::Replica(_));
        assert!(!is_late, "a replica is asked after the barrier was reached: {transfer:?}");
    }

    pub(super) fn answered(&mut self, name: u8, result: Result<(), Refused>) {
        if self.given_up == Some(name) {
            assert!(result.is_err(), "a barrier that was given up is reached");
            self.given_up = None;
            return;
        }
        assert_eq!(result, Ok(()));
        let Some(barrier) = &mut self.around.model.barrier else { return };
        if barrier.name != name {
            return;
        }
        assert!(!barrier.is_reached, "a barrier is reached twice");
        barrier.is_reached = true;
        if !barrier.is_urgent {
            let is_left = |flying: &Flying| {
                flying.request.op.is_modification() && flying.entry.is_none() && !flying.is_after_barrier
            };
            assert!(!self.around.flying.iter().any(is_left), "a barrier that has not waited");
            let is_half = self.around.outbox.is_some_and(|piece| piece.kind != super::Kind::Read)
                && !self.around.model.is_rest_after_barrier
                && !self.around.model.is_rest_cut;
            assert!(!is_half, "a barrier within a request");
        }
    }

    pub(super) fn replied(&mut self, reply: &Reply) {
        let is_it = |flying: &Flying| flying.request.id == reply.id;
        let place = self.around.flying.iter().position(is_it).expect("a reply to what is in flight");
        let flying = self.around.flying.remove(place);
        self.check_nothing_of(&flying);
        match reply.result {
            Ok(_) => {
                let is_in_turn =
                    !self.around.flying[..place].iter().any(|earlier| earlier.conflicts(&flying));
                assert!(is_in_turn, "{:?} ended before one that came first", flying.request);
                self.succeeded(&flying);
            }
            Err(errno) => self.failed(&flying, errno),
        }
        if let Some(data) = flying.data {
            self.release(data);
        }
    }

    fn check_nothing_of(&self, flying: &Flying) {
        use twinblock_core::block::Action::{Read, Write};
        let Some(data) = flying.data else { return };
        let legs = std::iter::once(&self.around.disk).chain(&self.around.replicas);
        for transfer in legs.flat_map(|leg| &leg.in_flight) {
            if let Read(used) | Write { data: used, .. } = transfer.transfer.action {
                assert_ne!(used.buffer, data.buffer, "answered before {:?}", transfer.transfer);
            }
        }
    }

    fn succeeded(&mut self, flying: &Flying) {
        match flying.request.op {
            Op::Read(data) => {
                let may_be = self.around.model.may_be;
                let read = self.around.arena.blocks(data);
                for (block, symbol) in range(flying.request.extent).zip(read) {
                    let is_right = *symbol <= super::OLD && may_be[block] & set_of(*symbol) != 0;
                    assert!(
                        is_right,
                        "P3: block {block} is read as {symbol:#x}, not one of {:#b}",
                        may_be[block]
                    );
                }
            }
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } => {
                self.check_p1(flying);
                for block in range(flying.request.extent) {
                    self.around.model.may_be[block] = set_of(flying.symbol());
                }
                if fua && !flying.has_disk_failed {
                    let bare = self.around.disk.volatile & mask(flying.request.extent);
                    assert_eq!(bare, 0, "answered and not durable");
                }
            }
            Op::Flush => self.check_flushed(flying),
            Op::Status => {}
        }
    }

    /// P1: each attached replica has the write, or is known not to.
    fn check_p1(&self, flying: &Flying) {
        let may_know = |link: &Link| link.is_attached && !link.has_crashed;
        for replica in (0..REPLICAS).filter(|replica| may_know(&self.around.links[*replica])) {
            for block in range(flying.request.extent) {
                let has_it = self.around.replicas[replica].content[block] == flying.symbol();
                assert!(has_it || self.misses(replica, block), "P1: block {block} of replica {replica}");
            }
        }
    }

    fn misses(&self, replica: usize, block: usize) -> bool {
        let extent = Extent { offset: block as u64 * BLOCK, length: BLOCK };
        self.machine.misses(replica as u8, extent)
            && self.machine.replica(replica as u8).is_some_and(|status| status.is_behind)
    }

    /// What was answered before a flush came is durable, here or on a replica, and on each that is current: one that was not
    /// reachable, or has failed it, is behind by what it may lose.
    fn check_flushed(&self, flying: &Flying) {
        let is_current = |replica: usize| {
            self.machine.replica(replica as u8).is_some_and(|status| status.is_attached && !status.is_behind)
        };
        let mut on_some = if flying.has_disk_failed { 0 } else { !self.around.disk.volatile };
        for replica in (0..REPLICAS).filter(|replica| is_current(*replica)) {
            let must = flying.attached & 1 << replica != 0 && self.around.model.stage == Stage::Running;
            let bare = self.around.replicas[replica].volatile & flying.covers;
            assert!(!must || bare == 0, "replica {replica} is not flushed");
            on_some |= !self.around.replicas[replica].volatile;
        }
        let bare = flying.covers & !on_some;
        assert!(bare == 0 || self.around.model.has_disk_failed, "{bare:#b} is durable nowhere");
    }

    fn failed(&mut self, flying: &Flying, errno: Errno) {
        let is_parting = errno == Errno::Shutdown && !self.around.is_open && flying.entry.is_none();
        let is_read_of_lost = matches!(flying.request.op, Op::Read(_)) && self.around.model.has_disk_failed;
        let is_expected = is_parting || (errno == Errno::Io && (flying.has_disk_failed || is_read_of_lost));
        assert!(is_expected, "{} disturbs the guest: {flying:?}", errno.name());
        if flying.request.op.is_modification() && flying.entry.is_some() {
            for block in range(flying.request.extent) {
                self.around.model.may_be[block] |= set_of(flying.symbol());
            }
        }
    }

    /// Everything that must hold between two steps.
    pub(super) fn check(&mut self) {
        assert_eq!(self.machine.broken_invariant(), None);
        assert_eq!(self.machine.stage(), self.around.model.stage);
        assert!(self.machine.in_flight() >= self.around.flying.len(), "a request was forgotten");
        for replica in 0..REPLICAS {
            let status = self.machine.replica(replica as u8).expect("there is such a place");
            let link = &mut self.around.links[replica];
            assert_eq!((status.is_attached, status.is_connected), (link.is_attached, link.is_up));
            assert_eq!(usize::from(status.in_flight), self.around.replicas[replica].in_flight.len());
            assert!(status.is_behind || !link.was_behind, "P2: replica {replica} is current by itself");
            link.was_behind = status.is_behind;
            // Until it is told that a replica was started anew, the primary cannot know what that has lost.
            let is_attached = link.is_attached && !link.has_crashed;
            for block in (0..BLOCKS).filter(|_| is_attached) {
                let is = self.around.replicas[replica].content[block];
                let is_right = self.explains(block) & set_of(is) != 0;
                assert!(is_right || self.misses(replica, block), "P1: block {block} of replica {replica}");
            }
        }
        for block in (0..BLOCKS).filter(|_| !self.around.model.has_disk_failed) {
            let is = self.around.disk.content[block];
            assert!(self.explains(block) & set_of(is) != 0, "block {block} of the disk is {is:#x}");
        }
    }

    /// What a block may be: as was answered, or as a request in flight makes it.
    fn explains(&self, block: usize) -> Mask {
        let flying = self.around.flying.iter().filter(|flying| {
            flying.request.op.is_modification() && range(flying.request.extent).contains(&block)
        });
        flying.fold(self.around.model.may_be[block], |may_be, flying| may_be | set_of(flying.symbol()))
    }

    /// It is busy only if its table is full, or if a barrier waits for the rest of a request.
    pub(super) fn check_busy(&self, request: &Request) {
        let barrier = self.around.model.barrier;
        let is_waiting = barrier.is_some_and(|barrier| !barrier.is_reached) && self.around.outbox.is_some();
        let is_full = self.machine.in_flight() >= self.places;
        assert!(is_full || is_waiting, "busy for nothing: {request:?}");
    }

    /// Everything that was asked is answered, but for what waits for the end of a barrier.
    pub(super) fn check_rest(&self) {
        let around = &self.around;
        let devices = std::iter::once(&around.disk).chain(&around.replicas);
        assert!(devices.into_iter().all(|device| device.in_flight.is_empty()));
        let Some(barrier) = around.model.barrier else {
            assert!(around.flying.is_empty(), "never answered: {:?}", around.flying);
            assert_eq!(self.machine.in_flight(), 0);
            return;
        };
        let waits = |flying: &Flying| flying.is_after_barrier || flying.entry.is_some();
        for (place, flying) in around.flying.iter().enumerate() {
            let is_behind = around.flying[..place].iter().any(|earlier| earlier.conflicts(flying));
            assert!(waits(flying) || is_behind, "never answered: {flying:?}");
        }
        assert!(barrier.is_reached, "the barrier is never reached");
    }
}
