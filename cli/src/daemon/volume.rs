//! A volume: one machine with its devices, as the daemon handles it whatever its role.

use std::ops::Range;
use std::time::Instant;

use twinblock_core::control::{
    BufferReport, CheckpointReport, CommitReport, FullPolicy, Histogram, ReplicaReport, Role, VolumeReport,
};
use twinblock_core::driver::{Driver, Emitted, Links, PrimaryDevices, SecondaryDevices};
use twinblock_core::node::{Managed, MemberIndex, Operation};
use twinblock_core::primary::{self, Primary};
use twinblock_core::secondary::{self, Port, Secondary, WhenFull};
use twinblock_core::{CommandId, ConnectionId, Identity, Micros, Refused, Request, Stage};
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::nbd_disk::NbdDisk;

use super::devices::{AnyBuffer, AnyDisk, ReplicaLink};

/// The links of a primary, one place for each replica that there can be.
#[derive(Debug)]
pub(super) struct ReplicaLinks(pub(super) Vec<ReplicaLink>);

impl Links for ReplicaLinks {
    type Link = ReplicaLink;

    fn links(&mut self) -> &mut [ReplicaLink] {
        &mut self.0
    }
}

pub(super) type PrimaryDriver = Driver<Primary<'static>, PrimaryDevices<AnyDisk, ReplicaLinks>>;
pub(super) type SecondaryDriver = Driver<Secondary<'static>, SecondaryDevices<AnyDisk, AnyBuffer>>;

/// Either role.
#[derive(Debug)]
pub(super) enum Machine {
    Primary(Box<PrimaryDriver>),
    Secondary(Box<SecondaryDriver>),
}

/// What the daemon knows of a replica beside the machine.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) name: String,
    /// Its place in the checkpoint of the pair, if its control address is known.
    pub(super) member: Option<MemberIndex>,
    /// Who attached it waits for the first connection, or until then.
    pub(super) attaching: Option<(CommandId, Micros)>,
}

