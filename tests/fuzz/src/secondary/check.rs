//! What must hold after every step.

use twinblock_core::buffer::Spot;
use twinblock_core::secondary::Port;
use twinblock_core::{Errno, Extent, Identity, Op, Outcome, Stage, View};

use super::world::World;
use crate::disk::range;
use crate::known::Known;
use crate::requests::Flying;

/// What the disks should hold.
#[derive(Debug)]
pub(super) struct Model {
    stage: Stage,
    epoch: u64,
    was_broken: bool,
    /// The secondary disk before a failover.
    disk: Known,
    /// The guest's view; after a failover both.
    view: Known,
    /// Requests that were taken when the export took no modifications any more.
    late: Vec<u32>,
    /// Whose prepare was answered, with no modification of theirs after it.
    pub(super) prepared: Option<Identity>,
    /// An error was answered to a modification in this epoch, or an earlier one.
    pub(super) has_missed: bool,
    /// The same, before the epoch changed.
    pub(super) had_missed: bool,
}

impl Model {
    pub(super) fn new(disk: Vec<u8>) -> Self {
        Self {
            stage: Stage::None,
            epoch: 0,
            was_broken: false,
            view: Known::all(disk.clone()),
            disk: Known::all(disk),
            late: Vec::new(),
            prepared: None,
            has_missed: false,
            had_missed: false,
        }
    }

    pub(super) fn taken(&mut self, name: u32, stage: Stage) {
        if matches!(stage, Stage::Failover | Stage::FailoverFailed | Stage::Done) {
            self.late.push(name);
        }
    }
}

