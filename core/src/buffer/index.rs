//! Which slot of the disk buffer holds a granule: a B+-tree of runs over borrowed nodes.
//!
//! A run is a range of neighbouring granules that lie in neighbouring slots, or that are all remembered as zeroes.
//! Forgetting everything takes constant time, however much was held: no node is looked at again (DESIGN.md, "The disk
//! buffer").
//!
//! # Invariants
//! * X1: runs are not empty, do not overlap and are sorted by their first granule, along the chain of leaves too.
//! * X2: the key of an inner entry is exactly the smallest key below it, so that the nearest run at or before a granule
//!   is always in the leaf that a descent arrives at.
//! * X3: every node but the root is at least half full; therefore `n` runs never need more than [`Index::nodes_for`]`(n)`
//!   nodes, in whatever order they came and went.

mod tree;

#[cfg(test)]
mod tests;

/// Entries of a node. Odd, so that a full node and one more entry make two nodes of exactly [`ENTRIES_MIN`].
const ENTRIES_MAX: usize = 15;
/// Fewest entries of a node that is not the root.
const ENTRIES_MIN: usize = 8;
/// Levels of the tree, at most: each level but the root divides by at least 8, and nodes are numbered in 32 bits.
const LEVELS_MAX: usize = 12;
/// No node.
const NONE: u32 = u32::MAX;
/// The slot number of a run of zeroes.
const ZEROES: u32 = u32::MAX;

const _: () =
    assert!(ENTRIES_MIN * 2 == ENTRIES_MAX + 1, "a merge must fit and a split must leave both halves full");

/// Where a granule's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Place {
    /// In this slot of the buffer; in a run, the granule after it is in the slot after it. Less than `u32::MAX`.
    Slot(u32),
    /// It is all zeroes and takes no slot.
    Zeroes,
    /// The buffer does not hold it.
    Absent,
}

impl Place {
    /// The place of the granule that is `offset` granules after the one that this is the place of, in the same run.
    #[must_use]
    pub const fn advanced(self, offset: u32) -> Self {
        match self {
            Self::Slot(slot) => Self::Slot(slot.saturating_add(offset)),
            other => other,
        }
    }
}

/// What [`Index::lookup`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Found {
    /// Where the first granule asked for is.
    pub place: Place,
    /// For how many granules from there on that goes on.
    pub count: u64,
}

/// A range of granules that the buffer holds in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Run {
    /// The first granule.
    pub first: u64,
    /// How many granules; at least 1.
    pub count: u32,
    /// Where the first granule is; never [`Place::Absent`].
    pub place: Place,
}

impl Run {
    /// The first granule after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.count as u64)
    }
}

/// How many nodes, half full or a root, hold this many entries at most.
const fn half_full(entries: usize) -> usize {
    let nodes = entries / ENTRIES_MIN;
    if nodes == 0 { 1 } else { nodes }
}

/// No room for another run; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Full;

/// In a leaf a run; in an inner node a child, whose number is in `slot`.
#[derive(Clone, Copy, Debug)]
struct Entry {
    first: u64,
    count: u32,
    slot: u32,
}

impl Entry {
    const EMPTY: Self = Self { first: 0, count: 0, slot: 0 };

    const fn child(first: u64, node: u32) -> Self {
        Self { first, count: 0, slot: node }
    }

    const fn end(&self) -> u64 {
        self.first.saturating_add(self.count as u64)
    }

    const fn run(&self) -> Run {
        Run { first: self.first, count: self.count, place: self.place() }
    }

    const fn place(&self) -> Place {
        if self.slot == ZEROES { Place::Zeroes } else { Place::Slot(self.slot) }
    }

    /// The part from `granule`, which lies within, to the end.
    fn tail(&self, granule: u64) -> Self {
        let skipped = narrow(granule - self.first);
        let slot = if self.slot == ZEROES { ZEROES } else { self.slot + skipped };
        Self { first: granule, count: self.count - skipped, slot }
    }

    /// The part before `granule`, which lies within.
    fn head(&self, granule: u64) -> Self {
        Self { count: narrow(granule - self.first), ..*self }
    }

    /// Both as one run, if `next` goes on where this one ends and the count does not overflow.
    fn joined(&self, next: &Self) -> Option<Self> {
        let follows = if self.slot == ZEROES {
            next.slot == ZEROES
        } else {
            next.slot != ZEROES && self.slot.checked_add(self.count) == Some(next.slot)
        };
        let count = self.count.checked_add(next.count)?;
        (follows && self.end() == next.first).then_some(Self { count, ..*self })
    }
}

