//! The nodes of a daemon: what managers add, remove and put together. Names and rules alone; nothing is opened here.
//!
//! ```text
//!   quorum ──children.0──▶ raw, file, host_device, nbd        a primary disk: the quorum is the volume
//!          ──children.N──▶ replication (primary) ──▶ nbd      its replicas
//!
//!   [quorum ──▶] replication (secondary) ──▶ twinblock-buffer ──▶ raw, file, host_device, nbd
//!                                                             a secondary: the replication node is the volume
//! ```
//!
//! # Invariants
//! * G1: no two nodes have one name.
//! * G2: a node has one parent at most, and no node lies above itself.
//! * G3: a node that no manager owns has a parent, and goes with it.

mod fields;
mod keyval;
mod options;
mod play;
mod strict;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub(crate) use fields::Fields;
pub(crate) use keyval::parse as parse_text;
pub(crate) use options::{Child, Driver, NodeSpec, node, socket_address};
pub(crate) use play::play;
pub(crate) use strict::parse as parse_strict;
use twinblock_core::secondary::Port;

use crate::spec::{Address, BufferSettings, NbdUri};
use crate::units::Size;

/// Most nodes of one daemon.
const NODES_MAX: usize = 1024;

/// What a node is, without what it lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File { path: PathBuf, direct: bool, is_device: bool },
    Nbd { uri: NbdUri },
    Raw,
    Quorum { dirty_granule: Size, next_child: usize },
    Replica { control: Option<Address>, is_empty: bool },
    Standby { top_id: String },
    Buffer { settings: BufferSettings },
}

impl Kind {
    /// As `driver` has it.
    pub(crate) const fn driver(&self) -> &'static str {
        match self {
            Self::File { is_device: false, .. } => "file",
            Self::File { is_device: true, .. } => "host_device",
            Self::Nbd { .. } => "nbd",
            Self::Raw => "raw",
            Self::Quorum { .. } => "quorum",
            Self::Replica { .. } | Self::Standby { .. } => "replication",
            Self::Buffer { .. } => "twinblock-buffer",
        }
    }

    /// The path or the URI of a file or an export.
    pub(crate) fn place(&self) -> Option<String> {
        match self {
            Self::File { path, .. } => Some(path.display().to_string()),
            Self::Nbd { uri } => Some(uri.to_string()),
            _ => None,
        }
    }

    const fn is_disk(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Nbd { .. } | Self::Raw)
    }
}

/// A child by the name that it has for its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    /// `file`, `backing`, `children.0`, …
    pub(crate) role: String,
    /// The child's node name.
    pub(crate) node: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) children: Vec<Edge>,
    /// What it lies on is still being made: it can lie on nothing that lies on it.
    is_unfinished: bool,
    /// It was added by name by itself, and goes only by `blockdev-del`.
    is_managers: bool,
}

/// Which side of which volume a node shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The node that is the volume.
    pub(crate) volume: String,
    pub(crate) port: Port,
}

/// All nodes. To change it, change a copy, do what has to be done, and keep the copy if that went well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    next_unnamed: u64,
}

impl Graph {
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The node of this name, or what to say if there is none.
    pub(crate) fn named(&self, name: &str) -> Result<&Node, String> {
        self.find(name)
            .ok_or_else(|| format!("there is no node '{}'; see query-named-block-nodes", name.escape_debug()))
    }

