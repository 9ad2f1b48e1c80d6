//! Machines together with the memory that they borrow, so that both end together.

use std::mem;

use bumpalo::Bump;
use self_cell::{MutBorrow, self_cell};
use twinblock_core::Connection;
use twinblock_core::buffer::index::Node;
use twinblock_core::driver::{Driver, PrimaryDevices, SecondaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::primary::{self, Primary};
use twinblock_core::secondary::{self, Secondary};

use super::devices::{AnyBuffer, AnyDisk};
use super::volume::ReplicaLinks;

pub(super) type PrimaryDriver<'m> = Driver<Primary<'m>, PrimaryDevices<AnyDisk, ReplicaLinks>>;
pub(super) type SecondaryDriver<'m> = Driver<Secondary<'m>, SecondaryDevices<AnyDisk, AnyBuffer>>;

/// What a primary works in. Its bitmaps take memory as they are used.
pub(super) struct PrimaryMemory {
    words: MutBorrow<Vec<u64>>,
    words_each: usize,
    replica_count: usize,
    table_length: usize,
    connections_max: usize,
    rest: Bump,
}

impl PrimaryMemory {
    /// For bitmaps of so many words: two, and three for each replica.
    pub(super) fn new(
        words_each: usize,
        replica_count: usize,
        table_length: usize,
        connections_max: usize,
    ) -> Self {
        let words = MutBorrow::new(vec![0; words_each * (2 + 3 * replica_count)]);
        Self { words, words_each, replica_count, table_length, connections_max, rest: Bump::new() }
    }

    pub(super) fn storage(&self) -> primary::Storage<'_> {
        let mut rest = self.words.borrow_mut().as_mut_slice();
        let mut part = |count| {
            let (part, more) = mem::take(&mut rest).split_at_mut(count * self.words_each);
            rest = more;
            part
        };
        let (written, lost) = (part(1), part(1));
        let replicas = (0..self.replica_count).map(|_| primary::Replica::new(part(3)));
        primary::Storage {
            table: self.rest.alloc_slice_fill_with(self.table_length, |_| Slot::FREE),
            connections: connections(&self.rest, self.connections_max),
            written,
            lost,
            replicas: self.rest.alloc_slice_fill_iter(replicas),
        }
    }
}

fn connections<T>(memory: &Bump, count: usize) -> &mut [Connection<T>] {
    memory.alloc_slice_fill_with(count, |_| Connection::FREE)
}

/// What a secondary works in. The index takes memory as it is used.
pub(super) struct SecondaryMemory {
    nodes: MutBorrow<Box<[Node]>>,
    table_length: usize,
    connections_max: usize,
    rest: Bump,
}

impl SecondaryMemory {
    /// With the nodes of its index.
    pub(super) fn new(nodes: Box<[Node]>, table_length: usize, connections_max: usize) -> Self {
        Self { nodes: MutBorrow::new(nodes), table_length, connections_max, rest: Bump::new() }
    }

    pub(super) fn storage(&self) -> secondary::Storage<'_> {
        secondary::Storage {
            table: self.rest.alloc_slice_fill_with(self.table_length, |_| Slot::FREE),
            nodes: self.nodes.borrow_mut(),
            connections: connections(&self.rest, self.connections_max),
        }
    }
}

self_cell!(
    /// A primary and its memory.
    pub(super) struct PrimaryCell {
        owner: PrimaryMemory,
        #[not_covariant]
        dependent: PrimaryDriver,
    }
);

self_cell!(
    /// A secondary and its memory.
    pub(super) struct SecondaryCell {
        owner: SecondaryMemory,
        #[not_covariant]
        dependent: SecondaryDriver,
    }
);
