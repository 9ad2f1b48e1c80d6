//! Nodes come and go, and volumes with them. What can be refused is refused before anything is changed.

use std::collections::HashMap;
use std::os::unix::fs::FileTypeExt;

use tracing::{info, warn};
use twinblock_core::block::{BlockDevice, Capabilities};
use twinblock_core::secondary::Port;
use twinblock_core::{Micros, Stage};
use twinblock_io_posix::nbd_disk::{LinkEvent, NbdDisk, NbdOptions};
use twinblock_io_posix::poller::Ready;

use super::Daemon;
use super::clients::Served;
use super::devices::AnyDisk;
use super::execute::Asker;
use super::jobs::Waiter;
use super::names::Names;
use super::pair::NewReplica;
use super::volume::Volume;
use crate::graph::{Child, Driver, Graph, Kind, Node, NodeSpec, Seat};
use crate::spec::NbdUri;

/// How long a manager that adds a disk that another server serves waits for that server.
const CONNECT_MAX: Micros = Micros::from_ms(10_000);

/// Most disks that are being connected to, and most removals that wait, at a time.
const WAITING_MAX: usize = 16;

/// What became of nodes that were to be added.
#[derive(Debug)]
pub(super) enum Added {
    Done,
    /// Nothing yet: a volume needs this disk, and it is not connected.
    Unconnected(NbdUri),
}

/// What became of a node that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    Done,
    /// Nothing yet: requests are in flight.
    Later,
}

/// Whose answer is text, as that of `human-monitor-command` is.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) asker: Asker,
    pub(super) is_text: bool,
}

/// Nodes that wait for a server before they are added.
#[derive(Debug)]
struct Opening {
    pending: Pending,
    node: NodeSpec,
    disk: NbdDisk,
    until: Micros,
}

/// What nodes have beside their names: open files that no volume has yet, and what is under way.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    disks: HashMap<String, AnyDisk>,
    openings: Vec<Opening>,
    removals: Vec<(Pending, String)>,
}

impl Nodes {
    pub(super) fn ready(&mut self, ready: Ready) {
        if let Some(opening) = self.openings.iter_mut().find(|opening| opening.disk.token() == ready.token) {
            opening.disk.ready(ready);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Micros> {
        let disks = self.openings.iter().filter_map(|opening| opening.disk.next_deadline());
        disks.chain(self.openings.iter().map(|opening| opening.until)).min()
    }
}

/// The volume that new nodes make: its own node, and its disk's.
struct NewVolume<'g> {
    node: &'g Node,
    disk: &'g Node,
    name: String,
}

fn new_volume<'g>(graph: &'g Graph, added: &[String]) -> Option<NewVolume<'g>> {
    added.iter().filter_map(|name| graph.find(name)).find_map(|node| {
        let first = graph.find(&node.children.first()?.node)?;
        match node.kind {
            Kind::Quorum { .. } if !matches!(first.kind, Kind::Standby { .. }) => {
                Some(NewVolume { node, disk: graph.disk_below(&first.name)?, name: node.name.clone() })
            }
            Kind::Standby { .. } => {
                // A secondary is called what its primary calls it: by its disk, if that has a name.
                let disk = &first.children.first()?.node;
                let name = if disk.starts_with("#block") { &node.name } else { disk };
                Some(NewVolume { node, disk: graph.disk_below(disk)?, name: name.clone() })
            }
            _ => None,
        }
    })
}

/// Whether the servers of a quorum's replicas have addresses.
fn check_addresses(graph: &Graph, names: &Names, quorum: &Node) -> Result<(), String> {
    for edge in quorum.children.iter().skip(1) {
        if let Some(Kind::Nbd { uri }) = graph.disk_below(&edge.node).map(|disk| &disk.kind) {
            names.target(&uri.address).map_err(|error| format!("node '{}': {error}", edge.node))?;
        }
    }
    Ok(())
}