    pub(crate) fn parent(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.children.iter().any(|edge| edge.node == name))
    }

    /// Adds a node and what is new below it; the names of all that are new, the given one's last.
    pub(crate) fn add(&mut self, spec: NodeSpec) -> Result<Vec<String>, String> {
        let mut added = Vec::new();
        self.add_one(spec, true, &mut added)?;
        Ok(added)
    }

    fn add_one(
        &mut self,
        spec: NodeSpec,
        is_managers: bool,
        added: &mut Vec<String>,
    ) -> Result<String, String> {
        let name = match spec.name {
            Some(name) if self.find(&name).is_some() => {
                return Err(format!("there is a node '{name}' already; take another node-name"));
            }
            Some(name) => name,
            None => self.new_name(),
        };
        if self.nodes.len() >= NODES_MAX {
            return Err(format!("there are {NODES_MAX} nodes already; delete some"));
        }
        // Taken first, so that no node below can have it too.
        let place = self.nodes.len();
        self.nodes.push(Node {
            name: name.clone(),
            kind: Kind::Raw,
            children: Vec::new(),
            is_unfinished: true,
            is_managers,
        });
        let (kind, children) = split(spec.driver);
        let mut edges = Vec::with_capacity(children.len());
        for (role, child) in children {
            let node = match child {
                Child::Name(child) => self.free_child(&child, &name, &edges)?,
                Child::New(spec) => self.add_one(*spec, false, added)?,
            };
            edges.push(Edge { role, node });
        }
        if let Some(node) = self.nodes.get_mut(place) {
            (node.kind, node.children, node.is_unfinished) = (kind, edges, false);
        }
        self.check(&name)?;
        added.push(name.clone());
        Ok(name)
    }

    /// A node that another one may be put on.
    fn free_child(&self, child: &str, parent: &str, siblings: &[Edge]) -> Result<String, String> {
        let is_unfinished = self.named(child)?.is_unfinished;
        let is_sibling = siblings.iter().any(|edge| edge.node == child);
        if is_unfinished || is_sibling || self.is_above(child, parent) {
            return Err(format!("node '{child}' cannot be twice within '{parent}'"));
        }
        match self.parent(child) {
            Some(parent) => Err(format!("node '{child}' is in use by node '{}'", parent.name)),
            None => Ok(child.to_owned()),
        }
    }

    fn is_above(&self, name: &str, below: &str) -> bool {
        let mut at = below;
        while let Some(parent) = self.parent(at) {
            if parent.name == name {
                return true;
            }
            at = &parent.name;
        }
        false
    }

    fn new_name(&mut self) -> String {
        loop {
            let name = format!("#block{:03}", self.next_unnamed);
            self.next_unnamed += 1;
            if self.find(&name).is_none() {
                return name;
            }
        }
    }

    fn child_kind(&self, node: &Node, role: &str) -> Option<(&str, &Kind)> {
        let edge = node.children.iter().find(|edge| edge.role == role)?;
        self.find(&edge.node).map(|child| (child.name.as_str(), &child.kind))
    }

    /// Whether a node lies on what its driver can lie on.
    fn check(&self, name: &str) -> Result<(), String> {
        let node = self.named(name)?;
        let expect = |role: &str, what: &str, is_right: fn(&Kind) -> bool| {
            let (child, kind) =
                self.child_kind(node, role).ok_or_else(|| format!("node '{name}' has no '{role}'"))?;
            if is_right(kind) {
                return Ok(());
            }
            let (driver, of) = (node.kind.driver(), kind.driver());
            Err(format!("'{role}' of a {driver} node must be {what}, and '{child}' is of driver '{of}'"))
        };
        match node.kind {
            Kind::File { .. } | Kind::Nbd { .. } => Ok(()),
            Kind::Raw => expect("file", "a disk (file, host_device, nbd or raw)", Kind::is_disk),
            Kind::Buffer { .. } => {
                expect("backing", "the secondary disk (file, host_device, nbd or raw)", Kind::is_disk)
            }
            Kind::Standby { .. } => expect("file", "the disk buffer (twinblock-buffer)", |kind| {
                matches!(kind, Kind::Buffer { .. })
            }),
            Kind::Replica { .. } => {
                expect("file", "the secondary's export (nbd)", |kind| {
                    matches!(kind, Kind::Nbd { .. } | Kind::Raw)
                })?;
                match self.disk_below(name).map(|disk| &disk.kind) {
                    Some(Kind::Nbd { .. }) => Ok(()),
                    _ => Err(format!(
                        "what node '{name}' copies to is no NBD export: put it on one of driver 'nbd'"
                    )),
                }
            }
            Kind::Quorum { .. } => self.check_quorum(node),
        }
    }

    fn check_quorum(&self, node: &Node) -> Result<(), String> {
        let name = &node.name;
        let kinds: Vec<&Kind> =
            node.children.iter().filter_map(|edge| Some(&self.find(&edge.node)?.kind)).collect();
        match kinds.split_first() {
            Some((Kind::Standby { .. }, [])) => Ok(()),
            Some((Kind::Standby { .. }, _)) => {
                Err(format!("quorum '{name}' lies over a secondary, and can have no other child"))
            }
            Some((first, rest)) if first.is_disk() => {
                if rest.iter().all(|kind| matches!(kind, Kind::Replica { .. })) {
                    return Ok(());
                }
                Err(format!(
                    "the children of quorum '{name}' after its disk must be replicas (replication, mode primary)"
                ))
            }
            _ => Err(format!(
                "the first child of quorum '{name}' must be its disk (file, host_device, nbd or raw), or a secondary \
                 (replication, mode secondary)"
            )),
        }
    }

    /// The file or export that a node ends in, if it lies on one disk.
    pub(crate) fn disk_below(&self, name: &str) -> Option<&Node> {
        let mut node = self.find(name)?;
        while let Some(edge) = node.children.first() {
            node = self.find(&edge.node)?;
        }
        Some(node)
    }

    /// What a node shows when it is exported.
    pub(crate) fn seat(&self, name: &str) -> Result<Seat, String> {
        let node = self.named(name)?;
        match &node.kind {
            Kind::Standby { .. } => return Ok(Seat { volume: node.name.clone(), port: Port::Guest }),
            Kind::Quorum { .. } => {
                let first = node.children.first().and_then(|edge| self.find(&edge.node));
                let below = first.filter(|first| matches!(first.kind, Kind::Standby { .. }));
                let volume = below.unwrap_or(node).name.clone();
                return Ok(Seat { volume, port: Port::Guest });
            }
            kind if kind.is_disk() => {
                let mut at = node;
                while let Some(parent) = self.parent(&at.name) {
                    if matches!(parent.kind, Kind::Standby { .. }) {
                        return Ok(Seat { volume: parent.name.clone(), port: Port::Replication });
                    }
                    if matches!(parent.kind, Kind::Quorum { .. } | Kind::Replica { .. }) {
                        let name = &parent.name;
                        return Err(format!(
                            "node '{}' is in use by node '{name}'; export that one",
                            node.name
                        ));
                    }
                    at = parent;
                }
            }
            _ => {}
        }
        Err(format!(
            "node '{name}' cannot be exported: a quorum over a disk can, and a secondary's replication node, a quorum \
             over it, and its disk"
        ))
    }

    /// The node over which a secondary shall be reached must be on top, and over it.
    pub(crate) fn check_top(&self, standby: &str) -> Result<(), String> {
        let Some(Node { kind: Kind::Standby { top_id }, .. }) = self.find(standby) else { return Ok(()) };
        let top = self.find(top_id).ok_or_else(|| {
            format!("there is no node '{top_id}', which 'top-id' of node '{standby}' names; add it first")
        })?;
        if let Some(parent) = self.parent(top_id) {
            return Err(format!(
                "node '{top_id}', which is 'top-id' of '{standby}', has node '{}' above it",
                parent.name
            ));
        }
        if top.name == standby || self.is_above(top_id, standby) {
            return Ok(());
        }
        Err(format!("node '{top_id}', which is 'top-id' of '{standby}', does not lie over it"))
    }

    /// Puts a replica under a primary's quorum; the role that it has there.
    pub(crate) fn attach(&mut self, parent: &str, child: &str) -> Result<String, String> {
        self.check_is_primary(parent)?;
        let node = self.free_child(child, parent, &[])?;
        if !matches!(self.named(child)?.kind, Kind::Replica { .. }) {
            return Err(format!(
                "node '{child}' is no replica: it must be of driver 'replication' with mode 'primary'"
            ));
        }
        let Some(quorum) = self.nodes.iter_mut().find(|node| node.name == parent) else {
            return Err(format!("there is no node '{parent}'"));
        };
        let Kind::Quorum { next_child, .. } = &mut quorum.kind else {
            return Err(format!("'{parent}' is no quorum"));
        };
        let role = format!("children.{next_child}");
        *next_child += 1;
        quorum.children.push(Edge { role: role.clone(), node });
        Ok(role)
    }

    fn check_is_primary(&self, name: &str) -> Result<(), String> {
        let node = self.named(name)?;
        let first = node.children.first().and_then(|edge| self.find(&edge.node));
        if matches!(node.kind, Kind::Quorum { .. }) && first.is_some_and(|first| first.kind.is_disk()) {
            return Ok(());
        }
        Err(format!("node '{name}' takes no replicas: a quorum over a disk does"))
    }

    /// The replica that is this child of a quorum.
    pub(crate) fn replica_at(&self, parent: &str, role: &str) -> Result<String, String> {
        self.check_is_primary(parent)?;
        let node = self.named(parent)?;
        let place = node.children.iter().position(|edge| edge.role == role);
        match place.and_then(|place| Some((place, node.children.get(place)?))) {
            None => Err(format!("node '{parent}' has no child '{}'", role.escape_debug())),
            Some((0, _)) => {
                Err(format!("child '{role}' of node '{parent}' is its disk, which cannot be taken away"))
            }
            Some((_, edge)) => Ok(edge.node.clone()),
        }
    }

    /// Takes a replica from under its quorum; one that no manager owns goes altogether.
    pub(crate) fn detach(&mut self, parent: &str, child: &str) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.name == parent) {
            let freed = node.children.iter().find(|edge| edge.node == child).map(|edge| edge.role.clone());
            node.children.retain(|edge| edge.node != child);
            if let Kind::Quorum { next_child, .. } = &mut node.kind
                && freed == Some(format!("children.{}", next_child.saturating_sub(1)))
            {
                *next_child -= 1;
            }
        }
        if self.find(child).is_some_and(|node| !node.is_managers) {
            let _ = self.take(child);
        }
    }

    /// Makes a node one that goes with its parent.
    pub(crate) fn give_to_parent(&mut self, name: &str) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) {
            node.is_managers = false;
        }
    }

    /// Removes a node that a manager has added and nothing lies on, with what is only there for it; all that has gone.
    pub(crate) fn remove(&mut self, name: &str) -> Result<Vec<Node>, String> {
        let node = self.named(name)?;
        if let Some(parent) = self.parent(name) {
            return Err(format!("node '{name}' is in use by node '{}'", parent.name));
        }
        if !node.is_managers {
            return Err(format!(
                "node '{name}' was not added by itself, and goes with the node that it was made for"
            ));
        }
        Ok(self.take(name))
    }

    fn take(&mut self, name: &str) -> Vec<Node> {
        let mut taken = Vec::new();
        let mut names = vec![name.to_owned()];
        while let Some(name) = names.pop() {
            let Some(place) = self.nodes.iter().position(|node| node.name == name) else { continue };
            let node = self.nodes.remove(place);
            let owned = node
                .children
                .iter()
                .filter(|edge| self.find(&edge.node).is_some_and(|node| !node.is_managers));
            names.extend(owned.map(|edge| edge.node.clone()));
            taken.push(node);
        }
        taken
    }
}

/// A driver's own options, and its children by role.
fn split(driver: Driver) -> (Kind, Vec<(String, Child)>) {
    match driver {
        Driver::File { path, direct, is_device } => (Kind::File { path, direct, is_device }, Vec::new()),
        Driver::Nbd { uri } => (Kind::Nbd { uri }, Vec::new()),
        Driver::Raw { file } => (Kind::Raw, vec![("file".into(), file)]),
        Driver::Quorum { children, dirty_granule } => {
            let next_child = children.len();
            let named = children.into_iter().enumerate();
            let named = named.map(|(index, child)| (format!("children.{index}"), child));
            (Kind::Quorum { dirty_granule, next_child }, named.collect())
        }
        Driver::Replica { file, control, is_empty } => {
            (Kind::Replica { control, is_empty }, vec![("file".into(), file)])
        }
        Driver::Standby { file, top_id } => (Kind::Standby { top_id }, vec![("file".into(), file)]),
        Driver::Buffer { settings, backing } => {
            (Kind::Buffer { settings }, vec![("backing".into(), backing)])
        }
    }
}