/// One volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) name: String,
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
            Machine::Primary(driver) => driver.poll_within(now, pool, budget),
            Machine::Secondary(driver) => driver.poll_within(now, pool, budget),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Micros> {
        match &self.machine {
            Machine::Primary(driver) => driver.poll_timeout(),
            Machine::Secondary(driver) => driver.poll_timeout(),
        }
    }

    pub(super) fn open(
        &mut self,
        now: Micros,
        connection: ConnectionId,
        port: Port,
        identity: Option<Identity>,
    ) -> Result<(), Refused> {
        match &mut self.machine {
            Machine::Primary(driver) => driver.offer(now, primary::Input::Opened(connection)),
            Machine::Secondary(driver) => {
                driver.offer(now, secondary::Input::Opened { connection, port, identity })
            }
        }
    }

    /// A connection has ended. One that was refused at opening is not known, which is no error.
    pub(super) fn close(&mut self, now: Micros, connection: ConnectionId, is_clean: bool) {
        let _ = match &mut self.machine {
            Machine::Primary(driver) => driver.offer(now, primary::Input::Closed(connection)),
            Machine::Secondary(driver) => {
                driver.offer(now, secondary::Input::Closed { connection, is_clean })
            }
        };
    }

    pub(super) fn request(
        &mut self,
        now: Micros,
        connection: ConnectionId,
        request: Request,
    ) -> Result<(), Refused> {
        match &mut self.machine {
            Machine::Primary(driver) => driver.offer(now, primary::Input::Request(connection, request)),
            Machine::Secondary(driver) => driver.offer(now, secondary::Input::Request(connection, request)),
        }
    }

    /// A command for a secondary, or one that both roles have. A primary's checkpoint is the coordinator's.
    pub(super) fn command(
        &mut self,
        now: Micros,
        command: CommandId,
        operation: Operation,
    ) -> Result<(), Refused> {
        match &mut self.machine {
            Machine::Primary(driver) => {
                let wanted = match operation {
                    Operation::Start { primary } => primary::Command::Start { primary },
                    Operation::Checkpoint { .. } => primary::Command::Barrier { is_urgent: false },
                    Operation::Stop { .. } => primary::Command::Stop,
                };
                driver.offer(now, primary::Input::Command(command, wanted))
            }
            Machine::Secondary(driver) => {
                if matches!(operation, Operation::Checkpoint { .. }) {
                    self.checkpoint_began = Some(Instant::now());
                }
                driver.offer(now, secondary::Input::Command(command, operation.into()))
            }
        }
    }

    pub(super) fn managed(&self) -> &dyn Managed {
        match &self.machine {
            Machine::Primary(driver) => driver.machine(),
            Machine::Secondary(driver) => driver.machine(),
        }
    }

    pub(super) fn primary(&mut self) -> Option<&mut PrimaryDriver> {
        match &mut self.machine {
            Machine::Primary(driver) => Some(driver),
            Machine::Secondary(_) => None,
        }
    }

    pub(super) fn secondary(&mut self) -> Option<&mut SecondaryDriver> {
        match &mut self.machine {
            Machine::Primary(_) => None,
            Machine::Secondary(driver) => Some(driver),
        }
    }

    /// A secondary's machine.
    pub(super) fn standby(&self) -> Option<&Secondary<'static>> {
        match &self.machine {
            Machine::Primary(_) => None,
            Machine::Secondary(driver) => Some(driver.machine()),
        }
    }

    /// The connection of the primary that replicates to this secondary.
    pub(super) fn claim_holder(&self) -> Option<ConnectionId> {
        match &self.machine {
            Machine::Primary(_) => None,
            Machine::Secondary(driver) => driver.machine().claim_holder(),
        }
    }

    pub(super) const fn is_primary(&self) -> bool {
        matches!(self.machine, Machine::Primary(_))
    }

    pub(super) fn stage(&self) -> Stage {
        self.managed().stage()
    }

    pub(super) fn epoch(&self) -> u64 {
        match &self.machine {
            Machine::Primary(driver) => driver.machine().epoch(),
            Machine::Secondary(driver) => driver.machine().epoch(),
        }
    }

    /// Requests of clients and transfers under way.
    pub(super) fn in_flight(&self) -> usize {
        match &self.machine {
            Machine::Primary(driver) => driver.machine().in_flight(),
            Machine::Secondary(driver) => driver.machine().in_flight(),
        }
    }

    /// Every NBD disk of it, with what identifies it: `None` the disk itself, `Some` the replica.
    pub(super) fn nbd_disks(&mut self) -> impl Iterator<Item = (Option<u8>, &mut NbdDisk)> {
        let (disk, links) = match &mut self.machine {
            Machine::Primary(driver) => {
                let devices = driver.devices_mut();
                (&mut devices.disk, devices.replicas.0.as_mut_slice())
            }
            Machine::Secondary(driver) => (&mut driver.devices_mut().disk, &mut [][..]),
        };
        let replicas = links.iter_mut().enumerate();
        let replicas = replicas.map(|(index, link)| (Some(index as u8), link.disk_mut()));
        disk.nbd_mut().map(|disk| (None, disk)).into_iter().chain(replicas)
    }

    /// The link to a replica, whether one is attached there or not.
    pub(super) fn nbd_disk(&mut self, replica: u8) -> Option<&mut NbdDisk> {
        match &mut self.machine {
            Machine::Primary(driver) => {
                let links = &mut driver.devices_mut().replicas.0;
                links.get_mut(usize::from(replica)).map(ReplicaLink::disk_mut)
            }
            Machine::Secondary(_) => None,
        }
    }

    /// Which places for replicas have a link that is closed.
    pub(super) fn closed_links(&mut self) -> Vec<bool> {
        match &mut self.machine {
            Machine::Primary(driver) => {
                driver.devices_mut().replicas.0.iter_mut().map(|link| link.disk_mut().is_closed()).collect()
            }
            Machine::Secondary(_) => Vec::new(),
        }
    }

    /// When somebody has waited long enough for a replica that was attached.
    pub(super) fn attaching_until(&self) -> Option<Micros> {
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
        let is_attached = |index: u8| match &self.machine {
            Machine::Primary(driver) => {
                driver.machine().replica(index).is_some_and(|status| status.is_attached)
            }
            Machine::Secondary(_) => false,
        };
        let named = self.replicas.iter().enumerate();
        let named = named.filter_map(|(index, replica)| Some((index as u8, replica.as_ref()?)));
        named.filter(move |(index, _)| is_attached(*index))
    }

    pub(super) fn replica_reports(&self) -> impl Iterator<Item = ReplicaReport<'_>> {
        self.attached().filter_map(|(index, replica)| {
            let Machine::Primary(driver) = &self.machine else { return None };
            let status = driver.machine().replica(index)?;
            Some(ReplicaReport {
                name: &replica.name,
                is_connected: status.is_connected,
                is_behind: status.is_behind,
                dirty_bytes: status.dirty_bytes,
                in_flight_count: u64::from(status.in_flight),
            })
        })
    }

    pub(super) fn report(&self) -> VolumeReport<'_> {
        let managed = self.managed();
        let (role, size_bytes, granule_bytes, buffer, commit) = match &self.machine {
            Machine::Primary(driver) => {
                let machine = driver.machine();
                let granule_bytes = u64::from(machine.config().dirty_granule_bytes);
                (Role::Primary, machine.size_bytes(), granule_bytes, None, None)
            }
            Machine::Secondary(driver) => {
                let machine = driver.machine();
                let buffer = machine.buffer();
                let report = BufferReport {
                    size_bytes: buffer.size_bytes(),
                    used_bytes: buffer.used_bytes(),
                    policy: match machine.config().when_full {
                        WhenFull::Stall => FullPolicy::Stall,
                        WhenFull::Break => FullPolicy::Break,
                    },
                    view: machine.view(),
                    held_count: u64::from(machine.held()),
                };
                let progress = machine.progress();
                let has_failed_over = matches!(machine.stage(), Stage::Failover | Stage::FailoverFailed)
                    || progress.total_bytes != 0;
                let commit =
                    CommitReport { total_bytes: progress.total_bytes, done_bytes: progress.done_bytes };
                let commit = has_failed_over.then_some(commit);
                (Role::Secondary, machine.size_bytes(), buffer.granule_bytes(), Some(report), commit)
            }
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