impl Daemon {
    /// Adds a node with what is new below it, and makes the volume that comes of it. `connected` is that volume's disk, if
    /// another server serves it.
    pub(super) fn add_nodes(&mut self, node: NodeSpec, connected: Option<NbdDisk>) -> Result<Added, String> {
        let mut connected = connected.map(|disk| AnyDisk::Nbd(Box::new(disk)));
        let result = self.try_add_nodes(node, &mut connected);
        if let Some(AnyDisk::Nbd(unused)) = connected {
            self.stores.give_back(*unused);
        }
        result
    }

    fn try_add_nodes(&mut self, node: NodeSpec, connected: &mut Option<AnyDisk>) -> Result<Added, String> {
        let mut next = self.graph.clone();
        let added = next.add(node)?;
        let volume = new_volume(&next, &added);
        if let Some(NewVolume { disk: Node { kind: Kind::Nbd { uri }, .. }, .. }) = &volume
            && connected.is_none()
        {
            return Ok(Added::Unconnected(uri.clone()));
        }
        if let Some(volume) = &volume {
            check_addresses(&next, &self.names, volume.node)?;
        }
        let mut opened = HashMap::new();
        for node in added.iter().filter_map(|name| next.find(name)) {
            if let Kind::File { path, direct, is_device } = &node.kind {
                if *is_device
                    && !std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
                {
                    return Err(format!("{} is no block device; take driver 'file'", path.display()));
                }
                opened.insert(node.name.clone(), self.stores.open_file(path, *direct)?);
            }
        }
        if let Some(volume) = volume {
            let place = self.vacant_place()?;
            let name = volume.disk.name.clone();
            let mut disk = match &volume.disk.kind {
                Kind::Nbd { .. } => connected.take(),
                _ => opened.remove(&name).or_else(|| self.nodes.disks.remove(&name)),
            }
            .ok_or_else(|| format!("the disk of node '{name}' is not open"))?;
            match self.make_volume(&next, &volume, &mut disk) {
                Ok(made) => self.settle(place, made),
                Err(error) => {
                    match disk {
                        AnyDisk::Nbd(_) => *connected = Some(disk),
                        file if !added.contains(&name) => {
                            self.nodes.disks.insert(name, file);
                        }
                        _ => {}
                    }
                    return Err(error);
                }
            }
            let replicas = volume.node.children.iter().skip(1);
            let replicas: Vec<String> = replicas.map(|edge| edge.node.clone()).collect();
            self.nodes.disks.extend(opened);
            self.graph = next;
            self.attach_new(place, &replicas);
            return Ok(Added::Done);
        }
        self.nodes.disks.extend(opened);
        self.graph = next;
        Ok(Added::Done)
    }

    /// The replicas that a quorum is made with; their addresses were looked at.
    fn attach_new(&mut self, volume: usize, replicas: &[String]) {
        for replica in replicas {
            if let Err(error) = self.attach_node(volume, replica, Waiter::Log("attaching")) {
                warn!(replica, "the replica was not attached: {error}");
                let parent = self.volumes[volume].node.clone();
                self.graph.detach(&parent, replica);
            }
        }
    }

    fn vacant_place(&self) -> Result<usize, String> {
        let vacant = self.volumes.iter().position(Volume::is_vacant);
        let place = vacant.unwrap_or(self.volumes.len());
        if place < self.volumes_max {
            return Ok(place);
        }
        Err(format!("there are {} volumes already, as many as this daemon can have", self.volumes_max))
    }

    fn make_volume(
        &mut self,
        graph: &Graph,
        new: &NewVolume<'_>,
        disk: &mut AnyDisk,
    ) -> Result<Volume, String> {
        let NewVolume { node, name, disk: below } = new;
        let of = below.kind.place().unwrap_or_default();
        if let Kind::Quorum { dirty_granule, .. } = node.kind {
            return self.stores.make_primary(name, dirty_granule, &of, disk);
        }
        let buffer = node.children.first().and_then(|edge| graph.find(&edge.node));
        let Some(Node { kind: Kind::Buffer { settings }, .. }) = buffer else {
            return Err(format!("node '{name}' has no buffer"));
        };
        self.stores.make_secondary(name, &node.name, settings, &of, disk)
    }

