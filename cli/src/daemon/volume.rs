//! A volume: one machine with its devices, as the daemon handles it whatever its role.

use std::mem;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::Instant;

use twinblock_core::block::{BlockDevice, Geometry};
use twinblock_core::control::{
    BufferReport, CheckpointReport, CommitReport, Histogram, ReplicaReport, Role, VolumeReport,
};
use twinblock_core::driver::{Emitted, Links};
use twinblock_core::node::{Managed, MemberIndex, Operation};
use twinblock_core::primary::{self, ReplicaStatus};
use twinblock_core::secondary::{self, Port, Secondary};
use twinblock_core::{CommandId, ConnectionId, ErrorCounters, Identity, Micros, Refused, Request, Stage};
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::nbd_disk::NbdDisk;

use super::cells::{PrimaryCell, SecondaryCell};
use super::devices::{AnyDisk, ReplicaLink};
use super::links::Links as ControlLinks;
use crate::spec::REPLICAS_MAX;

/// The links of a primary: one for each of the first places for replicas, as many as were ever used.
#[derive(Debug)]
pub(super) struct ReplicaLinks(pub(super) Vec<ReplicaLink>);

impl Links for ReplicaLinks {
    type Link = ReplicaLink;

    fn links(&mut self) -> &mut [ReplicaLink] {
        &mut self.0
    }
}

/// Either role, or none: the place of a volume that was removed, until another one comes.
pub(super) enum Machine {
    Primary(PrimaryCell),
    Secondary(SecondaryCell),
    Vacant,
}

/// A primary's machine, to be told something.
pub(super) struct PrimaryHandle<'v>(&'v mut PrimaryCell);

impl PrimaryHandle<'_> {
    pub(super) fn offer(self, now: Micros, input: primary::Input) -> Result<(), Refused> {
        self.0.with_dependent_mut(|_, driver| driver.offer(now, input))
    }
}

/// A secondary's machine, to be told something.
pub(super) struct SecondaryHandle<'v>(&'v mut SecondaryCell);

impl SecondaryHandle<'_> {
    pub(super) fn offer(self, now: Micros, input: secondary::Input) -> Result<(), Refused> {
        self.0.with_dependent_mut(|_, driver| driver.offer(now, input))
    }
}

/// What a place without a volume says of itself.
#[derive(Default)]
struct Nobody(ErrorCounters);

static NOBODY: LazyLock<Nobody> = LazyLock::new(Nobody::default);

impl Managed for Nobody {
    fn check(&self, _: Operation) -> Result<(), Refused> {
        Ok(())
    }

    fn stage(&self) -> Stage {
        Stage::None
    }

    fn errors(&self) -> &ErrorCounters {
        &self.0
    }

    fn is_behind(&self) -> bool {
        false
    }
}

/// What the daemon knows of a replica beside the machine.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) name: String,
    /// Its node in the graph.
    pub(super) node: String,
    /// Its place in the checkpoint of the pair, if its control address is known.
    pub(super) member: Option<MemberIndex>,
    /// Who attached it waits for the first connection, or until then.
    pub(super) attaching: Option<(CommandId, Micros)>,
}

/// One volume.
pub(super) struct Volume {
    pub(super) name: String,
    /// The node that stands for it in the graph: a quorum, or the replication node of a secondary.
    pub(super) node: String,
    pub(super) machine: Machine,
    /// By the machine's replica index; `None` where none ever was.
    pub(super) replicas: Vec<Option<Replica>>,
    /// Buffers of the pool that the machine has for itself.
    pub(super) scratch: Range<u16>,
    /// Their memory was given back, and the machine has done nothing since.
    pub(super) is_rested: bool,
    pub(super) checkpoint_times: Histogram,
    /// When the checkpoint under way began.
    pub(super) checkpoint_began: Option<Instant>,
}

impl Volume {
    pub(super) fn poll(&mut self, now: Micros, pool: &mut HostPool, budget: &mut u32) -> Option<Emitted> {
        match &mut self.machine {
            Machine::Primary(cell) => {
                cell.with_dependent_mut(|_, driver| driver.poll_within(now, pool, budget))
            }
            Machine::Secondary(cell) => {
                cell.with_dependent_mut(|_, driver| driver.poll_within(now, pool, budget))
            }
            Machine::Vacant => None,
        }
    }

    /// When it has something to do next, if nobody touches it before.
    pub(super) fn next_deadline(&mut self) -> Option<Micros> {
        let own = [self.poll_timeout(), self.attaching_until()];
        let disks = self.nbd_disks().filter_map(|(_, disk)| disk.next_deadline());
        disks.chain(own.into_iter().flatten()).min()
    }

