//! How a daemon begins: with what it needs itself, then with the volumes of the command line or the file. Those are made of
//! the same nodes, servers and exports that managers make.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tracing::subscriber::NoSubscriber;
use tracing::{info, warn};
use twinblock_core::nbd::RUN_MIN;
use twinblock_core::node::Operation;
use twinblock_core::{Identity, Micros};
use twinblock_io_posix::memory::{Counts, HostPool, PoolSizes};
use twinblock_io_posix::nbd_disk::{NbdDisk, NbdOptions};
use twinblock_io_posix::poller::{Interest, Poller, Registration};
use twinblock_io_posix::socket::{ListenOptions, Listener, PeerTimeout};

use super::awake::Awake;
use super::build::{self, Stores};
use super::clients::Clients;
use super::edge::Edge;
use super::jobs::{Jobs, Waiter};
use super::links::Links;
use super::managers::Managers;
use super::names::Names;
use super::nodes::{Added, Nodes};
use super::pair::{NewReplica, Pair};
use super::token::{Kind, token};
use super::{Daemon, Life, REST, limits};
use crate::failure::Failure;
use crate::graph::{Child, Driver, Graph, NodeSpec};
use crate::spec::{Address, DaemonSpec, Disk, NbdUri, VolumeSpec};

/// Small buffers of the pool that clients share, beside one for each connection: a client alone gets half of them, as many
/// as it can have requests in flight. They cost little: a request of 4 KiB touches no more than that of its buffer.
const SMALL_BUFFERS: u16 = 512;
/// Large buffers that clients share, beside the machines' own and one for each connection. A client alone gets half of
/// them: 3 MiB on their way, 15 times what a socket holds. With 48 of them 1 MiB writes at depth 8 and 64 KiB writes at
/// depth 32 were no faster, and a load of everything at once occupied 20 MiB in a secondary and 22 in a primary; with these
/// it is 15 and 17 (tests/memory/run).
const LARGE_BUFFERS: u16 = 24;
/// Buffers for what a primary can have sent to one secondary: as many as the primary itself has, so that held writes do
/// not keep the rest from being received. They are for the connection that holds the claim.
const REPLICATION_SMALL: u16 = build::REPLICATION_REQUESTS;
const REPLICATION_LARGE: u16 = LARGE_BUFFERS;
/// Volumes, and secondaries among them, that there is room for at least: managers can add some to those of the start.
const VOLUMES_MIN: usize = 16;
const SECONDARIES_MIN: usize = 8;
/// How long to wait at start for a disk that another server serves.
const NBD_START_MAX: Duration = Duration::from_secs(10);

impl Daemon {
    pub(super) fn start(spec: &DaemonSpec) -> Result<Self, Failure> {
        let started = Instant::now();
        let failed = |what: &str, error: &dyn std::fmt::Display| Failure::Refused(format!("{what}: {error}"));
        let volumes_max = spec.volumes.len().max(VOLUMES_MIN);
        let (places, too_few) = limits::connections(spec.connections_max, volumes_max);
        let descriptors = places + 512;
        let Edge { mut poller, workers, backend } = Edge::start(spec.backend, descriptors)?;
        let signals = signals(&mut poller).map_err(|error| failed("cannot hear signals", &error))?;
        let secondaries =
            spec.volumes.iter().filter(|volume| matches!(volume, VolumeSpec::Secondary(_))).count();
        let secondaries = secondaries.max(SECONDARIES_MIN);
        let mut pool = pool(places, secondaries)?;
        let stores = Stores::new(&mut pool, workers, secondaries, spec.connections_max);
        let stores = stores.map_err(Failure::Refused)?;
        let handshake_max = Micros(spec.handshake_timeout.0.as_micros() as u64);
        let names = Names::new(poller.waker()).map_err(|error| failed("cannot start threads", &error))?;
        let identity = new_identity().map_err(|error| failed("cannot choose an identity", &error))?;
        let mut daemon = Self {
            started,
            now: Micros(0),
            life: Life::Serving,
            clients: Clients::new(usize::from(places), pool.large_bytes(), handshake_max, run_of(identity)),
            pool,
            volumes: Awake::with_capacity(volumes_max),
            volumes_max,
            graph: Graph::default(),
            nodes: Nodes::default(),
            names,
            managers: Managers::new(),
            control: None,
            jobs: Jobs::default(),
            commits: Vec::new(),
            pair: Pair::new(spec, volumes_max),
            links: Links::new(identity, spec.peer_timeout.0),
            signals,
            identity,
            replica_timeout: Micros(spec.replica_timeout.0.as_micros() as u64),
            peer_timeout: spec.peer_timeout.0,
            ready: Vec::with_capacity(usize::from(descriptors)),
            backend,
            rest_at: REST,
            has_worn: false,
            has_answered: false,
            message: Default::default(),
            poller,
            stores,
        };
        daemon.begin(spec)?;
        daemon.names.is_serving = true;
        if let Some(line) = too_few {
            warn!("{line}");
        }
        Ok(daemon)
    }