    fn settle(&mut self, place: usize, volume: Volume) {
        // What is there from the start is told when all of it is.
        if self.control.is_some() {
            info!(volume = volume.name, node = volume.node, "a volume was added");
        }
        if place == self.volumes.len() {
            self.volumes.push(Volume::vacant());
        }
        self.volumes[place] = volume;
        let own = (place, None);
        if let Some((_, disk)) = self.volumes[place].nbd_disks().find(|(which, _)| which.is_none()) {
            self.stores.own(disk, Some(own));
        }
    }

    /// Adds nodes for a manager, who is answered when they are there.
    pub(super) fn add_nodes_for(&mut self, pending: Pending, node: NodeSpec) {
        let added = self.add_nodes(node.clone(), None).and_then(|added| match added {
            Added::Done => Ok(None),
            Added::Unconnected(_) if self.nodes.openings.len() >= WAITING_MAX => {
                Err(format!("{WAITING_MAX} disks are being connected to already; try again"))
            }
            Added::Unconnected(uri) => {
                let target = self.names.target(&uri.address).map_err(|error| format!("{uri}: {error}"))?;
                let mut disk = self.stores.link(None)?;
                match disk.open_at(&uri, target, NbdOptions::disk(), self.now) {
                    Ok(()) => Ok(Some(disk)),
                    Err(error) => {
                        self.stores.give_back(disk);
                        Err(format!("{uri}: {error}"))
                    }
                }
            }
        });
        match added {
            Ok(None) => self.answer_pending(pending, Ok(())),
            Ok(Some(disk)) => {
                let until = self.now.after(CONNECT_MAX);
                self.nodes.openings.push(Opening { pending, node, disk, until });
            }
            Err(error) => self.answer_pending(pending, Err(error)),
        }
    }

    /// Removes a node for a manager, who is answered when it is gone: requests under way are waited for.
    pub(super) fn remove_node_for(&mut self, pending: Pending, name: &str) {
        match self.remove_node(name) {
            Ok(Removed::Done) => self.answer_pending(pending, Ok(())),
            Ok(Removed::Later) if self.nodes.removals.len() < WAITING_MAX => {
                self.nodes.removals.push((pending, name.to_owned()));
            }
            Ok(Removed::Later) => {
                self.answer_pending(pending, Err(format!("node '{name}' has requests under way; try again")));
            }
            Err(error) => self.answer_pending(pending, Err(error)),
        }
    }

    /// Goes on with what waits for a server.
    pub(super) fn tick_nodes(&mut self) {
        let mut index = 0;
        while let Some(opening) = self.nodes.openings.get_mut(index) {
            opening.disk.service(self.now, &mut self.pool, &mut self.poller);
            let event = opening.disk.poll_event();
            if event.is_none() && opening.until > self.now {
                index += 1;
                continue;
            }
            let Opening { pending, node, disk, .. } = self.nodes.openings.swap_remove(index);
            let server = disk.name().to_owned();
            let result = match event {
                Some(LinkEvent::Connected(_)) => self.add_nodes(node, Some(disk)).map(|_| ()),
                other => {
                    self.stores.give_back(disk);
                    Err(match other {
                        Some(LinkEvent::Refused(why)) => format!("{server}: {why}"),
                        _ => format!("{server}: no connection in time"),
                    })
                }
            };
            self.answer_pending(pending, result);
        }
    }