/// A distance within one run: at most the run's count, which has 32 bits.
fn narrow(distance: u64) -> u32 {
    debug_assert!(u32::try_from(distance).is_ok());
    distance as u32
}

/// Memory for up to 15 runs, or 15 nodes below: 248 bytes. It is numbers and nothing else, so that memory of zeroes is
/// nodes: an embedder whose system hands out such memory piece by piece, as it is used, need not write to it first.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    entries: [Entry; ENTRIES_MAX],
    /// How many entries there are.
    len: u32,
    /// The leaf to the right, or the next free node.
    next: u32,
}

impl Node {
    /// What to fill the array with; its content does not matter.
    pub const EMPTY: Self = Self { entries: [Entry::EMPTY; ENTRIES_MAX], len: 0, next: NONE };

    fn entries(&self) -> &[Entry] {
        self.entries.get(..self.len as usize).unwrap_or(&self.entries)
    }

    /// An empty one where there is none.
    fn entry(&self, position: usize) -> Entry {
        self.entries.get(position).copied().unwrap_or(Entry::EMPTY)
    }

    /// How many entries have a key of at most `key`.
    fn rank(&self, key: u64) -> usize {
        self.entries().partition_point(|entry| entry.first <= key)
    }

    /// Each entry from there on moves one place up. There is room.
    fn insert_at(&mut self, position: usize, entry: Entry) {
        debug_assert!(position <= self.len as usize && (self.len as usize) < ENTRIES_MAX);
        let places = self.entries.get_mut(position..=self.len as usize).unwrap_or_default();
        places.iter_mut().fold(entry, |moving, place| core::mem::replace(place, moving));
        self.len += 1;
    }

    /// Each entry after it moves one place down. There is such an entry.
    fn remove_at(&mut self, position: usize) -> Entry {
        debug_assert!(position < self.entries().len());
        let places = self.entries.get_mut(position..self.len as usize).unwrap_or_default();
        self.len = self.len.saturating_sub(1);
        places.iter_mut().rev().fold(Entry::EMPTY, |moving, place| core::mem::replace(place, moving))
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// A node on the way from the root to a leaf, and which of its entries was followed.
#[derive(Clone, Copy)]
struct Step {
    node: u32,
    position: usize,
}

/// The whole way.
type Path = heapless::Vec<Step, LEVELS_MAX>;

/// What a call of [`Index::set`] is going to do.
struct Plan {
    /// The run that begins before the range, as it will be; only if it changes.
    left: Option<Entry>,
    /// How many runs from the start of the range on go away.
    removed: usize,
    /// The new run, if it does not join the left one.
    new: Option<Entry>,
    /// What remains to the right of the range and does not join the new run.
    right: Option<Entry>,
}

/// The index from granule to slot.
///
/// Its capacity, in runs, is fixed by the memory that it is given:
/// * unit: runs (neighbouring granules in neighbouring slots are one run, whatever their number);
/// * formula: [`Index::nodes_for`]`(runs)` nodes of 248 bytes, that is 35.4 bytes for each run; a buffer whose every
///   granule is a run of its own needs one run for each slot, and one for each separate range of zeroes;
/// * example: 64 MiB of buffer in granules of 64 KiB has 1024 slots; 1024 runs take 147 nodes, 36 KiB;
/// * when full: [`Index::set`] refuses with [`Full`] and changes nothing, as if no slot were free;
/// * a larger one buys more separate ranges between two checkpoints, zeroes above all; it is of no use beyond one run for
///   each slot where zeroes are rare.
///
/// ```
/// use twinblock_core::buffer::index::{Index, Node, Place};
/// let mut nodes = [Node::EMPTY; Index::nodes_for(100)];
/// let mut index = Index::new(&mut nodes);
/// index.set(10, 4, Place::Slot(0)).unwrap();
/// index.set(14, 2, Place::Zeroes).unwrap();
/// let found = index.lookup(11, 64);
/// assert_eq!((found.place, found.count), (Place::Slot(1), 3));
/// assert_eq!(index.lookup(0, 64).count, 10);
/// index.clear();
/// assert_eq!(index.next_present(0), None);
/// ```
#[derive(Debug)]
pub struct Index<'m> {
    nodes: &'m mut [Node],
    root: u32,
    /// Levels above the leaves.
    height: usize,
    /// Nodes from here on have not been used since the last clear.
    untouched: u32,
    /// Head of the chain of nodes given back since the last clear.
    free: u32,
    entry_count: usize,
    entry_capacity: usize,
    data_granules: u64,
    zero_granules: u64,
}

impl<'m> Index<'m> {
    /// How many entries more one [`Index::set`] may need, at most: one that cuts a run in two leaves a run to the left,
    /// itself, and a run to the right.
    pub const ENTRIES_PER_SET: usize = 2;