    /// Makes what the specification describes, and starts it, if that is wanted. The control address is bound last: when
    /// it answers, the exports are served.
    fn begin(&mut self, spec: &DaemonSpec) -> Result<(), Failure> {
        for volume in &spec.volumes {
            self.make(volume).map_err(Failure::Refused)?;
        }
        let mut is_served = std::collections::HashSet::new();
        for (address, _, _) in spec.volumes.iter().flat_map(VolumeSpec::exports) {
            if is_served.insert(address) {
                self.start_server(&address.to_string(), address).map_err(Failure::Refused)?;
            }
        }
        for volume in &spec.volumes {
            self.export_all(volume).map_err(Failure::Refused)?;
        }
        let control = self.listen(&spec.control, true).map_err(Failure::Refused)?;
        let registration = self.poller.listen(&control, token(Kind::ControlListener, 0));
        let registration =
            registration.ok_or_else(|| Failure::Refused("cannot listen: too many listeners".into()))?;
        self.managers.listen(registration);
        let address = control.address().to_string();
        self.control = Some(control);
        self.attach_all(spec).map_err(Failure::Refused)?;
        if spec.start {
            let job = self.jobs.begin(Waiter::Log("starting"));
            for volume in 0..self.volumes.len() {
                let primary = self.volumes[volume].is_primary();
                self.order(volume, job, Operation::Start { primary });
            }
            self.end_job(job);
        }
        for volume in self.volumes.iter() {
            let report = volume.report();
            info!(
                volume = volume.name,
                role = report.role.name(),
                size_bytes = report.size_bytes,
                granule_bytes = report.granule_bytes,
                "serving"
            );
        }
        info!(control = address, "ready");
        Ok(())
    }

    fn make(&mut self, volume: &VolumeSpec) -> Result<(), String> {
        let node = node_of(volume);
        let name = volume.name();
        match self.add_nodes(node.clone(), None).map_err(|error| name_volume(name, error))? {
            Added::Done => Ok(()),
            Added::Unconnected(uri) => {
                let disk = self.connect(&uri).map_err(|error| name_volume(name, error))?;
                self.add_nodes(node, Some(disk)).map(|_| ()).map_err(|error| name_volume(name, error))
            }
        }
    }

    /// Waits for a server without whose disk there is nothing to begin with.
    fn connect(&mut self, uri: &NbdUri) -> Result<NbdDisk, String> {
        let mut disk = self.stores.link(None)?;
        disk.open(uri, NbdOptions::disk(), Micros(0)).map_err(|error| format!("{uri}: {error}"))?;
        // What goes wrong is told once, by the refusal.
        tracing::subscriber::with_default(NoSubscriber::default(), || {
            disk.wait_connected(Micros(0), NBD_START_MAX, &mut self.pool)
        })
        .map_err(|error| error.to_string())?;
        while disk.poll_event().is_some() {}
        Ok(disk)
    }

    fn export_all(&mut self, volume: &VolumeSpec) -> Result<(), String> {
        let exports = volume.exports();
        let several = exports.len() > 1;
        for (place, (address, name, _)) in exports.into_iter().enumerate() {
            let (node, is_read_only) = match volume {
                VolumeSpec::Secondary(secondary) if place == 1 => {
                    (standby_name(&secondary.export), secondary.guest_read_only)
                }
                _ => (volume.name().to_owned(), false),
            };
            let id = match (several, place) {
                (true, 1) => format!("{address}/{name}"),
                _ => name.to_owned(),
            };
            self.export_node(&address.to_string(), &id, &node, name, is_read_only, None)?;
        }
        Ok(())
    }

    fn attach_all(&mut self, spec: &DaemonSpec) -> Result<(), String> {
        for volume in &spec.volumes {
            let VolumeSpec::Primary(primary) = volume else { continue };
            let Some(place) = self.find(&primary.export) else { continue };
            for replica in &primary.replicas {
                let wanted = NewReplica {
                    name: &replica.name,
                    uri: &replica.uri,
                    control: replica.control.as_ref(),
                    is_empty: false,
                };
                self.attach_uri(place, &wanted, Waiter::Log("attaching"))?;
            }
        }
        Ok(())
    }