    /// Removes what waited for requests to end, once they have. Whether something was.
    pub(super) fn finish_removals(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.nodes.removals);
        let before = waiting.len();
        for (pending, name) in waiting {
            self.remove_node_for(pending, &name);
        }
        self.nodes.removals.len() != before
    }

    fn remove_node(&mut self, name: &str) -> Result<Removed, String> {
        let mut next = self.graph.clone();
        let gone = next.remove(name)?;
        let is_gone = |node: &str| gone.iter().any(|other| other.name == node);
        if let Some((_, served)) = self.clients.exports().find(|(_, served)| is_gone(&served.node)) {
            return Err(format!("node '{name}' is in use by export '{}'; remove that first", served.id));
        }
        let volume = self.volumes.iter().position(|volume| !volume.is_vacant() && is_gone(&volume.node));
        if let Some(volume) = volume {
            // Its disk may be exported, and stays.
            let seat = |node: &str| self.graph.seat(node).ok();
            let of = &self.volumes[volume].node;
            let export = self
                .clients
                .exports()
                .find(|(_, served)| seat(&served.node).is_some_and(|seat| seat.volume == *of));
            if let Some((_, served)) = export {
                return Err(format!("node '{name}' is in use by export '{}'; remove that first", served.id));
            }
            let stage = self.volumes[volume].stage();
            if !matches!(stage, Stage::None | Stage::Done) {
                return Err(format!(
                    "node '{name}' is in use: its replication is in stage {}; stop it first",
                    stage.name()
                ));
            }
            let is_busy = self.volumes[volume].in_flight() != 0
                || self.clients.has_client_of(volume)
                || self.jobs.concerns(volume)
                || self.pair.is_busy();
            if is_busy {
                return Ok(Removed::Later);
            }
            self.remove_volume(volume, &next);
        }
        for node in &gone {
            self.nodes.disks.remove(&node.name);
        }
        self.graph = next;
        Ok(Removed::Done)
    }

    /// Removes a volume whose node goes; its disk is kept if `next` has the node of it.
    fn remove_volume(&mut self, volume: usize, next: &Graph) {
        let name = self.volumes[volume].name.clone();
        let below = self.graph.find(&self.volumes[volume].node).and_then(|node| {
            let first = self.graph.find(&node.children.first()?.node)?;
            self.graph.disk_below(&first.name).map(|disk| disk.name.clone())
        });
        for replica in 0..self.volumes[volume].replicas.len() {
            self.forget_member(volume, replica);
        }
        let scratch = self.volumes[volume].scratch.clone();
        let (disk, links) = self.volumes[volume].vacate();
        self.pool.rest_reserved(scratch.clone());
        self.stores.give_back_scratch(scratch);
        links.into_iter().for_each(|link| self.stores.give_back(link.into_disk()));
        match (disk, below) {
            (AnyDisk::Nbd(disk), _) => self.stores.give_back(*disk),
            (disk @ AnyDisk::File(_), Some(node)) if next.find(&node).is_some() => {
                self.nodes.disks.insert(node, disk);
            }
            _ => {}
        }
        info!(volume = name, "a volume was removed");
    }

    /// Puts a replica's node under a primary's, and mirrors to it.
    pub(super) fn attach_child(&mut self, parent: &str, child: &str, waiter: Waiter) -> Result<(), String> {
        let mut next = self.graph.clone();
        next.attach(parent, child)?;
        let volume = self.volume_of(parent)?;
        self.attach_node(volume, child, waiter)?;
        self.graph = next;
        Ok(())
    }

    fn volume_of(&self, node: &str) -> Result<usize, String> {
        let found = self.volumes.iter().position(|volume| !volume.is_vacant() && volume.node == node);
        found.ok_or_else(|| format!("node '{node}' is no volume"))
    }

    fn attach_node(&mut self, volume: usize, node: &str, waiter: Waiter) -> Result<(), String> {
        let replica = self.graph.named(node)?;
        let (Kind::Replica { control, is_empty }, Some(Kind::Nbd { uri })) =
            (replica.kind.clone(), self.graph.disk_below(node).map(|disk| disk.kind.clone()))
        else {
            return Err(format!("node '{node}' is no replica"));
        };
        let wanted = NewReplica { name: node, uri: &uri, control: control.as_ref(), is_empty };
        self.attach(volume, &wanted, node, waiter)
    }

    /// Attaches a replica by its URI: its nodes are made for it, and go with it.
    pub(super) fn attach_uri(
        &mut self,
        volume: usize,
        wanted: &NewReplica<'_>,
        waiter: Waiter,
    ) -> Result<(), String> {
        let mut next = self.graph.clone();
        // Replicas of two volumes may be called alike, nodes may not.
        let name = next.find(wanted.name).is_none().then(|| wanted.name.to_owned());
        let file = NodeSpec { name: None, driver: Driver::Nbd { uri: wanted.uri.clone() } };
        let driver = Driver::Replica {
            file: Child::New(Box::new(file)),
            control: wanted.control.cloned(),
            is_empty: wanted.is_empty,
        };
        let added = next.add(NodeSpec { name, driver })?;
        let node = added.last().cloned().unwrap_or_default();
        next.attach(&self.volumes[volume].node, &node)?;
        next.give_to_parent(&node);
        self.attach(volume, wanted, &node, waiter)?;
        self.graph = next;
        Ok(())
    }

    /// Takes away the child of a primary that is called this, and mirrors to it no longer.
    pub(super) fn detach_child(&mut self, parent: &str, role: &str, waiter: Waiter) -> Result<(), String> {
        let node = self.graph.replica_at(parent, role)?;
        let volume = self.volume_of(parent)?;
        let attached = self.volumes[volume].attached().find(|(_, replica)| replica.node == node);
        let name = attached.map(|(_, replica)| replica.name.clone());
        let name = name.ok_or_else(|| format!("node '{node}' is not attached"))?;
        self.detach(volume, &name, waiter)
    }

    /// A replica is no child of its volume any more.
    pub(super) fn unlink_replica(&mut self, volume: usize, replica: usize) {
        let this = &self.volumes[volume];
        if let Some(Some(known)) = this.replicas.get(replica) {
            self.graph.detach(&this.node, &known.node);
        }
    }

    /// Exports a node at a server.
    pub(super) fn export_node(
        &mut self,
        server: &str,
        id: &str,
        node: &str,
        name: &str,
        is_read_only: bool,
        description: Option<String>,
    ) -> Result<(), String> {
        self.clients.check_server(server)?;
        let Seat { volume, port } = self.graph.seat(node)?;
        let place = self.volume_of(&volume)?;
        let usual = match (self.volumes[place].is_primary(), port) {
            (true, _) => "primary disk, mirrored to its replicas",
            (false, Port::Replication) => "secondary disk, for the primary",
            (false, Port::Guest) => "guest view: the last checkpoint and what was written here since",
        };
        let geometry = self.volumes[place].geometry();
        let served = Served {
            name: name.to_owned(),
            id: id.to_owned(),
            node: node.to_owned(),
            description: description.unwrap_or_else(|| usual.to_owned()),
            volume: place,
            port,
            size_bytes: geometry.size_bytes,
            block_bytes: geometry.block_bytes,
            is_read_only,
            is_fast_zero: geometry.capabilities.contains(Capabilities::FAST_ZERO),
        };
        self.clients.export(server, served)
    }

    /// The size of what a node ends in, if that is open.
    pub(super) fn size_of_node(&self, name: &str) -> Option<u64> {
        let below = self.graph.disk_below(name)?;
        if let Some(disk) = self.nodes.disks.get(&below.name) {
            return Some(disk.geometry().size_bytes);
        }
        let seat = self.graph.seat(name).ok();
        let mut at = below;
        let volume = seat.map(|seat| seat.volume).or_else(|| {
            loop {
                at = self.graph.parent(&at.name)?;
                match at.kind {
                    Kind::Replica { .. } => return None,
                    Kind::Quorum { .. } | Kind::Standby { .. } => break Some(at.name.clone()),
                    _ => {}
                }
            }
        })?;
        let place = self.volume_of(&volume).ok()?;
        Some(self.volumes[place].geometry().size_bytes)
    }
}