    /// Whether a message is on its way whose buffers come back only when its link is serviced again.
    pub(super) fn is_sending(&mut self) -> bool {
        self.nbd_disks().any(|(_, disk)| disk.is_sending())
    }

    fn poll_timeout(&self) -> Option<Micros> {
        match &self.machine {
            Machine::Primary(cell) => cell.with_dependent(|_, driver| driver.poll_timeout()),
            Machine::Secondary(cell) => cell.with_dependent(|_, driver| driver.poll_timeout()),
            Machine::Vacant => None,
        }
    }

    /// Tells the machine what it is told in either role.
    fn offer(
        &mut self,
        now: Micros,
        input: primary::Input,
        standby: secondary::Input,
    ) -> Result<(), Refused> {
        match &mut self.machine {
            Machine::Primary(cell) => PrimaryHandle(cell).offer(now, input),
            Machine::Secondary(cell) => SecondaryHandle(cell).offer(now, standby),
            Machine::Vacant => Err(Refused::Stale),
        }
    }

    pub(super) fn open(
        &mut self,
        now: Micros,
        connection: ConnectionId,
        port: Port,
        identity: Option<Identity>,
    ) -> Result<(), Refused> {
        let standby = secondary::Input::Opened { connection, port, identity };
        self.offer(now, primary::Input::Opened(connection), standby)
    }

    /// A connection has ended. One that was refused at opening is not known, which is no error.
    pub(super) fn close(&mut self, now: Micros, connection: ConnectionId, is_clean: bool) {
        let standby = secondary::Input::Closed { connection, is_clean };
        let _ = self.offer(now, primary::Input::Closed(connection), standby);
    }

    pub(super) fn request(
        &mut self,
        now: Micros,
        connection: ConnectionId,
        request: Request,
    ) -> Result<(), Refused> {
        let standby = secondary::Input::Request(connection, request);
        self.offer(now, primary::Input::Request(connection, request), standby)
    }

    /// A command for a secondary, or one that both roles have. A primary's checkpoint is the coordinator's.
    pub(super) fn command(
        &mut self,
        now: Micros,
        command: CommandId,
        operation: Operation,
    ) -> Result<(), Refused> {
        let wanted = match operation {
            Operation::Start { primary } => primary::Command::Start { primary },
            Operation::Checkpoint { .. } => primary::Command::Barrier { is_urgent: false },
            Operation::Stop { .. } => primary::Command::Stop,
        };
        if matches!(operation, Operation::Checkpoint { .. }) && !self.is_primary() {
            self.checkpoint_began = Some(Instant::now());
        }
        let standby = secondary::Input::Command(command, operation.into());
        self.offer(now, primary::Input::Command(command, wanted), standby)
    }

    pub(super) fn managed(&self) -> &dyn Managed {
        match &self.machine {
            Machine::Primary(cell) => cell.with_dependent(|_, driver| {
                let managed: &dyn Managed = driver.machine();
                managed
            }),
            Machine::Secondary(cell) => cell.with_dependent(|_, driver| {
                let managed: &dyn Managed = driver.machine();
                managed
            }),
            Machine::Vacant => &*NOBODY,
        }
    }