    /// Listens at an address.
    pub(super) fn listen(&self, address: &Address, is_private: bool) -> Result<Listener, String> {
        let options = ListenOptions { is_private, peer_timeout: PeerTimeout(self.peer_timeout) };
        Listener::bind(address, options).map_err(|error| error.to_string())
    }

    /// Starts an NBD server.
    pub(super) fn start_server(&mut self, name: &str, address: &Address) -> Result<(), String> {
        let listener = self.listen(address, false)?;
        self.clients.start_server(name, listener, &mut self.poller)
    }
}

/// What is wrong at the start says of which volume; errors of disks name the disk alone.
fn name_volume(name: &str, error: String) -> String {
    if error.contains(name) { error } else { format!("volume '{name}': {error}") }
}

fn standby_name(export: &str) -> String {
    format!("#replication:{export}")
}

/// The nodes of a volume of the command line. The one with its name is what a primary's guest, or a secondary's primary, is
/// given.
fn node_of(volume: &VolumeSpec) -> NodeSpec {
    let disk = |name: Option<String>, disk: &Disk, direct: bool| {
        let driver = match disk {
            Disk::Path(path) => Driver::File { path: path.clone(), direct, is_device: false },
            Disk::Nbd(uri) => Driver::Nbd { uri: uri.clone() },
        };
        Child::New(Box::new(NodeSpec { name, driver }))
    };
    match volume {
        VolumeSpec::Primary(primary) => NodeSpec {
            name: Some(primary.export.clone()),
            driver: Driver::Quorum {
                children: vec![disk(None, &primary.disk, primary.direct)],
                dirty_granule: primary.dirty_granule,
            },
        },
        VolumeSpec::Secondary(secondary) => {
            let backing = disk(Some(secondary.export.clone()), &secondary.disk, secondary.direct);
            let buffer = Driver::Buffer { settings: secondary.buffer_settings(), backing };
            let name = standby_name(&secondary.export);
            let file = Child::New(Box::new(NodeSpec { name: None, driver: buffer }));
            NodeSpec { name: Some(name.clone()), driver: Driver::Standby { file, top_id: name } }
        }
    }
}

/// Memory for the requests of so many connections and so many secondaries.
fn pool(places: u16, secondaries: usize) -> Result<HostPool, Failure> {
    let guarantee = Counts { small: usize::from(REPLICATION_SMALL), large: usize::from(REPLICATION_LARGE) };
    let kept_large = REPLICATION_LARGE + build::SCRATCH;
    let sum = |shared: u16, kept: u16| {
        let sum = usize::from(shared) + usize::from(places) + secondaries * usize::from(kept);
        u16::try_from(sum).map_err(|_| too_many(places, secondaries))
    };
    let (small_count, large_count) =
        (sum(SMALL_BUFFERS, REPLICATION_SMALL)?, sum(LARGE_BUFFERS, kept_large)?);
    // Both are numbered together.
    small_count.checked_add(large_count).ok_or_else(|| too_many(places, secondaries))?;
    let sizes = PoolSizes { small_count, large_count, ..PoolSizes::default() };
    let mut pool = HostPool::new(sizes)
        .map_err(|error| Failure::Refused(format!("cannot take memory for requests: {error}")))?;
    pool.keep(places, secondaries, guarantee);
    Ok(pool)
}

fn too_many(places: u16, secondaries: usize) -> Failure {
    Failure::Refused(format!(
        "{secondaries} secondaries and {places} connections need more buffers than one daemon can have: share them out \
         among several daemons"
    ))
}

fn signals(poller: &mut Poller) -> std::io::Result<(UnixStream, Registration)> {
    let (here, there) = UnixStream::pair()?;
    here.set_nonblocking(true)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, there.try_clone()?)?;
    }
    let registration = poller.register(&here, Interest::READ, token(Kind::Signal, 0));
    let registration = registration.ok_or(std::io::ErrorKind::OutOfMemory)?;
    Ok((here, registration))
}

/// The number of this run of the daemon, for primaries that come back.
const fn run_of(identity: Identity) -> u32 {
    let [one, two, three, four, ..] = identity.0;
    u32::from_be_bytes([one, two, three, four]) | RUN_MIN.next_power_of_two()
}

fn new_identity() -> std::io::Result<Identity> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(Identity(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_secondaries_than_there_can_be_buffers_for_are_refused_with_what_to_do() {
        // 219 need more buffers of both sizes together, 300 more small ones.
        for secondaries in [219, 300] {
            let refused = pool(249, secondaries).expect_err("refused").to_string();
            assert!(
                refused.starts_with(&format!("{secondaries} secondaries and 249 connections")),
                "{refused}"
            );
            assert!(refused.ends_with("share them out among several daemons"), "{refused}");
        }
    }
}