impl World<'_> {
    /// Notes what has changed.
    pub(super) fn observe(&mut self) {
        let (stage, epoch) = (self.machine.stage(), self.machine.epoch());
        let is_broken = self.machine.view() == View::Broken;
        if epoch != self.model.epoch {
            assert_eq!(epoch, self.model.epoch + 1, "one epoch after the other");
            assert!(!self.disk.is_changing(), "S2: an epoch ends with a modification in flight");
            self.show_disk();
            self.model.epoch = epoch;
            self.model.prepared = None;
            self.model.had_missed = std::mem::take(&mut self.model.has_missed);
        }
        if stage != self.model.stage {
            self.moved(stage);
        }
        if is_broken && !self.model.was_broken {
            self.flying.iter_mut().for_each(|flying| flying.is_certain = false);
        }
        self.model.was_broken = is_broken;
    }

    fn moved(&mut self, stage: Stage) {
        let is_legal = matches!(
            (self.model.stage, stage),
            (Stage::None, Stage::Running)
                | (Stage::Running, Stage::Failover | Stage::Done)
                | (Stage::Failover, Stage::FailoverFailed | Stage::Done)
                | (Stage::FailoverFailed, Stage::Failover)
        );
        assert!(is_legal, "{:?} is followed by {stage:?}", self.model.stage);
        if (self.model.stage, stage) == (Stage::Running, Stage::Done) {
            self.show_disk();
        }
        // A read may have been answered from either side of the move; a write goes on.
        for flying in self.flying.iter_mut().filter(|flying| !flying.is_change()) {
            flying.is_certain = false;
        }
        self.model.stage = stage;
    }

    /// The view becomes what the disk holds; what the guest is writing may be lost, or half of it.
    fn show_disk(&mut self) {
        self.model.view = Known::all(self.disk.bytes.clone());
        for flying in self.flying.iter_mut().filter(|flying| flying.about == Port::Guest) {
            flying.is_certain = false;
            if flying.is_change() {
                self.model.view.forget(flying.request.extent);
            }
        }
    }

    /// What the guest would read: the buffer first, then the disk.
    fn resolve(&self) -> Vec<u8> {
        let mut view = self.disk.bytes.clone();
        let mut rest = Extent { offset: 0, length: view.len() as u64 };
        while !rest.is_empty() {
            let found = self.machine.buffer().find(rest);
            let part = Extent { length: found.length, ..rest };
            match found.spot {
                Spot::Slot(at) => {
                    let slots = range(Extent { offset: at, length: part.length });
                    view[range(part)].copy_from_slice(&self.buffer.bytes[slots]);
                }
                Spot::Zeroes => view[range(part)].fill(0),
                Spot::Absent => {}
            }
            rest = Extent::between(part.end(), rest.end());
        }
        view
    }

    /// Disk and view are what they should be, but for what requests in flight may have done.
    pub(super) fn compare(&self) {
        let (stage, is_broken) = (self.machine.stage(), self.machine.view() == View::Broken);
        let is_touched = |port: Port| {
            move |byte: u64| self.flying.iter().any(|flying| flying.about == port && flying.touches(byte))
        };
        if matches!(stage, Stage::None | Stage::Running) {
            let byte = self.model.disk.differing(&self.disk.bytes, 0, is_touched(Port::Replication));
            assert_eq!(byte, None, "the disk holds something else");
        }
        let is_served = match stage {
            Stage::None => false,
            Stage::Running => !is_broken,
            Stage::Failover | Stage::FailoverFailed | Stage::Done => true,
        };
        if is_served {
            let is = if stage == Stage::Done { &self.disk.bytes } else { &self.resolve() };
            let byte = self.model.view.differing(is, 0, is_touched(Port::Guest));
            assert_eq!(byte, None, "the guest sees something else");
        }
    }

    /// A request was answered.
    pub(super) fn replied(
        &mut self,
        flying: &Flying<Port>,
        result: Result<Outcome, Errno>,
        data: Option<&[u8]>,
    ) {
        let extent = flying.request.extent;
        let is_late = self.model.late.contains(&flying.request.id.0);
        self.model.late.retain(|name| *name != flying.request.id.0);
        let (stage, port) = (self.model.stage, flying.about);
        if flying.is_change() && port == Port::Replication && is_late {
            assert_eq!(result, Err(Errno::Shutdown), "{:?} after the end", flying.request);
            return;
        }
        match (flying.request.op, result) {
            (Op::Read(_), Ok(_)) if flying.is_certain => self.check_read(flying, data.unwrap_or_default()),
            (Op::Write { .. } | Op::WriteZeroes { .. }, Ok(_)) => {
                assert!(stage != Stage::None || port == Port::Replication, "a write without a view");
                let known = if port == Port::Guest { &mut self.model.view } else { &mut self.model.disk };
                known.set(extent, &flying.new);
                if !flying.is_certain && port == Port::Guest {
                    known.forget(extent);
                }
            }
            (Op::Write { .. } | Op::WriteZeroes { .. }, Err(errno)) => {
                if port == Port::Guest {
                    self.model.view.forget(extent);
                } else if !Self::is_own(errno) {
                    self.model.disk.forget(extent);
                }
                let is_missed = matches!(errno, Errno::Io | Errno::NoSpace | Errno::NoMemory);
                if port == Port::Replication && stage == Stage::Running && is_missed {
                    assert!(self.machine.is_behind(), "an error was answered, and nothing is missing");
                    self.model.has_missed = true;
                }
            }
            _ => {}
        }
    }

    fn check_read(&self, flying: &Flying<Port>, data: &[u8]) {
        let is_broken = self.machine.view() == View::Broken;
        let known = match (self.model.stage, flying.about) {
            (Stage::None, Port::Guest) => panic!("a read without a view"),
            (Stage::Running, Port::Guest) if is_broken => return,
            (Stage::None | Stage::Running, Port::Replication) => &self.model.disk,
            (Stage::Failover | Stage::FailoverFailed, Port::Replication) => return,
            (_, Port::Guest) | (Stage::Done, Port::Replication) => &self.model.view,
        };
        let byte = known.differing(data, flying.request.extent.offset, |_| false);
        assert_eq!(byte, None, "{:?} reads something else", flying.request);
    }
}
