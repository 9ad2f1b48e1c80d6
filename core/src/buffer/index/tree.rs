//! How the tree changes: one run in, one run out, nodes split and merged on the way back up.

use super::{ENTRIES_MAX, ENTRIES_MIN, Entry, Index, LEVELS_MAX, NONE, Node, Path, ZEROES};

impl Index<'_> {
    pub(super) fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize]
    }

    fn node_mut(&mut self, number: u32) -> &mut Node {
        &mut self.nodes[number as usize]
    }

    /// Two different nodes at once.
    fn pair_mut(&mut self, one: u32, other: u32) -> (&mut Node, &mut Node) {
        let (one, other) = (one as usize, other as usize);
        let (low, high) = self.nodes.split_at_mut(one.max(other));
        if one < other { (&mut low[one], &mut high[0]) } else { (&mut high[0], &mut low[other]) }
    }

    /// A node with nothing in it. There is one: by X3 as many runs as are let in need no more nodes than there are.
    fn take_node(&mut self) -> u32 {
        let number = if self.free == NONE {
            self.untouched += 1;
            self.untouched - 1
        } else {
            let number = self.free;
            self.free = self.node(number).next;
            number
        };
        let node = self.node_mut(number);
        node.len = 0;
        node.next = NONE;
        number
    }

    fn give_node_back(&mut self, number: u32) {
        let free = self.free;
        self.node_mut(number).next = free;
        self.free = number;
    }

    /// The way to the leaf that `key` belongs to. In inner nodes the position is that of the child, in the leaf the
    /// number of runs that begin at or before `key`.
    fn path_to(&self, key: u64) -> Path {
        let mut path = Path { nodes: [NONE; LEVELS_MAX], positions: [0; LEVELS_MAX] };
        let mut number = self.root;
        for level in 0..=self.height {
            let node = self.node(number);
            let rank = node.rank(key);
            path.nodes[level] = number;
            path.positions[level] = if level < self.height { rank.saturating_sub(1) } else { rank };
            number = node.entries[path.positions[level].min(ENTRIES_MAX - 1)].slot;
        }
        path
    }

    /// Restores X2 above the node on `level`, whose first entry has changed.
    fn publish_first_key(&mut self, path: &Path, level: usize) {
        let key = self.node(path.nodes[level]).entries[0].first;
        for above in (0..level).rev() {
            let position = path.positions[above];
            self.node_mut(path.nodes[above]).entries[position].first = key;
            if position != 0 {
                return;
            }
        }
    }

    fn count_granules(&mut self, entry: &Entry, is_added: bool) {
        let counter = if entry.slot == ZEROES { &mut self.zero_granules } else { &mut self.data_granules };
        let count = u64::from(entry.count);
        *counter = if is_added { *counter + count } else { *counter - count };
    }

    /// Changes the run that begins where `entry` does. There is one.
    pub(super) fn replace(&mut self, entry: Entry) {
        if let Some((leaf, position @ 1..)) = self.leaf_of(entry.first) {
            let old = core::mem::replace(&mut self.node_mut(leaf).entries[position - 1], entry);
            debug_assert_eq!(old.first, entry.first);
            self.count_granules(&old, false);
            self.count_granules(&entry, true);
        }
    }

    /// Adds a run that overlaps none, and for which there is room.
    pub(super) fn insert(&mut self, run: Entry) {
        self.count_granules(&run, true);
        self.entry_count += 1;
        if self.root == NONE {
            self.root = self.take_node();
            self.node_mut(self.root).insert_at(0, run);
            return;
        }
        let path = self.path_to(run.first);
        let mut entry = run;
        let mut position = path.positions[self.height];
        for level in (0..=self.height).rev() {
            let number = path.nodes[level];
            let split = self.insert_into(number, position, entry);
            if position == 0 {
                self.publish_first_key(&path, level);
            }
            let Some(right) = split else { return };
            entry = Entry::child(self.node(right).entries[0].first, right);
            if level == 0 {
                self.grow(entry);
                return;
            }
            position = path.positions[level - 1] + 1;
        }
    }

    /// Puts an entry into a node; a full one is split in two halves. Gives the right half.
    fn insert_into(&mut self, number: u32, position: usize, entry: Entry) -> Option<u32> {
        if (self.node(number).len as usize) < ENTRIES_MAX {
            self.node_mut(number).insert_at(position, entry);
            return None;
        }
        let right_number = self.take_node();
        let (left, right) = self.pair_mut(number, right_number);
        let goes_left = position < ENTRIES_MIN;
        let kept = if goes_left { ENTRIES_MIN - 1 } else { ENTRIES_MIN };
        let moved = ENTRIES_MAX - kept;
        right.entries[..moved].copy_from_slice(&left.entries[kept..]);
        right.len = moved as u32;
        right.next = left.next;
        left.len = kept as u32;
        left.next = right_number;
        if goes_left {
            left.insert_at(position, entry);
        } else {
            right.insert_at(position - ENTRIES_MIN, entry);
        }
        Some(right_number)
    }

    /// A new root over the old one and its new right half.
    fn grow(&mut self, right: Entry) {
        let old = self.root;
        let left = Entry::child(self.node(old).entries[0].first, old);
        let root = self.take_node();
        self.node_mut(root).insert_at(0, left);
        self.node_mut(root).insert_at(1, right);
        self.root = root;
        self.height += 1;
        debug_assert!(self.height < LEVELS_MAX);
    }

    /// Takes out the run that begins at `key`. There is one.
    pub(super) fn remove(&mut self, key: u64) {
        let path = self.path_to(key);
        let leaf = path.nodes[self.height];
        let Some(position) = path.positions[self.height].checked_sub(1) else { return };
        debug_assert_eq!(self.node(leaf).entries[position].first, key);
        let removed = self.node_mut(leaf).remove_at(position);
        self.count_granules(&removed, false);
        self.entry_count -= 1;
        if self.entry_count == 0 {
            self.clear();
            return;
        }
        if position == 0 {
            self.publish_first_key(&path, self.height);
        }
        for level in (1..=self.height).rev() {
            if self.node(path.nodes[level]).len as usize >= ENTRIES_MIN {
                return;
            }
            if !self.refill(path.nodes[level - 1], path.positions[level - 1]) {
                return;
            }
        }
        self.shrink();
    }

    /// Brings a child that is one entry short up to half full: by an entry of its neighbour, or by merging the two.
    /// True if they were merged, so that the parent has one entry less.
    fn refill(&mut self, parent: u32, position: usize) -> bool {
        let right_position =
            if position + 1 < self.node(parent).len as usize { position + 1 } else { position };
        let left_number = self.node(parent).entries[right_position - 1].slot;
        let right_number = self.node(parent).entries[right_position].slot;
        let (left, right) = self.pair_mut(left_number, right_number);
        let (left_len, right_len) = (left.len as usize, right.len as usize);
        if left_len + right_len <= ENTRIES_MAX {
            left.entries[left_len..left_len + right_len].copy_from_slice(&right.entries[..right_len]);
            left.len += right.len;
            left.next = right.next;
            self.give_node_back(right_number);
            self.node_mut(parent).remove_at(right_position);
            return true;
        }
        if left_len < right_len {
            let moved = right.remove_at(0);
            left.insert_at(left_len, moved);
        } else {
            let moved = left.remove_at(left_len - 1);
            right.insert_at(0, moved);
        }
        let key = right.entries[0].first;
        self.node_mut(parent).entries[right_position].first = key;
        false
    }

    /// A root with a single child gives way to it.
    fn shrink(&mut self) {
        if self.height > 0 && self.node(self.root).len == 1 {
            let old = self.root;
            self.root = self.node(old).entries[0].slot;
            self.height -= 1;
            self.give_node_back(old);
        }
    }
}