    /// An empty index over these nodes, whose content does not matter. Takes constant time.
    #[must_use]
    pub fn new(nodes: &'m mut [Node]) -> Self {
        let entry_capacity = Self::entries_for(nodes.len());
        Self {
            nodes,
            root: NONE,
            height: 0,
            untouched: 0,
            free: NONE,
            entry_count: 0,
            entry_capacity,
            data_granules: 0,
            zero_granules: 0,
        }
    }

    /// The same in other memory; `None` if that has another number of nodes.
    #[cfg(all(feature = "inspect", feature = "secondary"))]
    pub(super) fn copied_into<'n>(&self, nodes: &'n mut [Node]) -> Option<Index<'n>> {
        if nodes.len() != self.nodes.len() {
            return None;
        }
        nodes.copy_from_slice(self.nodes);
        let Self { root, height, untouched, free, entry_count, entry_capacity, .. } = *self;
        let (data_granules, zero_granules) = (self.data_granules, self.zero_granules);
        Some(Index {
            nodes,
            root,
            height,
            untouched,
            free,
            entry_count,
            entry_capacity,
            data_granules,
            zero_granules,
        })
    }

    /// How many nodes are enough for `entries` runs in whatever order they come.
    #[must_use]
    pub const fn nodes_for(entries: usize) -> usize {
        if entries == 0 {
            return 0;
        }
        let mut level = half_full(entries);
        let mut total = level;
        while level > 1 {
            level = half_full(level);
            total += level;
        }
        total
    }

    /// How many runs always fit into `nodes` nodes: the opposite of [`Index::nodes_for`].
    #[must_use]
    pub const fn entries_for(nodes: usize) -> usize {
        let nodes = if nodes as u64 >= NONE as u64 { NONE as usize - 1 } else { nodes };
        let mut fits = 0;
        let mut too_many = nodes.saturating_mul(ENTRIES_MAX).saturating_add(1);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if Self::nodes_for(middle) <= nodes {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        fits
    }

    /// How many runs there are.
    #[must_use]
    pub const fn entry_count(&self) -> usize {
        self.entry_count
    }

    /// How many runs always fit.
    #[must_use]
    pub const fn entry_capacity(&self) -> usize {
        self.entry_capacity
    }

    /// How many granules are in slots.
    #[must_use]
    pub const fn data_granule_count(&self) -> u64 {
        self.data_granules
    }

    /// How many granules are remembered as zeroes.
    #[must_use]
    pub const fn zero_granule_count(&self) -> u64 {
        self.zero_granules
    }

    /// How many granules are held, as data or as zeroes.
    #[must_use]
    pub const fn granule_count(&self) -> u64 {
        self.data_granules + self.zero_granules
    }

    /// Whether `sets` calls of [`Index::set`] will succeed, whatever they are.
    #[must_use]
    pub const fn can_set(&self, sets: usize) -> bool {
        sets.saturating_mul(Self::ENTRIES_PER_SET) <= self.entry_capacity - self.entry_count
    }

    /// Forgets everything, in constant time.
    pub const fn clear(&mut self) {
        self.root = NONE;
        self.height = 0;
        self.untouched = 0;
        self.free = NONE;
        self.entry_count = 0;
        self.data_granules = 0;
        self.zero_granules = 0;
    }

    /// Where `granule` is, and for how many granules from there on the same run (or the same gap) goes on, `count_max`
    /// at most. One descent of the tree.
    #[must_use]
    pub fn lookup(&self, granule: u64, count_max: u64) -> Found {
        let (before, after) = self.around(granule);
        if let Some(entry) = before.filter(|entry| entry.end() > granule) {
            let tail = entry.tail(granule);
            return Found { place: tail.place(), count: u64::from(tail.count).min(count_max) };
        }
        let count = after.map_or(u64::MAX - granule, |entry| entry.first - granule);
        Found { place: Place::Absent, count: count.min(count_max) }
    }

    /// The first run at or after `from`; of a run that `from` lies within, the part from there on. One descent of the
    /// tree.
    #[must_use]
    pub fn next_present(&self, from: u64) -> Option<Run> {
        let (before, after) = self.around(from);
        match before.filter(|entry| entry.end() > from) {
            Some(entry) => Some(entry.tail(from).run()),
            None => after.map(|entry| entry.run()),
        }
    }

    /// Maps the granules from `first` on to `place`, whatever was there before; [`Place::Absent`] forgets them. `count`
    /// granules, and slots from `place` on, must exist: neither granules nor slots go beyond their numbers' range.
    ///
    /// Descends the tree once if the range was empty and does not go on into a run behind it; otherwise a fixed number of
    /// times, and once for each run that lies in the range as a whole. Runs that go on into each other become one. Needs no
    /// entry to forget or replace whole runs, otherwise [`Index::ENTRIES_PER_SET`] at most.
    ///
    /// # Errors
    /// [`Full`]: nothing was changed.
    pub fn set(&mut self, first: u64, count: u32, place: Place) -> Result<(), Full> {
        if count == 0 {
            return Ok(());
        }
        let new = match place {
            Place::Absent => None,
            Place::Zeroes => Some(Entry { first, count, slot: ZEROES }),
            Place::Slot(slot) if slot.checked_add(count).is_some() => Some(Entry { first, count, slot }),
            Place::Slot(_) => return Err(Full),
        };
        let end = first.checked_add(u64::from(count)).ok_or(Full)?;
        if let Some(set) = new.and_then(|entry| self.set_in_gap(entry)) {
            return set;
        }
        let plan = self.plan(first, end, new);
        let added = usize::from(plan.new.is_some()) + usize::from(plan.right.is_some());
        if self.entry_count + added > self.entry_capacity + plan.removed {
            return Err(Full);
        }
        for _ in 0..plan.removed {
            if let Some(entry) = self.at_or_after(first) {
                self.remove(entry.first);
            }
        }
        if let Some(left) = plan.left {
            self.replace(left);
        }
        for entry in [plan.new, plan.right].into_iter().flatten() {
            self.insert(entry);
        }
        Ok(())
    }

    /// What has to change so that `first..end` holds `new`.
    fn plan(&self, first: u64, end: u64, new: Option<Entry>) -> Plan {
        let before = first.checked_sub(1).and_then(|granule| self.around(granule).0);
        let (mut removed, last) = self.count_from(first, end);
        let mut left = before.filter(|entry| entry.end() > first).map(|entry| entry.head(first));
        let mut right = last.or(before).filter(|entry| entry.end() > end).map(|entry| entry.tail(end));
        let mut new = new;
        if let Some(entry) = new {
            let neighbour = right.or_else(|| self.at_or_after(end).filter(|entry| entry.first == end));
            if let Some(joined) = neighbour.and_then(|next| entry.joined(&next)) {
                // A neighbour that began at the end of the range is one more run to remove; a remainder is no run yet.
                removed += usize::from(right.is_none());
                right = None;
                new = Some(joined);
            }
        }
        if let (Some(entry), Some(previous)) = (new, left.or(before))
            && let Some(joined) = previous.joined(&entry)
        {
            left = Some(joined);
            new = None;
        }
        Plan { left, removed, new, right }
    }

    /// How many runs begin in `first..end`, and the last of them.
    fn count_from(&self, first: u64, end: u64) -> (usize, Option<Entry>) {
        let (mut count, mut last) = (0, None);
        let Some((mut leaf, mut position)) = self.leaf_of(first) else { return (count, last) };
        if position > 0 && self.node(leaf).entry(position - 1).first == first {
            position -= 1;
        }
        while leaf != NONE {
            let node = self.node(leaf);
            for entry in node.entries().iter().skip(position) {
                if entry.first >= end {
                    return (count, last);
                }
                count += 1;
                last = Some(*entry);
            }
            leaf = node.next;
            position = 0;
        }
        (count, last)
    }

    /// The last run that begins at or before `granule`, and the first that begins after it.
    fn around(&self, granule: u64) -> (Option<Entry>, Option<Entry>) {
        let Some((leaf, position)) = self.leaf_of(granule) else { return (None, None) };
        let entries = self.node(leaf).entries();
        let before = position.checked_sub(1).and_then(|index| entries.get(index).copied());
        let after = entries.get(position).copied().or_else(|| {
            let next = self.node(leaf).next;
            (next != NONE).then(|| self.node(next).entries[0])
        });
        (before, after)
    }

    /// The first run that begins at or after `granule`.
    fn at_or_after(&self, granule: u64) -> Option<Entry> {
        let (before, after) = self.around(granule);
        before.filter(|entry| entry.first == granule).or(after)
    }

    /// The leaf that `granule` belongs to, and how many of its runs begin at or before `granule`.
    fn leaf_of(&self, granule: u64) -> Option<(u32, usize)> {
        if self.root == NONE {
            return None;
        }
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = self.node(node);
            node = inner.entry(inner.rank(granule).saturating_sub(1)).slot;
        }
        Some((node, self.node(node).rank(granule)))
    }
}