    pub(super) const fn primary(&mut self) -> Option<PrimaryHandle<'_>> {
        match &mut self.machine {
            Machine::Primary(cell) => Some(PrimaryHandle(cell)),
            Machine::Secondary(_) | Machine::Vacant => None,
        }
    }

    pub(super) const fn secondary(&mut self) -> Option<SecondaryHandle<'_>> {
        match &mut self.machine {
            Machine::Secondary(cell) => Some(SecondaryHandle(cell)),
            Machine::Primary(_) | Machine::Vacant => None,
        }
    }

    /// What is true of a secondary's machine.
    pub(super) fn standby<R>(&self, look: impl FnOnce(&Secondary<'_>) -> R) -> Option<R> {
        match &self.machine {
            Machine::Primary(_) | Machine::Vacant => None,
            Machine::Secondary(cell) => Some(cell.with_dependent(|_, driver| look(driver.machine()))),
        }
    }

    /// There is none here: the place waits for another one.
    pub(super) const fn is_vacant(&self) -> bool {
        matches!(self.machine, Machine::Vacant)
    }

    /// The connection of the primary that replicates to this secondary.
    pub(super) fn claim_holder(&self) -> Option<ConnectionId> {
        match &self.machine {
            Machine::Primary(_) | Machine::Vacant => None,
            Machine::Secondary(cell) => cell.with_dependent(|_, driver| driver.machine().claim_holder()),
        }
    }

    /// Of its disk, with the blocks that clients may address.
    pub(super) fn geometry(&self) -> Geometry {
        match &self.machine {
            Machine::Primary(cell) => cell.with_dependent(|_, driver| driver.devices().disk.geometry()),
            Machine::Secondary(cell) => cell.with_dependent(|_, driver| Geometry {
                block_bytes: driver.machine().block_bytes(),
                ..driver.devices().disk.geometry()
            }),
            Machine::Vacant => AnyDisk::Gone.geometry(),
        }
    }

    pub(super) const fn is_primary(&self) -> bool {
        matches!(self.machine, Machine::Primary(_))
    }

    pub(super) fn stage(&self) -> Stage {
        self.managed().stage()
    }

    /// Whether it copies its buffer to its disk.
    pub(super) fn is_taking_over(&self) -> bool {
        self.standby(|machine| machine.stage()) == Some(Stage::Failover)
    }

    pub(super) fn epoch(&self) -> u64 {
        match &self.machine {
            Machine::Primary(cell) => cell.with_dependent(|_, driver| driver.machine().epoch()),
            Machine::Secondary(cell) => cell.with_dependent(|_, driver| driver.machine().epoch()),
            Machine::Vacant => 0,
        }
    }

    /// Requests of clients and transfers under way.
    pub(super) fn in_flight(&self) -> usize {
        match &self.machine {
            Machine::Primary(cell) => cell.with_dependent(|_, driver| driver.machine().in_flight()),
            Machine::Secondary(cell) => cell.with_dependent(|_, driver| driver.machine().in_flight()),
            Machine::Vacant => 0,
        }
    }

    /// Every NBD disk of it, with what identifies it: `None` the disk itself, `Some` the replica.
    pub(super) fn nbd_disks(&mut self) -> impl Iterator<Item = (Option<u8>, &mut NbdDisk)> {
        let (disk, links) = match &mut self.machine {
            Machine::Primary(cell) => cell.with_dependent_mut(|_, driver| {
                let devices = driver.devices_mut();
                (Some(&mut devices.disk), devices.replicas.0.as_mut_slice())
            }),
            Machine::Secondary(cell) => {
                (Some(cell.with_dependent_mut(|_, driver| &mut driver.devices_mut().disk)), &mut [][..])
            }
            Machine::Vacant => (None, &mut [][..]),
        };
        let replicas = links.iter_mut().enumerate();
        let replicas = replicas.map(|(index, link)| (Some(index as u8), link.disk_mut()));
        disk.and_then(AnyDisk::nbd_mut).map(|disk| (None, disk)).into_iter().chain(replicas)
    }

    /// The link to a replica, whether one is attached there or not.
    pub(super) fn nbd_disk(&mut self, replica: u8) -> Option<&mut NbdDisk> {
        let links = self.links();
        links.get_mut(usize::from(replica)).map(ReplicaLink::disk_mut)
    }

    /// Whether a replica's link is closed, or was never made.
    pub(super) fn is_link_closed(&mut self, replica: usize) -> bool {
        self.links().get_mut(replica).is_none_or(|link| link.disk_mut().is_closed())
    }

    /// How many links there are.
    pub(super) fn link_count(&mut self) -> usize {
        self.links().len()
    }

    /// Gives the next place for a replica its link.
    pub(super) fn add_link(&mut self, link: ReplicaLink) {
        if let Machine::Primary(cell) = &mut self.machine {
            cell.with_dependent_mut(|_, driver| driver.devices_mut().replicas.0.push(link));
        }
    }

    /// The links of a primary.
    fn links(&mut self) -> &mut [ReplicaLink] {
        match &mut self.machine {
            Machine::Primary(cell) => {
                cell.with_dependent_mut(|_, driver| driver.devices_mut().replicas.0.as_mut_slice())
            }
            Machine::Secondary(_) | Machine::Vacant => &mut [],
        }
    }

    /// Removes the machine and gives back what it worked on: its disk, and the links of a primary. Nothing may be in
    /// flight.
    pub(super) fn vacate(&mut self) -> (AnyDisk, Vec<ReplicaLink>) {
        let mut given = (AnyDisk::Gone, Vec::new());
        match &mut self.machine {
            Machine::Primary(cell) => cell.with_dependent_mut(|_, driver| {
                let devices = driver.devices_mut();
                given = (mem::take(&mut devices.disk), mem::take(&mut devices.replicas.0));
            }),
            Machine::Secondary(cell) => cell.with_dependent_mut(|_, driver| {
                given.0 = mem::take(&mut driver.devices_mut().disk);
            }),
            Machine::Vacant => {}
        }
        *self = Self::vacant();
        given
    }

    /// A place without a volume.
    pub(super) fn vacant() -> Self {
        Self::new(String::new(), String::new(), Machine::Vacant)
    }

    /// A volume with this machine; the node that it is in the graph.
    pub(super) fn new(name: String, node: String, machine: Machine) -> Self {
        let replicas =
            if matches!(machine, Machine::Primary(_)) { vec![None; REPLICAS_MAX] } else { Vec::new() };
        Self {
            name,
            node,
            machine,
            replicas,
            scratch: 0..0,
            is_rested: true,
            checkpoint_times: Histogram::new(),
            checkpoint_began: None,
        }
    }

    /// When somebody has waited long enough for a replica that was attached.
    fn attaching_until(&self) -> Option<Micros> {
        let waits = self.replicas.iter().flatten().filter_map(|replica| replica.attaching);
        waits.map(|(_, until)| until).min()
    }

    /// What a checkpoint took, once it has ended well.
    pub(super) fn record_checkpoint(&mut self, is_taken: bool) {
        if let Some(began) = self.checkpoint_began.take()
            && is_taken
        {
            self.checkpoint_times.record(Micros(began.elapsed().as_micros() as u64));
        }
    }

    /// The replicas that are attached, by index.
    pub(super) fn attached(&self) -> impl Iterator<Item = (u8, &Replica)> {
        let is_attached = |index: u8| self.replica(index).is_some_and(|status| status.is_attached);
        let named = self.replicas.iter().enumerate();
        let named = named.filter_map(|(index, replica)| Some((index as u8, replica.as_ref()?)));
        named.filter(move |(index, _)| is_attached(*index))
    }

    fn replica(&self, index: u8) -> Option<ReplicaStatus> {
        match &self.machine {
            Machine::Primary(cell) => cell.with_dependent(|_, driver| driver.machine().replica(index)),
            Machine::Secondary(_) | Machine::Vacant => None,
        }
    }

    /// The first replica that is behind, by name.
    pub(super) fn replica_behind(&self) -> Option<&str> {
        let is_behind = |index| self.replica(index).is_some_and(|status| status.is_behind);
        self.attached().find(|(index, _)| is_behind(*index)).map(|(_, replica)| replica.name.as_str())
    }

    /// What is told of each; `control` are the links to their nodes.
    pub(super) fn replica_reports<'a>(
        &'a self,
        control: &'a ControlLinks,
    ) -> impl Iterator<Item = ReplicaReport<'a>> {
        self.attached().filter_map(move |(index, replica)| {
            let status = self.replica(index)?;
            Some(ReplicaReport {
                name: &replica.name,
                is_connected: status.is_connected,
                is_controlled: replica.member.map(|member| control.is_up(member)),
                is_behind: status.is_behind,
                dirty_bytes: status.dirty_bytes,
                in_flight_count: u64::from(status.in_flight),
            })
        })
    }

    pub(super) fn report(&self) -> VolumeReport<'_> {
        let managed = self.managed();
        let (role, size_bytes, granule_bytes, buffer, commit) = match &self.machine {
            Machine::Primary(cell) => cell.with_dependent(|_, driver| {
                let machine = driver.machine();
                let granule_bytes = u64::from(machine.config().dirty_granule_bytes);
                (Role::Primary, machine.size_bytes(), granule_bytes, None, None)
            }),
            Machine::Secondary(cell) => cell.with_dependent(|_, driver| {
                let machine = driver.machine();
                let (size_bytes, granule_bytes) = (machine.size_bytes(), machine.buffer().granule_bytes());
                let (buffer, commit) = (BufferReport::from(machine), CommitReport::of(machine));
                (Role::Secondary, size_bytes, granule_bytes, Some(buffer), commit)
            }),
            Machine::Vacant => (Role::Secondary, 0, 0, None, None),
        };
        VolumeReport {
            name: &self.name,
            role,
            stage: managed.stage(),
            epoch: self.epoch(),
            size_bytes,
            granule_bytes,
            is_behind: managed.is_behind(),
            buffer,
            commit,
            checkpoint: Some(CheckpointReport::from(&self.checkpoint_times)),
            errors: *managed.errors(),
        }
    }
}
